//! A back-end that does as a script says: well, badly, or not at all.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tempfile::TempDir;

use super::peer::{
    GET_CONFIG, GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_STATUS, GET_VRING_BASE, NEED_REPLY,
    PROTOCOL_FEATURES, REPLY, SET_BACKEND_REQ_FD, SET_INFLIGHT_FD, SET_MEM_TABLE, SET_STATUS, SET_VRING_CALL,
    SET_VRING_ERR, SET_VRING_KICK, VERSION, message, words,
};
use super::toy::VERSION_1;

/// A message of the front-end.
#[derive(Debug)]
pub struct Received {
    pub request: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
}

/// What the back-end does about a message.
#[derive(Debug)]
pub enum Answer {
    /// What a good back-end does.
    Good,
    /// Sends these bytes, with so many file descriptors, and goes on.
    Raw(Vec<u8>, usize),
    /// Sends these bytes and closes the connection.
    Last(Vec<u8>),
    /// Says nothing.
    Silence,
}

/// A good back-end's properties.
#[derive(Clone, Debug)]
pub struct Script {
    pub features: u64,
    pub protocol: u64,
    pub queues: u64,
    pub config: Vec<u8>,
}

/// What the front-end has given, and what has passed.
#[derive(Debug, Default)]
pub struct Kept {
    pub requests: Vec<u32>,
    pub payloads: Vec<Vec<u8>>,
    pub memory: Option<OwnedFd>,
    pub back: Option<OwnedFd>,
    /// By queue: the last of each.
    pub kick: Vec<Option<OwnedFd>>,
    pub call: Vec<Option<OwnedFd>>,
    pub err: Vec<Option<OwnedFd>>,
    pub inflight: Option<OwnedFd>,
}

/// A back-end for one connection, in a thread of its own.
pub struct Scripted {
    dir: Arc<TempDir>,
    pub kept: Arc<Mutex<Kept>>,
    stream: Arc<Mutex<Option<UnixStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            features: VERSION_1 | PROTOCOL_FEATURES,
            protocol: super::peer::ALL_OFFERED,
            queues: 2,
            config: (0..96).collect(),
        }
    }
}

impl Scripted {
    pub fn start(script: Script, answer: impl FnMut(&Received) -> Answer + Send + 'static) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), script, answer)
    }

    /// Closes the connection; then another one comes in its place.
    pub fn replace(self, script: Script, answer: impl FnMut(&Received) -> Answer + Send + 'static) -> Self {
        let dir = self.remove();
        Self::start_in(dir, script, answer)
    }

    /// Closes the connection, and leaves an empty place.
    pub fn remove(self) -> Arc<TempDir> {
        let dir = Arc::clone(&self.dir);
        std::fs::remove_file(self.path()).unwrap();
        drop(self);
        dir
    }

    pub fn start_in(
        dir: Arc<TempDir>,
        script: Script,
        mut answer: impl FnMut(&Received) -> Answer + Send + 'static,
    ) -> Self {
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let kept = Arc::new(Mutex::new(Kept::default()));
        let stream = Arc::new(Mutex::new(None));
        let (kept_there, stream_there) = (Arc::clone(&kept), Arc::clone(&stream));
        let thread = thread::spawn(move || {
            let Ok((socket, _)) = listener.accept() else { return };
            *stream_there.lock().unwrap() = Some(socket.try_clone().unwrap());
            let mut status = 0;
            while let Some((received, fds)) = receive(&socket) {
                keep(&mut kept_there.lock().unwrap(), &received, fds);
                let (bytes, fd_count, last) = match answer(&received) {
                    Answer::Good => (good(&script, &mut status, &received), 0, false),
                    Answer::Raw(bytes, fd_count) => (bytes, fd_count, false),
                    Answer::Last(bytes) => (bytes, 0, true),
                    Answer::Silence => (Vec::new(), 0, false),
                };
                if !bytes.is_empty() && !send(&socket, &bytes, fd_count) {
                    break;
                }
                if last {
                    break;
                }
            }
            let _ = socket.shutdown(std::net::Shutdown::Both);
        });
        Self { dir, kept, stream, thread: Some(thread) }
    }

    /// One that does everything right.
    pub fn good(script: Script) -> Self {
        Self::start(script, |_| Answer::Good)
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// True if there is no connection any more, after there was one.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Closes the connection.
    pub fn hang_up(&self) {
        if let Some(stream) = &*self.stream.lock().unwrap() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Sends bytes on the connection that are no answer.
    pub fn blurt(&self, bytes: &[u8]) {
        assert!(send(self.stream.lock().unwrap().as_ref().unwrap(), bytes, 0));
    }

    /// The requests that came until now.
    pub fn requests(&self) -> Vec<u32> {
        self.kept.lock().unwrap().requests.clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        // Whoever never connected must not be waited for.
        let _ = UnixStream::connect(self.path());
        self.hang_up();
        let result = self.thread.take().unwrap().join();
        if !thread::panicking() {
            result.unwrap();
        }
    }
}

/// A reply in bytes.
pub fn reply(request: u32, payload: &[u8]) -> Vec<u8> {
    message(request, VERSION | REPLY, payload)
}

/// What a good back-end sends; nothing where nothing is due.
pub fn good(script: &Script, status: &mut u64, received: &Received) -> Vec<u8> {
    let number = |number: u64| reply(received.request, &number.to_ne_bytes());
    match received.request {
        GET_FEATURES => number(script.features),
        GET_PROTOCOL_FEATURES => number(script.protocol),
        GET_QUEUE_NUM => number(script.queues),
        GET_STATUS => number(*status),
        GET_CONFIG => {
            let size = received.payload.len() - 12;
            match script.config.get(..size) {
                Some(config) => reply(GET_CONFIG, &[&received.payload[..12], config].concat()),
                None => reply(GET_CONFIG, &[]),
            }
        }
        GET_VRING_BASE => {
            let index = u32::from_ne_bytes(received.payload[..4].try_into().unwrap());
            reply(GET_VRING_BASE, &words(&[index, 0]))
        }
        request => {
            if request == SET_STATUS {
                *status = u64::from_ne_bytes(received.payload[..8].try_into().unwrap());
            }
            if received.flags & NEED_REPLY == 0 { Vec::new() } else { number(0) }
        }
    }
}

fn receive(socket: &UnixStream) -> Option<(Received, Vec<OwnedFd>)> {
    let mut fds = Vec::new();
    let mut header = [0; 12];
    fill(socket, &mut header, &mut fds)?;
    let word = |n: usize| u32::from_ne_bytes(header[4 * n..4 * n + 4].try_into().unwrap());
    let mut payload = vec![0; usize::try_from(word(2)).unwrap()];
    fill(socket, &mut payload, &mut fds)?;
    Some((Received { request: word(0), flags: word(1), payload }, fds))
}

fn fill(socket: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Option<()> {
    let mut length = 0;
    while length < buffer.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let rest = &mut buffer[length..];
        let received =
            recvmsg(socket, &mut [IoSliceMut::new(rest)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return None;
        }
        length += received.bytes;
    }
    Some(())
}

fn send(socket: &UnixStream, bytes: &[u8], fd_count: usize) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = vec![socket.as_fd(); fd_count];
    if fd_count > 0 {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).is_ok()
}

fn keep(kept: &mut Kept, received: &Received, mut fds: Vec<OwnedFd>) {
    kept.requests.push(received.request);
    kept.payloads.push(received.payload.clone());
    let fd = fds.pop();
    assert!(fds.is_empty(), "more than one file descriptor with message {}", received.request);
    let list = match received.request {
        SET_MEM_TABLE => {
            kept.memory = fd;
            return;
        }
        SET_BACKEND_REQ_FD => {
            kept.back = fd;
            return;
        }
        SET_INFLIGHT_FD => {
            kept.inflight = fd;
            return;
        }
        SET_VRING_KICK => &mut kept.kick,
        SET_VRING_CALL => &mut kept.call,
        SET_VRING_ERR => &mut kept.err,
        _ => {
            assert!(fd.is_none(), "a file descriptor with message {}", received.request);
            return;
        }
    };
    let index = usize::from(received.payload[0]);
    list.resize_with(list.len().max(index + 1), || None);
    list[index] = fd;
}
