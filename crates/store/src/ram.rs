//! A disk in memory, gone with the process.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::mm::{Advice, madvise};
use uuid::Uuid;
use virtio_zbd_zones::{Geometry, SECTOR_LEN_BYTES, ZoneState};
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use crate::buffer::IoBuffer;
use crate::error::StoreError;
use crate::inject::{Faults, Operation};
use crate::lane::{EngineChoice, Lane, Target};
use crate::parts::Parts;
use crate::store::{Commit, CommitOutcome, Identity, Store};

/// A disk in memory. What was never written, or was reset, takes no memory.
///
/// Everything it has lasts as long as the process, so a commit has nothing to make durable.
pub struct RamStore {
    memory: Arc<RamMemory>,
    zones: Option<RamZones>,
    identity: Identity,
    faults: Faults,
    growing: Mutex<()>,
    /// What the first failed sync said (only an injected one can): as for every other store, no later one counts.
    sync_failed: Mutex<Option<String>>,
}

impl RamStore {
    /// A zoned disk with nothing in it.
    ///
    /// # Errors
    /// The disk is longer than the address space, or than the system lets memory be promised.
    pub fn new(geometry: Geometry) -> Result<Self, StoreError> {
        let capacity_bytes = geometry.capacity_sectors().saturating_mul(SECTOR_LEN_BYTES.into());
        let words = new_words(&geometry, 0);
        let words = Parts::new(words.len(), words);
        Self::make(capacity_bytes, Some(RamZones { geometry: Mutex::new(geometry), words }))
    }

    /// A plain disk, all zeros.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn plain(capacity_bytes: u64) -> Result<Self, StoreError> {
        Self::make(capacity_bytes, None)
    }

    fn make(capacity_bytes: u64, zones: Option<RamZones>) -> Result<Self, StoreError> {
        let memory =
            RamMemory::new(capacity_bytes).map_err(|source| StoreError::Memory { capacity_bytes, source })?;
        let serial = Uuid::new_v4().simple().to_string();
        let identity = Identity::new(&serial, format!("{capacity_bytes} bytes of memory"));
        let (faults, growing, sync_failed) = (Faults::default(), Mutex::default(), Mutex::default());
        Ok(Self { memory: Arc::new(memory), zones, identity, faults, growing, sync_failed })
    }

    /// From now on these faults happen: see [`FaultRule`](crate::FaultRule). Lanes that are open already know nothing of them.
    pub fn inject(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// What a sync would be: nothing, but for faults on purpose.
    fn sync(&self, work: &Commit<'_>) -> Result<(), StoreError> {
        let name = || self.identity.description.clone();
        let mut failed = self.sync_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = &*failed {
            return Err(StoreError::SyncFailed { name: name(), first: first.clone() });
        }
        if !work.flush && work.finished.is_empty() {
            return Ok(());
        }
        self.faults.check(Operation::Flush, 0..0).map_err(|error| {
            *failed = Some(error.to_string());
            StoreError::io(name(), "bringing data to the medium")(error)
        })
    }
}

impl Store for RamStore {
    fn capacity_bytes(&self) -> u64 {
        self.memory.capacity_bytes()
    }

    fn geometry(&self) -> Option<Geometry> {
        self.zones.as_ref().map(RamZones::geometry)
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn initial_states(&self) -> Vec<ZoneState> {
        let Some(zones) = &self.zones else { return Vec::new() };
        let geometry = zones.geometry();
        (0..geometry.zone_count())
            .map(|zone| {
                // Only `publish` writes the words.
                let state =
                    zones.word(zone).and_then(|word| ZoneState::from_bits(word.load(Ordering::Acquire)));
                state.map_or(ZoneState::new(&geometry, zone), |state| state.after_restart(&geometry, zone))
            })
            .collect()
    }

    fn publish(&self, zone: u32, state: ZoneState) {
        if let Some(word) = self.zones.as_ref().and_then(|zones| zones.word(zone)) {
            word.store(state.to_bits(), Ordering::Release);
        }
    }

    fn commit(&self, work: &Commit<'_>) -> CommitOutcome {
        if let Err(error) = self.sync(work) {
            return CommitOutcome::failed(error);
        }
        let mut outcome = CommitOutcome::done();
        for &zone in work.reset {
            let Some(geometry) = self.geometry() else { break };
            let sector_len = u64::from(SECTOR_LEN_BYTES);
            let start = geometry.zone_start(zone).saturating_mul(sector_len);
            let len = u64::from(geometry.zone_len_sectors(zone)) * sector_len;
            let zeroed = self.faults.check(Operation::Reset, start..start + len);
            if let Err(error) = zeroed.and_then(|()| self.memory.zero(start, len)) {
                let error = StoreError::io(&self.identity.description, "giving back a zone's memory")(error);
                outcome.hole_failures.push((zone, error));
            }
        }
        outcome
    }

    fn open_lane(&self, engine: EngineChoice) -> io::Result<Lane> {
        let target = Target::Ram(Arc::clone(&self.memory));
        let lane = Lane::open(target, Arc::clone(&self.memory.capacity_bytes), Arc::default(), engine)?;
        Ok(lane.with_faults(self.faults.clone()))
    }

    fn read_only(&self) -> bool {
        false
    }

    fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn grow(&self, capacity_sectors: u64) -> Result<(), StoreError> {
        let name = || self.identity.description.clone();
        // One at a time: a plain disk has no geometry to hold on to.
        let _alone = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let now_sectors = self.capacity_bytes() / u64::from(SECTOR_LEN_BYTES);
        if capacity_sectors < now_sectors {
            let wanted_sectors = capacity_sectors;
            return Err(StoreError::Shrunk { name: name(), capacity_sectors: now_sectors, wanted_sectors });
        }
        if capacity_sectors == now_sectors {
            return Ok(());
        }
        let refused = |why| StoreError::NoGrowth { name: name(), why };
        let geometry = self.geometry().map(|now| now.grown(capacity_sectors)).transpose();
        let geometry = geometry.map_err(|error| refused(error.to_string()))?;
        let capacity_bytes = capacity_sectors.saturating_mul(SECTOR_LEN_BYTES.into());
        self.memory.grow(capacity_bytes).map_err(|source| StoreError::Memory { capacity_bytes, source })?;
        if let (Some(zones), Some(geometry)) = (&self.zones, geometry) {
            let known = zones.words.len();
            let more = new_words(&geometry, u32::try_from(known).unwrap_or(u32::MAX));
            if !more.is_empty() {
                // As many parts as the memory has at most.
                zones.words.add(more.len(), more).map_err(|error| refused(error.to_string()))?;
            }
            *zones.geometry.lock().unwrap_or_else(PoisonError::into_inner) = geometry;
        }
        self.memory.capacity_bytes.store(capacity_bytes, Ordering::Release);
        Ok(())
    }
}

/// The zones of a disk in memory.
struct RamZones {
    geometry: Mutex<Geometry>,
    /// The state of each.
    words: Parts<Box<[AtomicU64]>>,
}

impl RamZones {
    fn geometry(&self) -> Geometry {
        self.geometry.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn word(&self, zone: u32) -> Option<&AtomicU64> {
        let (words, index) = self.words.at(usize::try_from(zone).ok()?)?;
        words.get(index)
    }
}

/// The words of the zones from `first` on, none of them used.
fn new_words(geometry: &Geometry, first: u32) -> Box<[AtomicU64]> {
    (first..geometry.zone_count())
        .map(|zone| AtomicU64::new(ZoneState::new(geometry, zone).to_bits()))
        .collect()
}

/// The sectors of a disk in memory. Any number of lanes may use it at once; where they write to the same
/// bytes, any mixture may result, as on every disk.
pub(crate) struct RamMemory {
    /// One from the beginning, and one for each time that the disk grew.
    regions: Parts<MmapRegion>,
    capacity_bytes: Arc<AtomicU64>,
}

impl RamMemory {
    fn new(capacity_bytes: u64) -> io::Result<Self> {
        let (len, region) = region(capacity_bytes)?;
        Ok(Self {
            regions: Parts::new(len, region),
            capacity_bytes: Arc::new(AtomicU64::new(capacity_bytes)),
        })
    }

    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes.load(Ordering::Acquire)
    }

    /// Has memory for that many bytes, before anybody is told of them. One caller at a time.
    fn grow(&self, capacity_bytes: u64) -> io::Result<()> {
        let have_bytes = self.regions.len() as u64;
        if capacity_bytes <= have_bytes {
            return Ok(());
        }
        let (len, region) = region(capacity_bytes - have_bytes)?;
        self.regions.add(len, region).map_err(io::Error::other)
    }

    /// Copies `len_bytes` at `at_bytes` into `buffer`, from its byte `from` on.
    pub(crate) fn read(
        &self,
        buffer: &IoBuffer,
        from: usize,
        at_bytes: u64,
        len_bytes: u64,
    ) -> io::Result<()> {
        self.copy(buffer, from, at_bytes, len_bytes, |disk, memory| disk.copy_to_volatile_slice(memory))
    }

    /// Copies `buffer`, from its byte `from` on, to `len_bytes` at `at_bytes`.
    pub(crate) fn write(
        &self,
        buffer: &IoBuffer,
        from: usize,
        at_bytes: u64,
        len_bytes: u64,
    ) -> io::Result<()> {
        self.copy(buffer, from, at_bytes, len_bytes, |disk, memory| memory.copy_to_volatile_slice(disk))
    }

    /// Makes a range read as zeros; whole pages of it go back to the system.
    pub(crate) fn zero(&self, at_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let range = self.range(at_bytes, len_bytes)?;
        self.regions.pieces(range).try_for_each(|(region, range)| zero(region, range))
    }

    fn copy(
        &self,
        buffer: &IoBuffer,
        from: usize,
        at_bytes: u64,
        len_bytes: u64,
        one: impl Fn(VolatileSlice<'_>, VolatileSlice<'_>),
    ) -> io::Result<()> {
        let range = self.range(at_bytes, len_bytes)?;
        let mut at = range.start;
        for memory in buffer.slices(from, range.len()) {
            let mut done = 0;
            for (region, range) in self.regions.pieces(at..at + memory.len()) {
                let part = memory.subslice(done, range.len()).map_err(io::Error::other)?;
                done += range.len();
                one(slice(region, range)?, part);
            }
            at += memory.len();
        }
        Ok(())
    }

    fn range(&self, at_bytes: u64, len_bytes: u64) -> io::Result<Range<usize>> {
        let end = at_bytes.checked_add(len_bytes).filter(|&end| end <= self.capacity_bytes());
        let place = |bytes: u64| usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput);
        Ok(place(at_bytes)?..place(end.ok_or(io::ErrorKind::InvalidInput)?)?)
    }
}

/// New memory.
fn region(len_bytes: u64) -> io::Result<(usize, MmapRegion)> {
    let len = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let region = MmapRegion::new(len).map_err(|error| match error {
        vm_memory::mmap::MmapRegionError::Mmap(error) => error,
        other => io::Error::other(other),
    })?;
    Ok((len, region))
}

fn zero(region: &MmapRegion, range: Range<usize>) -> io::Result<()> {
    let page = rustix::param::page_size();
    let first_page = range.start.next_multiple_of(page).min(range.end);
    let last_page = (range.end / page * page).max(first_page);
    fill_zero(region, range.start..first_page)?;
    fill_zero(region, last_page..range.end)?;
    let pages = slice(region, first_page..last_page)?;
    if pages.is_empty() {
        return Ok(());
    }
    // SAFETY: the pages are ours alone, a private anonymous mapping that is reached by volatile access
    // only: to drop them is to write zeros. No reference to them exists.
    unsafe { madvise(pages.ptr_guard_mut().as_ptr().cast(), pages.len(), Advice::LinuxDontNeed)? };
    Ok(())
}

fn fill_zero(region: &MmapRegion, range: Range<usize>) -> io::Result<()> {
    // At most a page at either end of a range.
    let zeros = vec![0u8; range.len()];
    slice(region, range)?.copy_from(&zeros);
    Ok(())
}

fn slice(region: &MmapRegion, range: Range<usize>) -> io::Result<VolatileSlice<'_>> {
    region.get_slice(range.start, range.len()).map_err(io::Error::other)
}
