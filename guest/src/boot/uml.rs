//! The command line of a User-mode Linux: the kernel is a program of this machine.

use std::path::Path;
use std::process::Command;

use crate::process::{Role, launch};
use crate::{Kernel, Result, memory, packages};

/// Starts the kernel with the guest's directory as its host's end of everything. All names in the command line are ours and plain:
/// links in `dir` stand for whatever the caller's files are called.
pub(super) fn command(
    kernel: &Kernel,
    guest_init: &Path,
    dir: &Path,
    memory_mib: u32,
    sockets: &[String],
    kernel_args: &[String],
    interactive: bool,
) -> Result<Command> {
    let mut command = buffered_by_lines(guest_init, kernel.path());
    command.args(words(dir, memory_mib, interactive));
    command.args(sockets.iter().map(|name| format!("virtio_uml.device={}/{name}:2", dir.display())));
    command.args(kernel_args).arg("--").arg(dir);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("TMPDIR", memory::choose_dir(memory_mib)?);
    Ok(command)
}

/// The kernel writes its first lines with printf. Into a file that means: when 4 KiB are full, or never if it hangs before.
fn buffered_by_lines(guest_init: &Path, kernel: &Path) -> Command {
    let Some(stdbuf) = packages::program("stdbuf") else {
        return launch(guest_init, Role::Kernel, kernel);
    };
    let mut command = launch(guest_init, Role::Kernel, &stdbuf);
    command.arg("--output=L").arg(kernel);
    command
}

fn words(dir: &Path, memory_mib: u32, interactive: bool) -> Vec<String> {
    let dir = dir.display();
    // The log is on ttyS0: on standard output first and later on standard error. Consoles have nothing behind them, but for
    // an interactive guest's.
    let words = format!(
        "mem={memory_mib}M root=hostfs rootfstype=hostfs rootflags=/ ro init={dir}/init panic=-1 null_blk.nr_devices=0 scsi_debug.add_host=0 \
         uml_dir={dir}/uml/ umid=guest earlyprintk console=ttyS0 ssl=null ssl0=null,fd:2 con=null con0={}",
        if interactive { "fd:0" } else { "null" },
    );
    words.split_ascii_whitespace().map(str::to_owned).collect()
}
