//! Memory that I/O goes to and comes from.
//!
//! This is where raw pointers into guest memory are made and kept; everything else handles them through [`IoBuffer`].
#![allow(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// The most bytes that one system call is asked to move: below what Linux moves at most, and a whole number
/// of any block.
const WINDOW_MAX_BYTES: usize = 1 << 30;

/// The most segments that one system call takes (`IOV_MAX`).
const WINDOW_MAX_SEGMENTS: usize = 1024;

/// A list of memory ranges to read into or write from, and what keeps them alive.
///
/// The memory is either a guest's, which the guest may change at any time, or bytes of our own. A value of
/// this type is proof that each of its ranges was inside its memory; nothing needs a second check.
pub struct IoBuffer {
    segments: Segments,
    len_bytes: usize,
    owner: Owner,
}

/// What keeps the memory of a buffer alive.
enum Owner {
    /// Never looked at, only held: the mappings go away with the last holder.
    #[allow(dead_code, reason = "held for its lifetime")]
    Guest(Arc<GuestMemoryMmap>),
    Owned(Vec<u8>),
    Joined(Vec<IoBuffer>),
}

/// The vector behind a buffer's ranges, to be used again for the next one: saves the only allocation of a request.
#[derive(Default)]
pub struct Segments(Vec<libc::iovec>);

// SAFETY: an iovec is an address and a length. Whoever follows the address answers for it (see `IoBuffer`).
unsafe impl Send for Segments {}
// SAFETY: as above; a shared reference gives no way to follow the address.
unsafe impl Sync for Segments {}

/// A range that does not lie in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the buffer at guest address {address_bytes:#x}, {len_bytes} bytes long, lies outside guest memory")]
pub struct OutOfGuestMemory {
    /// Where the range begins in guest physical memory.
    pub address_bytes: u64,
    /// Its length.
    pub len_bytes: u32,
}

/// A part of a buffer that the buffer does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{len_bytes} bytes at {offset_bytes} were asked for in a buffer of {buffer_len_bytes} bytes")]
pub struct OutOfBuffer {
    /// Where the part begins in the buffer.
    pub offset_bytes: usize,
    /// The part's length.
    pub len_bytes: usize,
    /// The buffer's length.
    pub buffer_len_bytes: usize,
}

impl IoBuffer {
    /// A buffer over `ranges` of guest memory, in that order. A range that spans adjacent regions is split.
    ///
    /// # Errors
    /// The first range that is not inside guest memory in its whole length.
    pub fn guest(
        memory: Arc<GuestMemoryMmap>,
        ranges: &[(GuestAddress, u32)],
    ) -> Result<Self, OutOfGuestMemory> {
        Self::guest_with(Segments::default(), memory, ranges)
    }

    /// As [`guest`](Self::guest), without an allocation where `recycled` has the room.
    ///
    /// # Errors
    /// As [`guest`](Self::guest).
    pub fn guest_with(
        recycled: Segments,
        memory: Arc<GuestMemoryMmap>,
        ranges: &[(GuestAddress, u32)],
    ) -> Result<Self, OutOfGuestMemory> {
        let mut segments = recycled;
        segments.0.clear();
        let mut len_bytes = 0usize;
        for &(address, range_len_bytes) in ranges {
            let outside = OutOfGuestMemory { address_bytes: address.0, len_bytes: range_len_bytes };
            let range_len = usize::try_from(range_len_bytes).map_err(|_| outside)?;
            len_bytes = len_bytes.checked_add(range_len).ok_or(outside)?;
            for slice in GuestMemoryBackend::get_slices(&*memory, address, range_len) {
                let slice = slice.map_err(|_| outside)?;
                segments.push(slice.ptr_guard_mut().as_ptr(), slice.len());
            }
        }
        Ok(Self { segments, len_bytes, owner: Owner::Guest(memory) })
    }

    /// A buffer over bytes of our own.
    pub fn owned(mut bytes: Vec<u8>) -> Self {
        let mut segments = Segments::default();
        if !bytes.is_empty() {
            segments.push(bytes.as_mut_ptr(), bytes.len());
        }
        Self { segments, len_bytes: bytes.len(), owner: Owner::Owned(bytes) }
    }

    /// The buffer's length: the sum of its ranges.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Sets `len_bytes` bytes at `offset_bytes` to zero.
    ///
    /// # Errors
    /// The part is not inside the buffer; nothing was changed.
    pub fn fill_zero(&mut self, offset_bytes: usize, len_bytes: usize) -> Result<(), OutOfBuffer> {
        static ZEROS: [u8; 4096] = [0; 4096];
        self.check(offset_bytes, len_bytes)?;
        for slice in self.slices(offset_bytes, len_bytes) {
            let mut rest = slice;
            while !rest.is_empty() {
                let part = rest.len().min(ZEROS.len());
                rest.copy_from(&ZEROS[..part]);
                let Ok(after) = rest.offset(part) else { break };
                rest = after;
            }
        }
        Ok(())
    }

    /// Copies `into.len()` bytes out of the buffer, from `offset_bytes` on.
    ///
    /// # Errors
    /// The part is not inside the buffer; nothing was copied.
    pub fn copy_to_slice(&self, offset_bytes: usize, into: &mut [u8]) -> Result<(), OutOfBuffer> {
        self.check(offset_bytes, into.len())?;
        let mut done = 0;
        for slice in self.slices(offset_bytes, into.len()) {
            done += slice.copy_to(&mut into[done..]);
        }
        Ok(())
    }

    /// Copies `from` into the buffer, from `offset_bytes` on.
    ///
    /// # Errors
    /// The part is not inside the buffer; nothing was copied.
    pub fn copy_from_slice(&mut self, offset_bytes: usize, from: &[u8]) -> Result<(), OutOfBuffer> {
        self.check(offset_bytes, from.len())?;
        let mut done = 0;
        for slice in self.slices(offset_bytes, from.len()) {
            slice.copy_from(&from[done..done + slice.len()]);
            done += slice.len();
        }
        Ok(())
    }

    /// The bytes of a buffer made by [`owned`](Self::owned); `None` if it lies in guest memory.
    pub fn into_owned(self) -> Option<Vec<u8>> {
        match self.owner {
            Owner::Owned(bytes) => Some(bytes),
            Owner::Guest(_) | Owner::Joined(_) => None,
        }
    }

    /// A buffer of `len_bytes` zeros of our own that begins on a multiple of `alignment_bytes`, a power of two.
    pub(crate) fn aligned(len_bytes: usize, alignment_bytes: usize) -> Self {
        let mut bytes = vec![0u8; len_bytes + alignment_bytes - 1];
        let skipped = bytes.as_ptr().addr().wrapping_neg() & (alignment_bytes - 1);
        let mut segments = Segments::default();
        if let Some(part) = bytes.get_mut(skipped..skipped + len_bytes).filter(|part| !part.is_empty()) {
            segments.push(part.as_mut_ptr(), len_bytes);
        }
        Self { segments, len_bytes, owner: Owner::Owned(bytes) }
    }

    /// Whether each range of it begins on a multiple of `alignment_bytes` and is whole blocks of `block_bytes` long; both are powers of two.
    pub(crate) fn is_aligned(&self, alignment_bytes: usize, block_bytes: usize) -> bool {
        self.segments.0.iter().all(|segment| {
            segment.iov_base.addr() & (alignment_bytes - 1) == 0 && segment.iov_len & (block_bytes - 1) == 0
        })
    }

    /// How many ranges it has.
    pub(crate) fn range_count(&self) -> usize {
        self.segments.0.len()
    }

    /// One buffer of several, one after the other.
    pub(crate) fn join(parts: Vec<Self>) -> Self {
        let mut segments = Segments::default();
        for part in &parts {
            segments.0.extend_from_slice(&part.segments.0);
        }
        let len_bytes = parts.iter().map(|part| part.len_bytes).sum();
        Self { segments, len_bytes, owner: Owner::Joined(parts) }
    }

    /// The buffers that a [joined](Self::join) one was made of; any other is itself.
    pub(crate) fn into_parts(self) -> Vec<Self> {
        match self.owner {
            Owner::Joined(parts) => parts,
            _ => vec![self],
        }
    }

    /// Fills the buffer from the bytes of another one, from `offset_bytes` of that on.
    pub(crate) fn copy_from(&mut self, from: &Self, offset_bytes: usize) -> Result<(), OutOfBuffer> {
        let mut bytes = vec![0; self.len_bytes];
        from.copy_to_slice(offset_bytes, &mut bytes)?;
        self.copy_from_slice(0, &bytes)
    }

    /// Gives back the vector behind the ranges, for [`guest_with`](Self::guest_with).
    pub fn recycle(self) -> Segments {
        self.segments
    }

    /// The part of the buffer at `offset_bytes`, as the memory slices that make it up. The part must have
    /// been checked.
    pub(crate) fn slices(
        &self,
        offset_bytes: usize,
        len_bytes: usize,
    ) -> impl Iterator<Item = VolatileSlice<'_>> {
        parts(&self.segments.0, offset_bytes, len_bytes).map(|part| {
            // SAFETY: `part` is inside one of our segments, whose memory `self.owner` keeps alive and mapped
            // for as long as the slice borrows `self`. Guest memory is only ever reached by volatile access,
            // and the bytes of an owned buffer only through this pointer for as long as the buffer exists.
            unsafe { VolatileSlice::new(part.iov_base.cast(), part.iov_len) }
        })
    }

    /// What one system call may be given of the part at `offset_bytes`: as much as possible from its beginning.
    /// `scratch` holds the list where the buffer's own can't be used.
    pub(crate) fn window<'a>(
        &'a self,
        offset_bytes: usize,
        len_bytes: usize,
        scratch: &'a mut Segments,
    ) -> Window<'a> {
        let whole = offset_bytes == 0 && len_bytes == self.len_bytes;
        if whole && self.segments.0.len() <= WINDOW_MAX_SEGMENTS && len_bytes <= WINDOW_MAX_BYTES {
            return Window { segments: &self.segments.0 };
        }
        scratch.0.clear();
        let wanted = len_bytes.min(WINDOW_MAX_BYTES);
        scratch.0.extend(parts(&self.segments.0, offset_bytes, wanted).take(WINDOW_MAX_SEGMENTS));
        Window { segments: &scratch.0 }
    }

    fn check(&self, offset_bytes: usize, len_bytes: usize) -> Result<(), OutOfBuffer> {
        match offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= self.len_bytes => Ok(()),
            _ => Err(OutOfBuffer { offset_bytes, len_bytes, buffer_len_bytes: self.len_bytes }),
        }
    }
}

impl fmt::Debug for IoBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = match self.owner {
            Owner::Guest(_) => "guest",
            Owner::Owned(_) => "owned",
            Owner::Joined(_) => "joined",
        };
        f.debug_struct("IoBuffer")
            .field("memory", &memory)
            .field("segments", &self.segments.0.len())
            .field("len_bytes", &self.len_bytes)
            .finish()
    }
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Segments").field(&self.0.len()).finish()
    }
}

impl Segments {
    fn push(&mut self, base: *mut u8, len_bytes: usize) {
        self.0.push(libc::iovec { iov_base: base.cast(), iov_len: len_bytes });
    }

    /// A list that gives `len_bytes` zeros, or as many as one system call may take, to be written and never
    /// read into.
    pub(crate) fn zeros(&mut self, len_bytes: u64) -> Window<'_> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        self.0.clear();
        let mut rest = len_bytes;
        while rest > 0 && self.0.len() < WINDOW_MAX_SEGMENTS / 64 {
            let part = usize::try_from(rest).unwrap_or(usize::MAX).min(ZEROS.len());
            self.push(ZEROS.as_ptr().cast_mut(), part);
            rest = rest.saturating_sub(ZEROS.len() as u64);
        }
        Window { segments: &self.0 }
    }
}

/// A list of ranges that may be handed to the kernel: each is memory that stays valid while the window is
/// borrowed.
///
/// Only this module makes windows. Those of a buffer may be read into and written from; those of
/// [`Segments::zeros`] only written from.
pub(crate) struct Window<'a> {
    segments: &'a [libc::iovec],
}

impl<'a> Window<'a> {
    /// The ranges, at most as many as one system call takes.
    pub(crate) fn iovecs(&self) -> &'a [libc::iovec] {
        self.segments
    }
}

/// The ranges that make up the part of `segments` at `offset_bytes`.
fn parts(
    segments: &[libc::iovec],
    offset_bytes: usize,
    len_bytes: usize,
) -> impl Iterator<Item = libc::iovec> {
    let (mut skip, mut rest) = (offset_bytes, len_bytes);
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.iov_len);
        skip -= skipped;
        let taken = rest.min(segment.iov_len - skipped);
        if skip > 0 || taken == 0 {
            return None;
        }
        rest -= taken;
        // SAFETY: `skipped` is at most the segment's length, so the result is inside it or one past its end.
        let iov_base = unsafe { segment.iov_base.cast::<u8>().add(skipped) };
        Some(libc::iovec { iov_base: iov_base.cast(), iov_len: taken })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Arc<GuestMemoryMmap> {
        // Two regions that touch, and one behind a gap.
        let regions =
            [(GuestAddress(0), 0x2000), (GuestAddress(0x2000), 0x1000), (GuestAddress(0x8000), 0x1000)];
        Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap())
    }

    fn lens(window: &Window<'_>) -> Vec<usize> {
        window.iovecs().iter().map(|v| v.iov_len).collect()
    }

    #[test]
    fn ranges_are_checked_and_split_at_regions() {
        let at = |address: u64, len: u32| IoBuffer::guest(memory(), &[(GuestAddress(address), len)]);
        let spanning = at(0x1ff0, 0x20).unwrap();
        assert_eq!(spanning.len_bytes(), 0x20);
        assert_eq!(lens(&spanning.window(0, 0x20, &mut Segments::default())), [0x10, 0x10]);
        for (address, len) in
            [(0x2ff0, 0x11), (0x3000, 1), (0x7fff, 2), (0x8fff, 2), (u64::MAX, 1), (u64::MAX - 1, u32::MAX)]
        {
            let outside = OutOfGuestMemory { address_bytes: address, len_bytes: len };
            assert_eq!(at(address, len).unwrap_err(), outside);
        }
        assert_eq!(at(0x2ff0, 0x10).unwrap().len_bytes(), 0x10);
        assert_eq!(at(0x7000, 0).unwrap().len_bytes(), 0, "nothing is nowhere");
    }

    #[test]
    fn copies_reach_exactly_their_part() {
        let memory = memory();
        let ranges = [(GuestAddress(0x1ffe), 4u32), (GuestAddress(0x8000), 3), (GuestAddress(0x10), 5)];
        let mut buffer = IoBuffer::guest(memory, &ranges).unwrap();
        let all: Vec<u8> = (1..=12).collect();
        buffer.copy_from_slice(0, &all).unwrap();
        buffer.fill_zero(3, 5).unwrap();
        let mut expected = all.clone();
        expected[3..8].fill(0);
        let mut back = vec![0xff; 12];
        buffer.copy_to_slice(0, &mut back).unwrap();
        assert_eq!(back, expected);
        let mut part = [0; 4];
        buffer.copy_to_slice(6, &mut part).unwrap();
        assert_eq!(part, expected[6..10]);
        let out = OutOfBuffer { offset_bytes: 10, len_bytes: 3, buffer_len_bytes: 12 };
        assert_eq!(buffer.fill_zero(10, 3).unwrap_err(), out);
        assert!(buffer.copy_to_slice(usize::MAX, &mut part).is_err());
    }

    #[test]
    fn a_long_fill_is_whole() {
        let mut buffer = IoBuffer::owned(vec![7; 10_000]);
        buffer.fill_zero(1, 9_998).unwrap();
        let bytes = buffer.into_owned().unwrap();
        assert_eq!((bytes[0], bytes[9_999]), (7, 7));
        assert!(bytes[1..9_999].iter().all(|&b| b == 0));
    }

    #[test]
    fn windows_are_cut_at_both_ends_and_at_the_systems_limits() {
        let buffer = IoBuffer::guest(
            memory(),
            &[(GuestAddress(0), 10), (GuestAddress(100), 10), (GuestAddress(200), 10)],
        )
        .unwrap();
        let mut scratch = Segments::default();
        assert_eq!(lens(&buffer.window(0, 30, &mut scratch)), [10, 10, 10]);
        assert_eq!(lens(&buffer.window(0, 15, &mut scratch)), [10, 5]);
        assert_eq!(lens(&buffer.window(5, 20, &mut scratch)), [5, 10, 5]);
        assert_eq!(lens(&buffer.window(10, 20, &mut scratch)), [10, 10]);
        assert_eq!(lens(&buffer.window(29, 1, &mut scratch)), [1]);
        let many = vec![(GuestAddress(0), 2u32); 3000];
        let many = IoBuffer::guest(memory(), &many).unwrap();
        assert_eq!(lens(&many.window(0, 6000, &mut scratch)).len(), 1024);
        assert_eq!(lens(&many.window(6000 - 3, 3, &mut scratch)), [1, 2]);
    }

    #[test]
    fn recycled_segments_keep_their_room() {
        let memory = memory();
        let buffer = IoBuffer::guest(memory.clone(), &[(GuestAddress(0), 8u32); 64]).unwrap();
        let recycled = buffer.recycle();
        let room = recycled.0.capacity();
        let buffer = IoBuffer::guest_with(recycled, memory, &[(GuestAddress(0), 8u32); 3]).unwrap();
        assert_eq!((buffer.len_bytes(), buffer.segments.0.capacity()), (24, room));
    }
}
