//! Reads and writes, by the synchronous calls.

use alloc::vec;

use crate::data::{len_bytes, sectors};
use crate::rig::{Outcome, Rig, holds, ok};

/// How many sectors the small transfers go over.
const WINDOW_SECTORS: u64 = 2048;

/// From one block to a few hundred, each at places of every alignment, with untouched neighbours.
pub(super) fn sizes(rig: &mut Rig<'_>) -> Outcome {
    let area = rig.area()?;
    let block_sectors = rig.block_sectors();
    let window = WINDOW_SECTORS.min(area.sectors);
    let window = window - window % block_sectors;
    let mut contents = rig.contents();
    rig.write(&mut contents, area.start_sector, window)?;
    for blocks in [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 255, 256, 257] {
        let sectors = blocks * block_sectors;
        for offset_blocks in [0, 1, 3, 8] {
            let offset = offset_blocks * block_sectors;
            if offset + sectors > window {
                continue;
            }
            rig.write(&mut contents, area.start_sector + offset, sectors)?;
            let with_neighbours = (offset + sectors + block_sectors).min(window);
            rig.compare(&contents, area.start_sector, with_neighbours)?;
        }
    }
    rig.compare(&contents, area.start_sector, window)
}

/// Writes at random places; reads of other places and sizes.
pub(super) fn places(rig: &mut Rig<'_>) -> Outcome {
    let area = rig.area()?;
    let block_sectors = rig.block_sectors();
    let window_blocks = WINDOW_SECTORS.min(area.sectors) / block_sectors;
    // Somewhere in the area, not always at its beginning.
    let first = rig.random.below(area.sectors / block_sectors - window_blocks + 1) * block_sectors;
    let start = area.start_sector + first;
    let mut contents = rig.contents();
    rig.write(&mut contents, start, window_blocks * block_sectors)?;
    for _ in 0..64 {
        let (offset, sectors) = place(rig, window_blocks);
        rig.write(&mut contents, start + offset, sectors)?;
        let (offset, sectors) = place(rig, window_blocks);
        rig.compare(&contents, start + offset, sectors)?;
    }
    rig.compare(&contents, start, window_blocks * block_sectors)
}

/// A random place of at most 128 blocks in a window.
fn place(rig: &mut Rig<'_>, window_blocks: u64) -> (u64, u64) {
    let blocks = 1 + rig.random.below(window_blocks.min(128));
    let offset = rig.random.below(window_blocks - blocks + 1);
    (offset * rig.block_sectors(), blocks * rig.block_sectors())
}

/// One call for more than a request carries: the driver makes several of it.
pub(super) fn long(rig: &mut Rig<'_>) -> Outcome {
    const MIB_SECTORS: u64 = 2048;
    let area = rig.area()?;
    let block_sectors = rig.block_sectors();
    let wanted = 3 * MIB_SECTORS + 3 * block_sectors;
    let long = wanted.min(area.sectors - block_sectors);
    let long = long - long % block_sectors;
    let mut contents = rig.contents();
    rig.write(&mut contents, area.start_sector, block_sectors)?;
    let piece = rig.piece(long);
    let start = area.start_sector + block_sectors;
    ok(format_args!("write of {} bytes", piece.bytes.len()), rig.disk.write(start, &piece.bytes))?;
    contents.write(start, &piece);
    // In small pieces, then all at once.
    rig.compare(&contents, area.start_sector, block_sectors + long)?;
    let mut bytes = vec![0xa5; len_bytes(block_sectors + long)];
    ok(format_args!("read of {} bytes", bytes.len()), rig.disk.read(area.start_sector, &mut bytes))?;
    contents.check(area.start_sector, &bytes)
}

pub(super) fn last_block(rig: &mut Rig<'_>) -> Outcome {
    let block_sectors = rig.block_sectors();
    let capacity_sectors = rig.disk.capacity_sectors();
    let last = capacity_sectors - capacity_sectors % block_sectors - block_sectors;
    let mut found = vec![0xa5; len_bytes(block_sectors)];
    ok("read of the last block", rig.disk.read(last, &mut found))?;
    if rig.disk.zoned().is_some() || rig.disk.read_only() {
        return Ok(());
    }
    let mut contents = rig.contents();
    rig.write(&mut contents, last, block_sectors)?;
    rig.compare(&contents, last, block_sectors)?;
    holds("a block was read", sectors(&found) == block_sectors)
}
