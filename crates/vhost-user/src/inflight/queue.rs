//! One queue's region, for a split ring.

use std::num::Wrapping;

use super::{Inflight, desc, head};

/// The version of a region that is in use.
const VERSION: u16 = 1;

/// One queue's part of the buffer, in the hands of the queue's worker.
///
/// The worker tells it of each chain, in this order: [`taken`](Self::taken) when it takes the chain's head from the available
/// ring, before it does anything about it; [`used`](Self::used) when the used element is in its place; and, by the batch,
/// [`published`](Self::published) right after the used ring's index was stored. Whoever serves the queue next, in whatever process,
/// finds in [`resubmit`](Self::resubmit) what was taken and not published.
///
/// A worker that gives up leaves it as it is: what it has not published is resubmitted.
#[derive(Clone, Debug)]
pub struct InflightQueue {
    pub(super) region: Inflight,
    index: u16,
    /// The ring's: the buffer may have room for more.
    size: u16,
    resubmit: Vec<u16>,
    /// The next chain's place in the order.
    counter: u64,
    /// The heads that are used and not published yet.
    batch: Vec<u16>,
}

/// Where a ring stands when its queue is about to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingState {
    pub(crate) size: u16,
    /// The available ring's index.
    pub(crate) avail_idx: u16,
    /// The used ring's index.
    pub(crate) used_idx: u16,
}

/// A region says what this ring can't be in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Foreign {
    #[error("it is for {found} descriptors, {expected} are expected")]
    Size { expected: u16, found: u16 },
    #[error("its used index is {found}, the ring's is {used_idx}: further apart than the queue is long")]
    UsedIndex { used_idx: u16, found: u16 },
    #[error("its last batch has descriptor {0}, which does not exist")]
    LastBatch(u16),
    #[error("{inflight} chains are in flight, but the driver has given {given}")]
    Inflight { inflight: usize, given: u16 },
}

impl InflightQueue {
    /// Takes up the region of queue `index`, by the specification's steps for a reconnection.
    ///
    /// Returns it with the index at which to go on in the available ring: behind what is resubmitted. `None` for that: the region is
    /// new, or does not belong to this ring (the guest has set it up anew since), and is cleared.
    ///
    /// No region at all: the buffer has none for this queue, or it is too short for it.
    pub(crate) fn attach(region: &Inflight, index: u16, ring: RingState) -> Option<(Self, Option<u16>)> {
        let layout = region.inner.layout;
        layout.queue(index)?;
        if ring.size > layout.queue_size {
            log::warn!(
                "queue {index} has {} entries, its inflight region {}: requests that are under way when this process dies are lost",
                ring.size,
                layout.queue_size
            );
            return None;
        }
        let mut queue = Self {
            region: region.clone(),
            index,
            size: ring.size,
            resubmit: Vec::new(),
            counter: 0,
            batch: Vec::new(),
        };
        if queue.load_head(head::VERSION) != VERSION {
            queue.clear(ring.used_idx);
            return Some((queue, None));
        }
        match queue.recover(ring) {
            Ok(resubmit) => {
                let inflight = u16::try_from(resubmit.len()).unwrap_or(u16::MAX);
                if inflight > 0 {
                    log::info!("queue {index}: {inflight} requests were under way and are made again");
                }
                queue.resubmit = resubmit;
                Some((queue, Some(ring.used_idx.wrapping_add(inflight))))
            }
            Err(foreign) => {
                log::warn!(
                    "queue {index}: its inflight region does not belong to its ring and is cleared: {foreign}"
                );
                queue.clear(ring.used_idx);
                Some((queue, None))
            }
        }
    }

    /// The heads of the chains that were taken before and not answered, in the order in which they were taken. They are to be
    /// taken again, before anything new.
    pub fn resubmit(&self) -> &[u16] {
        &self.resubmit
    }

    /// The buffer that this is a part of.
    pub fn buffer(&self) -> &Inflight {
        &self.region
    }

    /// A word of a chain's note: [`Inflight::note`].
    pub fn note(&self, head: u16, word: usize) -> u64 {
        self.region.note(self.index, head, word)
    }

    /// Stores a word of a chain's note.
    pub fn set_note(&self, head: u16, word: usize, value: u64) {
        self.region.set_note(self.index, head, word, value);
    }

    /// The chain that begins at descriptor `head` was taken from the available ring. Whatever its note shall say at
    /// first must be there by now.
    ///
    /// A driver may give a head that no descriptor has: that is not kept.
    pub fn taken(&mut self, head: u16) {
        if head >= self.size {
            return;
        }
        self.store_desc(head, desc::COUNTER, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.store_desc(head, desc::INFLIGHT, 1_u8);
    }

    /// The chain's used element is in the used ring, which does not count it yet.
    pub fn used(&mut self, head: u16) {
        if head < self.size {
            self.store_desc(head, desc::NEXT, self.load_head(head::LAST_BATCH_HEAD));
            self.store_head(head::LAST_BATCH_HEAD, head);
            self.batch.push(head);
        }
    }

    /// The used ring counts all that was [`used`](Self::used): its index is `used_idx` now.
    pub fn published(&mut self, used_idx: u16) {
        let mut batch = std::mem::take(&mut self.batch);
        for &head in &batch {
            self.store_desc(head, desc::INFLIGHT, 0_u8);
        }
        batch.clear();
        self.batch = batch;
        self.store_head(head::USED_IDX, used_idx);
    }

    /// Nothing is in flight. The version goes first and comes last: a region that is cleared in part is a new one.
    fn clear(&self, used_idx: u16) {
        self.store_head(head::VERSION, 0_u16);
        for head in 0..self.region.queue_size() {
            self.store_desc(head, desc::INFLIGHT, 0_u8);
        }
        self.store_head(head::DESC_NUM, self.region.queue_size());
        self.store_head(head::LAST_BATCH_HEAD, 0_u16);
        self.store_head(head::USED_IDX, used_idx);
        self.store_head(head::VERSION, VERSION);
    }

    /// What is in flight, oldest first.
    ///
    /// A kill between any two stores of this leaves a region of which it makes the same.
    fn recover(&mut self, ring: RingState) -> Result<Vec<u16>, Foreign> {
        let RingState { size, avail_idx, used_idx } = ring;
        let (expected, found) = (self.region.queue_size(), self.load_head(head::DESC_NUM));
        if found != expected {
            return Err(Foreign::Size { expected, found });
        }
        // The last batch is in the used ring. Whether it was taken out of here as well is not sure.
        let found = self.load_head(head::USED_IDX);
        let batch = (Wrapping(used_idx) - Wrapping(found)).0;
        if batch > size {
            return Err(Foreign::UsedIndex { used_idx, found });
        }
        let mut head = self.load_head(head::LAST_BATCH_HEAD);
        for _ in 0..batch {
            if head >= size {
                return Err(Foreign::LastBatch(head));
            }
            self.store_desc(head, desc::INFLIGHT, 0_u8);
            head = self.load_desc(head, desc::NEXT);
        }
        self.store_head(head::USED_IDX, used_idx);

        let mut inflight: Vec<(u64, u16)> = (0..expected)
            .filter(|&head| self.region.is_inflight(self.index, head))
            .map(|head| (self.load_desc(head, desc::COUNTER), head))
            .collect();
        // Used entries make room for available ones: of those not answered the driver has given so many.
        let given = (Wrapping(avail_idx) - Wrapping(used_idx)).0;
        let is_possible = given <= size && inflight.len() <= usize::from(given);
        if !is_possible || inflight.iter().any(|&(_, head)| head >= size) {
            return Err(Foreign::Inflight { inflight: inflight.len(), given });
        }
        inflight.sort_unstable();
        self.counter = inflight.last().map_or(0, |&(counter, _)| counter.wrapping_add(1));
        Ok(inflight.into_iter().map(|(_, head)| head).collect())
    }

    fn load_head(&self, field: usize) -> u16 {
        self.region.inner.layout.queue(self.index).map_or(0, |at| self.region.inner.load(at + field))
    }

    pub(super) fn store_head(&self, field: usize, value: u16) {
        if let Some(at) = self.region.inner.layout.queue(self.index) {
            self.region.inner.store(at + field, value);
        }
    }

    fn load_desc<T: vm_memory::AtomicAccess + Default>(&self, head: u16, field: usize) -> T {
        let at = self.region.inner.layout.desc(self.index, head);
        at.map_or_else(T::default, |at| self.region.inner.load(at + field))
    }

    pub(super) fn store_desc<T: vm_memory::AtomicAccess>(&self, head: u16, field: usize, value: T) {
        if let Some(at) = self.region.inner.layout.desc(self.index, head) {
            self.region.inner.store(at + field, value);
        }
    }
}
