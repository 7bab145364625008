//! Booting a guest, running a command in it, and getting all of it back.

mod running;
mod uml;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::job::{self, Job, Status};
use crate::process::{Process, Role, launch};
use crate::qemu::{FrontEnd, Qemu, QemuMachine, StockKernel, Surroundings};
use crate::terminal::Terminal;
use crate::{Error, Kernel, Result, programs};

pub use self::running::RunningGuest;
use self::running::Sinks;

/// Enough for the file-system tests; it is taken only as the guest uses it.
const DEFAULT_MEMORY_MIB: u32 = 1024;

/// The kernel's log, in the guest's directory.
const KERNEL_LOG: &str = "kernel.log";

/// virtio-blk names its disks by letter.
const DISKS_MAX: usize = 26;

/// A guest to be booted: what it has, and how long it may run. It is a [User-mode Linux](Guest::new), or a machine of
/// [QEMU's](Guest::in_qemu); all else is the same.
///
/// It sees the host's files, may change them all, and changes none: what it writes is in memory and goes with it. Only a
/// [`share`](Guest::share)d directory is the host's own. Network: `lo`. Process 1 is `guest-init`, the user is root.
///
/// The thread that runs a guest holds it: if the thread dies (or is killed), so does the guest.
#[derive(Clone, Debug)]
pub struct Guest {
    platform: Platform,
    memory_mib: u32,
    disks: Vec<Disk>,
    missing_disks_allowed: bool,
    kernel_args: Vec<String>,
    shares: Vec<PathBuf>,
    env: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    stdin: Vec<u8>,
    timeout: Option<Duration>,
    stop: Option<Arc<AtomicBool>>,
    is_asked_for_qemu: bool,
}

/// What the guest's kernel runs on.
#[derive(Clone, Debug)]
enum Platform {
    Uml(Kernel),
    Qemu(QemuMachine),
}

/// What a disk of a guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// A vhost-user-blk socket.
    Socket(PathBuf),
    /// A file or block device behind QEMU's own virtio-blk.
    Qemus(PathBuf),
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
    /// What the script left that ran the guest [inside](Guest::inside) another one.
    pub host: Option<Box<Output>>,
}

impl Guest {
    /// A User-mode Linux without disks, with 1 GiB of memory and without a time limit.
    #[must_use]
    pub fn new(kernel: &Kernel) -> Guest {
        Guest::on(Platform::Uml(kernel.clone()))
    }

    /// A machine of QEMU's with a distribution's kernel; it needs no virtualization (TCG). Without disks, with 1 GiB of memory, one
    /// processor and without a time limit. It boots in some seconds, where a User-mode Linux takes one or two.
    #[must_use]
    pub fn in_qemu(qemu: &Qemu, kernel: &StockKernel) -> Guest {
        Guest::on(Platform::Qemu(QemuMachine::new(qemu, kernel)))
    }

    fn on(platform: Platform) -> Guest {
        Guest {
            platform,
            memory_mib: DEFAULT_MEMORY_MIB,
            disks: Vec::new(),
            missing_disks_allowed: false,
            kernel_args: Vec::new(),
            shares: Vec::new(),
            env: Vec::new(),
            cwd: None,
            stdin: Vec::new(),
            timeout: None,
            stop: None,
            is_asked_for_qemu: false,
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
        self.disks.push(Disk::Socket(socket.into()));
        self
    }

    /// Attaches a file or block device by QEMU's own virtio-blk device. In QEMU only, like all up to
    /// [`inside`](Guest::inside).
    #[must_use]
    pub fn qemus_disk(mut self, path: impl Into<PathBuf>) -> Guest {
        self.disks.push(Disk::Qemus(path.into()));
        self
    }

    /// Which device of QEMU's attaches the sockets. By default the one that passes each feature bit on.
    #[must_use]
    pub fn front_end(self, front_end: FrontEnd) -> Guest {
        self.with_machine(|machine| machine.front_end = front_end)
    }

    /// How many processors the guest has, and how many queues it takes of each socket: no disk may have fewer.
    #[must_use]
    pub fn processors(self, count: u16) -> Guest {
        self.with_machine(|machine| machine.processors = count)
    }

    /// Adds arguments for QEMU: `-s` waits for a debugger.
    #[must_use]
    pub fn qemu_args<A: Into<OsString>>(self, args: impl IntoIterator<Item = A>) -> Guest {
        self.with_machine(|machine| machine.args.extend(args.into_iter().map(Into::into)))
    }

    /// Runs QEMU in another guest, `host`, for disks that are there only. `script` (of `sh`) has QEMU's command line as `"$@"`, and
    /// does before and after it what is wanted: it sets up a block device, serves it, looks at it. What it leaves is
    /// [`Output::host`].
    #[must_use]
    pub fn inside(self, host: &Guest, script: impl Into<OsString>) -> Guest {
        let host = Box::new((host.clone(), script.into()));
        self.with_machine(|machine| machine.host = Some(host))
    }

    /// A User-mode Linux has none of what `change` changes: there it is a mistake of who calls, and [`check`](Guest::check) says so.
    fn with_machine(mut self, change: impl FnOnce(&mut QemuMachine)) -> Guest {
        match &mut self.platform {
            Platform::Qemu(machine) => change(machine),
            Platform::Uml(_) => self.is_asked_for_qemu = true,
        }
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
        self.boot(argv, Some(&terminal))?.follow(self.timeout, self.stop.as_deref(), &mut Sinks::default())
    }

    /// Boots, and gives back the running guest at once. The limits of [`timeout`](Guest::timeout) and
    /// [`stop_when`](Guest::stop_when) are not kept: the caller has the guest in its hands.
    ///
    /// # Errors
    /// The guest could not be started.
    pub fn start<A: Into<OsString>>(&self, argv: impl IntoIterator<Item = A>) -> Result<RunningGuest> {
        self.boot(argv.into_iter().map(Into::into).collect(), None)
    }

    fn run_job(&self, argv: Vec<OsString>, mut sinks: Sinks<'_>) -> Result<Output> {
        let mut running = self.boot(argv, None)?;
        let status = running.follow(self.timeout, self.stop.as_deref(), &mut sinks)?;
        running.left(status)
    }

    fn boot(&self, argv: Vec<OsString>, terminal: Option<&Terminal>) -> Result<RunningGuest> {
        self.check(&argv)?;
        let guest_init = programs::guest_init()?;
        let dir = make_dir()?;
        self.write_job(dir.path(), argv, terminal)?;
        let link = |to: &Path, name: &str| {
            let path = dir.path().join(name);
            symlink(to, &path).map_err(Error::io("link", &path))
        };
        link(&guest_init, job::INIT)?;
        let log = dir.path().join(KERNEL_LOG);
        // Appending: the kernel writes its log through more than one open file.
        let log_file =
            File::options().create(true).append(true).open(&log).map_err(Error::io("open", &log))?;
        let mut command = match &self.platform {
            Platform::Uml(kernel) => {
                let mut names = Vec::new();
                for (disk, name) in self.disks.iter().zip(socket_names()) {
                    if let Disk::Socket(socket) = disk {
                        link(&absolute(socket)?, &name)?;
                    }
                    names.push(name);
                }
                let (memory_mib, args) = (self.memory_mib, &self.kernel_args);
                uml::command(kernel, &guest_init, dir.path(), memory_mib, &names, args, terminal.is_some())?
            }
            Platform::Qemu(machine) => {
                let words = machine.words(&Surroundings {
                    dir: dir.path(),
                    log: &log,
                    guest_init: &guest_init,
                    memory_mib: self.memory_mib,
                    disks: &self.disks,
                    shares: &self.absolute_shares()?,
                    kernel_args: &self.kernel_args,
                    is_interactive: terminal.is_some(),
                })?;
                if let Some((host, script)) = machine.host.as_deref() {
                    let start = ["sh".into(), "-c".into(), script.clone(), "sh".into()];
                    let host = self.shares.iter().fold(host.clone(), |host, share| host.share(share));
                    let host = host.share(dir.path()).boot(start.into_iter().chain(words).collect(), None)?;
                    return Ok(RunningGuest::inside(host, dir));
                }
                let mut command = launch(&guest_init, Role::Kernel, Path::new(&words[0]));
                command.args(&words[1..]);
                command
            }
        };
        command.stdin(terminal.map_or(Ok(Stdio::null()), |terminal| terminal.lend().map(Stdio::from))?);
        let output = match (&self.platform, terminal) {
            // A User-mode Linux writes where it reads.
            (Platform::Qemu(_), Some(terminal)) => terminal.lend()?,
            _ => log_file.try_clone().map_err(Error::io("duplicate", &log))?,
        };
        command.stdout(output).stderr(log_file);
        Ok(RunningGuest::new(Process::start(&mut command)?, dir))
    }

    fn write_job(&self, dir: &Path, argv: Vec<OsString>, terminal: Option<&Terminal>) -> Result<()> {
        let job = Job {
            argv,
            env: self.env.clone(),
            cwd: match &self.cwd {
                Some(cwd) => cwd.clone(),
                None => std::env::current_dir().map_err(Error::io("find", "the working directory"))?,
            },
            shares: self.absolute_shares()?,
            disk_count: if self.missing_disks_allowed { 0 } else { self.disks.len() },
            terminal: terminal.map(Terminal::size),
            modules: match &self.platform {
                Platform::Uml(_) => None,
                Platform::Qemu(machine) => Some(machine.kernel.modules()),
            },
        };
        for (name, bytes) in [
            (job::JOB, job.encode()?.as_slice()),
            (job::STDIN, &self.stdin),
            (job::STDOUT, b""),
            (job::STDERR, b""),
        ] {
            let path = dir.join(name);
            fs::write(&path, bytes).map_err(Error::io("write", &path))?;
        }
        Ok(())
    }

    fn absolute_shares(&self) -> Result<Vec<PathBuf>> {
        self.shares.iter().map(|share| absolute(share)).collect()
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
        let is_inside = match &self.platform {
            Platform::Uml(_) => {
                let is_qemus = |disk: &&Disk| matches!(disk, Disk::Qemus(_));
                if self.is_asked_for_qemu || self.disks.iter().any(|disk| is_qemus(&disk)) {
                    return bad("the guest", OsStr::new("User-mode Linux"), "has no devices of QEMU's");
                }
                false
            }
            Platform::Qemu(machine) => machine.host.is_some(),
        };
        for disk in &self.disks {
            // What is in another guest can't be looked at from here.
            if let (Disk::Socket(socket), false) = (disk, is_inside) {
                let meta = fs::metadata(socket).map_err(Error::io("find the socket", socket))?;
                if !meta.file_type().is_socket() {
                    return bad("the disk", socket.as_os_str(), "is not a socket");
                }
            }
        }
        if self.disks.len() > DISKS_MAX {
            let count = self.disks.len().to_string();
            return bad("the number of disks", count.as_ref(), "is more than 26");
        }
        Ok(())
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
