//! A queue's way to the medium, and the only place where its worker waits.

mod gate;
mod op;
mod poll;
mod ring;
mod slab;
mod spare;
mod tap;
mod target;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use crate::buffer::IoBuffer;
use crate::inject::{Fault, Faults, Operation};
pub use gate::NotMade;
pub(crate) use gate::{Gate, Parked};
use op::{Action, Op};
use poll::PollSet;
use ring::Ring;
pub use spare::reserve_rings;
pub use tap::PowerIsCut;
pub(crate) use tap::{Change, Tap};
pub(crate) use target::Target;

/// Moves data between buffers and one disk, and waits: for that, and for every descriptor that it watches.
///
/// One worker owns it. Operations run in parallel and end in any order; each is known by the caller's token.
/// Nothing is started before [`wait`](Self::wait), though it may be. Dropping a lane waits for what the
/// kernel still has in its hands; results that were not fetched are lost, the buffers freed.
pub struct Lane {
    target: Target,
    /// Shared with the store: a disk may grow.
    capacity_bytes: Arc<AtomicU64>,
    /// Set by the store when nothing may be written (any more).
    writes_end: Arc<AtomicBool>,
    waiter: Waiter,
    /// What goes wrong on purpose.
    faults: Faults,
    /// Where the disk ends at the moment: earlier than it should where its file was cut off. Looked at once a turn.
    end_bytes: Option<u64>,
    /// It has failed on purpose.
    has_failed: bool,
    /// What has ended and was not fetched.
    ready: Vec<Event>,
    in_flight: usize,
    /// What stands between the lane and a zoned device of the host.
    gate: Option<Box<Gate>>,
    /// Who is told of changes; goes after the waiter, which still has some of them.
    tap: Option<Arc<dyn Tap>>,
}

/// Something that a worker waits for.
#[derive(Debug)]
pub enum Event {
    /// The descriptor watched under this source was readable; 8 bytes of it are consumed, and it is watched
    /// again. Once its other end is closed, or it can't be read, this comes one last time.
    Wake(u32),
    /// An operation has ended.
    Done {
        /// What the operation was started with.
        token: u64,
        /// Its buffer, whole again; `None` after [`Lane::zero`].
        buffer: Option<IoBuffer>,
        /// How it ended. After an error any part of the range (of the disk, or of a read's buffer) may have
        /// been changed.
        result: io::Result<()>,
    },
}

/// How a range is made to read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// Its space goes back to the host.
    Deallocate,
    /// Its space stays taken, so that a later write can't find the host full.
    KeepAllocated,
}

/// Which engine a lane uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring; where it is forbidden or missing, the other one. The log says which, once a process.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// `preadv`, `pwritev` and `poll`, one after the other.
    Sync,
}

enum Waiter {
    Ring(Box<Ring>),
    Poll(PollSet),
}

impl Lane {
    pub(crate) fn open(
        target: Target,
        capacity_bytes: Arc<AtomicU64>,
        writes_end: Arc<AtomicBool>,
        engine: EngineChoice,
    ) -> io::Result<Self> {
        let waiter = Waiter::open(engine)?;
        let (faults, end_bytes) = (Faults::default(), None);
        Ok(Self {
            target,
            capacity_bytes,
            writes_end,
            waiter,
            faults,
            end_bytes,
            has_failed: false,
            ready: Vec::new(),
            in_flight: 0,
            gate: None,
            tap: None,
        })
    }

    /// The same with faults on purpose.
    pub(crate) fn with_faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// The same behind a gate.
    ///
    /// # Errors
    /// The gate's messages can't be waited for.
    pub(crate) fn behind(mut self, gate: Gate) -> io::Result<Self> {
        self.watch(gate.wake_fd()?, gate::MESSAGES)?;
        self.gate = Some(Box::new(gate));
        Ok(self)
    }

    /// From now on `tap` is told of every change.
    pub(crate) fn set_tap(&mut self, tap: Arc<dyn Tap>) {
        self.tap = Some(tap);
    }

    /// What does the work, for logs: "io_uring", "pread/pwrite", or "memory" for a disk that needs neither.
    pub fn engine_name(&self) -> &'static str {
        match (&self.target, &self.waiter) {
            (Target::Ram(_), _) => "memory",
            (Target::File { .. }, Waiter::Ring(_)) => "io_uring",
            _ => "pread/pwrite",
        }
    }

    /// From now on each time `fd` (an eventfd or the reading end of a pipe, blocking or not) is readable, up
    /// to 8 bytes are consumed and [`Event::Wake`] with `source` is reported. Several descriptors may have
    /// the same source.
    ///
    /// # Errors
    /// The kernel's; the descriptor is closed then.
    pub fn watch(&mut self, fd: OwnedFd, source: u32) -> io::Result<()> {
        match &mut self.waiter {
            Waiter::Ring(ring) => ring.watch(fd, source),
            Waiter::Poll(set) => {
                set.watch(fd, source);
                Ok(())
            }
        }
    }

    /// Ends the watch of every descriptor with this source and closes them. A wake that was not fetched may
    /// still come.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unwatch(&mut self, source: u32) -> io::Result<()> {
        self.end_watches(Some(source))
    }

    /// Ends all watches.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unwatch_all(&mut self) -> io::Result<()> {
        self.end_watches(None)
    }

    /// Reads `len_bytes` at `offset_bytes` from the disk's start into the beginning of `buffer`.
    ///
    /// Past the end of the disk, or with more bytes than the buffer has, it ends in `InvalidInput`.
    pub fn read(&mut self, token: u64, buffer: IoBuffer, len_bytes: usize, offset_bytes: u64) {
        let fits = len_bytes <= buffer.len_bytes();
        let op = Op::transfer(token, Action::Read, buffer, offset_bytes, len_bytes as u64);
        self.start(op, fits);
    }

    /// Writes all of `buffer` at `offset_bytes` from the disk's start.
    ///
    /// Past the end of the disk it ends in `InvalidInput`, on one that is read-only or was closed in
    /// `ReadOnlyFilesystem`.
    pub fn write(&mut self, token: u64, buffer: IoBuffer, offset_bytes: u64) {
        let len_bytes = buffer.len_bytes() as u64;
        self.start(Op::transfer(token, Action::Write, buffer, offset_bytes, len_bytes), true);
    }

    /// Makes a range read as zeros. Where the medium has no such call, zeros are written.
    ///
    /// Past the end of the disk it ends in `InvalidInput`, on one that is read-only or was closed in
    /// `ReadOnlyFilesystem`.
    pub fn zero(&mut self, token: u64, offset_bytes: u64, len_bytes: u64, how: Zeroing) {
        let action = match how {
            Zeroing::Deallocate => Action::PunchHole,
            Zeroing::KeepAllocated => Action::ZeroRange,
        };
        self.start(Op::zero(token, action, offset_bytes, len_bytes), true);
    }

    /// Starts what is queued, waits until there is at least one event or the time is over, and appends all
    /// there are to `events`.
    ///
    /// # Errors
    /// The kernel's; and a call that could never end, because nothing is watched, nothing under way and no
    /// time given.
    pub fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        if let Err(error) = self.faults.check(Operation::Engine, 0..0) {
            self.has_failed = true;
            return Err(error);
        }
        self.end_bytes = None;
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let target = self.target.raw();
        loop {
            let rest = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let goes_on = self.gate.is_some() && self.go_on();
            let block = self.ready.is_empty() && rest != Some(Duration::ZERO) && !goes_on;
            if block && rest.is_none() && self.waiter.is_idle() {
                return Err(io::Error::new(
                    io::ErrorKind::Deadlock,
                    "nothing is watched and nothing is under way: this wait would have no end",
                ));
            }
            match &mut self.waiter {
                Waiter::Ring(ring) => ring.turn(block, rest, target, &mut self.ready)?,
                Waiter::Poll(set) if block => set.turn(rest, &mut self.ready)?,
                Waiter::Poll(set) => set.turn(Some(Duration::ZERO), &mut self.ready)?,
            }
            if let Some(gate) = &mut self.gate {
                gate.pass(&mut self.ready);
            }
            if self.tap.as_ref().is_some_and(|tap| tap.is_over()) {
                return Err(io::Error::other(PowerIsCut));
            }
            if !self.ready.is_empty() || rest == Some(Duration::ZERO) {
                let done = self.ready.iter().filter(|event| matches!(event, Event::Done { .. })).count();
                self.in_flight -= done;
                events.append(&mut self.ready);
                return Ok(());
            }
        }
    }

    /// Ends a lane whose [`wait`](Self::wait) has failed: waits for what the kernel has in its hands, for a few seconds if need be,
    /// and appends what has ended to `events`. What is not among them is lost. Operations can still be started where they are done
    /// by plain calls, and ended in this way; nothing else works any more.
    ///
    /// Returns whether all of it has ended. If not, a write may still reach the medium at any time.
    pub fn end(&mut self, events: &mut Vec<Event>) -> bool {
        let target = self.target.raw();
        let all = match &mut self.waiter {
            Waiter::Ring(ring) => ring.drain(target, &mut self.ready),
            Waiter::Poll(_) => true,
        };
        let all = all & self.leave();
        // A failure on purpose is one of the worst kind.
        if self.has_failed {
            self.ready.clear();
        }
        events.append(&mut self.ready);
        all
    }

    /// Operations started and not yet reported.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn start(&mut self, mut op: Op, fits: bool) {
        self.in_flight += 1;
        let result = match self.allowed(&op, fits).and_then(|()| self.inject(&mut op)) {
            result if self.gate.is_some() => return self.enter_gate(op, result.err()),
            Err(error) => Err(error),
            Ok(()) if op.rest_bytes() == 0 => Ok(()),
            Ok(()) if self.tap.as_ref().is_some_and(|tap| !op.begin(tap)) => return,
            Ok(()) => return self.run(op),
        };
        self.ready.push(op.into_event(result));
    }

    /// Gives an operation to whoever does it.
    fn run(&mut self, mut op: Op) {
        let result = match (&mut self.waiter, &self.target) {
            (Waiter::Ring(ring), Target::File { fd, base_bytes }) => {
                let Some((refused, error)) = ring.submit(op, fd.as_raw_fd(), *base_bytes) else { return };
                op = refused;
                Err(error)
            }
            (_, target) => target.perform(&mut op),
        };
        self.ready.push(op.into_event(result));
    }

    /// Lets an operation, or its failure, come to the gate.
    fn enter_gate(&mut self, op: Op, failure: Option<io::Error>) {
        let Some(gate) = &mut self.gate else { return };
        if let Some(op) = gate.enter(op, failure, &mut self.ready) {
            self.run(op);
        }
    }

    /// Starts what the gate has let pass meanwhile. Returns whether there is something to come back for at once.
    fn go_on(&mut self) -> bool {
        let Some(gate) = &mut self.gate else { return false };
        for zone in gate.take_turns() {
            let Some(gate) = &mut self.gate else { break };
            if let Some(op) = gate.next(zone, &mut self.ready) {
                self.run(op);
            }
        }
        !self.ready.is_empty()
    }

    /// The end of a lane behind a gate: what others have under way here is theirs to know, and what waits behind the gate is nobody's any more. Returns
    /// whether all of this lane's own has ended.
    fn leave(&mut self) -> bool {
        let Some(gate) = &mut self.gate else { return true };
        gate.pass(&mut self.ready);
        let done = |ready: &[Event]| ready.iter().filter(|event| matches!(event, Event::Done { .. })).count();
        let in_flight = self.in_flight;
        let all = gate.leave(&mut self.ready, |ready| done(ready) >= in_flight);
        self.in_flight = in_flight.saturating_sub(done(&self.ready));
        all
    }

    /// Lets happen to an operation what a rule says.
    fn inject(&self, op: &mut Op) -> io::Result<()> {
        let operation = match op.action {
            Action::Read => Operation::Read,
            Action::Write => Operation::Write,
            Action::PunchHole | Action::ZeroRange | Action::WriteZeros => Operation::Clear,
        };
        match self.faults.meet(operation, op.at_bytes()..op.at_bytes() + op.rest_bytes()) {
            None => {}
            Some(Fault::Short) => op.cut_short(None),
            Some(Fault::Torn) => op.cut_short(Some(libc::EIO)),
            Some(fault) => return Err(fault.error()),
        }
        Ok(())
    }

    /// Nothing may reach beyond the disk: in an image that would be the file's end, or another part of it.
    fn allowed(&mut self, op: &Op, fits: bool) -> io::Result<()> {
        if !fits {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "more bytes are asked for than the buffer has",
            ));
        }
        if op.end_bytes().is_none_or(|end| end > self.capacity_bytes.load(Ordering::Relaxed)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the range ends past the end of the disk",
            ));
        }
        if op.action == Action::Read {
            return Ok(());
        }
        if self.writes_end.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.reaches(op)
    }

    /// A file that was cut off is not made longer again: what it had before would read as zeros, and nobody would know.
    fn reaches(&mut self, op: &Op) -> io::Result<()> {
        let end_bytes = match self.end_bytes {
            Some(end_bytes) => end_bytes,
            None => *self.end_bytes.insert(self.target.end_bytes()?),
        };
        if op.end_bytes().is_some_and(|end| end <= end_bytes) {
            return Ok(());
        }
        let what = format!("the medium ends too early, at byte {end_bytes} of the disk: it was cut off");
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, what))
    }

    fn end_watches(&mut self, source: Option<u32>) -> io::Result<()> {
        let target = self.target.raw();
        match &mut self.waiter {
            Waiter::Ring(ring) => ring.unwatch(source, target, &mut self.ready),
            Waiter::Poll(set) => {
                set.unwatch(source);
                Ok(())
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.gate.is_some() {
            let target = self.target.raw();
            if let Waiter::Ring(ring) = &mut self.waiter {
                ring.drain(target, &mut self.ready);
            }
            self.leave();
        }
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("engine", &self.engine_name())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Waiter {
    fn open(engine: EngineChoice) -> io::Result<Self> {
        static SAID: Once = Once::new();
        if engine == EngineChoice::Sync {
            return Ok(Self::Poll(PollSet::default()));
        }
        match Ring::new() {
            Ok(ring) => {
                if engine == EngineChoice::Auto {
                    SAID.call_once(|| log::info!("I/O goes through io_uring"));
                }
                Ok(Self::Ring(Box::new(ring)))
            }
            Err(error) if engine == EngineChoice::Auto && is_forbidden(&error) => {
                SAID.call_once(|| {
                    log::warn!("I/O goes through pread/pwrite, which is slower: no io_uring here ({error})");
                });
                Ok(Self::Poll(PollSet::default()))
            }
            Err(error) => Err(error),
        }
    }

    fn is_idle(&self) -> bool {
        match self {
            Self::Ring(ring) => ring.is_idle(),
            Self::Poll(set) => set.is_empty(),
        }
    }
}

/// Whether this is how a system says that it has no io_uring for us: none built in, locked down, or no memory
/// that may be locked.
fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES | libc::ENOMEM))
}

impl Target {
    /// The file and the place of the disk's first byte in it; no file: never used.
    fn raw(&self) -> (RawFd, u64) {
        match self {
            Self::File { fd, base_bytes } => (fd.as_raw_fd(), *base_bytes),
            Self::Ram(_) | Self::Medium { .. } => (-1, 0),
        }
    }
}
