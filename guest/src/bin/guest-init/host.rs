//! The way to the host's files: hostfs in a User-mode Linux, 9p in a machine of QEMU's.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};
use virtio_zbd_guest::job::{self, FIRST_MODULES_DIR, HOST_DIR, HOST_TAG, JOB_TAG};

use crate::modules;
use crate::root::mount_fs;

/// What the guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// The root that the kernel has mounted is the host's.
    Uml,
    /// The root that the kernel has mounted is a few files in memory.
    Qemu,
}

/// How the host's own files are kept in memory: they are looked at often, and nobody changes them meanwhile.
const CACHED: &str = "cache=loose";

/// What both sides write to: nothing may be kept back.
const UNCACHED: &str = "cache=none";

impl Host {
    /// Finds out where we are, and makes the host's files reachable.
    ///
    /// # Errors
    /// A module can't be loaded, a file system can't be mounted.
    pub(crate) fn reach() -> Result<Host> {
        if !Path::new(FIRST_MODULES_DIR).is_dir() || !Path::new(HOST_DIR).is_dir() {
            return Ok(Host::Uml);
        }
        // For what we have to say, until the guest's root is made.
        mount_fs("devtmpfs", Path::new("/dev"), "")?;
        let entries =
            fs::read_dir(FIRST_MODULES_DIR).with_context(|| format!("can't read {FIRST_MODULES_DIR}"))?;
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            modules::load_file(&file, c"")?;
        }
        mount_9p(HOST_TAG, Path::new(HOST_DIR), MountFlags::RDONLY, CACHED)?;
        Ok(Host::Qemu)
    }

    /// The directory where all of the host's files are.
    pub(crate) fn root(self) -> &'static Path {
        match self {
            Host::Uml => Path::new("/"),
            Host::Qemu => Path::new(HOST_DIR),
        }
    }

    /// Mounts the job's directory on itself, writable: it is on the root that the kernel has mounted.
    pub(crate) fn mount_job(self, dir: &Path) -> Result<()> {
        match self {
            Host::Uml => mount_hostfs(dir, dir),
            Host::Qemu => {
                fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
                mount_9p(JOB_TAG, dir, MountFlags::empty(), UNCACHED)
            }
        }
    }

    /// Mounts the job's share of this number, the host's directory `source`, on `target`.
    pub(crate) fn mount_share(self, number: usize, source: &Path, target: &Path) -> Result<()> {
        match self {
            Host::Uml => mount_hostfs(source, target),
            Host::Qemu => mount_9p(&job::share_tag(number), target, MountFlags::empty(), UNCACHED),
        }
    }
}

fn mount_hostfs(source: &Path, target: &Path) -> Result<()> {
    let data = CString::new(source.as_os_str().as_bytes()).context("a path contains a NUL")?;
    mount("none", target, "hostfs", MountFlags::empty(), data.as_c_str())
        .with_context(|| format!("can't mount the host's {} on {}", source.display(), target.display()))
}

fn mount_9p(tag: &str, target: &Path, flags: MountFlags, cache: &str) -> Result<()> {
    // The messages' size: what QEMU's largest buffer for one is.
    let options = format!("trans=virtio,version=9p2000.L,msize=512000,access=any,{cache}");
    let data = CString::new(options).context("an option contains a NUL")?;
    mount(tag, target, "9p", flags, data.as_c_str())
        .with_context(|| format!("can't mount the host's files ({tag}) on {}", target.display()))
}
