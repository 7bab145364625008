//! Why there is no connection, or none any more.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::ArenaError;

/// Why a back-end could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there, or the system said no.
    #[error("{}: cannot {action}: {source}", path.display())]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// There is no memory to share with a back-end.
    #[error(transparent)]
    Memory(#[from] ArenaError),
    /// The back-end was there, but the first messages went wrong.
    #[error("{}: {lost}{}", path.display(), hint(lost))]
    Lost {
        /// The socket's path.
        path: PathBuf,
        /// What went wrong.
        #[source]
        lost: Lost,
    },
    /// The back-end has no queue that could be used.
    #[error("{}: the back-end says that it has no queues", path.display())]
    NoQueues {
        /// The socket's path.
        path: PathBuf,
    },
}

/// Why a connection ended, or why it is of no use any more.
///
/// `request` is the name of the message whose answer was waited for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// The back-end closed the connection, or died.
    #[error("the back-end closed the connection{}", during(*request))]
    Closed {
        /// What was being asked, if anything.
        request: Option<&'static str>,
    },
    /// An answer did not come in time, or a message could not be sent in time.
    #[error("the back-end did not answer {request} within {timeout:?}")]
    TimedOut {
        /// What was asked.
        request: &'static str,
        /// How long was waited.
        timeout: Duration,
    },
    /// What came is not the answer to what was asked.
    #[error(
        "the back-end answered {request} with message {found} (flags {flags:#x}): a reply of version 1 to {request} is expected"
    )]
    NotTheReply {
        /// What was asked.
        request: &'static str,
        /// The message that came.
        found: u32,
        /// Its flags: 5 are expected.
        flags: u32,
    },
    /// The answer has a size that it cannot have.
    #[error("the back-end answered {request} with {found} bytes, {expected} are expected")]
    ReplySize {
        /// What was asked.
        request: &'static str,
        /// The size of a right answer.
        expected: usize,
        /// What the answer's header says.
        found: u32,
    },
    /// The answer's contents are impossible.
    #[error("the back-end answered {request} with {found:#x}, {expected} is expected")]
    ReplyValue {
        /// What was asked.
        request: &'static str,
        /// A right answer.
        expected: &'static str,
        /// What came.
        found: u64,
    },
    /// File descriptors came along that nobody asked for. They have been closed.
    #[error("the back-end sent file descriptors with its answer to {request}, which has none")]
    FileDescriptors {
        /// What was asked.
        request: &'static str,
    },
    /// The back-end refused what no back-end may refuse.
    #[error("the back-end refused {request}{} (answer {code})", queue_name(*queue))]
    Refused {
        /// What was asked.
        request: &'static str,
        /// The queue it was about, if it was about one.
        queue: Option<u16>,
        /// The answer: not 0.
        code: u64,
    },
    /// Something came that nobody had asked for.
    #[error("the back-end sent something on the connection without being asked")]
    Unrequested,
    /// The channel for the back-end's own messages carries something else.
    #[error(
        "on the channel for its own requests the back-end sent message {request} of {size_bytes} bytes, flags {flags:#x}: that is none"
    )]
    BackChannel {
        /// The message's number.
        request: u32,
        /// The message's flags: version 1 is expected, and no reply.
        flags: u32,
        /// The size of its payload.
        size_bytes: u32,
    },
    /// The configuration space was different each time it was read, too often to be true.
    #[error("the back-end's configuration space was different each of the last {reads} times it was read")]
    ConfigUnsteady {
        /// How often it was read.
        reads: u32,
    },
    /// The back-end has given up a queue. Setting the status to 0 brings the device back.
    #[error("the back-end has given up queue {queue}; the device must be reset")]
    QueueFailed {
        /// Which queue.
        queue: u16,
    },
    /// The driver's ring is not in the arena, or has an impossible size. Setting the status to 0 brings the
    /// device back.
    #[error("queue {queue} cannot be used: {reason}")]
    QueueUnusable {
        /// Which queue.
        queue: u16,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The back-end closed the connection, or died, and no other came in its place while
    /// [`ConnectOptions::reconnect`](super::ConnectOptions::reconnect) lasted.
    #[error(
        "the back-end closed the connection, and no other one came in its place within {waited:?}: {errno}"
    )]
    NotReplaced {
        /// How long was waited.
        waited: Duration,
        /// What the system said to the last attempt to connect.
        errno: Errno,
    },
    /// Another back-end could have come in the place of the one that is gone, but that one had requests which it
    /// did not track: nobody knows which of them were done.
    #[error(
        "the back-end closed the connection with {requests} requests in flight, and does not track them (INFLIGHT_SHMFD)"
    )]
    Untracked {
        /// How many.
        requests: u32,
    },
    /// The back-end that came in the place of one that died cannot go on with what was agreed upon.
    #[error(
        "the back-end that came in the place of the one that died has other {what}: {expected:#x} was agreed upon, {found:#x} is offered"
    )]
    Replaced {
        /// What is different.
        what: &'static str,
        /// What the old one and the driver had agreed upon.
        expected: u64,
        /// What the new one has.
        found: u64,
    },
    /// The system said no.
    #[error("cannot {action}: {errno}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What it said.
        errno: Errno,
    },
}

/// Tells from any thread whether a connection is lost, and why.
///
/// The methods of [`Transport`](virtio_drivers::transport::Transport) can hardly return errors: this is where they
/// are found. It knows what the transport knows, and asks nobody: a back-end's death shows when the transport
/// is next used or waited on.
#[derive(Clone, Debug, Default)]
pub struct Monitor {
    lost: Arc<Mutex<Option<Lost>>>,
}

impl Lost {
    /// True if the connection itself still works: a reset of the device repairs it.
    pub(super) fn is_repairable(&self) -> bool {
        matches!(self, Self::QueueFailed { .. } | Self::QueueUnusable { .. })
    }
}

impl Monitor {
    /// Why the connection was lost; None as long as it works.
    #[must_use]
    pub fn lost(&self) -> Option<Lost> {
        self.lock().clone()
    }

    pub(super) fn set(&self, lost: Option<Lost>) {
        *self.lock() = lost;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Lost>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Most back-ends serve one front-end at a time, and let the next ones wait.
fn hint(lost: &Lost) -> &'static str {
    match lost {
        Lost::TimedOut { .. } => "; is another front-end connected to it?",
        _ => "",
    }
}

fn during(request: Option<&'static str>) -> String {
    request.map_or_else(String::new, |request| format!(" instead of answering {request}"))
}

fn queue_name(queue: Option<u16>) -> String {
    queue.map_or_else(String::new, |queue| format!(" for queue {queue}"))
}
