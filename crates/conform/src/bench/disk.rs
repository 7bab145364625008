//! What the configuration says.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use virtio_zbd_spec::{BlkConfig, Features, Model, SECTOR_LEN_BYTES};
use zerocopy::FromBytes;

use crate::link::CONFIG_LEN_BYTES;

/// A disk as features and configuration describe it. Numbers are as the device gives them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk {
    pub(crate) offered: Features,
    pub(crate) accepted: Features,
    pub(crate) config: BlkConfig,
    pub(crate) capacity_sectors: u64,
    pub(crate) read_only: bool,
    /// With ZONED accepted.
    pub(crate) zoned: Option<Zoned>,
}

/// The zones as the configuration describes them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zoned {
    pub(crate) model: u8,
    pub(crate) zone_sectors: u64,
    pub(crate) max_open: u32,
    pub(crate) max_active: u32,
    pub(crate) max_append_sectors: u64,
    pub(crate) granularity_bytes: u32,
}

/// Features for people: their names, and the bits that have none.
pub(crate) fn feature_names(features: Features) -> String {
    let mut names: Vec<String> = features.iter_names().map(|(name, _)| name.into()).collect();
    let unnamed = features - Features::all();
    if !unnamed.is_empty() {
        names.push(format!("{:#x}", unnamed.bits()));
    }
    if names.is_empty() { "no features".into() } else { names.join(" | ") }
}

impl Disk {
    pub(crate) fn new(offered: Features, accepted: Features, config: &[u8; CONFIG_LEN_BYTES]) -> Self {
        let config = BlkConfig::read_from_bytes(config).unwrap_or_default();
        Self {
            offered,
            accepted,
            capacity_sectors: config.capacity.get(),
            read_only: offered.contains(Features::RO),
            zoned: accepted.contains(Features::ZONED).then(|| Zoned::new(&config)),
            config,
        }
    }

    pub(crate) fn model_name(&self) -> &'static str {
        match self.zoned.map(|zoned| Model::try_from(zoned.model)) {
            None => "not to be seen",
            Some(Ok(Model::None)) => "NONE",
            Some(Ok(Model::HostManaged)) => "host-managed",
            Some(Ok(Model::HostAware)) => "host-aware",
            Some(Err(_)) => "unknown",
        }
    }

    /// The length in sectors of what drivers read and write at least: the block, where the device says what that is.
    pub(crate) fn block(&self) -> u64 {
        match u64::from(self.config.blk_size.get()) {
            len if !self.accepted.contains(Features::BLK_SIZE) || len > 1 << 20 => 1,
            len => (len / SECTOR_LEN_BYTES).max(1),
        }
    }

    /// The longest descriptor that the device takes, in bytes.
    pub(crate) fn segment_max_bytes(&self) -> u64 {
        match u64::from(self.config.size_max.get()) {
            len if self.accepted.contains(Features::SIZE_MAX) && len > 0 => len,
            _ => u64::from(u32::MAX),
        }
    }

    /// The most descriptors with data that the device takes in one request.
    pub(crate) fn segments_max(&self) -> u64 {
        match u64::from(self.config.seg_max.get()) {
            segments if self.accepted.contains(Features::SEG_MAX) && segments > 0 => segments,
            _ => u64::MAX,
        }
    }

    /// The longest data of a request in bytes, as far as SIZE_MAX and SEG_MAX say.
    pub(crate) fn data_max_bytes(&self) -> u64 {
        self.segment_max_bytes().saturating_mul(self.segments_max())
    }
}

impl Zoned {
    fn new(config: &BlkConfig) -> Self {
        let zoned = &config.zoned;
        Self {
            model: zoned.model,
            zone_sectors: zoned.zone_sectors.get().into(),
            max_open: zoned.max_open_zones.get(),
            max_active: zoned.max_active_zones.get(),
            max_append_sectors: zoned.max_append_sectors.get().into(),
            granularity_bytes: zoned.write_granularity.get(),
        }
    }

    /// Whether zones can be seen: host-managed or host-aware.
    pub(crate) fn has_zones(&self) -> bool {
        matches!(Model::try_from(self.model), Ok(Model::HostManaged | Model::HostAware))
    }

    pub(crate) fn is_host_managed(&self) -> bool {
        Model::try_from(self.model) == Ok(Model::HostManaged)
    }

    /// How many zones the disk has.
    pub(crate) fn zone_count(&self, disk: &Disk) -> u64 {
        disk.capacity_sectors.div_ceil(self.zone_sectors.max(1))
    }

    /// The write granularity in sectors.
    pub(crate) fn granule(&self) -> u64 {
        (u64::from(self.granularity_bytes) / SECTOR_LEN_BYTES).max(1)
    }

    /// The length of the zone at `start` in sectors.
    pub(crate) fn zone_len(&self, disk: &Disk, start: u64) -> u64 {
        self.zone_sectors.min(disk.capacity_sectors.saturating_sub(start))
    }

    /// Why no request of at most `request_max_bytes` can be made for such a disk.
    pub(crate) fn unusable(&self, disk: &Disk, request_max_bytes: u64) -> Option<String> {
        let granularity = u64::from(self.granularity_bytes);
        if disk.capacity_sectors == 0 {
            Some("the capacity is 0".into())
        } else if disk.capacity_sectors > u64::MAX / SECTOR_LEN_BYTES {
            Some(format!("a capacity of {} sectors", disk.capacity_sectors))
        } else if self.zone_sectors == 0 {
            Some("zone_sectors is 0 (V6)".into())
        } else if granularity == 0 || !granularity.is_multiple_of(SECTOR_LEN_BYTES) {
            Some(format!("write_granularity is {granularity} (V10)"))
        } else if granularity > request_max_bytes {
            Some(format!(
                "write_granularity is {granularity}, the run sends at most {request_max_bytes} bytes"
            ))
        } else {
            None
        }
    }
}
