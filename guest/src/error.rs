//! What can go wrong between a source package and a command's result.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// Short for a result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Set-up, boot or disk failed. Each says what was tried, what was found and, where there is something to do, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file, directory or program could not be used.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `start`.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Debian packages are missing and this process may not install them.
    #[error(
        "these packages are missing: {}\ninstall them as root: apt-get update && apt-get install -y --no-install-recommends {}",
        names.join(", "),
        names.join(" ")
    )]
    MissingPackages {
        /// Their names.
        names: Vec<String>,
    },
    /// This host has no `apt-get`.
    #[error(
        "this host has no apt-get, and these are missing (under the names of Debian's packages): {}{}",
        names.join(", "),
        own_kernel_hint(names)
    )]
    NotDebian {
        /// Debian's names of what is missing.
        names: Vec<String>,
    },
    /// The package sources offer no such package.
    #[error(
        "the package sources of this host have no {name}{}; add the suite that has it (for bookworm: security or backports)",
        if similar.is_empty() { String::new() } else { format!(", only {}", similar.join(", ")) }
    )]
    NoSuchPackage {
        /// What was looked for.
        name: &'static str,
        /// What there is of that kind.
        similar: Vec<String>,
    },
    /// User-mode Linux exists for x86 only.
    #[error(
        "User-mode Linux runs on x86_64 only, and this is {0}: run the tests with `cargo xtask test --no-guest`"
    )]
    WrongMachine(&'static str),
    /// A program that was run to the end failed.
    #[error("{what} failed ({status}); the end of {}:\n{tail}", log.display())]
    Command {
        /// What was done, as a noun: `the kernel's build`.
        what: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Where all of its output is.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// The kernel's configuration did not take every line of the fragment.
    #[error("the kernel's configuration does not keep these lines of guest/uml.config: {}", lines.join("; "))]
    Config {
        /// The lines that are not so in `.config`.
        lines: Vec<String>,
    },
    /// The kernel was never built here.
    #[error("no User-mode Linux kernel in {}: build it with `cargo xtask kernel` (`cargo xtask test` does it, too)", cache.display())]
    NoKernel {
        /// Where it would be.
        cache: PathBuf,
    },
    /// There is no QEMU that will do, and none was downloaded yet.
    #[error(
        "no QEMU of {} or newer along PATH or in {}: get one with `cargo xtask qemu` (`cargo xtask test` does it, too)",
        crate::qemu::OLDEST,
        cache.display()
    )]
    NoQemu {
        /// Where a downloaded one would be.
        cache: PathBuf,
    },
    /// The QEMU that was named is too old, or is none.
    #[error("the QEMU at {} is {found}; {oldest} or newer is needed", path.display())]
    UnfitQemu {
        /// Which program.
        path: PathBuf,
        /// Its version, or what it printed instead of one.
        found: String,
        /// The oldest that will do.
        oldest: crate::qemu::Version,
    },
    /// Packages of a newer Debian than the machine's own can't be downloaded.
    #[error(
        "{what} is needed and can't be downloaded: {problem}; {instead} run the tests with `cargo xtask test --no-guest`{}",
        tails(&[("log", tail)])
    )]
    NoDownload {
        /// What is wanted.
        what: &'static str,
        /// Why not.
        problem: String,
        /// Another way to get it; empty, or it ends in "or".
        instead: &'static str,
        /// The end of what was tried.
        tail: String,
    },
    /// There is no stock kernel in the cache.
    #[error(
        "no Linux kernel for QEMU's machines in {}: get one with `cargo xtask test`",
        cache.display()
    )]
    NoStockKernel {
        /// Where it would be.
        cache: PathBuf,
    },
    /// There is no home directory and nothing else says where to keep files.
    #[error(
        "no place for the cache: none of {}, XDG_CACHE_HOME and HOME is set",
        crate::cache::CACHE_VARIABLE
    )]
    NoCacheDir,
    /// One of the workspace's programs is not built.
    #[error("{} is not built: run `cargo build --workspace` (or set {variable} to its path)", path.display())]
    NoProgram {
        /// Where it was looked for.
        path: PathBuf,
        /// The environment variable that names another place.
        variable: &'static str,
    },
    /// No directory can hold the guest's memory.
    #[error("no directory can hold the guest's memory of {wanted_mib} MiB: {}; set TMPDIR to one that can", rejected.join(", "))]
    NoRoomForMemory {
        /// How much was wanted.
        wanted_mib: u32,
        /// Each directory that was looked at, and what was wrong.
        rejected: Vec<String>,
    },
    /// Something about the guest that was asked for can't be passed on.
    #[error("{what} {value:?}: {problem}")]
    BadRequest {
        /// Which part of the request.
        what: &'static str,
        /// As it was given.
        value: String,
        /// Why not.
        problem: &'static str,
    },
    /// The time was over; nothing of the guest is left running.
    #[error("the guest did not finish in {after:?} and was stopped{}", tails(&[("standard output", stdout), ("standard error", stderr), ("kernel log", log)]))]
    TimedOut {
        /// The time that was granted.
        after: Duration,
        /// The end of the command's standard output so far.
        stdout: String,
        /// The end of its standard error so far.
        stderr: String,
        /// The end of the kernel's log.
        log: String,
    },
    /// The guest's kernel panicked.
    #[error("the guest's kernel panicked{}", tails(&[("standard error", stderr), ("kernel log", log)]))]
    Panicked {
        /// The end of the command's standard error.
        stderr: String,
        /// The end of the kernel's log.
        log: String,
    },
    /// The guest ended without the command's result: powered off from inside, or killed.
    #[error("the guest ended ({status}) before its command did{}", tails(&[("standard error", stderr), ("kernel log", log)]))]
    Ended {
        /// How the kernel's process ended.
        status: ExitStatus,
        /// The end of the command's standard error.
        stderr: String,
        /// The end of the kernel's log.
        log: String,
    },
    /// The guest came up but could not start the command's surroundings: a mount failed, a disk is not there.
    #[error("the guest could not be set up: {message}{}", tails(&[("kernel log", log)]))]
    GuestSetUp {
        /// What its init said.
        message: String,
        /// The end of the kernel's log.
        log: String,
    },
    /// Stopped on request (see [`Guest::stop_when`](crate::Guest::stop_when)); nothing of the guest is left running.
    #[error("interrupted")]
    Interrupted,
    /// `vzbd` did not do its part.
    #[error("vzbd {what}{}", tails(&[("log", log)]))]
    Disk {
        /// Which part.
        what: String,
        /// The end of what it wrote on standard error.
        log: String,
    },
}

impl Error {
    /// For `map_err`: an [`Error::Io`] that knows what was tried on what.
    pub(crate) fn io(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { what, path, source }
    }
}

/// Without the source there is still a way: a kernel from somewhere else.
fn own_kernel_hint(names: &[String]) -> String {
    if !names.iter().any(|name| name == crate::packages::KERNEL_SOURCE) {
        return String::new();
    }
    let variable = crate::KERNEL_VARIABLE;
    format!(
        "\ninstall them, or set {variable}=PATH to a User-mode Linux kernel with the options of guest/uml.config"
    )
}

/// The ends of the texts that are not empty, each under its name.
fn tails(texts: &[(&str, &String)]) -> String {
    let parts = texts.iter().filter(|(_, text)| !text.trim().is_empty());
    parts.map(|(name, text)| format!("\n--- {name} ---\n{}", text.trim_end())).collect()
}
