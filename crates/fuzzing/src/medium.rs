//! An image's medium in memory: blocks, holes, and the words that are mapped out of them.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_zbd_store::{LiveWords, Medium};

/// What a file has in one piece.
pub(crate) const BLOCK: usize = 4096;

/// A file's bytes. Cheap to copy, cheap to compare with a copy.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    len: u64,
    /// By their number; those that are not there are holes.
    blocks: BTreeMap<u64, Arc<[u8; BLOCK]>>,
}

impl Content {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// What is cut off is gone, what is new is a hole.
    pub(crate) fn set_len(&mut self, len: u64) {
        let last = len / BLOCK as u64;
        let kept = usize::try_from(len % BLOCK as u64).unwrap();
        if len < self.len {
            self.blocks.retain(|&number, _| number < last || number == last && kept > 0);
            if let Some(block) = self.blocks.get_mut(&last) {
                Arc::make_mut(block)[kept..].fill(0);
            }
        }
        self.len = len;
    }

    /// Zeros where there is nothing, also past the end.
    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            let (number, inside) = place(at + done as u64);
            let part = (BLOCK - inside).min(len - done);
            if let Some(block) = self.blocks.get(&number) {
                bytes[done..done + part].copy_from_slice(&block[inside..inside + part]);
            }
            done += part;
        }
        bytes
    }

    /// Writes what lies within the file.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        let len = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
        let mut done = 0;
        while done < len {
            let (number, inside) = place(at + done as u64);
            let part = (BLOCK - inside).min(len - done);
            let block = self.blocks.entry(number).or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[inside..inside + part].copy_from_slice(&bytes[done..done + part]);
            done += part;
        }
    }

    /// Makes a hole, as far as it is one of whole blocks, and zeros at its ends.
    fn punch(&mut self, range: Range<u64>) {
        let mut at = range.start;
        let end = range.end.min(self.len);
        while at < end {
            let (number, inside) = place(at);
            let part = ((BLOCK - inside) as u64).min(end - at);
            if part == BLOCK as u64 {
                self.blocks.remove(&number);
            } else if let Some(block) = self.blocks.get_mut(&number) {
                Arc::make_mut(block)[inside..inside + usize::try_from(part).unwrap()].fill(0);
            }
            at += part;
        }
    }

    fn next_data(&self, range: Range<u64>) -> Option<Range<u64>> {
        let first = range.start / BLOCK as u64;
        let mut numbers = self.blocks.range(first..).map(|(number, _)| *number);
        let start = numbers.next()?;
        let after = numbers.scan(start, |last, number| {
            let next = number == *last + 1;
            *last = number;
            next.then_some(number)
        });
        let end = after.last().unwrap_or(start) + 1;
        let bytes = |number: u64| number * BLOCK as u64;
        let found = bytes(start).max(range.start)..bytes(end).min(range.end).min(self.len);
        (!found.is_empty()).then_some(found)
    }
}

/// A block's number, and where in it a byte is.
fn place(at: u64) -> (u64, usize) {
    (at / BLOCK as u64, usize::try_from(at % BLOCK as u64).unwrap())
}

/// A file that is no file. It counts what is done to it, so that "nothing was written" can be said of it.
#[derive(Default)]
pub(crate) struct MemMedium {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    content: Content,
    /// Words that were mapped, and where: they are the bytes there.
    mapped: Option<(u64, Arc<[AtomicU64]>)>,
    changes: u64,
}

impl MemMedium {
    pub(crate) fn new(content: Content) -> Self {
        Self { inner: Mutex::new(Inner { content, ..Inner::default() }) }
    }

    /// All of it, mapped words too.
    pub(crate) fn content(&self) -> Content {
        self.lock().content.clone()
    }

    /// How many writes, holes and changes of length there were.
    pub(crate) fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// What was stored to the mapped words has become bytes.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, words)) = &inner.mapped {
            let bytes: Vec<u8> =
                words.iter().flat_map(|word| word.load(Ordering::SeqCst).to_ne_bytes()).collect();
            let at = *at;
            if inner.content.read(at, bytes.len()) != bytes {
                inner.content.write(at, &bytes);
            }
        }
        inner
    }
}

impl Inner {
    /// As [`MemMedium::lock`], the other way round.
    fn give_words(&mut self) {
        let Some((at, words)) = &self.mapped else { return };
        let bytes = self.content.read(*at, 8 * words.len());
        for (word, from) in words.iter().zip(bytes.chunks_exact(8)) {
            word.store(u64::from_ne_bytes(from.try_into().unwrap()), Ordering::SeqCst);
        }
    }

    /// An image never grows by being written.
    fn check(&self, start: u64, len: usize) -> io::Result<()> {
        let end = start.checked_add(len as u64).filter(|end| *end <= self.content.len);
        end.map(drop).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Medium for MemMedium {
    fn name(&self) -> &str {
        "image"
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.lock().content.len)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok((self.lock().content.blocks.len() * BLOCK) as u64)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.changes += 1;
        inner.content.set_len(len_bytes);
        Ok(())
    }

    fn allocate(&self, _: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn read_at(&self, into: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let inner = self.lock();
        inner.check(offset_bytes, into.len())?;
        into.copy_from_slice(&inner.content.read(offset_bytes, into.len()));
        Ok(())
    }

    fn write_at(&self, from: &[u8], offset_bytes: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.check(offset_bytes, from.len())?;
        inner.changes += 1;
        inner.content.write(offset_bytes, from);
        inner.give_words();
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        let mut inner = self.lock();
        inner.changes += 1;
        inner.content.punch(range);
        inner.give_words();
        Ok(())
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        Ok(self.lock().content.next_data(range))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn map_words(&self, offset_bytes: u64, count: usize) -> io::Result<LiveWords> {
        let mut inner = self.lock();
        let len = count.checked_mul(8).ok_or(io::ErrorKind::OutOfMemory)?;
        inner.check(offset_bytes, len)?;
        let bytes = inner.content.read(offset_bytes, len);
        let words: Arc<[AtomicU64]> = bytes
            .chunks_exact(8)
            .map(|word| AtomicU64::new(u64::from_ne_bytes(word.try_into().unwrap())))
            .collect();
        inner.mapped = Some((offset_bytes, Arc::clone(&words)));
        Ok(LiveWords::shared(words))
    }
}
