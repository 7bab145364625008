//! One queue, and the copies of chains that the device has.

use alloc::vec::Vec;

use virtio_drivers::transport::Transport;
use virtio_drivers::{BufferDirection, Hal};
use virtio_zbd_spec::{DescriptorFlags, Features};
use zerocopy::IntoBytes;

use super::{Answer, SECTOR_LEN_BYTES};
use crate::command::Token;
use crate::error::{Error, Wrong};

use crate::ring::{Area, DESCRIPTOR_LEN_BYTES, Piece, Split, descriptor};

/// What lies between the pieces: a device that writes too far is seen.
const GAP_LEN_BYTES: usize = 32;
/// Where pieces of a sector or more begin, as a block layer's do: what a device does with data at odd addresses is seen where a piece
/// has something else before its data.
const DATA_ALIGN_BYTES: usize = 4096;
const GAP_BYTE: u8 = 0xc5;

/// A queue.
///
/// To be dropped only after the device was reset: until then it may write.
pub(super) struct Queue<H: Hal> {
    split: Split<H>,
    indirect: bool,
    /// By head of the descriptor chain.
    flights: Vec<Option<Flight<H>>>,
    in_flight: u16,
}

/// A chain that the device has.
struct Flight<H: Hal> {
    token: Token,
    area: Area<H>,
    /// What was in the area when it was lent. What lies outside the writable pieces stays so.
    lent: Vec<u8>,
    /// Where the writable pieces are in it: offset and length.
    writable: Vec<(usize, usize)>,
    /// How many of the ring's own descriptors it takes.
    descriptors: u16,
}

impl<H: Hal> Queue<H> {
    /// Sets up queue `index` with `depth` descriptors, a power of two.
    pub(super) fn new<T: Transport>(
        transport: &mut T,
        index: u16,
        depth: u16,
        features: Features,
    ) -> Result<Self, Error> {
        Ok(Self {
            split: Split::new(transport, index, depth, features)?,
            indirect: features.contains(Features::INDIRECT_DESC),
            flights: (0..depth).map(|_| None).collect(),
            in_flight: 0,
        })
    }

    pub(super) fn depth(&self) -> u16 {
        self.split.depth()
    }

    pub(super) fn in_flight(&self) -> u16 {
        self.in_flight
    }

    pub(super) fn wants_notification(&mut self) -> bool {
        self.split.wants_notification()
    }

    /// Copies a chain into memory of its own and shows that to the device. With INDIRECT_DESC it is an indirect table.
    pub(super) fn push(&mut self, token: Token, readable: &[&[u8]], writable: &[&[u8]]) -> Result<(), Error> {
        let count = readable.len() + writable.len();
        // 2.7.5.3.1: an indirect table is no longer than the queue, either.
        let chain = u16::try_from(count).ok().filter(|chain| (1..=self.split.depth()).contains(chain));
        let descriptors = match chain {
            Some(_) if self.indirect => 1,
            Some(chain) => chain,
            None => return Err(Error::QueueFull),
        };
        if descriptors > self.split.free() {
            return Err(Error::QueueFull);
        }
        let laid =
            Laid::new(if self.indirect { count * DESCRIPTOR_LEN_BYTES } else { 0 }, readable, writable)
                .ok_or(Error::NoMemory)?;
        let mut area = Area::<H>::new(laid.bytes.len(), BufferDirection::Both).ok_or(Error::NoMemory)?;
        let head = self.split.free_head();
        let mut lent = laid.bytes;
        if self.indirect {
            for (number, (paddr, len_bytes, flags)) in
                pieces(&area, &laid.readable, &laid.writable).enumerate()
            {
                let next = u16::try_from(number + 1).ok().filter(|next| usize::from(*next) < count);
                let descriptor = descriptor(paddr, len_bytes, flags, next);
                let at = number * DESCRIPTOR_LEN_BYTES;
                lent[at..at + DESCRIPTOR_LEN_BYTES].copy_from_slice(descriptor.as_bytes());
            }
        }
        area.write(0, &lent);
        if self.indirect {
            let table: Piece = (area.paddr(0), count * DESCRIPTOR_LEN_BYTES, DescriptorFlags::INDIRECT);
            self.split.push(1, core::iter::once(table));
        } else {
            self.split.push(count, pieces(&area, &laid.readable, &laid.writable));
        }
        let flight = Flight { token, area, lent, writable: laid.writable, descriptors };
        self.flights[usize::from(head)] = Some(flight);
        self.in_flight += 1;
        Ok(())
    }

    /// Takes back the next chain that the device is done with.
    pub(super) fn pop(&mut self) -> Result<Option<Answer>, Error> {
        let Some(used) = self.split.peek(self.in_flight)? else { return Ok(None) };
        let queue = self.split.index();
        let head = u16::try_from(used.id).ok().filter(|head| *head < self.split.depth());
        let flight = head.and_then(|head| Some((head, self.flights[usize::from(head)].as_ref()?)));
        let Some((head, flight)) = flight else {
            return Err(Wrong::UsedId { queue, id: used.id }.into());
        };
        let room_bytes = flight.writable.iter().map(|(_, len)| *len as u64).sum();
        if u64::from(used.len_bytes) > room_bytes {
            return Err(Wrong::UsedLen { found_bytes: used.len_bytes, room_bytes }.into());
        }
        let written = flight.written().ok_or(Wrong::WrittenBeside { queue })?;
        let answer = Answer { token: flight.token, used_len_bytes: used.len_bytes, written };
        self.split.pop();
        self.split.release(head, flight.descriptors);
        self.flights[usize::from(head)] = None;
        self.in_flight -= 1;
        Ok(Some(answer))
    }
}

impl<H: Hal> Flight<H> {
    /// What is in the writable pieces; `None` where the device wrote anything else.
    fn written(&self) -> Option<Vec<Vec<u8>>> {
        let now = read(&self.area, self.lent.len());
        let mut untouched = 0;
        let mut written = Vec::new();
        for (at, len) in self.writable.iter().copied().chain([(now.len(), 0)]) {
            if now.get(untouched..at)? != self.lent.get(untouched..at)? {
                return None;
            }
            written.push(now.get(at..at + len)?.to_vec());
            untouched = at + len;
        }
        written.pop();
        Some(written)
    }
}

/// A chain's bytes, as they will lie in memory: room for a table, then the pieces with gaps between them.
struct Laid {
    bytes: Vec<u8>,
    /// Offset and length of each piece.
    readable: Vec<(usize, usize)>,
    writable: Vec<(usize, usize)>,
}

impl Laid {
    /// `None` where there is no memory for that much.
    fn new(table_len_bytes: usize, readable: &[&[u8]], writable: &[&[u8]]) -> Option<Self> {
        let pieces = || readable.iter().chain(writable);
        let start = |at: usize, piece: &[u8]| match piece.len() < SECTOR_LEN_BYTES {
            true => Some(at),
            false => at.checked_next_multiple_of(DATA_ALIGN_BYTES),
        };
        let len = pieces().try_fold(table_len_bytes + GAP_LEN_BYTES, |at, piece| {
            start(at, piece)?.checked_add(piece.len())?.checked_add(GAP_LEN_BYTES)
        })?;
        // A descriptor's length has 32 bits.
        u32::try_from(len).ok()?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).ok()?;
        bytes.resize(table_len_bytes, 0);
        bytes.resize(table_len_bytes + GAP_LEN_BYTES, GAP_BYTE);
        let mut places: Vec<(usize, usize)> = Vec::new();
        for piece in pieces() {
            bytes.resize(start(bytes.len(), piece)?, GAP_BYTE);
            places.push((bytes.len(), piece.len()));
            bytes.extend_from_slice(piece);
            bytes.resize(bytes.len() + GAP_LEN_BYTES, GAP_BYTE);
        }
        let writable = places.split_off(readable.len());
        Some(Self { bytes, readable: places, writable })
    }
}

fn pieces<'a, H: Hal>(
    area: &'a Area<H>,
    readable: &'a [(usize, usize)],
    writable: &'a [(usize, usize)],
) -> impl Iterator<Item = Piece> + 'a {
    let readable = readable.iter().map(|place| (place, DescriptorFlags::empty()));
    let writable = writable.iter().map(|place| (place, DescriptorFlags::WRITE));
    readable.chain(writable).map(|((at, len), flags)| (area.paddr(*at), *len, flags))
}

/// The first `len` bytes of an area.
fn read<H: Hal>(area: &Area<H>, len: usize) -> Vec<u8> {
    const STEP: usize = 64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() + STEP <= len {
        bytes.extend_from_slice(&area.read::<STEP>(bytes.len()));
    }
    while bytes.len() < len {
        bytes.extend_from_slice(&area.read::<1>(bytes.len()));
    }
    bytes
}
