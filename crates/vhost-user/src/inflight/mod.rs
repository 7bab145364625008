//! The buffer in which requests under way outlive a back-end ("Inflight I/O tracking" of vhost-user.rst).
//!
//! The front-end keeps it, and shows it to whichever back-end serves the queues next. Two parts:
//!
//! - *The specification's*: a region for each queue, which says which of its descriptors were taken and not answered.
//!   [`InflightQueue`] keeps it by the letter, for split rings.
//! - *The back-end's own*, behind it: words for the whole buffer ([`Inflight::mark`]) and two for each
//!   descriptor ([`Inflight::note`]). This crate gives them no meaning. A buffer that another back-end made may have no room
//!   for them.
//!
//! Nothing in it is trusted: every index is checked where it is read. Each store is one aligned word, and none is moved before an
//! earlier one, so that a kill between any two of them leaves what the program's text says.

mod queue;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::param::page_size;
use virtio_zbd_mapguard::Alarm;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory};

use crate::guarded::Guarded;
use crate::message::InflightRegion;
use crate::notifier::type_name;

pub use queue::InflightQueue;
pub(crate) use queue::RingState;

/// How many entries a split queue may have (virtio 1.x, 2.7).
const QUEUE_SIZE_MAX: u16 = 32_768;

/// The regions of the queues are padded to this: those of other back-ends are, too.
const ALIGN_BYTES: usize = 64;

/// What comes before the descriptors of a queue's region.
const QUEUE_HEAD_BYTES: usize = 16;

/// One descriptor of a queue's region.
const DESC_BYTES: usize = 16;

/// The words of a note.
const NOTE_WORDS: usize = 2;

/// How many words a back-end has for the whole buffer: [`Inflight::mark`].
pub const INFLIGHT_MARKS: usize = 8;

/// The buffer, mapped. Clones are the same buffer.
#[derive(Clone, Debug)]
pub struct Inflight {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Its file is the front-end's to truncate.
    mapping: Guarded<Box<MmapRegion>>,
    /// Where in the mapping the buffer begins.
    start: usize,
    layout: Layout,
    has_notes: bool,
    /// Every store so far, for tests that ask what a kill between any two of them leaves.
    #[cfg(test)]
    trace: std::sync::Mutex<Vec<Vec<u8>>>,
}

/// Why a buffer cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InflightError {
    #[error(
        "a buffer for {queues} queues of {queue_size} entries: 1 to {max} queues of 1 to {QUEUE_SIZE_MAX} entries are expected"
    )]
    Counts { queues: u16, queue_size: u16, max: usize },
    #[error("the buffer has {found} bytes, its queues need {expected}")]
    TooShort { expected: usize, found: u64 },
    #[error("the buffer comes in a {0}, a regular file (such as a memfd) is expected")]
    Kind(&'static str),
    #[error("the buffer ends at byte {end:#x} of its file, which has {file_bytes:#x} bytes")]
    PastFile { end: u64, file_bytes: u64 },
    #[error("offset {offset_bytes:#x} and size {size_bytes:#x} of the buffer go past the end of any file")]
    Overflow { offset_bytes: u64, size_bytes: u64 },
    #[error("the buffer's file cannot be used: {0}")]
    Io(#[from] Errno),
    #[error("the buffer cannot be mapped: {0}")]
    Map(#[from] MmapRegionError),
    #[error("the buffer's mapping cannot be guarded: {0}")]
    Guard(#[source] io::Error),
}

impl Inflight {
    /// Makes a buffer for a front-end to keep: zeros, of a length that nobody can change.
    ///
    /// `asked` names the queues; `queue_count` is how many there are. Returns what to answer.
    pub(crate) fn create(
        asked: &InflightRegion,
        queue_count: usize,
    ) -> Result<(InflightRegion, OwnedFd), InflightError> {
        let layout = Layout::new(asked, queue_count)?;
        let size_bytes = u64::try_from(layout.whole_bytes()).unwrap_or(u64::MAX);
        let fd = memfd_create("inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, size_bytes)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let answer = InflightRegion { mmap_size_bytes: size_bytes, mmap_offset_bytes: 0, ..*asked };
        Ok((answer, fd))
    }

    /// Maps a buffer that a front-end shows. Should its file be truncated, it reads as zeros and the alarm is raised.
    pub(crate) fn map(
        named: &InflightRegion,
        queue_count: usize,
        fd: OwnedFd,
        alarm: &Alarm,
    ) -> Result<Self, InflightError> {
        let layout = Layout::new(named, queue_count)?;
        let InflightRegion { mmap_size_bytes: size_bytes, mmap_offset_bytes: offset_bytes, .. } = *named;
        let overflow = || InflightError::Overflow { offset_bytes, size_bytes };
        let end = offset_bytes.checked_add(size_bytes).ok_or_else(overflow)?;
        // Of a longer buffer what is ours is mapped, and nothing else of it touched.
        let found = usize::try_from(size_bytes).unwrap_or(usize::MAX);
        let needed = match found {
            found if found >= layout.whole_bytes() => layout.whole_bytes(),
            found if found >= layout.standard_bytes() => layout.standard_bytes(),
            _ => {
                return Err(InflightError::TooShort { expected: layout.standard_bytes(), found: size_bytes });
            }
        };
        let stat = fstat(&fd)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type != FileType::RegularFile {
            return Err(InflightError::Kind(type_name(file_type)));
        }
        let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if end > file_bytes {
            return Err(InflightError::PastFile { end, file_bytes });
        }
        // A mapping begins at a page of its file.
        let prefix_bytes = offset_bytes % u64::try_from(page_size()).unwrap_or(4096);
        let start = usize::try_from(prefix_bytes).map_err(|_| overflow())?;
        if start % size_of::<u64>() != 0 {
            return Err(overflow());
        }
        let file = FileOffset::new(File::from(fd), offset_bytes - prefix_bytes);
        let mapping = Box::new(MmapRegion::from_file(file, start + needed)?);
        let mapping = Guarded::new(mapping, alarm).map_err(InflightError::Guard)?;
        let has_notes = needed == layout.whole_bytes();
        Ok(Self {
            inner: Arc::new(Inner {
                mapping,
                start,
                layout,
                has_notes,
                #[cfg(test)]
                trace: std::sync::Mutex::default(),
            }),
        })
    }

    /// Nothing is in flight in any queue, and the rings begin anew.
    pub(crate) fn forget(&self) {
        let layout = self.inner.layout;
        for at in (0..layout.queues).filter_map(|queue| layout.queue(queue)) {
            self.inner.store(at + head::VERSION, 0_u16);
        }
    }

    /// For how many queues it has room: queues 0 to this, exclusive.
    pub fn queue_count(&self) -> u16 {
        self.inner.layout.queues
    }

    /// For how many descriptors of each queue it has room.
    pub fn queue_size(&self) -> u16 {
        self.inner.layout.queue_size
    }

    /// Whether it has room for marks and notes. If not, they read as 0 and what is stored to them is lost.
    pub fn has_notes(&self) -> bool {
        self.inner.has_notes
    }

    /// A word of the back-end's own, of [`INFLIGHT_MARKS`]; 0 in a new buffer. Whatever a front-end may have put there.
    pub fn mark(&self, index: usize) -> u64 {
        self.inner.mark_at(index).map_or(0, |at| self.inner.load(at))
    }

    /// Stores a word of the back-end's own.
    pub fn set_mark(&self, index: usize, value: u64) {
        if let Some(at) = self.inner.mark_at(index) {
            self.inner.store(at, value);
        }
    }

    /// Whether the chain that begins at descriptor `head` of queue `queue` is marked as taken and not answered.
    ///
    /// Before a queue is started this may be so of chains whose answer was published last:
    /// [`InflightQueue::resubmit`] knows.
    pub fn is_inflight(&self, queue: u16, head: u16) -> bool {
        let Inner { layout, .. } = &*self.inner;
        let is_in_use = |at: usize| self.inner.load::<u16>(at + head::VERSION) != 0;
        let is_marked = |at: usize| self.inner.load::<u8>(at + desc::INFLIGHT) != 0;
        layout.queue(queue).is_some_and(is_in_use) && layout.desc(queue, head).is_some_and(is_marked)
    }

    /// A word (0 or 1) of the note of descriptor `head` of queue `queue`; 0 in a new buffer. Whatever a front-end may have put
    /// there.
    pub fn note(&self, queue: u16, head: u16, word: usize) -> u64 {
        self.inner.note_at(queue, head, word).map_or(0, |at| self.inner.load(at))
    }

    /// Stores a word of a note.
    pub fn set_note(&self, queue: u16, head: u16, word: usize, value: u64) {
        if let Some(at) = self.inner.note_at(queue, head, word) {
            self.inner.store(at, value);
        }
    }
}

impl Inner {
    fn mark_at(&self, index: usize) -> Option<usize> {
        (self.has_notes && index < INFLIGHT_MARKS).then(|| self.layout.standard_bytes() + 8 * index)
    }

    fn note_at(&self, queue: u16, head: u16, word: usize) -> Option<usize> {
        let Layout { queues, queue_size, .. } = self.layout;
        let is_there = self.has_notes && queue < queues && head < queue_size && word < NOTE_WORDS;
        let nth = usize::from(queue) * usize::from(queue_size) + usize::from(head);
        is_there.then(|| self.layout.standard_bytes() + 8 * (INFLIGHT_MARKS + nth * NOTE_WORDS + word))
    }

    /// An aligned word. What a front-end's buffer could not hold was refused when it was mapped.
    fn load<T: AtomicAccess + Default>(&self, at: usize) -> T {
        let word = self.mapping.mapping().as_volatile_slice().load(self.start + at, Ordering::Acquire);
        debug_assert!(word.is_ok(), "the buffer was checked");
        word.unwrap_or_default()
    }

    /// Release: the stores before it are not moved behind it.
    fn store<T: AtomicAccess>(&self, at: usize, value: T) {
        let stored =
            self.mapping.mapping().as_volatile_slice().store(value, self.start + at, Ordering::Release);
        debug_assert!(stored.is_ok(), "the buffer was checked");
        #[cfg(test)]
        self.trace.lock().unwrap().push(self.bytes());
    }

    #[cfg(test)]
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.mapping.mapping().len() - self.start];
        self.mapping.mapping().as_volatile_slice().read_slice(&mut bytes, self.start).unwrap();
        bytes
    }
}

/// Where what is, in bytes from the buffer's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    queues: u16,
    queue_size: u16,
}

impl Layout {
    fn new(named: &InflightRegion, queue_count: usize) -> Result<Self, InflightError> {
        let InflightRegion { queues, queue_size, .. } = *named;
        let fits =
            (1..=queue_count).contains(&usize::from(queues)) && (1..=QUEUE_SIZE_MAX).contains(&queue_size);
        match fits {
            true => Ok(Self { queues, queue_size }),
            false => Err(InflightError::Counts { queues, queue_size, max: queue_count }),
        }
    }

    /// From a queue's region to the next one.
    fn stride_bytes(&self) -> usize {
        (QUEUE_HEAD_BYTES + DESC_BYTES * usize::from(self.queue_size)).next_multiple_of(ALIGN_BYTES)
    }

    /// The specification's part.
    fn standard_bytes(&self) -> usize {
        usize::from(self.queues) * self.stride_bytes()
    }

    /// With marks and notes.
    fn whole_bytes(&self) -> usize {
        let notes = usize::from(self.queues) * usize::from(self.queue_size) * NOTE_WORDS;
        self.standard_bytes() + 8 * (INFLIGHT_MARKS + notes)
    }

    /// A queue's region.
    fn queue(&self, queue: u16) -> Option<usize> {
        (queue < self.queues).then(|| usize::from(queue) * self.stride_bytes())
    }

    /// A descriptor of a queue's region.
    fn desc(&self, queue: u16, head: u16) -> Option<usize> {
        let at = self.queue(queue)? + QUEUE_HEAD_BYTES + DESC_BYTES * usize::from(head);
        (head < self.queue_size).then_some(at)
    }
}

/// The fields of a queue's region, in bytes from its start (`QueueRegionSplit`).
mod head {
    pub(super) const VERSION: usize = 8;
    pub(super) const DESC_NUM: usize = 10;
    pub(super) const LAST_BATCH_HEAD: usize = 12;
    pub(super) const USED_IDX: usize = 14;
}

/// The fields of a descriptor, in bytes from its start (`DescStateSplit`).
mod desc {
    pub(super) const INFLIGHT: usize = 0;
    pub(super) const NEXT: usize = 6;
    pub(super) const COUNTER: usize = 8;
}
