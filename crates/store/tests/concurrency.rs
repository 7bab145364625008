//! Publishing and committing at once. In a file of its own, so that no other test takes its processors away.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests may")]

mod common;

use std::sync::atomic::{AtomicU32, Ordering};

use common::sim::SimMedium;
use common::{full, open, seeded};
use virtio_zbd_store::{Commit, ImageStore, OpenOptions, Store};
use virtio_zbd_zones::{Geometry, GeometryConfig};

/// Zones change while a flush copies their states. Whatever it has caught, it is never more active zones than
/// there may be, and nothing older than what was published before.
#[test]
fn flushes_during_changes_keep_the_active_limit() {
    const ROUNDS: u32 = 150;
    const ROUND_STEPS: u32 = 12;
    // Ten pages, so that copying them takes a while; one zone may be active.
    let geometry = Geometry::new(GeometryConfig {
        capacity_sectors: 5040 * 2,
        zone_sectors: 2,
        zone_capacity_sectors: 2,
        conventional_zones: 0,
        max_open_zones: 1,
        max_active_zones: 1,
        max_append_sectors: 0,
        write_granularity_bytes: 512,
    })
    .unwrap();
    let medium = SimMedium::new(77);
    ImageStore::create_on(&*medium, geometry).unwrap();
    let options = |boot| OpenOptions { read_only: false, boot_id: Some([boot; 16]) };
    let store = ImageStore::open_on(medium.clone(), options(1)).unwrap();
    // One zone after the other is filled, by turns in the first and in the last five pages.
    let zone_of = |step: u32| (step / 2 * 97) % 2520 + 2520 * (step % 2);
    // Each flush is a round; the other thread begins its part when it sees the number, so both surely run at once.
    let (asked, begun, ended) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let wait_for = |number: &AtomicU32, least: u32| {
        while number.load(Ordering::Acquire) < least {
            std::hint::spin_loop();
        }
    };
    let mut rng = seeded("flushes_during_changes_keep_the_active_limit");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                wait_for(&asked, round);
                begun.store(round, Ordering::Release);
                for step in (round - 1) * ROUND_STEPS..round * ROUND_STEPS {
                    store.publish(zone_of(step), open(1));
                    // About as long as the copying takes from a zone of the first pages to one of the last.
                    for _ in 0..rng.u32(..400) {
                        std::hint::spin_loop();
                    }
                    store.publish(zone_of(step), full(2));
                }
                ended.store(round, Ordering::Release);
            }
        });
        let mut found = Ok(());
        for round in 1..=ROUNDS {
            asked.store(round, Ordering::Release);
            wait_for(&begun, round);
            let flushed = store.commit(&Commit { flush: true, ..Commit::default() }).durable;
            wait_for(&ended, round);
            // Opening checks the limit. Not unwrapped here: the other thread would wait for ever.
            found = found.and(flushed.map_err(|error| error.to_string()));
            match ImageStore::open_on(medium.synced_copy(), options(2)) {
                Err(error) => found = found.and(Err(error.to_string())),
                Ok(after) => {
                    let states = after.initial_states();
                    let older = (0..(round - 1) * ROUND_STEPS)
                        .map(zone_of)
                        .find(|&zone| states[zone as usize] != full(2));
                    if let Some(zone) = older {
                        found = found.and(Err(format!("zone {zone} was full before the flush")));
                    }
                }
            }
        }
        found.unwrap();
    });
}
