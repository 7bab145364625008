//! Which zone-state pages have changed since they were last taken for a commit.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// One mark for each page, set by any number of threads and taken by one.
pub(super) struct DirtyPages {
    words: Box<[AtomicU64]>,
}

impl DirtyPages {
    pub(super) fn new(page_count: u32) -> Self {
        Self { words: (0..page_count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Marks a page whose live words have just been changed.
    ///
    /// The mark is mostly there already. Then it is only looked at, so that queues do not fight for one cache
    /// line. The fence pairs with the one in [`take`](Self::take): either this sees that the mark was taken,
    /// or the taker sees the words.
    pub(super) fn mark(&self, page: u32) {
        let bit = 1 << (page % 64);
        fence(Ordering::SeqCst);
        if let Some(word) = usize::try_from(page / 64).ok().and_then(|index| self.words.get(index))
            && word.load(Ordering::Relaxed) & bit == 0
        {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    pub(super) fn mark_all(&self, pages: &[u32]) {
        for &page in pages {
            self.mark(page);
        }
    }

    /// Takes all marks. What was published before a mark was set is seen by reads after this.
    pub(super) fn take(&self) -> Vec<u32> {
        let pages =
            self.collect(
                |word| if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::AcqRel) },
            );
        fence(Ordering::SeqCst);
        pages
    }

    /// The marks as they are, left in place.
    pub(super) fn peek(&self) -> Vec<u32> {
        self.collect(|word| word.load(Ordering::Acquire))
    }

    fn collect(&self, bits_of: impl Fn(&AtomicU64) -> u64) -> Vec<u32> {
        let mut pages = Vec::new();
        for (first, word) in (0u32..).step_by(64).zip(&self.words) {
            let mut bits = bits_of(word);
            while bits != 0 {
                pages.push(first + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_taken_once_and_peeked_at_often() {
        let dirty = DirtyPages::new(130);
        for page in [129, 0, 63, 64, 64] {
            dirty.mark(page);
        }
        assert_eq!(dirty.peek(), [0, 63, 64, 129]);
        assert_eq!(dirty.take(), [0, 63, 64, 129]);
        assert!(dirty.take().is_empty());
        dirty.mark_all(&[1, 128]);
        assert_eq!(dirty.peek(), [1, 128]);
        dirty.mark(100_000);
        assert_eq!(dirty.take(), [1, 128], "a page that does not exist is ignored");
    }

    #[test]
    fn no_change_is_lost_between_marking_and_taking() {
        // One thread publishes ever larger values, the other takes marks: after the last take it has seen the
        // last value.
        let dirty = DirtyPages::new(64);
        let word = AtomicU64::new(0);
        const LAST: u64 = 200_000;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for value in 1..=LAST {
                    word.store(value, Ordering::Release);
                    dirty.mark(7);
                }
            });
            let mut seen = 0;
            while seen < LAST {
                if dirty.take() == [7] {
                    seen = word.load(Ordering::Acquire);
                }
            }
        });
        assert!(dirty.take().len() <= 1);
    }
}
