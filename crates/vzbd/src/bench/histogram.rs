//! Times of requests, kept in little memory.

use std::time::Duration;

/// Each power of two is cut into so many parts (2 to the power of this): a value is off by 3 % at most.
const PART_BITS: u32 = 5;
const PARTS: usize = 1 << PART_BITS;
const BUCKETS: usize = (u64::BITS - PART_BITS + 1) as usize * PARTS;

/// How many requests took how long.
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max_ns: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, max_ns: 0 }
    }

    pub(crate) fn add(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get_mut(bucket_of(ns)) {
            *bucket += 1;
        }
        self.count += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// The time that `per_mille` of a thousand requests did not exceed, in nanoseconds.
    pub(crate) fn quantile_ns(&self, per_mille: u64) -> u64 {
        let rank = (u128::from(self.count) * u128::from(per_mille)).div_ceil(1000);
        let mut seen = 0u128;
        let found = self.buckets.iter().position(|bucket| {
            seen += u128::from(*bucket);
            seen >= rank && *bucket > 0
        });
        found.map_or(0, |bucket| last_of(bucket).min(self.max_ns))
    }
}

fn bucket_of(ns: u64) -> usize {
    let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(PART_BITS + 1);
    // Below 2 * PARTS after the shift.
    let part = usize::try_from(ns >> shift).unwrap_or(0);
    shift as usize * PARTS + part
}

/// The largest time in a bucket.
fn last_of(bucket: usize) -> u64 {
    let shift = (bucket / PARTS).saturating_sub(1);
    let part = (bucket - shift * PARTS) as u128;
    u64::try_from(((part + 1) << shift) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_goes_into_it_and_is_narrow() {
        let mut values: Vec<u64> = (0..70).chain((6..64).map(|bit| (1 << bit) - 1)).collect();
        values.extend((6..64).flat_map(|bit| [1 << bit, (1 << bit) + (1 << (bit - 3))]));
        values.push(u64::MAX);
        for ns in values {
            let bucket = bucket_of(ns);
            assert!(bucket < BUCKETS, "{ns}");
            let last = last_of(bucket);
            assert!(last >= ns && last - ns <= ns / 32, "{ns} is in a bucket up to {last}");
            assert!(bucket == 0 || last_of(bucket - 1) < ns, "{ns}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_list() {
        let mut histogram = Histogram::new();
        assert_eq!((histogram.quantile_ns(500), histogram.max_ns()), (0, 0));
        for ns in 1..=1000 {
            histogram.add(Duration::from_nanos(ns));
        }
        for (per_mille, expected) in [(0, 1), (1, 1), (500, 500), (990, 990), (999, 999), (1000, 1000)] {
            let found = histogram.quantile_ns(per_mille);
            assert!(found >= expected && found <= expected + expected / 32, "{per_mille}: {found}");
        }
        assert_eq!((histogram.max_ns(), histogram.count()), (1000, 1000));
    }
}
