//! A booted guest: following what its command writes, and how it ends.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{KERNEL_LOG, Output};
use crate::command::{tail, tail_of_file};
use crate::job::{self, Outcome, Status};
use crate::process::Process;
use crate::{Error, Result};

/// How often we look at the guest: short against a boot, long against a system call.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A guest that runs, and the directory it shares with us. It is killed when this is dropped.
#[derive(Debug)]
pub struct RunningGuest {
    // Before the directory: the guest is gone when its files go.
    runner: Runner,
    dir: tempfile::TempDir,
}

/// What the guest is, seen from here.
#[derive(Debug)]
enum Runner {
    Process(Process),
    /// It runs in another guest.
    Guest(Box<RunningGuest>),
}

/// Where a command's output is passed on to while it runs.
#[derive(Default)]
pub(super) struct Sinks<'a> {
    pub(super) stdout: Option<&'a mut dyn Write>,
    pub(super) stderr: Option<&'a mut dyn Write>,
}

impl RunningGuest {
    pub(super) fn new(process: Process, dir: tempfile::TempDir) -> RunningGuest {
        RunningGuest { runner: Runner::Process(process), dir }
    }

    pub(super) fn inside(host: RunningGuest, dir: tempfile::TempDir) -> RunningGuest {
        RunningGuest { runner: Runner::Guest(Box::new(host)), dir }
    }

    /// What the command has written to standard output until now.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.text_of(job::STDOUT)
    }

    /// What it has written to standard error until now.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.text_of(job::STDERR)
    }

    /// The end of what the kernel has logged (and QEMU).
    #[must_use]
    pub fn log(&self) -> String {
        self.tail(KERNEL_LOG)
    }

    /// How the guest's machine ended, if it has.
    ///
    /// # Errors
    /// The system does not say.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.runner {
            Runner::Process(process) => process.poll(),
            Runner::Guest(host) => host.poll(),
        }
    }

    /// Waits for the command's end, and for the guest's.
    ///
    /// # Errors
    /// It did not end in time (it is killed then), or the guest ended without it.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        let status = self.follow(Some(limit), None, &mut Sinks::default())?;
        self.left(status)
    }

    /// Passes on what the command writes until the guest has ended.
    pub(super) fn follow(
        &mut self,
        limit: Option<Duration>,
        stop: Option<&AtomicBool>,
        sinks: &mut Sinks<'_>,
    ) -> Result<Status> {
        let started = Instant::now();
        let mut stdout = Follower::open(self.dir.path().join(job::STDOUT))?;
        let mut stderr = Follower::open(self.dir.path().join(job::STDERR))?;
        loop {
            let ended = self.poll()?;
            stdout.pass_on(&mut sinks.stdout)?;
            stderr.pass_on(&mut sinks.stderr)?;
            if let Some(status) = ended {
                return self.outcome(status);
            }
            if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                self.kill();
                return Err(Error::Interrupted);
            }
            if let Some(after) = limit.filter(|limit| started.elapsed() >= *limit) {
                self.kill();
                return Err(Error::TimedOut {
                    after,
                    stdout: self.tail(job::STDOUT),
                    stderr: self.stderr_with_host(),
                    log: self.tail(KERNEL_LOG),
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// All that is left when the guest has ended.
    pub(super) fn left(&self, status: Status) -> Result<Output> {
        let read = |name: &str| {
            let path = self.dir.path().join(name);
            fs::read(&path).map_err(Error::io("read", &path))
        };
        let host = match &self.runner {
            Runner::Process(_) => None,
            Runner::Guest(host) => Some(Box::new(host.left(host.status()?)?)),
        };
        Ok(Output {
            status,
            stdout: read(job::STDOUT)?,
            stderr: read(job::STDERR)?,
            kernel_log: String::from_utf8_lossy(&read(KERNEL_LOG)?).into_owned(),
            host,
        })
    }

    fn kill(&mut self) {
        match &mut self.runner {
            Runner::Process(process) => process.kill(),
            Runner::Guest(host) => host.kill(),
        }
    }

    /// The status of a command whose guest has ended.
    fn status(&self) -> Result<Status> {
        match self.result() {
            Some(Outcome::Ran(status)) => Ok(status),
            Some(Outcome::Failed(message)) => Err(Error::GuestSetUp { message, log: self.log() }),
            None => Err(Error::GuestSetUp { message: "it left no result".to_owned(), log: self.log() }),
        }
    }

    /// The machine's own exit status says nothing about the command: that is in a file.
    fn outcome(&self, status: ExitStatus) -> Result<Status> {
        let log_path = self.dir.path().join(KERNEL_LOG);
        let log_bytes = fs::read(&log_path).map_err(Error::io("read", &log_path))?;
        let log = tail(&log_bytes);
        match self.result() {
            Some(Outcome::Ran(status)) => Ok(status),
            Some(Outcome::Failed(message)) => Err(Error::GuestSetUp { message, log }),
            None => {
                if let Runner::Guest(host) = &self.runner {
                    // What befell the host is the reason.
                    host.outcome(status)?;
                }
                let stderr = self.stderr_with_host();
                match panic_report(&String::from_utf8_lossy(&log_bytes)) {
                    Some(log) => Err(Error::Panicked { stderr, log }),
                    None => Err(Error::Ended { status, stderr, log }),
                }
            }
        }
    }

    fn result(&self) -> Option<Outcome> {
        Outcome::decode(&fs::read_to_string(self.dir.path().join(job::RESULT)).unwrap_or_default())
    }

    /// The end of what the command wrote, and of what the script around it wrote.
    fn stderr_with_host(&self) -> String {
        let own = self.tail(job::STDERR);
        match &self.runner {
            Runner::Process(_) => own,
            Runner::Guest(host) => format!("{own}\n--- the host's ---\n{}", host.tail(job::STDERR)),
        }
    }

    fn text_of(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join(name)).unwrap_or_default()).into_owned()
    }

    fn tail(&self, name: &str) -> String {
        tail_of_file(&self.dir.path().join(name))
    }
}

/// The log from shortly before the panic on: its cause stands above the trace, which is longer than a tail.
fn panic_report(log: &str) -> Option<String> {
    const BEFORE: usize = 10;
    const AFTER: usize = 40;
    let lines: Vec<_> = log.lines().collect();
    let at = lines.iter().position(|line| line.contains("Kernel panic"))?;
    Some(lines[at.saturating_sub(BEFORE)..lines.len().min(at + AFTER)].join("\n"))
}

/// Reads on in a file that another process appends to.
struct Follower {
    path: PathBuf,
    file: File,
}

impl Follower {
    fn open(path: PathBuf) -> Result<Follower> {
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        Ok(Follower { path, file })
    }

    fn pass_on(&mut self, sink: &mut Option<&mut dyn Write>) -> Result<()> {
        let Some(sink) = sink else { return Ok(()) };
        let mut buffer = [0; 16 * 1024];
        let mut passed = false;
        loop {
            let len = self.file.read(&mut buffer).map_err(Error::io("read", &self.path))?;
            if len == 0 {
                break;
            }
            sink.write_all(&buffer[..len]).map_err(Error::io("pass on", &self.path))?;
            passed = true;
        }
        if passed { sink.flush().map_err(Error::io("pass on", &self.path)) } else { Ok(()) }
    }
}
