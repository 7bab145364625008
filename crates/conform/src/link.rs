//! How the suite reaches a disk.

use alloc::string::String;
use alloc::vec::Vec;
use core::{error, fmt};

/// The length of the block device's configuration space with zones, in bytes (5.2.4).
pub const CONFIG_LEN_BYTES: usize = 96;

/// One disk, reached so directly that anything can be sent to it: what no good driver sends, too.
///
/// A link does not judge: what the device says is handed on as it is. It is an error only where there is nothing to hand
/// on. It bounds the time that it waits for the device.
pub trait Link {
    /// The feature bits that the device offers. May be asked at any time.
    ///
    /// # Errors
    ///
    /// The device can't be reached.
    fn offered(&mut self) -> Result<u64, LinkError>;

    /// Resets the device, accepts `features` (bits of no meaning included) and sees whether FEATURES_OK stays set; if so,
    /// sets up the queues and DRIVER_OK.
    ///
    /// The suite asks for no ring features (indirect descriptors, event index, packed ring), so the rings are plain split
    /// rings. Also brings back a device that has been lost or asks for a reset.
    ///
    /// # Errors
    ///
    /// The device can't be reached. That it refuses the features is no error.
    fn start(&mut self, features: u64) -> Result<Started, LinkError>;

    /// Whether FEATURES_OK is the device's own word. Where it is not, [`Self::start`] tells as much as there is to be seen: a vhost-user
    /// back-end without the protocol feature STATUS may refuse features, but nothing asks it to, since its front-end keeps
    /// the status.
    fn shows_features_ok(&self) -> bool {
        true
    }

    /// The configuration space; zeros behind the end of one that is shorter.
    ///
    /// # Errors
    ///
    /// The device can't be reached.
    fn config(&mut self) -> Result<[u8; CONFIG_LEN_BYTES], LinkError>;

    /// How long the configuration space is, in bytes.
    fn config_len_bytes(&mut self) -> usize;

    /// Writes one byte of the configuration space. Whether it is taken can be read back: a device that says no is no error.
    ///
    /// # Errors
    ///
    /// The device can't be reached, or the way to it can't write the configuration space.
    fn write_config(&mut self, offset: usize, byte: u8) -> Result<(), LinkError>;

    /// How many descriptors a queue has.
    fn queue_size(&self) -> u16;

    /// How many queues are set up.
    fn queue_count(&self) -> u16;

    /// Sends one chain through queue 0: the readable pieces, then the writable ones, each one descriptor. Returns the used
    /// length as the device gave it; the writable pieces hold what the device wrote, and else what they held before.
    ///
    /// # Errors
    ///
    /// The device did not use the chain in time, or is gone.
    fn send(&mut self, readable: &[&[u8]], writable: &mut [&mut [u8]]) -> Result<u32, LinkError>;

    /// Makes all chains available before it waits for any; at most `queue_size() / 4` of them, of at most four descriptors
    /// each. What came back is put into the chains.
    ///
    /// # Errors
    ///
    /// The device did not use all chains in time, or is gone. The chains that were used before have their `used_len`.
    fn send_all(&mut self, chains: &mut [Chain]) -> Result<(), LinkError>;
}

/// What became of [`Link::start`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// FEATURES_OK stayed set, and the queues run.
    Accepted,
    /// The device did not take the features.
    Refused,
}

/// One chain of a batch, for [`Link::send_all`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The queue to send it through, less than [`Link::queue_count`].
    pub queue: u16,
    /// What the device may read: a descriptor each.
    pub readable: Vec<Vec<u8>>,
    /// What the device may write: a descriptor each.
    pub writable: Vec<Vec<u8>>,
    /// What the device said that it wrote, in bytes; `None` as long as it has not used the chain.
    pub used_len: Option<u32>,
}

/// Why a link has nothing to hand on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkError {
    /// The device gave no answer in the time that the link waits.
    TimedOut,
    /// The device, or the way to it, is gone or broken; how it shows.
    Lost(String),
    /// This link can't do that, and why. The case is skipped.
    Unsupported(&'static str),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("the device gave no answer in time"),
            Self::Lost(how) => write!(f, "the device is lost: {how}"),
            Self::Unsupported(why) => write!(f, "not possible over this link: {why}"),
        }
    }
}

impl error::Error for LinkError {}
