//! Which parts of the arena are in use. No memory is touched here: this is bookkeeping with offsets.
//!
//! Pages are kept as runs, free ones coalesced, the lowest fitting one taken. What is smaller than a page
//! comes in blocks of 64 bytes to 2 KiB, each size in pages of its own, aligned to its size.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::PAGE_BYTES;

/// The smallest block: a request's header and status need no more.
const BLOCK_BYTES_MIN: usize = 64;
/// 64, 128, 256, 512, 1024, 2048.
const CLASSES: usize = 6;

/// What of the arena is in use, and since when.
#[derive(Debug)]
pub(super) struct Heap {
    /// Free runs: first page, number of pages. No two are neighbours.
    free: BTreeMap<usize, usize>,
    /// Runs in use, by their first page.
    runs: BTreeMap<usize, Run>,
    /// Pages of blocks.
    slabs: BTreeMap<usize, Slab>,
    /// Of each class, the pages that have a free block.
    partial: [BTreeSet<usize>; CLASSES],
    /// How many connections have been lost.
    losses: u64,
    quarantined_bytes: usize,
}

#[derive(Debug)]
struct Run {
    pages: usize,
    /// How many connections had been lost when it was given out.
    losses: u64,
}

/// A page cut into blocks of one size.
#[derive(Debug)]
struct Slab {
    class: usize,
    /// Bit n: block n is free. What is neither free nor in `losses` is in quarantine.
    free: u64,
    /// Of each block in use: how many connections had been lost when it was given out.
    losses: Vec<Option<u64>>,
}

/// What became of memory that was given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Freed {
    /// It was a block. There is nothing more to do.
    Block,
    /// It was these bytes, whole pages. The caller may give them back to the system, and then says so with
    /// [`Heap::reuse`].
    Pages(Range<usize>),
    /// It was these bytes, and a lost back-end may still write to them: they are never given out again.
    Quarantined(Range<usize>),
}

/// Memory was given back that is not in use, or not at its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotInUse;

impl Heap {
    /// All of an arena of so many bytes, whole pages, free.
    pub(super) fn new(len_bytes: usize) -> Self {
        let pages = len_bytes / PAGE_BYTES;
        Self {
            free: (pages > 0).then_some((0, pages)).into_iter().collect(),
            runs: BTreeMap::new(),
            slabs: BTreeMap::new(),
            partial: Default::default(),
            losses: 0,
            quarantined_bytes: 0,
        }
    }

    /// Takes so many bytes, and gives back their offset: aligned to their number, rounded up to a power of two,
    /// or to a page if that is less. None if the arena has no room.
    pub(super) fn allocate(&mut self, len_bytes: usize) -> Option<usize> {
        if len_bytes <= block_bytes(CLASSES - 1) {
            self.allocate_block(class_of(len_bytes))
        } else {
            self.allocate_pages(len_bytes.div_ceil(PAGE_BYTES))
        }
    }

    /// Takes whole pages.
    pub(super) fn allocate_pages(&mut self, pages: usize) -> Option<usize> {
        let pages = pages.max(1);
        let first = self.take_free(pages)?;
        self.runs.insert(first, Run { pages, losses: self.losses });
        Some(first * PAGE_BYTES)
    }

    /// Takes memory back that begins at `offset`.
    pub(super) fn free(&mut self, offset: usize) -> Result<Freed, NotInUse> {
        let page = offset / PAGE_BYTES;
        if self.slabs.contains_key(&page) {
            return self.free_block(page, offset % PAGE_BYTES);
        }
        if !offset.is_multiple_of(PAGE_BYTES) {
            return Err(NotInUse);
        }
        let run = self.runs.remove(&page).ok_or(NotInUse)?;
        let len_bytes = run.pages * PAGE_BYTES;
        let bytes = offset..offset + len_bytes;
        if run.losses < self.losses {
            self.quarantined_bytes += len_bytes;
            return Ok(Freed::Quarantined(bytes));
        }
        Ok(Freed::Pages(bytes))
    }

    /// The pages that [`Freed::Pages`] named may be given out again.
    pub(super) fn reuse(&mut self, bytes: &Range<usize>) {
        self.put_free(bytes.start / PAGE_BYTES, bytes.len() / PAGE_BYTES);
    }

    /// A connection was lost: what is in use now is never used for anything else.
    pub(super) fn lose(&mut self) {
        self.losses += 1;
    }

    /// How many bytes were given back and are never given out again.
    pub(super) fn quarantined_bytes(&self) -> usize {
        self.quarantined_bytes
    }

    fn allocate_block(&mut self, class: usize) -> Option<usize> {
        let page = match self.partial[class].first() {
            Some(page) => *page,
            None => {
                let page = self.take_free(1)?;
                let blocks = PAGE_BYTES / block_bytes(class);
                let free = u64::MAX >> (64 - blocks);
                self.slabs.insert(page, Slab { class, free, losses: vec![None; blocks] });
                self.partial[class].insert(page);
                page
            }
        };
        let slab = self.slabs.get_mut(&page)?;
        let block = usize::try_from(slab.free.trailing_zeros()).ok()?;
        *slab.losses.get_mut(block)? = Some(self.losses);
        slab.free &= !(1 << block);
        if slab.free == 0 {
            self.partial[class].remove(&page);
        }
        Some(page * PAGE_BYTES + block * block_bytes(class))
    }

    fn free_block(&mut self, page: usize, in_page: usize) -> Result<Freed, NotInUse> {
        let slab = self.slabs.get_mut(&page).ok_or(NotInUse)?;
        let (class, len_bytes) = (slab.class, block_bytes(slab.class));
        let block = in_page / len_bytes;
        if !in_page.is_multiple_of(len_bytes) {
            return Err(NotInUse);
        }
        let losses = slab.losses.get_mut(block).and_then(Option::take).ok_or(NotInUse)?;
        if losses < self.losses {
            self.quarantined_bytes += len_bytes;
            let start = page * PAGE_BYTES + in_page;
            return Ok(Freed::Quarantined(start..start + len_bytes));
        }
        slab.free |= 1 << block;
        let all_free = usize::try_from(slab.free.count_ones()) == Ok(slab.losses.len());
        self.partial[class].insert(page);
        if all_free {
            self.partial[class].remove(&page);
            self.slabs.remove(&page);
            self.put_free(page, 1);
        }
        Ok(Freed::Block)
    }

    /// Cuts pages off the first free run that has as many.
    fn take_free(&mut self, pages: usize) -> Option<usize> {
        let (first, found) =
            self.free.iter().map(|(first, found)| (*first, *found)).find(|(_, found)| *found >= pages)?;
        self.free.remove(&first);
        if found > pages {
            self.free.insert(first + pages, found - pages);
        }
        Some(first)
    }

    /// Makes a run free and joins it with its neighbours.
    fn put_free(&mut self, mut first: usize, mut pages: usize) {
        if let Some(after) = self.free.remove(&(first + pages)) {
            pages += after;
        }
        if let Some((before, length)) = self.free.range(..first).next_back().map(|(a, b)| (*a, *b))
            && before + length == first
        {
            self.free.remove(&before);
            first = before;
            pages += length;
        }
        self.free.insert(first, pages);
    }
}

fn block_bytes(class: usize) -> usize {
    BLOCK_BYTES_MIN << class
}

/// The class with the smallest blocks that hold so many bytes, which are at most those of the last class.
fn class_of(len_bytes: usize) -> usize {
    (0..CLASSES - 1).find(|class| len_bytes <= block_bytes(*class)).unwrap_or(CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: usize = 40;
    const GRAINS: usize = PAGE_BYTES / BLOCK_BYTES_MIN;

    /// The same, told simply: what each 64 bytes of the arena are used for.
    struct Model {
        grains: Vec<Use>,
        live: Vec<Live>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Use {
        Free,
        Pages,
        Block(usize),
    }

    #[derive(Clone, Debug)]
    struct Live {
        offset: usize,
        len_bytes: usize,
        /// It was there when a connection was lost.
        tainted: bool,
    }

    impl Model {
        fn page(&self, page: usize) -> &[Use] {
            &self.grains[page * GRAINS..(page + 1) * GRAINS]
        }

        fn is_empty(&self, page: usize) -> bool {
            self.page(page).iter().all(|grain| *grain == Use::Free)
        }

        /// The lowest place that fits, and how many bytes it takes.
        fn expect(&self, len_bytes: usize) -> (Option<usize>, usize) {
            if len_bytes > 2048 {
                let pages = len_bytes.div_ceil(4096);
                let fits = |first: &usize| (*first..first + pages).all(|page| self.is_empty(page));
                let firsts = 0..(PAGES + 1).saturating_sub(pages);
                return (firsts.into_iter().find(fits).map(|page| page * 4096), pages * 4096);
            }
            let block = len_bytes.max(64).next_power_of_two();
            let open = (0..PAGES).find_map(|page| {
                if !self.page(page).contains(&Use::Block(block)) {
                    return None;
                }
                let mut blocks = self.page(page).chunks(block / 64);
                blocks.position(|grains| grains[0] == Use::Free).map(|n| page * 4096 + n * block)
            });
            let fresh = || (0..PAGES).find(|page| self.is_empty(*page)).map(|page| page * 4096);
            (open.or_else(fresh), block)
        }

        fn set(&mut self, offset: usize, len_bytes: usize, used: Use) {
            self.grains[offset / 64..(offset + len_bytes) / 64].fill(used);
        }
    }

    fn seed() -> u64 {
        let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
        println!("SEED={seed}");
        seed
    }

    #[test]
    fn it_gives_out_exactly_what_a_simple_model_says() {
        let mut random = fastrand::Rng::with_seed(seed());
        for _ in 0..60 {
            let mut heap = Heap::new(PAGES * PAGE_BYTES);
            let mut model = Model { grains: vec![Use::Free; PAGES * GRAINS], live: Vec::new() };
            let mut quarantined_bytes = 0;
            let loses = random.bool();
            for _ in 0..1500 {
                match random.u32(..100) {
                    0 if loses => {
                        heap.lose();
                        model.live.iter_mut().for_each(|live| live.tainted = true);
                    }
                    0..55 => {
                        let longest = [64, 2048, 4096, 40_000, 200_000][random.usize(..5)];
                        let len_bytes = random.usize(0..=longest);
                        let (expected, taken_bytes) = model.expect(len_bytes);
                        assert_eq!(heap.allocate(len_bytes), expected, "{len_bytes} bytes");
                        if let Some(offset) = expected {
                            let used = if taken_bytes > 2048 { Use::Pages } else { Use::Block(taken_bytes) };
                            model.set(offset, taken_bytes, used);
                            model.live.push(Live { offset, len_bytes: taken_bytes, tainted: false });
                        }
                    }
                    _ if model.live.is_empty() => {}
                    55..97 => {
                        let live = model.live.swap_remove(random.usize(..model.live.len()));
                        let bytes = live.offset..live.offset + live.len_bytes;
                        let freed = heap.free(live.offset).unwrap();
                        if live.tainted {
                            assert_eq!(freed, Freed::Quarantined(bytes));
                            quarantined_bytes += live.len_bytes;
                        } else if live.len_bytes > 2048 {
                            assert_eq!(freed, Freed::Pages(bytes.clone()));
                            heap.reuse(&bytes);
                        } else {
                            assert_eq!(freed, Freed::Block);
                        }
                        if !live.tainted {
                            model.set(live.offset, live.len_bytes, Use::Free);
                        }
                        assert_eq!(heap.free(live.offset), Err(NotInUse), "freed twice");
                    }
                    _ => {
                        let live = &model.live[random.usize(..model.live.len())];
                        let inside = live.offset + random.usize(1..live.len_bytes);
                        if model.live.iter().all(|live| live.offset != inside) {
                            assert_eq!(heap.free(inside), Err(NotInUse));
                        }
                    }
                }
                assert_eq!(heap.quarantined_bytes(), quarantined_bytes);
            }
            if quarantined_bytes == 0 && model.live.iter().all(|live| !live.tainted) {
                for live in model.live {
                    if let Freed::Pages(bytes) = heap.free(live.offset).unwrap() {
                        heap.reuse(&bytes);
                    }
                }
                assert_eq!(heap.free, BTreeMap::from([(0, PAGES)]), "all of it is one piece again");
                assert_eq!(heap.allocate_pages(PAGES), Some(0));
            }
        }
    }

    #[test]
    fn pages_being_given_back_are_not_given_out() {
        let mut heap = Heap::new(2 * PAGE_BYTES);
        let first = heap.allocate_pages(2).unwrap();
        let Ok(Freed::Pages(bytes)) = heap.free(first) else { panic!("not pages") };
        assert_eq!(heap.allocate(1), None);
        heap.reuse(&bytes);
        assert_eq!(heap.allocate_pages(2), Some(0));
        assert_eq!(Heap::new(0).allocate(1), None);
        assert_eq!(Heap::new(PAGE_BYTES).allocate_pages(usize::MAX), None);
        assert_eq!(Heap::new(PAGE_BYTES).allocate(usize::MAX), None);
    }
}
