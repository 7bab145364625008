//! Where a lane's operations go, and how they are done where no ring does them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FileType, fallocate, fstat};

use super::op::{Action, Op, Step};
use crate::buffer::Window;
use crate::medium::{Medium, clear};
use crate::ram::RamMemory;

/// What lies behind a lane.
pub(crate) enum Target {
    /// A file or block device, the disk's first sector at `base_bytes`.
    File { fd: OwnedFd, base_bytes: u64 },
    /// Memory: a copy is done before a ring could be asked.
    Ram(Arc<RamMemory>),
    /// Something that is no file, reached by whole calls only.
    Medium { medium: Arc<dyn Medium>, base_bytes: u64 },
}

impl Target {
    /// Where the disk ends as far as what lies behind knows; `u64::MAX` where it has no end that could come too early.
    pub(super) fn end_bytes(&self) -> io::Result<u64> {
        match self {
            Self::File { fd, base_bytes } => {
                let stat = fstat(fd)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Ok(u64::MAX);
                }
                Ok(u64::try_from(stat.st_size).unwrap_or(0).saturating_sub(*base_bytes))
            }
            Self::Medium { medium, base_bytes } => Ok(medium.len_bytes()?.saturating_sub(*base_bytes)),
            Self::Ram(_) => Ok(u64::MAX),
        }
    }

    /// Does the whole of `op` before it returns.
    pub(super) fn perform(&self, op: &mut Op) -> io::Result<()> {
        loop {
            let result = match self {
                Self::File { fd, base_bytes } => on_file(fd, base_bytes + op.at_bytes(), op),
                Self::Ram(memory) => on_ram(memory, op),
                Self::Medium { medium, base_bytes } => on_medium(&**medium, *base_bytes, op),
            };
            if let Step::Done(end) = op.advance(result) {
                return end;
            }
        }
    }
}

/// One system call of `op`, whose rest begins at `at_bytes` of the file.
fn on_file(fd: &OwnedFd, at_bytes: u64, op: &mut Op) -> io::Result<u64> {
    match op.action {
        Action::Read => vectored(fd, at_bytes, &op.window(), libc::preadv),
        Action::Write | Action::WriteZeros => vectored(fd, at_bytes, &op.window(), libc::pwritev),
        Action::PunchHole | Action::ZeroRange => {
            fallocate(fd, fallocate_mode(op.action), at_bytes, op.rest_bytes())?;
            Ok(0)
        }
    }
}

/// How `fallocate` is told to make a range read as zeros.
pub(super) fn fallocate_mode(action: Action) -> FallocateFlags {
    match action {
        Action::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        _ => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
    }
}

type VectoredCall =
    unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

fn vectored(fd: &OwnedFd, at_bytes: u64, window: &Window<'_>, call: VectoredCall) -> io::Result<u64> {
    let iovecs = window.iovecs();
    let count = libc::c_int::try_from(iovecs.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let at = libc::off_t::try_from(at_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: a window's ranges are valid memory while it is borrowed, which outlasts the call. A window of
    // zeros is only made for a write.
    let moved = unsafe { call(fd.as_raw_fd(), iovecs.as_ptr(), count, at) };
    u64::try_from(moved).map_err(|_| io::Error::last_os_error())
}

fn on_ram(memory: &RamMemory, op: &mut Op) -> io::Result<u64> {
    let (at, (len, done)) = (op.at_bytes(), op.next_bytes());
    let done = usize::try_from(done).map_err(|_| io::ErrorKind::InvalidInput)?;
    match (op.action, op.buffer()) {
        (Action::Read, Some(buffer)) => memory.read(buffer, done, at, len)?,
        (Action::Write, Some(buffer)) => memory.write(buffer, done, at, len)?,
        _ => memory.zero(at, len)?,
    }
    Ok(len)
}

fn on_medium(medium: &dyn Medium, base_bytes: u64, op: &mut Op) -> io::Result<u64> {
    let (at, (next, done)) = (base_bytes + op.at_bytes(), op.next_bytes());
    let len = usize::try_from(next).map_err(|_| io::ErrorKind::InvalidInput)?;
    let done = usize::try_from(done).map_err(|_| io::ErrorKind::InvalidInput)?;
    match op.action {
        Action::Read => {
            let mut bytes = vec![0; len];
            medium.read_at(&mut bytes, at)?;
            if let Some(buffer) = op.buffer_mut() {
                buffer.copy_from_slice(done, &bytes).map_err(io::Error::other)?;
            }
        }
        Action::Write => {
            let mut bytes = vec![0; len];
            if let Some(buffer) = op.buffer() {
                buffer.copy_to_slice(done, &mut bytes).map_err(io::Error::other)?;
            }
            medium.write_at(&bytes, at)?;
        }
        Action::PunchHole | Action::ZeroRange | Action::WriteZeros => clear(medium, at..at + next)?,
    }
    Ok(next)
}
