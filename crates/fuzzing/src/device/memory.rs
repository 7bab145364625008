//! A guest's memory beside what it should hold: every byte is foretold, and those behind the regions too.

use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Guest addresses and lengths of the regions, and where they lie in the file. The first two touch, then there is a hole. Each
/// ends in the middle of a page of the file: what is written past its end can be read there.
const REGIONS: [(u64, usize, usize); 3] =
    [(0x1_0000, 0xfe00, 0), (0x1_fe00, 0x7e00, 0x1_0000), (0x4_0000, 0x7e00, 0x1_8000)];

/// Length of the file.
const FILE_LEN: usize = 0x2_0000;

/// What memory is full of that nobody has written to.
const FILL: u8 = 0xdb;

/// The addresses that a fuzzer's number may mean: a little before the first region to a little behind the last one.
pub(super) const ADDRESSES: Range<u64> = 0xf000..0x4_8800;

type Mapping = (Arc<GuestMemoryMmap>, Arc<File>);

thread_local! {
    /// Mapping memory takes longer than most inputs.
    static SPARE: RefCell<Option<Mapping>> = const { RefCell::new(None) };
}

/// The memory, and what it should hold.
pub(super) struct Memory {
    mapping: Mapping,
    /// The file as it should be.
    expected: Vec<u8>,
}

impl Memory {
    pub(super) fn new() -> Self {
        let mapping = SPARE.take().unwrap_or_else(map);
        let expected = vec![FILL; FILE_LEN];
        mapping.1.write_all_at(&expected, 0).unwrap();
        Self { mapping, expected }
    }

    pub(super) fn guest(&self) -> &Arc<GuestMemoryMmap> {
        &self.mapping.0
    }

    /// The driver writes. What lies outside of memory is left out.
    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) {
        for (at, bytes) in self.foretell(at, bytes) {
            self.guest().write_slice(&bytes, GuestAddress(at)).unwrap();
        }
    }

    /// The driver writes a word that the device may look at in this moment.
    pub(super) fn put_word(&mut self, at: u64, word: u16) {
        self.foretell(at, &word.to_le_bytes());
        self.guest().store(word.to_le(), GuestAddress(at), Ordering::Release).unwrap();
    }

    /// The device will write. Returns the parts that lie in memory.
    pub(super) fn foretell(&mut self, at: u64, bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut parts = Vec::new();
        for (base, len, offset) in REGIONS {
            let from = at.max(base);
            let to = at.saturating_add(bytes.len() as u64).min(base + len as u64);
            if from < to {
                let part = &bytes[index(from - at)..index(to - at)];
                let place = offset + index(from - base);
                self.expected[place..place + part.len()].copy_from_slice(part);
                parts.push((from, part.to_vec()));
            }
        }
        parts
    }

    /// What should be there; `None` if a part of it is not in memory.
    pub(super) fn get(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let here = at.checked_add(bytes.len() as u64)?;
            let (base, region_len, offset) =
                REGIONS.into_iter().find(|(base, len, _)| (*base..base + *len as u64).contains(&here))?;
            let inside = index(here - base);
            let part = (region_len - inside).min(len - bytes.len());
            bytes.extend_from_slice(&self.expected[offset + inside..offset + inside + part]);
        }
        Some(bytes)
    }

    /// Whether all of it lies in memory.
    pub(super) fn holds(&self, at: u64, len: u64) -> bool {
        let mut at = at;
        let Some(end) = at.checked_add(len) else { return false };
        while at < end {
            let region = REGIONS.iter().find(|(base, len, _)| (*base..base + *len as u64).contains(&at));
            let Some((base, len, _)) = region else { return false };
            at = base + *len as u64;
        }
        true
    }

    /// Whether all of it lies in one region.
    pub(super) fn holds_in_one(&self, at: u64, len: u64) -> bool {
        REGIONS.iter().any(|&(base, region_len, _)| {
            at >= base && at.checked_add(len).is_some_and(|end| end <= base + region_len as u64)
        })
    }

    /// A word as the device has written it.
    pub(super) fn load(&self, at: u64) -> u16 {
        u16::from_le(self.guest().load(GuestAddress(at), Ordering::Acquire).unwrap())
    }

    /// Whatever is there now is right, as far as it lies in memory.
    pub(super) fn adopt(&mut self, at: u64, len: u64) {
        for (place, len) in places(at, len) {
            self.mapping.1.read_exact_at(&mut self.expected[place..place + len], place as u64).unwrap();
        }
    }

    /// Whatever is in memory now is right; behind the regions it is not.
    pub(super) fn adopt_all(&mut self) {
        for (base, len, _) in REGIONS {
            self.adopt(base, len as u64);
        }
    }

    /// Panics with the first byte that is not as it should be. In `free`, addresses and lengths, it may be any.
    #[track_caller]
    pub(super) fn check(&mut self, free: &[(u64, u64)]) {
        let mut found = vec![0; FILE_LEN];
        self.mapping.1.read_exact_at(&mut found, 0).unwrap();
        for (place, len) in free.iter().flat_map(|(at, len)| places(*at, *len)) {
            self.expected[place..place + len].copy_from_slice(&found[place..place + len]);
        }
        if found == self.expected {
            return;
        }
        let place = found.iter().zip(&self.expected).position(|(found, expected)| found != expected).unwrap();
        let (was, is) = (self.expected[place], found[place]);
        let (base, len, offset) = *REGIONS.iter().rfind(|(_, _, offset)| *offset <= place).unwrap();
        let at = base + (place - offset) as u64;
        let part = if place - offset < len { "guest memory" } else { "behind a region of guest memory" };
        panic!("{part} at {at:#x} should be {was:#x} and is {is:#x}");
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            SPARE.set(Some(self.mapping.clone()));
        }
    }
}

/// Where a range of guest addresses lies in the file, as far as it is in memory: offsets and lengths.
fn places(at: u64, len: u64) -> impl Iterator<Item = (usize, usize)> {
    REGIONS.into_iter().filter_map(move |(base, region_len, offset)| {
        let from = at.max(base);
        let to = at.saturating_add(len).min(base + region_len as u64);
        (from < to).then(|| (offset + index(from - base), index(to - from)))
    })
}

fn map() -> Mapping {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, FILE_LEN as u64).unwrap();
    let file = Arc::new(File::from(file));
    let ranges = REGIONS.map(|(base, len, offset)| {
        (GuestAddress(base), len, Some(FileOffset::from_arc(Arc::clone(&file), offset as u64)))
    });
    (Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap()), file)
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap()
}
