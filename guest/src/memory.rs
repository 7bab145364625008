//! Where the guest's memory lies: User-mode Linux maps a file, executable, and dies of SIGBUS where it can't grow.

use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statfs, statvfs};

use crate::{Error, Result};

/// `f_type` of tmpfs (statfs(2)).
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// On top of the memory that was asked for: the kernel's own image and its page descriptors.
const EXTRA_MIB: u32 = 32;

/// Chooses a directory for a memory file of `wanted_mib`: one in memory if there is one with room (a container's `/dev/shm`
/// is often small), otherwise one on a disk, which is slower.
pub(crate) fn choose_dir(wanted_mib: u32) -> Result<PathBuf> {
    let set = std::env::var_os("TMPDIR").map(PathBuf::from);
    let candidates: Vec<PathBuf> =
        set.into_iter().chain(["/dev/shm", "/tmp", "/var/tmp"].map(PathBuf::from)).collect();
    let mut usable = Vec::new();
    let mut rejected = Vec::new();
    for dir in candidates {
        match examine(&dir, wanted_mib) {
            Ok(in_memory) => usable.push((in_memory, dir)),
            Err(problem) => rejected.push(format!("{} {problem}", dir.display())),
        }
    }
    let best = usable.iter().find(|(in_memory, _)| *in_memory).or(usable.first());
    best.map(|(_, dir)| dir.clone()).ok_or(Error::NoRoomForMemory { wanted_mib, rejected })
}

/// Whether the directory lies in memory; or why it can't be used.
fn examine(dir: &Path, wanted_mib: u32) -> std::result::Result<bool, String> {
    let space = statvfs(dir).map_err(|errno| format!("can't be read ({errno})"))?;
    if space.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return Err("is mounted noexec".to_owned());
    }
    if rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_err() {
        return Err("is not writable".to_owned());
    }
    let free_mib = space.f_bavail.saturating_mul(space.f_frsize) >> 20;
    if free_mib < u64::from(wanted_mib.saturating_add(EXTRA_MIB)) {
        return Err(format!("has {free_mib} MiB free"));
    }
    let kind = statfs(dir).map_err(|errno| format!("can't be read ({errno})"))?;
    Ok(u64::try_from(kind.f_type).is_ok_and(|magic| magic == TMPFS_MAGIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_memory_says_what_each_directory_has() {
        let error = choose_dir(u32::MAX).unwrap_err().to_string();
        assert!(error.contains("4294967295 MiB") && error.contains("/dev/shm "), "{error}");
        assert!(choose_dir(16).is_ok());
    }
}
