//! What a chain is, told as plainly as `docs/device.md` tells it ("Chains that are none").

use super::memory::Memory;

/// A piece of guest memory: address and length, never 0.
pub(super) type Piece = (u64, u32);

/// What was found by following a chain.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// The chain has an end that can be found.
    pub(super) ended: bool,
    pub(super) readable: Vec<Piece>,
    pub(super) writable: Vec<Piece>,
    /// Something is wrong on the way.
    pub(super) bad: bool,
    /// The last descriptor, if the device may write there.
    pub(super) last: Option<Piece>,
    /// Where descriptors were read.
    pub(super) tables: Vec<Piece>,
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Follows the chain at `head`.
pub(super) fn walk(memory: &Memory, table: u64, size: u16, head: u16, indirect: bool) -> Walked {
    let mut walked = Walked::default();
    walked.ended = walked.follow(memory, table, size, head, indirect).is_some();
    walked
}

impl Walked {
    /// `None`: there is no end.
    fn follow(&mut self, memory: &Memory, table: u64, size: u16, head: u16, indirect: bool) -> Option<()> {
        let (mut table, mut size, mut index, mut inside) = (table, size, head, false);
        for _ in 0..1024 {
            if index >= size {
                return None;
            }
            let at = table.checked_add(16 * u64::from(index))?;
            let descriptor = memory.get(at, 16)?;
            self.tables.push((at, 16));
            let addr = u64::from_le_bytes(descriptor[..8].try_into().unwrap());
            let len = u32::from_le_bytes(descriptor[8..12].try_into().unwrap());
            let flags = u16::from_le_bytes(descriptor[12..14].try_into().unwrap());
            if flags & INDIRECT != 0 {
                let entries = len / 16;
                let whole = len.is_multiple_of(16) && (1..=1024).contains(&entries);
                if !indirect || inside || flags & NEXT != 0 || !whole {
                    return None;
                }
                (table, size, index, inside) = (addr, u16::try_from(entries).unwrap(), 0, true);
                continue;
            }
            self.take((addr, len), flags & WRITE != 0, memory);
            if flags & NEXT == 0 {
                return Some(());
            }
            index = u16::from_le_bytes(descriptor[14..].try_into().unwrap());
        }
        None
    }

    fn take(&mut self, piece: Piece, writable: bool, memory: &Memory) {
        self.last = None;
        if piece.1 == 0 {
            return;
        }
        if !memory.holds(piece.0, piece.1.into()) || !writable && !self.writable.is_empty() {
            self.bad = true;
            return;
        }
        if writable {
            self.last = Some(piece);
            self.writable.push(piece);
        } else {
            self.readable.push(piece);
        }
    }
}

/// The length of pieces.
pub(super) fn len(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.1)).sum()
}

/// Puts `bytes` into the pieces, from `offset` on: what is written where.
pub(super) fn spread(pieces: &[Piece], offset: u64, bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let (mut skip, mut rest, mut parts) = (offset, bytes, Vec::new());
    for &(at, len) in pieces {
        let inside = skip.min(len.into());
        skip -= inside;
        let room = usize::try_from(u64::from(len) - inside).unwrap().min(rest.len());
        let (part, behind) = rest.split_at(room);
        if !part.is_empty() {
            parts.push((at + inside, part.to_vec()));
        }
        rest = behind;
    }
    parts
}

/// Whether two ranges share a byte.
pub(super) fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}
