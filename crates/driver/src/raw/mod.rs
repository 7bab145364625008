//! A device reached without a driver's good manners: any features, any bytes, any chain.
//!
//! [`VirtioBlk`](crate::VirtioBlk) sends what is right and nothing else. Whoever wants to know what a device does with the rest
//! (a conformance suite, a fuzzer, a curious person) sends it from here. [`RawDevice`] goes through a device's life by steps
//! of the caller's choice: [`start`](RawDevice::start) with features that may be wrong, [`send`](RawDevice::send) chains of
//! readable and writable pieces, and start again.
//!
//! What protects this side stays: pieces are copied into memory of the device's own, the used ring is held against what is in
//! flight, nothing waits without an end, and memory that a device may still write to is never used for anything else.
//!
//! ```no_run
//! use virtio_zbd_driver::raw::{RawDevice, Started};
//! use virtio_zbd_driver::{Error, Features, Hal, Spin, Transport};
//!
//! /// The status of a request that no device knows.
//! fn unknown_request<H: Hal, T: Transport>(transport: T) -> Result<Option<u8>, Error> {
//!     let mut device = RawDevice::<H, T>::new(transport, 128, Spin::default())?;
//!     let features = device.offered()? & Features::all().bits();
//!     if device.start(features)? == Started::Refused {
//!         return Ok(None);
//!     }
//!     let mut header = [0; 16];
//!     header[0] = 99;
//!     let mut status = [0xff];
//!     device.send(0, &[&header], &mut [&mut status])?;
//!     Ok(Some(status[0]))
//! }
//! ```

mod config;
mod queue;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use virtio_drivers::Hal;
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_zbd_spec::Features;

use crate::command::Token;
use crate::disk::reset;
use crate::error::{Error, Invalid};
use crate::probe::{DRIVEN, fail};
use crate::ring::depth;
use crate::sync::is_time_to_look;
use crate::wait::{Wait, Waited};
use queue::Queue;

pub use config::CONFIG_LEN_BYTES;

const SECTOR_LEN_BYTES: usize = 512;

/// The most queues that are set up.
const QUEUES_MAX: u16 = 64;

/// What a device said to the features that it was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// FEATURES_OK stood: its queues are set up, and it runs.
    Accepted,
    /// FEATURES_OK did not stand (2.2.2, 3.1.1). The device was told FAILED, and waits for another start.
    Refused,
}

/// A chain to be sent, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Into which queue.
    pub queue: u16,
    /// What the device may read, each piece in a descriptor of its own. One of a sector or more begins at a page.
    pub readable: Vec<Vec<u8>>,
    /// What the device may write, behind that. The device finds there what is in it, and it comes back with what the device
    /// has made of it.
    pub writable: Vec<Vec<u8>>,
    /// The length in the used ring, once the device is done with it.
    pub used_len_bytes: Option<u32>,
}

/// A chain that the device is done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which one.
    pub token: Token,
    /// The length in the used ring: at most that of all writable pieces.
    pub used_len_bytes: u32,
    /// The writable pieces.
    pub written: Vec<Vec<u8>>,
}

/// A virtio block device, reached so directly that anything can be sent to it.
///
/// A device that breaks the ring's rules, does not answer in time or asks for a reset is reset: the call is that error, every other
/// one [`Error::Broken`] until the next [`start`](Self::start). One that does not come out of its reset is lost for good
/// ([`is_lost`](Self::is_lost)), and all that it may still write to is leaked; [`attach`](Self::attach) gives this another one.
pub struct RawDevice<H: Hal, T: Transport> {
    /// `None` once it was leaked, or given back.
    transport: Option<T>,
    queues: Vec<RawQueue<H>>,
    wait: Box<dyn Wait<T>>,
    depth_wanted: u16,
    running: bool,
    next_serial: u64,
}

struct RawQueue<H: Hal> {
    queue: Queue<H>,
    /// Answers that somebody found who waited for another one.
    landed: VecDeque<Answer>,
}

impl<H: Hal, T: Transport> RawDevice<H, T> {
    /// Resets the device. Its queues will have `queue_depth` descriptors, 4 to 1024, rounded down to a power of two and to what
    /// the device has.
    ///
    /// # Errors
    ///
    /// [`ProbeError::NoReset`](crate::ProbeError::NoReset): the transport is leaked then.
    pub fn new(transport: T, queue_depth: u16, wait: impl Wait<T> + 'static) -> Result<Self, Error> {
        let mut device = Self {
            transport: Some(transport),
            queues: Vec::new(),
            wait: Box::new(wait),
            depth_wanted: queue_depth,
            running: false,
            next_serial: 0,
        };
        device.stop()?;
        Ok(device)
    }

    /// Goes on with another way to the device, or with another device: for a connection that was lost.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn attach(&mut self, transport: T) -> Result<(), Error> {
        if self.transport.is_some() {
            // What becomes of the old device is not asked: it is reset, or leaked.
            let _ = self.stop();
        }
        self.transport = Some(transport);
        self.stop()
    }

    /// Whether the device is gone for good, with its transport.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.transport.is_none()
    }

    /// Whether it was started, and has not failed since.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// The transport, where it is still there.
    pub fn transport(&mut self) -> Option<&mut T> {
        self.transport.as_mut()
    }

    /// All feature bits that the device offers, those of the transport included.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`]: the device is lost.
    pub fn offered(&mut self) -> Result<u64, Error> {
        self.transport.as_mut().map(Transport::read_device_features).ok_or(Error::Broken)
    }

    /// Resets the device, offers it `features` (any bits at all) and sees whether FEATURES_OK stays set. If so it sets up
    /// the queues that the device has, one without MQ, and lets it run.
    ///
    /// # Errors
    ///
    /// [`Error::Probe`] where the device does not come out of its reset, or has no queue that carries a request;
    /// [`Error::NeedsReset`] from a device that can't go on; [`Error::NoMemory`].
    pub fn start(&mut self, features: u64) -> Result<Started, Error> {
        self.stop()?;
        let Some(transport) = &mut self.transport else { return Err(Error::Broken) };
        transport.set_status(DeviceStatus::ACKNOWLEDGE);
        transport.set_status(DRIVEN);
        transport.write_driver_features(features);
        transport.set_status(DRIVEN | DeviceStatus::FEATURES_OK);
        if !transport.get_status().contains(DeviceStatus::FEATURES_OK) {
            fail(transport);
            return Ok(Started::Refused);
        }
        if let Err(error) = self.run(Features::from_bits_retain(features)) {
            self.give_up();
            return Err(error);
        }
        Ok(Started::Accepted)
    }

    fn run(&mut self, features: Features) -> Result<(), Error> {
        let Some(transport) = &mut self.transport else { return Err(Error::Broken) };
        for index in 0..queue_count(transport, features) {
            let depth = depth(index, self.depth_wanted, transport.max_queue_size(index))?;
            let queue = Queue::new(transport, index, depth, features)?;
            self.queues.push(RawQueue { queue, landed: VecDeque::new() });
        }
        transport.set_status(DRIVEN | DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
        if transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            return Err(Error::NeedsReset);
        }
        self.running = true;
        Ok(())
    }

    /// Resets the device and takes back what it was lent.
    ///
    /// # Errors
    ///
    /// [`ProbeError::NoReset`](crate::ProbeError::NoReset): what it was lent is leaked, and it is lost.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.running = false;
        let Some(transport) = &mut self.transport else { return Err(Error::Broken) };
        if !reset(transport) {
            core::mem::forget(core::mem::take(&mut self.queues));
            // Its drop may wait for the reset, for ever.
            core::mem::forget(self.transport.take());
            return Err(crate::error::ProbeError::NoReset.into());
        }
        self.queues.clear();
        Ok(())
    }

    /// How many queues run.
    #[must_use]
    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// How many descriptors a queue has; 0 where there is no such queue.
    #[must_use]
    pub fn queue_depth(&self, queue: u16) -> u16 {
        self.queues.get(usize::from(queue)).map_or(0, |queue| queue.queue.depth())
    }

    /// Sends one chain and waits for it: the readable pieces, then the writable ones, each in a descriptor of its own. Gives back
    /// the length in the used ring; the writable pieces hold what the device has made of them.
    ///
    /// # Errors
    ///
    /// [`Error::Wrong`] where the device broke the ring's rules or wrote beside what is writable; [`Error::TimedOut`];
    /// [`Error::QueueFull`] and [`Error::NoMemory`] before anything is sent; [`Error::Broken`] where the device does not run.
    pub fn send(&mut self, queue: u16, readable: &[&[u8]], writable: &mut [&mut [u8]]) -> Result<u32, Error> {
        let room: Vec<&[u8]> = writable.iter().map(|piece| &**piece).collect();
        let token = self.push(queue, readable, &room)?;
        self.notify(queue)?;
        let answer = self.wait_for(queue, token)?;
        for (piece, written) in writable.iter_mut().zip(&answer.written) {
            piece.copy_from_slice(written);
        }
        Ok(answer.used_len_bytes)
    }

    /// Sends all chains before it tells the device of any, and waits for all.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send). Chains that were answered before have their answers.
    pub fn send_all(&mut self, chains: &mut [Chain]) -> Result<(), Error> {
        let mut tokens = Vec::new();
        for chain in chains.iter_mut() {
            chain.used_len_bytes = None;
            let readable: Vec<&[u8]> = chain.readable.iter().map(Vec::as_slice).collect();
            let writable: Vec<&[u8]> = chain.writable.iter().map(Vec::as_slice).collect();
            match self.push(chain.queue, &readable, &writable) {
                Ok(token) => tokens.push(token),
                Err(error) => {
                    // Those before it are in the ring and can't be taken out of it.
                    self.give_up();
                    return Err(error);
                }
            }
        }
        for queue in 0..self.queue_count() {
            self.notify(queue)?;
        }
        for (chain, token) in chains.iter_mut().zip(tokens) {
            let answer = self.wait_for(chain.queue, token)?;
            chain.used_len_bytes = Some(answer.used_len_bytes);
            chain.writable = answer.written;
        }
        Ok(())
    }

    /// Puts a chain into a queue. The device may not look before [`notify`](Self::notify).
    ///
    /// # Errors
    ///
    /// [`Error::QueueFull`], [`Error::NoMemory`], [`Error::Broken`], or [`Error::Invalid`] where there is no such queue.
    pub fn push(&mut self, queue: u16, readable: &[&[u8]], writable: &[&[u8]]) -> Result<Token, Error> {
        let token = Token(self.next_serial);
        self.queue_at(queue)?.queue.push(token, readable, writable)?;
        self.next_serial += 1;
        Ok(token)
    }

    /// Tells the device that there are chains in a queue, if it wants to know.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`], or [`Error::Invalid`] where there is no such queue.
    pub fn notify(&mut self, queue: u16) -> Result<(), Error> {
        let wanted = self.queue_at(queue)?.queue.wants_notification();
        if let (true, Some(transport)) = (wanted, &mut self.transport) {
            transport.notify(queue);
        }
        Ok(())
    }

    /// Takes a chain that the device is done with; `None` where there is none yet.
    ///
    /// # Errors
    ///
    /// [`Error::Wrong`] where the device broke the ring's rules or wrote beside what is writable.
    pub fn complete(&mut self, queue: u16) -> Result<Option<Answer>, Error> {
        if let Some(answer) = self.queue_at(queue)?.landed.pop_front() {
            return Ok(Some(answer));
        }
        self.land(queue)
    }

    /// How many chains of a queue are with the device.
    #[must_use]
    pub fn in_flight(&self, queue: u16) -> usize {
        self.queues.get(usize::from(queue)).map_or(0, |queue| queue.queue.in_flight().into())
    }

    fn wait_for(&mut self, queue: u16, token: Token) -> Result<Answer, Error> {
        let landed = &mut self.queue_at(queue)?.landed;
        if let Some(at) = landed.iter().position(|answer| answer.token == token)
            && let Some(answer) = landed.remove(at)
        {
            return Ok(answer);
        }
        let mut turn = 0;
        loop {
            while let Some(answer) = self.land(queue)? {
                if answer.token == token {
                    return Ok(answer);
                }
                self.queue_at(queue)?.landed.push_back(answer);
            }
            self.wait_turn(queue, &mut turn)?;
        }
    }

    fn land(&mut self, queue: u16) -> Result<Option<Answer>, Error> {
        self.queue_at(queue)?.queue.pop().inspect_err(|_| self.give_up())
    }

    /// Passes some time; an error where there is no sense in waiting on.
    fn wait_turn(&mut self, queue: u16, turn: &mut u64) -> Result<(), Error> {
        let Some(transport) = &mut self.transport else { return Err(Error::Broken) };
        let error = match self.wait.wait(transport, queue, *turn) {
            Waited::GiveUp => Error::TimedOut,
            Waited::Gone => Error::Removed,
            Waited::Again => {
                *turn += 1;
                let needs_reset = is_time_to_look(*turn)
                    && transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET);
                if !needs_reset {
                    return Ok(());
                }
                Error::NeedsReset
            }
        };
        self.give_up();
        Err(error)
    }

    fn queue_at(&mut self, queue: u16) -> Result<&mut RawQueue<H>, Error> {
        if !self.running {
            return Err(Error::Broken);
        }
        let queues = self.queue_count();
        self.queues.get_mut(usize::from(queue)).ok_or(Invalid::NoSuchQueue { queue, queues }.into())
    }

    /// After an error that there is no way on from: the error itself is what the caller is told.
    fn give_up(&mut self) {
        if self.transport.is_some() {
            let _ = self.stop();
        }
    }
}

impl<H: Hal, T: Transport> core::fmt::Debug for RawDevice<H, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RawDevice")
            .field("lost", &self.is_lost())
            .field("running", &self.running)
            .field("queues", &self.queues.len())
            .finish_non_exhaustive()
    }
}

impl<H: Hal, T: Transport> Drop for RawDevice<H, T> {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// How many queues the device has; without MQ it is one (5.2.2).
fn queue_count<T: Transport>(transport: &mut T, features: Features) -> u16 {
    let most = if features.contains(Features::MQ) { config::num_queues(transport) } else { 1 };
    let most = most.clamp(1, QUEUES_MAX);
    // The first one must be there; where it is not, its depth says so.
    (1..most).find(|index| transport.max_queue_size(*index) == 0).unwrap_or(most)
}
