//! Where `vzbd serve` listens, and the cage in which it does.

use std::path::Path;

use anyhow::{Context, bail};
use virtio_zbd_sandbox::Sandbox;
use virtio_zbd_store::{HostStore, Store, reserve_rings};
use virtio_zbd_vhost_user::{Error, Server};

use crate::cli::{IoEngine, OnOff, ServeArgs};
use crate::wrong_call;

/// The first descriptor that a supervisor hands over (`sd_listen_fds(3)`).
const LISTEN_FDS_START: i32 = 3;

/// The socket: one of our own, or one that whoever started us has made.
pub(crate) fn listen(args: &ServeArgs) -> anyhow::Result<Server> {
    let given = match (&args.socket, args.socket_fd) {
        (Some(path), _) => return Ok(Server::bind(path)?),
        (None, Some(number)) => Some(number),
        (None, None) => supervisor_s()?,
    };
    let Some(number) = given else {
        return Err(wrong_call(
            "where to listen? --socket PATH makes a socket; --socket-fd N takes one that is open already, as LISTEN_FDS of a supervisor does",
        ));
    };
    Server::inherit(number).map_err(|error| match error {
        Error::NotAListener { .. } | Error::NotInherited { .. } => {
            wrong_call(format!("file descriptor {number}: {error}"))
        }
        other => other.into(),
    })
}

/// The descriptor that a supervisor has left for this very process.
fn supervisor_s() -> anyhow::Result<Option<i32>> {
    let said = |name| std::env::var(name).ok();
    // Variables of somebody further up are not for us.
    if said("LISTEN_PID").as_deref() != Some(std::process::id().to_string().as_str()) {
        return Ok(None);
    }
    match said("LISTEN_FDS").as_deref() {
        Some("1") => Ok(Some(LISTEN_FDS_START)),
        other => Err(wrong_call(format!(
            "LISTEN_FDS is {}, one socket is expected: give the unit a single ListenStream",
            other.unwrap_or("not set")
        ))),
    }
}

/// Confines this process to what it has open. The store and the socket are there; no thread, and no front-end yet.
pub(crate) fn enter(args: &ServeArgs, server: &Server, store: &dyn Store) -> anyhow::Result<()> {
    if args.sandbox == Some(OnOff::Off) {
        return Ok(());
    }
    // No ring can be made inside, since nothing there could say what it may be used for.
    if args.io != IoEngine::Sync
        && let Err(error) = reserve_rings(args.queues.into())
    {
        match args.io {
            IoEngine::Uring => return Err(error).context("io_uring can't be used"),
            _ => log::debug!("no io_uring: {error}"),
        }
    }
    let mut sandbox = Sandbox::new();
    if store.keeps_conditions() {
        sandbox = sandbox.allow_controls(&HostStore::IOCTLS);
    }
    // Its own sockets' files, at the end.
    let sockets = [args.socket.as_ref().map(|_| server.path()), args.control.as_deref()];
    for socket in sockets.into_iter().flatten() {
        let directory = socket.parent().filter(|parent| !parent.as_os_str().is_empty());
        sandbox = sandbox.remove_files_in(directory.unwrap_or(Path::new(".")));
    }
    let gaps = sandbox.enter().gaps();
    if args.sandbox == Some(OnOff::On) && !gaps.is_empty() {
        bail!(
            "--sandbox on: not all of it can be had here: {}; leave --sandbox away to take what there is",
            gaps.join("; ")
        );
    }
    for gap in gaps {
        log::warn!("not confined: {gap}");
    }
    Ok(())
}
