//! The guest's root: the host's files below, memory above.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};
use rustix::process::{chdir, chroot, pivot_root};
use rustix::system::sethostname;
use virtio_zbd_guest::job::Job;

use crate::host::Host;
use crate::{network, say};

/// Any directory that every host has: the new root is put together below it, out of sight.
const STAGE: &str = "/proc";

const HOST_NAME: &[u8] = b"guest";

/// Exchanges the root that the kernel mounted for one with the host's files that the guest may write to.
pub(crate) fn enter(host: Host, job: &Job) -> Result<()> {
    let stage = Path::new(STAGE);
    mount_fs("tmpfs", stage, "mode=0755")?;
    let root = stage.join("root");
    for name in ["upper", "work", "root"] {
        let dir = stage.join(name);
        fs::create_dir(&dir).with_context(|| format!("can't make {}", dir.display()))?;
    }
    let lower = host.root().display();
    let layers = format!("lowerdir={lower},upperdir={STAGE}/upper,workdir={STAGE}/work");
    mount_fs("overlay", &root, &layers)?;
    for (number, share) in job.shares.iter().enumerate() {
        let target = root.join(share.strip_prefix("/").unwrap_or(share));
        fs::create_dir_all(&target).with_context(|| format!("can't make {}", target.display()))?;
        host.mount_share(number, share, &target)?;
    }

    chdir(&root).context("can't enter the new root")?;
    match host {
        // The new root on top of the old one, and then the old one away from below it.
        Host::Uml => {
            pivot_root(".", ".").context("can't exchange the root")?;
            unmount(".", UnmountFlags::DETACH).context("can't drop the old root")?;
        }
        // The kernel's first root can't be exchanged: it stays, below the new one.
        Host::Qemu => {
            mount_move(".", "/").context("can't move the new root")?;
            chroot(".").context("can't enter the new root")?;
        }
    }
    chdir("/").context("can't enter the new root")?;

    mount_kernel_file_systems(job)?;
    sethostname(HOST_NAME).context("can't set the host's name")?;
    if let Err(error) = network::raise_loopback() {
        say(&format!("lo stays down: {error:#}"));
    }
    // An ordinary user of the host can't read root's home, and then the guest's root can't either.
    if fs::read_dir("/root").is_err() {
        mount_fs("tmpfs", Path::new("/root"), "mode=0700")?;
    }
    Ok(())
}

/// Takes what the command left mounted from its disk off it, so that a file system is clean and not only synced.
pub(crate) fn leave() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut words = line.split(' ');
        let (Some(source), Some(target)) = (words.next(), words.next()) else { continue };
        if source.starts_with("/dev/") {
            let _ = unmount(unescape(target), UnmountFlags::empty());
        }
    }
    rustix::fs::sync();
}

pub(crate) fn mount_fs(kind: &str, target: &Path, options: &str) -> Result<()> {
    let data = CString::new(options).context("an option contains a NUL")?;
    mount(kind, target, kind, MountFlags::empty(), data.as_c_str())
        .with_context(|| format!("can't mount {kind} on {}", target.display()))
}

/// In the new root, over what shines through from the host there: its devices, processes and sockets are not the guest's.
fn mount_kernel_file_systems(job: &Job) -> Result<()> {
    for (kind, target, options) in [
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("debugfs", "/sys/kernel/debug", ""),
        ("configfs", "/sys/kernel/config", ""),
        ("devtmpfs", "/dev", ""),
        ("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", "mode=1777"),
    ] {
        make_dir(target)?;
        mount_fs(kind, Path::new(target), options)?;
    }
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        symlink(to, link).with_context(|| format!("can't link {link}"))?;
    }
    // Tools believe what udev and systemd left there, and that is about the host's disks.
    for dir in ["/run/udev", "/run/systemd", "/run/lvm", "/run/blkid", "/run/mount"] {
        let dir = Path::new(dir);
        if dir.is_dir() && !job.shares.iter().any(|share| share.starts_with(dir)) {
            mount_fs("tmpfs", dir, "mode=0755")?;
        }
    }
    Ok(())
}

fn make_dir(path: &str) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("can't make {path}"))
}

/// A path as /proc/self/mounts writes it: blanks and the like as three octal digits.
fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (code, plain)| path.replace(code, plain))
}
