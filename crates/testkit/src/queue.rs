//! A ring with its notifications and its requests in flight: what tests drive a device with.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use virtio_zbd_spec::{BlkConfig, ReportHeader, Status, ZoneDescriptor, ZoneState, ZoneType};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::blk::{Completion, Request};
use crate::error::{Error, Result};
use crate::framing::{Framing, Placed};
use crate::ram::GuestRam;
use crate::ring::{DriverRing, Origin, Used};

/// How a [`Queue`] is set up.
#[derive(Clone, Debug)]
pub struct QueueOptions {
    /// Entries: 1 to 32768.
    pub size: u16,
    /// Whether EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// The index that both sides start with (SET_VRING_BASE); near 65535 the indices wrap soon.
    pub base: u16,
    /// What kick and call are.
    pub notify: Notify,
    /// How requests are cut into descriptors, unless said otherwise.
    pub framing: Framing,
    /// How long [`Queue::call`] and the likes wait.
    pub timeout: Duration,
}

impl Default for QueueOptions {
    /// 128 entries with EVENT_IDX from index 0, non-blocking eventfds, classic framing, 10 seconds.
    fn default() -> Self {
        Self {
            size: 128,
            event_idx: true,
            base: 0,
            notify: Notify::Eventfd,
            framing: Framing::Classic,
            timeout: Duration::from_secs(10),
        }
    }
}

/// What driver and device notify each other with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// Non-blocking eventfds, as QEMU has them.
    Eventfd,
    /// Blocking eventfds.
    BlockingEventfd,
    /// A blocking eventfd to kick, a pipe to call, as Linux' `virtio_uml` has them.
    CallPipe,
}

/// A request in flight; another one for every request of a [`Queue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

/// A ring, its kick and call, and what is in flight on it. Tests in one process serve it with [`Queue::in_process`], a
/// vhost-user backend gets it through a [`Client`](crate::Client).
pub struct Queue {
    /// The ring; by hand anything can be done to it.
    pub ring: DriverRing,
    /// How the next requests are cut into descriptors.
    pub framing: Framing,
    /// How long [`Queue::call`] and the likes wait.
    pub timeout: Duration,
    kick: OwnedFd,
    call: OwnedFd,
    /// The end of `call` that the device writes to.
    call_device: OwnedFd,
    next_token: u64,
    /// By head.
    in_flight: HashMap<u32, (Token, Placed)>,
    /// Used, but not asked for yet.
    done: VecDeque<(Token, Placed, u32)>,
    by_hand: Vec<Used>,
}

/// What a device's worker in the same process needs to serve a queue. Its eventfds are duplicates: it may close them.
#[derive(Debug)]
pub struct InProcess {
    /// Guest memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// The number of entries.
    pub size: u16,
    /// Where the descriptor table is.
    pub desc_table: GuestAddress,
    /// Where the available ring is.
    pub avail_ring: GuestAddress,
    /// Where the used ring is.
    pub used_ring: GuestAddress,
    /// The index of the next available entry.
    pub base: u16,
    /// Whether the index words decide on notifications (EVENT_IDX).
    pub event_idx: bool,
    /// Readable when the driver has published requests.
    pub kick: OwnedFd,
    /// To be written (8 bytes) when requests are used.
    pub call: OwnedFd,
}

impl Queue {
    /// A queue in `ram`. Panics where [`DriverRing::new`] does.
    #[track_caller]
    pub fn new(ram: &GuestRam, options: &QueueOptions) -> Result<Self> {
        let ring = DriverRing::new(ram, options.size, options.event_idx, options.base);
        let flags = match options.notify {
            Notify::Eventfd => EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
            Notify::BlockingEventfd | Notify::CallPipe => EventfdFlags::CLOEXEC,
        };
        let new_eventfd = || eventfd(0, flags).map_err(io_error("making an eventfd"));
        let (call, call_device) = match options.notify {
            Notify::CallPipe => pipe_with(PipeFlags::CLOEXEC).map_err(io_error("making a pipe"))?,
            _ => {
                let call = new_eventfd()?;
                let twin = duplicate(&call)?;
                (call, twin)
            }
        };
        Ok(Self {
            ring,
            framing: options.framing,
            timeout: options.timeout,
            kick: new_eventfd()?,
            call,
            call_device,
            next_token: 0,
            in_flight: HashMap::new(),
            done: VecDeque::new(),
            by_hand: Vec::new(),
        })
    }

    /// What a worker in this process needs to serve the queue.
    pub fn in_process(&self) -> Result<InProcess> {
        Ok(InProcess {
            memory: Arc::clone(self.ram().memory()),
            size: self.ring.size(),
            desc_table: self.ring.desc_table(),
            avail_ring: self.ring.avail_ring(),
            used_ring: self.ring.used_ring(),
            base: self.ring.base(),
            event_idx: self.ring.event_idx(),
            kick: duplicate(&self.kick)?,
            call: duplicate(&self.call_device)?,
        })
    }

    /// Submits `request` and waits for it, at most [`Queue::timeout`]. What else completes meanwhile is kept for
    /// [`Queue::complete`].
    #[track_caller]
    pub fn call(&mut self, request: Request) -> Result<Completion> {
        let token = self.submit(request)?;
        let deadline = Instant::now() + self.timeout;
        loop {
            if let Some(i) = self.done.iter().position(|done| done.0 == token)
                && let Some((_, placed, used_len)) = self.done.remove(i)
            {
                return placed.completion(used_len);
            }
            self.wait_for_used(1, self.timeout, deadline)?;
            self.collect()?;
        }
    }

    /// Gives `request` to the device, with a kick if the device wants one.
    #[track_caller]
    pub fn submit(&mut self, request: Request) -> Result<Token> {
        let token = self.enqueue(request)?;
        self.publish()?;
        Ok(token)
    }

    /// Gives all `requests` to the device at once, with at most one kick.
    #[track_caller]
    pub fn submit_batch(&mut self, requests: impl IntoIterator<Item = Request>) -> Result<Vec<Token>> {
        let tokens = requests.into_iter().map(|request| self.enqueue(request)).collect();
        self.publish()?;
        tokens
    }

    /// Puts `request` into the ring without letting the device see it: that is [`Queue::publish`]'s part.
    #[track_caller]
    pub fn enqueue(&mut self, request: Request) -> Result<Token> {
        let framing = self.framing.vary(self.next_token);
        self.enqueue_placed(Placed::new(self.ring.ram(), request, framing))
    }

    /// As [`Queue::enqueue`], for a request that is in guest memory already.
    #[track_caller]
    pub fn enqueue_placed(&mut self, placed: Placed) -> Result<Token> {
        let head = self.ring.add_chain(&placed.bufs(), placed.table())?;
        let token = Token(self.next_token);
        self.next_token += 1;
        self.in_flight.insert(head.into(), (token, placed));
        Ok(token)
    }

    /// Lets the device see what was put into the ring; kicks it if it wants that. Returns whether it did.
    pub fn publish(&mut self) -> Result<bool> {
        let wanted = self.ring.publish();
        if wanted {
            self.kick()?;
        }
        Ok(wanted)
    }

    /// Kicks the device, wanted or not.
    pub fn kick(&self) -> Result<()> {
        match rustix::io::write(&self.kick, &1_u64.to_ne_bytes()) {
            // A full counter is a kick, too.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(io_error("kicking")(error)),
        }
    }

    /// The next completed request, in the order of the used ring; waits for it at most `timeout`.
    pub fn complete(&mut self, timeout: Duration) -> Result<(Token, Completion)> {
        let (token, placed, used_len) = self.complete_placed(timeout)?;
        Ok((token, placed.completion(used_len)?))
    }

    /// As [`Queue::complete`], but hands the request itself back, with `len` of the used ring: to be submitted again, or
    /// looked at.
    pub fn complete_placed(&mut self, timeout: Duration) -> Result<(Token, Placed, u32)> {
        let deadline = Instant::now() + timeout;
        loop {
            self.collect()?;
            if let Some(done) = self.done.pop_front() {
                return Ok(done);
            }
            if self.in_flight.is_empty() {
                return Err(Error::NothingOutstanding);
            }
            self.wait_for_used(1, timeout, deadline)?;
        }
    }

    /// The next completed request, if there is one already.
    pub fn try_complete(&mut self) -> Result<Option<(Token, Completion)>> {
        self.collect()?;
        match self.done.pop_front() {
            Some((token, placed, used_len)) => Ok(Some((token, placed.completion(used_len)?))),
            None => Ok(None),
        }
    }

    /// Waits for all requests in flight, at most [`Queue::timeout`] for each, and hands out all that is completed.
    pub fn complete_all(&mut self) -> Result<Vec<(Token, Completion)>> {
        let mut all = Vec::new();
        while !self.in_flight.is_empty() || !self.done.is_empty() {
            all.push(self.complete(self.timeout)?);
        }
        Ok(all)
    }

    /// Waits until a chain that was pushed by hand is used, at most [`Queue::timeout`].
    pub fn complete_by_hand(&mut self) -> Result<Used> {
        let deadline = Instant::now() + self.timeout;
        loop {
            self.collect()?;
            if !self.by_hand.is_empty() {
                return Ok(self.by_hand.remove(0));
            }
            self.wait_for_used(1, self.timeout, deadline)?;
        }
    }

    /// The chains pushed by hand that were used and not asked for yet.
    pub fn take_by_hand(&mut self) -> Result<Vec<Used>> {
        self.collect()?;
        Ok(std::mem::take(&mut self.by_hand))
    }

    /// How many requests the device has.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Guest memory.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        self.ring.ram()
    }

    /// The device's end of the kick.
    #[must_use]
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// The device's end of the call.
    #[must_use]
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.call_device.as_fd()
    }

    /// All zones of a disk whose configuration is `config`, from as many ZONE_REPORTs as it takes.
    ///
    /// Fails on a report that is wrong in itself: no zone reported, more zones than there are, a zone that does not begin
    /// where the one before ends (V6), an unknown type or state. Panics if `config` has no zones.
    #[track_caller]
    pub fn zone_report_all(&mut self, config: &BlkConfig) -> Result<Vec<ZoneDescriptor>> {
        const ZONES_PER_REPORT: usize = 64;
        let buf_len = size_of::<ReportHeader>() + ZONES_PER_REPORT * size_of::<ZoneDescriptor>();
        let zone_sectors = u64::from(config.zoned.zone_sectors.get());
        assert_ne!(zone_sectors, 0, "the disk has no zones");
        let mut zones: Vec<ZoneDescriptor> = Vec::new();
        let mut sector = 0;
        while sector < config.capacity.get() {
            let bad = |why: String| Error::BadReport { sector, why };
            let completion = self.call(Request::zone_report(sector, buf_len))?;
            let status = completion.outcome()?;
            if status != Status::Ok {
                return Err(bad(format!("the status is {status:?}")));
            }
            let part = completion.zones()?;
            if part.is_empty() {
                return Err(bad("no zone is reported".to_owned()));
            }
            let mut next = sector;
            for zone in part {
                ZoneType::try_from(zone.z_type)?;
                ZoneState::try_from(zone.z_state)?;
                let start = zone.z_start.get();
                if start != next || start >= config.capacity.get() {
                    return Err(bad(format!("zone {} begins at sector {start}", zones.len())));
                }
                zones.push(zone);
                next += zone_sectors;
            }
            sector = next;
        }
        Ok(zones)
    }

    /// Takes all that is in the used ring.
    fn collect(&mut self) -> Result<()> {
        while let Some(used) = self.ring.poll_used() {
            match used.origin {
                Origin::Chain => {
                    if let Some((token, placed)) = self.in_flight.remove(&used.id) {
                        self.done.push_back((token, placed, used.len));
                    } else {
                        // The test added this chain to the ring itself.
                        self.by_hand.push(used);
                    }
                }
                Origin::ByHand => self.by_hand.push(used),
                Origin::Nowhere => return Err(Error::NotOutstanding { id: used.id }),
            }
        }
        Ok(())
    }

    /// Sleeps until the device notifies that at least `chains` are used.
    fn wait_for_used(&mut self, chains: u16, timeout: Duration, deadline: Instant) -> Result<()> {
        while !self.ring.arm(chains) {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&self.call, PollFlags::IN)];
            let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
            match poll(&mut fds, Some(&left)) {
                Ok(0) if self.ring.used_pending() >= chains => {
                    let used_idx = self.ring.used_idx();
                    let timeout_ms = timeout.as_millis();
                    return Err(Error::NoNotification { timeout_ms, used_idx });
                }
                Ok(0) => {
                    let outstanding = self.in_flight.len();
                    let timeout_ms = timeout.as_millis();
                    return Err(Error::NoCompletion { timeout_ms, outstanding });
                }
                Ok(_) => {
                    // Readable, so this does not block; a pipe's backlog may take several rounds.
                    rustix::io::read(&self.call, &mut [0; 4096])
                        .map_err(io_error("reading the call eventfd"))?;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io_error("polling the call eventfd")(error)),
            }
        }
        Ok(())
    }
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone().map_err(|source| Error::Io { what: "duplicating a file descriptor", source })
}

pub(crate) fn io_error(what: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |errno| Error::Io { what, source: io::Error::from(errno) }
}
