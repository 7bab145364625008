//! From bytes and file descriptors to a request of known shape.
//!
//! Sizes, counts of file descriptors and reserved bits are checked here and nowhere else; whether a request
//! makes sense to this device, now, is [`state`](crate::state)'s to decide.

use std::mem::offset_of;
use std::os::fd::OwnedFd;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::message::{
    ConfigHead, FDS_MAX, InflightRegion, MemRegion, MemTableHead, SingleMemRegion, VRING_INDEX_MASK,
    VRING_NO_FD, VringAddr, VringState, id, request_name,
};
use crate::socket::Frame;

/// What a front-end asks for.
#[derive(Debug)]
pub(crate) enum Request {
    GetFeatures,
    SetFeatures(u64),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    SetOwner,
    ResetOwner,
    ResetDevice,
    SetStatus(u64),
    GetStatus,
    SetMemTable(Vec<(MemRegion, OwnedFd)>),
    GetMaxMemSlots,
    AddMemReg(MemRegion, OwnedFd),
    RemMemReg(MemRegion),
    GetQueueNum,
    SetVringNum(VringState),
    SetVringAddr(VringAddr),
    SetVringBase(VringState),
    GetVringBase(VringState),
    SetVringEnable(VringState),
    SetVringKick(VringFd),
    SetVringCall(VringFd),
    SetVringErr(VringFd),
    GetConfig(ConfigHead),
    SetConfig(ConfigHead, Vec<u8>),
    SetBackendReqFd(OwnedFd),
    /// Which buffer is asked for, and how long the payload was: the answer's is as long.
    GetInflightFd(InflightRegion, usize),
    SetInflightFd(InflightRegion, OwnedFd),
    /// A message of the specification that needs a protocol feature which is not offered.
    NotOffered,
    /// A message of a later specification, or of nobody's.
    Unknown,
}

/// A queue's index and the file descriptor for it, or none.
#[derive(Debug)]
pub(crate) struct VringFd {
    pub(crate) index: u32,
    pub(crate) fd: Option<OwnedFd>,
}

/// A message whose shape is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the payload has {found} bytes, {expected} are expected")]
    Payload { expected: usize, found: usize },
    #[error("{found} file descriptors came with it, {expected} are expected")]
    Fds { expected: usize, found: usize },
    #[error("{0} memory regions, 1 to {FDS_MAX} are expected")]
    Regions(u32),
    #[error("unknown bits in {0:#x}: the low byte is a queue, bit 8 says that no file descriptor comes")]
    VringFd(u64),
    #[error("{0} bytes of configuration space are named, but {1} came")]
    Config(u32, usize),
}

/// Gives a frame its meaning. File descriptors that the message should not carry are closed.
pub(crate) fn decode(frame: Frame) -> Result<Request, Malformed> {
    let Frame { request, payload, fds, .. } = frame;
    let payload = payload.as_slice();
    let request = match request {
        id::SET_MEM_TABLE => return mem_table(payload, fds),
        id::ADD_MEM_REG => {
            let region = exactly::<SingleMemRegion>(payload)?.region;
            return Ok(Request::AddMemReg(region, one_fd(fds)?));
        }
        id::REM_MEM_REG => {
            // Old front-ends send the region's file descriptor along: it is closed.
            if fds.len() > 1 {
                return Err(Malformed::Fds { expected: 0, found: fds.len() });
            }
            return Ok(Request::RemMemReg(exactly::<SingleMemRegion>(payload)?.region));
        }
        id::SET_VRING_KICK => return vring_fd(payload, fds).map(Request::SetVringKick),
        id::SET_VRING_CALL => return vring_fd(payload, fds).map(Request::SetVringCall),
        id::SET_VRING_ERR => return vring_fd(payload, fds).map(Request::SetVringErr),
        id::SET_BACKEND_REQ_FD => {
            empty(payload)?;
            return one_fd(fds).map(Request::SetBackendReqFd);
        }
        id::SET_INFLIGHT_FD => {
            let region = inflight_region(payload)?;
            return one_fd(fds).map(|fd| Request::SetInflightFd(region, fd));
        }
        id::GET_INFLIGHT_FD => Request::GetInflightFd(inflight_region(payload)?, payload.len()),
        id::GET_FEATURES => empty(payload).map(|()| Request::GetFeatures)?,
        id::SET_FEATURES => Request::SetFeatures(exactly(payload)?),
        id::GET_PROTOCOL_FEATURES => empty(payload).map(|()| Request::GetProtocolFeatures)?,
        id::SET_PROTOCOL_FEATURES => Request::SetProtocolFeatures(exactly(payload)?),
        id::SET_OWNER => empty(payload).map(|()| Request::SetOwner)?,
        id::RESET_OWNER => empty(payload).map(|()| Request::ResetOwner)?,
        id::RESET_DEVICE => empty(payload).map(|()| Request::ResetDevice)?,
        id::SET_STATUS => Request::SetStatus(exactly(payload)?),
        id::GET_STATUS => empty(payload).map(|()| Request::GetStatus)?,
        id::GET_MAX_MEM_SLOTS => empty(payload).map(|()| Request::GetMaxMemSlots)?,
        id::GET_QUEUE_NUM => empty(payload).map(|()| Request::GetQueueNum)?,
        id::SET_VRING_NUM => Request::SetVringNum(exactly(payload)?),
        id::SET_VRING_ADDR => Request::SetVringAddr(exactly(payload)?),
        id::SET_VRING_BASE => Request::SetVringBase(exactly(payload)?),
        id::GET_VRING_BASE => Request::GetVringBase(exactly(payload)?),
        id::SET_VRING_ENABLE => Request::SetVringEnable(exactly(payload)?),
        // Room for the answer follows the head; what is in it means nothing.
        id::GET_CONFIG => Request::GetConfig(at_least::<ConfigHead>(payload)?.0),
        id::SET_CONFIG => {
            let (head, data) = at_least::<ConfigHead>(payload)?;
            if usize::try_from(head.size_bytes) != Ok(data.len()) {
                return Err(Malformed::Config(head.size_bytes, data.len()));
            }
            Request::SetConfig(head, data.to_vec())
        }
        other if request_name(other).is_some() => return Ok(Request::NotOffered),
        _ => return Ok(Request::Unknown),
    };
    no_fd(&fds)?;
    Ok(request)
}

/// A memory table: the regions it names, each with its file descriptor.
///
/// Linux's virtio_uml always sends room for two regions, however many it names: a payload may be longer than
/// it has to be.
fn mem_table(payload: &[u8], fds: Vec<OwnedFd>) -> Result<Request, Malformed> {
    let (head, rest) = at_least::<MemTableHead>(payload)?;
    let count = usize::try_from(head.regions)
        .ok()
        .filter(|count| (1..=FDS_MAX).contains(count))
        .ok_or(Malformed::Regions(head.regions))?;
    if fds.len() != count {
        return Err(Malformed::Fds { expected: count, found: fds.len() });
    }
    let mut regions = Vec::with_capacity(count);
    let mut rest = rest;
    for fd in fds {
        let Ok((region, tail)) = MemRegion::read_from_prefix(rest) else {
            let expected = size_of::<MemTableHead>() + count * size_of::<MemRegion>();
            return Err(Malformed::Payload { expected, found: payload.len() });
        };
        rest = tail;
        regions.push((region, fd));
    }
    Ok(Request::SetMemTable(regions))
}

/// The payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD, with or without the C struct's padding.
fn inflight_region(payload: &[u8]) -> Result<InflightRegion, Malformed> {
    const LEAST: usize = offset_of!(InflightRegion, padding);
    let mut padded = [0; size_of::<InflightRegion>()];
    match padded.get_mut(..payload.len()) {
        Some(bytes) if payload.len() >= LEAST => bytes.copy_from_slice(payload),
        _ => return Err(Malformed::Payload { expected: padded.len(), found: payload.len() }),
    }
    exactly(&padded)
}

/// The payload and file descriptor of SET_VRING_KICK, CALL and ERR.
fn vring_fd(payload: &[u8], fds: Vec<OwnedFd>) -> Result<VringFd, Malformed> {
    let word: u64 = exactly(payload)?;
    if word & !(VRING_INDEX_MASK | VRING_NO_FD) != 0 {
        return Err(Malformed::VringFd(word));
    }
    let index = u32::try_from(word & VRING_INDEX_MASK).unwrap_or(u32::MAX);
    let fd = if word & VRING_NO_FD == 0 {
        Some(one_fd(fds)?)
    } else {
        no_fd(&fds)?;
        None
    };
    Ok(VringFd { index, fd })
}

fn empty(payload: &[u8]) -> Result<(), Malformed> {
    match payload.len() {
        0 => Ok(()),
        found => Err(Malformed::Payload { expected: 0, found }),
    }
}

fn exactly<T: FromBytes + Immutable + KnownLayout>(payload: &[u8]) -> Result<T, Malformed> {
    T::read_from_bytes(payload)
        .map_err(|_| Malformed::Payload { expected: size_of::<T>(), found: payload.len() })
}

fn at_least<T: FromBytes + Immutable + KnownLayout>(payload: &[u8]) -> Result<(T, &[u8]), Malformed> {
    T::read_from_prefix(payload)
        .map_err(|_| Malformed::Payload { expected: size_of::<T>(), found: payload.len() })
}

fn one_fd(mut fds: Vec<OwnedFd>) -> Result<OwnedFd, Malformed> {
    let found = fds.len();
    match fds.pop() {
        Some(fd) if found == 1 => Ok(fd),
        _ => Err(Malformed::Fds { expected: 1, found }),
    }
}

fn no_fd(fds: &[OwnedFd]) -> Result<(), Malformed> {
    match fds.len() {
        0 => Ok(()),
        found => Err(Malformed::Fds { expected: 0, found }),
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use zerocopy::IntoBytes;

    use super::*;

    fn fds(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect()
    }

    fn frame(request: u32, payload: &[u8], fd_count: usize) -> Frame {
        Frame { request, need_reply: false, payload: payload.to_vec(), fds: fds(fd_count) }
    }

    fn region(n: u64) -> MemRegion {
        MemRegion { guest_addr: n << 20, size_bytes: 4096, user_addr: n << 32, mmap_offset_bytes: n << 12 }
    }

    fn table(named: u32, present: u64) -> Vec<u8> {
        let mut bytes = MemTableHead { regions: named, padding: 0 }.as_bytes().to_vec();
        for n in 0..present {
            bytes.extend_from_slice(region(n).as_bytes());
        }
        bytes
    }

    #[test]
    fn a_memory_table_may_have_room_to_spare() {
        for (named, present) in [(1, 1), (1, 2), (2, 2), (8, 8), (32, 32)] {
            let count = usize::try_from(named).unwrap();
            let frame = frame(id::SET_MEM_TABLE, &table(named, present), count);
            let Ok(Request::SetMemTable(regions)) = decode(frame) else {
                panic!("{named} of {present} regions were not taken");
            };
            let found: Vec<MemRegion> = regions.into_iter().map(|(region, _)| region).collect();
            assert_eq!(found, (0..u64::from(named)).map(region).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_memory_table_that_lies_is_refused() {
        let cases = [
            (table(0, 1), 0, Malformed::Regions(0)),
            (table(33, 1), 1, Malformed::Regions(33)),
            (table(u32::MAX, 1), 1, Malformed::Regions(u32::MAX)),
            (table(1, 1), 0, Malformed::Fds { expected: 1, found: 0 }),
            (table(1, 2), 2, Malformed::Fds { expected: 1, found: 2 }),
            (table(2, 1), 2, Malformed::Payload { expected: 72, found: 40 }),
            (vec![1, 0, 0], 1, Malformed::Payload { expected: 8, found: 3 }),
        ];
        for (payload, fd_count, expected) in cases {
            let found = decode(frame(id::SET_MEM_TABLE, &payload, fd_count));
            assert_eq!(found.err(), Some(expected));
        }
    }

    #[test]
    fn a_queue_s_fd_comes_or_is_said_not_to() {
        let given = decode(frame(id::SET_VRING_CALL, 3_u64.as_bytes(), 1));
        assert!(matches!(given, Ok(Request::SetVringCall(VringFd { index: 3, fd: Some(_) }))));
        let polled = decode(frame(id::SET_VRING_KICK, 0x1ff_u64.as_bytes(), 0));
        assert!(matches!(polled, Ok(Request::SetVringKick(VringFd { index: 255, fd: None }))));

        let wrong = [
            (0_u64, 0, Malformed::Fds { expected: 1, found: 0 }),
            (0, 2, Malformed::Fds { expected: 1, found: 2 }),
            (0x100, 1, Malformed::Fds { expected: 0, found: 1 }),
            (0x200, 1, Malformed::VringFd(0x200)),
            (1 << 40, 1, Malformed::VringFd(1 << 40)),
        ];
        for (word, fd_count, expected) in wrong {
            let found = decode(frame(id::SET_VRING_ERR, word.as_bytes(), fd_count));
            assert_eq!(found.err(), Some(expected));
        }
    }

    #[test]
    fn payloads_have_the_size_of_their_message() {
        // (message, size, file descriptors); one byte more or less, or one file descriptor more, is wrong.
        let sizes = [
            (id::GET_FEATURES, 0, 0),
            (id::SET_FEATURES, 8, 0),
            (id::GET_PROTOCOL_FEATURES, 0, 0),
            (id::SET_PROTOCOL_FEATURES, 8, 0),
            (id::SET_OWNER, 0, 0),
            (id::RESET_OWNER, 0, 0),
            (id::RESET_DEVICE, 0, 0),
            (id::SET_STATUS, 8, 0),
            (id::GET_STATUS, 0, 0),
            (id::GET_MAX_MEM_SLOTS, 0, 0),
            (id::ADD_MEM_REG, 40, 1),
            (id::GET_QUEUE_NUM, 0, 0),
            (id::SET_VRING_NUM, 8, 0),
            (id::SET_VRING_ADDR, 40, 0),
            (id::SET_VRING_BASE, 8, 0),
            (id::GET_VRING_BASE, 8, 0),
            (id::SET_VRING_ENABLE, 8, 0),
            (id::SET_VRING_KICK, 8, 1),
            (id::SET_VRING_CALL, 8, 1),
            (id::SET_VRING_ERR, 8, 1),
            (id::SET_CONFIG, 12, 0),
            (id::SET_BACKEND_REQ_FD, 0, 1),
        ];
        for (request, size, fd_count) in sizes {
            let name = request_name(request).unwrap();
            let payload = vec![0; size + 1];
            let right = decode(frame(request, &payload[..size], fd_count));
            assert!(right.is_ok(), "{name}: {right:?}");
            assert!(decode(frame(request, &payload, fd_count)).is_err(), "{name}, too long");
            if size > 0 {
                assert!(decode(frame(request, &payload[..size - 1], fd_count)).is_err(), "{name}");
            }
            assert!(decode(frame(request, &payload[..size], fd_count + 1)).is_err(), "{name}, fds");
        }
    }

    #[test]
    fn a_removed_region_may_come_with_one_fd() {
        let payload = SingleMemRegion { padding: 0, region: region(7) };
        for fd_count in 0..2 {
            let found = decode(frame(id::REM_MEM_REG, payload.as_bytes(), fd_count));
            let Ok(Request::RemMemReg(found)) = found else { panic!("{found:?}") };
            assert_eq!(found, region(7));
        }
        assert!(decode(frame(id::REM_MEM_REG, payload.as_bytes(), 2)).is_err());
    }

    #[test]
    fn config_bytes_are_as_many_as_named() {
        let head = ConfigHead { offset_bytes: 32, size_bytes: 1, flags: 0 };
        let mut payload = head.as_bytes().to_vec();
        let missing = decode(frame(id::SET_CONFIG, &payload, 0));
        assert_eq!(missing.err(), Some(Malformed::Config(1, 0)));
        payload.push(0xaa);
        let Ok(Request::SetConfig(head, data)) = decode(frame(id::SET_CONFIG, &payload, 0)) else {
            panic!("a whole SET_CONFIG was not taken");
        };
        assert_eq!((head.offset_bytes, data.as_slice()), (32, [0xaa].as_slice()));
        payload.push(0xbb);
        let more = decode(frame(id::SET_CONFIG, &payload, 0));
        assert_eq!(more.err(), Some(Malformed::Config(1, 2)));
    }

    #[test]
    fn an_inflight_buffer_is_described_with_or_without_padding() {
        let region =
            InflightRegion { mmap_size_bytes: 1, mmap_offset_bytes: 2, queues: 3, queue_size: 4, padding: 0 };
        for length in 20..=24 {
            let payload = &region.as_bytes()[..length];
            let found = decode(frame(id::GET_INFLIGHT_FD, payload, 0));
            assert!(matches!(found, Ok(Request::GetInflightFd(found, n)) if (found, n) == (region, length)));
            let found = decode(frame(id::SET_INFLIGHT_FD, payload, 1));
            assert!(matches!(found, Ok(Request::SetInflightFd(found, _)) if found == region));
            for (request, fds) in
                [(id::GET_INFLIGHT_FD, 1), (id::SET_INFLIGHT_FD, 0), (id::SET_INFLIGHT_FD, 2)]
            {
                assert!(decode(frame(request, payload, fds)).is_err(), "{request} with {fds}");
            }
        }
        for length in [0, 19, 25] {
            assert!(decode(frame(id::GET_INFLIGHT_FD, &vec![0; length], 0)).is_err());
            assert!(decode(frame(id::SET_INFLIGHT_FD, &vec![0; length], 1)).is_err());
        }
    }

    #[test]
    fn messages_of_the_future_are_told_from_those_not_offered() {
        assert!(matches!(decode(frame(id::SET_LOG_FD, &[], 1)), Ok(Request::NotOffered)));
        assert!(matches!(decode(frame(id::SET_LOG_BASE, &[0; 16], 1)), Ok(Request::NotOffered)));
        for request in [0, 45, 999, u32::MAX] {
            assert!(matches!(decode(frame(request, &[1, 2, 3], 2)), Ok(Request::Unknown)));
        }
    }
}
