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

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: GuestAddress = GuestAddress(0x1000);
    const INNER: GuestAddress = GuestAddress(0x4000);
    /// Behind the first region there is a hole of one page.
    const HOLE: u64 = 0x10000;
    const END: u64 = 0x20000;

    const NEXT: DescriptorFlags = DescriptorFlags::NEXT;
    const WRITE: DescriptorFlags = DescriptorFlags::WRITE;
    const INDIRECT: DescriptorFlags = DescriptorFlags::INDIRECT;
    const NONE: DescriptorFlags = DescriptorFlags::empty();

    type Desc = (u64, u32, DescriptorFlags, u16);
    type Pieces = Vec<(u64, u32)>;

    fn memory() -> GuestMemoryMmap {
        let regions =
            [(GuestAddress(0), 0x10000), (GuestAddress(0x11000), 0x4000), (GuestAddress(0x15000), 0xb000)];
        GuestMemoryMmap::from_ranges(&regions).unwrap()
    }

    fn put(memory: &GuestMemoryMmap, table: GuestAddress, descs: &[Desc]) {
        for (i, &(addr, len, flags, next)) in descs.iter().enumerate() {
            let descriptor = Descriptor {
                addr: addr.into(),
                len: len.into(),
                flags: flags.bits().into(),
                next: next.into(),
            };
            memory.write_slice(descriptor.as_bytes(), GuestAddress(table.0 + 16 * i as u64)).unwrap();
        }
    }

    /// Walks a chain in a queue's table of 8, with indirect tables allowed.
    fn walk_all(descs: &[Desc]) -> Result<Chain, BrokenChain> {
        let memory = memory();
        put(&memory, TABLE, descs);
        walk(&memory, TABLE, 8, 0, true)
    }

    /// Walks `inner` in an indirect table behind the descriptors of `outer`.
    fn walk_indirect(outer: &[Desc], inner: &[Desc]) -> Result<Chain, BrokenChain> {
        let memory = memory();
        put(&memory, TABLE, outer);
        put(&memory, INNER, inner);
        walk(&memory, TABLE, 8, 0, true)
    }

    /// What the device may read and what it may write: addresses and lengths.
    fn spans(chain: &Chain) -> (Pieces, Pieces) {
        let plain = |spans: &Spans| spans.as_slice().iter().map(|&(addr, len)| (addr.0, len)).collect();
        (plain(&chain.readable), plain(&chain.writable))
    }

    fn broken(error: ChainError, tail: Option<(u64, u32)>) -> BrokenChain {
        BrokenChain { error, tail: tail.map(|(addr, len)| (GuestAddress(addr), len)) }
    }

    #[test]
    fn a_chain_is_its_buffers_in_order() {
        let chain = walk_all(&[
            (0x100, 16, NEXT, 3),
            (0x300, 1, WRITE, 0),
            (0x200, 512, NEXT | WRITE, 1),
            (0x400, 7, NEXT, 2),
        ]);
        let expected = (vec![(0x100, 16), (0x400, 7)], vec![(0x200, 512), (0x300, 1)]);
        assert_eq!(spans(&chain.unwrap()), expected);
    }

    #[test]
    fn an_indirect_table_is_part_of_the_chain() {
        let inner = [(0x200, 512, NEXT | WRITE, 2), (0x9000, 1, NONE, 0), (0x300, 1, WRITE, 0)];
        let expected = (vec![(0x100, 16)], vec![(0x200, 512), (0x300, 1)]);
        // The write flag of the descriptor that names the table means nothing (2.7.5.3.2).
        for flags in [INDIRECT, INDIRECT | WRITE] {
            let outer = [(0x100, 16, NEXT, 1), (INNER.0, 48, flags, 0)];
            assert_eq!(spans(&walk_indirect(&outer, &inner).unwrap()), expected);
        }
        let all = [(0x100, 16, NEXT, 1), (0x200, 513, WRITE, 0)];
        let chain = walk_indirect(&[(INNER.0, 32, INDIRECT, 0)], &all).unwrap();
        assert_eq!(spans(&chain), (vec![(0x100, 16)], vec![(0x200, 513)]));
    }

    #[test]
    fn buffers_without_bytes_are_nowhere() {
        let chain = walk_all(&[
            (u64::MAX, 0, NEXT, 1),
            (0x100, 16, NEXT, 2),
            (HOLE, 0, NEXT | WRITE, 3),
            (0x200, 4, NEXT, 4),
            (0x300, 1, NEXT | WRITE, 5),
            (0, 0, WRITE, 0),
        ]);
        assert_eq!(spans(&chain.unwrap()), (vec![(0x100, 16), (0x200, 4)], vec![(0x300, 1)]));
        let nothing = walk_all(&[(0, 0, NONE, 0)]).unwrap();
        assert!(nothing.readable.is_empty() && nothing.writable.is_empty());
    }

    #[test]
    fn a_buffer_may_span_regions_that_touch_but_no_hole() {
        let across = (0x14fff, 2, NONE, 0);
        assert_eq!(spans(&walk_all(&[across]).unwrap()).0, [(0x14fff, 2)]);
        for (addr, len) in [
            (HOLE, 1),
            (HOLE - 1, 2),
            (HOLE + 0xfff, 2),
            (HOLE - 1, 0x1002),
            (END, 1),
            (END - 1, 2),
            (u64::MAX, 1),
            (u64::MAX - 3, u32::MAX),
            (0, u32::MAX),
        ] {
            let outside = ChainError::Outside { addr, len };
            assert_eq!(walk_all(&[(addr, len, NONE, 0)]), Err(broken(outside, None)));
            // The walk goes on to where the status is, unless that is what is outside.
            let told = walk_all(&[(addr, len, NEXT, 1), (0x300, 5, WRITE, 0)]);
            assert_eq!(told, Err(broken(outside, Some((0x300, 5)))));
            let told = walk_all(&[(0x300, 5, NEXT | WRITE, 1), (addr, len, WRITE, 0)]);
            assert_eq!(told, Err(broken(outside, None)));
        }
    }

    #[test]
    fn readable_buffers_come_first() {
        let wrong = ChainError::ReadableBehindWritable;
        let chain = walk_all(&[(0x100, 1, NEXT | WRITE, 1), (0x200, 1, NONE, 0)]);
        assert_eq!(chain, Err(broken(wrong, None)));
        let chain = walk_all(&[(0x100, 1, NEXT | WRITE, 1), (0x200, 1, NEXT, 2), (0x300, 9, WRITE, 0)]);
        assert_eq!(chain, Err(broken(wrong, Some((0x300, 9)))));
        // The first error is the one that is told.
        let chain = walk_all(&[(END, 1, NEXT | WRITE, 1), (0x100, 1, NEXT | WRITE, 2), (0x200, 1, NONE, 0)]);
        assert_eq!(chain, Err(broken(ChainError::Outside { addr: END, len: 1 }, None)));
    }

    #[test]
    fn an_index_has_to_be_in_its_table() {
        let memory = memory();
        put(&memory, TABLE, &[(0x100, 16, NEXT, 8)]);
        let outside = |index, len| broken(ChainError::IndexOutOfTable { index, len }, None);
        assert_eq!(walk(&memory, TABLE, 8, 0, true), Err(outside(8, 8)));
        assert_eq!(walk(&memory, TABLE, 8, 8, true), Err(outside(8, 8)));
        assert_eq!(walk(&memory, TABLE, 8, u16::MAX, true), Err(outside(u16::MAX, 8)));
        // A status that was seen on the way is not the end.
        put(&memory, TABLE, &[(0x100, 16, NEXT | WRITE, 9)]);
        assert_eq!(walk(&memory, TABLE, 8, 0, true), Err(outside(9, 8)));
        let inner = [(0x100, 16, NEXT, 1), (0x200, 1, WRITE | NEXT, 2)];
        assert_eq!(walk_indirect(&[(INNER.0, 32, INDIRECT, 0)], &inner), Err(outside(2, 2)));
    }

    #[test]
    fn a_walk_ends() {
        let circle = Err(broken(ChainError::TooLong, None));
        assert_eq!(walk_all(&[(0x100, 1, NEXT, 0)]), circle);
        assert_eq!(walk_all(&[(0x100, 1, NEXT, 1), (0, 0, NEXT, 0)]), circle);
        assert_eq!(walk_indirect(&[(INNER.0, 16, INDIRECT, 0)], &[(0x100, 1, NEXT, 0)]), circle);
    }

    #[test]
    fn a_chain_has_at_most_1024_descriptors() {
        let memory = memory();
        let (table, size) = (GuestAddress(0x15000), 2048);
        let chain_of = |len: u16| -> Vec<Desc> {
            let flags = |i| if i + 1 == len { NONE } else { NEXT };
            (0..len).map(|i| (0x100, 1, flags(i), i + 1)).collect()
        };
        put(&memory, table, &chain_of(1024));
        assert_eq!(walk(&memory, table, size, 0, true).unwrap().readable.len_bytes(), 1024);
        put(&memory, table, &chain_of(1025));
        assert_eq!(walk(&memory, table, size, 0, true), Err(broken(ChainError::TooLong, None)));
        // The descriptor of an indirect table is one of them.
        put(&memory, TABLE, &[(table.0, 16 * 1024, INDIRECT, 0)]);
        put(&memory, table, &chain_of(1023));
        assert_eq!(walk(&memory, TABLE, 8, 0, true).unwrap().readable.len_bytes(), 1023);
        put(&memory, table, &chain_of(1024));
        assert_eq!(walk(&memory, TABLE, 8, 0, true), Err(broken(ChainError::TooLong, None)));
    }

    #[test]
    fn indirect_tables_have_their_rules() {
        let good = [(0x100, 16, NONE, 0)];
        let refused = |error| Err(broken(error, None));
        let misplaced = refused(ChainError::IndirectMisplaced);
        let outer = [(INNER.0, 16, INDIRECT | NEXT, 1), (0x300, 1, WRITE, 0)];
        assert_eq!(walk_indirect(&outer, &good), misplaced);
        assert_eq!(
            walk_indirect(&[(INNER.0, 16, INDIRECT, 0)], &[(INNER.0 + 16, 16, INDIRECT, 0), good[0]]),
            misplaced
        );
        for len_bytes in [0, 1, 8, 15, 17, 16 * 1025, 0x10_0000, u32::MAX - 15, u32::MAX] {
            let chain = walk_indirect(&[(INNER.0, len_bytes, INDIRECT, 0)], &good);
            assert_eq!(chain, refused(ChainError::IndirectLength { len_bytes }));
        }
        for addr in [HOLE, HOLE - 8, END, u64::MAX, u64::MAX - 7] {
            let chain = walk_indirect(&[(addr, 16, INDIRECT, 0)], &good);
            assert_eq!(chain, refused(ChainError::Outside { addr, len: 16 }));
        }
        let memory = memory();
        put(&memory, TABLE, &[(INNER.0, 16, INDIRECT, 0)]);
        put(&memory, INNER, &good);
        assert_eq!(walk(&memory, TABLE, 8, 0, false), refused(ChainError::IndirectNotNegotiated));
    }

    #[test]
    fn lengths_add_up_to_less_than_4_gib() {
        // Only the table's memory is touched.
        let regions = [(GuestAddress(0), 0x2000), (GuestAddress(1 << 32), 1 << 31)];
        let big = GuestMemoryMmap::from_ranges(&regions).unwrap();
        let half = 1u32 << 31;
        for (rest, fits) in [(half - 1, true), (half, false)] {
            for flags in [NONE, WRITE] {
                put(&big, TABLE, &[(1 << 32, half, flags | NEXT, 1), (1 << 32, rest, flags, 0)]);
                let chain = walk(&big, TABLE, 8, 0, true);
                match (fits, flags == WRITE) {
                    (true, _) => assert!(chain.is_ok()),
                    (false, false) => assert_eq!(chain, Err(broken(ChainError::TooManyBytes, None))),
                    (false, true) => {
                        assert_eq!(chain, Err(broken(ChainError::TooManyBytes, Some((1 << 32, rest)))));
                    }
                }
            }
        }
    }
}
