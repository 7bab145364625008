//! A whole vhost-user frontend with its queues running.

use std::path::Path;
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures;
use virtio_zbd_spec::{BlkConfig, DeviceStatus, Features, ZoneDescriptor};

use super::handshake::{Handshake, PROTOCOL_FEATURES_BIT};
use crate::blk::{Completion, Request};
use crate::error::{Error, Result};
use crate::queue::{Queue, QueueOptions, Token};
use crate::ram::GuestRam;

/// What a [`Client`] asks for.
#[derive(Clone)]
pub struct ClientOptions {
    /// The number of queues to run.
    pub queues: usize,
    /// How each queue is set up. EVENT_IDX is negotiated if `event_idx` is set here and it is offered.
    pub queue: QueueOptions,
    /// The features to accept where offered.
    pub features: Features,
    /// The protocol features to accept where offered; without CONFIG there is no configuration.
    pub protocol_features: VhostUserProtocolFeatures,
    /// Guest memory; made if not given.
    pub ram: Option<GuestRam>,
    /// The size of guest memory if it is made.
    pub ram_len_bytes: usize,
    /// How long each step and each [`Client::call`] waits.
    pub timeout: Duration,
}

impl Default for ClientOptions {
    /// One default queue, every feature that the split ring goes with, protocol features MQ, REPLY_ACK, CONFIG and
    /// STATUS, 64 MiB, 10 seconds.
    fn default() -> Self {
        Self {
            queues: 1,
            queue: QueueOptions::default(),
            features: Features::all()
                - Features::RING_PACKED
                - Features::IN_ORDER
                - Features::RING_RESET
                - Features::ACCESS_PLATFORM,
            protocol_features: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::STATUS,
            ram: None,
            ram_len_bytes: 64 << 20,
            timeout: Duration::from_secs(10),
        }
    }
}

/// A frontend with its queues running. Dropping it closes the connection.
pub struct Client {
    handshake: Handshake,
    ram: GuestRam,
    config: BlkConfig,
    features: Features,
    protocol_features: VhostUserProtocolFeatures,
    queues: Vec<Queue>,
}

impl Client {
    /// Connects to the backend at `path` and starts all queues.
    pub fn connect(path: impl AsRef<Path>, options: ClientOptions) -> Result<Self> {
        let handshake = Handshake::connect(path, options.timeout)?;
        Self::start(handshake, options)
    }

    /// Starts all queues over a connection on which nothing was said yet, in the order of a VMM with a Linux guest.
    ///
    /// A device that does not accept the features is [`Error::Refused`] (SET_FEATURES, REPLY_ACK) or, over STATUS,
    /// [`Error::FeaturesNotOk`].
    pub fn start(mut handshake: Handshake, options: ClientOptions) -> Result<Self> {
        handshake.timeout = options.timeout;
        handshake.set_owner()?;
        let offered = handshake.features()?;
        let protocol_features = if offered.contains(PROTOCOL_FEATURES_BIT) {
            handshake.negotiate_protocol(options.protocol_features)?
        } else {
            VhostUserProtocolFeatures::empty()
        };
        if protocol_features.contains(VhostUserProtocolFeatures::MQ) {
            handshake.queue_num()?;
        }
        let mut wanted = options.features | PROTOCOL_FEATURES_BIT;
        wanted.set(Features::EVENT_IDX, options.queue.event_idx);
        let accepted = offered & wanted;
        let has_status = protocol_features.contains(VhostUserProtocolFeatures::STATUS);
        let mut status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        if has_status {
            set_status(&mut handshake, status)?;
        }
        handshake.set_features(accepted)?;
        if has_status {
            status |= DeviceStatus::FEATURES_OK;
            set_status(&mut handshake, status)?;
        }
        let config = if protocol_features.contains(VhostUserProtocolFeatures::CONFIG) {
            handshake.config()?
        } else {
            BlkConfig::default()
        };

        let ram = options.ram.unwrap_or_else(|| GuestRam::new(options.ram_len_bytes));
        handshake.set_mem_table(&ram)?;
        let queue_options = QueueOptions {
            event_idx: accepted.contains(Features::EVENT_IDX),
            timeout: options.timeout,
            ..options.queue
        };
        let mut queues = Vec::new();
        for index in 0..options.queues {
            let queue = Queue::new(&ram, &queue_options)?;
            handshake.set_up_queue(index, &queue)?;
            queues.push(queue);
        }
        if accepted.contains(PROTOCOL_FEATURES_BIT) {
            for index in 0..options.queues {
                handshake.enable_queue(index, true)?;
            }
        }
        if has_status {
            set_status(&mut handshake, status | DeviceStatus::DRIVER_OK)?;
        }
        let features = accepted - PROTOCOL_FEATURES_BIT;
        Ok(Self { handshake, ram, config, features, protocol_features, queues })
    }

    /// Submits `request` to queue `queue` and waits for it.
    #[track_caller]
    pub fn call(&mut self, queue: usize, request: Request) -> Result<Completion> {
        self.queues[queue].call(request)
    }

    /// Gives `request` to queue `queue`.
    #[track_caller]
    pub fn submit(&mut self, queue: usize, request: Request) -> Result<Token> {
        self.queues[queue].submit(request)
    }

    /// Gives all `requests` to queue `queue` at once, with at most one kick.
    #[track_caller]
    pub fn submit_batch(
        &mut self,
        queue: usize,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<Vec<Token>> {
        self.queues[queue].submit_batch(requests)
    }

    /// The next completed request of queue `queue`; waits for it at most `timeout`.
    #[track_caller]
    pub fn complete(&mut self, queue: usize, timeout: Duration) -> Result<(Token, Completion)> {
        self.queues[queue].complete(timeout)
    }

    /// Waits for all requests in flight on queue `queue`.
    #[track_caller]
    pub fn complete_all(&mut self, queue: usize) -> Result<Vec<(Token, Completion)>> {
        self.queues[queue].complete_all()
    }

    /// All zones, through queue 0; see [`Queue::zone_report_all`].
    #[track_caller]
    pub fn zone_report_all(&mut self) -> Result<Vec<ZoneDescriptor>> {
        self.queues[0].zone_report_all(&self.config)
    }

    /// The configuration space as it was at the start or when last read; zeros without CONFIG.
    #[must_use]
    pub fn config(&self) -> &BlkConfig {
        &self.config
    }

    /// Reads the configuration space again.
    pub fn refresh_config(&mut self) -> Result<&BlkConfig> {
        self.config = self.handshake.config()?;
        Ok(&self.config)
    }

    /// The features that were accepted.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// The protocol features that were accepted.
    #[must_use]
    pub fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.protocol_features
    }

    /// Guest memory.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Queue `index`.
    #[track_caller]
    pub fn queue(&mut self, index: usize) -> &mut Queue {
        &mut self.queues[index]
    }

    /// Takes the queues out, to drive each in a thread of its own. They run as long as the client lives.
    #[must_use]
    pub fn take_queues(&mut self) -> Vec<Queue> {
        std::mem::take(&mut self.queues)
    }

    /// The connection, for more messages.
    pub fn handshake(&mut self) -> &mut Handshake {
        &mut self.handshake
    }

    /// Stops all queues that were not taken out (GET_VRING_BASE); returns where each one stopped.
    pub fn stop(&mut self) -> Result<Vec<u16>> {
        (0..self.queues.len()).map(|index| self.handshake.stop_queue(index)).collect()
    }

    /// Closes the connection as it is, queues running or not.
    pub fn disconnect(self) {}
}

/// Sets `status` and looks whether the device took it.
fn set_status(handshake: &mut Handshake, status: DeviceStatus) -> Result<()> {
    handshake.set_status(status, false)?;
    let found = handshake.status()?;
    if found == status { Ok(()) } else { Err(Error::FeaturesNotOk { status: found.bits() }) }
}
