//! Where things stay that are made once: the kernel, QEMU, logs, locks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Progress, Result};

/// Names another directory than `$XDG_CACHE_HOME/virtio-zbd` or `~/.cache/virtio-zbd`.
pub const CACHE_VARIABLE: &str = "VIRTIO_ZBD_CACHE";

/// The cache's directory; it is made if it is not there.
///
/// # Errors
/// Nothing says where it should be, or it can't be made.
pub fn dir() -> Result<PathBuf> {
    let dir = place().ok_or(Error::NoCacheDir)?;
    fs::create_dir_all(&dir).map_err(Error::io("make the directory", &dir))?;
    Ok(dir)
}

fn place() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(CACHE_VARIABLE)
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("virtio-zbd")))
        .or_else(|| Some(set("HOME")?.join(".cache/virtio-zbd")))
}

/// Removes the directories in `cache` that begin with `prefix`: whoever holds the lock for what is made there under such names
/// may, for they were left by somebody who was killed.
pub(crate) fn remove_leftovers(cache: &Path, prefix: &str) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A lock among all processes of this host that use the same cache; dropping it (or dying) gives it back.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock `name` in `dir`, and says so if it has to wait.
    ///
    /// # Errors
    /// The lock's file can't be made or locked.
    pub fn wait(dir: &Path, name: &str, progress: Progress<'_>) -> Result<Lock> {
        let path = dir.join(name);
        let file = open(&path)?;
        if file.try_lock().is_err() {
            progress(&format!("waiting for another process that holds {}", path.display()));
            file.lock().map_err(Error::io("lock", &path))?;
        }
        Ok(Lock { _file: file })
    }
}

/// A turn to run a guest: at most [`TURNS`] guests run at once among all tests, so that a timeout measures the guest and
/// not the crowd around it.
///
/// # Errors
/// The lock's file can't be made.
pub fn take_turn() -> Result<Lock> {
    let dir = dir()?;
    let paths: Vec<_> = (0..TURNS).map(|turn| dir.join(format!("guest-{turn}.lock"))).collect();
    loop {
        for path in &paths {
            let file = open(path)?;
            if file.try_lock().is_ok() {
                return Ok(Lock { _file: file });
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How many guests [`take_turn`] lets run at once.
pub const TURNS: usize = 2;

fn open(path: &Path) -> Result<File> {
    File::options().create(true).truncate(false).write(true).open(path).map_err(Error::io("open", path))
}

/// A name for `bytes` that changes when they do and is the same on every machine (FNV-1a, 64 bits).
pub(crate) fn fingerprint(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_is_fnv1a() {
        // Test vectors of the algorithm's authors.
        assert_eq!(fingerprint(b""), "cbf29ce484222325");
        assert_eq!(fingerprint(b"foobar"), "85944171f73967e8");
    }

    #[test]
    fn a_lock_is_held_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::wait(dir.path(), "l", &mut |_| panic!("nobody holds it")).unwrap();
        assert!(open(&dir.path().join("l")).unwrap().try_lock().is_err());
        drop(lock);
        assert!(open(&dir.path().join("l")).unwrap().try_lock().is_ok());
    }
}
