//! A SIGBUS that is not the guard's does what it did before. Each case dies in a process of its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]
#![allow(unsafe_code, reason = "handlers are installed, and mappings watched by who owns them")]

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::thread;

use rustix::fs::{MemfdFlags, memfd_create};
use virtio_zbd_mapguard::MapGuard;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// Set in the process that is to die.
const CHILD: &str = "MAPGUARD_CHILD";

/// Runs `body` in a process of its own; how that ended.
fn in_child(test: &str, body: impl FnOnce()) -> ExitStatus {
    if std::env::var_os(CHILD).is_some() {
        body();
        std::process::exit(0);
    }
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--test-threads", "1", "--nocapture"])
        .env(CHILD, "1")
        .status()
        .unwrap()
}

fn mapped(len_bytes: u64) -> (File, MmapRegion) {
    let file = File::from(memfd_create("shared", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len_bytes).unwrap();
    let offset = FileOffset::new(file.try_clone().unwrap(), 0);
    (file, MmapRegion::from_file(offset, len_bytes.try_into().unwrap()).unwrap())
}

fn watch(mapping: &MmapRegion) -> MapGuard {
    // SAFETY: the mapping outlives the guard here, and is touched by volatile accesses only.
    unsafe { MapGuard::watch(mapping.as_ptr(), mapping.size()) }.unwrap()
}

fn touch(mapping: &MmapRegion) -> u8 {
    mapping.as_volatile_slice().read_obj(0).unwrap()
}

#[test]
fn a_mapping_that_nobody_watches_ends_the_process() {
    let status = in_child("a_mapping_that_nobody_watches_ends_the_process", || {
        let (_watched, guarded) = mapped(4096);
        let _guard = watch(&guarded);
        let (file, plain) = mapped(4096);
        file.set_len(0).unwrap();
        touch(&plain);
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn a_dropped_guard_guards_no_more() {
    let status = in_child("a_dropped_guard_guards_no_more", || {
        let (file, mapping) = mapped(4096);
        drop(watch(&mapping));
        file.set_len(0).unwrap();
        touch(&mapping);
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn another_thread_s_fault_ends_the_process_too() {
    let status = in_child("another_thread_s_fault_ends_the_process_too", || {
        let (_file, guarded) = mapped(4096);
        let _guard = watch(&guarded);
        thread::spawn(|| {
            let (file, plain) = mapped(4096);
            file.set_len(0).unwrap();
            touch(&plain)
        })
        .join()
        .unwrap();
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn without_any_handler_before_it_ends_the_process() {
    let status = in_child("without_any_handler_before_it_ends_the_process", || {
        // SAFETY: the default is a disposition for every signal.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        let (file, mapping) = mapped(4096);
        let guard = watch(&mapping);
        file.set_len(0).unwrap();
        assert_eq!((touch(&mapping), guard.is_lost()), (0, true));
        let (file, plain) = mapped(4096);
        file.set_len(0).unwrap();
        touch(&plain);
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn a_signal_that_was_sent_ends_the_process() {
    let status = in_child("a_signal_that_was_sent_ends_the_process", || {
        let (_file, mapping) = mapped(4096);
        let _guard = watch(&mapping);
        send();
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn a_signal_that_was_ignored_still_is() {
    let status = in_child("a_signal_that_was_ignored_still_is", || {
        // SAFETY: SIG_IGN is a disposition for SIGBUS.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_IGN) };
        let (file, mapping) = mapped(4096);
        let guard = watch(&mapping);
        send();
        file.set_len(0).unwrap();
        assert_eq!((touch(&mapping), guard.is_lost()), (0, true));
        std::process::exit(7);
    });
    assert_eq!(status.code(), Some(7), "{status}");
}

fn send() {
    // SAFETY: no memory is involved.
    unsafe { libc::raise(libc::SIGBUS) };
}

#[test]
fn the_handler_before_gets_what_is_not_ours() {
    static PLAIN: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

    extern "C" fn before(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel's siginfo, handed on.
        let told = unsafe { &*info };
        // SAFETY: SIGBUS of the kernel has an address.
        let address = unsafe { told.si_addr() };
        let right = signal == libc::SIGBUS && address.cast() == PLAIN.load(Ordering::SeqCst);
        // SAFETY: ends the process, from a handler, too.
        unsafe { libc::_exit(if right { 42 } else { 43 }) };
    }

    let status = in_child("the_handler_before_gets_what_is_not_ours", || {
        // SAFETY: all zeros is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = before as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: a handler of the three-argument form, as the flag says.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
        let (file, mapping) = mapped(4096);
        let guard = watch(&mapping);
        file.set_len(0).unwrap();
        assert_eq!((touch(&mapping), guard.is_lost()), (0, true));
        let (file, plain) = mapped(4096);
        PLAIN.store(plain.as_ptr(), Ordering::SeqCst);
        file.set_len(0).unwrap();
        touch(&plain);
    });
    assert_eq!(status.code(), Some(42), "{status}");
}
