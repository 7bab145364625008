//! Messages to a queue's worker from outside its lane: other workers, the committer, the one who stops it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustix::event::{EventfdFlags, eventfd};
use virtio_zbd_zones::Ticket;

use crate::commit::CommitEnd;

/// What a worker is told. A slot is the worker's own number of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The zone that the request waited for is free: make the request again.
    Retry(u32),
    /// The request's commit has ended.
    Committed(u32, CommitEnd),
    /// Take nothing more from the ring, finish what is under way, and end.
    Stop,
}

/// One worker's messages and the fd that wakes it.
#[derive(Debug)]
pub(crate) struct Mailbox {
    id: u32,
    messages: Mutex<Vec<Message>>,
    wake: OwnedFd,
}

impl Mailbox {
    /// A second handle on the fd that becomes readable when there is a message.
    pub(crate) fn wake_fd(&self) -> io::Result<OwnedFd> {
        self.wake.try_clone()
    }

    /// The ticket that names the request in `slot`.
    pub(crate) fn ticket(&self, slot: u32) -> Ticket {
        Ticket(u64::from(self.id) << 32 | u64::from(slot))
    }

    /// The slot of a ticket that is this worker's.
    pub(crate) fn own_slot(&self, ticket: Ticket) -> Option<u32> {
        let (id, slot) = split(ticket);
        (id == self.id).then_some(slot)
    }

    pub(crate) fn post(&self, message: Message) {
        self.messages.lock().push(message);
        // The counter can't overflow: the worker empties it, and 2^64 posts do not come before that.
        let written = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        debug_assert!(written.is_ok(), "an eventfd takes a wake-up");
    }

    pub(crate) fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.messages.lock())
    }
}

/// All workers' mailboxes, to find one from a ticket. Looked up only when a request waited or a commit has ended.
#[derive(Debug, Default)]
pub(crate) struct Mailboxes {
    slots: RwLock<Vec<Option<Arc<Mailbox>>>>,
}

impl Mailboxes {
    /// A new mailbox.
    pub(crate) fn register(&self) -> io::Result<Arc<Mailbox>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut slots = self.slots.write();
        let free = slots.iter().position(Option::is_none).unwrap_or_else(|| {
            slots.push(None);
            slots.len() - 1
        });
        let id = u32::try_from(free).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mailbox = Arc::new(Mailbox { id, messages: Mutex::default(), wake });
        slots[free] = Some(Arc::clone(&mailbox));
        Ok(mailbox)
    }

    /// Forgets a mailbox. No ticket of its worker is left then: a worker ends only when all of its requests have.
    pub(crate) fn unregister(&self, mailbox: &Mailbox) {
        if let Some(slot) =
            usize::try_from(mailbox.id).ok().and_then(|id| self.slots.write().get_mut(id)?.take())
        {
            debug_assert_eq!(slot.id, mailbox.id);
        }
    }

    /// Tells the worker that `ticket` belongs to.
    pub(crate) fn post(&self, ticket: Ticket, message: impl FnOnce(u32) -> Message) {
        let (id, slot) = split(ticket);
        let mailbox = usize::try_from(id).ok().and_then(|id| self.slots.read().get(id)?.clone());
        match mailbox {
            Some(mailbox) => mailbox.post(message(slot)),
            None => log::error!("a message for queue worker {id}, which has ended: a fault in this program"),
        }
    }
}

fn split(ticket: Ticket) -> (u32, u32) {
    #[allow(clippy::cast_possible_truncation, reason = "the two halves of the ticket")]
    ((ticket.0 >> 32) as u32, ticket.0 as u32)
}
