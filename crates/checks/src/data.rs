//! Bytes that no two sectors share, and what is where.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use crate::peer::Unwritten;
use crate::random::mix;
use crate::rig::{Outcome, Stop};

pub(crate) const SECTOR_LEN_BYTES: usize = 512;

/// Makes data. Each sector of it has a number of its own, from which all of its bytes follow.
pub(crate) struct Source {
    next: u32,
}

/// Some sectors of data, numbered on from `first`.
pub(crate) struct Piece {
    pub(crate) first: u32,
    pub(crate) bytes: Vec<u8>,
}

impl Source {
    pub(crate) fn new() -> Self {
        Self { next: 1 }
    }

    /// `sectors` sectors that are like no others before.
    pub(crate) fn piece(&mut self, sectors: u64) -> Piece {
        let mut bytes = vec![0; len_bytes(sectors)];
        let first = self.next;
        for sector in bytes.chunks_exact_mut(SECTOR_LEN_BYTES) {
            fill(self.next, sector);
            // After 2 TiB numbers come again; 0 stands for zeros.
            self.next = self.next.checked_add(1).unwrap_or(1);
        }
        Piece { first, bytes }
    }
}

/// What is known of the disk's contents: the number of each sector that was written, 0 where zeros were. All others are
/// unwritten.
pub(crate) struct Contents {
    numbers: BTreeMap<u64, u32>,
    unwritten: Unwritten,
}

impl Contents {
    pub(crate) fn new(unwritten: Unwritten) -> Self {
        Self { numbers: BTreeMap::new(), unwritten }
    }

    /// `piece` was written at `sector`.
    pub(crate) fn write(&mut self, sector: u64, piece: &Piece) {
        let mut number = piece.first;
        for at in 0..sectors(&piece.bytes) {
            self.numbers.insert(sector + at, number);
            number = number.checked_add(1).unwrap_or(1);
        }
    }

    /// Sectors became zeros.
    pub(crate) fn zero(&mut self, sector: u64, sectors: u64) {
        self.numbers.extend((sector..sector + sectors).map(|sector| (sector, 0)));
    }

    /// Sectors became unwritten.
    pub(crate) fn forget(&mut self, sector: u64, sectors: u64) {
        let mut behind = self.numbers.split_off(&sector);
        self.numbers.append(&mut behind.split_off(&(sector + sectors)));
    }

    /// Whether `bytes` are what must be at `sector`.
    pub(crate) fn check(&self, sector: u64, bytes: &[u8]) -> Outcome {
        for (at, found) in (sector..).zip(bytes.chunks_exact(SECTOR_LEN_BYTES)) {
            let expected = self.numbers.get(&at).copied();
            let may_be_ones = expected.is_none() && self.unwritten == Unwritten::ZerosOrOnes;
            let ones = may_be_ones && found.iter().all(|byte| *byte == u8::MAX);
            if !ones && !is(expected.unwrap_or(0), found) {
                return Err(differs(at, expected, found));
            }
        }
        Ok(())
    }

    /// As [`check`](Self::check), but each sector may also be zeros.
    pub(crate) fn check_or_zeros(&self, sector: u64, bytes: &[u8]) -> Outcome {
        for (at, found) in (sector..).zip(bytes.chunks_exact(SECTOR_LEN_BYTES)) {
            if !is(0, found) {
                self.check(at, found)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn len_bytes(sectors: u64) -> usize {
    usize::try_from(sectors).unwrap_or(usize::MAX).saturating_mul(SECTOR_LEN_BYTES)
}

pub(crate) fn sectors(bytes: &[u8]) -> u64 {
    (bytes.len() / SECTOR_LEN_BYTES) as u64
}

/// The bytes of sector number `number`; zeros for 0.
fn fill(number: u32, sector: &mut [u8]) {
    let key = if number == 0 { 0 } else { mix(number.into()) | 1 };
    let mut word = key;
    for bytes in sector.chunks_exact_mut(8) {
        bytes.copy_from_slice(&word.to_le_bytes());
        word = word.wrapping_add(key);
    }
}

fn is(number: u32, found: &[u8]) -> bool {
    let mut expected = [0; SECTOR_LEN_BYTES];
    fill(number, &mut expected);
    found == expected
}

fn differs(sector: u64, expected: Option<u32>, found: &[u8]) -> Stop {
    let mut bytes = [0; SECTOR_LEN_BYTES];
    fill(expected.unwrap_or(0), &mut bytes);
    let at = bytes.iter().zip(found).position(|(expected, found)| expected != found).unwrap_or(0);
    let some =
        |bytes: &[u8]| format!("{:02x?}", bytes.get(at..(at + 8).min(bytes.len())).unwrap_or_default());
    let kind = match expected {
        None => "an unwritten sector",
        Some(0) => "zeros",
        Some(_) => "what was written",
    };
    Stop::Failed(format!(
        "sector {sector}, byte {at}: expected {kind}, {}; found {}",
        some(&bytes),
        some(found)
    ))
}
