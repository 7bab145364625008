//! Eventfds for rust-vmm's frontend, which wants them in a type of a crate that this one does not depend on.

#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};

use crate::error::{Error, Result};

/// A duplicate of `fd` in whatever type the callee wants.
pub(super) fn lend<T: FromRawFd>(fd: BorrowedFd<'_>) -> Result<T> {
    let twin = fd
        .try_clone_to_owned()
        .map_err(|source| Error::Io { what: "duplicating a file descriptor", source })?;
    // SAFETY: `twin` is open and nobody else owns it: `into_raw_fd` gave its ownership up.
    Ok(unsafe { T::from_raw_fd(twin.into_raw_fd()) })
}
