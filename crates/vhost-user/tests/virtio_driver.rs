//! libblkio's driver, which has a vhost-user front-end of its own: another independent reading of the
//! protocol. Its guest addresses are its process's, its regions are not whole pages, its eventfds block.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::fs::{MemfdFlags, memfd_create};
use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use self::common::toy::{Event, MQ, Toy, VERSION_1};
use self::common::{Harness, eventually};

const BUFFER_BYTES: usize = 512;

#[test]
#[allow(unsafe_code)]
fn a_disk_driver_attaches_and_reads() {
    let harness = Harness::start(Toy::new());
    let path = harness.path().to_str().unwrap();
    let vhost = VhostUser::new(path, VirtioFeatureFlags::VERSION_1.bits() | MQ).unwrap();
    let mut transport: Box<VirtioBlkTransport> = Box::new(vhost);
    assert_eq!(transport.max_queues(), Some(4));
    // Byte n of the toy's configuration space is n.
    let config = transport.get_config().unwrap();
    assert_eq!(u64::from(config.capacity), u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7]));
    assert_eq!(u16::from(config.num_queues), u16::from_le_bytes([34, 35]));

    let mut queues = VirtioBlkQueue::<u64>::setup_queues(&mut *transport, 2, 16).unwrap();
    assert_eq!(harness.toy.running().len(), 2);

    // A buffer that comes later, while the queues run.
    let file = File::from(memfd_create("buffer", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(4096).unwrap();
    let fd = file.as_raw_fd();
    let ranges = [(GuestAddress(0), BUFFER_BYTES, Some(FileOffset::new(file, 0)))];
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files(ranges).unwrap();
    let buffer = memory.get_host_address(GuestAddress(0)).unwrap();
    transport.map_mem_region(buffer.addr(), BUFFER_BYTES, fd, 0).unwrap();

    for n in 0..40_u64 {
        let queue = usize::try_from(n % 2).unwrap();
        // SAFETY: `memory` keeps the buffer mapped until the request is completed.
        unsafe { queues[queue].read_raw(n * 512, buffer, BUFFER_BYTES, n) }.unwrap();
        transport.get_submission_notifier(queue).notify().unwrap();
        let mut completions = Vec::new();
        eventually("a completion", || {
            completions.extend(queues[queue].completions());
            !completions.is_empty()
        });
        let found: Vec<_> = completions.iter().map(|done| (done.context, done.ret)).collect();
        assert_eq!(found, [(n, 0)]);
        // The toy answers with the request's header, inverted: type IN, sector n.
        let header: [u64; 2] = [memory.read_obj(GuestAddress(0)), memory.read_obj(GuestAddress(8))]
            .map(|word| !Result::<u64, _>::unwrap(word));
        assert_eq!(header, [0, n]);
    }
    transport.unmap_mem_region(buffer.addr(), BUFFER_BYTES).unwrap();
    assert_eq!(harness.toy.running().len(), 2);
    drop(queues);
    drop(transport);
    eventually("the end of the connection", || harness.toy.running().is_empty());
    let events = harness.toy.take_events();
    assert_eq!(events[..2], [Event::Connect, Event::Accept(VERSION_1 | MQ)]);
    harness.stop();
}
