//! The way to the disk: our driver's raw side on a vhost-user socket, made anew where the back-end ends it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use virtio_zbd_conform::Link;
use virtio_zbd_conform::driver::{DriverLink, Reconnect};
use virtio_zbd_vhost_user::client::{ArenaHal, ConnectError, ConnectOptions, Monitor, VhostUserTransport};
use vzbd::ServedDisk;

use super::disk::Description;
use crate::cli::TargetArgs;
use crate::target::{Access, Patience, is_socket, lost_text, serve, unconnected};
use crate::wrong_call;

/// How many descriptors each queue gets.
const QUEUE_DEPTH: u16 = 128;
/// How many queues a disk has that is served in this process.
const QUEUES: u16 = 4;

/// A disk that is ready for the cases.
pub(super) struct Connected {
    link: DriverLink<ArenaHal, VhostUserTransport>,
    name: String,
    /// Where this process serves the disk itself, and where.
    served: Option<(tempfile::TempDir, ServedDisk)>,
}

impl Connected {
    /// Connects to the disk; an image is served in this process.
    ///
    /// # Errors
    /// There is no such disk, somebody else has it, or nobody answers.
    pub(super) fn open(args: &TargetArgs, access: Access) -> anyhow::Result<Self> {
        let name = args.target.display().to_string();
        let served = match is_socket(&args.target)? {
            true if args.zoned.is_some() => {
                return Err(wrong_call(
                    "--zoned goes with files; who serves a socket knows what is behind it",
                ));
            }
            true => None,
            false => Some(serve(args, access, QUEUES)?),
        };
        let socket = served.as_ref().map_or(args.target.as_path(), |(_, served)| served.socket());
        let mut way = Way::new(socket, args.timeout);
        let transport = way.connect().map_err(|error| unconnected(&name, &error))?;
        let shows_status = transport.shows_status();
        let link = DriverLink::new(transport, QUEUE_DEPTH, Patience::new(args.timeout))
            .map_err(|error| anyhow::anyhow!("{name}: {error}"))?
            .showing_features_ok(shows_status)
            .reconnecting(way);
        Ok(Self { link, name, served })
    }

    pub(super) fn link(&mut self) -> &mut dyn Link {
        &mut self.link
    }

    /// What the disk says that it is.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) fn describe(&mut self) -> anyhow::Result<Description> {
        Description::of(&self.name, &mut self.link).map_err(|error| anyhow::anyhow!("{}: {error}", self.name))
    }

    /// Ends the use.
    ///
    /// # Errors
    /// A disk that is served in this process could not be closed.
    pub(super) fn close(self) -> anyhow::Result<()> {
        // The connection first, then who is behind it.
        drop(self.link);
        match self.served {
            Some((_place, served)) => {
                served.stop().with_context(|| format!("{} could not be closed cleanly", self.name))
            }
            None => Ok(()),
        }
    }
}

/// A socket to connect to, again where the connection was lost.
struct Way {
    socket: PathBuf,
    options: ConnectOptions,
    /// Of the latest connection.
    monitor: Option<Monitor>,
}

impl Way {
    fn new(socket: &Path, timeout: Duration) -> Self {
        let options = ConnectOptions { timeout, ..ConnectOptions::default() };
        Self { socket: socket.to_owned(), options, monitor: None }
    }

    fn connect(&mut self) -> Result<VhostUserTransport, ConnectError> {
        let transport = VhostUserTransport::connect(&self.socket, &self.options)?;
        self.monitor = Some(transport.monitor());
        Ok(transport)
    }
}

impl Reconnect<VhostUserTransport> for Way {
    fn reconnect(&mut self) -> Result<VhostUserTransport, String> {
        self.connect().map_err(|error| error.to_string())
    }

    fn why(&self) -> Option<String> {
        Some(lost_text(&self.monitor.as_ref()?.lost()?))
    }
}
