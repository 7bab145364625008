//! Pieces of guest memory, in the order of a chain.

use std::fmt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A piece of guest memory: its address and length in bytes. Never empty, always checked to lie in guest memory.
pub(crate) type Span = (GuestAddress, u32);

/// Length of a wire structure in bytes.
#[allow(clippy::cast_possible_truncation, reason = "a structure is a few dozen bytes long")]
pub(crate) const fn len_of<T>() -> u32 {
    size_of::<T>() as u32
}

/// Pieces of guest memory that follow one another in a chain, however the driver has cut them.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Spans {
    spans: Vec<Span>,
    len_bytes: u32,
}

/// More bytes than a length on the ring can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyBytes;

impl Spans {
    /// Adds a piece behind the others.
    pub(crate) fn push(&mut self, span: Span) -> Result<(), TooManyBytes> {
        self.len_bytes = self.len_bytes.checked_add(span.1).ok_or(TooManyBytes)?;
        self.spans.push(span);
        Ok(())
    }

    pub(crate) fn len_bytes(&self) -> u32 {
        self.len_bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    pub(crate) fn as_slice(&self) -> &[Span] {
        &self.spans
    }

    /// Takes the first `len_bytes` off. `None`, and nothing taken, where there are fewer.
    pub(crate) fn split_front(&mut self, len_bytes: u32) -> Option<Self> {
        let rest_bytes = self.len_bytes.checked_sub(len_bytes)?;
        let mut cut = 0;
        let mut before = 0u32;
        while let Some(&(_, len)) = self.spans.get(cut).filter(|span| before + span.1 <= len_bytes) {
            before += len;
            cut += 1;
        }
        let mut rest = self.spans.split_off(cut);
        let inside = len_bytes - before;
        if let Some(first) = rest.first_mut().filter(|_| inside != 0) {
            self.spans.push((first.0, inside));
            *first = (GuestAddress(first.0.0 + u64::from(inside)), first.1 - inside);
        }
        let front = Self { spans: std::mem::replace(&mut self.spans, rest), len_bytes };
        self.len_bytes = rest_bytes;
        Some(front)
    }

    /// Takes the last `len_bytes` off. `None`, and nothing taken, where there are fewer.
    pub(crate) fn split_back(&mut self, len_bytes: u32) -> Option<Self> {
        let front = self.split_front(self.len_bytes.checked_sub(len_bytes)?)?;
        Some(std::mem::replace(self, front))
    }

    /// Copies the first bytes out. The caller has asked for no more than there are.
    pub(crate) fn read(&self, memory: &GuestMemoryMmap, out: &mut [u8]) {
        let mut done = 0;
        for &(addr, len) in &self.spans {
            let Some(part) = rest(out, done, len) else { break };
            done += part.len();
            let read = memory.read_slice(part, addr);
            debug_assert!(read.is_ok(), "spans are checked");
        }
    }

    /// Copies `data` in, from `offset` on; what does not fit is left out.
    pub(crate) fn write(&self, memory: &GuestMemoryMmap, offset: u32, data: &[u8]) {
        let mut skip = offset;
        let mut data = data;
        for &(addr, len) in &self.spans {
            if skip >= len {
                skip -= len;
                continue;
            }
            let room = usize::try_from(len - skip).unwrap_or(usize::MAX);
            let (part, more) = data.split_at(room.min(data.len()));
            let written = memory.write_slice(part, GuestAddress(addr.0 + u64::from(skip)));
            debug_assert!(written.is_ok(), "spans are checked");
            data = more;
            skip = 0;
            if data.is_empty() {
                break;
            }
        }
    }

    /// Zeros from `offset` to the end.
    pub(crate) fn fill_zero(&self, memory: &GuestMemoryMmap, offset: u32) {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut skip = offset;
        for &(addr, len) in &self.spans {
            let mut at = skip.min(len);
            skip -= at;
            while at < len {
                let part = (len - at).min(4096);
                let zeros = ZEROS.get(..part as usize).unwrap_or(&ZEROS);
                let written = memory.write_slice(zeros, GuestAddress(addr.0 + u64::from(at)));
                debug_assert!(written.is_ok(), "spans are checked");
                at += part;
            }
        }
    }
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len_bytes)?;
        for (n, (addr, len)) in self.spans.iter().enumerate().take(4) {
            write!(f, "{} {len} at {:#x}", if n == 0 { ":" } else { "," }, addr.0)?;
        }
        match self.spans.len().checked_sub(4) {
            Some(more @ 1..) => write!(f, " and {more} pieces more"),
            _ => Ok(()),
        }
    }
}

/// The next part of `out`, at most `len` bytes.
fn rest(out: &mut [u8], done: usize, len: u32) -> Option<&mut [u8]> {
    let out = out.get_mut(done..).filter(|out| !out.is_empty())?;
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(out.len());
    out.get_mut(..len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(lens: &[u32]) -> Spans {
        let mut spans = Spans::default();
        let mut addr = 0x1000;
        for &len in lens {
            spans.push((GuestAddress(addr), len)).unwrap();
            addr += 0x1000;
        }
        spans
    }

    /// Every byte's address, one by one: the oracle.
    fn bytes(spans: &Spans) -> Vec<u64> {
        spans.as_slice().iter().flat_map(|&(addr, len)| addr.0..addr.0 + u64::from(len)).collect()
    }

    #[test]
    fn a_cut_anywhere_keeps_every_byte_in_order() {
        for lens in [&[16][..], &[1, 15], &[8, 8, 8], &[5, 1, 1, 9], &[]] {
            let whole = bytes(&spans(lens));
            for at in 0..=u32::try_from(whole.len()).unwrap() {
                let mut back = spans(lens);
                let front = back.split_front(at).unwrap();
                assert_eq!((front.len_bytes(), bytes(&front)), (at, whole[..at as usize].to_vec()));
                assert_eq!(bytes(&back), whole[at as usize..]);
                assert!(front.as_slice().iter().chain(back.as_slice()).all(|span| span.1 != 0));

                let mut front = spans(lens);
                let back = front.split_back(at).unwrap();
                let cut = whole.len() - at as usize;
                assert_eq!((bytes(&front), bytes(&back)), (whole[..cut].to_vec(), whole[cut..].to_vec()));
            }
        }
    }

    #[test]
    fn more_than_there_is_takes_nothing() {
        let mut all = spans(&[8, 8]);
        assert_eq!(all.split_front(17), None);
        assert_eq!(all.split_back(17), None);
        assert_eq!(all, spans(&[8, 8]));
    }

    #[test]
    fn lengths_that_overflow_are_refused() {
        let mut all = spans(&[u32::MAX]);
        assert_eq!(all.push((GuestAddress(0), 1)), Err(TooManyBytes));
        assert_eq!(all.len_bytes(), u32::MAX);
    }

    #[test]
    fn reads_and_writes_cross_the_cuts() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
        let all = spans(&[3, 1, 4]);
        all.write(&memory, 0, b"abcdefgh-too-long");
        all.write(&memory, 2, b"XYZ");
        let mut out = [0; 8];
        all.read(&memory, &mut out);
        assert_eq!(&out, b"abXYZfgh");
        let mut short = [0; 2];
        all.read(&memory, &mut short);
        assert_eq!(&short, b"ab");
        for offset in 0..9 {
            all.write(&memory, 0, b"abcdefgh");
            all.fill_zero(&memory, offset);
            all.read(&memory, &mut out);
            let mut expected = *b"abcdefgh";
            expected[offset.min(8) as usize..].fill(0);
            assert_eq!(out, expected, "from {offset}");
        }
    }
}
