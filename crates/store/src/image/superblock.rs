//! The two copies of the superblock: reading, choosing, and writing one after the other.

use std::io;

use uuid::Uuid;

use super::fault::ImageFault;
use super::format::{
    BLOCK_LEN, BLOCK_LEN_BYTES, BOOT_ID_IN_DOUBT, MAGIC, SUPERBLOCK_OFFSETS_BYTES, Superblock, Unusable,
    VERSION,
};
use crate::error::StoreError;
use crate::medium::Medium;

/// The superblock that counts, and where it was found.
pub(super) struct Superblocks {
    pub(super) current: Superblock,
    /// The copy that is written last, because it is the one that is surely good.
    good_copy: usize,
}

impl Superblocks {
    /// For a new image: both copies are still to be written.
    pub(super) fn new(superblock: Superblock) -> Self {
        Self { current: superblock, good_copy: 1 }
    }

    /// Reads both copies and takes the newer one that is whole. Writes nothing.
    ///
    /// A copy that can't be read is as good as damaged: the power may have failed while it was written.
    pub(super) fn read(medium: &dyn Medium) -> Result<Self, StoreError> {
        let name = medium.name();
        let io = |what| StoreError::io(name, what);
        let fault = |fault| StoreError::Image { name: name.to_owned(), fault };
        let len_bytes = medium.len_bytes().map_err(io("finding the file's length"))?;
        let mut blocks = [[0u8; BLOCK_LEN]; 2];
        let mut failures = [None, None];
        for ((block, failure), offset) in blocks.iter_mut().zip(&mut failures).zip(SUPERBLOCK_OFFSETS_BYTES) {
            // Of a short file, what there is: it says whether this was an image once.
            let there = len_bytes.saturating_sub(offset).min(BLOCK_LEN_BYTES);
            let there = usize::try_from(there).unwrap_or(block.len());
            *failure = medium.read_at(&mut block[..there], offset).err();
        }
        let failures = match failures {
            [Some(first), Some(_)] => return Err(io("reading the superblock")(first)),
            failures => failures.map(|failure| failure.as_ref().map(Unusable::unreadable)),
        };
        if failures == [None; 2] && !blocks.iter().any(|block| block.starts_with(&MAGIC)) {
            return Err(fault(ImageFault::NotAnImage { found: beginning(&blocks[0], len_bytes) }));
        }
        let least_bytes = SUPERBLOCK_OFFSETS_BYTES[1] + BLOCK_LEN_BYTES;
        if len_bytes < least_bytes {
            return Err(fault(ImageFault::TooShort { expected_bytes: least_bytes, found_bytes: len_bytes }));
        }
        let [first, second] = failures;
        let parse = |block: &[u8], failure: Option<Unusable>| match failure {
            Some(why) => Err(why),
            None => Superblock::parse(block),
        };
        let (current, good_copy) = match [parse(&blocks[0], first), parse(&blocks[1], second)] {
            [Ok(first), Ok(second)] if first.uuid != second.uuid => {
                let [first, second] = [first, second].map(|copy| Uuid::from_bytes(copy.uuid).to_string());
                return Err(fault(ImageFault::TwoImages { first, second }));
            }
            [Ok(first), Ok(second)] if first.sequence.get() < second.sequence.get() => (second, 1),
            [Ok(first), Ok(_)] => (first, 0),
            [Ok(first), Err(why)] => {
                warn_of_copy(name, 1, why);
                (first, 0)
            }
            [Err(why), Ok(second)] => {
                warn_of_copy(name, 0, why);
                (second, 1)
            }
            [Err(first), Err(second)] => {
                let (first, second) = (first.to_string(), second.to_string());
                return Err(fault(ImageFault::Superblock { first, second }));
            }
        };
        match current.version.get() {
            VERSION => Ok(Self { current, good_copy }),
            found => Err(fault(ImageFault::Version { found, supported: VERSION })),
        }
    }

    /// Changes the superblock and brings it to the medium: one copy, then the other, the good one last, so
    /// that one is whole whenever the power fails. Bytes that this version does not know are kept.
    ///
    /// After an error the change may be there or not; a later opening in this boot sees it if the first copy
    /// could be written at all.
    pub(super) fn write(
        &mut self,
        medium: &dyn Medium,
        change: impl FnOnce(&mut Superblock),
    ) -> io::Result<()> {
        let mut next = self.current.clone();
        next.sequence = (next.sequence.get() + 1).into();
        change(&mut next);
        for copy in [1 - self.good_copy, self.good_copy] {
            medium.write_at(next.seal(), SUPERBLOCK_OFFSETS_BYTES[copy])?;
            medium.sync_data()?;
            // Should the other one fail, this is the one that is surely good, and what is written next is newer.
            self.good_copy = copy;
            self.current.sequence = next.sequence;
        }
        self.current = next;
        Ok(())
    }

    /// Notes that a sync has failed, as well as that can be done on a medium that fails.
    pub(super) fn mark_in_doubt(&mut self, medium: &dyn Medium) {
        let marked = self.write(medium, |superblock| superblock.live_boot_id = BOOT_ID_IN_DOUBT);
        if let Err(error) = marked {
            // It is in the page cache at least: enough for as long as the live area could be believed.
            log::warn!(
                "{}: the mark that a sync has failed may not be on the medium: {error}",
                medium.name()
            );
        }
    }
}

/// Whether a file is an image, or was one before something else was written over a part of it.
pub(crate) fn is_image(medium: &dyn Medium, len_bytes: u64) -> io::Result<bool> {
    for offset in SUPERBLOCK_OFFSETS_BYTES {
        let mut magic = [0; MAGIC.len()];
        if offset + MAGIC.len() as u64 <= len_bytes {
            medium.read_at(&mut magic, offset)?;
            if magic == MAGIC {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn warn_of_copy(name: &str, copy: usize, why: Unusable) {
    let offset = SUPERBLOCK_OFFSETS_BYTES[copy];
    log::warn!(
        "{name}: the superblock copy at byte {offset} {why}; the other copy is used, and repairs it when the \
         image is next opened for writing"
    );
}

/// How a file begins, for a message.
fn beginning(block: &[u8], len_bytes: u64) -> String {
    let shown = usize::try_from(len_bytes).unwrap_or(8).min(8);
    match &block[..shown.min(block.len())] {
        [] => "nothing, it is empty".to_owned(),
        bytes => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
    }
}
