//! What a peer can do to a test: every failure that is not the test's own mistake.

use std::io;
use std::path::PathBuf;

use virtio_zbd_spec::UnknownValue;

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A device or a backend did not do what it should have.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody accepted a connection in time.
    #[error("no connection to {} within {timeout_ms} ms: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// How long it was tried.
        timeout_ms: u128,
        /// What the last try ended with.
        source: io::Error,
    },
    /// The backend answered a message with an error (its reply was not 0).
    #[error("the backend refused {message}")]
    Refused {
        /// The message's name in the protocol.
        message: &'static str,
    },
    /// The device left FEATURES_OK clear, or took it back (2.2, V4).
    #[error("the device did not accept the features: its status is {status:#x}")]
    FeaturesNotOk {
        /// The device status that was read back.
        status: u8,
    },
    /// A message could not be exchanged: the backend hung up, or sent what the protocol does not allow there.
    #[error("{message} failed: {source}")]
    Protocol {
        /// The message's name in the protocol.
        message: &'static str,
        /// What rust-vmm's frontend says.
        source: vhost::Error,
    },
    /// A raw message could not be sent or its answer not be received; `UnexpectedEof` when the backend hung up.
    #[error("{message} failed: {source}")]
    Raw {
        /// What was done.
        message: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The backend did not answer a message in time; the connection is shut down.
    #[error("no answer to {message} within {timeout_ms} ms")]
    NoAnswer {
        /// The message's name in the protocol.
        message: &'static str,
        /// How long it was waited for.
        timeout_ms: u128,
    },
    /// No request was completed in time.
    #[error("no completion within {timeout_ms} ms; {outstanding} requests are outstanding")]
    NoCompletion {
        /// How long it was waited for.
        timeout_ms: u128,
        /// How many requests are still with the device.
        outstanding: usize,
    },
    /// Requests were completed but the driver was not notified, though it had asked for that.
    #[error("the used ring has moved on to {used_idx}, but no notification came in {timeout_ms} ms")]
    NoNotification {
        /// How long it was waited for.
        timeout_ms: u128,
        /// The used ring's index.
        used_idx: u16,
    },
    /// The device returned a chain that it does not have (returned twice, or never given to it).
    #[error("the device returned chain {id} in the used ring, which it does not have")]
    NotOutstanding {
        /// `id` in the used ring.
        id: u32,
    },
    /// The device wrote where it must not.
    #[error("the device wrote to {what}, near guest address {addr:#x}")]
    Trespass {
        /// What kind of place it was.
        what: &'static str,
        /// Where it was, or where the buffer begins.
        addr: u64,
    },
    /// There are not enough free descriptors for the request.
    #[error("the request needs {needed} descriptors, {free} are free")]
    QueueFull {
        /// How many it needs.
        needed: usize,
        /// How many there are.
        free: usize,
    },
    /// There is nothing with the device that could be waited for.
    #[error("no request is outstanding")]
    NothingOutstanding,
    /// The device answered with a number that has no meaning.
    #[error("the device answered with a bad value: {0}")]
    BadValue(#[from] UnknownValue),
    /// A zone report that is wrong in itself.
    #[error("bad zone report from sector {sector}: {why}")]
    BadReport {
        /// Where the report was to begin.
        sector: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A system call for the test's own eventfds and pipes failed.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}
