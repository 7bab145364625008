//! Appends through the socket: many in flight to one zone, from two queues at once.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails this way"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Daemon, Place, pattern};
use virtio_zbd_spec::{Status, ZoneState};
use virtio_zbd_testkit::{Request, Token};

const BLOCK_SECTORS: u64 = 8;
const BLOCK_LEN: usize = 4096;
const ZONE: u64 = 5;
const ZONE_START: u64 = ZONE * 2048;

#[test]
fn appends_in_flight_over_two_queues_land_side_by_side() {
    let place = Place::new();
    let image = place.small_image();
    for (target, options) in [
        (image.as_path(), &["--queues", "2"][..]),
        (
            Path::new("ram"),
            &[
                "--queues",
                "2",
                "--size",
                "16M",
                "--zone-size",
                "1M",
                "--zone-capacity",
                "768K",
                "--conventional",
                "2",
            ],
        ),
    ] {
        let daemon = Daemon::start(target, &place.path("sock"), options);
        let mut client = daemon.client(2);

        // 64 at once: 32 on each queue, all given before one is taken back.
        let mut sent: Vec<BTreeMap<Token, u64>> = Vec::new();
        for queue in 0..2u64 {
            let tags: Vec<u64> = (0..32).map(|i| queue * 32 + i).collect();
            let requests = tags.iter().map(|&tag| Request::zone_append(ZONE_START, &pattern(tag, BLOCK_LEN)));
            let tokens = client.submit_batch(queue as usize, requests.collect::<Vec<_>>()).unwrap();
            sent.push(tokens.into_iter().zip(tags).collect());
        }
        let mut placed = BTreeMap::new();
        for (queue, sent) in sent.iter_mut().enumerate() {
            for (token, completion) in client.complete_all(queue).unwrap() {
                let completion = completion.expect(Status::Ok);
                let tag = sent.remove(&token).expect("an answer to what was asked");
                let before = placed.insert(completion.append_sector.unwrap(), tag);
                assert_eq!(before, None, "two appends at one sector");
            }
        }
        // Distinct and contiguous from the zone's start.
        let expected: Vec<u64> = (0..64).map(|i| ZONE_START + i * BLOCK_SECTORS).collect();
        assert_eq!(placed.keys().copied().collect::<Vec<_>>(), expected);

        for (&sector, &tag) in &placed {
            let read = client.call(1, Request::read(sector, BLOCK_LEN)).unwrap().expect(Status::Ok);
            assert_eq!(read.data, pattern(tag, BLOCK_LEN), "sector {sector}");
        }
        let zone = client.zone_report_all().unwrap()[ZONE as usize];
        assert_eq!(
            (zone.z_wp.get(), zone.z_state),
            (ZONE_START + 64 * BLOCK_SECTORS, ZoneState::ImplicitOpen as u8)
        );
        client.disconnect();
        let (status, _) = daemon.stop();
        assert!(status.success());
    }
}
