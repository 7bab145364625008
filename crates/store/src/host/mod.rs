//! A zoned block device of the host as a disk: a host-managed drive, or what stands in for one.
//!
//! The device keeps everything: data, write pointers, conditions. So this store keeps nothing of its own, promises what the device promises, and does
//! to it whatever is done to the disk. `docs/host.md` has the whole of it.

mod fault;
mod ioctl;
mod limits;
mod sequence;
mod shape;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use virtio_zbd_zones::{Geometry, SECTOR_LEN_BYTES, ZoneState};

use crate::error::StoreError;
use crate::inject::{Faults, Operation};
use crate::lane::{EngineChoice, Gate, Lane, Parked, Target};
use crate::lock;
use crate::store::{Commit, CommitOutcome, Identity, Store};
pub use fault::HostFault;
use ioctl::{Manage, ZonedFile};
pub(crate) use limits::Limits;
use limits::{Model, Queue};
pub(crate) use sequence::{Arrival, Placed, Sequence};

/// A zoned block device of the host, in use by this store alone.
pub struct HostStore {
    device: Arc<HostDevice>,
    zoned: ZonedFile,
    states: Vec<ZoneState>,
    identity: Identity,
    appearance: u64,
    read_only: bool,
    closed: Arc<AtomicBool>,
    faults: Faults,
    /// What the first failed sync said: after it no sync means anything.
    sync_failed: Mutex<Option<String>>,
}

/// What all lanes to one device share.
pub(crate) struct HostDevice {
    name: String,
    geometry: Geometry,
    limits: Limits,
    /// The order of writes, one for each zone. No lock is shared between zones.
    sequences: Box<[Mutex<Sequence<Parked>>]>,
}

impl HostStore {
    /// The numbers of the `ioctl`s that a disk over such a store makes once it is there, for whoever confines it.
    pub const IOCTLS: [u32; 6] = ioctl::WHILE_SERVED;

    /// Whether `path` is a zoned device that must be used as one: host-managed. A host-aware one is a regular disk to Linux, too.
    ///
    /// # Errors
    /// There is nothing of that name.
    pub fn is_host_managed(path: &Path) -> Result<bool, StoreError> {
        Ok(Queue::of(path)?.is_some_and(|queue| queue.model() == Model::HostManaged))
    }

    /// Takes a device for this store alone, and closes its open zones (G6, D4). To read, it is shared with others that read, and its zones stay as
    /// they are.
    ///
    /// # Errors
    /// It is no host-managed device, somebody has it (a file system, another program), or it is one that this program can't serve: says what
    /// was found.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, StoreError> {
        let name = path.display().to_string();
        let fault = |fault| StoreError::Host { name: name.clone(), fault };
        let io = |what| StoreError::io(name.clone(), what);
        let queue = Queue::of(path)?.ok_or_else(|| fault(HostFault::NotADevice))?;
        if queue.model() != Model::HostManaged {
            return Err(fault(HostFault::NotZoned));
        }
        let limits = queue.limits(&name)?;
        let file = open_alone(path, &name, read_only)?;
        lock::lock(&file, &name, read_only)?;
        let zoned = ZonedFile::new(file);

        let len_bytes = zoned.len_bytes().map_err(io("asking for its length"))?;
        let zone_sectors = zoned.zone_sectors().map_err(io("asking for the length of its zones"))?;
        let count = zoned.zone_count().map_err(io("asking how many zones it has"))?;
        if count > Geometry::MAX_ZONES {
            return Err(fault(HostFault::Count { found: count.into(), expected: Geometry::MAX_ZONES }));
        }
        let report = || zoned.report(0, count).map_err(io("asking for its zones"));
        let mut zones = report()?;
        let capacity_sectors = len_bytes / u64::from(SECTOR_LEN_BYTES);
        let geometry = shape::geometry(capacity_sectors, zone_sectors, &zones, &limits).map_err(fault)?;
        let is_open = |state: &ZoneState| state.condition.is_open();
        let states_of = |zones: &[ioctl::RawZone]| {
            let states = (0..).zip(zones).map(|(index, zone)| shape::state(zone, &geometry, index));
            states.collect::<Result<Vec<_>, _>>().map_err(fault)
        };
        let mut states = states_of(&zones)?;
        if !read_only && states.iter().any(is_open) {
            for (zone, _) in (0..).zip(&states).filter(|(_, state)| is_open(state)) {
                let (start, len) = (geometry.zone_start(zone), geometry.zone_len_sectors(zone));
                zoned
                    .manage(Manage::Close, start, len.into())
                    .map_err(io("closing a zone that was left open"))?;
            }
            zones = report()?;
            states = states_of(&zones)?;
        }
        // Who only looks sees them as they are, but for the moment between an opening and the first write.
        let as_they_are = |state: &ZoneState| read_only && state.wp_sectors != 0;
        let states: Vec<_> = (0..)
            .zip(states)
            .map(|(zone, state)| match as_they_are(&state) {
                true => state,
                false => state.after_restart(&geometry, zone),
            })
            .collect();
        let sequences = (0..).zip(&states).map(|(zone, state)| {
            let next = geometry.zone_start(zone).saturating_add(state.wp_sectors.into());
            Mutex::new(Sequence::new(next.saturating_mul(SECTOR_LEN_BYTES.into())))
        });
        let sequences = sequences.collect();
        let identity = Identity::new(&queue.serial(), format!("{name} (zoned device of the host)"));
        Ok(Self {
            device: Arc::new(HostDevice { name, geometry, limits, sequences }),
            zoned,
            states,
            identity,
            appearance: queue.appearance(),
            read_only,
            closed: Arc::new(AtomicBool::new(read_only)),
            faults: Faults::default(),
            sync_failed: Mutex::default(),
        })
    }

    /// From now on these faults happen: see [`FaultRule`](crate::FaultRule). Lanes that are open already know nothing of them.
    pub fn inject(&mut self, faults: Faults) {
        self.faults = faults;
    }

    fn sync(&self) -> Result<(), StoreError> {
        let name = &self.device.name;
        let mut failed = self.sync_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = &*failed {
            return Err(StoreError::SyncFailed { name: name.clone(), first: first.clone() });
        }
        let synced = self.faults.check(Operation::Flush, 0..0).and_then(|()| self.zoned.file.sync_data());
        synced.map_err(|error| {
            *failed = Some(error.to_string());
            StoreError::io(name, "bringing data to the medium")(error)
        })
    }

    /// Does the same to each of these zones. Resets of zones that follow one another go in one call, and where it fails one by one. `told` takes in what the device
    /// says of those of which it did not do it.
    fn manage(&self, what: Manage, zones: &[u32], told: &mut Vec<(u32, ZoneState)>) {
        let geometry = &self.device.geometry;
        let mut zones = zones.to_vec();
        zones.sort_unstable();
        zones.dedup();
        let sequential = |zone: &u32| !geometry.is_conventional(*zone);
        if what == Manage::Reset
            && zones.len() > 1
            && (0..geometry.zone_count()).filter(sequential).eq(zones.iter().copied())
            && self.may(what, 0, geometry.capacity_sectors()).is_ok()
            && self.zoned.manage(what, 0, geometry.capacity_sectors()).is_ok()
        {
            return;
        }
        // Only a reset can be made twice without harm.
        for run in zones.chunk_by(|a, b| what == Manage::Reset && a + 1 == *b) {
            let (Some(&first), Some(&last)) = (run.first(), run.last()) else { continue };
            let start = geometry.zone_start(first);
            let end = geometry.zone_start(last) + u64::from(geometry.zone_len_sectors(last));
            let done =
                self.may(what, start, end - start).and_then(|()| self.zoned.manage(what, start, end - start));
            let Err(error) = done else { continue };
            if run.len() > 1 {
                // Which of them it was, the call does not say.
                run.iter().for_each(|zone| self.manage(what, &[*zone], told));
                continue;
            }
            let state = self.ask(first);
            log::error!(
                "{}: {what:?} of zone {first} has failed: {error}; the device says that it is {:?}",
                self.device.name,
                state.condition
            );
            told.push((first, state));
        }
    }

    /// Lets a fault happen that was asked for.
    fn may(&self, what: Manage, sector: u64, sectors: u64) -> io::Result<()> {
        if what != Manage::Reset {
            return Ok(());
        }
        let bytes = |sectors: u64| sectors * u64::from(SECTOR_LEN_BYTES);
        self.faults.check(Operation::Reset, bytes(sector)..bytes(sector + sectors))
    }

    /// What the device says of a zone now; offline where it says nothing that could be.
    fn ask(&self, zone: u32) -> ZoneState {
        let (name, geometry) = (&self.device.name, &self.device.geometry);
        let start = geometry.zone_start(zone);
        let said = match self.zoned.report(start, 1) {
            Ok(zones) => match zones.first().filter(|raw| raw.start == start) {
                Some(raw) => shape::state(raw, geometry, zone).map_err(|fault| fault.to_string()),
                None => Err("the kernel does not report it".to_owned()),
            },
            Err(error) => Err(error.to_string()),
        };
        said.unwrap_or_else(|error| {
            log::error!("{name}: nothing can be learnt of zone {zone}, it counts as offline: {error}");
            ZoneState::OFFLINE
        })
    }
}

impl Store for HostStore {
    fn capacity_bytes(&self) -> u64 {
        self.device.geometry.capacity_sectors().saturating_mul(SECTOR_LEN_BYTES.into())
    }

    fn geometry(&self) -> Option<Geometry> {
        Some(self.device.geometry.clone())
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn history(&self) -> u64 {
        self.appearance
    }

    fn initial_states(&self) -> Vec<ZoneState> {
        self.states.clone()
    }

    /// The device has it already, or will be told by [`commit`](Store::commit).
    fn publish(&self, _: u32, _: ZoneState) {}

    fn keeps_conditions(&self) -> bool {
        true
    }

    fn commit(&self, work: &Commit<'_>) -> CommitOutcome {
        let name = &self.device.name;
        let zone_count = self.device.geometry.zone_count();
        let named = [work.closed, work.opened, work.finished, work.reset, work.reread];
        if let Some(&zone) = named.iter().copied().flatten().find(|zone| **zone >= zone_count) {
            return CommitOutcome::failed(StoreError::NoSuchZone { name: name.clone(), zone, zone_count });
        }
        let changes = named[..4].iter().any(|zones| !zones.is_empty());
        if changes && self.read_only {
            return CommitOutcome::failed(StoreError::ReadOnly { name: name.clone() });
        }
        if changes && self.closed.load(Ordering::Acquire) {
            return CommitOutcome::failed(StoreError::Closed { name: name.clone() });
        }
        // What a finished zone has, it has for good: its data goes first.
        let flush = work.flush || !work.finished.is_empty();
        if flush
            && !self.read_only
            && let Err(error) = self.sync()
        {
            return CommitOutcome::failed(error);
        }
        let mut outcome = CommitOutcome::done();
        let told = &mut outcome.told;
        // Room first.
        self.manage(Manage::Close, work.closed, told);
        self.manage(Manage::Open, work.opened, told);
        self.manage(Manage::Finish, work.finished, told);
        self.manage(Manage::Reset, work.reset, told);
        if !work.finished.is_empty() || !work.reset.is_empty() {
            // A drive may keep its zones' conditions in the cache, too.
            if let Err(error) = self.sync() {
                log::error!("{error}");
                for &zone in work.finished.iter().chain(work.reset) {
                    if !told.iter().any(|(other, _)| *other == zone) {
                        told.push((zone, self.ask(zone)));
                    }
                }
            }
        }
        for &zone in work.reset {
            self.device.restart(zone, 0);
        }
        told.extend(work.reread.iter().map(|&zone| (zone, self.ask(zone))));
        for &(zone, state) in &*told {
            self.device.restart(zone, state.wp_sectors);
        }
        outcome
    }

    fn open_lane(&self, engine: EngineChoice) -> io::Result<Lane> {
        let target = Target::File { fd: self.zoned.file.try_clone()?.into(), base_bytes: 0 };
        let lane = Lane::open(
            target,
            Arc::new(AtomicU64::new(self.capacity_bytes())),
            Arc::clone(&self.closed),
            engine,
        )?;
        lane.with_faults(self.faults.clone()).behind(Gate::new(Arc::clone(&self.device))?)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn close(&self) -> Result<(), StoreError> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.sync()
    }
}

impl HostDevice {
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The sequential zone that a range of bytes lies in, as a whole: `None` for conventional zones.
    pub(crate) fn sequential_zone(&self, start_bytes: u64) -> Option<u32> {
        let zone = self.geometry.zone_of(start_bytes / u64::from(SECTOR_LEN_BYTES))?;
        (!self.geometry.is_conventional(zone)).then_some(zone)
    }

    pub(crate) fn zone_count(&self) -> u32 {
        self.geometry.zone_count()
    }

    /// The order of writes to a zone. `None`: there is no such zone.
    pub(crate) fn sequence(&self, zone: u32) -> Option<MutexGuard<'_, Sequence<Parked>>> {
        let sequence = self.sequences.get(usize::try_from(zone).ok()?)?;
        Some(sequence.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Nothing is under way in `zone`, and the next write goes `wp_sectors` behind its start.
    fn restart(&self, zone: u32, wp_sectors: u32) {
        if let Some(mut sequence) = self.sequence(zone) {
            let sector = self.geometry.zone_start(zone) + u64::from(wp_sectors);
            sequence.restart(sector * u64::from(SECTOR_LEN_BYTES));
        }
    }
}

/// Opens a device so that no file system and no other program has it; to read, only beside others that read.
fn open_alone(path: &Path, name: &str, read_only: bool) -> Result<File, StoreError> {
    let alone = if read_only { 0 } else { libc::O_EXCL };
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only).custom_flags(libc::O_DIRECT | alone);
    // As with a lock: who was killed has it until its last transfer has ended.
    for _ in 0..lock::TRIES {
        match options.open(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => thread::sleep(lock::TRY_INTERVAL),
            other => return other.map_err(StoreError::io(name, "opening it")),
        }
    }
    Err(StoreError::Host { name: name.to_owned(), fault: HostFault::InUse })
}
