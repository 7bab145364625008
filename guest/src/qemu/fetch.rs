//! Getting QEMU from a newer Debian than the machine's own, beside it and without root: the machine's `apt-get`, with lists and
//! a package state of its own, finds and checks the packages with all that they need, C library included; they are unpacked
//! into a directory and run from there by their own dynamic loader. Nothing is installed, no package's script runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::cache::{self, Lock};
use crate::command::{run_logged, tail_of_file};
use crate::{Error, Progress, Result, packages};

/// The release that QEMU comes from. By its code name: it stays what it is when newer ones come.
const RELEASE: &str = "forky";

const PACKAGES: &[&str] = &["qemu-system-x86", "qemu-utils"];

/// Debian's architecture name for what we want: the machines of our tests are x86-64, and so is this one.
const ARCHITECTURE: &str = "amd64";

/// Debian's own keys, where its package puts them. Without them apt has whatever keys the machine trusts.
const KEYRINGS: &[&str] =
    &["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"];

/// What is unpacked and then thrown away: nobody reads it here.
const NOT_KEPT: &[&str] = &["usr/share/doc", "usr/share/locale", "usr/share/man", "usr/lib/systemd"];

/// The programs wanted of them.
const PROGRAMS: [&str; 2] = [super::SYSTEM, super::STORAGE_DAEMON];

/// In the directory: a launcher for each program, under the program's name, and nothing else.
pub(super) const LAUNCHERS: &str = "bin";

/// The libraries of the packages, and not the machine's; QEMU's modules and firmware beside it, for the program is not where
/// it was compiled for.
const LAUNCHER_TEXT: &str = r#"#!/bin/sh
name=$(basename "$0")
usr=$(dirname "$(readlink -f "$0")")/../root/usr
libraries=$usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR="$libraries/qemu"
case $name in
qemu-system-*) set -- -L "$usr/share/qemu" -L "$usr/share/seabios" "$@" ;;
esac
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$usr/bin/$name" "$@"
"#;

/// The directory of the launchers. They are downloaded if they are not in the cache; processes that ask at the same time wait
/// for the one that downloads.
pub(super) fn ensure(progress: Progress<'_>) -> Result<PathBuf> {
    let cache = cache::dir()?;
    let place = cache.join(key());
    if !place.exists() {
        let _lock = Lock::wait(&cache, "qemu.lock", progress)?;
        if !place.exists() {
            fetch(&cache, &place, progress)?;
        }
    }
    Ok(place.join(LAUNCHERS))
}

/// The directory's name in the cache.
pub(super) fn key() -> String {
    let what = format!("{}\n{LAUNCHER_TEXT}", PACKAGES.join(" "));
    format!("qemu-{RELEASE}-{}", cache::fingerprint(what.as_bytes()))
}

/// Downloads and unpacks into `place`; the caller holds the lock.
fn fetch(cache: &Path, place: &Path, progress: Progress<'_>) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Error::WrongMachine(std::env::consts::ARCH));
    }
    let lacking = ["apt-get", "dpkg-deb", "tar"].into_iter().find(|name| packages::program(name).is_none());
    if let Some(name) = lacking {
        return Err(Error::NoQemuSource { problem: format!("{name} is not there"), tail: String::new() });
    }
    let started = Instant::now();
    cache::remove_leftovers(cache, PREFIX);
    let dir = tempfile::Builder::new()
        .prefix(PREFIX)
        .tempdir_in(cache)
        .map_err(Error::io("make a directory in", cache))?;
    // Outside the directory that goes away: a failure must leave its log.
    let log = cache.join("qemu.log");
    let _ = fs::remove_file(&log);

    let archives = download(dir.path(), &log, progress)?;
    progress(&format!("qemu: unpacking {} packages", archives.len()));
    let ready = dir.path().join("ready");
    unpack(&archives, &ready.join("root"), &log)?;
    let launchers = ready.join(LAUNCHERS);
    fs::create_dir(&launchers).map_err(Error::io("make the directory", &launchers))?;
    for program in PROGRAMS {
        let launcher = launchers.join(program);
        fs::write(&launcher, LAUNCHER_TEXT).map_err(Error::io("write", &launcher))?;
        fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755))
            .map_err(Error::io("make executable", &launcher))?;
    }

    // All files first and seen to work, then the name: a directory under its name is whole.
    let version = super::Qemu::at(launchers.join(super::SYSTEM))?.version();
    let mut daemon = Command::new(launchers.join(super::STORAGE_DAEMON));
    run_logged(daemon.arg("--version"), "trying qemu-storage-daemon", &log, &mut |_| {})?;
    fs::rename(&ready, place).map_err(Error::io("rename the unpacked QEMU to", place))?;
    let _ = fs::remove_file(&log);
    progress(&format!("qemu: {version} in {} s: {}", started.elapsed().as_secs(), place.display()));
    Ok(())
}

/// Unfinished work in the cache.
const PREFIX: &str = "qemu-build-";

/// The packages' files, from the first of the machine's package sources that has the release.
fn download(dir: &Path, log: &Path, progress: Progress<'_>) -> Result<Vec<PathBuf>> {
    let apt = Apt::new(dir)?;
    let mirrors = mirrors()?;
    let works = mirrors.iter().find(|mirror| {
        progress(&format!("qemu: looking for Debian {RELEASE} at {mirror}"));
        apt.use_mirror(mirror).and_then(|()| apt.run(&["update"], log)).is_ok()
    });
    if works.is_none() {
        let problem = format!("none of the package sources has Debian {RELEASE}: {}", mirrors.join(", "));
        return Err(Error::NoQemuSource { problem, tail: tail_of_file(log) });
    }
    progress("qemu: downloading (once)");
    let mut words = vec!["install", "--download-only", "--no-install-recommends", "-y"];
    words.extend(PACKAGES);
    apt.run(&words, log)?;
    let archives = apt.archives();
    let entries = fs::read_dir(&archives).map_err(Error::io("read", &archives))?.flatten();
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).filter(is_package).collect();
    paths.sort();
    Ok(paths)
}

/// The machine's `apt-get` with everything of its own but the way to the network.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: &Path) -> Result<Apt> {
        let apt = Apt { dir: dir.join("apt") };
        for name in ["state/lists/partial", "cache/archives/partial"] {
            let dir = apt.dir.join(name);
            fs::create_dir_all(&dir).map_err(Error::io("make the directory", &dir))?;
        }
        // Nothing is installed there, so that everything is downloaded. And no hook of the machine's runs.
        apt.write("status", "")?;
        apt.write("conf", "#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n")?;
        Ok(apt)
    }

    /// A release that is not yet out may stand still on a mirror for longer than its lists say that they are good for.
    fn use_mirror(&self, mirror: &str) -> Result<()> {
        let keyring = KEYRINGS.iter().find(|path| Path::new(path).exists());
        let signed_by = keyring.map(|path| format!(" signed-by={path}")).unwrap_or_default();
        let line =
            format!("deb [arch={ARCHITECTURE} check-valid-until=no{signed_by}] {mirror} {RELEASE} main\n");
        self.write("sources", &line)
    }

    fn run(&self, words: &[&str], log: &Path) -> Result<()> {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").arg("-q");
        command.arg("-c").arg(self.dir.join("conf"));
        for (option, name) in [
            ("Dir::State", "state"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc::SourceList", "sources"),
        ] {
            let mut word = std::ffi::OsString::from(format!("{option}="));
            word.push(self.dir.join(name));
            command.arg("-o").arg(word);
        }
        let architecture = format!("APT::Architecture={ARCHITECTURE}");
        for word in [
            "Dir::Etc::SourceParts=/dev/null",
            "Dir::Etc::Preferences=/dev/null",
            "Dir::Etc::PreferencesParts=/dev/null",
            "Acquire::Languages=none",
            // Half of a mirror is none.
            "APT::Update::Error-Mode=any",
            // The user that apt otherwise becomes can't read root's cache.
            "APT::Sandbox::User=root",
            &architecture,
        ] {
            command.args(["-o", word]);
        }
        run_logged(command.args(words), "apt-get (for QEMU)", log, &mut |_| {})
    }

    fn archives(&self) -> PathBuf {
        self.dir.join("cache/archives")
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(Error::io("write", &path))
    }
}

/// Where the machine gets its Debian from. `apt-get` itself says it: it knows all the ways in which that can be written.
fn mirrors() -> Result<Vec<String>> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io("run", "apt-get"))?;
    let found = parse_targets(&String::from_utf8_lossy(&output.stdout));
    if found.is_empty() {
        let problem = "the machine has no package sources".to_owned();
        return Err(Error::NoQemuSource {
            problem,
            tail: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    Ok(found)
}

/// Each address once, whole releases before what only mends them: those are often on a mirror of their own.
fn parse_targets(text: &str) -> Vec<String> {
    let mut whole = Vec::new();
    let mut partial = Vec::new();
    for line in text.lines() {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let &[address, release, "main"] = words.as_slice() else { continue };
        let list = if release.contains(['-', '/']) { &mut partial } else { &mut whole };
        list.push(address.to_owned());
    }
    let mut found = Vec::new();
    for address in whole.into_iter().chain(partial) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

fn unpack(archives: &[PathBuf], root: &Path, log: &Path) -> Result<()> {
    fs::create_dir_all(root).map_err(Error::io("make the directory", root))?;
    for archive in archives {
        let mut command = Command::new("dpkg-deb");
        command.arg("--extract").arg(archive).arg(root);
        run_logged(&mut command, "unpacking QEMU's packages", log, &mut |_| {})?;
    }
    for name in NOT_KEPT {
        let _ = fs::remove_dir_all(root.join(name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_tried_once_each_and_whole_releases_first() {
        let targets = "http://one.example/debian-security/ bookworm-security main\n\
                       http://two.example/debian/ bookworm main\n\
                       http://two.example/debian/ bookworm-updates main\n\
                       http://three.example/more/ stable contrib\n\
                       file:/srv/debian/ trixie main\n";
        let expected =
            ["http://two.example/debian/", "file:/srv/debian/", "http://one.example/debian-security/"];
        assert_eq!(parse_targets(targets), expected);
        assert_eq!(parse_targets(""), [""; 0]);
    }
}
