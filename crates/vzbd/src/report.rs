//! `vzbd report`: the zones of a disk.

use serde::Serialize;
use virtio_zbd_store::{ImageInfo, ImageStore};
use virtio_zbd_zones::Condition;

use crate::cli::{ReportArgs, ReportFormat};
use crate::say;

pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let info = ImageStore::inspect(&args.path).map_err(crate::store_error)?;
    let zones = zones(&info);
    if args.json {
        return say(&serde_json::to_string_pretty(&serde_json::json!({ "zones": zones }))?);
    }
    let lines: Vec<String> = match args.format {
        ReportFormat::Table => {
            std::iter::once(HEAD.into()).chain(zones.iter().map(Zone::table_line)).collect()
        }
        ReportFormat::Blkzone => zones.iter().map(Zone::blkzone_line).collect(),
    };
    say(&lines.join("\n"))
}

/// A zone as it is shown; the names are the keys of `--json`. Sectors are 512 bytes.
#[derive(Serialize)]
struct Zone {
    index: u32,
    #[serde(rename = "type")]
    kind: &'static str,
    condition: &'static str,
    start_sector: u64,
    len_sectors: u64,
    capacity_sectors: u64,
    /// None where the zone has no valid write pointer.
    wp_sector: Option<u64>,
    /// How much of the zone holds data; a finished zone may hold less than its capacity.
    written_sectors: u64,
    #[serde(skip)]
    code: Condition,
}

fn zones(info: &ImageInfo) -> Vec<Zone> {
    let geometry = &info.geometry;
    let zone = |(index, state): (u32, &virtio_zbd_zones::ZoneState)| {
        let start_sector = geometry.zone_start(index);
        let valid_wp = state.condition.is_active() || state.condition == Condition::Empty;
        Zone {
            index,
            kind: match geometry.is_conventional(index) {
                true => "conventional",
                false => "sequential-write-required",
            },
            condition: name(state.condition),
            start_sector,
            len_sectors: geometry.zone_len_sectors(index).into(),
            capacity_sectors: geometry.zone_capacity_sectors(index).into(),
            wp_sector: valid_wp.then_some(start_sector + u64::from(state.wp_sectors)),
            written_sectors: state.wp_sectors.into(),
            code: state.condition,
        }
    };
    (0..).zip(&info.states).map(zone).collect()
}

const HEAD: &str = "  zone           start      length    capacity   write ptr  condition      type";

impl Zone {
    fn table_line(&self) -> String {
        let wp = self.wp_sector.map_or("-".into(), |wp| wp.to_string());
        format!(
            "{:6} {:15} {:11} {:11} {wp:>11}  {:14} {}",
            self.index, self.start_sector, self.len_sectors, self.capacity_sectors, self.condition, self.kind
        )
    }

    /// The line of util-linux' `blkzone report` for this zone on Linux' virtio_blk.
    fn blkzone_line(&self) -> String {
        let conventional = self.code == Condition::NotWp;
        // Linux puts the write pointer of a zone without a valid one at the zone's end (L9).
        let wp = match self.wp_sector {
            Some(wp) => wp - self.start_sector,
            None if conventional => 0,
            None => self.len_sectors,
        };
        let condition = match self.code {
            Condition::NotWp => "nw",
            Condition::Empty => "em",
            Condition::ImplicitOpen => "oi",
            Condition::ExplicitOpen => "oe",
            Condition::Closed => "cl",
            Condition::ReadOnly => "ro",
            Condition::Full => "fu",
            Condition::Offline => "ol",
        };
        let kind = if conventional { "1(CONVENTIONAL)" } else { "2(SEQ_WRITE_REQUIRED)" };
        format!(
            "  start: 0x{:09x}, len 0x{:06x}, cap 0x{:06x}, wptr 0x{wp:06x} reset:0 non-seq:0, zcond:{:2}({condition}) [type: {kind}]",
            self.start_sector, self.len_sectors, self.capacity_sectors, self.code as u8
        )
    }
}

fn name(condition: Condition) -> &'static str {
    match condition {
        Condition::NotWp => "not-wp",
        Condition::Empty => "empty",
        Condition::ImplicitOpen => "implicit-open",
        Condition::ExplicitOpen => "explicit-open",
        Condition::Closed => "closed",
        Condition::ReadOnly => "read-only",
        Condition::Full => "full",
        Condition::Offline => "offline",
    }
}
