//! Bytes that can be told from all others, and buffers that direct I/O takes.

use std::ops::{Deref, DerefMut};

/// Direct I/O wants memory aligned to a block; no disk of ours has larger ones.
const ALIGNMENT: usize = 64 << 10;

/// Random bytes: the same for the same seed.
pub(crate) fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Memory for direct I/O.
#[derive(Debug)]
pub(crate) struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Aligned {
        let memory = vec![0_u8; len + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Aligned { memory, start, len }
    }

    /// A copy.
    pub(crate) fn copy(bytes: &[u8]) -> Aligned {
        let mut aligned = Aligned::zeros(bytes.len());
        aligned.copy_from_slice(bytes);
        aligned
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Where two texts of bytes differ first, for a message.
pub(crate) fn difference(found: &[u8], expected: &[u8]) -> String {
    let at = found.iter().zip(expected).position(|(a, b)| a != b);
    match at {
        Some(at) => {
            let end = |bytes: &[u8]| format!("{:02x?}", &bytes[at..bytes.len().min(at + 16)]);
            let count = found.iter().zip(expected).filter(|(a, b)| a != b).count();
            let (found, expected) = (end(found), end(expected));
            format!("byte {at} and on is {found}, expected {expected}; {count} bytes differ")
        }
        None => format!("the length is {}, expected {}", found.len(), expected.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_differences_found() {
        let aligned = Aligned::copy(b"hello");
        assert_eq!(&*aligned, b"hello");
        assert_eq!(aligned.as_ptr() as usize % ALIGNMENT, 0);
        assert!(difference(b"hexlo", b"hello").starts_with("byte 2 and on is [78, 6c, 6f]"));
        assert!(difference(b"he", b"hello").contains("is 2, expected 5"));
    }
}
