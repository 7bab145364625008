//! Something that only becomes longer, in parts, each reached without a lock.

use std::ops::Range;
use std::sync::OnceLock;

/// How many parts there may be.
const PARTS_MAX: usize = 64;

/// Parts in a row. Those that are there stay where they are while others are added.
pub(crate) struct Parts<T>([OnceLock<(Range<usize>, T)>; PARTS_MAX]);

/// There are as many parts as there may be.
#[derive(Debug, thiserror::Error)]
#[error("it has grown {} times, which is as often as it can", PARTS_MAX - 1)]
pub(crate) struct TooManyParts;

impl<T> Parts<T> {
    /// A first part of `len` elements.
    pub(crate) fn new(len: usize, first: T) -> Self {
        let parts = Self([const { OnceLock::new() }; PARTS_MAX]);
        let [place, ..] = &parts.0;
        let _ = place.set((0..len, first));
        parts
    }

    /// How long all of it is.
    pub(crate) fn len(&self) -> usize {
        self.all().last().map_or(0, |(range, _)| range.end)
    }

    /// Adds a part of `len` elements behind the others. One caller at a time.
    ///
    /// # Errors
    /// There are too many.
    pub(crate) fn add(&self, len: usize, part: T) -> Result<(), TooManyParts> {
        let start = self.len();
        let place = self.0.iter().find(|place| place.get().is_none()).ok_or(TooManyParts)?;
        place.set((start..start + len, part)).map_err(|_| TooManyParts)
    }

    /// The part that has this element, and the element's place in it.
    pub(crate) fn at(&self, index: usize) -> Option<(&T, usize)> {
        let (range, part) = self.all().find(|(range, _)| range.contains(&index))?;
        Some((part, index - range.start))
    }

    /// What the parts have of `range`, which counts from the beginning of the first: each with the range in that part.
    pub(crate) fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = (&T, Range<usize>)> {
        self.all().filter_map(move |(part_range, part)| {
            let (start, end) = (range.start.max(part_range.start), range.end.min(part_range.end));
            (start < end).then(|| (part, start - part_range.start..end - part_range.start))
        })
    }

    fn all(&self) -> impl Iterator<Item = &(Range<usize>, T)> {
        self.0.iter().map_while(OnceLock::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_element_is_in_one_part() {
        let parts = Parts::new(3, 'a');
        parts.add(2, 'b').unwrap();
        parts.add(4, 'c').unwrap();
        assert_eq!(parts.len(), 9);
        let found: Vec<_> = (0..10).map(|index| parts.at(index).map(|(part, at)| (*part, at))).collect();
        let expected =
            [(0, 'a'), (1, 'a'), (2, 'a'), (0, 'b'), (1, 'b'), (0, 'c'), (1, 'c'), (2, 'c'), (3, 'c')];
        let mut expected: Vec<_> = expected.iter().map(|&(at, part)| Some((part, at))).collect();
        expected.push(None);
        assert_eq!(found, expected);
        let pieces: Vec<_> = parts.pieces(2..7).map(|(part, range)| (*part, range)).collect();
        assert_eq!(pieces, [('a', 2..3), ('b', 0..2), ('c', 0..2)]);
        assert_eq!(parts.pieces(4..4).count() + parts.pieces(9..12).count(), 0);
    }

    #[test]
    fn there_is_an_end() {
        let parts = Parts::new(1, 0);
        for part in 1..PARTS_MAX {
            parts.add(1, part).unwrap();
        }
        assert!(parts.add(1, PARTS_MAX).is_err());
        assert_eq!((parts.len(), parts.at(63)), (64, Some((&63, 0))));
    }
}
