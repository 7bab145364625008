//! A new back-end in the place of one that died, so that a driver notices nothing but the time that it took.
//!
//! Rings and buffers in flight stay where they are. What the old back-end had taken and not answered stands in
//! the region that we have kept for it ([`inflight`](super::inflight)); the new one begins with that. A back-end that does
//! not track its requests can only be replaced while it has none.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use virtio_drivers::transport::DeviceStatus;

use super::channel::{Deadline, name};
use super::config::Config;
use super::dial::{CONNECT_PAUSE, connect_socket};
use super::link::Link;
use super::queue::Place;
use super::session::Session;
use super::{ConnectError, Lost};
use crate::message::{ProtocolFeatures, id};

/// Where a new back-end is looked for, and how long.
#[derive(Debug)]
pub(super) struct Reconnect {
    path: PathBuf,
    patience: Duration,
    last: Option<Recovered>,
}

/// The last time that it was needed.
#[derive(Debug)]
struct Recovered {
    /// When it was given up.
    deadline: Deadline,
    at: Instant,
    /// The used index of each queue that ran.
    used: Vec<Option<u16>>,
}

impl Reconnect {
    pub(super) fn new(path: PathBuf, patience: Duration) -> Self {
        Self { path, patience, last: None }
    }

    /// Until when a new back-end must have come.
    ///
    /// Each loss has the whole time. But a back-end that dies again and again, and between its deaths neither
    /// answers anything nor lives as long as that, has it once.
    fn deadline(&self, used: &[Option<u16>]) -> Deadline {
        match &self.last {
            Some(last) if last.used == used && last.at.elapsed() < self.patience => last.deadline,
            _ => Deadline::after(self.patience),
        }
    }
}

impl Session {
    /// Goes on with a new back-end; or says why the connection is lost. `lost` is what ended the last one.
    pub(super) fn recover(&mut self, lost: Lost) -> Result<(), Lost> {
        let (Lost::Closed { .. }, Some(reconnect)) = (&lost, &self.reconnect) else {
            return Err(lost);
        };
        let used = self.used_indexes();
        let deadline = reconnect.deadline(&used);
        let (path, waited) = (reconnect.path.clone(), reconnect.patience);
        let requests = self.count_in_flight();
        if self.inflight.is_none() && requests > 0 {
            return Err(Lost::Untracked { requests });
        }
        log::warn!("{lost}, with {requests} requests in flight: looking for a new one");
        self.let_go();
        loop {
            let errno = match connect_socket(&path, Duration::ZERO) {
                Ok(socket) => {
                    let link = Link::begin(socket, self.timeout, true);
                    match link.and_then(|link| self.resume(link)) {
                        Ok(()) => break,
                        // It died, too. Or it was the old one's socket.
                        Err(Lost::Closed { .. }) => Errno::CONNRESET,
                        Err(lost) => return Err(lost),
                    }
                }
                Err(ConnectError::Socket { source, .. }) => {
                    Errno::from_io_error(&source).unwrap_or(Errno::IO)
                }
                Err(_) => Errno::IO,
            };
            if deadline.is_over() {
                return Err(Lost::NotReplaced { waited, errno });
            }
            thread::sleep(CONNECT_PAUSE);
        }
        self.detached = false;
        log::info!("a new back-end goes on with {requests} requests in flight");
        if let Some(reconnect) = &mut self.reconnect {
            reconnect.last = Some(Recovered { deadline, at: Instant::now(), used });
        }
        Ok(())
    }

    /// Brings a new back-end to where the driver believes it to be.
    fn resume(&mut self, link: Link) -> Result<(), Lost> {
        let replaced = |what, expected, found| Err(Lost::Replaced { what, expected, found });
        let agreed = self.link.protocol();
        self.link = link;
        if !self.link.protocol().contains(agreed) {
            return replaced("protocol features", agreed.bits(), self.link.protocol().bits());
        }
        let (had, has) = (self.queues.len(), usize::from(self.link.ask_queue_count()?));
        if had != has {
            let number = |count| u64::try_from(count).unwrap_or(u64::MAX);
            return replaced("a number of queues", number(had), number(has));
        }
        self.back = self.link.open_back_channel()?;
        if self.status.is_empty() {
            return self.link.settle();
        }
        if self.status.contains(DeviceStatus::FEATURES_OK) {
            let (agreed, offered) = (self.driver_features, self.link.ask_features()?);
            let has_all = offered & agreed == agreed;
            if !has_all || !self.link.tell_features(agreed)? {
                return replaced("features", agreed, offered);
            }
            self.tell_old_status(self.status & !DeviceStatus::DRIVER_OK)?;
            if self.link.has(ProtocolFeatures::STATUS)
                && !self.link.ask_status()?.contains(DeviceStatus::FEATURES_OK)
            {
                return replaced("features", agreed, offered);
            }
            self.link.tell_memory(self.arena)?;
        }
        self.rewrite_config()?;
        self.restart_queues()?;
        self.tell_old_status(self.status)?;
        self.link.settle()?;
        // What was submitted while nobody looked, and what was answered just before the death.
        for queue in &mut self.queues {
            if let Some(events) = &queue.running {
                events.kick.notify();
                queue.called = true;
                self.interrupt.used = true;
            }
        }
        Ok(())
    }

    fn tell_old_status(&self, status: DeviceStatus) -> Result<(), Lost> {
        if self.link.has(ProtocolFeatures::STATUS) { self.link.tell_status(status) } else { Ok(()) }
    }

    /// What the driver has written must hold again before a request is looked at. If the space is another one in spite of
    /// that, the driver hears of it as of any change.
    fn rewrite_config(&mut self) -> Result<(), Lost> {
        for (offset_bytes, data) in &self.config.written {
            if !self.link.tell_config(*offset_bytes, data)? {
                return Err(Lost::Refused { request: name(id::SET_CONFIG), queue: None, code: 1 });
            }
        }
        let Config { generation, asked_bytes, .. } = self.config;
        if asked_bytes.is_some() {
            self.read_config()?;
            self.interrupt.config |= self.config.generation != generation;
        }
        Ok(())
    }

    fn restart_queues(&mut self) -> Result<(), Lost> {
        let running = self.queues.iter().enumerate().filter(|(_, queue)| queue.running.is_some());
        let places: Vec<_> =
            running.filter_map(|(index, queue)| Some((u16::try_from(index).ok()?, queue.place?))).collect();
        places.into_iter().try_for_each(|(index, place)| {
            // A back-end that tracks its requests knows better where it was.
            let base = self.used_index(place).unwrap_or(0);
            self.start_queue(index, place, base)
        })
    }

    fn used_indexes(&self) -> Vec<Option<u16>> {
        let running = |place: Option<Place>| place.and_then(|place| self.used_index(place));
        self.queues.iter().map(|queue| running(queue.place.filter(|_| queue.running.is_some()))).collect()
    }

    /// How many requests the driver has submitted that were not answered.
    fn count_in_flight(&self) -> u32 {
        let places =
            self.queues.iter().filter(|queue| queue.running.is_some()).filter_map(|queue| queue.place);
        let counts = places.map(|place| {
            let submitted = self.index_at(place.avail).unwrap_or(0);
            u32::from(submitted.wrapping_sub(self.used_index(place).unwrap_or(0)))
        });
        counts.sum()
    }

    fn used_index(&self, place: Place) -> Option<u16> {
        self.index_at(place.used)
    }

    /// The index of a ring: it comes after the flags (virtio 1.x, 2.7.6 and 2.7.8).
    fn index_at(&self, ring: u64) -> Option<u16> {
        Some(self.arena.word(ring.wrapping_add(2))?.load(Ordering::Acquire))
    }
}
