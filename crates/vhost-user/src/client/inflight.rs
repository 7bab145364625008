//! Where a back-end notes what it has in flight ("Inflight I/O tracking" of vhost-user.rst).

use std::os::fd::{AsFd, OwnedFd};

use zerocopy::{FromBytes, IntoBytes};

use super::Lost;
use super::channel::{Message, name};
use super::link::Link;
use crate::message::{InflightRegion, ProtocolFeatures, id};

/// How much of [`InflightRegion`] the specification has.
const SPECIFIED_BYTES: usize = 20;

/// A region that a back-end has made. It outlives that back-end because we hold it, and is handed to the next one.
/// What is in it is theirs: it is not looked at here, not even mapped.
#[derive(Debug)]
pub(super) struct Inflight {
    file: OwnedFd,
    region: InflightRegion,
}

impl Link {
    /// Asks for a region for so many queues of at most so many entries. None: the back-end does not track its
    /// requests.
    pub(super) fn ask_inflight(&mut self, queues: u16, queue_size: u16) -> Result<Option<Inflight>, Lost> {
        if !self.has(ProtocolFeatures::INFLIGHT_SHMFD) {
            return Ok(None);
        }
        self.has_inflight = false;
        let (id, deadline) = (id::GET_INFLIGHT_FD, self.deadline());
        let wanted =
            InflightRegion { mmap_size_bytes: 0, mmap_offset_bytes: 0, queues, queue_size, padding: 0 };
        let message = Message { id, need_reply: false, payload: wanted.as_bytes(), fd: None };
        let (reply, mut fds) = self.channel().exchange(message, size_of::<InflightRegion>(), deadline)?;
        let mut bytes = [0; size_of::<InflightRegion>()];
        let specified = reply.len() >= SPECIFIED_BYTES;
        let (Some(space), true) = (bytes.get_mut(..reply.len()), specified) else {
            let found = u32::try_from(reply.len()).unwrap_or(u32::MAX);
            return Err(Lost::ReplySize { request: name(id), expected: SPECIFIED_BYTES, found });
        };
        space.copy_from_slice(&reply);
        let given = InflightRegion::read_from_bytes(&bytes).unwrap_or(wanted);
        match (given.mmap_size_bytes, fds.pop()) {
            // QEMU's library says in this way that it has no memory for it.
            (0, None) => {
                log::warn!("the back-end has no room to track its requests in: its death will lose them");
                Ok(None)
            }
            (size_bytes, Some(file)) if size_bytes > 0 && fds.is_empty() => {
                Ok(Some(Inflight { file, region: InflightRegion { queues, queue_size, ..given } }))
            }
            _ => Err(Lost::FileDescriptors { request: name(id) }),
        }
    }

    /// Hands a region to the back-end, unless it has it. It looks into it when it starts a queue.
    pub(super) fn tell_inflight(&mut self, inflight: &Inflight) -> Result<(), Lost> {
        if !self.has_inflight {
            self.order(id::SET_INFLIGHT_FD, inflight.region.as_bytes(), Some(inflight.file.as_fd()))?;
            self.has_inflight = true;
        }
        Ok(())
    }
}

impl Inflight {
    /// How many entries of a queue it has room for.
    pub(super) fn queue_size(&self) -> u16 {
        self.region.queue_size
    }
}
