//! Opening a file so that only one program uses it at a time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::StoreError;

/// How often, and at what intervals, a lock is tried. A daemon that was just killed keeps its lock until the
/// kernel has ended its last I/O, and whoever starts it again should not have to know that.
pub(crate) const TRIES: u32 = 50;
pub(crate) const TRY_INTERVAL: Duration = Duration::from_millis(10);

/// What kind of thing a path names, as far as a disk can be on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Regular,
    BlockDevice,
    Other(&'static str),
}

/// What `path` names. To be asked before it is opened: opening a pipe or a terminal has effects.
pub(crate) fn kind_of(path: &Path) -> Result<FileKind, StoreError> {
    let metadata =
        fs::metadata(path).map_err(StoreError::io(path.display().to_string(), "looking for it"))?;
    let kind = metadata.file_type();
    Ok(match () {
        () if kind.is_file() => FileKind::Regular,
        () if kind.is_block_device() => FileKind::BlockDevice,
        () if kind.is_dir() => FileKind::Other("a directory"),
        () if kind.is_fifo() => FileKind::Other("a pipe"),
        () if kind.is_socket() => FileKind::Other("a socket"),
        () => FileKind::Other("a character device"),
    })
}

/// Opens `path` and locks it: for ourselves alone to write, shared with other readers to read. The lock is
/// the open file's: it goes with the last descriptor made from it.
pub(crate) fn open_locked(path: &Path, read_only: bool) -> Result<File, StoreError> {
    let name = path.display().to_string();
    loop {
        let file = File::options()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(StoreError::io(&name, "opening it"))?;
        lock(&file, &name, read_only)?;
        // Between opening and locking another file may have taken the path; ours would be one that nobody can
        // find again.
        match (fs::metadata(path), file.metadata()) {
            (Ok(there), Ok(ours)) if (there.dev(), there.ino()) != (ours.dev(), ours.ino()) => {}
            _ => return Ok(file),
        }
    }
}

/// Locks an open file.
pub(crate) fn lock(file: &File, name: &str, shared: bool) -> Result<(), StoreError> {
    let operation = match shared {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    for _ in 0..TRIES {
        match flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) => thread::sleep(TRY_INTERVAL),
            Err(Errno::INTR) => {}
            Err(error) => return Err(StoreError::io(name, "locking it")(io::Error::from(error))),
        }
    }
    Err(StoreError::InUse { name: name.to_owned() })
}
