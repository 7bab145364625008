//! The file in which a repair keeps what it changes. `docs/reliability.md` gives its bytes.

use std::io;
use std::mem::size_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::repair::{Change, Plan};
use super::undo::UndoFault;
use crate::image::format::{BLOCK_LEN, BLOCK_LEN_BYTES, SUPERBLOCK_OFFSETS_BYTES, checksum};
use crate::medium::Medium;

const MAGIC: [u8; 8] = *b"VZBDRPR\x1a";
const VERSION: u32 = 1;

/// The most that one record holds of the image.
const RECORD_LEN_MAX: u64 = 1 << 20;

/// The first block. It is written last: a file that has it is whole.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    magic: [u8; 8],
    version: U32,
    crc32c: U32,
    pub(super) record_count: U64,
    /// Which image this was taken from.
    pub(super) uuid: [u8; 16],
    pub(super) len_before_bytes: U64,
    pub(super) len_after_bytes: U64,
    /// Length of this file.
    kept_len_bytes: U64,
    /// Checksums of the two superblock copies as they were.
    pub(super) superblocks_crc32c: [U32; 2],
    reserved: [u8; 4024],
}

/// In front of what was at one place of the image, and of what the repair put there.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RecordHead {
    offset_bytes: U64,
    len_bytes: U32,
    crc32c: U32,
    kind: U32,
    reserved: U32,
}

/// `len_bytes` as they were, then as many as they are since.
const WRITTEN: u32 = 1;
/// `len_bytes` as they were; since they are zeros.
const CLEARED: u32 = 2;

const _: () = assert!(size_of::<Head>() == BLOCK_LEN && size_of::<RecordHead>() == 24);

/// What a record says.
pub(super) struct Record {
    pub(super) offset_bytes: u64,
    pub(super) before: Vec<u8>,
    pub(super) after: Vec<u8>,
}

/// Writes all that a plan is going to change to an empty medium, and brings it there.
pub(super) fn write(kept: &dyn Medium, plan: &Plan, medium: &dyn Medium) -> io::Result<()> {
    let records: Vec<(u64, u64, Option<&[u8]>)> = plan.changes.iter().flat_map(records_of).collect();
    let record_len = |(_, len, after): &(u64, u64, Option<&[u8]>)| {
        size_of::<RecordHead>() as u64 + len + after.map_or(0, |after| after.len() as u64)
    };
    let kept_len_bytes = BLOCK_LEN_BYTES + records.iter().map(record_len).sum::<u64>();
    kept.set_len(kept_len_bytes)?;
    // A full host says so now.
    match kept.allocate(0..kept_len_bytes) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        other => other?,
    }
    let mut at = BLOCK_LEN_BYTES;
    for (offset_bytes, len, after) in &records {
        let bytes = record(medium, *offset_bytes, *len, *after)?;
        kept.write_at(&bytes, at)?;
        at += bytes.len() as u64;
    }
    kept.sync_data()?;
    let mut head = Head::new_zeroed();
    head.magic = MAGIC;
    head.version = VERSION.into();
    head.record_count = (records.len() as u64).into();
    head.uuid = uuid_of(plan, medium)?;
    let len_bytes = medium.len_bytes()?;
    head.len_before_bytes = len_bytes.into();
    let len_after = plan.changes.iter().find_map(|change| match change {
        Change::SetLen(len_bytes) => Some(*len_bytes),
        _ => None,
    });
    head.len_after_bytes = len_after.unwrap_or(len_bytes).into();
    head.kept_len_bytes = kept_len_bytes.into();
    head.superblocks_crc32c = superblocks_crc32c(medium)?.map(U32::new);
    head.crc32c = checksum(head.as_bytes()).into();
    kept.write_at(head.as_bytes(), 0)?;
    kept.sync_data()
}

/// The places of the image that a change touches: offset, length, and what comes there if it is not zeros.
fn records_of(change: &Change) -> Vec<(u64, u64, Option<&[u8]>)> {
    match change {
        Change::Write { offset_bytes, block } => vec![(*offset_bytes, block.len() as u64, Some(block))],
        Change::Clear(bytes) => {
            let mut records = Vec::new();
            let mut at = bytes.start;
            while at < bytes.end {
                let len = (bytes.end - at).min(RECORD_LEN_MAX);
                records.push((at, len, None));
                at += len;
            }
            records
        }
        Change::SetLen(_) => Vec::new(),
    }
}

fn record(medium: &dyn Medium, offset_bytes: u64, len: u64, after: Option<&[u8]>) -> io::Result<Vec<u8>> {
    let mut head = RecordHead::new_zeroed();
    head.offset_bytes = offset_bytes.into();
    head.len_bytes = u32::try_from(len).map_err(io::Error::other)?.into();
    head.kind = if after.is_some() { WRITTEN } else { CLEARED }.into();
    let start = size_of::<RecordHead>();
    let mut bytes = head.as_bytes().to_vec();
    bytes.resize(start + usize::try_from(len).map_err(io::Error::other)?, 0);
    medium.read_at(&mut bytes[start..], offset_bytes)?;
    bytes.extend_from_slice(after.unwrap_or(&[]));
    let crc = checksum(&bytes).to_le_bytes();
    bytes[12..16].copy_from_slice(&crc);
    Ok(bytes)
}

/// The image's UUID: from the superblock that is there, or from the one that comes.
fn uuid_of(plan: &Plan, medium: &dyn Medium) -> io::Result<[u8; 16]> {
    let mut uuid = [0; 16];
    // A copy that is written is a good one.
    let written = plan.changes.iter().find_map(|change| match change {
        Change::Write { offset_bytes, block } if SUPERBLOCK_OFFSETS_BYTES.contains(offset_bytes) => {
            Some(block)
        }
        _ => None,
    });
    match written {
        Some(block) => uuid.copy_from_slice(&block[24..40]),
        None => medium.read_at(&mut uuid, 24)?,
    }
    Ok(uuid)
}

/// Checksums of both superblock copies, whatever they hold.
pub(super) fn superblocks_crc32c(medium: &dyn Medium) -> io::Result<[u32; 2]> {
    let mut crcs = [0; 2];
    for (crc, offset_bytes) in crcs.iter_mut().zip(SUPERBLOCK_OFFSETS_BYTES) {
        let mut block = [0; BLOCK_LEN];
        // A copy that can't be read counts as zeros: no repair touches it.
        *crc = match medium.read_at(&mut block, offset_bytes) {
            Ok(()) => crc32c::crc32c(&block),
            Err(_) => 0,
        };
    }
    Ok(crcs)
}

/// The head of a file, if that is one that a repair has left, and whole as far as it says.
pub(super) fn read_head(kept: &dyn Medium) -> io::Result<Result<Head, UndoFault>> {
    let len_bytes = kept.len_bytes()?;
    if len_bytes < BLOCK_LEN_BYTES {
        return Ok(Err(UndoFault::NotKept));
    }
    let mut head = Head::new_zeroed();
    kept.read_at(head.as_mut_bytes(), 0)?;
    Ok(match () {
        () if head.magic != MAGIC => Err(UndoFault::NotKept),
        () if head.version.get() != VERSION => {
            Err(UndoFault::Version { found: head.version.get(), supported: VERSION })
        }
        () if checksum(head.as_bytes()) != head.crc32c.get() => Err(UndoFault::Damaged { offset_bytes: 0 }),
        () if head.kept_len_bytes.get() != len_bytes => {
            Err(UndoFault::Length { expected_bytes: head.kept_len_bytes.get(), found_bytes: len_bytes })
        }
        () => Ok(head),
    })
}

/// Hands each record of a file to `each`, in order.
pub(super) fn read_records(
    kept: &dyn Medium,
    head: &Head,
    mut each: impl FnMut(Record) -> io::Result<Result<(), UndoFault>>,
) -> io::Result<Result<(), UndoFault>> {
    let mut at = BLOCK_LEN_BYTES;
    for _ in 0..head.record_count.get() {
        let damaged = UndoFault::Damaged { offset_bytes: at };
        let end = head.kept_len_bytes.get();
        let start = size_of::<RecordHead>();
        if at + start as u64 > end {
            return Ok(Err(damaged));
        }
        let mut record = RecordHead::new_zeroed();
        kept.read_at(record.as_mut_bytes(), at)?;
        let len = u64::from(record.len_bytes.get());
        let copies: u64 = if record.kind.get() == WRITTEN { 2 } else { 1 };
        if len > RECORD_LEN_MAX || at + start as u64 + copies * len > end {
            return Ok(Err(damaged));
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut bytes = vec![0; start + if copies == 2 { 2 * len } else { len }];
        kept.read_at(&mut bytes, at)?;
        if checksum(&bytes) != record.crc32c.get() || ![WRITTEN, CLEARED].contains(&record.kind.get()) {
            return Ok(Err(damaged));
        }
        at += bytes.len() as u64;
        let after = if copies == 2 { bytes.split_off(start + len) } else { vec![0; len] };
        let before = bytes.split_off(start);
        if let Err(fault) = each(Record { offset_bytes: record.offset_bytes.get(), before, after })? {
            return Ok(Err(fault));
        }
    }
    Ok(Ok(()))
}
