//! Everything between one exec and the next around a guest.
//!
//! - As process 1 of a guest, `guest-init DIRECTORY`: makes the guest's root, runs the job in DIRECTORY (a directory of the
//!   host, see `virtio_zbd_guest::job`), leaves its result there and powers off.
//! - In a guest whose kernel has modules, as `modprobe`: loads one.
//! - In a guest, `guest-init session PROGRAM ARGUMENTS…`: becomes PROGRAM with standard input as its controlling terminal.
//! - On the host, `guest-init launch kernel|daemon PARENT PROGRAM ARGUMENTS…`: becomes PROGRAM, tied to the life of process
//!   PARENT.
#![forbid(unsafe_code)]

mod host;
mod mailbox;
mod modules;
mod network;
mod root;
mod run;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{
    Resource, Rlimit, Signal, getppid, getrlimit, ioctl_tiocsctty, set_parent_process_death_signal,
    setrlimit, setsid,
};
use rustix::system::{RebootCommand, reboot};
use virtio_zbd_guest::job::Outcome;

use host::Host;
use mailbox::Mailbox;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().map(PathBuf::from).unwrap_or_default();
    if name.ends_with(modules::MODPROBE) {
        return end(modules::modprobe(args));
    }
    let first = args.next().unwrap_or_default();
    if std::process::id() == 1 {
        init(Path::new(&first));
    }
    let became = match first.to_str() {
        Some("launch") => launch(args),
        Some("session") => session(args),
        _ => Err(anyhow!("this is process 1 of the project's guests; `cargo xtask guest` starts one")),
    };
    // Who becomes another program does not come here.
    end(became)
}

fn end(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::from(125)
        }
    }
}

/// Process 1 speaks in the kernel's log (its console may have failed to open); on the host, in the log of what is launched.
fn say(message: &str) {
    let line = format!("guest-init: {message}\n");
    if std::process::id() == 1 && fs::write("/dev/kmsg", &line).is_ok() {
        return;
    }
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Process 1 does not return: the kernel would panic.
fn init(dir: &Path) -> ! {
    match Host::reach().and_then(|host| Ok((host, Mailbox::open(host, dir)?))) {
        Ok((host, mut mailbox)) => {
            let outcome =
                do_job(host, &mut mailbox).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
            if let Err(error) = mailbox.post(&outcome) {
                say(&format!("can't leave the result {outcome:?}: {error:#}"));
            }
        }
        Err(error) => say(&format!("{error:#}")),
    }
    root::leave();
    let error = reboot(RebootCommand::PowerOff);
    say(&format!("can't power off: {error:?}"));
    loop {
        std::thread::park();
    }
}

fn do_job(host: Host, mailbox: &mut Mailbox) -> Result<Outcome> {
    let job = mailbox.job()?;
    root::enter(host, &job)?;
    if let Some(dir) = &job.modules {
        modules::install(dir, &mailbox.guest_init)?;
    }
    run::run(host, &job, mailbox)
}

fn session(mut args: impl Iterator<Item = OsString>) -> Result<()> {
    setsid().context("can't make a session")?;
    ioctl_tiocsctty(std::io::stdin()).context("can't take the terminal")?;
    become_program(args.next(), args)
}

fn launch(mut args: impl Iterator<Item = OsString>) -> Result<()> {
    let role = args.next().context("launch: no role")?;
    let parent = args.next().context("launch: no parent")?;
    let signal = match role.to_str() {
        Some("kernel") => {
            // The kernel would do it itself, but after a moment in which a signal to its group finds nobody.
            setsid().context("can't make a session")?;
            // A panic ends in abort(): a core of the whole guest's memory is nothing to leave behind.
            let limit = Rlimit { current: Some(0), ..getrlimit(Resource::Core) };
            setrlimit(Resource::Core, limit).context("can't limit core files")?;
            Signal::KILL
        }
        Some("daemon") => Signal::TERM,
        _ => anyhow::bail!("launch: unknown role {}", role.display()),
    };
    set_parent_process_death_signal(Some(signal)).context("can't tie this process to its parent")?;
    // It may have gone before we asked.
    let now = getppid().map(|pid| pid.as_raw_nonzero().to_string());
    ensure!(now.as_deref() == parent.to_str(), "the parent is gone");
    become_program(args.next(), args)
}

fn become_program(program: Option<OsString>, args: impl Iterator<Item = OsString>) -> Result<()> {
    let program = program.context("no program")?;
    let error = Command::new(&program).args(args).exec();
    Err(error).with_context(|| format!("can't run {}", program.display()))
}
