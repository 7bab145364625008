//! Requests on ranges without data.

use virtio_zbd_driver::{Command, Done, RangeLimits};

use crate::data::Contents;
use crate::peer::Discarded;
use crate::rig::{Area, Outcome, Rig, not_here, ok, same};

/// How many sectors around the ranges are watched.
const WINDOW_SECTORS: u64 = 4096;

/// The area that is watched, filled.
fn filled(rig: &mut Rig<'_>, contents: &mut Contents) -> Result<Area, crate::rig::Stop> {
    let area = rig.area()?;
    let sectors = WINDOW_SECTORS.min(area.sectors);
    let area = Area { sectors: sectors - sectors % rig.block_sectors(), ..area };
    rig.write(contents, area.start_sector, area.sectors)?;
    Ok(area)
}

/// Some ranges inside the area: the whole of it last.
fn ranges(rig: &Rig<'_>, area: &Area, limits: &RangeLimits) -> [(u64, u64); 4] {
    let block = rig.block_sectors();
    // What is discarded by the alignment has the best chance to go.
    let unit = u64::from(limits.alignment_sectors).max(block).next_multiple_of(block).min(area.sectors / 4);
    let unit = unit - unit % block;
    [
        (area.start_sector + block, block),
        (area.start_sector + unit, unit.max(block)),
        (area.start_sector + 2 * unit, (area.sectors / 3).next_multiple_of(block).max(block)),
        (area.start_sector, area.sectors),
    ]
}

pub(super) fn discard(rig: &mut Rig<'_>) -> Outcome {
    let Some(limits) = rig.disk.limits().discard else {
        return Err(not_here("DISCARD is not offered, or the disk is host-managed"));
    };
    let mut contents = rig.contents();
    let area = filled(rig, &mut contents)?;
    for (sector, sectors) in ranges(rig, &area, &limits) {
        ok(format_args!("discard of {sectors} sectors at {sector}"), rig.disk.discard(sector, sectors))?;
        let (behind, end) = (sector + sectors, area.start_sector + area.sectors);
        rig.compare(&contents, area.start_sector, sector - area.start_sector)?;
        rig.compare(&contents, behind, end - behind)?;
        match rig.peer.discarded {
            Discarded::Zeros => {
                contents.zero(sector, sectors);
                rig.compare(&contents, sector, sectors)?;
            }
            Discarded::KeptOrZeros => {
                rig.each_piece(sector, sectors, |at, bytes| contents.check_or_zeros(at, bytes))?;
            }
        }
        // What was discarded can be written again.
        rig.write(&mut contents, sector, sectors)?;
        rig.compare(&contents, area.start_sector, area.sectors)?;
    }
    let sectors = u32::try_from(rig.block_sectors()).unwrap_or(1);
    let completion = rig.one(0, Command::Discard { sector: area.start_sector, sectors })?;
    same("a submitted discard", &completion.result, &Ok(Done::Plain))
}

pub(super) fn write_zeroes(rig: &mut Rig<'_>) -> Outcome {
    zeroes(rig, false)
}

pub(super) fn write_zeroes_unmap(rig: &mut Rig<'_>) -> Outcome {
    zeroes(rig, true)
}

fn zeroes(rig: &mut Rig<'_>, unmap: bool) -> Outcome {
    let Some(limits) = rig.disk.limits().write_zeroes else {
        return Err(not_here("WRITE_ZEROES is not offered"));
    };
    let mut contents = rig.contents();
    let area = filled(rig, &mut contents)?;
    for (sector, sectors) in ranges(rig, &area, &limits) {
        ok(
            format_args!("write zeroes of {sectors} sectors at {sector}, unmap {unmap}"),
            rig.disk.write_zeroes(sector, sectors, unmap),
        )?;
        contents.zero(sector, sectors);
        rig.compare(&contents, area.start_sector, area.sectors)?;
        rig.write(&mut contents, sector, sectors)?;
    }
    rig.compare(&contents, area.start_sector, area.sectors)?;
    let sectors = u32::try_from(rig.block_sectors()).unwrap_or(1);
    let command = Command::WriteZeroes { sector: area.start_sector, sectors, unmap };
    let completion = rig.one(0, command)?;
    same("a submitted write zeroes", &completion.result, &Ok(Done::Plain))?;
    contents.zero(area.start_sector, sectors.into());
    rig.compare(&contents, area.start_sector, area.sectors)
}

/// What it leaves is not defined; its neighbours are.
pub(super) fn secure_erase(rig: &mut Rig<'_>) -> Outcome {
    let Some(limits) = rig.disk.limits().secure_erase else {
        return Err(not_here("SECURE_ERASE is not offered"));
    };
    if rig.disk.zoned().is_some() {
        return Err(not_here("on a zoned disk it resets zones (V32)"));
    }
    let mut contents = rig.contents();
    let area = filled(rig, &mut contents)?;
    let [(sector, sectors), ..] = ranges(rig, &area, &limits);
    ok("secure erase", rig.disk.secure_erase(sector, sectors))?;
    let (behind, end) = (sector + sectors, area.start_sector + area.sectors);
    rig.compare(&contents, area.start_sector, sector - area.start_sector)?;
    rig.compare(&contents, behind, end - behind)
}
