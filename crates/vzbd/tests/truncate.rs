//! A front-end truncates the file of the guest's memory while its requests are under way: it loses its connection, and nobody else
//! loses anything. On image and RAM, with both engines.
//!
//! `TRUNCATE_ROUNDS=100` does it more often; `TRUNCATE_SEED` repeats a run's choices.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "tests may"
)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Daemon, Place, SMALL, pattern};
use virtio_zbd_spec::{Status, ZoneState};
use virtio_zbd_testkit::{Client, Request};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

const ZONE_SECTORS: u64 = 2048;
/// Of the request's data.
const LEN: usize = 64 << 10;

/// Cuts the guest's memory to `left_bytes`. From here on this process must not touch what is gone either.
fn truncate(client: &Client, left_bytes: u64) {
    for region in client.ram().memory().iter() {
        region.file_offset().unwrap().file().set_len(left_bytes).unwrap();
    }
}

/// Puts requests of many kinds into both queues; nobody waits for them.
fn submit(client: &mut Client, random: &mut fastrand::Rng) {
    for queue in 0..2_u64 {
        // Each queue has sequential zones of its own.
        let zone = |n: u64| ZONE_SECTORS * (2 + 2 * n + queue);
        let mut requests = Vec::new();
        for n in 0..6 {
            let step = u64::try_from(LEN / 512).unwrap();
            requests.push(Request::write(zone(0) + n * step, &pattern(n, LEN)));
            requests.push(Request::zone_append(zone(1), &pattern(n, LEN)));
            requests.push(Request::read(random.u64(..64), LEN));
            requests.push(Request::write(ZONE_SECTORS * queue + n * step, &pattern(n, LEN)));
            requests.push(Request::zone_report(0, 4096));
        }
        requests.push(Request::flush());
        client.submit_batch(usize::try_from(queue).unwrap(), requests).unwrap();
    }
}

fn cut_off(target: &str, io: &str) {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seed = number("TRUNCATE_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("TRUNCATE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let place = Place::new();
    let mut options = vec!["--queues", "2", "--io", io];
    let image = match target {
        "ram" => {
            options.extend(SMALL.split(' '));
            "ram".into()
        }
        _ => place.small_image(),
    };
    // Nobody reads its log before its end: little of it.
    let log = "error,virtio_zbd_device=off,virtio_zbd_store=off";
    let daemon = Daemon::start_logging(Path::new(&image), &place.path("sock"), &options, log);
    for round in 0..number("TRUNCATE_ROUNDS").unwrap_or(6) {
        // What another front-end has written and flushed.
        let kept = pattern(100 + round, LEN);
        let mut good = daemon.client(2);
        let _ = good.call(0, Request::zone_reset_all()).unwrap().expect(Status::Ok);
        let _ = good.call(0, Request::write(ZONE_SECTORS * 9, &kept)).unwrap().expect(Status::Ok);
        let _ = good.call(0, Request::flush()).unwrap().expect(Status::Ok);
        drop(good);

        let mut bad = daemon.client(2);
        submit(&mut bad, &mut random);
        // All of it, or all but the rings, or in between; at once or while something is under way.
        std::thread::sleep(Duration::from_micros(random.u64(..2000)));
        let whole = bad.ram().end().0;
        truncate(&bad, if random.bool() { 0 } else { random.u64(..whole / 8192) * 4096 });
        // Whatever is left undone, the next look at the rings or a buffer finds out; at the latest a ring that is gone.
        for queue in 0..2 {
            bad.queue(queue).kick().unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
        truncate(&bad, 0);
        for queue in 0..2 {
            bad.queue(queue).kick().unwrap();
        }
        let end = bad.handshake().recv_raw();
        assert!(end.is_err(), "it is still connected: {end:?}");
        drop(bad);

        let mut good = daemon.client(2);
        let read = good.call(1, Request::read(ZONE_SECTORS * 9, LEN)).unwrap().expect(Status::Ok);
        assert_eq!(read.data, kept, "somebody else's data is gone");
        for (n, zone) in good.zone_report_all().unwrap().iter().enumerate() {
            let state = ZoneState::try_from(zone.z_state).unwrap();
            assert!(
                !matches!(state, ZoneState::ReadOnly | ZoneState::Offline),
                "zone {n} is blamed for the front-end's memory: {state:?}"
            );
        }
    }
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    assert!(log.contains("the front-end truncated the file of memory that it shares"), "{log}");
}

#[test]
fn an_image_with_io_uring() {
    cut_off("image", "io_uring");
}

#[test]
fn an_image_with_plain_calls() {
    cut_off("image", "sync");
}

#[test]
fn a_disk_in_ram_with_io_uring() {
    cut_off("ram", "io_uring");
}

#[test]
fn a_disk_in_ram_with_plain_calls() {
    cut_off("ram", "sync");
}
