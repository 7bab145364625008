//! What can go wrong with a store.

use std::io;

use thiserror::Error;
use virtio_zbd_zones::ZoneState;

use crate::host::HostFault;
use crate::image::{ImageFault, UndoFault};

/// Why a store could not be made, opened, or could not do what it was told.
///
/// Each message is whole: it ends with the system's own words where there are any. So there is no
/// [`source`](std::error::Error::source) that would say them again (`r#source` keeps the derive from making one).
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub enum StoreError {
    /// The system said no.
    #[error("{name}: {what}: {source}")]
    Io { name: String, what: &'static str, r#source: io::Error },
    /// It is no image, or one that can't be used.
    #[error("{name}: {fault}")]
    Image { name: String, fault: ImageFault },
    /// A repair failed half-way; the image is no worse than before it.
    #[error(
        "{name}: it could not be repaired to the end: {source}. What was changed until then can be undone with {kept}"
    )]
    Repair { name: String, kept: String, r#source: io::Error },
    /// It is no zoned device of the host that can be served.
    #[error("{name}: {fault}")]
    Host { name: String, fault: HostFault },
    /// A repair can't be undone.
    #[error("{name}: {fault}")]
    Undo { name: String, fault: UndoFault },
    /// A raw disk would be made of something that is an image: its zones would be destroyed without a word.
    #[error("{name} is a vzbd image, not a raw disk; serve it as an image")]
    RawImage { name: String },
    /// Not something that a raw disk can be made of.
    #[error("{name} is {found}; a raw disk is a regular file or a block device")]
    RawKind { name: String, found: &'static str },
    /// A raw disk is a whole number of sectors, at least one.
    #[error("{name} has {len_bytes} bytes; a disk needs a multiple of 512, and at least 512")]
    RawLength { name: String, len_bytes: u64 },
    /// Another program, or another part of this one, holds the lock.
    #[error(
        "{name} is in use by another program (or another disk of this one); only one may write to it at a time"
    )]
    InUse { name: String },
    /// There is a file already.
    #[error("{name} exists already; choose another name, or say that it may be overwritten")]
    Exists { name: String },
    /// An earlier sync failed. Linux forgets what it could not write then, so a later success would prove nothing.
    #[error(
        "{name}: bringing data to the medium failed before ({first}); nothing can be made durable any more until \
         the disk is opened again. Look at the host's disk and its free space first"
    )]
    SyncFailed { name: String, first: String },
    /// The file was cut off while it was open.
    #[error(
        "{name} was cut off while it was in use: it has {found_bytes} bytes where the disk needs {expected_bytes}; {lost}. \
         Nothing of that can be made durable"
    )]
    CutOff { name: String, expected_bytes: u64, found_bytes: u64, lost: String },
    /// The part of the file that is shared memory is gone.
    #[error(
        "{name}: its live area is gone: the file was cut off while it was in use, or the host has no room for it. Nothing can \
         be made durable any more until the disk is opened again"
    )]
    LiveLost { name: String },
    /// The disk was opened for reading.
    #[error("{name} is open for reading only")]
    ReadOnly { name: String },
    /// The disk was closed.
    #[error("{name} is closed")]
    Closed { name: String },
    /// A commit named a zone that the disk does not have.
    #[error("{name}: zone {zone} does not exist; the disk has {zone_count} zones")]
    NoSuchZone { name: String, zone: u32, zone_count: u32 },
    /// A conventional zone has no condition that could change.
    #[error(
        "{name}: zone {zone} is conventional; it can't be read-only or offline, and needs not be made good"
    )]
    Conventional { name: String, zone: u32 },
    /// Zones that come back into use would be too many.
    #[error(
        "{name}: {active} zones would be active, and the disk allows {max_active_zones}; reset or finish others first, or take fewer zones back"
    )]
    TooManyActive { name: String, active: u32, max_active_zones: u32 },
    /// A commit was to reset a zone that was not published as empty, so its data is in use.
    #[error("{name}: zone {zone} was to be reset but is not empty: {found:?}")]
    NotEmpty { name: String, zone: u32, found: Option<ZoneState> },
    /// Its power was cut on purpose.
    #[error("{name}: its power was cut, as was asked for")]
    PowerCut { name: String },
    /// A power cut is for images.
    #[error("{name} can't be left as by a power cut; only an image of a zoned disk can")]
    NoPowerCut { name: String },
    /// What was done to the disk could not be written down any more.
    #[error("{name}: the recording ends before the disk was closed ({first})")]
    RecordingEnded { name: String, first: String },
    /// It can't be made longer.
    #[error("{name} can't grow: {why}")]
    NoGrowth { name: String, why: String },
    /// A disk may become longer, not shorter: what is behind its new end would be gone, and its driver would not know.
    #[error(
        "{name} has {capacity_sectors} sectors of 512 bytes and can't be made shorter ({wanted_sectors}): zones would be lost, and what is in them"
    )]
    Shrunk { name: String, capacity_sectors: u64, wanted_sectors: u64 },
    /// The disk is too long to be held in memory.
    #[error("a disk of {capacity_bytes} bytes can't be held in memory: {source}")]
    Memory { capacity_bytes: u64, r#source: io::Error },
}

impl StoreError {
    pub(crate) fn io(name: impl Into<String>, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let name = name.into();
        move |source| Self::Io { name, what, source }
    }

    /// Whether the system's answer means that the medium is bad: see [`medium_is_bad`].
    pub fn medium_is_bad(&self) -> bool {
        matches!(self, Self::Io { source, .. } if medium_is_bad(source))
    }
}

/// Whether an I/O error says that the place is bad and will stay so: EIO and its kin, and a file that ends too early.
///
/// All others may pass: a full host (ENOSPC, EDQUOT), a limit (EFBIG), no memory, a way to the medium that is cut off
/// (ENOLINK, ETIMEDOUT), a disk that was closed.
pub fn medium_is_bad(error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(errno) => matches!(
            errno,
            libc::EIO
                | libc::EREMOTEIO
                | libc::ENODATA
                | libc::EBADMSG
                | libc::EILSEQ
                | libc::EUCLEAN
                | libc::ENXIO
                | libc::ENODEV
                | libc::ENOMEDIUM
        ),
        None => error.kind() == io::ErrorKind::UnexpectedEof,
    }
}
