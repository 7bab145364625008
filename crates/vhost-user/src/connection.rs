//! One front-end, from its first message to its last.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use virtio_zbd_mapguard::Alarm;
use zerocopy::IntoBytes;

use crate::Backend;
use crate::message::{ProtocolFeatures, id, request_name};
use crate::request::{Request, decode};
use crate::socket::{Channel, ChannelError, Frame};
use crate::state::{Answer, State};

/// How long a message may take from its first byte to its last. Front-ends send it in one piece.
pub(crate) const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The server was told to stop.
    Stopped,
    /// The front-end is gone.
    Closed,
    /// The front-end did what cannot be answered; the reason is for the log.
    Broken(String),
}

/// Serves one front-end on a stream socket that is connected already, until one of the sides has enough or `stop` becomes
/// readable; `stop` is not read. Queues are stopped (drained) and everything that the front-end gave is given back when
/// this returns.
///
/// For a program that gets its connections from elsewhere than a [`Server`](crate::Server): inherited, by a socket pair, or from
/// a listener of its own. The limit to a message's time is that of
/// [`Server::with_message_timeout`](crate::Server::with_message_timeout).
pub fn serve_connection<B: Backend>(backend: &B, socket: impl Into<OwnedFd>, stop: impl AsFd) -> End {
    serve(backend, socket.into(), stop.as_fd(), MESSAGE_TIMEOUT)
}

/// Serves a front-end until one of the sides has enough. Queues are stopped and everything is given back when
/// this returns. No message may take longer than `message_timeout`.
pub(crate) fn serve<B: Backend>(
    backend: &B,
    socket: OwnedFd,
    stop: BorrowedFd<'_>,
    message_timeout: Duration,
) -> End {
    let alarm = match Alarm::new() {
        Ok(alarm) => alarm,
        Err(error) => return End::Broken(format!("no way to guard its memory: {error}")),
    };
    let channel = Channel::new(socket, stop, alarm.clone(), message_timeout);
    let mut state = State::new(backend, alarm);
    loop {
        let step = channel.recv().map_err(End::from).and_then(|frame| {
            let request = frame.request;
            match answer(&mut state, frame)? {
                Some(Reply { payload, fd }) => {
                    channel.reply(request, &payload, fd.as_ref().map(AsFd::as_fd)).map_err(End::from)
                }
                None => Ok(()),
            }
        });
        if let Err(end) = step {
            return end;
        }
    }
}

/// What is sent back.
struct Reply {
    payload: Vec<u8>,
    fd: Option<OwnedFd>,
}

/// Has a request done and makes its reply; none if no reply is due.
fn answer<B: Backend>(state: &mut State<B>, frame: Frame) -> Result<Option<Reply>, End> {
    let reply = |payload: &[u8]| Reply { payload: payload.to_vec(), fd: None };
    let Frame { request, need_reply, .. } = frame;
    log::trace!("{}: {} bytes, {} fds", Name(request), frame.payload.len(), frame.fds.len());
    let result = decode(frame).map_err(Into::into).and_then(|request: Request| state.handle(request));
    // Looked at afterwards: the message that negotiates replies may ask for one already.
    let ack_due = need_reply && state.has(ProtocolFeatures::REPLY_ACK) && !has_own_reply(request);
    match result {
        Ok(Answer::Done) => Ok(ack_due.then(|| reply(0_u64.as_bytes()))),
        Ok(Answer::U64(value)) => Ok(Some(reply(value.as_bytes()))),
        Ok(Answer::Vring(vring)) => Ok(Some(reply(vring.as_bytes()))),
        Ok(Answer::Config(head, data)) => Ok(Some(reply(&[head.as_bytes(), data.as_slice()].concat()))),
        Ok(Answer::NoConfig) => Ok(Some(reply(&[]))),
        Ok(Answer::Inflight(region, length, fd)) => {
            let payload = region.as_bytes().get(..length).unwrap_or(region.as_bytes()).to_vec();
            Ok(Some(Reply { payload, fd: Some(fd) }))
        }
        Err(fault) if ack_due => {
            log::warn!("{} is answered with an error: {fault}", Name(request));
            Ok(Some(reply(1_u64.as_bytes())))
        }
        Err(fault) if fault.is_refusal() => {
            log::warn!("{} is ignored: {fault}", Name(request));
            Ok(None)
        }
        Err(fault) => Err(End::Broken(format!("{}: {fault}", Name(request)))),
    }
}

/// True for a message whose reply is something else than "done" or "not done".
fn has_own_reply(request: u32) -> bool {
    matches!(
        request,
        id::GET_FEATURES
            | id::GET_PROTOCOL_FEATURES
            | id::GET_QUEUE_NUM
            | id::GET_MAX_MEM_SLOTS
            | id::GET_STATUS
            | id::GET_VRING_BASE
            | id::GET_CONFIG
            | id::GET_INFLIGHT_FD
            | id::GET_SHARED_OBJECT
            | id::GET_SHMEM_CONFIG
            | id::SET_DEVICE_STATE_FD
            | id::CHECK_DEVICE_STATE
            | id::POSTCOPY_ADVISE
            | id::POSTCOPY_END
            | id::CREATE_CRYPTO_SESSION
    )
}

impl From<ChannelError> for End {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::Stopped => Self::Stopped,
            ChannelError::Closed => Self::Closed,
            other => Self::Broken(other.to_string()),
        }
    }
}

/// A message's name for the log.
struct Name(u32);

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match request_name(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "message {}", self.0),
        }
    }
}
