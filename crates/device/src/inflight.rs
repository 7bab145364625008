//! What outlives this process of requests under way, so that the next one neither loses a request nor makes one twice.
//!
//! The buffer belongs to the transport ([`InflightBuffer`] is all of it, [`InflightLog`] one queue's part). Of each chain that
//! was taken and not answered it has a note of two words: how far the request had come when the process died. `docs/reliability.md`
//! says which note is written when, and why a kill between any two stores leaves the right one.
//!
//! The buffer was in other hands: a note can say anything. What it says is looked at once, when the buffer comes
//! ([`Disk::use_inflight`]), before anything is done for any queue; a note that is believed there can make the disk do no more than a
//! driver could ask for.

use std::hash::{BuildHasher, Hasher, RandomState};

use parking_lot::Mutex;
use virtio_zbd_spec::Status;

use crate::config::Negotiated;
use crate::disk::Disk;
use crate::flight::Answer;
use crate::mailbox::Message;

/// The buffer in which a front-end keeps what is under way in all queues.
///
/// A transport that has room for nothing of the device's own (see [`mark`](Self::mark)) gives zeros for it.
pub trait InflightBuffer {
    /// For how many queues there is room.
    fn queue_count(&self) -> u16;

    /// For how many descriptors of each queue.
    fn queue_size(&self) -> u16;

    /// One of eight words of the device's own; 0 in a new buffer.
    fn mark(&self, index: usize) -> u64;

    /// Stores one of them. Stores of one thread must be seen in their order by whoever looks after this process was killed.
    fn set_mark(&self, index: usize, value: u64);

    /// Whether the chain at descriptor `head` was taken and not answered.
    fn is_inflight(&self, queue: u16, head: u16) -> bool;

    /// One of two words of the device's own for the chain at descriptor `head`.
    fn note(&self, queue: u16, head: u16, word: usize) -> u64;

    /// Stores one of them, in order as [`set_mark`](Self::set_mark).
    fn set_note(&self, queue: u16, head: u16, word: usize, value: u64);
}

/// One queue's part of an [`InflightBuffer`], in the hands of the queue's worker.
///
/// The worker calls [`taken`](Self::taken), [`used`](Self::used) and [`published`](Self::published) as
/// the vhost-user specification's "Inflight I/O tracking" has it for split rings.
pub trait InflightLog: Send {
    /// The heads of the chains that were taken in an earlier life of the queue and not answered, in the order in which they were
    /// taken. The ring's `next_avail` is behind them.
    fn resubmit(&self) -> Vec<u16>;

    /// The chain at descriptor `head` was taken from the available ring. Its note is there already.
    fn taken(&mut self, head: u16);

    /// The chain's used element is in its place.
    fn used(&mut self, head: u16);

    /// The used ring's index is `used_idx` now: it counts all that was [`used`](Self::used).
    fn published(&mut self, used_idx: u16);

    /// As [`InflightBuffer::mark`].
    fn mark(&self, index: usize) -> u64;

    /// As [`InflightBuffer::note`].
    fn note(&self, head: u16, word: usize) -> u64;

    /// As [`InflightBuffer::set_note`].
    fn set_note(&self, head: u16, word: usize, value: u64);
}

/// The marks: whose notes these are.
mod mark {
    /// The notes' format; anything else, and there are none. Goes first and comes last.
    pub(super) const FORMAT: usize = 0;
    /// The disk's serial, in three words.
    pub(super) const SERIAL: [usize; 3] = [1, 2, 3];
    /// The store's history ([`Store::history`](virtio_zbd_store::Store::history)).
    pub(super) const HISTORY: usize = 4;
    /// The run of the disk that has looked at all notes.
    pub(super) const RUN: usize = 5;
    /// 1: the driver has turned the write-back cache off.
    pub(super) const WRITE_THROUGH: usize = 6;
    /// The disk's length in sectors, as its driver was told last; 0: nothing is known of that.
    pub(super) const CAPACITY: usize = 7;
}

/// The format of the notes below.
const FORMAT: u64 = u64::from_le_bytes(*b"VZBDINF\x01");

/// How far a request had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// It was taken. It has left nothing that counts.
    Taken,
    /// A sequential zone gave it this place. Its data may be there, in part or not at all.
    Placed { sector: u64, sectors: u32 },
    /// Its data is there.
    Written { sector: u64, sectors: u32 },
    /// It has ended: this is what the driver is to be told.
    Ended(Answer),
}

/// A note's first word: phase, status, flags, and in the upper half the number of sectors.
mod word {
    pub(super) const TAKEN: u64 = 0;
    pub(super) const PLACED: u64 = 1;
    pub(super) const WRITTEN: u64 = 2;
    pub(super) const ENDED: u64 = 3;
    pub(super) const PHASE_MASK: u64 = 0xff;
    pub(super) const STATUS_SHIFT: u32 = 8;
    pub(super) const APPENDED: u64 = 1 << 16;
    pub(super) const FILLED: u64 = 1 << 17;
    pub(super) const SECTORS_SHIFT: u32 = 32;
}

impl Note {
    /// What two words say. Words that say nothing are a request that was taken.
    fn of(first: u64, sector: u64) -> Self {
        let sectors = u32::try_from(first >> word::SECTORS_SHIFT).unwrap_or(0);
        match first & word::PHASE_MASK {
            word::PLACED => Self::Placed { sector, sectors },
            word::WRITTEN => Self::Written { sector, sectors },
            word::ENDED => {
                let code = u8::try_from(first >> word::STATUS_SHIFT & 0xff).unwrap_or(u8::MAX);
                let Ok(status) = Status::try_from(code) else { return Self::Taken };
                let append_sector = (first & word::APPENDED != 0).then_some(sector);
                Self::Ended(Answer { status, append_sector, data_filled: first & word::FILLED != 0 })
            }
            _ => Self::Taken,
        }
    }

    /// The first word and, where it means something, the second.
    fn words(self) -> (u64, Option<u64>) {
        let place = |phase, sectors: u32| phase | u64::from(sectors) << word::SECTORS_SHIFT;
        match self {
            Self::Taken => (word::TAKEN, None),
            Self::Placed { sector, sectors } => (place(word::PLACED, sectors), Some(sector)),
            Self::Written { sector, sectors } => (place(word::WRITTEN, sectors), Some(sector)),
            Self::Ended(Answer { status, append_sector, data_filled }) => {
                let appended = if append_sector.is_some() { word::APPENDED } else { 0 };
                let filled = if data_filled { word::FILLED } else { 0 };
                let status = u64::from(status as u8) << word::STATUS_SHIFT;
                (word::ENDED | status | appended | filled, append_sector)
            }
        }
    }
}

/// A worker's notes of its requests; nothing where the transport keeps none.
pub(crate) struct Notes {
    log: Option<Box<dyn InflightLog>>,
    /// What an earlier life has noted was looked at, and counts.
    believed: bool,
}

impl Notes {
    pub(crate) fn new(disk: &Disk, log: Option<Box<dyn InflightLog>>) -> Self {
        let believed = log.as_ref().is_some_and(|log| log.mark(mark::RUN) == disk.inflight.run);
        Self { log, believed }
    }

    /// The heads to take again, each with what was noted of it.
    pub(crate) fn resubmit(&self) -> Option<Vec<(u16, Note)>> {
        let log = self.log.as_ref()?;
        let note = |head| match self.believed {
            true => Note::of(log.note(head, 0), log.note(head, 1)),
            false => Note::Taken,
        };
        Some(log.resubmit().into_iter().map(|head| (head, note(head))).collect())
    }

    /// A chain was taken: a request like any other, of which nothing is known yet.
    pub(crate) fn taken(&mut self, head: u16) {
        if let Some(log) = &mut self.log {
            set(log.as_ref(), head, Note::Taken);
            log.taken(head);
        }
    }

    /// What is so from now on, in one step: the second word means nothing before the first is there.
    pub(crate) fn set(&self, head: u16, note: Note) {
        if let Some(log) = &self.log {
            set(log.as_ref(), head, note);
        }
    }

    pub(crate) fn used(&mut self, head: u16) {
        if let Some(log) = &mut self.log {
            log.used(head);
        }
    }

    pub(crate) fn published(&mut self, used_idx: u16) {
        if let Some(log) = &mut self.log {
            log.published(used_idx);
        }
    }
}

fn set(log: &dyn InflightLog, head: u16, note: Note) {
    let (first, second) = note.words();
    if let Some(second) = second {
        log.set_note(head, 1, second);
    }
    log.set_note(head, 0, first);
}

/// What a disk knows of buffers.
#[derive(Debug)]
pub(crate) struct Inflight {
    /// This run of this disk: a number that no other has.
    run: u64,
    /// Writes that wait for their queue to take them up again.
    waiting: Mutex<Vec<Waiting>>,
}

/// A write that was restored in its zone and not adopted yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    queue: u16,
    sector: u64,
    sectors: u32,
}

impl Inflight {
    pub(crate) fn new() -> Self {
        // The one source of random numbers in the standard library; 0 is what a new buffer has.
        let run = RandomState::new().build_hasher().finish().max(1);
        Self { run, waiting: Mutex::default() }
    }
}

impl Disk {
    /// Takes up a buffer that a front-end shows: a new one, or one that it had when an earlier process served this disk, or this one.
    /// To be called before the queues are started that have their part of it ([`QueueConfig`](crate::QueueConfig)'s
    /// `inflight`); a queue that finds that its buffer was not taken up makes all requests that it finds there
    /// as if they were new.
    ///
    /// The notes of an earlier process are judged here, all before the first is acted upon, because what one request is made to do can
    /// change what another one's note means. They count if they are of this disk and the store has not gone back in time since.
    /// A write that has to be made again in its old place keeps its zone from being reset or finished until its queue
    /// is started, the buffer is replaced, or [`forget_inflight`](Self::forget_inflight) is called.
    ///
    /// Returns whether the driver had turned the write-back cache off when an earlier process served it. Its front-end does not say it
    /// again, and the driver believes that what is answered is durable (D1): [`Negotiated::turn_cache_off`].
    pub fn use_inflight(&self, buffer: &dyn InflightBuffer) -> bool {
        let before = std::mem::take(&mut *self.inflight.waiting.lock());
        let is_ours = self.is_ours(buffer);
        let shape = self.shape();
        if !is_ours {
            buffer.set_mark(mark::FORMAT, 0);
            buffer.set_mark(mark::WRITE_THROUGH, 0);
            buffer.set_mark(mark::CAPACITY, 0);
        }
        let is_this_run = is_ours && buffer.mark(mark::RUN) == self.inflight.run;
        let cache_was_off = is_ours && !is_this_run && buffer.mark(mark::WRITE_THROUGH) == 1;
        let mut waiting = Vec::new();
        let heads = (0..buffer.queue_count()).flat_map(|q| (0..buffer.queue_size()).map(move |h| (q, h)));
        for (queue, head) in heads {
            if !is_ours {
                buffer.set_note(queue, head, 0, word::TAKEN);
                continue;
            }
            if !buffer.is_inflight(queue, head) {
                continue;
            }
            let mut note = Note::of(buffer.note(queue, head, 0), buffer.note(queue, head, 1));
            // Where the store has the write pointers it has moved this one past the place with the data, and never without.
            if let (Note::Placed { sector, sectors }, Some(zones), true) =
                (note, &shape.zones, self.store.keeps_conditions())
                && zones.was_written(sector, sectors)
            {
                note = Note::Written { sector, sectors };
                buffer.set_note(queue, head, 0, note.words().0);
            }
            let stands = match (note, &shape.zones) {
                (Note::Placed { .. }, Some(_)) if self.store.keeps_conditions() => false,
                (Note::Placed { sector, sectors }, Some(zones)) => {
                    let this = Waiting { queue, sector, sectors };
                    // Taken in already, when this run was shown the buffer before.
                    let is_there =
                        zones.is_left(sector, sectors) || !is_this_run && zones.restore(sector, sectors);
                    waiting.extend(is_there.then_some(this));
                    is_there
                }
                // This process has published what it has noted.
                (Note::Written { sector, sectors }, Some(zones)) => {
                    is_this_run || zones.is_kept(sector, sectors)
                }
                (Note::Placed { .. } | Note::Written { .. }, None) => false,
                (Note::Taken | Note::Ended(_), _) => true,
            };
            if !stands {
                buffer.set_note(queue, head, 0, word::TAKEN);
            }
        }
        for (index, word) in mark::SERIAL.into_iter().zip(self.serial_words()) {
            buffer.set_mark(index, word);
        }
        buffer.set_mark(mark::HISTORY, self.store.history());
        buffer.set_mark(mark::RUN, self.inflight.run);
        buffer.set_mark(mark::FORMAT, FORMAT);
        if !waiting.is_empty() {
            log::info!(
                "{} writes that later ones have overtaken will be made again in their places",
                waiting.len()
            );
        }
        let gone = before.into_iter().filter(|write| !waiting.contains(write)).collect();
        *self.inflight.waiting.lock() = waiting;
        self.give_up(gone);
        cache_was_off
    }

    /// Puts down in a buffer that was taken up whether the driver has turned the write-back cache off. To be called when its features
    /// were accepted, when it has written to the configuration space, and when it is reset.
    pub fn keep_cache_mode(&self, negotiated: &Negotiated, buffer: &dyn InflightBuffer) {
        buffer.set_mark(mark::WRITE_THROUGH, negotiated.has_turned_cache_off().into());
    }

    /// Whether a driver knows of the disk's size, by a buffer that was taken up: not if the disk has grown since the driver was told, and the process
    /// that was to tell it died. With a buffer in which nothing is noted of it a driver has read the size itself.
    pub fn capacity_is_told(&self, buffer: &dyn InflightBuffer) -> bool {
        let told = buffer.mark(mark::CAPACITY);
        told == 0 || told == self.capacity_sectors()
    }

    /// Puts down in a buffer that was taken up that the driver knows of the disk's present size.
    pub fn keep_capacity(&self, buffer: &dyn InflightBuffer) {
        buffer.set_mark(mark::CAPACITY, self.capacity_sectors());
    }

    /// The front-end's buffer counts for nothing any more: its rings begin anew. Writes that waited to be made again in their old
    /// places are not: what is there stays.
    pub fn forget_inflight(&self) {
        let waiting = std::mem::take(&mut *self.inflight.waiting.lock());
        self.give_up(waiting);
    }

    /// A queue has taken up again what it had under way; what else was noted of it, nobody will.
    pub(crate) fn inflight_taken_up(&self, queue: u16) {
        let mut waiting = self.inflight.waiting.lock();
        let (gone, rest) = std::mem::take(&mut *waiting).into_iter().partition(|write| write.queue == queue);
        *waiting = rest;
        drop(waiting);
        self.give_up(gone);
    }

    fn give_up(&self, writes: Vec<Waiting>) {
        let shape = self.shape();
        let Some(zones) = &shape.zones else { return };
        for Waiting { sector, sectors, .. } in writes {
            // What this process has begun behind the write pointer stays for its queue.
            let below = zones.is_kept(sector, sectors);
            if let Some(grant) = below.then(|| zones.adopt(sector, sectors)).flatten() {
                for ticket in zones.settle(grant, false).woken {
                    self.mailboxes.post(ticket, Message::Retry);
                }
            }
        }
    }

    fn is_ours(&self, buffer: &dyn InflightBuffer) -> bool {
        let serial = mark::SERIAL.map(|index| buffer.mark(index));
        buffer.mark(mark::FORMAT) == FORMAT
            && serial == self.serial_words()
            && buffer.mark(mark::HISTORY) == self.store.history()
    }

    fn serial_words(&self) -> [u64; 3] {
        let mut bytes = [0; 24];
        bytes.iter_mut().zip(self.serial).for_each(|(to, from)| *to = from);
        let (words, _) = bytes.as_chunks::<8>();
        [0, 1, 2].map(|n| words.get(n).map_or(0, |word| u64::from_le_bytes(*word)))
    }
}
