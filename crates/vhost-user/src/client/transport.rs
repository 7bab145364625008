//! The transport, as drivers see it.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::arena::arena;
use super::dial::connect_socket;
use super::queue::Place;
use super::session::{ConfigFault, Session};
use super::{ConnectError, Lost, Monitor};

/// How to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// How long the back-end may take to answer a message, and how long an orderly stop of all queues may
    /// take. 5 seconds by default.
    pub timeout: Duration,
    /// How many entries a queue may have: the protocol has no way to ask. 1024 by default, which is what
    /// QEMU's back-ends take.
    pub queue_size_max: u16,
    /// How long to wait for another back-end at the same path when this one has closed the connection; None: the
    /// connection is lost then. None by default. See [the module](super) for what is asked of a back-end.
    pub reconnect: Option<Duration>,
}

/// A device behind a vhost-user socket.
///
/// It is a block device, as far as [`device_type`](Transport::device_type) is concerned; nothing else here
/// depends on that. Drivers must use [`ArenaHal`](super::ArenaHal).
///
/// Queues are started when the driver sets DRIVER_OK, and stopped when it sets the status to 0 or drops the
/// transport: in an orderly way, so that the back-end is done with the memory. Rings are dropped after that, not
/// before. After status 0 the device can be initialised again.
///
/// If the connection is lost, [`get_status`](Transport::get_status) says DEVICE_NEEDS_RESET, methods do
/// nothing, and [`monitor`](Self::monitor) tells why. There is no way back from that but a new connection
/// (except for [`Lost::QueueFailed`] and [`Lost::QueueUnusable`], which a reset repairs).
#[derive(Debug)]
pub struct VhostUserTransport {
    session: Mutex<Session>,
    monitor: Monitor,
    queue_count: u16,
    queue_size_max: u16,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), queue_size_max: 1024, reconnect: None }
    }
}

impl VhostUserTransport {
    /// Connects to the back-end that listens at `path`.
    ///
    /// # Errors
    ///
    /// Nobody listens there, the process has no memory to share, or the back-end does not answer as it should.
    pub fn connect(path: &Path, options: &ConnectOptions) -> Result<Self, ConnectError> {
        let arena = arena()?;
        let socket = connect_socket(path, options.timeout)?;
        let monitor = Monitor::default();
        let session = Session::begin(socket, path, options, monitor.clone(), arena)
            .map_err(|lost| ConnectError::Lost { path: path.to_owned(), lost })?;
        let queue_count = u16::try_from(session.queue_count()).unwrap_or(u16::MAX);
        if queue_count == 0 {
            return Err(ConnectError::NoQueues { path: path.to_owned() });
        }
        let queue_size_max = options.queue_size_max;
        Ok(Self { session: Mutex::new(session), monitor, queue_count, queue_size_max })
    }

    /// How many queues the back-end has: 1 to 256.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        self.queue_count
    }

    /// Whether the device itself says whether FEATURES_OK stands: protocol feature STATUS. Without, a back-end can only refuse by
    /// an answer to SET_FEATURES, and many never do: whether features are right is then its front-end's to know.
    #[must_use]
    pub fn shows_status(&self) -> bool {
        self.lock().shows_status()
    }

    /// What tells, from any thread, why the connection was lost.
    #[must_use]
    pub fn monitor(&self) -> Monitor {
        self.monitor.clone()
    }

    /// Sleeps until the device calls for `queue`: true. It may have called for nothing: look into the ring.
    /// Or until the time is over: false.
    ///
    /// A change of the configuration space does not end the wait;
    /// [`ack_interrupt`](Transport::ack_interrupt) tells of it afterwards. If the back-end has died, another one is waited
    /// for ([`ConnectOptions::reconnect`]), even if that takes longer than `timeout`; it counts as a call.
    ///
    /// # Errors
    ///
    /// The connection is lost, or the back-end has given up a queue. What the device completed before is
    /// in the ring.
    pub fn wait_used(&mut self, queue: u16, timeout: Duration) -> Result<bool, Lost> {
        self.session().wait_used(queue, timeout)
    }

    fn session(&mut self) -> &mut Session {
        self.session.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// What goes wrong in here cannot be returned: the monitor has it, and the log.
impl Transport for VhostUserTransport {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn read_device_features(&mut self) -> u64 {
        self.session().features().unwrap_or(0)
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.session().set_driver_features(driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        if queue < self.queue_count { self.queue_size_max.into() } else { 0 }
    }

    fn notify(&mut self, queue: u16) {
        if let Some(events) = self.session().queue_mut(queue).and_then(|queue| queue.running.as_ref()) {
            events.kick.notify();
        }
    }

    fn get_status(&self) -> DeviceStatus {
        self.lock().status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        let _ = self.session().set_status(status);
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let place = Place { size, desc: descriptors, avail: driver_area, used: device_area };
        let _ = self.session().place_queue(queue, place);
    }

    fn queue_unset(&mut self, queue: u16) {
        let _ = self.session().unset_queue(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.session().queue_mut(queue).is_some_and(|queue| queue.place.is_some())
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let interrupt = self.session().take_interrupt();
        let mut status = InterruptStatus::empty();
        status.set(InterruptStatus::QUEUE_INTERRUPT, interrupt.used);
        status.set(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT, interrupt.config);
        status
    }

    fn read_config_generation(&self) -> u32 {
        self.lock().config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut session = self.lock();
        let bytes = session.config(offset, size_of::<T>())?;
        T::read_from_bytes(bytes).map_err(|_| Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<(), Error> {
        Ok(self.session().write_config(offset, value.as_bytes())?)
    }
}

impl Drop for VhostUserTransport {
    fn drop(&mut self) {
        let session = self.session();
        // Nobody waits for what is in flight.
        session.forgo_reconnect();
        if session.is_running() {
            let _ = session.set_status(DeviceStatus::empty());
        }
    }
}

impl From<ConfigFault> for Error {
    fn from(fault: ConfigFault) -> Self {
        match fault {
            ConfigFault::Missing => Self::ConfigSpaceMissing,
            ConfigFault::TooSmall => Self::ConfigSpaceTooSmall,
            ConfigFault::Refused => Self::Unsupported,
            ConfigFault::Lost => Self::IoError,
        }
    }
}
