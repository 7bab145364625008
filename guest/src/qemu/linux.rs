//! A distribution's own Linux kernel for QEMU's machines, with virtio-blk: User-mode Linux can't run there.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::apt::{RELEASE, Wanted};
use crate::{Error, Progress, Result, cache};

/// The variant for virtual machines: small, and nearly all that such a machine needs is built in.
const WANTED: Wanted = Wanted {
    name: "linux",
    what: "a Linux kernel for QEMU's machines",
    instead: "",
    packages: &["linux-image-cloud-amd64"],
};

/// The packages that come along for an installation begin otherwise.
const OWN_PACKAGES: &str = "linux-";

/// The one thing that is not built in.
const MODULE: &str = "kernel/drivers/block/virtio_blk.ko.xz";

const IMAGE: &str = "vmlinuz";
const UNPACKED_MODULE: &str = "virtio_blk.ko";

/// A kernel image and the modules that a machine with a virtio-blk disk needs.
#[derive(Clone, Debug)]
pub struct StockKernel {
    dir: PathBuf,
}

impl StockKernel {
    /// The kernel; the first call downloads one, some 55 MB, in seconds. It needs no root and changes nothing outside the cache.
    ///
    /// # Errors
    /// The machine has no `apt-get` to get one, or none of its package sources has one.
    pub fn ensure(progress: Progress<'_>) -> Result<StockKernel> {
        let dir = WANTED.provide(&key(), progress, |work, ready, progress| {
            let mut archives = work.download(progress)?;
            archives.retain(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(OWN_PACKAGES))
            });
            progress(&format!("linux: unpacking {} packages", archives.len()));
            let root = ready.join("root");
            work.unpack(&archives, &root)?;
            let modules = only_entry(&root.join("usr/lib/modules"))?;
            let (image, kept) = (find_image(&root, &modules), ready.join(IMAGE));
            fs::rename(&image, &kept).map_err(Error::io("move the kernel", &image))?;
            decompress(&modules.join(MODULE), &ready.join(UNPACKED_MODULE))?;
            fs::remove_dir_all(&root).map_err(Error::io("remove", &root))
        })?;
        Ok(StockKernel { dir })
    }

    /// The kernel if it is in the cache. Downloads nothing.
    ///
    /// # Errors
    /// [`Error::NoStockKernel`].
    pub fn cached() -> Result<StockKernel> {
        let cache = cache::dir()?;
        let dir = cache.join(key());
        if dir.exists() { Ok(StockKernel { dir }) } else { Err(Error::NoStockKernel { cache }) }
    }

    /// The image, for QEMU's `-kernel`.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.dir.join(IMAGE)
    }

    /// The modules, in the order in which they are to be loaded.
    #[must_use]
    pub fn modules(&self) -> Vec<PathBuf> {
        vec![self.dir.join(UNPACKED_MODULE)]
    }
}

fn key() -> String {
    let what = format!("{} {MODULE}", WANTED.packages.join(" "));
    format!("linux-{RELEASE}-{}", cache::fingerprint(what.as_bytes()))
}

fn only_entry(dir: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(dir).map_err(Error::io("read", dir))?.flatten();
    let none = || io::Error::new(io::ErrorKind::NotFound, "the packages have no kernel's modules");
    Ok(entries.next().ok_or_else(none).map_err(Error::io("look into", dir))?.path())
}

/// Newer packages have it beside the modules, older ones in `boot` under the version's name.
fn find_image(root: &Path, modules: &Path) -> PathBuf {
    let version = modules.file_name().unwrap_or_default().to_string_lossy();
    let old = root.join("boot").join(format!("{IMAGE}-{version}"));
    if old.exists() { old } else { modules.join(IMAGE) }
}

fn decompress(from: &Path, to: &Path) -> Result<()> {
    let file = File::create(to).map_err(Error::io("make", to))?;
    let mut xz = Command::new("xz");
    let status = xz.args(["--decompress", "--stdout"]).arg(from).stdin(Stdio::null()).stdout(file).status();
    match status.map_err(Error::io("start", "xz"))? {
        status if status.success() => Ok(()),
        status => Err(Error::io("decompress", from)(io::Error::other(format!("xz ended with {status}")))),
    }
}
