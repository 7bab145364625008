//! The vhost-user protocol step by step, for tests that leave steps out or take them in another order.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_zbd_spec::{BlkConfig, DeviceStatus, Features};
use vm_memory::GuestMemoryBackend;
use zerocopy::{FromZeros, IntoBytes};

use super::lend::lend;
use super::raw::{self, RawReply};
use crate::error::{Error, Result};
use crate::queue::Queue;
use crate::ram::GuestRam;

/// `VHOST_USER_F_PROTOCOL_FEATURES`: not a feature of the device but of the protocol, in the same word.
pub const PROTOCOL_FEATURES_BIT: Features = Features::from_bits_retain(1 << 30);

/// A connection to a vhost-user backend on which nothing was said yet; each method is one message or little more.
///
/// Every step is bounded by [`Handshake::timeout`]: after that the connection is shut down and the step fails.
pub struct Handshake {
    /// How long a step waits for the backend.
    pub timeout: Duration,
    frontend: Frontend,
    socket: UnixStream,
}

impl Handshake {
    /// Connects to the socket at `path`. Tries again until `timeout` is over while there is no socket or nobody listens.
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self> {
        let path = path.as_ref();
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match connect_once(path, left.max(Duration::from_millis(1))) {
                Ok(socket) => return Self::from_stream(socket, timeout),
                Err(error) => error,
            };
            let worth_it = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
            if !worth_it || left.is_zero() {
                let (path, timeout_ms) = (path.to_owned(), timeout.as_millis());
                return Err(Error::Connect { path, timeout_ms, source: error });
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Speaks on a socket that is connected already.
    pub fn from_stream(socket: UnixStream, timeout: Duration) -> Result<Self> {
        /// More queues than any backend has: how many there are is the backend's to say.
        const QUEUES_MAX: u64 = 256;
        let twin =
            socket.try_clone().map_err(|source| Error::Io { what: "duplicating the socket", source })?;
        Ok(Self { timeout, frontend: Frontend::from_stream(twin, QUEUES_MAX), socket })
    }

    /// SET_OWNER.
    pub fn set_owner(&mut self) -> Result<()> {
        self.bounded("SET_OWNER", |frontend| frontend.set_owner())
    }

    /// GET_FEATURES: what the backend offers, [`PROTOCOL_FEATURES_BIT`] included.
    pub fn features(&mut self) -> Result<Features> {
        let bits = self.bounded("GET_FEATURES", |frontend| frontend.get_features())?;
        Ok(Features::from_bits_retain(bits))
    }

    /// SET_FEATURES, these bits and no others. With REPLY_ACK a refusal is [`Error::Refused`].
    pub fn set_features(&mut self, features: Features) -> Result<()> {
        self.bounded("SET_FEATURES", |frontend| frontend.set_features(features.bits()))
    }

    /// GET_PROTOCOL_FEATURES, then SET_PROTOCOL_FEATURES with what of `wanted` is offered: returns that. With REPLY_ACK
    /// every message from here on asks for a reply. Needs [`Handshake::features`] before.
    pub fn negotiate_protocol(
        &mut self,
        wanted: VhostUserProtocolFeatures,
    ) -> Result<VhostUserProtocolFeatures> {
        let offered = self.bounded("GET_PROTOCOL_FEATURES", |frontend| frontend.get_protocol_features())?;
        let accepted = offered & wanted;
        self.bounded("SET_PROTOCOL_FEATURES", |frontend| frontend.set_protocol_features(accepted))?;
        if accepted.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        Ok(accepted)
    }

    /// GET_QUEUE_NUM. Needs MQ.
    pub fn queue_num(&mut self) -> Result<u64> {
        self.bounded("GET_QUEUE_NUM", |frontend| frontend.get_queue_num())
    }

    /// GET_CONFIG of the whole configuration space, 96 bytes. Needs CONFIG.
    pub fn config(&mut self) -> Result<BlkConfig> {
        let bytes = self.config_bytes(0, size_of::<BlkConfig>())?;
        let mut config = BlkConfig::new_zeroed();
        // rust-vmm's frontend accepts a reply of the length asked for only.
        config.as_mut_bytes().copy_from_slice(&bytes);
        Ok(config)
    }

    /// GET_CONFIG of `len_bytes` bytes from `offset_bytes` on. Needs CONFIG.
    pub fn config_bytes(&mut self, offset_bytes: u32, len_bytes: usize) -> Result<Vec<u8>> {
        let room = vec![0; len_bytes];
        let len = u32::try_from(len_bytes).unwrap();
        let flags = VhostUserConfigFlags::empty();
        let reply =
            self.bounded("GET_CONFIG", |frontend| frontend.get_config(offset_bytes, len, flags, &room))?;
        Ok(reply.1)
    }

    /// SET_CONFIG of `bytes` from `offset_bytes` on, as a driver's write to the space. Needs CONFIG.
    pub fn set_config(&mut self, offset_bytes: u32, bytes: &[u8]) -> Result<()> {
        let flags = VhostUserConfigFlags::WRITABLE;
        self.bounded("SET_CONFIG", |frontend| frontend.set_config(offset_bytes, flags, bytes))
    }

    /// GET_INFLIGHT_FD: a buffer for so many queues of so many entries, and how it is described. Needs INFLIGHT_SHMFD.
    pub fn inflight(&mut self, queues: u16, queue_size: u16) -> Result<(VhostUserInflight, File)> {
        let asked = VhostUserInflight::new(0, 0, queues, queue_size);
        self.bounded("GET_INFLIGHT_FD", |frontend| frontend.get_inflight_fd(&asked))
    }

    /// SET_INFLIGHT_FD with what [`inflight`](Self::inflight) has returned, on this connection or another one.
    pub fn set_inflight(&mut self, buffer: &(VhostUserInflight, File)) -> Result<()> {
        self.bounded("SET_INFLIGHT_FD", |frontend| frontend.set_inflight_fd(&buffer.0, buffer.1.as_raw_fd()))
    }

    /// SET_MEM_TABLE with all regions of `ram`.
    pub fn set_mem_table(&mut self, ram: &GuestRam) -> Result<()> {
        let regions: Vec<_> = ram
            .memory()
            .iter()
            .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
            .collect();
        self.bounded("SET_MEM_TABLE", |frontend| frontend.set_mem_table(&regions).map(drop))
    }

    /// SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ADDR, SET_VRING_KICK and SET_VRING_CALL for queue `index`; without
    /// [`PROTOCOL_FEATURES_BIT`] among the features set the ring runs from here on.
    pub fn set_up_queue(&mut self, index: usize, queue: &Queue) -> Result<()> {
        let ring = &queue.ring;
        let addresses = VringConfigData {
            queue_max_size: ring.size(),
            queue_size: ring.size(),
            flags: 0,
            desc_table_addr: ring.ram().host_address(ring.desc_table()),
            used_ring_addr: ring.ram().host_address(ring.used_ring()),
            avail_ring_addr: ring.ram().host_address(ring.avail_ring()),
            log_addr: None,
        };
        self.bounded("SET_VRING_NUM", |frontend| frontend.set_vring_num(index, ring.size()))?;
        self.bounded("SET_VRING_BASE", |frontend| frontend.set_vring_base(index, ring.base()))?;
        self.bounded("SET_VRING_ADDR", |frontend| frontend.set_vring_addr(index, &addresses))?;
        let kick = lend(queue.kick_fd())?;
        self.bounded("SET_VRING_KICK", |frontend| frontend.set_vring_kick(index, &kick))?;
        let call = lend(queue.call_fd())?;
        self.bounded("SET_VRING_CALL", |frontend| frontend.set_vring_call(index, &call))
    }

    /// SET_VRING_ENABLE. Needs [`PROTOCOL_FEATURES_BIT`] among the features set.
    pub fn enable_queue(&mut self, index: usize, enable: bool) -> Result<()> {
        self.bounded("SET_VRING_ENABLE", |frontend| frontend.set_vring_enable(index, enable))
    }

    /// GET_VRING_BASE: stops queue `index`; returns the index of the next entry that the backend would have taken from
    /// the available ring.
    pub fn stop_queue(&mut self, index: usize) -> Result<u16> {
        let base = self.bounded("GET_VRING_BASE", |frontend| frontend.get_vring_base(index))?;
        u16::try_from(base).map_err(|_| Error::Raw {
            message: "GET_VRING_BASE",
            source: io::Error::other(format!("the base is {base}")),
        })
    }

    /// RESET_DEVICE. Needs RESET_DEVICE.
    pub fn reset_device(&mut self) -> Result<()> {
        self.bounded("RESET_DEVICE", |frontend| frontend.reset_device())
    }

    /// SET_STATUS, with a reply asked for if `need_reply`; its value, 0 for success. Needs STATUS. (rust-vmm's frontend
    /// does not have this message.)
    pub fn set_status(&mut self, status: DeviceStatus, need_reply: bool) -> Result<u64> {
        const SET_STATUS: u32 = 39;
        let flags = if need_reply { 1 | 8 } else { 1 };
        self.send_raw(SET_STATUS, flags, &u64::from(status.bits()).to_ne_bytes(), &[])?;
        if need_reply { self.reply_value(SET_STATUS) } else { Ok(0) }
    }

    /// GET_STATUS. Needs STATUS. (rust-vmm's frontend does not have this message.)
    pub fn status(&mut self) -> Result<DeviceStatus> {
        const GET_STATUS: u32 = 40;
        self.send_raw(GET_STATUS, 1, &[], &[])?;
        let value = self.reply_value(GET_STATUS)?;
        let status = u8::try_from(value).map_err(|_| Error::Raw {
            message: "GET_STATUS",
            source: io::Error::other(format!("the status is {value:#x}")),
        })?;
        Ok(DeviceStatus::from_bits_retain(status))
    }

    /// SET_BACKEND_REQ_FD with one end of a socket pair; returns the other one, on which the backend's requests arrive.
    /// Needs BACKEND_REQ.
    pub fn backend_channel(&mut self) -> Result<UnixStream> {
        let (ours, theirs) =
            UnixStream::pair().map_err(|source| Error::Io { what: "making a socket pair", source })?;
        ours.set_read_timeout(Some(self.timeout))
            .map_err(|source| Error::Io { what: "setting a timeout", source })?;
        self.bounded("SET_BACKEND_REQ_FD", |frontend| frontend.set_backend_request_fd(&theirs))?;
        Ok(ours)
    }

    /// rust-vmm's frontend, for anything else. Use it within [`Handshake::bounded`] where the backend may not answer.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// Runs one exchange, `message` by name, on rust-vmm's frontend, for at most [`Handshake::timeout`].
    pub fn bounded<T>(
        &mut self,
        message: &'static str,
        exchange: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T> {
        let (finished, wait) = mpsc::channel::<()>();
        let (socket, timeout) = (&self.socket, self.timeout);
        let (result, expired) = thread::scope(|scope| {
            // The frontend retries a socket's own timeout for ever: only a shutdown from outside ends its wait.
            let watchdog = scope.spawn(move || {
                let expired = wait.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout);
                if expired {
                    let _ = socket.shutdown(std::net::Shutdown::Both);
                }
                expired
            });
            let result = exchange(&mut self.frontend);
            drop(finished);
            (result, watchdog.join().unwrap())
        });
        match result {
            Ok(value) => Ok(value),
            Err(_) if expired => Err(Error::NoAnswer { message, timeout_ms: timeout.as_millis() }),
            Err(vhost::Error::VhostUserProtocol(vhost::vhost_user::Error::BackendInternalError)) => {
                Err(Error::Refused { message })
            }
            Err(source) => Err(Error::Protocol { message, source }),
        }
    }

    /// Sends any message: number, flags (1: version 1; 8: reply wanted), payload, file descriptors. No answer is waited
    /// for.
    pub fn send_raw(&self, code: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send_bytes(&raw::message(code, flags, payload), fds)
    }

    /// Sends bytes that need not even be a message.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        raw::send(&self.socket, bytes, fds)
    }

    /// Receives any message, waiting at most [`Handshake::timeout`]; [`io::ErrorKind::UnexpectedEof`] or
    /// [`io::ErrorKind::ConnectionReset`] within [`Error::Raw`] if the backend hung up.
    pub fn recv_raw(&self) -> Result<RawReply> {
        raw::receive(&self.socket, self.timeout)
    }

    /// Receives the reply to message `code`: the number in it.
    fn reply_value(&self, code: u32) -> Result<u64> {
        /// Version 1, a reply.
        const REPLY_FLAGS: u32 = 1 | 4;
        let reply = self.recv_raw()?;
        match reply.value() {
            Some(value) if (reply.code, reply.flags) == (code, REPLY_FLAGS) => Ok(value),
            _ => Err(Error::Raw {
                message: "receiving a reply",
                source: io::Error::other(format!("no reply to message {code}: {reply:?}")),
            }),
        }
    }
}

/// Connects within `timeout`, also where the backlog of a listener that never accepts is full.
fn connect_once(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(UnixStream::from(socket))
}
