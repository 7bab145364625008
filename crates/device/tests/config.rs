//! Features, the configuration space and the cache mode (virtio 1.3, 5.2.3 to 5.2.6).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use std::sync::Arc;

use common::{CommitSeen, How, Probe, Rig, SHAPE, sectors, start_of};
use virtio_zbd_device::{
    ConfigRefused, Disk, DiskConfig, DiskError, FeaturesRefused, MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS,
    SEG_MAX, SIZE_MAX_BYTES,
};
use virtio_zbd_spec::{Features, Status};
use virtio_zbd_store::{EngineChoice, RamStore, Store};
use virtio_zbd_testkit::Request;
use virtio_zbd_zones::{Condition, Geometry, GeometryConfig, ZoneState};
use zerocopy::IntoBytes;

/// Where `writeback` is in the configuration space.
const WRITEBACK: u32 = 32;

fn ram(shape: GeometryConfig) -> Arc<dyn Store> {
    Arc::new(RamStore::new(Geometry::new(shape).unwrap()).unwrap())
}

fn disk(store: Arc<dyn Store>, queues: u16, block_len_bytes: u32) -> Result<Arc<Disk>, DiskError> {
    Disk::new(store, DiskConfig { queues, block_len_bytes, engine: EngineChoice::Auto })
}

fn plain_disk(queues: u16, block_len_bytes: u32) -> Result<Arc<Disk>, DiskError> {
    disk(Arc::new(RamStore::plain(1 << 20).unwrap()), queues, block_len_bytes)
}

fn flush() -> CommitSeen {
    CommitSeen { flush: true, ..Default::default() }
}

#[test]
fn a_plain_disk_offers_this_and_no_more() {
    let always = Features::VERSION_1
        | Features::INDIRECT_DESC
        | Features::EVENT_IDX
        | Features::SIZE_MAX
        | Features::SEG_MAX
        | Features::BLK_SIZE
        | Features::TOPOLOGY
        | Features::FLUSH
        | Features::CONFIG_WCE;
    let offers = |disk: Arc<Disk>| Features::from_bits_retain(disk.features());
    let plain = always | Features::DISCARD | Features::WRITE_ZEROES;
    assert_eq!(offers(plain_disk(1, 512).unwrap()), plain);
    assert_eq!(offers(plain_disk(2, 512).unwrap()), plain | Features::MQ);
    let read_only = Arc::new(Probe::plain(1 << 20).read_only());
    assert_eq!(offers(disk(read_only, 1, 512).unwrap()), always | Features::RO);

    let zoned = always | Features::ZONED;
    assert_eq!(offers(disk(ram(SHAPE), 1, 512).unwrap()), zoned);
    assert_eq!(offers(disk(ram(SHAPE), 4, 512).unwrap()), zoned | Features::MQ);
    let read_only = Arc::new(Probe::zoned(SHAPE).read_only());
    assert_eq!(offers(disk(read_only, 1, 512).unwrap()), zoned | Features::RO);
}

#[test]
fn v2_v4_a_driver_without_zones_or_without_virtio_1_is_refused() {
    let zoned = disk(ram(SHAPE), 1, 512).unwrap();
    let all = zoned.features();
    let answer = |disk: &Arc<Disk>, accepted: u64| disk.negotiate(accepted).map(|_| ());
    assert_eq!(answer(&zoned, all), Ok(()));
    assert_eq!(answer(&zoned, (Features::ZONED | Features::VERSION_1).bits()), Ok(()));
    assert_eq!(answer(&zoned, all & !Features::ZONED.bits()), Err(FeaturesRefused::NotZoned));
    assert_eq!(answer(&zoned, Features::VERSION_1.bits()), Err(FeaturesRefused::NotZoned));
    assert_eq!(answer(&zoned, all & !Features::VERSION_1.bits()), Err(FeaturesRefused::Legacy));
    assert_eq!(answer(&zoned, 0), Err(FeaturesRefused::Legacy));
    for bit in (0..64).filter(|bit| all >> bit & 1 == 0) {
        let refused = FeaturesRefused::Unoffered { bits: 1 << bit };
        assert_eq!(answer(&zoned, all | 1 << bit), Err(refused));
    }
    // V1, V3: a plain disk does not offer ZONED and does not miss it.
    let plain = plain_disk(1, 512).unwrap();
    assert_eq!(answer(&plain, Features::VERSION_1.bits()), Ok(()));
    let zoned_on_plain = (Features::VERSION_1 | Features::ZONED).bits();
    assert_eq!(answer(&plain, zoned_on_plain), Err(FeaturesRefused::Unoffered { bits: 1 << 17 }));
}

#[test]
fn v5_to_v11_the_configuration_of_a_zoned_disk() {
    for shape in [
        SHAPE,
        GeometryConfig { max_open_zones: 0, max_active_zones: 0, max_append_sectors: 0, ..SHAPE },
        GeometryConfig { write_granularity_bytes: 512, zone_capacity_sectors: 95, ..SHAPE },
    ] {
        let config = Rig::over(ram(shape), How::default()).config();
        assert_eq!(config.capacity.get(), shape.capacity_sectors);
        assert_eq!(config.blk_size.get(), shape.write_granularity_bytes, "the block is what can be written");
        assert_eq!(config.zoned.model, 1, "V5: host-managed");
        assert_eq!(config.zoned.zone_sectors.get(), shape.zone_sectors, "V6");
        assert_eq!(config.zoned.max_open_zones.get(), shape.max_open_zones, "V7");
        assert_eq!(config.zoned.max_active_zones.get(), shape.max_active_zones, "V8");
        assert_eq!(config.zoned.max_append_sectors.get(), shape.max_append_sectors, "V9");
        assert_eq!(config.zoned.write_granularity.get(), shape.write_granularity_bytes, "V10");
        assert_eq!(config.zoned.unused2, [0; 3], "V11");
        assert_eq!((config.unused0, config.unused1), (0, [0; 3]), "V11");
        // G3, R2: what is not offered is not described either.
        assert_eq!((config.max_discard_sectors.get(), config.max_discard_seg.get()), (0, 0));
        assert_eq!((config.max_write_zeroes_sectors.get(), config.max_write_zeroes_seg.get()), (0, 0));
        assert_eq!(config.write_zeroes_may_unmap, 0);
    }
}

#[test]
fn the_configuration_of_a_plain_disk() {
    let how = How { queues: 3, ..Default::default() };
    let rig = Rig::over(Arc::new(RamStore::plain(1 << 20).unwrap()), how);
    let config = rig.config();
    assert_eq!(config.capacity.get(), 2048);
    assert_eq!((config.size_max.get(), config.seg_max.get()), (SIZE_MAX_BYTES, SEG_MAX));
    assert_eq!((config.blk_size.get(), config.num_queues.get(), config.writeback), (512, 3, 1));
    assert_eq!(config.max_discard_sectors.get(), MAX_DISCARD_SECTORS);
    assert_eq!(config.max_discard_seg.get(), MAX_DISCARD_SEGMENTS);
    assert_eq!(config.discard_sector_alignment.get(), 1);
    assert_eq!(config.max_write_zeroes_sectors.get(), MAX_DISCARD_SECTORS);
    assert_eq!(config.max_write_zeroes_seg.get(), MAX_DISCARD_SEGMENTS);
    assert_eq!(config.write_zeroes_may_unmap, 1);
    assert_eq!((config.unused0, config.unused1), (0, [0; 3]));
    assert_eq!(config.zoned.as_bytes(), [0; 24], "V1, V3");
}

#[test]
fn any_part_of_the_configuration_can_be_read() {
    let rig = Rig::over(ram(SHAPE), How::default());
    let mut whole = rig.config().as_bytes().to_vec();
    whole.resize(200, 0);
    for offset in 0..100 {
        for len in [0, 1, 2, 4, 8, 24, 96, 100] {
            let mut part = vec![0xee; len];
            rig.disk.read_config(&rig.negotiated, u32::try_from(offset).unwrap(), &mut part);
            assert_eq!(part, whole[offset..offset + len], "{len} bytes at {offset}");
        }
    }
    let mut past = [0xee; 4];
    rig.disk.read_config(&rig.negotiated, u32::MAX, &mut past);
    assert_eq!(past, [0; 4]);
}

#[test]
fn only_a_disk_that_can_be_is_made() {
    for block in [0, 1, 256, 511, 513, 1000, 131_072, u32::MAX] {
        let error = plain_disk(1, block).map(drop).unwrap_err();
        assert!(
            matches!(error, DiskError::BlockSize { block_len_bytes } if block_len_bytes == block),
            "{error}"
        );
    }
    assert!(plain_disk(1, 65_536).is_ok());
    assert!(matches!(plain_disk(0, 512), Err(DiskError::NoQueues)));

    // V9: an append fits a request.
    let most_sectors = SEG_MAX * (SIZE_MAX_BYTES / 512);
    let with_append = |max_append_sectors| {
        let shape = GeometryConfig {
            capacity_sectors: 2 << 20,
            zone_sectors: 1 << 20,
            zone_capacity_sectors: 1 << 20,
            conventional_zones: 0,
            max_append_sectors,
            ..SHAPE
        };
        disk(ram(shape), 1, 512).map(drop)
    };
    assert!(with_append(most_sectors).is_ok());
    assert!(matches!(with_append(most_sectors + 8), Err(DiskError::AppendLimit { .. })));

    // A store that says what can't be.
    let full_and_more = ZoneState { condition: Condition::Closed, wp_sectors: 104 };
    let store = Probe::zoned(SHAPE).found_in(|zone| (zone == 3).then_some(full_and_more));
    assert!(matches!(disk(Arc::new(store), 1, 512), Err(DiskError::States(_))));
}

#[test]
fn the_cache_mode_is_read_and_switched() {
    for (without, write_back) in [
        (Features::empty(), 1),
        (Features::CONFIG_WCE, 1),
        // 5.2.5.2: CONFIG_WCE without FLUSH begins at 0; with neither, a driver may count on write-through.
        (Features::FLUSH, 0),
        (Features::FLUSH | Features::CONFIG_WCE, 0),
    ] {
        let rig = Rig::over(ram(SHAPE), How { without, ..Default::default() });
        assert_eq!(rig.config().writeback, write_back, "without {without:?}");
        for mode in [1, 0, 0, 1] {
            let answer = rig.negotiated.write_config(WRITEBACK, &[mode]);
            if without.contains(Features::CONFIG_WCE) {
                assert_eq!(answer, Err(ConfigRefused { offset: WRITEBACK, len: 1 }));
                assert_eq!(rig.config().writeback, write_back);
            } else {
                assert_eq!(answer, Ok(()));
                assert_eq!(rig.config().writeback, mode);
            }
        }
    }
}

#[test]
fn nothing_else_in_the_configuration_can_be_written() {
    let rig = Rig::over(ram(SHAPE), How::default());
    let before = rig.config();
    for offset in (0..100).chain([u32::MAX]) {
        for data in [&[][..], &[0, 0], &[2], &[255], &[1, 0, 0, 0]] {
            let refused = ConfigRefused { offset, len: data.len() };
            assert_eq!(rig.negotiated.write_config(offset, data), Err(refused));
        }
        if offset != WRITEBACK {
            assert!(rig.negotiated.write_config(offset, &[0]).is_err());
        }
    }
    assert_eq!(rig.config(), before);
    // A driver that has not spoken may write nothing at all.
    assert!(rig.disk.not_negotiated().write_config(WRITEBACK, &[0]).is_err());
}

#[test]
fn a_write_of_the_whole_configuration_is_of_what_changes_in_it() {
    let rig = Rig::over(ram(SHAPE), How::default());
    let mut space = [0; 100];
    rig.disk.read_config(&rig.negotiated, 0, &mut space);
    let write = |space: &[u8], offset: u32| rig.disk.write_config(&rig.negotiated, offset, space);
    // As it was: nothing is written.
    assert_eq!(write(&space, 0), Ok(()));
    assert_eq!(rig.config().writeback, 1);
    // The byte that may be written.
    let writeback = usize::try_from(WRITEBACK).unwrap();
    for mode in [0, 1, 1, 0] {
        space[writeback] = mode;
        assert_eq!(write(&space, 0), Ok(()));
        assert_eq!(rig.config().writeback, mode);
        assert_eq!(write(&space[writeback - 2..writeback + 2], WRITEBACK - 2), Ok(()));
    }
    // Any other byte, writeback with a value that it can't have, and two bytes.
    for at in 0..space.len() {
        let mut other = space;
        other[at] ^= 0x82;
        let offset = u32::try_from(at).unwrap();
        assert_eq!(write(&other, 0), Err(ConfigRefused { offset, len: 1 }), "{at}");
        if at != writeback {
            other[writeback] ^= 1;
            assert_eq!(write(&other, 0), Err(ConfigRefused { offset: 0, len: 100 }), "{at}");
        }
    }
    assert_eq!(write(&[0, 0], u32::MAX), Ok(()), "beyond the end nothing is there to be changed");
    // Nor past the last number that an offset can have.
    for data in [&[0, 1][..], &[0, 1, 1], &[1, 0]] {
        assert!(write(data, u32::MAX).is_err(), "{data:?}");
    }
    assert_eq!(rig.config().writeback, 0);
}

/// The requests that change a disk.
fn changes(zoned: bool) -> Vec<Request> {
    let data = sectors(1, 8);
    match zoned {
        true => vec![
            Request::write(0, &data),
            Request::write(start_of(2), &data),
            Request::zone_append(start_of(2), &data),
        ],
        false => vec![
            Request::write(5, &data),
            Request::discard(&[(0, 8), (16, 8)]),
            Request::write_zeroes(&[(8, 8)], false),
            Request::write_zeroes(&[(8, 8)], true),
        ],
    }
}

fn probed(zoned: bool) -> Arc<Probe> {
    Arc::new(if zoned { Probe::zoned(SHAPE) } else { Probe::plain(1 << 20) })
}

#[test]
fn with_the_write_back_cache_only_a_flush_commits() {
    for zoned in [false, true] {
        let probe = probed(zoned);
        let mut rig = Rig::over(probe.clone(), How::default());
        for request in changes(zoned) {
            rig.accept(request);
        }
        rig.read(0, 8);
        assert_eq!(probe.take_commits(), []);
        rig.accept(Request::flush());
        assert_eq!(probe.take_commits(), [flush()]);
    }
}

#[test]
fn without_it_each_change_answers_after_a_commit() {
    // Switched off by the driver; off from the beginning; never on.
    for without in [Features::empty(), Features::FLUSH, Features::FLUSH | Features::CONFIG_WCE] {
        for zoned in [false, true] {
            let probe = probed(zoned);
            let mut rig = Rig::over(probe.clone(), How { without, ..Default::default() });
            if without.is_empty() {
                rig.negotiated.write_config(WRITEBACK, &[0]).unwrap();
            }
            for request in changes(zoned) {
                probe.commit_gate.close();
                let token = rig.queue().submit(request).unwrap();
                probe.commit_gate.wait_for(1);
                // Another request goes through, this one waits for its commit.
                let read = rig.queue().submit(Request::read(0, 512)).unwrap();
                let timeout = rig.queue().timeout;
                assert_eq!(rig.queue().complete(timeout).unwrap().0, read);
                assert_eq!(rig.queue().in_flight(), 1);
                probe.commit_gate.open();
                let (done, completion) = rig.queue().complete(timeout).unwrap();
                assert_eq!(done, token);
                let completion = completion.expect(Status::Ok);
                assert_eq!(completion.append_sector, completion.append_sector.map(|_| start_of(2) + 8));
                assert_eq!(probe.take_commits(), [flush()]);
            }
            // Reading, and being refused, commit nothing.
            rig.read(0, 8);
            rig.refuse_quickly(Request::write(1 << 40, &sectors(1, 8)), Status::IoErr);
            assert_eq!(probe.take_commits(), []);
        }
    }
}

#[test]
fn the_cache_can_be_switched_on_again() {
    let probe = probed(false);
    let mut rig = Rig::over(probe.clone(), How::default());
    for (mode, commits) in [(0, vec![flush()]), (1, vec![]), (0, vec![flush()])] {
        rig.negotiated.write_config(WRITEBACK, &[mode]).unwrap();
        rig.accept(Request::write(0, &sectors(1, 8)));
        assert_eq!(probe.take_commits(), commits);
    }
}

#[test]
fn d3_a_finish_and_a_reset_commit_their_zones() {
    let probe = probed(true);
    let mut rig = Rig::over(probe.clone(), How::default());
    let finished = |zone| CommitSeen { finished: vec![zone], ..Default::default() };
    let reset = |zones: &[u32]| CommitSeen { reset: zones.to_vec(), ..Default::default() };
    for zone in [2, 3, 5] {
        rig.accept(Request::write(start_of(zone), &sectors(zone, 8)));
    }
    for (request, commits) in [
        (Request::zone_finish(start_of(2)), vec![finished(2)]),
        (Request::zone_finish(start_of(6)), vec![finished(6)]),
        (Request::zone_reset(start_of(3)), vec![reset(&[3])]),
        (Request::zone_reset_all(), vec![reset(&[2, 5, 6])]),
        // Where nothing changes there is nothing to commit; open and closed zones are forgotten by a restart anyway.
        (Request::zone_reset(start_of(3)), vec![]),
        (Request::zone_reset_all(), vec![]),
        (Request::zone_finish(start_of(2)), vec![finished(2)]),
        // It may be full by having been written: nobody has made that durable.
        (Request::zone_finish(start_of(2)), vec![finished(2)]),
        (Request::zone_open(start_of(4)), vec![]),
        (Request::zone_close(start_of(4)), vec![]),
    ] {
        rig.accept(request);
        assert_eq!(probe.take_commits(), commits);
    }
}

#[test]
fn what_comes_while_a_commit_runs_is_committed_together() {
    let probe = probed(true);
    let mut rig = Rig::over(probe.clone(), How { queues: 3, ..Default::default() });
    for zone in [2, 3, 5] {
        rig.accept(Request::write(start_of(zone), &sectors(zone, 8)));
    }
    probe.commit_gate.close();
    rig.queue().submit(Request::flush()).unwrap();
    probe.commit_gate.wait_for(1);
    for (queue, request) in [
        (0, Request::zone_finish(start_of(2))),
        (1, Request::zone_reset(start_of(3))),
        (1, Request::flush()),
        (2, Request::flush()),
        (2, Request::zone_reset(start_of(5))),
    ] {
        let queue = &mut rig.queues[queue].queue;
        queue.submit(request).unwrap();
        // It has been handed on when what came behind it is answered.
        let _ = queue.call(Request::read(0, 512)).unwrap().expect(Status::Ok);
    }
    probe.commit_gate.open();
    for served in &mut rig.queues {
        for (_, done) in served.queue.complete_all().unwrap() {
            let _ = done.expect(Status::Ok);
        }
    }
    let all = CommitSeen { flush: true, finished: vec![2], reset: vec![3, 5] };
    assert_eq!(probe.take_commits(), [flush(), all]);
}
