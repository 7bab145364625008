//! The committer: one thread that makes things durable, for all queues, in batches.
//!
//! Flushes, finishes and resets of all queues that arrive while one commit runs go into the next one together: a group
//! commit. It waits in blocking calls so that the order of what reaches the medium stands in one place, the store's `commit`.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use virtio_zbd_store::{Commit, Store, StoreError};
use virtio_zbd_zones::{ResetEnd, Ticket};

use crate::mailbox::{Mailboxes, Message};

/// What is to be made durable.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CommitKind {
    /// Everything answered before.
    Flush,
    /// A finished zone.
    Finish(u32),
    /// Zones that were reset.
    Reset(Vec<u32>),
    /// Zones that were taken out of use.
    Retire(Vec<u32>),
    /// What a store is to do that keeps conditions itself.
    Change(Change),
}

/// Zones that a store is to close, open, finish, or to say what they are, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) closed: Vec<u32>,
    pub(crate) opened: Vec<u32>,
    pub(crate) finished: Vec<u32>,
    pub(crate) reread: Vec<u32>,
}

impl CommitKind {
    /// Whether it is told how `zone` has ended otherwise.
    fn concerns(&self, zone: u32) -> bool {
        match self {
            Self::Reset(zones) => zones.contains(&zone),
            Self::Change(Change { closed, opened, finished, reread }) => {
                [closed, opened, finished, reread].iter().any(|zones| zones.contains(&zone))
            }
            Self::Flush | Self::Finish(_) | Self::Retire(_) => false,
        }
    }
}

/// How a commit ended for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CommitEnd {
    /// It is durable.
    Durable,
    /// It is not, and nothing may be claimed.
    Failed,
    /// It is durable, but for these zones, which end otherwise: resets whose old data could not be taken away, and what the store alone can tell.
    Zones(Vec<(u32, ResetEnd)>),
}

/// The committer's thread and its queue.
#[derive(Debug)]
pub(crate) struct Committer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct State {
    requests: Vec<(CommitKind, Ticket)>,
    stop: bool,
}

impl Committer {
    pub(crate) fn start(store: Arc<dyn Store>, mailboxes: Arc<Mailboxes>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("commit".into())
            .spawn(move || while commit_next(&theirs, &*store, &mailboxes) {})?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Asks for a commit. The answer comes as [`Message::Committed`] to the ticket's worker.
    pub(crate) fn submit(&self, kind: CommitKind, ticket: Ticket) {
        self.shared.state.lock().requests.push((kind, ticket));
        self.shared.ready.notify_one();
    }

    /// Ends the thread when everything submitted is done.
    pub(crate) fn stop(&self) {
        self.shared.state.lock().stop = true;
        self.shared.ready.notify_one();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            log::error!("the commit thread has panicked: a fault in this program");
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits for requests and commits all of them at once. Returns whether to go on.
fn commit_next(shared: &Shared, store: &dyn Store, mailboxes: &Mailboxes) -> bool {
    let requests = {
        let mut state = shared.state.lock();
        while state.requests.is_empty() && !state.stop {
            shared.ready.wait(&mut state);
        }
        std::mem::take(&mut state.requests)
    };
    if requests.is_empty() {
        return false;
    }
    commit_batch(requests, store, mailboxes);
    true
}

/// Commits all of them at once; if that fails, one after the other, so that what is wrong with one is nobody else's failure.
fn commit_batch(requests: Vec<(CommitKind, Ticket)>, store: &dyn Store, mailboxes: &Mailboxes) {
    let (mut flush, mut finished, mut reset) = (false, Vec::new(), Vec::new());
    let (mut closed, mut opened, mut reread) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, _) in &requests {
        match kind {
            CommitKind::Flush => flush = true,
            CommitKind::Finish(zone) => finished.push(*zone),
            CommitKind::Reset(zones) => reset.extend_from_slice(zones),
            CommitKind::Retire(zones) => finished.extend_from_slice(zones),
            CommitKind::Change(change) => {
                closed.extend_from_slice(&change.closed);
                opened.extend_from_slice(&change.opened);
                finished.extend_from_slice(&change.finished);
                reread.extend_from_slice(&change.reread);
            }
        }
    }
    let work = Commit {
        flush,
        finished: &finished,
        reset: &reset,
        closed: &closed,
        opened: &opened,
        reread: &reread,
    };
    let outcome = store.commit(&work);
    if let Err(error) = &outcome.durable {
        log::error!("not durable ({work:?}): {error}");
        let (flushes, others): (Vec<_>, Vec<_>) =
            requests.into_iter().partition(|(kind, _)| *kind == CommitKind::Flush);
        let parts = others.into_iter().map(|other| vec![other]).chain([flushes]);
        let parts: Vec<_> = parts.filter(|part| !part.is_empty()).collect();
        match <[Vec<_>; 1]>::try_from(parts) {
            Ok([part]) => {
                for (_, ticket) in part {
                    mailboxes.post(ticket, |slot| Message::Committed(slot, CommitEnd::Failed));
                }
            }
            Err(parts) => parts.into_iter().for_each(|part| commit_batch(part, store, mailboxes)),
        }
        return;
    }
    let told = outcome.told.iter().map(|&(zone, state)| (zone, ResetEnd::Told(state)));
    let otherwise: Vec<(u32, ResetEnd)> = outcome.hole_failures.iter().map(end_of).chain(told).collect();
    for (kind, ticket) in requests {
        let mut otherwise = otherwise.clone();
        otherwise.retain(|(zone, _)| kind.concerns(*zone));
        let end = if otherwise.is_empty() { CommitEnd::Durable } else { CommitEnd::Zones(otherwise) };
        mailboxes.post(ticket, |slot| Message::Committed(slot, end));
    }
}

/// What becomes of a reset zone whose old data is still there.
fn end_of((zone, error): &(u32, StoreError)) -> (u32, ResetEnd) {
    if error.medium_is_bad() {
        log::error!("zone {zone}: its old data can't be taken away, the zone goes offline: {error}");
        return (*zone, ResetEnd::Lost);
    }
    log::error!(
        "zone {zone}: its old data could not be taken away; it must be reset again to be written: {error}"
    );
    (*zone, ResetEnd::Unswept)
}
