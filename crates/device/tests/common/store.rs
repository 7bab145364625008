//! The stores that a disk is tried on.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use virtio_zbd_store::{CreateOptions, EngineChoice, ImageStore, OpenOptions, RamStore, RawStore, Store};
use virtio_zbd_zones::{Geometry, GeometryConfig};

/// Where a disk's sectors live, and how the workers reach them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// In memory.
    Ram,
    /// In a file (an image where there are zones), by io_uring.
    FileIoUring,
    /// In a file (an image where there are zones), by pread and pwrite.
    FileSync,
}

/// Where a file lies. It goes away with this.
pub(crate) struct Place {
    path: PathBuf,
    zoned: bool,
    _dir: TempDir,
}

impl Backing {
    /// A new zoned disk.
    #[track_caller]
    pub(crate) fn zoned(self, shape: GeometryConfig) -> (Arc<dyn Store>, Option<Place>) {
        self.of(Geometry::new(shape).unwrap())
    }

    /// A new disk of any geometry.
    #[track_caller]
    pub(crate) fn of(self, geometry: Geometry) -> (Arc<dyn Store>, Option<Place>) {
        if self == Self::Ram {
            return (Arc::new(RamStore::new(geometry).unwrap()), None);
        }
        let place = Place::new(true);
        ImageStore::create(&place.path, geometry, CreateOptions::default()).unwrap();
        (place.open(), Some(place))
    }

    /// A new plain disk.
    #[track_caller]
    pub(crate) fn plain(self, len_bytes: u64) -> (Arc<dyn Store>, Option<Place>) {
        if self == Self::Ram {
            return (Arc::new(RamStore::plain(len_bytes).unwrap()), None);
        }
        let place = Place::new(false);
        File::create(&place.path).unwrap().set_len(len_bytes).unwrap();
        (place.open(), Some(place))
    }

    pub(crate) fn engine(self) -> EngineChoice {
        match self {
            Self::Ram => EngineChoice::Auto,
            Self::FileIoUring => EngineChoice::IoUring,
            Self::FileSync => EngineChoice::Sync,
        }
    }
}

impl Place {
    fn new(zoned: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { path: dir.path().join("disk"), zoned, _dir: dir }
    }

    /// Opens what is there, as after a restart.
    #[track_caller]
    pub(crate) fn open(&self) -> Arc<dyn Store> {
        match self.zoned {
            true => Arc::new(ImageStore::open(&self.path, OpenOptions::default()).unwrap()),
            false => Arc::new(RawStore::open(&self.path, false).unwrap()),
        }
    }
}
