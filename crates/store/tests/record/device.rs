//! A device with several queues on a recorder, one call at a time.

use std::path::Path;
use std::sync::{Arc, Barrier, Mutex};

use virtio_zbd_store::record::{CutReport, PowerCut, RecordOptions, Recorder, Recording};
use virtio_zbd_store::{
    Commit, CommitOutcome, CreateOptions, EngineChoice, Event, Identity, ImageStore, IoBuffer, Lane,
    OpenOptions, Store, StoreError,
};
use virtio_zbd_zones::{Begun, Condition, Geometry, Grant, Observer, ResetEnd, Ticket, ZoneState, ZoneTable};

use crate::common::LaneExt;
use crate::history::{Done, Found, History};
use crate::{BLOCK, CONVENTIONAL, ZONE_BLOCKS, ZONES, bytes, geometry};

/// Tells the recorder and the history of zones.
pub struct Publish(Arc<Recorder>, Arc<Mutex<History>>);

impl Observer for Publish {
    fn zone_changed(&self, zone: u32, state: ZoneState) {
        self.0.publish(zone, state);
        self.1.lock().unwrap().done.push(Done::Publish { zone, state });
    }
}

/// An image whose commits wait for the test.
pub struct Gated {
    pub inner: ImageStore,
    pub gate: Arc<Barrier>,
}

impl Store for Gated {
    fn capacity_bytes(&self) -> u64 {
        self.inner.capacity_bytes()
    }
    fn geometry(&self) -> Option<Geometry> {
        self.inner.geometry()
    }
    fn identity(&self) -> Identity {
        self.inner.identity()
    }
    fn initial_states(&self) -> Vec<ZoneState> {
        self.inner.initial_states()
    }
    fn publish(&self, zone: u32, state: ZoneState) {
        self.inner.publish(zone, state);
    }
    fn commit(&self, work: &Commit<'_>) -> CommitOutcome {
        self.gate.wait();
        self.gate.wait();
        self.inner.commit(work)
    }
    fn open_lane(&self, engine: EngineChoice) -> std::io::Result<Lane> {
        self.inner.open_lane(engine)
    }
    fn read_only(&self) -> bool {
        self.inner.read_only()
    }
    fn close(&self) -> Result<(), StoreError> {
        self.inner.close()
    }
    fn cut_power(&self, states: &[ZoneState]) -> Result<(), StoreError> {
        self.inner.cut_power(states)
    }
}

/// A device with several queues whose requests begin and end when the test wants it.
pub struct Device {
    pub geometry: Geometry,
    pub recorder: Arc<Recorder>,
    /// Passed when a commit has begun, and again before it is made.
    pub gate: Arc<Barrier>,
    pub history: Arc<Mutex<History>>,
    pub table: ZoneTable<parking_lot::RawMutex, Publish>,
    pub lanes: Vec<Lane>,
    /// Writes under way: lane, tag, grant.
    pub writes: Vec<(usize, u64, Grant)>,
    /// What there was at the beginning, by zone and by conventional block.
    pub first: Vec<Found>,
    pub first_blocks: Vec<u64>,
    pub next_tag: u64,
    /// Changes until the power is cut.
    left: Option<u64>,
}

impl Device {
    pub fn new(dir: &Path, max_active: u32, queues: usize, used_before: bool) -> Self {
        Self::with(dir, max_active, queues, used_before, None)
    }

    /// A device whose power is cut, or one that is recorded.
    pub fn with(
        dir: &Path,
        max_active: u32,
        queues: usize,
        used_before: bool,
        cut: Option<PowerCut>,
    ) -> Self {
        let (image, log) = (dir.join("disk.zbd"), dir.join("log"));
        ImageStore::create(&image, geometry(max_active), CreateOptions::default()).unwrap();
        let mut first = vec![(ZoneState::EMPTY, Vec::new()); ZONES as usize];
        first[..CONVENTIONAL as usize].fill((ZoneState::CONVENTIONAL, Vec::new()));
        let mut first_blocks = vec![0; CONVENTIONAL as usize * ZONE_BLOCKS as usize];
        if used_before {
            let store = ImageStore::open(&image, OpenOptions::default()).unwrap();
            let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
            lane.write_now(2 * BLOCK, &bytes(900, 1)).unwrap();
            lane.write_now(2 * ZONE_BLOCKS * BLOCK, &bytes(901, 3)).unwrap();
            let state = ZoneState { condition: Condition::Closed, wp_sectors: 6 };
            store.publish(2, state);
            drop(lane);
            store.close().unwrap();
            first[2] = (state, vec![901; 3]);
            first_blocks[2] = 900;
        }
        let gate = Arc::new(Barrier::new(2));
        let inner = ImageStore::open(&image, OpenOptions::default()).unwrap();
        let store = Arc::new(Gated { inner, gate: Arc::clone(&gate) });
        let options = RecordOptions { log: cut.is_none().then_some(&log), cut };
        let recorder = Arc::new(Recorder::new(store, options).unwrap());
        let history = Arc::new(Mutex::new(History::default()));
        let publish = Publish(Arc::clone(&recorder), Arc::clone(&history));
        let table = ZoneTable::new(geometry(max_active), &recorder.initial_states(), publish).unwrap();
        let lanes = (0..queues).map(|_| recorder.open_lane(EngineChoice::IoUring).unwrap()).collect();
        Self {
            geometry: geometry(max_active),
            recorder,
            gate,
            history,
            table,
            lanes,
            writes: Vec::new(),
            first,
            first_blocks,
            next_tag: 1,
            left: cut.map(|cut| cut.after),
        }
    }

    pub fn log(&self, done: Done) -> usize {
        let mut history = self.history.lock().unwrap();
        history.done.push(done);
        history.done.len() - 1
    }

    /// Begins a write of so many blocks: at a block of a conventional zone, or an append to a sequential one. Returns whether it
    /// may be.
    pub fn begin(&mut self, lane: usize, zone: u32, block: u64, blocks: u64) -> bool {
        let sectors = u32::try_from(blocks * BLOCK / 512).unwrap();
        let start = self.geometry.zone_start(zone);
        let grant = match zone < CONVENTIONAL {
            true => self.table.admit_write(start + block * BLOCK / 512, sectors, Ticket(0)),
            false => self.table.admit_append(start, sectors, Ticket(0)),
        };
        let Ok(grant) = grant else { return false };
        let tag = self.next_tag;
        self.next_tag += 1;
        let first = grant.sector() * 512 / BLOCK;
        self.lanes[lane].write(tag, IoBuffer::owned(bytes(tag, blocks)), first * BLOCK);
        self.log(Done::Begin { blocks: first..first + blocks, tag });
        self.writes.push((lane, tag, grant));
        self.count(1);
        true
    }

    /// Lets all writes of one queue end, in the order in which its lane says so.
    pub fn end_all(&mut self, lane: usize) {
        while self.writes.iter().any(|write| write.0 == lane) {
            let mut events = Vec::new();
            self.lanes[lane].wait(None, &mut events).unwrap();
            // The recorder has heard of the ends of all before the first is reported.
            let tags: Vec<u64> = events
                .iter()
                .map(|event| match event {
                    Event::Done { token, result: Ok(()), .. } => *token,
                    other => panic!("{other:?}"),
                })
                .collect();
            for &tag in &tags {
                self.log(Done::End { tag });
            }
            for tag in tags {
                let index = self.writes.iter().position(|write| write.1 == tag).unwrap();
                let (_, _, grant) = self.writes.remove(index);
                let _ = self.table.settle(grant, true);
            }
        }
    }

    pub fn commit(&mut self, flush: bool, finished: &[u32], reset: &[u32]) {
        self.commit_during(flush, finished, reset, |_| ());
    }

    /// Commits; while it is under way `meanwhile` happens.
    pub fn commit_during(
        &mut self,
        flush: bool,
        finished: &[u32],
        reset: &[u32],
        meanwhile: impl FnOnce(&mut Self),
    ) {
        let (finished, reset) = (finished.to_vec(), reset.to_vec());
        self.count((finished.len() + reset.len()) as u64);
        let begin = self.log(Done::CommitBegin { flush, finished: finished.clone(), reset: reset.clone() });
        let (recorder, gate) = (Arc::clone(&self.recorder), Arc::clone(&self.gate));
        if self.is_cut() {
            std::thread::scope(|scope| {
                let work = Commit { flush, finished: &finished, reset: &reset, ..Commit::default() };
                let committing = scope.spawn(move || recorder.commit(&work).durable);
                // It waits until the queues are gone, and was not begun.
                self.lanes.clear();
                let refused = committing.join().unwrap();
                assert!(matches!(refused, Err(StoreError::PowerCut { .. })), "{refused:?}");
            });
            return;
        }
        std::thread::scope(|scope| {
            let committing = scope.spawn(|| {
                let end = recorder
                    .commit(&Commit { flush, finished: &finished, reset: &reset, ..Commit::default() })
                    .durable;
                assert!(matches!(end, Ok(()) | Err(StoreError::PowerCut { .. })), "{end:?}");
            });
            gate.wait();
            meanwhile(self);
            if self.is_cut() {
                // Its commit goes on without it: nobody is told.
                self.lanes.clear();
            }
            gate.wait();
            committing.join().unwrap();
        });
        self.log(Done::CommitEnd { begin });
    }

    fn end(&self, begun: Begun) {
        if !self.is_cut() {
            let _ = self.table.end(begun, ResetEnd::Done);
        }
    }

    fn count(&mut self, changes: u64) {
        self.left = self.left.map(|left| left.saturating_sub(changes));
    }

    pub fn is_cut(&self) -> bool {
        self.left == Some(0)
    }

    pub fn step(&mut self, rng: &mut fastrand::Rng) {
        let lane = rng.usize(..self.lanes.len());
        let sequential = rng.u32(CONVENTIONAL..ZONES);
        let start = self.geometry.zone_start(sequential);
        match rng.u32(..20) {
            0..7 => drop(self.begin(lane, sequential, 0, rng.u64(1..=2))),
            7..10 => {
                let blocks = rng.u64(1..=3);
                self.begin(lane, 0, rng.u64(..=ZONE_BLOCKS - blocks), blocks);
            }
            10..14 => self.end_all(lane),
            14..16 => {
                let steps = rng.usize(..5);
                self.commit_during(true, &[], &[], |device| {
                    for _ in 0..steps {
                        if device.is_cut() {
                            break;
                        }
                        let lane = rng.usize(..device.lanes.len());
                        match rng.u32(..4) {
                            0 => drop(device.begin(lane, sequential, 0, 1)),
                            1 => drop(device.begin(lane, 0, rng.u64(..ZONE_BLOCKS), 1)),
                            _ => device.end_all(lane),
                        }
                    }
                });
            }
            16 => {
                if let Ok(Some(begun)) = self.table.begin_reset(start, Ticket(0)) {
                    self.commit(rng.bool(), &[], &[sequential]);
                    self.end(begun);
                }
            }
            17 => {
                if let Ok(Some(begun)) = self.table.begin_finish(start, Ticket(0)) {
                    self.commit(rng.bool(), &[sequential], &[]);
                    self.end(begun);
                }
            }
            18 => drop(self.table.open(start, Ticket(0))),
            _ => drop(self.table.close(start, Ticket(0))),
        }
    }

    /// Waits for the end of the power cut and gives the disk back.
    pub fn lose_power(mut self) -> (CutReport, History, Vec<Found>, Vec<u64>) {
        self.lanes.clear();
        let report = self.recorder.wait_for_cut().unwrap().expect("it was cut");
        assert!(self.recorder.open_lane(EngineChoice::Sync).is_err(), "without power there is no disk");
        assert!(matches!(self.recorder.close(), Err(StoreError::PowerCut { .. })));
        assert_eq!(self.recorder.wait_for_cut().unwrap(), Some(report), "once is enough");
        let history = std::mem::take(&mut *self.history.lock().unwrap());
        (report, history, self.first, self.first_blocks)
    }

    /// What a kill at the end would leave.
    pub fn recording(self, dir: &Path) -> (Recording, History, Vec<Found>, Vec<u64>) {
        let history = std::mem::take(&mut *self.history.lock().unwrap());
        (Recording::open(&dir.join("log")).unwrap(), history, self.first, self.first_blocks)
    }
}
