//! The data area against what the zones' states say of it, the file's length, and what lies between the areas.

use std::mem::offset_of;
use std::ops::Range;

use virtio_zbd_zones::{Condition, SECTOR_LEN_BYTES, ZoneKind, ZoneState};

use super::report::finding;
use super::{FindingKind, Frame, Remedy, Severity, States, Walk, fault_text};
use crate::image::format::{BLOCK_LEN_BYTES, SUPERBLOCKS_END_BYTES, Superblock};
use crate::image::recover::is_swept;
use crate::image::{ImageFault, LastUse};

const SECTOR: u64 = SECTOR_LEN_BYTES as u64;

/// The file must reach to the end of the data area. What was cut off may have been data, or only a hole.
pub(super) fn check_length(walk: &mut Walk<'_>, frame: &Frame, states: &States) {
    let (len, end) = (walk.len_bytes, frame.layout.data.end);
    if len > end {
        let text = format!("the file has {} bytes behind the image's end", len - end);
        walk.findings.add(finding(FindingKind::FileLonger, Severity::Note, end..len, text));
    }
    if len >= end {
        return;
    }
    let mut lost = 0u64;
    let from = len.max(frame.layout.data.start);
    let first = frame.geometry.zone_of((from - frame.layout.data.start) / SECTOR).unwrap_or(0);
    for zone in first..frame.geometry.zone_count() {
        let bytes = frame.layout.zone_bytes(&frame.geometry, zone);
        let kept_end = match states.of(zone) {
            // Anything may have been there.
            Some(ZoneState { condition: Condition::NotWp, .. }) | None => bytes.end,
            Some(state) => bytes.start + u64::from(state.wp_sectors) * SECTOR,
        };
        let cut = bytes.start.max(len)..kept_end;
        if cut.is_empty() {
            continue;
        }
        lost += 1;
        let what = match states.of(zone) {
            Some(ZoneState { condition: Condition::NotWp, .. }) => {
                "and, being conventional, may have had data"
            }
            None => "and how far its data reached is not known",
            Some(_) => "of its data",
        };
        let sector = (cut.start - bytes.start) / SECTOR;
        let text = format!(
            "zone {zone} has lost {} bytes {what}: from its sector {sector} on; the file ends at byte {len}",
            cut.end - cut.start
        );
        walk.findings
            .add(finding(FindingKind::ZoneCut, Severity::Fatal, cut, text).zones(zone..zone + 1).lost());
    }
    let fault = ImageFault::TooShort { expected_bytes: end, found_bytes: len };
    let short = finding(FindingKind::FileTooShort, Severity::Fatal, len..end, fault_text(&fault))
        .expected(format!("{end} bytes"));
    // With all states known, nothing but zeros was behind the end of each zone's data, or was to be removed.
    let only_a_hole = lost == 0 && states.all_known() && len >= frame.layout.data.start;
    walk.findings.add(match only_a_hole {
        true => {
            walk.plan.set_len(end);
            short.remedy(
                Remedy::Repair,
                "Nothing was written in what is missing: a repair makes it a hole again",
            )
        }
        false => short.lost(),
    });
}

/// Looks at every stretch of the data area that is not a hole.
pub(super) fn check(walk: &mut Walk<'_>, frame: &Frame, states: &States) {
    let area = frame.layout.data.clone();
    let mut holes = Holes::default();
    let mut zone: Option<Found> = None;
    let mut rest = area.start..area.end.min(walk.len_bytes);
    while !rest.is_empty() {
        let data = match walk.medium.next_data(rest.clone()) {
            Ok(Some(data)) => data,
            Ok(None) => break,
            Err(error) => {
                walk.unreadable(rest, "the data area", &error);
                break;
            }
        };
        let zone_at = |byte: u64| frame.geometry.zone_of((byte - area.start) / SECTOR);
        let (Some(first), Some(last)) = (zone_at(data.start), zone_at(data.end - 1)) else { break };
        for index in first..=last {
            let bytes = frame.layout.zone_bytes(&frame.geometry, index);
            if zone.as_ref().is_none_or(|zone| zone.index != index) {
                if let Some(done) = zone.take() {
                    settle(walk, frame, states, &done);
                    holes.pass(states, &done);
                }
                zone = Some(Found { index, below_bytes: 0, behind: Vec::new() });
            }
            let Some(zone) = &mut zone else { continue };
            let part = bytes.start.max(data.start)..bytes.end.min(data.end);
            let kept_end = kept_end(frame, states, index);
            zone.below_bytes += kept_end.min(part.end).saturating_sub(part.start);
            let behind = part.start.max(kept_end)..part.end;
            if !behind.is_empty() {
                zone.behind.push(behind);
            }
        }
        rest.start = data.end;
    }
    if let Some(done) = zone {
        settle(walk, frame, states, &done);
        holes.pass(states, &done);
    }
    holes.end(walk, frame, states);
}

/// What the file has of one zone.
struct Found {
    index: u32,
    /// Stretches that are not holes, below the end of the zone's data.
    below_bytes: u64,
    /// Those behind it.
    behind: Vec<Range<u64>>,
}

/// Where the data of a zone ends in the file. All of a conventional zone counts; nothing of one whose state is lost.
fn kept_end(frame: &Frame, states: &States, zone: u32) -> u64 {
    let bytes = frame.layout.zone_bytes(&frame.geometry, zone);
    match states.of(zone) {
        Some(ZoneState { condition: Condition::NotWp, .. }) => bytes.end,
        Some(state) => bytes.start + u64::from(state.wp_sectors) * SECTOR,
        None => bytes.start,
    }
}

/// Judges what lies behind the end of a zone's data.
fn settle(walk: &mut Walk<'_>, frame: &Frame, states: &States, zone: &Found) {
    if zone.behind.is_empty() {
        return;
    }
    let state = states.of(zone.index);
    if frame.last_use != LastUse::Closed {
        if state.is_some_and(is_swept) {
            walk.next.swept_zones += 1;
            walk.next.swept_bytes += zone.behind.iter().map(|bytes| bytes.end - bytes.start).sum::<u64>();
        }
        return;
    }
    // A zone whose medium has failed may have anything behind its data, and shows none of it.
    if state.is_some_and(|state| matches!(state.condition, Condition::ReadOnly | Condition::Offline)) {
        return;
    }
    let what = format!("zone {}", zone.index);
    let places: Vec<Range<u64>> =
        zone.behind.iter().filter_map(|bytes| walk.nonzero(bytes.clone(), &what)).collect();
    // A copy that does not keep holes has zeros here: as good.
    let (Some(first), Some(last)) = (places.first(), places.last()) else { return };
    let all = first.start..last.end;
    let zone_start = frame.layout.zone_bytes(&frame.geometry, zone.index).start;
    let from = (all.start - zone_start) / SECTOR;
    let to = (all.end - zone_start).div_ceil(SECTOR);
    let where_ = format!("from its sector {from} to {to} (byte {} to {} of the file)", all.start, all.end);
    let found = |severity, text: String| {
        finding(FindingKind::BehindWritePointer, severity, all.clone(), text)
            .zones(zone.index..zone.index + 1)
    };
    let finding = match state {
        None => {
            found(Severity::Note, format!("zone {}, whose state is lost, has something {where_}", zone.index))
        }
        Some(state) if !states.certain => found(
            Severity::Note,
            format!(
                "zone {} has something behind the {} sectors of its data that are known of, {where_}; a newer version of \
                 its state may have known of it",
                zone.index, state.wp_sectors
            ),
        ),
        // There a failed write gives no place back.
        Some(state) if frame.geometry.kind(zone.index) == ZoneKind::SequentialPreferred => found(
            Severity::Note,
            format!(
                "zone {} has something behind the {} sectors of its data, {where_}: what a failed write has left",
                zone.index, state.wp_sectors
            ),
        ),
        Some(state) => {
            let clear = walk.clear_behind;
            for place in places.iter().filter(|_| clear) {
                let sectors = place.start / SECTOR * SECTOR..place.end.next_multiple_of(SECTOR);
                walk.plan.clear(sectors.start..sectors.end.min(walk.len_bytes));
            }
            let found = found(
                Severity::Damage,
                format!(
                    "zone {} has something behind the {} sectors of its data, {where_}",
                    zone.index, state.wp_sectors
                ),
            )
            .expected("zeros, since the image was closed");
            match clear {
                true => found.remedy(Remedy::Repair, "No read shows it; a repair removes it, and keeps a copy"),
                false => found.remedy(
                    Remedy::Advice,
                    "No read shows it, and it does no harm. If you know that the image's first bytes were not taken from \
                     another image or an older copy, a repair can remove it (--repair --clear-behind); it keeps a copy",
                ),
            }
        }
    };
    walk.findings.add(finding);
}

/// Holes below the ends of zones' data, of all zones.
#[derive(Default)]
struct Holes {
    len_bytes: u64,
    zones: u32,
    first: Option<u32>,
    /// Zones before this one are counted.
    next: u32,
}

impl Holes {
    /// This zone has been looked at, and those before it that have not have no data at all.
    fn pass(&mut self, states: &States, found: &Found) {
        for zone in self.next..found.index {
            self.count(states, zone, 0);
        }
        self.count(states, found.index, found.below_bytes);
        self.next = found.index + 1;
    }

    fn count(&mut self, states: &States, zone: u32, below_bytes: u64) {
        let Some(state) = states.of(zone).filter(|state| state.condition != Condition::NotWp) else { return };
        let hole_bytes = (u64::from(state.wp_sectors) * SECTOR).saturating_sub(below_bytes);
        if hole_bytes > 0 {
            self.len_bytes += hole_bytes;
            self.zones += 1;
            self.first.get_or_insert(zone);
        }
    }

    fn end(mut self, walk: &mut Walk<'_>, frame: &Frame, states: &States) {
        for zone in self.next..frame.geometry.zone_count() {
            self.count(states, zone, 0);
        }
        let Some(first) = self.first.filter(|_| walk.len_bytes >= frame.layout.data.end) else { return };
        let text = format!(
            "{} bytes below the write pointers of {} zones (the first is zone {first}) are holes and read as zeros: a copy \
             that makes zeros holes, or a gap that a failed write has left",
            self.len_bytes, self.zones
        );
        let area = frame.layout.data.clone();
        walk.findings.add(finding(FindingKind::HolesBelowWritePointer, Severity::Note, area, text));
    }
}

/// Bytes that version 1 says nothing about: zero in a new image, kept as they are by every program.
pub(super) fn check_undescribed(walk: &mut Walk<'_>, frame: &Frame) {
    let layout = &frame.layout;
    let words_end = layout.live.start + 8 * u64::from(frame.geometry.zone_count());
    if let Some(at) = frame.superblock.reserved.iter().position(|&byte| byte != 0) {
        let at = offset_of!(Superblock, reserved) + at;
        undescribed(walk, at as u64..BLOCK_LEN_BYTES, "the superblock");
    } else if let Some(at) = frame.superblock.unused_run_byte() {
        undescribed(walk, at as u64..BLOCK_LEN_BYTES, "the superblock");
    }
    let mut areas = [(&layout.pages, "before the zone-state pages"), (&layout.live, "before the live area")];
    areas.sort_by_key(|(area, _)| area.start);
    let [(first, before_first), (second, before_second)] = areas;
    for (gap, place) in [
        (SUPERBLOCKS_END_BYTES..first.start, before_first),
        (first.end..second.start, before_second),
        (words_end..layout.live.end, "behind the live area's words"),
        (second.end..layout.data.start, "before the data area"),
    ] {
        if let Some(bytes) = walk.nonzero(gap, place) {
            undescribed(walk, bytes, place);
        }
    }
    let words = layout.live.start..words_end.min(walk.len_bytes);
    if let Ok(data) = walk.medium.next_data(words.clone())
        && data.is_none_or(|data| data.start > words.start || data.end < words.end)
    {
        let text = "a part of the live area is a hole: its space is not taken from the host, as in a copy that makes zeros \
                    holes";
        walk.findings.add(finding(FindingKind::LiveUnallocated, Severity::Note, words, text).remedy(
            Remedy::NextOpening,
            "The next opening for writing takes it, unless it comes after a kill",
        ));
    }
}

fn undescribed(walk: &mut Walk<'_>, bytes: Range<u64>, place: &str) {
    let text = format!(
        "there is something at byte {} ({place}), where version 1 has zeros; it is kept",
        bytes.start
    );
    walk.findings.add(finding(FindingKind::Undescribed, Severity::Note, bytes, text));
}
