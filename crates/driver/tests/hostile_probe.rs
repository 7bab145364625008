//! Devices that are not what they should be, met when they are taken into use: features, status, configuration space, queues.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use common::rig::{QUEUE_DEPTH, assert_usable, attach, attach_with, cases, refusal, rig};
use common::{FakeDevice, Generation, Shape, Watch, memory, on_both_hals};
use virtio_drivers::transport::{DeviceStatus, DeviceType};
use virtio_zbd_driver::{Error, Hal, Options, ProbeError, ZoneSupport};
use virtio_zbd_spec::{Features, Model};

on_both_hals!(
    another_device,
    #[cfg_attr(miri, ignore = "millions of looks at the status")]
    a_reset_that_never_ends,
    a_device_that_speaks_legacy_only,
    r4_features_that_are_refused,
    a_device_that_needs_a_reset,
    r1_only_what_the_driver_knows_is_taken,
    l3_zones_that_are_not_wanted,
    r2_discard_on_a_host_managed_disk,
    l6_discard_negotiated_on_what_turns_out_host_managed,
    r5_a_host_aware_disk_is_a_regular_one,
    unknown_models,
    a_configuration_space_of_every_length,
    no_configuration_space,
    a_configuration_that_never_stands_still,
    a_configuration_that_changes_under_the_reader,
    b4_b5_the_longest_append,
    zone_sizes,
    write_granularities,
    block_sizes,
    capacities,
    segment_limits,
    numbers_of_queues,
    sizes_of_queues,
    no_memory_for_rings,
);

fn probe_error<H: Hal>(shape: Shape, change: impl FnOnce(&mut common::transport::Face)) -> ProbeError {
    match refusal::<H>(shape, change) {
        Error::Probe(error) => error,
        other => panic!("{other:?}"),
    }
}

fn zoned(change: impl FnOnce(&mut Shape)) -> Shape {
    let mut shape = Shape::default();
    change(&mut shape);
    shape
}

fn another_device<H: Hal>() {
    let _watch = Watch::begin();
    let error = probe_error::<H>(Shape::default(), |face| face.device_type = DeviceType::Network);
    assert_eq!(error, ProbeError::NotABlockDevice(DeviceType::Network));
}

fn a_reset_that_never_ends<H: Hal>() {
    let _watch = Watch::begin();
    let error =
        probe_error::<H>(Shape::default(), |face| face.status_after_reset = DeviceStatus::ACKNOWLEDGE);
    assert_eq!(error, ProbeError::NoReset);
}

fn a_device_that_speaks_legacy_only<H: Hal>() {
    let _watch = Watch::begin();
    let error = probe_error::<H>(Shape::default(), |face| face.offered &= !Features::VERSION_1.bits());
    assert_eq!(error, ProbeError::NoVersion1);
}

fn r4_features_that_are_refused<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    device.face(|face| face.refuses_features = true);
    let error = attach::<H>(&device).err().unwrap();
    assert!(matches!(error, Error::Probe(ProbeError::FeaturesRefused(_))), "{error:?}");
    let statuses = device.statuses();
    assert!(statuses.last().unwrap().contains(DeviceStatus::FAILED), "{statuses:?}");
    assert!(!statuses.iter().any(|status| status.contains(DeviceStatus::DRIVER_OK)), "{statuses:?}");
    assert_eq!(device.notified(0), 0);
    // Another try, on a device that has come to its senses.
    device.face(|face| face.refuses_features = false);
    assert_usable(&device, &mut attach::<H>(&device).unwrap());
}

fn a_device_that_needs_a_reset<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    let broken = device.clone();
    device.face(|face| {
        face.on_config_read = Some(Box::new(|_, _| {}));
        face.status |= DeviceStatus::DEVICE_NEEDS_RESET;
    });
    // The driver's own reset clears it.
    assert_usable(&device, &mut attach::<H>(&broken).unwrap());
}

fn r1_only_what_the_driver_knows_is_taken<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape { queues: Some(1), size_max: Some(4096), ..Shape::default() });
    // RO, so as not to be asked for more than the disk can do; ring layouts that the fake device has not.
    let not = Features::RO | Features::RING_PACKED | Features::CONFIG_WCE;
    device.face(|face| face.offered = !not.bits());
    let mut disk = attach::<H>(&device).unwrap();
    let taken = Features::VERSION_1
        | Features::INDIRECT_DESC
        | Features::SIZE_MAX
        | Features::SEG_MAX
        | Features::BLK_SIZE
        | Features::FLUSH
        | Features::MQ
        | Features::WRITE_ZEROES
        | Features::SECURE_ERASE
        | Features::ZONED;
    let free_to_take = Features::ACCESS_PLATFORM | Features::TOPOLOGY | Features::EVENT_IDX;
    let accepted = device.accepted().unwrap() - free_to_take;
    assert_eq!(accepted, taken);
    assert_usable(&device, &mut disk);
}

fn l3_zones_that_are_not_wanted<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    let options = Options { zones: ZoneSupport::No, ..Options::default() };
    let error = attach_with::<H>(&device, options).err().unwrap();
    assert_eq!(error, Error::Probe(ProbeError::ZonesNotWanted));
    let statuses = device.statuses();
    // R4: the driver must not set FEATURES_OK, and sets FAILED.
    assert!(!statuses.iter().any(|status| status.contains(DeviceStatus::FEATURES_OK)), "{statuses:?}");
    assert!(statuses.last().unwrap().contains(DeviceStatus::FAILED), "{statuses:?}");
    assert_eq!(device.take_log(), []);
    // Any other disk can be used without zones.
    for model in [Model::None, Model::HostAware] {
        let device = FakeDevice::new(Shape { more: Features::FLUSH, ..Shape::regular() });
        device.face(|face| {
            face.offered |= Features::ZONED.bits();
            face.set_config(|config| config.zoned.model = model.into());
        });
        let mut disk = attach_with::<H>(&device, options).unwrap();
        assert_eq!(disk.zoned(), None);
        assert_usable(&device, &mut disk);
    }
}

fn r2_discard_on_a_host_managed_disk<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(zoned(|shape| shape.more |= Features::DISCARD));
    assert!(!device.accepted().unwrap().contains(Features::DISCARD));
    assert_eq!(disk.limits().discard, None);
    assert!(matches!(disk.discard(0, 8), Err(Error::Invalid(_))));
    assert!(device.take_log().iter().all(|done| done.kind != 11), "a DISCARD was sent");
    assert_usable(&device, &mut disk);
}

fn l6_discard_negotiated_on_what_turns_out_host_managed<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(zoned(|shape| shape.more |= Features::DISCARD));
    // Host-aware at the first look, host-managed after FEATURES_OK.
    device.face(|face| {
        face.set_config(|config| config.zoned.model = Model::HostAware.into());
        let mut first = true;
        face.on_config_read = Some(Box::new(move |_, view| {
            if first && view.status.contains(DeviceStatus::FEATURES_OK) {
                first = false;
                view.config[92] = Model::HostManaged.into();
            }
        }));
    });
    let mut disk = attach::<H>(&device).unwrap();
    assert_eq!(disk.model(), Model::HostManaged);
    assert_eq!(disk.limits().discard, None);
    assert!(matches!(disk.discard(0, 8), Err(Error::Invalid(_))));
    assert!(device.take_log().iter().all(|done| done.kind != 11), "a DISCARD was sent");
    assert_usable(&device, &mut disk);
}

fn r5_a_host_aware_disk_is_a_regular_one<H: Hal>() {
    let _watch = Watch::begin();
    for model in [Model::None, Model::HostAware] {
        let device = FakeDevice::new(Shape::regular());
        device.face(|face| {
            face.offered |= Features::ZONED.bits();
            face.set_config(|config| {
                config.zoned.model = model.into();
                config.zoned.zone_sectors.set(0);
                config.zoned.max_open_zones.set(u32::MAX);
                config.zoned.max_active_zones.set(1);
                config.zoned.max_append_sectors.set(1);
                config.zoned.write_granularity.set(3);
                config.zoned.unused2 = [0xff; 3];
            });
        });
        let mut disk = attach::<H>(&device).unwrap();
        assert_eq!((disk.model(), disk.zoned()), (model, None));
        // R3: all that a regular disk has.
        let all = Features::DISCARD | Features::WRITE_ZEROES | Features::SECURE_ERASE;
        assert!(device.accepted().unwrap().contains(all));
        assert_usable(&device, &mut disk);
        disk.discard(0, 8).unwrap();
        assert!(disk.zones(0).is_err());
        assert!(disk.append(0, &[0; 512]).is_err());
        assert!(disk.reset_all_zones().is_err());
        assert!(device.take_log().iter().all(|done| done.kind <= 14), "a zone request was sent");
    }
}

fn unknown_models<H: Hal>() {
    let _watch = Watch::begin();
    for model in [3, 4, 0x7f, 0xff] {
        let error = probe_error::<H>(Shape::default(), |face| {
            face.set_config(|config| config.zoned.model = model);
        });
        assert_eq!(error, ProbeError::UnknownModel(model));
    }
}

fn a_configuration_space_of_every_length<H: Hal>() {
    let _watch = Watch::begin();
    let step = if cfg!(miri) { 31 } else { 1 };
    for len in (0..93).step_by(step) {
        match probe_error::<H>(Shape::default(), |face| face.config.as_mut().unwrap().truncate(len)) {
            ProbeError::ConfigTooSmall { end_bytes, .. } => assert!(end_bytes > len, "{end_bytes} of {len}"),
            other => panic!("{len}: {other:?}"),
        }
    }
    // What no feature names need not be there.
    for (shape, len) in [(Shape::default(), 93), (Shape { more: Features::FLUSH, ..Shape::regular() }, 24)] {
        let device = FakeDevice::new(shape);
        device.face(|face| face.config.as_mut().unwrap().truncate(len));
        assert_usable(&device, &mut attach::<H>(&device).unwrap());
    }
}

fn no_configuration_space<H: Hal>() {
    let _watch = Watch::begin();
    let error = probe_error::<H>(Shape::default(), |face| face.config = None);
    assert!(matches!(error, ProbeError::ConfigTooSmall { .. }), "{error:?}");
}

fn a_configuration_that_never_stands_still<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    device.face(|face| face.generation = Generation::Restless(u32::MAX - 5));
    let error = attach::<H>(&device).err().unwrap();
    assert_eq!(error, Error::Probe(ProbeError::ConfigUnstable));
    assert!(device.config_reads() < 10_000, "{} reads", device.config_reads());
    assert!(device.statuses().iter().any(|status| status.contains(DeviceStatus::FAILED)));
}

fn a_configuration_that_changes_under_the_reader<H: Hal>() {
    let _watch = Watch::begin();
    // A few changes are borne.
    let device = FakeDevice::new(Shape::default());
    device.face(|face| face.generation = Generation::RestlessFor(7, 0));
    assert_usable(&device, &mut attach::<H>(&device).unwrap());

    // The capacity is two words: half of the old one and half of the new one must never be put together.
    let shape = Shape { more: Features::FLUSH, ..Shape::regular() };
    let device = FakeDevice::new(shape);
    let (old, new) = (0x1_0000_0000_u64 | 1024, 0x2_0000_0000_u64 | 2048);
    device.face(|face| {
        face.set_config(|config| config.capacity.set(old));
        face.on_config_read = Some(Box::new(move |reads, view| {
            if reads == 2 {
                view.config[..8].copy_from_slice(&new.to_le_bytes());
                *view.generation = Generation::Steady(1);
            }
        }));
    });
    assert_eq!(attach::<H>(&device).unwrap().capacity_sectors(), new);
}

fn b4_b5_the_longest_append<H: Hal>() {
    let _watch = Watch::begin();
    // B5: none.
    let (device, mut disk) = rig::<H>(zoned(|shape| shape.append_sectors_max = 0));
    assert_eq!(disk.zoned().unwrap().append_sectors_max, 0);
    assert!(matches!(disk.append(128, &[0; 4096]), Err(Error::Invalid(_))));
    assert_usable(&device, &mut disk);
    drop(disk);
    // B4: times 512 they are 0, 0 and 4096 in 32 bits.
    for sectors in cases([0x80_0000, 0x80_0008, u32::MAX, 0x4000_0000]) {
        let (device, mut disk) = rig::<H>(zoned(|shape| shape.append_sectors_max = sectors));
        assert_eq!(disk.zoned().unwrap().append_sectors_max, sectors);
        assert_eq!(disk.append(128, &[1; 8192]), Ok(128));
        assert_eq!(disk.append(128, &[2; 4096]), Ok(144));
        assert_usable(&device, &mut disk);
    }
    for sectors in [1, 7] {
        let error = probe_error::<H>(zoned(|shape| shape.append_sectors_max = sectors), |_| {});
        let write_granularity_bytes = 4096;
        assert_eq!(
            error,
            ProbeError::AppendBelowGranularity { append_sectors_max: sectors, write_granularity_bytes }
        );
    }
    let (device, mut disk) = rig::<H>(zoned(|shape| shape.append_sectors_max = 8));
    assert_eq!(disk.append(128, &[1; 4096]), Ok(128));
    assert_usable(&device, &mut disk);
}

fn zone_sizes<H: Hal>() {
    let _watch = Watch::begin();
    let error = probe_error::<H>(Shape::default(), |face| {
        face.set_config(|config| config.zoned.zone_sectors.set(0));
    });
    assert_eq!(error, ProbeError::ZoneSize);
    // All of them would be looked at: a device with time could keep its driver for ever.
    for (capacity, zones) in [(1 << 32, 1 << 32), (u64::MAX / 512, u64::MAX / 512)] {
        let error = probe_error::<H>(zoned(|shape| shape.granularity_bytes = 512), |face| {
            face.set_config(|config| {
                config.capacity.set(capacity);
                config.zoned.zone_sectors.set(1);
            });
        });
        assert_eq!(error, ProbeError::TooManyZones(zones));
    }
    // L5: any other, also with a runt at the end; also one zone that is larger than the disk.
    for (zone_sectors, capacity_sectors) in [(56, 56 * 3), (56, 56 * 3 + 8), (24, 24 * 5 + 16), (512, 256)] {
        let (device, mut disk) = rig::<H>(zoned(|shape| {
            (shape.zone_sectors, shape.capacity_sectors) = (zone_sectors, capacity_sectors);
            shape.conventional = 1;
        }));
        let zoned = *disk.zoned().unwrap();
        assert_eq!(zoned.zone_sectors, zone_sectors);
        assert_eq!(zoned.zones, capacity_sectors.div_ceil(zone_sectors.into()));
        assert_usable(&device, &mut disk);
    }
    // Fewer may be active than open: the smaller one counts anyway.
    let (device, mut disk) = rig::<H>(zoned(|shape| (shape.open_max, shape.active_max) = (9, 2)));
    let zoned = *disk.zoned().unwrap();
    assert_eq!((zoned.open_max, zoned.active_max), (9, 2));
    assert_usable(&device, &mut disk);
}

fn write_granularities<H: Hal>() {
    let _watch = Watch::begin();
    for granularity in cases([0, 513, u32::MAX, 1, 511, 4095]) {
        let error = probe_error::<H>(Shape::default(), |face| {
            face.set_config(|config| config.zoned.write_granularity.set(granularity));
        });
        assert_eq!(error, ProbeError::WriteGranularity(granularity));
    }
    // L4: it is the physical block.
    let (device, mut disk) = rig::<H>(zoned(|shape| shape.granularity_bytes = 8192));
    assert_eq!(disk.zoned().unwrap().write_granularity_bytes, 8192);
    assert_usable(&device, &mut disk);
}

fn block_sizes<H: Hal>() {
    let _watch = Watch::begin();
    for block in cases([0, 1536, u32::MAX, 1, 256, 511, 513, 1 << 31]) {
        for shape in [Shape::default(), Shape::regular()] {
            let error = probe_error::<H>(shape, |face| face.set_config(|config| config.blk_size.set(block)));
            assert_eq!(error, ProbeError::BlockLen(block));
        }
    }
    let (device, mut disk) = rig::<H>(Shape { block_bytes: 4096, ..Shape::regular() });
    assert_eq!(disk.block_len_bytes(), 4096);
    assert_usable(&device, &mut disk);
}

fn capacities<H: Hal>() {
    let _watch = Watch::begin();
    for capacity in [u64::MAX, u64::MAX / 512 + 1] {
        for shape in [Shape::default(), Shape::regular()] {
            let error =
                probe_error::<H>(shape, |face| face.set_config(|config| config.capacity.set(capacity)));
            assert_eq!(error, ProbeError::Capacity(capacity));
        }
    }
    // As large as addresses allow: every sum at its end must hold.
    let device = FakeDevice::new(Shape { more: Features::FLUSH, ..Shape::regular() });
    let capacity = u64::MAX / 512;
    device.set_config(|config| config.capacity.set(capacity));
    let mut disk = attach::<H>(&device).unwrap();
    assert_eq!(disk.capacity_sectors(), capacity);
    assert!(matches!(disk.read(capacity, &mut [0; 512]), Err(Error::Invalid(_))));
    assert!(matches!(disk.read(capacity - 1, &mut [0; 1024]), Err(Error::Invalid(_))));
    assert!(matches!(disk.read(u64::MAX, &mut [0; 512]), Err(Error::Invalid(_))));
    assert!(matches!(disk.read(capacity - 1, &mut [0; 512]), Err(Error::Device { .. })));
    drop(disk);
    // Nothing at all.
    for shape in
        [Shape { capacity_sectors: 0, ..Shape::default() }, Shape { capacity_sectors: 0, ..Shape::regular() }]
    {
        let (_, mut disk) = rig::<H>(shape);
        assert_eq!(disk.capacity_sectors(), 0);
        assert!(matches!(disk.read(0, &mut [0; 512]), Err(Error::Invalid(_))));
        assert!(matches!(disk.zone(0), Err(Error::Invalid(_))));
        disk.flush().unwrap();
    }
}

fn segment_limits<H: Hal>() {
    let _watch = Watch::begin();
    // 0 segments can't be meant: one is always possible.
    let (device, mut disk) = rig::<H>(zoned(|shape| shape.seg_max = Some(0)));
    assert_eq!(disk.limits().segments_max, 1);
    assert_usable(&device, &mut disk);
    drop(disk);
    // A length of 0 is no limit: qemu-storage-daemon means it so.
    let (device, mut disk) = rig::<H>(zoned(|shape| shape.size_max = Some(0)));
    assert_eq!(disk.limits().segment_len_bytes_max, u32::MAX);
    assert_usable(&device, &mut disk);
    drop(disk);
    // Less than a block in all.
    let error = refusal::<H>(Shape { size_max: Some(100), seg_max: Some(5), ..Shape::regular() }, |_| {});
    assert!(matches!(error, Error::Probe(ProbeError::TransferTooSmall { .. })), "{error:?}");
    // Segments shorter than a sector, than a zone descriptor, than a report's header.
    for (size_max, seg_max) in cases([(100, 6), (40, 13), (7, 74)]) {
        let (size_max, seg_max) = (Some(size_max), Some(seg_max));
        let device = FakeDevice::new(Shape { size_max, seg_max, queue_size: 128, ..Shape::regular() });
        let mut disk = attach_with::<H>(&device, Options::default()).unwrap();
        assert_usable(&device, &mut disk);
    }
    // More than can be.
    let (device, mut disk) =
        rig::<H>(zoned(|shape| (shape.size_max, shape.seg_max) = (Some(u32::MAX), Some(u32::MAX))));
    assert!(disk.limits().segments_max <= u32::from(QUEUE_DEPTH) - 2);
    assert_usable(&device, &mut disk);
}

fn numbers_of_queues<H: Hal>() {
    let _watch = Watch::begin();
    let options = |queues| Options { queues, queue_depth: 8, ..Options::default() };
    // 0 is no number of queues; there is always the first.
    let device = FakeDevice::new(zoned(|shape| shape.queues = Some(1)));
    device.set_config(|config| config.num_queues.set(0));
    let mut disk = attach_with::<H>(&device, options(4)).unwrap();
    assert_eq!(disk.queue_count(), 1);
    assert_usable(&device, &mut disk);
    drop(disk);
    // Without MQ there is one, whatever the field says.
    let device = FakeDevice::new(zoned(|shape| shape.queues = None));
    device.set_config(|config| config.num_queues.set(7));
    let mut disk = attach_with::<H>(&device, options(4)).unwrap();
    assert_eq!(disk.queue_count(), 1);
    assert_usable(&device, &mut disk);
    drop(disk);
    // More than there are: nothing is set up that would not be.
    let device = FakeDevice::new(zoned(|shape| shape.queues = Some(2)));
    device.set_config(|config| config.num_queues.set(u16::MAX));
    let error = attach_with::<H>(&device, options(3)).err().unwrap();
    assert!(matches!(error, Error::Probe(ProbeError::QueueTooSmall { queue: 2, found: 0, .. })), "{error:?}");
    assert_eq!(device.ring_sizes(), [0_u16; 0], "rings that the driver has freed");
    let mut disk = attach_with::<H>(&device, options(2)).unwrap();
    assert_eq!(device.ring_sizes(), [8, 8]);
    assert_usable(&device, &mut disk);
    drop(disk);
    // None wanted: one is needed.
    let mut disk = attach_with::<H>(&device, options(0)).unwrap();
    assert_eq!(disk.queue_count(), 1);
    assert_usable(&device, &mut disk);
}

fn sizes_of_queues<H: Hal>() {
    let _watch = Watch::begin();
    for size in [0, 1, 2, 3] {
        let error = refusal::<H>(Shape::default(), |face| face.queue_sizes = vec![size]);
        assert!(
            matches!(error, Error::Probe(ProbeError::QueueTooSmall { queue: 0, found, .. }) if found == size),
            "{error:?}"
        );
    }
    let device_max_wanted_depth = [
        (4, 128, 4),
        (5, 128, 4),
        (100, 128, 64),
        (1 << 20, 16, 16),
        (128, 128, 128),
        (u32::MAX, 100, 64),
        (256, 0, 4),
        (2048, u16::MAX, 1024),
    ];
    for (device_max, wanted, depth) in cases(device_max_wanted_depth) {
        for indirect in [false, true] {
            let device = FakeDevice::new(zoned(|shape| shape.more.set(Features::INDIRECT_DESC, indirect)));
            device.face(|face| face.queue_sizes = vec![device_max]);
            let options = Options { queue_depth: wanted, ..Options::default() };
            let mut disk = attach_with::<H>(&device, options).unwrap();
            assert_eq!((disk.queue_depth(), device.ring_sizes()), (depth, vec![depth]));
            assert_usable(&device, &mut disk);
        }
    }
}

fn no_memory_for_rings<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(zoned(|shape| shape.queues = Some(3)));
    let options = Options { queues: 3, queue_depth: 8, ..Options::default() };
    // Each of the three rings has several areas.
    for allocations in 0..9 {
        memory::set_dma_allocations_left(Some(allocations));
        let error = attach_with::<H>(&device, options).err().unwrap();
        assert_eq!(error, Error::NoMemory);
        assert_eq!(device.ring_sizes(), [0_u16; 0], "rings that the driver has freed");
    }
    memory::set_dma_allocations_left(None);
    assert_usable(&device, &mut attach_with::<H>(&device, options).unwrap());
}
