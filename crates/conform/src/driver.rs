//! A [`Link`] over virtio-zbd's driver crate: any of its transports, in a process or in a kernel.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use virtio_zbd_driver::raw::{self, RawDevice};
use virtio_zbd_driver::{Error, Hal, Transport, Wait};

use crate::link::{CONFIG_LEN_BYTES, Chain, Link, LinkError, Started};

/// What to do when the way to a device is gone for good: a connection that was lost, a device that never comes out of its
/// reset.
pub trait Reconnect<T> {
    /// A new way to the same device.
    ///
    /// # Errors
    ///
    /// There is none, and why.
    fn reconnect(&mut self) -> Result<T, String>;

    /// Why the latest way is gone, where more is known than that it is.
    fn why(&self) -> Option<String> {
        None
    }
}

/// A disk behind one of `virtio-drivers`' transports.
pub struct DriverLink<H: Hal, T: Transport> {
    device: RawDevice<H, T>,
    queue_depth: u16,
    shows_features_ok: bool,
    reconnect: Option<Box<dyn Reconnect<T>>>,
}

impl<H: Hal, T: Transport> DriverLink<H, T> {
    /// Takes the device and resets it. Its queues will have `queue_depth` descriptors, or what the device has; `wait` passes the
    /// time until an answer comes, and says when it is too late for one.
    ///
    /// # Errors
    ///
    /// The device does not come out of its reset, or its first queue is too small.
    pub fn new(transport: T, queue_depth: u16, wait: impl Wait<T> + 'static) -> Result<Self, LinkError> {
        let mut transport = transport;
        let device_depth = u16::try_from(transport.max_queue_size(0)).unwrap_or(u16::MAX);
        let device = RawDevice::new(transport, queue_depth, wait).map_err(|error| lost(&error, None))?;
        // Before the first start it is what will come of that.
        let queue_depth = queue_depth.min(device_depth).max(1);
        Ok(Self { device, queue_depth: 1 << queue_depth.ilog2(), shows_features_ok: true, reconnect: None })
    }

    /// With a way back where the transport is lost.
    #[must_use]
    pub fn reconnecting(mut self, reconnect: impl Reconnect<T> + 'static) -> Self {
        self.reconnect = Some(Box::new(reconnect));
        self
    }

    /// Says whether FEATURES_OK is the device's own word over this transport, as it is but for some vhost-user back-ends.
    #[must_use]
    pub fn showing_features_ok(mut self, shows: bool) -> Self {
        self.shows_features_ok = shows;
        self
    }

    fn lost(&self, error: &Error) -> LinkError {
        lost(error, self.reconnect.as_ref().and_then(|reconnect| reconnect.why()))
    }

    /// Another transport in the place of one that is gone.
    fn come_back(&mut self) -> Result<(), LinkError> {
        let Some(reconnect) = &mut self.reconnect else { return Err(self.lost(&Error::Broken)) };
        let transport = reconnect.reconnect().map_err(LinkError::Lost)?;
        self.device.attach(transport).map_err(|error| self.lost(&error))
    }
}

impl<H: Hal, T: Transport> Link for DriverLink<H, T> {
    fn offered(&mut self) -> Result<u64, LinkError> {
        self.device.offered().map_err(|error| self.lost(&error))
    }

    fn start(&mut self, features: u64) -> Result<Started, LinkError> {
        let mut started = Err(Error::Broken);
        if !self.device.is_lost() {
            started = self.device.start(features);
        }
        // Gone already, or found to be gone over the reset: what it was asked before is not what it is asked now.
        if started.is_err() && self.device.is_lost() {
            self.come_back()?;
            started = self.device.start(features);
        }
        match started {
            Ok(raw::Started::Accepted) => {
                self.queue_depth = self.device.queue_depth(0);
                Ok(Started::Accepted)
            }
            Ok(raw::Started::Refused) => Ok(Started::Refused),
            Err(error) => Err(self.lost(&error)),
        }
    }

    fn config(&mut self) -> Result<[u8; CONFIG_LEN_BYTES], LinkError> {
        self.device.config().map(|(bytes, _)| bytes).map_err(|error| self.lost(&error))
    }

    fn config_len_bytes(&mut self) -> usize {
        self.device.config().map_or(0, |(_, len_bytes)| len_bytes)
    }

    fn write_config(&mut self, offset: usize, byte: u8) -> Result<(), LinkError> {
        use virtio_drivers::Error as TransportError;
        match self.device.write_config(offset, byte) {
            // A vhost-user back-end can say no. Others don't, and go on as if nothing had been written.
            Ok(()) | Err(Error::Transport(TransportError::Unsupported)) => Ok(()),
            Err(Error::Transport(
                TransportError::ConfigSpaceTooSmall | TransportError::ConfigSpaceMissing,
            )) => Err(LinkError::Unsupported("the configuration space ends before that byte")),
            Err(error) => Err(self.lost(&error)),
        }
    }

    fn shows_features_ok(&self) -> bool {
        self.shows_features_ok
    }

    fn queue_size(&self) -> u16 {
        self.queue_depth
    }

    fn queue_count(&self) -> u16 {
        self.device.queue_count()
    }

    fn send(&mut self, readable: &[&[u8]], writable: &mut [&mut [u8]]) -> Result<u32, LinkError> {
        self.device.send(0, readable, writable).map_err(|error| self.lost(&error))
    }

    fn send_all(&mut self, chains: &mut [Chain]) -> Result<(), LinkError> {
        let mut sent: alloc::vec::Vec<raw::Chain> = chains
            .iter_mut()
            .map(|chain| raw::Chain {
                queue: chain.queue,
                readable: core::mem::take(&mut chain.readable),
                writable: core::mem::take(&mut chain.writable),
                used_len_bytes: None,
            })
            .collect();
        let done = self.device.send_all(&mut sent);
        for (chain, sent) in chains.iter_mut().zip(sent) {
            (chain.readable, chain.writable) = (sent.readable, sent.writable);
            chain.used_len = sent.used_len_bytes;
        }
        done.map_err(|error| self.lost(&error))
    }
}

impl<H: Hal, T: Transport> fmt::Debug for DriverLink<H, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriverLink").field("device", &self.device).finish_non_exhaustive()
    }
}

/// What the driver's error is to a link.
fn lost(error: &Error, why: Option<String>) -> LinkError {
    match (error, why) {
        (Error::TimedOut, _) => LinkError::TimedOut,
        (error, Some(why)) => LinkError::Lost(format!("{error}: {why}")),
        (error, None) => LinkError::Lost(error.to_string()),
    }
}
