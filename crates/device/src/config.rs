//! What the disk offers to a driver, and what the two agree on.

use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use virtio_zbd_spec::{BlkConfig, Features, Model, ZonedCharacteristics};
use virtio_zbd_zones::{self as zones, Geometry, SECTOR_LEN_BYTES};
use zerocopy::{FromZeros, IntoBytes};

/// Segments in a request: with header and status they fit a queue of 128 descriptors, for drivers without INDIRECT_DESC.
pub const SEG_MAX: u32 = 126;
/// Longest segment in bytes.
pub const SIZE_MAX_BYTES: u32 = 1 << 20;
/// Longest range of one DISCARD or WRITE_ZEROES segment: 2 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Segments in one DISCARD or WRITE_ZEROES.
pub const MAX_DISCARD_SEGMENTS: u32 = 32;
/// The largest queue that a driver may set up.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// Where the writeback byte stands in the configuration space.
const WRITEBACK_OFFSET: usize = core::mem::offset_of!(BlkConfig, writeback);

/// What a disk is to a driver.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) capacity_sectors: u64,
    pub(crate) block_len_bytes: u32,
    pub(crate) geometry: Option<Geometry>,
    pub(crate) queues: u16,
    pub(crate) read_only: bool,
}

impl Offer {
    /// The feature bits offered.
    ///
    /// A zoned disk offers neither DISCARD (R2; a host-aware one could, R3) nor WRITE_ZEROES (G3).
    pub(crate) fn features(&self) -> Features {
        let mut features = Features::VERSION_1
            | Features::INDIRECT_DESC
            | Features::EVENT_IDX
            | Features::SIZE_MAX
            | Features::SEG_MAX
            | Features::BLK_SIZE
            | Features::TOPOLOGY
            | Features::FLUSH
            | Features::CONFIG_WCE;
        features.set(Features::MQ, self.queues > 1);
        features.set(Features::RO, self.read_only);
        features.set(Features::ZONED, self.geometry.is_some());
        let plain = self.geometry.is_none() && !self.read_only;
        features.set(Features::DISCARD | Features::WRITE_ZEROES, plain);
        features
    }

    /// Whether the range lies on the disk.
    pub(crate) fn holds(&self, sector: u64, sectors: u64) -> bool {
        sector.checked_add(sectors).is_some_and(|end| end <= self.capacity_sectors)
    }

    /// The configuration space. Every field is set whether or not its feature was accepted: a front-end may read it
    /// before a driver has spoken, and the driver reads only what it negotiated. But a driver that has spoken, and knows
    /// no zones, sees none (V3).
    pub(crate) fn config_space(&self, negotiated: &Negotiated) -> BlkConfig {
        let mut config = BlkConfig::new_zeroed();
        config.capacity.set(self.capacity_sectors);
        config.size_max.set(SIZE_MAX_BYTES);
        config.seg_max.set(SEG_MAX);
        config.blk_size.set(self.block_len_bytes);
        config.topology.min_io_size.set(1);
        config.writeback = u8::from(negotiated.write_back());
        config.num_queues.set(self.queues);
        match &self.geometry {
            Some(_) if !negotiated.is_refused() && !negotiated.has(Features::ZONED) => {}
            Some(geometry) => config.zoned = zoned(geometry),
            None => {
                config.max_discard_sectors.set(MAX_DISCARD_SECTORS);
                config.max_discard_seg.set(MAX_DISCARD_SEGMENTS);
                config.discard_sector_alignment.set(self.block_len_bytes / SECTOR_LEN_BYTES);
                config.max_write_zeroes_sectors.set(MAX_DISCARD_SECTORS);
                config.max_write_zeroes_seg.set(MAX_DISCARD_SEGMENTS);
                config.write_zeroes_may_unmap = 1;
            }
        }
        config
    }
}

fn zoned(geometry: &Geometry) -> ZonedCharacteristics {
    let config = geometry.config();
    let mut zoned = ZonedCharacteristics::new_zeroed();
    zoned.zone_sectors.set(config.zone_sectors);
    zoned.max_open_zones.set(config.max_open_zones);
    zoned.max_active_zones.set(config.max_active_zones);
    zoned.max_append_sectors.set(config.max_append_sectors);
    zoned.write_granularity.set(config.write_granularity_bytes);
    zoned.model = match geometry.model() {
        zones::Model::HostManaged => Model::HostManaged,
        zones::Model::HostAware => Model::HostAware,
    } as u8;
    zoned
}

/// What one driver and the disk agreed on, from the acceptance of features to the reset; shared by the driver's queues.
#[derive(Debug)]
pub struct Negotiated {
    features: Features,
    refused: bool,
    write_back: AtomicBool,
}

impl Negotiated {
    /// Nothing is agreed on yet: every request fails.
    pub(crate) fn nothing() -> Self {
        Self { features: Features::empty(), refused: true, write_back: AtomicBool::new(true) }
    }

    /// The driver's choice of the features in `offer`.
    ///
    /// # Errors
    /// A bit that was not offered, a legacy driver (V2), or no ZONED on a host-managed disk (V4). Of a host-aware one it may be left out (V3).
    pub(crate) fn new(offer: &Offer, accepted: u64) -> Result<Self, FeaturesRefused> {
        let features = Features::from_bits_retain(accepted);
        let unoffered = features.difference(offer.features());
        if !unoffered.is_empty() {
            return Err(FeaturesRefused::Unoffered { bits: unoffered.bits() });
        }
        if !features.contains(Features::VERSION_1) {
            return Err(FeaturesRefused::Legacy);
        }
        let host_managed = |geometry: &Geometry| geometry.model() == zones::Model::HostManaged;
        if offer.geometry.as_ref().is_some_and(host_managed) && !features.contains(Features::ZONED) {
            return Err(FeaturesRefused::NotZoned);
        }
        // CONFIG_WCE without FLUSH begins as write-through; with neither, completed writes are to be stable
        // (5.2.6.2, the cases of a stable write).
        let write_back = AtomicBool::new(features.contains(Features::FLUSH));
        Ok(Self { features, refused: false, write_back })
    }

    pub(crate) fn has(&self, feature: Features) -> bool {
        self.features.contains(feature)
    }

    /// The driver's features were refused, or it has none: it must not reach the disk.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    /// Whether a write may answer before it is durable.
    pub(crate) fn write_back(&self) -> bool {
        self.write_back.load(Ordering::Acquire)
    }

    /// Whether the driver has written 0 to the writeback byte.
    pub(crate) fn has_turned_cache_off(&self) -> bool {
        self.has(Features::CONFIG_WCE) && !self.write_back()
    }

    /// As if the driver had written 0 to the writeback byte, where it may.
    pub fn turn_cache_off(&self) {
        if self.has(Features::CONFIG_WCE) {
            self.write_back.store(false, Ordering::Release);
        }
    }

    /// The driver writes to the configuration space: only the writeback byte may be written, and only where CONFIG_WCE
    /// was negotiated.
    ///
    /// # Errors
    /// Any other byte, or any other value.
    pub fn write_config(&self, offset: u32, data: &[u8]) -> Result<(), ConfigRefused> {
        let refused = ConfigRefused { offset, len: data.len() };
        let at_writeback = usize::try_from(offset) == Ok(WRITEBACK_OFFSET);
        match data {
            [mode @ (0 | 1)] if at_writeback && self.has(Features::CONFIG_WCE) => {
                self.write_back.store(*mode == 1, Ordering::Release);
                Ok(())
            }
            _ => Err(refused),
        }
    }
}

/// Copies the part of the configuration space that begins at `offset` to `out`; what lies past its end is zero.
pub(crate) fn copy_config(config: &BlkConfig, offset: u32, out: &mut [u8]) {
    out.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|offset| config.as_bytes().get(offset..)).unwrap_or(&[]);
    for (to, from) in out.iter_mut().zip(rest) {
        *to = *from;
    }
}

/// Why a driver's features can't be: FEATURES_OK stays clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub enum FeaturesRefused {
    #[error("the driver accepted feature bits {bits:#x}, which were not offered")]
    Unoffered { bits: u64 },
    #[error("the driver does not know virtio 1.0 (no VERSION_1), and a zoned disk has no legacy interface")]
    Legacy,
    #[error("the driver does not know zones (no VIRTIO_BLK_F_ZONED), and this disk is host-managed (V4)")]
    NotZoned,
}

/// A write to a configuration field that is not the driver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{len} bytes at offset {offset} of the configuration space can't be written, or not with this value")]
pub struct ConfigRefused {
    /// Offset in bytes.
    pub offset: u32,
    /// Length in bytes.
    pub len: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_zbd_zones::GeometryConfig;

    fn zoned_offer() -> Offer {
        let geometry = Geometry::new(GeometryConfig {
            capacity_sectors: 4096,
            zone_sectors: 512,
            zone_capacity_sectors: 384,
            conventional_zones: 1,
            max_open_zones: 3,
            max_active_zones: 4,
            max_append_sectors: 64,
            write_granularity_bytes: 4096,
        });
        Offer {
            capacity_sectors: 4096,
            block_len_bytes: 4096,
            geometry: Some(geometry.unwrap()),
            queues: 2,
            read_only: false,
        }
    }

    fn plain_offer() -> Offer {
        Offer { geometry: None, block_len_bytes: 512, queues: 1, ..zoned_offer() }
    }

    #[test]
    fn v5_to_v11_the_zoned_fields() {
        let config = zoned_offer().config_space(&Negotiated::nothing());
        assert_eq!(config.zoned.model, 1);
        assert_eq!(config.zoned.zone_sectors.get(), 512);
        assert_eq!(config.zoned.max_open_zones.get(), 3);
        assert_eq!(config.zoned.max_active_zones.get(), 4);
        assert_eq!(config.zoned.max_append_sectors.get(), 64);
        assert_eq!(config.zoned.write_granularity.get(), 4096);
        let mut last = [1; 8];
        copy_config(&config, 92, &mut last);
        assert_eq!(last, [1, 0, 0, 0, 0, 0, 0, 0], "model, unused2 and nothing past the end");
        assert_eq!(config.max_discard_sectors.get(), 0);
    }

    #[test]
    fn v1_v3_a_plain_disk_has_no_zones_at_all() {
        assert!(!plain_offer().features().contains(Features::ZONED));
        let config = plain_offer().config_space(&Negotiated::nothing());
        assert_eq!(config.zoned.as_bytes(), [0; 24]);
    }

    #[test]
    fn g3_r2_a_zoned_disk_offers_no_discard_and_no_write_zeroes() {
        let both = Features::DISCARD | Features::WRITE_ZEROES;
        assert!(!zoned_offer().features().intersects(both));
        assert!(plain_offer().features().contains(both));
        assert!(!Offer { read_only: true, ..plain_offer() }.features().intersects(both));
    }

    #[test]
    fn v4_a_driver_without_zones_is_refused() {
        let offer = zoned_offer();
        let all = offer.features();
        let accept = |features: Features| Negotiated::new(&offer, features.bits()).map(|_| ());
        assert_eq!(accept(all), Ok(()));
        assert_eq!(accept(all - Features::ZONED), Err(FeaturesRefused::NotZoned));
        assert_eq!(accept(all - Features::VERSION_1), Err(FeaturesRefused::Legacy));
        assert_eq!(accept(all | Features::DISCARD), Err(FeaturesRefused::Unoffered { bits: 1 << 13 }));
        let plain = plain_offer();
        assert!(Negotiated::new(&plain, Features::VERSION_1.bits()).is_ok());
    }

    #[test]
    fn v3_v5_a_host_aware_disk_may_be_used_without_zones() {
        let config = *zoned_offer().geometry.unwrap().config();
        let config = GeometryConfig { max_open_zones: 0, max_active_zones: 0, ..config };
        let layout = zones::ZoneLayout {
            model: zones::Model::HostAware,
            head: Vec::new(),
            cycle: vec![zones::ZoneRun::preferred(1, 512)],
        };
        let geometry = Geometry::with_layout(config, layout).unwrap();
        let offer = Offer { geometry: Some(geometry), ..zoned_offer() };
        let space = |negotiated: &Negotiated| offer.config_space(negotiated).zoned;
        assert_eq!(space(&Negotiated::nothing()).model, 2);
        let accept = |features: Features| Negotiated::new(&offer, features.bits());
        let zoned = accept(offer.features()).unwrap();
        assert_eq!((space(&zoned).model, space(&zoned).zone_sectors.get()), (2, 512));
        let regular = accept(offer.features() - Features::ZONED).unwrap();
        assert!(!regular.is_refused());
        assert_eq!(space(&regular).as_bytes(), [0; 24]);
        let legacy = offer.features() - Features::ZONED - Features::VERSION_1;
        assert_eq!(accept(legacy).map(|_| ()), Err(FeaturesRefused::Legacy), "V2");
    }

    #[test]
    fn the_cache_mode_follows_the_negotiation() {
        let offer = zoned_offer();
        let with = |features: Features| {
            Negotiated::new(&offer, (features | Features::VERSION_1 | Features::ZONED).bits()).unwrap()
        };
        assert!(with(Features::FLUSH | Features::CONFIG_WCE).write_back());
        assert!(with(Features::FLUSH).write_back());
        assert!(!with(Features::CONFIG_WCE).write_back());
        assert!(!with(Features::empty()).write_back());
    }

    #[test]
    fn only_the_writeback_byte_can_be_written() {
        let offer = zoned_offer();
        let n = Negotiated::new(&offer, offer.features().bits()).unwrap();
        assert_eq!(n.write_config(32, &[0]), Ok(()));
        assert!(!n.write_back());
        assert_eq!(n.write_config(32, &[1]), Ok(()));
        assert!(n.write_back());
        for (offset, data) in
            [(32, &[2][..]), (0, &[1]), (33, &[0]), (32, &[0, 0]), (32, &[]), (u32::MAX, &[1]), (92, &[0])]
        {
            assert!(n.write_config(offset, data).is_err(), "{offset} {data:?}");
        }
        let without = Negotiated::new(&offer, (offer.features() - Features::CONFIG_WCE).bits()).unwrap();
        assert!(without.write_config(32, &[0]).is_err());
    }
}
