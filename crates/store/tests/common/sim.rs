//! A medium whose power can be cut: what was not synced may be lost, in any part.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use virtio_zbd_store::{LiveWords, Medium};

const SECTOR: usize = 512;

/// The medium. It outlives the stores that are opened on it, as a file outlives a process.
pub struct SimMedium(Mutex<Sim>);

struct Sim {
    /// What every reader sees: the page cache.
    cache: Vec<u8>,
    /// What is surely on the medium.
    durable: Vec<u8>,
    /// What was done since the last sync.
    pending: Vec<Change>,
    live: Option<(u64, Arc<[AtomicU64]>)>,
    /// After this many more calls that change something nothing happens any more: the process is dead.
    calls_left: Option<u64>,
    /// How many more syncs succeed before one fails.
    syncs_left: Option<u64>,
    /// How many more writes succeed before one fails.
    writes_left: Option<u64>,
    punch_supported: bool,
    rng: fastrand::Rng,
    pub syncs: u64,
}

#[derive(Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Punch(Range<usize>),
}

impl Change {
    fn sectors(&self) -> Vec<Range<usize>> {
        let range = match self {
            Self::Write { at, bytes } => *at..*at + bytes.len(),
            Self::Punch(range) => range.clone(),
        };
        let mut parts = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = ((at / SECTOR + 1) * SECTOR).min(range.end);
            parts.push(at..end);
            at = end;
        }
        parts
    }

    fn apply(&self, to: &mut [u8], part: Range<usize>) {
        match self {
            Self::Write { at, bytes } => {
                to[part.clone()].copy_from_slice(&bytes[part.start - at..part.end - at])
            }
            Self::Punch(_) => to[part].fill(0),
        }
    }
}

impl SimMedium {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Sim {
            cache: Vec::new(),
            durable: Vec::new(),
            pending: Vec::new(),
            live: None,
            calls_left: None,
            syncs_left: None,
            writes_left: None,
            punch_supported: true,
            rng: fastrand::Rng::with_seed(seed),
            syncs: 0,
        })))
    }

    fn sim(&self) -> std::sync::MutexGuard<'_, Sim> {
        self.0.lock().unwrap()
    }

    /// From the `calls`-th call that changes something on, the process does nothing any more.
    pub fn die_after(&self, calls: u64) {
        self.sim().calls_left = Some(calls);
    }

    /// Whether [`die_after`](Self::die_after) has come to its end.
    pub fn is_dead(&self) -> bool {
        self.sim().calls_left == Some(0)
    }

    /// The sync after `syncs` more fails: what was to be synced is on the medium or not, and is forgotten.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.sim().syncs_left = Some(syncs);
    }

    /// The write after `writes` more fails, half done; `None`: none does.
    pub fn fail_write_after(&self, writes: Option<u64>) {
        self.sim().writes_left = writes;
    }

    pub fn forbid_punching(&self) {
        self.sim().punch_supported = false;
    }

    /// How many syncs there were.
    pub fn syncs(&self) -> u64 {
        self.sim().syncs
    }

    /// A new process comes: it sees all that the old one did.
    pub fn revive(&self) {
        let mut sim = self.sim();
        sim.calls_left = None;
        sim.syncs_left = None;
    }

    /// The machine stops and starts again: of what was not synced any sectors are there and the others not.
    pub fn cut_power(&self) {
        let mut sim = self.sim();
        let pending = std::mem::take(&mut sim.pending);
        sim.write_back(pending);
        // The words are written back whenever the kernel likes: nobody may rely on any of them.
        if let Some((at, words)) = sim.live.take() {
            let at = usize::try_from(at).unwrap();
            let range = at..at + words.len() * 8;
            let sim = &mut *sim;
            for byte in &mut sim.durable[range] {
                *byte = if sim.rng.bool() { sim.rng.u8(..) } else { 0 };
            }
        }
        sim.cache = sim.durable.clone();
        sim.calls_left = None;
        sim.syncs_left = None;
    }

    /// A medium that has what this one has synced: as after a power cut in which nothing else got through.
    pub fn synced_copy(&self) -> Arc<Self> {
        let copy = Self::new(1);
        let durable = self.sim().durable.clone();
        let mut sim = copy.sim();
        sim.cache = durable.clone();
        sim.durable = durable;
        drop(sim);
        copy
    }

    /// All bytes, as a reader sees them.
    pub fn bytes(&self) -> Vec<u8> {
        let mut sim = self.sim();
        sim.fold_live();
        sim.cache.clone()
    }

    /// Changes bytes behind everybody's back.
    pub fn damage(&self, at: usize, change: impl FnOnce(&mut [u8])) {
        let mut sim = self.sim();
        sim.fold_live();
        change(&mut sim.cache[at..]);
        sim.durable = sim.cache.clone();
        sim.pending.clear();
        sim.live = None;
    }
}

impl Sim {
    /// Some of the sectors of the changes, in their order.
    fn write_back(&mut self, pending: Vec<Change>) {
        // A whole cut may lose nothing, or everything, or a part of each.
        let keep = [0.0, 0.5, 0.5, 0.9, 1.0][self.rng.usize(..5)];
        for change in pending {
            let torn = self.rng.u8(..4) == 0;
            let all = self.rng.f64() < keep;
            for part in change.sectors() {
                let kept = if torn { self.rng.bool() } else { all };
                if kept {
                    change.apply(&mut self.durable, part);
                }
            }
        }
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        let last_breath = match &mut self.calls_left {
            Some(0) => return Err(dead()),
            Some(left) => {
                *left -= 1;
                *left == 0
            }
            None => false,
        };
        let is_write = matches!(change, Change::Write { .. });
        let failing = is_write && self.writes_left == Some(0);
        if is_write {
            self.writes_left = self.writes_left.and_then(|left| left.checked_sub(1));
        }
        let mut parts = change.sectors();
        if last_breath || failing {
            // The process dies in the middle of this call, or the call does.
            parts.truncate(self.rng.usize(..=parts.len()));
        }
        for part in &parts {
            change.apply(&mut self.cache, part.clone());
        }
        self.fold_into_live(&change, &parts);
        if let (Some(first), Some(last)) = (parts.first(), parts.last()) {
            let done = first.start..last.end;
            self.pending.push(match change {
                Change::Write { bytes, .. } => {
                    Change::Write { at: done.start, bytes: bytes[..done.len()].to_vec() }
                }
                Change::Punch(_) => Change::Punch(done),
            });
        }
        match failing {
            _ if last_breath => Err(dead()),
            true => Err(io::Error::from_raw_os_error(28)),
            false => Ok(()),
        }
    }

    /// Brings the cache up to what the words say.
    fn fold_live(&mut self) {
        if let Some((at, words)) = &self.live {
            let at = usize::try_from(*at).unwrap();
            for (index, word) in words.iter().enumerate() {
                let bytes = word.load(Ordering::SeqCst).to_ne_bytes();
                self.cache[at + 8 * index..at + 8 * index + 8].copy_from_slice(&bytes);
            }
        }
    }

    /// Brings the words up to what was written over them.
    fn fold_into_live(&mut self, change: &Change, parts: &[Range<usize>]) {
        let (Some((at, words)), Some(first), Some(last)) = (&self.live, parts.first(), parts.last()) else {
            return;
        };
        let at = usize::try_from(*at).unwrap();
        for (index, word) in words.iter().enumerate() {
            let place = at + 8 * index;
            if place >= first.start && place + 8 <= last.end {
                let mut bytes = [0; 8];
                match change {
                    Change::Write { at, bytes: all } => {
                        bytes.copy_from_slice(&all[place - at..place - at + 8])
                    }
                    Change::Punch(_) => {}
                }
                word.store(u64::from_ne_bytes(bytes), Ordering::SeqCst);
            }
        }
    }
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

impl Medium for SimMedium {
    fn name(&self) -> &str {
        "simulated medium"
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.sim().cache.len() as u64)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.sim().cache.chunks(SECTOR).filter(|sector| sector.iter().any(|&b| b != 0)).count() as u64
            * 512)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        let mut sim = self.sim();
        let len = usize::try_from(len_bytes).unwrap();
        sim.cache.resize(len, 0);
        sim.durable.resize(len, 0);
        Ok(())
    }

    fn allocate(&self, _: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn read_at(&self, into: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let mut sim = self.sim();
        sim.fold_live();
        let at = usize::try_from(offset_bytes).unwrap();
        let from = sim.cache.get(at..at + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn write_at(&self, from: &[u8], offset_bytes: u64) -> io::Result<()> {
        let at = usize::try_from(offset_bytes).unwrap();
        let mut sim = self.sim();
        assert!(at + from.len() <= sim.cache.len(), "a write past the end would grow the file");
        sim.change(Change::Write { at, bytes: from.to_vec() })
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut sim = self.sim();
        match &mut sim.calls_left {
            Some(0) => return Err(dead()),
            Some(left) => {
                *left -= 1;
                if *left == 0 {
                    // Died in the middle of it: some of it is synced, as a power cut would show.
                    return Err(dead());
                }
            }
            None => {}
        }
        sim.syncs += 1;
        let pending = std::mem::take(&mut sim.pending);
        match &mut sim.syncs_left {
            Some(0) => {
                // Linux marks the pages as clean although they are not on the medium. Holes are in the file
                // system's journal: it does not forget them.
                let (writes, punches) = pending
                    .into_iter()
                    .partition::<Vec<_>, _>(|change| matches!(change, Change::Write { .. }));
                sim.write_back(writes);
                sim.pending = punches;
                sim.syncs_left = None;
                return Err(io::Error::from_raw_os_error(5));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        for change in pending {
            for part in change.sectors() {
                change.apply(&mut sim.durable, part);
            }
        }
        Ok(())
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        let mut sim = self.sim();
        if !sim.punch_supported {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        sim.change(Change::Punch(range))
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        let sim = self.sim();
        let is_data = |sector: u64| {
            let at = usize::try_from(sector).unwrap() * SECTOR;
            sim.cache[at..(at + SECTOR).min(sim.cache.len())].iter().any(|&byte| byte != 0)
        };
        let sectors = range.start / 512..range.end.div_ceil(512);
        let Some(first) = sectors.clone().find(|&sector| is_data(sector)) else { return Ok(None) };
        let end = (first..sectors.end).find(|&sector| !is_data(sector)).unwrap_or(sectors.end);
        Ok(Some((first * 512).max(range.start)..(end * 512).min(range.end)))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn map_words(&self, offset_bytes: u64, count: usize) -> io::Result<LiveWords> {
        let mut sim = self.sim();
        if sim.calls_left == Some(0) {
            return Err(dead());
        }
        sim.fold_live();
        let at = usize::try_from(offset_bytes).unwrap();
        let word = |index: usize| {
            u64::from_ne_bytes(sim.cache[at + 8 * index..at + 8 * index + 8].try_into().unwrap())
        };
        let words: Arc<[AtomicU64]> = (0..count).map(|index| AtomicU64::new(word(index))).collect();
        sim.live = Some((offset_bytes, Arc::clone(&words)));
        Ok(LiveWords::shared(words))
    }
}
