//! Reads the configuration space: each field in its own width (4.2.2.2), all of one moment (2.5.1), bounded.

use virtio_drivers::transport::Transport;
use virtio_zbd_spec::{BlkConfig, Features};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::error::{Error, ProbeError};

/// How often a configuration that changes under the reader is read again. A disk grows now and then, not at each read.
pub(crate) const ATTEMPTS: usize = 64;

/// Where the writeback field is, a byte (5.2.4).
pub(crate) const WRITEBACK_OFFSET: usize = 32;

/// Reads the fields that `features` say are there; the others stay 0.
pub(crate) fn read<T: Transport>(transport: &T, features: Features) -> Result<BlkConfig, Error> {
    for _ in 0..ATTEMPTS {
        let before = transport.read_config_generation();
        let config = fields(transport, features);
        if transport.read_config_generation() == before {
            return config;
        }
    }
    Err(ProbeError::ConfigUnstable.into())
}

fn fields<T: Transport>(transport: &T, features: Features) -> Result<BlkConfig, Error> {
    let reader = Reader { transport, features };
    let mut config = BlkConfig::new_zeroed();
    config.capacity.set(u64::from(reader.word(0)?) | u64::from(reader.word(4)?) << 32);
    if features.contains(Features::SIZE_MAX) {
        config.size_max.set(reader.word(8)?);
    }
    if features.contains(Features::SEG_MAX) {
        config.seg_max.set(reader.word(12)?);
    }
    if features.contains(Features::BLK_SIZE) {
        config.blk_size.set(reader.word(20)?);
    }
    if features.contains(Features::CONFIG_WCE) {
        config.writeback = reader.field::<u8>(WRITEBACK_OFFSET)?;
    }
    if features.contains(Features::MQ) {
        config.num_queues.set(u16::from_le(reader.field(34)?));
    }
    if features.contains(Features::DISCARD) {
        config.max_discard_sectors.set(reader.word(36)?);
        config.max_discard_seg.set(reader.word(40)?);
        config.discard_sector_alignment.set(reader.word(44)?);
    }
    if features.contains(Features::WRITE_ZEROES) {
        config.max_write_zeroes_sectors.set(reader.word(48)?);
        config.max_write_zeroes_seg.set(reader.word(52)?);
        config.write_zeroes_may_unmap = reader.field::<u8>(56)?;
    }
    if features.contains(Features::SECURE_ERASE) {
        config.max_secure_erase_sectors.set(reader.word(60)?);
        config.max_secure_erase_seg.set(reader.word(64)?);
        config.secure_erase_sector_alignment.set(reader.word(68)?);
    }
    if features.contains(Features::ZONED) {
        let zoned = &mut config.zoned;
        zoned.zone_sectors.set(reader.word(72)?);
        zoned.max_open_zones.set(reader.word(76)?);
        zoned.max_active_zones.set(reader.word(80)?);
        zoned.max_append_sectors.set(reader.word(84)?);
        zoned.write_granularity.set(reader.word(88)?);
        zoned.model = reader.field::<u8>(92)?;
    }
    Ok(config)
}

struct Reader<'a, T> {
    transport: &'a T,
    features: Features,
}

impl<T: Transport> Reader<'_, T> {
    fn word(&self, offset: usize) -> Result<u32, Error> {
        self.field::<u32>(offset).map(u32::from_le)
    }

    fn field<F: FromBytes + IntoBytes + Immutable>(&self, offset: usize) -> Result<F, Error> {
        self.transport.read_config_space(offset).map_err(|error| match error {
            virtio_drivers::Error::ConfigSpaceTooSmall | virtio_drivers::Error::ConfigSpaceMissing => {
                let end_bytes = offset + size_of::<F>();
                ProbeError::ConfigTooSmall { end_bytes, features: self.features }.into()
            }
            other => Error::Transport(other),
        })
    }
}
