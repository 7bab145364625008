//! `vzbd report`: the zones of a disk.

use std::io::{self, BufWriter, Write};

use serde::Serialize;
use virtio_zbd_driver::{ZoneState, ZoneType};
use virtio_zbd_store::{ImageInfo, ImageStore};
use virtio_zbd_zones::{Condition, ZoneKind};

use crate::cli::{ReportArgs, ReportFormat};
use crate::target::{Access, Target, in_use, is_image};

pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let mut out = Output::new(args);
    if is_image(&args.disk)? {
        // What the file says, without taking it into use.
        let info = ImageStore::inspect(&args.disk.target).map_err(in_use)?;
        of_image(&info).try_for_each(|zone| out.zone(&zone))?;
        return out.end();
    }
    let mut target = Target::open(&args.disk, Access::Read)?;
    let zone_sectors = u64::from(target.zoned()?.zone_sectors);
    let mut failed = None;
    let zones = target.call(|driver| {
        for zone in driver.zones(0)? {
            let zone = Zone::of_driver(&zone?, zone_sectors);
            if let Err(error) = out.zone(&zone) {
                failed = Some(error);
                break;
            }
        }
        Ok(())
    });
    // What was printed before an error is printed.
    let printed = failed.map_or_else(|| out.end(), Err);
    zones?;
    printed?;
    target.close()
}

/// The zones, written one after another: a disk may have a million.
struct Output {
    out: BufWriter<io::Stdout>,
    json: bool,
    format: ReportFormat,
    zones: u64,
}

impl Output {
    fn new(args: &ReportArgs) -> Self {
        Self { out: BufWriter::new(io::stdout()), json: args.json, format: args.format, zones: 0 }
    }

    fn zone(&mut self, zone: &Zone) -> anyhow::Result<()> {
        let first = self.zones == 0;
        self.zones += 1;
        if self.json {
            self.out.write_all(if first { b"{\n  \"zones\": [\n    " } else { b",\n    " })?;
            serde_json::to_writer(&mut self.out, zone)?;
            return Ok(());
        }
        let line = match self.format {
            ReportFormat::Table if first => format!("{HEAD}\n{}", zone.table_line()),
            ReportFormat::Table => zone.table_line(),
            ReportFormat::Blkzone => zone.blkzone_line(),
        };
        Ok(writeln!(self.out, "{line}")?)
    }

    fn end(&mut self) -> anyhow::Result<()> {
        if self.json {
            self.out.write_all(if self.zones == 0 { b"{\n  \"zones\": [" } else { b"\n  " })?;
            self.out.write_all(b"]\n}\n")?;
        }
        Ok(self.out.flush()?)
    }
}

/// A zone as it is shown; the names are the keys of `--json`. Sectors are 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Zone {
    pub(crate) index: u64,
    #[serde(rename = "type", serialize_with = "as_type")]
    pub(crate) kind: ZoneType,
    #[serde(rename = "condition", serialize_with = "as_condition")]
    pub(crate) state: ZoneState,
    pub(crate) start_sector: u64,
    pub(crate) len_sectors: u64,
    pub(crate) capacity_sectors: u64,
    /// None where the zone has no valid write pointer.
    pub(crate) wp_sector: Option<u64>,
    /// How much of the zone holds data. A finished zone may hold less than its capacity: only its image knows.
    pub(crate) written_sectors: Option<u64>,
}

fn of_image(info: &ImageInfo) -> impl Iterator<Item = Zone> + '_ {
    let geometry = &info.geometry;
    (0..).zip(&info.states).map(|(index, zone)| {
        let start_sector = geometry.zone_start(index);
        let valid_wp = zone.condition.is_active() || zone.condition == Condition::Empty;
        Zone {
            index: index.into(),
            kind: match geometry.kind(index) {
                ZoneKind::Conventional => ZoneType::Conventional,
                ZoneKind::SequentialRequired => ZoneType::SequentialRequired,
                ZoneKind::SequentialPreferred => ZoneType::SequentialPreferred,
            },
            state: match zone.condition {
                Condition::NotWp => ZoneState::NotWp,
                Condition::Empty => ZoneState::Empty,
                Condition::ImplicitOpen => ZoneState::ImplicitOpen,
                Condition::ExplicitOpen => ZoneState::ExplicitOpen,
                Condition::Closed => ZoneState::Closed,
                Condition::ReadOnly => ZoneState::ReadOnly,
                Condition::Full => ZoneState::Full,
                Condition::Offline => ZoneState::Offline,
            },
            start_sector,
            len_sectors: geometry.zone_len_sectors(index).into(),
            capacity_sectors: geometry.zone_capacity_sectors(index).into(),
            wp_sector: valid_wp.then_some(start_sector + u64::from(zone.wp_sectors)),
            written_sectors: (zone.condition != Condition::NotWp).then_some(zone.wp_sectors.into()),
        }
    })
}

const HEAD: &str = "  zone           start      length    capacity   write ptr  condition      type";

impl Zone {
    /// A zone of a disk whose zones are `zone_sectors` long.
    pub(crate) fn of_driver(zone: &virtio_zbd_driver::Zone, zone_sectors: u64) -> Self {
        // A full zone's write pointer is not a place to write to.
        let wp_sector = zone.write_pointer_sector.filter(|_| zone.state != ZoneState::Full);
        Self {
            index: zone.start_sector / zone_sectors,
            kind: zone.kind,
            state: zone.state,
            start_sector: zone.start_sector,
            len_sectors: zone.len_sectors,
            capacity_sectors: zone.capacity_sectors,
            wp_sector,
            written_sectors: wp_sector.map(|wp| wp - zone.start_sector),
        }
    }

    fn table_line(&self) -> String {
        let wp = self.wp_sector.map_or("-".into(), |wp| wp.to_string());
        format!(
            "{:6} {:15} {:11} {:11} {wp:>11}  {:14} {}",
            self.index,
            self.start_sector,
            self.len_sectors,
            self.capacity_sectors,
            state_name(self.state),
            type_name(self.kind)
        )
    }

    /// The line of util-linux' `blkzone report` for this zone on Linux' virtio_blk.
    fn blkzone_line(&self) -> String {
        // Linux puts the write pointer of a zone without a valid one at the zone's end (L9).
        let wp = match self.wp_sector {
            Some(wp) => wp - self.start_sector,
            None if self.state == ZoneState::NotWp => 0,
            None => self.len_sectors,
        };
        let state = match self.state {
            ZoneState::NotWp => "nw",
            ZoneState::Empty => "em",
            ZoneState::ImplicitOpen => "oi",
            ZoneState::ExplicitOpen => "oe",
            ZoneState::Closed => "cl",
            ZoneState::ReadOnly => "ro",
            ZoneState::Full => "fu",
            ZoneState::Offline => "of",
        };
        let kind = match self.kind {
            ZoneType::Conventional => "1(CONVENTIONAL)",
            ZoneType::SequentialRequired => "2(SEQ_WRITE_REQUIRED)",
            ZoneType::SequentialPreferred => "3(SEQ_WRITE_PREFERRED)",
        };
        format!(
            "  start: 0x{:09x}, len 0x{:06x}, cap 0x{:06x}, wptr 0x{wp:06x} reset:0 non-seq:0, zcond:{:2}({state}) [type: {kind}]",
            self.start_sector, self.len_sectors, self.capacity_sectors, self.state as u8
        )
    }
}

/// A state's name, as it is shown and as it stands in `--json`.
pub(crate) fn state_name(state: ZoneState) -> &'static str {
    match state {
        ZoneState::NotWp => "not-wp",
        ZoneState::Empty => "empty",
        ZoneState::ImplicitOpen => "implicit-open",
        ZoneState::ExplicitOpen => "explicit-open",
        ZoneState::Closed => "closed",
        ZoneState::ReadOnly => "read-only",
        ZoneState::Full => "full",
        ZoneState::Offline => "offline",
    }
}

fn type_name(kind: ZoneType) -> &'static str {
    match kind {
        ZoneType::Conventional => "conventional",
        ZoneType::SequentialRequired => "sequential-write-required",
        ZoneType::SequentialPreferred => "sequential-write-preferred",
    }
}

fn as_type<S: serde::Serializer>(kind: &ZoneType, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(type_name(*kind))
}

fn as_condition<S: serde::Serializer>(state: &ZoneState, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(state_name(*state))
}
