//! The smallest device that can be: it reads the ring with plain loads and keeps its disk in a vector. It shares no code
//! with the driver's side, and it can misbehave.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod backend;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_zbd_testkit::InProcess;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) const DISK_LEN: usize = 1 << 20;
/// Zones of 1 MiB / 8 = 256 sectors each, all sequential.
pub(crate) const ZONE_SECTORS: u64 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misbehave {
    No,
    /// Uses a chain without a notification.
    NoCall,
    /// Returns each chain twice.
    UseTwice,
    /// Returns each chain without doing anything.
    NoStatus,
    /// Writes one byte past the end of the chain's last buffer.
    Overrun,
    /// Never returns a chain.
    Hang,
}

pub(crate) struct MiniDevice {
    pub(crate) queue: InProcess,
    pub(crate) disk: Vec<u8>,
    /// Sectors written in each zone.
    pub(crate) written: Vec<u64>,
    pub(crate) misbehave: Misbehave,
    /// Returns the chains of a batch in reverse order.
    pub(crate) reverse: bool,
    /// Sets NO_NOTIFY, or an `avail_event` far away: no kicks wanted.
    pub(crate) no_kicks: bool,
    pub(crate) served: usize,
    next_avail: u16,
    next_used: u16,
}

struct Chain {
    head: u16,
    out: Vec<u8>,
    writable: Vec<(u64, u32)>,
}

impl MiniDevice {
    pub(crate) fn new(queue: InProcess) -> Self {
        let base = queue.base;
        Self {
            queue,
            disk: vec![0; DISK_LEN],
            written: vec![0; DISK_LEN / 512 / usize::try_from(ZONE_SECTORS).unwrap()],
            misbehave: Misbehave::No,
            reverse: false,
            no_kicks: false,
            served: 0,
            next_avail: base,
            next_used: base,
        }
    }

    fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.queue.memory
    }

    fn word(&self, addr: u64) -> u16 {
        u16::from_le(self.memory().load(GuestAddress(addr), Ordering::Acquire).unwrap())
    }

    fn set_word(&self, addr: u64, value: u16) {
        self.memory().store(value.to_le(), GuestAddress(addr), Ordering::Release).unwrap();
    }

    /// Serves all that is available. Returns whether there was anything.
    pub(crate) fn serve(&mut self) -> bool {
        let size = self.queue.size;
        let (avail, used) = (self.queue.avail_ring.0, self.queue.used_ring.0);
        let avail_event = used + 4 + 8 * u64::from(size);
        let mut chains = Vec::new();
        while self.next_avail != self.word(avail + 2) {
            let slot = u64::from(self.next_avail % size);
            let head = self.word(avail + 4 + 2 * slot);
            self.next_avail = self.next_avail.wrapping_add(1);
            chains.push(self.chain(head));
        }
        if self.no_kicks {
            self.set_word(used, 1);
            self.set_word(avail_event, self.next_avail.wrapping_sub(1));
        } else {
            self.set_word(avail_event, self.next_avail);
        }
        fence(Ordering::SeqCst);
        if self.reverse {
            chains.reverse();
        }
        let old_used = self.next_used;
        let any = !chains.is_empty();
        for chain in chains {
            self.served += 1;
            let len = if self.misbehave == Misbehave::NoStatus { 0 } else { self.execute(&chain) };
            if self.misbehave == Misbehave::Hang {
                continue;
            }
            for _ in 0..if self.misbehave == Misbehave::UseTwice { 2 } else { 1 } {
                let at = used + 4 + 8 * u64::from(self.next_used % size);
                let elem = [u32::from(chain.head).to_le_bytes(), len.to_le_bytes()].concat();
                self.memory().write_slice(&elem, GuestAddress(at)).unwrap();
                self.next_used = self.next_used.wrapping_add(1);
            }
        }
        self.set_word(used + 2, self.next_used);
        fence(Ordering::SeqCst);
        let wanted = if self.queue.event_idx {
            // The driver wants to hear when the entry `used_event` is used.
            let event = self.word(avail + 4 + 2 * u64::from(size));
            (0..self.next_used.wrapping_sub(old_used)).any(|i| old_used.wrapping_add(i) == event)
        } else {
            any && self.word(avail) & 1 == 0
        };
        if wanted && self.misbehave != Misbehave::NoCall {
            rustix::io::write(&self.queue.call, &1_u64.to_ne_bytes()).unwrap();
        }
        any
    }

    fn chain(&self, head: u16) -> Chain {
        let mut chain = Chain { head, out: Vec::new(), writable: Vec::new() };
        self.walk(self.queue.desc_table.0, head, &mut chain);
        chain
    }

    fn walk(&self, table: u64, mut index: u16, chain: &mut Chain) {
        for _ in 0..70_000 {
            let mut desc = [0; 16];
            let at = GuestAddress(table + 16 * u64::from(index));
            self.memory().read_slice(&mut desc, at).unwrap();
            let addr = u64::from_le_bytes(desc[..8].try_into().unwrap());
            let len = u32::from_le_bytes(desc[8..12].try_into().unwrap());
            let flags = u16::from_le_bytes(desc[12..14].try_into().unwrap());
            if flags & 4 != 0 {
                assert_eq!((flags, len % 16), (4, 0));
                self.walk(addr, 0, chain);
            } else if flags & 2 != 0 {
                chain.writable.push((addr, len));
            } else {
                assert!(chain.writable.is_empty(), "a readable buffer behind a writable one");
                let mut bytes = vec![0; usize::try_from(len).unwrap()];
                self.memory().read_slice(&mut bytes, GuestAddress(addr)).unwrap();
                chain.out.extend(bytes);
            }
            if flags & 1 == 0 {
                return;
            }
            index = u16::from_le_bytes(desc[14..].try_into().unwrap());
        }
        panic!("a chain without an end");
    }

    fn execute(&mut self, chain: &Chain) -> u32 {
        let room: u32 = chain.writable.iter().map(|&(_, len)| len).sum();
        let room = usize::try_from(room).unwrap();
        let request_type = u32::from_le_bytes(chain.out[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(chain.out[8..16].try_into().unwrap());
        let data = &chain.out[16..];
        let at = usize::try_from(sector).unwrap_or(usize::MAX).saturating_mul(512);
        let mut answer = vec![0; room.saturating_sub(1)];
        let status = match request_type {
            0 if at + answer.len() <= DISK_LEN => {
                answer.copy_from_slice(&self.disk[at..at + room - 1]);
                0
            }
            1 if at + data.len() <= DISK_LEN => {
                self.disk[at..at + data.len()].copy_from_slice(data);
                0
            }
            4 => 0,
            8 => {
                answer[..4].copy_from_slice(b"mini");
                0
            }
            15 => {
                let zone = usize::try_from(sector / ZONE_SECTORS).unwrap();
                let place = sector + self.written[zone];
                let at = usize::try_from(place).unwrap() * 512;
                self.disk[at..at + data.len()].copy_from_slice(data);
                self.written[zone] += u64::try_from(data.len()).unwrap() / 512;
                answer.copy_from_slice(&place.to_le_bytes());
                0
            }
            16 => {
                answer = self.report(sector, answer.len());
                0
            }
            0 | 1 => 1,
            _ => 2,
        };
        answer.push(status);
        let mut rest = answer.as_slice();
        for &(addr, len) in &chain.writable {
            let (part, behind) = rest.split_at(usize::try_from(len).unwrap());
            self.memory().write_slice(part, GuestAddress(addr)).unwrap();
            rest = behind;
        }
        if self.misbehave == Misbehave::Overrun {
            let &(addr, len) = chain.writable.last().unwrap();
            self.memory().write_slice(&[0], GuestAddress(addr + u64::from(len))).unwrap();
        }
        u32::try_from(answer.len()).unwrap()
    }

    fn report(&self, sector: u64, room: usize) -> Vec<u8> {
        let first = usize::try_from(sector / ZONE_SECTORS).unwrap();
        let mut zones = Vec::new();
        let mut count = 0_u64;
        for (i, &written) in self.written.iter().enumerate().skip(first) {
            // At most three zones a report, so that several are needed.
            if zones.len() + 128 > room || count == 3 {
                break;
            }
            let start = u64::try_from(i).unwrap() * ZONE_SECTORS;
            let mut zone = [ZONE_SECTORS, start, start + written].map(u64::to_le_bytes).concat();
            zone.extend([2, if written == 0 { 1 } else { 2 }]);
            zone.resize(64, 0);
            zones.extend(zone);
            count += 1;
        }
        let mut report = count.to_le_bytes().to_vec();
        report.resize(64, 0);
        report.extend(zones);
        report.resize(room, 0);
        report
    }

    pub(crate) fn drain_kick(&self) {
        rustix::io::read(&self.queue.kick, &mut [0; 8]).unwrap();
    }
}

/// A [`MiniDevice`] in a thread; stops when dropped.
pub(crate) struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<MiniDevice>>,
}

impl Running {
    pub(crate) fn start(mut device: MiniDevice) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                while device.serve() {}
                if readable(&device.queue.kick, 20) {
                    device.drain_kick();
                }
            }
            while device.serve() {}
            device
        });
        Self { stop, thread: Some(thread) }
    }

    pub(crate) fn stop(mut self) -> MiniDevice {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn readable(fd: &OwnedFd, timeout_ms: i64) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: timeout_ms * 1_000_000 };
    poll(&mut fds, Some(&timeout)).unwrap() > 0
}
