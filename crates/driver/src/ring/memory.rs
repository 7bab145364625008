//! Memory that the driver and the device both see: areas of the driver's own, and callers' buffers on loan.
//!
//! This is the driver's only module with `unsafe`. It leans on three things:
//!
//! - A [`Hal`] gives memory that is valid, page-aligned and nobody else's (its implementation's duty).
//! - A buffer on [`Loan`] is owned by it, so nothing else reaches its bytes, and they do not move when it does
//!   ([`StableDeref`](stable_deref_trait::StableDeref)).
//! - What the device may write meanwhile is read by volatile or atomic loads, never through a reference.
#![allow(unsafe_code)]

use alloc::vec::Vec;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU16;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::command::Buffer;

/// Pages shared with the device, zeroed at first.
pub(crate) struct Area<H: Hal> {
    paddr: PhysAddr,
    start: NonNull<u8>,
    pages: usize,
    hal: PhantomData<fn() -> H>,
}

// SAFETY: an area is nobody else's memory; all access goes through `&self` and `&mut self`.
unsafe impl<H: Hal> Send for Area<H> {}

impl<H: Hal> Area<H> {
    /// At least `len_bytes`; `None` where there is no memory.
    pub(crate) fn new(len_bytes: usize, direction: BufferDirection) -> Option<Self> {
        let pages = len_bytes.div_ceil(PAGE_SIZE).max(1);
        let (paddr, start) = H::dma_alloc(pages, direction);
        // By `virtio-drivers`' convention no memory is the address 0.
        (paddr != 0).then(|| Self { paddr, start, pages, hal: PhantomData })
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.pages * PAGE_SIZE
    }

    /// Where the device finds the byte at `offset`.
    pub(crate) fn paddr(&self, offset: usize) -> PhysAddr {
        self.paddr + offset as PhysAddr
    }

    /// Writes bytes that the device reads only after an index was stored behind them.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: `at` checked that the bytes lie in the area; `bytes` is a reference and so lies elsewhere.
        unsafe { to.copy_from_nonoverlapping(NonNull::from_ref(bytes).cast(), bytes.len()) };
    }

    /// Reads what the device may have written.
    pub(crate) fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let from = self.at(offset, N);
        // SAFETY: `at` checked that the bytes lie in the area; an array of bytes needs no alignment.
        unsafe { from.cast::<[u8; N]>().read_volatile() }
    }

    /// A ring's index or flags word, little-endian.
    pub(crate) fn word(&self, offset: usize) -> &AtomicU16 {
        let at = self.at(offset, size_of::<u16>());
        assert!(offset.is_multiple_of(align_of::<AtomicU16>()), "the words of a ring are aligned");
        // SAFETY: in the area, aligned (areas begin at a page), alive as long as `self`; both sides access these
        // words atomically only.
        unsafe { AtomicU16::from_ptr(at.cast().as_ptr()) }
    }

    fn at(&self, offset: usize, len_bytes: usize) -> NonNull<u8> {
        let end = offset.checked_add(len_bytes);
        assert!(
            end.is_some_and(|end| end <= self.len_bytes()),
            "offsets are the ring's own and lie in its areas"
        );
        // SAFETY: just checked to lie in the area.
        unsafe { self.start.add(offset) }
    }
}

impl<H: Hal> Drop for Area<H> {
    fn drop(&mut self) {
        // SAFETY: from `dma_alloc` with this number of pages, and given back once.
        let code = unsafe { H::dma_dealloc(self.paddr, self.start, self.pages) };
        if code != 0 {
            log::error!("{} pages at {:#x} could not be given back: {code}", self.pages, self.paddr);
        }
    }
}

/// A buffer that the device may read or write. To be ended when the device is done with it; dropping one without that is
/// for a device that was reset.
pub(super) struct Loan<H: Hal, B: Buffer> {
    buffer: B,
    /// One address for each segment.
    segments: Vec<PhysAddr>,
    segment_len_bytes: usize,
    direction: BufferDirection,
    hal: PhantomData<fn() -> H>,
}

impl<H: Hal, B: Buffer> Loan<H, B> {
    /// Shares a buffer with the device, in segments of at most `segment_len_bytes`. `segments` is used again.
    pub(super) fn new(
        buffer: B,
        segment_len_bytes: usize,
        direction: BufferDirection,
        mut segments: Vec<PhysAddr>,
    ) -> Self {
        let mut buffer = buffer;
        segments.clear();
        for segment in buffer.chunks_mut(segment_len_bytes) {
            // SAFETY: the segment is valid memory, not empty, and borrowed for this call. After it nothing touches the
            // bytes: the buffer is owned by this loan, and its bytes stay where they are when the loan moves.
            segments.push(unsafe { H::share(NonNull::from_mut(segment), direction) });
        }
        Self { buffer, segments, segment_len_bytes, direction, hal: PhantomData }
    }

    /// Address and length of each segment.
    pub(super) fn segments(&self) -> impl Iterator<Item = (PhysAddr, usize)> + '_ {
        let len_bytes = self.buffer.len();
        self.segments.iter().enumerate().map(move |(index, paddr)| {
            let start = index * self.segment_len_bytes;
            (*paddr, (len_bytes - start).min(self.segment_len_bytes))
        })
    }

    /// Takes the buffer back, with what the device wrote. The device must be done with it: the request came back on the
    /// used ring, or the device was reset.
    pub(super) fn end(self) -> (B, Vec<PhysAddr>) {
        let Self { mut buffer, segments, segment_len_bytes, direction, .. } = self;
        for (segment, paddr) in buffer.chunks_mut(segment_len_bytes).zip(&segments) {
            // SAFETY: the same segment that `share` gave this address for, and borrowed for this call.
            unsafe { H::unshare(*paddr, NonNull::from_mut(segment), direction) };
        }
        (buffer, segments)
    }
}
