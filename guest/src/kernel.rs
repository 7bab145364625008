//! The guest's kernel: built once from Debian's source package, kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cache::{self, Lock};
use crate::command::run_logged;
use crate::packages::{self, KERNEL_BUILD, KERNEL_SOURCE};
use crate::{Error, Progress, Result};

/// Names a kernel to use instead of the cache's.
pub const KERNEL_VARIABLE: &str = "VIRTIO_ZBD_KERNEL";

/// The options that the guest needs, on top of the architecture's defaults.
const FRAGMENT: &str = include_str!("../uml.config");

/// Parts of the source that no User-mode Linux build opens: half of the time and the space to unpack it.
const NOT_UNPACKED: &[&str] = &[
    "*/Documentation/devicetree",
    "*/Documentation/translations",
    "*/drivers/gpu/drm/amd/include",
    "*/tools/testing",
    "*/tools/perf",
];

/// A build that is not finished, in the cache.
const BUILD_PREFIX: &str = "build-";

/// How often a long build says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// A User-mode Linux kernel, ready to boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    path: PathBuf,
}

impl Kernel {
    /// The kernel; the first call on a machine builds it, which takes some minutes and as root also installs what the build
    /// needs. Processes that ask at the same time wait for the one that builds.
    ///
    /// # Errors
    /// Packages are missing and can't be installed, or the build failed: the error has its end, the cache its whole log.
    pub fn ensure(progress: Progress<'_>) -> Result<Kernel> {
        if let Ok(kernel) = Kernel::cached() {
            return Ok(kernel);
        }
        if !cfg!(target_arch = "x86_64") {
            return Err(Error::WrongMachine(std::env::consts::ARCH));
        }
        packages::ensure(KERNEL_BUILD, progress)?;
        let version = packages::installed_version(KERNEL_SOURCE)
            .ok_or_else(|| Error::MissingPackages { names: vec![KERNEL_SOURCE.to_owned()] })?;
        let cache = cache::dir()?;
        let _lock = Lock::wait(&cache, "kernel.lock", progress)?;
        let place = cache.join(key(&version));
        if !place.join("linux").exists() {
            cache::remove_leftovers(&cache, BUILD_PREFIX);
            build(&cache, &place, progress)?;
        }
        Ok(Kernel { path: place.join("linux") })
    }

    /// The kernel if it was built before (or [`KERNEL_VARIABLE`] names one); builds nothing.
    ///
    /// # Errors
    /// [`Error::NoKernel`].
    pub fn cached() -> Result<Kernel> {
        if let Some(path) = std::env::var_os(KERNEL_VARIABLE).map(PathBuf::from) {
            let path = path.canonicalize().map_err(Error::io("find the kernel", &path))?;
            return Ok(Kernel { path });
        }
        let cache = cache::dir()?;
        let place = match packages::installed_version(KERNEL_SOURCE) {
            Some(version) => Some(cache.join(key(&version))),
            // The source may have gone since (or another user installed it): any version with our options will do.
            None => newest_with_our_options(&cache),
        };
        match place.map(|place| place.join("linux")) {
            Some(path) if path.exists() => Ok(Kernel { path }),
            _ => Err(Error::NoKernel { cache }),
        }
    }

    /// The kernel's program.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The directory's name in the cache: another source or another line in the fragment is another kernel.
fn key(version: &str) -> String {
    let options: Vec<_> = option_lines(FRAGMENT).collect();
    format!("uml-{version}-{}", cache::fingerprint(options.join("\n").as_bytes()))
}

/// The lines of a fragment that say something to Kconfig, without those for people.
fn option_lines(fragment: &str) -> impl Iterator<Item = &str> {
    fragment.lines().map(str::trim).filter(|line| {
        line.starts_with("CONFIG_") || (line.starts_with("# CONFIG_") && line.ends_with(" is not set"))
    })
}

fn newest_with_our_options(cache: &Path) -> Option<PathBuf> {
    let suffix = key("").trim_start_matches("uml-").to_owned();
    let entries = fs::read_dir(cache).ok()?.flatten();
    let ours = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("uml-") && name.ends_with(&suffix)
    });
    ours.max_by_key(|entry| entry.metadata().and_then(|meta| meta.modified()).ok()).map(|entry| entry.path())
}

fn build(cache: &Path, place: &Path, progress: Progress<'_>) -> Result<()> {
    let started = Instant::now();
    let dir = tempfile::Builder::new()
        .prefix(BUILD_PREFIX)
        .tempdir_in(cache)
        .map_err(Error::io("make a directory in", cache))?;
    // Outside the directory that goes away: a failed build must leave its log.
    let log = cache.join("kernel-build.log");
    let _ = fs::remove_file(&log);
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).map_err(Error::io("make the directory", &tree))?;

    progress(&format!("kernel: unpacking {KERNEL_SOURCE} (once; the build takes some minutes)"));
    unpack(&tree, &log)?;
    progress("kernel: configuring");
    configure(&tree, &log)?;
    compile(&tree, &log, progress)?;

    // All files first, then the name: a directory under its name is whole.
    let ready = dir.path().join("ready");
    fs::create_dir(&ready).map_err(Error::io("make the directory", &ready))?;
    for (from, to) in [("linux", "linux"), (".config", "config")] {
        let from = tree.join(from);
        fs::copy(&from, ready.join(to)).map_err(Error::io("copy", &from))?;
    }
    fs::copy(&log, ready.join("build.log")).map_err(Error::io("copy", &log))?;
    fs::rename(&ready, place).map_err(Error::io("rename the built kernel to", place))?;
    let _ = fs::remove_file(&log);
    progress(&format!(
        "kernel: built in {} s: {}",
        started.elapsed().as_secs(),
        place.join("linux").display()
    ));
    Ok(())
}

fn unpack(tree: &Path, log: &Path) -> Result<()> {
    let archive = format!("/usr/src/{KERNEL_SOURCE}.tar.xz");
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--xz", "--strip-components=1", "--file", &archive]);
    tar.args(NOT_UNPACKED.iter().map(|pattern| format!("--exclude={pattern}")));
    run_logged(tar.current_dir(tree), "unpacking the kernel's source", log, &mut |_| {})
}

fn configure(tree: &Path, log: &Path) -> Result<()> {
    let what = "the kernel's configuration";
    let fragment = tree.join("zbd.fragment");
    fs::write(&fragment, FRAGMENT).map_err(Error::io("write", &fragment))?;
    run_logged(make(tree).arg("defconfig"), what, log, &mut |_| {})?;
    let mut merge = Command::new("sh");
    merge.args(["scripts/kconfig/merge_config.sh", "-m", ".config", "zbd.fragment"]).current_dir(tree);
    run_logged(&mut merge, what, log, &mut |_| {})?;
    run_logged(make(tree).arg("olddefconfig"), what, log, &mut |_| {})?;

    let config = tree.join(".config");
    let text = fs::read_to_string(&config).map_err(Error::io("read", &config))?;
    let lines = lost_lines(FRAGMENT, &text);
    if lines.is_empty() { Ok(()) } else { Err(Error::Config { lines }) }
}

/// The fragment's lines that are not so in the finished configuration: Kconfig drops what depends on something else
/// without a word.
fn lost_lines(fragment: &str, config: &str) -> Vec<String> {
    let stands = |line: &str| config.lines().any(|other| other == line);
    let is_set = |option: &str| {
        config.lines().any(|line| line.strip_prefix(option).is_some_and(|rest| rest.starts_with('=')))
    };
    let lost = option_lines(fragment).filter(|line| {
        match line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set")) {
            // An option that vanished with its parent is as unset as one that says so.
            Some(option) => is_set(option),
            None => !stands(line),
        }
    });
    lost.map(str::to_owned).collect()
}

fn compile(tree: &Path, log: &Path, progress: Progress<'_>) -> Result<()> {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let started = Instant::now();
    let mut said = started;
    let mut compiled_count = 0_u32;
    progress(&format!("kernel: compiling with {jobs} jobs"));
    run_logged(make(tree).arg(format!("-j{jobs}")).arg("linux"), "the kernel's build", log, &mut |line| {
        if line.trim_start().starts_with("CC ") {
            compiled_count += 1;
        }
        if said.elapsed() >= PROGRESS_INTERVAL {
            said = Instant::now();
            progress(&format!(
                "kernel: {compiled_count} files compiled in {} s",
                started.elapsed().as_secs()
            ));
        }
    })
}

/// `make` for User-mode Linux, without what an outer make or cargo left in the environment, and with the same banner on
/// every machine.
fn make(tree: &Path) -> Command {
    let mut command = Command::new("make");
    command.current_dir(tree).arg("ARCH=um").env("LC_ALL", "C");
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CROSS_COMPILE", "KBUILD_OUTPUT", "O"] {
        command.env_remove(name);
    }
    command.env("KBUILD_BUILD_USER", "virtio-zbd").env("KBUILD_BUILD_HOST", "guest");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_kconfig_dropped_are_named() {
        let fragment = "# words\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_AB=y\n# CONFIG_C is not set\n# CONFIG_D is not set\n# CONFIG_E is not set\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_AB=m\n# CONFIG_C is not set\nCONFIG_D=y\nCONFIG_EE=y\n";
        assert_eq!(lost_lines(fragment, config), ["CONFIG_B=y", "CONFIG_AB=y", "# CONFIG_D is not set"]);
    }

    #[test]
    fn the_fragment_asks_for_what_the_tests_rest_on() {
        for option in
            ["BLK_DEV_ZONED", "VIRTIO_UML", "VIRTIO_BLK", "OVERLAY_FS", "HOSTFS", "BTRFS_FS", "F2FS_FS"]
        {
            assert!(FRAGMENT.lines().any(|line| line == format!("CONFIG_{option}=y")), "{option}");
        }
    }
}
