//! Opening an image: everything is checked before anything is written, and then each step leaves a good image behind.

use std::fs;
use std::io;
use std::ops::Range;

use uuid::Uuid;
use virtio_zbd_zones::{Condition, Geometry, SECTOR_LEN_BYTES, ZoneKind, ZoneState};

use super::commit::{Changes, PageFailure, write_pages};
use super::fault::{ImageFault, ZoneRanges};
use super::format::{BOOT_ID_CLEAN, BOOT_ID_IN_DOUBT, FEATURES_INCOMPAT, Layout};
use super::pages::{PageBook, checked_state};
use super::superblock::Superblocks;
use crate::error::{StoreError, medium_is_bad};
use crate::medium::{Medium, clear};
use crate::words::LiveWords;

/// How the image was left by whoever had it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastUse {
    /// Closed; the zone-state pages have everything.
    Closed,
    /// Its program stopped or was killed since this machine was booted. The live area has everything (D5).
    Killed,
    /// The machine has stopped since, or the image comes from another one. What was flushed counts.
    PowerLost,
    /// The medium failed under it. What was flushed before that counts.
    MediumFailed,
}

/// An image that was read and found good. Nothing has been written yet.
pub(super) struct Checked {
    pub(super) superblocks: Superblocks,
    pub(super) geometry: Geometry,
    pub(super) layout: Layout,
    pub(super) pages: PageBook,
    pub(super) last_use: LastUse,
    /// The states that count, as a restart finds them.
    pub(super) states: Vec<ZoneState>,
}

impl Checked {
    /// Reads and checks everything but the data.
    pub(super) fn read(medium: &dyn Medium, boot_id: [u8; 16], read_only: bool) -> Result<Self, StoreError> {
        let name = medium.name();
        let fault = |fault| StoreError::Image { name: name.to_owned(), fault };
        let superblocks = Superblocks::read(medium)?;
        let superblock = &superblocks.current;
        let unknown_incompat = superblock.features_incompat.get() & !FEATURES_INCOMPAT;
        match (unknown_incompat, superblock.features_ro_compat.get()) {
            (0, 0) => {}
            (0, _) if read_only => {}
            (0, unknown) => return Err(fault(ImageFault::ReadOnlyFeatures { unknown })),
            (unknown, _) => return Err(fault(ImageFault::Features { unknown })),
        }
        let geometry = superblock.geometry().map_err(fault)?;
        let file_len_bytes = medium.len_bytes().map_err(StoreError::io(name, "finding the file's length"))?;
        let layout = Layout::check(superblock, &geometry, file_len_bytes).map_err(fault)?;
        let pages = PageBook::read(medium, &geometry, &layout, superblock.uuid)?;
        let last_use = match superblock.live_boot_id {
            BOOT_ID_CLEAN => LastUse::Closed,
            BOOT_ID_IN_DOUBT => LastUse::MediumFailed,
            live if live == boot_id => LastUse::Killed,
            _ => LastUse::PowerLost,
        };
        if last_use == LastUse::Closed {
            check_newest(&pages, &layout, superblock.page_sequence_sum.get()).map_err(fault)?;
        }
        let states = match last_use {
            LastUse::Killed => read_live(medium, &geometry, &layout)?,
            // The pages' states have been checked already.
            _ => pages.shadow().iter().filter_map(|&bits| ZoneState::from_bits(bits)).collect(),
        };
        check_active(&geometry, &states).map_err(fault)?;
        Ok(Self { superblocks, geometry, layout, pages, last_use, states })
    }

    /// Makes the image ready to be written, and marks it as live in this boot.
    ///
    /// # Why the order is this one
    /// The process may be killed, or the machine may stop, between any two steps, and the next opening must
    /// find a good image.
    ///
    /// 1. *Sync.* After a kill the live states speak of data that may be in the page cache only. It has to be
    ///    on the medium before the pages say so. And a superblock copy that was written last may be in the page
    ///    cache only, also one that says "closed": it has to be whole on the medium before step 5 writes over
    ///    the other one. (After a kill at this point: as before. The power fails: the
    ///    pages count, as ever.)
    /// 2. *Pages.* They take the states that were found. From here on a power cut leaves what a kill would
    ///    have left. It must come before step 3: a zone that was being reset is empty by its live word and
    ///    may be full by its page, and its data must not go while a power cut would still make the page
    ///    count. (A kill in here: the live area counts still, and it is the same. The power fails: each page
    ///    is old or new, and the data is there for both.)
    /// 3. *Sweep.* What lies behind the data of sequential zones goes: writes that were never answered, and
    ///    the data of zones whose reset was cut off between its page and its hole. (A crash in here: the next
    ///    opening sweeps again, because the superblock does not say that the image was closed.)
    /// 4. *Live area.* It takes the states, with open zones closed. (A crash in here after a kill: each word
    ///    is old or new, and a restart makes the same of both. After anything else: the live area does not
    ///    count, since the superblock does not name this boot.)
    /// 5. *Superblock.* It names this boot, so that the live area counts from now on if we are killed. It is
    ///    on the medium before the first write, so that a power cut after that is not mistaken for a clean
    ///    close. (A crash in here: one copy is good, it is the old or the new one, and nothing has been
    ///    written that the old one would hide.)
    pub(super) fn recover(
        &mut self,
        medium: &dyn Medium,
        boot_id: [u8; 16],
    ) -> Result<LiveWords, StoreError> {
        let name = medium.name().to_owned();
        let io = |what| StoreError::io(name.clone(), what);
        let synced = medium.sync_data();
        self.unless_in_doubt(medium, synced, "bringing what was written before to the medium")?;
        if self.last_use == LastUse::MediumFailed {
            self.write_again(medium).map_err(io("writing again what may not be on the medium"))?;
            let synced = medium.sync_data();
            self.unless_in_doubt(medium, synced, "bringing what was written again to the medium")?;
        }
        self.write_pages(medium)?;
        if self.last_use != LastUse::Closed {
            let swept_bytes = sweep(medium, &self.geometry, &self.layout, &mut self.states)
                .map_err(io("removing what lies behind the zones' data"))?;
            // Those that could not be swept are read-only now.
            self.write_pages(medium)?;
            let why = match self.last_use {
                LastUse::Killed => "its program was stopped: nothing is lost",
                LastUse::PowerLost => "the machine was stopped: what was flushed is there",
                _ => "its medium failed: what was flushed before is there",
            };
            log::info!(
                "{name}: the image was not closed, {why} ({swept_bytes} bytes behind the zones' data removed)"
            );
        }
        let live = self.fill_live(medium).map_err(io("filling the live area"))?;
        let went_back = matches!(self.last_use, LastUse::PowerLost | LastUse::MediumFailed);
        let marked = self.superblocks.write(medium, |superblock| {
            superblock.live_boot_id = boot_id;
            if went_back {
                superblock.history = superblock.sequence;
            }
        });
        marked.map_err(io("writing the superblock"))?;
        Ok(live)
    }

    /// After a failed sync something may be in the page cache only, its write reported as failed and
    /// forgotten: a later sync would succeed without it. So what counts of it is written once more. Of the
    /// zone-state pages that is the slot that counts, to the place where it is, so that the older slot is
    /// left alone until this has succeeded; of the sectors, those of zones that are written in any order. What the others
    /// hold was synced before their pages said so. A sector that can't be read is left as it is.
    fn write_again(&self, medium: &dyn Medium) -> io::Result<()> {
        for page in 0..self.layout.page_count {
            self.pages.rewrite(medium, &self.layout, page)?;
        }
        let written_anywhere =
            self.geometry.runs().filter(|(_, kind, _)| *kind != ZoneKind::SequentialRequired);
        for (zones, ..) in written_anywhere {
            let start = |zone| self.layout.zone_bytes(&self.geometry, zone).start.min(self.layout.data.end);
            write_data_again(medium, start(zones.start)..start(zones.end))?;
        }
        Ok(())
    }

    fn write_pages(&mut self, medium: &dyn Medium) -> Result<(), StoreError> {
        let mut changes = Changes::new();
        for page in 0..self.layout.page_count {
            let zones = self.layout.page_zones(page);
            let states: Vec<u64> = zones
                .filter_map(|zone| self.states.get(usize::try_from(zone).ok()?))
                .map(|state| state.to_bits())
                .collect();
            if self.pages.needs_write(&self.layout, page, &states) {
                changes.insert(page, states);
            }
        }
        for page in self.pages.damaged() {
            log::warn!(
                "{}: one of the two places of zone-state page {page} is damaged and is written anew",
                medium.name()
            );
        }
        match write_pages(&mut self.pages, medium, &self.geometry, &self.layout, changes) {
            Ok(()) => {}
            Err(PageFailure::Write(error)) => {
                return Err(StoreError::io(medium.name(), "writing zone states")(error));
            }
            Err(PageFailure::Sync(error)) => {
                return self.unless_in_doubt(medium, Err(error), "bringing zone states to the medium");
            }
        }
        self.repair_pages(medium)
    }

    /// What was written went to its page's damaged slot, if there was one. This is for the other damaged ones.
    fn repair_pages(&mut self, medium: &dyn Medium) -> Result<(), StoreError> {
        let damaged: Vec<u32> = self.pages.damaged().collect();
        if damaged.is_empty() {
            return Ok(());
        }
        for &page in &damaged {
            let written = self.pages.repair(medium, &self.layout, page);
            written.map_err(StoreError::io(medium.name(), "writing zone states"))?;
        }
        let synced = medium.sync_data();
        self.unless_in_doubt(medium, synced, "bringing zone states to the medium")?;
        for page in damaged {
            self.pages.repaired(page);
        }
        Ok(())
    }

    /// A sync that failed is not reported twice: without a mark the next opening would take the live area for whole.
    fn unless_in_doubt(
        &mut self,
        medium: &dyn Medium,
        synced: io::Result<()>,
        what: &'static str,
    ) -> Result<(), StoreError> {
        let Err(error) = synced else { return Ok(()) };
        self.superblocks.mark_in_doubt(medium);
        Err(StoreError::io(medium.name(), what)(error))
    }

    fn fill_live(&self, medium: &dyn Medium) -> io::Result<LiveWords> {
        let range = self.layout.live.clone();
        if self.last_use != LastUse::Killed {
            // By plain writes, so that a full host says so here: where there are holes (a sparse copy of an
            // image has some), a store to the mapping could not say anything and would end the process.
            let mut words: Vec<u8> =
                self.states.iter().flat_map(|state| state.to_bits().to_le_bytes()).collect();
            words.resize(usize::try_from(range.end - range.start).map_err(io::Error::other)?, 0);
            medium.write_at(&words, range.start)?;
        }
        let live = medium.map_words(range.start, self.states.len())?;
        for (index, state) in self.states.iter().enumerate() {
            live.store(index, state.to_bits());
        }
        Ok(live)
    }
}

/// Writes once more what can be read of a stretch of the file.
fn write_data_again(medium: &dyn Medium, mut rest: Range<u64>) -> io::Result<()> {
    let sector_len = usize::try_from(SECTOR_LEN_BYTES).unwrap_or(512);
    let mut bytes = vec![0; 1 << 20];
    let mut most = bytes.len();
    while let Some(data) = medium.next_data(rest.clone())? {
        let mut at = data.start;
        while at < data.end {
            let part = usize::try_from(data.end - at).unwrap_or(usize::MAX).min(most);
            if medium.read_at(&mut bytes[..part], at).is_ok() {
                medium.write_at(&bytes[..part], at)?;
            } else if part > sector_len {
                // Smaller and smaller parts, until what can't be read is a sector of its own.
                most = (part / 2).next_multiple_of(sector_len);
                continue;
            }
            most = (most * 2).min(bytes.len());
            at += part as u64;
        }
        rest.start = data.end;
    }
    Ok(())
}

/// Whether what lies behind a sequential zone's data is removed when the image is opened.
pub(super) fn is_swept(state: ZoneState) -> bool {
    !matches!(state.condition, Condition::NotWp | Condition::Offline)
}

/// Removes what lies behind the data of each sequential zone. Returns how much that was, in whole stretches
/// of the file.
///
/// A zone where the medium is bad does not keep the others from being used: what is left behind its data never shows if
/// nothing is written there any more.
fn sweep(
    medium: &dyn Medium,
    geometry: &Geometry,
    layout: &Layout,
    states: &mut [ZoneState],
) -> io::Result<u64> {
    let mut swept_bytes = 0;
    let sector_len = u64::from(SECTOR_LEN_BYTES);
    let first_sequential = geometry.config().conventional_zones;
    let mut rest = layout.zone_bytes(geometry, first_sequential).start.min(layout.data.end)..layout.data.end;
    while let Some(data) = medium.next_data(rest.clone())? {
        let zone_at = |byte: u64| geometry.zone_of((byte - layout.data.start) / sector_len);
        let (Some(first), Some(last)) = (zone_at(data.start), zone_at(data.end - 1)) else { break };
        for zone in first..=last {
            let Some(state) = usize::try_from(zone).ok().and_then(|index| states.get_mut(index)) else {
                continue;
            };
            if !is_swept(*state) {
                continue;
            }
            let bytes = layout.zone_bytes(geometry, zone);
            let kept_end = bytes.start + u64::from(state.wp_sectors) * sector_len;
            let stale = kept_end.max(data.start)..bytes.end.min(data.end);
            if !stale.is_empty() {
                let stale_bytes = stale.end - stale.start;
                match clear(medium, stale) {
                    Ok(()) => swept_bytes += stale_bytes,
                    Err(error) if medium_is_bad(&error) => {
                        log::error!(
                            "{}: what lies behind the data of zone {zone} can't be removed, the zone is read-only from now \
                             on: {error}",
                            medium.name()
                        );
                        state.condition = Condition::ReadOnly;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        rest.start = data.end;
    }
    Ok(swept_bytes)
}

/// Both places of every page were good when the image was closed, so a damaged one was damaged since; it may
/// have been the newer.
fn check_newest(pages: &PageBook, layout: &Layout, expected: u64) -> Result<(), ImageFault> {
    let found = pages.sequence_sum();
    if found == expected {
        return Ok(());
    }
    let damaged: Vec<u32> = pages.damaged().collect();
    let suspects = if damaged.is_empty() { (0..layout.page_count).collect() } else { damaged };
    let zones = suspects
        .into_iter()
        .map(|page| layout.page_zones(page))
        .map(|zones| zones.start..=zones.end.saturating_sub(1));
    Err(ImageFault::StalePages { zones: ZoneRanges(zones.collect()), expected, found })
}

fn read_live(
    medium: &dyn Medium,
    geometry: &Geometry,
    layout: &Layout,
) -> Result<Vec<ZoneState>, StoreError> {
    let name = medium.name();
    let len = usize::try_from(u64::from(geometry.zone_count()) * 8).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len];
    medium.read_at(&mut bytes, layout.live.start).map_err(StoreError::io(name, "reading the live area"))?;
    let (words, _) = bytes.as_chunks::<8>();
    (0..)
        .zip(words)
        .map(|(zone, word)| {
            let offset_bytes = layout.live.start + 8 * u64::from(zone);
            checked_state(geometry, zone, u64::from_le_bytes(*word), "live area", offset_bytes)
                .map(|state| state.after_restart(geometry, zone))
                .map_err(|fault| StoreError::Image { name: name.to_owned(), fault })
        })
        .collect()
}

pub(super) fn check_active(geometry: &Geometry, states: &[ZoneState]) -> Result<(), ImageFault> {
    let active = states.iter().filter(|state| state.condition.is_active()).count();
    let found = u32::try_from(active).unwrap_or(u32::MAX);
    match geometry.max_active_zones() {
        max_active_zones if max_active_zones != 0 && found > max_active_zones => {
            Err(ImageFault::TooManyActive { found, max_active_zones })
        }
        _ => Ok(()),
    }
}

/// What names this boot of this machine: a new one each time.
pub(super) fn boot_id() -> [u8; 16] {
    let found = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|error| error.to_string())
        .and_then(|text| Uuid::try_parse(text.trim()).map_err(|error| error.to_string()));
    match found {
        Ok(id) => id.into_bytes(),
        Err(error) => {
            log::warn!(
                "this boot can't be told from others ({error}): should this program be killed, the disk goes \
                 back to its last flush"
            );
            Uuid::new_v4().into_bytes()
        }
    }
}
