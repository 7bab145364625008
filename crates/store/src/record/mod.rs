//! Your own power cuts: a disk that writes down what is done to it, and one that loses its power.
//!
//! Who builds a file system or a database on zones wants to know what it makes of a power cut. What a disk with a write-back
//! cache may have then is given by virtio and by the promises D1 to D4; `model` has the rules. Two ways to get such disks:
//!
//! - [`Recorder`] with a log writes down everything that is done to a disk. A [`Recording`] reads it, and makes the image that a
//!   power cut at any moment of it could have left, as often as is wanted.
//! - [`Recorder`] with a [`PowerCut`] stops in the middle, for good, and leaves the disk itself in such a state.

mod cut;
mod error;
mod format;
mod log;
mod model;
mod read;
mod replay;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use virtio_zbd_zones::{Geometry, ZoneState};

use crate::error::StoreError;
pub use crate::lane::PowerIsCut;
use crate::lane::{Change, EngineChoice, Lane, Tap};
use crate::store::{Commit, CommitOutcome, Identity, Store};
use cut::Cutter;
pub use cut::{CutReport, PowerCut};
pub use error::RecordError;
use format::{Record, kind};
use log::Log;
pub use model::Keep;
use model::Shape;
pub use read::{Counts, FlushMark, Recording};
pub use replay::Replay;

/// The lane's name for the descriptor that wakes it when the power is cut. Whoever waits there is not told.
const CUT_SOURCE: u32 = u32::MAX;

/// What a [`Recorder`] does.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordOptions<'a> {
    /// The file to make and to write everything to that is done to the disk.
    pub log: Option<&'a Path>,
    /// When and how to cut the power.
    pub cut: Option<PowerCut>,
}

/// A store over another one that writes down what is done to it, or cuts its power, or both.
///
/// What it writes is in the log before anybody is told that it was done. Reads are not written down. The zones' states and
/// everything that is on the disk at the beginning are put into the log first, so that it needs nothing else.
pub struct Recorder {
    inner: Arc<dyn Store>,
    shared: Arc<Shared>,
}

/// What the lanes share with the recorder.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// The power is cut.
    over: AtomicBool,
    next_change: AtomicU64,
    logs: bool,
    cuts: bool,
}

struct State {
    log: Option<Log>,
    /// Why nothing is written down any more.
    log_failed: Option<StoreError>,
    cutter: Option<Cutter>,
    next_commit: u64,
    closed: bool,
}

impl Recorder {
    /// Begins to record `store`. Nothing may have been published to it.
    ///
    /// # Errors
    /// The log exists or can't be written; the store is read-only or can't be read; its zones are of several kinds or capacities.
    pub fn new(store: Arc<dyn Store>, options: RecordOptions<'_>) -> Result<Self, RecordError> {
        let name = store.identity().description;
        if store.read_only() {
            return Err(RecordError::ReadOnly { name });
        }
        if store.geometry().is_some_and(|geometry| !geometry.is_uniform()) {
            return Err(RecordError::NotUniform { name });
        }
        let shape = || Shape {
            capacity_bytes: store.capacity_bytes(),
            geometry: store.geometry(),
            states: store.initial_states(),
        };
        let log = options.log.map(|path| start_log(&*store, path, &shape())).transpose()?;
        let cutter = options.cut.map(|cut| Cutter::new(cut, &*store, shape())).transpose()?;
        let (logs, cuts) = (log.is_some(), cutter.is_some());
        let state = State { log, log_failed: None, cutter, next_commit: 1, closed: false };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            over: AtomicBool::new(false),
            next_change: AtomicU64::new(1),
            logs,
            cuts,
        });
        Ok(Self { inner: store, shared })
    }

    /// Waits until the power is cut, and brings the disk into the state that it is left in. `None`: the store was closed, or
    /// no cut was asked for.
    ///
    /// # Errors
    /// The disk could not be brought there: it is as after a kill, in part.
    pub fn wait_for_cut(&self) -> Result<Option<CutReport>, RecordError> {
        let mut state = self.shared.lock();
        loop {
            let over = self.shared.over.load(Ordering::Acquire);
            let Some(cutter) = &mut state.cutter else { return Ok(None) };
            if over && cutter.is_quiet() {
                return cutter.apply(&*self.inner).map(Some);
            }
            if state.closed && !over {
                return Ok(None);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Store for Recorder {
    fn capacity_bytes(&self) -> u64 {
        self.inner.capacity_bytes()
    }

    fn geometry(&self) -> Option<Geometry> {
        self.inner.geometry()
    }

    fn identity(&self) -> Identity {
        self.inner.identity()
    }

    fn history(&self) -> u64 {
        self.inner.history()
    }

    fn initial_states(&self) -> Vec<ZoneState> {
        self.inner.initial_states()
    }

    /// Waits for the log, other than other stores.
    fn publish(&self, zone: u32, state: ZoneState) {
        let mut shared = self.shared.lock();
        if self.shared.is_over() {
            return;
        }
        self.inner.publish(zone, state);
        shared.write(|| Record::numbers(kind::ZONE, &[zone.into(), state.to_bits()]));
        if let Some(cutter) = &mut shared.cutter {
            cutter.model.publish(zone, state);
        }
    }

    fn commit(&self, work: &Commit<'_>) -> CommitOutcome {
        let Some(id) = self.commit_begin(work) else { return self.power_cut() };
        let outcome = self.inner.commit(work);
        self.commit_end(id, outcome.durable.is_ok());
        if self.shared.is_over() { self.power_cut() } else { outcome }
    }

    /// What is written down is of the disk that it was at the beginning.
    fn grow(&self, _: u64) -> Result<(), StoreError> {
        let why = "what is done to it is recorded, or its power is to be cut".to_owned();
        Err(StoreError::NoGrowth { name: self.identity().description, why })
    }

    fn open_lane(&self, engine: EngineChoice) -> io::Result<Lane> {
        let mut lane = self.inner.open_lane(engine)?;
        let mut state = self.shared.lock();
        if self.shared.is_over() {
            return Err(io::Error::other(PowerIsCut));
        }
        if let Some(cutter) = &mut state.cutter {
            lane.watch(cutter.waker()?, CUT_SOURCE)?;
            cutter.lanes += 1;
        }
        lane.set_tap(Arc::new(LaneTap(Arc::clone(&self.shared))));
        Ok(lane)
    }

    fn read_only(&self) -> bool {
        false
    }

    fn close(&self) -> Result<(), StoreError> {
        if self.shared.lock().closed {
            return Ok(());
        }
        let Some(id) = self.commit_begin(&Commit { flush: true, ..Commit::default() }) else {
            return Err(StoreError::PowerCut { name: self.identity().description });
        };
        let closed = self.inner.close();
        self.commit_end(id, closed.is_ok());
        closed?;
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.changed.notify_all();
        if let Some(log) = &state.log {
            log.sync().map_err(StoreError::io(log.name(), "bringing the recording to the medium"))?;
        }
        state.log_failed.take().map_or(Ok(()), Err)
    }

    fn cut_power(&self, states: &[ZoneState]) -> Result<(), StoreError> {
        self.inner.cut_power(states)
    }
}

impl Recorder {
    /// `None`: the power is cut, and this is not to be made.
    fn commit_begin(&self, work: &Commit<'_>) -> Option<u64> {
        let mut state = self.shared.lock();
        if self.shared.is_over() {
            return None;
        }
        let id = state.next_commit;
        state.next_commit += 1;
        state.write(|| {
            let count = |zones: &[u32]| u32::try_from(zones.len()).unwrap_or(u32::MAX);
            let record = Record::new(kind::COMMIT_BEGIN, 24).u64(id).u32(work.flush.into());
            let record = record.u32(count(work.finished)).u32(count(work.reset)).u32(0);
            work.finished.iter().chain(work.reset).fold(record, |record, &zone| record.u32(zone))
        });
        if let Some(cutter) = &mut state.cutter {
            cutter.model.commit_begin(id, work.flush, work.finished, work.reset);
            let zones = work.finished.len().saturating_add(work.reset.len());
            if cutter.count(u64::try_from(zones).unwrap_or(u64::MAX)) {
                self.shared.end(&mut state);
                return None;
            }
            cutter.commits += 1;
        }
        Some(id)
    }

    fn commit_end(&self, id: u64, ok: bool) {
        let mut state = self.shared.lock();
        // What was on its way when the power was cut may have arrived. The log ends where it was cut.
        if !self.shared.is_over() {
            state.write(|| Record::numbers(kind::COMMIT_END, &[id, ok.into()]));
        }
        if let Some(cutter) = &mut state.cutter {
            cutter.model.commit_end(id, ok);
            cutter.commits -= 1;
        }
        self.shared.changed.notify_all();
    }

    /// What a commit ends with when the power is cut: not before nobody is left who could tell a guest.
    fn power_cut(&self) -> CommitOutcome {
        let mut state = self.shared.lock();
        while state.cutter.as_ref().is_some_and(|cutter| cutter.lanes > 0) {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        CommitOutcome::failed(StoreError::PowerCut { name: self.identity().description })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is one in the model: what follows is no worse for it than what came before.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// The power goes, now.
    fn end(&self, state: &mut State) {
        self.over.store(true, Ordering::Release);
        if let Some(cutter) = &mut state.cutter {
            cutter.wake_lanes();
        }
        self.changed.notify_all();
    }
}

impl State {
    /// Writes a record down. A log that can't be written ends here: half of what follows would be worse than nothing.
    fn write(&mut self, record: impl FnOnce() -> Record) {
        if self.log.is_some() {
            let sealed = record().seal();
            self.write_sealed(sealed);
        }
    }

    fn write_sealed(&mut self, sealed: Option<format::Sealed>) {
        let Some(log) = &mut self.log else { return };
        if let Err(error) = log.append_sealed(sealed) {
            let name = log.name().to_owned();
            ::log::error!("{name}: the recording ends here: {error}. The disk goes on without it");
            self.log = None;
            self.log_failed = Some(StoreError::RecordingEnded { name, first: error.to_string() });
        }
    }
}

/// Makes the log, and puts into it what is on the disk.
fn start_log(store: &dyn Store, path: &Path, shape: &Shape) -> Result<Log, RecordError> {
    let mut log = Log::create(path, shape)?;
    let io = |what| RecordError::io(path.display().to_string(), what);
    let mut lane = store.open_lane(EngineChoice::Sync).map_err(io("opening the disk"))?;
    let base_bytes =
        log.base(&mut lane, shape).map_err(io("copying what is on the disk to the recording"))?;
    if base_bytes > 0 {
        ::log::info!("{}: {base_bytes} bytes that were on the disk are in the recording", log.name());
    }
    Ok(log)
}

/// A lane's way to the recorder.
struct LaneTap(Arc<Shared>);

impl Tap for LaneTap {
    fn begin(&self, change: &Change<'_>) -> Option<u64> {
        let shared = &*self.0;
        let id = shared.next_change.fetch_add(1, Ordering::Relaxed);
        // What takes long is done before the lock is taken: copies, and the check sum over them.
        let sealed = if shared.logs { record_of(change, id)?.seal() } else { None };
        let (offset_bytes, len_bytes, mut bytes) = match change {
            Change::Write { offset_bytes, buffer } => (*offset_bytes, buffer.len_bytes() as u64, None),
            Change::Zero { offset_bytes, len_bytes } => (*offset_bytes, *len_bytes, None),
        };
        if let (Change::Write { buffer, .. }, true) = (change, shared.cuts) {
            let mut copy = vec![0; buffer.len_bytes()];
            buffer.copy_to_slice(0, &mut copy).ok()?;
            bytes = Some(cut::Bytes::new(copy));
        }
        let mut state = shared.lock();
        if shared.is_over() {
            return None;
        }
        state.write_sealed(sealed);
        if let Some(cutter) = &mut state.cutter {
            cutter.begin(id, offset_bytes, len_bytes, bytes.as_ref());
            if cutter.count(1) {
                shared.end(&mut state);
                return None;
            }
        }
        Some(id)
    }

    fn end(&self, id: u64, ok: bool) {
        let mut state = self.0.lock();
        if self.0.is_over() {
            return;
        }
        state.write(|| Record::numbers(kind::CHANGE_END, &[id, ok.into()]));
        if let Some(cutter) = &mut state.cutter {
            cutter.model.end(id, ok);
        }
    }

    fn forget(&self, _: u64) {}

    fn is_over(&self) -> bool {
        self.0.is_over()
    }
}

impl Drop for LaneTap {
    fn drop(&mut self) {
        if let Some(cutter) = &mut self.0.lock().cutter {
            cutter.lanes -= 1;
        }
        self.0.changed.notify_all();
    }
}

/// The record of a change that begins. `None`: its buffer can't be read.
fn record_of(change: &Change<'_>, id: u64) -> Option<Record> {
    match change {
        Change::Write { offset_bytes, buffer } => {
            let len = buffer.len_bytes();
            let mut record = Record::new(kind::WRITE_BEGIN, 16 + len).u64(id).u64(*offset_bytes);
            buffer.copy_to_slice(0, record.room(len)).ok()?;
            Some(record)
        }
        Change::Zero { offset_bytes, len_bytes } => {
            Some(Record::numbers(kind::ZERO_BEGIN, &[id, *offset_bytes, *len_bytes]))
        }
    }
}
