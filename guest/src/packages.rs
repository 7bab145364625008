//! What the kernel's build and the guests' tools need from Debian.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::command::run_logged;
use crate::{Error, Progress, Result, cache};

/// The package with the kernel's source. 6.12 is what the guest tests are written against.
pub const KERNEL_SOURCE: &str = "linux-source-6.12";

/// A Debian package, and how to see that what we want from it is there.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    name: &'static str,
    sign: Sign,
}

/// What shows that a package does not need to be installed. A program that came another way (a container's own compiler)
/// is as good as the package.
#[derive(Clone, Copy, Debug)]
enum Sign {
    Program(&'static str),
    File(&'static str),
    /// Only dpkg can tell: its version is part of the cache's key.
    Dpkg,
}

/// What builds the kernel.
pub const KERNEL_BUILD: &[Package] = &[
    Package { name: KERNEL_SOURCE, sign: Sign::Dpkg },
    Package { name: "bc", sign: Sign::Program("bc") },
    Package { name: "bison", sign: Sign::Program("bison") },
    Package { name: "flex", sign: Sign::Program("flex") },
    Package { name: "gcc", sign: Sign::Program("gcc") },
    Package { name: "libc6-dev", sign: Sign::File("/usr/include/stdlib.h") },
    Package { name: "libelf-dev", sign: Sign::File("/usr/include/gelf.h") },
    Package { name: "make", sign: Sign::Program("make") },
    Package { name: "xz-utils", sign: Sign::Program("xz") },
];

/// What the guest tests call inside the guest.
pub const GUEST_TOOLS: &[Package] = &[
    Package { name: "btrfs-progs", sign: Sign::Program("mkfs.btrfs") },
    Package { name: "e2fsprogs", sign: Sign::Program("mkfs.ext4") },
    Package { name: "f2fs-tools", sign: Sign::Program("mkfs.f2fs") },
    Package { name: "fio", sign: Sign::Program("fio") },
    Package { name: "kmod", sign: Sign::Program("depmod") },
    Package { name: "util-linux", sign: Sign::Program("blkzone") },
];

/// What compiles the fuzzer.
pub const FUZZER: &[Package] = &[Package { name: "g++", sign: Sign::Program("g++") }];

/// The names of those that are not there.
#[must_use]
pub fn missing(wanted: &[Package]) -> Vec<&'static str> {
    wanted.iter().filter(|package| !package.is_there()).map(|package| package.name).collect()
}

/// Installs those of `wanted` that are missing.
///
/// # Errors
/// Something is missing and this process is not root ([`Error::MissingPackages`] lists it), the host is no Debian, its
/// sources have no such package, or `apt-get` failed.
pub fn ensure(wanted: &[Package], progress: Progress<'_>) -> Result<()> {
    let names = missing(wanted);
    if names.is_empty() {
        return Ok(());
    }
    let owned = || names.iter().map(|name| (*name).to_owned()).collect();
    if program("apt-get").is_none() {
        return Err(Error::NotDebian { names: owned() });
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Error::MissingPackages { names: owned() });
    }

    let log = cache::dir()?.join("packages.log");
    let _ = std::fs::remove_file(&log);
    progress(&format!("packages: installing {}", names.join(" ")));
    run_logged(apt().arg("update"), "apt-get update", &log, &mut |_| {})?;
    if names.contains(&KERNEL_SOURCE) {
        check_source_is_offered()?;
    }
    let mut install = apt();
    install.args(["install", "-y", "--no-install-recommends"]).args(&names);
    run_logged(&mut install, "apt-get install", &log, &mut |line| {
        // Those that were asked for, not all that they bring along.
        let name = line.strip_prefix("Setting up ").and_then(|rest| rest.split([' ', ':']).next());
        if name.is_some_and(|name| names.contains(&name)) {
            progress(&format!("packages: {line}"));
        }
    })?;

    let still = missing(wanted);
    if still.is_empty() {
        return Ok(());
    }
    Err(Error::MissingPackages { names: still.into_iter().map(str::to_owned).collect() })
}

/// The version of an installed package; `None` if it is not installed (or this is no Debian).
#[must_use]
pub fn installed_version(name: &str) -> Option<String> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status} ${Version}", name])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.strip_prefix("installed ").map(str::to_owned)
}

/// Where a program is: along `PATH` and in the directories of administration, which an ordinary user's `PATH` lacks.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let admin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(admin).map(|dir| dir.join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

impl Package {
    fn is_there(&self) -> bool {
        match self.sign {
            Sign::Program(name) => program(name).is_some(),
            Sign::File(path) => Path::new(path).exists(),
            Sign::Dpkg => installed_version(self.name).is_some(),
        }
    }
}

/// `apt-get` that asks nothing and waits for another one to finish.
fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").args([
        "-q",
        "-o",
        "DPkg::Lock::Timeout=300",
    ]);
    command
}

/// The source's version is in the package's name, so another Debian release may have another one: name what there is.
fn check_source_is_offered() -> Result<()> {
    let output = Command::new("apt-cache")
        .args(["pkgnames", "linux-source-"])
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io("run", "apt-cache"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut similar: Vec<_> = text.lines().map(str::to_owned).collect();
    if similar.iter().any(|name| name == KERNEL_SOURCE) {
        return Ok(());
    }
    similar.sort();
    Err(Error::NoSuchPackage { name: KERNEL_SOURCE, similar })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_files_are_seen() {
        let wanted = [
            Package { name: "dash", sign: Sign::Program("sh") },
            Package { name: "a-package", sign: Sign::Program("no-program-has-this-name") },
            Package { name: "another", sign: Sign::File("/no/file/has/this/name") },
            Package { name: "a-package-that-nobody-made", sign: Sign::Dpkg },
        ];
        assert_eq!(missing(&wanted), ["a-package", "another", "a-package-that-nobody-made"]);
    }

    #[test]
    fn what_is_missing_is_said_with_the_command_that_installs_it() {
        let names = vec!["flex".to_owned(), "bc".to_owned()];
        let text = Error::MissingPackages { names }.to_string();
        assert!(text.contains("missing: flex, bc\n"), "{text}");
        assert!(text.ends_with("apt-get install -y --no-install-recommends flex bc"), "{text}");
    }
}
