//! A chain that no honest driver makes, and the proof that it has done no harm.

use std::thread;
use std::time::{Duration, Instant};

use virtio_zbd_spec::{Status, ring};
use virtio_zbd_testkit::{GuestRam, Queue, Request, Used};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::seen::assert_same_bytes;
use super::{Rig, SECTOR};

/// What must become of a bad chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is returned, with nothing written.
    Dropped,
    /// IOERR is written here, and counted as so many bytes.
    IoErr(GuestAddress, u32),
}

/// Gives the chain at `head` to the device and compares: the guest's memory, the disk, and whether it goes on.
#[track_caller]
pub(crate) fn attack(rig: &mut Rig, head: u16, outcome: Outcome) {
    let disk_before = rig.state();
    let mut expected = memory(&rig.ram);
    rig.queue().ring.push_avail(head);
    let avail = rig.queue().ring.avail_ring();
    let _ = rig.queue().ring.publish();
    let idx = rig.ram.read(GuestAddress(avail.0), 4);
    set(&mut expected, avail, &idx);
    let slot = u64::from(rig.queue().ring.avail_idx().wrapping_sub(1) % rig.queue().ring.size());
    set(&mut expected, GuestAddress(avail.0 + 4 + 2 * slot), &head.to_le_bytes());
    rig.queue().kick().unwrap();
    let used = wait_used(rig.queue());
    let written = match outcome {
        Outcome::Dropped => 0,
        Outcome::IoErr(at, written) => {
            set(&mut expected, at, &[Status::IoErr as u8]);
            written
        }
    };
    assert_eq!((used.id, used.len), (head.into(), written), "the used element");
    // The device's own part of the ring.
    let used_ring = rig.queue().ring.used_ring();
    let len = usize::try_from(ring::used_ring_len_bytes(rig.queue().ring.size())).unwrap();
    set(&mut expected, used_ring, &rig.ram.read(used_ring, len));
    for ((at, expected), (_, found)) in expected.iter().zip(memory(&rig.ram)) {
        assert_same_bytes(expected, &found, &format!("guest memory at {at:#x}"));
    }
    // It goes on, and nothing was written.
    rig.accept(Request::read(0, SECTOR));
    disk_before.assert_same(&rig.state());
    assert_eq!(rig.queues[0].broken(), 0);
}

/// Waits for the next used element, whoever it belongs to.
#[track_caller]
pub(crate) fn wait_used(queue: &mut Queue) -> Used {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(used) = queue.ring.poll_used() {
            return used;
        }
        assert!(Instant::now() < deadline, "the chain is not returned");
        thread::sleep(Duration::from_micros(50));
    }
}

/// All of guest memory: each region's address and bytes.
pub(crate) fn memory(ram: &GuestRam) -> Vec<(u64, Vec<u8>)> {
    ram.memory()
        .iter()
        .map(|region| {
            let len = usize::try_from(region.len()).unwrap();
            (region.start_addr().0, ram.read(region.start_addr(), len))
        })
        .collect()
}

fn set(memory: &mut [(u64, Vec<u8>)], at: GuestAddress, bytes: &[u8]) {
    let (start, region) = memory.iter_mut().rev().find(|(start, _)| *start <= at.0).unwrap();
    let offset = usize::try_from(at.0 - *start).unwrap();
    region[offset..offset + bytes.len()].copy_from_slice(bytes);
}
