//! One connection to a back-end, from the first message to the last: what is sent when.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use virtio_drivers::transport::DeviceStatus;

use super::arena::Arena;
use super::back::BackChannel;
use super::channel::Deadline;
use super::config::{Config, longest};
use super::inflight::Inflight;
use super::link::Link;
use super::queue::{Events, Place, Queue, take_event};
use super::recover::Reconnect;
use super::{ConnectOptions, Lost, Monitor};
use crate::message::ProtocolFeatures;

/// How often a stopped queue is looked at until what was in flight is done.
const DRAIN_PAUSE: Duration = Duration::from_millis(1);

/// VIRTIO_F_EVENT_IDX: notifications are asked for by index (virtio 1.x, 2.7.10).
const FEATURE_EVENT_IDX: u64 = 1 << 29;

/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const AVAIL_NO_INTERRUPT: u16 = 1;

/// A connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) link: Link,
    /// How long an exchange may take.
    pub(super) timeout: Duration,
    /// None: a back-end that dies is not waited for.
    pub(super) reconnect: Option<Reconnect>,
    monitor: Monitor,
    pub(super) arena: &'static Arena,
    pub(super) back: Option<BackChannel>,
    pub(super) config: Config,
    pub(super) queues: Vec<Queue>,
    queue_size_max: u16,
    /// As long as queues run, if the back-end tracks its requests and another one may come in its place.
    pub(super) inflight: Option<Inflight>,
    pub(super) driver_features: u64,
    /// What the driver has set, without what the device did not take.
    pub(super) status: DeviceStatus,
    pub(super) interrupt: Interrupt,
    /// The device was reset while there was no back-end: one is looked for when something is asked of it.
    pub(super) detached: bool,
}

/// What has happened and was not asked for yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Interrupt {
    /// The device has called for a queue.
    pub(super) used: bool,
    /// The configuration space has changed.
    pub(super) config: bool,
}

/// Why the driver's write to the configuration space was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ConfigFault {
    Missing,
    TooSmall,
    Refused,
    Lost,
}

impl Session {
    /// Begins a connection on a connected socket, up to where a driver can begin.
    pub(super) fn begin(
        socket: OwnedFd,
        path: &Path,
        options: &ConnectOptions,
        monitor: Monitor,
        arena: &'static Arena,
    ) -> Result<Self, Lost> {
        let &ConnectOptions { timeout, queue_size_max, reconnect } = options;
        let link = Link::begin(socket, timeout, reconnect.is_some())?;
        let mut queues = Vec::new();
        queues.resize_with(link.ask_queue_count()?.into(), Queue::default);
        let back = link.open_back_channel()?;
        Ok(Self {
            link,
            timeout,
            reconnect: reconnect.map(|patience| Reconnect::new(path.to_owned(), patience)),
            monitor,
            arena,
            back,
            config: Config::new(),
            queues,
            queue_size_max,
            inflight: None,
            driver_features: 0,
            status: DeviceStatus::empty(),
            interrupt: Interrupt::default(),
            detached: false,
        })
    }

    /// How many queues the device has, at most 256.
    pub(super) fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Whether the device's status is the device's own word.
    pub(super) fn shows_status(&self) -> bool {
        self.link.has(ProtocolFeatures::STATUS)
    }

    /// The queue of an index.
    pub(super) fn queue_mut(&mut self, queue: u16) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(queue))
    }

    /// The virtio features on offer, as far as a driver here may accept them.
    pub(super) fn features(&mut self) -> Result<u64, Lost> {
        self.attempt(|session| session.link.ask_features())
    }

    /// What will be sent when FEATURES_OK is set.
    pub(super) fn set_driver_features(&mut self, features: u64) {
        self.driver_features = features;
    }

    /// A back-end that dies from now on is not waited for.
    pub(super) fn forgo_reconnect(&mut self) {
        self.reconnect = None;
    }

    /// Does `step` unless the connection is lost already. If it gets lost now, all ends here.
    fn attempt<T>(&mut self, step: impl FnMut(&mut Self) -> Result<T, Lost>) -> Result<T, Lost> {
        match self.monitor.lost() {
            Some(lost) => Err(lost),
            None => self.insist(step),
        }
    }

    /// Does `step`; once more, from its beginning, with each new back-end that comes in the place of one that dies over it.
    fn insist<T>(&mut self, mut step: impl FnMut(&mut Self) -> Result<T, Lost>) -> Result<T, Lost> {
        loop {
            let lost = match step(self) {
                Ok(done) => return Ok(done),
                Err(lost) => lost,
            };
            self.recover(lost).inspect_err(|lost| self.lose(lost))?;
        }
    }

    fn lose(&mut self, lost: &Lost) {
        log::error!("the connection to the back-end is lost: {lost}");
        self.monitor.set(Some(lost.clone()));
        if lost.is_repairable() {
            return;
        }
        self.let_go();
        self.queues.iter_mut().for_each(|queue| queue.running = None);
    }
}

/// The device status, and what hangs on it.
impl Session {
    /// What the device's status is; DEVICE_NEEDS_RESET if the connection is lost.
    pub(super) fn status(&mut self) -> DeviceStatus {
        if self.detached {
            return self.status;
        }
        let status = self.attempt(|session| {
            session.look(None, Deadline::after(Duration::ZERO))?;
            if session.link.has(ProtocolFeatures::STATUS) {
                session.link.ask_status()
            } else {
                Ok(session.status)
            }
        });
        status.unwrap_or(self.status | DeviceStatus::DEVICE_NEEDS_RESET)
    }

    /// The driver sets the status. What the device does not take shows in [`status`](Self::status).
    pub(super) fn set_status(&mut self, status: DeviceStatus) -> Result<(), Lost> {
        if status.is_empty() { self.reset() } else { self.attempt(|session| session.advance(status)) }
    }

    fn advance(&mut self, mut status: DeviceStatus) -> Result<(), Lost> {
        let new = status & !self.status;
        if self.status.is_empty() {
            self.read_config()?;
        }
        let mut told = None;
        if new.contains(DeviceStatus::FEATURES_OK) {
            let mut accepted = self.link.tell_features(self.driver_features)?;
            if accepted && self.link.has(ProtocolFeatures::STATUS) {
                self.link.tell_status(status & !DeviceStatus::DRIVER_OK)?;
                accepted = self.link.ask_status()?.contains(DeviceStatus::FEATURES_OK);
                told = Some(status & !DeviceStatus::DRIVER_OK);
            }
            if accepted {
                self.link.tell_memory(self.arena)?;
            } else {
                // The device has cleared it by itself, or was not told of it.
                status.remove(DeviceStatus::FEATURES_OK);
                told = told.map(|told| told & !DeviceStatus::FEATURES_OK);
            }
        }
        let start = DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK;
        if new.contains(DeviceStatus::DRIVER_OK) && status.contains(start) {
            self.start_queues()?;
        }
        if self.link.has(ProtocolFeatures::STATUS) && told != Some(status) {
            self.link.tell_status(status)?;
        }
        self.link.settle()?;
        self.status = status;
        Ok(())
    }

    /// Status 0: all rings are stopped, and the device forgets everything but the connection.
    fn reset(&mut self) -> Result<(), Lost> {
        let result = match self.monitor.lost() {
            Some(lost) if !lost.is_repairable() => Err(lost),
            _ => {
                self.monitor.set(None);
                self.reset_device().or_else(|lost| self.reset_without(lost))
            }
        };
        self.queues.iter_mut().for_each(|queue| *queue = Queue::default());
        self.config.written.clear();
        self.status = DeviceStatus::empty();
        self.interrupt = Interrupt::default();
        self.driver_features = 0;
        result
    }

    /// The back-end has died over the reset, or before. It has nothing in flight any more, and nobody waits for another one
    /// for that: whoever only wants to leave could do so.
    fn reset_without(&mut self, lost: Lost) -> Result<(), Lost> {
        if self.reconnect.is_none() || !matches!(lost, Lost::Closed { .. }) {
            self.lose(&lost);
            return Err(lost);
        }
        log::warn!("{lost}, and the device is reset");
        self.let_go();
        self.inflight = None;
        self.detached = true;
        Ok(())
    }

    /// There is no back-end behind the connection any more, as far as it shows.
    pub(super) fn let_go(&mut self) {
        // A back-end that has rings may go on working on them, whatever has become of the socket.
        if self.is_running() {
            self.arena.quarantine();
        }
        self.back = None;
        self.link.close();
    }

    fn reset_device(&mut self) -> Result<(), Lost> {
        let count = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        self.stop_queues(0..count)?;
        if self.link.has(ProtocolFeatures::STATUS) {
            self.link.tell_status(DeviceStatus::empty())?;
        } else if self.link.has(ProtocolFeatures::RESET_DEVICE) && !self.status.is_empty() {
            self.link.reset_device()?;
        }
        self.link.settle()
    }
}

/// Queues.
impl Session {
    /// The driver says where a queue is. It is started with DRIVER_OK, or at once if that is set.
    pub(super) fn place_queue(&mut self, index: u16, place: Place) -> Result<(), Lost> {
        self.attempt(|session| {
            let Some(queue) = session.queue_mut(index) else {
                return Err(Lost::QueueUnusable { queue: index, reason: "the device has no such queue" });
            };
            queue.place = Some(place);
            if session.status.contains(DeviceStatus::DRIVER_OK | DeviceStatus::FEATURES_OK) {
                session.start_queue(index, place, 0)?;
                session.link.settle()?;
            }
            Ok(())
        })
    }

    /// Stops a queue and forgets it.
    pub(super) fn unset_queue(&mut self, index: u16) -> Result<(), Lost> {
        // A queue that the back-end has given up is stopped all the same: its memory is free afterwards.
        let stopped = match self.monitor.lost() {
            Some(lost) if !lost.is_repairable() => Err(lost),
            _ => self.insist(|session| session.stop_queues(std::iter::once(index))),
        };
        if let Some(queue) = self.queue_mut(index) {
            *queue = Queue::default();
        }
        stopped
    }

    /// True if a queue was started and not stopped.
    pub(super) fn is_running(&self) -> bool {
        self.queues.iter().any(|queue| queue.running.is_some())
    }

    fn start_queues(&mut self) -> Result<(), Lost> {
        let places: Vec<_> = self
            .queues
            .iter()
            .enumerate()
            .filter(|(_, queue)| queue.running.is_none())
            .filter_map(|(index, queue)| Some((u16::try_from(index).ok()?, queue.place?)))
            .collect();
        places.into_iter().try_for_each(|(index, place)| self.start_queue(index, place, 0))
    }

    /// Starts a queue whose next entry of the available ring is `base`.
    pub(super) fn start_queue(&mut self, index: u16, place: Place, base: u16) -> Result<(), Lost> {
        self.provide_inflight(index, place)?;
        self.link.place_queue(index, self.arena, place, base)?;
        let Some(queue) = self.queues.get_mut(usize::from(index)) else { return Ok(()) };
        queue.called = false;
        // From the kick on the back-end may use the memory.
        let events = queue.running.insert(Events::new()?);
        self.link.start_queue(index, events)
    }

    /// Sees to it that the back-end has a region to track its requests in, before its first queue starts.
    fn provide_inflight(&mut self, index: u16, place: Place) -> Result<(), Lost> {
        if self.reconnect.is_none() {
            return Ok(());
        }
        if self.inflight.is_none() && !self.is_running() {
            let queues = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
            self.inflight = self.link.ask_inflight(queues, self.queue_size_max)?;
        }
        let Self { inflight: Some(inflight), link, .. } = self else { return Ok(()) };
        if place.size > inflight.queue_size().into() {
            let reason = "it is longer than the longest that was said to be possible";
            return Err(Lost::QueueUnusable { queue: index, reason });
        }
        link.tell_inflight(inflight)
    }

    /// Stops those of `queues` that run, in an orderly way: the back-end is done with their memory afterwards.
    /// All of them together take no longer than one exchange may.
    fn stop_queues(&mut self, queues: impl Iterator<Item = u16>) -> Result<(), Lost> {
        let deadline = self.link.deadline();
        let mut stopped = Vec::new();
        for index in queues {
            let Some(&mut Queue { place: Some(place), running: Some(_), .. }) = self.queue_mut(index) else {
                continue;
            };
            self.hush(place);
            let taken = self.link.stop_queue(index, deadline)?;
            if let Some(queue) = self.queue_mut(index) {
                queue.running = None;
                queue.called = false;
            }
            stopped.push((index, place, taken));
        }
        stopped.into_iter().for_each(|(index, place, taken)| self.drain(index, place, taken, deadline));
        if !self.is_running() {
            // What is in it belongs to rings that are no more.
            self.inflight = None;
        }
        Ok(())
    }

    /// Says in the ring that no calls are wanted any more (virtio 1.x, 2.7.7).
    ///
    /// QEMU's library forgets the call eventfd when it is told to stop a queue; if something in flight is
    /// completed after that, it fails to call, and ends the connection.
    fn hush(&self, place: Place) {
        let word = |addr, value| {
            if let Some(word) = self.arena.word(addr) {
                word.store(value, Ordering::SeqCst);
            }
        };
        if self.driver_features & FEATURE_EVENT_IDX == 0 {
            word(place.avail, AVAIL_NO_INTERRUPT);
        } else if let Some(used) = self.arena.word(place.used.wrapping_add(2)) {
            // Half of all indices away from the next one: used_event comes after the available ring.
            let far = used.load(Ordering::Acquire).wrapping_add(1 << 15);
            word(place.avail.wrapping_add(4 + 2 * u64::from(place.size)), far);
        }
    }

    /// A back-end should have done all that it took before it answers GET_VRING_BASE. QEMU's library does not
    /// wait for it. What is still in flight is given the time that is left; then the memory is given up.
    fn drain(&self, index: u16, place: Place, taken: u16, deadline: Deadline) {
        // The used ring: flags, then the index.
        let used = self.arena.word(place.used.wrapping_add(2));
        while used.is_none_or(|used| used.load(Ordering::Acquire) != taken) {
            if deadline.is_over() {
                log::warn!(
                    "queue {index} was stopped with requests in flight: their memory is not used again"
                );
                self.arena.quarantine();
                return;
            }
            thread::sleep(DRAIN_PAUSE);
        }
    }
}

/// Interrupts.
impl Session {
    /// Waits until the device calls for a queue: true. Or until the time is over: false.
    pub(super) fn wait_used(&mut self, index: u16, timeout: Duration) -> Result<bool, Lost> {
        if self.take_call(index) {
            return Ok(true);
        }
        let deadline = Deadline::after(timeout);
        self.attempt(|session| {
            // A new back-end counts as a call.
            while !session.take_call(index) {
                let ready = session.look(Some(index), deadline)?;
                // A back-end that never stops talking does not hold anybody.
                if !ready || deadline.is_over() {
                    return Ok(session.take_call(index));
                }
            }
            Ok(true)
        })
    }

    fn take_call(&mut self, index: u16) -> bool {
        self.queue_mut(index).is_some_and(|queue| std::mem::take(&mut queue.called))
    }

    /// What has happened since this was asked last.
    pub(super) fn take_interrupt(&mut self) -> Interrupt {
        // A loss is the monitor's to tell.
        let _ = self.attempt(|session| session.look(None, Deadline::after(Duration::ZERO)));
        for queue in &mut self.queues {
            if queue.running.as_ref().is_some_and(|events| take_event(&events.call)) {
                queue.called = true;
                self.interrupt.used = true;
            }
        }
        std::mem::take(&mut self.interrupt)
    }

    /// Waits until something happens on the connection or for queue `wanted`, takes note of it, and returns
    /// true; or false if the time is over. Without a queue: on the connection, or until any queue is given up.
    fn look(&mut self, wanted: Option<u16>, deadline: Deadline) -> Result<bool, Lost> {
        let failed = |errno| Lost::System { action: "wait for the back-end", errno };
        let watched: Vec<(u16, &Events)> = (self.queues.iter().zip(0_u16..))
            .filter(|(_, index)| wanted.is_none_or(|wanted| wanted == *index))
            .filter_map(|(queue, index)| Some((index, queue.running.as_ref()?)))
            .collect();
        let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![readable(self.link.as_fd())];
        fds.extend(watched.iter().map(|(_, events)| readable(events.err.as_fd())));
        // Without a queue nobody waits: calls are not looked for.
        let calls = watched.iter().filter(|_| wanted.is_some());
        fds.extend(calls.map(|(_, events)| readable(events.call.as_fd())));
        fds.extend(self.back.as_ref().map(|back| readable(back.as_fd())));
        if !deadline.poll(&mut fds).map_err(failed)? {
            return Ok(false);
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let spoke = fds.first().is_some_and(is_ready);
        let broken =
            watched.iter().zip(fds.iter().skip(1)).find(|(_, fd)| is_ready(fd)).map(|(queue, _)| queue.0);

        // What is done is told before what is broken: a completion must not get lost with its device.
        if let Some(queue) = wanted.and_then(|index| self.queue_mut(index))
            && queue.running.as_ref().is_some_and(|events| take_event(&events.call))
        {
            queue.called = true;
            self.interrupt.used = true;
            return Ok(true);
        }
        self.hear()?;
        match broken {
            Some(queue) => Err(Lost::QueueFailed { queue }),
            None if spoke => Err(self.link.why_readable()),
            None => Ok(true),
        }
    }

    /// Takes what the back-end has to say on its own.
    fn hear(&mut self) -> Result<(), Lost> {
        let Some(back) = &mut self.back else { return Ok(()) };
        let heard = back.hear()?;
        if heard.config_changed {
            self.config.stale = true;
            self.interrupt.config = true;
        }
        if heard.closed {
            self.back = None;
        }
        Ok(())
    }
}

/// The configuration space.
impl Session {
    /// Reads it anew; the generation tells whether it has changed.
    pub(super) fn config_generation(&mut self) -> u32 {
        // If the connection is lost the generation stays, so that a reader who compares comes to an end.
        let _ = self.attempt(|session| {
            session.hear()?;
            session.read_config()
        });
        self.config.generation
    }

    /// Some bytes of the configuration space, as it was read last.
    pub(super) fn config(&mut self, offset: usize, len_bytes: usize) -> Result<&[u8], ConfigFault> {
        let read = self.attempt(|session| {
            let unread = session.config.asked_bytes.is_none();
            if session.config.stale || unread { session.read_config() } else { Ok(()) }
        });
        read.map_err(|_| ConfigFault::Lost)?;
        match self.config.get(offset, len_bytes) {
            _ if self.config.bytes.is_empty() => Err(ConfigFault::Missing),
            Some(bytes) => Ok(bytes),
            None => Err(ConfigFault::TooSmall),
        }
    }

    /// Writes some bytes of the configuration space, and reads it back.
    pub(super) fn write_config(&mut self, offset: usize, data: &[u8]) -> Result<(), ConfigFault> {
        self.config(offset, data.len())?;
        let offset_bytes = u32::try_from(offset).map_err(|_| ConfigFault::TooSmall)?;
        let done = self.attempt(|session| {
            let done = session.link.tell_config(offset_bytes, data)?;
            session.read_config()?;
            Ok(done)
        });
        match done {
            Ok(true) => {
                self.config.keep(offset_bytes, data);
                Ok(())
            }
            Ok(false) => Err(ConfigFault::Refused),
            Err(_) => Err(ConfigFault::Lost),
        }
    }

    pub(super) fn read_config(&mut self) -> Result<(), Lost> {
        if !self.link.has(ProtocolFeatures::CONFIG) {
            return Ok(());
        }
        let bytes = match self.config.asked_bytes {
            Some(0) => None,
            Some(asked) => self.link.ask_config(asked)?,
            None => {
                // QEMU's library refuses a length beyond what its device has: find out what that is.
                let found = longest(|length| self.link.ask_config(length))?;
                self.config.asked_bytes = Some(found.as_ref().map_or(0, |(length, _)| *length));
                found.map(|(_, bytes)| bytes)
            }
        };
        let renewed = self.config.renew(bytes.unwrap_or_default());
        renewed.map_err(|unsteady| Lost::ConfigUnsteady { reads: unsteady.reads })
    }
}
