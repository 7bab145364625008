//! The disk on vhost-user: the device's and the server's words for the same things.

use std::sync::Arc;

use virtio_zbd_device::{
    Disk, Growth, InflightBuffer, InflightLog, Negotiated, QUEUE_SIZE_MAX, Queue, QueueConfig, RingConfig,
};
use virtio_zbd_spec::Features;
use virtio_zbd_store::StoreError;
use virtio_zbd_vhost_user::{
    Backend, ConfigRefused, FeaturesRefused, FrontendNotifier, Inflight, InflightQueue, RunningQueue,
    Session, StartError, Vring,
};

use crate::frontends::Frontends;

/// A disk as a vhost-user back-end, for a [`Server`](virtio_zbd_vhost_user::Server).
#[derive(Clone)]
pub struct DiskBackend {
    disk: Arc<Disk>,
    frontends: Arc<Frontends>,
}

/// One front-end's use of the disk.
pub struct DiskSession {
    disk: Arc<Disk>,
    negotiated: Arc<Negotiated>,
    /// The front-end's buffer of requests under way, once it has shown one.
    inflight: Option<Inflight>,
    /// The driver had turned the write-back cache off when an earlier process served it, and has not said otherwise since.
    cache_was_off: bool,
    frontends: Arc<Frontends>,
    /// What the front-end is called there.
    id: u64,
}

/// A queue with its worker, and what it was started with.
pub struct DiskQueue {
    queue: Queue,
    vring: Vring,
}

impl DiskBackend {
    /// Offers `disk` to front-ends.
    #[must_use]
    pub fn new(disk: Arc<Disk>) -> Self {
        Self { disk, frontends: Arc::default() }
    }

    /// Makes the disk `capacity_sectors` long while it is used, and tells the connected front-ends that its configuration has changed.
    /// Returns what has changed, and how many front-ends see it: one that has no channel for such messages does not.
    ///
    /// # Errors
    /// As [`Disk::grow`].
    pub fn grow(&self, capacity_sectors: u64) -> Result<(Growth, usize), StoreError> {
        let growth = self.disk.grow(capacity_sectors)?;
        let told = match growth.capacity_sectors == growth.capacity_sectors_before {
            true => 0,
            false => self.frontends.tell_all(&self.disk),
        };
        Ok((growth, told))
    }

    /// The disk that is offered.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }
}

impl Backend for DiskBackend {
    type Session = DiskSession;

    fn features(&self) -> u64 {
        self.disk.features()
    }

    fn queue_count(&self) -> u16 {
        self.disk.queue_count()
    }

    fn queue_size_max(&self) -> u16 {
        QUEUE_SIZE_MAX
    }

    fn keeps_inflight(&self) -> bool {
        true
    }

    fn connect(&self, frontend: FrontendNotifier) -> DiskSession {
        DiskSession {
            disk: Arc::clone(&self.disk),
            negotiated: self.disk.not_negotiated(),
            inflight: None,
            cache_was_off: false,
            frontends: Arc::clone(&self.frontends),
            id: self.frontends.connected(frontend),
        }
    }
}

impl Session for DiskSession {
    type Queue = DiskQueue;

    fn accept_features(&mut self, features: u64) -> Result<(), FeaturesRefused> {
        // What an earlier driver was granted is no longer so, whatever comes of this one.
        self.negotiated = self.disk.not_negotiated();
        self.negotiated =
            self.disk.negotiate(features).map_err(|refused| FeaturesRefused::new(refused.to_string()))?;
        self.restore_cache_mode();
        Ok(())
    }

    fn read_config(&self, offset_bytes: u32, out: &mut [u8]) {
        self.disk.read_config(&self.negotiated, offset_bytes, out);
    }

    fn write_config(&mut self, offset_bytes: u32, data: &[u8]) -> Result<(), ConfigRefused> {
        self.disk
            .write_config(&self.negotiated, offset_bytes, data)
            .map_err(|refused| ConfigRefused::new(refused.to_string()))?;
        self.cache_was_off = false;
        self.keep_cache_mode();
        Ok(())
    }

    fn use_inflight(&mut self, buffer: &Inflight) {
        self.cache_was_off = self.disk.use_inflight(&Buffer(buffer));
        self.inflight = Some(buffer.clone());
        self.frontends.has_buffer(self.id, buffer, &self.disk);
        self.restore_cache_mode();
    }

    fn start_queue(&mut self, index: u16, mut vring: Vring) -> Result<DiskQueue, StartError> {
        let failed = |error: &dyn std::error::Error| StartError::new(error.to_string());
        let (call, err) = (vring.call.clone(), vring.err.clone());
        let config = QueueConfig {
            memory: Arc::clone(&vring.memory),
            ring: RingConfig {
                size: vring.size,
                descriptor_table: vring.desc,
                avail_ring: vring.avail,
                used_ring: vring.used,
                next_avail: vring.next_avail,
                event_idx: vring.features & Features::EVENT_IDX.bits() != 0,
            },
            kick: vring.kick.try_clone().map_err(|error| failed(&error))?,
            call: Box::new(move || {
                if let Some(call) = &call {
                    call.notify();
                }
            }),
            broken: Box::new(move || {
                if let Some(err) = &err {
                    err.notify();
                }
            }),
            inflight: vring.inflight.take().map(|log| -> Box<dyn InflightLog> { Box::new(Log(log)) }),
        };
        let queue = self
            .disk
            .start_queue(index, Arc::clone(&self.negotiated), config)
            .map_err(|error| failed(&error))?;
        self.frontends.begins(self.id, &self.disk);
        Ok(DiskQueue { queue, vring })
    }

    fn reset(&mut self) {
        self.disk.forget_inflight();
        self.negotiated = self.disk.not_negotiated();
        self.cache_was_off = false;
        self.keep_cache_mode();
    }
}

impl Drop for DiskSession {
    fn drop(&mut self) {
        self.frontends.gone(self.id);
    }
}

impl DiskSession {
    /// The buffer and the features come in either order: the later one finds both.
    fn restore_cache_mode(&self) {
        if self.negotiated.is_refused() {
            return;
        }
        if self.cache_was_off {
            self.negotiated.turn_cache_off();
        }
        self.keep_cache_mode();
    }

    fn keep_cache_mode(&self) {
        if let Some(buffer) = &self.inflight {
            self.disk.keep_cache_mode(&self.negotiated, &Buffer(buffer));
        }
    }
}

impl RunningQueue for DiskQueue {
    fn stop(self) -> Vring {
        let next_avail = self.queue.stop();
        Vring { next_avail, ..self.vring }
    }
}

/// The server's buffer of requests under way, as the device knows it.
pub(crate) struct Buffer<'a>(pub(crate) &'a Inflight);

impl InflightBuffer for Buffer<'_> {
    fn queue_count(&self) -> u16 {
        self.0.queue_count()
    }

    fn queue_size(&self) -> u16 {
        self.0.queue_size()
    }

    fn mark(&self, index: usize) -> u64 {
        self.0.mark(index)
    }

    fn set_mark(&self, index: usize, value: u64) {
        self.0.set_mark(index, value);
    }

    fn is_inflight(&self, queue: u16, head: u16) -> bool {
        self.0.is_inflight(queue, head)
    }

    fn note(&self, queue: u16, head: u16, word: usize) -> u64 {
        self.0.note(queue, head, word)
    }

    fn set_note(&self, queue: u16, head: u16, word: usize, value: u64) {
        self.0.set_note(queue, head, word, value);
    }
}

/// One queue's part of it.
struct Log(InflightQueue);

impl InflightLog for Log {
    fn resubmit(&self) -> Vec<u16> {
        self.0.resubmit().to_vec()
    }

    fn taken(&mut self, head: u16) {
        self.0.taken(head);
    }

    fn used(&mut self, head: u16) {
        self.0.used(head);
    }

    fn published(&mut self, used_idx: u16) {
        self.0.published(used_idx);
    }

    fn mark(&self, index: usize) -> u64 {
        self.0.buffer().mark(index)
    }

    fn note(&self, head: u16, word: usize) -> u64 {
        self.0.note(head, word)
    }

    fn set_note(&self, head: u16, word: usize, value: u64) {
        self.0.set_note(head, word, value);
    }
}
