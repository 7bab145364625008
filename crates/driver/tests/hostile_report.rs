//! Devices that lie about their zones (L8, L9, B1): each lie is one change to an honest report.
//!
//! Two lies are tried in each place where zones are reported: while the disk is taken into use (L12), where it is refused, and later,
//! where the one call fails and the disk stays usable.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use common::rig::{Blk, assert_usable, attach, cases, expected_zones, refusal_of, rig, zones};
use common::{FakeDevice, Reply, Request, Shape, Watch, on_both_hals};
use virtio_zbd_driver::{DeviceError, Error, Hal, Wrong, Zone};
use virtio_zbd_spec::{RequestType, Status, ZoneState, ZoneType};

on_both_hals!(
    honest_reports,
    b1_more_zones_than_the_buffer_holds,
    more_zones_than_the_disk_has,
    no_zones,
    fewer_zones_than_asked_for,
    zones_in_the_wrong_place,
    a_report_that_begins_elsewhere,
    the_same_report_again_and_again,
    one_zone_at_a_time,
    capacities_that_can_not_be,
    write_pointers_that_can_not_be,
    unknown_types_and_states,
    states_that_are_not_of_the_type,
    l9_runts,
    l9_write_pointers_without_meaning,
    reports_that_are_cut_short,
    descriptors_left_unwritten,
    reports_that_fail,
    reserved_bytes_do_not_matter,
);

/// A disk of which one report holds 7 zones of 9.
fn small_reports() -> Shape {
    Shape { seg_max: Some(1), size_max: Some(512), granularity_bytes: 512, ..Shape::default() }
}

const CAP: usize = 0;
const START: usize = 8;
const WP: usize = 16;
const TYPE: usize = 24;
const STATE: usize = 25;

/// Where a field of the `zone`-th descriptor is in a report.
fn at(zone: usize, field: usize) -> usize {
    64 + 64 * zone + field
}

/// The zones that come before the first error, and that error. Then the device is honest again, and the disk still works.
fn with_lie<H: Hal>(
    device: &FakeDevice,
    disk: &mut Blk<H>,
    lie: impl FnMut(&Request, &mut Reply) + Send + 'static,
) -> (usize, Result<(), Error>) {
    device.lie_to(RequestType::ZoneReport, lie);
    device.take_log();
    let mut good = 0;
    let mut end = Ok(());
    let mut zones = disk.zones(0).unwrap();
    // Twice as many zones as there are would be an endless loop.
    for zone in zones.by_ref().take(40) {
        match zone {
            Ok(_) => good += 1,
            Err(error) => end = Err(error),
        }
    }
    assert!(zones.next().is_none(), "the iterator goes on");
    let requests = device.take_log().len();
    assert!(requests <= good + 1, "{requests} reports for {good} zones");
    device.be_honest();
    assert_usable(device, disk);
    (good, end)
}

/// As [`with_lie`], where the lie is about the zone at sector 192, the fourth of nine; and the same lie told to a driver that takes the
/// disk into use.
fn lie_about_zone_3<H: Hal>(lie: impl Fn(&mut Reply) + Clone + Send + 'static) -> Wrong {
    let (device, mut disk) = rig::<H>(Shape::default());
    let told = lie.clone();
    let (good, end) = with_lie(&device, &mut disk, move |_, reply| told(reply));
    let Err(Error::Wrong(wrong)) = end else { panic!("{end:?}") };
    assert_eq!(good, 3, "{wrong:?}");
    // The same in a report that begins there: it is about the first descriptor now.
    device.lie_to(RequestType::ZoneReport, {
        let lie = lie.clone();
        move |request, reply| {
            assert_eq!(request.sector, 192);
            // The zones before it are put in front, so that the lie finds its place, and taken away again.
            reply.data.splice(64..64, [0; 3 * 64]);
            lie(reply);
            reply.data.drain(64..64 + 3 * 64);
        }
    });
    assert_eq!(disk.zone(192 + 5), Err(Error::Wrong(wrong)));
    drop(disk);
    if !cfg!(miri) {
        assert_eq!(refusal_of::<H>(&told_to_everybody(lie)), Error::Wrong(wrong));
    }
    wrong
}

fn told_to_everybody(lie: impl Fn(&mut Reply) + Send + 'static) -> FakeDevice {
    let device = FakeDevice::new(Shape::default());
    device.lie_to(RequestType::ZoneReport, move |_, reply| lie(reply));
    device
}

fn set(zone: usize, field: usize, value: u64) -> impl Fn(&mut Reply) + Clone + Send {
    move |reply| reply.patch(at(zone, field), &value.to_le_bytes())
}

fn set_byte(zone: usize, field: usize, value: u8) -> impl Fn(&mut Reply) + Clone + Send {
    move |reply| reply.patch(at(zone, field), &[value])
}

fn honest_reports<H: Hal>() {
    let _watch = Watch::begin();
    // One request, several, and many of them; zones of every state.
    for (seg_max, size_max) in [(16, None), (1, Some(512)), (2, Some(300))] {
        let (device, mut disk) =
            rig::<H>(Shape { seg_max: Some(seg_max), size_max, conventional: 1, ..small_reports() });
        device.disk(|disk| {
            let states = [
                (ZoneState::Closed, 8),
                (ZoneState::Full, 48),
                (ZoneState::ImplicitOpen, 16),
                (ZoneState::ReadOnly, 0),
                (ZoneState::Offline, 0),
                (ZoneState::ExplicitOpen, 0),
                (ZoneState::Full, 8),
            ];
            for (zone, (state, written)) in disk.zones[1..].iter_mut().zip(states) {
                (zone.state, zone.wp) = (state, zone.start + written);
            }
        });
        let expected = device.disk(|disk| expected_zones(disk));
        assert_eq!(zones(&mut disk), expected);
        // R7: from any sector of a zone on.
        for from in [0, 1, 63, 64, 200, 511, 512, 551] {
            let first = usize::try_from(from / 64).unwrap();
            let found: Result<Vec<Zone>, Error> = disk.zones(from).unwrap().collect();
            assert_eq!(found.unwrap(), expected[first..]);
            assert_eq!(disk.zone(from), Ok(expected[first]));
        }
        for from in [552, 553, 600, u64::MAX] {
            assert!(matches!(disk.zones(from).map(|_| ()), Err(Error::Invalid(_))));
            assert!(matches!(disk.zone(from), Err(Error::Invalid(_))));
        }
        // An iterator that is not used to its end holds nothing.
        assert_eq!(disk.zones(0).unwrap().next(), Some(Ok(expected[0])));
        assert_eq!(disk.zones(0).unwrap().count(), 9);
    }
}

fn b1_more_zones_than_the_buffer_holds<H: Hal>() {
    let _watch = Watch::begin();
    // Room for 7 zones of 9.
    let shape = small_reports();
    for nr_zones in cases([8, u64::MAX, 1 << 58, (1 << 58) + 7, 9, 10, 1 << 32, 1 << 63, u64::MAX / 64]) {
        let (device, mut disk) = rig::<H>(shape.clone());
        let (good, end) =
            with_lie(&device, &mut disk, move |_, reply| reply.patch(0, &nr_zones.to_le_bytes()));
        assert_eq!((good, end), (0, Err(Error::Wrong(Wrong::ReportOverrun { nr_zones, room: 7 }))));
        drop(disk);
        let device = FakeDevice::new(shape.clone());
        device.lie_to(RequestType::ZoneReport, move |_, reply| reply.patch(0, &nr_zones.to_le_bytes()));
        let error = refusal_of::<H>(&device);
        assert_eq!(error, Error::Wrong(Wrong::ReportOverrun { nr_zones, room: 7 }));
    }
}

fn more_zones_than_the_disk_has<H: Hal>() {
    let _watch = Watch::begin();
    // The buffer of a short report has room for 7, at the disk's end there are fewer.
    let (device, mut disk) = rig::<H>(small_reports());
    let (good, end) = with_lie(&device, &mut disk, |request, reply| {
        if request.sector == 7 * 64 {
            reply.patch(0, &3_u64.to_le_bytes());
            let next = Shape { capacity_sectors: 10 * 64, ..Shape::default() };
            let zone = common::Disk::new(next).zones[9].descriptor();
            reply.patch(at(2, 0), zerocopy::IntoBytes::as_bytes(&zone));
        }
    });
    assert_eq!(good, 7);
    let expected = Wrong::ReportBeyondEnd { nr_zones: 3, sector: 7 * 64, left: 2 };
    assert_eq!(end, Err(Error::Wrong(expected)));
}

fn no_zones<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    let (good, end) = with_lie(&device, &mut disk, |_, reply| reply.patch(0, &[0; 8]));
    assert_eq!((good, end), (0, Err(Error::Wrong(Wrong::ReportEmpty { sector: 0 }))));
    // Not in the first report, but then.
    let (good, end) = with_lie(&device, &mut disk, |request, reply| {
        reply.patch(0, &u64::from(request.sector == 0).to_le_bytes());
    });
    assert_eq!((good, end), (1, Err(Error::Wrong(Wrong::ReportEmpty { sector: 64 }))));
    device.lie_to(RequestType::ZoneReport, |_, reply| reply.patch(0, &[0; 8]));
    assert_eq!(disk.zone(130), Err(Error::Wrong(Wrong::ReportEmpty { sector: 128 })));
    drop(disk);
    assert_eq!(refusal_of::<H>(&device), Error::Wrong(Wrong::ReportEmpty { sector: 0 }));
}

fn fewer_zones_than_asked_for<H: Hal>() {
    let _watch = Watch::begin();
    // That is no lie: the device may give what it likes, if it goes on.
    for some in 1..4_u64 {
        let (device, mut disk) = rig::<H>(Shape::default());
        let (good, end) = with_lie(&device, &mut disk, move |_, reply| {
            let honest = u64::from_le_bytes(reply.data[..8].try_into().unwrap());
            reply.patch(0, &some.min(honest).to_le_bytes());
        });
        assert_eq!((good, end), (9, Ok(())));
    }
}

fn zones_in_the_wrong_place<H: Hal>() {
    let _watch = Watch::begin();
    // Backwards, the same again, overlapping, with a gap, far away, out of order.
    for start in cases([0, 193, u64::MAX, 128, 191, 200, 256, 512, 552, u64::MAX - 191]) {
        let wrong = lie_about_zone_3::<H>(set(3, START, start));
        assert_eq!(wrong, Wrong::ZoneStart { expected_sector: 192, found_sector: start });
    }
    let swapped = |reply: &mut Reply| {
        let (third, fourth) =
            (reply.data[at(3, 0)..at(4, 0)].to_vec(), reply.data[at(4, 0)..at(5, 0)].to_vec());
        reply.patch(at(3, 0), &fourth);
        reply.patch(at(4, 0), &third);
    };
    let (device, mut disk) = rig::<H>(Shape::default());
    let (good, end) = with_lie(&device, &mut disk, move |_, reply| swapped(reply));
    let expected = Wrong::ZoneStart { expected_sector: 192, found_sector: 256 };
    assert_eq!((good, end), (3, Err(Error::Wrong(expected))));
}

fn a_report_that_begins_elsewhere<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    // The zone before and the zone after the one that was asked for.
    for (by, found_sector) in [(-64_i64, 64), (64, 192)] {
        device.lie(move |request, reply, face| {
            if request.is(RequestType::ZoneReport) {
                let sector = request.sector.strict_add_signed(by);
                let answer = face.disk.request(request.kind, sector, &[], request.room(), true);
                reply.data = answer.data;
            }
        });
        let expected = Wrong::ZoneStart { expected_sector: 128, found_sector };
        assert_eq!(disk.zone(130), Err(Error::Wrong(expected)));
        assert_eq!(disk.zones(130).unwrap().next(), Some(Err(Error::Wrong(expected))));
        device.be_honest();
        assert_usable(&device, &mut disk);
    }
}

fn the_same_report_again_and_again<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(small_reports());
    let mut first = None;
    let (good, end) = with_lie(&device, &mut disk, move |_, reply| {
        reply.data = first.get_or_insert_with(|| reply.data.clone()).clone();
        // In the second report there are two zones to tell of.
        if reply.data.len() > 64 * 3 && first.is_some() {
            let nr_zones = reply.data[0].min(2);
            reply.patch(0, &[nr_zones]);
        }
    });
    assert_eq!(good, 2);
    let expected = Wrong::ZoneStart { expected_sector: 128, found_sector: 0 };
    assert_eq!(end, Err(Error::Wrong(expected)));
}

fn one_zone_at_a_time<H: Hal>() {
    let _watch = Watch::begin();
    // `with_lie` counts the requests.
    let (device, mut disk) = rig::<H>(Shape::default());
    let (good, end) = with_lie(&device, &mut disk, |_, reply| reply.patch(0, &1_u64.to_le_bytes()));
    assert_eq!((good, end), (9, Ok(())));
}

fn capacities_that_can_not_be<H: Hal>() {
    let _watch = Watch::begin();
    // A sequential zone can be shorter than its place, not longer, and there is something in it.
    for found_sectors in cases([0, 65, u64::MAX, 1 << 32, 1 << 63]) {
        let wrong = lie_about_zone_3::<H>(set(3, CAP, found_sectors));
        assert_eq!(wrong, Wrong::ZoneCapacity { start_sector: 192, len_sectors: 64, found_sectors });
    }
    // A conventional one has all of its sectors.
    let (device, mut disk) = rig::<H>(Shape::default());
    for found_sectors in [0, 1, 63, 65, u64::MAX] {
        let (good, end) = with_lie(&device, &mut disk, move |_, reply| set(1, CAP, found_sectors)(reply));
        let expected = Wrong::ZoneCapacity { start_sector: 64, len_sectors: 64, found_sectors };
        assert_eq!((good, end), (1, Err(Error::Wrong(expected))));
    }
}

fn write_pointers_that_can_not_be<H: Hal>() {
    let _watch = Watch::begin();
    for (state, wps) in [
        (ZoneState::Empty, vec![0, 191, 193, 240, u64::MAX]),
        (ZoneState::ImplicitOpen, vec![0, 191, 241, 256, u64::MAX]),
        (ZoneState::ExplicitOpen, vec![0, 191, 241, 1 << 63, u64::MAX]),
        (ZoneState::Closed, vec![0, 191, 241, 256, u64::MAX]),
    ] {
        for found_sector in cases(wps).take(if cfg!(miri) { 1 } else { usize::MAX }) {
            let wrong = lie_about_zone_3::<H>(move |reply| {
                set_byte(3, STATE, state.into())(reply);
                set(3, WP, found_sector)(reply);
            });
            assert_eq!(wrong, Wrong::ZoneWritePointer { start_sector: 192, state, found_sector });
        }
    }
}

fn unknown_types_and_states<H: Hal>() {
    let _watch = Watch::begin();
    for found in cases([0, 4, 0xff, 5, 0x80]) {
        let wrong = lie_about_zone_3::<H>(set_byte(3, TYPE, found));
        assert_eq!(wrong, Wrong::ZoneType { start_sector: 192, found });
    }
    for found in cases([5, 16, 0xff, 6, 12, 0x0f | 0x10]) {
        let wrong = lie_about_zone_3::<H>(set_byte(3, STATE, found));
        assert_eq!(wrong, Wrong::ZoneState { start_sector: 192, found });
    }
}

fn states_that_are_not_of_the_type<H: Hal>() {
    let _watch = Watch::begin();
    let wrong = lie_about_zone_3::<H>(set_byte(3, STATE, ZoneState::NotWp.into()));
    let (start_sector, kind, state) = (192, ZoneType::SequentialRequired, ZoneState::NotWp);
    assert_eq!(wrong, Wrong::ZoneStateOfType { start_sector, kind, state });
    let (device, mut disk) = rig::<H>(Shape::default());
    for state in [
        ZoneState::Empty,
        ZoneState::ImplicitOpen,
        ZoneState::ExplicitOpen,
        ZoneState::Closed,
        ZoneState::Full,
    ] {
        let (good, end) =
            with_lie(&device, &mut disk, move |_, reply| set_byte(1, STATE, state.into())(reply));
        let expected = Wrong::ZoneStateOfType { start_sector: 64, kind: ZoneType::Conventional, state };
        assert_eq!((good, end), (1, Err(Error::Wrong(expected))));
    }
}

fn l9_runts<H: Hal>() {
    let _watch = Watch::begin();
    // The last zone's length is what the disk's capacity leaves of it.
    let (device, mut disk) = rig::<H>(Shape { capacity_sectors: 2 * 64 + 40, ..Shape::default() });
    assert_eq!(disk.zone(128).unwrap().len_sectors, 40);
    let (good, end) = with_lie(&device, &mut disk, |_, reply| set(2, CAP, 41)(reply));
    let expected = Wrong::ZoneCapacity { start_sector: 128, len_sectors: 40, found_sectors: 41 };
    assert_eq!((good, end), (2, Err(Error::Wrong(expected))));
    // Written to the brim, it is full at its own end.
    device.disk(|disk| disk.zones[2].state = ZoneState::Full);
    assert_eq!(disk.zone(150).unwrap().write_pointer_sector, Some(128 + 40));
    drop(disk);
    // A conventional runt.
    let (_, mut disk) = rig::<H>(Shape { capacity_sectors: 64 + 8, ..Shape::default() });
    let zone = disk.zone(71).unwrap();
    assert_eq!((zone.start_sector, zone.len_sectors, zone.capacity_sectors), (64, 8, 8));
    // No runt where the capacity leaves none.
    let (_, mut disk) = rig::<H>(Shape { capacity_sectors: 3 * 64, ..Shape::default() });
    assert_eq!(disk.zone(191).unwrap().len_sectors, 64);
}

fn l9_write_pointers_without_meaning<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    for wp in cases([0, 192, u64::MAX, 200, 1 << 40]) {
        for (state, expected) in
            [(ZoneState::Full, Some(256)), (ZoneState::ReadOnly, None), (ZoneState::Offline, None)]
        {
            device.lie_to(RequestType::ZoneReport, move |_, reply| {
                set_byte(0, STATE, state.into())(reply);
                set(0, WP, wp)(reply);
            });
            let zone = disk.zone(192).unwrap();
            assert_eq!((zone.state, zone.write_pointer_sector), (state, expected));
            device.be_honest();
        }
        device.lie_to(RequestType::ZoneReport, move |_, reply| set(0, WP, wp)(reply));
        assert_eq!(disk.zone(64).unwrap().write_pointer_sector, None);
        device.be_honest();
    }
    assert_usable(&device, &mut disk);
}

fn reports_that_are_cut_short<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    // The device says OK, and that it wrote less than what it says is there. The rest does not count.
    let start = |expected_sector, found_sector| Wrong::ZoneStart { expected_sector, found_sector };
    for (len, expected_good, wrong) in [
        (0, 0, Wrong::ReportEmpty { sector: 0 }),
        (1, 0, Wrong::ZoneType { start_sector: 0, found: 0 }),
        (64, 0, Wrong::ZoneType { start_sector: 0, found: 0 }),
        (64 + 26, 1, start(64, 0)),
        (64 + 64, 1, start(64, 0)),
        (64 + 64 + 17, 1, Wrong::ZoneType { start_sector: 64, found: 0 }),
        (64 + 64 * 8, 8, start(512, 0)),
    ] {
        let (good, end) = with_lie(&device, &mut disk, move |_, reply| reply.set_used_len(len));
        assert_eq!((good, end), (expected_good, Err(Error::Wrong(wrong))), "{len} bytes");
    }
    // It need not write more than it has zones for.
    let (good, end) = with_lie(&device, &mut disk, |_, reply| {
        let nr_zones = reply.data[0].min(2);
        reply.patch(0, &[nr_zones]);
        reply.data.truncate(64 + 64 * usize::from(nr_zones));
        reply.set_used_len(64 + 64 * u32::from(nr_zones));
    });
    assert_eq!((good, end), (9, Ok(())));
}

fn descriptors_left_unwritten<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    // The driver has had good reports in its memory before.
    assert_eq!(zones(&mut disk).len(), 9);
    // Nothing is written, and it says otherwise.
    let (good, end) = with_lie(&device, &mut disk, |_, reply| reply.data.clear());
    assert_eq!((good, end), (0, Err(Error::Wrong(Wrong::ReportEmpty { sector: 0 }))));
    // Only three are.
    let (good, end) = with_lie(&device, &mut disk, |_, reply| reply.data.truncate(64 + 3 * 64));
    let expected = Wrong::ZoneStart { expected_sector: 192, found_sector: 0 };
    assert_eq!((good, end), (3, Err(Error::Wrong(expected))));
    // The first is not, where zeros would be its place.
    let (good, end) = with_lie(&device, &mut disk, |_, reply| reply.data.truncate(64));
    assert_eq!((good, end), (0, Err(Error::Wrong(Wrong::ZoneType { start_sector: 0, found: 0 }))));
    // In the second report of several, the first one's bytes are not taken again.
    drop(disk);
    let (device, mut disk) = rig::<H>(small_reports());
    let (good, end) = with_lie(&device, &mut disk, |request, reply| {
        if request.sector != 0 {
            reply.data.clear();
        }
    });
    assert_eq!((good, end), (7, Err(Error::Wrong(Wrong::ReportEmpty { sector: 7 * 64 }))));
}

fn reports_that_fail<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(small_reports());
    for (status, error) in [
        (Status::IoErr, DeviceError::IoError),
        (Status::Unsupp, DeviceError::Unsupported),
        (Status::ZoneInvalidCmd, DeviceError::InvalidCommand),
        (Status::ZoneActiveResource, DeviceError::ActiveResource),
    ] {
        // In the second report.
        let (good, end) = with_lie(&device, &mut disk, move |request, reply| {
            if request.sector != 0 {
                reply.set_status(status.into());
            }
        });
        let expected = Error::Device { request: RequestType::ZoneReport, sector: 7 * 64, status: error };
        assert_eq!((good, end), (7, Err(expected)));
    }
    let (good, end) = with_lie(&device, &mut disk, |_, reply| reply.set_status(7));
    assert_eq!((good, end), (0, Err(Error::Wrong(Wrong::Status(7)))));
    device.lie_to(RequestType::ZoneReport, |_, reply| reply.set_status(Status::IoErr.into()));
    let expected =
        Error::Device { request: RequestType::ZoneReport, sector: 64, status: DeviceError::IoError };
    assert_eq!(disk.zone(65), Err(expected));
    drop(disk);
    assert!(matches!(refusal_of::<H>(&device), Error::Device { request: RequestType::ZoneReport, .. }));
}

fn reserved_bytes_do_not_matter<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    let (good, end) = with_lie(&device, &mut disk, |_, reply| {
        reply.patch(8, &[0xff; 56]);
        for zone in 0..9 {
            reply.patch(at(zone, 26), &[0xff; 38]);
        }
    });
    assert_eq!((good, end), (9, Ok(())));
    assert_usable(&device, &mut attach::<H>(&FakeDevice::new(Shape::default())).unwrap());
}
