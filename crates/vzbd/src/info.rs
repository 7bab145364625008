//! `vzbd info`: what a disk is.

use serde::Serialize;
use virtio_zbd_store::{ImageInfo, ImageStore, LastUse};

use crate::cli::InfoArgs;
use crate::say;
use crate::size::Size;

pub(crate) fn run(args: &InfoArgs) -> anyhow::Result<()> {
    let info = ImageStore::inspect(&args.path).map_err(crate::store_error)?;
    let shown = Shown::new(&info);
    if args.json {
        return say(&serde_json::to_string_pretty(&shown)?);
    }
    say(&shown.text())
}

/// What is shown of an image; the names are the keys of `--json`.
#[derive(Serialize)]
struct Shown {
    name: String,
    uuid: String,
    format_version: u32,
    closed_cleanly: bool,
    capacity_bytes: u64,
    allocated_bytes: u64,
    file_len_bytes: u64,
    block_len_bytes: u32,
    zones: Zones,
}

#[derive(Serialize)]
struct Zones {
    count: u32,
    conventional: u32,
    zone_len_bytes: u64,
    zone_capacity_bytes: u64,
    max_open: u32,
    max_active: u32,
    max_append_bytes: u64,
    open: u32,
    active: u32,
}

impl Shown {
    fn new(info: &ImageInfo) -> Self {
        let geometry = &info.geometry;
        let config = geometry.config();
        let bytes = |sectors: u32| u64::from(sectors) * 512;
        Self {
            name: info.name.clone(),
            uuid: info.uuid.to_string(),
            format_version: info.version,
            closed_cleanly: info.last_use == LastUse::Closed,
            capacity_bytes: geometry.capacity_sectors() * 512,
            allocated_bytes: info.allocated_bytes,
            file_len_bytes: info.file_len_bytes,
            block_len_bytes: config.write_granularity_bytes,
            zones: Zones {
                count: geometry.zone_count(),
                conventional: config.conventional_zones,
                zone_len_bytes: bytes(config.zone_sectors),
                zone_capacity_bytes: bytes(config.zone_capacity_sectors),
                max_open: config.max_open_zones,
                max_active: config.max_active_zones,
                max_append_bytes: bytes(config.max_append_sectors),
                open: info.open_zones,
                active: info.active_zones,
            },
        }
    }

    fn text(&self) -> String {
        let Zones { count, conventional, max_open, max_active, open, active, .. } = self.zones;
        let limit = |limit: u32| if limit == 0 { "no limit".into() } else { limit.to_string() };
        let append = match self.zones.max_append_bytes {
            0 => "none".into(),
            bytes => format!("up to {}", Size::from(bytes)),
        };
        let closed = match self.closed_cleanly {
            true => "cleanly",
            false => "by a kill or a power cut; the next use puts it in order",
        };
        let lines = [
            ("image", self.name.clone()),
            ("uuid", self.uuid.clone()),
            ("format", format!("version {}", self.format_version)),
            ("closed", closed.into()),
            ("capacity", Size::from(self.capacity_bytes).to_string()),
            ("takes on the host", Size::from(self.allocated_bytes).to_string()),
            ("blocks", Size::from(u64::from(self.block_len_bytes)).to_string()),
            ("zones", format!("{count}, {conventional} of them conventional")),
            ("zone length", Size::from(self.zones.zone_len_bytes).to_string()),
            ("zone capacity", Size::from(self.zones.zone_capacity_bytes).to_string()),
            ("open", format!("{open} ({})", limit(max_open))),
            ("active", format!("{active} ({})", limit(max_active))),
            ("append", append),
        ];
        let lines: Vec<_> = lines.iter().map(|(name, value)| format!("{name:18} {value}")).collect();
        lines.join("\n")
    }
}
