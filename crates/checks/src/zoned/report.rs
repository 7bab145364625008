//! What the disk says of its zones.

use virtio_zbd_driver::{Invalid, ZoneState, ZoneType};

use crate::rig::{Outcome, Rig, failed, holds, ok, refused, same};

pub(super) fn limits(rig: &mut Rig<'_>) -> Outcome {
    let zoned = rig.zoned()?;
    let capacity_sectors = rig.disk.capacity_sectors();
    let zones = capacity_sectors.div_ceil(u64::from(zoned.zone_sectors));
    same("the number of zones", &zoned.zones, &zones)?;
    let both = zoned.open_max != 0 && zoned.active_max != 0;
    holds("no more zones may be open than active", !both || zoned.open_max <= zoned.active_max)?;
    let granularity_bytes = u64::from(zoned.write_granularity_bytes);
    holds("the write granularity is a number of sectors (R6)", granularity_bytes.is_multiple_of(512))?;
    let append_bytes = u64::from(zoned.append_sectors_max) * 512;
    holds(
        "the longest append is none, or one grain at least (L7)",
        append_bytes == 0 || append_bytes >= granularity_bytes,
    )
}

/// Zones lie side by side, the last one may be shorter; sequential ones have the same capacity (L9).
pub(super) fn all(rig: &mut Rig<'_>) -> Outcome {
    let zoned = rig.zoned()?;
    let capacity_sectors = rig.disk.capacity_sectors();
    let zones = ok("a report", rig.disk.zones(0))?;
    same("how many zones are reported", &(zones.len() as u64), &zoned.zones)?;
    let mut next_sector = 0;
    let mut sequential_capacity = None;
    for zone in &zones {
        same("where a zone begins", &zone.start_sector, &next_sector)?;
        next_sector = zone.end_sector();
        let last = next_sector == capacity_sectors;
        let whole = zone.len_sectors == u64::from(zoned.zone_sectors);
        holds(format_args!("only the last zone is shorter: {zone:?}"), whole || last)?;
        match zone.kind {
            ZoneType::Conventional => {
                same("a conventional zone's capacity", &zone.capacity_sectors, &zone.len_sectors)?;
                same("a conventional zone's state", &zone.state, &ZoneState::NotWp)?;
            }
            ZoneType::SequentialRequired => {
                let first = *sequential_capacity.get_or_insert(zone.capacity_sectors);
                let smaller = last && zone.capacity_sectors <= first;
                holds(
                    format_args!("sequential zones have a capacity of {first} sectors: {zone:?}"),
                    zone.capacity_sectors == first || smaller,
                )?;
            }
            ZoneType::SequentialPreferred => {
                return Err(failed(format_args!("expected no sequential-preferred zone, found {zone:?}")));
            }
        }
    }
    same("where the last zone ends", &next_sector, &capacity_sectors)
}

/// R7: a report begins with the zone that its sector lies in.
pub(super) fn parts(rig: &mut Rig<'_>) -> Outcome {
    rig.zoned()?;
    let capacity_sectors = rig.disk.capacity_sectors();
    let zones = ok("a report", rig.disk.zones(0))?;
    let Some(last) = zones.last() else { return Err(failed("expected a zone, found none")) };
    for index in [0, zones.len() / 2, zones.len() - 1] {
        let Some(zone) = zones.get(index) else { continue };
        let rest = zones.get(index..).unwrap_or_default();
        for sector in [zone.start_sector, zone.start_sector + zone.len_sectors / 2, zone.end_sector() - 1] {
            let one = ok(format_args!("the zone of sector {sector}"), rig.disk.zone(sector))?;
            same(format_args!("the zone of sector {sector}"), &one, zone)?;
            let found = ok(format_args!("the zones from sector {sector} on"), rig.disk.zones(sector))?;
            same("how many zones are reported", &found.len(), &rest.len())?;
            holds(
                format_args!("the zones from sector {sector} on are those of the whole report"),
                found == rest,
            )?;
        }
    }
    same("the disk's last sector", &(last.end_sector() - 1), &(capacity_sectors - 1))?;
    for sector in [capacity_sectors, capacity_sectors + 1, u64::MAX] {
        let expected = Invalid::OutOfRange { sector, sectors: 1, capacity_sectors };
        refused(format_args!("report from sector {sector} on"), rig.disk.zones(sector), expected)?;
        refused(format_args!("the zone of sector {sector}"), rig.disk.zone(sector), expected)?;
    }
    Ok(())
}
