//! Packages of a newer Debian than the machine's own, without root: the machine's `apt-get`, with lists and a package state of its
//! own, finds and checks them with all that they need. Nothing is installed, no package's script runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache::{self, Lock};
use crate::command::{run_logged, tail_of_file};
use crate::{Error, Progress, Result, packages};

/// The release that they come from. By its code name: it stays what it is when newer ones come.
pub(crate) const RELEASE: &str = "forky";

/// Debian's architecture name for what we want: the machines of our tests are x86-64, and so is this one.
const ARCHITECTURE: &str = "amd64";

/// Debian's own keys, where its package puts them. Without them apt has whatever keys the machine trusts.
const KEYRINGS: &[&str] =
    &["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"];

/// What is wanted, and what to say where it can't be had.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// For files, locks and progress: one word.
    pub(crate) name: &'static str,
    /// For an error: what it is.
    pub(crate) what: &'static str,
    /// For an error: another way to get it; empty, or it ends in "or".
    pub(crate) instead: &'static str,
    pub(crate) packages: &'static [&'static str],
}

/// Work under way for an entry of the cache.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    wanted: &'a Wanted,
    dir: &'a Path,
    /// All that is run writes there.
    pub(crate) log: &'a Path,
}

impl Wanted {
    /// The cache's entry `key`. If it is not there, `make` makes it, in a directory that is then renamed: an entry is whole.
    /// Processes that ask at the same time wait for the one that makes it.
    pub(crate) fn provide(
        &self,
        key: &str,
        progress: Progress<'_>,
        make: impl FnOnce(&Work<'_>, &Path, Progress<'_>) -> Result<()>,
    ) -> Result<PathBuf> {
        let cache = cache::dir()?;
        let place = cache.join(key);
        if place.exists() {
            return Ok(place);
        }
        let _lock = Lock::wait(&cache, &format!("{}.lock", self.name), progress)?;
        if place.exists() {
            return Ok(place);
        }
        if !cfg!(target_arch = "x86_64") {
            return Err(Error::WrongMachine(std::env::consts::ARCH));
        }
        let needed = ["apt-get", "dpkg-deb", "tar"];
        if let Some(name) = needed.into_iter().find(|name| packages::program(name).is_none()) {
            return Err(self.not_to_be_had(format!("{name} is not there"), String::new()));
        }
        let prefix = format!("{}-build-", self.name);
        cache::remove_leftovers(&cache, &prefix);
        let dir = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(&cache)
            .map_err(Error::io("make a directory in", &cache))?;
        // Outside the directory that goes away: a failure must leave its log.
        let log = cache.join(format!("{}.log", self.name));
        let _ = fs::remove_file(&log);
        let ready = dir.path().join("ready");
        fs::create_dir(&ready).map_err(Error::io("make the directory", &ready))?;
        make(&Work { wanted: self, dir: dir.path(), log: &log }, &ready, progress)?;
        fs::rename(&ready, &place).map_err(Error::io("rename what is ready to", &place))?;
        let _ = fs::remove_file(&log);
        Ok(place)
    }

    fn not_to_be_had(&self, problem: String, tail: String) -> Error {
        Error::NoDownload { what: self.what, problem, instead: self.instead, tail }
    }
}

impl Work<'_> {
    /// The packages' files, from the first of the machine's package sources that has the release.
    pub(crate) fn download(&self, progress: Progress<'_>) -> Result<Vec<PathBuf>> {
        let Wanted { name, packages, .. } = self.wanted;
        let apt = Apt::new(self.dir)?;
        let mirrors = self.mirrors()?;
        let works = mirrors.iter().find(|mirror| {
            progress(&format!("{name}: looking for Debian {RELEASE} at {mirror}"));
            apt.use_mirror(mirror).and_then(|()| apt.run(&["update"], self.log)).is_ok()
        });
        if works.is_none() {
            let problem = format!("none of the package sources has Debian {RELEASE}: {}", mirrors.join(", "));
            return Err(self.wanted.not_to_be_had(problem, tail_of_file(self.log)));
        }
        progress(&format!("{name}: downloading (once)"));
        let mut words = vec!["install", "--download-only", "--no-install-recommends", "-y"];
        words.extend(*packages);
        apt.run(&words, self.log)?;
        let archives = apt.archives();
        let entries = fs::read_dir(&archives).map_err(Error::io("read", &archives))?.flatten();
        let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).filter(is_package).collect();
        paths.sort();
        Ok(paths)
    }

    /// Downloads the packages and unpacks them to `root` in `ready`, without what is in `not_kept`; beside it a directory `launchers` with
    /// a launcher of this text for each program.
    pub(crate) fn programs(
        &self,
        ready: &Path,
        not_kept: &[&str],
        (launchers, text): (&str, &str),
        programs: &[&str],
        progress: Progress<'_>,
    ) -> Result<()> {
        let archives = self.download(progress)?;
        progress(&format!("{}: unpacking {} packages", self.wanted.name, archives.len()));
        let root = ready.join("root");
        self.unpack(&archives, &root)?;
        for name in not_kept {
            let _ = fs::remove_dir_all(root.join(name));
        }
        let launchers = ready.join(launchers);
        fs::create_dir(&launchers).map_err(Error::io("make the directory", &launchers))?;
        programs.iter().try_for_each(|program| {
            let launcher = launchers.join(program);
            fs::write(&launcher, text).map_err(Error::io("write", &launcher))?;
            fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755))
                .map_err(Error::io("make executable", &launcher))
        })
    }

    /// Unpacks packages into `root`.
    pub(crate) fn unpack(&self, archives: &[PathBuf], root: &Path) -> Result<()> {
        fs::create_dir_all(root).map_err(Error::io("make the directory", root))?;
        archives.iter().try_for_each(|archive| {
            let mut command = Command::new("dpkg-deb");
            command.arg("--extract").arg(archive).arg(root);
            run_logged(&mut command, "unpacking packages", self.log, &mut |_| {})
        })
    }

    /// Where the machine gets its Debian from. `apt-get` itself says it: it knows all the ways in which that can be written.
    fn mirrors(&self) -> Result<Vec<String>> {
        let output = Command::new("apt-get")
            .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
            .stdin(Stdio::null())
            .output()
            .map_err(Error::io("run", "apt-get"))?;
        let found = parse_targets(&String::from_utf8_lossy(&output.stdout));
        if found.is_empty() {
            let problem = "the machine has no package sources".to_owned();
            let tail = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(self.wanted.not_to_be_had(problem, tail));
        }
        Ok(found)
    }
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
        run_logged(command.args(words), "apt-get", log, &mut |_| {})
    }

    fn archives(&self) -> PathBuf {
        self.dir.join("cache/archives")
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(Error::io("write", &path))
    }
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
