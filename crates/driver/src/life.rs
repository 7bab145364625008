//! A disk's life beside its requests: interrupts, a changed configuration, removal, the end.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use virtio_drivers::Hal;
use virtio_drivers::transport::{InterruptStatus, Transport};
use virtio_zbd_spec::{Features, Model};

use crate::command::Buffer;
use crate::config;
use crate::disk::VirtioBlk;
use crate::error::{Error, Invalid};
use crate::limits::Geometry;
use crate::probe::segment_len_bytes;

/// Why the device interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// It is done with requests: take them with [`VirtioBlk::complete`].
    pub used: bool,
    /// Its configuration changed: call [`VirtioBlk::config_changed`].
    pub config: bool,
}

/// What a new configuration changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The disk's size before.
    pub capacity_sectors_before: u64,
    /// Its size now.
    pub capacity_sectors: u64,
    /// Its model before.
    pub model_before: Model,
    /// Its model now.
    pub model: Model,
}

/// Says that a disk is gone, from any thread: calls that wait end, later ones fail, with [`Error::Removed`].
#[derive(Clone, Debug)]
pub struct Removal(Arc<AtomicBool>);

impl Removal {
    /// The disk is gone.
    pub fn remove(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl<H: Hal, T: Transport, B: Buffer> VirtioBlk<H, T, B> {
    /// For whoever learns that the device was unplugged, while another thread uses the disk (L8).
    #[must_use]
    pub fn removal(&self) -> Removal {
        Removal(Arc::clone(&self.removed))
    }

    /// Takes note of the device's interrupt and says what it was for.
    pub fn ack_interrupt(&mut self) -> Interrupt {
        let status = self.transport.as_mut().map_or(InterruptStatus::empty(), Transport::ack_interrupt);
        Interrupt {
            used: status.contains(InterruptStatus::QUEUE_INTERRUPT),
            config: status.contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT),
        }
    }

    /// Reads the configuration again, after the device said that it changed. On a zoned disk all zones are checked
    /// with the new size before it counts (B3); a disk that is no longer host-managed goes on as a regular one (L12).
    ///
    /// # Errors
    ///
    /// [`Error::Probe`] or [`Error::Wrong`] where the new configuration can't be; the disk stays as it was.
    pub fn config_changed(&mut self) -> Result<Change, Error> {
        self.usable()?;
        let transport = self.transport.as_ref().ok_or(Error::Broken)?;
        let config = config::read(transport, self.features)?;
        let new = Geometry::new(&config, self.features, self.queue_depth, self.support)?;
        let old = self.geometry;
        self.set_geometry(new);
        if let Err(error) = self.check_zones() {
            self.set_geometry(old);
            return Err(error);
        }
        Ok(Change {
            capacity_sectors_before: old.capacity_sectors,
            capacity_sectors: new.capacity_sectors,
            model_before: old.model,
            model: new.model,
        })
    }

    fn set_geometry(&mut self, geometry: Geometry) {
        for queue in &mut self.queues {
            queue.ring.set_segment_len_bytes(segment_len_bytes(&geometry));
        }
        self.geometry = geometry;
    }

    /// Whether the disk keeps writes in a cache until a flush.
    #[must_use]
    pub fn write_back(&self) -> bool {
        self.geometry.write_back
    }

    /// Has the disk keep writes in a cache, or not (CONFIG_WCE).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where the device does not let it be chosen.
    pub fn set_write_back(&mut self, write_back: bool) -> Result<(), Error> {
        self.usable()?;
        if !self.features.contains(Features::CONFIG_WCE) {
            return Err(Invalid::CacheModeFixed.into());
        }
        let transport = self.transport.as_mut().ok_or(Error::Broken)?;
        transport
            .write_config_space(config::WRITEBACK_OFFSET, u8::from(write_back))
            .map_err(Error::Transport)?;
        let config = config::read(transport, self.features)?;
        self.geometry.write_back = self.features.contains(Features::FLUSH) && config.writeback != 0;
        if self.geometry.write_back == write_back { Ok(()) } else { Err(Invalid::CacheModeFixed.into()) }
    }

    /// Resets the device and gives the transport back. Requests in flight are lost, and their buffers with them.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`] where the device does not come out of the reset: the transport is leaked then.
    pub fn release(mut self) -> Result<T, Error> {
        self.give_up();
        self.transport.take().ok_or(Error::Broken)
    }
}
