//! `cargo xtask …`: set-up, guests, the whole test run.
#![forbid(unsafe_code)]

mod cargo;
mod guest;
mod test;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use virtio_zbd_guest::Kernel;

/// Set-up, guests, the whole test run.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
enum Task {
    Guest(Box<guest::Args>),
    Test(test::Args),
    /// Build the guests' Linux kernel unless it is in the cache, and print its path.
    Kernel,
}

fn main() -> ExitCode {
    let task = Task::parse();
    let (result, own_failure) = match task {
        // Any status may be the command's own: ours is one that commands seldom use.
        Task::Guest(args) => (guest::run(&args), guest::OWN_FAILURE),
        Task::Test(args) => (test::run(&args), 1),
        Task::Kernel => (kernel(), 1),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::from(guest::failure_code(&error).unwrap_or(own_failure))
        }
    }
}

fn kernel() -> Result<ExitCode> {
    let kernel = Kernel::ensure(&mut say)?;
    print_line(&kernel.path().display().to_string());
    Ok(ExitCode::SUCCESS)
}

/// On standard error: standard output belongs to what was asked for.
#[allow(clippy::print_stderr, reason = "a program's own message")]
fn say(message: &str) {
    eprintln!("xtask: {message}");
}

#[allow(clippy::print_stdout, reason = "a program's own output")]
fn print_line(line: &str) {
    println!("{line}");
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
