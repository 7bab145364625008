//! The protocol's messages, one by one: what each says, and what may be answered to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use virtio_drivers::transport::DeviceStatus;
use zerocopy::{FromBytes, IntoBytes};

use super::Lost;
use super::arena::{Arena, GUEST_BASE, USER_BASE};
use super::back::BackChannel;
use super::channel::{Channel, Deadline, Message, name};
use super::queue::{Events, Place};
use crate::message::{
    ConfigHead, FEATURE_PROTOCOL_FEATURES, FEATURES_NEVER_OFFERED, MemRegion, MemTableHead, ProtocolFeatures,
    VringAddr, VringState, id,
};

/// The protocol features that this front-end uses where they are offered.
const PROTOCOL_FEATURES: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::STATUS);

/// The messages that give a queue its file descriptors have eight bits for its index.
const QUEUES_MAX: u64 = 256;

/// A connection on which protocol features have been agreed upon.
#[derive(Debug)]
pub(super) struct Link {
    channel: Channel,
    /// The back-end has feature bit 30: rings begin disabled, and there are protocol features.
    has_protocol_features: bool,
    protocol: ProtocolFeatures,
    /// The back-end has the region for its requests in flight.
    pub(super) has_inflight: bool,
}

impl Link {
    /// Begins a connection on a connected socket. Each exchange takes at most `timeout`. With `tracked`, the back-end
    /// will be asked to track its requests, if it can.
    pub(super) fn begin(socket: OwnedFd, timeout: Duration, tracked: bool) -> Result<Self, Lost> {
        let mut link = Self {
            channel: Channel::new(socket, timeout),
            has_protocol_features: false,
            protocol: ProtocolFeatures::empty(),
            has_inflight: false,
        };
        link.has_protocol_features = link.ask_u64(id::GET_FEATURES)? & FEATURE_PROTOCOL_FEATURES != 0;
        if link.has_protocol_features {
            let offered = link.ask_u64(id::GET_PROTOCOL_FEATURES)?;
            let mut wanted = PROTOCOL_FEATURES;
            wanted.set(ProtocolFeatures::INFLIGHT_SHMFD, tracked);
            let protocol = ProtocolFeatures::from_bits_truncate(offered) & wanted;
            link.order(id::SET_PROTOCOL_FEATURES, protocol.bits().as_bytes(), None)?;
            link.protocol = protocol;
        }
        link.order(id::SET_OWNER, &[], None)?;
        Ok(link)
    }

    /// Whether a protocol feature has been agreed upon.
    pub(super) fn has(&self, feature: ProtocolFeatures) -> bool {
        self.protocol.contains(feature)
    }

    /// What has been agreed upon.
    pub(super) fn protocol(&self) -> ProtocolFeatures {
        self.protocol
    }

    /// What the messages go over.
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// When an exchange that begins now must be over.
    pub(super) fn deadline(&self) -> Deadline {
        self.channel.deadline()
    }

    /// The socket is readable though nothing was asked: what does that mean?
    pub(super) fn why_readable(&self) -> Lost {
        self.channel.why_readable()
    }

    /// Ends the connection for both sides.
    pub(super) fn close(&self) {
        self.channel.close();
    }

    /// How many queues the device has, at most 256.
    pub(super) fn ask_queue_count(&self) -> Result<u16, Lost> {
        let count = if self.has(ProtocolFeatures::MQ) { self.ask_u64(id::GET_QUEUE_NUM)? } else { 1 };
        Ok(u16::try_from(count.min(QUEUES_MAX)).unwrap_or(0))
    }

    /// Gives the back-end a channel for its own messages, if it wants one.
    pub(super) fn open_back_channel(&self) -> Result<Option<BackChannel>, Lost> {
        if !self.has(ProtocolFeatures::BACKEND_REQ) {
            return Ok(None);
        }
        let (ours, theirs) = BackChannel::pair()?;
        self.order(id::SET_BACKEND_REQ_FD, &[], Some(theirs.as_fd()))?;
        Ok(Some(ours))
    }

    /// The virtio features on offer, without those of vhost-user itself and those that need what this
    /// front-end does not do: IOMMU, dirty log, packed rings.
    pub(super) fn ask_features(&self) -> Result<u64, Lost> {
        let offered = self.ask_u64(id::GET_FEATURES)?;
        Ok(offered & !(FEATURE_PROTOCOL_FEATURES | FEATURES_NEVER_OFFERED))
    }

    /// Sends what the driver accepts. False if the back-end says no, which it can only if it acknowledges.
    pub(super) fn tell_features(&self, features: u64) -> Result<bool, Lost> {
        let own = if self.has_protocol_features { FEATURE_PROTOCOL_FEATURES } else { 0 };
        let answer = self.tell(id::SET_FEATURES, (features | own).as_bytes(), None)?;
        if answer != 0 {
            log::warn!("the back-end refused features {features:#x} (answer {answer})");
        }
        Ok(answer == 0)
    }

    /// Shares the whole arena.
    pub(super) fn tell_memory(&self, arena: &Arena) -> Result<(), Lost> {
        let head = MemTableHead { regions: 1, padding: 0 };
        let region = MemRegion {
            guest_addr: GUEST_BASE,
            size_bytes: u64::try_from(arena.len_bytes()).unwrap_or(0),
            user_addr: USER_BASE,
            mmap_offset_bytes: 0,
        };
        let payload = [head.as_bytes(), region.as_bytes()].concat();
        self.order(id::SET_MEM_TABLE, &payload, Some(arena.memfd()))
    }

    /// Sets the status. The protocol feature STATUS is there.
    pub(super) fn tell_status(&self, status: DeviceStatus) -> Result<(), Lost> {
        self.order(id::SET_STATUS, u64::from(status.bits()).as_bytes(), None)
    }

    /// Reads the status. The protocol feature STATUS is there.
    pub(super) fn ask_status(&self) -> Result<DeviceStatus, Lost> {
        let found = self.ask_u64(id::GET_STATUS)?;
        let status = u8::try_from(found).map_err(|_| Lost::ReplyValue {
            request: name(id::GET_STATUS),
            expected: "a byte",
            found,
        })?;
        Ok(DeviceStatus::from_bits_truncate(status.into()))
    }

    /// Has the device forget everything. The protocol feature RESET_DEVICE is there.
    pub(super) fn reset_device(&self) -> Result<(), Lost> {
        self.order(id::RESET_DEVICE, &[], None)
    }

    /// Says where a queue is, and which entry of its available ring is the next. It does not run yet.
    pub(super) fn place_queue(&self, index: u16, arena: &Arena, place: Place, base: u16) -> Result<(), Lost> {
        let user = |guest_addr| {
            let reason = "its ring is not in the arena: its driver must use ArenaHal";
            arena.user_addr(guest_addr).ok_or(Lost::QueueUnusable { queue: index, reason })
        };
        let addr = VringAddr {
            index: index.into(),
            flags: 0,
            desc: user(place.desc)?,
            used: user(place.used)?,
            avail: user(place.avail)?,
            log: 0,
        };
        self.tell_queue(id::SET_VRING_NUM, index, vring_state(index, place.size).as_bytes(), None)?;
        self.tell_queue(id::SET_VRING_BASE, index, vring_state(index, base.into()).as_bytes(), None)?;
        self.tell_queue(id::SET_VRING_ADDR, index, addr.as_bytes(), None)
    }

    /// Gives a queue its events, the kick last: with that it runs.
    pub(super) fn start_queue(&self, index: u16, events: &Events) -> Result<(), Lost> {
        let fds = [
            (id::SET_VRING_ERR, events.err.as_fd()),
            (id::SET_VRING_CALL, events.call.as_fd()),
            (id::SET_VRING_KICK, events.kick.fd()),
        ];
        for (id, fd) in fds {
            self.tell_queue(id, index, u64::from(index).as_bytes(), Some(fd))?;
        }
        if self.has_protocol_features {
            self.tell_queue(id::SET_VRING_ENABLE, index, vring_state(index, 1).as_bytes(), None)?;
        }
        Ok(())
    }

    /// Stops a queue. The answer is how many entries of the available ring the back-end took, modulo 65,536.
    pub(super) fn stop_queue(&self, index: u16, deadline: Deadline) -> Result<u16, Lost> {
        let id = id::GET_VRING_BASE;
        let payload = vring_state(index, 0);
        self.channel
            .send(Message { id, need_reply: false, payload: payload.as_bytes(), fd: None }, deadline)?;
        let reply: VringState = self.channel.reply_of(id, deadline)?;
        let wrong =
            |expected, found: u32| Lost::ReplyValue { request: name(id), expected, found: found.into() };
        if reply.index != u32::from(index) {
            return Err(wrong("the index of the queue", reply.index));
        }
        u16::try_from(reply.num).map_err(|_| wrong("an index of the available ring", reply.num))
    }

    /// The first so many bytes of the configuration space, or fewer if there are no more. None: the back-end
    /// does not answer that. The protocol feature CONFIG is there.
    pub(super) fn ask_config(&self, len_bytes: usize) -> Result<Option<Vec<u8>>, Lost> {
        let (id, deadline) = (id::GET_CONFIG, self.channel.deadline());
        let size_bytes = u32::try_from(len_bytes).unwrap_or(0);
        let head = ConfigHead { offset_bytes: 0, size_bytes, flags: 0 };
        // Room for the answer comes along.
        let payload = [head.as_bytes(), &vec![0; len_bytes]].concat();
        self.channel.send(Message { id, need_reply: false, payload: &payload, fd: None }, deadline)?;
        let reply = self.channel.reply(id, payload.len(), deadline)?;
        if reply.is_empty() {
            return Ok(None);
        }
        let wrong = Lost::ReplySize {
            request: name(id),
            expected: payload.len(),
            found: u32::try_from(reply.len()).unwrap_or(u32::MAX),
        };
        let Ok((head, bytes)) = ConfigHead::read_from_prefix(&reply) else {
            return Err(wrong);
        };
        if usize::try_from(head.size_bytes) != Ok(bytes.len()) {
            return Err(wrong);
        }
        if head.offset_bytes != 0 {
            let found = head.offset_bytes.into();
            return Err(Lost::ReplyValue { request: name(id), expected: "offset 0", found });
        }
        // rust-vmm's library refuses in this way.
        Ok((!bytes.is_empty()).then(|| bytes.to_vec()))
    }

    /// Writes to the configuration space. False if the back-end refuses, which it can only if it acknowledges.
    /// The protocol feature CONFIG is there.
    pub(super) fn tell_config(&self, offset_bytes: u32, data: &[u8]) -> Result<bool, Lost> {
        let size_bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let head = ConfigHead { offset_bytes, size_bytes, flags: 0 };
        Ok(self.tell(id::SET_CONFIG, &[head.as_bytes(), data].concat(), None)? == 0)
    }

    /// Without acknowledgements: makes sure that the back-end has done what it was told, or is gone.
    pub(super) fn settle(&self) -> Result<(), Lost> {
        if !self.has(ProtocolFeatures::REPLY_ACK) {
            self.ask_u64(id::GET_FEATURES)?;
        }
        Ok(())
    }

    /// Asks for a number.
    fn ask_u64(&self, id: u32) -> Result<u64, Lost> {
        let deadline = self.channel.deadline();
        self.channel.send(Message { id, need_reply: false, payload: &[], fd: None }, deadline)?;
        self.channel.reply_of(id, deadline)
    }

    /// Sends what must be done.
    pub(super) fn order(&self, id: u32, payload: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Lost> {
        match self.tell(id, payload, fd)? {
            0 => Ok(()),
            code => Err(Lost::Refused { request: name(id), queue: None, code }),
        }
    }

    /// Sends what must be done about a queue.
    fn tell_queue(
        &self,
        id: u32,
        index: u16,
        payload: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), Lost> {
        match self.tell(id, payload, fd)? {
            0 => Ok(()),
            code => Err(Lost::Refused { request: name(id), queue: Some(index), code }),
        }
    }

    /// Sends something that has no reply of its own, and gives back the acknowledgement: 0 is done, or
    /// unknown, if the back-end does not acknowledge.
    fn tell(&self, id: u32, payload: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<u64, Lost> {
        let deadline = self.channel.deadline();
        let need_reply = self.has(ProtocolFeatures::REPLY_ACK);
        self.channel.send(Message { id, need_reply, payload, fd }, deadline)?;
        if need_reply { self.channel.reply_of(id, deadline) } else { Ok(0) }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

fn vring_state(index: u16, num: u32) -> VringState {
    VringState { index: index.into(), num }
}
