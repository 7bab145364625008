//! V20–V26: writes and appends.

use Condition::{Closed, Empty, ExplicitOpen, Full, ImplicitOpen};
use virtio_zbd_zones::{Condition, GeometryConfig, Refusal, Settled, Ticket, ZoneState};

use crate::disk::{Disk, config, disk_with_all_active, new_disk, plan};

#[test]
fn v20_a_write_opens_an_empty_or_closed_zone_implicitly() {
    for from in [Empty, Closed] {
        let disk = Disk::with(from);
        let wp = disk.wp(2);
        disk.write(128 + wp, 8).unwrap();
        assert_eq!((disk.condition(2), disk.wp(2)), (ImplicitOpen, wp + 8), "{from:?}");
        let disk = Disk::with(from);
        disk.append(128, 8).unwrap();
        assert_eq!((disk.condition(2), disk.wp(2)), (ImplicitOpen, wp + 8), "{from:?}");
        assert_eq!(disk.table.open_and_active(), (1, 1), "{from:?}");
    }
    for from in [ImplicitOpen, ExplicitOpen] {
        let disk = Disk::with(from);
        disk.write(136, 8).unwrap();
        assert_eq!((disk.condition(2), disk.wp(2)), (from, 16), "an open zone stays what it is");
    }
}

#[test]
fn v20_a_write_that_finds_no_resources_changes_nothing() {
    let disk = new_disk();
    for zone in 2..5 {
        disk.open(zone).unwrap();
    }
    for answer in [disk.write(5 * 64, 8), disk.append(5 * 64, 8)] {
        assert_eq!(answer, Err(Refusal::OpenResource));
    }
    assert_eq!((disk.condition(5), disk.wp(5)), (Empty, 0));
    let disk = disk_with_all_active();
    disk.close(2).unwrap();
    for answer in [disk.write(6 * 64, 8), disk.append(6 * 64, 8)] {
        assert_eq!(answer, Err(Refusal::ActiveResource));
    }
    assert_eq!((disk.condition(6), disk.wp(6)), (Empty, 0));
}

#[test]
fn v20_only_data_opens_a_zone() {
    let disk = new_disk();
    assert_eq!(disk.write(128, 0), Ok(128));
    assert_eq!(disk.append(128, 0), Ok(128));
    assert_eq!((disk.condition(2), disk.table.open_and_active()), (Empty, (0, 0)));
}

#[test]
fn v20_an_implicit_open_is_undone_when_its_only_write_fails() {
    for from in [Empty, Closed] {
        let disk = Disk::with(from);
        let grant = disk.table.admit_append(128, 8, Ticket(1)).unwrap();
        assert_eq!(disk.condition(2), ImplicitOpen);
        assert_eq!(disk.table.settle(grant, false), Settled::default());
        assert_eq!(disk.condition(2), from);
        assert_eq!(disk.wp(2), if from == Empty { 0 } else { 8 });
    }
}

#[test]
fn v20_an_implicit_open_stays_when_one_of_its_writes_succeeds() {
    let disk = new_disk();
    let (a, b) = (disk.admit(128, 8), disk.admit(136, 8));
    assert_eq!(disk.table.settle(a, true), Settled::default());
    assert_eq!(disk.table.settle(b, false), Settled::default());
    assert_eq!((disk.condition(2), disk.wp(2)), (ImplicitOpen, 8));
}

/// The spec's Closed condition is for zones whose write pointer has left the start.
#[test]
fn v20_a_zone_with_nothing_in_it_is_empty_and_not_closed() {
    let disk = new_disk();
    let a = disk.admit(128, 8);
    disk.close(2).unwrap();
    assert_eq!(disk.condition(2), Closed, "the write is under way");
    let b = disk.admit(136, 8);
    assert_eq!(disk.condition(2), ImplicitOpen);
    assert_eq!(disk.table.settle(a, false), Settled::default());
    assert_eq!(disk.table.settle(b, false), Settled::default());
    assert_eq!((disk.condition(2), disk.table.open_and_active()), (Empty, (0, 0)));
    assert_eq!(disk.observed(2), ZoneState::EMPTY);
}

#[test]
fn v20_a_zone_that_was_closed_under_its_first_writes_is_empty_when_all_have_failed() {
    let by_the_driver: fn(&Disk) = |disk| disk.close(2).unwrap();
    let to_make_room: fn(&Disk) = |disk| (3..6).for_each(|zone| disk.open(zone).unwrap());
    for close in [by_the_driver, to_make_room] {
        let disk = new_disk();
        let (a, b) = (disk.admit(128, 8), disk.admit(136, 8));
        close(&disk);
        let (open, active) = disk.table.open_and_active();
        assert_eq!(disk.condition(2), Closed);
        assert_eq!(disk.table.settle(a, false), Settled::default());
        assert_eq!(disk.condition(2), Closed, "the other one is under way");
        assert_eq!(disk.table.settle(b, false), Settled::default());
        assert_eq!((disk.condition(2), disk.table.open_and_active()), (Empty, (open, active - 1)));
        assert_eq!(disk.observed(2), ZoneState::EMPTY);
        assert_eq!(disk.table.begin_reset(128, Ticket(1)), Ok(None));
    }
}

#[test]
fn v21_an_append_that_does_not_name_the_start_of_a_zone_is_invalid() {
    let disk = new_disk();
    for sector in [129, 136, 128 + 63, 488, u64::MAX] {
        assert_eq!(disk.append(sector, 8), Err(Refusal::InvalidCommand), "{sector}");
    }
}

#[test]
fn v22_a_write_beyond_the_capacity_is_invalid() {
    let disk = new_disk();
    assert_eq!(disk.write(128, 56), Err(Refusal::InvalidCommand));
    disk.write(128, 40).unwrap();
    assert_eq!(disk.write(168, 16), Err(Refusal::InvalidCommand));
    assert_eq!(disk.append(128, 16), Err(Refusal::InvalidCommand));
    assert_eq!((disk.condition(2), disk.wp(2)), (ImplicitOpen, 40));
    assert_eq!(disk.write(168, 8), Ok(168), "just up to it is right");
    assert_eq!(disk.condition(2), Full);
}

#[test]
fn v22_what_is_reserved_counts_against_the_capacity() {
    let disk = new_disk();
    let first = disk.admit(128, 40);
    assert_eq!(disk.append(128, 16), Err(Refusal::InvalidCommand));
    assert_eq!(disk.table.settle(first, false), Settled::default());
    assert_eq!(disk.append(128, 16), Ok(128), "the failed write has given its place back");
}

#[test]
fn v23_an_append_says_where_its_data_is() {
    let disk = new_disk();
    assert_eq!(disk.append(128, 8), Ok(128));
    assert_eq!(disk.append(128, 16), Ok(136));
    assert_eq!(disk.append(128, 8), Ok(152));
    assert_eq!(disk.append(192, 8), Ok(192));
}

#[test]
fn v24_an_append_is_unsupported_where_the_limit_is_0() {
    let disk = Disk::new(GeometryConfig { max_append_sectors: 0, ..config() });
    assert_eq!(disk.append(128, 8), Err(Refusal::Unsupported));
    assert_eq!(disk.write(128, 8), Ok(128), "it can be written all the same");
}

#[test]
fn v24_an_append_above_the_limit_is_invalid() {
    let disk = new_disk();
    assert_eq!(disk.append(128, 24), Err(Refusal::InvalidCommand));
    assert_eq!(disk.append(128, 16), Ok(128));
}

#[test]
fn v25_a_read_or_write_across_sequential_zones_is_invalid() {
    let disk = Disk::new(GeometryConfig { zone_capacity_sectors: 64, ..config() });
    assert_eq!(disk.read(128, 72), Err(Refusal::InvalidCommand));
    assert_eq!(disk.read(191, 2), Err(Refusal::InvalidCommand));
    assert_eq!(disk.write(128, 72), Err(Refusal::InvalidCommand));
    disk.write(128, 56).unwrap();
    assert_eq!(disk.write(184, 16), Err(Refusal::InvalidCommand));
    assert_eq!(disk.append(128, 16), Err(Refusal::InvalidCommand));
    assert_eq!(disk.wp(2), 56);
}

#[test]
fn v25_a_range_from_the_conventional_zones_into_a_sequential_one_is_invalid() {
    let disk = new_disk();
    assert_eq!(disk.read(120, 16), Err(Refusal::InvalidCommand));
    assert_eq!(disk.write(120, 16), Err(Refusal::InvalidCommand));
}

#[test]
fn v25_conventional_zones_may_be_crossed() {
    let disk = new_disk();
    assert_eq!(disk.write(60, 8), Ok(60));
    assert_eq!(disk.read(0, 128), Ok(plan(128, 0)));
}

#[test]
fn v26_write_not_at_the_write_pointer() {
    let disk = new_disk();
    disk.write(128, 16).unwrap();
    for sector in [128, 136, 152, 160] {
        assert_eq!(disk.write(sector, 8), Err(Refusal::UnalignedWritePointer), "{sector}");
    }
    assert_eq!((disk.condition(2), disk.wp(2)), (ImplicitOpen, 16), "and moves nothing");
    assert_eq!(disk.write(144, 8), Ok(144));
}

#[test]
fn v26_write_that_does_not_end_on_a_block() {
    let disk = new_disk();
    for sectors in [1, 7, 9] {
        assert_eq!(disk.write(128, sectors), Err(Refusal::UnalignedWritePointer), "{sectors}");
    }
}

#[test]
fn v26_the_write_pointer_is_behind_what_was_admitted() {
    let disk = new_disk();
    let first = disk.admit(128, 8);
    assert_eq!(disk.wp(2), 8);
    assert_eq!(disk.table.admit_write(128, 8, Ticket(1)), Err(Refusal::UnalignedWritePointer));
    let second = disk.admit(136, 8);
    assert_eq!(disk.table.settle(second, true), Settled::default());
    assert_eq!(disk.table.settle(first, true), Settled::default());
    assert_eq!(disk.wp(2), 16);
}
