//! The guest's memory: a [`Hal`] that keeps a list of what is shared with the device, and the device's way to it.
//!
//! Each thread has a guest of its own, since a `Hal` is static functions and tests run side by side.

#![allow(unsafe_code, reason = "a Hal is unsafe by its nature, and a device reaches memory by address")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ptr::{self, NonNull};
use std::thread;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Shares memory where it lies: the device's address is the driver's.
pub type Identity = FakeHal<false>;
/// Shares a copy, as behind an IOMMU: what the device writes is there for the driver after `unshare` only, and what the driver has put
/// into a buffer for the device to overwrite is lost.
pub type Bounce = FakeHal<true>;

/// A [`Hal`] on the allocator.
pub struct FakeHal<const BOUNCE: bool>;

/// Begins with nothing shared; at its end nothing may be shared, and no DMA memory may be left.
#[must_use]
pub struct Watch(());

impl Watch {
    /// Fails if something is shared already.
    pub fn begin() -> Self {
        GUEST.with_borrow_mut(|guest| *guest = Guest::default());
        Self(())
    }
}

impl Watch {
    /// What is shared now may stay so for ever.
    pub fn allow_left(self) {
        GUEST.with_borrow_mut(|guest| guest.regions.clear());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        GUEST.with_borrow(|guest| {
            assert!(guest.regions.is_empty(), "the driver has left shared: {:#x?}", guest.regions);
        });
    }
}

/// How many buffers are shared with the device (rings not counted), in how many bytes.
pub fn shared() -> (usize, usize) {
    GUEST.with_borrow(|guest| {
        let shares = guest.regions.values().flatten().filter(|region| region.what == What::Share);
        shares.fold((0, 0), |(count, bytes), region| (count + 1, bytes + region.len))
    })
}

/// The next `after` allocations of DMA memory succeed, all later ones fail. `None`: all succeed.
pub fn set_dma_allocations_left(left: Option<usize>) {
    GUEST.with_borrow_mut(|guest| guest.allocations_left = left);
}

/// Reads as the device. It may read only what the driver has shared.
pub fn read(addr: PhysAddr, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    if len > 0 {
        GUEST.with_borrow(|guest| _ = guest.find(addr, len, "read"));
        // SAFETY: The range lies in one region that is allocated and shared now; `bytes` is as long.
        unsafe { ptr::copy_nonoverlapping(ptr::with_exposed_provenance(at(addr)), bytes.as_mut_ptr(), len) };
    }
    bytes
}

/// As [`read`], for what has a fixed length.
pub fn read_array<const N: usize>(addr: PhysAddr) -> [u8; N] {
    let mut bytes = [0; N];
    GUEST.with_borrow(|guest| _ = guest.find(addr, N, "read"));
    // SAFETY: As in `read`.
    unsafe { ptr::copy_nonoverlapping(ptr::with_exposed_provenance(at(addr)), bytes.as_mut_ptr(), N) };
    bytes
}

/// Writes as the device. It may write only what the driver has shared to be written.
pub fn write(addr: PhysAddr, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    GUEST.with_borrow(|guest| {
        let region = guest.find(addr, bytes.len(), "write");
        assert!(
            region.direction != BufferDirection::DriverToDevice,
            "the device would write {addr:#x}+{}, which was shared for reading",
            bytes.len()
        );
    });
    // SAFETY: The range lies in one region that is allocated and shared for writing now; `bytes` is apart from it.
    unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), ptr::with_exposed_provenance_mut(at(addr)), bytes.len())
    };
}

/// The device has this range in its hands: taking it back is a fault until [`let_go`].
pub fn hold(addr: PhysAddr, len: usize) {
    GUEST.with_borrow_mut(|guest| guest.find_mut(addr, len).held += 1);
}

/// The device has given this range back.
pub fn let_go(addr: PhysAddr, len: usize) {
    GUEST.with_borrow_mut(|guest| guest.find_mut(addr, len).held -= 1);
}

thread_local! {
    static GUEST: RefCell<Guest> = RefCell::default();
}

#[derive(Default)]
struct Guest {
    /// By address: the same bytes can be shared more than once.
    regions: BTreeMap<PhysAddr, Vec<Region>>,
    allocations_left: Option<usize>,
}

#[derive(Debug)]
struct Region {
    len: usize,
    direction: BufferDirection,
    what: What,
    /// How often the device holds a part of it.
    held: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Dma,
    Share,
}

impl Guest {
    fn find(&self, addr: PhysAddr, len: usize, what: &str) -> &Region {
        let end = addr.checked_add(len as u64).unwrap_or_else(|| panic!("{what} of {addr:#x}+{len}"));
        // Nearest first. The longest can begin far below: all of them are looked at.
        for (start, regions) in self.regions.range(..=addr).rev() {
            for region in regions {
                if end <= start + region.len as u64 {
                    return region;
                }
            }
        }
        panic!("the driver lets the device {what} {addr:#x}+{len}, which is not shared");
    }

    fn find_mut(&mut self, addr: PhysAddr, len: usize) -> &mut Region {
        for (start, regions) in self.regions.range_mut(..=addr).rev() {
            for region in regions {
                if addr + len as u64 <= start + region.len as u64 {
                    return region;
                }
            }
        }
        panic!("{addr:#x}+{len} is not shared");
    }

    fn add(&mut self, addr: PhysAddr, len: usize, direction: BufferDirection, what: What) {
        self.regions.entry(addr).or_default().push(Region { len, direction, what, held: 0 });
    }

    fn take(&mut self, addr: PhysAddr, len: usize, direction: Option<BufferDirection>, what: What) {
        let regions = self.regions.entry(addr).or_default();
        let same = |region: &Region| {
            region.len == len
                && region.what == what
                && direction.is_none_or(|direction| region.direction == direction)
        };
        let Some(index) = regions
            .iter()
            .position(|region| same(region) && region.held == 0)
            .or(regions.iter().position(same))
        else {
            fault(&format!(
                "{what:?} {addr:#x}+{len} {direction:?} is taken back but is not there: {regions:x?}"
            ));
            return;
        };
        let region = regions.swap_remove(index);
        if regions.is_empty() {
            self.regions.remove(&addr);
        }
        if region.held > 0 {
            fault(&format!("{what:?} {addr:#x}+{len} is taken back while the device holds it"));
        }
    }
}

/// A fault of the driver; while another panic unwinds, that one is the news.
fn fault(message: &str) {
    assert!(thread::panicking(), "{message}");
}

fn at(addr: PhysAddr) -> usize {
    usize::try_from(addr).expect("an address of this process")
}

fn pages_layout(pages: usize) -> Layout {
    assert_ne!(pages, 0, "no pages asked for");
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("a sensible number of pages")
}

// SAFETY: DMA memory comes zeroed and page-aligned from the allocator and is given back to it once; a bounce buffer lives from `share`
// to `unshare`.
unsafe impl<const BOUNCE: bool> Hal for FakeHal<BOUNCE> {
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let layout = pages_layout(pages);
        let allowed = GUEST.with_borrow_mut(|guest| match &mut guest.allocations_left {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        });
        if !allowed {
            return (0, NonNull::dangling());
        }
        // SAFETY: The layout is not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory");
        let addr = memory.as_ptr().expose_provenance() as u64;
        GUEST.with_borrow_mut(|guest| guest.add(addr, layout.size(), direction, What::Dma));
        (addr, memory)
    }

    unsafe fn dma_dealloc(addr: PhysAddr, memory: NonNull<u8>, pages: usize) -> i32 {
        let layout = pages_layout(pages);
        GUEST.with_borrow_mut(|guest| guest.take(addr, layout.size(), None, What::Dma));
        // SAFETY: The caller gives back what `dma_alloc` gave, with the same number of pages.
        unsafe { dealloc(ptr::with_exposed_provenance_mut(memory.as_ptr().addr()), layout) };
        0
    }

    unsafe fn mmio_phys_to_virt(_addr: PhysAddr, _len: usize) -> NonNull<u8> {
        panic!("there are no registers in memory here")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        assert_ne!(buffer.len(), 0, "an empty buffer is shared");
        assert_ne!(direction, BufferDirection::Both, "a buffer of a queue goes one way");
        let addr = if BOUNCE {
            let copy = Box::into_raw(vec![0_u8; buffer.len()].into_boxed_slice()).cast::<u8>();
            if direction == BufferDirection::DriverToDevice {
                // SAFETY: The caller's buffer can be read; the copy is as long and new.
                unsafe { ptr::copy_nonoverlapping(buffer.cast::<u8>().as_ptr(), copy, buffer.len()) };
            }
            copy.expose_provenance()
        } else {
            buffer.cast::<u8>().as_ptr().expose_provenance()
        } as u64;
        GUEST.with_borrow_mut(|guest| guest.add(addr, buffer.len(), direction, What::Share));
        addr
    }

    unsafe fn unshare(addr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        GUEST.with_borrow_mut(|guest| guest.take(addr, buffer.len(), Some(direction), What::Share));
        if BOUNCE {
            let copy = ptr::with_exposed_provenance_mut::<u8>(at(addr));
            // SAFETY: `share` made this slice, and the list had it, so that it was not taken back before.
            let copy = unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(copy, buffer.len())) };
            if direction == BufferDirection::DeviceToDriver {
                // SAFETY: The caller's buffer can be written and is as long.
                unsafe {
                    ptr::copy_nonoverlapping(copy.as_ptr(), buffer.cast::<u8>().as_ptr(), buffer.len())
                };
            }
        } else {
            assert_eq!(addr, buffer.cast::<u8>().as_ptr().addr() as u64, "another buffer comes back");
        }
    }
}
