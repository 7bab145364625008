//! Taking a repair back.

use std::io;
use std::path::Path;

use thiserror::Error;
use uuid::Uuid;

use super::kept::{self, Head, Record};
use crate::error::StoreError;
use crate::image::format::{BLOCK_LEN, SUPERBLOCK_OFFSETS_BYTES};
use crate::image::{ImageStore, open_file};
use crate::medium::Medium;

/// Why a repair was not undone. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub enum UndoFault {
    #[error(
        "it is not a file that a repair has kept, or not a whole one: then the repair has changed nothing"
    )]
    NotKept,
    #[error("it has version {found}, and this program knows version {supported}; use a newer program")]
    Version { found: u32, supported: u32 },
    #[error("it is damaged at byte {offset_bytes}: its checksum is wrong")]
    Damaged { offset_bytes: u64 },
    #[error(
        "it has {found_bytes} bytes where it should have {expected_bytes}; it was cut off, perhaps while it was copied"
    )]
    Length { expected_bytes: u64, found_bytes: u64 },
    #[error("what it keeps was taken from another image ({kept}), not from this one")]
    OtherImage { kept: Uuid },
    #[error(
        "the image has been changed since at byte {offset_bytes}; bringing back what was there before the repair would \
         destroy that. If there is a later repair, undo that first"
    )]
    Changed { offset_bytes: u64 },
    #[error(
        "the image has {found_bytes} bytes; the repair has left {after_bytes}, and before it had {before_bytes}"
    )]
    ImageLength { before_bytes: u64, after_bytes: u64, found_bytes: u64 },
}

impl ImageStore {
    /// Makes an image byte for byte what it was before a repair, from the file that the repair has kept. Everything is
    /// checked first: an image that was opened for writing since is left alone. Undone twice it is what it was, too.
    ///
    /// # Errors
    /// Either file is in use or can't be read; [`UndoFault`]; the image can't be written.
    pub fn undo_repair(path: &Path, kept: &Path) -> Result<(), StoreError> {
        let kept = open_file(kept, true)?;
        // Before the image is locked: it may be the same file.
        head_of(&kept)?;
        Self::undo_repair_on(&open_file(path, false)?, &kept)
    }

    /// As [`undo_repair`](Self::undo_repair), on any media; without locks.
    ///
    /// # Errors
    /// As [`undo_repair`](Self::undo_repair).
    pub fn undo_repair_on(medium: &dyn Medium, kept: &dyn Medium) -> Result<(), StoreError> {
        let fault = |name: &str, fault| Err(StoreError::Undo { name: name.to_owned(), fault });
        let comparing = StoreError::io(medium.name(), "comparing it with what a repair has kept");
        let head = head_of(kept)?;
        let checked = check(medium, kept, &head).map_err(comparing)?;
        if let Err(why) = checked {
            let of_kept = matches!(why, UndoFault::Damaged { .. });
            return fault(if of_kept { kept.name() } else { medium.name() }, why);
        }
        let undone = kept::read_records(kept, &head, |record| {
            medium.write_at(&record.before, record.offset_bytes)?;
            Ok(Ok(()))
        });
        let io = |what| StoreError::io(medium.name(), what);
        if let Err(why) = undone.map_err(io("writing what was there before the repair"))? {
            return fault(kept.name(), why);
        }
        if medium.len_bytes().map_err(io("finding the file's length"))? != head.len_before_bytes.get() {
            medium.set_len(head.len_before_bytes.get()).map_err(io("giving the file its former length"))?;
        }
        medium.sync_data().map_err(io("bringing what was there before the repair to the medium"))
    }
}

fn head_of(kept: &dyn Medium) -> Result<Head, StoreError> {
    let name = kept.name();
    let head = kept::read_head(kept).map_err(StoreError::io(name, "reading what a repair has kept"))?;
    head.map_err(|fault| StoreError::Undo { name: name.to_owned(), fault })
}

/// Whether the image is what the repair has left, or what was there before it, or, after a crash, a part of each.
fn check(medium: &dyn Medium, kept: &dyn Medium, head: &Head) -> io::Result<Result<(), UndoFault>> {
    let found_bytes = medium.len_bytes()?;
    let (before_bytes, after_bytes) = (head.len_before_bytes.get(), head.len_after_bytes.get());
    if ![before_bytes, after_bytes].contains(&found_bytes) {
        return Ok(Err(UndoFault::ImageLength { before_bytes, after_bytes, found_bytes }));
    }
    let mut superblock_repaired = [false; 2];
    let mut is_ours = has_uuid(medium, head.uuid)?;
    let records = kept::read_records(kept, head, |record| {
        let changed = changed_at(medium, &record)?;
        for (repaired, offset_bytes) in superblock_repaired.iter_mut().zip(SUPERBLOCK_OFFSETS_BYTES) {
            if record.offset_bytes == offset_bytes && record.after.len() == BLOCK_LEN {
                *repaired = true;
                // Before the repair there may have been no good copy at all.
                is_ours |= changed.is_none();
            }
        }
        Ok(match changed {
            Some(offset_bytes) => Err(UndoFault::Changed { offset_bytes }),
            None => Ok(()),
        })
    })?;
    if !is_ours {
        return Ok(Err(UndoFault::OtherImage { kept: Uuid::from_bytes(head.uuid) }));
    }
    // An opening for writing changes both copies: that, too, is a change since.
    let now = kept::superblocks_crc32c(medium)?;
    for copy in [0, 1] {
        if !superblock_repaired[copy] && now[copy] != head.superblocks_crc32c[copy].get() {
            return Ok(Err(UndoFault::Changed { offset_bytes: SUPERBLOCK_OFFSETS_BYTES[copy] }));
        }
    }
    Ok(records)
}

fn has_uuid(medium: &dyn Medium, uuid: [u8; 16]) -> io::Result<bool> {
    for offset_bytes in SUPERBLOCK_OFFSETS_BYTES {
        let mut found = [0; 16];
        if medium.read_at(&mut found, offset_bytes + 24).is_ok() && found == uuid {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The first place of a record where the image is neither what it was nor what the repair made of it.
fn changed_at(medium: &dyn Medium, record: &Record) -> io::Result<Option<u64>> {
    const SECTOR_LEN: usize = 512;
    let mut now = vec![0; record.before.len()];
    medium.read_at(&mut now, record.offset_bytes)?;
    let sectors =
        now.chunks(SECTOR_LEN).zip(record.before.chunks(SECTOR_LEN)).zip(record.after.chunks(SECTOR_LEN));
    Ok(sectors
        .zip((record.offset_bytes..).step_by(SECTOR_LEN))
        .find(|(((now, before), after), _)| now != before && now != after)
        .map(|(_, at)| at))
}
