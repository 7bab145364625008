//! The mapping, and the pointers into it: all that is unsafe in this crate.

#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU16;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use stable_deref_trait::StableDeref;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use super::heap::{Freed, Heap};
use super::{ARENA_BYTES, ArenaError, GUEST_BASE, PAGE_BYTES, USER_BASE};

/// Runs of at least so many bytes give their memory back to the system when they are freed.
const GIVE_BACK_BYTES: usize = 256 << 10;

/// What [`Hal::share`] returns when the arena is exhausted: no back-end has memory there.
const NOWHERE: PhysAddr = 0;

/// Memory for rings and requests, for drivers on a [`VhostUserTransport`](crate::client::VhostUserTransport).
///
/// Buffers that lie in the arena ([`ArenaBuffer`]) are shared where they are. Any other memory is copied: into
/// the arena when it is shared, and back, if the device may have written to it, when it is unshared.
///
/// If the arena (4 GiB) is exhausted, rings cannot be made (the driver gets `DmaError`), and
/// [`share`](Hal::share), which cannot fail, gives a guest address at which no back-end has memory: the
/// back-end fails the request, or the ring. It is logged.
#[derive(Debug)]
pub struct ArenaHal;

/// A buffer in the arena: a device reads and writes it in place, without a copy.
///
/// It is aligned to its length, rounded up to a power of two, or to a page if that is less. The memory of a
/// buffer that was in use when a connection was lost is not reused after it is dropped.
pub struct ArenaBuffer {
    bytes: NonNull<[u8]>,
}

/// A memfd and its mapping. It is never unmapped: pointers into it have no lifetime.
pub(crate) struct Arena {
    memfd: OwnedFd,
    base: NonNull<u8>,
    len_bytes: usize,
    heap: Mutex<Heap>,
}

/// The process's arena, made at the first call.
///
/// # Errors
///
/// It could not be made then.
pub(crate) fn arena() -> Result<&'static Arena, ArenaError> {
    static ARENA: OnceLock<Result<Arena, ArenaError>> = OnceLock::new();
    ARENA.get_or_init(|| Arena::new(ARENA_BYTES)).as_ref().map_err(|error| *error)
}

impl Arena {
    /// An arena of so many bytes, whole pages.
    pub(super) fn new(len_bytes: usize) -> Result<Self, ArenaError> {
        let failed = |action| move |errno: Errno| ArenaError { action, errno };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = memfd_create("vhost-user-arena", flags).map_err(failed("make a memfd"))?;
        let file_bytes = u64::try_from(len_bytes).unwrap_or(u64::MAX);
        ftruncate(&memfd, file_bytes).map_err(failed("set the memfd's size"))?;
        // A back-end must not be able to take pages from under us: touching them would be SIGBUS.
        fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(failed("seal the memfd"))?;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        // SAFETY: the system chooses the address; no existing mapping is replaced.
        let base = unsafe { mmap(ptr::null_mut(), len_bytes, prot, flags, &memfd, 0) }
            .map_err(failed("map the memfd"))?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(failed("map the memfd")(Errno::NOMEM))?;
        Ok(Self { memfd, base, len_bytes, heap: Mutex::new(Heap::new(len_bytes)) })
    }

    /// The file, to be given to a back-end.
    pub(crate) fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    /// How many bytes it has.
    pub(crate) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// A connection was lost while its back-end had rings: what is in use now is never used again.
    pub(crate) fn quarantine(&self) {
        self.heap().lose();
    }

    /// The user address that back-ends know for a guest address. None if it is not in the arena.
    pub(crate) fn user_addr(&self, guest_addr: PhysAddr) -> Option<u64> {
        let offset = self.offset_of(guest_addr)?;
        USER_BASE.checked_add(u64::try_from(offset).ok()?)
    }

    /// Two bytes at a guest address, which a device may change at any time. None if they are not in the arena,
    /// or not aligned.
    pub(crate) fn word(&self, guest_addr: PhysAddr) -> Option<&AtomicU16> {
        let offset = self.offset_of(guest_addr)?;
        if !offset.is_multiple_of(2) {
            return None;
        }
        let at = self.at(offset).cast::<u16>();
        // SAFETY: the address is aligned, and in the mapping, which is never removed. Whoever else writes
        // there is a device, whose accesses no rule of this language covers, or a driver that owns a ring, which
        // it reads and writes atomically where a device does.
        Some(unsafe { AtomicU16::from_ptr(at.as_ptr()) })
    }

    /// Takes zeroed pages.
    fn allocate_pages(&self, pages: usize) -> Option<usize> {
        let offset = self.heap().allocate_pages(pages)?;
        self.zero(offset, pages.max(1) * PAGE_BYTES);
        Some(offset)
    }

    /// Takes zeroed bytes.
    fn allocate(&self, len_bytes: usize) -> Option<usize> {
        let offset = self.heap().allocate(len_bytes)?;
        self.zero(offset, len_bytes);
        Some(offset)
    }

    /// Takes memory back. False if it was not in use: somebody has freed it twice.
    fn free(&self, offset: usize) -> bool {
        let freed = self.heap().free(offset);
        match freed {
            Ok(Freed::Block) => {}
            Ok(Freed::Pages(bytes)) => {
                if bytes.len() >= GIVE_BACK_BYTES {
                    self.give_back(&bytes);
                }
                self.heap().reuse(&bytes);
            }
            Ok(Freed::Quarantined(bytes)) => {
                if bytes.len() >= PAGE_BYTES {
                    self.give_back(&bytes);
                }
            }
            Err(_) => {
                log::error!("memory at offset {offset:#x} of the arena was freed, which is not in use");
                return false;
            }
        }
        true
    }

    /// Gives the memory of pages back to the system. They read as zeros afterwards.
    fn give_back(&self, bytes: &Range<usize>) {
        let (Ok(start), Ok(length)) = (u64::try_from(bytes.start), u64::try_from(bytes.len())) else {
            return;
        };
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(errno) = fallocate(&self.memfd, mode, start, length) {
            log::debug!("{length} bytes of the arena are not given back to the system: {errno}");
        }
    }

    /// Makes memory that a device writes or reads of `buffer`: the arena's own is used as it is.
    ///
    /// # Safety
    ///
    /// As for [`Hal::share`].
    unsafe fn share(&self, buffer: NonNull<[u8]>, direction: BufferDirection) -> Option<PhysAddr> {
        if let Some(offset) = self.find(buffer) {
            return guest_addr(offset);
        }
        let offset = match direction {
            // What the device does not write must not be what somebody else has left there.
            BufferDirection::DeviceToDriver => self.allocate(buffer.len())?,
            BufferDirection::DriverToDevice | BufferDirection::Both => {
                let offset = self.heap().allocate(buffer.len())?;
                let (from, to) = (buffer.cast::<u8>(), self.at(offset));
                // SAFETY: the caller says that `buffer` is valid and that nobody writes to it now; the
                // arena has just given as many bytes at `to`, and `buffer` is not in the arena.
                unsafe { from.copy_to_nonoverlapping(to, buffer.len()) };
                offset
            }
        };
        guest_addr(offset)
    }

    /// Ends what [`share`](Self::share) began.
    ///
    /// # Safety
    ///
    /// As for [`Hal::unshare`].
    unsafe fn unshare(&self, addr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        if addr == NOWHERE || self.find(buffer).is_some() {
            return;
        }
        let Some(offset) = self.offset_of(addr) else {
            log::error!("guest address {addr:#x} was unshared, which is not in the arena");
            return;
        };
        if direction != BufferDirection::DriverToDevice {
            let (from, to) = (self.at(offset), buffer.cast::<u8>());
            // SAFETY: `share` has made at least `buffer.len()` bytes at `addr`, which the caller passes on as
            // it was; `buffer` is valid, nobody else touches it now, and it is not in the arena.
            unsafe { from.copy_to_nonoverlapping(to, buffer.len()) };
        }
        self.free(offset);
    }

    fn zero(&self, offset: usize, len_bytes: usize) {
        let at = self.at(offset);
        // SAFETY: the caller has just taken these bytes from the heap: they are in the mapping, and nobody
        // else in this process has them.
        unsafe { at.write_bytes(0, len_bytes) };
    }

    /// Where an offset is, which must come from the heap or from [`offset_of`](Self::offset_of).
    fn at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset < self.len_bytes);
        // SAFETY: offsets are below the mapping's length, which fits in an isize.
        unsafe { self.base.add(offset) }
    }

    /// The offset of a buffer, if it is in the arena.
    fn find(&self, buffer: NonNull<[u8]>) -> Option<usize> {
        let offset = buffer.cast::<u8>().addr().get().checked_sub(self.base.addr().get())?;
        (offset < self.len_bytes).then_some(offset)
    }

    /// The offset of a guest address, if it is in the arena.
    fn offset_of(&self, guest_addr: PhysAddr) -> Option<usize> {
        let offset = usize::try_from(guest_addr.checked_sub(GUEST_BASE)?).ok()?;
        (offset < self.len_bytes).then_some(offset)
    }

    fn heap(&self) -> MutexGuard<'_, Heap> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// SAFETY: `base` is an address that stays mapped; all else in it may be sent.
unsafe impl Send for Arena {}

// SAFETY: who may touch which bytes is decided by `heap`, behind its lock.
unsafe impl Sync for Arena {}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("len_bytes", &self.len_bytes).finish_non_exhaustive()
    }
}

fn guest_addr(offset: usize) -> Option<PhysAddr> {
    GUEST_BASE.checked_add(u64::try_from(offset).ok()?)
}

// SAFETY: `dma_alloc` gives pages of a mapping that is never removed, aligned and zeroed, which the heap has
// given to nobody else; `share` and `unshare` copy what they are given, or leave it where it is.
unsafe impl Hal for ArenaHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let none = (NOWHERE, NonNull::dangling());
        let Ok(arena) = arena().inspect_err(|error| log::error!("{error}")) else {
            return none;
        };
        let Some(offset) = arena.allocate_pages(pages) else {
            log::error!("the arena has no {pages} pages left for a ring");
            return none;
        };
        guest_addr(offset).map_or(none, |addr| (addr, arena.at(offset)))
    }

    unsafe fn dma_dealloc(addr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        let freed = arena().ok().and_then(|arena| Some(arena.free(arena.offset_of(addr)?)));
        if freed == Some(true) { 0 } else { -1 }
    }

    unsafe fn mmio_phys_to_virt(addr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("{addr:#x} cannot be a device's registers: there are none behind a socket")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let shared = arena().ok().and_then(|arena| {
            // SAFETY: the caller keeps the same promises.
            unsafe { arena.share(buffer, direction) }
        });
        shared.unwrap_or_else(|| {
            log::error!("the arena has no room for a copy of {} bytes: the request will fail", buffer.len());
            NOWHERE
        })
    }

    unsafe fn unshare(addr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        if let Ok(arena) = arena() {
            // SAFETY: the caller keeps the same promises.
            unsafe { arena.unshare(addr, buffer, direction) };
        }
    }
}

impl ArenaHal {
    /// How many bytes of the arena were given back and are never used again, because they were in use when a
    /// connection was lost.
    #[must_use]
    pub fn quarantined_bytes() -> usize {
        arena().map_or(0, |arena| arena.heap().quarantined_bytes())
    }
}

impl ArenaBuffer {
    /// A buffer of so many zeros. None if the arena has no room, or cannot be made (which is logged).
    #[must_use]
    pub fn zeroed(len_bytes: usize) -> Option<Self> {
        let arena = arena().inspect_err(|error| log::error!("{error}")).ok()?;
        let offset = arena.allocate(len_bytes)?;
        Some(Self { bytes: NonNull::slice_from_raw_parts(arena.at(offset), len_bytes) })
    }
}

impl Drop for ArenaBuffer {
    fn drop(&mut self) {
        if let Ok(arena) = arena()
            && let Some(offset) = arena.find(self.bytes)
        {
            arena.free(offset);
        }
    }
}

impl Deref for ArenaBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are in the mapping, initialised, and this buffer's alone until it is dropped.
        unsafe { self.bytes.as_ref() }
    }
}

impl DerefMut for ArenaBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed for as long.
        unsafe { self.bytes.as_mut() }
    }
}

// SAFETY: the bytes are in the arena, not in the value: they stay when it moves.
unsafe impl StableDeref for ArenaBuffer {}

// SAFETY: it owns its bytes; they may be used on any thread.
unsafe impl Send for ArenaBuffer {}

// SAFETY: `&ArenaBuffer` gives `&[u8]` and nothing else.
unsafe impl Sync for ArenaBuffer {}

impl fmt::Debug for ArenaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArenaBuffer").field("len_bytes", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use rustix::fs::fstat;

    use super::*;

    const TO_DEVICE: BufferDirection = BufferDirection::DriverToDevice;
    const TO_DRIVER: BufferDirection = BufferDirection::DeviceToDriver;

    fn small_arena(pages: usize) -> Arena {
        Arena::new(pages * PAGE_BYTES).unwrap()
    }

    /// What a back-end sees at a guest address: it has the file.
    fn device_reads(arena: &Arena, addr: PhysAddr, len_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes];
        assert_eq!(rustix::io::pread(&arena.memfd, &mut bytes, addr - GUEST_BASE).unwrap(), len_bytes);
        bytes
    }

    fn device_writes(arena: &Arena, addr: PhysAddr, bytes: &[u8]) {
        assert_eq!(rustix::io::pwrite(&arena.memfd, bytes, addr - GUEST_BASE).unwrap(), bytes.len());
    }

    fn share(arena: &Arena, buffer: &mut [u8], direction: BufferDirection) -> Option<PhysAddr> {
        // SAFETY: `buffer` is a live slice that nobody else uses.
        unsafe { arena.share(NonNull::from(buffer), direction) }
    }

    fn unshare(arena: &Arena, addr: PhysAddr, buffer: &mut [u8], direction: BufferDirection) {
        // SAFETY: as above; each test passes on what `share` has given.
        unsafe { arena.unshare(addr, NonNull::from(buffer), direction) };
    }

    #[test]
    fn pages_are_zeroed_though_others_have_written_there() {
        let arena = small_arena(100);
        for pages in [1, 2, 70] {
            for _ in 0..2 {
                let offset = arena.allocate_pages(pages).unwrap();
                let addr = guest_addr(offset).unwrap();
                assert_eq!(device_reads(&arena, addr, pages * PAGE_BYTES), vec![0; pages * PAGE_BYTES]);
                device_writes(&arena, addr, &vec![0xee; pages * PAGE_BYTES]);
                assert!(arena.free(offset));
                assert!(!arena.free(offset));
            }
        }
    }

    #[test]
    fn memory_is_taken_when_touched_and_given_back_when_freed() {
        let arena = small_arena(1 << 20);
        let taken_bytes = || u64::try_from(fstat(&arena.memfd).unwrap().st_blocks).unwrap() * 512;
        assert_eq!(taken_bytes(), 0);
        let large = arena.allocate(1 << 20).unwrap();
        assert_eq!(taken_bytes(), 1 << 20);
        assert!(arena.free(large));
        assert_eq!(taken_bytes(), 0);
        let page = arena.allocate_pages(1).unwrap();
        arena.quarantine();
        assert!(arena.free(page));
        assert_eq!(taken_bytes(), 0);
    }

    #[test]
    fn the_file_cannot_be_cut_short_by_a_back_end() {
        let arena = small_arena(4);
        for len_bytes in [0, 3 * 4096, 5 * 4096] {
            assert_eq!(ftruncate(&arena.memfd, len_bytes), Err(Errno::PERM));
        }
        assert_eq!(fcntl_add_seals(&arena.memfd, SealFlags::FUTURE_WRITE), Err(Errno::PERM));
    }

    #[test]
    fn other_memory_is_copied_there_and_back() {
        let arena = small_arena(16);
        for len_bytes in [1, 16, 64, 65, 2048, 2049, 4096, 10_000] {
            // Leave something behind where the copies will be.
            let mut before = vec![0xaa; len_bytes];
            let dirty = share(&arena, &mut before, TO_DEVICE).unwrap();
            assert_eq!(device_reads(&arena, dirty, len_bytes), before);
            device_writes(&arena, dirty, &vec![0xbb; len_bytes]);
            unshare(&arena, dirty, &mut before, TO_DEVICE);
            assert_eq!(before, vec![0xaa; len_bytes], "a device's write to what it may only read");

            let mut filled = vec![0xcc; len_bytes];
            let addr = share(&arena, &mut filled, TO_DRIVER).unwrap();
            assert_eq!(addr, dirty, "the same place is used again");
            assert_eq!(device_reads(&arena, addr, len_bytes), vec![0; len_bytes]);
            device_writes(&arena, addr, &vec![0xdd; len_bytes - len_bytes / 2]);
            assert_eq!(filled, vec![0xcc; len_bytes]);
            unshare(&arena, addr, &mut filled, TO_DRIVER);
            let (written, rest) = filled.split_at(len_bytes - len_bytes / 2);
            assert!(written.iter().all(|byte| *byte == 0xdd));
            assert!(rest.iter().all(|byte| *byte == 0), "old contents have leaked");

            let mut both = vec![0x11; len_bytes];
            let addr = share(&arena, &mut both, BufferDirection::Both).unwrap();
            assert_eq!(device_reads(&arena, addr, len_bytes), both);
            device_writes(&arena, addr, &[0x22]);
            unshare(&arena, addr, &mut both, BufferDirection::Both);
            assert_eq!((both[0], both.get(1).copied().unwrap_or(0x11)), (0x22, 0x11));
        }
        assert_eq!(arena.heap().allocate_pages(16), Some(0), "something was not freed");
    }

    #[test]
    fn memory_of_the_arena_is_shared_where_it_is() {
        let arena = small_arena(4);
        let offset = arena.allocate(4096).unwrap();
        let inside = NonNull::slice_from_raw_parts(arena.at(offset + 512), 1024);
        for direction in [TO_DEVICE, TO_DRIVER, BufferDirection::Both] {
            // SAFETY: the bytes are mapped, and nobody uses them.
            let addr = unsafe { arena.share(inside, direction) };
            assert_eq!(addr, guest_addr(offset + 512));
            // SAFETY: as above.
            unsafe { arena.unshare(addr.unwrap(), inside, direction) };
        }
        assert!(arena.free(offset), "unsharing has freed what it must not");
    }

    #[test]
    fn an_exhausted_arena_says_so_and_recovers() {
        let arena = small_arena(4);
        let all = arena.allocate_pages(4).unwrap();
        assert_eq!(arena.allocate_pages(1), None);
        let mut buffer = [7; 16];
        assert_eq!(share(&arena, &mut buffer, TO_DRIVER), None);
        assert_eq!(share(&arena, &mut buffer, TO_DEVICE), None);
        // What the driver does with a buffer that could not be shared.
        unshare(&arena, NOWHERE, &mut buffer, TO_DRIVER);
        assert_eq!(buffer, [7; 16]);
        assert!(arena.free(all));
        assert!(share(&arena, &mut buffer, TO_DRIVER).is_some());
    }

    #[test]
    fn what_was_in_use_at_a_loss_is_never_used_again() {
        let arena = small_arena(8);
        let pages = arena.allocate_pages(2).unwrap();
        let mut shared = [1; 100];
        let bounce = share(&arena, &mut shared, TO_DRIVER).unwrap();
        let block_page = usize::try_from(bounce - GUEST_BASE).unwrap() / PAGE_BYTES;
        let freed_before = arena.allocate_pages(1).unwrap();
        assert!(arena.free(freed_before));

        arena.quarantine();
        let after = arena.allocate_pages(1).unwrap();
        assert_eq!(after, freed_before);
        // The request is given back to its owner, with what the device has written until now.
        device_writes(&arena, bounce, &[9; 100]);
        unshare(&arena, bounce, &mut shared, TO_DRIVER);
        assert_eq!(shared, [9; 100]);
        assert!(arena.free(pages));
        assert!(arena.free(after));
        assert_eq!(arena.heap().quarantined_bytes(), 2 * PAGE_BYTES + 128);

        // The lost back-end goes on writing; everybody else gets other memory.
        let quarantine =
            [pages..pages + 2 * PAGE_BYTES, block_page * PAGE_BYTES..block_page * PAGE_BYTES + 128];
        device_writes(&arena, guest_addr(pages).unwrap(), &[0xff; 2 * PAGE_BYTES]);
        let mut given = Vec::new();
        for len_bytes in [4096, 128, 64] {
            while let Some(offset) = arena.allocate(len_bytes) {
                let apart = |bytes: &Range<usize>| offset + len_bytes <= bytes.start || bytes.end <= offset;
                assert!(quarantine.iter().all(apart), "{len_bytes} bytes at {offset:#x}");
                given.push((offset, len_bytes));
            }
        }
        // 8 pages, less 2, less the blocks' page; of that, 31 of 32 blocks of 128 bytes.
        let count = |len_bytes| given.iter().filter(|(_, found)| *found == len_bytes).count();
        assert_eq!((count(4096), count(128), count(64)), (5, 31, 0));
    }

    #[test]
    fn addresses_are_made_up_and_checked() {
        let arena = small_arena(2);
        assert_eq!(arena.user_addr(GUEST_BASE), Some(USER_BASE));
        assert_eq!(arena.user_addr(GUEST_BASE + 0x1fff), Some(USER_BASE + 0x1fff));
        for outside in [0, GUEST_BASE - 1, GUEST_BASE + 0x2000, u64::MAX] {
            assert_eq!(arena.user_addr(outside), None);
            assert!(arena.word(outside).is_none());
        }
        device_writes(&arena, GUEST_BASE + 0x102, &0x1234_u16.to_ne_bytes());
        assert_eq!(arena.word(GUEST_BASE + 0x102).unwrap().load(Ordering::Acquire), 0x1234);
        assert!(arena.word(GUEST_BASE + 0x101).is_none());
    }

    #[test]
    fn buffers_are_aligned_and_stay_where_they_are() {
        for (len_bytes, align) in [(0, 64), (1, 64), (512, 512), (513, 1024), (4096, 4096), (1 << 20, 4096)] {
            let mut buffer = ArenaBuffer::zeroed(len_bytes).unwrap();
            let at = buffer.as_ptr().addr();
            assert_eq!((buffer.len(), at % align), (len_bytes, 0));
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(0x77);
            let moved = std::thread::spawn(move || buffer).join().unwrap();
            assert_eq!(moved.as_ptr().addr(), at);
            assert!(moved.iter().all(|byte| *byte == 0x77));
        }
        assert!(ArenaBuffer::zeroed(usize::MAX).is_none());
        assert!(ArenaBuffer::zeroed(ARENA_BYTES + 1).is_none());
    }
}
