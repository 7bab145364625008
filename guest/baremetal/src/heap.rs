//! The heap, and the same memory as devices see it.
#![allow(unsafe_code)]

use core::alloc::Layout;
use core::ops::Range;
use core::ptr::NonNull;

use buddy_system_allocator::LockedHeap;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// The largest block is 2 to the power of one less: all of the memory below 4 GiB.
const ORDERS: usize = 33;

#[global_allocator]
static HEAP: LockedHeap<ORDERS> = LockedHeap::empty();

/// Devices' registers and memory lie below this: so far `boot.s` maps.
const MAPPED_END: u64 = 1 << 32;

/// Gives the heap its memory.
///
/// # Safety
/// The range must be memory that nobody else uses, mapped one to one.
pub(crate) unsafe fn set_up(range: Range<usize>) {
    // SAFETY: by the contract of this function.
    unsafe { HEAP.lock().init(range.start, range.len()) };
}

/// The [`Hal`] of a kernel whose memory is where its address says: nothing to translate, nothing to copy. Each function of it
/// fits this crate's boot only: all of the first 4 GiB is mapped one to one.
#[derive(Debug)]
pub struct Identity;

// SAFETY: see each function.
unsafe impl Hal for Identity {
    // The pages come from the heap, aligned, zeroed, and theirs alone until they are given back.
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let none = (0, NonNull::dangling());
        let Some(layout) = pages_layout(pages) else { return none };
        // SAFETY: the layout is not of size zero.
        let start = unsafe { alloc::alloc::alloc_zeroed(layout) };
        NonNull::new(start).map_or(none, |start| (start.as_ptr() as PhysAddr, start))
    }

    unsafe fn dma_dealloc(_: PhysAddr, start: NonNull<u8>, pages: usize) -> i32 {
        let Some(layout) = pages_layout(pages) else { return -1 };
        // SAFETY: `dma_alloc` gave out this memory with the same layout, by the contract of this function.
        unsafe { alloc::alloc::dealloc(start.as_ptr(), layout) };
        0
    }

    // All of the first 4 GiB is mapped, devices' registers without caching.
    unsafe fn mmio_phys_to_virt(address: PhysAddr, len_bytes: usize) -> NonNull<u8> {
        let end = address.saturating_add(len_bytes as u64);
        assert!(end <= MAPPED_END, "a device has registers at {address:#x}, above the 4 GiB that are mapped");
        NonNull::new(address as *mut u8)
            .expect("a device without an address: the firmware did not assign its BARs")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn pages_layout(pages: usize) -> Option<Layout> {
    let len_bytes = pages.checked_mul(PAGE_SIZE).filter(|len_bytes| *len_bytes > 0)?;
    Layout::from_size_align(len_bytes, PAGE_SIZE).ok()
}
