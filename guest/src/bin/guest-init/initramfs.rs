//! Process 1 of a guest in a machine of QEMU's: its files are in memory, and it has two serial lines, one for the kernel and one
//! for what the command writes.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, init_module, reboot};

use super::say;

/// What it is told on the kernel's command line.
pub(crate) const ROLE: &str = "initramfs";

/// The second serial line.
const OUTPUT: &str = "/dev/ttyS1";

/// The command's words, each with a 0 behind it.
const JOB: &str = "/job";

/// In the order of their names.
const MODULES: &str = "/modules";

const PATH: &str = "/bin";

/// Does the job and powers off. Process 1 does not return: the kernel would panic.
pub(crate) fn init() -> ! {
    if let Err(error) = run() {
        say(&format!("{error:#}"));
    }
    rustix::fs::sync();
    let error = reboot(RebootCommand::PowerOff);
    say(&format!("can't power off: {error:?}"));
    loop {
        std::thread::park();
    }
}

fn run() -> Result<()> {
    for (kind, dir) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/tmp")] {
        mount(kind, dir, kind, MountFlags::empty(), None).with_context(|| format!("can't mount {dir}"))?;
    }
    let entries = fs::read_dir(MODULES).with_context(|| format!("can't read {MODULES}"))?;
    let mut modules: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    modules.sort();
    for path in modules {
        let name = || path.display().to_string();
        let module = fs::read(&path).with_context(name)?;
        init_module(&module, c"").with_context(|| format!("can't load {}", path.display()))?;
    }
    let job = fs::read(JOB).with_context(|| format!("can't read {JOB}"))?;
    let job = String::from_utf8(job).with_context(|| format!("{JOB} is no text"))?;
    let words: Vec<_> = job.split_terminator('\0').collect();
    ensure!(!words.is_empty(), "there is nothing to do");
    let output = open_output()?;
    let duplicate = || output.try_clone().with_context(|| format!("can't duplicate {OUTPUT}"));
    let status = Command::new(words[0])
        .args(&words[1..])
        .env_clear()
        .env("PATH", PATH)
        .stdin(File::open("/dev/null").context("can't open /dev/null")?)
        .stdout(duplicate()?)
        .stderr(duplicate()?)
        .status();
    // As a shell has it: not found, or killed.
    let (error, code) = match status {
        Ok(status) => (String::new(), status.code().unwrap_or(128)),
        Err(error) => (format!("{}: {error}", words[0]), 127),
    };
    let line = format!("{error}\nguest-init: the command ended with {code}\n");
    std::io::Write::write_all(&mut &output, line.as_bytes()).context("can't write its end")?;
    // All of it has to be out before the machine goes.
    rustix::termios::tcdrain(&output).context("can't wait for the serial line")
}

fn open_output() -> Result<File> {
    ensure!(Path::new(OUTPUT).exists(), "the machine has no second serial line");
    OpenOptions::new().write(true).open(OUTPUT).with_context(|| format!("can't open {OUTPUT}"))
}
