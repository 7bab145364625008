//! What of a disk changes when it grows, and how it does that under its queues.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_zbd_spec::SECTOR_LEN_BYTES;
use virtio_zbd_store::StoreError;

use crate::config::Offer;
use crate::disk::{Disk, Zones};
use crate::worker::Place;

/// A disk at one size. Each worker has its own count of the one that it uses, and takes up a newer one when it begins a request.
pub(crate) struct Shape {
    /// How often the disk has grown.
    pub(crate) epoch: u64,
    pub(crate) zones: Option<Zones>,
    pub(crate) offer: Offer,
}

/// What a growth has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The disk's length before.
    pub capacity_sectors_before: u64,
    /// Its length now.
    pub capacity_sectors: u64,
    /// The number of its zones before; 0 for a plain disk.
    pub zones_before: u32,
    /// The number of its zones now.
    pub zones: u32,
}

impl Disk {
    /// Makes the disk `capacity_sectors` long, while its queues run: zones are added at its end. What is under way goes on. When this returns
    /// the new size is durable, and every read of the configuration space that begins now finds it; a driver is then to be told
    /// that the configuration has changed.
    ///
    /// # Errors
    /// As [`Store::grow`](virtio_zbd_store::Store::grow): the disk is as before.
    pub fn grow(&self, capacity_sectors: u64) -> Result<Growth, StoreError> {
        let _alone = self.growing.lock();
        let now = self.shape();
        // First the store: who sees the new size can use it.
        self.store.grow(capacity_sectors)?;
        let capacity_sectors = self.store.capacity_bytes() / SECTOR_LEN_BYTES;
        let zones = now.zones.as_ref().map(|zones| zones.grown(capacity_sectors)).transpose();
        let zones = zones.map_err(|error| StoreError::NoGrowth {
            name: self.store.identity().description,
            why: error.to_string(),
        })?;
        let count = |zones: &Option<Zones>| zones.as_ref().map_or(0, |zones| zones.geometry().zone_count());
        let growth = Growth {
            capacity_sectors_before: now.offer.capacity_sectors,
            capacity_sectors,
            zones_before: count(&now.zones),
            zones: count(&zones),
        };
        if capacity_sectors != now.offer.capacity_sectors {
            let geometry = zones.as_ref().map(|zones| zones.geometry().clone());
            let offer = Offer { capacity_sectors, geometry, ..now.offer.clone() };
            let epoch = now.epoch + 1;
            let mut shape = self.shape.write();
            *shape = Arc::new(Shape { epoch, zones, offer });
            // Before anybody can read the new size: the worker that takes a request to what is new sees it then.
            self.epoch.store(epoch, Ordering::Release);
        }
        Ok(growth)
    }

    /// The disk's length at the moment.
    pub fn capacity_sectors(&self) -> u64 {
        self.shape().offer.capacity_sectors
    }

    /// How many zones it has at the moment; 0 for a plain disk.
    pub fn zone_count(&self) -> u32 {
        self.shape().zones.as_ref().map_or(0, |zones| zones.geometry().zone_count())
    }

    pub(crate) fn shape(&self) -> Arc<Shape> {
        Arc::clone(&self.shape.read())
    }
}

impl Place {
    /// Takes up the disk as it is now: one load, unless it has grown.
    pub(crate) fn take_up_growth(&mut self) {
        if self.disk.epoch.load(Ordering::Acquire) != self.shape.epoch {
            self.shape = self.disk.shape();
        }
    }
}
