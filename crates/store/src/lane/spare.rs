//! Making rings, each for just what a lane does with it, and keeping some for later.
//!
//! What a ring does is not seen by a filter of system calls. So a ring takes no other operations than the lanes', and a process
//! that confines itself makes its rings before and needs no way to make more.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode};

/// Entries of the submission queue. More operations than this are fine: a full queue is submitted.
const ENTRIES: u32 = 256;

/// All that lanes do.
const OPERATIONS: [u8; 7] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
    opcode::AsyncCancel::CODE,
];

struct Spare {
    rings: Vec<IoUring>,
    /// How many are kept, in use or not.
    count: usize,
}

static SPARE: Mutex<Spare> = Mutex::new(Spare { rings: Vec::new(), count: 0 });

/// Makes rings for `count` lanes, for a process that can't make any later, such as one in a sandbox. They are used by the next
/// lanes of any store and come back when those are dropped.
///
/// # Errors
/// As for [`EngineChoice::IoUring`](crate::EngineChoice::IoUring): there is no io_uring, or it is not for us.
pub fn reserve_rings(count: usize) -> io::Result<()> {
    spare().reserve(count)
}

/// A ring with nothing in it.
pub(super) fn take() -> io::Result<IoUring> {
    let ring = spare().rings.pop();
    ring.map_or_else(make, Ok)
}

/// Takes a ring back, in which nothing is left.
pub(super) fn give_back(ring: IoUring) {
    spare().give_back(ring);
}

fn spare() -> MutexGuard<'static, Spare> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spare {
    fn reserve(&mut self, count: usize) -> io::Result<()> {
        while self.count < count {
            self.rings.push(make()?);
            self.count += 1;
        }
        Ok(())
    }

    fn give_back(&mut self, ring: IoUring) {
        if self.rings.len() < self.count {
            self.rings.push(ring);
        }
    }
}

fn make() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_r_disabled().setup_coop_taskrun().setup_taskrun_flag();
    let ring = match builder.build(ENTRIES) {
        // Before 5.19 the last two flags are unknown.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().setup_r_disabled().build(ENTRIES)?
        }
        other => other?,
    };
    if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    let submitter = ring.submitter();
    if let Err(error) = submitter.register_restrictions(&mut OPERATIONS.map(Restriction::sqe_op)) {
        // Kernels that have what is asked for above have this, too.
        log::warn!("io_uring can't be restricted to what is used of it: {error}");
    }
    submitter.register_enable_rings()?;
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_does_what_lanes_do_and_nothing_else() {
        let mut ring = make().unwrap();
        let result = |ring: &mut IoUring, entry: io_uring::squeue::Entry| {
            // SAFETY: the entries below point to nothing.
            #[allow(unsafe_code)]
            unsafe { ring.submission().push(&entry) }.unwrap();
            ring.submit_and_wait(1).unwrap();
            ring.completion().next().unwrap().result()
        };
        let cancel = opcode::AsyncCancel::new(7).build();
        assert_eq!(result(&mut ring, cancel), -libc::ENOENT);
        for entry in [
            opcode::Nop::new().build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0).build(),
            opcode::Close::new(io_uring::types::Fd(0)).build(),
            opcode::AsyncCancel::new(7).build().flags(io_uring::squeue::Flags::ASYNC),
        ] {
            assert_eq!(result(&mut ring, entry), -libc::EACCES);
        }
        let error = ring.submitter().register_probe(&mut io_uring::Probe::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn reserved_rings_come_back() {
        let mut spare = Spare { rings: Vec::new(), count: 0 };
        spare.reserve(3).unwrap();
        spare.reserve(2).unwrap();
        let taken: Vec<_> = std::iter::from_fn(|| spare.rings.pop()).chain([make().unwrap()]).collect();
        assert_eq!(taken.len(), 4);
        taken.into_iter().for_each(|ring| spare.give_back(ring));
        assert_eq!(spare.rings.len(), 3);
    }
}
