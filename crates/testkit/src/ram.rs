//! Guest memory that can be shared, with an allocator for what a driver puts into it.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{
    AtomicAccess, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Where the first region of [`GuestRam::new`] begins: not 0, so that guest addresses and offsets can't be mixed up.
pub const GUEST_BASE: GuestAddress = GuestAddress(0x1000_0000);

/// The memory of a guest: one memfd, mapped shared, in one or more regions; cheap to clone.
///
/// Every method panics on a mistake of the test itself (an address outside, memory used up), with the test's line.
#[derive(Clone)]
pub struct GuestRam {
    inner: Arc<Inner>,
}

struct Inner {
    memory: Arc<GuestMemoryMmap>,
    heap: Mutex<Heap>,
}

impl GuestRam {
    /// One region of `len_bytes` at [`GUEST_BASE`].
    #[track_caller]
    #[must_use]
    pub fn new(len_bytes: usize) -> Self {
        Self::with_regions(&[(GUEST_BASE, len_bytes)])
    }

    /// Two regions of `len_bytes` each with a hole of `hole_bytes` between them, the first one at [`GUEST_BASE`].
    #[track_caller]
    #[must_use]
    pub fn with_hole(len_bytes: usize, hole_bytes: usize) -> Self {
        let second = GUEST_BASE.0 + as_u64(len_bytes) + as_u64(hole_bytes);
        Self::with_regions(&[(GUEST_BASE, len_bytes), (GuestAddress(second), len_bytes)])
    }

    /// The regions given (address and length in bytes, in rising order, both multiples of the page size), one after the
    /// other in one memfd. Allocations never cross from one region into the next, even where these touch.
    #[track_caller]
    #[must_use]
    pub fn with_regions(regions: &[(GuestAddress, usize)]) -> Self {
        let total_bytes: usize = regions.iter().map(|region| region.1).sum();
        let memfd = memfd_create("guest-ram", MemfdFlags::CLOEXEC).expect("no memfd");
        ftruncate(&memfd, as_u64(total_bytes)).expect("guest memory is too large for a memfd");
        let file = Arc::new(File::from(memfd));
        let mut offset_bytes = 0;
        let ranges: Vec<_> = regions
            .iter()
            .map(|&(base, len_bytes)| {
                let at = FileOffset::from_arc(Arc::clone(&file), offset_bytes);
                offset_bytes += as_u64(len_bytes);
                (base, len_bytes, Some(at))
            })
            .collect();
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges)
            .expect("these regions can't be mapped as guest memory");
        let heap = Heap::new(regions);
        Self { inner: Arc::new(Inner { memory: Arc::new(memory), heap: Mutex::new(heap) }) }
    }

    /// The mapped regions, for the device under test.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.inner.memory
    }

    /// Takes `len_bytes` bytes at a multiple of `align_bytes` (a power of two). Their contents are whatever was there.
    #[track_caller]
    #[must_use]
    pub fn alloc(&self, len_bytes: usize, align_bytes: usize) -> GuestAddress {
        assert!(align_bytes.is_power_of_two(), "{align_bytes} is no alignment");
        let found = self.heap().alloc(as_u64(len_bytes), as_u64(align_bytes));
        found.unwrap_or_else(|| {
            panic!("guest memory is used up: no {len_bytes} bytes aligned to {align_bytes} left")
        })
    }

    /// Gives back what [`GuestRam::alloc`] returned.
    #[track_caller]
    pub fn free(&self, addr: GuestAddress) {
        assert!(self.try_free(addr), "{:#x} was not allocated", addr.0);
    }

    /// As [`GuestRam::free`]; returns whether it was allocated.
    pub(crate) fn try_free(&self, addr: GuestAddress) -> bool {
        self.heap().free(addr)
    }

    /// How many bytes are allocated.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.heap().taken.values().map(|&len_bytes| len_bytes.max(1)).sum()
    }

    /// Remembers what is allocated now, for [`GuestRam::reset_to`].
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { taken: self.heap().taken.keys().copied().collect() }
    }

    /// Gives back everything that was allocated since `mark`.
    #[track_caller]
    pub fn reset_to(&self, mark: &Mark) {
        let mut heap = self.heap();
        let newer: Vec<u64> =
            heap.taken.keys().copied().filter(|addr| mark.taken.binary_search(addr).is_err()).collect();
        for addr in newer {
            heap.free(GuestAddress(addr));
        }
    }

    /// Copies `bytes` to `addr`.
    #[track_caller]
    pub fn write(&self, addr: GuestAddress, bytes: &[u8]) {
        if let Err(error) = self.memory().write_slice(bytes, addr) {
            panic!("writing {} bytes at {:#x}: {error}", bytes.len(), addr.0);
        }
    }

    /// Copies `len_bytes` bytes from `addr`.
    #[track_caller]
    #[must_use]
    pub fn read(&self, addr: GuestAddress, len_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes];
        if let Err(error) = self.memory().read_slice(&mut bytes, addr) {
            panic!("reading {len_bytes} bytes at {:#x}: {error}", addr.0);
        }
        bytes
    }

    /// Writes a structure to `addr`.
    #[track_caller]
    pub fn write_obj<T: IntoBytes + Immutable>(&self, addr: GuestAddress, value: &T) {
        self.write(addr, value.as_bytes());
    }

    /// Reads a structure from `addr`.
    #[track_caller]
    #[must_use]
    pub fn read_obj<T: FromBytes + IntoBytes>(&self, addr: GuestAddress) -> T {
        let mut value = T::new_zeroed();
        if let Err(error) = self.memory().read_slice(value.as_mut_bytes(), addr) {
            panic!("reading at {:#x}: {error}", addr.0);
        }
        value
    }

    /// Sets `len_bytes` bytes from `addr` on to `byte`.
    #[track_caller]
    pub fn fill(&self, addr: GuestAddress, len_bytes: usize, byte: u8) {
        self.write(addr, &vec![byte; len_bytes]);
    }

    #[track_caller]
    pub(crate) fn load<T: AtomicAccess>(&self, addr: GuestAddress, order: Ordering) -> T {
        match self.memory().load(addr, order) {
            Ok(value) => value,
            Err(error) => panic!("loading from {:#x}: {error}", addr.0),
        }
    }

    #[track_caller]
    pub(crate) fn store<T: AtomicAccess>(&self, value: T, addr: GuestAddress, order: Ordering) {
        if let Err(error) = self.memory().store(value, addr, order) {
            panic!("storing at {:#x}: {error}", addr.0);
        }
    }

    /// The address of `addr` in this process, as vhost-user wants the rings' addresses.
    #[track_caller]
    pub(crate) fn host_address(&self, addr: GuestAddress) -> u64 {
        match self.memory().get_host_address(addr) {
            Ok(pointer) => as_u64(pointer.addr()),
            Err(error) => panic!("{:#x} is no guest memory: {error}", addr.0),
        }
    }

    /// The first address past the last region.
    #[must_use]
    pub fn end(&self) -> GuestAddress {
        let last = self.memory().iter().map(|region| region.last_addr().0).max().unwrap_or(0);
        GuestAddress(last + 1)
    }

    fn heap(&self) -> MutexGuard<'_, Heap> {
        // A test that panicked elsewhere leaves the maps whole: nothing in here panics half-way.
        self.inner.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was allocated at some moment, see [`GuestRam::mark`].
#[derive(Clone, Debug)]
pub struct Mark {
    taken: Vec<u64>,
}

/// First fit over each region's free ranges (start to length); neighbours grow together again.
struct Heap {
    regions: Vec<Region>,
    /// What is allocated: start to the length asked for.
    taken: BTreeMap<u64, u64>,
}

struct Region {
    base: u64,
    end: u64,
    free: BTreeMap<u64, u64>,
}

impl Heap {
    fn new(regions: &[(GuestAddress, usize)]) -> Self {
        let regions = regions
            .iter()
            .map(|&(base, len_bytes)| Region {
                base: base.0,
                end: base.0 + as_u64(len_bytes),
                free: BTreeMap::from([(base.0, as_u64(len_bytes))]),
            })
            .collect();
        Self { regions, taken: BTreeMap::new() }
    }

    fn alloc(&mut self, len_bytes: u64, align_bytes: u64) -> Option<GuestAddress> {
        // An empty buffer still gets an address of its own.
        let wanted = len_bytes.max(1);
        for region in &mut self.regions {
            let fit = region.free.iter().find_map(|(&start, &len)| {
                let aligned = start.checked_next_multiple_of(align_bytes)?;
                (aligned.checked_add(wanted)? <= start + len).then_some((start, len, aligned))
            });
            let Some((start, len, aligned)) = fit else { continue };
            region.free.remove(&start);
            if aligned > start {
                region.free.insert(start, aligned - start);
            }
            let rest = start + len - (aligned + wanted);
            if rest > 0 {
                region.free.insert(aligned + wanted, rest);
            }
            self.taken.insert(aligned, len_bytes);
            return Some(GuestAddress(aligned));
        }
        None
    }

    fn free(&mut self, addr: GuestAddress) -> bool {
        let Some(len_bytes) = self.taken.remove(&addr.0) else { return false };
        let (mut start, mut len) = (addr.0, len_bytes.max(1));
        let home = self.regions.iter_mut().find(|r| (r.base..r.end).contains(&start));
        let Some(region) = home else { return false };
        if let Some((&before, &before_len)) = region.free.range(..start).next_back()
            && before + before_len == start
        {
            region.free.remove(&before);
            (start, len) = (before, before_len + len);
        }
        if let Some(after_len) = region.free.remove(&(start + len)) {
            len += after_len;
        }
        region.free.insert(start, len);
        true
    }
}

/// `usize` is 64 bits wide on every host that this runs on.
pub(crate) fn as_u64(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_aligned_disjoint_and_reused() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let ram = GuestRam::with_hole(0x1_0000, 0x1000);
        let mut live: Vec<(u64, u64)> = Vec::new();
        for _ in 0..20_000 {
            if live.len() < 24 && rng.bool() {
                let len = rng.usize(0..3000);
                let align = 1 << rng.u32(0..13);
                let addr = ram.alloc(len, align).0;
                let len = as_u64(len.max(1));
                assert_eq!(addr % as_u64(align), 0);
                for base in [GUEST_BASE.0, GUEST_BASE.0 + 0x1_1000] {
                    let inside = (base..base + 0x1_0000).contains(&addr);
                    assert_eq!(inside, (base..base + 0x1_0000).contains(&(addr + len - 1)));
                }
                assert!(live.iter().all(|&(start, l)| addr + len <= start || start + l <= addr));
                live.push((addr, len));
            } else if !live.is_empty() {
                let (addr, _) = live.swap_remove(rng.usize(0..live.len()));
                ram.free(GuestAddress(addr));
            }
            assert_eq!(ram.used_bytes(), live.iter().map(|&(_, len)| len).sum::<u64>());
        }
        for (addr, _) in live {
            ram.free(GuestAddress(addr));
        }
        // All of both regions is one piece each again.
        assert_eq!(ram.alloc(0x1_0000, 0x1000), GUEST_BASE);
        assert_eq!(ram.alloc(0x1_0000, 0x1000).0, GUEST_BASE.0 + 0x1_1000);
    }

    #[test]
    fn a_mark_frees_what_came_after_it() {
        let ram = GuestRam::new(0x2000);
        let before = ram.alloc(100, 1);
        let mark = ram.mark();
        let after = [ram.alloc(100, 1), ram.alloc(0x1000, 16)];
        ram.reset_to(&mark);
        assert_eq!(ram.used_bytes(), 100);
        assert_eq!(ram.alloc(100, 1), after[0]);
        ram.free(before);
    }

    #[test]
    fn bytes_are_shared_through_the_file_at_the_regions_offset() {
        let ram = GuestRam::with_hole(0x1000, 0x5000);
        let second = GuestAddress(GUEST_BASE.0 + 0x6000);
        ram.write(second, b"in the second region");
        assert_eq!(ram.end(), GuestAddress(second.0 + 0x1000));

        let region = ram.memory().find_region(second).unwrap();
        let file_offset = region.file_offset().unwrap();
        assert_eq!(file_offset.start(), 0x1000);
        let mut found = [0; 20];
        let at = file_offset.start();
        std::os::unix::fs::FileExt::read_exact_at(file_offset.file(), &mut found, at).unwrap();
        assert_eq!(&found, b"in the second region");
        assert_eq!(ram.host_address(second), as_u64(region.as_ptr().addr()));
    }

    #[test]
    #[should_panic(expected = "guest memory is used up")]
    fn using_up_all_memory_panics() {
        let _ = GuestRam::new(0x1000).alloc(0x1001, 1);
    }

    #[test]
    #[should_panic(expected = "was not allocated")]
    fn freeing_twice_panics() {
        let ram = GuestRam::new(0x1000);
        let addr = ram.alloc(1, 1);
        ram.free(addr);
        ram.free(addr);
    }

    #[test]
    #[should_panic(expected = "writing 2 bytes at 0x10000fff")]
    fn writing_outside_panics() {
        GuestRam::new(0x1000).write(GuestAddress(GUEST_BASE.0 + 0xfff), &[0, 0]);
    }
}
