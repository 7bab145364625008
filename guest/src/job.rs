//! What the host and the guest's process 1 say to each other: a directory of the host with a file for each thing.
//!
//! The host writes [`JOB`] (and [`STDIN`]) before it boots; the guest mounts the directory, appends to [`STDOUT`] and
//! [`STDERR`] while the command runs, and leaves [`RESULT`] when it has ended. hostfs writes through, so the host can follow.
//! Files, because nothing else between the two is clean for every byte, keeps two streams apart and loses nothing at
//! power-off.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::Error;

/// The [`Job`], encoded.
pub const JOB: &str = "job";
/// What the command reads on standard input.
pub const STDIN: &str = "stdin";
/// What the command wrote on standard output.
pub const STDOUT: &str = "stdout";
/// What the command wrote on standard error.
pub const STDERR: &str = "stderr";
/// A link to the guest's process 1.
pub const INIT: &str = "init";
/// How the command ended: an [`Outcome`], encoded.
pub const RESULT: &str = "result";
/// There as soon as the guest has begun. A kernel that is told to reboot starts itself again: it must not run the job twice.
pub const BEGUN: &str = "begun";

/// In a machine of QEMU's, the tags of its 9p file systems: all of the host's files, and the directory of this job. Those of its
/// [`shares`](Job::shares) are [`share_tag`]s.
pub const HOST_TAG: &str = "host";
/// See [`HOST_TAG`].
pub const JOB_TAG: &str = "job";

/// In a machine of QEMU's, directories of the guest's first files: where the host's files are mounted, and the modules for that, to
/// be loaded in the order of their names.
pub const HOST_DIR: &str = "/host";
/// See [`HOST_DIR`].
pub const FIRST_MODULES_DIR: &str = "/modules";

/// The tag of the share of this number.
#[must_use]
pub fn share_tag(number: usize) -> String {
    format!("share{number}")
}

/// What a guest is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// Environment variables on top of the guest's own (`PATH`, `HOME`, …).
    pub env: Vec<(OsString, OsString)>,
    /// The working directory.
    pub cwd: PathBuf,
    /// Directories of the host that are writable in the guest, at the same place.
    pub shares: Vec<PathBuf>,
    /// How many of `/dev/vda`, `/dev/vdb`, … must be there before the command starts.
    pub disk_count: usize,
    /// The command runs on the guest's console, which has this many rows and columns, and not on the files above.
    pub terminal: Option<(u16, u16)>,
    /// The host's directory with the kernel's modules, if it has any. See [`modules`](crate::modules).
    pub modules: Option<PathBuf>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It returned this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command ran.
    Ran(Status),
    /// It could not be started: the guest's set-up failed, and this is why.
    Failed(String),
}

impl Status {
    /// Whether the command returned 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Status::Exited(0)
    }

    /// As a shell gives it: the status, or 128 and the signal.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Status::Exited(code) => code,
            Status::Killed(signal) => 128 + signal,
        }
    }
}

impl Job {
    /// One `key=value` each, closed by a NUL: what a path or an argument may contain needs no quoting.
    ///
    /// # Errors
    /// An argument, variable or path contains a NUL: no program could be given it.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut records: Vec<(&str, OsString)> = Vec::new();
        records.extend(self.argv.iter().map(|arg| ("arg", arg.clone())));
        for (name, value) in &self.env {
            let mut pair = name.clone();
            pair.push("=");
            pair.push(value);
            records.push(("env", pair));
        }
        records.push(("cwd", self.cwd.clone().into()));
        records.extend(self.shares.iter().map(|share| ("share", share.clone().into())));
        records.push(("disks", self.disk_count.to_string().into()));
        if let Some((rows, columns)) = self.terminal {
            records.push(("terminal", format!("{rows} {columns}").into()));
        }
        records.extend(self.modules.iter().map(|dir| ("modules", dir.clone().into())));

        let mut bytes = Vec::new();
        for (key, value) in records {
            if value.as_bytes().contains(&0) {
                let value = value.to_string_lossy().into_owned();
                return Err(Error::BadRequest { what: "the guest's", value, problem: "contains a NUL byte" });
            }
            bytes.extend_from_slice(key.as_bytes());
            bytes.push(b'=');
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        }
        Ok(bytes)
    }

    /// The other way round.
    ///
    /// # Errors
    /// The bytes are no job: which record is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Job, String> {
        let mut job = Job::default();
        let Some(bytes) = bytes.strip_suffix(&[0]) else { return Err("the job is cut off".to_owned()) };
        for record in bytes.split(|byte| *byte == 0) {
            let bad = || format!("the job has a bad record: {}", String::from_utf8_lossy(record));
            let (key, value) = split_at_equals(record).ok_or_else(bad)?;
            let owned = || OsString::from_vec(value.to_vec());
            match key {
                b"arg" => job.argv.push(owned()),
                b"env" => {
                    let (name, value) = split_at_equals(value).ok_or_else(bad)?;
                    job.env.push((OsStr::from_bytes(name).to_owned(), OsStr::from_bytes(value).to_owned()));
                }
                b"cwd" => job.cwd = owned().into(),
                b"share" => job.shares.push(owned().into()),
                b"modules" => job.modules = Some(owned().into()),
                b"disks" => job.disk_count = number(value).ok_or_else(bad)?,
                b"terminal" => {
                    let mut parts = value.split(|byte| *byte == b' ').map(number);
                    let (Some(Some(rows)), Some(Some(columns)), None) =
                        (parts.next(), parts.next(), parts.next())
                    else {
                        return Err(bad());
                    };
                    job.terminal = Some((rows, columns));
                }
                _ => return Err(bad()),
            }
        }
        Ok(job)
    }
}

impl Outcome {
    /// One line of text.
    #[must_use]
    pub fn encode(&self) -> String {
        match self {
            Outcome::Ran(Status::Exited(code)) => format!("exited {code}"),
            Outcome::Ran(Status::Killed(signal)) => format!("killed {signal}"),
            Outcome::Failed(message) => format!("failed {message}"),
        }
    }

    /// The other way round; `None` if it is not whole.
    #[must_use]
    pub fn decode(text: &str) -> Option<Outcome> {
        let (kind, rest) = text.split_once(' ')?;
        match kind {
            "exited" => Some(Outcome::Ran(Status::Exited(rest.parse().ok()?))),
            "killed" => Some(Outcome::Ran(Status::Killed(rest.parse().ok()?))),
            "failed" => Some(Outcome::Failed(rest.to_owned())),
            _ => None,
        }
    }
}

fn split_at_equals(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_comes_through_whole() {
        let job = Job {
            argv: vec![
                "sh".into(),
                "-c".into(),
                "a=b; echo \"$a\"\n".into(),
                OsString::from_vec(vec![0xff, b'=']),
                "".into(),
            ],
            env: vec![("A".into(), "b=c".into()), ("EMPTY".into(), "".into())],
            cwd: "/a dir".into(),
            shares: vec!["/x,y".into(), "/z".into()],
            disk_count: 2,
            terminal: Some((24, 80)),
            modules: Some("/cache/modules".into()),
        };
        assert_eq!(Job::decode(&job.encode().unwrap()).unwrap(), job);
        let least = Job { argv: vec!["true".into()], cwd: "/".into(), ..Job::default() };
        assert_eq!(Job::decode(&least.encode().unwrap()).unwrap(), least);
    }

    #[test]
    fn a_nul_is_refused_and_a_damaged_job_is_named() {
        let job = Job { argv: vec!["a\0b".into()], ..Job::default() };
        assert!(matches!(job.encode(), Err(Error::BadRequest { .. })));
        assert_eq!(Job::decode(b"arg=x").unwrap_err(), "the job is cut off");
        assert_eq!(Job::decode(b"disks=many\0").unwrap_err(), "the job has a bad record: disks=many");
        assert_eq!(Job::decode(b"terminal=1 2 3\0").unwrap_err(), "the job has a bad record: terminal=1 2 3");
        assert_eq!(Job::decode(b"what=x\0").unwrap_err(), "the job has a bad record: what=x");
    }

    #[test]
    fn outcomes_come_through_whole() {
        for outcome in [
            Outcome::Ran(Status::Exited(0)),
            Outcome::Ran(Status::Exited(255)),
            Outcome::Ran(Status::Killed(9)),
            Outcome::Failed("mount /proc: no such device".to_owned()),
        ] {
            assert_eq!(Outcome::decode(&outcome.encode()), Some(outcome));
        }
        assert_eq!(Outcome::decode("exited"), None);
        assert_eq!(Outcome::decode(""), None);
        assert_eq!(Status::Killed(9).code(), 137);
    }
}
