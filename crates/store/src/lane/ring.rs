//! The io_uring engine: one ring a lane, for its I/O and for everything it waits for.
#![allow(unsafe_code)]

use std::io;
use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use super::Event;
use super::op::{Action, Op, Step};
use super::slab::Slab;
use super::spare;
use super::target::fallocate_mode;
use crate::buffer::{IoBuffer, Segments};

/// How long a ring that has failed is waited for, and how often it is looked at.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);

/// A ring, and all that the kernel may still write to.
///
/// Nothing that was handed to the kernel is freed before its completion has been seen: an operation stays in
/// `ops`, a watch in `watches`, until then; and [`Drop`] waits for the rest.
pub(super) struct Ring {
    /// Kept for the next lane, or dropped, by [`Drop`].
    ring: ManuallyDrop<IoUring>,
    ops: Slab<Op>,
    watches: Slab<Watch>,
    /// Entries given to the ring whose completion has not been taken.
    outstanding: usize,
    /// Completions taken out of the ring, not yet looked at.
    reaped: Vec<(u64, i32)>,
}

struct Watch {
    fd: OwnedFd,
    source: u32,
    /// Where the eight bytes go; never looked at.
    sink: IoBuffer,
    cancelled: bool,
}

/// What a completion belongs to: the kind in the top byte, the slot below it.
mod tag {
    pub(super) const OP: u64 = 0;
    pub(super) const WATCH: u64 = 1 << 56;
    pub(super) const POLL: u64 = 2 << 56;
    pub(super) const CANCEL: u64 = 3 << 56;
    pub(super) const KIND: u64 = 0xff << 56;
}

impl Ring {
    /// A new ring.
    ///
    /// # Errors
    /// The kernel has no io_uring, one that can't wait with a timeout (before 5.11), or does not let us use it.
    pub(super) fn new() -> io::Result<Self> {
        let ring = ManuallyDrop::new(spare::take()?);
        Ok(Self { ring, ops: Slab::new(), watches: Slab::new(), outstanding: 0, reaped: Vec::new() })
    }

    /// Starts `op` on `fd`, whose byte `base_bytes` is the disk's first. An operation that can't be started
    /// comes back.
    pub(super) fn submit(&mut self, op: Op, fd: RawFd, base_bytes: u64) -> Option<(Op, io::Error)> {
        let index = self.ops.insert(op);
        self.push_op(index, fd, base_bytes)
    }

    /// Watches `fd`.
    ///
    /// # Errors
    /// The ring takes nothing.
    pub(super) fn watch(&mut self, fd: OwnedFd, source: u32) -> io::Result<()> {
        let sink = IoBuffer::owned(vec![0; 8]);
        let index = self.watches.insert(Watch { fd, source, sink, cancelled: false });
        self.arm(index).inspect_err(|_| {
            self.watches.remove(index);
        })
    }

    /// Ends the watches of `source`, or all. Completions of I/O that arrive meanwhile are put into `events`.
    pub(super) fn unwatch(
        &mut self,
        source: Option<u32>,
        target: (RawFd, u64),
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let mut ended = Vec::new();
        for index in self.watches.indices() {
            if let Some(watch) = self.watches.get_mut(index)
                && source.is_none_or(|source| source == watch.source)
            {
                watch.cancelled = true;
                ended.push(index);
            }
        }
        for &index in &ended {
            for kind in [tag::WATCH, tag::POLL] {
                self.push(opcode::AsyncCancel::new(kind | index as u64).build().user_data(tag::CANCEL))?;
            }
        }
        while ended.iter().any(|&index| self.watches.get_mut(index).is_some_and(|watch| watch.cancelled)) {
            self.turn(true, None, target, events)?;
        }
        Ok(())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.ops.is_empty() && self.watches.is_empty()
    }

    /// Submits what is queued; with `block`, waits until something has completed or the time is over; takes
    /// all completions.
    pub(super) fn turn(
        &mut self,
        block: bool,
        timeout: Option<Duration>,
        target: (RawFd, u64),
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        self.enter(block, timeout)?;
        self.take_completions(target, events);
        Ok(())
    }

    fn take_completions(&mut self, target: (RawFd, u64), events: &mut Vec<Event>) {
        self.reap();
        let reaped = mem::take(&mut self.reaped);
        for &(user_data, result) in &reaped {
            let index = usize::try_from(user_data & !tag::KIND).unwrap_or(usize::MAX);
            match user_data & tag::KIND {
                tag::OP => self.op_completed(index, result, target, events),
                tag::WATCH => self.watch_completed(index, result, events),
                tag::POLL => self.poll_completed(index, events),
                _ => {}
            }
        }
        // Handling may have reaped more, where a full queue had to be submitted; the larger vector is kept
        // for next time.
        if self.reaped.is_empty() {
            self.reaped = reaped;
            self.reaped.clear();
        }
    }

    /// Waits until no operation is under way, also where the ring does nothing any more but take completions. Returns whether
    /// there is none.
    pub(super) fn drain(&mut self, target: (RawFd, u64), events: &mut Vec<Event>) -> bool {
        let end = Instant::now() + DRAIN_TIMEOUT;
        while !self.ops.is_empty() && Instant::now() < end {
            if self.turn(true, Some(DRAIN_INTERVAL), target, events).is_err() {
                self.take_completions(target, events);
                thread::sleep(DRAIN_INTERVAL);
            }
        }
        self.ops.is_empty()
    }

    fn op_completed(
        &mut self,
        index: usize,
        result: i32,
        (fd, base_bytes): (RawFd, u64),
        events: &mut Vec<Event>,
    ) {
        let Some(op) = self.ops.get_mut(index) else { return };
        let moved = u64::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()));
        let ended = match op.advance(moved) {
            Step::More => self.push_op(index, fd, base_bytes).map(|(op, error)| (op, Err(error))),
            Step::Done(end) => self.ops.remove(index).map(|op| (op, end)),
        };
        if let Some((op, result)) = ended {
            events.push(op.into_event(result));
        }
    }

    fn watch_completed(&mut self, index: usize, result: i32, events: &mut Vec<Event>) {
        let Some(watch) = self.watches.get_mut(index) else { return };
        if watch.cancelled {
            self.watches.remove(index);
            return;
        }
        let source = watch.source;
        let again = match -result {
            // A non-blocking descriptor with nothing to read: wait until there is something.
            libc::EAGAIN => self.arm_poll(index),
            libc::EINTR => self.arm(index),
            0 => {
                log::debug!("source {source}: the other end is closed");
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            error if error > 0 => {
                let error = io::Error::from_raw_os_error(error);
                log::warn!("source {source}: can't be read and is no longer watched: {error}");
                Err(error)
            }
            _ => {
                events.push(Event::Wake(source));
                self.arm(index)
                    .inspect_err(|error| log::error!("source {source}: no longer watched: {error}"))
            }
        };
        if again.is_err() {
            self.watches.remove(index);
            events.push(Event::Wake(source));
        }
    }

    fn poll_completed(&mut self, index: usize, events: &mut Vec<Event>) {
        let Some(watch) = self.watches.get_mut(index) else { return };
        let source = watch.source;
        if watch.cancelled {
            self.watches.remove(index);
        } else if let Err(error) = self.arm(index) {
            log::error!("source {source}: no longer watched: {error}");
            self.watches.remove(index);
            events.push(Event::Wake(source));
        }
    }

    fn arm(&mut self, index: usize) -> io::Result<()> {
        let Some(watch) = self.watches.get_mut(index) else { return Ok(()) };
        let mut scratch = Segments::default();
        let window = watch.sink.window(0, 8, &mut scratch);
        let Some(sink) = window.iovecs().first() else { return Ok(()) };
        let entry = opcode::Read::new(Fd(watch.fd.as_raw_fd()), sink.iov_base.cast(), 8)
            .offset(u64::MAX)
            .build()
            .user_data(tag::WATCH | index as u64);
        self.push(entry)
    }

    fn arm_poll(&mut self, index: usize) -> io::Result<()> {
        let Some(watch) = self.watches.get_mut(index) else { return Ok(()) };
        let flags = u32::from(libc::POLLIN.unsigned_abs());
        let entry =
            opcode::PollAdd::new(Fd(watch.fd.as_raw_fd()), flags).build().user_data(tag::POLL | index as u64);
        self.push(entry)
    }

    /// Queues the next system call of an operation; takes it out of its slot if that fails.
    fn push_op(&mut self, index: usize, fd: RawFd, base_bytes: u64) -> Option<(Op, io::Error)> {
        let op = self.ops.get_mut(index)?;
        let entry = entry_of(op, fd, base_bytes).user_data(tag::OP | index as u64);
        let error = self.push(entry).err()?;
        self.ops.remove(index).map(|op| (op, error))
    }

    /// Queues an entry; a full queue is submitted first.
    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: what the entry points to is in `ops` or `watches` (the caller has put it there before),
            // stays at its address and is kept until its completion has been taken.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_ok() {
                self.outstanding += 1;
                return Ok(());
            }
            self.enter(false, None)?;
            // The kernel takes nothing while it has completions that it can't put down.
            self.reap();
        }
    }

    fn enter(&mut self, block: bool, timeout: Option<Duration>) -> io::Result<()> {
        // What `push` has reaped must not be waited for.
        let want = usize::from(block && self.reaped.is_empty());
        if want == 0 {
            let queue = self.ring.submission();
            if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                return Ok(());
            }
        }
        let entered = match timeout {
            Some(timeout) if want > 0 => {
                let timespec = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&timespec))
            }
            _ => self.ring.submit_and_wait(want),
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Interrupted, timed out, short of memory for the moment, or more completions than the queue
                // holds: the caller takes what is there and comes again.
                Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn reap(&mut self) {
        for entry in self.ring.completion() {
            self.outstanding -= 1;
            self.reaped.push((entry.user_data(), entry.result()));
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut dropped = Vec::new();
        // Operations are not cancelled: a write that has begun ends. A short one must not go on, so nothing
        // is pushed again.
        let mut sound = true;
        for index in self.watches.indices() {
            for kind in [tag::WATCH, tag::POLL] {
                let cancel = opcode::AsyncCancel::new(kind | index as u64).build().user_data(tag::CANCEL);
                sound &= self.push(cancel).is_ok();
            }
        }
        while sound && self.outstanding > 0 {
            self.reap();
            dropped.append(&mut self.reaped);
            if self.outstanding > 0 {
                sound = self.enter(true, None).is_ok();
            }
        }
        if self.outstanding > 0 {
            log::error!("{} operations can't be waited for: their memory is kept for good", self.outstanding);
            mem::forget(mem::replace(&mut self.ops, Slab::new()));
            mem::forget(mem::replace(&mut self.watches, Slab::new()));
        }
        // SAFETY: it is not used again.
        let ring = unsafe { ManuallyDrop::take(&mut self.ring) };
        if self.outstanding == 0 {
            spare::give_back(ring);
        }
    }
}

/// The submission queue entry for the rest of `op`.
fn entry_of(op: &mut Op, fd: RawFd, base_bytes: u64) -> squeue::Entry {
    let (fd, at_bytes, rest_bytes) = (Fd(fd), base_bytes + op.at_bytes(), op.rest_bytes());
    let action = op.action;
    if matches!(action, Action::PunchHole | Action::ZeroRange) {
        let mode = i32::from_ne_bytes(fallocate_mode(action).bits().to_ne_bytes());
        return opcode::Fallocate::new(fd, rest_bytes).offset(at_bytes).mode(mode).build();
    }
    let iovecs = op.window().iovecs();
    // A window has at most 1024 ranges and 1 GiB.
    let count = u32::try_from(iovecs.len()).unwrap_or(u32::MAX);
    if let [only] = iovecs {
        let len_bytes = u32::try_from(only.iov_len).unwrap_or(u32::MAX);
        return match action {
            Action::Read => opcode::Read::new(fd, only.iov_base.cast(), len_bytes).offset(at_bytes).build(),
            _ => opcode::Write::new(fd, only.iov_base.cast(), len_bytes).offset(at_bytes).build(),
        };
    }
    match action {
        Action::Read => opcode::Readv::new(fd, iovecs.as_ptr(), count).offset(at_bytes).build(),
        _ => opcode::Writev::new(fd, iovecs.as_ptr(), count).offset(at_bytes).build(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    /// What newer kernels no longer need: a read that says EAGAIN, and a poll after it.
    #[test]
    fn a_watch_goes_on_after_a_read_that_would_block() {
        let mut ring = Ring::new().unwrap();
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let mut kick = File::from(fd.try_clone().unwrap());
        let sink = IoBuffer::owned(vec![0; 8]);
        let index = ring.watches.insert(Watch { fd, source: 5, sink, cancelled: false });
        let mut events = Vec::new();
        ring.watch_completed(index, -libc::EAGAIN, &mut events);
        assert!(events.is_empty());
        for _ in 0..2 {
            kick.write_all(&1u64.to_ne_bytes()).unwrap();
            while events.is_empty() {
                ring.turn(true, None, (-1, 0), &mut events).unwrap();
            }
            assert!(matches!(events[..], [Event::Wake(5)]), "{events:?}");
            events.clear();
        }
        // A poll is cancelled as well as a read is.
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let sink = IoBuffer::owned(vec![0; 8]);
        let index = ring.watches.insert(Watch { fd, source: 6, sink, cancelled: false });
        ring.watch_completed(index, -libc::EAGAIN, &mut events);
        ring.unwatch(None, (-1, 0), &mut events).unwrap();
        assert!(events.is_empty() && ring.is_idle());
    }
}
