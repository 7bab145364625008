//! Files that are truncated under the threads that have them mapped.
//!
//! `MAPGUARD_SEED` repeats a random test.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]
#![allow(unsafe_code, reason = "a watch is asked for by who owns the mapping")]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_zbd_mapguard::{Alarm, MapGuard};
use vm_memory::{Bytes, FileOffset, MmapRegion, ReadVolatile, VolatileMemory};

/// A file, its mapping, and the guard, which goes first.
struct Watched {
    guard: MapGuard,
    mapping: MmapRegion,
    file: File,
}

fn memfd(len_bytes: usize) -> File {
    let file = File::from(memfd_create("shared", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len_bytes.try_into().unwrap()).unwrap();
    file
}

fn map(file: &File, len_bytes: usize) -> MmapRegion {
    MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), len_bytes).unwrap()
}

fn watch(mapping: &MmapRegion) -> MapGuard {
    // SAFETY: the tests drop the guard before the mapping, and touch it by volatile accesses only.
    unsafe { MapGuard::watch(mapping.as_ptr(), mapping.size()) }.unwrap()
}

impl Watched {
    fn new(len_bytes: usize, fill: u8) -> Self {
        let file = memfd(len_bytes);
        let mapping = map(&file, len_bytes);
        mapping.as_volatile_slice().write_slice(&vec![fill; len_bytes], 0).unwrap();
        let guard = watch(&mapping);
        assert!(!guard.is_lost() && !is_readable(guard.lost_fd()));
        Self { guard, mapping, file }
    }

    fn read(&self, at: usize) -> u8 {
        self.mapping.as_volatile_slice().read_obj(at).unwrap()
    }

    fn write(&self, at: usize, value: u8) {
        self.mapping.as_volatile_slice().write_obj(value, at).unwrap();
    }
}

fn is_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn a_truncated_mapping_reads_as_zeros_and_says_so() {
    let lost = Watched::new(16 * 4096, 0xaa);
    let kept = Watched::new(4096, 0xbb);
    assert_eq!((lost.read(0), lost.read(5 * 4096)), (0xaa, 0xaa));
    lost.file.set_len(4 * 4096).unwrap();
    // What is within the file is still the file's.
    assert_eq!(lost.read(4 * 4096 - 1), 0xaa);
    assert!(!lost.guard.is_lost() && !is_readable(lost.guard.lost_fd()));
    assert_eq!(lost.read(5 * 4096 + 7), 0);
    assert!(lost.guard.is_lost() && is_readable(lost.guard.lost_fd()));
    // All of it is zeros now, and goes on as memory.
    assert_eq!((lost.read(0), lost.read(16 * 4096 - 1)), (0, 0));
    lost.write(3, 0x11);
    assert_eq!(lost.read(3), 0x11);
    let mut first = [0; 1];
    std::os::unix::fs::FileExt::read_exact_at(&lost.file, &mut first, 0).unwrap();
    assert_eq!(first, [0xaa], "the file has been written to");

    assert_eq!(kept.read(4095), 0xbb);
    assert!(!kept.guard.is_lost() && !is_readable(kept.guard.lost_fd()));
}

#[test]
fn a_write_is_saved_as_a_read_is() {
    let lost = Watched::new(4 * 4096, 0xaa);
    lost.file.set_len(0).unwrap();
    lost.write(2 * 4096, 0x55);
    assert!(lost.guard.is_lost());
    assert_eq!((lost.read(2 * 4096), lost.read(0)), (0x55, 0));
}

#[test]
fn threads_that_read_and_write_all_go_on() {
    const LEN_BYTES: usize = 64 * 4096;
    let seed = std::env::var("MAPGUARD_SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().unwrap());
    println!("MAPGUARD_SEED={seed}");
    for round in 0..20 {
        let watched = Watched::new(LEN_BYTES, 0xaa);
        let seen = AtomicUsize::new(0);
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            for n in 0..8 {
                let (watched, seen, ended) = (&watched, &seen, &ended);
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed ^ round << 8 ^ n);
                    while !watched.guard.is_lost() || random.u8(..) != 0 {
                        let at = random.usize(..LEN_BYTES);
                        if n % 2 == 0 {
                            watched.write(at, 0xaa);
                        } else {
                            let found = watched.read(at);
                            assert!(found == 0xaa || found == 0, "{found:#x} at {at:#x}");
                            // A zero that does not come from the file is never seen before the loss.
                            if found == 0 {
                                assert!(watched.guard.is_lost());
                            }
                        }
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                    ended.store(true, Ordering::Relaxed);
                });
            }
            while seen.load(Ordering::Relaxed) < 10_000 {
                thread::yield_now();
            }
            assert!(!ended.load(Ordering::Relaxed));
            let mut random = fastrand::Rng::with_seed(seed ^ round);
            watched.file.set_len(random.u64(..64) * 4096).unwrap();
        });
        assert!(watched.guard.is_lost());
    }
}

#[test]
fn guards_come_and_go_on_many_threads() {
    let before = open_fds();
    thread::scope(|scope| {
        for n in 0..4 {
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(n);
                for _ in 0..300 {
                    let pages = random.usize(1..9);
                    let watched = Watched::new(pages * 4096, 0xcc);
                    let at = random.usize(..pages * 4096);
                    let left = random.usize(..=pages);
                    watched.file.set_len((left * 4096).try_into().unwrap()).unwrap();
                    let lost = at >= left * 4096;
                    assert_eq!(watched.read(at), if lost { 0 } else { 0xcc });
                    assert_eq!(watched.guard.is_lost(), lost);
                    assert_eq!(is_readable(watched.guard.lost_fd()), lost);
                }
            });
        }
    });
    // Other tests of this process have theirs; a leak would be thousands.
    assert!(open_fds() < before + 500);
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn mappings_may_share_an_alarm() {
    let alarm = Alarm::new().unwrap();
    let files = [memfd(4096), memfd(4096)];
    let mappings = files.each_ref().map(|file| map(file, 4096));
    let guards = mappings.each_ref().map(|mapping| {
        // SAFETY: as above.
        unsafe { MapGuard::watch_with(mapping.as_ptr(), mapping.size(), &alarm) }.unwrap()
    });
    files[1].set_len(0).unwrap();
    assert!(!is_readable(&alarm));
    mappings[1].as_volatile_slice().write_obj(1_u8, 0).unwrap();
    assert!(is_readable(&alarm) && is_readable(guards[0].lost_fd()));
    assert_eq!(guards.each_ref().map(MapGuard::is_lost), [false, true]);
}

/// What reads a file into the mapping is told by an error, and nothing is lost by that.
#[test]
fn the_kernel_s_own_accesses_fail_with_efault() {
    let watched = Watched::new(4096, 0xaa);
    watched.file.set_len(0).unwrap();
    let error = File::open("/dev/zero").unwrap().read_volatile(&mut watched.mapping.as_volatile_slice());
    let Err(vm_memory::VolatileMemoryError::IOError(error)) = error else { panic!("{error:?}") };
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    assert!(!watched.guard.is_lost());
    assert_eq!(watched.read(0), 0);
    assert!(watched.guard.is_lost());
}

#[test]
fn what_is_no_mapping_is_refused() {
    let watched = Watched::new(4096, 0);
    let addr = watched.mapping.as_ptr();
    for (addr, len_bytes) in [
        (addr, 0),
        (addr.wrapping_add(1), 4095),
        (addr, usize::MAX - 10),
        (addr, usize::MAX - 8191),
        (std::ptr::null_mut(), 4096),
    ] {
        // SAFETY: refused, as this test shows.
        let error = unsafe { MapGuard::watch(addr, len_bytes) }.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
