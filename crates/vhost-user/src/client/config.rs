//! The configuration space as it was read last: a whole, so that its fields belong together.

/// How much of the configuration space is asked for: a block device's has 96 bytes (virtio 1.x, 5.2.4).
pub(super) const WANTED_BYTES: usize = 96;

/// A reader that looks at the generation before and after compares at least two snapshots in a row. If this
/// many differed each time, they will differ forever.
const DIFFERENT_MAX: u32 = 1000;

/// A snapshot.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) bytes: Vec<u8>,
    /// How much to ask for; None: find out how much there is.
    pub(super) asked_bytes: Option<usize>,
    pub(super) generation: u32,
    /// The back-end has said that it is not like that any more.
    pub(super) stale: bool,
    /// What the driver has written since the reset, in this order: a new back-end does not know of it.
    pub(super) written: Vec<(u32, Vec<u8>)>,
    /// How many snapshots in a row were different from the one before.
    different: u32,
}

/// Snapshots have been different too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unsteady {
    pub(super) reads: u32,
}

impl Config {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            asked_bytes: None,
            generation: 0,
            stale: false,
            written: Vec::new(),
            different: 0,
        }
    }

    /// Takes a new snapshot. The generation changes if it is different, or if the back-end has said that
    /// there was a change.
    pub(super) fn renew(&mut self, bytes: Vec<u8>) -> Result<(), Unsteady> {
        let differs = bytes != self.bytes;
        if differs || self.stale {
            self.generation = self.generation.wrapping_add(1);
        }
        self.different = if differs { self.different + 1 } else { 0 };
        self.stale = false;
        self.bytes = bytes;
        if self.different > DIFFERENT_MAX { Err(Unsteady { reads: self.different }) } else { Ok(()) }
    }

    /// Takes note of what the driver has written. The same bytes are kept once.
    pub(super) fn keep(&mut self, offset_bytes: u32, data: &[u8]) {
        self.written.retain(|(offset, bytes)| (*offset, bytes.len()) != (offset_bytes, data.len()));
        self.written.push((offset_bytes, data.to_vec()));
    }

    /// Some bytes of the snapshot; None if it does not reach that far.
    pub(super) fn get(&self, offset: usize, len_bytes: usize) -> Option<&[u8]> {
        self.bytes.get(offset..offset.checked_add(len_bytes)?)
    }
}

/// Looks for the largest length that `ask` answers, from `WANTED_BYTES` down, and gives back what it answered.
/// `ask` answers every length up to some limit, and none beyond: there are at most 8 questions.
pub(super) fn longest<T, E>(
    mut ask: impl FnMut(usize) -> Result<Option<T>, E>,
) -> Result<Option<(usize, T)>, E> {
    if let Some(answer) = ask(WANTED_BYTES)? {
        return Ok(Some((WANTED_BYTES, answer)));
    }
    let mut found = None;
    let (mut good, mut bad) = (0, WANTED_BYTES);
    while bad - good > 1 {
        let middle = usize::midpoint(good, bad);
        match ask(middle)? {
            Some(answer) => {
                found = Some((middle, answer));
                good = middle;
            }
            None => bad = middle,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_answer_is_found_whatever_the_limit() {
        for limit in 0..=200 {
            let mut questions = 0;
            let found = longest(|len| {
                questions += 1;
                Ok::<_, ()>((len <= limit).then_some(len))
            });
            let expected = limit.min(WANTED_BYTES);
            assert_eq!(found, Ok((expected > 0).then_some((expected, expected))));
            assert!(questions <= 8, "limit {limit}: {questions} questions");
        }
        assert_eq!(longest(|_| Err::<Option<()>, _>("gone")), Err("gone"));
    }

    #[test]
    fn the_generation_follows_the_bytes_and_the_messages() {
        let mut config = Config::new();
        config.renew(vec![1, 2, 3]).unwrap();
        assert_eq!(config.generation, 1);
        config.renew(vec![1, 2, 3]).unwrap();
        assert_eq!(config.generation, 1);
        config.stale = true;
        config.renew(vec![1, 2, 3]).unwrap();
        assert_eq!((config.generation, config.stale), (2, false));
        config.renew(vec![1, 2, 4]).unwrap();
        assert_eq!(config.generation, 3);
        assert_eq!(config.get(1, 2), Some([2, 4].as_slice()));
        assert_eq!(config.get(2, 2), None);
        assert_eq!(config.get(3, 0), Some([].as_slice()));
        assert_eq!(config.get(usize::MAX, 1), None);
    }

    #[test]
    fn a_space_that_never_rests_is_given_up() {
        let mut config = Config::new();
        let mut last = Ok(());
        let mut reads = 0;
        while last.is_ok() {
            reads += 1;
            last = config.renew(vec![u8::try_from(reads % 2).unwrap()]);
        }
        assert_eq!((reads, last), (DIFFERENT_MAX + 1, Err(Unsteady { reads: DIFFERENT_MAX + 1 })));
        // One equal pair and the count begins anew.
        let same = config.bytes.clone();
        config.renew(same).unwrap();
        config.renew(vec![7]).unwrap();
    }
}
