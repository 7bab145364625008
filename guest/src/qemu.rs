//! A QEMU that has zoned disks: the machine's own if it is new enough, otherwise one of a newer Debian, kept in the cache.

pub(crate) mod apt;
mod fetch;
mod initramfs;
mod linux;
mod machine;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Error, Progress, Result, cache, packages};

pub use self::linux::StockKernel;
pub use self::machine::FrontEnd;
pub(crate) use self::machine::{QemuMachine, Surroundings};

/// Names a QEMU (`qemu-system-x86_64`) to use instead of the machine's own or the cache's.
pub const QEMU_VARIABLE: &str = "VIRTIO_ZBD_QEMU";

const SYSTEM: &str = "qemu-system-x86_64";
const STORAGE_DAEMON: &str = "qemu-storage-daemon";

/// The oldest that will do: zoned virtio-blk came with 8.1, `vhost-user-test-device`, which passes every feature bit on to a
/// disk of ours, with 10.2.
pub const OLDEST: Version = Version { major: 10, minor: 2 };

/// `qemu-system-x86_64`, at least [`OLDEST`].
#[derive(Clone, Debug)]
pub struct Qemu {
    path: PathBuf,
    version: Version,
}

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second; what follows is corrections.
    pub minor: u32,
}

impl Qemu {
    /// QEMU; where the machine's own is too old, the first call downloads one: some 45 MB, in seconds. It needs no root and
    /// changes nothing outside the cache. Processes that ask at the same time wait for the one that downloads.
    ///
    /// # Errors
    /// The machine has no QEMU that will do and no `apt-get` to get one, none of its package sources has one, or the one that
    /// [`QEMU_VARIABLE`] names is too old.
    pub fn ensure(progress: Progress<'_>) -> Result<Qemu> {
        match Qemu::cached() {
            Err(Error::NoQemu { .. }) => {}
            found => return found,
        }
        progress(&format!("qemu: the machine's own is not there or older than {OLDEST}"));
        Qemu::at(fetch::ensure(progress)?.join(SYSTEM))
    }

    /// QEMU if it is there: the one that [`QEMU_VARIABLE`] names, else the machine's own if it is new enough, else the cache's.
    /// Downloads nothing.
    ///
    /// # Errors
    /// [`Error::NoQemu`]; or the one that the variable names is too old or does not run.
    pub fn cached() -> Result<Qemu> {
        if let Some(path) = std::env::var_os(QEMU_VARIABLE).map(PathBuf::from) {
            return Qemu::at(path.canonicalize().map_err(Error::io("find QEMU", &path))?);
        }
        if let Some(own) = packages::program(SYSTEM).and_then(|path| Qemu::at(path).ok()) {
            return Ok(own);
        }
        let cache = cache::dir()?;
        let launcher = cache.join(fetch::key()).join(fetch::LAUNCHERS).join(SYSTEM);
        if launcher.exists() { Qemu::at(launcher) } else { Err(Error::NoQemu { cache }) }
    }

    /// `qemu-storage-daemon`, which serves disks without a machine: the machine's own, of any version, otherwise one that is
    /// downloaded with [`ensure`](Qemu::ensure)'s. (Debian 12 has none.)
    ///
    /// # Errors
    /// As [`ensure`](Qemu::ensure) where something has to be downloaded.
    pub fn storage_daemon(progress: Progress<'_>) -> Result<PathBuf> {
        match packages::program(STORAGE_DAEMON) {
            Some(own) => Ok(own),
            None => Ok(fetch::ensure(progress)?.join(STORAGE_DAEMON)),
        }
    }

    /// The program (it may be a script that starts it). It runs on this machine and in a [`Guest`](crate::Guest).
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The QEMU at `path`, asked for its version.
    fn at(path: PathBuf) -> Result<Qemu> {
        let output = Command::new(&path)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(Error::io("start", &path))?;
        let text = String::from_utf8_lossy(&output.stdout);
        match Version::parse(&text) {
            Some(version) if version >= OLDEST => Ok(Qemu { path, version }),
            found => Err(Error::UnfitQemu {
                path,
                found: match found {
                    Some(version) => version.to_string(),
                    None => format!("no QEMU: it prints {:?}", text.lines().next().unwrap_or_default()),
                },
                oldest: OLDEST,
            }),
        }
    }
}

impl Version {
    /// From what `--version` prints.
    fn parse(text: &str) -> Option<Version> {
        let number = text.strip_prefix("QEMU emulator version ")?;
        let mut parts = number.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Version { major: parts.next()?.ok()?, minor: parts.next()?.ok()? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let parse = |text| Version::parse(text).unwrap();
        assert_eq!(
            parse("QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7)\n"),
            Version { major: 7, minor: 2 }
        );
        assert!(parse("QEMU emulator version 9.10.0") < OLDEST);
        assert!(parse("QEMU emulator version 10.2.0-rc1") >= OLDEST);
        assert!(parse("QEMU emulator version 11.0") >= OLDEST);
        assert_eq!(Version::parse("qemu: not found"), None);
    }

    #[test]
    fn an_old_qemu_is_refused_with_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu");
        std::fs::write(&path, "#!/bin/sh\necho 'QEMU emulator version 7.2.17'\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = Qemu::at(path).unwrap_err().to_string();
        assert!(error.contains("is 7.2") && error.contains("10.2 or newer"), "{error}");
    }
}
