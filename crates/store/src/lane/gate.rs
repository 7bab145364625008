//! What stands between a lane and a zoned device of the host: writes to a sequential zone go to the device one after the other, in the order of their
//! places, whichever lanes they come from; and memory that such a device does not take is copied.
//!
//! A write whose turn it is not is parked with its zone, and its worker goes on. Whoever has the turn makes the next ones when his own has ended,
//! those of other lanes among them, several joined into one where they follow one another; what has become of them he tells
//! their owners. Nobody waits for a zone with a lock or a thread, and zones know nothing of one another.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use thiserror::Error;

use super::Event;
use super::op::{Action, Op};
use super::slab::Slab;
use crate::buffer::IoBuffer;
use crate::host::{Arrival, HostDevice, Placed};

/// The lane's name for the gate's messages; no caller has so many.
pub(super) const MESSAGES: u32 = u32::MAX;

/// In a token: the operation is one of the gate's, below it is the number of its job. Callers' tokens are smaller.
const JOB: u64 = 1 << 63;

/// The most ranges of memory in one joined write: more would be several commands.
const JOINED_RANGES_MAX: usize = 256;

/// How long a lane that has failed waits for what others have of it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);
const LEAVE_INTERVAL: Duration = Duration::from_millis(5);

/// One lane's part of the gate.
pub(crate) struct Gate {
    device: Arc<HostDevice>,
    inbox: Arc<Inbox>,
    jobs: Slab<Job>,
    /// Zones in which this lane has the turn and something is to be done.
    turns: VecDeque<Turn>,
}

/// A turn of this lane in a zone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    zone: u32,
    epoch: u32,
}

/// A write that has come to its zone.
pub(crate) struct Parked {
    op: Op,
    owner: Owner,
    /// Why it must fail when its turn comes, whatever the device would say.
    failure: Option<io::Error>,
}

/// Whose write it is.
struct Owner {
    inbox: Arc<Inbox>,
    token: u64,
    /// The caller's buffer, where the one that is used is a copy of it.
    copied: Option<IoBuffer>,
}

/// What a lane has under way.
enum Job {
    /// Of several owners, one after the other.
    Write { turn: Turn, end_bytes: u64, owners: Vec<Owner> },
    /// Into or out of a copy.
    Copy { token: u64, buffer: IoBuffer, read: Option<ReadPart> },
}

/// Which part of a copy a read has asked for.
#[derive(Clone, Copy)]
struct ReadPart {
    skipped_bytes: usize,
    len_bytes: usize,
}

/// Where a lane is told things by others.
struct Inbox {
    messages: Mutex<Vec<Message>>,
    wake: OwnedFd,
}

enum Message {
    /// Another lane has made a write of this one.
    Done(Event),
    /// It has the turn in this zone now.
    Turn(Turn),
}

impl Gate {
    /// # Errors
    /// No more file descriptors.
    pub(crate) fn new(device: Arc<HostDevice>) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let inbox = Arc::new(Inbox { messages: Mutex::default(), wake });
        Ok(Self { device, inbox, jobs: Slab::new(), turns: VecDeque::new() })
    }

    /// A second handle on what becomes readable when there is a message.
    pub(super) fn wake_fd(&self) -> io::Result<OwnedFd> {
        self.inbox.wake.try_clone()
    }

    /// An operation has come, or one that has failed already. What is over goes to `ready`; what is to be done now is returned.
    pub(super) fn enter(
        &mut self,
        mut op: Op,
        failure: Option<io::Error>,
        ready: &mut Vec<Event>,
    ) -> Option<Op> {
        op.cut_at_block(u64::from(self.device.limits().logical_block_bytes).max(1));
        let zone = self.device.sequential_zone(op.at_bytes());
        match (op.action, zone) {
            (Action::Write, Some(zone)) if op.rest_bytes() > 0 => {
                return self.arrive(zone, op, failure, ready);
            }
            // Nothing but a reset makes a zone of a device read as zeros.
            (Action::PunchHole | Action::ZeroRange | Action::WriteZeros, Some(_)) if failure.is_none() => {
                ready.push(op.into_event(Err(io::ErrorKind::Unsupported.into())));
                return None;
            }
            _ => {}
        }
        if failure.is_some() || op.rest_bytes() == 0 {
            ready.push(op.into_event(failure.map_or(Ok(()), Err)));
            return None;
        }
        match op.action {
            Action::Read => self.read(op, ready),
            Action::Write => self.write_anywhere(op, ready),
            _ => Some(op),
        }
    }

    /// A write to a sequential zone, whose place was given to it.
    fn arrive(
        &mut self,
        zone: u32,
        mut op: Op,
        failure: Option<io::Error>,
        ready: &mut Vec<Event>,
    ) -> Option<Op> {
        let (start, len, token) = (op.at_bytes(), op.rest_bytes(), op.token);
        let mut owner = Owner { inbox: Arc::clone(&self.inbox), token, copied: None };
        if !self.takes(&op) {
            owner.copied = self.copy_out(&op).ok().and_then(|copy| op.exchange_buffer(copy));
        }
        let placed = Placed { start, len, write: Parked { op, owner, failure } };
        let arrival = self.device.sequence(zone).map(|mut sequence| sequence.arrive(placed));
        match arrival {
            Some(Arrival::Go(placed, epoch)) => self.make(Turn { zone, epoch }, vec![placed], ready),
            Some(Arrival::Waits) => None,
            Some(Arrival::Fails(placed)) => {
                self.end_all(vec![placed], &behind_a_failure, ready);
                None
            }
            // The range was checked to lie on the disk.
            None => None,
        }
    }

    /// The turns that were given to this lane since the last call.
    pub(super) fn take_turns(&mut self) -> VecDeque<Turn> {
        std::mem::take(&mut self.turns)
    }

    /// Goes on in a zone: with all that can be joined.
    pub(super) fn next(&mut self, turn: Turn, ready: &mut Vec<Event>) -> Option<Op> {
        let most_bytes = self.device.limits().max_transfer_bytes;
        let next = self.device.sequence(turn.zone).map(|mut sequence| {
            let (mut bytes, mut ranges) = (0, 0);
            sequence.take(turn.epoch, |taken, next| {
                let size = |placed: &Placed<Parked>| (placed.len, placed.write.ranges());
                if let [first] = taken {
                    (bytes, ranges) = size(first);
                }
                let (next_bytes, next_ranges) = size(next);
                bytes += next_bytes;
                ranges += next_ranges;
                let alone = |parked: &Parked| parked.failure.is_some() || parked.op.is_cut();
                bytes <= most_bytes
                    && ranges <= JOINED_RANGES_MAX
                    && !alone(&next.write)
                    && !taken.iter().any(|placed| alone(&placed.write))
            })
        });
        let next = next.filter(|next| !next.is_empty())?;
        self.make(turn, next, ready)
    }

    /// Makes these writes one operation. What fails on purpose is not made.
    fn make(&mut self, turn: Turn, mut writes: Vec<Placed<Parked>>, ready: &mut Vec<Event>) -> Option<Op> {
        let (start, len) = (writes.first()?.start, writes.iter().map(|placed| placed.len).sum());
        if writes.iter().any(|placed| placed.write.failure.is_some()) {
            self.fail(turn, ready);
            self.end_all(writes, &behind_a_failure, ready);
            return None;
        }
        let single = if writes.len() == 1 { writes.pop() } else { None };
        let (mut op, owners) = match single {
            Some(Placed { write: Parked { op, owner, .. }, .. }) => (op, vec![owner]),
            None => {
                let mut owners = Vec::with_capacity(writes.len());
                let mut buffers = Vec::with_capacity(writes.len());
                for Placed { write: Parked { op, owner, .. }, .. } in writes {
                    owners.push(owner);
                    buffers.extend(op.into_buffer());
                }
                (Op::transfer(0, Action::Write, IoBuffer::join(buffers), start, len), owners)
            }
        };
        op.token = self.job(Job::Write { turn, end_bytes: start + len, owners });
        Some(op)
    }

    /// Takes what has ended out of `ready` that is the gate's own business, and puts in what follows for the lane's caller.
    pub(super) fn pass(&mut self, ready: &mut Vec<Event>) {
        if !ready.iter().any(is_for_the_gate) {
            return;
        }
        for event in std::mem::take(ready) {
            match event {
                Event::Wake(MESSAGES) => self.read_messages(ready),
                Event::Done { token, buffer, result } if token & JOB != 0 => {
                    self.job_done(token, buffer, result, ready);
                }
                other => ready.push(other),
            }
        }
    }

    fn read_messages(&mut self, ready: &mut Vec<Event>) {
        for message in self.inbox.take() {
            match message {
                Message::Done(event) => ready.push(event),
                Message::Turn(turn) => self.turns.push_back(turn),
            }
        }
    }

    fn job_done(
        &mut self,
        token: u64,
        buffer: Option<IoBuffer>,
        result: io::Result<()>,
        ready: &mut Vec<Event>,
    ) {
        let job = usize::try_from(token & !JOB).ok().and_then(|index| self.jobs.remove(index));
        match job {
            Some(Job::Write { turn, end_bytes, owners }) => {
                match &result {
                    Ok(()) => {
                        let sequence = self.device.sequence(turn.zone);
                        if sequence.is_some_and(|mut sequence| sequence.written(turn.epoch, end_bytes)) {
                            self.turns.push_back(turn);
                        }
                    }
                    Err(_) => self.fail(turn, ready),
                }
                let mut buffers = buffer.map(IoBuffer::into_parts).unwrap_or_default().into_iter();
                for owner in owners {
                    let buffer = buffers.next();
                    self.tell(owner, buffer, same(&result), ready);
                }
            }
            Some(Job::Copy { token, buffer: mut original, read }) => {
                let result = result.and_then(|()| match (read, &buffer) {
                    (Some(part), Some(copy)) => {
                        copy_part(&mut original, copy, part).map_err(io::Error::other)
                    }
                    _ => Ok(()),
                });
                ready.push(Event::Done { token, buffer: Some(original), result });
            }
            None => log::error!("a job that nobody knows has ended: a fault in this program"),
        }
    }

    /// A write has failed: what waits behind it can't be made.
    fn fail(&mut self, turn: Turn, ready: &mut Vec<Event>) {
        let behind = self.device.sequence(turn.zone).map(|mut sequence| sequence.fail(turn.epoch));
        self.end_all(behind.unwrap_or_default(), &behind_a_failure, ready);
    }

    /// Ends writes that were not made: with the failure that each has, or with another one.
    fn end_all(&self, writes: Vec<Placed<Parked>>, error: &dyn Fn() -> io::Error, ready: &mut Vec<Event>) {
        for Placed { write: Parked { op, owner, failure }, .. } in writes {
            self.tell(owner, op.into_buffer(), Err(failure.unwrap_or_else(error)), ready);
        }
    }

    /// Tells an owner how his write has ended.
    fn tell(&self, owner: Owner, buffer: Option<IoBuffer>, result: io::Result<()>, ready: &mut Vec<Event>) {
        let event = Event::Done { token: owner.token, buffer: owner.copied.or(buffer), result };
        match Arc::ptr_eq(&owner.inbox, &self.inbox) {
            true => ready.push(event),
            false => owner.inbox.post(Message::Done(event)),
        }
    }

    /// The lane ends. Its turns go to whoever is next, its own writes that are parked fail with all behind them, and what other lanes have of it is
    /// waited for until `is_all` of what is ready. Returns whether that came to be.
    pub(super) fn leave(&mut self, ready: &mut Vec<Event>, is_all: impl Fn(&[Event]) -> bool) -> bool {
        if !is_all(ready) {
            for zone in 0..self.device.zone_count() {
                let withdrawn = self.device.sequence(zone).map(|mut sequence| {
                    sequence.withdraw(|parked| Arc::ptr_eq(&parked.owner.inbox, &self.inbox))
                });
                self.end_all(withdrawn.unwrap_or_default(), &lost, ready);
            }
        }
        let end = Instant::now() + LEAVE_TIMEOUT;
        loop {
            self.read_messages(ready);
            for turn in std::mem::take(&mut self.turns) {
                self.hand_on(turn);
            }
            if is_all(ready) || Instant::now() >= end {
                break;
            }
            thread::sleep(LEAVE_INTERVAL);
        }
        // What the kernel did not give back: its owners must not wait for ever.
        for index in self.jobs.indices() {
            if let Some(Job::Write { turn, owners, .. }) = self.jobs.remove(index) {
                self.fail(turn, ready);
                for owner in owners {
                    if !Arc::ptr_eq(&owner.inbox, &self.inbox) {
                        let error = io::Error::from_raw_os_error(libc::EIO);
                        self.tell(owner, None, Err(error), ready);
                    }
                }
            }
        }
        is_all(ready)
    }

    fn hand_on(&self, turn: Turn) {
        if let Some(mut sequence) = self.device.sequence(turn.zone)
            && let Some(first) = sequence.first_in_line(turn.epoch)
        {
            first.owner.inbox.post(Message::Turn(turn));
        }
    }

    /// Whether the device takes an operation's memory as it is.
    fn takes(&self, op: &Op) -> bool {
        let limits = self.device.limits();
        let bytes = |value: u32| usize::try_from(value).unwrap_or(512);
        op.buffer().is_some_and(|buffer| {
            buffer.is_aligned(bytes(limits.memory_alignment_bytes), bytes(limits.logical_block_bytes))
        })
    }

    /// A copy of what is to be written, in memory that any device takes.
    fn copy_out(&self, op: &Op) -> io::Result<IoBuffer> {
        let buffer = op.buffer().ok_or(io::ErrorKind::InvalidInput)?;
        let mut copy = self.memory(buffer.len_bytes());
        copy.copy_from(buffer, 0).map_err(io::Error::other)?;
        Ok(copy)
    }

    fn memory(&self, len_bytes: usize) -> IoBuffer {
        let limits = self.device.limits();
        let alignment = limits.memory_alignment_bytes.max(limits.logical_block_bytes).max(4096);
        IoBuffer::aligned(len_bytes, usize::try_from(alignment).unwrap_or(4096))
    }

    /// A read goes straight into the caller's memory where the device can do that; else by way of a copy of whole blocks.
    fn read(&mut self, op: Op, ready: &mut Vec<Event>) -> Option<Op> {
        let block = u64::from(self.device.limits().logical_block_bytes).max(1);
        let (start, len) = (op.at_bytes(), op.rest_bytes());
        let whole = op.buffer().is_some_and(|buffer| buffer.len_bytes() as u64 == len);
        if start.is_multiple_of(block) && len.is_multiple_of(block) && whole && self.takes(&op) {
            return Some(op);
        }
        let from = start - start % block;
        let to = (start + len).next_multiple_of(block);
        let part = usize::try_from(start - from).ok().zip(usize::try_from(len).ok());
        let (token, copy_len) = (op.token, usize::try_from(to - from).ok());
        let cut = op.is_cut();
        match (part, copy_len, op.into_buffer()) {
            (Some((skipped_bytes, len_bytes)), Some(copy_len), Some(buffer)) => {
                let read = Some(ReadPart { skipped_bytes, len_bytes });
                let job = self.job(Job::Copy { token, buffer, read });
                let mut op = Op::transfer(job, Action::Read, self.memory(copy_len), from, to - from);
                if cut {
                    op.cut_short(Some(libc::EIO));
                }
                Some(op)
            }
            (_, _, buffer) => {
                let result = Err(io::ErrorKind::InvalidInput.into());
                ready.push(Event::Done { token, buffer, result });
                None
            }
        }
    }

    /// A write to a conventional zone.
    fn write_anywhere(&mut self, mut op: Op, ready: &mut Vec<Event>) -> Option<Op> {
        if self.takes(&op) {
            return Some(op);
        }
        let token = op.token;
        match self.copy_out(&op).ok().and_then(|copy| op.exchange_buffer(copy)) {
            Some(buffer) => {
                op.token = self.job(Job::Copy { token, buffer, read: None });
                Some(op)
            }
            None => {
                ready.push(op.into_event(Err(io::ErrorKind::InvalidInput.into())));
                None
            }
        }
    }

    fn job(&mut self, job: Job) -> u64 {
        JOB | self.jobs.insert(job) as u64
    }
}

impl Parked {
    fn ranges(&self) -> usize {
        self.op.buffer().map_or(0, IoBuffer::range_count)
    }
}

impl Inbox {
    fn post(&self, message: Message) {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        // The counter can't overflow: the lane empties it.
        let written = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        debug_assert!(written.is_ok(), "an eventfd takes a wake-up");
    }

    fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.messages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn is_for_the_gate(event: &Event) -> bool {
    match event {
        Event::Wake(source) => *source == MESSAGES,
        Event::Done { token, .. } => token & JOB != 0,
    }
}

fn copy_part(
    original: &mut IoBuffer,
    copy: &IoBuffer,
    part: ReadPart,
) -> Result<(), crate::buffer::OutOfBuffer> {
    let mut bytes = vec![0; part.len_bytes];
    copy.copy_to_slice(part.skipped_bytes, &mut bytes)?;
    original.copy_from_slice(0, &bytes)
}

/// The same end for another owner.
fn same(result: &io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(match error.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(error.kind(), error.to_string()),
        }),
    }
}

fn behind_a_failure() -> io::Error {
    io::Error::other(NotMade)
}

/// A write to a zoned device of the host was not made, because one before it in its zone has failed.
#[derive(Debug, Error)]
#[error("a write before it in its zone has failed, so it was not made")]
pub struct NotMade;

impl NotMade {
    /// Whether this is why a write has failed.
    pub fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

fn lost() -> io::Error {
    io::Error::other("its end was lost with the lane, before it was made")
}
