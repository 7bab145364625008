//! The live words of an image that may grow while others store to them.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::words::LiveWords;

/// How many mappings there may be. A new one is needed when a growth takes more of the file than is mapped, which is done by
/// multiples of 8192 zones.
const MAPPINGS_MAX: usize = 64;

/// The live area, mapped once, and again where it has become longer.
///
/// All mappings are of the same part of the file, so who is still at an older one does no harm. A word is reached without a lock.
pub(super) struct LiveArea {
    mappings: [OnceLock<LiveWords>; MAPPINGS_MAX],
    newest: AtomicUsize,
}

impl LiveArea {
    pub(super) fn new(words: LiveWords) -> Self {
        let mappings = [const { OnceLock::new() }; MAPPINGS_MAX];
        let [first, ..] = &mappings;
        let _ = first.set(words);
        Self { mappings, newest: AtomicUsize::new(0) }
    }

    /// The word; `None` past the last one.
    pub(super) fn load(&self, index: usize) -> Option<u64> {
        self.words()?.load(index)
    }

    /// Sets the word; nothing happens past the last one.
    pub(super) fn store(&self, index: usize, bits: u64) {
        if let Some(words) = self.words() {
            words.store(index, bits);
        }
    }

    /// As [`LiveWords::is_lost`], of any mapping.
    pub(super) fn is_lost(&self) -> bool {
        self.mappings.iter().filter_map(OnceLock::get).any(LiveWords::is_lost)
    }

    /// How many words are mapped.
    pub(super) fn count(&self) -> usize {
        self.words().map_or(0, LiveWords::count)
    }

    /// From now on these count: the same words, and more. One caller at a time.
    ///
    /// # Errors
    /// There were too many before.
    pub(super) fn extend(&self, words: LiveWords) -> io::Result<()> {
        let next = self.newest.load(Ordering::Relaxed) + 1;
        let place = self.mappings.get(next).ok_or_else(|| {
            io::Error::other("it has grown too often since it was opened: open it again to go on")
        })?;
        let _ = place.set(words);
        self.newest.store(next, Ordering::Release);
        Ok(())
    }

    fn words(&self) -> Option<&LiveWords> {
        self.mappings.get(self.newest.load(Ordering::Acquire))?.get()
    }
}
