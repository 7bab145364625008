//! Several requests at once: what is not in the specification, and follows from writes that take time.

use Condition::{Closed, Empty, ExplicitOpen, Full, ImplicitOpen, Offline};
use virtio_zbd_zones::{Condition, GeometryConfig, Refusal, ResetEnd, Settled, Ticket, ZoneState};

use crate::disk::{Disk, config, disk_with_all_active, new_disk, plan};

#[test]
fn a_failed_write_before_data_leaves_a_gap() {
    let disk = new_disk();
    let (a, b, c) = (disk.admit(128, 8), disk.admit(136, 8), disk.admit(144, 8));
    assert_eq!(
        disk.table.settle(b, false),
        Settled::default(),
        "it is not known yet whether data comes behind it"
    );
    assert_eq!(disk.table.settle(c, true), Settled::default());
    assert_eq!(disk.table.settle(a, true), Settled::default());
    assert_eq!((disk.wp(2), disk.observed(2).wp_sectors), (24, 24));
    assert_eq!(disk.read(128, 48), Ok(plan(24, 24)), "the gap is read from the store, where there are zeros");
    let next = disk.admit(152, 8);
    assert_eq!(disk.table.settle(next, false), Settled::default());
    assert_eq!(disk.wp(2), 24, "only the last one gives its place back");
}

/// Zeros that come late must not fall on what is written after a reset.
#[test]
fn a_failed_write_keeps_its_zone_from_a_reset_until_it_is_settled() {
    for make in [Disk::begin_reset, Disk::begin_finish] {
        let disk = new_disk();
        let (failed, data) = (disk.admit(128, 8), disk.admit(136, 40));
        assert_eq!(disk.table.settle(data, true), Settled::default());
        assert_eq!(
            (disk.condition(2), disk.observed(2).condition),
            (ImplicitOpen, ImplicitOpen),
            "not full yet"
        );
        disk.close(2).unwrap();
        disk.open(2).unwrap();
        assert_eq!(make(&disk, 2, Ticket(7)), Err(Refusal::Busy));
        assert_eq!(disk.table.settle(failed, false), Settled { woken: vec![Ticket(7)], reread: None });
        assert_eq!(disk.condition(2), Full);
        let begun = make(&disk, 2, Ticket(8)).unwrap();
        disk.done(begun);
    }
}

#[test]
fn a_write_is_admitted_beside_a_failed_one_that_is_not_settled() {
    let disk = new_disk();
    let failed = disk.admit(128, 8);
    assert_eq!(disk.write(136, 8), Ok(136));
    assert_eq!(disk.append(128, 8), Ok(144));
    assert_eq!(disk.table.settle(failed, false), Settled::default());
    assert_eq!((disk.condition(2), disk.wp(2)), (ImplicitOpen, 24));
}

#[test]
fn failed_writes_that_nothing_comes_behind_give_their_places_back() {
    let disk = new_disk();
    let (a, b, c) = (disk.admit(128, 8), disk.admit(136, 8), disk.admit(144, 8));
    assert_eq!(disk.table.settle(b, false), Settled::default());
    assert_eq!(disk.wp(2), 24, "the last one is under way");
    assert_eq!(disk.table.settle(c, false), Settled::default());
    assert_eq!(disk.wp(2), 8);
    assert_eq!(disk.table.settle(a, true), Settled::default());
    assert_eq!((disk.condition(2), disk.wp(2)), (ImplicitOpen, 8));
}

#[test]
fn a_reset_or_finish_waits_for_the_writes_of_its_zone() {
    for make in [Disk::begin_reset, Disk::begin_finish] {
        let disk = new_disk();
        let (a, b) = (disk.admit(128, 8), disk.admit(136, 8));
        assert_eq!(make(&disk, 2, Ticket(7)), Err(Refusal::Busy));
        assert_eq!(disk.table.admit_append(128, 8, Ticket(8)), Err(Refusal::Busy), "nobody overtakes it");
        assert_eq!(disk.table.open(128, Ticket(9)), Err(Refusal::Busy));
        assert_eq!(disk.table.settle(a, true).woken, []);
        assert_eq!(disk.table.settle(b, true).woken, [Ticket(7), Ticket(8), Ticket(9)]);
        let begun = make(&disk, 2, Ticket(10)).unwrap().unwrap();
        assert_eq!(begun.zone(), 2);
        assert_eq!(disk.table.end(begun, ResetEnd::Done), Settled::default(), "no ticket comes twice");
    }
}

#[test]
fn a_zone_admits_nothing_while_it_is_reset_or_finished() {
    for make in [Disk::begin_reset, Disk::begin_finish] {
        let disk = Disk::with(ExplicitOpen);
        let begun = make(&disk, 2, Ticket(1)).unwrap().unwrap();
        assert_eq!(disk.table.admit_write(128, 8, Ticket(2)), Err(Refusal::Busy));
        assert_eq!(disk.table.admit_append(128, 8, Ticket(3)), Err(Refusal::Busy));
        assert_eq!(disk.table.open(128, Ticket(4)), Err(Refusal::Busy));
        assert_eq!(disk.table.close(128, Ticket(5)), Err(Refusal::Busy));
        assert_eq!(disk.table.begin_finish(128, Ticket(6)), Err(Refusal::Busy));
        assert_eq!(disk.table.begin_reset(128, Ticket(7)), Err(Refusal::Busy));
        assert_eq!(disk.table.begin_reset_all(2, Ticket(8)), Err(Refusal::Busy));
        assert_eq!(disk.write(192, 8), Ok(192), "the other zones are not concerned");
        let woken: Vec<Ticket> = (2..=8).map(Ticket).collect();
        assert_eq!(disk.table.end(begun, ResetEnd::Done), Settled { woken, reread: None });
    }
}

#[test]
fn a_reset_or_finish_holds_its_resources_until_it_has_ended() {
    for make in [Disk::begin_reset, Disk::begin_finish] {
        let disk = disk_with_all_active();
        let begun = make(&disk, 2, Ticket(1)).unwrap().unwrap();
        assert_eq!(disk.table.open_and_active(), (3, 4));
        assert_eq!(disk.open(5), Err(Refusal::OpenResource));
        assert_eq!(disk.open(6), Err(Refusal::ActiveResource));
        assert_eq!(disk.table.end(begun, ResetEnd::Done), Settled::default());
        assert_eq!(disk.table.open_and_active(), (2, 3));
        assert_eq!(disk.open(6), Ok(()));
    }
}

#[test]
fn a_reset_or_finish_that_is_undone_leaves_the_zone_as_it_was() {
    for make in [Disk::begin_reset, Disk::begin_finish] {
        for from in [ExplicitOpen, Closed] {
            let disk = Disk::with(from);
            let (before, uses) = (disk.table.report(2), disk.table.open_and_active());
            let begun = make(&disk, 2, Ticket(1)).unwrap().unwrap();
            assert_eq!(disk.table.end(begun, ResetEnd::Undone), Settled::default());
            assert_eq!((disk.table.report(2), disk.table.open_and_active()), (before, uses), "{from:?}");
            assert_eq!(disk.observed(2), ZoneState { condition: from, wp_sectors: 8 });
            assert_eq!(disk.read(128, 48), Ok(plan(8, 40)));
        }
    }
    let disk = Disk::with(Full);
    let begun = disk.begin_reset(2, Ticket(1)).unwrap().unwrap();
    assert_eq!(disk.table.end(begun, ResetEnd::Undone), Settled::default());
    assert_eq!((disk.condition(2), disk.read(128, 48)), (Full, Ok(plan(8, 40))));
    let disk = new_disk();
    let begun = disk.begin_finish(2, Ticket(1)).unwrap().unwrap();
    assert_eq!(disk.table.end(begun, ResetEnd::Undone), Settled::default());
    assert_eq!((disk.condition(2), disk.table.open_and_active()), (Empty, (0, 0)));
}

#[test]
fn an_implicitly_open_zone_comes_back_closed_from_an_undone_reset_or_finish() {
    for make in [Disk::begin_reset, Disk::begin_finish] {
        let disk = Disk::with(ImplicitOpen);
        let begun = make(&disk, 2, Ticket(1)).unwrap().unwrap();
        assert_eq!(
            disk.table.open_and_active(),
            (0, 1),
            "it gives the open resource back and keeps the other"
        );
        assert_eq!(disk.table.end(begun, ResetEnd::Undone), Settled::default());
        assert_eq!((disk.condition(2), disk.wp(2), disk.table.open_and_active()), (Closed, 8, (0, 1)));
        assert_eq!(disk.observed(2), ZoneState { condition: Closed, wp_sectors: 8 });
        assert_eq!(disk.write(136, 8), Ok(136));
        assert_eq!((disk.condition(2), disk.table.open_and_active()), (ImplicitOpen, (1, 1)));
    }
}

/// Its open resource is there for others at any time (V27).
#[test]
fn v27_an_implicitly_open_zone_is_in_nobodys_way_while_it_is_reset_or_finished() {
    for make in [Disk::begin_reset, Disk::begin_finish] {
        let disk = Disk::new(GeometryConfig { max_open_zones: 1, ..config() });
        disk.write(128, 8).unwrap();
        let begun = make(&disk, 2, Ticket(1)).unwrap();
        assert_eq!(disk.write(192, 8), Ok(192));
        assert_eq!((disk.condition(3), disk.table.open_and_active()), (ImplicitOpen, (1, 2)));
        disk.open(4).unwrap();
        assert_eq!((disk.condition(3), disk.table.open_and_active()), (Closed, (1, 3)));
        disk.done(begun);
        assert_eq!(disk.table.open_and_active(), (1, 2));
    }
}

#[test]
fn a_zone_whose_data_is_lost_goes_offline() {
    let disk = Disk::with(ImplicitOpen);
    let begun = disk.begin_reset(2, Ticket(1)).unwrap().unwrap();
    assert_eq!(disk.table.end(begun, ResetEnd::Lost), Settled::default());
    assert_eq!((disk.condition(2), disk.table.open_and_active()), (Offline, (0, 0)));
    assert_eq!(disk.observed(2), ZoneState { condition: Offline, wp_sectors: 0 });
    disk.assert_every_management_is_invalid(2);
}

#[test]
fn close_and_open_do_not_wait_for_writes() {
    let disk = new_disk();
    let under_way = disk.admit(128, 8);
    disk.close(2).unwrap();
    assert_eq!((disk.condition(2), disk.wp(2)), (Closed, 8));
    disk.open(2).unwrap();
    assert_eq!(disk.table.settle(under_way, false), Settled::default());
    assert_eq!((disk.condition(2), disk.wp(2)), (ExplicitOpen, 0), "the driver has opened it: it stays open");
}

#[test]
fn tickets_come_back_when_the_zone_has_come_to_rest() {
    let disk = new_disk();
    let (a, b) = (disk.admit(128, 8), disk.admit(136, 40));
    assert_eq!(disk.begin_reset(2, Ticket(1)), Err(Refusal::Busy));
    assert_eq!(disk.table.settle(a, true), Settled::default());
    assert_eq!(disk.table.settle(b, true), Settled { woken: vec![Ticket(1)], reread: None });
    assert_eq!((disk.condition(2), disk.table.open_and_active()), (Full, (0, 0)));
    assert_eq!(disk.reset(2), Ok(()));
    assert_eq!(disk.write(128, 8), Ok(128));
}
