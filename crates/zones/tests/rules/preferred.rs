//! Sequential-write-preferred zones, and zones of several kinds and capacities beside each other.

use Condition::{Closed, Empty, ExplicitOpen, Full, ImplicitOpen, Offline, ReadOnly};
use virtio_zbd_zones::{
    Condition, Geometry, GeometryConfig, Model, ReadPlan, Refusal, ResetEnd, Retirement, Ticket, ZoneKind,
    ZoneLayout, ZoneRun, ZoneState,
};

use crate::disk::{Disk, config, plan};

/// The disk of the other rules, but host-aware: its sequential zones are preferred.
fn aware() -> Disk {
    disk(Model::HostAware, &[ZoneRun::conventional(2)], &[ZoneRun::preferred(1, 64)])
}

fn disk(model: Model, head: &[ZoneRun], cycle: &[ZoneRun]) -> Disk {
    let config = GeometryConfig { max_open_zones: 0, max_active_zones: 0, ..config() };
    let layout = ZoneLayout { model, head: head.to_vec(), cycle: cycle.to_vec() };
    Disk::of(Geometry::with_layout(config, layout).unwrap())
}

#[test]
fn a_preferred_zone_takes_every_write_and_its_write_pointer_is_behind_all_of_them() {
    let disk = aware();
    assert_eq!(disk.table.report(2).unwrap().kind, ZoneKind::SequentialPreferred);
    for (at, sectors, wp) in [(20, 7, 27), (0, 3, 27), (20, 7, 27), (27, 1, 28), (50, 5, 55)] {
        disk.write(128 + at, sectors).unwrap();
        assert_eq!((disk.condition(2), disk.wp(2)), (ImplicitOpen, wp));
        assert_eq!(disk.observed(2).wp_sectors, u32::try_from(wp).unwrap());
    }
    // Beyond it nothing was written (V30).
    assert_eq!(disk.read(128, 64), Ok(plan(55, 9)));
    disk.write(128 + 63, 1).unwrap();
    assert_eq!((disk.condition(2), disk.table.report(2).unwrap().wp), (Full, 192));
    disk.write(128, 64).unwrap();
    assert_eq!(disk.condition(2), Full, "a full one takes data, too");
}

#[test]
fn what_is_written_behind_a_finish_counts() {
    let disk = aware();
    disk.write(128, 8).unwrap();
    disk.finish(2).unwrap();
    assert_eq!(disk.read(128, 64), Ok(plan(8, 56)));
    disk.write(128 + 40, 4).unwrap();
    assert_eq!((disk.condition(2), disk.observed(2).wp_sectors), (Full, 44));
    assert_eq!(disk.read(128, 64), Ok(plan(44, 20)));
    let again = disk.restarted();
    assert_eq!((again.condition(2), again.read(128, 64)), (Full, Ok(plan(44, 20))));
}

#[test]
fn v14_v24_an_append_to_a_preferred_zone_is_invalid() {
    let disk = aware();
    assert_eq!(disk.append(128, 8), Err(Refusal::InvalidCommand));
    let none = GeometryConfig { max_open_zones: 0, max_active_zones: 0, max_append_sectors: 0, ..config() };
    let layout =
        ZoneLayout { model: Model::HostAware, head: Vec::new(), cycle: vec![ZoneRun::preferred(1, 64)] };
    let disk = Disk::of(Geometry::with_layout(none, layout).unwrap());
    assert_eq!(disk.append(128, 8), Err(Refusal::Unsupported));
}

#[test]
fn management_of_a_preferred_zone_is_that_of_a_required_one() {
    let disk = aware();
    disk.open(2).unwrap();
    assert_eq!(disk.condition(2), ExplicitOpen);
    disk.close(2).unwrap();
    assert_eq!(disk.condition(2), Empty);
    assert_eq!(disk.close(2), Err(Refusal::InvalidCommand), "G2");
    disk.write(130, 3).unwrap();
    disk.close(2).unwrap();
    assert_eq!((disk.condition(2), disk.wp(2)), (Closed, 5));
    disk.write(128, 1).unwrap();
    assert_eq!((disk.condition(2), disk.wp(2)), (ImplicitOpen, 5));
    disk.finish(2).unwrap();
    assert_eq!(disk.condition(2), Full);
    disk.reset(2).unwrap();
    assert_eq!((disk.condition(2), disk.wp(2), disk.read(128, 64)), (Empty, 0, Ok(plan(0, 64))));
}

#[test]
fn v25_only_zones_that_must_be_written_sequentially_can_not_be_crossed() {
    let head = [ZoneRun::conventional(1), ZoneRun::preferred(2, 64), ZoneRun::conventional(1)];
    let disk = disk(Model::HostManaged, &head, &[ZoneRun::required(1, 48)]);
    // From the first zone into the fourth, all of the two between.
    disk.write(60, 4 + 128 + 10).unwrap();
    assert_eq!((disk.condition(1), disk.condition(2)), (Full, Full));
    assert_eq!(disk.read(0, 256), Ok(plan(256, 0)));
    assert_eq!(disk.write(250, 8), Err(Refusal::InvalidCommand));
    assert_eq!(disk.read(250, 8), Err(Refusal::InvalidCommand));
    assert_eq!(disk.read(320 - 8, 16), Err(Refusal::InvalidCommand), "two required ones");
}

#[test]
fn a_read_across_zones_gets_what_each_of_them_has() {
    let disk = aware();
    disk.write(128 + 10, 10).unwrap();
    disk.write(256 + 30, 2).unwrap();
    let plan = disk.read(100, 250).unwrap();
    // To 128 conventional, to 148 zone 2, from 192 zone 3 with nothing, from 256 to 288 zone 4.
    let more = std::iter::once(156..188).collect();
    assert_eq!(plan, ReadPlan { stored_sectors: 48, zero_sectors: 170, more });
    disk.table.retire(3, Retirement::Offline);
    assert_eq!(disk.read(100, 250), Err(Refusal::InvalidCommand), "V29");
}

#[test]
fn a_write_across_zones_is_taken_by_all_of_them_or_none() {
    let disk = aware();
    disk.write(192, 8).unwrap();
    let begun = disk.begin_reset(3, Ticket(7)).unwrap();
    assert_eq!(disk.table.admit_write(128, 200, Ticket(8)).err(), Some(Refusal::Busy));
    assert_eq!((disk.condition(2), disk.condition(4)), (Empty, Empty), "untouched");
    // Zone 2 is free: nothing is under way in it.
    disk.write(130, 1).unwrap();
    disk.reset(2).unwrap();
    assert_eq!(disk.table.end(begun.unwrap(), ResetEnd::Done).woken, [Ticket(8)]);
    let grant = disk.admit(128, 200);
    assert_eq!(disk.begin_reset(4, Ticket(9)).err(), Some(Refusal::Busy), "it is under way in all of them");
    assert_eq!(disk.begin_reset(2, Ticket(10)).err(), Some(Refusal::Busy));
    assert_eq!(disk.table.settle(grant, true).woken, [Ticket(10), Ticket(9)]);
    assert_eq!([2, 3, 4, 5].map(|zone| disk.condition(zone)), [Full, Full, Full, ImplicitOpen]);
    assert_eq!(disk.wp(5), 8);
    for (to, condition) in [(Retirement::ReadOnly, ReadOnly), (Retirement::Offline, Offline)] {
        disk.table.retire(4, to);
        assert_eq!(disk.write(130, 200), Err(Refusal::InvalidCommand), "V28, V29: {condition:?}");
        assert_eq!(disk.condition(4), condition);
    }
}

#[test]
fn a_write_that_fails_moves_nothing_and_closes_what_it_has_opened() {
    let disk = aware();
    let (a, b) = (disk.admit(128 + 30, 8), disk.admit(128 + 34, 8));
    assert_eq!((disk.condition(2), disk.wp(2)), (ImplicitOpen, 0), "not before it has ended");
    let _ = disk.table.settle(a, false);
    assert_eq!(disk.condition(2), ImplicitOpen);
    let _ = disk.table.settle(b, false);
    assert_eq!((disk.condition(2), disk.observed(2)), (Empty, ZoneState::EMPTY));
    disk.write(128, 8).unwrap();
    let (a, b) = (disk.admit(128 + 30, 8), disk.admit(128, 40));
    let _ = disk.table.settle(b, true);
    let _ = disk.table.settle(a, false);
    assert_eq!(
        (disk.condition(2), disk.wp(2)),
        (ImplicitOpen, 40),
        "no data is lost by the failure of another write"
    );
}

#[test]
fn a_write_of_no_data_opens_nothing() {
    let disk = aware();
    disk.write(128 + 3, 0).unwrap();
    assert_eq!(disk.condition(2), Empty);
    disk.table.retire(2, Retirement::ReadOnly);
    assert_eq!(disk.write(128 + 3, 0), Err(Refusal::InvalidCommand));
}

#[test]
fn a_zone_whose_old_data_is_still_there_takes_no_write() {
    let disk = aware();
    disk.write(128, 64).unwrap();
    let begun = disk.begin_reset(2, Ticket(0)).unwrap().unwrap();
    let _ = disk.table.end(begun, ResetEnd::Unswept);
    assert_eq!(disk.write(100, 64), Err(Refusal::Unswept), "what it leaves out could show what was there");
    assert_eq!(disk.read(128, 64), Ok(plan(0, 64)));
    disk.reset(2).unwrap();
    disk.write(100, 64).unwrap();
    assert_eq!(disk.wp(2), 36);
}

#[test]
fn each_zone_has_a_capacity_of_its_own() {
    let cycle = [ZoneRun::required(1, 8), ZoneRun::required(1, 16), ZoneRun::required(1, 64)];
    let disk = disk(Model::HostManaged, &[ZoneRun::conventional(1)], &cycle);
    for (zone, capacity) in (1..8).zip([8, 16, 64, 8, 16, 64, 8]) {
        let report = disk.table.report(zone).unwrap();
        assert_eq!(report.capacity, capacity);
        let too_long = disk.write(report.start, u32::try_from(capacity).unwrap() + 8);
        assert_eq!(too_long, Err(Refusal::InvalidCommand), "V22: {zone}");
        disk.write(report.start, u32::try_from(capacity).unwrap()).unwrap();
        assert_eq!(disk.condition(zone), Full);
    }
}
