//! Requests that an earlier worker took and did not answer, case by case. `killed` has them by the thousand.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use virtio_zbd_device::{Disk, DiskConfig, InflightBuffer, Queue as Worker, QueueConfig, RingConfig};
use virtio_zbd_spec::Status;
use virtio_zbd_store::{
    Commit, CommitOutcome, EngineChoice, Identity, ImageStore, Lane, OpenOptions, Store, StoreError,
};
use virtio_zbd_testkit::{GuestRam, Queue, QueueOptions, Request};
use virtio_zbd_zones::{Geometry, ZoneState};

use common::mortal::{Death, Kept, Shown, new_file};
use common::{FaultyMedium, SECTOR, SHAPE, blocks, ring_config, start_of};

const SIZE: u16 = 64;

/// A guest with one queue, and what its front-end keeps.
struct Guest {
    queue: Queue,
    kept: Kept,
}

/// How far a note says that a request had come (`device/src/inflight.rs`).
const PLACED: u64 = 1;
const WRITTEN: u64 = 2;

impl Guest {
    fn new() -> Self {
        let options = QueueOptions { size: SIZE, ..QueueOptions::default() };
        Self { queue: Queue::new(&GuestRam::new(4 << 20), &options).unwrap(), kept: Kept::new(1, SIZE) }
    }

    fn shown(&self) -> Shown {
        Shown(self.kept.clone(), Death::after(i64::MAX, 0))
    }

    /// Starts the queue, with what was under way.
    fn start(&self, disk: &Arc<Disk>) -> Worker {
        self.start_as(disk, 0)
    }

    /// The same, as the disk's queue of this number.
    fn start_as(&self, disk: &Arc<Disk>, index: u16) -> Worker {
        let here = self.queue.in_process().unwrap();
        let used_idx = self.queue.ring.used_idx();
        let log = self.kept.log(0, used_idx, &Death::after(i64::MAX, 0));
        let next_avail = used_idx.wrapping_add(u16::try_from(log.resubmitted()).unwrap());
        let call = here.call.try_clone().unwrap();
        let config = QueueConfig {
            ring: RingConfig { next_avail, ..ring_config(&here) },
            memory: here.memory,
            kick: here.kick,
            call: Box::new(move || {
                let _ = rustix::io::write(&call, &1u64.to_ne_bytes());
            }),
            broken: Box::new(|| {}),
            inflight: Some(Box::new(log)),
        };
        disk.start_queue(index, disk.negotiate(disk.features()).unwrap(), config).unwrap()
    }

    /// Makes a request that the last process had taken, with this note.
    fn under_way(&mut self, request: Request, note: Option<(u64, u64, u64)>) {
        let head = self.queue.ring.avail_idx();
        self.queue.submit(request).unwrap();
        let at = self.queue.ring.avail_ring().0 + 4 + 2 * u64::from(head % SIZE);
        let head: u16 = self.queue.ram().read_obj(vm_memory::GuestAddress(at));
        let (phase, sector, sectors) = note.unwrap_or_default();
        self.shown().set_note(0, head, 1, sector);
        self.shown().set_note(0, head, 0, phase | sectors << 32);
        let used_idx = self.queue.ring.used_idx();
        let mut log = self.kept.log(0, used_idx, &Death::after(i64::MAX, 0));
        virtio_zbd_device::InflightLog::taken(&mut log, head);
    }
}

fn disk(store: Arc<dyn Store>) -> Arc<Disk> {
    let config = DiskConfig { queues: 1, block_len_bytes: 512, engine: EngineChoice::Sync };
    Disk::new(store, config).unwrap()
}

fn opened(medium: &Arc<virtio_zbd_store::FileMedium>) -> Arc<Disk> {
    let options = OpenOptions { boot_id: Some([7; 16]), ..OpenOptions::default() };
    disk(Arc::new(ImageStore::open_on(Arc::<virtio_zbd_store::FileMedium>::clone(medium), options).unwrap()))
}

/// A disk with `written` blocks in zone 2, after a kill; and the guest that was there. The buffer is the disk's.
fn killed_with(written: u32) -> (Arc<virtio_zbd_store::FileMedium>, Arc<Disk>, Guest) {
    let file = new_file();
    ImageStore::create_on(&*file, Geometry::new(SHAPE).unwrap()).unwrap();
    let mut guest = Guest::new();
    let first = opened(&file);
    first.use_inflight(&guest.shown());
    let worker = guest.start(&first);
    for block in 0..written {
        guest
            .queue
            .call(Request::zone_append(start_of(2), &blocks(block.into(), 1)))
            .unwrap()
            .expect(Status::Ok);
    }
    worker.stop();
    drop(first);
    let second = opened(&file);
    (file, second, guest)
}

fn read(guest: &mut Guest, sector: u64, sectors: usize) -> Vec<u8> {
    guest.queue.call(Request::read(sector, sectors * SECTOR)).unwrap().expect(Status::Ok).data
}

fn wp(guest: &mut Guest) -> u64 {
    let done = guest.queue.call(Request::zone_report(start_of(2), 128)).unwrap().expect(Status::Ok);
    done.zones().unwrap()[0].z_wp.get() - start_of(2)
}

#[test]
fn an_append_by_its_note() {
    // (blocks there, note, where it is answered to be, write pointer afterwards, in blocks)
    let cases = [
        // Nothing was placed: it comes at the end.
        (2, None, 2, 3),
        // Its place was swept, with all behind it.
        (2, Some((PLACED, 2)), 2, 3),
        (2, Some((PLACED, 5)), 2, 3),
        (2, Some((WRITTEN, 2)), 2, 3),
        // Another one has overtaken it: its place is still its own.
        (3, Some((PLACED, 1)), 1, 3),
        (3, Some((PLACED, 2)), 2, 3),
        // It is there.
        (3, Some((WRITTEN, 1)), 1, 3),
    ];
    for (written, note, place, end) in cases {
        let (_file, disk, mut guest) = killed_with(written);
        let new = blocks(77, 1);
        let words = note.map(|(phase, block)| (phase, start_of(2) + 8 * block, 8));
        guest.under_way(Request::zone_append(start_of(2), &new), words);
        disk.use_inflight(&guest.shown());
        let worker = guest.start(&disk);
        let (_, done) = guest.queue.complete(Duration::from_secs(10)).unwrap();
        let done = done.expect(Status::Ok);
        assert_eq!(done.append_sector, Some(start_of(2) + 8 * place), "{written} {note:?}");
        assert_eq!(wp(&mut guest), 8 * end, "{written} {note:?}");
        for block in 0..end {
            let is_new =
                block == place && note.is_none_or(|(phase, _)| phase == PLACED || block >= written.into());
            let expected = if is_new { new.clone() } else { blocks(block, 1) };
            assert_eq!(read(&mut guest, start_of(2) + 8 * block, 8), expected, "{written} {note:?}: {block}");
        }
        worker.stop();
    }
}

/// An image as a device would be that keeps its zones itself: what lies below a write pointer can't be written again.
struct Keeper(ImageStore);

impl Store for Keeper {
    fn capacity_bytes(&self) -> u64 {
        self.0.capacity_bytes()
    }
    fn geometry(&self) -> Option<Geometry> {
        self.0.geometry()
    }
    fn identity(&self) -> Identity {
        self.0.identity()
    }
    fn history(&self) -> u64 {
        self.0.history()
    }
    fn initial_states(&self) -> Vec<ZoneState> {
        self.0.initial_states()
    }
    fn publish(&self, zone: u32, state: ZoneState) {
        self.0.publish(zone, state);
    }
    fn keeps_conditions(&self) -> bool {
        true
    }
    fn commit(&self, work: &Commit<'_>) -> CommitOutcome {
        self.0.commit(work)
    }
    fn open_lane(&self, engine: EngineChoice) -> std::io::Result<Lane> {
        self.0.open_lane(engine)
    }
    fn read_only(&self) -> bool {
        false
    }
    fn close(&self) -> Result<(), StoreError> {
        self.0.close()
    }
}

/// Where the device has the write pointer, it has moved it past a place with the data that belongs there, and never without.
#[test]
fn a_device_s_write_pointer_says_what_has_come_to_it() {
    // (blocks there, note, where it is answered to be, write pointer afterwards, in blocks)
    let cases = [
        (2, None, 2, 3),
        (2, Some((PLACED, 2)), 2, 3),
        (2, Some((PLACED, 5)), 2, 3),
        (2, Some((WRITTEN, 2)), 2, 3),
        // It is there, whatever the last process knew of it.
        (3, Some((PLACED, 1)), 1, 3),
        (3, Some((PLACED, 2)), 2, 3),
        (3, Some((WRITTEN, 1)), 1, 3),
    ];
    for (written, note, place, end) in cases {
        let (file, first, mut guest) = killed_with(written);
        drop(first);
        let options = OpenOptions { boot_id: Some([7; 16]), ..OpenOptions::default() };
        let disk = disk(Arc::new(Keeper(ImageStore::open_on(file, options).unwrap())));
        let new = blocks(77, 1);
        let words = note.map(|(phase, block)| (phase, start_of(2) + 8 * block, 8));
        guest.under_way(Request::zone_append(start_of(2), &new), words);
        disk.use_inflight(&guest.shown());
        let worker = guest.start(&disk);
        let (_, done) = guest.queue.complete(Duration::from_secs(10)).unwrap();
        let done = done.expect(Status::Ok);
        assert_eq!(done.append_sector, Some(start_of(2) + 8 * place), "{written} {note:?}");
        assert_eq!(wp(&mut guest), 8 * end, "{written} {note:?}");
        for block in 0..end {
            let expected = if block >= written.into() { new.clone() } else { blocks(block, 1) };
            assert_eq!(read(&mut guest, start_of(2) + 8 * block, 8), expected, "{written} {note:?}: {block}");
        }
        worker.stop();
    }
}

/// The note of another request, or of nobody's: the request is as new, and the place is nobody's any more.
#[test]
fn notes_that_can_t_be() {
    for (sector, sectors) in [
        (start_of(2), 16),
        (start_of(3), 8),
        (start_of(2) + 20, 8),
        (start_of(0), 8),
        (u64::MAX, 8),
        (start_of(2), 0),
        (start_of(2), u64::from(u32::MAX)),
    ] {
        for phase in [PLACED, WRITTEN, 3, 200] {
            let (_file, disk, mut guest) = killed_with(3);
            guest
                .under_way(Request::zone_append(start_of(2), &blocks(77, 1)), Some((phase, sector, sectors)));
            disk.use_inflight(&guest.shown());
            let worker = guest.start(&disk);
            let (_, done) = guest.queue.complete(Duration::from_secs(10)).unwrap();
            // A forged end is believed: the front-end could have told its guest itself.
            let is_end = phase == 3;
            let done = done.expect(Status::Ok);
            assert_eq!(done.append_sector, Some(if is_end { 0 } else { start_of(2) + 24 }));
            assert_eq!(wp(&mut guest), if is_end { 24 } else { 32 });
            guest.queue.call(Request::zone_reset(start_of(2))).unwrap().expect(Status::Ok);
            worker.stop();
        }
    }
}

#[test]
fn a_reset_waits_for_a_write_that_is_to_be_made_again() {
    for give_up in [false, true] {
        let (_file, disk, mut guest) = killed_with(3);
        // Taken later than the write, but the queue of the write is another one, which is not started yet.
        let mut other = Guest::new();
        other
            .under_way(Request::zone_append(start_of(2), &blocks(77, 1)), Some((PLACED, start_of(2) + 8, 8)));
        for index in 0..8 {
            other.shown().set_mark(index, guest.shown().mark(index));
        }
        disk.use_inflight(&other.shown());
        // A front-end with a buffer, whose queue has nothing under way.
        let worker = guest.start_as(&disk, 1);
        let reset = guest.queue.submit(Request::zone_reset(start_of(2))).unwrap();
        assert!(guest.queue.complete(Duration::from_millis(50)).is_err(), "the reset does not wait");
        let workers = if give_up {
            disk.forget_inflight();
            vec![worker]
        } else {
            vec![worker, other.start(&disk)]
        };
        let (token, done) = guest.queue.complete(Duration::from_secs(10)).unwrap();
        assert_eq!(token, reset);
        done.expect(Status::Ok);
        if !give_up {
            let (_, done) = other.queue.complete(Duration::from_secs(10)).unwrap();
            assert_eq!(done.expect(Status::Ok).append_sector, Some(start_of(2) + 8));
        }
        assert_eq!(wp(&mut guest), 0);
        for worker in workers {
            worker.stop();
        }
    }
}

/// After a failed sync the disk goes back to its last flush: what the notes speak of is gone.
#[test]
fn notes_of_another_history_do_not_count() {
    let (medium, store) = FaultyMedium::zoned(SHAPE);
    let mut guest = Guest::new();
    let first = disk(store);
    first.use_inflight(&guest.shown());
    let worker = guest.start(&first);
    let append = |n| Request::zone_append(start_of(2), &blocks(n, 1));
    guest.queue.call(append(0)).unwrap().expect(Status::Ok);
    guest.queue.call(Request::flush()).unwrap().expect(Status::Ok);
    guest.queue.call(append(1)).unwrap().expect(Status::Ok);
    medium.fail_syncs();
    guest.queue.call(Request::flush()).unwrap().expect(Status::IoErr);
    medium.heal();
    worker.stop();
    drop(first);

    let store = ImageStore::open_on(medium.clone(), OpenOptions::default()).unwrap();
    let history = store.history();
    assert_ne!(history, 0);
    let second = disk(Arc::new(store));
    guest.under_way(append(1), Some((WRITTEN, start_of(2) + 8, 8)));
    guest.under_way(append(2), Some((3, 0, 0)));
    second.use_inflight(&guest.shown());
    let worker = guest.start(&second);
    for place in [8, 16] {
        let (_, done) = guest.queue.complete(Duration::from_secs(10)).unwrap();
        assert_eq!(done.expect(Status::Ok).append_sector, Some(start_of(2) + place));
    }
    assert_eq!(read(&mut guest, start_of(2), 24), [blocks(0, 1), blocks(1, 1), blocks(2, 1)].concat());
    worker.stop();
    drop(second);
    // A kill is no other history.
    let store = ImageStore::open_on(medium, OpenOptions::default()).unwrap();
    assert_eq!(store.history(), history);
}
