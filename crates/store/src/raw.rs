//! A plain disk in a file or on a block device, without anything around it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_zbd_zones::{Geometry, SECTOR_LEN_BYTES, ZoneState};

use crate::error::StoreError;
use crate::image::is_image;
use crate::inject::{Faults, Operation};
use crate::lane::{EngineChoice, Lane, Target};
use crate::lock::{self, FileKind};
use crate::medium::{FileMedium, Medium};
use crate::store::{Commit, CommitOutcome, Identity, Store};

/// A regular file or a block device, byte for byte the disk. It has no zones.
pub struct RawStore {
    file: File,
    medium: FileMedium,
    /// Shared with the lanes: the disk may grow.
    capacity_bytes: Arc<AtomicU64>,
    /// Not a block device.
    is_file: bool,
    read_only: bool,
    identity: Identity,
    /// What the first failed sync said: after it no sync means anything.
    sync_failed: Mutex<Option<String>>,
    faults: Faults,
}

impl RawStore {
    /// Opens and locks a file or block device.
    ///
    /// # Errors
    /// It is in use, something else, a vzbd image, or no whole number of sectors.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, StoreError> {
        let name = path.display().to_string();
        let io = |what| StoreError::io(name.clone(), what);
        if let FileKind::Other(found) = lock::kind_of(path)? {
            return Err(StoreError::RawKind { name, found });
        }
        let mut file = lock::open_locked(path, read_only)?;
        // A block device's length is not in its metadata.
        let capacity_bytes = file.seek(SeekFrom::End(0)).map_err(io("finding its length"))?;
        let medium = FileMedium::new(file.try_clone().map_err(io("opening it"))?, path);
        if is_image(&medium, capacity_bytes).map_err(io("reading its beginning"))? {
            return Err(StoreError::RawImage { name });
        }
        if capacity_bytes == 0 || !capacity_bytes.is_multiple_of(SECTOR_LEN_BYTES.into()) {
            return Err(StoreError::RawLength { name, len_bytes: capacity_bytes });
        }
        let metadata = file.metadata().map_err(io("looking at it"))?;
        // There is no room for a name of its own: it has the one that the host's file system gives it.
        let is_file = metadata.is_file();
        let serial = format!("{:04x}{:016x}", metadata.dev() & 0xffff, metadata.ino());
        let identity = Identity::new(&serial, format!("{name} (raw)"));
        let (sync_failed, faults) = (Mutex::default(), Faults::default());
        let capacity_bytes = Arc::new(AtomicU64::new(capacity_bytes));
        Ok(Self { file, medium, capacity_bytes, is_file, read_only, identity, sync_failed, faults })
    }

    /// From now on these faults happen: see [`FaultRule`](crate::FaultRule). Lanes that are open already know nothing of them.
    pub fn inject(&mut self, faults: Faults) {
        self.faults = faults;
    }

    fn sync(&self) -> Result<(), StoreError> {
        let name = self.medium.name();
        let mut failed = self.sync_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = &*failed {
            return Err(StoreError::SyncFailed { name: name.to_owned(), first: first.clone() });
        }
        // A sync says nothing about what is not there any more.
        if self.is_file {
            let found_bytes = self.medium.len_bytes().map_err(StoreError::io(name, "finding its length"))?;
            let expected_bytes = self.capacity_bytes();
            if found_bytes < expected_bytes {
                let (name, lost) = (name.to_owned(), "what was behind its end is gone".to_owned());
                return Err(StoreError::CutOff { name, expected_bytes, found_bytes, lost });
            }
        }
        let synced = self.faults.check(Operation::Flush, 0..0).and_then(|()| self.medium.sync_data());
        synced.map_err(|error| {
            *failed = Some(error.to_string());
            StoreError::io(name, "bringing data to the medium")(error)
        })
    }
}

impl Store for RawStore {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes.load(Ordering::Acquire)
    }

    fn geometry(&self) -> Option<Geometry> {
        None
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn initial_states(&self) -> Vec<ZoneState> {
        Vec::new()
    }

    fn publish(&self, _: u32, _: ZoneState) {}

    fn commit(&self, work: &Commit<'_>) -> CommitOutcome {
        if let Some(&zone) = work.finished.iter().chain(work.reset).next() {
            let name = self.medium.name().to_owned();
            return CommitOutcome::failed(StoreError::NoSuchZone { name, zone, zone_count: 0 });
        }
        if work.flush && !self.read_only {
            return self.sync().map_or_else(CommitOutcome::failed, |()| CommitOutcome::done());
        }
        CommitOutcome::done()
    }

    fn open_lane(&self, engine: EngineChoice) -> io::Result<Lane> {
        let fd = self.file.try_clone()?.into();
        let writes_end = Arc::new(AtomicBool::new(self.read_only));
        let lane = Lane::open(
            Target::File { fd, base_bytes: 0 },
            Arc::clone(&self.capacity_bytes),
            writes_end,
            engine,
        )?;
        Ok(lane.with_faults(self.faults.clone()))
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    /// A file becomes longer; a block device must be longer already.
    fn grow(&self, capacity_sectors: u64) -> Result<(), StoreError> {
        let name = || self.medium.name().to_owned();
        let io = |what| StoreError::io(self.medium.name(), what);
        if self.read_only {
            return Err(StoreError::ReadOnly { name: name() });
        }
        // One at a time, and not while a sync holds the length against what it should be.
        let failed = self.sync_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = &*failed {
            return Err(StoreError::SyncFailed { name: name(), first: first.clone() });
        }
        let refused = |why| StoreError::NoGrowth { name: name(), why };
        let wanted_bytes = capacity_sectors
            .checked_mul(SECTOR_LEN_BYTES.into())
            .filter(|&bytes| i64::try_from(bytes).is_ok())
            .ok_or_else(|| refused("it would be longer than a file can be".to_owned()))?;
        let now_bytes = self.capacity_bytes();
        if wanted_bytes < now_bytes {
            let capacity_sectors_now = now_bytes / u64::from(SECTOR_LEN_BYTES);
            return Err(StoreError::Shrunk {
                name: name(),
                capacity_sectors: capacity_sectors_now,
                wanted_sectors: capacity_sectors,
            });
        }
        let mut file = &self.file;
        let found_bytes = file.seek(SeekFrom::End(0)).map_err(io("finding its length"))?;
        if !self.is_file && found_bytes < wanted_bytes {
            return Err(refused(format!(
                "the device has {found_bytes} bytes, and {wanted_bytes} are wanted; make it longer first"
            )));
        }
        if self.is_file && found_bytes < now_bytes {
            let (expected_bytes, lost) = (now_bytes, "what was behind its end is gone".to_owned());
            return Err(StoreError::CutOff { name: name(), expected_bytes, found_bytes, lost });
        }
        if found_bytes < wanted_bytes {
            self.medium.set_len(wanted_bytes).map_err(io("making the file longer"))?;
            self.medium.sync_data().map_err(io("bringing its new length to the medium"))?;
        }
        self.capacity_bytes.store(wanted_bytes, Ordering::Release);
        Ok(())
    }

    fn close(&self) -> Result<(), StoreError> {
        if self.read_only { Ok(()) } else { self.sync() }
    }
}
