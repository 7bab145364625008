//! `vzbd`: zoned disks for virtual machines.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program talks to its user")]

mod attach;
mod backend;
mod cli;
mod create;
mod geometry;
mod info;
mod report;
mod serve;
mod size;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use virtio_zbd_store::StoreError;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let done = match cli.command {
        Command::Create(args) => create::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Report(args) => report::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vzbd: {}", in_one_line(&error));
            ExitCode::from(if error.is::<WrongCall>() { 2 } else { 1 })
        }
    }
}

/// The error and its causes. Many messages name their cause already: it is not said twice.
fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |line, cause| {
        let cause = cause.to_string();
        match line.as_str() {
            "" => cause,
            said if said.contains(&cause) => line,
            said => format!("{said}: {cause}"),
        }
    })
}

/// The call itself was wrong: exit status 2. Everything else that fails is exit status 1.
#[derive(Debug)]
struct WrongCall(String);

impl std::fmt::Display for WrongCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongCall {}

/// A store's error; a file that is not there is a wrong call.
fn store_error(error: StoreError) -> anyhow::Error {
    match &error {
        StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => wrong_call(error),
        _ => error.into(),
    }
}

/// Prints a text and a line's end, at once: who waits for it may read from a pipe.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// An error that says the call was wrong.
fn wrong_call(what: impl std::fmt::Display) -> anyhow::Error {
    WrongCall(what.to_string()).into()
}
