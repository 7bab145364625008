//! However a request is cut into descriptors, it is the same request (virtio 1.3, 2.7.4).
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says loudly what is wrong"
)]

mod common;

use common::{Backing, How, Rig, SECTOR, SHAPE, blocks, on_every_store, sectors, start_of};
use virtio_zbd_spec::{RequestType, Status};
use virtio_zbd_testkit::{Completion, Framing, QueueOptions, Request};

on_every_store!(every_cut_means_the_same, every_cut_means_the_same_on_a_plain_disk);

/// All kinds of requests, good and bad, in an order in which they leave the disk as they need to find it.
fn zoned_requests() -> Vec<Request> {
    let mut requests = vec![
        Request::zone_reset_all(),
        Request::write(0, &sectors(1, 3)),
        Request::read(0, 4 * SECTOR),
        Request::write(start_of(2), &blocks(2, 1)),
        Request::read(start_of(2), 16 * SECTOR),
        Request::zone_append(start_of(2), &blocks(3, 1)),
        Request::zone_append(start_of(3), &blocks(4, 1)),
        Request::zone_append(start_of(3), &sectors(4, 1)),
        Request::zone_append(start_of(2) + 1, &blocks(4, 1)),
        Request::zone_append(start_of(2), &[]),
        Request::read(start_of(2) + 8, 8 * SECTOR),
        Request::zone_open(start_of(4)),
        Request::zone_close(start_of(4)),
        Request::zone_close(start_of(4)),
        Request::zone_finish(start_of(3)),
        Request::zone_reset(start_of(3)),
        Request::zone_report(0, 64 + 64 * 9),
        Request::zone_report(start_of(7) + 5, 500),
        Request::zone_report(start_of(7), 63),
        Request::flush(),
        Request::get_id(),
        Request::raw(RequestType::GetId.into(), 0, &[], 50),
        Request::discard(&[(0, 8)]),
        Request::get_lifetime(),
        Request::raw(0xabcd, 0, &[7; 30], 30),
        Request::read(u64::MAX, SECTOR),
        Request::write(start_of(2), &blocks(9, 1)),
        Request::read(1, 100),
        Request::read(0, 0),
    ];
    // A header that is too short, a request without room for a status.
    for len in [0, 1, 8, 15] {
        let mut short = Request::write(1, &[]);
        short.header.truncate(len);
        if len > 0 {
            requests.push(short);
        }
    }
    requests.push(Request { in_header_len: 0, ..Request::write(1, &sectors(9, 1)) });
    requests.push(Request { in_header_len: 3, ..Request::zone_append(start_of(2), &blocks(9, 1)) });
    requests.push(Request::zone_report(0, 64 + 64 * 9));
    requests
}

fn plain_requests() -> Vec<Request> {
    vec![
        Request::write(0, &sectors(1, 20)),
        Request::discard(&[(1, 2), (8, 1)]),
        Request::read(0, 20 * SECTOR),
        Request::write_zeroes(&[(0, 1), (5, 2)], false),
        Request::write_zeroes(&[(12, 2), (3, 1), (18, 2)], true),
        Request::read(0, 20 * SECTOR),
        Request::discard(&[(0, 1), (1 << 40, 1)]),
        Request::raw(RequestType::Discard.into(), 0, &[0; 17], 0),
        Request::zone_append(0, &sectors(1, 1)),
        Request::get_id(),
        Request::flush(),
    ]
}

fn answers(rig: &mut Rig, requests: &[Request], framing: Framing) -> Vec<Completion> {
    let answer = |request: &Request| {
        rig.queue().framing = match framing {
            // In a chain there is room for 1024 descriptors.
            Framing::Every(len) if bytes(request) / len as usize > 1000 => Framing::Classic,
            other => other,
        };
        rig.call(request.clone())
    };
    requests.iter().map(answer).collect()
}

fn bytes(request: &Request) -> usize {
    request.header.len() + request.out_data.len() + request.in_data_len + request.in_header_len
}

#[track_caller]
fn all_the_same(mut rig: Rig, requests: &[Request]) {
    let seed = match std::env::var("DEVICE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("DEVICE_SEED={seed}");
    let classic = answers(&mut rig, requests, Framing::Classic);
    let good = classic.iter().filter(|done| done.status == Status::Ok as u8).count();
    assert!(good * 2 > requests.len(), "most of the requests are good ones");
    let state = rig.state();
    let fixed = [Framing::Indirect, Framing::TailIndirect, Framing::Joined];
    // Each header and in-header is cut at each of its places, and data begins or ends in the same descriptor or not.
    let every = (1..=40).map(Framing::Every);
    let random =
        (0..60).flat_map(|i| [Framing::Random(seed + i * 1000), Framing::IndirectRandom(seed + i * 1000)]);
    for framing in fixed.into_iter().chain(every).chain(random) {
        let other = answers(&mut rig, requests, framing);
        for (i, (classic, other)) in classic.iter().zip(&other).enumerate() {
            assert_eq!(classic, other, "{framing:?}, request {i}");
        }
        rig.queue().framing = Framing::Classic;
        state.assert_same(&rig.state());
    }
}

fn how() -> How {
    How { options: QueueOptions { size: 1024, ..Default::default() }, ..Default::default() }
}

fn every_cut_means_the_same(on: Backing) {
    all_the_same(Rig::zoned_with(on, SHAPE, how()), &zoned_requests());
}

fn every_cut_means_the_same_on_a_plain_disk(on: Backing) {
    all_the_same(Rig::plain_with(on, 1 << 20, how()), &plain_requests());
}
