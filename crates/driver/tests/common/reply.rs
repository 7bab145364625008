//! A request as the device sees it, and what it answers.

use virtio_zbd_spec::{RequestType, Status};

use super::disk::Answer;
use super::ring::Piece;

/// A request as it lay in the ring.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whose ring.
    pub queue: u16,
    /// The chain's first descriptor.
    pub head: u16,
    /// The header's type.
    pub kind: u32,
    /// The header's sector.
    pub sector: u64,
    /// What is readable behind the header.
    pub data: Vec<u8>,
    /// How many bytes can be written, the in-header included.
    pub writable_len: usize,
    /// Where they are.
    pub writable: Vec<Piece>,
}

impl Request {
    /// Whether it is of this type.
    pub fn is(&self, kind: RequestType) -> bool {
        self.kind == u32::from(kind)
    }

    /// How many bytes can be written before the in-header.
    pub fn room(&self) -> usize {
        let in_header = RequestType::try_from(self.kind).map_or(1, RequestType::in_header_len_bytes);
        self.writable_len.checked_sub(in_header).expect("room for the in-header")
    }
}

/// What the device is about to answer. A lie changes one thing in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Written from the first writable byte on.
    pub data: Vec<u8>,
    /// Written as the last writable bytes; the status is the last of them.
    pub in_header: Vec<u8>,
    /// What is put into the used ring: ids and lengths.
    pub used: Vec<(u32, u32)>,
    /// By how much the used index moves beyond what was put there.
    pub idx_jump: u16,
}

impl Reply {
    /// The status byte.
    pub fn set_status(&mut self, status: u8) {
        *self.in_header.last_mut().expect("a status byte") = status;
    }

    /// Overwrites `bytes` of the data at `offset`.
    pub fn patch(&mut self, offset: usize, bytes: &[u8]) {
        self.data[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Never answers.
    pub fn drop_it(&mut self) {
        (self.data, self.in_header, self.used, self.idx_jump) = (Vec::new(), Vec::new(), Vec::new(), 0);
    }

    /// The length in the used ring.
    pub fn set_used_len(&mut self, len: u32) {
        self.used[0].1 = len;
    }
}

/// What the device has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// On which queue.
    pub queue: u16,
    /// The header's type.
    pub kind: u32,
    /// The header's sector.
    pub sector: u64,
    /// The lengths of the readable pieces, header included.
    pub readable: Vec<usize>,
    /// The lengths of the writable pieces, in-header included.
    pub writable: Vec<usize>,
    /// The honest disk's answer.
    pub status: Status,
}

/// What an honest device gives back.
pub(super) fn honest(request: &Request, answer: Answer) -> Reply {
    let mut in_header = Vec::new();
    if request.is(RequestType::ZoneAppend) {
        in_header.extend_from_slice(&answer.append_sector.to_le_bytes());
    }
    in_header.push(answer.status.into());
    // Bytes from the first writable one on, without a hole (2.7.8.2).
    let filled = answer.data.len() == request.room();
    let len = answer.data.len() + if filled { in_header.len() } else { 0 };
    let used = vec![(request.head.into(), u32::try_from(len).expect("a short request"))];
    Reply { data: answer.data, in_header, used, idx_jump: 0 }
}
