//! A distribution's own Linux kernel for QEMU's machines: User-mode Linux can't run there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::apt::{RELEASE, Wanted};
use crate::modules::{self, Module, Modules};
use crate::{Error, Progress, Result, cache};

/// The general kernel: the one for virtual machines has no f2fs and no 9p.
const WANTED: Wanted = Wanted {
    name: "linux",
    what: "a Linux kernel for QEMU's machines",
    instead: "",
    packages: &["linux-image-amd64"],
};

/// The packages that come along for an installation begin otherwise.
const OWN_PACKAGES: &str = "linux-";

/// The modules of a guest's start: the host's files, the root made of them, disks; device mapper, for its control device is there
/// with it only.
const FIRST: &[&str] = &["9p", "9pnet_virtio", "overlay", "configfs", "virtio_blk", "dm_mod"];

/// Those that are kept beside them, with all that they need: what works on zones, and what makes zones.
const KEPT: &[&str] =
    &["btrfs", "dm_zoned", "ext4", "f2fs", "loop", "null_blk", "scsi_debug", "sd_mod", "zonefs"];

const IMAGE: &str = "vmlinuz";
const MODULES: &str = "modules";
const MODULE_SUFFIX: &str = ".ko.xz";

/// A kernel image and the modules that a guest may want.
#[derive(Clone, Debug)]
pub struct StockKernel {
    dir: PathBuf,
}

impl StockKernel {
    /// The kernel; the first call downloads one, some 150 MB, in half a minute. It needs no root and changes nothing outside the
    /// cache.
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
            let installed = only_entry(&root.join("usr/lib/modules"))?;
            let (image, kept) = (find_image(&root, &installed), ready.join(IMAGE));
            fs::rename(&image, &kept).map_err(Error::io("move the kernel", &image))?;
            keep_modules(&installed, &ready.join(MODULES))?;
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

    /// The directory of the [`modules`](crate::modules).
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.dir.join(MODULES)
    }

    /// The files of the modules that a guest starts with, in the order in which they are to be loaded.
    pub(super) fn first_modules(&self) -> Result<Vec<PathBuf>> {
        let dir = self.modules();
        let known = Modules::read(&dir).map_err(Error::io("read the modules in", &dir))?;
        let mut names = Vec::new();
        for name in FIRST.iter().flat_map(|name| known.order(name)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(names.iter().map(|name| modules::file(&dir, name)).collect())
    }
}

fn key() -> String {
    let what = format!("{} {} {}", WANTED.packages.join(" "), FIRST.join(" "), KEPT.join(" "));
    format!("linux-{RELEASE}-{}", cache::fingerprint(what.as_bytes()))
}

/// Decompresses the modules that we want, with all that they need, and writes down what they are. What is not among the modules is
/// built into the kernel.
fn keep_modules(installed: &Path, to: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    find_modules(&installed.join("kernel"), &mut files)?;
    fs::create_dir(to).map_err(Error::io("make the directory", to))?;
    let mut kept = Modules::default();
    let mut wanted: Vec<String> = FIRST.iter().chain(KEPT).map(|name| (*name).to_owned()).collect();
    while let Some(name) = wanted.pop() {
        let Some(file) = files.get(&name).filter(|_| !kept.contains(&name)) else { continue };
        let path = modules::file(to, &name);
        decompress(file, &path)?;
        let module = Module::parse(&fs::read(&path).map_err(Error::io("read", &path))?);
        wanted.extend(module.depends.iter().cloned());
        kept.insert(&name, module);
    }
    kept.write(to).map_err(Error::io("write an index to", to))
}

/// All modules below `dir`, by name.
fn find_modules(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            find_modules(&path, files)?;
        } else if let Some(name) = entry.file_name().to_string_lossy().strip_suffix(MODULE_SUFFIX) {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
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
