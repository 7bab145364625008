//! The live words of an image: memory that is a part of its file.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_zbd_mapguard::MapGuard;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Words shared between this process and a file, or with whoever holds the same [`Arc`].
pub struct LiveWords(Words);

enum Words {
    /// The guard goes before the mapping.
    Mapped {
        guard: MapGuard,
        region: MmapRegion,
    },
    Shared(Arc<[AtomicU64]>),
}

impl LiveWords {
    /// Words that live in memory, for a medium that is no file.
    pub fn shared(words: Arc<[AtomicU64]>) -> Self {
        Self(Words::Shared(words))
    }

    /// Words in a file.
    pub(crate) fn map(file: &Arc<File>, offset_bytes: u64, count: usize) -> io::Result<Self> {
        let len_bytes = count.checked_mul(8).ok_or(io::ErrorKind::OutOfMemory)?;
        let place = FileOffset::from_arc(Arc::clone(file), offset_bytes);
        let region = MmapRegion::from_file(place, len_bytes).map_err(|error| match error {
            vm_memory::mmap::MmapRegionError::Mmap(error) => error,
            other => io::Error::other(other),
        })?;
        // SAFETY: it is one mapping of ours, at a page's start. It is dropped after the guard, and touched by atomic
        // accesses only.
        let guard = unsafe { MapGuard::watch(region.as_ptr(), len_bytes) }?;
        Ok(Self(Words::Mapped { guard, region }))
    }

    /// Whether the words are no longer those of the file: it was cut off before their end, or its host had no room for
    /// them. They are zeros then, or what was stored since, and nobody else sees them.
    pub fn is_lost(&self) -> bool {
        match &self.0 {
            Words::Mapped { guard, .. } => guard.is_lost(),
            Words::Shared(_) => false,
        }
    }

    /// How many words there are.
    pub fn count(&self) -> usize {
        match &self.0 {
            Words::Mapped { region, .. } => region.size() / 8,
            Words::Shared(words) => words.len(),
        }
    }

    /// The word; `None` past the last one.
    pub fn load(&self, index: usize) -> Option<u64> {
        self.word(index).map(|word| u64::from_le(word.load(Ordering::Acquire)))
    }

    /// Sets the word; nothing happens past the last one.
    pub fn store(&self, index: usize, bits: u64) {
        if let Some(word) = self.word(index) {
            word.store(bits.to_le(), Ordering::Release);
        }
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        match &self.0 {
            Words::Mapped { region, .. } => region.get_atomic_ref(index.checked_mul(8)?).ok(),
            Words::Shared(words) => words.get(index),
        }
    }
}
