//! What the disk says that it is, before anything is tried.

use serde::Serialize;
use virtio_zbd_conform::{Link, LinkError};
use virtio_zbd_spec::{BlkConfig, Features, Model};
use zerocopy::FromBytes;

use crate::size::Size;

/// The disk by its own words; the names are the keys of `--json`.
#[derive(Serialize)]
pub(super) struct Description {
    pub(super) name: String,
    capacity_bytes: u64,
    /// `none`, `host-managed`, `host-aware`, or a number that stands for nothing.
    model: String,
    /// None on a disk without zones.
    zones: Option<Zones>,
    /// All feature bits on offer.
    features: u64,
    /// Those of them that have a name here.
    feature_names: Vec<&'static str>,
    config_len_bytes: usize,
}

#[derive(Serialize)]
struct Zones {
    count: u64,
    zone_len_bytes: u64,
    max_open: u32,
    max_active: u32,
    max_append_bytes: u64,
    write_granularity_bytes: u32,
}

impl Description {
    /// Asks the disk.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) fn of(name: &str, link: &mut dyn Link) -> Result<Self, LinkError> {
        let features = link.offered()?;
        let bytes = link.config()?;
        let config = BlkConfig::read_from_bytes(&bytes)
            .map_err(|_| LinkError::Lost("its configuration has another length".into()))?;
        let names = Features::from_bits_truncate(features);
        let model = match names.contains(Features::ZONED) {
            true => Model::try_from(config.zoned.model),
            false => Ok(Model::None),
        };
        let zoned = &config.zoned;
        let zone_sectors = u64::from(zoned.zone_sectors.get());
        let has_zones = !matches!(model, Ok(Model::None)) && zone_sectors > 0;
        Ok(Self {
            name: name.to_owned(),
            capacity_bytes: config.capacity.get().saturating_mul(512),
            model: match model {
                Ok(Model::None) => "none".into(),
                Ok(Model::HostManaged) => "host-managed".into(),
                Ok(Model::HostAware) => "host-aware".into(),
                Err(_) => format!("unknown ({})", zoned.model),
            },
            zones: has_zones.then(|| Zones {
                count: config.capacity.get().div_ceil(zone_sectors),
                zone_len_bytes: zone_sectors * 512,
                max_open: zoned.max_open_zones.get(),
                max_active: zoned.max_active_zones.get(),
                max_append_bytes: u64::from(zoned.max_append_sectors.get()) * 512,
                write_granularity_bytes: zoned.write_granularity.get(),
            }),
            features,
            feature_names: names.iter_names().map(|(name, _)| name).collect(),
            config_len_bytes: link.config_len_bytes(),
        })
    }

    /// In a line.
    pub(super) fn text(&self) -> String {
        let size = |bytes: u64| Size::from(bytes).to_string();
        let Self { name, model, .. } = self;
        let capacity = size(self.capacity_bytes);
        let Some(zones) = &self.zones else {
            let model = if model == "none" { "no zones".into() } else { format!("model {model}") };
            return format!("{name}: a disk of {capacity}, {model}");
        };
        let limit = |limit: u32| if limit == 0 { "no limit".into() } else { limit.to_string() };
        let append = match zones.max_append_bytes {
            0 => "no append".into(),
            bytes => format!("append up to {}", size(bytes)),
        };
        format!(
            "{name}: a {model} disk of {capacity}, {} zones of {}, written in units of {}; open: {}, active: {}, {append}",
            zones.count,
            size(zones.zone_len_bytes),
            size(zones.write_granularity_bytes.into()),
            limit(zones.max_open),
            limit(zones.max_active),
        )
    }
}
