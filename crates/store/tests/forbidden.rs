//! Where io_uring is forbidden, as it is in many containers, the other engine stands in.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests may")]
#![allow(unsafe_code)]

mod common;

use std::io;

use common::LaneExt;
use virtio_zbd_store::{EngineChoice, RawStore, Store};

/// From now on this thread, and no other, gets `errno` from io_uring_setup.
fn forbid_io_uring(errno: i32) {
    const LOAD_SYSCALL_NUMBER: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let mut program = [
        step(LOAD_SYSCALL_NUMBER, 0, 0, 0),
        step(JUMP_IF_EQUAL, 0, 1, setup),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: plain numbers, as prctl(2) has them.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the program outlives the call, which copies it; its length is right.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

#[test]
fn the_other_engine_stands_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("raw");
    std::fs::write(&path, vec![5; 1 << 20]).unwrap();
    for errno in [libc::EPERM, libc::ENOSYS, libc::ENOMEM] {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                forbid_io_uring(errno);
                let store = RawStore::open(&path, false).unwrap();
                let refused = store.open_lane(EngineChoice::IoUring).unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(errno));
                let mut lane = store.open_lane(EngineChoice::Auto).unwrap();
                assert_eq!(lane.engine_name(), "pread/pwrite");
                lane.write_now(512, &[errno.to_le_bytes()[0]; 512]).unwrap();
                assert_eq!(lane.read_now(512, 512).unwrap(), [errno.to_le_bytes()[0]; 512]);
            });
        });
    }
    // Other faults are no reason to be slow for ever.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            forbid_io_uring(libc::EMFILE);
            let store = RawStore::open(&path, false).unwrap();
            let refused = store.open_lane(EngineChoice::Auto).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EMFILE));
        });
    });
}
