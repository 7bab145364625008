//! Devices that stop answering, vanish, ask for a reset, or turn into something else under the driver (L8, L12, B3).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use std::sync::{Arc, Mutex};
use std::thread;

use common::rig::{
    Blk, TURNS_MAX, allocate, assert_all_calls_end_with, assert_broken, assert_usable, attach, attach_with,
    cases, expected_zones, rig, zones,
};
use common::{FakeDevice, FakeTransport, Generation, Reply, Shape, Watch, memory, on_both_hals};
use virtio_drivers::transport::DeviceStatus;
use virtio_zbd_driver::{
    Command, Error, Hal, Invalid, Options, ProbeError, Removal, Spin, Token, VirtioBlk, Waited, Wrong,
    ZoneSupport,
};
use virtio_zbd_spec::{Features, Model, RequestType};

on_both_hals!(
    never_answering,
    never_answering_the_first_report,
    never_answering_what_was_submitted,
    a_device_that_wants_no_notifications,
    a_slow_device,
    l8_removal_while_a_report_runs,
    l8_removal_by_another_thread,
    l8_removal_with_requests_in_flight,
    a_wait_that_finds_the_device_gone,
    a_device_that_asks_for_a_reset,
    #[cfg_attr(miri, ignore = "millions of looks at the status")]
    a_device_that_does_not_come_out_of_its_reset,
    dropped_with_requests_in_flight,
    released,
    interrupts,
    b3_a_disk_that_grows,
    b3_a_disk_that_grows_with_wrong_zones,
    b3_a_disk_that_grows_while_requests_are_in_flight,
    wrong_zones_while_requests_are_in_flight,
    a_disk_that_shrinks,
    a_regular_disk_that_grows_and_shrinks,
    l12_a_disk_that_is_no_longer_host_managed,
    a_disk_that_becomes_host_managed,
    changes_that_can_not_be,
    limits_that_change_with_requests_in_flight,
    removal_while_the_new_zones_are_checked,
    no_memory_for_buffers,
    buffers_of_the_wrong_length,
);

fn attach_waiting<H: Hal>(
    device: &FakeDevice,
    wait: impl FnMut(&mut FakeTransport, u16, u64) -> Waited + Send + 'static,
) -> Blk<H> {
    let options = Options { queue_depth: 16, ..Options::default() };
    VirtioBlk::with(device.transport(), options, wait, allocate).unwrap()
}

fn never_answering<H: Hal>() {
    let _watch = Watch::begin();
    type Call<H> = fn(&mut Blk<H>) -> Result<(), Error>;
    let calls: [(RequestType, Call<H>); 7] = [
        (RequestType::In, |disk| disk.read(0, &mut [0; 2048])),
        (RequestType::Out, |disk| disk.write(0, &[0; 2048])),
        (RequestType::Flush, |disk| disk.flush()),
        (RequestType::ZoneReport, |disk| disk.zone(0).map(drop)),
        (RequestType::ZoneReport, |disk| disk.zones(0).unwrap().next().unwrap().map(drop)),
        (RequestType::ZoneAppend, |disk| disk.append(128, &[0; 4096]).map(drop)),
        (RequestType::ZoneReset, |disk| disk.reset_zone(128)),
    ];
    for (kind, call) in cases(calls) {
        let (device, mut disk) = rig::<H>(Shape::default());
        device.lie_to(kind, |_, reply| reply.drop_it());
        assert_eq!(call(&mut disk), Err(Error::TimedOut), "{kind:?}");
        assert_eq!(memory::shared(), (0, 0));
        assert_broken(&device, &mut disk);
        // The device can be taken into use anew.
        device.be_honest();
        drop(disk);
        assert_usable(&device, &mut attach::<H>(&device).unwrap());
    }
}

fn never_answering_the_first_report<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    device.lie_to(RequestType::ZoneReport, |_, reply| reply.drop_it());
    assert_eq!(attach::<H>(&device).err(), Some(Error::TimedOut));
    assert_eq!((device.held(), device.ring_sizes().len()), (0, 0));
}

fn never_answering_what_was_submitted<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    device.lie_to(RequestType::Out, |_, reply| reply.drop_it());
    let mut tokens: Vec<Token> = (0..3_u8)
        .map(|n| disk.submit(0, Command::Write { sector: n.into(), buffer: vec![n; 512] }).unwrap())
        .collect();
    disk.notify(0).unwrap();
    // Looking never waits.
    assert_eq!(disk.complete(0), Ok(None));
    assert_eq!(disk.in_flight(0), 3);
    // Another call gets through, as long as it is answered; the next one is not.
    disk.flush().unwrap();
    device.lie_to(RequestType::Flush, |_, reply| reply.drop_it());
    assert_eq!(disk.flush(), Err(Error::TimedOut));
    let mut back = Vec::new();
    while let Ok(Some(done)) = disk.complete(0) {
        assert_eq!(done.result, Err(Error::Broken));
        back.push((done.token, done.buffer.unwrap()));
    }
    back.sort();
    let expected: Vec<(Token, Vec<u8>)> = tokens.drain(..).zip((0..3_u8).map(|n| vec![n; 512])).collect();
    assert_eq!(back, expected);
    assert_broken(&device, &mut disk);
}

fn a_device_that_wants_no_notifications<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    let mut disk = attach_waiting::<H>(&device, |transport, queue, turn| {
        transport.device().poll(queue);
        if turn < TURNS_MAX { Waited::Again } else { Waited::GiveUp }
    });
    device.face(|face| face.deaf = true);
    device.ring(0, |ring| ring.set_no_notify(true));
    let notified = device.notified(0);
    assert_usable(&device, &mut disk);
    assert_eq!(device.notified(0), notified, "it was notified all the same");
    device.face(|face| face.deaf = false);
    device.ring(0, |ring| ring.set_no_notify(false));
    disk.flush().unwrap();
    assert_eq!(device.notified(0), notified + 1);
}

fn a_slow_device<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    let mut disk = attach_waiting::<H>(&device, |transport, queue, turn| {
        let device = transport.device();
        if turn >= 7 && device.waiting(queue) > 0 {
            device.deliver(queue, 0);
        }
        if turn < TURNS_MAX { Waited::Again } else { Waited::GiveUp }
    });
    device.face(|face| face.holds_answers = true);
    assert_usable(&device, &mut disk);
}

/// A disk whose removal is at hand for its own wait.
fn removable<H: Hal>(
    device: &FakeDevice,
    remove: impl Fn(&Removal) -> Waited + Send + 'static,
) -> (Blk<H>, Removal) {
    let slot: Arc<Mutex<Option<Removal>>> = Arc::default();
    let in_wait = Arc::clone(&slot);
    let disk = attach_waiting::<H>(device, move |_, _, turn| {
        assert!(turn < TURNS_MAX, "it goes on waiting");
        in_wait.lock().unwrap().as_ref().map_or(Waited::Again, &remove)
    });
    let removal = disk.removal();
    *slot.lock().unwrap() = Some(removal.clone());
    (disk, removal)
}

fn l8_removal_while_a_report_runs<H: Hal>() {
    let _watch = Watch::begin();
    let shape = Shape { seg_max: Some(1), size_max: Some(512), granularity_bytes: 512, ..Shape::default() };
    let device = FakeDevice::new(shape);
    let (mut disk, _) = removable::<H>(&device, |removal| {
        removal.remove();
        Waited::Again
    });
    // The second of two reports is not answered.
    device.lie_to(RequestType::ZoneReport, |request, reply| {
        if request.sector != 0 {
            reply.drop_it();
        }
    });
    let mut found = disk.zones(0).unwrap();
    assert_eq!(found.by_ref().take(7).filter(Result::is_ok).count(), 7);
    assert_eq!(found.next(), Some(Err(Error::Removed)));
    assert_eq!(found.next(), None);
    assert_eq!(memory::shared(), (0, 0));
    assert_all_calls_end_with(&mut disk, Error::Removed);
}

fn l8_removal_by_another_thread<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    let (mut disk, _) = removable::<H>(&device, |removal| {
        let removal = removal.clone();
        thread::spawn(move || removal.remove()).join().unwrap();
        Waited::Again
    });
    device.lie_to(RequestType::In, |_, reply| reply.drop_it());
    assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::Removed));
    assert_all_calls_end_with(&mut disk, Error::Removed);
}

fn l8_removal_with_requests_in_flight<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    let (mut disk, removal) = removable::<H>(&device, |_| Waited::Again);
    device.face(|face| face.holds_answers = true);
    let tokens: Vec<Token> =
        (0..3).map(|_| disk.submit(0, Command::Read { sector: 0, buffer: vec![0; 512] }).unwrap()).collect();
    disk.notify(0).unwrap();
    removal.remove();
    let mut back = Vec::new();
    for _ in 0..10 {
        match disk.complete(0) {
            Ok(Some(done)) => {
                assert!(matches!(done.result, Err(Error::Removed | Error::Broken)), "{:?}", done.result);
                assert_eq!(done.buffer.unwrap().len(), 512);
                back.push(done.token);
            }
            Ok(None) => panic!("a removed disk has nothing more to wait for"),
            Err(error) => assert_eq!(error, Error::Removed),
        }
    }
    back.sort();
    assert_eq!(back, tokens);
    assert_eq!(memory::shared(), (0, 0));
    assert_all_calls_end_with(&mut disk, Error::Removed);
}

fn a_wait_that_finds_the_device_gone<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    let mut disk = attach_waiting::<H>(&device, |_, _, _| Waited::Gone);
    device.lie_to(RequestType::Out, |_, reply| reply.drop_it());
    assert_eq!(disk.write(0, &[0; 512]), Err(Error::Removed));
    assert_eq!(memory::shared(), (0, 0));
    assert_all_calls_end_with(&mut disk, Error::Removed);
}

fn a_device_that_asks_for_a_reset<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    device.lie(|request, reply, face| {
        if request.is(RequestType::ZoneReport) {
            reply.drop_it();
            face.status |= DeviceStatus::DEVICE_NEEDS_RESET;
        }
    });
    assert_eq!(disk.zone(0), Err(Error::NeedsReset));
    assert_broken(&device, &mut disk);
    drop(disk);
    // While it is taken into use.
    assert_eq!(attach::<H>(&device).err(), Some(Error::NeedsReset));
    device.be_honest();
    assert_usable(&device, &mut attach::<H>(&device).unwrap());
}

fn a_device_that_does_not_come_out_of_its_reset<H: Hal>() {
    let watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    device.face(|face| face.holds_answers = true);
    let _ = disk.submit(0, Command::Read { sector: 0, buffer: vec![0; 512] }).unwrap();
    disk.notify(0).unwrap();
    device.face(|face| face.status_after_reset = DeviceStatus::DRIVER_OK);
    device.used(0, 31, 1);
    assert!(matches!(disk.complete(0), Err(Error::Wrong(Wrong::UsedId { .. }))));
    // It may still write to what it was lent: nothing of it is given back, now or later.
    let lent = memory::shared();
    assert!(lent.0 > 0);
    assert!(matches!(disk.complete(0), Err(Error::Broken | Error::Invalid(_))));
    assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::Broken));
    drop(disk);
    assert_eq!(memory::shared(), lent);
    watch.allow_left();
}

fn dropped_with_requests_in_flight<H: Hal>() {
    let _watch = Watch::begin();
    for indirect in [true, false] {
        let mut shape = Shape { queues: Some(2), ..Shape::default() };
        shape.more.set(Features::INDIRECT_DESC, indirect);
        let device = FakeDevice::new(shape);
        let mut disk =
            attach_with::<H>(&device, Options { queues: 2, queue_depth: 16, ..Options::default() }).unwrap();
        device.face(|face| face.holds_answers = true);
        for queue in 0..2 {
            let _ = disk.submit(queue, Command::Read { sector: 0, buffer: vec![0; 512] }).unwrap();
            let _ = disk.submit(queue, Command::Write { sector: 0, buffer: vec![0; 512] }).unwrap();
            let _ = disk.submit(queue, Command::Flush).unwrap();
        }
        // One queue has been looked at by the device, the other has not.
        disk.notify(0).unwrap();
        assert_eq!(device.held(), 3);
        drop(disk);
        assert_eq!((device.held(), device.ring_sizes().len()), (0, 0));
        assert_eq!(memory::shared(), (0, 0));
    }
}

fn released<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    assert_usable(&device, &mut disk);
    let transport = disk.release().unwrap();
    assert_eq!((device.held(), device.ring_sizes().len()), (0, 0));
    let mut disk = VirtioBlk::<H, _>::new(transport, Options::default()).unwrap();
    assert_usable(&device, &mut disk);
}

fn interrupts<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    let _ = disk.ack_interrupt();
    let seen = |disk: &mut Blk<H>| {
        let interrupt = disk.ack_interrupt();
        (interrupt.used, interrupt.config)
    };
    assert_eq!(seen(&mut disk), (false, false));
    disk.flush().unwrap();
    assert_eq!(seen(&mut disk), (true, false));
    device.config_interrupt();
    assert_eq!(seen(&mut disk), (false, true));
    assert_eq!(seen(&mut disk), (false, false));
}

/// The disk becomes larger or smaller, honestly.
fn resize(device: &FakeDevice, capacity_sectors: u64) {
    device.face(|face| {
        face.disk.resize(capacity_sectors);
        face.set_config(|config| config.capacity.set(capacity_sectors));
    });
    device.config_interrupt();
}

fn b3_a_disk_that_grows<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    disk.append(128, &[1; 4096]).unwrap();
    let before = disk.capacity_sectors();
    // The runt becomes a zone, and there is a new runt.
    for capacity in [576, 576 + 64, 11 * 64 + 8] {
        let capacity_sectors_before = disk.capacity_sectors();
        resize(&device, capacity);
        assert_eq!(disk.capacity_sectors(), capacity_sectors_before, "nobody has asked yet");
        device.take_log();
        let change = disk.config_changed().unwrap();
        assert_eq!(
            (change.capacity_sectors_before, change.capacity_sectors),
            (capacity_sectors_before, capacity)
        );
        assert_eq!((change.model_before, change.model), (Model::HostManaged, Model::HostManaged));
        let reports = device.take_log();
        assert!(reports.iter().any(|done| done.kind == 16), "the zones were not looked at: {reports:?}");
        assert_eq!(disk.zoned().unwrap().zones, capacity.div_ceil(64));
        assert_usable(&device, &mut disk);
    }
    assert!(disk.capacity_sectors() > before);
    assert_eq!(disk.append(10 * 64, &[1; 4096]), Ok(10 * 64));
}

fn b3_a_disk_that_grows_with_wrong_zones<H: Hal>() {
    let _watch = Watch::begin();
    type Lie = fn(&mut Reply);
    let lies: [(Lie, Wrong); 5] = [
        (
            |reply| reply.patch(64 + 64 * 9 + 8, &[1; 8]),
            Wrong::ZoneStart { expected_sector: 576, found_sector: 0x0101_0101_0101_0101 },
        ),
        (|reply| reply.patch(64 + 64 * 9 + 25, &[99]), Wrong::ZoneState { start_sector: 576, found: 99 }),
        (|reply| reply.patch(64 + 64 * 9 + 24, &[9]), Wrong::ZoneType { start_sector: 576, found: 9 }),
        (
            |reply| reply.patch(64 + 64 * 10, &[9]),
            Wrong::ZoneCapacity { start_sector: 640, len_sectors: 8, found_sectors: 9 },
        ),
        (|reply| reply.patch(0, &12_u64.to_le_bytes()), Wrong::ReportOverrun { nr_zones: 12, room: 11 }),
    ];
    for (lie, wrong) in cases(lies) {
        let (device, mut disk) = rig::<H>(Shape::default());
        let old = zones(&mut disk);
        resize(&device, 648);
        device.lie_to(RequestType::ZoneReport, move |_, reply| lie(reply));
        assert_eq!(disk.config_changed(), Err(Error::Wrong(wrong)));
        // It is shown only as it was known to be right.
        assert_eq!((disk.capacity_sectors(), disk.zoned().unwrap().zones), (552, 9));
        let beyond = Invalid::OutOfRange { sector: 552, sectors: 1, capacity_sectors: 552 };
        assert_eq!(disk.read(552, &mut [0; 512]), Err(Error::Invalid(beyond)));
        device.be_honest();
        disk.write(0, &[3; 512]).unwrap();
        // The zones that it had are as they were, but the last, whose capacity has grown on the device.
        for zone in &old[..8] {
            assert_eq!(disk.zone(zone.start_sector), Ok(*zone));
        }
        disk.config_changed().unwrap();
        assert_usable(&device, &mut disk);
    }
}

fn b3_a_disk_that_grows_while_requests_are_in_flight<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    device.face(|face| face.holds_answers = true);
    let buffer = vec![5; 1024];
    let token = disk.submit(0, Command::Write { sector: 2, buffer }).unwrap();
    disk.notify(0).unwrap();
    device.face(|face| face.holds_answers = false);
    resize(&device, 640);
    disk.config_changed().unwrap();
    // The write was delivered among the reports, and kept for its owner.
    let done = disk.complete(0).unwrap().unwrap();
    assert_eq!((done.token, done.result.is_ok()), (token, true));
    assert_usable(&device, &mut disk);
}

fn wrong_zones_while_requests_are_in_flight<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    device.lie_to(RequestType::Out, |_, reply| reply.drop_it());
    let token = disk.submit(0, Command::Write { sector: 2, buffer: vec![5; 1024] }).unwrap();
    disk.notify(0).unwrap();
    resize(&device, 640);
    device.lie_to(RequestType::ZoneReport, |_, reply| reply.patch(0, &[0; 8]));
    assert_eq!(disk.config_changed(), Err(Error::Wrong(Wrong::ReportEmpty { sector: 0 })));
    assert_eq!(disk.capacity_sectors(), 552);
    assert_eq!(disk.in_flight(0), 1);
    device.be_honest();
    disk.config_changed().unwrap();
    assert_eq!(disk.capacity_sectors(), 640);
    let _ = token;
}

fn a_disk_that_shrinks<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    for capacity in [512 + 8, 512, 300, 64] {
        resize(&device, capacity);
        let change = disk.config_changed().unwrap();
        assert_eq!(change.capacity_sectors, capacity);
        assert_eq!(disk.zoned().unwrap().zones, capacity.div_ceil(64));
        assert!(matches!(
            disk.read(capacity, &mut [0; 512]),
            Err(Error::Invalid(Invalid::OutOfRange { .. }))
        ));
        assert_usable(&device, &mut disk);
    }
    // A report of what is no longer there.
    let before = zones(&mut disk);
    device.set_config(|config| config.capacity.set(32));
    let error = disk.config_changed().unwrap_err();
    assert!(matches!(error, Error::Wrong(_)), "{error:?}");
    assert_eq!((disk.capacity_sectors(), zones(&mut disk)), (64, before));
    // While an iterator is half way nothing can change: it has the disk.
    device.set_config(|config| config.capacity.set(64));
    assert_usable(&device, &mut disk);
}

fn a_regular_disk_that_grows_and_shrinks<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::regular());
    for capacity in [2048, 16, 1024] {
        resize(&device, capacity);
        assert_eq!(disk.config_changed().unwrap().capacity_sectors, capacity);
        assert_usable(&device, &mut disk);
    }
    device.set_config(|config| config.capacity.set(u64::MAX));
    assert_eq!(disk.config_changed(), Err(Error::Probe(ProbeError::Capacity(u64::MAX))));
    assert_usable(&device, &mut disk);
}

fn l12_a_disk_that_is_no_longer_host_managed<H: Hal>() {
    let _watch = Watch::begin();
    for model in [Model::None, Model::HostAware] {
        let (device, mut disk) = rig::<H>(Shape::default());
        device.set_config(|config| config.zoned.model = model.into());
        device.config_interrupt();
        let change = disk.config_changed().unwrap();
        assert_eq!((change.model_before, change.model), (Model::HostManaged, model));
        assert_eq!((disk.model(), disk.zoned()), (model, None));
        assert!(matches!(disk.zones(0).map(drop), Err(Error::Invalid(Invalid::NotZoned))));
        assert_eq!(disk.reset_zone(128), Err(Error::Invalid(Invalid::NotZoned)));
        disk.write(0, &[1; 512]).unwrap();
        disk.flush().unwrap();
        let _ = &device;
    }
    let (device, mut disk) = rig::<H>(Shape::default());
    device.set_config(|config| config.zoned.model = 3);
    assert_eq!(disk.config_changed(), Err(Error::Probe(ProbeError::UnknownModel(3))));
    assert_usable(&device, &mut disk);
}

fn a_disk_that_becomes_host_managed<H: Hal>() {
    let _watch = Watch::begin();
    for zones in [ZoneSupport::Yes, ZoneSupport::No] {
        let device = FakeDevice::new(Shape::default());
        device.set_config(|config| config.zoned.model = Model::None.into());
        let options = Options { queue_depth: 16, zones, ..Options::default() };
        let mut disk = attach_with::<H>(&device, options).unwrap();
        assert_eq!(disk.zoned(), None);
        device.set_config(|config| config.zoned.model = Model::HostManaged.into());
        let changed = disk.config_changed();
        if zones == ZoneSupport::Yes {
            assert_eq!(changed.unwrap().model, Model::HostManaged);
            assert_usable(&device, &mut disk);
        } else {
            assert_eq!(changed, Err(Error::Probe(ProbeError::ZonesNotWanted)));
        }
    }
}

fn changes_that_can_not_be<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    let honest = device.face(|face| face.config.clone());
    let mut refused = |change: &dyn Fn(&mut common::transport::Face)| {
        device.face(|face| change(face));
        let error = disk.config_changed().unwrap_err();
        device.face(|face| (face.config, face.generation) = (honest.clone(), Generation::Steady(9)));
        assert_usable(&device, &mut disk);
        error
    };
    let error = refused(&|face| face.set_config(|config| config.zoned.zone_sectors.set(0)));
    assert_eq!(error, Error::Probe(ProbeError::ZoneSize));
    let error = refused(&|face| face.set_config(|config| config.zoned.write_granularity.set(0)));
    assert_eq!(error, Error::Probe(ProbeError::WriteGranularity(0)));
    let error = refused(&|face| face.set_config(|config| config.blk_size.set(3)));
    assert_eq!(error, Error::Probe(ProbeError::BlockLen(3)));
    let error = refused(&|face| face.set_config(|config| config.zoned.max_append_sectors.set(1)));
    let append = ProbeError::AppendBelowGranularity { append_sectors_max: 1, write_granularity_bytes: 4096 };
    assert_eq!(error, Error::Probe(append));
    let error = refused(&|face| face.config = Some(vec![0; 20]));
    assert!(matches!(error, Error::Probe(ProbeError::ConfigTooSmall { .. })), "{error:?}");
    let error = refused(&|face| face.config = None);
    assert!(matches!(error, Error::Probe(ProbeError::ConfigTooSmall { .. })), "{error:?}");
    let error = refused(&|face| face.generation = Generation::Restless(0));
    assert_eq!(error, Error::Probe(ProbeError::ConfigUnstable));
    // Zones of another size, where the device's have stayed.
    let error = refused(&|face| face.set_config(|config| config.zoned.zone_sectors.set(32)));
    assert!(matches!(error, Error::Wrong(_)), "{error:?}");
    let error = refused(&|face| face.set_config(|config| config.zoned.zone_sectors.set(128)));
    assert!(matches!(error, Error::Wrong(_)), "{error:?}");
}

fn limits_that_change_with_requests_in_flight<H: Hal>() {
    let _watch = Watch::begin();
    // What was lent in pieces of one length is taken back in the same pieces.
    let (device, mut disk) = rig::<H>(Shape { size_max: Some(1024), ..Shape::default() });
    device.lie_to(RequestType::In, |_, reply| reply.drop_it());
    let read = disk.submit(0, Command::Read { sector: 0, buffer: vec![6; 4096] }).unwrap();
    disk.notify(0).unwrap();
    for size_max in [512, 4096, 1000] {
        device.set_config(|config| config.size_max.set(size_max));
        disk.config_changed().unwrap();
        assert_eq!(disk.limits().segment_len_bytes_max, size_max);
        // The device checks the length of each segment.
        disk.write(0, &[6; 8192]).unwrap();
    }
    assert_eq!(disk.in_flight(0), 1);
    device.used(0, 0, 4097);
    let done = disk.complete(0).unwrap().unwrap();
    assert_eq!((done.token, done.buffer.map(|buffer| buffer.len())), (read, Some(4096)));
}

fn removal_while_the_new_zones_are_checked<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    let (mut disk, _) = removable::<H>(&device, |removal| {
        removal.remove();
        Waited::Again
    });
    resize(&device, 640);
    device.lie_to(RequestType::ZoneReport, |_, reply| reply.drop_it());
    assert_eq!(disk.config_changed(), Err(Error::Removed));
    assert_eq!(disk.capacity_sectors(), 552);
    assert_all_calls_end_with(&mut disk, Error::Removed);
}

thread_local! {
    /// The longest buffer that there is memory for.
    static LEN_BYTES_MAX: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) };
}

fn scarce(len_bytes: usize) -> Option<Vec<u8>> {
    (len_bytes <= LEN_BYTES_MAX.get()).then(|| vec![0; len_bytes])
}

fn no_memory_for_buffers<H: Hal>() {
    let _watch = Watch::begin();
    LEN_BYTES_MAX.set(usize::MAX);
    let device = FakeDevice::new(Shape::default());
    let options = Options { queue_depth: 16, ..Options::default() };
    let spin = Spin { turns_max: TURNS_MAX };
    let mut disk: Blk<H> = VirtioBlk::with(device.transport(), options, spin, scarce).unwrap();
    let expected = device.disk(|disk| expected_zones(disk));
    device.take_log();
    // L8: a report's buffer is halved until there is memory for it: 9, 4, 2 and 1 zones.
    for (len_bytes, reports) in [(64 + 64 * 9, 1), (64 + 64 * 9 - 1, 3), (64 + 64 * 3, 5), (64 + 64, 9)] {
        LEN_BYTES_MAX.set(len_bytes);
        assert_eq!(zones(&mut disk), expected);
        assert_eq!(device.take_log().len(), reports, "with {len_bytes} bytes");
    }
    LEN_BYTES_MAX.set(64 + 63);
    assert_eq!(disk.zones(0).unwrap().next(), Some(Err(Error::NoMemory)));
    assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::NoMemory));
    assert_eq!(disk.write(0, &[0; 512]), Err(Error::NoMemory));
    assert_eq!(disk.append(128, &[0; 4096]), Err(Error::NoMemory));
    assert_eq!(device.take_log(), []);
    LEN_BYTES_MAX.set(usize::MAX);
    assert_usable(&device, &mut disk);
}

fn buffers_of_the_wrong_length<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::regular());
    let options = Options { queue_depth: 16, ..Options::default() };
    for wrong in
        [|len: usize| Some(vec![0; len - 1]), |len: usize| Some(vec![0; len + 1]), |_| Some(Vec::new())]
    {
        let spin = Spin { turns_max: TURNS_MAX };
        let mut disk: Blk<H> = VirtioBlk::with(device.transport(), options, spin, wrong).unwrap();
        assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::NoMemory));
        assert_eq!(disk.write(0, &[0; 512]), Err(Error::NoMemory));
        disk.flush().unwrap();
    }
    // An empty buffer of a caller is nothing to lend.
    let mut disk = attach::<H>(&device).unwrap();
    let rejected = disk.submit(0, Command::Read { sector: 0, buffer: Vec::new() }).unwrap_err();
    assert!(matches!(rejected.error, Error::Invalid(Invalid::Empty { .. })), "{:?}", rejected.error);
}
