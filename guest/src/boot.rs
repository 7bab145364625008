//! Booting a guest, running a command in it, and getting all of it back.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::command::{tail, tail_of_file};
use crate::job::{self, Job, Outcome, Status};
use crate::process::{Process, Role, launch};
use crate::terminal::Terminal;
use crate::{Error, Kernel, Result, memory, packages, programs};

/// Enough for the file-system tests; it is taken only as the guest uses it.
const DEFAULT_MEMORY_MIB: u32 = 1024;

/// How often we look at the guest: short against a boot, long against a system call.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The kernel's log, in the guest's directory.
const KERNEL_LOG: &str = "kernel.log";

/// virtio-blk names its disks by letter.
const DISKS_MAX: usize = 26;

/// A guest to be booted: what it has, and how long it may run.
///
/// It sees the host's files, may change them all, and changes none: what it writes is in memory and goes with it. Only a
/// [`share`](Guest::share)d directory is the host's own. Network: `lo`. Process 1 is `guest-init`, the user is root.
///
/// The thread that runs a guest holds it: if the thread dies (or is killed), so does the guest.
#[derive(Clone, Debug)]
pub struct Guest {
    kernel: PathBuf,
    memory_mib: u32,
    sockets: Vec<PathBuf>,
    missing_disks_allowed: bool,
    kernel_args: Vec<String>,
    shares: Vec<PathBuf>,
    env: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    stdin: Vec<u8>,
    timeout: Option<Duration>,
    stop: Option<Arc<AtomicBool>>,
}

/// What a command left.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// What it wrote on standard output, byte by byte.
    pub stdout: Vec<u8>,
    /// What it wrote on standard error.
    pub stderr: Vec<u8>,
    /// What the guest's kernel logged.
    pub kernel_log: String,
}

impl Guest {
    /// A guest without disks, with 1 GiB of memory and without a time limit.
    #[must_use]
    pub fn new(kernel: &Kernel) -> Guest {
        Guest {
            kernel: kernel.path().to_path_buf(),
            memory_mib: DEFAULT_MEMORY_MIB,
            sockets: Vec::new(),
            missing_disks_allowed: false,
            kernel_args: Vec::new(),
            shares: Vec::new(),
            env: Vec::new(),
            cwd: None,
            stdin: Vec::new(),
            timeout: None,
            stop: None,
        }
    }

    /// How much memory the guest has.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Guest {
        self.memory_mib = memory_mib;
        self
    }

    /// Attaches a vhost-user-blk socket: the first one is `/dev/vda`, the next `/dev/vdb`.
    #[must_use]
    pub fn disk(mut self, socket: impl Into<PathBuf>) -> Guest {
        self.sockets.push(socket.into());
        self
    }

    /// Runs the command even when a disk did not come up. Without this it is [`Error::GuestSetUp`].
    #[must_use]
    pub fn allow_missing_disks(mut self) -> Guest {
        self.missing_disks_allowed = true;
        self
    }

    /// Adds to the kernel's command line, as with `null_blk.nr_devices=1` (a guest has no null_blk disk otherwise).
    #[must_use]
    pub fn kernel_arg(mut self, arg: impl Into<String>) -> Guest {
        self.kernel_args.push(arg.into());
        self
    }

    /// A directory of the host that the guest can write to, at the same path.
    #[must_use]
    pub fn share(mut self, dir: impl Into<PathBuf>) -> Guest {
        self.shares.push(dir.into());
        self
    }

    /// Sets an environment variable for the command.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Guest {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The command's working directory; the caller's own if it is not set.
    #[must_use]
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Guest {
        self.cwd = Some(dir.into());
        self
    }

    /// What the command reads on standard input; nothing if it is not set.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Guest {
        self.stdin = bytes.into();
        self
    }

    /// The time from the start of the kernel to its power-off; whatever then still runs is killed.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Guest {
        self.timeout = Some(limit);
        self
    }

    /// The guest is killed as soon as `flag` is true, and its run ends with [`Error::Interrupted`]: for signal handlers.
    #[must_use]
    pub fn stop_when(mut self, flag: Arc<AtomicBool>) -> Guest {
        self.stop = Some(flag);
        self
    }

    /// Boots, runs a program with arguments, powers off; gives back what it left.
    ///
    /// # Errors
    /// The guest could not be started or set up, ran out of time, panicked, or ended before the command did. A command that
    /// fails is no error, it is a [`Status`].
    pub fn run<A: Into<OsString>>(&self, argv: impl IntoIterator<Item = A>) -> Result<Output> {
        self.run_job(argv.into_iter().map(Into::into).collect(), Sinks::default())
    }

    /// [`run`](Guest::run) for a shell script (`sh -c`).
    ///
    /// # Errors
    /// As [`run`](Guest::run).
    pub fn sh(&self, script: impl Into<OsString>) -> Result<Output> {
        self.run(["sh".into(), "-c".into(), script.into()])
    }

    /// [`run`](Guest::run), and each byte is also passed on as it comes.
    ///
    /// # Errors
    /// As [`run`](Guest::run); or the writers failed.
    pub fn run_streaming<A: Into<OsString>>(
        &self,
        argv: impl IntoIterator<Item = A>,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<Output> {
        let sinks = Sinks { stdout: Some(stdout), stderr: Some(stderr) };
        self.run_job(argv.into_iter().map(Into::into).collect(), sinks)
    }

    /// Runs a program on the user's terminal (standard input), which becomes the guest's console.
    ///
    /// # Errors
    /// As [`run`](Guest::run); or standard input is no terminal.
    pub fn run_interactive<A: Into<OsString>>(&self, argv: impl IntoIterator<Item = A>) -> Result<Status> {
        let terminal = Terminal::open()?;
        let argv = argv.into_iter().map(Into::into).collect();
        let mut running = self.start(argv, Some(&terminal))?;
        running.wait(self, &mut Sinks::default())
    }

    fn run_job(&self, argv: Vec<OsString>, mut sinks: Sinks<'_>) -> Result<Output> {
        let mut running = self.start(argv, None)?;
        let status = running.wait(self, &mut sinks)?;
        let read = |name: &str| {
            let path = running.dir.path().join(name);
            fs::read(&path).map_err(Error::io("read", &path))
        };
        Ok(Output {
            status,
            stdout: read(job::STDOUT)?,
            stderr: read(job::STDERR)?,
            kernel_log: String::from_utf8_lossy(&read(KERNEL_LOG)?).into_owned(),
        })
    }

    fn start(&self, argv: Vec<OsString>, terminal: Option<&Terminal>) -> Result<Running> {
        self.check(&argv)?;
        let guest_init = programs::guest_init()?;
        let dir = make_dir()?;
        let path = |name: &str| dir.path().join(name);
        let write =
            |name: &str, bytes: &[u8]| fs::write(path(name), bytes).map_err(Error::io("write", path(name)));

        let job = Job {
            argv,
            env: self.env.clone(),
            cwd: match &self.cwd {
                Some(cwd) => cwd.clone(),
                None => std::env::current_dir().map_err(Error::io("find", "the working directory"))?,
            },
            shares: self.shares.iter().map(|share| absolute(share)).collect::<Result<_>>()?,
            disk_count: if self.missing_disks_allowed { 0 } else { self.sockets.len() },
            terminal: terminal.map(Terminal::size),
        };
        write(job::JOB, &job.encode()?)?;
        write(job::STDIN, &self.stdin)?;
        write(job::STDOUT, b"")?;
        write(job::STDERR, b"")?;
        let link = |to: &Path, name: &str| symlink(to, path(name)).map_err(Error::io("link", path(name)));
        link(&guest_init, "init")?;
        for (socket, name) in self.sockets.iter().zip(socket_names()) {
            link(&absolute(socket)?, &name)?;
        }

        // Appending: the kernel writes its log through more than one open file.
        let log = File::options().create(true).append(true).open(path(KERNEL_LOG));
        let log = log.map_err(Error::io("open", path(KERNEL_LOG)))?;
        let mut command = self.kernel_command(&guest_init);
        command.args(self.kernel_command_line(dir.path(), terminal.is_some()));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("TMPDIR", memory::choose_dir(self.memory_mib)?);
        command.stdin(terminal.map_or(Ok(Stdio::null()), |terminal| terminal.lend().map(Stdio::from))?);
        command.stdout(log.try_clone().map_err(Error::io("duplicate", path(KERNEL_LOG)))?).stderr(log);
        let process = Process::start(&mut command)?;
        Ok(Running { process, dir })
    }

    /// What can be told before a boot is told before the boot.
    fn check(&self, argv: &[OsString]) -> Result<()> {
        let bad = |what, value: &OsStr, problem| {
            Err(Error::BadRequest { what, value: value.to_string_lossy().into_owned(), problem })
        };
        if argv.is_empty() {
            return bad("the command", OsStr::new(""), "is empty");
        }
        for arg in &self.kernel_args {
            if arg.is_empty()
                || arg.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"')
                || arg == "--"
            {
                return bad("the kernel's argument", arg.as_ref(), "must be one plain word");
            }
        }
        if let Some(share) = self.shares.iter().find(|share| !share.is_dir()) {
            return bad("the shared directory", share.as_os_str(), "is not a directory");
        }
        for socket in &self.sockets {
            let meta = fs::metadata(socket).map_err(Error::io("find the socket", socket))?;
            if !meta.file_type().is_socket() {
                return bad("the disk", socket.as_os_str(), "is not a socket");
            }
        }
        if self.sockets.len() > DISKS_MAX {
            let count = self.sockets.len().to_string();
            return bad("the number of disks", count.as_ref(), "is more than 26");
        }
        Ok(())
    }

    /// The kernel writes its first lines with printf. Into a file that means: when 4 KiB are full, or never if it hangs before.
    fn kernel_command(&self, guest_init: &Path) -> Command {
        let Some(stdbuf) = packages::program("stdbuf") else {
            return launch(guest_init, Role::Kernel, &self.kernel);
        };
        let mut command = launch(guest_init, Role::Kernel, &stdbuf);
        command.arg("--output=L").arg(&self.kernel);
        command
    }

    /// All names in it are ours and plain: links in `dir` stand for whatever the caller's files are called.
    fn kernel_command_line(&self, dir: &Path, interactive: bool) -> Vec<String> {
        let dir = dir.display();
        // The log is on ttyS0: on standard output first and later on standard error. Consoles have nothing behind them, but for
        // an interactive guest's.
        let words = format!(
            "mem={}M root=hostfs rootfstype=hostfs rootflags=/ ro init={dir}/init panic=-1 null_blk.nr_devices=0 \
             uml_dir={dir}/uml/ umid=guest earlyprintk console=ttyS0 ssl=null ssl0=null,fd:2 con=null con0={}",
            self.memory_mib,
            if interactive { "fd:0" } else { "null" },
        );
        let mut args: Vec<String> = words.split_ascii_whitespace().map(str::to_owned).collect();
        let devices = socket_names().take(self.sockets.len());
        args.extend(devices.map(|name| format!("virtio_uml.device={dir}/{name}:2")));
        args.extend(self.kernel_args.iter().cloned());
        args.extend(["--".to_owned(), dir.to_string()]);
        args
    }
}

/// Where a command's output is passed on to while it runs.
#[derive(Default)]
struct Sinks<'a> {
    stdout: Option<&'a mut dyn Write>,
    stderr: Option<&'a mut dyn Write>,
}

/// A booted guest and the directory it shares with us.
struct Running {
    // Before the directory: the guest is gone when its files go.
    process: Process,
    dir: tempfile::TempDir,
}

impl Running {
    fn wait(&mut self, guest: &Guest, sinks: &mut Sinks<'_>) -> Result<Status> {
        let started = Instant::now();
        let mut stdout = Follower::open(self.dir.path().join(job::STDOUT))?;
        let mut stderr = Follower::open(self.dir.path().join(job::STDERR))?;
        loop {
            let ended = self.process.poll()?;
            stdout.pass_on(&mut sinks.stdout)?;
            stderr.pass_on(&mut sinks.stderr)?;
            if let Some(status) = ended {
                return self.outcome(status);
            }
            if guest.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                self.process.kill();
                return Err(Error::Interrupted);
            }
            if let Some(after) = guest.timeout.filter(|limit| started.elapsed() >= *limit) {
                self.process.kill();
                return Err(Error::TimedOut {
                    after,
                    stdout: self.tail(job::STDOUT),
                    stderr: self.tail(job::STDERR),
                    log: self.tail(KERNEL_LOG),
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The kernel's own exit status says nothing about the command: that is in a file.
    fn outcome(&self, status: ExitStatus) -> Result<Status> {
        let log_path = self.dir.path().join(KERNEL_LOG);
        let log_bytes = fs::read(&log_path).map_err(Error::io("read", &log_path))?;
        let log = tail(&log_bytes);
        let result = fs::read_to_string(self.dir.path().join(job::RESULT)).unwrap_or_default();
        match Outcome::decode(&result) {
            Some(Outcome::Ran(status)) => Ok(status),
            Some(Outcome::Failed(message)) => Err(Error::GuestSetUp { message, log }),
            None => {
                let stderr = self.tail(job::STDERR);
                match panic_report(&String::from_utf8_lossy(&log_bytes)) {
                    Some(log) => Err(Error::Panicked { stderr, log }),
                    None => Err(Error::Ended { status, stderr, log }),
                }
            }
        }
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

/// `vda.sock`, `vdb.sock`, …
fn socket_names() -> impl Iterator<Item = String> {
    ('a'..='z').map(|letter| format!("vd{letter}.sock"))
}

/// A directory for one guest. Its path goes into the kernel's command line, so it must be a plain word, and short enough for
/// the address of a socket in it.
fn make_dir() -> Result<tempfile::TempDir> {
    let is_plain = |path: &Path| {
        path.to_str().is_some_and(|path| {
            path.len() <= 60 && path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@~".contains(c))
        })
    };
    let temp = std::env::temp_dir();
    let base = if temp.is_absolute() && is_plain(&temp) { temp } else { PathBuf::from("/tmp") };
    tempfile::Builder::new()
        .prefix("zbd-guest-")
        .tempdir_in(&base)
        .map_err(Error::io("make a directory in", &base))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(Error::io("find", path))
}
