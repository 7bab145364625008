//! A driver that lies about the ring itself, and one that writes whatever comes to its mind.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says loudly what is wrong"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Backing, How, Probe, Rig, SECTOR, assert_same_bytes, memory, on_every_store, raw_bytes, sectors,
    wait_used,
};
use virtio_zbd_spec::{Descriptor, DescriptorFlags, RequestType, Status, ring};
use virtio_zbd_testkit::{QueueOptions, Request, Used};
use vm_memory::{Bytes, GuestAddress};

/// Length of the disk in sectors.
const LEN: u64 = 256;

on_every_store!(an_index_that_jumps_ends_the_queue, a_full_ring_is_no_jump);

fn an_index_that_jumps_ends_the_queue(on: Backing) {
    for (base, jump) in [(0, 129), (0, 200), (65_500, 129), (10, 0x8000), (10, 65_535), (65_530, 65_535)] {
        let options = QueueOptions { base, ..Default::default() };
        let mut rig = Rig::plain_with(on, LEN * 512, How { options, ..Default::default() });
        rig.accept(Request::write(0, &sectors(1, 256)));
        let before = raw_bytes(&*rig.store);
        let at = rig.queue().ring.avail_idx();
        let used = rig.queue().ring.used_idx();
        // A write that must not be done any more: behind the jump nothing can be trusted.
        rig.queue().enqueue(Request::write(0, &sectors(2, 1))).unwrap();
        rig.queue().ring.set_avail_idx(at.wrapping_add(jump));
        rig.queue().kick().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while rig.queues[0].broken() == 0 {
            assert!(Instant::now() < deadline, "the queue is not given up");
            thread::yield_now();
        }
        // More of it changes nothing: it is given up once.
        for idx in [at.wrapping_add(1), at.wrapping_add(jump)] {
            rig.queue().ring.set_avail_idx(idx);
            rig.queue().kick().unwrap();
        }
        assert_eq!(rig.queues[0].stop(), Some(at), "nothing was taken");
        assert_eq!((rig.queues[0].broken(), rig.queue().ring.used_idx()), (1, used));
        assert_eq!(raw_bytes(&*rig.store), before);

        // With an index that can be, the same queue is served again.
        rig.queue().ring.set_avail_idx(at.wrapping_add(1));
        let (disk, negotiated) = (rig.disk.clone(), rig.negotiated.clone());
        rig.queues[0].start(&disk, &negotiated);
        let timeout = rig.queue().timeout;
        let (_, done) = rig.queue().complete(timeout).unwrap();
        assert_eq!(done.expect(Status::Ok).used_len, 1);
        assert_eq!(rig.read(0, 1), sectors(2, 1));
    }
}

fn a_full_ring_is_no_jump(on: Backing) {
    for base in [0, 65_500] {
        let options = QueueOptions { base, size: 8, ..Default::default() };
        let mut rig = Rig::plain_with(on, LEN * 512, How { options, ..Default::default() });
        rig.stop_all();
        for _ in 0..8 {
            rig.queue().ring.push_avail(0xffff);
        }
        let _ = rig.queue().ring.publish();
        let (disk, negotiated) = (rig.disk.clone(), rig.negotiated.clone());
        rig.queues[0].start(&disk, &negotiated);
        for _ in 0..8 {
            let used = wait_used(rig.queue());
            assert_eq!((used.id, used.len), (0xffff, 0));
        }
        assert_eq!(rig.queues[0].broken(), 0);
        rig.accept(Request::flush());
    }
}

#[test]
fn other_queues_go_on_when_one_is_given_up() {
    let mut rig = Rig::plain_with(Backing::Ram, LEN * 512, How { queues: 3, ..Default::default() });
    rig.queues[1].queue.ring.set_avail_idx(5000);
    rig.queues[1].queue.kick().unwrap();
    for served in [0, 2].repeat(20) {
        let queue = &mut rig.queues[served].queue;
        let _ = queue.call(Request::write(0, &sectors(served as u64, 8))).unwrap().expect(Status::Ok);
        let read = queue.call(Request::read(0, 8 * SECTOR)).unwrap().expect(Status::Ok);
        assert_eq!(read.data, sectors(served as u64, 8));
        let _ = queue.call(Request::flush()).unwrap().expect(Status::Ok);
    }
    rig.stop_all();
    assert_eq!([0, 1, 2].map(|i| rig.queues[i].broken()), [0, 1, 0]);
}

/// A driver that gives more as fast as the device takes it keeps the worker busy, but not from hearing that it is to stop.
#[test]
fn a_flood_of_chains_does_not_keep_a_queue_from_stopping() {
    // The flood ends where its thread is kept from running for a moment; not each time.
    (0..3).for_each(|_| flood());
}

fn flood() {
    const SIZE: u16 = 32_768;
    let options = QueueOptions { size: SIZE, event_idx: false, ..Default::default() };
    let mut rig = Rig::plain_with(Backing::Ram, LEN * 512, How { options, ..Default::default() });
    // Each entry names a descriptor that does not exist: returned at once, so none is ever under way.
    for slot in 0..SIZE {
        rig.queue().ring.set_avail_entry(slot, 0xfff0);
    }
    let (running, taken) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let flood = {
        let (running, taken) = (Arc::clone(&running), Arc::clone(&taken));
        let (avail, used) = (rig.queue().ring.avail_ring().0, rig.queue().ring.used_ring().0);
        let ram = rig.ram.clone();
        let kick = rig.queue().in_process().unwrap().kick;
        thread::spawn(move || {
            let memory = ram.memory();
            let idx = GuestAddress(avail + ring::AVAIL_IDX_OFFSET_BYTES);
            let element = |count: u64| {
                let slot = count % u64::from(SIZE);
                GuestAddress(used + ring::USED_ENTRIES_OFFSET_BYTES + 8 * slot)
            };
            let mut count = 0u64;
            while running.load(Ordering::Relaxed) {
                // The elements are in the used ring before its index is: how far the device has come can be seen. Not too many are
                // looked at before more is given.
                for _ in 0..1000 {
                    if memory.load::<u32>(element(count), Ordering::Acquire).unwrap() == 0 {
                        break;
                    }
                    memory.store(0u32, element(count), Ordering::Relaxed).unwrap();
                    count += 1;
                }
                let given = u16::try_from((count + u64::from(SIZE) - 2) % 65_536).unwrap();
                memory.store(given, idx, Ordering::Release).unwrap();
                if taken.swap(count, Ordering::Relaxed) == count {
                    rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
                }
            }
        })
    };
    let rounds = || taken.load(Ordering::Relaxed) / u64::from(SIZE);
    while rounds() < 10 {
        thread::sleep(Duration::from_micros(200));
    }
    let before = rounds();
    let stopped = thread::spawn(move || {
        let next = rig.queues[0].stop();
        (next, rig.queues[0].broken())
    });
    while !stopped.is_finished() && rounds() < before + 50 {
        thread::sleep(Duration::from_micros(200));
    }
    let after = rounds();
    running.store(false, Ordering::Relaxed);
    flood.join().unwrap();
    let (_, broken) = stopped.join().unwrap();
    assert!(after < before + 50, "the worker went on after it was told to stop");
    assert_eq!(broken, 0);
}

/// Descriptors, heads and headers at random. Every chain must be returned once; nothing but the ring and what some descriptor lets the
/// device write may change; and the disk, which is read-only, not at all.
#[test]
fn random_descriptors_do_no_harm() {
    let seed = match std::env::var("DEVICE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("DEVICE_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let inner = Backing::Ram.plain(LEN * 512).0;
    Rig::over(inner.clone(), How::default()).accept(Request::write(0, &sectors(1, 256)));
    let options = QueueOptions { size: 64, ..Default::default() };
    let how = How { options, ram_len: 256 << 10, ram_hole: Some(0x1000), ..Default::default() };
    let mut rig = Rig::over(Arc::new(Probe::new(inner).read_only()), how);
    let disk = raw_bytes(&*rig.store);
    // Not handed out, so all of it is the device's to ruin.
    let arena = rig.ram.alloc(128 << 10, 4096);
    let mut seen = Seen::default();
    for _ in 0..2000 {
        let mut places = Random { rng: &mut rng, arena: arena.0, end: rig.ram.end().0 };
        // Headers that mean something, where descriptors like to point.
        for i in 0..32 {
            let kinds = [RequestType::In, RequestType::GetId, RequestType::Out, RequestType::Flush];
            let kind = places.rng.choice(kinds).unwrap();
            let sector = places.rng.u64(0..LEN + 2);
            let header = [u64::from(u32::from(kind)), sector].map(u64::to_le_bytes).concat();
            rig.ram.write(GuestAddress(arena.0 + 4096 * i), &header);
        }
        let mut writable = Vec::new();
        // Indirect tables in the arena, then the queue's own.
        let tables: Vec<GuestAddress> = (0..4).map(|i| GuestAddress(arena.0 + 4096 * i + 1024)).collect();
        for &table in &tables {
            for i in 0..16 {
                let descriptor = places.descriptor(&tables, i, 16);
                writable.extend(range_of(&descriptor));
                rig.ram.write_obj(GuestAddress(table.0 + 16 * u64::from(i)), &descriptor);
            }
        }
        for i in 0..64 {
            let descriptor = places.descriptor(&tables, i, 64);
            writable.extend(range_of(&descriptor));
            let flags = DescriptorFlags::from_bits_retain(descriptor.flags.get());
            let (addr, len) = (descriptor.addr.get(), descriptor.len.get());
            rig.queue().ring.set_desc(i, addr, len, flags, descriptor.next.get());
        }
        let heads: Vec<u16> = (0..places.rng.usize(1..20)).map(|_| places.head()).collect();
        for &head in &heads {
            rig.queue().ring.push_avail(head);
        }
        let avail = (rig.queue().ring.avail_ring().0, ring::avail_ring_len_bytes(64));
        let used = (rig.queue().ring.used_ring().0, ring::used_ring_len_bytes(64));
        let before = memory(&rig.ram);
        let _ = rig.queue().ring.publish();
        rig.queue().kick().unwrap();

        let mut expected = heads;
        for _ in 0..expected.len() {
            let Used { id, len, .. } = wait_used(rig.queue());
            let at = expected.iter().position(|&head| u32::from(head) == id);
            expected.swap_remove(at.expect("a head that was given"));
            match len {
                0 => seen.unanswered += 1,
                1 => seen.status_only += 1,
                _ => seen.with_data += 1,
            }
        }
        writable.extend([(avail.0, avail.0 + avail.1), (used.0, used.0 + used.1)]);
        let after = memory(&rig.ram);
        // What may have changed is taken as it is; all the rest must be as before.
        let mut expected = before;
        for ((start, expected), (_, after)) in expected.iter_mut().zip(&after) {
            let end = *start + expected.len() as u64;
            for &(from, to) in &writable {
                let (from, to) = (from.clamp(*start, end), to.clamp(*start, end));
                let range = usize::try_from(from - *start).unwrap()..usize::try_from(to - *start).unwrap();
                expected[range.clone()].copy_from_slice(&after[range]);
            }
        }
        assert_eq!(expected.len(), after.len());
        for ((start, expected), (_, after)) in expected.iter().zip(&after) {
            assert_same_bytes(
                expected,
                after,
                &format!("guest memory at {start:#x}, which no descriptor lets the device write"),
            );
        }
    }
    assert_eq!(raw_bytes(&*rig.store), disk);
    assert_eq!(rig.queues[0].broken(), 0);
    println!("{seen:?}");
    let Seen { unanswered, status_only, with_data } = seen;
    assert!(unanswered > 1000 && status_only > 500 && with_data > 300, "the test shows too little: {seen:?}");
}

/// How the chains were returned, so that the test can tell that it was not idle.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    unanswered: u32,
    status_only: u32,
    with_data: u32,
}

/// What the device may write because of a descriptor.
fn range_of(descriptor: &Descriptor) -> Option<(u64, u64)> {
    let flags = DescriptorFlags::from_bits_retain(descriptor.flags.get());
    let (addr, len) = (descriptor.addr.get(), u64::from(descriptor.len.get()));
    flags.contains(DescriptorFlags::WRITE).then(|| (addr, addr.saturating_add(len)))
}

struct Random<'a> {
    rng: &'a mut fastrand::Rng,
    arena: u64,
    end: u64,
}

impl Random<'_> {
    fn head(&mut self) -> u16 {
        if self.rng.u8(0..8) == 0 { self.rng.u16(..) } else { self.rng.u16(0..32) }
    }

    /// A descriptor for place `index` of a table. Most of the first half are readable, most of the second half writable and lead to
    /// each other, so that some chains are good.
    fn descriptor(&mut self, tables: &[GuestAddress], index: u16, table_len: u16) -> Descriptor {
        let rng = &mut *self.rng;
        let page = self.arena + 4096 * rng.u64(0..32);
        let odd = rng.u8(0..8) == 0;
        let writable = (index >= table_len / 2) != odd;
        let indirect = rng.u8(0..16) == 0;
        let (addr, len) = match rng.u8(0..24) {
            _ if indirect => {
                let len = if rng.u8(0..8) == 0 { rng.u32(0..400) } else { 16 * rng.u32(8..17) };
                (rng.choice(tables).unwrap().0, len)
            }
            0 => (self.end - rng.u64(0..600), rng.u32(0..1200)),
            1 => (rng.u64(..), rng.u32(..)),
            2 => (page + rng.u64(0..4096), rng.u32(0..40)),
            3..12 => (page + 2048, 1 + 512 * rng.u32(0..3)),
            12..16 => (page + 2048, 512 * rng.u32(0..4)),
            _ => (page, 16),
        };
        let mut flags = if indirect { DescriptorFlags::INDIRECT } else { DescriptorFlags::empty() };
        flags.set(DescriptorFlags::WRITE, writable);
        flags.set(DescriptorFlags::NEXT, if indirect { odd } else { rng.u8(0..4) > u8::from(writable) });
        let bits = flags.bits() | if rng.u8(0..30) == 0 { rng.u16(..) & 0xfff8 } else { 0 };
        let next = match rng.u8(0..20) {
            0 => rng.u16(..),
            1 => rng.u16(0..table_len),
            _ => rng.u16(table_len / 2..table_len),
        };
        Descriptor { addr: addr.into(), len: len.into(), flags: bits.into(), next: next.into() }
    }
}
