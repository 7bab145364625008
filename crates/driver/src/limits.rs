//! What a disk is and what it takes: the configuration space, checked once (L2, L4–L7).

use virtio_zbd_spec::{BlkConfig, Features, Model, SECTOR_LEN_BYTES};

use crate::error::ProbeError;

/// The most bytes that one request carries even if the device names no limit.
const TRANSFER_LEN_BYTES_MAX: u64 = 1 << 30;

/// Which zones the caller can cope with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZoneSupport {
    /// Those of a host-managed disk. A host-aware one is used as a regular disk (R5).
    #[default]
    Yes,
    /// Those of a host-aware disk, too: its zones are checked, reported and managed. Its sequential-write-preferred zones can be written
    /// anywhere, and have no append.
    HostAware,
    /// A host-managed disk is refused, never used as a regular disk (L3).
    No,
}

/// What a request may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of data in one request: a multiple of the block, and of the write granularity.
    pub transfer_len_bytes_max: usize,
    /// The most segments that the data of one request may have (seg_max, and what the queue holds).
    pub segments_max: u32,
    /// The longest segment in bytes (size_max).
    pub segment_len_bytes_max: u32,
    /// Whether the disk has a cache to be flushed. Without, what is answered is durable.
    pub flush: bool,
    /// DISCARD; never on a host-managed disk (R2, L6).
    pub discard: Option<RangeLimits>,
    /// WRITE_ZEROES.
    pub write_zeroes: Option<RangeLimits>,
    /// Whether WRITE_ZEROES with the unmap flag really unmaps.
    pub unmap: bool,
    /// SECURE_ERASE.
    pub secure_erase: Option<RangeLimits>,
}

/// What a request on ranges without data may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimits {
    /// The most sectors in one range.
    pub sectors_max: u32,
    /// The most ranges that the device takes in one request. (The driver sends one.)
    pub ranges_max: u32,
    /// Where it is best to split a range, in sectors; 0 or 1 where it does not matter.
    pub alignment_sectors: u32,
}

impl RangeLimits {
    /// How much of the range up to `end_sector` goes into the request at `at_sector`. A range that must be split is split
    /// at a multiple of the alignment, if there is one within reach.
    pub(crate) fn piece_sectors(&self, at_sector: u64, end_sector: u64) -> u32 {
        let left_sectors = u32::try_from(end_sector - at_sector).unwrap_or(u32::MAX);
        if left_sectors <= self.sectors_max && u64::from(left_sectors) == end_sector - at_sector {
            return left_sectors;
        }
        let past_sectors =
            (at_sector + u64::from(self.sectors_max)) % u64::from(self.alignment_sectors.max(1));
        match u32::try_from(past_sectors) {
            Ok(past_sectors) if past_sectors < self.sectors_max => self.sectors_max - past_sectors,
            _ => self.sectors_max,
        }
    }
}

/// The zones of a disk: a host-managed one, or a host-aware one where that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zoned {
    /// Length of each zone but the last, which may be shorter (V6). Any number, not only powers of two (L5).
    pub zone_sectors: u32,
    /// How many zones the disk has.
    pub zones: u64,
    /// How many zones may be open at a time; 0: no limit (V7).
    pub open_max: u32,
    /// How many zones may be active (open or closed) at a time; 0: no limit (V8).
    pub active_max: u32,
    /// The largest append in sectors; 0: the disk knows no append (B5).
    pub append_sectors_max: u32,
    /// What writes to sequential zones are multiples of, in bytes (R12).
    pub write_granularity_bytes: u32,
}

impl Zoned {
    /// The first sector of the zone that holds `sector`.
    #[must_use]
    pub fn zone_start_sector(&self, sector: u64) -> u64 {
        sector - sector % u64::from(self.zone_sectors)
    }
}

/// Everything that the configuration space says, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) capacity_sectors: u64,
    pub(crate) block_len_bytes: u32,
    /// What long reads and writes are split at: blocks, on a zoned disk whole write granularities, too (R12).
    pub(crate) unit_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) write_back: bool,
    pub(crate) queues: u16,
    pub(crate) model: Model,
    pub(crate) zoned: Option<Zoned>,
    pub(crate) limits: Limits,
}

impl Geometry {
    /// Checks `config`, in which fields that `features` do not name are 0. `queue_depth` is the longest descriptor
    /// chain that a queue holds.
    pub(crate) fn new(
        config: &BlkConfig,
        features: Features,
        queue_depth: u16,
        support: ZoneSupport,
    ) -> Result<Self, ProbeError> {
        let capacity_sectors = config.capacity.get();
        if capacity_sectors > u64::MAX / SECTOR_LEN_BYTES {
            return Err(ProbeError::Capacity(capacity_sectors));
        }
        let block_len_bytes = if features.contains(Features::BLK_SIZE) { config.blk_size.get() } else { 512 };
        if !block_len_bytes.is_power_of_two() || !(512..=1 << 24).contains(&block_len_bytes) {
            return Err(ProbeError::BlockLen(block_len_bytes));
        }
        let model = if features.contains(Features::ZONED) {
            Model::try_from(config.zoned.model).map_err(|_| ProbeError::UnknownModel(config.zoned.model))?
        } else {
            Model::None
        };
        // R5, L2: the other models' zoned fields mean nothing to a driver that treats the disk as a regular one.
        let zoned = match (model, support) {
            (Model::HostManaged, ZoneSupport::No) => return Err(ProbeError::ZonesNotWanted),
            (Model::HostManaged, _) | (Model::HostAware, ZoneSupport::HostAware) => {
                Some(zoned(config, capacity_sectors, block_len_bytes)?)
            }
            (Model::None | Model::HostAware, _) => None,
        };
        let unit_bytes = zoned.map_or(u64::from(block_len_bytes), |zoned| {
            least_common_multiple(block_len_bytes, zoned.write_granularity_bytes)
        });
        Ok(Self {
            capacity_sectors,
            block_len_bytes,
            unit_bytes,
            read_only: features.contains(Features::RO),
            // 5.2.6.2: without FLUSH the disk writes through; without CONFIG_WCE it does not say, and may keep back.
            write_back: features.contains(Features::FLUSH)
                && (!features.contains(Features::CONFIG_WCE) || config.writeback != 0),
            queues: if features.contains(Features::MQ) { config.num_queues.get().max(1) } else { 1 },
            model,
            zoned,
            limits: limits(
                config,
                features,
                queue_depth,
                block_len_bytes,
                unit_bytes,
                model == Model::HostManaged,
            )?,
        })
    }
}

fn zoned(config: &BlkConfig, capacity_sectors: u64, block_len_bytes: u32) -> Result<Zoned, ProbeError> {
    let fields = &config.zoned;
    let zone_sectors = fields.zone_sectors.get();
    if zone_sectors == 0 {
        return Err(ProbeError::ZoneSize);
    }
    // Each zone is looked at before the disk is shown: their number bounds how long that takes.
    let zones = capacity_sectors.div_ceil(u64::from(zone_sectors));
    if zones > u64::from(u32::MAX) {
        return Err(ProbeError::TooManyZones(zones));
    }
    let write_granularity_bytes = fields.write_granularity.get();
    if write_granularity_bytes == 0 || !u64::from(write_granularity_bytes).is_multiple_of(SECTOR_LEN_BYTES) {
        return Err(ProbeError::WriteGranularity(write_granularity_bytes));
    }
    for unit_bytes in [write_granularity_bytes, block_len_bytes] {
        if !(u64::from(zone_sectors) * SECTOR_LEN_BYTES).is_multiple_of(u64::from(unit_bytes)) {
            return Err(ProbeError::ZoneNotAligned { zone_sectors, unit_bytes });
        }
    }
    // B4: in 64 bits, where no product of the two can overflow. B5: 0 is a disk without append, not a bad one.
    let append_sectors_max = fields.max_append_sectors.get();
    if append_sectors_max != 0
        && u64::from(append_sectors_max) * SECTOR_LEN_BYTES < u64::from(write_granularity_bytes)
    {
        return Err(ProbeError::AppendBelowGranularity { append_sectors_max, write_granularity_bytes });
    }
    Ok(Zoned {
        zone_sectors,
        zones,
        open_max: fields.max_open_zones.get(),
        active_max: fields.max_active_zones.get(),
        append_sectors_max,
        write_granularity_bytes,
    })
}

fn limits(
    config: &BlkConfig,
    features: Features,
    queue_depth: u16,
    block_len_bytes: u32,
    unit_bytes: u64,
    host_managed: bool,
) -> Result<Limits, ProbeError> {
    // Header and in-header take a descriptor each. A device that names no seg_max, or 0, must take one segment.
    let room = u32::from(queue_depth.saturating_sub(2)).max(1);
    let segments_max =
        if features.contains(Features::SEG_MAX) { config.seg_max.get().clamp(1, room) } else { 1 };
    // qemu-storage-daemon offers SIZE_MAX and leaves the field 0.
    let segment_len_bytes_max = match config.size_max.get() {
        limit @ 1.. if features.contains(Features::SIZE_MAX) => limit,
        _ => u32::MAX,
    };
    let transfer_len_bytes_max =
        (u64::from(segments_max) * u64::from(segment_len_bytes_max)).min(TRANSFER_LEN_BYTES_MAX);
    let transfer_len_bytes_max = transfer_len_bytes_max - transfer_len_bytes_max % unit_bytes;
    let (Ok(transfer_len_bytes_max), true) =
        (usize::try_from(transfer_len_bytes_max), transfer_len_bytes_max > 0)
    else {
        return Err(ProbeError::TransferTooSmall { segments_max, segment_len_bytes_max, unit_bytes });
    };
    let range = |feature, sectors: u32, ranges: u32, alignment_sectors| {
        features.contains(feature).then(|| RangeLimits {
            // 0 stands for "no limit" in the field; what is sent has 32 bits.
            sectors_max: whole_blocks(if sectors == 0 { u32::MAX } else { sectors }, block_len_bytes),
            ranges_max: ranges.max(1),
            alignment_sectors,
        })
    };
    Ok(Limits {
        transfer_len_bytes_max,
        segments_max,
        segment_len_bytes_max,
        flush: features.contains(Features::FLUSH),
        discard: range(
            Features::DISCARD,
            config.max_discard_sectors.get(),
            config.max_discard_seg.get(),
            config.discard_sector_alignment.get(),
        )
        .filter(|_| !host_managed),
        write_zeroes: range(
            Features::WRITE_ZEROES,
            config.max_write_zeroes_sectors.get(),
            config.max_write_zeroes_seg.get(),
            0,
        ),
        unmap: config.write_zeroes_may_unmap != 0,
        secure_erase: range(
            Features::SECURE_ERASE,
            config.max_secure_erase_sectors.get(),
            config.max_secure_erase_seg.get(),
            config.secure_erase_sector_alignment.get(),
        ),
    })
}

/// Two numbers of bytes, neither of them 0.
fn least_common_multiple(a: u32, b: u32) -> u64 {
    let (mut divisor, mut rest) = (a, b);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    u64::from(a) * u64::from(b / divisor)
}

/// `sectors` rounded down to whole blocks, at least one block: a device that takes less takes nothing.
fn whole_blocks(sectors: u32, block_len_bytes: u32) -> u32 {
    let block_sectors = block_len_bytes / 512;
    (sectors - sectors % block_sectors).max(block_sectors)
}
