//! The zone-state pages: which slot of each counts, and what the medium holds.

use std::io;

use virtio_zbd_zones::{Condition, Geometry, ZoneState};
use zerocopy::IntoBytes;

use super::fault::{ImageFault, ZoneRanges};
use super::format::{BLOCK_LEN, Layout, PAGE_ZONES, StatePage, Unusable};
use crate::error::StoreError;
use crate::medium::Medium;

/// Slots read in one call at open.
const READ_BLOCKS: u32 = 64;

/// What the zone-state pages on the medium hold, and where the next version of each goes.
pub(super) struct PageBook {
    uuid: [u8; 16],
    pages: Vec<Page>,
    /// The states in the pages that count, one word a zone.
    shadow: Vec<u64>,
    /// How many zones may be active by what is on the medium: the sum over all pages of what each may say.
    active: usize,
}

struct Page {
    sequence: u64,
    /// The slot that counts.
    slot: u8,
    /// The other slot is no older version but damaged.
    other_bad: bool,
    /// The other slot may hold a version that was never acknowledged, with at most this many active zones.
    /// The page must be written again even if its content is the one of the shadow.
    in_doubt: Option<usize>,
}

impl PageBook {
    /// The pages of a new image, as [`write_new`](Self::write_new) leaves them.
    pub(super) fn new(geometry: &Geometry, layout: &Layout, uuid: [u8; 16]) -> Self {
        let shadow =
            (0..geometry.zone_count()).map(|zone| ZoneState::new(geometry, zone).to_bits()).collect();
        let page = |_| Page { sequence: 2, slot: 0, other_bad: false, in_doubt: None };
        Self { uuid, pages: (0..layout.page_count).map(page).collect(), shadow, active: 0 }
    }

    /// The same pages at another place, with the states of a disk that has more zones, as [`write_new`](Self::write_new) leaves them.
    pub(super) fn moved(&self, geometry: &Geometry, layout: &Layout) -> Self {
        let known = u32::try_from(self.shadow.len()).unwrap_or(u32::MAX);
        let more = (known..geometry.zone_count()).map(|zone| ZoneState::new(geometry, zone).to_bits());
        let page = |index| {
            let sequence = self.page(index).map_or(2, |page| page.sequence + 1);
            Page { sequence, slot: 0, other_bad: false, in_doubt: None }
        };
        let shadow: Vec<u64> = self.shadow.iter().copied().chain(more).collect();
        let active = count_active(&shadow);
        Self { uuid: self.uuid, pages: (0..layout.page_count).map(page).collect(), shadow, active }
    }

    /// Writes both slots of every page to a place where nothing is yet that counts.
    pub(super) fn write_new(&self, medium: &dyn Medium, layout: &Layout) -> io::Result<()> {
        for (page, entry) in (0..layout.page_count).zip(&self.pages) {
            for (slot, sequence) in [(0, entry.sequence), (1, entry.sequence - 1)] {
                let block = StatePage::new(self.uuid, page, sequence, self.shadow_of(layout, page));
                medium.write_at(block.as_bytes(), layout.slot_offset_bytes(page, slot))?;
            }
        }
        Ok(())
    }

    /// Reads all pages, takes the newer good slot of each, and checks every state. Writes nothing.
    pub(super) fn read(
        medium: &dyn Medium,
        geometry: &Geometry,
        layout: &Layout,
        uuid: [u8; 16],
    ) -> Result<Self, StoreError> {
        let name = medium.name();
        let fault = |fault| StoreError::Image { name: name.to_owned(), fault };
        let mut book = Self { uuid, pages: Vec::new(), shadow: Vec::new(), active: 0 };
        let mut lost: Option<ImageFault> = None;
        let mut slots = [SlotReader::new(medium, layout, 0), SlotReader::new(medium, layout, 1)];
        for page in 0..layout.page_count {
            let mut candidates = Vec::with_capacity(2);
            for slots in &mut slots {
                candidates.push(slots.next(page).and_then(|block| StatePage::parse(block, uuid, page)));
            }
            match choose(candidates) {
                Ok(chosen) => {
                    let offset = layout.slot_offset_bytes(page, chosen.slot) + 64;
                    for (zone, entry) in layout.page_zones(page).zip(&chosen.page.entries) {
                        let at = offset + 8 * (u64::from(zone % PAGE_ZONES));
                        let state = checked_state(geometry, zone, entry.get(), "zone-state page", at)
                            .map_err(fault)?;
                        book.shadow.push(state.after_restart(geometry, zone).to_bits());
                    }
                    book.pages.push(Page {
                        sequence: chosen.page.sequence.get(),
                        slot: chosen.slot,
                        other_bad: chosen.other_bad,
                        in_doubt: None,
                    });
                }
                Err([first, second]) => {
                    let zones = layout.page_zones(page);
                    let zones = zones.start..=zones.end.saturating_sub(1);
                    // The first such page gives the details, the others only add their zones.
                    match &mut lost {
                        Some(ImageFault::Pages { zones: ranges, .. }) => ranges.0.push(zones),
                        _ => {
                            lost = Some(ImageFault::Pages {
                                zones: ZoneRanges(vec![zones]),
                                first_offset_bytes: layout.slot_offset_bytes(page, 0),
                                first,
                                second_offset_bytes: layout.slot_offset_bytes(page, 1),
                                second,
                            });
                        }
                    }
                }
            }
        }
        book.active = count_active(&book.shadow);
        lost.map_or(Ok(book), |lost| Err(fault(lost)))
    }

    /// The sum of all pages' sequence numbers: what the superblock notes when the image is closed.
    pub(super) fn sequence_sum(&self) -> u64 {
        self.pages.iter().fold(0, |sum, page| sum.wrapping_add(page.sequence))
    }

    /// Makes the damaged slot of a page good again: as the version before the one that counts, with the same
    /// states. So the version that counts stays the one that a closed image's superblock speaks of. It is
    /// good once it is synced: [`repaired`](Self::repaired).
    pub(super) fn repair(&self, medium: &dyn Medium, layout: &Layout, page: u32) -> io::Result<()> {
        let Some(entry) = self.page(page) else { return Ok(()) };
        // No program writes a version 0; should it count nevertheless, its twin does no harm.
        let sequence = entry.sequence.saturating_sub(1);
        let block = StatePage::new(self.uuid, page, sequence, self.shadow_of(layout, page));
        medium.write_at(block.as_bytes(), layout.slot_offset_bytes(page, 1 - entry.slot))
    }

    pub(super) fn repaired(&mut self, page: u32) {
        if let Some(entry) = self.page_mut(page) {
            entry.other_bad = false;
        }
    }

    /// The pages of which only one slot is good.
    pub(super) fn damaged(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.pages).filter(|(_, page)| page.other_bad).map(|(index, _)| index)
    }

    /// The zones of a page, as the medium has them.
    pub(super) fn shadow_of(&self, layout: &Layout, page: u32) -> &[u64] {
        let zones = layout.page_zones(page);
        let index = |zone| usize::try_from(zone).unwrap_or(usize::MAX);
        self.shadow.get(index(zones.start)..index(zones.end)).unwrap_or(&[])
    }

    /// All zones, as the medium has them.
    pub(super) fn shadow(&self) -> &[u64] {
        &self.shadow
    }

    /// How many zones may be active after a power cut now.
    pub(super) fn active(&self) -> usize {
        self.active
    }

    /// How many zones of a page may be active after a power cut now: as the shadow says, or as a version in
    /// doubt does.
    pub(super) fn active_in(&self, layout: &Layout, page: u32) -> usize {
        let in_doubt = self.page(page).and_then(|page| page.in_doubt);
        count_active(self.shadow_of(layout, page)).max(in_doubt.unwrap_or(0))
    }

    /// Whether a page that shall hold `states` has to be written.
    pub(super) fn needs_write(&self, layout: &Layout, page: u32, states: &[u64]) -> bool {
        self.page(page).is_none_or(|page| page.in_doubt.is_some()) || self.shadow_of(layout, page) != states
    }

    /// Writes the next version of a page to the slot that does not count. It counts once it is synced:
    /// [`settle`](Self::settle).
    pub(super) fn write(
        &mut self,
        medium: &dyn Medium,
        layout: &Layout,
        page: u32,
        states: &[u64],
    ) -> io::Result<()> {
        let (uuid, before) = (self.uuid, self.active_in(layout, page));
        let after = before.max(count_active(states));
        self.active += after - before;
        let Some(entry) = self.page_mut(page) else { return Ok(()) };
        entry.in_doubt = Some(after);
        let block = StatePage::new(uuid, page, entry.sequence + 1, states);
        let offset = layout.slot_offset_bytes(page, 1 - entry.slot);
        medium.write_at(block.as_bytes(), offset)
    }

    /// Writes the version of a page that counts once more to where it is.
    pub(super) fn rewrite(&self, medium: &dyn Medium, layout: &Layout, page: u32) -> io::Result<()> {
        let Some(entry) = self.page(page) else { return Ok(()) };
        let block = StatePage::new(self.uuid, page, entry.sequence, self.shadow_of(layout, page));
        medium.write_at(block.as_bytes(), layout.slot_offset_bytes(page, entry.slot))
    }

    /// What [`write`](Self::write) wrote is on the medium.
    pub(super) fn settle(&mut self, layout: &Layout, page: u32, states: &[u64]) {
        self.active -= self.active_in(layout, page);
        self.active += count_active(states);
        let zones = layout.page_zones(page);
        let index = |zone| usize::try_from(zone).unwrap_or(usize::MAX);
        if let Some(shadow) = self.shadow.get_mut(index(zones.start)..index(zones.end)) {
            for (to, from) in shadow.iter_mut().zip(states) {
                *to = *from;
            }
        }
        if let Some(entry) = self.page_mut(page) {
            entry.sequence += 1;
            entry.slot = 1 - entry.slot;
            entry.other_bad = false;
            entry.in_doubt = None;
        }
    }

    fn page(&self, page: u32) -> Option<&Page> {
        self.pages.get(usize::try_from(page).ok()?)
    }

    fn page_mut(&mut self, page: u32) -> Option<&mut Page> {
        self.pages.get_mut(usize::try_from(page).ok()?)
    }
}

/// The state that `bits` stand for, if the zone can be in it.
pub(super) fn checked_state(
    geometry: &Geometry,
    zone: u32,
    bits: u64,
    area: &'static str,
    offset_bytes: u64,
) -> Result<ZoneState, ImageFault> {
    let fault = |why| ImageFault::zone_state(zone, area, offset_bytes, bits, why);
    let state = ZoneState::from_bits(bits).ok_or_else(|| fault(None))?;
    state.check(geometry, zone).map_err(|why| fault(Some(why)))?;
    Ok(state)
}

/// How many of these states use an active resource.
pub(super) fn count_active(states: &[u64]) -> usize {
    states.iter().filter(|&&bits| is_active(bits)).count()
}

/// Whether this state uses an active resource.
pub(super) fn is_active(bits: u64) -> bool {
    ZoneState::from_bits(bits).map(|state| state.condition).is_some_and(Condition::is_active)
}

struct Chosen {
    page: StatePage,
    slot: u8,
    other_bad: bool,
}

/// The newer of two slots. Neither: why, for both.
fn choose(slots: Vec<Result<StatePage, Unusable>>) -> Result<Chosen, [String; 2]> {
    let mut slots = slots.into_iter();
    match (slots.next(), slots.next()) {
        (Some(Ok(first)), Some(Ok(second))) => {
            let (a, b) = (first.sequence.get(), second.sequence.get());
            if a == b && first.as_bytes() != second.as_bytes() {
                let why = format!("has sequence number {a}, as the other one, and differs from it");
                return Err([why.clone(), why]);
            }
            if a < b {
                return Ok(Chosen { page: second, slot: 1, other_bad: false });
            }
            // Twice the same: the other slot is as good as damaged, because it is no older version.
            Ok(Chosen { page: first, slot: 0, other_bad: a == b })
        }
        (Some(Ok(page)), _) => Ok(Chosen { page, slot: 0, other_bad: true }),
        (_, Some(Ok(page))) => Ok(Chosen { page, slot: 1, other_bad: true }),
        (first, second) => Err([first, second].map(|slot| match slot {
            Some(Err(why)) => why.to_string(),
            _ => String::new(),
        })),
    }
}

/// Reads one slot of page after page, many in one call.
struct SlotReader<'a> {
    medium: &'a dyn Medium,
    layout: &'a Layout,
    slot: u8,
    blocks: Vec<u8>,
    first_page: u32,
    /// Up to this page, blocks are read one by one: one of them can't be read.
    singly_until: u32,
}

impl<'a> SlotReader<'a> {
    fn new(medium: &'a dyn Medium, layout: &'a Layout, slot: u8) -> Self {
        Self { medium, layout, slot, blocks: Vec::new(), first_page: 0, singly_until: 0 }
    }

    /// The block of `page`; pages must be asked for in order. One that can't be read is as good as damaged,
    /// and its neighbours are not: the power may have failed while it was written.
    fn next(&mut self, page: u32) -> Result<&[u8], Unusable> {
        let behind = |first_page: u32| usize::try_from(page - first_page).unwrap_or(usize::MAX);
        if behind(self.first_page) >= self.blocks.len() / BLOCK_LEN {
            let left = self.layout.page_count - page;
            let many = left.min(READ_BLOCKS);
            let wanted = if page < self.singly_until { 1 } else { many };
            let mut read = self.read(page, wanted);
            if read.is_err() && wanted > 1 {
                self.singly_until = page + many;
                read = self.read(page, 1);
            }
            if let Err(error) = read {
                self.blocks.clear();
                return Err(Unusable::unreadable(&error));
            }
        }
        let start = behind(self.first_page) * BLOCK_LEN;
        self.blocks.get(start..start + BLOCK_LEN).ok_or(Unusable::Unreadable { errno: None })
    }

    fn read(&mut self, page: u32, blocks: u32) -> io::Result<()> {
        self.blocks.resize(usize::try_from(blocks).unwrap_or(usize::MAX).saturating_mul(BLOCK_LEN), 0);
        self.first_page = page;
        self.medium.read_at(&mut self.blocks, self.layout.slot_offset_bytes(page, self.slot))
    }
}
