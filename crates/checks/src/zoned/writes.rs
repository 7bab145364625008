//! Writes to sequential zones: at the write pointer, beside it, to the capacity and beyond.

use virtio_zbd_driver::{Command, DeviceError, RequestType, Zone, ZoneState, ZoneType};

use super::in_state;
use crate::rig::{Outcome, Rig, not_here, ok, refused};

/// Larger zones are not written full: it would take too long.
const FULL_SECTORS_MAX: u64 = 64 << 11;

/// R12, V26: nothing moves, and the write pointer can be learned afterwards.
pub(super) fn beside(rig: &mut Rig<'_>) -> Outcome {
    let grain = rig.grain_sectors();
    let zones = rig.roomy_zones(1, 8)?;
    let [zone] = zones.as_slice() else { return Err(not_here("a zone is needed")) };
    let start = zone.start_sector;
    let mut contents = rig.contents();
    for (state, written) in
        [(ZoneState::Empty, 0), (ZoneState::ImplicitOpen, 3 * grain), (ZoneState::Closed, 3 * grain)]
    {
        if state == ZoneState::ImplicitOpen {
            rig.write(&mut contents, start, written)?;
        } else if state == ZoneState::Closed {
            ok("close", rig.disk.close_zone(start))?;
        }
        let as_it_is = in_state(zone, state, written);
        for offset in [0, grain, 2 * grain, 3 * grain, 4 * grain, 7 * grain] {
            if offset == written {
                continue;
            }
            let data = rig.piece(grain).bytes;
            let sector = start + offset;
            let what = alloc::format!(
                "write at {sector}, the write pointer of a {state:?} zone at {}",
                start + written
            );
            let expected = rig.refusal(RequestType::Out, sector, DeviceError::UnalignedWritePointer);
            refused(&what, rig.disk.write(sector, &data), expected)?;
            rig.zone_is(&what, &as_it_is)?;
        }
        rig.compare(&contents, start, 8 * grain)?;
    }
    // At the write pointer it goes on.
    rig.write(&mut contents, start + 3 * grain, grain)?;
    rig.zone_is("a write at the write pointer", &in_state(zone, ZoneState::ImplicitOpen, 4 * grain))?;
    rig.compare(&contents, start, 8 * grain)
}

/// A block that is smaller than the granularity is no write for a sequential zone.
pub(super) fn granularity(rig: &mut Rig<'_>) -> Outcome {
    let grain = rig.grain_sectors();
    let block = rig.block_sectors();
    if block == grain {
        rig.zoned()?;
        return Err(not_here("the block is the write granularity"));
    }
    let zones = rig.empty_zones(1)?;
    let [zone] = zones.as_slice() else { return Err(not_here("a zone is needed")) };
    let start = zone.start_sector;
    for sectors in [block, grain - block, grain + block] {
        let data = rig.piece(sectors).bytes;
        let expected = rig.refusal(RequestType::Out, start, DeviceError::UnalignedWritePointer);
        let what = alloc::format!("write of {} bytes", data.len());
        let completion = rig.one(0, Command::Write { sector: start, buffer: data })?;
        refused(&what, completion.result, expected)?;
        rig.zone_is(&what, zone)?;
    }
    let mut contents = rig.contents();
    rig.write(&mut contents, start, grain)?;
    rig.compare(&contents, start, 2 * grain)
}

/// Up to the last grain in pieces; then too much, the rest, and more.
pub(super) fn full(rig: &mut Rig<'_>) -> Outcome {
    let zones = rig.empty_zones(2)?;
    let [zone, neighbour] = zones.as_slice() else { return Err(not_here("two zones are needed")) };
    fill(rig, zone)?;
    rig.zone_is("the neighbour of a full zone", neighbour)?;
    ok("reset", rig.disk.reset_zone(zone.start_sector))?;
    rig.compare(&rig.contents(), zone.start_sector, zone.len_sectors.min(FULL_SECTORS_MAX))
}

/// The same where zones may be shorter.
pub(super) fn last_zone(rig: &mut Rig<'_>) -> Outcome {
    rig.zoned()?;
    rig.writable()?;
    ok("reset all", rig.disk.reset_all_zones())?;
    let zones = ok("a report", rig.disk.zones(0))?;
    let Some(last) = zones.last().filter(|zone| zone.kind != ZoneType::Conventional) else {
        return Err(not_here("the last zone is conventional"));
    };
    fill(rig, last)?;
    ok("reset", rig.disk.reset_zone(last.start_sector))?;
    ok("open", rig.disk.open_zone(last.start_sector))?;
    rig.zone_is("the last zone, opened", &in_state(last, ZoneState::ExplicitOpen, 0))?;
    ok("finish", rig.disk.finish_zone(last.start_sector))?;
    rig.zone_is("the last zone, finished", &in_state(last, ZoneState::Full, 0))?;
    ok("reset", rig.disk.reset_zone(last.start_sector))?;
    rig.zone_is("the last zone, reset", last)
}

fn fill(rig: &mut Rig<'_>, zone: &Zone) -> Outcome {
    let grain = rig.grain_sectors();
    let (start, capacity) = (zone.start_sector, zone.capacity_sectors);
    if capacity > FULL_SECTORS_MAX {
        return Err(not_here("zones are too large to be written full here"));
    }
    if capacity < 2 * grain {
        return Err(not_here("the zone has room for one write only"));
    }
    let mut contents = rig.contents();
    let nearly = capacity - grain;
    rig.write(&mut contents, start, nearly)?;
    let before = in_state(zone, ZoneState::ImplicitOpen, nearly);
    rig.zone_is("a zone with room for one more write", &before)?;
    if zone.len_sectors >= capacity + grain {
        // V22; the zone goes on behind its capacity.
        let data = rig.piece(2 * grain).bytes;
        let expected = rig.refusal(RequestType::Out, start + nearly, DeviceError::InvalidCommand);
        refused("write beyond the capacity", rig.disk.write(start + nearly, &data), expected)?;
        rig.zone_is("write beyond the capacity", &before)?;
    }
    rig.write(&mut contents, start + nearly, grain)?;
    let full = in_state(zone, ZoneState::Full, capacity);
    rig.zone_is("a zone written to its capacity", &full)?;
    // The last place that the zone has, behind its data where there is one.
    let sector = start + capacity.min(zone.len_sectors - grain);
    let data = rig.piece(grain).bytes;
    let expected = rig.refusal(RequestType::Out, sector, DeviceError::InvalidCommand);
    refused("write to a full zone", rig.disk.write(sector, &data), expected)?;
    rig.zone_is("write to a full zone", &full)?;
    // The rest of a zone beyond its capacity reads as zeros (V31).
    rig.compare(&contents, start, zone.len_sectors)
}
