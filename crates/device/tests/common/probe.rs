//! A store that is watched, held up, or made to fail.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use virtio_zbd_store::{Commit, CommitOutcome, EngineChoice, Identity, Lane, RamStore, Store, StoreError};
use virtio_zbd_zones::{Geometry, GeometryConfig, ZoneState};

use super::gate::Gate;

/// A store around another one. What the test does not say otherwise goes through to the one inside.
pub(crate) struct Probe {
    inner: Arc<dyn Store>,
    read_only: bool,
    states: Option<Vec<ZoneState>>,
    /// Another length than the one inside has; I/O past the end of the one inside fails.
    len_bytes: Option<u64>,
    /// Another shape than the one inside has; I/O past the end of the one inside fails.
    geometry: Option<Geometry>,
    commits: Mutex<Vec<CommitSeen>>,
    /// Every commit passes here before it begins.
    pub(crate) commit_gate: Gate,
    fail_commits: AtomicBool,
    fail_commits_of: Mutex<Option<u32>>,
    fail_holes: Mutex<(Vec<u32>, Option<Errno>)>,
}

/// What was asked of a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CommitSeen {
    pub(crate) flush: bool,
    pub(crate) finished: Vec<u32>,
    pub(crate) reset: Vec<u32>,
}

impl Probe {
    pub(crate) fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            read_only: false,
            states: None,
            len_bytes: None,
            geometry: None,
            commits: Mutex::default(),
            commit_gate: Gate::default(),
            fail_commits: AtomicBool::new(false),
            fail_commits_of: Mutex::default(),
            fail_holes: Mutex::default(),
        }
    }

    /// Around a zoned disk in memory.
    pub(crate) fn zoned(shape: GeometryConfig) -> Self {
        Self::new(Arc::new(RamStore::new(Geometry::new(shape).unwrap()).unwrap()))
    }

    /// Around a plain disk in memory.
    pub(crate) fn plain(len_bytes: u64) -> Self {
        Self::new(Arc::new(RamStore::plain(len_bytes).unwrap()))
    }

    /// Writes are refused.
    pub(crate) fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// The zones are found in these states: the first ones as given, the rest as new.
    pub(crate) fn found_in(self, states: impl Fn(u32) -> Option<ZoneState>) -> Self {
        let geometry = self.inner.geometry().unwrap();
        let of = |zone| states(zone).unwrap_or_else(|| ZoneState::new(&geometry, zone));
        let states = (0..geometry.zone_count()).map(of).collect();
        Self { states: Some(states), ..self }
    }

    /// A disk of `shape` whose sectors from `good_sectors` on fail every I/O.
    pub(crate) fn bad_from(shape: GeometryConfig, good_sectors: u64) -> Self {
        let geometry = Geometry::new(shape).unwrap();
        let inner = RamStore::plain(good_sectors * 512).unwrap();
        let states = (0..geometry.zone_count()).map(|zone| ZoneState::new(&geometry, zone)).collect();
        Self { geometry: Some(geometry), states: Some(states), ..Self::new(Arc::new(inner)) }
    }

    /// A plain disk of `len_sectors` whose sectors from `good_sectors` on fail every I/O.
    pub(crate) fn plain_bad_from(len_sectors: u64, good_sectors: u64) -> Self {
        Self { len_bytes: Some(len_sectors * 512), ..Self::plain(good_sectors * 512) }
    }

    /// Whether commits fail from now on.
    pub(crate) fn fail_commits(&self, fail: bool) {
        self.fail_commits.store(fail, Ordering::SeqCst);
    }

    /// Commits fail from now on that this zone has a part in.
    pub(crate) fn fail_commits_of(&self, zone: u32) {
        *self.fail_commits_of.lock().unwrap() = Some(zone);
    }

    /// Zones whose reset is made durable but whose data can't be taken away.
    pub(crate) fn fail_holes(&self, zones: &[u32], errno: Errno) {
        *self.fail_holes.lock().unwrap() = (zones.to_vec(), Some(errno));
    }

    /// The commits since the last call.
    pub(crate) fn take_commits(&self) -> Vec<CommitSeen> {
        std::mem::take(&mut self.commits.lock().unwrap())
    }
}

impl Store for Probe {
    fn capacity_bytes(&self) -> u64 {
        let by_shape = self.geometry.as_ref().map(|geometry| geometry.capacity_sectors() * 512);
        self.len_bytes.or(by_shape).unwrap_or_else(|| self.inner.capacity_bytes())
    }

    fn geometry(&self) -> Option<Geometry> {
        self.geometry.clone().or(self.inner.geometry())
    }

    fn identity(&self) -> Identity {
        self.inner.identity()
    }

    fn initial_states(&self) -> Vec<ZoneState> {
        self.states.clone().unwrap_or_else(|| self.inner.initial_states())
    }

    fn publish(&self, zone: u32, state: ZoneState) {
        self.inner.publish(zone, state);
    }

    fn commit(&self, work: &Commit<'_>) -> CommitOutcome {
        self.commit_gate.pass();
        let seen =
            CommitSeen { flush: work.flush, finished: work.finished.to_vec(), reset: work.reset.to_vec() };
        self.commits.lock().unwrap().push(seen);
        let because = |what, source| StoreError::Io { name: "the probe".to_owned(), what, r#source };
        let error = |what| because(what, io::Error::other("the test wants it so"));
        let bad = *self.fail_commits_of.lock().unwrap();
        let has_bad = bad.is_some_and(|bad| work.finished.contains(&bad) || work.reset.contains(&bad));
        if has_bad || self.fail_commits.load(Ordering::SeqCst) {
            return CommitOutcome {
                durable: Err(error("making durable")),
                hole_failures: Vec::new(),
                told: Vec::new(),
            };
        }
        let (lost, errno) = self.fail_holes.lock().unwrap().clone();
        let errno = errno.unwrap_or(Errno::IO);
        let (bad, good): (Vec<u32>, Vec<u32>) = work.reset.iter().partition(|zone| lost.contains(zone));
        let mut outcome = self.inner.commit(&Commit { reset: &good, ..*work });
        outcome
            .hole_failures
            .extend(bad.into_iter().map(|zone| (zone, because("punching a hole", errno.into()))));
        outcome
    }

    fn open_lane(&self, engine: EngineChoice) -> io::Result<Lane> {
        self.inner.open_lane(engine)
    }

    fn read_only(&self) -> bool {
        self.read_only || self.inner.read_only()
    }

    fn close(&self) -> Result<(), StoreError> {
        self.inner.close()
    }
}
