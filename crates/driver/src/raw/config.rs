//! The configuration space as bytes. It is read in the width of each field, for that is what devices owe an answer to
//! (4.1.3.1, 4.2.2.2).

use virtio_drivers::Hal;
use virtio_drivers::transport::Transport;
use virtio_zbd_spec::BlkConfig;

use super::RawDevice;
use crate::config::ATTEMPTS;
use crate::error::{Error, ProbeError};

/// How long a block device's configuration space is with all of its fields (5.2.4).
pub const CONFIG_LEN_BYTES: usize = size_of::<BlkConfig>();

/// Where `num_queues` is, two bytes (5.2.4).
const NUM_QUEUES_OFFSET: usize = 34;

/// Fields of less than 4 bytes, and unused bytes: offset and length. All others are words, `capacity` two of them.
const NARROW: [(usize, usize); 16] = [
    (16, 2),
    (18, 1),
    (19, 1),
    (24, 1),
    (25, 1),
    (26, 2),
    (32, 1),
    (33, 1),
    (34, 2),
    (56, 1),
    (57, 1),
    (58, 1),
    (59, 1),
    (92, 1),
    (93, 1),
    (94, 1),
];

impl<H: Hal, T: Transport> RawDevice<H, T> {
    /// The configuration space, all of one moment, and how long it is; what the device does not have of it is 0.
    ///
    /// # Errors
    ///
    /// [`ProbeError::ConfigUnstable`] where it never stands still; [`Error::Transport`]; [`Error::Broken`] from a device that
    /// is lost.
    pub fn config(&mut self) -> Result<([u8; CONFIG_LEN_BYTES], usize), Error> {
        let transport = self.transport.as_ref().ok_or(Error::Broken)?;
        for _ in 0..ATTEMPTS {
            let before = transport.read_config_generation();
            let config = read(transport);
            if transport.read_config_generation() == before {
                return config;
            }
        }
        Err(ProbeError::ConfigUnstable.into())
    }

    /// Writes one byte of the configuration space. A device may ignore that, where the field is not the driver's.
    ///
    /// # Errors
    ///
    /// [`Error::Transport`]: `Unsupported` where the device refuses, as a vhost-user back-end can, `ConfigSpaceTooSmall`
    /// beyond its end; [`Error::Broken`] from a device that is lost.
    pub fn write_config(&mut self, offset: usize, byte: u8) -> Result<(), Error> {
        let transport = self.transport.as_mut().ok_or(Error::Broken)?;
        transport.write_config_space(offset, byte).map_err(Error::Transport)
    }
}

/// The device's word for how many queues there are; 0 where it has none.
pub(super) fn num_queues<T: Transport>(transport: &T) -> u16 {
    transport.read_config_space::<u16>(NUM_QUEUES_OFFSET).map_or(0, u16::from_le)
}

/// What there is of the space, up to the first field that is not.
fn read<T: Transport>(transport: &T) -> Result<([u8; CONFIG_LEN_BYTES], usize), Error> {
    let mut bytes = [0; CONFIG_LEN_BYTES];
    let mut at = 0;
    while at < CONFIG_LEN_BYTES {
        let len = width(at);
        let read = match len {
            1 => transport.read_config_space::<u8>(at).map(|field| [field, 0, 0, 0]),
            2 => transport.read_config_space::<u16>(at).map(|field| {
                let [first, second] = field.to_ne_bytes();
                [first, second, 0, 0]
            }),
            _ => transport.read_config_space::<u32>(at).map(u32::to_ne_bytes),
        };
        match read {
            Ok(field) => bytes[at..at + len].copy_from_slice(&field[..len]),
            Err(virtio_drivers::Error::ConfigSpaceTooSmall | virtio_drivers::Error::ConfigSpaceMissing) => {
                break;
            }
            Err(error) => return Err(Error::Transport(error)),
        }
        at += len;
    }
    Ok((bytes, at))
}

/// The length of the field at `at`.
fn width(at: usize) -> usize {
    match NARROW.iter().find(|(offset, _)| *offset == at) {
        Some((_, len)) => *len,
        // The last of the unused bytes; all others are in the table.
        None if at == 95 => 1,
        None => 4,
    }
}
