//! A queue's worker: one thread, one lane, and the lane the only place where it waits.
//!
//! Around and around: take what the driver gave (`process_ring`), start each request (`execute.rs`), publish what is
//! answered, wait for the next kick, I/O completion or message.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_zbd_spec::{Features, Status};
use virtio_zbd_store::record::PowerIsCut;
use virtio_zbd_store::{Event, IoBuffer, Lane, Segments};
use virtio_zbd_zones::Ticket;
use vm_memory::GuestMemoryMmap;

use crate::chain;
use crate::config::Negotiated;
use crate::disk::Disk;
use crate::flight::{Answer, Flight, Flights, Step};
use crate::inflight::{Note, Notes};
use crate::mailbox::{Mailbox, Message};
use crate::request::{APPEND_SECTOR_LEN, InHeader, Request, parse};
use crate::ring::SplitRing;
use crate::shape::Shape;
use crate::spans::Spans;

/// The lane's name for the driver's kick.
pub(crate) const KICK: u32 = 0;
/// The lane's name for the mailbox.
pub(crate) const MAILBOX: u32 = 1;

/// What a worker has around it.
pub(crate) struct Place {
    pub(crate) disk: Arc<Disk>,
    /// The disk at the size that this worker knows of.
    pub(crate) shape: Arc<Shape>,
    pub(crate) index: u16,
    pub(crate) negotiated: Arc<Negotiated>,
    pub(crate) memory: Arc<GuestMemoryMmap>,
    pub(crate) mailbox: Arc<Mailbox>,
    /// The driver's kick, for another lane.
    pub(crate) kick: OwnedFd,
    pub(crate) call: Box<dyn Fn() + Send>,
    pub(crate) broken: Box<dyn Fn() + Send>,
}

pub(crate) struct Worker {
    pub(crate) place: Place,
    ring: SplitRing,
    pub(crate) lane: Lane,
    /// Whether it is the second one already.
    pub(crate) lane_is_spare: bool,
    pub(crate) flights: Flights,
    pub(crate) notes: Notes,
    /// Vectors of buffers that have been used, for the next ones.
    segments: Vec<Segments>,
    /// Requests whose zone has become free, in the order in which they waited.
    pub(crate) retries: VecDeque<u32>,
    stopping: bool,
    /// A broken chain was logged.
    complained: bool,
    /// The ring can't be followed any more; only a new start of the queue helps.
    broken: bool,
}

impl Worker {
    pub(crate) fn new(place: Place, ring: SplitRing, lane: Lane, notes: Notes) -> Self {
        Self {
            place,
            ring,
            lane,
            lane_is_spare: false,
            flights: Flights::default(),
            notes,
            segments: Vec::new(),
            retries: VecDeque::new(),
            stopping: false,
            complained: false,
            broken: false,
        }
    }

    /// Serves the queue until it is told to stop. Returns where to go on in the available ring.
    pub(crate) fn run(mut self) -> u16 {
        let index = self.place.index;
        log::debug!("queue {index}: started, {} entries, {}", self.ring.size(), self.lane.engine_name());
        self.take_up();
        let mut events = Vec::new();
        loop {
            // What has waited goes before what is new.
            while let Some(slot) = self.retries.pop_front() {
                self.retry(slot);
            }
            let more = !self.stopping && !self.broken && self.process_ring();
            self.publish();
            if self.stopping && self.flights.is_empty() {
                break;
            }
            if !self.retries.is_empty() {
                continue;
            }
            if let Err(error) = self.lane.wait(more.then_some(Duration::ZERO), &mut events) {
                if PowerIsCut::is_in(&error) {
                    log::debug!("queue {index}: {error}");
                    break;
                }
                if self.take_another_lane(&error, &mut events) {
                    continue;
                }
                self.give_up();
                break;
            }
            for event in events.drain(..) {
                self.handle(event);
            }
        }
        self.place.disk.mailboxes.unregister(&self.place.mailbox);
        log::debug!("queue {index}: stopped at {}", self.ring.next_avail());
        self.ring.next_avail()
    }

    pub(crate) fn handle(&mut self, event: Event) {
        match event {
            // The ring is looked at on every round anyway.
            Event::Wake(KICK) => {}
            Event::Wake(_) => self.read_mail(),
            Event::Done { token, buffer, result } => {
                self.segments.extend(buffer.map(IoBuffer::recycle));
                // The lane's tokens are slots.
                self.io_done(u32::try_from(token).unwrap_or(u32::MAX), result);
            }
        }
    }

    pub(crate) fn read_mail(&mut self) {
        for message in self.place.mailbox.take() {
            match message {
                Message::Retry(slot) => self.retries.push_back(slot),
                Message::Committed(slot, end) => self.committed(slot, end),
                Message::Stop => self.stopping = true,
            }
        }
    }

    /// Takes requests until the ring is empty, or as many are under way as it has entries: a driver that gives more is
    /// lying, and must not make this side grow without bound. Nor must one that gives without end keep it from hearing a stop:
    /// after as many as the ring has entries it is the others' turn. Returns whether to come again without waiting.
    fn process_ring(&mut self) -> bool {
        self.ring.disable_kicks();
        for _ in 0..self.ring.size() {
            if self.flights.len() >= usize::from(self.ring.size()) {
                return false;
            }
            match self.ring.pop() {
                Ok(Some(head)) => {
                    self.notes.taken(head);
                    if let Some((slot, request)) = self.open(head) {
                        self.start(slot, request);
                    }
                }
                Ok(None) if self.ring.enable_kicks() => {}
                Ok(None) => return false,
                Err(error) => {
                    log::error!("queue {}: {error}; the queue is not served any more", self.place.index);
                    self.broken = true;
                    (self.place.broken)();
                    return false;
                }
            }
        }
        true
    }

    /// Shows the driver what is answered.
    pub(crate) fn publish(&mut self) {
        if !self.ring.has_unpublished() {
            return;
        }
        let wanted = self.ring.publish();
        self.notes.published(self.ring.used_idx());
        if wanted {
            (self.place.call)();
        }
    }

    /// Opens a chain that was taken: walks it and parses it. What it asks for is to be started; one that asks for nothing that can be
    /// is answered.
    pub(crate) fn open(&mut self, head: u16) -> Option<(u32, Request)> {
        let place = &self.place;
        let taken = log::log_enabled!(target: "vzbd::request", log::Level::Trace).then(Instant::now);
        let indirect = place.negotiated.has(Features::INDIRECT_DESC);
        let table = self.ring.descriptor_table();
        match chain::walk(&place.memory, table, self.ring.size(), head, indirect) {
            Ok(chain) => {
                let parsed = parse(&place.memory, chain, &place.negotiated);
                let in_header = parsed.in_header;
                let slot = self.flights.insert(Flight { head, in_header, step: Step::Starting, taken });
                match parsed.request {
                    Ok(request) => return Some((slot, request)),
                    Err(status) => self.answer(slot, Answer::status(status)),
                }
            }
            Err(broken) => {
                // A driver must not be able to fill the host's log.
                let level = if self.complained { log::Level::Debug } else { log::Level::Warn };
                self.complained = true;
                log::log!(
                    level,
                    "queue {}: a broken chain at descriptor {head}: {}",
                    place.index,
                    broken.error
                );
                let mut in_header = InHeader::default();
                if let Some((addr, len)) = broken.tail {
                    let mut tail = Spans::default();
                    if tail.push((addr, len)).is_ok() {
                        in_header.status = tail.split_back(1).unwrap_or_default();
                    }
                    // Nothing before the status is written, however much of it there is.
                    in_header.data_len_bytes = u32::MAX;
                }
                let slot = self.flights.insert(Flight { head, in_header, step: Step::Starting, taken });
                self.answer(slot, Answer::status(Status::IoErr));
            }
        }
        None
    }

    /// Writes the answer where the driver looks for it, and gives the chain back.
    pub(crate) fn answer(&mut self, slot: u32, answer: Answer) {
        let Some(flight) = self.flights.remove(slot) else { return };
        let Flight { head, in_header, taken, .. } = flight;
        self.notes.set(head, Note::Ended(answer));
        let mut in_header_len_bytes = in_header.status.len_bytes();
        if let Some(spans) = &in_header.append_sector {
            let sector = answer.append_sector.unwrap_or(0);
            spans.write(&self.place.memory, 0, &sector.to_le_bytes());
            spans.fill_zero(&self.place.memory, APPEND_SECTOR_LEN);
            in_header_len_bytes += spans.len_bytes();
        }
        in_header.status.write(&self.place.memory, 0, &[answer.status as u8]);
        // The used length is how much was written from the first byte on without a hole (2.7.8): with data that was left as it is,
        // nothing.
        let data_len_bytes = in_header.data_len_bytes;
        let written_bytes = match data_len_bytes == 0 || answer.data_filled {
            true => data_len_bytes.saturating_add(in_header_len_bytes),
            false => 0,
        };
        self.ring.push_used(head, written_bytes);
        self.notes.used(head);
        if let Some(taken) = taken {
            log::trace!(
                target: "vzbd::request",
                "queue {} head {head}: {:?}{} after {:?}",
                self.place.index,
                answer.status,
                answer.append_sector.map(|sector| format!(" at sector {sector}")).unwrap_or_default(),
                taken.elapsed()
            );
        }
    }

    /// A buffer over a request's data; the data's place was checked by the chain's walk.
    pub(crate) fn buffer(&mut self, data: &Spans) -> Option<IoBuffer> {
        // No more vectors are kept than requests are under way at once.
        let segments = self.segments.pop().unwrap_or_default();
        IoBuffer::guest_with(segments, Arc::clone(&self.place.memory), data.as_slice()).ok()
    }

    /// Sends requests that waited for a zone back on their way, each to its own worker.
    pub(crate) fn wake(&mut self, woken: Vec<Ticket>) {
        for ticket in woken {
            match self.place.mailbox.own_slot(ticket) {
                Some(slot) => self.retries.push_back(slot),
                None => self.place.disk.mailboxes.post(ticket, Message::Retry),
            }
        }
    }
}
