//! What the disk must hold: block by block, by who wrote it.

use std::fmt;

pub(crate) const BLOCK_BYTES: usize = 4096;
pub(crate) const BLOCK_SECTORS: u64 = 8;

/// Who wrote a block: no two blocks of a run are written with the same contents.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    /// Which request.
    pub(crate) serial: u64,
    /// Which of its blocks.
    pub(crate) block: u64,
}

/// What a block of the disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Zeros,
    Data(Tag),
}

impl Tag {
    /// The block's bytes: the tag in front, and after it what is the tag's own up to the last byte.
    pub(crate) fn fill(self, block: &mut [u8]) {
        let mut word = self.serial.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.block;
        for (n, bytes) in block.chunks_exact_mut(8).enumerate() {
            let value = match n {
                0 => MAGIC,
                1 => self.serial,
                2 => self.block,
                _ => {
                    word =
                        word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    word
                }
            };
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }
}

const MAGIC: u64 = u64::from_le_bytes(*b"zbdkills");

impl Held {
    /// Whether these are the block's bytes.
    pub(crate) fn is_in(self, found: &[u8]) -> bool {
        match self {
            Held::Zeros => found.iter().all(|byte| *byte == 0),
            Held::Data(tag) => {
                let mut expected = [0; BLOCK_BYTES];
                tag.fill(&mut expected);
                found == expected
            }
        }
    }
}

/// What a block that was found says of itself.
pub(crate) fn describe(found: &[u8]) -> String {
    let word = |n: usize| u64::from_le_bytes(found[8 * n..8 * n + 8].try_into().unwrap());
    let tag = Tag { serial: word(1), block: word(2) };
    match () {
        () if Held::Zeros.is_in(found) => "zeros".into(),
        () if Held::Data(tag).is_in(found) => format!("{tag:?}"),
        () if word(0) == MAGIC => format!("{tag:?}, but not all of it"),
        () => format!("neither zeros nor a block of this run: {:x?}...", &found[..16]),
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} of request {}", self.block, self.serial)
    }
}
