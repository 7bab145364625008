//! A zoned disk in one file.
//!
//! The bytes are described in `docs/format.md`. How the modules share the work: `format` knows the bytes,
//! `superblock` and `pages` the two things that are kept twice, `recover` opens, `commit` makes durable,
//! `create` makes new images, `grow` makes them longer and `room` finds the place for that.

mod check;
mod commit;
mod create;
mod dirty;
mod fate;
mod fault;
mod format;
mod grow;
mod live;
mod pages;
mod recover;
mod room;
mod superblock;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use uuid::Uuid;
use virtio_zbd_zones::{Condition, Geometry, ZoneState};

use crate::error::StoreError;
use crate::inject::Faults;
use crate::lane::{EngineChoice, Lane, Target};
use crate::lock::{self, FileKind};
use crate::medium::{FileMedium, Medium};
use crate::store::{Commit, CommitOutcome, Identity, Store};
pub use check::{
    CheckOptions, CheckReport, CheckedImage, Finding, FindingKind, NextOpening, Omitted, Opens, Remedy,
    Repaired, Severity, UndoFault, ZoneCounts,
};
pub use create::CreateOptions;
use dirty::DirtyPages;
pub use fate::ZoneFate;
pub use fault::{ImageFault, ZoneRanges};
use format::{BOOT_ID_CLEAN, Layout};
use live::LiveArea;
use pages::PageBook;
pub use recover::LastUse;
use recover::{Checked, boot_id};
use superblock::Superblocks;
pub(crate) use superblock::is_image;

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Nothing is written, not even a mark; others may read at the same time.
    pub read_only: bool,
    /// What stands for this boot of the machine; `None`: what the kernel says. A test uses it to play a power cut.
    pub boot_id: Option<[u8; 16]>,
}

/// A zoned disk in one file.
///
/// Dropping it without [`close`](Store::close) leaves the image as a kill would: nothing that was published
/// is lost as long as the machine runs, and the next opening puts it in order.
pub struct ImageStore {
    medium: Arc<dyn Medium>,
    /// Replaced when the disk grows, under the book's lock.
    shape: RwLock<Arc<Shape>>,
    /// As in the shape, for those who can't wait.
    zone_count: AtomicU32,
    /// The same, for lanes.
    capacity_bytes: Arc<AtomicU64>,
    uuid: Uuid,
    last_use: LastUse,
    states: States,
    /// Pages whose live words have changed since the last flush.
    dirty: DirtyPages,
    book: Mutex<Book>,
    /// Lanes refuse to write: the image is open for reading, or was closed.
    writes_end: Arc<AtomicBool>,
    faults: Faults,
}

/// A disk, and where it lies.
struct Shape {
    geometry: Geometry,
    layout: Layout,
}

/// Where the states of the zones are.
enum States {
    /// In the live area: open for writing.
    Live(Box<LiveArea>),
    /// As they were found: open for reading.
    Found(Vec<ZoneState>),
}

/// What commits share.
struct Book {
    superblocks: Superblocks,
    pages: PageBook,
    /// Reset zones that still have their old data.
    unswept: BTreeSet<u32>,
    /// Why nothing more can be committed.
    halt: Option<Halt>,
}

enum Halt {
    Closed,
    SyncFailed(String),
    /// The live area is not the file's any more.
    LiveLost,
}

impl Halt {
    fn error(&self, name: String) -> StoreError {
        match self {
            Self::Closed => StoreError::Closed { name },
            Self::SyncFailed(first) => StoreError::SyncFailed { name, first: first.clone() },
            Self::LiveLost => StoreError::LiveLost { name },
        }
    }
}

/// What an image says of itself.
#[derive(Clone, Debug)]
pub struct ImageInfo {
    /// Its path.
    pub name: String,
    /// Which image this is; a copy has the same.
    pub uuid: Uuid,
    /// The version of the format.
    pub version: u32,
    /// Features that a program may ignore if it does not know them.
    pub features_compat: u64,
    /// Features without which a program may only read.
    pub features_ro_compat: u64,
    /// Features without which a program must leave the image alone.
    pub features_incompat: u64,
    /// The disk's shape.
    pub geometry: Geometry,
    /// How the image was left by whoever had it before it was opened.
    pub last_use: LastUse,
    /// The state of each zone. A restart's view (D4) where the image is not open for writing; the state at
    /// this moment where it is.
    pub states: Vec<ZoneState>,
    /// How many of them are open.
    pub open_zones: u32,
    /// How many of them are active.
    pub active_zones: u32,
    /// The most zones whose states find room in the file: so far the disk may grow.
    pub zones_max: u32,
    /// Where the first sector is in the file.
    pub data_offset_bytes: u64,
    /// Length of the file.
    pub file_len_bytes: u64,
    /// How much space of the host the file takes.
    pub allocated_bytes: u64,
}

impl ImageStore {
    /// Makes a new image at `path`, closed cleanly, with all zones empty.
    ///
    /// The file has its full length and takes almost no space. It appears under its name when it is whole and
    /// on the medium; after a failure nothing is left behind.
    ///
    /// # Errors
    /// There is a file and `options` does not say that it may be overwritten, or it is in use; the host has
    /// no room.
    pub fn create(path: &Path, geometry: Geometry, options: CreateOptions) -> Result<ImageInfo, StoreError> {
        create::create(path, geometry, options)
    }

    /// Makes a new image on an empty medium.
    ///
    /// # Errors
    /// The medium's.
    pub fn create_on(medium: &dyn Medium, geometry: Geometry) -> Result<(), StoreError> {
        create::create_on(medium, &geometry, CreateOptions::default())
    }

    /// Opens an image and locks it.
    ///
    /// # Errors
    /// It is in use, damaged, or no image at all: see [`ImageFault`]. Whatever is found, nothing is written
    /// before everything has been checked.
    pub fn open(path: &Path, options: OpenOptions) -> Result<Self, StoreError> {
        let medium = open_file(path, options.read_only)?;
        Self::open_on(Arc::new(medium), options)
    }

    /// As [`open`](Self::open), on any medium; without a lock.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(medium: Arc<dyn Medium>, options: OpenOptions) -> Result<Self, StoreError> {
        let boot_id = options.boot_id.unwrap_or_else(boot_id);
        let mut checked = Checked::read(&*medium, boot_id, options.read_only)?;
        let states = match options.read_only {
            true => States::Found(std::mem::take(&mut checked.states)),
            false => States::Live(Box::new(LiveArea::new(checked.recover(&*medium, boot_id)?))),
        };
        let Checked { geometry, layout, .. } = checked;
        // A mark for every page that the disk may ever have: nothing is to be moved while others set them.
        let zones_max = room::zones_max(&layout, geometry.zone_count());
        Ok(Self {
            zone_count: AtomicU32::new(geometry.zone_count()),
            capacity_bytes: Arc::new(AtomicU64::new(layout.data.end - layout.data.start)),
            dirty: DirtyPages::new(format::page_count_of(zones_max)),
            shape: RwLock::new(Arc::new(Shape { geometry, layout })),
            uuid: Uuid::from_bytes(checked.superblocks.current.uuid),
            last_use: checked.last_use,
            states,
            book: Mutex::new(Book {
                superblocks: checked.superblocks,
                pages: checked.pages,
                unswept: BTreeSet::new(),
                halt: None,
            }),
            writes_end: Arc::new(AtomicBool::new(options.read_only)),
            faults: Faults::default(),
            medium,
        })
    }

    /// From now on these faults happen: see [`FaultRule`](crate::FaultRule). Lanes that are open already know nothing of them.
    pub fn inject(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Looks at an image that nobody writes to. Nothing is changed.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn inspect(path: &Path) -> Result<ImageInfo, StoreError> {
        Self::open(path, OpenOptions { read_only: true, boot_id: None })?.info()
    }

    /// What the image says of itself.
    ///
    /// # Errors
    /// The file can't be asked for its length.
    pub fn info(&self) -> Result<ImageInfo, StoreError> {
        let io = |what| StoreError::io(self.name(), what);
        let states = self.states_now(|state, _| state);
        let count = |is: fn(&ZoneState) -> bool| {
            u32::try_from(states.iter().filter(|state| is(state)).count()).unwrap_or(u32::MAX)
        };
        let (open_zones, active_zones) =
            (count(|state| state.condition.is_open()), count(|state| state.condition.is_active()));
        let zones_max = self.zones_max();
        let book = self.lock_book();
        let shape = self.shape();
        let superblock = &book.superblocks.current;
        Ok(ImageInfo {
            name: self.name(),
            uuid: self.uuid,
            version: superblock.version.get(),
            features_compat: superblock.features_compat.get(),
            features_ro_compat: superblock.features_ro_compat.get(),
            features_incompat: superblock.features_incompat.get(),
            geometry: shape.geometry.clone(),
            last_use: self.last_use,
            states,
            open_zones,
            active_zones,
            zones_max,
            data_offset_bytes: shape.layout.data.start,
            file_len_bytes: self.medium.len_bytes().map_err(io("finding the file's length"))?,
            allocated_bytes: self.allocated_bytes()?,
        })
    }

    /// How much space of the host the file takes.
    ///
    /// # Errors
    /// The system's.
    pub fn allocated_bytes(&self) -> Result<u64, StoreError> {
        self.medium
            .allocated_bytes()
            .map_err(StoreError::io(self.name(), "finding the file's allocated size"))
    }

    fn name(&self) -> String {
        self.medium.name().to_owned()
    }

    /// The disk as it is now.
    fn shape(&self) -> Arc<Shape> {
        Arc::clone(&self.shape.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn take_shape(&self, shape: Shape) {
        let (zone_count, data) = (shape.geometry.zone_count(), shape.layout.data.clone());
        *self.shape.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(shape);
        self.zone_count.store(zone_count, Ordering::Release);
        self.capacity_bytes.store(data.end - data.start, Ordering::Release);
    }

    fn live(&self) -> Option<&LiveArea> {
        match &self.states {
            States::Live(live) => Some(live),
            States::Found(_) => None,
        }
    }

    fn states_now(&self, seen: impl Fn(ZoneState, u32) -> ZoneState) -> Vec<ZoneState> {
        let shape = self.shape();
        let zones = 0..shape.geometry.zone_count();
        match &self.states {
            States::Found(states) => zones.zip(states).map(|(zone, &state)| seen(state, zone)).collect(),
            States::Live(live) => zones
                .map(|zone| {
                    let bits = live.load(usize::try_from(zone).unwrap_or(usize::MAX));
                    // The words were written by us and are checked again before they get into a page.
                    let state = bits.and_then(ZoneState::from_bits);
                    seen(state.unwrap_or(ZoneState::new(&shape.geometry, zone)), zone)
                })
                .collect(),
        }
    }

    fn lock_book(&self) -> MutexGuard<'_, Book> {
        // A panic under the lock can't leave the book wrong: what counts is changed after the medium, in one step.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for ImageStore {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes.load(Ordering::Acquire)
    }

    fn geometry(&self) -> Option<Geometry> {
        Some(self.shape().geometry.clone())
    }

    fn identity(&self) -> Identity {
        let uuid = self.uuid;
        Identity::new(&uuid.simple().to_string(), format!("{} (image {uuid})", self.medium.name()))
    }

    fn history(&self) -> u64 {
        self.lock_book().superblocks.current.history.get()
    }

    fn initial_states(&self) -> Vec<ZoneState> {
        let shape = self.shape();
        self.states_now(|state, zone| state.after_restart(&shape.geometry, zone))
    }

    fn publish(&self, zone: u32, state: ZoneState) {
        if zone >= self.zone_count.load(Ordering::Acquire) {
            return;
        }
        if let (Some(live), Ok(index)) = (self.live(), usize::try_from(zone)) {
            live.store(index, state.to_bits());
            self.dirty.mark(Layout::page_of(zone));
        }
    }

    fn commit(&self, work: &Commit<'_>) -> CommitOutcome {
        let named = !work.finished.is_empty() || !work.reset.is_empty();
        if !named && (!work.flush || self.read_only()) {
            return CommitOutcome::done();
        }
        self.commit_work(&mut self.lock_book(), work)
    }

    fn open_lane(&self, engine: EngineChoice) -> io::Result<Lane> {
        let base_bytes = self.shape().layout.data.start;
        let target = match self.medium.fd() {
            Some(fd) => Target::File { fd: fd.try_clone_to_owned()?, base_bytes },
            None => Target::Medium { medium: Arc::clone(&self.medium), base_bytes },
        };
        let lane =
            Lane::open(target, Arc::clone(&self.capacity_bytes), Arc::clone(&self.writes_end), engine)?;
        Ok(lane.with_faults(self.faults.clone()))
    }

    fn read_only(&self) -> bool {
        self.live().is_none()
    }

    fn close(&self) -> Result<(), StoreError> {
        let mut book = self.lock_book();
        if matches!(book.halt, Some(Halt::Closed)) {
            return Ok(());
        }
        if !self.read_only() {
            self.commit_work(&mut book, &Commit { flush: true, ..Commit::default() }).durable?;
            self.mark_closed(&mut book)?;
        }
        book.halt = Some(Halt::Closed);
        Ok(())
    }

    fn grow(&self, capacity_sectors: u64) -> Result<(), StoreError> {
        self.grow_to(&mut self.lock_book(), capacity_sectors)
    }

    fn cut_power(&self, states: &[ZoneState]) -> Result<(), StoreError> {
        self.leave_as_cut(&mut self.lock_book(), states)
    }
}

impl ImageStore {
    /// Everything has been flushed: says so in the superblock.
    fn mark_closed(&self, book: &mut Book) -> Result<(), StoreError> {
        // From the first copy on the image may count as closed: nothing may be written any more, whatever
        // comes of it.
        self.writes_end.store(true, Ordering::SeqCst);
        // An offline zone's data shows nowhere any more.
        let shows = |zone: &u32| {
            let bits = self.live().and_then(|live| live.load(usize::try_from(*zone).ok()?));
            bits.and_then(ZoneState::from_bits).is_none_or(|state| state.condition != Condition::Offline)
        };
        if book.unswept.iter().any(shows) {
            log::warn!(
                "{}: a reset zone's data could not be removed; the next opening tries again",
                self.name()
            );
            return Ok(());
        }
        let page_sequence_sum = book.pages.sequence_sum().into();
        let marked = book.superblocks.write(&*self.medium, |superblock| {
            superblock.live_boot_id = BOOT_ID_CLEAN;
            superblock.page_sequence_sum = page_sequence_sum;
        });
        marked.map_err(|error| {
            book.halt = Some(Halt::SyncFailed(error.to_string()));
            StoreError::io(self.name(), "marking the image as closed")(error)
        })
    }
}

fn open_file(path: &Path, read_only: bool) -> Result<FileMedium, StoreError> {
    if let FileKind::Other(found) = image_kind(path)? {
        let fault = ImageFault::NotAFile { found };
        return Err(StoreError::Image { name: path.display().to_string(), fault });
    }
    Ok(FileMedium::new(lock::open_locked(path, read_only)?, path))
}

/// As [`lock::kind_of`]; a block device counts as something else.
fn image_kind(path: &Path) -> Result<FileKind, StoreError> {
    Ok(match lock::kind_of(path)? {
        FileKind::BlockDevice => FileKind::Other("a block device"),
        kind => kind,
    })
}
