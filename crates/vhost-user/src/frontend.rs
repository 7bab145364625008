//! The way back: what a device may tell a front-end on its own.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, retry_on_intr, write};
use rustix::net::{SendFlags, send};
use zerocopy::IntoBytes;

use crate::message::{BACKEND_CONFIG_CHANGE, Header};
use crate::notifier::{set_nonblocking, type_name};

/// Reaches the front-end of one connection, from any thread (the protocol's back-end channel, BACKEND_REQ).
///
/// A front-end may not have such a channel, and a connection ends: then there is nobody to tell, and nothing
/// happens.
#[derive(Clone, Debug, Default)]
pub struct FrontendNotifier {
    inner: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    channel: Option<BackChannel>,
    /// The front-end has negotiated CONFIG: it knows what a change of it is.
    config: bool,
}

/// What a front-end gave for the back-end channel cannot carry messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAChannel {
    #[error("the file descriptor is a {0}, a socket or a pipe is expected")]
    Kind(&'static str),
    #[error("the file descriptor cannot be used as a channel: {0}")]
    Io(#[from] Errno),
}

/// QEMU and Linux's virtio_uml give a socket; a pipe is as good, since nothing is read from it.
#[derive(Debug)]
enum BackChannel {
    Socket(OwnedFd),
    Pipe(OwnedFd),
}

impl FrontendNotifier {
    /// Says that the configuration space has changed (CONFIG_CHANGE_MSG). True if the front-end will see it.
    ///
    /// Never waits. A channel that is full has a message of this kind waiting in it already, which counts as
    /// delivered. No reply is asked for: nothing could be answered on a pipe.
    pub fn config_changed(&self) -> bool {
        let mut state = self.lock();
        if !state.config {
            return false;
        }
        let Some(channel) = &state.channel else {
            return false;
        };
        let message = Header { request: BACKEND_CONFIG_CHANGE, flags: Header::VERSION, size_bytes: 0 };
        match channel.send(message.as_bytes()) {
            Ok(length) if length == message.as_bytes().len() => true,
            Err(Errno::AGAIN) => true,
            Ok(length) => {
                log::warn!("the back-end channel took {length} bytes of a message: it is given up");
                state.channel = None;
                false
            }
            Err(errno) => {
                log::warn!("the back-end channel failed and is given up: {errno}");
                state.channel = None;
                false
            }
        }
    }

    /// The front-end gave us its end of a channel (SET_BACKEND_REQ_FD).
    pub(crate) fn set_channel(&self, fd: OwnedFd) -> Result<(), NotAChannel> {
        let channel = match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
            FileType::Socket => BackChannel::Socket(fd),
            FileType::Fifo => {
                set_nonblocking(&fd)?;
                BackChannel::Pipe(fd)
            }
            other => return Err(NotAChannel::Kind(type_name(other))),
        };
        self.lock().channel = Some(channel);
        Ok(())
    }

    /// Whether the front-end has negotiated CONFIG.
    pub(crate) fn set_config(&self, negotiated: bool) {
        self.lock().config = negotiated;
    }

    /// The connection has ended.
    pub(crate) fn close(&self) {
        *self.lock() = State::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BackChannel {
    fn send(&self, message: &[u8]) -> Result<usize, Errno> {
        retry_on_intr(|| match self {
            Self::Socket(fd) => send(fd, message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT),
            Self::Pipe(fd) => write(fd, message),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use rustix::io::read;
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    /// CONFIG_CHANGE_MSG, version 1, no reply wanted, no payload.
    const MESSAGE: [u32; 3] = [2, 1, 0];

    #[test]
    fn a_pipe_and_a_socket_carry_the_same_message() {
        let notifier = FrontendNotifier::default();
        notifier.set_config(true);
        let mut found = [0_u32; 3];

        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        notifier.set_channel(writer).unwrap();
        assert!(notifier.config_changed());
        assert_eq!(read(&reader, found.as_mut_bytes()).unwrap(), 12);
        assert_eq!(found, MESSAGE);

        let (mut socket, peer) = UnixStream::pair().unwrap();
        notifier.set_channel(peer.into()).unwrap();
        assert!(notifier.clone().config_changed());
        found = [0; 3];
        socket.read_exact(found.as_mut_bytes()).unwrap();
        assert_eq!(found, MESSAGE);
    }

    #[test]
    fn nobody_is_told_without_channel_config_or_connection() {
        let notifier = FrontendNotifier::default();
        notifier.set_config(true);
        assert!(!notifier.config_changed());

        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        notifier.set_config(false);
        notifier.set_channel(writer).unwrap();
        assert!(!notifier.config_changed());

        notifier.set_config(true);
        notifier.close();
        assert!(!notifier.config_changed());
        assert_eq!(read(&reader, &mut [0; 12]).unwrap(), 0, "the channel is still open");
    }

    #[test]
    fn a_full_channel_does_not_hold_us_and_a_closed_one_is_given_up() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (socket, peer) = UnixStream::pair().unwrap();
        for (end, channel) in [(reader, writer), (socket.into(), peer.into())] {
            let notifier = FrontendNotifier::default();
            notifier.set_config(true);
            notifier.set_channel(channel).unwrap();
            for _ in 0..50_000 {
                assert!(notifier.config_changed());
            }
            drop(end);
            assert!(!notifier.config_changed());
            assert!(notifier.lock().channel.is_none());
        }
    }

    #[test]
    fn other_files_are_turned_down() {
        let notifier = FrontendNotifier::default();
        let error = notifier.set_channel(tempfile::tempfile().unwrap().into()).unwrap_err();
        assert_eq!(error, NotAChannel::Kind("regular file"));
    }
}
