//! An honest device: what each call sends, where it is split, what it refuses before anything is sent.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use std::sync::{Arc, Mutex};

use common::rig::{Blk, TURNS_MAX, allocate, assert_usable, attach_with, expected_zones, rig, zones};
use common::{FakeDevice, Logged, SECTOR, Shape, Watch, on_both_hals};
use virtio_drivers::transport::InterruptStatus;
use virtio_zbd_driver::{Command, DeviceError, Done, Error, Hal, Invalid, Options, Token, VirtioBlk, Waited};
use virtio_zbd_spec::{Features, RequestType, Status, ZoneState};

on_both_hals!(
    what_each_call_sends,
    reads_and_writes_in_pieces,
    r12_pieces_end_where_they_may,
    pieces_of_data_in_segments,
    the_limit_of_one_request,
    ranges_in_pieces,
    v32_whole_zones_are_erased,
    calls_that_can_not_be_made,
    zone_calls_on_a_regular_disk,
    a_read_only_disk,
    a_disk_without_a_cache,
    the_cache_mode,
    every_status_that_a_zone_gives,
    the_write_pointer_after_a_failed_write,
    buffers_are_lent_and_not_copied,
    requests_on_several_queues,
    a_full_queue,
    a_synchronous_call_among_others,
    interrupts_and_notifications_are_not_lost,
);

fn sent(device: &FakeDevice) -> Vec<(RequestType, u64, usize)> {
    let size = |done: &Logged| {
        done.readable.iter().skip(1).sum::<usize>() + done.writable.iter().rev().skip(1).sum::<usize>()
    };
    let log = device.take_log();
    log.iter().map(|done| (RequestType::try_from(done.kind).unwrap(), done.sector, size(done))).collect()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let sector = |n: usize| [n.to_le_bytes()[0].wrapping_mul(7) ^ seed; SECTOR];
    let mut bytes: Vec<u8> = Vec::with_capacity(len.next_multiple_of(SECTOR));
    for n in 0..len.div_ceil(SECTOR) {
        bytes.extend_from_slice(&sector(n));
    }
    // Bytes of a sector differ, too; not all of them, since Miri counts each step.
    for (n, byte) in bytes.iter_mut().enumerate().step_by(if cfg!(miri) { 97 } else { 1 }) {
        *byte ^= n.to_le_bytes()[0];
    }
    bytes.truncate(len);
    bytes
}

fn what_each_call_sends<H: Hal>() {
    use RequestType::{
        Flush, GetId, In, Out, ZoneAppend, ZoneClose, ZoneFinish, ZoneOpen, ZoneReport, ZoneReset,
        ZoneResetAll,
    };
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    assert_eq!(sent(&device), [(ZoneReport, 0, 64 + 64 * 9)]);
    let state =
        |device: &FakeDevice, zone: usize| device.disk(|disk| (disk.zones[zone].state, disk.zones[zone].wp));

    disk.write(128, &[1; 4096]).unwrap();
    assert_eq!(sent(&device), [(Out, 128, 4096)]);
    assert_eq!(state(&device, 2), (ZoneState::ImplicitOpen, 136));
    assert_eq!(disk.append(128, &[2; 8192]), Ok(136));
    assert_eq!(sent(&device), [(ZoneAppend, 128, 8192)]);
    let mut back = vec![0; 12288];
    disk.read(128, &mut back).unwrap();
    assert_eq!(sent(&device), [(In, 128, 12288)]);
    assert_eq!((&back[..4096], &back[4096..]), (&[1; 4096][..], &[2; 8192][..]));
    disk.close_zone(128).unwrap();
    assert_eq!((sent(&device), state(&device, 2)), (vec![(ZoneClose, 128, 0)], (ZoneState::Closed, 152)));
    disk.open_zone(128).unwrap();
    assert_eq!(
        (sent(&device), state(&device, 2)),
        (vec![(ZoneOpen, 128, 0)], (ZoneState::ExplicitOpen, 152))
    );
    assert_eq!(disk.zone(150).unwrap().write_pointer_sector, Some(152));
    assert_eq!(sent(&device), [(ZoneReport, 128, 128)]);
    disk.finish_zone(128).unwrap();
    assert_eq!((sent(&device), state(&device, 2).0), (vec![(ZoneFinish, 128, 0)], ZoneState::Full));
    disk.reset_zone(128).unwrap();
    assert_eq!((sent(&device), state(&device, 2)), (vec![(ZoneReset, 128, 0)], (ZoneState::Empty, 128)));
    disk.append(192, &[3; 4096]).unwrap();
    sent(&device);
    disk.reset_all_zones().unwrap();
    assert_eq!((sent(&device), state(&device, 3)), (vec![(ZoneResetAll, 0, 0)], (ZoneState::Empty, 192)));
    disk.flush().unwrap();
    assert_eq!(sent(&device), [(Flush, 0, 0)]);
    assert_eq!(disk.id().unwrap().to_string(), "fake disk 7");
    assert_eq!(sent(&device), [(GetId, 0, 20)]);
    assert_eq!(disk.zones(300).unwrap().count(), 5);
    assert_eq!(sent(&device), [(ZoneReport, 256, 64 + 64 * 5)]);
}

fn reads_and_writes_in_pieces<H: Hal>() {
    let _watch = Watch::begin();
    let limits = [(512, 1), (1000, 5), (512, 3), (1536, 1), (4096, 16), (700, 2)];
    for (size_max, seg_max) in limits.into_iter().take(if cfg!(miri) { 2 } else { 6 }) {
        for indirect in [true, false] {
            let mut shape = Shape {
                size_max: Some(size_max),
                seg_max: Some(seg_max),
                queue_size: 32,
                ..Shape::regular()
            };
            shape.more.set(Features::INDIRECT_DESC, indirect);
            let (device, mut disk) = rig::<H>(shape);
            let limit = disk.limits().transfer_len_bytes_max;
            let most = usize::try_from(size_max * seg_max).unwrap();
            assert_eq!(limit, most - most % 512);
            let places = [(5_u64, 7_usize), (1023, 1), (0, 1), (100, 40), (1000, 24)];
            for (sector, sectors) in places.into_iter().take(if cfg!(miri) { 2 } else { 5 }) {
                let data = pattern(sectors * SECTOR, sector.to_le_bytes()[0]);
                disk.write(sector, &data).unwrap();
                let mut back = vec![0; data.len()];
                disk.read(sector, &mut back).unwrap();
                assert_eq!(back, data);
                assert_eq!(device.disk(|disk| disk.bytes(sector, sectors as u64).to_vec()), data);
                let pieces = data.len().div_ceil(limit);
                let sent = sent(&device);
                assert_eq!(sent.len(), 2 * pieces);
                for (number, (kind, at, len)) in sent.into_iter().enumerate() {
                    let piece = number % pieces;
                    assert_eq!(kind, if number < pieces { RequestType::Out } else { RequestType::In });
                    assert_eq!(at, sector + (piece * limit / SECTOR) as u64);
                    assert_eq!(len, limit.min(data.len() - piece * limit));
                }
            }
        }
    }
}

fn r12_pieces_end_where_they_may<H: Hal>() {
    let _watch = Watch::begin();
    // 6,144 bytes a request, and a granularity of 4,096.
    let shape = Shape { size_max: Some(1536), seg_max: Some(4), ..Shape::default() };
    let (device, mut disk) = rig::<H>(shape);
    sent(&device);
    let data = pattern(48 * SECTOR, 3);
    disk.write(128, &data).unwrap();
    let pieces: Vec<_> = (0..6).map(|piece| (RequestType::Out, 128 + 8 * piece, 4096)).collect();
    assert_eq!(sent(&device), pieces);
    assert_eq!(device.disk(|disk| disk.bytes(128, 48).to_vec()), data);
    // V25: no request reaches into the next zone. Conventional zones, and reading on into a sequential one.
    let data = pattern(100 * SECTOR, 4);
    disk.write(20, &data).unwrap();
    let mut back = vec![0; 180 * SECTOR];
    disk.read(20, &mut back).unwrap();
    assert_eq!(back[..100 * SECTOR], data);
    for (_, sector, len) in sent(&device) {
        let last = sector + (len / SECTOR) as u64 - 1;
        assert_eq!(sector / 64, last / 64, "{len} bytes at {sector}");
    }
    assert_usable(&device, &mut disk);
    drop(disk);
    // Less than the granularity in a request: no zone could be written.
    let device = FakeDevice::new(Shape { size_max: Some(1024), seg_max: Some(3), ..Shape::default() });
    let error = common::rig::refusal_of::<H>(&device);
    assert!(
        matches!(error, Error::Probe(virtio_zbd_driver::ProbeError::TransferTooSmall { .. })),
        "{error:?}"
    );
}

fn pieces_of_data_in_segments<H: Hal>() {
    let _watch = Watch::begin();
    for (size_max, len, expected) in [
        (Some(1000), 4096, vec![1000, 1000, 1000, 1000, 96]),
        (Some(4096), 4096, vec![4096]),
        (Some(512), 1536, vec![512, 512, 512]),
        (None, 8192, vec![8192]),
    ] {
        let (device, mut disk) = rig::<H>(Shape { size_max, ..Shape::regular() });
        disk.write(0, &pattern(len, 9)).unwrap();
        disk.read(0, &mut vec![0; len]).unwrap();
        let [write, read] = &device.take_log()[..] else { panic!() };
        assert_eq!(
            (write.readable[0], &write.readable[1..], &write.writable[..]),
            (16, &expected[..], &[1][..])
        );
        let (in_header, data) = read.writable.split_last().unwrap();
        assert_eq!((&read.readable[..], data, *in_header), (&[16][..], &expected[..], 1));
    }
}

fn the_limit_of_one_request<H: Hal>() {
    let _watch = Watch::begin();
    // The chain of a request is no longer than the queue: here 8 descriptors, two of them for the headers.
    let device = FakeDevice::new(Shape { size_max: Some(512), seg_max: Some(100), ..Shape::regular() });
    let options = Options { queue_depth: 8, ..Options::default() };
    let mut disk = attach_with::<H>(&device, options).unwrap();
    let max = disk.limits().transfer_len_bytes_max;
    assert_eq!((disk.limits().segments_max, max), (6, 6 * 512));
    let submit = |disk: &mut Blk<H>, len| disk.submit(0, Command::Write { sector: 0, buffer: vec![0; len] });
    let rejected = submit(&mut disk, max + 512).unwrap_err();
    let too_long = Invalid::TooLong { len_bytes: 7 * 512, max_bytes: 6 * 512 };
    assert_eq!(rejected.error, Error::Invalid(too_long));
    assert_eq!(rejected.buffer.unwrap().len(), max + 512);
    let token = submit(&mut disk, max).unwrap();
    disk.notify(0).unwrap();
    assert_eq!(disk.complete(0).unwrap().unwrap().token, token);
}

fn ranges_in_pieces<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape { ranges_max: (32, 4), ..Shape::regular() });
    type Call<H> = fn(&mut Blk<H>, u64, u64) -> Result<(), Error>;
    let calls: [(RequestType, Call<H>); 4] = [
        (RequestType::Discard, |disk, sector, sectors| disk.discard(sector, sectors)),
        (RequestType::WriteZeroes, |disk, sector, sectors| disk.write_zeroes(sector, sectors, false)),
        (RequestType::WriteZeroes, |disk, sector, sectors| disk.write_zeroes(sector, sectors, true)),
        (RequestType::SecureErase, |disk, sector, sectors| disk.secure_erase(sector, sectors)),
    ];
    for (kind, call) in calls {
        let full = pattern(200 * SECTOR, 1);
        disk.write(0, &full).unwrap();
        device.take_log();
        call(&mut disk, 10, 100).unwrap();
        assert_eq!(sent(&device), [(kind, 0, 16); 4], "100 sectors, 32 at a time");
        let mut expected = full;
        expected[10 * SECTOR..110 * SECTOR].fill(0);
        assert_eq!(device.disk(|disk| disk.bytes(0, 200).to_vec()), expected, "{kind:?}");
        for (sector, sectors) in [(1024, 1), (1000, 25), (0, 1025), (u64::MAX, 2), (1, u64::MAX), (5, 0)] {
            let error = call(&mut disk, sector, sectors).unwrap_err();
            assert!(
                matches!(error, Error::Invalid(Invalid::OutOfRange { .. } | Invalid::Empty { .. })),
                "{kind:?} {error:?}"
            );
        }
        assert_eq!(sent(&device), []);
    }
}

fn v32_whole_zones_are_erased<H: Hal>() {
    let _watch = Watch::begin();
    let mut shape = Shape { ranges_max: (100, 1), ..Shape::default() };
    shape.more |= Features::SECURE_ERASE;
    let (device, mut disk) = rig::<H>(shape);
    for zone in [2, 3, 4] {
        disk.append(64 * zone, &[1; 4096]).unwrap();
    }
    device.take_log();
    disk.secure_erase(128, 192).unwrap();
    assert_eq!(sent(&device).len(), 3, "a zone at a time: the device takes 100 sectors");
    assert_eq!(zones(&mut disk), device.disk(|disk| expected_zones(disk)));
    for zone in [2, 3, 4] {
        assert_eq!(disk.zone(64 * zone).unwrap().state, ZoneState::Empty);
    }
}

fn calls_that_can_not_be_made<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape { block_bytes: 4096, ..Shape::default() });
    device.take_log();
    let invalid = |result: Result<(), Error>| match result {
        Err(Error::Invalid(invalid)) => invalid,
        other => panic!("{other:?}"),
    };
    let misaligned = |sector, len_bytes| Invalid::Misaligned { sector, len_bytes, unit_bytes: 4096 };
    let out_of_range = |sector, sectors| Invalid::OutOfRange { sector, sectors, capacity_sectors: 552 };
    for (sector, len, expected) in [
        (1, 4096, misaligned(1, 4096)),
        (4, 4096, misaligned(4, 4096)),
        (0, 512, misaligned(0, 512)),
        (8, 4097, misaligned(8, 4097)),
        (8, 0, Invalid::Empty { sector: 8 }),
        (552, 4096, out_of_range(552, 8)),
        (544, 8192, out_of_range(544, 16)),
        (u64::MAX - 7, 4096, out_of_range(u64::MAX - 7, 8)),
        (u64::MAX - 7, 8192, out_of_range(u64::MAX - 7, 16)),
    ] {
        assert_eq!(invalid(disk.read(sector, &mut vec![0; len])), expected);
        assert_eq!(invalid(disk.write(sector, &vec![0; len])), expected);
        let rejected = disk.submit(0, Command::Read { sector, buffer: vec![5; len] }).unwrap_err();
        assert_eq!((rejected.error, rejected.buffer), (Error::Invalid(expected), Some(vec![5; len])));
        let rejected = disk.submit(0, Command::Write { sector, buffer: vec![6; len] }).unwrap_err();
        assert_eq!((rejected.error, rejected.buffer), (Error::Invalid(expected), Some(vec![6; len])));
    }
    let not_start = |sector| Invalid::NotZoneStart { sector, zone_sectors: 64 };
    for (sector, len, expected) in [
        (129, 4096, not_start(129)),
        (136, 4096, not_start(136)),
        (552, 4096, out_of_range(552, 1)),
        (576, 4096, out_of_range(576, 1)),
        (u64::MAX, 4096, out_of_range(u64::MAX, 1)),
        (128, 0, Invalid::Empty { sector: 128 }),
        (128, 512, misaligned(128, 512)),
        (128, 6144, misaligned(128, 6144)),
        (128, 12288, Invalid::TooLong { len_bytes: 12288, max_bytes: 8192 }),
    ] {
        assert_eq!(invalid(disk.append(sector, &vec![0; len]).map(drop)), expected);
        let append = Command::Append { zone_start_sector: sector, buffer: vec![5; len] };
        let rejected = disk.submit(0, append).unwrap_err();
        assert_eq!((rejected.error, rejected.buffer), (Error::Invalid(expected), Some(vec![5; len])));
    }
    for sector in [129, 191] {
        assert_eq!(invalid(disk.open_zone(sector)), not_start(sector));
        assert_eq!(invalid(disk.close_zone(sector)), not_start(sector));
        assert_eq!(invalid(disk.finish_zone(sector)), not_start(sector));
        assert_eq!(invalid(disk.reset_zone(sector)), not_start(sector));
    }
    assert_eq!(invalid(disk.open_zone(576)), out_of_range(576, 1));
    assert_eq!(invalid(disk.discard(0, 8)), Invalid::NotOffered(RequestType::Discard));
    assert_eq!(invalid(disk.write_zeroes(0, 8, false)), Invalid::NotOffered(RequestType::WriteZeroes));
    assert_eq!(invalid(disk.secure_erase(0, 64)), Invalid::NotOffered(RequestType::SecureErase));
    let no_queue = Invalid::NoSuchQueue { queue: 1, queues: 1 };
    assert_eq!(invalid(disk.notify(1)), no_queue);
    assert_eq!(invalid(disk.complete(1).map(drop)), no_queue);
    assert_eq!(
        invalid(disk.submit(1, Command::Flush).map(drop).map_err(|rejected| rejected.error)),
        no_queue
    );
    assert_eq!(disk.in_flight(1), 0);
    assert_eq!(sent(&device), []);
    assert_usable(&device, &mut disk);
}

fn zone_calls_on_a_regular_disk<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::regular());
    let not_zoned = Error::Invalid(Invalid::NotZoned);
    assert_eq!(disk.zones(0).map(drop), Err(not_zoned));
    assert_eq!(disk.zone(0).map(drop), Err(not_zoned));
    assert_eq!(disk.append(0, &[0; 512]).map(drop), Err(not_zoned));
    assert_eq!(disk.open_zone(0), Err(not_zoned));
    assert_eq!(disk.close_zone(0), Err(not_zoned));
    assert_eq!(disk.finish_zone(0), Err(not_zoned));
    assert_eq!(disk.reset_zone(0), Err(not_zoned));
    assert_eq!(disk.reset_all_zones(), Err(not_zoned));
    assert_eq!(sent(&device), []);
    assert_usable(&device, &mut disk);
}

fn a_read_only_disk<H: Hal>() {
    let _watch = Watch::begin();
    for shape in [Shape::default(), Shape::regular()] {
        let (device, mut disk) = rig::<H>(Shape { more: shape.more | Features::RO, ..shape });
        assert!(disk.read_only());
        device.take_log();
        let read_only = Error::Invalid(Invalid::ReadOnly);
        assert_eq!(disk.write(0, &[0; 512]), Err(read_only));
        if disk.zoned().is_some() {
            assert_eq!(disk.append(128, &[0; 4096]).map(drop), Err(read_only));
            assert_eq!(disk.open_zone(128), Err(read_only));
            assert_eq!(disk.reset_all_zones(), Err(read_only));
        } else {
            assert_eq!(disk.discard(0, 8), Err(read_only));
            assert_eq!(disk.write_zeroes(0, 8, true), Err(read_only));
            assert_eq!(disk.secure_erase(0, 8), Err(read_only));
        }
        assert_eq!(sent(&device), []);
        disk.read(0, &mut [0; 512]).unwrap();
        assert_usable(&device, &mut disk);
    }
}

fn a_disk_without_a_cache<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape { more: Features::empty(), ..Shape::default() });
    device.take_log();
    assert!(!disk.limits().flush);
    assert!(!disk.write_back());
    disk.flush().unwrap();
    let rejected = disk.submit(0, Command::Flush).unwrap_err();
    assert_eq!(rejected.error, Error::Invalid(Invalid::NotOffered(RequestType::Flush)));
    assert_eq!(sent(&device), []);
    assert_usable(&device, &mut disk);
}

fn the_cache_mode<H: Hal>() {
    let _watch = Watch::begin();
    let (_, mut disk) = rig::<H>(Shape::default());
    assert!(disk.write_back());
    assert_eq!(disk.set_write_back(false), Err(Error::Invalid(Invalid::CacheModeFixed)));
    drop(disk);
    let shape = Shape::default();
    let (device, mut disk) = rig::<H>(Shape { more: shape.more | Features::CONFIG_WCE, ..shape });
    assert!(!disk.write_back(), "the field says 0");
    disk.set_write_back(true).unwrap();
    assert!(disk.write_back());
    assert_eq!(device.face(|face| face.config.as_ref().unwrap()[32]), 1);
    disk.set_write_back(false).unwrap();
    assert!(!disk.write_back());
    assert_usable(&device, &mut disk);
}

fn every_status_that_a_zone_gives<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    let word = |request, sector, status| Err(Error::Device { request, sector, status });
    use DeviceError::{ActiveResource, InvalidCommand, OpenResource, UnalignedWritePointer};
    use RequestType::{In, Out, ZoneAppend, ZoneClose, ZoneOpen, ZoneReset};
    assert_eq!(disk.write(136, &[0; 4096]), word(Out, 136, UnalignedWritePointer)); // V26
    assert_eq!(disk.write(128, &[0; 512]), word(Out, 128, UnalignedWritePointer));
    assert_eq!(disk.open_zone(0), word(ZoneOpen, 0, InvalidCommand)); // V13
    assert_eq!(disk.append(0, &[0; 4096]).map(drop), word(ZoneAppend, 0, InvalidCommand)); // V14
    assert_eq!(disk.close_zone(128), word(ZoneClose, 128, InvalidCommand)); // G2
    for zone in [2, 3, 4] {
        disk.open_zone(64 * zone).unwrap();
    }
    assert_eq!(disk.open_zone(320), word(ZoneOpen, 320, OpenResource)); // V15
    assert_eq!(disk.append(320, &[0; 4096]).map(drop), word(ZoneAppend, 320, OpenResource)); // V20
    disk.append(128, &[0; 4096]).unwrap();
    disk.close_zone(128).unwrap();
    disk.open_zone(320).unwrap();
    assert_eq!(disk.open_zone(384), word(ZoneOpen, 384, ActiveResource));
    device.disk(|disk| disk.zones[8].state = ZoneState::Offline);
    assert_eq!(disk.read(512, &mut [0; 512]), word(In, 512, InvalidCommand)); // V29
    assert_eq!(disk.reset_zone(512), word(ZoneReset, 512, InvalidCommand));
    device.disk(|disk| disk.zones[8].state = ZoneState::Empty);
    assert_usable(&device, &mut disk);
}

fn the_write_pointer_after_a_failed_write<H: Hal>() {
    let _watch = Watch::begin();
    // A long write of which the third piece fails.
    let (device, mut disk) = rig::<H>(Shape { size_max: Some(4096), seg_max: Some(1), ..Shape::default() });
    let mut left = 2;
    device.lie(move |request, reply, face| {
        if request.is(RequestType::Out) {
            if left == 0 {
                reply.set_status(Status::IoErr.into());
                // Half of it has come to pass.
                face.disk.zones[2].wp -= 4;
            }
            left -= 1;
        }
    });
    let (request, status) = (RequestType::Out, DeviceError::IoError);
    assert_eq!(disk.write(128, &[1; 6 * 4096]), Err(Error::Device { request, sector: 144, status }));
    assert_eq!(disk.zone(128).unwrap().write_pointer_sector, Some(148));
    device.be_honest();
    // The zone's end is in the way.
    device.disk(|disk| disk.zones[2].wp = 128 + 40);
    let status = DeviceError::InvalidCommand;
    assert_eq!(disk.write(168, &[1; 3 * 4096]), Err(Error::Device { request, sector: 176, status }));
    let zone = disk.zone(128).unwrap();
    assert_eq!((zone.state, zone.write_pointer_sector), (ZoneState::Full, Some(192)));
    assert_eq!(zone.remaining_sectors(), 0);
}

fn buffers_are_lent_and_not_copied<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::regular());
    let buffer = pattern(2048, 5);
    let (place, bytes) = (buffer.as_ptr().addr(), buffer.clone());
    let write = disk.submit(0, Command::Write { sector: 7, buffer }).unwrap();
    let read_buffer = vec![0xee; 2048];
    let read_place = read_buffer.as_ptr().addr();
    let read = disk.submit(0, Command::Read { sector: 7, buffer: read_buffer }).unwrap();
    assert_eq!(device.take_log(), [], "it was not notified yet");
    assert_eq!(common::memory::shared(), (2, 4096), "the buffers and nothing else");
    disk.notify(0).unwrap();
    for (token, place) in [(write, place), (read, read_place)] {
        let done = disk.complete(0).unwrap().unwrap();
        let buffer = done.buffer.unwrap();
        assert_eq!((done.token, done.result, buffer.as_ptr().addr()), (token, Ok(Done::Plain), place));
        assert_eq!(buffer, bytes);
    }
    assert_eq!(disk.complete(0), Ok(None));
}

fn requests_on_several_queues<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape { queues: Some(3), ..Shape::default() });
    let options = Options { queues: 8, queue_depth: 8, ..Options::default() };
    let mut disk = attach_with::<H>(&device, options).unwrap();
    assert_eq!((disk.queue_count(), disk.queue_depth()), (3, 8));
    device.face(|face| face.holds_answers = true);
    // Appends to one zone on all queues, answered in another order than given.
    let mut appends = Vec::new();
    for (queue, byte) in [0, 1, 2, 0, 1, 2].into_iter().zip(1..) {
        let buffer = vec![byte; 4096];
        let token = disk.submit(queue, Command::Append { zone_start_sector: 128, buffer }).unwrap();
        disk.notify(queue).unwrap();
        appends.push((queue, token));
    }
    for queue in 0..3 {
        assert_eq!(disk.in_flight(queue), 2);
        device.deliver(queue, 1);
        device.deliver(queue, 0);
    }
    let mut seen = Vec::new();
    for queue in 0..3 {
        while let Some(done) = disk.complete(queue).unwrap() {
            assert!(appends.contains(&(queue, done.token)));
            let Ok(Done::Appended { sector }) = done.result else { panic!("{:?}", done.result) };
            let data = device.disk(|disk| disk.bytes(sector, 8).to_vec());
            assert_eq!(Some(data), done.buffer);
            seen.push(sector);
        }
        assert_eq!(disk.in_flight(queue), 0);
    }
    seen.sort_unstable();
    assert_eq!(seen, [128, 136, 144, 152, 160, 168]);
    assert_eq!(disk.submit(3, Command::Flush).map(drop).map_err(|rejected| rejected.buffer), Err(None));
}

fn a_full_queue<H: Hal>() {
    let _watch = Watch::begin();
    for (indirect, requests) in [(true, 8), (false, 2)] {
        let mut shape = Shape::regular();
        shape.more.set(Features::INDIRECT_DESC, indirect);
        let device = FakeDevice::new(shape);
        let options = Options { queue_depth: 8, ..Options::default() };
        let mut disk = attach_with::<H>(&device, options).unwrap();
        for round in 0..5 {
            let mut tokens: Vec<Token> = Vec::new();
            let rejected = loop {
                let command = Command::Write { sector: 0, buffer: vec![round; 512] };
                match disk.submit(0, command) {
                    Ok(token) => tokens.push(token),
                    Err(rejected) => break rejected,
                }
            };
            assert_eq!((rejected.error, rejected.buffer), (Error::QueueFull, Some(vec![round; 512])));
            assert_eq!(tokens.len(), requests);
            disk.notify(0).unwrap();
            for token in tokens {
                assert_eq!(disk.complete(0).unwrap().unwrap().token, token);
            }
            assert_eq!(disk.complete(0), Ok(None));
        }
    }
}

fn a_synchronous_call_among_others<H: Hal>() {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::regular());
    let options = Options { queue_depth: 4, ..Options::default() };
    let mut disk = attach_with::<H>(&device, options).unwrap();
    // The queue is full of requests that the device was never told of.
    let mut tokens = Vec::new();
    while let Ok(token) = disk.submit(0, Command::Write { sector: 3, buffer: vec![4; 512] }) {
        tokens.push(token);
    }
    let mut back = vec![0; 512];
    disk.read(3, &mut back).unwrap();
    assert_eq!(back, [4; 512]);
    assert_eq!(disk.in_flight(0), tokens.len());
    for token in tokens {
        let done = disk.complete(0).unwrap().unwrap();
        assert_eq!((done.token, done.result), (token, Ok(Done::Plain)));
    }
    assert_eq!(disk.complete(0), Ok(None));
}

fn interrupts_and_notifications_are_not_lost<H: Hal>() {
    let _watch = Watch::begin();
    for event_idx in [false, true] {
        let mut shape = Shape::regular();
        shape.more.set(Features::EVENT_IDX, event_idx);
        let device = FakeDevice::new(shape);
        // The device works only when it is told; the driver goes on only when it is interrupted. What gets lost is a sleep for ever.
        device.face(|face| face.holds_answers = true);
        let slept = Arc::new(Mutex::new(0_u64));
        let sleeps = Arc::clone(&slept);
        let wait = move |transport: &mut common::FakeTransport, queue: u16, turn: u64| {
            let device = transport.device();
            *sleeps.lock().unwrap() += 1;
            while device.waiting(queue) > 0 {
                device.deliver(queue, 0);
            }
            let interrupted = device.face(|face| {
                let interrupted = face.interrupts.contains(InterruptStatus::QUEUE_INTERRUPT);
                face.interrupts = InterruptStatus::empty();
                interrupted
            });
            assert!(interrupted, "turn {turn}: the device has nothing to do, and the driver sleeps");
            if turn < TURNS_MAX { Waited::Again } else { Waited::GiveUp }
        };
        let options = Options { queue_depth: 8, ..Options::default() };
        let mut disk: Blk<H> = VirtioBlk::with(device.transport(), options, wait, allocate).unwrap();
        let (rounds, burst) = if cfg!(miri) { (10, 3) } else { (22_500, 3) };
        for round in 0..rounds {
            // More than 65,536 requests, so that the indices wrap.
            for _ in 0..burst {
                let _ = disk.submit(0, Command::Flush).unwrap();
            }
            disk.notify(0).unwrap();
            let mut done = 0;
            while done < burst {
                disk.wait(0).unwrap();
                while let Some(completion) = disk.complete(0).unwrap() {
                    completion.result.unwrap();
                    done += 1;
                }
            }
            if round % 16 == 0 {
                disk.flush().unwrap();
            }
        }
        assert!(*slept.lock().unwrap() >= rounds);
        let notified = device.notified(0);
        assert!(notified <= rounds + rounds / 16 + 2, "{notified} notifications for {rounds} bursts");
    }
}
