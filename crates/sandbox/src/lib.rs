//! A cage for a process that serves guests.
//!
//! A server opens its disk and its socket, makes what threads it will need no more than an allocator for, and calls
//! [`Sandbox::enter`] before it starts a thread or reads a byte that a guest has written. From then on, and for good:
//!
//! - **Landlock**: no file can be opened, made, renamed or executed; files may be removed in one directory if that was
//!   asked for. What is open stays usable. No TCP, no abstract sockets outside, no signals to others, where the kernel's
//!   Landlock is new enough to say so.
//! - **seccomp**: only the system calls that a server of these crates makes are allowed: I/O on what is open, memory that
//!   is not executable, threads of this process, time. Looking for files is answered with EACCES (the C library does and
//!   copes), new io_urings with EPERM. Any other call ends the process with SIGSYS, after a line on standard error that
//!   names it.
//! - **No new privileges**: a setuid program would gain nothing, could it be executed.
//!
//! What an io_uring does is not seen by seccomp: make the rings before, restricted (`reserve_rings` of virtio-zbd-store).
//!
//! ```no_run
//! use virtio_zbd_sandbox::Sandbox;
//!
//! let cage = Sandbox::new().remove_files_in("/run/vzbd").enter();
//! for gap in cage.gaps() {
//!     eprintln!("not confined: {gap}");
//! }
//! ```

// The handler that has the last word needs some: one module allows it for itself.
#![deny(unsafe_code)]

mod calls;
mod files;
mod last_words;

use std::path::PathBuf;

/// What a process may still do once it has entered.
#[derive(Clone, Debug, Default)]
pub struct Sandbox {
    remove_in: Vec<PathBuf>,
    also: Vec<i64>,
    controls: Vec<u32>,
}

/// What came of entering. There is no way back.
#[derive(Debug)]
#[must_use]
pub struct Cage {
    files: Result<(), String>,
    calls: Result<(), String>,
}

impl Sandbox {
    /// Nothing but what every server needs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Files (also sockets) may be removed in this directory and below: a server's own socket, at its end. It must exist. There may be several.
    ///
    /// Where Landlock is missing no file can be removed at all.
    #[must_use]
    pub fn remove_files_in(mut self, directory: impl Into<PathBuf>) -> Self {
        self.remove_in.push(directory.into());
        self
    }

    /// System calls that are allowed besides, whatever their arguments, by the numbers of this architecture.
    #[must_use]
    pub fn allow(mut self, calls: &[i64]) -> Self {
        self.also.extend_from_slice(calls);
        self
    }

    /// Device controls (`ioctl`) that are allowed, by their numbers; there are none otherwise.
    #[must_use]
    pub fn allow_controls(mut self, numbers: &[u32]) -> Self {
        self.controls.extend_from_slice(numbers);
        self
    }

    /// Confines this process.
    ///
    /// It must have one thread: Landlock holds for the thread that enters and for those that it starts. Each wall is put up
    /// as far as the kernel can; whether to go on with a gap is the caller's decision.
    pub fn enter(&self) -> Cage {
        let files = files::confine(&self.remove_in);
        // Removing is allowed only where something says in which directory.
        let removes = !self.remove_in.is_empty() && files.is_ok();
        let calls = calls::confine(removes, &self.also, &self.controls);
        Cage { files, calls }
    }
}

impl Cage {
    /// What is not confined, and why; empty if everything is.
    #[must_use]
    pub fn gaps(&self) -> Vec<String> {
        let files = self.files.as_ref().err().map(|why| format!("files (Landlock): {why}"));
        let calls = self.calls.as_ref().err().map(|why| format!("system calls (seccomp): {why}"));
        files.into_iter().chain(calls).collect()
    }
}
