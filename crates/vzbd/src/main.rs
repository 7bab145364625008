//! `vzbd`: zoned disks for virtual machines.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program talks to its user")]

mod attach;
mod bench;
mod check;
mod cli;
mod conform;
mod create;
mod data;
mod demo;
mod geometry;
mod host;
mod info;
mod parse;
mod profile;
mod progress;
mod record;
mod refusal;
mod replay;
mod report;
mod resize;
mod sandbox;
mod serve;
mod size;
mod target;
mod zones;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use virtio_zbd_store::StoreError;

use crate::cli::{Cli, Command, ZoneCommand};
use crate::zones::Action;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Who serves says what goes on. The others say what went wrong, in one line, and the connection's end is part of that.
    let level = match cli.command {
        Command::Serve(_) => "info",
        // What an opening would warn of is among the findings.
        Command::Check(_) => "error",
        // What is refused is what was tried, and stands in the table.
        Command::Conform(_) => "error,virtio_zbd_vhost_user=off,virtio_zbd_device=off",
        _ => "warn,virtio_zbd_vhost_user::client=off",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level)).init();
    let done = match cli.command {
        Command::Create(args) => create::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Demo => demo::run(),
        Command::Profiles(args) => profile::list(&args),
        Command::Info(args) => info::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Open(args) => zones::run(&args, Action::Open),
        Command::Close(args) => zones::run(&args, Action::Close),
        Command::Finish(args) => zones::run(&args, Action::Finish),
        Command::Reset(args) => zones::run(&args, Action::Reset),
        Command::Zone(ZoneCommand::SetState(args)) => zones::set_state(&args),
        Command::Resize(args) => resize::run(&args),
        Command::Read(args) => data::read(&args),
        Command::Write(args) => data::write(&args),
        Command::Append(args) => data::append(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Conform(args) => conform::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads our output has seen enough (`vzbd report … | head`), and there is nothing to tell them.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(1),
        Err(error) if error.is::<check::Found>() || error.is::<conform::Failed>() => ExitCode::from(1),
        Err(error) => {
            eprintln!("vzbd: {}", in_one_line(&error));
            ExitCode::from(if error.is::<WrongCall>() { 2 } else { 1 })
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.downcast_ref::<io::Error>().is_some_and(broken)
        || error
            .downcast_ref::<serde_json::Error>()
            .is_some_and(|error| error.io_error_kind() == Some(io::ErrorKind::BrokenPipe))
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

/// The error with a note in brackets; it ends the program as it would without.
fn noted(error: &anyhow::Error, note: std::fmt::Arguments<'_>) -> anyhow::Error {
    let text = format!("{} ({note})", in_one_line(error));
    if error.is::<WrongCall>() { wrong_call(text) } else { anyhow::anyhow!(text) }
}

/// An error that says the call was wrong.
fn wrong_call(what: impl std::fmt::Display) -> anyhow::Error {
    WrongCall(what.to_string()).into()
}
