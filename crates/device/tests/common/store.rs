//! The stores that a disk is tried on.

use std::sync::Arc;

use virtio_zbd_store::{EngineChoice, RamStore, Store};
use virtio_zbd_zones::{Geometry, GeometryConfig};

/// Where a disk's sectors live, and how the workers reach them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// In memory.
    Ram,
}

/// Where an image lies.
pub(crate) struct Place {
    on: Backing,
}

impl Backing {
    /// A new zoned disk.
    #[track_caller]
    pub(crate) fn zoned(self, shape: GeometryConfig) -> (Arc<dyn Store>, Option<Place>) {
        let geometry = Geometry::new(shape).unwrap();
        match self {
            Self::Ram => (Arc::new(RamStore::new(geometry).unwrap()), None),
        }
    }

    /// A new plain disk.
    #[track_caller]
    pub(crate) fn plain(self, len_bytes: u64) -> (Arc<dyn Store>, Option<Place>) {
        match self {
            Self::Ram => (Arc::new(RamStore::plain(len_bytes).unwrap()), None),
        }
    }

    pub(crate) fn engine(self) -> EngineChoice {
        match self {
            Self::Ram => EngineChoice::Auto,
        }
    }
}

impl Place {
    /// Opens the image again.
    pub(crate) fn open(&self) -> Arc<dyn Store> {
        unreachable!("{:?} has no image", self.on)
    }

    pub(crate) fn engine(&self) -> EngineChoice {
        self.on.engine()
    }
}
