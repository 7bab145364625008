//! `cargo xtask …`: set-up, guests, the whole test run.
#![forbid(unsafe_code)]

mod baremetal;
mod cargo;
mod fuzz;
mod guest;
mod miri;
mod test;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use virtio_zbd_guest::{Kernel, Qemu};

/// Set-up, guests, the whole test run.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
enum Task {
    Guest(Box<guest::Args>),
    Baremetal(baremetal::Args),
    Test(test::Args),
    Fuzz(fuzz::Args),
    Miri(miri::Args),
    /// Build the guests' Linux kernel unless it is in the cache, and print its path.
    Kernel,
    /// Download a QEMU with zoned disks unless the machine has one (or it is in the cache), and print its path.
    Qemu,
}

fn main() -> ExitCode {
    let task = Task::parse();
    let (result, own_failure) = match task {
        // Any status may be the command's own: ours is one that commands seldom use.
        Task::Guest(args) => (guest::run(&args), guest::OWN_FAILURE),
        Task::Baremetal(args) => (baremetal::run(&args), 1),
        Task::Test(args) => (test::run(&args), 1),
        Task::Fuzz(args) => (fuzz::run(&args), 1),
        Task::Miri(args) => (miri::run(&args), 1),
        Task::Kernel => (print_path(Kernel::ensure(&mut say).map(|kernel| kernel.path().to_path_buf())), 1),
        Task::Qemu => (print_path(Qemu::ensure(&mut say).map(|qemu| qemu.path().to_path_buf())), 1),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let code = guest::failure_code(&error).unwrap_or(own_failure);
            // Whoever stops reading knows it.
            if code != guest::BROKEN_PIPE {
                say(&format!("{error:#}"));
            }
            ExitCode::from(code)
        }
    }
}

fn print_path(path: virtio_zbd_guest::Result<PathBuf>) -> Result<ExitCode> {
    writeln!(std::io::stdout(), "{}", path?.display()).context("can't print the path")?;
    Ok(ExitCode::SUCCESS)
}

/// On standard error: standard output belongs to what was asked for. A terminal that has gone away is no reason to fail.
fn say(message: &str) {
    let _ = writeln!(std::io::stderr(), "xtask: {message}");
}

/// True after Ctrl-C and the like; a second one ends the program at once.
fn interrupt_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag down.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
            .context("can't take signals")?;
    }
    Ok(flag)
}
