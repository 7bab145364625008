//! A queue in the hands of its worker: handed over when it starts, handed back, drained, when it stops.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use crate::config::Negotiated;
use crate::disk::{Disk, QueueConfig};
use crate::inflight::Notes;
use crate::mailbox::{Mailbox, Message};
use crate::ring::{RingError, SplitRing};
use crate::worker::{KICK, MAILBOX, Place, Worker};

/// A running queue.
///
/// [`Queue::stop`] ends it; dropping it does the same.
#[derive(Debug)]
pub struct Queue {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<u16>>,
}

impl Queue {
    pub(crate) fn start(
        disk: Arc<Disk>,
        index: u16,
        negotiated: Arc<Negotiated>,
        config: QueueConfig,
    ) -> Result<Self, StartError> {
        // A count of its own for each queue: the queues' requests do not fight for one cache line.
        let memory = Arc::new(GuestMemoryMmap::clone(&config.memory));
        let ring = SplitRing::new(Arc::clone(&memory), config.ring)?;
        let notes = Notes::new(&disk, config.inflight);
        let mut lane = disk.store.open_lane(disk.engine).map_err(StartError::Lane)?;
        let mailbox = disk.mailboxes.register().map_err(StartError::Lane)?;
        let watched = mailbox.wake_fd().and_then(|wake| {
            let kick = config.kick.try_clone()?;
            lane.watch(config.kick, KICK)?;
            lane.watch(wake, MAILBOX)?;
            Ok(kick)
        });
        let started = watched.and_then(|kick| {
            let place = Place {
                shape: disk.shape(),
                disk: Arc::clone(&disk),
                index,
                negotiated,
                memory,
                mailbox: Arc::clone(&mailbox),
                kick,
                call: config.call,
                broken: config.broken,
            };
            let worker = Worker::new(place, ring, lane, notes);
            std::thread::Builder::new().name(format!("queue {index}")).spawn(move || worker.run())
        });
        match started {
            Ok(thread) => Ok(Self { mailbox, thread: Some(thread) }),
            Err(error) => {
                disk.mailboxes.unregister(&mailbox);
                Err(StartError::Lane(error))
            }
        }
    }

    /// Takes nothing more from the ring, waits until everything taken is answered, and gives the queue back.
    ///
    /// Returns the index of the first available entry that was not taken: where to go on.
    pub fn stop(mut self) -> u16 {
        self.join()
    }

    fn join(&mut self) -> u16 {
        let Some(thread) = self.thread.take() else { return 0 };
        self.mailbox.post(Message::Stop);
        thread.join().unwrap_or_else(|_| {
            log::error!("a queue's worker has panicked: a fault in this program");
            0
        })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.join();
    }
}

/// Why a queue can't start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The ring does not fit.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The worker's lane, mailbox or thread could not be had.
    #[error("the queue's worker can't be set up: {0}")]
    Lane(#[source] io::Error),
}
