//! libblkio's userspace driver as a client: written by others, so a peer to check against and to measure with.
#![allow(unsafe_code, reason = "the driver takes raw pointers into memory that it shares with the disk")]
#![allow(dead_code, reason = "the test and the benchmark each use their part")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// A client with one queue and a few buffers in shared memory.
pub(crate) struct Peer {
    transport: Box<VirtioBlkTransport>,
    queue: VirtioBlkQueue<'static, usize>,
    notifier: Box<dyn QueueNotifier>,
    completed: Arc<EventFd>,
    memory: MmapRegion,
    buffer_len: usize,
}

impl Peer {
    /// Connects to `socket`, with `buffers` buffers of `buffer_len` bytes each and the feature bits `features` where
    /// they are offered.
    pub(crate) fn connect(
        socket: &Path,
        buffers: usize,
        buffer_len: usize,
        features: u64,
    ) -> std::io::Result<Self> {
        let features = VirtioFeatureFlags::VERSION_1.bits() | features;
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(&socket.to_string_lossy(), features)?);
        let file: File = memfd_create("buffers", MemfdFlags::CLOEXEC)?.into();
        let len = buffers * buffer_len;
        file.set_len(len as u64)?;
        let fd = file.as_raw_fd();
        let file = Arc::new(file);
        let memory = MmapRegion::from_file(FileOffset::from_arc(Arc::clone(&file), 0), len)
            .map_err(std::io::Error::other)?;
        transport.map_mem_region(memory.as_ptr() as usize, len, fd, 0)?;
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, 1, 128)?;
        for queue in &mut queues {
            // Off in the beginning: the driver means to be polled.
            queue.set_used_notif_enabled(true);
        }
        let notifier = transport.get_submission_notifier(0);
        let completed = transport.get_completion_fd(0);
        Ok(Self { queue: queues.remove(0), transport, notifier, completed, memory, buffer_len })
    }

    /// Queues a read into buffer `buffer`.
    pub(crate) fn read(&mut self, buffer: usize, offset_bytes: u64, len: usize) {
        let at = self.at(buffer, len);
        // SAFETY: `at` checked that the bytes are inside `memory`, which lives as long as the queue.
        unsafe { self.queue.read_raw(offset_bytes, at, len, buffer) }.unwrap();
    }

    /// Queues a write of buffer `buffer`.
    pub(crate) fn write(&mut self, buffer: usize, offset_bytes: u64, len: usize) {
        let at = self.at(buffer, len);
        // SAFETY: as in `read`.
        unsafe { self.queue.write_raw(offset_bytes, at, len, buffer) }.unwrap();
    }

    /// Other requests, by the driver's own calls; the context is a number of the caller's choice.
    pub(crate) fn queue(&mut self) -> &mut VirtioBlkQueue<'static, usize> {
        &mut self.queue
    }

    /// Tells the disk of what was queued.
    pub(crate) fn kick(&self) {
        self.notifier.notify().unwrap();
    }

    /// Waits until at least one request is answered, at most 10 seconds. Returns each one's buffer or context, and 0 or
    /// an errno.
    pub(crate) fn wait(&mut self) -> Vec<(usize, i32)> {
        loop {
            let done: Vec<_> = self.queue.completions().map(|c| (c.context, c.ret)).collect();
            if !done.is_empty() {
                return done;
            }
            let mut fds = [PollFd::new(&*self.completed, PollFlags::IN)];
            let ready = poll(&mut fds, Some(&Timespec { tv_sec: 10, tv_nsec: 0 })).unwrap();
            assert_ne!(ready, 0, "no answer in ten seconds");
            self.completed.read().unwrap();
        }
    }

    /// Kicks and waits for the one request that is queued. Returns 0 or its errno.
    pub(crate) fn finish(&mut self) -> i32 {
        self.kick();
        let done = self.wait();
        assert_eq!(done.len(), 1);
        done[0].1
    }

    /// Fills buffer `buffer`.
    pub(crate) fn fill(&self, buffer: usize, bytes: &[u8]) {
        self.memory.get_slice(buffer * self.buffer_len, bytes.len()).unwrap().copy_from(bytes);
    }

    /// The first `len` bytes of buffer `buffer`.
    pub(crate) fn bytes(&self, buffer: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.get_slice(buffer * self.buffer_len, len).unwrap().copy_to(&mut bytes);
        bytes
    }

    fn at(&self, buffer: usize, len: usize) -> *mut u8 {
        assert!(len <= self.buffer_len);
        self.memory.get_slice(buffer * self.buffer_len, len).unwrap().ptr_guard_mut().as_ptr()
    }
}
