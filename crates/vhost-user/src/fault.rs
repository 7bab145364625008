//! Why a request was not done.

use crate::backend::{ConfigRefused, FeaturesRefused, StartError};
use crate::frontend::NotAChannel;
use crate::inflight::InflightError;
use crate::memory::MemoryError;
use crate::notifier::NotAnEvent;
use crate::request::Malformed;
use crate::ring::PlaceError;

/// Why a request was not done. Nothing has changed, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("it needs protocol feature {0}, which has not been negotiated")]
    NotNegotiated(&'static str),
    #[error("it needs a protocol feature that is not offered")]
    NotOffered,
    #[error("features {0:#x} are not offered")]
    Features(u64),
    #[error("protocol features {0:#x} are not offered")]
    ProtocolFeatures(u64),
    #[error("{0:#x} is not a device status: it has eight bits")]
    Status(u64),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("queue {index} does not exist: there are {count}")]
    QueueIndex { index: u32, count: usize },
    #[error("queue size {found} is not a power of two from 1 to {max}")]
    QueueSize { found: u32, max: u16 },
    #[error("{0} is not an index into an available ring: it has 16 bits")]
    QueueBase(u32),
    #[error("the queue is running: its size and index can be set when it is stopped")]
    QueueRunning,
    #[error("queue flags {0:#x}: the dirty log is not offered")]
    QueueFlags(u32),
    #[error("{0} neither enables (1) nor disables (0) a queue")]
    QueueEnable(u32),
    #[error("the queue cannot be there: {0}")]
    QueuePlace(#[from] PlaceError),
    #[error(transparent)]
    Inflight(#[from] InflightError),
    #[error(transparent)]
    Event(#[from] NotAnEvent),
    #[error(transparent)]
    Channel(#[from] NotAChannel),
    #[error("configuration space flags {0:#x} mean nothing")]
    ConfigFlags(u32),
    #[error("{0} bytes of configuration space: 1 to 256 can be written at a time")]
    ConfigSize(u32),
    /// The device does not want the features. They count as refused.
    #[error("the device refuses features {features:#x}: {source}")]
    FeaturesRefused { features: u64, source: FeaturesRefused },
    #[error("the device refuses the write to its configuration space: {0}")]
    ConfigRefused(#[from] ConfigRefused),
    /// What was to be set has been set; the queue is not running.
    #[error("queue {index} could not be started: {source}")]
    Start { index: u16, source: StartError },
    /// What was to be set has been set; the queue will start when its memory is there.
    #[error("queue {index} waits for its memory: {source}")]
    Unplaced { index: u16, source: PlaceError },
    #[error("a queue without a kick would have to be polled, which is not supported")]
    Polling,
    #[error("the message is unknown")]
    Unknown,
}

impl Fault {
    /// True if the front-end did nothing wrong: it asked for what this device or this server does not do, and
    /// can live with a no.
    ///
    /// Otherwise the two sides see things differently, and the front-end has to learn it: if it did not ask
    /// for a reply, by the end of the connection.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::FeaturesRefused { .. }
                | Self::ConfigRefused(_)
                | Self::Start { .. }
                | Self::Unplaced { .. }
                | Self::Polling
                | Self::Unknown
        )
    }
}
