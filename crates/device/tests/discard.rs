//! DISCARD and WRITE_ZEROES, which a plain disk has (virtio 1.3, 5.2.6.2).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use std::sync::Arc;

use common::{Backing, How, Probe, Rig, SECTOR, on_every_store, sectors};
use virtio_zbd_device::{MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS};
use virtio_zbd_spec::{DiscardWriteZeroes, Features, RequestType, Status};
use virtio_zbd_store::RamStore;
use virtio_zbd_testkit::Request;
use zerocopy::IntoBytes;

/// Length of the disk in sectors.
const LEN: u64 = 2048;

const BOTH: [RequestType; 2] = [RequestType::Discard, RequestType::WriteZeroes];

on_every_store!(
    the_ranges_read_as_zeros_and_nothing_else_does,
    no_range_reaches_past_the_end,
    an_empty_range_is_done_at_once,
    unknown_flags_are_unsupported_whatever_else_is_wrong,
    only_whole_segments_and_not_too_many,
    not_negotiated_is_not_supported,
);

/// A request with segments of (sector, sectors, flags).
fn zero(kind: RequestType, segments: &[(u64, u32, u32)]) -> Request {
    let bytes = |&(sector, sectors, flags): &(u64, u32, u32)| {
        let segment =
            DiscardWriteZeroes { sector: sector.into(), num_sectors: sectors.into(), flags: flags.into() };
        segment.as_bytes().to_vec()
    };
    let data: Vec<u8> = segments.iter().flat_map(bytes).collect();
    Request::raw(kind.into(), 0, &data, 0)
}

/// A disk that is written all over, and what is on it.
fn filled(on: Backing) -> (Rig, Vec<u8>) {
    let mut rig = Rig::plain(on, LEN * 512);
    let data = sectors(1, 2048);
    rig.accept(Request::write(0, &data));
    (rig, data)
}

fn the_ranges_read_as_zeros_and_nothing_else_does(on: Backing) {
    let most: Vec<_> = (0..u64::from(MAX_DISCARD_SEGMENTS)).map(|i| (i * 64 + 1, 3, 0)).collect();
    for (kind, flags) in
        [(RequestType::Discard, 0), (RequestType::WriteZeroes, 0), (RequestType::WriteZeroes, 1)]
    {
        for segments in [
            vec![(3, 1, flags)],
            vec![(8, 256, flags)],
            vec![(LEN - 1, 1, flags)],
            vec![(100, 7, flags), (1000, 24, flags), (104, 8, flags)],
            vec![(0, 2048, flags)],
            most.iter().map(|&(sector, sectors, _)| (sector, sectors, flags)).collect(),
        ] {
            let (mut rig, mut expected) = filled(on);
            rig.accept(zero(kind, &segments));
            for &(sector, sectors, _) in &segments {
                let at = usize::try_from(sector).unwrap() * SECTOR;
                expected[at..at + sectors as usize * SECTOR].fill(0);
            }
            assert_eq!(rig.read(0, 2048), expected, "{kind:?} {segments:?}");
            assert_eq!(rig.state().bytes, expected);
            // What was taken away can be written again.
            rig.accept(Request::write(0, &sectors(2, 16)));
            assert_eq!(rig.read(0, 16), sectors(2, 16));
        }
    }
}

fn no_range_reaches_past_the_end(on: Backing) {
    let (mut rig, _) = filled(on);
    for kind in BOTH {
        for bad in
            [(LEN, 1), (LEN - 1, 2), (0, 2049), (u64::MAX, 1), (u64::MAX - 1, 3), (u64::MAX / 512 + 1, 1)]
        {
            // A good range beside a bad one: neither is touched.
            for segments in [vec![bad], vec![(0, 8), bad], vec![bad, (0, 8)]] {
                let segments: Vec<_> = segments.iter().map(|&(sector, n)| (sector, n, 0)).collect();
                rig.refuse(zero(kind, &segments), Status::IoErr);
            }
        }
    }
}

fn an_empty_range_is_done_at_once(on: Backing) {
    let (mut rig, _) = filled(on);
    let before = rig.state();
    for kind in BOTH {
        rig.accept(zero(kind, &[(5, 0, 0)]));
        rig.accept(zero(kind, &[(LEN, 0, 0), (0, 0, 0)]));
        rig.refuse(zero(kind, &[(LEN + 1, 0, 0)]), Status::IoErr);
    }
    before.assert_same(&rig.state());
}

fn unknown_flags_are_unsupported_whatever_else_is_wrong(on: Backing) {
    let (mut rig, _) = filled(on);
    for (kind, flags) in [
        // A DISCARD has no flag at all.
        (RequestType::Discard, 1),
        (RequestType::Discard, 2),
        (RequestType::Discard, 1 << 31),
        (RequestType::WriteZeroes, 2),
        (RequestType::WriteZeroes, 3),
        (RequestType::WriteZeroes, 1 << 31),
        (RequestType::WriteZeroes, u32::MAX),
    ] {
        for segments in [
            vec![(0, 8, flags)],
            vec![(0, 8, 0), (8, 8, flags)],
            vec![(8, 8, flags), (0, 8, 0)],
            vec![(0, MAX_DISCARD_SECTORS + 1, 0), (8, 8, flags)],
            vec![(LEN, 8, 0), (8, 8, flags)],
        ] {
            rig.refuse(zero(kind, &segments), Status::Unsupp);
        }
    }
}

fn only_whole_segments_and_not_too_many(on: Backing) {
    let (mut rig, _) = filled(on);
    for kind in BOTH {
        rig.refuse(zero(kind, &[]), Status::IoErr);
        for len in [1, 15, 17, 31] {
            let request = Request::raw(kind.into(), 0, &[0; 32][..len], 0);
            rig.refuse(request, Status::IoErr);
        }
        let too_many = vec![(0, 1, 0); MAX_DISCARD_SEGMENTS as usize + 1];
        rig.refuse(zero(kind, &too_many), Status::IoErr);
        let far_too_many = vec![(0, 1, 0); 5000];
        rig.refuse(zero(kind, &far_too_many), Status::IoErr);
    }
}

fn not_negotiated_is_not_supported(on: Backing) {
    for (kind, feature) in
        [(RequestType::Discard, Features::DISCARD), (RequestType::WriteZeroes, Features::WRITE_ZEROES)]
    {
        let mut rig = Rig::plain_with(on, LEN * 512, How { without: feature, ..Default::default() });
        rig.accept(Request::write(0, &sectors(1, 16)));
        rig.refuse(zero(kind, &[(0, 8, 0)]), Status::Unsupp);
    }
}

#[test]
fn a_range_has_a_longest_length() {
    // Sparse: what is not written takes no memory.
    let len = u64::from(MAX_DISCARD_SECTORS) + 16;
    let mut rig = Rig::over(Arc::new(RamStore::plain(len * 512).unwrap()), How::default());
    let config = rig.config();
    assert_eq!(config.max_discard_sectors.get(), MAX_DISCARD_SECTORS);
    assert_eq!(config.max_write_zeroes_sectors.get(), MAX_DISCARD_SECTORS);
    let data = sectors(1, 8);
    for kind in BOTH {
        let ends = [4, len - 12];
        for end in ends {
            rig.accept(Request::write(end, &data));
        }
        rig.refuse_quickly(zero(kind, &[(0, MAX_DISCARD_SECTORS + 1, 0)]), Status::IoErr);
        rig.refuse_quickly(zero(kind, &[(0, u32::MAX, 0)]), Status::IoErr);
        for end in ends {
            assert_eq!(rig.read(end, 8), data);
        }
        rig.accept(zero(kind, &[(8, MAX_DISCARD_SECTORS, 0)]));
        assert_eq!(rig.read(4, 8), [&data[..4 * SECTOR], &[0; 4 * SECTOR]].concat());
        // The range ends at sector 8 + MAX: the last 4 of these 8 are behind it.
        assert_eq!(rig.read(len - 12, 8), [&[0; 4 * SECTOR], &data[4 * SECTOR..]].concat());
    }
}

#[test]
fn one_range_that_fails_fails_the_request_wherever_it_stands() {
    let mut rig = Rig::over(Arc::new(Probe::plain_bad_from(LEN, LEN - 8)), How::default());
    let (good, bad) = ((0, 8, 0), (LEN - 8, 8, 0));
    for kind in BOTH {
        rig.accept(zero(kind, &[good, good, good]));
        for segments in [[bad, good, good], [good, bad, good], [good, good, bad], [bad, bad, bad]] {
            let done = rig.call(zero(kind, &segments));
            assert_eq!(done.outcome(), Ok(Status::IoErr), "{kind:?} {segments:?}");
        }
        // The disk goes on.
        rig.accept(zero(kind, &[good]));
    }
}
