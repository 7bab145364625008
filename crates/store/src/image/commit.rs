//! Making things durable, in the one order that keeps D1 to D3.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

use uuid::Uuid;
use virtio_zbd_zones::{Condition, Geometry, SECTOR_LEN_BYTES, ZoneState};

use super::fault::ZoneRanges;
use super::format::Layout;
use super::live::LiveArea;
use super::pages::{PageBook, checked_state, count_active, is_active};
use super::{Book, Halt, ImageStore, Shape};
use crate::error::StoreError;
use crate::inject::Operation;
use crate::medium::{Medium, clear};
use crate::store::{Commit, CommitOutcome};

/// New content for some pages: the states of their zones, in words.
pub(super) type Changes = BTreeMap<u32, Vec<u64>>;

impl ImageStore {
    /// # The order
    /// 1. The zone states are copied out of the live area. A state is published after its data has been
    ///    written, so all the data that the copy speaks of has been written by now.
    /// 2. The data is synced, if the batch speaks of any: a flush or a finish. A reset speaks of none. (D1,
    ///    D2)
    /// 3. The changed pages are written, each to the slot that does not count, and synced. A power cut before
    ///    the end of this leaves some pages old and some new, and both are right: a page's zones do not
    ///    depend on another's.
    /// 4. The holes of reset zones are punched. Not before: a power cut would find a zone full of zeros with
    ///    a write pointer behind them. Whoever opens the image after a crash between 3 and 4 punches them
    ///    then.
    ///
    /// Without a flush only the entries of the zones that were named are taken from the live area. The others
    /// keep what the medium has: their data is not synced, so a new write pointer could become durable before
    /// what lies below it.
    pub(super) fn commit_work(&self, book: &mut Book, work: &Commit<'_>) -> CommitOutcome {
        let Some(live) = self.live() else {
            return CommitOutcome::failed(StoreError::ReadOnly { name: self.name() });
        };
        if let Some(halt) = &book.halt {
            return CommitOutcome::failed(halt.error(self.name()));
        }
        if let Err(error) = self.check_whole(book, live, work) {
            return CommitOutcome::failed(error);
        }
        if let Err(error) = self.make_durable(book, live, work) {
            return CommitOutcome::failed(error);
        }
        CommitOutcome { hole_failures: self.punch(book, work.reset), ..CommitOutcome::done() }
    }

    /// Somebody may have cut the file off under us. What was there is gone, and a sync that succeeds says nothing
    /// about it: where data is missing that the commit speaks of, it fails. Where the pages are missing, or the
    /// live area, nothing is left to commit, now and later; and nothing is written, because that would make the
    /// file longer again and the loss unseen.
    fn check_whole(&self, book: &mut Book, live: &LiveArea, work: &Commit<'_>) -> Result<(), StoreError> {
        let shape = self.shape();
        let Shape { geometry, layout } = &*shape;
        let found_bytes =
            self.medium.len_bytes().map_err(StoreError::io(self.name(), "finding the file's length"))?;
        if live.is_lost() || found_bytes < layout.live.end {
            let error = Halt::LiveLost.error(self.name());
            log::error!("{error}");
            book.halt = Some(Halt::LiveLost);
            return Err(error);
        }
        let expected_bytes = layout.data.end;
        if found_bytes >= expected_bytes {
            return Ok(());
        }
        // Where the data of a zone ends, if the commit says that it is there.
        let claimed = |zone: u32| {
            let state = ZoneState::from_bits(live.load(usize::try_from(zone).ok()?)?)?;
            let said = match state.condition {
                Condition::Offline => false,
                // Nothing is written there.
                condition if condition != Condition::NotWp && state.wp_sectors == 0 => false,
                // Named, it is taken out of use: nobody is told that its data is there.
                Condition::ReadOnly => work.flush,
                _ => work.flush || work.finished.contains(&zone),
            };
            let bytes = layout.zone_bytes(geometry, zone);
            let end = match state.condition {
                Condition::NotWp => bytes.end,
                _ => bytes.start + u64::from(state.wp_sectors) * u64::from(SECTOR_LEN_BYTES),
            };
            said.then_some(end)
        };
        let lost: Vec<u32> = (0..geometry.zone_count())
            .filter(|&zone| claimed(zone).is_some_and(|end| end > found_bytes))
            .collect();
        if lost.is_empty() {
            return Ok(());
        }
        let ranges = runs(&lost).into_iter().map(|zones| zones.start..=zones.end - 1).collect();
        let lost = format!("data of {} is gone", ZoneRanges(ranges));
        Err(StoreError::CutOff { name: self.name(), expected_bytes, found_bytes, lost })
    }

    fn make_durable(&self, book: &mut Book, live: &LiveArea, work: &Commit<'_>) -> Result<(), StoreError> {
        self.check_named(live, work)?;
        let taken = if work.flush { self.dirty.take() } else { Vec::new() };
        let result = self.write_states(book, live, work, &taken);
        if result.is_err() {
            // The pages of the named zones need no mark: it was set when they were published, and only a
            // flush takes it.
            self.dirty.mark_all(&taken);
        }
        result
    }

    fn write_states(
        &self,
        book: &mut Book,
        live: &LiveArea,
        work: &Commit<'_>,
        taken: &[u32],
    ) -> Result<(), StoreError> {
        let shape = self.shape();
        let Shape { geometry, layout } = &*shape;
        let mut changes = self.snapshot(&book.pages, live, work, taken)?;
        if (work.flush || !work.finished.is_empty())
            && let Err(error) =
                self.faults.check(Operation::Flush, 0..0).and_then(|()| self.medium.sync_data())
        {
            return Err(self.sync_failed(book, error));
        }
        changes.retain(|&page, states| book.pages.needs_write(layout, page, states));
        write_pages(&mut book.pages, &*self.medium, geometry, layout, changes).map_err(
            |failure| match failure {
                PageFailure::Write(error) => StoreError::io(self.name(), "writing zone states")(error),
                PageFailure::Sync(error) => self.sync_failed(book, error),
            },
        )
    }

    /// Makes the image one that a power cut has left: `states` in the pages, and a superblock that names no boot that ever was.
    ///
    /// The data comes first, then the pages, then the superblock, each on the medium before the next. So whenever this ends
    /// early, by a kill or by a power cut of the real kind, there is a good image: up to the superblock the one that was,
    /// which a kill leaves by its live area and a power cut by its pages, old or new.
    pub(super) fn leave_as_cut(&self, book: &mut Book, states: &[ZoneState]) -> Result<(), StoreError> {
        let shape = self.shape();
        let Shape { geometry, layout } = &*shape;
        let name = || self.name();
        if self.live().is_none() {
            return Err(StoreError::ReadOnly { name: name() });
        }
        if let Some(halt) = &book.halt {
            return Err(halt.error(name()));
        }
        self.writes_end.store(true, Ordering::SeqCst);
        let zone_count = geometry.zone_count();
        if u32::try_from(states.len()) != Ok(zone_count) {
            let zone = u32::try_from(states.len()).unwrap_or(u32::MAX);
            return Err(StoreError::NoSuchZone { name: name(), zone, zone_count });
        }
        let mut changes = Changes::new();
        for (zone, state) in (0..).zip(states) {
            let state = state.after_restart(geometry, zone).to_bits();
            let checked = checked_state(geometry, zone, state, "given states", 8 * u64::from(zone));
            checked.map_err(|fault| StoreError::Image { name: name(), fault })?;
            changes.entry(Layout::page_of(zone)).or_default().push(state);
        }
        self.medium.sync_data().map_err(|error| self.sync_failed(book, error))?;
        changes.retain(|&page, states| book.pages.needs_write(layout, page, states));
        write_pages(&mut book.pages, &*self.medium, geometry, layout, changes).map_err(|failure| {
            match failure {
                PageFailure::Write(error) => StoreError::io(name(), "writing zone states")(error),
                PageFailure::Sync(error) => self.sync_failed(book, error),
            }
        })?;
        let no_boot = *Uuid::new_v4().as_bytes();
        book.superblocks
            .write(&*self.medium, |superblock| superblock.live_boot_id = no_boot)
            .map_err(StoreError::io(name(), "writing the superblock"))?;
        book.halt = Some(Halt::Closed);
        Ok(())
    }

    /// What the pages shall hold: the live states of all zones in `taken` and of the named ones, the shadow
    /// of the others.
    fn snapshot(
        &self,
        pages: &PageBook,
        live: &LiveArea,
        work: &Commit<'_>,
        taken: &[u32],
    ) -> Result<Changes, StoreError> {
        let shape = self.shape();
        let Shape { geometry, layout } = &*shape;
        let mut changes = Changes::new();
        for &page in taken {
            let states = layout.page_zones(page).map(|zone| self.live_bits(&shape, live, zone));
            changes.insert(page, states.collect::<Result<_, _>>()?);
        }
        for &zone in work.finished.iter().chain(work.reset) {
            let bits = self.live_bits(&shape, live, zone)?;
            set(layout, &mut changes, pages, zone, bits);
        }
        if work.flush && geometry.max_active_zones() != 0 {
            self.drop_overtaken(&mut changes, pages, live)?;
        }
        Ok(changes)
    }

    /// The words were read one after the other. Meanwhile one zone can have become full or empty after its
    /// word was read, and another one active in its place before its word was read: together they would be
    /// more than may be active, and the image could not be opened. So all zones that the snapshot calls
    /// active are read again, and those that are active no longer are taken as they are now. What remains was
    /// active at the moment between the two readings, all of it: a zone that has data and stops being active
    /// stays so until its reset is committed, and no other commit runs. (Zones without data don't count as
    /// active in a page: a restart finds them empty.) Pages that became dirty in between are looked at for
    /// the same reason, and stay dirty.
    fn drop_overtaken(
        &self,
        changes: &mut Changes,
        pages: &PageBook,
        live: &LiveArea,
    ) -> Result<(), StoreError> {
        let shape = self.shape();
        let Shape { layout, .. } = &*shape;
        let mut looked_at: Vec<u32> = changes.keys().copied().collect();
        looked_at.extend(self.dirty.peek());
        for page in looked_at {
            let zones = layout.page_zones(page);
            let states = changes.get(&page).map_or(pages.shadow_of(layout, page), Vec::as_slice);
            let active: Vec<u32> =
                zones.zip(states).filter(|(_, bits)| is_active(**bits)).map(|(zone, _)| zone).collect();
            for zone in active {
                let bits = self.live_bits(&shape, live, zone)?;
                if !is_active(bits) {
                    set(layout, changes, pages, zone, bits);
                }
            }
        }
        Ok(())
    }

    /// The live state of a zone, as a restart shall find it.
    fn live_bits(&self, shape: &Shape, live: &LiveArea, zone: u32) -> Result<u64, StoreError> {
        let Shape { geometry, layout } = shape;
        let bits = live.load(usize::try_from(zone).unwrap_or(usize::MAX)).unwrap_or(u64::MAX);
        let offset_bytes = layout.live.start + 8 * u64::from(zone);
        // Only `publish` writes there. But the file can be written by others, and what goes into a page must
        // be right.
        let state = checked_state(geometry, zone, bits, "live area", offset_bytes)
            .map_err(|fault| StoreError::Image { name: self.name(), fault })?;
        Ok(state.after_restart(geometry, zone).to_bits())
    }

    /// The named zones exist, and those to be reset are empty: their data will go.
    fn check_named(&self, live: &LiveArea, work: &Commit<'_>) -> Result<(), StoreError> {
        let zone_count = self.shape().geometry.zone_count();
        for &zone in work.finished.iter().chain(work.reset) {
            if zone >= zone_count {
                return Err(StoreError::NoSuchZone { name: self.name(), zone, zone_count });
            }
        }
        for &zone in work.reset {
            let found = live.load(usize::try_from(zone).unwrap_or(usize::MAX)).and_then(ZoneState::from_bits);
            if found != Some(ZoneState::EMPTY) {
                return Err(StoreError::NotEmpty { name: self.name(), zone, found });
            }
        }
        Ok(())
    }

    /// Removes the data of reset zones. Where that fails the zone is named, and as long as it is not made up for
    /// the image will not be marked as clean, so that whoever opens it next tries again.
    fn punch(&self, book: &mut Book, reset: &[u32]) -> Vec<(u32, StoreError)> {
        let shape = self.shape();
        let Shape { geometry, layout } = &*shape;
        let bytes = |zone| layout.zone_bytes(geometry, zone);
        let failure =
            |zone, error| (zone, StoreError::io(self.name(), "removing a reset zone's data")(error));
        let (mut failures, mut reset) = (Vec::new(), reset.to_vec());
        reset.retain(|&zone| {
            let base = layout.data.start;
            let range = bytes(zone).start - base..bytes(zone).end - base;
            let Err(error) = self.faults.check(Operation::Reset, range) else { return true };
            book.unswept.insert(zone);
            failures.push(failure(zone, error));
            false
        });
        for zones in runs(&reset) {
            let whole = bytes(zones.start).start..bytes(zones.end - 1).end;
            if clear(&*self.medium, whole).is_ok() {
                book.unswept.retain(|zone| !zones.contains(zone));
                continue;
            }
            for zone in zones {
                book.unswept.remove(&zone);
                if let Err(error) = clear(&*self.medium, bytes(zone)) {
                    book.unswept.insert(zone);
                    failures.push(failure(zone, error));
                }
            }
        }
        failures
    }

    /// A sync has failed. What was written since the last one may be on the medium, or gone, and Linux will
    /// not say so twice: nothing can be promised until the image is opened again. That opening must not
    /// believe the live area, because the data that it speaks of may be gone, so the superblock is marked.
    pub(super) fn sync_failed(&self, book: &mut Book, error: io::Error) -> StoreError {
        let name = self.name();
        log::error!("{name}: a sync failed ({error}); the image will go back to the last successful flush");
        book.superblocks.mark_in_doubt(&*self.medium);
        book.halt = Some(Halt::SyncFailed(error.to_string()));
        StoreError::io(name, "bringing data to the medium")(error)
    }
}

/// Which half of writing pages failed.
pub(super) enum PageFailure {
    /// The slots that count are as they were.
    Write(io::Error),
    /// Nothing is known of the slots that were written.
    Sync(io::Error),
}

/// Writes pages and syncs them.
///
/// A power cut can leave any of the pages old and the others new. That must not add up to more active zones
/// than the disk allows: where it could, the pages that lose active zones are made durable before those that
/// gain any.
pub(super) fn write_pages(
    pages: &mut PageBook,
    medium: &dyn Medium,
    geometry: &Geometry,
    layout: &Layout,
    changes: Changes,
) -> Result<(), PageFailure> {
    let max_active = usize::try_from(geometry.max_active_zones()).unwrap_or(usize::MAX);
    let mut worst = pages.active();
    let (mut losing, mut gaining) = (Changes::new(), Changes::new());
    for (page, states) in changes {
        let gain = count_active(&states).saturating_sub(pages.active_in(layout, page));
        worst += gain;
        if gain > 0 {
            gaining.insert(page, states)
        } else {
            losing.insert(page, states)
        };
    }
    if max_active == 0 || worst <= max_active {
        losing.append(&mut gaining);
    }
    for batch in [losing, gaining] {
        if batch.is_empty() {
            continue;
        }
        for (&page, states) in &batch {
            pages.write(medium, layout, page, states).map_err(PageFailure::Write)?;
        }
        medium.sync_data().map_err(PageFailure::Sync)?;
        for (&page, states) in &batch {
            pages.settle(layout, page, states);
        }
    }
    Ok(())
}

/// Puts one zone's state into the changes, its page's others from the shadow if the page is new there.
fn set(layout: &Layout, changes: &mut Changes, pages: &PageBook, zone: u32, bits: u64) {
    let page = Layout::page_of(zone);
    let states = changes.entry(page).or_insert_with(|| pages.shadow_of(layout, page).to_vec());
    let within = zone.saturating_sub(layout.page_zones(page).start);
    if let Some(entry) = usize::try_from(within).ok().and_then(|index| states.get_mut(index)) {
        *entry = bits;
    }
}

/// The zones in ascending order, neighbours joined.
fn runs(zones: &[u32]) -> Vec<Range<u32>> {
    let mut sorted = zones.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut runs: Vec<Range<u32>> = Vec::new();
    for zone in sorted {
        match runs.last_mut() {
            Some(run) if run.end == zone => run.end += 1,
            _ => runs.push(zone..zone + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_punched_as_one() {
        assert_eq!(runs(&[5, 3, 4, 9, 3]), [3..6, 9..10]);
        assert_eq!(runs(&[]), []);
    }
}
