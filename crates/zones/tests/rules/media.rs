//! A medium that fails under a zone: what becomes of the zone, and what others get of its resources.

use Condition::{Closed, Empty, ExplicitOpen, Full, ImplicitOpen, NotWp, Offline, ReadOnly};
use virtio_zbd_zones::{Condition, Refusal, ResetEnd, Retirement, Settled, Ticket, ZoneState};

use crate::disk::{Disk, disk_with_all_active, new_disk, plan};

#[test]
fn v28_a_zone_that_can_not_be_written_is_read_only() {
    for from in [Empty, ImplicitOpen, ExplicitOpen, Closed, Full] {
        let disk = Disk::with(from);
        let wp_sectors = disk.observed(2).wp_sectors;
        assert!(disk.table.retire(2, Retirement::ReadOnly), "{from:?}");
        assert_eq!(disk.table.open_and_active(), (0, 0), "{from:?}");
        assert_eq!((disk.condition(2), disk.wp(2)), (ReadOnly, 64));
        assert_eq!(disk.observed(2), ZoneState { condition: ReadOnly, wp_sectors });
        assert_eq!(disk.read(128, 48), Ok(plan(wp_sectors.into(), 48 - u64::from(wp_sectors))));
        disk.assert_every_management_is_invalid(2);
        assert_eq!(disk.table.begin_reset_all(2, Ticket(1)), Ok(None));
        assert!(!disk.table.retire(2, Retirement::ReadOnly), "it is so already");
        let again = disk.restarted();
        assert_eq!((again.condition(2), again.observed(2).wp_sectors), (ReadOnly, wp_sectors));
    }
}

#[test]
fn v29_a_zone_that_can_not_be_read_is_offline_for_good() {
    for from in [Empty, ImplicitOpen, ExplicitOpen, Closed, Full, ReadOnly] {
        let disk = Disk::with(from);
        assert!(disk.table.retire(2, Retirement::Offline), "{from:?}");
        assert_eq!((disk.condition(2), disk.table.open_and_active()), (Offline, (0, 0)), "{from:?}");
        assert_eq!(disk.read(128, 8), Err(Refusal::InvalidCommand));
        assert_eq!(disk.write(136, 8), Err(Refusal::InvalidCommand));
        disk.assert_every_management_is_invalid(2);
        for to in [Retirement::ReadOnly, Retirement::Offline] {
            assert!(!disk.table.retire(2, to));
        }
        assert_eq!(disk.restarted().condition(2), Offline);
    }
}

#[test]
fn a_conventional_zone_has_no_such_condition() {
    let disk = new_disk();
    for to in [Retirement::ReadOnly, Retirement::Offline] {
        assert!(!disk.table.retire(1, to));
        assert!(!disk.table.retire(8, to), "there is no such zone");
    }
    assert_eq!(disk.condition(1), NotWp);
}

#[test]
fn the_resources_of_a_lost_zone_are_there_for_others() {
    let disk = disk_with_all_active();
    assert_eq!(disk.open(6), Err(Refusal::ActiveResource));
    assert!(disk.table.retire(2, Retirement::ReadOnly));
    assert_eq!(disk.table.open_and_active(), (2, 3));
    disk.open(6).unwrap();
    assert_eq!(disk.table.open_and_active(), (3, 4));
    // One that was opened implicitly is not closed once more to make room.
    let disk = new_disk();
    for zone in 2..5 {
        disk.write(zone * 64, 8).unwrap();
    }
    assert!(disk.table.retire(2, Retirement::Offline));
    disk.write(5 * 64, 8).unwrap();
    disk.write(6 * 64, 8).unwrap();
    let conditions: Vec<_> = (2..7).map(|zone| disk.condition(zone)).collect();
    assert_eq!(conditions, [Offline, Closed, ImplicitOpen, ImplicitOpen, ImplicitOpen]);
}

#[test]
fn what_is_under_way_in_a_lost_zone_ends_as_ever() {
    let disk = new_disk();
    let (a, b, c) = (disk.admit(128, 8), disk.admit(136, 8), disk.admit(144, 8));
    assert_eq!(disk.begin_reset(2, Ticket(1)), Err(Refusal::Busy));
    assert!(disk.table.retire(2, Retirement::ReadOnly));
    assert_eq!(disk.observed(2), ZoneState { condition: ReadOnly, wp_sectors: 0 });
    // The first leaves a gap before the second's data; the third gives its place back.
    assert_eq!(disk.table.settle(a, false), Settled::default());
    assert_eq!(disk.table.settle(b, true), Settled::default());
    assert_eq!(disk.observed(2), ZoneState { condition: ReadOnly, wp_sectors: 16 });
    assert_eq!(disk.table.settle(c, false), Settled { woken: vec![Ticket(1)], reread: None });
    assert_eq!(disk.observed(2), ZoneState { condition: ReadOnly, wp_sectors: 16 });
    assert_eq!((disk.read(128, 48), disk.table.open_and_active()), (Ok(plan(16, 32)), (0, 0)));
    assert_eq!(disk.reset(2), Err(Refusal::InvalidCommand), "who has waited is refused");
    // Not even a zone that was filled comes back.
    let disk = new_disk();
    let all = disk.admit(128, 48);
    assert!(disk.table.retire(2, Retirement::ReadOnly));
    disk.succeed(all);
    assert_eq!(disk.observed(2), ZoneState { condition: ReadOnly, wp_sectors: 48 });
}

#[test]
fn a_reset_or_finish_under_way_decides_itself() {
    for make in [Disk::begin_reset, Disk::begin_finish] {
        let disk = Disk::with(ExplicitOpen);
        let begun = make(&disk, 2, Ticket(1)).unwrap().unwrap();
        assert!(!disk.table.retire(2, Retirement::Offline));
        assert_eq!(disk.table.end(begun, ResetEnd::Undone), Settled::default());
        assert_eq!((disk.condition(2), disk.table.open_and_active()), (ExplicitOpen, (1, 1)));
        assert!(disk.table.retire(2, Retirement::Offline));
    }
}

#[test]
fn a_zone_whose_old_data_is_still_there_is_empty_and_takes_nothing_before_another_reset() {
    for from in [ImplicitOpen, ExplicitOpen, Closed, Full] {
        let disk = Disk::with(from);
        let begun = disk.begin_reset(2, Ticket(1)).unwrap().unwrap();
        assert_eq!(disk.table.end(begun, ResetEnd::Unswept), Settled::default());
        assert_eq!((disk.condition(2), disk.wp(2), disk.table.open_and_active()), (Empty, 0, (0, 0)));
        assert_eq!((disk.observed(2), disk.read(128, 64)), (ZoneState::EMPTY, Ok(plan(0, 64))));
        assert_eq!(disk.write(128, 8), Err(Refusal::Unswept));
        assert_eq!(disk.append(128, 8), Err(Refusal::Unswept));
        // Without data nothing can show.
        disk.open(2).unwrap();
        assert_eq!(disk.write(128, 8), Err(Refusal::Unswept));
        disk.close(2).unwrap();
        assert_eq!(disk.condition(2), Empty);

        // A reset of the empty zone is one, until it is done.
        for end in [ResetEnd::Undone, ResetEnd::Unswept] {
            let begun = disk.begin_reset(2, Ticket(1)).unwrap().unwrap();
            assert_eq!(disk.table.end(begun, end), Settled::default());
            assert_eq!((disk.condition(2), disk.write(128, 8)), (Empty, Err(Refusal::Unswept)));
        }
        let begun = disk.table.begin_reset_all(2, Ticket(1)).unwrap().unwrap();
        assert_eq!(disk.table.end(begun, ResetEnd::Done), Settled::default());
        assert_eq!(disk.begin_reset(2, Ticket(1)), Ok(None));
        assert_eq!(disk.write(128, 8), Ok(128));
    }
}
