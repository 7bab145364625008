//! `vzbd info`: what a disk is.

use serde::Serialize;
use virtio_zbd_driver::{Model, VirtioBlk, ZoneState, ZoneType, Zoned};
use virtio_zbd_store::{ImageInfo, ImageStore, LastUse};

use crate::cli::InfoArgs;
use crate::geometry::{CAPACITIES_MAX, Kinds, model_name};
use crate::say;
use crate::size::Size;
use crate::target::{Access, Target, in_use, is_image};

pub(crate) fn run(args: &InfoArgs) -> anyhow::Result<()> {
    let shown = if is_image(&args.disk)? {
        Shown::of_image(&ImageStore::inspect(&args.disk.target).map_err(in_use)?)
    } else {
        let mut target = Target::open(&args.disk, Access::Read)?;
        let shown = Shown::of_disk(&mut target)?;
        target.close()?;
        shown
    };
    if args.json {
        return say(&serde_json::to_string_pretty(&shown)?);
    }
    say(&shown.text())
}

/// What is shown of a disk; the names are the keys of `--json`.
#[derive(Serialize)]
struct Shown {
    name: String,
    #[serde(flatten)]
    is: Is,
    capacity_bytes: u64,
    block_len_bytes: u32,
    /// None on a disk without zones.
    zones: Option<Zones>,
}

/// What is known only of an image, or only of a disk in use.
#[derive(Serialize)]
#[serde(untagged)]
enum Is {
    Image {
        model: &'static str,
        uuid: String,
        format_version: u32,
        closed_cleanly: bool,
        allocated_bytes: u64,
        file_len_bytes: u64,
        /// How long `vzbd resize` can make it: the states of so many zones find room.
        grows_to_bytes: u64,
    },
    Served {
        model: &'static str,
        /// None where the disk has none.
        serial: Option<String>,
        read_only: bool,
        /// Whether it keeps writes in a cache until a flush.
        write_back: bool,
        queues: u16,
        /// The names of the virtio features that are offered and used.
        features: Vec<&'static str>,
    },
}

#[derive(Serialize)]
struct Zones {
    count: u64,
    conventional: u64,
    preferred: u64,
    zone_len_bytes: u64,
    /// The largest that a sequential zone has.
    zone_capacity_bytes: u64,
    /// All of them, each once, where there are several.
    zone_capacities_bytes: Vec<u64>,
    max_open: u32,
    max_active: u32,
    max_append_bytes: u64,
    open: u64,
    active: u64,
}

impl Shown {
    fn of_image(info: &ImageInfo) -> Self {
        let geometry = &info.geometry;
        let config = geometry.config();
        let kinds = Kinds::of(geometry);
        Self {
            name: info.name.clone(),
            is: Is::Image {
                model: model_name(geometry.model()),
                uuid: info.uuid.to_string(),
                format_version: info.version,
                closed_cleanly: info.last_use == LastUse::Closed,
                allocated_bytes: info.allocated_bytes,
                file_len_bytes: info.file_len_bytes,
                grows_to_bytes: u64::from(info.zones_max).saturating_mul(bytes(config.zone_sectors)),
            },
            capacity_bytes: geometry.capacity_sectors() * 512,
            block_len_bytes: config.write_granularity_bytes,
            zones: Some(Zones {
                count: geometry.zone_count().into(),
                conventional: kinds.conventional.into(),
                preferred: kinds.preferred.into(),
                zone_len_bytes: bytes(config.zone_sectors),
                zone_capacity_bytes: bytes(config.zone_capacity_sectors),
                zone_capacities_bytes: kinds
                    .capacities_sectors
                    .iter()
                    .map(|sectors| bytes(*sectors))
                    .collect(),
                max_open: config.max_open_zones,
                max_active: config.max_active_zones,
                max_append_bytes: bytes(config.max_append_sectors),
                open: info.open_zones.into(),
                active: info.active_zones.into(),
            }),
        }
    }

    fn of_disk(target: &mut Target) -> anyhow::Result<Self> {
        // A disk without a serial number says so with an error.
        let serial = target.driver.id().ok().map(|id| id.to_string()).filter(|id| !id.is_empty());
        let zones = match target.driver.zoned().copied() {
            Some(zoned) => Some(Zones::of_disk(target, &zoned)?),
            None => None,
        };
        let driver = &target.driver;
        Ok(Self {
            name: target.name().to_owned(),
            is: Is::Served {
                model: match driver.model() {
                    Model::None => "none",
                    Model::HostManaged => "host-managed",
                    Model::HostAware => "host-aware",
                },
                serial,
                read_only: driver.read_only(),
                write_back: driver.write_back(),
                queues: target.queues_offered(),
                features: driver.features().iter_names().map(|(name, _)| name).collect(),
            },
            capacity_bytes: driver.capacity_sectors() * 512,
            block_len_bytes: driver.physical_block_len_bytes(),
            zones,
        })
    }

    fn text(&self) -> String {
        let size = |bytes: u64| Size::from(bytes).to_string();
        let mut lines: Vec<(&str, String)> = Vec::new();
        match &self.is {
            Is::Image {
                model,
                uuid,
                format_version,
                closed_cleanly,
                allocated_bytes,
                grows_to_bytes,
                ..
            } => {
                let closed = match closed_cleanly {
                    true => "cleanly",
                    false => "by a kill or a power cut; the next use puts it in order",
                };
                lines.extend([
                    ("image", self.name.clone()),
                    ("model", (*model).into()),
                    ("uuid", uuid.clone()),
                    ("format", format!("version {format_version}")),
                    ("closed", closed.into()),
                    ("capacity", size(self.capacity_bytes)),
                    ("can grow to", size(*grows_to_bytes)),
                    ("takes on the host", size(*allocated_bytes)),
                ]);
            }
            Is::Served { model, serial, read_only, write_back, queues, features } => {
                let cache = if *write_back { "write-back: a flush makes durable" } else { "write-through" };
                lines.extend([
                    ("disk", self.name.clone()),
                    ("model", if *model == "none" { "no zones".into() } else { (*model).into() }),
                    ("serial", serial.clone().unwrap_or_else(|| "none".into())),
                    ("access", if *read_only { "read-only".into() } else { "read and write".into() }),
                    ("cache", cache.into()),
                    ("queues", queues.to_string()),
                    ("features", features.join(" ")),
                    ("capacity", size(self.capacity_bytes)),
                ]);
            }
        }
        lines.push(("blocks", size(self.block_len_bytes.into())));
        if let Some(zones) = &self.zones {
            lines.extend(zones.lines());
        }
        let lines: Vec<_> = lines.iter().map(|(name, value)| format!("{name:18} {value}")).collect();
        lines.join("\n")
    }
}

impl Zones {
    fn of_disk(target: &mut Target, zoned: &Zoned) -> anyhow::Result<Self> {
        let mut zones = Self {
            count: zoned.zones,
            conventional: 0,
            preferred: 0,
            zone_len_bytes: bytes(zoned.zone_sectors),
            zone_capacity_bytes: 0,
            zone_capacities_bytes: Vec::new(),
            max_open: zoned.open_max,
            max_active: zoned.active_max,
            max_append_bytes: bytes(zoned.append_sectors_max),
            open: 0,
            active: 0,
        };
        target.call(|driver| {
            for zone in VirtioBlk::zones(driver, 0)? {
                let zone = zone?;
                if zone.state == ZoneState::NotWp {
                    zones.conventional += 1;
                } else {
                    // Each zone may have its own.
                    let capacity_bytes = zone.capacity_sectors * 512;
                    zones.zone_capacity_bytes = zones.zone_capacity_bytes.max(capacity_bytes);
                    let known = &mut zones.zone_capacities_bytes;
                    // A runt has what there is of it.
                    let full_length = zone.len_sectors == u64::from(zoned.zone_sectors);
                    if full_length && known.len() < CAPACITIES_MAX && !known.contains(&capacity_bytes) {
                        known.push(capacity_bytes);
                    }
                    zones.preferred += u64::from(zone.kind == ZoneType::SequentialPreferred);
                }
                let open = matches!(zone.state, ZoneState::ImplicitOpen | ZoneState::ExplicitOpen);
                zones.open += u64::from(open);
                zones.active += u64::from(open || zone.state == ZoneState::Closed);
            }
            Ok(())
        })?;
        if zones.zone_capacity_bytes == 0 {
            zones.zone_capacity_bytes = zones.zone_len_bytes;
        }
        Ok(zones)
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let Self { count, conventional, max_open, max_active, open, active, .. } = self;
        let limit = |limit: &u32| if *limit == 0 { "no limit".into() } else { format!("at most {limit}") };
        let append = match self.max_append_bytes {
            0 => "none".into(),
            bytes => format!("up to {}", Size::from(bytes)),
        };
        let preferred = match self.preferred {
            0 => String::new(),
            preferred => format!(", {preferred} sequential-write-preferred"),
        };
        let capacities: Vec<_> =
            self.zone_capacities_bytes.iter().map(|bytes| Size::from(*bytes).to_string()).collect();
        let capacity = match capacities.as_slice() {
            [] | [_] => Size::from(self.zone_capacity_bytes).to_string(),
            several => several.join(", "),
        };
        vec![
            ("zones", format!("{count}, {conventional} of them conventional{preferred}")),
            ("zone length", Size::from(self.zone_len_bytes).to_string()),
            ("zone capacity", capacity),
            ("open", format!("{open} ({})", limit(max_open))),
            ("active", format!("{active} ({})", limit(max_active))),
            ("append", append),
        ]
    }
}

fn bytes(sectors: u32) -> u64 {
    u64::from(sectors) * 512
}
