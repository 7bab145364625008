//! Every command in every state that can be reached, and the state afterwards.

use alloc::format;
use alloc::string::String;

use virtio_zbd_driver::{DeviceError, Error, Invalid, RequestType, Wrong, Zone, ZoneState, ZoneType};

use super::in_state;
use crate::rig::{Outcome, Rig, Stop, not_here, ok, refused, same};

/// A zone's condition, and how it came to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Empty,
    ImplicitlyOpen,
    OpenUnwritten,
    Open,
    Closed,
    Finished,
    FinishedUnwritten,
}

use Condition::{Closed, Empty, Finished, FinishedUnwritten, ImplicitlyOpen, Open, OpenUnwritten};

const CONDITIONS: [Condition; 7] =
    [Empty, ImplicitlyOpen, OpenUnwritten, Open, Closed, Finished, FinishedUnwritten];

impl Condition {
    fn is_finished(self) -> bool {
        matches!(self, Finished | FinishedUnwritten)
    }

    fn is_written(self) -> bool {
        !matches!(self, Empty | OpenUnwritten | FinishedUnwritten)
    }

    fn state(self) -> ZoneState {
        match self {
            Empty => ZoneState::Empty,
            ImplicitlyOpen => ZoneState::ImplicitOpen,
            OpenUnwritten | Open => ZoneState::ExplicitOpen,
            Closed => ZoneState::Closed,
            Finished | FinishedUnwritten => ZoneState::Full,
        }
    }
}

/// Brings an empty zone into a condition. Gives it as it must be now.
fn bring(rig: &mut Rig<'_>, zone: &Zone, condition: Condition) -> Result<Zone, Stop> {
    let start = zone.start_sector;
    if matches!(condition, OpenUnwritten | Open) {
        ok("open of an empty zone", rig.disk.open_zone(start))?;
    }
    let grain = rig.grain_sectors();
    if condition.is_written() {
        let data = rig.piece(grain);
        ok("a first write", rig.disk.write(start, &data.bytes))?;
    }
    match condition {
        Closed => ok("close after a write", rig.disk.close_zone(start))?,
        Finished | FinishedUnwritten => ok("finish", rig.disk.finish_zone(start))?,
        _ => {}
    }
    let written_sectors = if condition.is_written() { grain } else { 0 };
    let zone = in_state(zone, condition.state(), written_sectors);
    rig.zone_is(format_args!("to {condition:?}"), &zone)?;
    Ok(zone)
}

/// What a request does with a zone.
enum Then {
    /// It succeeds, and the zone is in this state, this far written.
    State(ZoneState, u64),
    /// It fails, and nothing changes.
    Refused(DeviceError),
}

use Then::{Refused, State};

/// Tries `act` on a zone in each condition, with an empty neighbour that must stay so. `act` is told where the zone's data ends.
fn in_each(
    rig: &mut Rig<'_>,
    request: RequestType,
    expected: impl Fn(Condition, u64, u64) -> Option<Then>,
    mut act: impl FnMut(&mut Rig<'_>, &Zone, u64) -> Result<(), Error>,
) -> Outcome {
    let grain = rig.grain_sectors();
    let zones = rig.roomy_zones(2, 3)?;
    let [zone, neighbour] = zones.as_slice() else { return Err(not_here("two zones are needed")) };
    for condition in CONDITIONS {
        let written = if condition.is_written() { grain } else { 0 };
        let Some(then) = expected(condition, grain, written) else { continue };
        let what: String = format!("{request:?} of a zone that is {condition:?}");
        let before = bring(rig, zone, condition)?;
        let result = act(rig, &before, zone.start_sector + written);
        let after = match then {
            State(state, written_sectors) => {
                ok(&what, result)?;
                in_state(zone, state, written_sectors)
            }
            Refused(exact) => {
                let sector = match request {
                    RequestType::Out => zone.start_sector + written,
                    _ => zone.start_sector,
                };
                let expected = rig.refusal(request, sector, exact);
                refused(&what, result, expected)?;
                before
            }
        };
        rig.zone_is(&what, &after)?;
        rig.zone_is(format_args!("{what}: its neighbour"), neighbour)?;
        ok(format_args!("reset after {what}"), rig.disk.reset_zone(zone.start_sector))?;
        rig.zone_is(format_args!("reset after {what}"), zone)?;
    }
    Ok(())
}

pub(super) fn open(rig: &mut Rig<'_>) -> Outcome {
    let expected = |condition: Condition, _, written| {
        Some(match condition {
            Finished | FinishedUnwritten => Refused(DeviceError::InvalidCommand),
            _ => State(ZoneState::ExplicitOpen, written),
        })
    };
    in_each(rig, RequestType::ZoneOpen, expected, |rig, zone, _| rig.disk.open_zone(zone.start_sector))
}

pub(super) fn close(rig: &mut Rig<'_>) -> Outcome {
    let expected = |condition, _, written| {
        Some(match condition {
            Empty | Finished | FinishedUnwritten => Refused(DeviceError::InvalidCommand), // G2
            OpenUnwritten => State(ZoneState::Empty, 0),
            ImplicitlyOpen | Open | Closed => State(ZoneState::Closed, written),
        })
    };
    in_each(rig, RequestType::ZoneClose, expected, |rig, zone, _| rig.disk.close_zone(zone.start_sector))
}

pub(super) fn finish(rig: &mut Rig<'_>) -> Outcome {
    let expected = |_, _, _| Some(State(ZoneState::Full, 0)); // G1
    in_each(rig, RequestType::ZoneFinish, expected, |rig, zone, _| rig.disk.finish_zone(zone.start_sector))
}

pub(super) fn reset(rig: &mut Rig<'_>) -> Outcome {
    let expected = |_, _, _| Some(State(ZoneState::Empty, 0));
    in_each(rig, RequestType::ZoneReset, expected, |rig, zone, _| rig.disk.reset_zone(zone.start_sector))
}

/// One zone in each condition, then all are reset at once; the conventional ones stay what they are.
pub(super) fn reset_all(rig: &mut Rig<'_>) -> Outcome {
    let zoned = rig.zoned()?;
    let limit = |max: u32| if max == 0 { usize::MAX } else { usize::try_from(max).unwrap_or(usize::MAX) };
    rig.empty_zones(1)?;
    let all = ok("a report", rig.disk.zones(0))?;
    let whole = |zone: &&Zone| {
        zone.kind != ZoneType::Conventional && zone.len_sectors == u64::from(zoned.zone_sectors)
    };
    let zones = rig.roomy_zones(all.iter().filter(whole).count().min(CONDITIONS.len()), 2)?;
    // Full zones first: they hold nothing while the others are brought.
    let order = [Finished, FinishedUnwritten, Closed, Open, ImplicitlyOpen, OpenUnwritten, Empty];
    let mut active = 0;
    let mut open = 0;
    for (zone, condition) in zones.iter().zip(order) {
        let opens = matches!(condition, Open | ImplicitlyOpen | OpenUnwritten);
        let activates = opens || condition == Closed;
        // Each passes through an open condition.
        if condition != Empty && (open >= limit(zoned.open_max) || active >= limit(zoned.active_max)) {
            continue;
        }
        bring(rig, zone, condition)?;
        open += usize::from(opens);
        active += usize::from(activates);
    }
    ok("reset all", rig.disk.reset_all_zones())?;
    let found = ok("a report", rig.disk.zones(0))?;
    for (found, before) in found.iter().zip(&all) {
        same("a zone after reset all", found, before)?;
    }
    same("how many zones there are", &found.len(), &all.len())
}

pub(super) fn write(rig: &mut Rig<'_>) -> Outcome {
    let data = rig.piece(rig.grain_sectors()).bytes;
    in_each(rig, RequestType::Out, after_data, |rig, _, data_end| rig.disk.write(data_end, &data))
}

/// What a write or an append of one grain does: V20, and V22 for a full zone.
fn after_data(condition: Condition, grain: u64, written: u64) -> Option<Then> {
    Some(match condition {
        Empty | ImplicitlyOpen | Closed => State(ZoneState::ImplicitOpen, written + grain),
        OpenUnwritten | Open => State(ZoneState::ExplicitOpen, written + grain),
        Finished | FinishedUnwritten => Refused(DeviceError::InvalidCommand),
    })
}

pub(super) fn append(rig: &mut Rig<'_>) -> Outcome {
    let zoned = rig.zoned()?;
    if zoned.append_sectors_max == 0 {
        return Err(not_here("the disk knows no append (B5)"));
    }
    let expected = |condition: Condition, grain, written| {
        // Tried apart: that is where QEMU's device is known to differ.
        if condition.is_finished() { None } else { after_data(condition, grain, written) }
    };
    let data = rig.piece(rig.grain_sectors()).bytes;
    in_each(rig, RequestType::ZoneAppend, expected, |rig, zone, data_end| {
        let found_sector = rig.disk.append(zone.start_sector, &data)?;
        let zone_start_sector = zone.start_sector;
        // Anywhere else would be a lie of the device.
        let lie = Wrong::AppendSector { zone_start_sector, found_sector };
        if found_sector == data_end { Ok(()) } else { Err(lie.into()) }
    })
}

pub(super) fn append_to_finished(rig: &mut Rig<'_>) -> Outcome {
    let zoned = rig.zoned()?;
    if zoned.append_sectors_max == 0 {
        return Err(not_here("the disk knows no append (B5)"));
    }
    let zones = rig.roomy_zones(2, 2)?;
    let [zone, neighbour] = zones.as_slice() else { return Err(not_here("two zones are needed")) };
    for condition in [Finished, FinishedUnwritten] {
        let before = bring(rig, zone, condition)?;
        let data = rig.piece(rig.grain_sectors()).bytes;
        let what = format!("append to a zone that is {condition:?}");
        let result = rig.disk.append(zone.start_sector, &data);
        if rig.peer.appends_behind_full_zones {
            rig.note("QEMU appends behind a finished zone, to the next one");
            let (zone_start_sector, found_sector) = (zone.start_sector, zone.end_sector());
            refused(&what, result, Error::Wrong(Wrong::AppendSector { zone_start_sector, found_sector }))?;
            let written = in_state(neighbour, ZoneState::ImplicitOpen, rig.grain_sectors());
            rig.zone_is(format_args!("{what}: its neighbour"), &written)?;
        } else {
            let invalid =
                rig.refusal(RequestType::ZoneAppend, zone.start_sector, DeviceError::InvalidCommand);
            refused(&what, result, invalid)?;
            rig.zone_is(format_args!("{what}: its neighbour"), neighbour)?;
        }
        rig.zone_is(&what, &before)?;
        ok("reset", rig.disk.reset_zone(zone.start_sector))?;
        ok("reset of the neighbour", rig.disk.reset_zone(neighbour.start_sector))?;
    }
    Ok(())
}

pub(super) fn conventional(rig: &mut Rig<'_>) -> Outcome {
    let zoned = rig.zoned()?;
    rig.writable()?;
    let zones = ok("a report", rig.disk.zones(0))?;
    let conventional = |zone: &&Zone| zone.kind == ZoneType::Conventional;
    let (Some(first), Some(last)) = (zones.iter().find(conventional), zones.iter().rfind(conventional))
    else {
        return Err(not_here("the disk has no conventional zones"));
    };
    let data = rig.piece(rig.grain_sectors()).bytes;
    for zone in [first, last] {
        let start = zone.start_sector;
        let invalid = |rig: &mut Rig<'_>, request| rig.refusal(request, start, DeviceError::InvalidCommand);
        let expected = invalid(rig, RequestType::ZoneOpen);
        refused("open of a conventional zone", rig.disk.open_zone(start), expected)?;
        let expected = invalid(rig, RequestType::ZoneClose);
        refused("close of a conventional zone", rig.disk.close_zone(start), expected)?;
        let expected = invalid(rig, RequestType::ZoneFinish);
        refused("finish of a conventional zone", rig.disk.finish_zone(start), expected)?;
        let expected = invalid(rig, RequestType::ZoneReset);
        refused("reset of a conventional zone", rig.disk.reset_zone(start), expected)?;
        if zoned.append_sectors_max > 0 {
            let expected = invalid(rig, RequestType::ZoneAppend);
            refused("append to a conventional zone", rig.disk.append(start, &data), expected)?;
        }
        rig.zone_is("a conventional zone after all that", zone)?;
    }
    Ok(())
}

/// The driver does not send what can't be right.
pub(super) fn beside_start(rig: &mut Rig<'_>) -> Outcome {
    let zoned = rig.zoned()?;
    rig.writable()?;
    let capacity_sectors = rig.disk.capacity_sectors();
    let zone_sectors = u64::from(zoned.zone_sectors);
    let data = rig.piece(rig.grain_sectors()).bytes;
    for sector in [1, zone_sectors - 1, zone_sectors + 1, capacity_sectors - 1, capacity_sectors, u64::MAX] {
        let expected = if sector >= capacity_sectors {
            Invalid::OutOfRange { sector, sectors: 1, capacity_sectors }
        } else if sector.is_multiple_of(zone_sectors) {
            // A last zone of one sector.
            continue;
        } else {
            Invalid::NotZoneStart { sector, zone_sectors: zoned.zone_sectors }
        };
        refused(format_args!("open at {sector}"), rig.disk.open_zone(sector), expected)?;
        refused(format_args!("close at {sector}"), rig.disk.close_zone(sector), expected)?;
        refused(format_args!("finish at {sector}"), rig.disk.finish_zone(sector), expected)?;
        refused(format_args!("reset at {sector}"), rig.disk.reset_zone(sector), expected)?;
        if zoned.append_sectors_max > 0 {
            refused(format_args!("append at {sector}"), rig.disk.append(sector, &data), expected)?;
        }
    }
    Ok(())
}
