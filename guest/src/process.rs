//! Child processes that leave nothing behind: they die with us, and in time.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};

use crate::{Error, Result};

/// How long the system may take to clear away what was killed.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);

const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What `guest-init launch` becomes, and how it dies with us.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// A session of its own (its processes are one group); killed when our thread is gone.
    Kernel,
    /// Asked to end (SIGTERM) when our thread is gone.
    Daemon,
}

/// A command line that starts `program` by way of `guest-init launch`, which arranges what can't be arranged from outside a
/// process without unsafe code: that it does not outlive the thread which started it.
pub(crate) fn launch(guest_init: &Path, role: Role, program: &Path) -> Command {
    let mut command = Command::new(guest_init);
    let role = match role {
        // Makes a session, which a group's leader can't do.
        Role::Kernel => "kernel",
        Role::Daemon => {
            // Ctrl-C is for us: we stop the daemon in our own order.
            command.process_group(0);
            "daemon"
        }
    };
    command.arg("launch").arg(role).arg(std::process::id().to_string()).arg(program);
    command
}

/// A running child with its process group; killed and waited for when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Process> {
        let child = command.spawn().map_err(Error::io("start", command.get_program()))?;
        Ok(Process { child, ended: None })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, if it has. Whatever is left of its group is killed while its number is still taken by it.
    pub(crate) fn poll(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let exited = waitid(WaitId::Pid(self.pid()), options)
                .map_err(|errno| Error::io("wait for", "a child process")(errno.into()))?;
            if exited.is_some() {
                self.signal_group(Signal::KILL);
                let status = self.child.wait().map_err(Error::io("wait for", "a child process"))?;
                self.ended = Some(status);
            }
        }
        Ok(self.ended)
    }

    /// Waits until it has ended; `None` when that takes longer than `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.poll()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sends a signal to the process alone.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            let _ = kill_process(self.pid(), signal);
        }
    }

    /// Kills it and its group, and waits until the system has cleared them away.
    pub(crate) fn kill(&mut self) {
        if self.ended.is_some() {
            return;
        }
        // The process itself, too: it may not have come to make its own group yet.
        self.signal_group(Signal::KILL);
        self.signal(Signal::KILL);
        let group = self.pid();
        if let Ok(status) = self.child.wait() {
            self.ended = Some(status);
        }
        let deadline = Instant::now() + REAP_TIMEOUT;
        while group_runs(group) && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(self.pid(), signal);
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

/// Whether a process of the group still runs. Zombies do not: a container's process 1 may never bury them.
fn group_runs(group: Pid) -> bool {
    let group = group.as_raw_nonzero().to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats.into_iter().any(|stat| {
        // proc_pid_stat(5): the name in parentheses may contain anything; behind it state, parent, group.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        let state = fields.next();
        fields.nth(1) == Some(group.as_str()) && !matches!(state, Some("Z" | "X"))
    })
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
