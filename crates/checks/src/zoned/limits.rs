//! How many zones may be open, and how many active: reached exactly, one more refused, and free again.

use alloc::collections::VecDeque;

use virtio_zbd_driver::{DeviceError, Error, RequestType, Zone, ZoneState};

use super::in_state;
use crate::peer::MakesRoom;
use crate::rig::{Outcome, Rig, Stop, failed, not_here, ok, refused, same};

/// Higher limits are not tried: it would take too long.
const LIMIT_MAX: u32 = 256;

/// A limit that can be tried, as a number of zones.
fn limit(max: u32) -> Result<usize, Stop> {
    match usize::try_from(max) {
        Ok(0) => Err(not_here("the disk has no such limit")),
        Ok(limit) if max <= LIMIT_MAX => Ok(limit),
        _ => Err(not_here("the limit is too high to be tried")),
    }
}

/// Everything that would open `zone` is refused with `exact`, and it stays what it is.
fn no_room(rig: &mut Rig<'_>, zone: &Zone, exact: DeviceError) -> Outcome {
    let start = zone.start_sector;
    let data = rig.piece(rig.grain_sectors()).bytes;
    let expected = rig.refusal(RequestType::ZoneOpen, start, exact);
    refused("one open too many", rig.disk.open_zone(start), expected)?;
    let at = zone.write_pointer_sector.unwrap_or(start);
    let expected = rig.refusal(RequestType::Out, at, exact);
    refused("one write too many", rig.disk.write(at, &data), expected)?;
    if rig.zoned()?.append_sectors_max > 0 {
        let expected = rig.refusal(RequestType::ZoneAppend, start, exact);
        refused("one append too many", rig.disk.append(start, &data), expected)?;
    }
    // G1: a finish opens for the moment.
    let expected = rig.refusal(RequestType::ZoneFinish, start, exact);
    refused("one finish too many", rig.disk.finish_zone(start), expected)?;
    rig.zone_is("after one too many", zone)
}

pub(super) fn open_explicitly(rig: &mut Rig<'_>) -> Outcome {
    let zoned = rig.zoned()?;
    rig.writable()?;
    let open_max = limit(zoned.open_max)?;
    let closed_too = zoned.active_max == 0 || zoned.active_max > zoned.open_max;
    let zones = rig.roomy_zones(open_max + 1 + usize::from(closed_too), 2)?;
    let (held, rest) = zones.split_at(open_max);
    let (Some(first), Some(extra)) = (held.first(), rest.first()) else { return Ok(()) };
    let grain = rig.grain_sectors();
    let mut contents = rig.contents();
    let closed = rest.get(1).map(|zone| in_state(zone, ZoneState::Closed, grain));
    if let Some(zone) = &closed {
        rig.write(&mut contents, zone.start_sector, grain)?;
        ok("close", rig.disk.close_zone(zone.start_sector))?;
    }
    for zone in held {
        ok("an open within the limit", rig.disk.open_zone(zone.start_sector))?;
    }
    // V15: the active limit's word where both are reached.
    let active = held.len() + usize::from(closed_too);
    let both = zoned.active_max != 0 && active >= usize::try_from(zoned.active_max).unwrap_or(usize::MAX);
    let exact = if both { DeviceError::ActiveResource } else { DeviceError::OpenResource };
    no_room(rig, extra, exact)?;
    if let Some(zone) = &closed {
        // It is active already.
        no_room(rig, zone, DeviceError::OpenResource)?;
    }
    for zone in held {
        rig.zone_is("held open", &in_state(zone, ZoneState::ExplicitOpen, 0))?;
    }
    ok("an open of what is open", rig.disk.open_zone(first.start_sector))?;
    rig.write(&mut contents, first.start_sector, grain)?;
    // A finish gives its place to another, and so does a reset.
    ok("finish", rig.disk.finish_zone(first.start_sector))?;
    ok("an open after a finish", rig.disk.open_zone(extra.start_sector))?;
    rig.zone_is("an open after a finish", &in_state(extra, ZoneState::ExplicitOpen, 0))?;
    ok("reset", rig.disk.reset_zone(extra.start_sector))?;
    rig.write(&mut contents, extra.start_sector, grain)?;
    rig.zone_is("a write after a reset", &in_state(extra, ZoneState::ImplicitOpen, grain))?;
    // Closed with nothing written: empty, so nothing is held.
    ok("reset", rig.disk.reset_zone(first.start_sector))?;
    ok("close", rig.disk.close_zone(extra.start_sector))?;
    if closed_too && !both {
        ok("an open after a close", rig.disk.open_zone(first.start_sector))?;
    }
    rig.compare(&contents, extra.start_sector, grain)
}

/// One more zone than may be open is written in turn, twice round.
pub(super) fn open_implicitly(rig: &mut Rig<'_>) -> Outcome {
    let zoned = rig.zoned()?;
    rig.writable()?;
    let open_max = limit(zoned.open_max)?;
    let zones = rig.roomy_zones(open_max + 1, 4)?;
    let grain = rig.grain_sectors();
    let too_many_active = zoned.active_max != 0 && zoned.active_max <= zoned.open_max;
    let mut states = alloc::vec![(ZoneState::Empty, 0); zones.len()];
    let mut open = VecDeque::new();
    let mut contents = rig.contents();
    for turn in 0..2 * zones.len() + 1 {
        let index = turn % zones.len();
        let (Some(zone), Some((state, written))) = (zones.get(index), states.get(index).copied()) else {
            break;
        };
        let sector = zone.start_sector + written;
        let first_too_many = open.len() == open_max && state != ZoneState::ImplicitOpen;
        if first_too_many && (too_many_active || rig.peer.makes_room == MakesRoom::Never) {
            let exact = if too_many_active { DeviceError::ActiveResource } else { DeviceError::OpenResource };
            let data = rig.piece(grain).bytes;
            let expected = rig.refusal(RequestType::Out, sector, exact);
            refused("a write without room for one more zone", rig.disk.write(sector, &data), expected)?;
            break;
        }
        rig.write(&mut contents, sector, grain)?;
        if let Some(entry) = states.get_mut(index) {
            *entry = (ZoneState::ImplicitOpen, written + grain);
        }
        if first_too_many {
            let Some(closed) = closed_for_room(rig, &zones, &open, index)? else { break };
            open.retain(|open| *open != closed);
            if let Some((state, _)) = states.get_mut(closed) {
                *state = ZoneState::Closed;
            }
        }
        if state != ZoneState::ImplicitOpen {
            open.push_back(index);
        }
        for (zone, (state, written)) in zones.iter().zip(&states) {
            rig.zone_is(format_args!("turn {turn}"), &in_state(zone, *state, *written))?;
        }
    }
    for zone in &zones {
        rig.compare(&contents, zone.start_sector, 4 * grain)?;
    }
    Ok(())
}

/// Which of the open zones was closed for zone `opened`: by the rule of this peer, or by a look.
fn closed_for_room(
    rig: &mut Rig<'_>,
    zones: &[Zone],
    open: &VecDeque<usize>,
    opened: usize,
) -> Result<Option<usize>, Stop> {
    if rig.peer.makes_room == MakesRoom::Oldest {
        return Ok(open.front().copied());
    }
    let mut closed = None;
    for index in open.iter().copied().filter(|index| *index != opened) {
        let Some(zone) = zones.get(index) else { continue };
        if ok("report", rig.disk.zone(zone.start_sector))?.state == ZoneState::Closed {
            same("a second zone that was closed to make room", &closed, &None)?;
            closed = Some(index);
        }
    }
    match closed {
        Some(_) => Ok(closed),
        None => Err(failed("expected that a zone was closed to make room, found none")),
    }
}

pub(super) fn active(rig: &mut Rig<'_>) -> Outcome {
    let zoned = rig.zoned()?;
    rig.writable()?;
    let active_max = limit(zoned.active_max)?;
    let zones = rig.roomy_zones(active_max + 1, 4)?;
    let (held, rest) = zones.split_at(active_max);
    let (Some(first), Some(extra)) = (held.first(), rest.first()) else { return Ok(()) };
    let grain = rig.grain_sectors();
    let mut contents = rig.contents();
    for zone in held {
        rig.write(&mut contents, zone.start_sector, grain)?;
        ok("close", rig.disk.close_zone(zone.start_sector))?;
    }
    no_room(rig, extra, DeviceError::ActiveResource)?;
    // What is active can be opened and closed again.
    rig.write(&mut contents, first.start_sector + grain, grain)?;
    rig.zone_is("a write to a closed zone", &in_state(first, ZoneState::ImplicitOpen, 2 * grain))?;
    ok("close", rig.disk.close_zone(first.start_sector))?;
    ok("open", rig.disk.open_zone(first.start_sector))?;
    ok("close", rig.disk.close_zone(first.start_sector))?;
    no_room(rig, extra, DeviceError::ActiveResource)?;
    // A finish gives its place to another, and so does a reset.
    ok("finish", rig.disk.finish_zone(first.start_sector))?;
    rig.write(&mut contents, extra.start_sector, grain)?;
    ok("close", rig.disk.close_zone(extra.start_sector))?;
    let again: Result<(), Error> = rig.disk.reset_zone(extra.start_sector);
    ok("reset", again)?;
    ok("an open after a reset", rig.disk.open_zone(extra.start_sector))?;
    contents.forget(extra.start_sector, extra.len_sectors);
    for zone in held {
        rig.compare(&contents, zone.start_sector, 4 * grain)?;
    }
    rig.compare(&contents, extra.start_sector, grain)
}
