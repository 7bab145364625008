//! The disk on vhost-user: the device's and the server's words for the same things.

use std::sync::Arc;

use virtio_zbd_device::{Disk, Negotiated, QUEUE_SIZE_MAX, Queue, QueueConfig, RingConfig};
use virtio_zbd_spec::Features;
use virtio_zbd_vhost_user::{
    Backend, ConfigRefused, FeaturesRefused, FrontendNotifier, RunningQueue, Session, StartError, Vring,
};

/// A disk as a vhost-user back-end, for a [`Server`](virtio_zbd_vhost_user::Server).
#[derive(Clone)]
pub struct DiskBackend(Arc<Disk>);

/// One front-end's use of the disk.
pub struct DiskSession {
    disk: Arc<Disk>,
    negotiated: Arc<Negotiated>,
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
        Self(disk)
    }
}

impl Backend for DiskBackend {
    type Session = DiskSession;

    fn features(&self) -> u64 {
        self.0.features()
    }

    fn queue_count(&self) -> u16 {
        self.0.queue_count()
    }

    fn queue_size_max(&self) -> u16 {
        QUEUE_SIZE_MAX
    }

    fn connect(&self, _: FrontendNotifier) -> DiskSession {
        DiskSession { disk: Arc::clone(&self.0), negotiated: self.0.not_negotiated() }
    }
}

impl Session for DiskSession {
    type Queue = DiskQueue;

    fn accept_features(&mut self, features: u64) -> Result<(), FeaturesRefused> {
        // What an earlier driver was granted is no longer so, whatever comes of this one.
        self.reset();
        self.negotiated =
            self.disk.negotiate(features).map_err(|refused| FeaturesRefused::new(refused.to_string()))?;
        Ok(())
    }

    fn read_config(&self, offset_bytes: u32, out: &mut [u8]) {
        self.disk.read_config(&self.negotiated, offset_bytes, out);
    }

    fn write_config(&mut self, offset_bytes: u32, data: &[u8]) -> Result<(), ConfigRefused> {
        self.disk
            .write_config(&self.negotiated, offset_bytes, data)
            .map_err(|refused| ConfigRefused::new(refused.to_string()))
    }

    fn start_queue(&mut self, index: u16, vring: Vring) -> Result<DiskQueue, StartError> {
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
        };
        let queue = self
            .disk
            .start_queue(index, Arc::clone(&self.negotiated), config)
            .map_err(|error| failed(&error))?;
        Ok(DiskQueue { queue, vring })
    }

    fn reset(&mut self) {
        self.negotiated = self.disk.not_negotiated();
    }
}

impl RunningQueue for DiskQueue {
    fn stop(self) -> Vring {
        let next_avail = self.queue.stop();
        Vring { next_avail, ..self.vring }
    }
}
