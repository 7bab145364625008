//! A process that is killed: its threads stop for good, each at some step, and what it shared with others stays as it is.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use virtio_zbd_device::{InflightBuffer, InflightLog};
use virtio_zbd_store::{FileMedium, LiveWords, Medium};

/// When a life ends: at the n-th step that leaves something behind, whichever thread makes it. The others end at their next step.
pub(crate) struct Death {
    left: AtomicI64,
    dead: AtomicBool,
    /// Where threads lose time, so that they overtake each other.
    noise: AtomicU64,
}

impl Death {
    pub(crate) fn after(steps: i64, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicI64::new(steps),
            dead: AtomicBool::new(false),
            noise: AtomicU64::new(seed),
        })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    pub(crate) fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// A step before which the process may die.
    pub(crate) fn step(&self) {
        if !self.lives() {
            end_thread();
        }
    }

    /// The same, where a thread has to go on to tell others that it can't do anything: it does nothing that stays.
    fn lives(&self) -> bool {
        if self.is_dead() {
            return false;
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 1 {
            self.kill();
            return false;
        }
        match self.lot() {
            0..8 => thread::sleep(Duration::from_micros(50)),
            8..64 => thread::yield_now(),
            _ => {}
        }
        true
    }

    /// 0 to 255.
    fn lot(&self) -> u64 {
        let noise = self.noise.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        (noise ^ noise >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56
    }
}

/// Nothing of the thread's own is left but its stack, which goes without doing anything that others could see.
fn end_thread() -> ! {
    resume_unwind(Box::new("killed"))
}

/// A file in memory that outlives the process.
pub(crate) struct MortalMedium {
    pub(crate) inner: Arc<FileMedium>,
    pub(crate) death: Arc<Death>,
    /// Some writes that touch these bytes of the file fail, with half of them done.
    pub(crate) failing: Range<u64>,
}

/// The file.
pub(crate) fn new_file() -> Arc<FileMedium> {
    let memfd = memfd_create("image", MemfdFlags::CLOEXEC).unwrap();
    Arc::new(FileMedium::new(File::from(memfd), Path::new("the image")))
}

impl MortalMedium {
    /// The process may die here. The committer's thread must not end without its answers: it gets an error, and
    /// nothing is done.
    fn step(&self) -> io::Result<()> {
        match self.death.lives() {
            true => Ok(()),
            false if thread::current().name() == Some("commit") => Err(io::Error::other("killed")),
            false => end_thread(),
        }
    }
}

impl Medium for MortalMedium {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.inner.len_bytes()
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.inner.allocated_bytes()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.step()?;
        self.inner.set_len(len_bytes)
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.step()?;
        self.inner.allocate(range)
    }

    fn read_at(&self, into: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        self.inner.read_at(into, offset_bytes)
    }

    fn write_at(&self, from: &[u8], offset_bytes: u64) -> io::Result<()> {
        let half = from.len() / 2;
        self.step()?;
        self.inner.write_at(&from[..half], offset_bytes)?;
        self.step()?;
        if self.failing.contains(&offset_bytes) && self.death.lot() < 40 {
            return Err(io::Error::other("the test wants it so"));
        }
        self.inner.write_at(&from[half..], offset_bytes + half as u64)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.step()
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        self.step()?;
        self.inner.punch_hole(range)
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(range)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn map_words(&self, offset_bytes: u64, count: usize) -> io::Result<LiveWords> {
        self.inner.map_words(offset_bytes, count)
    }
}

/// A front-end's buffer: the specification's words and the device's. It outlives the process; clones are the same.
#[derive(Clone)]
pub(crate) struct Kept {
    words: Arc<[AtomicU64]>,
    queues: u16,
    size: u16,
}

/// The words of one descriptor: whether it is in flight, its counter, the next of its batch, and the note.
const DESC_WORDS: usize = 5;
/// Eight marks; the words of each queue are behind them: used index, head of the last batch, whether it was started.
const QUEUE_WORDS: usize = 3;

impl Kept {
    pub(crate) fn new(queues: u16, size: u16) -> Self {
        let count = 8 + usize::from(queues) * (QUEUE_WORDS + DESC_WORDS * usize::from(size));
        Self { words: (0..count).map(|_| AtomicU64::new(0)).collect(), queues, size }
    }

    fn queue_at(&self, queue: u16, word: usize) -> &AtomicU64 {
        let one = QUEUE_WORDS + DESC_WORDS * usize::from(self.size);
        &self.words[8 + usize::from(queue) * one + word]
    }

    fn desc_at(&self, queue: u16, head: u16, word: usize) -> &AtomicU64 {
        self.queue_at(queue, QUEUE_WORDS + DESC_WORDS * usize::from(head) + word)
    }

    /// A queue is started, its ring's used index where it is: what is to be made again, oldest first.
    pub(crate) fn log(&self, queue: u16, used_idx: u16, death: &Arc<Death>) -> Log {
        let get = |word: &AtomicU64| word.load(Ordering::SeqCst);
        if get(self.queue_at(queue, 2)) == 0 {
            self.queue_at(queue, 0).store(used_idx.into(), Ordering::SeqCst);
            self.queue_at(queue, 2).store(1, Ordering::SeqCst);
        }
        let known = u16::try_from(get(self.queue_at(queue, 0))).unwrap();
        let mut head = get(self.queue_at(queue, 1));
        for _ in 0..used_idx.wrapping_sub(known) {
            let at = u16::try_from(head).unwrap();
            self.desc_at(queue, at, 0).store(0, Ordering::SeqCst);
            head = get(self.desc_at(queue, at, 2));
        }
        self.queue_at(queue, 0).store(used_idx.into(), Ordering::SeqCst);
        let mut open: Vec<(u64, u16)> = (0..self.size)
            .filter(|&head| get(self.desc_at(queue, head, 0)) != 0)
            .map(|head| (get(self.desc_at(queue, head, 1)), head))
            .collect();
        open.sort_unstable();
        let counter = open.last().map_or(0, |last| last.0 + 1);
        let resubmit = open.into_iter().map(|(_, head)| head).collect();
        Log { kept: self.clone(), death: Arc::clone(death), queue, resubmit, counter, batch: Vec::new() }
    }
}

/// A process's way to the buffer.
pub(crate) struct Shown(pub(crate) Kept, pub(crate) Arc<Death>);

impl InflightBuffer for Shown {
    fn queue_count(&self) -> u16 {
        self.0.queues
    }

    fn queue_size(&self) -> u16 {
        self.0.size
    }

    fn mark(&self, index: usize) -> u64 {
        self.0.words[..8][index].load(Ordering::SeqCst)
    }

    fn set_mark(&self, index: usize, value: u64) {
        self.1.step();
        self.0.words[..8][index].store(value, Ordering::SeqCst);
    }

    fn is_inflight(&self, queue: u16, head: u16) -> bool {
        self.0.desc_at(queue, head, 0).load(Ordering::SeqCst) != 0
    }

    fn note(&self, queue: u16, head: u16, word: usize) -> u64 {
        assert!(word < 2);
        self.0.desc_at(queue, head, 3 + word).load(Ordering::SeqCst)
    }

    fn set_note(&self, queue: u16, head: u16, word: usize, value: u64) {
        assert!(word < 2);
        self.1.step();
        self.0.desc_at(queue, head, 3 + word).store(value, Ordering::SeqCst);
    }
}

/// One queue's part.
pub(crate) struct Log {
    kept: Kept,
    death: Arc<Death>,
    queue: u16,
    resubmit: Vec<u16>,
    counter: u64,
    batch: Vec<u16>,
}

impl Log {
    pub(crate) fn resubmitted(&self) -> usize {
        self.resubmit.len()
    }

    fn set(&self, place: &AtomicU64, value: u64) {
        self.death.step();
        place.store(value, Ordering::SeqCst);
    }
}

impl InflightLog for Log {
    fn resubmit(&self) -> Vec<u16> {
        self.resubmit.clone()
    }

    fn taken(&mut self, head: u16) {
        self.set(self.kept.desc_at(self.queue, head, 1), self.counter);
        self.counter += 1;
        self.set(self.kept.desc_at(self.queue, head, 0), 1);
    }

    fn used(&mut self, head: u16) {
        let last = self.kept.queue_at(self.queue, 1).load(Ordering::SeqCst);
        self.set(self.kept.desc_at(self.queue, head, 2), last);
        self.set(self.kept.queue_at(self.queue, 1), head.into());
        self.batch.push(head);
    }

    fn published(&mut self, used_idx: u16) {
        for head in std::mem::take(&mut self.batch) {
            self.set(self.kept.desc_at(self.queue, head, 0), 0);
        }
        self.set(self.kept.queue_at(self.queue, 0), used_idx.into());
    }

    fn mark(&self, index: usize) -> u64 {
        Shown(self.kept.clone(), Arc::clone(&self.death)).mark(index)
    }

    fn note(&self, head: u16, word: usize) -> u64 {
        Shown(self.kept.clone(), Arc::clone(&self.death)).note(self.queue, head, word)
    }

    fn set_note(&self, head: u16, word: usize, value: u64) {
        Shown(self.kept.clone(), Arc::clone(&self.death)).set_note(self.queue, head, word, value);
    }
}
