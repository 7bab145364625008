//! A kill between any two stores; regions that lie; buffers that can't be.
//!
//! `SEED=n` repeats a run of the random tests.

use std::collections::BTreeSet;

use rustix::fs::{fcntl_get_seals, ftruncate};
use rustix::io::{dup, pread, pwrite};

use super::*;

const QUEUE: u16 = 1;

fn asked(queues: u16, queue_size: u16) -> InflightRegion {
    InflightRegion { mmap_size_bytes: 0, mmap_offset_bytes: 0, queues, queue_size, padding: 0 }
}

/// A buffer for two queues that holds `bytes`, or is new.
fn buffer(queue_size: u16, bytes: Option<&[u8]>) -> Inflight {
    let (named, fd) = Inflight::create(&asked(2, queue_size), 2).unwrap();
    if let Some(bytes) = bytes {
        assert_eq!(pwrite(&fd, bytes, 0).unwrap(), bytes.len());
    }
    Inflight::map(&named, 2, fd, &alarm()).unwrap()
}

fn alarm() -> Alarm {
    Alarm::new().unwrap()
}

fn seed() -> u64 {
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    seed
}

/// What there is of a queue outside the process that serves it.
#[derive(Clone)]
struct Moment {
    /// The buffer.
    bytes: Vec<u8>,
    /// How many chains the driver has given, and how many answers it can see.
    given: usize,
    seen: usize,
}

/// A driver, a worker, and every moment in which the worker could have been killed.
struct Scene {
    size: u16,
    /// Where both indices began.
    base: u16,
    /// All heads that were ever given, and all whose answer can be seen, in order.
    given: Vec<u16>,
    seen: Vec<u16>,
    queue: InflightQueue,
    /// Taken by this worker or made again by it, and not used yet.
    under_way: Vec<u16>,
    taken: usize,
    batch: Vec<u16>,
    moments: Vec<Moment>,
}

impl Scene {
    /// A worker starts: on what another one has left, if any did.
    fn start(size: u16, base: u16, given: Vec<u16>, seen: Vec<u16>, bytes: Option<&[u8]>) -> Self {
        let region = buffer(size, bytes);
        let queue_at = |region: &Inflight| {
            InflightQueue::attach(region, QUEUE, ring(size, base, given.len(), seen.len())).unwrap()
        };
        let (queue, next_avail) = queue_at(&region);
        // Whoever is killed while it looks at the region leaves one of which the next makes the same.
        for bytes in region.inner.trace.lock().unwrap().iter() {
            let (again, next_again) = queue_at(&buffer(size, Some(bytes)));
            let next_again = next_again.unwrap_or(base.wrapping_add(u16::try_from(seen.len()).unwrap()));
            assert_eq!(again.resubmit(), queue.resubmit());
            assert_eq!(next_again, next_avail.unwrap_or(next_again));
        }
        let taken = match next_avail {
            Some(next) => {
                let ahead = next.wrapping_sub(base.wrapping_add(u16::try_from(seen.len()).unwrap()));
                seen.len() + usize::from(ahead)
            }
            None => seen.len(),
        };
        let under_way = queue.resubmit().to_vec();
        let scene =
            Self { size, base, given, seen, queue, under_way, taken, batch: Vec::new(), moments: Vec::new() };
        scene.check();
        scene
    }

    /// Each chain that was given and not answered is taken now or made again, once, in the order in which it was given.
    fn check(&self) {
        let mut open = self.given.clone();
        for head in &self.seen {
            let at = open.iter().position(|given| given == head).unwrap();
            open.remove(at);
        }
        let rest = &self.given[self.taken.min(self.given.len())..];
        let found = [self.queue.resubmit(), rest].concat();
        assert_eq!(found, open, "given {:?}, seen {:?}, taken {}", self.given, self.seen, self.taken);
    }

    fn moment(&mut self) {
        let moment = |bytes| Moment { bytes, given: self.given.len(), seen: self.seen.len() };
        let mut trace = self.queue.region.inner.trace.lock().unwrap();
        let mut moments: Vec<_> = trace.drain(..).map(moment).collect();
        moments.push(moment(self.queue.region.inner.bytes()));
        drop(trace);
        self.moments.append(&mut moments);
    }

    fn step(&mut self, rng: &mut fastrand::Rng) {
        match rng.u8(..6) {
            0 | 1 => self.give(rng),
            2 if self.taken < self.given.len() => {
                let head = self.given[self.taken];
                self.taken += 1;
                self.queue.taken(head);
                self.under_way.push(head);
            }
            3 | 4 if !self.under_way.is_empty() => {
                let head = self.under_way.swap_remove(rng.usize(..self.under_way.len()));
                self.queue.used(head);
                self.batch.push(head);
            }
            5 if !self.batch.is_empty() => {
                self.seen.append(&mut self.batch);
                self.moment();
                self.queue.published(self.base.wrapping_add(u16::try_from(self.seen.len()).unwrap()));
            }
            _ => {}
        }
        self.moment();
    }

    /// A head that is free: its last answer, if there is one, can be seen.
    fn give(&mut self, rng: &mut fastrand::Rng) {
        let count = |list: &[u16], head| list.iter().filter(|&&other| other == head).count();
        let free: Vec<u16> =
            (0..self.size).filter(|&head| count(&self.given, head) == count(&self.seen, head)).collect();
        if !free.is_empty() {
            self.given.push(free[rng.usize(..free.len())]);
        }
    }
}

fn ring(size: u16, base: u16, given: usize, seen: usize) -> RingState {
    let idx = |count: usize| base.wrapping_add(u16::try_from(count).unwrap());
    RingState { size, avail_idx: idx(given), used_idx: idx(seen) }
}

#[test]
fn whoever_is_killed_between_two_stores_leaves_each_chain_used_or_to_be_made_again() {
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut kills = 0;
    for round in 0..12 {
        let size = [1, 2, 8, 16][round % 4];
        let base = [0, 65_530, 300][round % 3];
        let mut scene = Scene::start(size, base, Vec::new(), Vec::new(), None);
        for _ in 0..8 {
            for _ in 0..rng.usize(1..40) {
                scene.step(&mut rng);
            }
            let Scene { given, seen, moments, .. } = scene;
            let start = |moment: &Moment| {
                let (given, seen) = (given[..moment.given].to_vec(), seen[..moment.seen].to_vec());
                Scene::start(size, base, given, seen, Some(&moment.bytes))
            };
            for moment in &moments {
                start(moment);
                kills += 1;
            }
            scene = start(&moments[rng.usize(..moments.len())]);
        }
    }
    println!("{kills} kills");
    assert!(kills > 1000, "{kills}");
}

/// Byte by byte as the specification's C structs.
#[test]
fn the_region_is_the_specification_s() {
    let region = buffer(4, None);
    // Two queues, 64-byte steps; behind them ours.
    assert_eq!(region.inner.layout.stride_bytes(), 128);
    assert_eq!(region.inner.bytes().len(), 2 * 128 + 8 * (8 + 2 * 4 * 2));
    let at = RingState { size: 4, avail_idx: 0, used_idx: 0 };
    let (mut queue, next) = InflightQueue::attach(&region, QUEUE, at).unwrap();
    assert_eq!((queue.resubmit(), next), (&[][..], None));
    for head in [2, 0, 3] {
        queue.taken(head);
    }
    queue.used(3);
    queue.used(2);
    let word = |at: usize| u16::from_le_bytes(region.inner.bytes()[128 + at..][..2].try_into().unwrap());
    let desc = |n: usize| {
        let bytes = &region.inner.bytes()[128 + 16 + 16 * n..][..16];
        (
            bytes[0],
            u16::from_le_bytes([bytes[6], bytes[7]]),
            u64::from_le_bytes(bytes[8..].try_into().unwrap()),
        )
    };
    assert_eq!(region.inner.bytes()[128..136], [0; 8], "features");
    assert_eq!([word(8), word(10), word(12), word(14)], [1, 4, 2, 0], "version, desc_num, batch, used_idx");
    assert_eq!([desc(0), desc(1), desc(2), desc(3)], [(1, 0, 1), (0, 0, 0), (1, 3, 0), (1, 0, 2)]);
    queue.published(2);
    assert_eq!([word(8), word(10), word(12), word(14)], [1, 4, 2, 2]);
    assert_eq!([desc(0).0, desc(2).0, desc(3).0], [1, 0, 0]);
    assert_eq!(region.inner.bytes()[..128], [0; 128], "the other queue's");
    assert_eq!(region.inner.bytes()[256..], [0; 8 * 24], "ours");

    // A head that no descriptor has is not kept.
    queue.taken(4);
    queue.used(4);
    queue.published(3);
    assert_eq!([word(8), word(10), word(12), word(14)], [1, 4, 2, 3]);
}

#[test]
fn a_region_that_can_t_be_the_ring_s_is_cleared() {
    let size = 8;
    let at = RingState { size, avail_idx: 20, used_idx: 15 };
    let good = |touch: &dyn Fn(&InflightQueue)| {
        let region = buffer(size, None);
        let (mut queue, _) = InflightQueue::attach(&region, QUEUE, at).unwrap();
        (0..4).for_each(|head| queue.taken(head));
        touch(&queue);
        let (queue, next) = InflightQueue::attach(&region, QUEUE, at).unwrap();
        (queue.resubmit().to_vec(), next)
    };
    assert_eq!(good(&|_| {}), (vec![0, 1, 2, 3], Some(19)));
    // The guest was reset: its ring begins anew.
    assert_eq!(good(&|queue| queue.store_head(head::USED_IDX, 100)), (vec![], None));
    assert_eq!(good(&|queue| queue.store_head(head::USED_IDX, 6)), (vec![], None));
    // Seven answers more than are known, of a list with a circle in it: only flags go.
    assert_eq!(good(&|queue| queue.store_head(head::USED_IDX, 8)), (vec![1, 2, 3], Some(18)));
    assert_eq!(
        good(&|queue| {
            queue.store_head(head::USED_IDX, 14);
            queue.store_head(head::LAST_BATCH_HEAD, 8);
        }),
        (vec![], None)
    );
    assert_eq!(good(&|queue| queue.store_head(head::DESC_NUM, 16)), (vec![], None));
    assert_eq!(good(&|queue| queue.store_head(head::VERSION, 2)), (vec![], None));
    let more = |queue: &InflightQueue| (4..6).for_each(|head| queue.store_desc(head, desc::INFLIGHT, 1_u8));
    assert_eq!(good(&more), (vec![], None), "six in flight where five were given");
    // What was cleared is as good as new.
    let region = buffer(size, None);
    let (mut queue, _) = InflightQueue::attach(&region, QUEUE, at).unwrap();
    queue.taken(3);
    queue.store_head(head::USED_IDX, 100);
    InflightQueue::attach(&region, QUEUE, at).unwrap();
    let (queue, next) = InflightQueue::attach(&region, QUEUE, at).unwrap();
    assert_eq!((queue.resubmit(), next), (&[][..], Some(15)));
    // A ring that is longer than the region is not kept; a shorter one is.
    assert!(InflightQueue::attach(&region, QUEUE, RingState { size: 16, ..at }).is_none());
    assert!(InflightQueue::attach(&region, 2, at).is_none());
    assert!(InflightQueue::attach(&region, QUEUE, RingState { avail_idx: 17, size: 4, ..at }).is_some());
    // A front-end's reset.
    region.forget();
    assert_eq!(InflightQueue::attach(&region, QUEUE, at).unwrap().1, None);
}

/// Whatever is in the region: heads that exist, none twice, no more than the driver has given.
#[test]
fn a_region_of_garbage_is_survived() {
    let mut rng = fastrand::Rng::with_seed(seed());
    for _ in 0..3000 {
        let size = 1 << rng.u16(0..5);
        let region = buffer(size, None);
        let mut bytes = region.inner.bytes();
        rng.fill(&mut bytes);
        for at in [0, region.inner.layout.stride_bytes()] {
            // Mostly what would be believed.
            if rng.u8(..8) > 0 {
                bytes[at + head::VERSION..][..4].copy_from_slice(&[1, 0, size.to_le_bytes()[0], 0]);
            }
            if rng.bool() {
                bytes[at + head::LAST_BATCH_HEAD..][..4].copy_from_slice(&[rng.u8(..20), 0, rng.u8(..20), 0]);
            }
            for n in 0..usize::from(size) {
                let place = at + QUEUE_HEAD_BYTES + DESC_BYTES * n;
                bytes[place] &= u8::from(rng.bool());
                bytes[place + desc::NEXT..][..2].copy_from_slice(&[rng.u8(..20), 0]);
            }
        }
        let region = buffer(size, Some(&bytes));
        let given = rng.u16(..2 * size);
        let used_idx = rng.u16(..20);
        let at = RingState { size, avail_idx: used_idx.wrapping_add(given), used_idx };
        let (mut queue, next) = InflightQueue::attach(&region, QUEUE, at).unwrap();
        let heads: BTreeSet<u16> = queue.resubmit().iter().copied().collect();
        assert_eq!(heads.len(), queue.resubmit().len());
        assert!(heads.iter().all(|&head| head < size) && heads.len() <= usize::from(given));
        let inflight = u16::try_from(heads.len()).unwrap();
        assert!(next.is_none_or(|next| next == used_idx.wrapping_add(inflight)));
        queue.taken(rng.u16(..));
        queue.used(rng.u16(..));
        queue.published(rng.u16(..));
    }
}

#[test]
fn marks_and_notes_are_kept_where_there_is_room() {
    let (named, fd) = Inflight::create(&asked(2, 4), 2).unwrap();
    let region = Inflight::map(&named, 2, dup(&fd).unwrap(), &alarm()).unwrap();
    assert!(region.has_notes());
    assert_eq!((region.queue_count(), region.queue_size()), (2, 4));
    let mut value = 100;
    let mut each = |act: &mut dyn FnMut(u64)| {
        value += 1;
        act(value);
    };
    for n in 0..INFLIGHT_MARKS {
        each(&mut |value| region.set_mark(n, value));
    }
    for (queue, head, word) in (0..2).flat_map(|q| (0..4).flat_map(move |h| [(q, h, 0), (q, h, 1)])) {
        each(&mut |value| region.set_note(queue, head, word, value));
    }
    // Past the end of each.
    region.set_mark(8, 1);
    region.set_note(2, 0, 0, 1);
    region.set_note(0, 4, 0, 1);
    region.set_note(0, 0, 2, 1);
    assert_eq!([region.mark(8), region.note(2, 0, 0), region.note(0, 4, 0), region.note(0, 0, 2)], [0; 4]);
    // In a row behind the specification's part, which has none of it.
    let mut bytes = vec![0; usize::try_from(named.mmap_size_bytes).unwrap()];
    pread(&fd, &mut bytes, 0).unwrap();
    let (words, _) = bytes.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    assert_eq!(words[..32], [0; 32]);
    assert_eq!(words[32..], (101..=124).collect::<Vec<u64>>());
    assert_eq!((region.mark(7), region.note(1, 3, 1)), (108, 124));

    // The same file, described as another back-end would that keeps no notes.
    let short = InflightRegion { mmap_size_bytes: 256, ..named };
    let region = Inflight::map(&short, 2, fd, &alarm()).unwrap();
    assert!(!region.has_notes());
    region.set_mark(0, 7);
    region.set_note(0, 0, 0, 7);
    assert_eq!((region.mark(0), region.note(0, 0, 0), region.is_inflight(1, 3)), (0, 0, false));
    assert!(InflightQueue::attach(&region, QUEUE, ring(4, 0, 0, 0)).is_some());
}

#[test]
fn a_buffer_is_sealed_and_one_that_can_t_be_is_refused() {
    let (named, fd) = Inflight::create(&asked(4, 256), 4).unwrap();
    assert_eq!(named.mmap_offset_bytes, 0);
    assert!(fcntl_get_seals(&fd).unwrap().contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
    assert!(ftruncate(&fd, 0).is_err());

    let refused = |named: &InflightRegion| {
        Inflight::map(named, 4, dup(&fd).unwrap(), &alarm()).unwrap_err().to_string()
    };
    for (queues, queue_size) in [(0, 8), (5, 8), (1, 0), (1, 32_769), (u16::MAX, u16::MAX)] {
        let named = InflightRegion { queues, queue_size, ..named };
        assert!(Inflight::create(&named, 4).is_err());
        assert!(refused(&named).contains("1 to 4 queues"), "{queues} {queue_size}");
    }
    let size = named.mmap_size_bytes;
    for (mmap_size_bytes, mmap_offset_bytes, said) in [
        (0, 0, "its queues need"),
        (4 * (256 * 16 + 64) - 1, 0, "its queues need"),
        (size + 1, 0, "of its file"),
        (size, 4096, "of its file"),
        (size, u64::MAX - 5, "past the end of any file"),
        (u64::MAX, 1, "past the end of any file"),
        (size - 4, 4, "past the end of any file"),
    ] {
        let error = refused(&InflightRegion { mmap_size_bytes, mmap_offset_bytes, ..named });
        assert!(error.contains(said), "{mmap_size_bytes} at {mmap_offset_bytes}: {error}");
    }
    // Anywhere in a larger file.
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let there = InflightRegion { mmap_offset_bytes: 4096 + 72, ..named };
    let region = Inflight::map(&there, 4, file.try_clone().unwrap().into(), &alarm()).unwrap();
    region.set_mark(0, 0x55);
    let mut found = [0];
    pread(&file, &mut found, 4096 + 72 + 4 * (256 * 16 + 64)).unwrap();
    assert_eq!(found, [0x55]);
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert!(matches!(Inflight::map(&named, 4, reader, &alarm()), Err(InflightError::Kind("pipe"))));
}
