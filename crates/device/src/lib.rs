//! A virtio-blk device with zones, exact to virtio 1.3, section 5.2: request in, zones consulted, store driven, status out.
//!
//! No transport: a VMM or a vhost-user server hands a virtqueue over ([`Disk::start_queue`]) and gets it back, drained
//! ([`Queue::stop`]). Between the two a worker thread serves it, with a lane of its own to the store.
//!
//! ```text
//! ring → chain → request → zones.admit → lane → zones.settle → in-header → used ring
//! ```
//!
//! | Room | What happens in it |
//! |---|---|
//! | `ring` | heads out of the available ring, used elements in, published by the batch |
//! | `chain`, `spans` | a descriptor chain walked once and checked; pieces of guest memory |
//! | `request` | the chain becomes one `Request`; lengths are checked here |
//! | `execute` | a request goes from step to step until it is answered |
//! | `worker` | the loop around these |
//! | `inflight` | notes of requests under way, for the process after this one |
//! | `rescue` | a worker whose lane has failed |
//! | `commit` | flush, finish and reset of all queues, made durable in batches |
//! | `config` | features and configuration space |
#![forbid(unsafe_code)]

mod chain;
mod commit;
mod config;
mod disk;
mod execute;
mod flight;
mod inflight;
mod mailbox;
mod queue;
mod report;
mod request;
mod rescue;
mod resume;
mod ring;
mod shape;
mod spans;
mod worker;

pub use config::{
    ConfigRefused, FeaturesRefused, MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, Negotiated, QUEUE_SIZE_MAX,
    SEG_MAX, SIZE_MAX_BYTES,
};
pub use disk::{Disk, DiskConfig, DiskError, QueueConfig};
pub use inflight::{InflightBuffer, InflightLog};
pub use queue::{Queue, StartError};
pub use ring::{RingConfig, RingError};
pub use shape::Growth;
