//! From what the kernel says of a device's zones to a checked geometry and states.

use virtio_zbd_zones::{
    Condition, Geometry, GeometryConfig, Model, SECTOR_LEN_BYTES, ZoneKind, ZoneLayout, ZoneState,
};

use super::HostFault;
use super::ioctl::RawZone;
use super::limits::Limits;

const CONVENTIONAL: u8 = 1;
const SEQUENTIAL_REQUIRED: u8 = 2;

/// The most bytes that one request of a guest can bring: what a zoned disk may offer for an append.
const MAX_APPEND_BYTES: u64 = 4 << 20;

/// The geometry of a device of this length with these zones, in order, each `zone_sectors` long but for the last.
pub(super) fn geometry(
    capacity_sectors: u64,
    zone_sectors: u32,
    zones: &[RawZone],
    limits: &Limits,
) -> Result<Geometry, HostFault> {
    let config = GeometryConfig {
        capacity_sectors,
        zone_sectors,
        // What the layout says counts.
        zone_capacity_sectors: zone_sectors,
        conventional_zones: 0,
        max_open_zones: limits.max_open_zones,
        max_active_zones: limits.max_active_zones,
        max_append_sectors: max_append_sectors(limits),
        write_granularity_bytes: limits.write_granularity_bytes,
    };
    let mut each = Vec::with_capacity(zones.len());
    for (index, zone) in (0..).zip(zones) {
        let kind = match zone.kind {
            CONVENTIONAL => ZoneKind::Conventional,
            SEQUENTIAL_REQUIRED => ZoneKind::SequentialRequired,
            kind => return Err(HostFault::Kind { zone: index, kind }),
        };
        each.push((kind, u32::try_from(zone.capacity).unwrap_or(u32::MAX)));
    }
    let none = HostFault::Count { found: 0, expected: 1 };
    let layout = ZoneLayout::of_zones(Model::HostManaged, each).ok_or(none)?;
    let geometry = Geometry::with_layout(config, layout)?;
    let mut start = 0;
    for (index, zone) in (0..).zip(zones) {
        let len = u64::from(geometry.zone_len_sectors(index));
        if (zone.start, zone.len) != (start, len) {
            return Err(HostFault::Place {
                zone: index,
                start: zone.start,
                len: zone.len,
                expected_start: start,
                expected_len: len,
            });
        }
        start += len;
        let expected = u64::from(geometry.zone_capacity_sectors(index));
        if zone.capacity != expected {
            return Err(HostFault::Capacity { zone: index, found: zone.capacity, expected });
        }
    }
    let found = u64::try_from(zones.len()).unwrap_or(u64::MAX);
    if found != u64::from(geometry.zone_count()) {
        return Err(HostFault::Count { found, expected: geometry.zone_count() });
    }
    Ok(geometry)
}

/// Appends are made of writes, so the device need not have any; one of ours is one command of the host.
fn max_append_sectors(limits: &Limits) -> u32 {
    let offered = match limits.max_append_bytes {
        0 => limits.max_transfer_bytes,
        bytes => bytes.min(limits.max_transfer_bytes),
    };
    let granularity = u64::from(limits.write_granularity_bytes).max(1);
    let bytes = (offered.min(MAX_APPEND_BYTES) / granularity).max(1) * granularity;
    u32::try_from(bytes / u64::from(SECTOR_LEN_BYTES)).unwrap_or(0)
}

/// The state of `zone`, as the device has it.
pub(super) fn state(raw: &RawZone, geometry: &Geometry, zone: u32) -> Result<ZoneState, HostFault> {
    let unknown = HostFault::Condition { zone, condition: raw.condition };
    let condition = Condition::from_code(raw.condition).ok_or(unknown)?;
    let capacity_sectors = geometry.zone_capacity_sectors(zone);
    let written = match condition {
        Condition::NotWp | Condition::Empty | Condition::Offline => Some(0),
        // Their write pointers mean nothing. Whatever there is to be read, the device has it.
        Condition::Full | Condition::ReadOnly => Some(capacity_sectors),
        Condition::ImplicitOpen | Condition::ExplicitOpen | Condition::Closed => {
            raw.wp.checked_sub(geometry.zone_start(zone)).and_then(|sectors| u32::try_from(sectors).ok())
        }
    };
    let wp_sectors = written.ok_or(HostFault::WritePointer { zone, wp: raw.wp })?;
    let state = ZoneState { condition, wp_sectors };
    state.check(geometry, zone)?;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        max_open_zones: 4,
        max_active_zones: 6,
        max_transfer_bytes: 1 << 20,
        max_append_bytes: 0,
        write_granularity_bytes: 4096,
        logical_block_bytes: 512,
        memory_alignment_bytes: 512,
    };

    /// Two conventional zones, two sequential ones, and a runt.
    fn zones() -> Vec<RawZone> {
        let zone = |start, len, kind, condition, capacity, wp| RawZone {
            start,
            len,
            wp,
            kind,
            condition,
            capacity,
            ..RawZone::default()
        };
        vec![
            zone(0, 2048, 1, 0, 2048, u64::MAX),
            zone(2048, 2048, 1, 0, 2048, u64::MAX),
            zone(4096, 2048, 2, 1, 1024, 4096),
            zone(6144, 2048, 2, 4, 1024, 6152),
            zone(8192, 512, 2, 14, 512, u64::MAX),
        ]
    }

    #[test]
    fn a_device_is_taken_as_it_is() {
        let zones = zones();
        let geometry = geometry(8704, 2048, &zones, &LIMITS).unwrap();
        let GeometryConfig { conventional_zones, zone_capacity_sectors, max_append_sectors, .. } =
            *geometry.config();
        assert_eq!((conventional_zones, zone_capacity_sectors, max_append_sectors), (2, 1024, 2048));
        let states: Vec<_> =
            (0..).zip(&zones).map(|(index, zone)| state(zone, &geometry, index).unwrap()).collect();
        let expected = [
            ZoneState::CONVENTIONAL,
            ZoneState::CONVENTIONAL,
            ZoneState::EMPTY,
            ZoneState { condition: Condition::Closed, wp_sectors: 8 },
            ZoneState { condition: Condition::Full, wp_sectors: 512 },
        ];
        assert_eq!(states, expected);
        for (condition, expected) in [(13, 1024), (15, 0)] {
            let raw = RawZone { condition, wp: u64::MAX, ..zones[3] };
            assert_eq!(state(&raw, &geometry, 3).unwrap().wp_sectors, expected);
        }
    }

    #[test]
    fn each_thing_that_can_not_be_is_named() {
        let with = |zone: usize, change: fn(&mut RawZone)| {
            let mut zones = zones();
            change(&mut zones[zone]);
            geometry(8704, 2048, &zones, &LIMITS).unwrap_err().to_string()
        };
        assert!(with(3, |z| z.start = 6000).contains("zone 3 begins at sector 6000"));
        assert!(with(3, |z| z.len = 6000).contains("6000 sectors long"));
        assert!(with(3, |z| z.kind = 3).contains("zone 3"));
        assert!(with(3, |z| z.capacity = 1001).contains("1001"));
        assert!(with(1, |z| z.capacity = 8).contains("zone 1 has a capacity of 8 sectors"));
        let mut short = zones();
        short.pop();
        assert!(geometry(8704, 2048, &short, &LIMITS).unwrap_err().to_string().contains("4 zones"));

        let geometry = geometry(8704, 2048, &zones(), &LIMITS).unwrap();
        let bad = |change: fn(&mut RawZone)| {
            let mut zone = zones()[3];
            change(&mut zone);
            state(&zone, &geometry, 3).unwrap_err().to_string()
        };
        assert!(bad(|z| z.condition = 9).contains("condition 9"));
        assert!(bad(|z| z.wp = 6000).contains("6000"));
        assert!(bad(|z| z.wp = 6144 + 2000).contains("2000"));
        assert!(bad(|z| z.condition = 0).contains("zone 3"));
    }

    #[test]
    fn zones_need_not_be_alike() {
        let mut zones = zones();
        zones[2].capacity = 512;
        let conventional = RawZone { start: 6144, capacity: 2048, ..zones[0] };
        zones[3] = conventional;
        let geometry = geometry(8704, 2048, &zones, &LIMITS).unwrap();
        let capacities: Vec<_> = (0..5).map(|zone| geometry.zone_capacity_sectors(zone)).collect();
        assert_eq!(capacities, [2048, 2048, 512, 2048, 512]);
        assert!(geometry.is_conventional(3) && !geometry.is_conventional(4));
    }

    #[test]
    fn an_append_is_one_command_and_whole_blocks() {
        let with = |max_append_bytes, max_transfer_bytes| {
            max_append_sectors(&Limits { max_append_bytes, max_transfer_bytes, ..LIMITS })
        };
        assert_eq!(with(0, 1 << 20), 2048);
        assert_eq!(with(128 << 10, 1 << 20), 256);
        assert_eq!(with(u64::MAX, 1 << 40), 8192);
        assert_eq!(with(5000, 1 << 20), 8, "whole blocks");
        assert_eq!(with(0, 512), 8, "never less than one");
    }
}
