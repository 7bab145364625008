//! A descriptor chain, walked once and checked on the way (virtio 1.3, 2.7.5).

use thiserror::Error;
use virtio_zbd_spec::{Descriptor, DescriptorFlags};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use zerocopy::{FromZeros, IntoBytes};

use crate::spans::{Span, Spans, len_of};

/// The most descriptors that a chain may have, in an indirect table too, whatever the queue's size: bounds the walk.
const CHAIN_LEN_MAX: usize = 1024;

/// A walked chain: what the device may read, then what it may write. Every span lies in guest memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) readable: Spans,
    pub(crate) writable: Spans,
}

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub(crate) enum ChainError {
    #[error("descriptor {index} is named where the table has {len}")]
    IndexOutOfTable { index: u16, len: u16 },
    #[error("the chain has more than {max} descriptors: it is a circle or too long", max = CHAIN_LEN_MAX)]
    TooLong,
    #[error("{len} bytes at {addr:#x} do not lie in guest memory")]
    Outside { addr: u64, len: u32 },
    #[error("a device-readable descriptor stands behind a device-writable one")]
    ReadableBehindWritable,
    #[error("an indirect table where INDIRECT_DESC was not negotiated")]
    IndirectNotNegotiated,
    #[error("an indirect table inside another, or with a next descriptor")]
    IndirectMisplaced,
    #[error("an indirect table of {len_bytes} bytes: no whole number of descriptors, or none, or too many")]
    IndirectLength { len_bytes: u32 },
    #[error("the chain's descriptors add up to more than 4 GiB")]
    TooManyBytes,
}

/// A walk that met an error: with what was found of the chain, so that it may still be answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BrokenChain {
    pub(crate) error: ChainError,
    /// The last descriptor of a chain whose end was found, if the device may write there: the status byte is its
    /// last one.
    pub(crate) tail: Option<Span>,
}

/// Walks the chain that begins at descriptor `head` of `table`.
pub(crate) fn walk(
    memory: &GuestMemoryMmap,
    table: GuestAddress,
    size: u16,
    head: u16,
    indirect_negotiated: bool,
) -> Result<Chain, BrokenChain> {
    let mut walk =
        Walk { memory, indirect_negotiated, chain: Chain::default(), error: None, last: None, seen: 0 };
    match walk.table(table, size, head, Depth::Main) {
        Ok(()) => match walk.error {
            None => Ok(walk.chain),
            Some(error) => Err(BrokenChain { error, tail: walk.last }),
        },
        Err(error) => Err(BrokenChain { error, tail: None }),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Main,
    Indirect,
}

struct Walk<'a> {
    memory: &'a GuestMemoryMmap,
    indirect_negotiated: bool,
    chain: Chain,
    /// The first error that does not keep the walk from reaching the chain's end.
    error: Option<ChainError>,
    /// The descriptor that was seen last, if the device may write there.
    last: Option<Span>,
    /// Descriptors seen, those that hold an indirect table included.
    seen: usize,
}

impl Walk<'_> {
    /// Follows one table from `index` on. An error here means that the chain's end was not found.
    fn table(
        &mut self,
        table: GuestAddress,
        len: u16,
        mut index: u16,
        depth: Depth,
    ) -> Result<(), ChainError> {
        loop {
            if index >= len {
                return Err(ChainError::IndexOutOfTable { index, len });
            }
            self.seen += 1;
            if self.seen > CHAIN_LEN_MAX {
                return Err(ChainError::TooLong);
            }
            let descriptor = self.read(table, index)?;
            let flags = DescriptorFlags::from_bits_truncate(descriptor.flags.get());
            let span = (GuestAddress(descriptor.addr.get()), descriptor.len.get());
            if flags.contains(DescriptorFlags::INDIRECT) {
                return self.indirect(span, flags, depth);
            }
            self.take(span, flags.contains(DescriptorFlags::WRITE));
            if !flags.contains(DescriptorFlags::NEXT) {
                return Ok(());
            }
            index = descriptor.next.get();
        }
    }

    fn indirect(&mut self, span: Span, flags: DescriptorFlags, depth: Depth) -> Result<(), ChainError> {
        if !self.indirect_negotiated {
            return Err(ChainError::IndirectNotNegotiated);
        }
        if depth == Depth::Indirect || flags.contains(DescriptorFlags::NEXT) {
            return Err(ChainError::IndirectMisplaced);
        }
        let (table, len_bytes) = span;
        let entries = u16::try_from(len_bytes / len_of::<Descriptor>()).unwrap_or(u16::MAX);
        if !len_bytes.is_multiple_of(len_of::<Descriptor>())
            || entries == 0
            || usize::from(entries) > CHAIN_LEN_MAX
        {
            return Err(ChainError::IndirectLength { len_bytes });
        }
        self.table(table, entries, 0, Depth::Indirect)
    }

    /// Reads a descriptor, once: the driver may change it while we look.
    fn read(&self, table: GuestAddress, index: u16) -> Result<Descriptor, ChainError> {
        let offset = u64::from(index) * u64::from(len_of::<Descriptor>());
        let outside = ChainError::Outside { addr: table.0, len: len_of::<Descriptor>() };
        let at = table.0.checked_add(offset).ok_or(outside)?;
        let mut descriptor = Descriptor::new_zeroed();
        self.memory.read_slice(descriptor.as_mut_bytes(), GuestAddress(at)).map_err(|_| outside)?;
        Ok(descriptor)
    }

    fn take(&mut self, span: Span, writable: bool) {
        let (addr, len) = span;
        self.last = None;
        if len == 0 {
            return;
        }
        if !usize::try_from(len).is_ok_and(|len| self.memory.check_range(addr, len)) {
            self.error.get_or_insert(ChainError::Outside { addr: addr.0, len });
            return;
        }
        if !writable && !self.chain.writable.is_empty() {
            self.error.get_or_insert(ChainError::ReadableBehindWritable);
            return;
        }
        if writable {
            self.last = Some(span);
        }
        let part = if writable { &mut self.chain.writable } else { &mut self.chain.readable };
        if part.push(span).is_err() {
            self.error.get_or_insert(ChainError::TooManyBytes);
        }
    }
}
