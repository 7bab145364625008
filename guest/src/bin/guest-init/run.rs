//! Running the job's command as process 1: passing on what it writes, burying what it leaves.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, wait};
use rustix::termios::{Winsize, tcsetwinsize};
use virtio_zbd_guest::job::{Job, Outcome, Status};

use crate::host::Host;
use crate::mailbox::Mailbox;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a shell returns for a command that is not there, or that can't be run.
const NOT_FOUND: i32 = 127;
const NOT_RUNNABLE: i32 = 126;

/// How long the output of a command that has ended may stay silent before it counts as ended, too: what it left in the
/// background may hold the pipe open for ever.
const QUIET_MS: i64 = 200;

/// A disk is there when the kernel starts process 1 (or has loaded a module), or hardly later.
const DISK_TIMEOUT: Duration = Duration::from_secs(2);

/// An emulated processor takes its time.
const EMULATED_DISK_TIMEOUT: Duration = Duration::from_secs(20);

impl Host {
    fn disk_timeout(self) -> Duration {
        match self {
            Host::Uml => DISK_TIMEOUT,
            Host::Qemu => EMULATED_DISK_TIMEOUT,
        }
    }

    /// The terminal of an interactive command.
    fn console(self) -> &'static str {
        match self {
            Host::Uml => "/dev/tty0",
            Host::Qemu => "/dev/hvc0",
        }
    }
}

/// Runs the command to its end.
///
/// # Errors
/// It could not be tried. A command that can't be found or run is a status, as in a shell.
pub(crate) fn run(host: Host, job: &Job, mailbox: &mut Mailbox) -> Result<Outcome> {
    await_disks(job.disk_count, host.disk_timeout())?;
    std::env::set_current_dir(&job.cwd)
        .with_context(|| format!("the working directory {} is not in the guest", job.cwd.display()))?;
    let Some(program) = job.argv.first() else { bail!("the job has no command") };

    let mut command = match job.terminal {
        Some((rows, columns)) => {
            let mut session = on_console(host.console(), rows, columns)?;
            session.arg(program);
            session
        }
        None => Command::new(program),
    };
    command.args(&job.argv[1..]);
    command.env_clear().env("PATH", PATH).env("HOME", "/root").env("USER", "root").env("LANG", "C.UTF-8");
    command.envs(job.env.iter().map(|(name, value)| (name, value)));
    if job.terminal.is_none() {
        let stdin = mailbox.stdin.try_clone().context("can't duplicate the command's input")?;
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let status = match command.spawn() {
        Ok(child) => attend(child, mailbox)?,
        Err(error) => {
            let name = program.display();
            writeln!(mailbox.stderr, "{name}: {error}")
                .with_context(|| format!("can't say that {name} fails"))?;
            Status::Exited(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_RUNNABLE })
        }
    };
    Ok(Outcome::Ran(status))
}

fn await_disks(count: usize, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    for letter in ('a'..='z').take(count) {
        let path = format!("/dev/vd{letter}");
        while !Path::new(&path).exists() {
            if Instant::now() >= deadline {
                bail!("{path} did not appear: the kernel could not attach the socket, or refused the disk");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// `guest-init session`, to which the command's own words are yet to be added, on the kernel's console.
fn on_console(path: &str, rows: u16, columns: u16) -> Result<Command> {
    let console = OpenOptions::new().read(true).write(true).open(path).context("can't open the console")?;
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&console, size).context("can't set the console's size")?;
    let copy = || console.try_clone().context("can't duplicate the console");
    let mut command = Command::new("/proc/self/exe");
    command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
    command.arg("session");
    Ok(command)
}

/// Passes on the child's output until it has ended, and then what is left in the pipes.
fn attend(mut child: Child, mailbox: &mut Mailbox) -> Result<Status> {
    let pid = Pid::from_child(&child);
    let alive = pidfd_open(pid, PidfdFlags::empty()).context("can't watch the command")?;
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    let mut status = None;
    loop {
        let mut waiting = Vec::with_capacity(3);
        let mut watch = |fd| waiting.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match status {
            None => watch(alive.as_fd()),
            Some(status) if stdout.is_none() && stderr.is_none() => return Ok(status),
            Some(_) => {}
        }
        let out = stdout.as_ref().map(|pipe| watch(pipe.as_fd())).is_some();
        let err = stderr.as_ref().map(|pipe| watch(pipe.as_fd())).is_some();

        let quiet = Timespec { tv_sec: 0, tv_nsec: QUIET_MS * 1_000_000 };
        let limit = status.is_some().then_some(&quiet);
        let ready = match poll(&mut waiting, limit) {
            Ok(ready) => ready,
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno).context("can't wait for the command"),
        };
        if let (0, Some(status)) = (ready, status) {
            return Ok(status);
        }
        let mut is_ready = waiting.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>().into_iter();
        if status.is_none() && is_ready.next() == Some(true) {
            status = bury(pid);
        }
        if out && is_ready.next() == Some(true) {
            pass_on(&mut stdout, &mut mailbox.stdout)?;
        }
        if err && is_ready.next() == Some(true) {
            pass_on(&mut stderr, &mut mailbox.stderr)?;
        }
    }
}

/// One read's worth; the pipe is dropped at its end.
fn pass_on(pipe: &mut Option<impl Read>, to: &mut File) -> Result<()> {
    let Some(from) = pipe else { return Ok(()) };
    let mut buffer = [0; 64 * 1024];
    match from.read(&mut buffer) {
        Ok(0) => *pipe = None,
        Ok(len) => to.write_all(&buffer[..len]).context("can't pass on the command's output")?,
        Err(error) if error.kind() == ErrorKind::Interrupted => {}
        Err(error) => return Err(error).context("can't read the command's output"),
    }
    Ok(())
}

/// Waits for all that have ended, the command and orphans alike; the command's status if it is among them.
fn bury(command: Pid) -> Option<Status> {
    let mut found = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == command {
            found = Some(to_status(status));
        }
    }
    found
}

fn to_status(status: WaitStatus) -> Status {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Status::Exited(code),
        (None, Some(signal)) => Status::Killed(signal),
        (None, None) => Status::Killed(0),
    }
}
