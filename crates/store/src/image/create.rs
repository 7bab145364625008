//! Making new images.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use uuid::Uuid;
use virtio_zbd_zones::{Geometry, ZoneState};

use super::fault::ImageFault;
use super::format::{Layout, Superblock};
use super::pages::PageBook;
use super::superblock::Superblocks;
use super::{ImageInfo, ImageStore, OpenOptions, image_kind};
use crate::error::StoreError;
use crate::lock::{self, FileKind};
use crate::medium::{FileMedium, Medium};

/// How an image is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct CreateOptions {
    /// An existing regular file may be replaced, if nobody uses it.
    pub overwrite: bool,
    /// How long the disk may become one day, in sectors: the states of that many zones find room in the file. `None`: eight times
    /// as long as it is. It costs no space of the host.
    pub grow_to_sectors: Option<u64>,
}

/// How many times as long as it is made a disk may become where nothing else is said.
const GROWTH: u32 = 8;

pub(super) fn create(
    path: &Path,
    geometry: Geometry,
    options: CreateOptions,
) -> Result<ImageInfo, StoreError> {
    let name = path.display().to_string();
    let io = |what| StoreError::io(name.clone(), what);
    // Held until the new file has its name: nobody may come to use the old one in between.
    let replaced = existing(path, options)?;
    let unfinished = Unfinished::new(path).map_err(io("making the file"))?;
    lock::lock(&unfinished.file, &name, false)?;
    let file = unfinished.file.try_clone().map_err(io("making the file"))?;
    let medium = Arc::new(FileMedium::new(file, path));
    create_on(&*medium, &geometry, options)?;
    let info = ImageStore::open_on(medium, OpenOptions { read_only: true, boot_id: None })?.info()?;
    unfinished.file.sync_all().map_err(io("bringing the new file to the medium"))?;
    unfinished.take_name(path, replaced.is_some()).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => StoreError::Exists { name: name.clone() },
        _ => StoreError::io(name.clone(), "giving the new file its name")(error),
    })?;
    if let Err(error) = sync_directory(path) {
        if replaced.is_none() {
            // Nothing is to be left behind; if this fails too there is no more to be done.
            let _ = fs::remove_file(path);
        }
        return Err(io("bringing the new file's name to the medium")(error));
    }
    drop(replaced);
    Ok(info)
}

/// Writes a new image, closed cleanly, to an empty medium.
pub(super) fn create_on(
    medium: &dyn Medium,
    geometry: &Geometry,
    options: CreateOptions,
) -> Result<(), StoreError> {
    let name = medium.name();
    let io = |what| StoreError::io(name, what);
    let room_zones = match options.grow_to_sectors {
        Some(sectors) => sectors.div_ceil(geometry.config().zone_sectors.into()),
        None => u64::from(geometry.zone_count()) * u64::from(GROWTH),
    };
    let room_zones = u32::try_from(room_zones).unwrap_or(u32::MAX).min(Geometry::MAX_ZONES);
    let layout = Layout::new(geometry, room_zones).ok_or_else(|| {
        let fault = ImageFault::TooLong { capacity_sectors: geometry.capacity_sectors() };
        StoreError::Image { name: name.to_owned(), fault }
    })?;
    let uuid = Uuid::new_v4().into_bytes();
    let superblock = |sequence_sum| {
        Superblock::new(geometry, &layout, uuid, sequence_sum)
            .map_err(|fault| StoreError::Image { name: name.to_owned(), fault })
    };
    // Is there room for the disk's layout?
    superblock(0)?;
    medium.set_len(layout.data.end).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => io(
            "giving the file its length (on ext4 a file has 16T at most; XFS, btrfs and tmpfs take more)",
        )(error),
        _ => io("giving the file its length")(error),
    })?;
    // Everything but the sectors has its space from the beginning: a commit must not find the host full.
    match medium.allocate(0..layout.live.end) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        other => other.map_err(io("taking the space for the zone states"))?,
    }
    let pages = PageBook::new(geometry, &layout, uuid);
    pages.write_new(medium, &layout).map_err(io("writing zone states"))?;
    write_live(medium, geometry, &layout).map_err(io("filling the live area"))?;
    // The superblock comes last, and after a sync: a file that has one is whole.
    medium.sync_data().map_err(io("bringing the new file to the medium"))?;
    let superblock = superblock(pages.sequence_sum())?;
    Superblocks::new(superblock).write(medium, |_| {}).map_err(io("writing the superblock"))
}

fn write_live(medium: &dyn Medium, geometry: &Geometry, layout: &Layout) -> io::Result<()> {
    let states = (0..geometry.zone_count()).map(|zone| ZoneState::new(geometry, zone).to_bits());
    let bytes: Vec<u8> = states.flat_map(u64::to_le_bytes).collect();
    medium.write_at(&bytes, layout.live.start)
}

/// The file that is to be replaced, locked; `None`: there is none.
fn existing(path: &Path, options: CreateOptions) -> Result<Option<File>, StoreError> {
    let name = path.display().to_string();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io(name, "looking for it")(error)),
        Ok(_) if !options.overwrite => return Err(StoreError::Exists { name }),
        Ok(_) => {}
    }
    match image_kind(path)? {
        FileKind::Other(found) => Err(StoreError::Image { name, fault: ImageFault::NotAFile { found } }),
        _ => lock::open_locked(path, false).map(Some),
    }
}

/// A file under a passing name beside its later place; removed if it does not get there.
pub(super) struct Unfinished {
    pub(super) file: File,
    path: Option<PathBuf>,
}

impl Unfinished {
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let mut name = OsString::from(".");
        name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
        name.push(format!(".{}", Uuid::new_v4().simple()));
        let path = path.with_file_name(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self { file, path: Some(path) })
    }

    pub(super) fn take_name(mut self, path: &Path, replace: bool) -> io::Result<()> {
        let Some(own) = &self.path else { return Ok(()) };
        if replace {
            fs::rename(own, path)?;
            self.path = None;
            return Ok(());
        }
        match renameat_with(CWD, own, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => self.path = None,
            // Not every file system can refuse to replace. A second name can't replace anything anywhere; the
            // first goes with `self`.
            Err(Errno::INVAL | Errno::NOSYS) => fs::hard_link(own, path)?,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(error) = fs::remove_file(&path)
        {
            log::warn!("{}: an unfinished file could not be removed: {error}", path.display());
        }
    }
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}
