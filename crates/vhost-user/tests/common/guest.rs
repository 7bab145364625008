//! A guest: its memory, a ring in it, and a driver that puts echo requests into the ring.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::PATIENCE;
use super::peer::{longs, vring_addr};

pub const MEMORY_BYTES: u64 = 1 << 20;
pub const RING_SIZE: u16 = 8;

/// Memory at guest address `guest`, user address `user`, in a file from `offset` on.
pub struct Guest {
    pub file: OwnedFd,
    pub guest: u64,
    pub user: u64,
    pub offset: u64,
    memory: GuestMemoryMmap,
}

impl Guest {
    pub fn new(guest: u64, user: u64, offset: u64) -> Self {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, offset + MEMORY_BYTES).unwrap();
        let backing = FileOffset::new(File::from(rustix::io::dup(&file).unwrap()), offset);
        let size = usize::try_from(MEMORY_BYTES).unwrap();
        let ranges = [(GuestAddress(guest), size, Some(backing))];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        Self { file, guest, user, offset, memory }
    }

    /// Guest address, size, user address, offset: a region on the wire.
    pub fn region(&self) -> Vec<u8> {
        longs(&[self.guest, MEMORY_BYTES, self.user, self.offset])
    }

    /// The payload of a SET_MEM_TABLE with this memory as its only region.
    pub fn mem_table(&self) -> Vec<u8> {
        [longs(&[1]), self.region()].concat()
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A queue as its driver sees it. Queue n has its page 3 · n + 1 and the two after it; its buffers follow far
/// behind.
pub struct Driver<'g> {
    guest: &'g Guest,
    index: u16,
    next: u16,
    pub kick: OwnedFd,
}

impl<'g> Driver<'g> {
    pub fn new(guest: &'g Guest, index: u16) -> Self {
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let driver = Self { guest, index, next: 0, kick };
        // A queue is fresh when it is set up.
        let zeros = vec![0; 0x3000];
        guest.memory.write_slice(&zeros, GuestAddress(guest.guest + driver.desc())).unwrap();
        driver
    }

    fn desc(&self) -> u64 {
        0x1000 * (3 * u64::from(self.index) + 1)
    }

    fn avail(&self) -> u64 {
        self.desc() + 0x1000
    }

    fn used(&self) -> u64 {
        self.desc() + 0x2000
    }

    fn at(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.guest.guest + offset)
    }

    /// The payload of SET_VRING_ADDR.
    pub fn addr(&self) -> Vec<u8> {
        let user = self.guest.user;
        vring_addr(self.index.into(), user + self.desc(), user + self.avail(), user + self.used())
    }

    /// Descriptor table, available ring and used ring in user addresses.
    pub fn user_addresses(&self) -> [u64; 3] {
        [self.desc(), self.avail(), self.used()].map(|area| self.guest.user + area)
    }

    /// Descriptor table, available ring and used ring in guest addresses.
    pub fn guest_addresses(&self) -> [u64; 3] {
        [self.desc(), self.avail(), self.used()].map(|area| self.guest.guest + area)
    }

    /// Makes a request available, without a kick.
    pub fn put(&mut self, bytes: &[u8]) {
        let memory = &self.guest.memory;
        let slot = u64::from(self.next % RING_SIZE);
        // Only half as many requests as entries at a time: a request has two descriptors.
        let head = 2 * (slot % u64::from(RING_SIZE / 2));
        let length = u32::try_from(bytes.len()).unwrap();
        let input = self.at(0x8_0000 + 0x1000 * head);
        let output = self.at(0x8_0800 + 0x1000 * head);
        memory.write_slice(bytes, input).unwrap();
        memory.write_slice(&vec![0; bytes.len()], output).unwrap();
        let descriptors = [(input, 1_u16, head + 1), (output, 2, 0)];
        for (n, (buffer, flags, next)) in descriptors.into_iter().enumerate() {
            let at = self.at(self.desc() + 16 * (head + u64::try_from(n).unwrap()));
            memory.write_obj(buffer.0, at).unwrap();
            memory.write_obj(length, GuestAddress(at.0 + 8)).unwrap();
            memory.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
            memory.write_obj(u16::try_from(next).unwrap(), GuestAddress(at.0 + 14)).unwrap();
        }
        let head = u16::try_from(head).unwrap();
        memory.write_obj(head, self.at(self.avail() + 4 + 2 * slot)).unwrap();
        self.next = self.next.wrapping_add(1);
        memory.store(self.next, self.at(self.avail() + 2), Ordering::Release).unwrap();
    }

    pub fn kick(&self) {
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).unwrap();
    }

    /// How many requests are answered.
    pub fn used_index(&self) -> u16 {
        self.guest.memory.load(self.at(self.used() + 2), Ordering::Acquire).unwrap()
    }

    /// How many requests were made.
    pub fn next_avail(&self) -> u16 {
        self.next
    }

    /// Waits at `call` until all requests are answered, then checks the answer to the last one.
    pub fn wait(&self, call: BorrowedFd<'_>, bytes: &[u8]) {
        while self.used_index() != self.next {
            wait_readable(call);
            let _ = rustix::io::read(call, &mut [0; 512]);
        }
        self.check(bytes);
    }

    /// Checks the answer to the last request.
    pub fn check(&self, bytes: &[u8]) {
        let slot = u64::from(self.next.wrapping_sub(1) % RING_SIZE);
        let head = 2 * (slot % u64::from(RING_SIZE / 2));
        let mut found = vec![0; bytes.len()];
        self.guest.memory.read_slice(&mut found, self.at(0x8_0800 + 0x1000 * head)).unwrap();
        assert_eq!(found, bytes.iter().map(|byte| !byte).collect::<Vec<_>>());
        let entry = self.used() + 4 + 8 * slot;
        let id: u32 = self.guest.memory.read_obj(self.at(entry)).unwrap();
        assert_eq!(u64::from(id), head);
        let written: u32 = self.guest.memory.read_obj(self.at(entry + 4)).unwrap();
        assert_eq!(usize::try_from(written).unwrap(), bytes.len());
    }
}

/// Waits until there is something to read.
pub fn wait_readable(fd: BorrowedFd<'_>) {
    assert!(is_readable(fd, PATIENCE.as_secs()), "no notification came");
}

/// True if there is something to read now.
pub fn is_readable_now(fd: BorrowedFd<'_>) -> bool {
    is_readable(fd, 0)
}

fn is_readable(fd: BorrowedFd<'_>, timeout_s: u64) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let timeout = Timespec { tv_sec: i64::try_from(timeout_s).unwrap(), tv_nsec: 0 };
    poll(&mut fds, Some(&timeout)).unwrap() > 0
}
