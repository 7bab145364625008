//! What sequential zones hold (V30, V31).

use virtio_zbd_driver::{Command, DeviceError, Done, RequestType, ZoneState};

use super::in_state;
use crate::peer::Unwritten;
use crate::rig::{Outcome, Rig, not_here, ok, refused, same};

/// How much of a large zone is looked at, from its start.
const LOOK_SECTORS: u64 = 8 << 11;

pub(super) fn unwritten(rig: &mut Rig<'_>) -> Outcome {
    let grain = rig.grain_sectors();
    let zones = rig.empty_zones(1)?;
    let [zone] = zones.as_slice() else { return Err(not_here("a zone is needed")) };
    let start = zone.start_sector;
    let mut contents = rig.contents();
    let look = zone.len_sectors.min(LOOK_SECTORS);
    if rig.peer.unwritten == Unwritten::ZerosOrOnes {
        rig.note("zeros, or ones as null_blk has them");
    }
    rig.compare(&contents, start, look)?;
    rig.compare(&contents, zone.end_sector() - grain, grain)?;
    for _ in 0..3 {
        let wp = ok("report", rig.disk.zone(start))?.write_pointer_sector.unwrap_or(start);
        if wp + 2 * grain > start + zone.capacity_sectors {
            break;
        }
        rig.write(&mut contents, wp, grain)?;
        // Across the write pointer, in one request and from the start.
        rig.compare(&contents, wp, 2 * grain)?;
        rig.compare(&contents, start, look)?;
    }
    // Around the capacity, where the zone ends later.
    let around = (start + zone.capacity_sectors).saturating_sub(grain);
    rig.compare(&contents, around, (2 * grain).min(zone.end_sector() - around))
}

pub(super) fn kept(rig: &mut Rig<'_>) -> Outcome {
    let grain = rig.grain_sectors();
    let zones = rig.roomy_zones(1, 8)?;
    let [zone] = zones.as_slice() else { return Err(not_here("a zone is needed")) };
    let start = zone.start_sector;
    let look = zone.len_sectors.min(LOOK_SECTORS);
    let mut contents = rig.contents();
    rig.write(&mut contents, start, 2 * grain)?;
    ok("close", rig.disk.close_zone(start))?;
    rig.compare(&contents, start, look)?;
    rig.write(&mut contents, start + 2 * grain, grain)?;
    ok("open", rig.disk.open_zone(start))?;
    rig.write(&mut contents, start + 3 * grain, grain)?;
    ok("close", rig.disk.close_zone(start))?;
    ok("flush", rig.disk.flush())?;
    rig.compare(&contents, start, look)?;
    ok("finish", rig.disk.finish_zone(start))?;
    rig.zone_is("finish", &in_state(zone, ZoneState::Full, 0))?;
    rig.compare(&contents, start, look)?;
    rig.compare(&contents, zone.end_sector() - grain, grain)
}

/// What was there before a reset does not come back, whatever is written then.
pub(super) fn reset(rig: &mut Rig<'_>) -> Outcome {
    let grain = rig.grain_sectors();
    let zones = rig.roomy_zones(2, 8)?;
    let [zone, other] = zones.as_slice() else { return Err(not_here("two zones are needed")) };
    let look = zone.len_sectors.min(LOOK_SECTORS);
    let much = (zone.capacity_sectors / 2).min(LOOK_SECTORS);
    let much = much - much % grain;
    for all in [false, true] {
        let mut contents = rig.contents();
        rig.write(&mut contents, zone.start_sector, much)?;
        if rig.at_once(2) < 2 {
            ok("finish", rig.disk.finish_zone(zone.start_sector))?;
        }
        rig.write(&mut contents, other.start_sector, much)?;
        rig.compare(&contents, zone.start_sector, look)?;
        if all {
            ok("reset all", rig.disk.reset_all_zones())?;
            contents.forget(other.start_sector, other.len_sectors);
        } else {
            ok("reset", rig.disk.reset_zone(zone.start_sector))?;
        }
        contents.forget(zone.start_sector, zone.len_sectors);
        rig.compare(&contents, zone.start_sector, look)?;
        rig.compare(&contents, other.start_sector, look)?;
        if rig.at_once(2) < 2 && !all {
            ok("finish of the other", rig.disk.finish_zone(other.start_sector))?;
        }
        rig.write(&mut contents, zone.start_sector, grain)?;
        rig.compare(&contents, zone.start_sector, look)?;
        ok("finish", rig.disk.finish_zone(zone.start_sector))?;
        rig.compare(&contents, zone.start_sector, look)?;
        rig.empty_zones(0)?;
    }
    Ok(())
}

pub(super) fn secure_erase(rig: &mut Rig<'_>) -> Outcome {
    let zones = rig.empty_zones(1)?;
    let [zone] = zones.as_slice() else { return Err(not_here("a zone is needed")) };
    let Some(limits) = rig.disk.limits().secure_erase else {
        return Err(not_here("SECURE_ERASE is not offered"));
    };
    let Some(sectors) = u32::try_from(zone.len_sectors).ok().filter(|sectors| *sectors <= limits.sectors_max)
    else {
        return Err(not_here("a zone is longer than one SECURE_ERASE"));
    };
    let grain = rig.grain_sectors();
    let sector = zone.start_sector;
    let mut contents = rig.contents();
    rig.write(&mut contents, sector, grain)?;
    let part = u32::try_from(grain).unwrap_or(1);
    let completion = rig.one(0, Command::SecureErase { sector, sectors: part })?;
    // The header's sector means nothing in a request on ranges.
    let expected = rig.refusal(RequestType::SecureErase, 0, DeviceError::InvalidCommand);
    refused("secure erase of a part of a zone", completion.result, expected)?;
    rig.compare(&contents, sector, grain)?;
    let completion = rig.one(0, Command::SecureErase { sector, sectors })?;
    same("secure erase of a zone", &completion.result, &Ok(Done::Plain))?;
    rig.zone_is("secure erase", zone)?;
    rig.compare(&rig.contents(), sector, grain)
}
