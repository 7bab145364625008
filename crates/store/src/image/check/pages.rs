//! The zone-state pages, their sum, the live area: what state each zone is in, and whether that is sure.

use std::io;

use uuid::Uuid;
use virtio_zbd_zones::ZoneState;
use zerocopy::IntoBytes;

use super::bits::with_bit_restored;
use super::report::finding;
use super::{Finding, FindingKind, Frame, Remedy, Severity, States, Walk, ZoneCounts, fault_text};
use crate::image::LastUse;
use crate::image::format::{BLOCK_LEN, BLOCK_LEN_BYTES, PAGE_ZONES, StatePage, Unusable};
use crate::image::pages::checked_state;
use crate::image::recover::check_active;

/// Both places of a page.
struct Page {
    index: u32,
    slots: [Slot; 2],
    /// The slot that counts.
    chosen: Option<u8>,
}

struct Slot {
    page: Result<StatePage, Unusable>,
    /// It is there and can be read: it may be written, because what it holds can be kept.
    readable: bool,
    /// The page as it was before one bit flipped, if that is what has happened.
    restored: Option<Box<StatePage>>,
    /// The sequence number that stands there, and whose page it says to be, whether whole or not.
    said: Option<(u64, Uuid)>,
}

impl Page {
    fn slot(&self, slot: u8) -> &Slot {
        &self.slots[usize::from(slot)]
    }

    fn good(&self) -> Option<&StatePage> {
        self.slot(self.chosen?).page.as_ref().ok()
    }

    /// One place is whole and the other is not, or holds the same version once more.
    fn half_lost(&self) -> Option<(u8, &StatePage)> {
        let (chosen, good) = (self.chosen?, self.good()?);
        let other = self.slot(1 - chosen);
        let useless = other.page.as_ref().map_or(true, |other| other.sequence == good.sequence);
        useless.then_some((1 - chosen, good))
    }

    /// The newest version with bits turned back, if there is a newer one than without, and where it is.
    fn restored(&self) -> Option<(u8, &StatePage)> {
        let sequence = self.good().map(|page| page.sequence.get());
        let restored = |slot: u8| Some((slot, self.slot(slot).restored.as_deref()?));
        [restored(0), restored(1)]
            .into_iter()
            .flatten()
            .filter(|(_, page)| sequence.is_none_or(|sequence| page.sequence.get() == sequence + 1))
            .max_by_key(|(_, page)| page.sequence.get())
    }
}

/// What the sum of the sequence numbers says of the pages of a closed image.
enum Sum {
    /// The pages that count are the newest; so is every page of an image that was not closed, as far as one can say.
    Right,
    /// With bits turned back it is right.
    RightOnceRestored,
    /// So many versions are missing.
    Missing(u64),
    /// The pages are newer than what was noted.
    Newer(u64),
    /// Nothing: a page is lost altogether.
    Unknown,
}

pub(super) fn check(walk: &mut Walk<'_>, frame: &Frame) -> States {
    let pages: Vec<Page> = (0..frame.layout.page_count).map(|index| read(walk, frame, index)).collect();
    let sum = sum(frame, &pages);
    let killed = frame.last_use == LastUse::Killed;
    let live = if killed { read_live(walk, frame) } else { Vec::new() };
    let mut zones = Vec::new();
    let missing_pages = pages.iter().filter(|page| page.half_lost().is_some()).count() as u64;
    for page in &pages {
        check_slots(walk, frame, page, &sum, missing_pages, &live);
        let counts = match (&sum, page.restored()) {
            (Sum::RightOnceRestored, Some((_, restored))) => Some(restored),
            _ => page.good(),
        };
        let slot = page.chosen.unwrap_or(0);
        let at = frame.layout.slot_offset_bytes(page.index, slot) + 64;
        for zone in frame.layout.page_zones(page.index) {
            let index = usize::try_from(zone % PAGE_ZONES).unwrap_or(usize::MAX);
            let bits = counts.and_then(|page| page.entries.get(index)).map(|entry| entry.get());
            let offset = at + 8 * u64::from(zone % PAGE_ZONES);
            zones.push(bits.and_then(|bits| state(walk, frame, zone, bits, "zone-state page", offset)));
        }
    }
    check_sum(walk, frame, &sum, missing_pages);
    let certain = matches!(sum, Sum::Right | Sum::RightOnceRestored);
    let in_pages = States { zones, certain };
    let states = if killed { States { zones: live, certain: true } } else { in_pages.clone() };
    count(walk, frame, &pages, &in_pages, &states);
    states
}

/// What one word stands for; what it can't stand for becomes a finding.
fn state(
    walk: &mut Walk<'_>,
    frame: &Frame,
    zone: u32,
    bits: u64,
    area: &'static str,
    offset_bytes: u64,
) -> Option<ZoneState> {
    match checked_state(&frame.geometry, zone, bits, area, offset_bytes) {
        Ok(state) => Some(state.after_restart(&frame.geometry, zone)),
        Err(fault) => {
            let word = finding(
                FindingKind::ZoneState,
                Severity::Fatal,
                offset_bytes..offset_bytes + 8,
                fault_text(&fault),
            );
            let word = word.zones(zone..zone + 1);
            walk.findings.add(match area {
                "live area" => word.remedy(
                    Remedy::Advice,
                    "The live area counts until this machine is booted again; an opening after that takes what was \
                     flushed. What was not flushed would be lost",
                ),
                _ => word.lost(),
            });
            None
        }
    }
}

fn read(walk: &mut Walk<'_>, frame: &Frame, index: u32) -> Page {
    let slots = [0, 1].map(|slot| {
        let at = frame.layout.slot_offset_bytes(index, slot);
        let block = match walk.block(at) {
            Ok(block) => block,
            Err(why) => return Slot { page: Err(why), readable: false, restored: None, said: None },
        };
        let page = StatePage::parse(&block, frame.superblock.uuid, index);
        walk.foreign |= matches!(page, Err(Unusable::OtherImage));
        let mut restored = None;
        if let (Err(Unusable::Checksum { .. } | Unusable::Magic), LastUse::Closed) = (&page, frame.last_use) {
            restored = with_bit_restored(&block)
                .and_then(|block| StatePage::parse(&block, frame.superblock.uuid, index).ok())
                .filter(|page| states_can_be(frame, index, page))
                .map(Box::new);
        }
        Slot { page, readable: true, restored, said: Some(said(&block)) }
    });
    let chosen = match (&slots[0].page, &slots[1].page) {
        (Ok(a), Ok(b)) if a.sequence == b.sequence && a != b => None,
        (Ok(a), Ok(b)) if a.sequence.get() < b.sequence.get() => Some(1),
        (Ok(_), _) => Some(0),
        (_, Ok(_)) => Some(1),
        _ => None,
    };
    Page { index, slots, chosen }
}

fn said(block: &[u8; BLOCK_LEN]) -> (u64, Uuid) {
    let (mut sequence, mut uuid) = ([0; 8], [0; 16]);
    sequence.copy_from_slice(&block[16..24]);
    uuid.copy_from_slice(&block[24..40]);
    (u64::from_le_bytes(sequence), Uuid::from_bytes(uuid))
}

/// Whether all zones of a page can be in the states that it gives.
fn states_can_be(frame: &Frame, index: u32, page: &StatePage) -> bool {
    let zones = frame.layout.page_zones(index);
    zones.zip(&page.entries).all(|(zone, entry)| {
        ZoneState::from_bits(entry.get()).is_some_and(|state| state.check(&frame.geometry, zone).is_ok())
    })
}

fn sum(frame: &Frame, pages: &[Page]) -> Sum {
    if frame.last_use != LastUse::Closed {
        return Sum::Right;
    }
    let expected = frame.superblock.page_sequence_sum.get();
    let sum_of = |sequence: &dyn Fn(&Page) -> Option<u64>| {
        pages.iter().try_fold(0u64, |sum, page| Some(sum.wrapping_add(sequence(page)?)))
    };
    let good = |page: &Page| page.good().map(|page| page.sequence.get());
    let restored = |page: &Page| page.restored().map(|(_, page)| page.sequence.get()).or_else(|| good(page));
    let found = sum_of(&good);
    if found == Some(expected) {
        return Sum::Right;
    }
    if sum_of(&restored) == Some(expected) {
        return Sum::RightOnceRestored;
    }
    match found.map(|found| (expected.wrapping_sub(found), found.wrapping_sub(expected))) {
        None => Sum::Unknown,
        Some((missing, newer)) if missing <= newer => Sum::Missing(missing),
        Some((_, newer)) => Sum::Newer(newer),
    }
}

/// Judges both places of a page by what the sum says.
fn check_slots(
    walk: &mut Walk<'_>,
    frame: &Frame,
    page: &Page,
    sum: &Sum,
    missing_pages: u64,
    live: &[Option<ZoneState>],
) {
    let (index, zones) = (page.index, frame.layout.page_zones(page.index));
    let bytes = |slot: u8| {
        let at = frame.layout.slot_offset_bytes(index, slot);
        at..at + BLOCK_LEN_BYTES
    };
    if let (Sum::RightOnceRestored, Some((slot, restored))) = (sum, page.restored()) {
        let text = format!("{}; but for one bit it is whole", slot_text(frame, page, slot));
        walk.findings.add(
            finding(FindingKind::PageNewestLost, Severity::Fatal, bytes(slot), text).zones(zones.clone()).remedy(
                Remedy::Repair,
                "With that bit turned back, its checksum and the sum of the sequence numbers are right: a repair does that",
            ),
        );
        walk.plan.write(bytes(slot).start, restored.as_bytes());
        refill(walk, frame, page, 1 - slot, restored);
        return;
    }
    if page.chosen.is_none() {
        return lost(walk, frame, page, live);
    }
    let (Some(chosen), Some(good)) = (page.chosen, page.good()) else { return };
    let other = 1 - chosen;
    if let Some((bad, _)) = page.half_lost() {
        let slot =
            finding(FindingKind::SlotDamaged, Severity::Damage, bytes(bad), slot_text(frame, page, bad))
                .zones(zones.clone())
                .expected(format!(
                    "version {} or {}",
                    good.sequence.get().saturating_sub(1),
                    good.sequence.get() + 1
                ));
        if !page.slot(bad).readable {
            // What can't be read can't be kept, and so a repair leaves it alone.
            let older = !matches!(sum, Sum::Missing(_));
            walk.findings.add(match older {
                true => slot.remedy(
                    Remedy::NextOpening,
                    "The other place counts; the next opening for writing writes this one anew. Look at the host's disk \
                     and its log",
                ),
                false => slot.remedy(Remedy::Advice, "Look at the host's disk and its log; copy what can be read"),
            });
            return;
        }
        match sum {
            _ if frame.last_use != LastUse::Closed => walk.findings.add(Finding {
                severity: Severity::Note,
                ..slot.remedy(
                    Remedy::NextOpening,
                    "A write was under way here when its program or the machine stopped; the other place counts, and the next opening \
                     for writing writes this one anew",
                )
            }),
            Sum::Right | Sum::RightOnceRestored => {
                walk.plan.write(bytes(bad).start, good.one_before().as_bytes());
                walk.findings.add(slot.remedy(
                    Remedy::Repair,
                    "It was the older version, as the sum of the sequence numbers says: nothing is lost. A repair, or the \
                     next opening for writing, writes it anew",
                ));
            }
            Sum::Missing(missing) if *missing == missing_pages => walk.findings.add(Finding {
                kind: FindingKind::PageNewestLost,
                severity: Severity::Fatal,
                ..slot.remedy(
                    Remedy::Copy,
                    "It was the newest version, as the sum of the sequence numbers says; the version before it may not \
                     know all data of these zones. Use a copy of the image",
                )
            }),
            _ => walk.findings.add(slot.remedy(
                Remedy::Copy,
                "Whether it was the newest version can't be told here, so it is left as it is",
            )),
        }
        return;
    }
    let Ok(older) = &page.slot(other).page else { return };
    let (newest, before) = (good.sequence.get(), older.sequence.get());
    let trusted = matches!(sum, Sum::Right | Sum::RightOnceRestored);
    let refilled = |finding: Finding| {
        match trusted {
        true => finding.remedy(
            Remedy::Repair,
            "The other place counts and is whole; a repair writes its content here, too, as the version before",
        ),
        false => finding.remedy(Remedy::Copy, "The other place is not the newest version either"),
    }
    };
    let text = match () {
        () if newest - before > 1 => format!(
            "zone-state page {index}, place {other} (byte {}) holds version {before}, the other place {newest}: a write to \
             it was lost",
            bytes(other).start
        ),
        () if !states_can_be(frame, index, older) => format!(
            "zone-state page {index}, place {other} (byte {}) is whole, but gives zones states that can't be",
            bytes(other).start
        ),
        () => return,
    };
    let slot = finding(FindingKind::SlotStale, Severity::Damage, bytes(other), text).zones(zones);
    walk.findings.add(refilled(slot.expected(format!("version {}", newest.saturating_sub(1)))));
    if trusted {
        walk.plan.write(bytes(other).start, good.one_before().as_bytes());
    }
}

/// Puts the other place of a page right, if it is not.
fn refill(walk: &mut Walk<'_>, frame: &Frame, page: &Page, slot: u8, newest: &StatePage) {
    let is_before = |older: &StatePage| older.sequence.get() + 1 == newest.sequence.get();
    let slot_found = page.slot(slot);
    if slot_found.page.as_ref().is_ok_and(is_before) || !slot_found.readable {
        return;
    }
    let at = frame.layout.slot_offset_bytes(page.index, slot);
    walk.plan.write(at, newest.one_before().as_bytes());
    let text = slot_text(frame, page, slot);
    walk.findings.add(
        finding(FindingKind::SlotDamaged, Severity::Damage, at..at + BLOCK_LEN_BYTES, text)
            .zones(frame.layout.page_zones(page.index))
            .remedy(Remedy::Repair, "It was the older version; a repair writes it anew"),
    );
}

/// Neither place counts. After a kill the live area has what they had.
fn lost(walk: &mut Walk<'_>, frame: &Frame, page: &Page, live: &[Option<ZoneState>]) {
    let zones = frame.layout.page_zones(page.index);
    let index = |zone: u32| usize::try_from(zone).unwrap_or(usize::MAX);
    let states: Option<Vec<u64>> = live
        .get(index(zones.start)..index(zones.end))
        .and_then(|states| states.iter().map(|state| state.map(ZoneState::to_bits)).collect());
    let states = states.filter(|_| page.slots.iter().all(|slot| slot.readable));
    for slot in [0, 1] {
        let at = frame.layout.slot_offset_bytes(page.index, slot);
        let text = match (&page.slots[0].page, &page.slots[1].page) {
            (Ok(a), Ok(_)) => format!(
                "zone-state page {}: both places (the other is at byte {}) have sequence number {} and differ",
                page.index,
                frame.layout.slot_offset_bytes(page.index, 1 - slot),
                a.sequence.get()
            ),
            _ => format!("{}, and the other place is no better", slot_text(frame, page, slot)),
        };
        let found = finding(FindingKind::PageLost, Severity::Fatal, at..at + BLOCK_LEN_BYTES, text)
            .zones(zones.clone());
        let Some(states) = &states else {
            walk.findings.add(found.lost());
            continue;
        };
        let anew = StatePage::new(frame.superblock.uuid, page.index, 2 - u64::from(slot), states);
        walk.plan.write(at, anew.as_bytes());
        walk.findings.add(found.remedy(
            Remedy::Repair,
            "The live area of this boot has the states of these zones: a repair writes them here",
        ));
    }
}

/// What is the matter with one place of a page.
fn slot_text(frame: &Frame, page: &Page, slot: u8) -> String {
    let found = page.slot(slot);
    let at = frame.layout.slot_offset_bytes(page.index, slot);
    let mut text = format!("zone-state page {}, place {slot} (byte {at})", page.index);
    match &found.page {
        Ok(_) => text += " holds the same version as the other place",
        Err(why) => text += &format!(" {why}"),
    }
    match (&found.page, found.said) {
        (Err(Unusable::OtherImage), Some((_, uuid))) => text += &format!(" ({uuid})"),
        (Err(Unusable::Checksum { .. }), Some((sequence, _))) => {
            text += &format!("; it says to be version {sequence}");
        }
        _ => {}
    }
    text
}

fn check_sum(walk: &mut Walk<'_>, frame: &Frame, sum: &Sum, missing_pages: u64) {
    let text = match sum {
        Sum::Right | Sum::RightOnceRestored | Sum::Unknown => return,
        Sum::Missing(missing) => format!(
            "the zone-state pages are {missing} versions older than when the image was closed; {missing_pages} of their \
             places are damaged"
        ),
        Sum::Newer(newer) => {
            format!("the zone-state pages are {newer} versions newer than when the image was closed")
        }
    };
    let advice = match sum {
        Sum::Newer(_) => "The superblock is older than the pages: use a copy of the image",
        Sum::Missing(missing) if *missing == missing_pages => {
            "Each damaged place held the newest version: use a copy of the image"
        }
        _ => "Which zones are older than they were can't be told: use a copy of the image",
    };
    walk.findings.add(
        finding(FindingKind::SequenceSum, Severity::Fatal, 168..176, text)
            .expected(format!("a sum of {}", frame.superblock.page_sequence_sum.get()))
            .remedy(Remedy::Copy, advice),
    );
}

/// The states in the live area, which count.
fn read_live(walk: &mut Walk<'_>, frame: &Frame) -> Vec<Option<ZoneState>> {
    let zone_count = frame.geometry.zone_count();
    let start = frame.layout.live.start;
    let range = start..start + 8 * u64::from(zone_count);
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
    let read = match range.end <= walk.len_bytes {
        true => walk.medium.read_at(&mut bytes, start),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    };
    if let Err(error) = read {
        walk.unreadable(range, "the live area", &error);
        return (0..zone_count).map(|_| None).collect();
    }
    let (words, _) = bytes.as_chunks::<8>();
    (0..)
        .zip(words)
        .map(|(zone, word)| {
            let bits = u64::from_le_bytes(*word);
            let open = ZoneState::from_bits(bits).is_some_and(|state| state.condition.is_open());
            walk.next.open_zones += u32::from(open);
            state(walk, frame, zone, bits, "live area", start + 8 * u64::from(zone))
        })
        .collect()
}

/// What an opening will find and do, and whether it will find too many active zones.
fn count(walk: &mut Walk<'_>, frame: &Frame, pages: &[Page], in_pages: &States, states: &States) {
    let known: Vec<ZoneState> = states.zones.iter().copied().flatten().collect();
    if let Err(fault) = check_active(&frame.geometry, &known) {
        let area = match frame.last_use {
            LastUse::Killed => frame.layout.live.clone(),
            _ => frame.layout.pages.clone(),
        };
        walk.findings
            .add(finding(FindingKind::TooManyActive, Severity::Fatal, area, fault_text(&fault)).lost());
    }
    let next = &mut walk.next;
    next.live_area_counts = frame.last_use == LastUse::Killed;
    for page in pages {
        let zones = frame.layout.page_zones(page.index);
        let differing = zones.filter(|&zone| states.of(zone) != in_pages.of(zone)).count();
        let differing = u32::try_from(differing).unwrap_or(u32::MAX);
        next.unflushed_zones += differing;
        next.pages_written += u32::from(differing > 0 || page.half_lost().is_some());
    }
    let mut zones = ZoneCounts::default();
    for state in known {
        use virtio_zbd_zones::Condition::{
            Closed, Empty, ExplicitOpen, Full, ImplicitOpen, NotWp, Offline, ReadOnly,
        };
        let count = match state.condition {
            NotWp => &mut zones.conventional,
            Empty => &mut zones.empty,
            ImplicitOpen | ExplicitOpen | Closed => &mut zones.closed,
            Full => &mut zones.full,
            ReadOnly => &mut zones.read_only,
            Offline => &mut zones.offline,
        };
        *count += 1;
    }
    next.zones = zones;
}
