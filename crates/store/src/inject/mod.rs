//! Faults on purpose: a medium that fails where, when and how somebody wants to see it.
//!
//! A [`FaultRule`] says so in a line of text; [`Faults`] are the rules of one disk. A store that was given some
//! (`inject`) fails as its medium would have: everything above it, and the disk's guest, meets what it would meet
//! there. What a fault does not concern works as ever.

mod rule;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_zbd_zones::SECTOR_LEN_BYTES;

use crate::store::Store;
pub(crate) use rule::{Fault, Operation, Place};
pub use rule::{FaultRule, FaultRuleError};

/// The fault rules of one disk, and how often each was met. A clone is the same rules and the same counts.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<[Active]>);

/// A rule on a disk.
#[derive(Debug)]
struct Active {
    rule: FaultRule,
    /// In bytes from the disk's start.
    range: Range<u64>,
    /// How many operations were met that the rule is for.
    met: AtomicU64,
}

impl Faults {
    /// Rules for the disk in `store`.
    ///
    /// # Errors
    /// A rule names a zone or a sector that the disk does not have.
    pub fn new(rules: &[FaultRule], store: &dyn Store) -> Result<Self, FaultRuleError> {
        let sector_len = u64::from(SECTOR_LEN_BYTES);
        let sectors = store.capacity_bytes() / sector_len;
        let active = rules.iter().map(|rule| {
            let range = match rule.place.clone() {
                Place::Anywhere => 0..sectors,
                Place::Sectors(range) => {
                    if range.end > sectors {
                        return Err(FaultRuleError::NoSuchSector { rule: rule.to_string(), sectors });
                    }
                    range
                }
                Place::Zones(range) => {
                    let Some(geometry) = store.geometry() else {
                        return Err(FaultRuleError::NoZones { rule: rule.to_string() });
                    };
                    let zones = geometry.zone_count();
                    if range.end > zones {
                        return Err(FaultRuleError::NoSuchZone { rule: rule.to_string(), zones });
                    }
                    let last = range.end - 1;
                    geometry.zone_start(range.start)
                        ..geometry.zone_start(last) + u64::from(geometry.zone_len_sectors(last))
                }
            };
            // Sectors of a disk whose length in bytes is a u64.
            let range = range.start * sector_len..range.end * sector_len;
            Ok(Active { rule: rule.clone(), range, met: AtomicU64::new(0) })
        });
        active.collect::<Result<_, _>>().map(Self)
    }

    /// What is to happen to an operation on these bytes of the disk. Each call counts.
    pub(crate) fn meet(&self, operation: Operation, range: Range<u64>) -> Option<Fault> {
        // All rules count, also where an earlier one has it already.
        let hits = self.0.iter().filter(|active| active.meets(operation, &range));
        let first = hits.fold(None, |first, active| first.or(Some(active)))?;
        let sectors = range.start / u64::from(SECTOR_LEN_BYTES)..range.end / u64::from(SECTOR_LEN_BYTES);
        match operation {
            Operation::Flush | Operation::Engine => log::info!("injected: {}", first.rule),
            _ => log::info!("injected: {} at sectors {sectors:?}", first.rule),
        }
        Some(first.rule.fault)
    }

    /// The same where only an errno makes sense.
    pub(crate) fn check(&self, operation: Operation, range: Range<u64>) -> io::Result<()> {
        match self.meet(operation, range) {
            Some(fault) => Err(fault.error()),
            None => Ok(()),
        }
    }
}

impl Active {
    fn meets(&self, operation: Operation, range: &Range<u64>) -> bool {
        let placeless = matches!(operation, Operation::Flush | Operation::Engine);
        let here = placeless || self.range.start < range.end && range.start < self.range.end;
        if operation != self.rule.operation || !here {
            return false;
        }
        let before = self.met.fetch_add(1, Ordering::Relaxed);
        let FaultRule { after, times, .. } = self.rule;
        before >= after && times.is_none_or(|times| before - after < times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::RamStore;

    fn faults(rules: &[&str]) -> Faults {
        let rules: Vec<FaultRule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Faults::new(&rules, &RamStore::plain(1 << 20).unwrap()).unwrap()
    }

    #[test]
    fn a_rule_is_met_where_and_when_it_says() {
        let faults = faults(&["write:eio@lba=8..16,after=2,times=2", "read:short@lba=9"]);
        let write = |range| faults.meet(Operation::Write, range);
        let eio = Some(Fault::Errno(libc::EIO));
        // Beside it nothing is counted.
        for range in [0..4096, 8192..12288] {
            assert_eq!(write(range), None);
        }
        assert_eq!(faults.meet(Operation::Clear, 4096..8192), None);
        let met: Vec<_> = [0..4097, 8191..9000, 4096..8192, 0..1 << 20, 4096..8192].map(write).into();
        assert_eq!(met, [None, None, eio, eio, None]);
        assert_eq!(faults.meet(Operation::Read, 4608..5120), Some(Fault::Short));
        assert_eq!(faults.meet(Operation::Read, 5120..5632), None);
        // A clone goes on where the other one is.
        let again = Faults::clone(&faults);
        assert_eq!(again.meet(Operation::Write, 4096..8192), None);
    }

    #[test]
    fn every_rule_counts_for_itself() {
        let faults = faults(&["flush:eio@times=1", "flush:enospc@after=1,times=1"]);
        let met = [0; 3].map(|_| faults.meet(Operation::Flush, 0..0));
        assert_eq!(met, [Some(Fault::Errno(libc::EIO)), Some(Fault::Errno(libc::ENOSPC)), None]);
    }
}
