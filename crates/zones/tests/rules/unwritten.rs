//! V27–V31, G6: closing to make room, bad zones, unwritten sectors, restarts.

use Condition::{Closed, Empty, ExplicitOpen, Full, ImplicitOpen, Offline, ReadOnly};
use virtio_zbd_zones::{Condition, GeometryConfig, Refusal, Settled, ZoneState};

use crate::disk::{Disk, config, new_disk, plan};

#[test]
fn v27_an_implicitly_open_zone_is_closed_to_make_room() {
    let disk = new_disk();
    disk.open(2).unwrap();
    disk.write(3 * 64, 8).unwrap();
    disk.open(4).unwrap();
    disk.write(5 * 64, 8).unwrap();
    let conditions: Vec<_> = (2..6).map(|zone| disk.condition(zone)).collect();
    assert_eq!(conditions, [ExplicitOpen, Closed, ExplicitOpen, ImplicitOpen]);
    assert_eq!(disk.table.open_and_active(), (3, 4));
    assert_eq!(disk.observed(3), ZoneState { condition: Closed, wp_sectors: 8 });
}

#[test]
fn v27_the_zone_that_has_been_open_longest_is_closed_first() {
    let disk = Disk::new(GeometryConfig { max_active_zones: 0, ..config() });
    for zone in [4, 2, 3] {
        disk.write(zone * 64, 8).unwrap();
    }
    disk.write(4 * 64 + 8, 8).unwrap();
    disk.write(5 * 64, 8).unwrap();
    assert_eq!(disk.condition(4), Closed, "another write makes it no younger");
    disk.open(6).unwrap();
    assert_eq!(disk.condition(2), Closed);
    assert_eq!(disk.condition(3), ImplicitOpen);
}

#[test]
fn v27_a_zone_with_writes_under_way_is_closed_only_if_there_is_no_other() {
    let disk = new_disk();
    let under_way = disk.admit(128, 8);
    disk.write(3 * 64, 8).unwrap();
    disk.open(4).unwrap();
    disk.open(5).unwrap();
    assert_eq!((disk.condition(2), disk.condition(3)), (ImplicitOpen, Closed));
    disk.close(4).unwrap();
    disk.open(4).unwrap();
    disk.write(3 * 64 + 8, 8).unwrap();
    assert_eq!((disk.condition(2), disk.condition(3)), (Closed, ImplicitOpen));
    assert_eq!(disk.table.settle(under_way, true), Settled::default());
    assert_eq!((disk.condition(2), disk.wp(2)), (Closed, 8), "its write has ended all the same");
}

#[test]
fn v27_explicitly_open_zones_stay_open() {
    let disk = new_disk();
    for zone in 2..5 {
        disk.write(zone * 64, 8).unwrap();
        disk.open(zone.try_into().unwrap()).unwrap();
    }
    assert_eq!(disk.write(5 * 64, 8), Err(Refusal::OpenResource));
}

#[test]
fn v28_a_write_to_a_read_only_zone_is_invalid() {
    let disk = Disk::with(ReadOnly);
    assert_eq!(disk.write(128, 8), Err(Refusal::InvalidCommand));
    assert_eq!(disk.write(136, 8), Err(Refusal::InvalidCommand));
    assert_eq!(disk.append(128, 8), Err(Refusal::InvalidCommand));
    disk.assert_every_management_is_invalid(2);
    assert_eq!(disk.read(128, 48), Ok(plan(8, 40)), "what was written can be read");
}

#[test]
fn v29_everything_on_an_offline_zone_is_invalid() {
    let disk = Disk::with(Offline);
    assert_eq!(disk.read(128, 8), Err(Refusal::InvalidCommand));
    assert_eq!(disk.write(128, 8), Err(Refusal::InvalidCommand));
    assert_eq!(disk.append(128, 8), Err(Refusal::InvalidCommand));
    disk.assert_every_management_is_invalid(2);
}

#[test]
fn v30_what_a_finish_skips_is_unwritten() {
    let disk = Disk::with(ExplicitOpen);
    disk.finish(2).unwrap();
    assert_eq!(disk.read(128, 64), Ok(plan(8, 56)));
    assert_eq!(disk.observed(2), ZoneState { condition: Full, wp_sectors: 8 });
    assert_eq!(disk.restarted().read(128, 64), Ok(plan(8, 56)), "after a restart too");
}

#[test]
fn v31_what_lies_beyond_the_write_pointer_reads_as_zeros() {
    let disk = Disk::with(Closed);
    assert_eq!(disk.read(128, 8), Ok(plan(8, 0)));
    assert_eq!(disk.read(132, 8), Ok(plan(4, 4)));
    assert_eq!(disk.read(136, 8), Ok(plan(0, 8)));
    assert_eq!(disk.read(128 + 40, 24), Ok(plan(0, 24)), "up to the zone's end, past its capacity");
    assert_eq!(disk.read(192, 64), Ok(plan(0, 64)), "an empty zone");
}

#[test]
fn g6_open_zones_come_back_closed_or_empty() {
    let disk = new_disk();
    disk.write(128, 8).unwrap();
    disk.write(192, 8).unwrap();
    disk.open(3).unwrap();
    disk.open(4).unwrap();
    disk.write(5 * 64, 48).unwrap();
    let under_way = disk.admit(7 * 64, 8);
    let conditions: Vec<_> = (2..8).map(|zone| disk.condition(zone)).collect();
    // Zone 2 was closed to make room for zone 7.
    assert_eq!(conditions, [Closed, ExplicitOpen, ExplicitOpen, Full, Empty, ImplicitOpen]);
    let again = disk.restarted();
    let conditions: Vec<_> = (2..8).map(|zone| again.condition(zone)).collect();
    assert_eq!(conditions, [Closed, Closed, Empty, Full, Empty, Empty]);
    assert_eq!((again.wp(2), again.wp(3), again.wp(7)), (8, 8, 0), "what never ended was never written");
    assert_eq!(again.table.open_and_active(), (0, 2));
    assert_eq!(disk.table.settle(under_way, true), Settled::default());
}

#[test]
fn g6_a_zone_whose_capacity_was_reached_comes_back_full() {
    let disk = new_disk();
    let (first, last) = (disk.admit(128, 40), disk.admit(168, 8));
    assert_eq!(disk.table.settle(last, true), Settled::default());
    assert_eq!(disk.observed(2), ZoneState { condition: ImplicitOpen, wp_sectors: 48 });
    assert_eq!(disk.restarted().condition(2), Full);
    assert_eq!(disk.table.settle(first, true), Settled::default());
}
