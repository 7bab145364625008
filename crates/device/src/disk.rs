//! A disk: what all of its queues share.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::{Mutex, RawMutex, RwLock};
use thiserror::Error;
use virtio_zbd_spec::ID_LEN_BYTES;
use virtio_zbd_store::{EngineChoice, Store, StoreError};
use virtio_zbd_zones::{InitialStateError, Observer, SECTOR_LEN_BYTES, ZoneState, ZoneTable};
use vm_memory::GuestMemoryMmap;

use crate::commit::Committer;
use crate::config::{self, ConfigRefused, FeaturesRefused, Negotiated, Offer, SEG_MAX, SIZE_MAX_BYTES};
use crate::inflight::{Inflight, InflightLog};
use crate::mailbox::Mailboxes;
use crate::queue::{Queue, StartError};
use crate::ring::RingConfig;
use crate::shape::Shape;

/// How a disk is shown to its driver.
#[derive(Clone, Copy, Debug)]
pub struct DiskConfig {
    /// How many queues a driver may use, at least 1.
    pub queues: u16,
    /// Block size of a plain disk in bytes; a zoned disk has its write granularity.
    pub block_len_bytes: u32,
    /// How the queues' workers do their I/O.
    pub engine: EngineChoice,
}

/// A disk over a store: zoned where the store has zones, plain otherwise.
///
/// It is shared by all of its queues. [`Disk::start_queue`] gives each a worker thread; with the queues stopped,
/// [`Disk::close`] flushes and closes the store.
pub struct Disk {
    pub(crate) store: Arc<dyn Store>,
    /// Its zones and what is offered of it, at its present size.
    pub(crate) shape: RwLock<Arc<Shape>>,
    /// As in the shape: whether there is a newer one.
    pub(crate) epoch: AtomicU64,
    pub(crate) growing: Mutex<()>,
    pub(crate) serial: [u8; ID_LEN_BYTES],
    pub(crate) mailboxes: Arc<Mailboxes>,
    pub(crate) committer: Committer,
    pub(crate) engine: EngineChoice,
    pub(crate) inflight: Inflight,
}

/// The zones of a disk.
pub(crate) type Zones = ZoneTable<RawMutex, Publish>;

/// Tells the store of each zone's new state.
pub(crate) struct Publish(Arc<dyn Store>);

impl Observer for Publish {
    fn zone_changed(&self, zone: u32, state: ZoneState) {
        self.0.publish(zone, state);
    }
}

/// A virtqueue as a front-end hands it over.
pub struct QueueConfig {
    /// The guest's memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// Where the queue lies in it.
    pub ring: RingConfig,
    /// Becomes readable when the driver has put something into the ring.
    pub kick: OwnedFd,
    /// Tells the driver that something was used.
    pub call: Box<dyn Fn() + Send>,
    /// Tells the front-end that the ring can't be followed any more and the queue is given up.
    pub broken: Box<dyn Fn() + Send>,
    /// Where to keep what is under way, so that it outlives this process, and what an earlier one has left there
    /// ([`Disk::use_inflight`]). `None`: requests under way when this process dies are lost.
    pub inflight: Option<Box<dyn InflightLog>>,
}

impl Disk {
    /// A disk over `store`.
    ///
    /// # Errors
    /// The store's zone states can't be, a value does not fit the protocol, or no thread could be started.
    pub fn new(store: Arc<dyn Store>, config: DiskConfig) -> Result<Arc<Self>, DiskError> {
        let geometry = store.geometry();
        let zones = match geometry.clone() {
            Some(geometry) => {
                let most_bytes = u64::from(SEG_MAX) * u64::from(SIZE_MAX_BYTES);
                let append_bytes = u64::from(geometry.max_append_sectors()) * u64::from(SECTOR_LEN_BYTES);
                if append_bytes > most_bytes {
                    return Err(DiskError::AppendLimit { append_bytes, most_bytes });
                }
                let zones = ZoneTable::new(geometry, &store.initial_states(), Publish(Arc::clone(&store)))?;
                Some(if store.keeps_conditions() { zones.kept_by_device() } else { zones })
            }
            None => None,
        };
        let block_len_bytes = geometry
            .as_ref()
            .map_or(config.block_len_bytes, |geometry| geometry.granularity_sectors() * SECTOR_LEN_BYTES);
        if !block_len_bytes.is_power_of_two() || !(512..=65536).contains(&block_len_bytes) {
            return Err(DiskError::BlockSize { block_len_bytes });
        }
        if config.queues == 0 {
            return Err(DiskError::NoQueues);
        }
        let offer = Offer {
            capacity_sectors: store.capacity_bytes() / u64::from(SECTOR_LEN_BYTES),
            block_len_bytes,
            geometry,
            queues: config.queues,
            read_only: store.read_only(),
        };
        let mailboxes = Arc::new(Mailboxes::default());
        let committer =
            Committer::start(Arc::clone(&store), Arc::clone(&mailboxes)).map_err(DiskError::Thread)?;
        let serial = store.identity().serial;
        Ok(Arc::new(Self {
            store,
            shape: RwLock::new(Arc::new(Shape { epoch: 0, zones, offer })),
            epoch: AtomicU64::new(0),
            growing: Mutex::new(()),
            serial,
            mailboxes,
            committer,
            engine: config.engine,
            inflight: Inflight::new(),
        }))
    }

    /// The virtio feature bits that the disk offers.
    pub fn features(&self) -> u64 {
        self.shape().offer.features().bits()
    }

    /// How many queues a driver may use.
    pub fn queue_count(&self) -> u16 {
        self.shape().offer.queues
    }

    /// The state of a connection whose driver has not spoken yet.
    pub fn not_negotiated(&self) -> Arc<Negotiated> {
        Arc::new(Negotiated::nothing())
    }

    /// Takes the driver's choice of features.
    ///
    /// # Errors
    /// The disk can't be used so (V4): FEATURES_OK must stay clear.
    pub fn negotiate(&self, accepted: u64) -> Result<Arc<Negotiated>, FeaturesRefused> {
        Negotiated::new(&self.shape().offer, accepted).map(Arc::new)
    }

    /// Copies the configuration space from `offset` on to `out`; what lies past its end is zero.
    pub fn read_config(&self, negotiated: &Negotiated, offset: u32, out: &mut [u8]) {
        config::copy_config(&self.shape().offer.config_space(negotiated), offset, out);
    }

    /// Takes what a driver writes to the configuration space from `offset` on: see [`Negotiated::write_config`].
    ///
    /// A front-end may send the whole space where its driver wrote one byte, as QEMU's vhost-user-base does. Of more than one
    /// byte, those that are as they were are no write.
    ///
    /// # Errors
    /// More than one byte changes, or one that is not the driver's.
    pub fn write_config(
        &self,
        negotiated: &Negotiated,
        offset: u32,
        data: &[u8],
    ) -> Result<(), ConfigRefused> {
        if data.len() < 2 {
            return negotiated.write_config(offset, data);
        }
        let mut now = vec![0; data.len()];
        self.read_config(negotiated, offset, &mut now);
        // No number is left for what lies past the last offset: that is nobody's byte either.
        let offsets = (offset..=u32::MAX).map(Some).chain(std::iter::repeat(None));
        let mut changed = offsets.zip(data.iter().zip(&now)).filter(|(_, (new, now))| new != now);
        match (changed.next(), changed.next()) {
            (None, _) => Ok(()),
            (Some((Some(offset), (new, _))), None) => negotiated.write_config(offset, &[*new]),
            _ => Err(ConfigRefused { offset, len: data.len() }),
        }
    }

    /// Hands a queue over to a new worker.
    ///
    /// # Errors
    /// The ring does not lie in guest memory, or the worker can't be set up.
    pub fn start_queue(
        self: &Arc<Self>,
        index: u16,
        negotiated: Arc<Negotiated>,
        config: QueueConfig,
    ) -> Result<Queue, StartError> {
        Queue::start(Arc::clone(self), index, negotiated, config)
    }

    /// How many zones are open and how many are active; zeros for a plain disk.
    pub fn open_and_active(&self) -> (u32, u32) {
        self.shape().zones.as_ref().map_or((0, 0), ZoneTable::open_and_active)
    }

    /// Makes everything durable and closes the store. The queues have been stopped before; a second call does nothing.
    ///
    /// # Errors
    /// What was not flushed by the driver may not be durable.
    pub fn close(&self) -> Result<(), StoreError> {
        self.committer.stop();
        self.store.close()
    }
}

/// Why there is no disk.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub enum DiskError {
    #[error(
        "an append may have {append_bytes} bytes, but a request at most {most_bytes} (V9): lower the append limit"
    )]
    AppendLimit { append_bytes: u64, most_bytes: u64 },
    #[error("the block size is {block_len_bytes} bytes; it must be a power of two from 512 to 65536")]
    BlockSize { block_len_bytes: u32 },
    #[error("the disk needs at least one queue")]
    NoQueues,
    #[error("the zones' states on the store can't be: {0}")]
    States(#[from] InitialStateError),
    #[error("no thread for commits: {0}")]
    Thread(#[source] io::Error),
}
