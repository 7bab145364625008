//! What an image lies on: a file, or whatever stands in for one.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::words::LiveWords;

/// The calls through which an image reaches its file. A simulated power cut stands in for the file here.
///
/// Reads and writes are whole or an error. What was written is seen by every later read at once; it is on the
/// medium after the next [`sync_data`](Self::sync_data) that succeeds, and before that in any part, in any
/// order, or not at all.
pub trait Medium: Send + Sync {
    /// What to call it in messages: a path.
    fn name(&self) -> &str;

    /// Its length.
    ///
    /// # Errors
    /// The system's.
    fn len_bytes(&self) -> io::Result<u64>;

    /// How much space of its host it takes.
    ///
    /// # Errors
    /// The system's.
    fn allocated_bytes(&self) -> io::Result<u64>;

    /// Changes its length; what is new reads as zeros and takes no space.
    ///
    /// # Errors
    /// The system's.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;

    /// Takes the space of `range` from the host now, so that a later write to it does not find the host full.
    ///
    /// # Errors
    /// The system's; `Unsupported` where the host can't.
    fn allocate(&self, range: Range<u64>) -> io::Result<()>;

    /// Fills `into` from `offset_bytes` on.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` past the end.
    fn read_at(&self, into: &mut [u8], offset_bytes: u64) -> io::Result<()>;

    /// Writes all of `from` at `offset_bytes`.
    ///
    /// # Errors
    /// The system's; what lies there is then old, new or both.
    fn write_at(&self, from: &[u8], offset_bytes: u64) -> io::Result<()>;

    /// Brings everything written so far to the medium, with what is needed to find it again.
    ///
    /// # Errors
    /// The system's. After an error nothing is known of any write since the last success, and trying again
    /// proves nothing.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes `range` read as zeros and gives its space back. Durable after the next sync, as a write is.
    ///
    /// # Errors
    /// The system's; `Unsupported` where the host can't.
    fn punch_hole(&self, range: Range<u64>) -> io::Result<()>;

    /// The first stretch of `range` that is not a hole; `None` if all the rest is one.
    ///
    /// # Errors
    /// The system's.
    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>>;

    /// The file behind it, for I/O past this trait; `None`: there is none, all I/O goes through the trait.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Shares `count` 64-bit words at `offset_bytes` (a multiple of 64 KiB) with this process: a store to one
    /// is a write of eight bytes, seen by every reader at once, also after the process has been killed.
    ///
    /// # Errors
    /// The system's.
    fn map_words(&self, offset_bytes: u64, count: usize) -> io::Result<LiveWords>;
}

/// Reads as zeros from now on, space given back where the host can, zeros written over what is there where it can't.
///
/// A full host may be one that can't: a hole in the middle of a file needs a place in its bookkeeping. Zeros over what is
/// there need none, where the file system overwrites in place.
pub(crate) fn clear(medium: &dyn Medium, range: Range<u64>) -> io::Result<()> {
    use io::ErrorKind::{QuotaExceeded, StorageFull, Unsupported};
    match medium.punch_hole(range.clone()) {
        Err(error) if matches!(error.kind(), Unsupported | StorageFull | QuotaExceeded) => {}
        other => return other,
    }
    let zeros = vec![0; 1 << 20];
    let mut rest = range;
    while let Some(data) = medium.next_data(rest.clone())? {
        let mut at = data.start;
        while at < data.end {
            let part = usize::try_from(data.end - at).unwrap_or(usize::MAX).min(zeros.len());
            medium.write_at(&zeros[..part], at)?;
            at += part as u64;
        }
        rest.start = data.end;
    }
    Ok(())
}

/// A file as a medium.
pub struct FileMedium {
    file: Arc<File>,
    name: String,
}

impl FileMedium {
    /// Takes an open file; `path` is for messages only.
    pub fn new(file: File, path: &Path) -> Self {
        Self { file: Arc::new(file), name: path.display().to_string() }
    }
}

impl Medium for FileMedium {
    fn name(&self) -> &str {
        &self.name
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        // st_blocks counts 512-byte units whatever the file system's block is.
        Ok(self.file.metadata()?.blocks().saturating_mul(512))
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        retried(|| fallocate(&self.file, FallocateFlags::empty(), range.start, range.end - range.start))
    }

    fn read_at(&self, into: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.file.read_exact_at(into, offset_bytes)
    }

    fn write_at(&self, from: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.file.write_all_at(from, offset_bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        // An EINTR is no answer, so it may be asked again; any other error is final.
        retried(|| rustix::fs::fdatasync(&self.file))
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        retried(|| fallocate(&self.file, mode, range.start, range.end - range.start))
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        if range.is_empty() {
            return Ok(None);
        }
        let start = match seek(&self.file, SeekFrom::Data(range.start)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // No holes on this file system: all of it is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(range)),
            Err(error) => return Err(error.into()),
        };
        if start >= range.end {
            return Ok(None);
        }
        let end = seek(&self.file, SeekFrom::Hole(start))?;
        Ok(Some(start..end.min(range.end)))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn map_words(&self, offset_bytes: u64, count: usize) -> io::Result<LiveWords> {
        LiveWords::map(&self.file, offset_bytes, count)
    }
}

/// `call`, again and again while a signal interrupts it.
pub(crate) fn retried(mut call: impl FnMut() -> rustix::io::Result<()>) -> io::Result<()> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}
