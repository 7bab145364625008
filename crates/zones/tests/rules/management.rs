//! V13–V19, G1, G2: OPEN, CLOSE, FINISH, RESET and RESET_ALL.

use Condition::{Closed, Empty, ExplicitOpen, Full, ImplicitOpen, NotWp, Offline, ReadOnly};
use virtio_zbd_zones::{Condition, GeometryConfig, Refusal, ResetEnd, Ticket, ZoneState};

use crate::disk::{Disk, config, disk_with_all_active, new_disk, plan};

#[test]
fn v13_management_of_a_conventional_zone_is_invalid() {
    let disk = new_disk();
    disk.assert_every_management_is_invalid(1);
    assert_eq!(disk.condition(1), NotWp);
}

#[test]
fn v14_an_append_to_a_conventional_zone_is_invalid() {
    assert_eq!(new_disk().append(64, 8), Err(Refusal::InvalidCommand));
}

#[test]
fn v15_open_is_possible_from_empty_implicitly_open_closed_and_open() {
    for from in [Empty, ImplicitOpen, Closed, ExplicitOpen] {
        let disk = Disk::with(from);
        assert_eq!(disk.open(2), Ok(()), "{from:?}");
        assert_eq!(disk.condition(2), ExplicitOpen, "{from:?}");
        assert_eq!(disk.table.open_and_active(), (1, 1), "{from:?}");
    }
    for from in [Full, ReadOnly, Offline] {
        let disk = Disk::with(from);
        assert_eq!(disk.open(2), Err(Refusal::InvalidCommand), "{from:?}");
        assert_eq!(disk.condition(2), from);
    }
}

#[test]
fn v15_open_beyond_the_open_limit_changes_nothing() {
    let disk = new_disk();
    for zone in 2..5 {
        disk.open(zone).unwrap();
    }
    assert_eq!(disk.open(5), Err(Refusal::OpenResource));
    assert_eq!(disk.condition(5), Empty);
    assert_eq!(disk.table.open_and_active(), (3, 3));
}

#[test]
fn v15_open_beyond_the_active_limit_changes_nothing() {
    let disk = disk_with_all_active();
    disk.close(2).unwrap();
    assert_eq!(disk.table.open_and_active(), (2, 4));
    assert_eq!(disk.open(6), Err(Refusal::ActiveResource));
    assert_eq!(disk.condition(6), Empty);
    assert_eq!(disk.table.open_and_active(), (2, 4));
}

#[test]
fn v15_active_resource_wins_where_both_limits_are_exceeded() {
    let disk = disk_with_all_active();
    assert_eq!(disk.table.open_and_active(), (3, 4));
    assert_eq!(disk.open(6), Err(Refusal::ActiveResource));
    assert_eq!(disk.write(6 * 64, 8), Err(Refusal::ActiveResource));
    assert_eq!(disk.append(6 * 64, 8), Err(Refusal::ActiveResource));
    assert_eq!(disk.finish(6), Err(Refusal::ActiveResource));
    // Zone 5 is closed: it is active already, only the open limit is in its way.
    assert_eq!(disk.open(5), Err(Refusal::OpenResource));
    assert_eq!(disk.write(5 * 64 + 8, 8), Err(Refusal::OpenResource));
}

#[test]
fn v16_close_is_possible_from_open_and_closed() {
    for (from, to) in [(ImplicitOpen, Closed), (ExplicitOpen, Closed), (Closed, Closed)] {
        let disk = Disk::with(from);
        assert_eq!(disk.close(2), Ok(()), "{from:?}");
        assert_eq!((disk.condition(2), disk.wp(2)), (to, 8), "{from:?}");
        assert_eq!(disk.table.open_and_active(), (0, 1), "{from:?}");
    }
    for from in [ReadOnly, Offline] {
        assert_eq!(Disk::with(from).close(2), Err(Refusal::InvalidCommand), "{from:?}");
    }
}

#[test]
fn v16_close_of_an_open_zone_with_nothing_in_it_makes_it_empty() {
    let disk = new_disk();
    disk.open(2).unwrap();
    disk.close(2).unwrap();
    assert_eq!((disk.condition(2), disk.table.open_and_active()), (Empty, (0, 0)));
}

#[test]
fn v17_finish_is_possible_from_every_writable_condition_and_full() {
    for from in [Empty, ImplicitOpen, ExplicitOpen, Closed, Full] {
        let disk = Disk::with(from);
        assert_eq!(disk.finish(2), Ok(()), "{from:?}");
        assert_eq!((disk.condition(2), disk.table.open_and_active()), (Full, (0, 0)), "{from:?}");
        assert_eq!(disk.write(disk.table.report(2).unwrap().start + 8, 8), Err(Refusal::InvalidCommand));
    }
    for from in [ReadOnly, Offline] {
        let disk = Disk::with(from);
        assert_eq!(disk.finish(2), Err(Refusal::InvalidCommand), "{from:?}");
        assert_eq!(disk.condition(2), from);
    }
}

#[test]
fn v17_finish_of_a_full_zone_has_nothing_to_do() {
    let disk = Disk::with(Full);
    assert_eq!(disk.table.begin_finish(128, Ticket(1)), Ok(None));
    assert_eq!(disk.read(128, 48), Ok(plan(8, 40)), "how far it was written is not forgotten");
}

#[test]
fn v18_reset_is_possible_from_everything_but_read_only_and_offline() {
    for from in [Empty, ImplicitOpen, ExplicitOpen, Closed, Full] {
        let disk = Disk::with(from);
        assert_eq!(disk.reset(2), Ok(()), "{from:?}");
        assert_eq!((disk.condition(2), disk.wp(2)), (Empty, 0), "{from:?}");
        assert_eq!(disk.table.open_and_active(), (0, 0), "{from:?}");
        assert_eq!(disk.read(128, 48), Ok(plan(0, 48)), "{from:?}");
    }
    for from in [ReadOnly, Offline] {
        let disk = Disk::with(from);
        assert_eq!(disk.reset(2), Err(Refusal::InvalidCommand), "{from:?}");
        assert_eq!(disk.condition(2), from);
    }
}

#[test]
fn v18_reset_of_an_empty_zone_has_nothing_to_do() {
    assert_eq!(new_disk().table.begin_reset(128, Ticket(1)), Ok(None));
}

#[test]
fn v19_reset_all_empties_what_has_been_written_and_leaves_the_rest_alone() {
    let written = |condition| ZoneState { condition, wp_sectors: 8 };
    let states = [
        ZoneState::CONVENTIONAL,
        ZoneState::CONVENTIONAL,
        written(ImplicitOpen),
        written(ExplicitOpen),
        written(Closed),
        written(Full),
        written(ReadOnly),
        ZoneState { condition: Offline, wp_sectors: 0 },
    ];
    let disk = Disk::in_states(config(), &states);
    for zone in 0..8 {
        if let Some(begun) = disk.table.begin_reset_all(zone, Ticket(1)).unwrap() {
            let _ = disk.table.end(begun, ResetEnd::Done);
        }
    }
    let conditions: Vec<_> = (0..8).map(|zone| disk.condition(zone)).collect();
    assert_eq!(conditions, [NotWp, NotWp, Empty, Empty, Empty, Empty, ReadOnly, Offline]);
    assert_eq!(disk.table.open_and_active(), (0, 0));
    assert_eq!(disk.read(6 * 64, 64), Ok(plan(8, 56)), "the data of the read-only zone is still there");
    assert_eq!(disk.table.begin_reset_all(8, Ticket(1)), Ok(None), "there is no such zone");
}

#[test]
fn r8_management_names_the_start_of_a_zone() {
    let disk = Disk::with(ExplicitOpen);
    for sector in [129, 128 + 63, 488, 489, u64::MAX] {
        assert_eq!(disk.table.open(sector, Ticket(1)), Err(Refusal::InvalidCommand), "{sector}");
        assert_eq!(disk.table.close(sector, Ticket(1)), Err(Refusal::InvalidCommand), "{sector}");
        assert_eq!(disk.table.begin_finish(sector, Ticket(1)), Err(Refusal::InvalidCommand), "{sector}");
        assert_eq!(disk.table.begin_reset(sector, Ticket(1)), Err(Refusal::InvalidCommand), "{sector}");
    }
    assert_eq!(disk.condition(2), ExplicitOpen);
}

#[test]
fn g1_finish_from_empty_and_closed_needs_room_for_the_moment() {
    let disk = disk_with_all_active();
    assert_eq!(disk.finish(6), Err(Refusal::ActiveResource), "zone 6 is empty");
    assert_eq!(disk.finish(5), Err(Refusal::OpenResource), "zone 5 is closed");
    assert_eq!((disk.condition(5), disk.condition(6)), (Closed, Empty));
    disk.close(2).unwrap();
    assert_eq!(disk.finish(5), Ok(()));
    assert_eq!(disk.finish(6), Ok(()));
    assert_eq!(disk.finish(3), Ok(()), "an open zone needs nothing");
}

#[test]
fn g1_finish_may_close_an_implicitly_open_zone() {
    let disk = Disk::new(GeometryConfig { max_open_zones: 1, ..config() });
    disk.write(128, 8).unwrap();
    disk.finish(3).unwrap();
    assert_eq!((disk.condition(2), disk.condition(3)), (Closed, Full));
}

#[test]
fn g2_close_of_an_empty_or_full_zone_is_invalid() {
    for condition in [Empty, Full] {
        let disk = Disk::with(condition);
        assert_eq!(disk.close(2), Err(Refusal::InvalidCommand));
        assert_eq!(disk.condition(2), condition);
    }
}
