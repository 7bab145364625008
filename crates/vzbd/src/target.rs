//! What a command works on: a socket, or an image or zoned device of the host that is served in this process while the command runs. Either way it is
//! our own driver at the end of a vhost-user connection, so that a command does the same to both.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use virtio_zbd_driver::{Error, Options, VirtioBlk, Wait, Waited, ZoneSupport, Zoned};
use virtio_zbd_store::{HostStore, ImageFault, ImageStore, OpenOptions, RawStore, Store, StoreError};
use virtio_zbd_vhost_user::client::{
    ArenaBuffer, ArenaHal, ConnectError, ConnectOptions, Lost, Monitor, VhostUserTransport,
};
use vzbd::{ServeOptions, ServedDisk};

use crate::cli::{TargetArgs, Zoned as Model};
use crate::{host, refusal, store_error, wrong_call};

/// Our driver on a vhost-user socket.
pub(crate) type Driver = VirtioBlk<ArenaHal, VhostUserTransport, ArenaBuffer>;

/// What the command is going to do with the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Look only: an image is opened for reading, beside other readers.
    Read,
    /// Change it; what was done is flushed at the end.
    Write,
}

/// A disk in use by a command.
pub(crate) struct Target {
    pub(crate) driver: Driver,
    name: String,
    connection: Connection,
    access: Access,
    queues_offered: u16,
    /// Where this process serves the disk itself.
    served: Option<ServedDisk>,
}

impl Target {
    /// Takes the disk into use, with one queue.
    ///
    /// # Errors
    /// There is no such disk, somebody else has it, or what answers is no disk.
    pub(crate) fn open(args: &TargetArgs, access: Access) -> anyhow::Result<Self> {
        Self::with(args, access, Options::default())
    }

    /// As [`open`](Self::open), with as many queues and descriptors as `options` say.
    pub(crate) fn with(args: &TargetArgs, access: Access, options: Options) -> anyhow::Result<Self> {
        if is_socket(&args.target)? {
            if args.zoned.is_some() {
                return Err(wrong_call(
                    "--zoned goes with files; who serves a socket knows what is behind it",
                ));
            }
            return Self::attach(&args.target, &args.target, args.timeout, access, options, None);
        }
        // The connection needs no name once it is made.
        let (_place, served) = serve(args, access, options.queues.max(1))?;
        let socket = served.socket().to_owned();
        Self::attach(&args.target, &socket, args.timeout, access, options, Some(served))
    }

    /// Attaches to the back-end at `socket`; messages call it `name`.
    pub(crate) fn attach(
        name: &Path,
        socket: &Path,
        timeout: Duration,
        access: Access,
        options: Options,
        served: Option<ServedDisk>,
    ) -> anyhow::Result<Self> {
        let name = name.display().to_string();
        let connect = ConnectOptions { timeout, ..ConnectOptions::default() };
        let transport =
            VhostUserTransport::connect(socket, &connect).map_err(|error| unconnected(&name, &error))?;
        let queues_offered = transport.queue_count();
        let wait = Patience::new(timeout);
        let connection =
            Connection { monitor: transport.monitor(), gave_up: Arc::clone(&wait.gave_up), timeout };
        let options = Options { zones: ZoneSupport::HostAware, ..options };
        let driver = match VirtioBlk::with(transport, options, wait, ArenaBuffer::zeroed) {
            Ok(driver) => driver,
            Err(error) => return Err(connection.failure(&name, &error)),
        };
        Ok(Self { driver, name, connection, access, queues_offered, served })
    }

    /// What messages call the disk.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How many queues the back-end has.
    pub(crate) fn queues_offered(&self) -> u16 {
        self.queues_offered
    }

    /// Whether this process serves the disk itself.
    pub(crate) fn is_offline(&self) -> bool {
        self.served.is_some()
    }

    /// The zones.
    ///
    /// # Errors
    /// The disk has none.
    pub(crate) fn zoned(&self) -> anyhow::Result<Zoned> {
        self.driver
            .zoned()
            .copied()
            .ok_or_else(|| wrong_call(format!("{}: the disk has no zones", self.name)))
    }

    /// Does one thing with the disk, and turns an error into one that a person can read.
    ///
    /// # Errors
    /// What the driver said, with the zone's state and what to do about it, or why the connection was lost.
    pub(crate) fn call<T>(
        &mut self,
        call: impl FnOnce(&mut Driver) -> Result<T, Error>,
    ) -> anyhow::Result<T> {
        call(&mut self.driver).map_err(|error| self.explain(&error))
    }

    /// An error of the driver, for a person.
    pub(crate) fn explain(&mut self, error: &Error) -> anyhow::Error {
        match error {
            Error::Device { request, sector, status } => {
                let said = refusal::text(&mut self.driver, *request, *sector, *status);
                anyhow::anyhow!("{}: {said}", self.name)
            }
            error => self.connection.failure(&self.name, error),
        }
    }

    /// Ends the use: flushes what a command has changed, and closes a disk of our own.
    ///
    /// # Errors
    /// What was done may not be durable.
    pub(crate) fn close(mut self) -> anyhow::Result<()> {
        if self.access == Access::Write && !self.driver.read_only() {
            self.call(VirtioBlk::flush)?;
        }
        // The connection first, then who is behind it.
        drop(self.driver);
        match self.served {
            Some(served) => {
                served.stop().with_context(|| format!("{} could not be closed cleanly", self.name))
            }
            None => Ok(()),
        }
    }
}

/// Sleeps until the device calls, as long as it may take for one answer.
pub(crate) struct Patience {
    timeout: Duration,
    end: Instant,
    /// What this has come to, for [`Connection`].
    gave_up: Arc<AtomicBool>,
}

impl Patience {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, end: Instant::now(), gave_up: Arc::default() }
    }
}

impl Wait<VhostUserTransport> for Patience {
    fn wait(&mut self, transport: &mut VhostUserTransport, queue: u16, turn: u64) -> Waited {
        let now = Instant::now();
        if turn == 0 {
            self.end = now + self.timeout;
        }
        let left = self.end.saturating_duration_since(now);
        if left.is_zero() {
            self.gave_up.store(true, Ordering::Relaxed);
            return Waited::GiveUp;
        }
        match transport.wait_used(queue, left) {
            Ok(_) => Waited::Again,
            Err(_) => Waited::Gone,
        }
    }
}

/// What is known of a connection besides what the driver says.
struct Connection {
    monitor: Monitor,
    /// A request was not answered in time.
    gave_up: Arc<AtomicBool>,
    timeout: Duration,
}

impl Connection {
    /// Why there is no answer to be had from the disk.
    fn failure(&self, name: &str, error: &Error) -> anyhow::Error {
        if let Error::Invalid(invalid) = error {
            return wrong_call(format!("{name}: {invalid}"));
        }
        // Before the connection: a disk that does not answer may not answer the messages either that end it.
        if self.gave_up.load(Ordering::Relaxed) {
            return anyhow::anyhow!(
                "{name}: the disk took a request and did not answer it in {}; --timeout waits longer",
                seconds(self.timeout)
            );
        }
        match self.monitor.lost() {
            // Whatever the driver made of it, this is where it began.
            Some(lost) => anyhow::anyhow!("{name}: {}", lost_text(&lost)),
            None => anyhow::anyhow!("{name}: {error}"),
        }
    }
}

/// Why there is no connection to be had, for a person.
pub(crate) fn unconnected(name: &str, error: &ConnectError) -> anyhow::Error {
    match error {
        ConnectError::Socket { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            wrong_call(format!("{name}: there is no such socket"))
        }
        ConnectError::Socket { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
            anyhow::anyhow!("{name}: nobody listens on this socket; was `vzbd serve` ended? Start it again")
        }
        ConnectError::Socket { action, source, .. } => anyhow::anyhow!("{name}: can't {action}: {source}"),
        ConnectError::Lost { lost: lost @ Lost::TimedOut { .. }, .. } => anyhow::anyhow!(
            "{name}: {lost}; somebody else may be connected, and most back-ends serve one at a time; --timeout waits longer"
        ),
        ConnectError::Lost { lost, .. } => anyhow::anyhow!("{name}: {}", lost_text(lost)),
        ConnectError::Memory(error) => anyhow::anyhow!("{name}: {error}"),
        ConnectError::NoQueues { .. } => anyhow::anyhow!("{name}: the back-end says that it has no queues"),
    }
}

/// Why the connection was lost, and what may be done.
pub(crate) fn lost_text(lost: &Lost) -> String {
    let hint = match lost {
        Lost::TimedOut { .. } => "; --timeout waits longer",
        Lost::Closed { request: Some(_) } => {
            "; its log should say why, if it is a vhost-user back-end at all"
        }
        Lost::Closed { request: None } => "; was it ended? Its log should say why",
        Lost::NotTheReply { .. } | Lost::ReplySize { .. } | Lost::Unrequested => {
            "; is it a vhost-user back-end?"
        }
        _ => "",
    };
    format!("{lost}{hint}")
}

/// Whether the target is an image, by what it is and by what the call says that it is.
///
/// # Errors
/// There is nothing of that name.
pub(crate) fn is_image(args: &TargetArgs) -> anyhow::Result<bool> {
    Ok(!is_socket(&args.target)? && args.zoned != Some(Model::None) && !is_device(&args.target))
}

fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.file_type().is_block_device())
}

/// Whether `path` is a socket.
///
/// # Errors
/// There is nothing of that name.
pub(crate) fn is_socket(path: &Path) -> anyhow::Result<bool> {
    match fs::metadata(path) {
        Ok(file) => Ok(file.file_type().is_socket()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path == Path::new("ram") => {
            Err(wrong_call("`ram` is a disk of `vzbd serve` only; name the socket where it is served"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(wrong_call(format!("{}: there is no such socket or image ({error})", path.display())))
        }
        Err(error) => Err(anyhow::anyhow!("{}: {error}", path.display())),
    }
}

/// Serves the disk in a file that nobody serves, on a socket in a directory of our own: nobody else can connect.
///
/// # Errors
/// There is no such disk, or somebody else has it.
pub(crate) fn serve(
    args: &TargetArgs,
    access: Access,
    queues: u16,
) -> anyhow::Result<(tempfile::TempDir, ServedDisk)> {
    let store = store(args, access)?;
    let place = private_dir().context("there is no place for a socket")?;
    let options = ServeOptions { queues, ..ServeOptions::default() };
    let served = ServedDisk::start(store, options, &place.path().join("disk.sock"))
        .with_context(|| format!("{} can't be served", args.target.display()))?;
    Ok((place, served))
}

/// The disk in a file or device that nobody serves.
fn store(args: &TargetArgs, access: Access) -> anyhow::Result<Arc<dyn Store>> {
    let read_only = access == Access::Read;
    let path = &args.target;
    if host::is_host_managed(path, args.zoned.unwrap_or(Model::HostManaged))? {
        return Ok(Arc::new(HostStore::open(path, read_only).map_err(in_use)?));
    }
    if args.zoned == Some(Model::None) {
        return Ok(Arc::new(RawStore::open(path, read_only).map_err(in_use)?));
    }
    let options = OpenOptions { read_only, ..OpenOptions::default() };
    let store = ImageStore::open(path, options).map_err(|error| match error {
        StoreError::Image { fault: ImageFault::NotAFile { .. } | ImageFault::NotAnImage { .. }, .. } => {
            anyhow::anyhow!("{error} (--zoned none uses a file or device as a disk without zones)")
        }
        error => in_use(error),
    })?;
    Ok(Arc::new(store))
}

/// A store's error; with the way to a disk that is being served.
pub(crate) fn in_use(error: StoreError) -> anyhow::Error {
    match error {
        StoreError::InUse { .. } => {
            anyhow::anyhow!("{error}; if it is being served, use the socket where it is served instead")
        }
        error => store_error(error),
    }
}

/// A directory that is ours alone, with a path that leaves room for a socket's name.
pub(crate) fn private_dir() -> io::Result<tempfile::TempDir> {
    /// A socket's path has 107 bytes.
    const PATH_LEN_MAX: usize = 80;
    let dir = match std::env::temp_dir() {
        dir if dir.as_os_str().len() <= PATH_LEN_MAX => dir,
        _ => "/tmp".into(),
    };
    tempfile::Builder::new().prefix("vzbd-").tempdir_in(dir)
}

/// A duration as it is given on the command line.
fn seconds(timeout: Duration) -> String {
    match timeout.as_secs_f64() {
        1.0 => "1 second".into(),
        seconds => format!("{seconds} seconds"),
    }
}
