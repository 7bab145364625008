//! The two copies of the superblock, and what the one that counts says.

use std::mem::offset_of;

use uuid::Uuid;
use virtio_zbd_zones::Geometry;
use zerocopy::IntoBytes;

use super::bits::with_bit_restored;
use super::report::finding;
use super::{FindingKind, Remedy, Severity, Walk, fault_text};
use crate::image::ImageFault;
use crate::image::format::{
    BLOCK_LEN, BLOCK_LEN_BYTES, BOOT_ID_CLEAN, FEATURES_INCOMPAT, Layout, MAGIC, PAGE_MAGIC,
    SUPERBLOCK_OFFSETS_BYTES, StatePage, Superblock, Unusable, VERSION,
};

/// A copy as it was found.
struct Copy {
    offset_bytes: u64,
    /// `None`: it is not there or can't be read.
    block: Option<[u8; BLOCK_LEN]>,
    parsed: Result<Superblock, Unusable>,
}

impl Copy {
    fn bytes(&self) -> std::ops::Range<u64> {
        self.offset_bytes..self.offset_bytes + BLOCK_LEN_BYTES
    }

    fn has_magic(&self) -> bool {
        self.block.is_some_and(|block| block.starts_with(&MAGIC))
    }
}

/// Finds the superblock that counts; `None`: there is none, and nothing more can be said.
pub(super) fn check(walk: &mut Walk<'_>) -> Option<Superblock> {
    let copies = SUPERBLOCK_OFFSETS_BYTES.map(|offset_bytes| {
        let block = walk.block(offset_bytes);
        let parsed = block.as_ref().map_err(|why| *why).and_then(|block| Superblock::parse(block));
        let block = block.ok();
        Copy { offset_bytes, block, parsed }
    });
    if walk.len_bytes < 2 * BLOCK_LEN_BYTES {
        short(walk);
        return None;
    }
    let [first, second] = &copies;
    let superblock = match (&first.parsed, &second.parsed) {
        (Ok(a), Ok(b)) if a.uuid != b.uuid => of_two_images(walk, [a, b])?,
        (Ok(a), Ok(b)) => of_two_good(walk, [a, b]),
        (Ok(good), Err(why)) => of_one_good(walk, good, second, *why),
        (Err(why), Ok(good)) => of_one_good(walk, good, first, *why),
        (Err(a), Err(b)) => of_none_good(walk, &copies, [*a, *b])?,
    };
    if superblock.version.get() != VERSION {
        let found = superblock.version.get();
        let text = fault_text(&ImageFault::Version { found, supported: VERSION });
        walk.findings.add(
            finding(FindingKind::Version, Severity::Fatal, 8..12, text)
                .expected(format!("version {VERSION}"))
                .remedy(Remedy::NewerProgram, "Nothing else was looked at"),
        );
        walk.repair_nothing(Remedy::NewerProgram, "A newer program may repair it");
        return None;
    }
    Some(superblock)
}

fn of_two_good(walk: &mut Walk<'_>, [first, second]: [&Superblock; 2]) -> Superblock {
    let (a, b) = (first.sequence.get(), second.sequence.get());
    let (newer, older, older_at) = if a < b { (second, first, 0) } else { (first, second, BLOCK_LEN_BYTES) };
    let bytes = older_at..older_at + BLOCK_LEN_BYTES;
    match a.abs_diff(b) {
        0 if first == second => {}
        0 => {
            let text = format!(
                "both superblock copies have sequence number {a} but differ {}",
                difference(first.as_bytes(), second.as_bytes())
            );
            walk.findings.add(
                finding(FindingKind::SuperblocksDiffer, Severity::Damage, bytes, text)
                    .expected("two equal copies")
                    .remedy(
                        Remedy::Advice,
                        "Nothing in the file tells which is right. The program takes the one at byte 0, and makes \
                         both equal when it next opens the image for writing",
                    ),
            );
        }
        1 => walk.findings.add(
            finding(
                FindingKind::SuperblockOlder,
                Severity::Note,
                bytes,
                format!("the superblock copy at byte {older_at} is the version before the other one: its program was stopped between writing the two"),
            )
            .remedy(Remedy::NextOpening, "The newer one counts"),
        ),
        _ => {
            let text = format!(
                "the superblock copy at byte {older_at} has sequence number {}, the other one {}",
                older.sequence.get(),
                newer.sequence.get()
            );
            walk.findings.add(
                finding(FindingKind::SuperblockStale, Severity::Damage, bytes, text)
                    .expected("the same, or one less after a crash")
                    .remedy(Remedy::Repair, "The newer one counts; a repair writes it over the old one"),
            );
            walk.plan.write(older_at, newer.as_bytes());
        }
    }
    newer.clone()
}

fn of_one_good(walk: &mut Walk<'_>, good: &Superblock, bad: &Copy, why: Unusable) -> Superblock {
    let at = bad.offset_bytes;
    let mut text = format!("the superblock copy at byte {at} {why}");
    if let Some(block) = &bad.block {
        // Not merely a damaged UUID but another one: this is, or the other copy is, another image's.
        let uuid_differs = block[24..40].iter().zip(&good.uuid).filter(|(a, b)| a != b).count() > 8;
        walk.foreign |= uuid_differs && block.starts_with(&MAGIC);
        let rest_is_good = block[16..] == good.as_bytes()[16..] && block[..12] == good.as_bytes()[..12];
        if rest_is_good {
            text += "; all but the checksum is as in the other copy";
        } else {
            text += &format!("; it differs from the other copy {}", difference(block, good.as_bytes()));
        }
    }
    let found = finding(FindingKind::SuperblockDamaged, Severity::Damage, bad.bytes(), text)
        .expected("the content of the other copy");
    let found = if bad.block.is_none() {
        // What can't be read can't be kept, and so a repair leaves it alone.
        found.remedy(
            Remedy::NextOpening,
            "The other copy counts; the next opening for writing writes this one anew. Look at the host's disk and its log",
        )
    } else {
        walk.plan.write(at, good.as_bytes());
        found.remedy(
            Remedy::Repair,
            "The other copy counts and is whole; a repair, or the next opening for writing, writes it here, too",
        )
    };
    walk.findings.add(found);
    good.clone()
}

/// Two whole copies with two UUIDs: something was written over one of them. The zone-state pages say which.
fn of_two_images(walk: &mut Walk<'_>, copies: [&Superblock; 2]) -> Option<Superblock> {
    let [first, second] = copies.map(|copy| Uuid::from_bytes(copy.uuid).to_string());
    let text = fault_text(&ImageFault::TwoImages { first, second });
    let fits = copies.map(|copy| pages_belong(walk, copy));
    let owner = match fits {
        [true, false] => 0,
        [false, true] => 1,
        _ => {
            let found =
                finding(FindingKind::SuperblockForeign, Severity::Fatal, 0..2 * BLOCK_LEN_BYTES, text);
            walk.findings.add(found.expected("two copies of one image's superblock").remedy(
                Remedy::Copy,
                "The zone-state pages do not tell which is right: use a copy of the image",
            ));
            return None;
        }
    };
    let foreign_at = SUPERBLOCK_OFFSETS_BYTES[1 - owner];
    walk.foreign = true;
    walk.plan.write(foreign_at, copies[owner].as_bytes());
    walk.findings.add(
        finding(
            FindingKind::SuperblockForeign,
            Severity::Fatal,
            foreign_at..foreign_at + BLOCK_LEN_BYTES,
            text,
        )
        .expected("two copies of one image's superblock")
        .remedy(
            Remedy::Repair,
            format!(
                "All zone-state pages belong to the one at byte {}, and nothing speaks against it; a repair writes it over the other one",
                SUPERBLOCK_OFFSETS_BYTES[owner]
            ),
        ),
    );
    Some(copies[owner].clone())
}

/// Whether every zone-state page that a superblock speaks of is its image's, in both places, and as it was when the image
/// was closed.
fn pages_belong(walk: &Walk<'_>, superblock: &Superblock) -> bool {
    let Ok(geometry) = superblock.geometry() else { return false };
    let Ok(layout) = Layout::check(superblock, &geometry, walk.len_bytes) else { return false };
    let sequence = |page, slot| {
        let block = walk.block(layout.slot_offset_bytes(page, slot)).ok()?;
        Some(StatePage::parse(&block, superblock.uuid, page).ok()?.sequence.get())
    };
    let sum = (0..layout.page_count)
        .try_fold(0u64, |sum, page| Some(sum.wrapping_add(sequence(page, 0)?.max(sequence(page, 1)?))));
    superblock.live_boot_id == BOOT_ID_CLEAN && sum == Some(superblock.page_sequence_sum.get())
}

/// Neither copy is whole. One flipped bit can be found by the checksum; it must be what the other copy has there.
fn of_none_good(walk: &mut Walk<'_>, copies: &[Copy; 2], why: [Unusable; 2]) -> Option<Superblock> {
    if copies.iter().all(|copy| copy.block.is_some() && !copy.has_magic()) {
        not_an_image(walk);
        return None;
    }
    let restored = copies.each_ref().map(|copy| {
        let block = with_bit_restored(copy.block.as_ref()?)?;
        Superblock::parse(&block).ok()
    });
    let restored = match &restored {
        // Each speaks for the other.
        [Some(a), Some(b)] if a == b && a.live_boot_id == BOOT_ID_CLEAN => Some(a),
        // The other copy, damaged as it is, must have the same in almost all of its bytes.
        [Some(a), None] if resembles(a, &copies[1]) => Some(a),
        [None, Some(b)] if resembles(b, &copies[0]) => Some(b),
        _ => None,
    };
    for (copy, why) in copies.iter().zip(why) {
        let text = format!(
            "the superblock copy at byte {} {why}, and the other one is no better",
            copy.offset_bytes
        );
        let found = finding(FindingKind::SuperblockDamaged, Severity::Fatal, copy.bytes(), text);
        walk.findings.add(match restored {
            Some(_) => found.remedy(
                Remedy::Repair,
                "With one bit turned back the checksum of a copy is right, and the other copy says the same: a repair \
                 writes that to both",
            ),
            None => found.lost(),
        });
    }
    let superblock = restored?;
    for copy in copies.iter().filter(|copy| copy.block.is_some()) {
        walk.plan.write(copy.offset_bytes, superblock.as_bytes());
    }
    Some(superblock.clone())
}

/// Whether a damaged copy was this superblock, of a closed image: the same in all that is described, but for a few bytes.
fn resembles(superblock: &Superblock, copy: &Copy) -> bool {
    const DIFFERENT_BYTES_MAX: usize = 8;
    let Some(block) = &copy.block else { return false };
    let reserved = offset_of!(Superblock, reserved)..offset_of!(Superblock, layout_runs);
    let described =
        (0..).zip(block.iter().zip(superblock.as_bytes())).filter(|(at, _)| !reserved.contains(at));
    let different = described.filter(|(_, (a, b))| a != b).count();
    superblock.live_boot_id == BOOT_ID_CLEAN && different <= DIFFERENT_BYTES_MAX
}

/// The file ends before the superblock does.
fn short(walk: &mut Walk<'_>) {
    let len = walk.len_bytes;
    let end = 2 * BLOCK_LEN_BYTES;
    if beginning(walk).starts_with(&MAGIC) {
        let text = fault_text(&ImageFault::TooShort { expected_bytes: end, found_bytes: len });
        walk.findings.add(finding(FindingKind::FileTooShort, Severity::Fatal, len..end, text).lost());
    } else {
        not_an_image(walk);
    }
}

fn not_an_image(walk: &mut Walk<'_>) {
    let shown: Vec<String> = beginning(walk).iter().map(|byte| format!("{byte:02x}")).collect();
    let found = if shown.is_empty() { "nothing, it is empty".to_owned() } else { shown.join(" ") };
    let mut text = fault_text(&ImageFault::NotAnImage { found });
    // Where the pages are in every image that this program has made.
    let pages_at = 2 * BLOCK_LEN_BYTES;
    let is_page = walk.block(pages_at).is_ok_and(|block| block.starts_with(&PAGE_MAGIC));
    let advice = match is_page {
        true => {
            text += "; but at byte 8192 there is a zone-state page: it was an image";
            "Both copies of the superblock were written over: use a copy of the image"
        }
        false => "Is it the right file?",
    };
    let end = walk.len_bytes.min(2 * BLOCK_LEN_BYTES);
    walk.findings.add(
        finding(FindingKind::NotAnImage, Severity::Fatal, 0..end, text)
            .remedy(if is_page { Remedy::Copy } else { Remedy::Advice }, advice),
    );
}

/// The first bytes of the file, as far as it has them.
fn beginning(walk: &Walk<'_>) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(walk.len_bytes).unwrap_or(8).min(8)];
    match walk.medium.read_at(&mut bytes, 0) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

/// Whether this program may write to an image with these features; `None`: not even look at it.
pub(super) fn check_features(walk: &mut Walk<'_>, superblock: &Superblock) -> Option<bool> {
    let compat = superblock.features_compat.get();
    if compat != 0 {
        let text = format!(
            "it uses features that this program does not know and need not (compat word {compat:#x})"
        );
        walk.findings.add(finding(FindingKind::Features, Severity::Note, 56..64, text));
    }
    let newer = |fault, bytes, advice| {
        finding(FindingKind::Features, Severity::Fatal, bytes, fault_text(&fault))
            .remedy(Remedy::NewerProgram, advice)
    };
    match (superblock.features_incompat.get() & !FEATURES_INCOMPAT, superblock.features_ro_compat.get()) {
        (0, 0) => Some(true),
        (0, unknown) => {
            let fault = ImageFault::ReadOnlyFeatures { unknown };
            walk.findings.add(newer(fault, 64..72, "This program repairs nothing in it"));
            Some(false)
        }
        (unknown, _) => {
            let fault = ImageFault::Features { unknown };
            walk.findings.add(newer(fault, 72..80, "Nothing else was looked at"));
            walk.repair_nothing(Remedy::NewerProgram, "A newer program may repair it");
            None
        }
    }
}

/// Why nothing is repaired by a superblock that is whole and says what can't be.
const WRONG: &str = "The superblock that counts is itself wrong: use a copy of the image";

pub(super) fn check_geometry(walk: &mut Walk<'_>, superblock: &Superblock) -> Option<Geometry> {
    match superblock.geometry() {
        Ok(geometry) => Some(geometry),
        Err(why) => {
            walk.repair_nothing(Remedy::Copy, WRONG);
            let bytes = match why {
                ImageFault::Geometry(_) => 80..116,
                _ => 184..BLOCK_LEN_BYTES,
            };
            walk.findings
                .add(finding(FindingKind::Geometry, Severity::Fatal, bytes, fault_text(&why)).lost());
            None
        }
    }
}

pub(super) fn check_layout(
    walk: &mut Walk<'_>,
    superblock: &Superblock,
    geometry: &Geometry,
) -> Option<Layout> {
    for fault in Layout::faults(superblock, geometry) {
        walk.repair_nothing(Remedy::Copy, WRONG);
        let text = fault_text(&fault);
        walk.findings.add(finding(FindingKind::Layout, Severity::Fatal, 116..168, text).lost());
    }
    Layout::check(superblock, geometry, u64::MAX).ok()
}

/// Where two blocks differ, in words.
fn difference(a: &[u8], b: &[u8]) -> String {
    let mut places = (0..).zip(a.iter().zip(b)).filter(|(at, (a, b))| a != b && !(12..16).contains(at));
    let Some((first, (found, other))) = places.next() else { return "in its checksum".to_owned() };
    let more = places.count();
    let field = field_at(first);
    let others = match more {
        0 => String::new(),
        1 => ", and in one byte more".to_owned(),
        more => format!(", and in {more} bytes more"),
    };
    format!("at byte {first} of the copy ({field}: {found:#04x} and {other:#04x}){others}")
}

/// The field that a byte of a superblock belongs to.
fn field_at(at: usize) -> &'static str {
    macro_rules! fields {
        ($($name:ident),* $(,)?) => { [$((offset_of!(Superblock, $name), stringify!($name))),*] };
    }
    let fields = fields![
        magic,
        version,
        crc32c,
        sequence,
        uuid,
        live_boot_id,
        features_compat,
        features_ro_compat,
        features_incompat,
        capacity_sectors,
        zone_sectors,
        zone_capacity_sectors,
        conventional_zones,
        max_open_zones,
        max_active_zones,
        max_append_sectors,
        write_granularity_bytes,
        zone_count,
        pages_offset_bytes,
        pages_len_bytes,
        live_offset_bytes,
        live_len_bytes,
        data_offset_bytes,
        data_len_bytes,
        page_sequence_sum,
        history,
        layout_model,
        layout_head_runs,
        layout_cycle_runs,
        reserved,
        layout_runs,
    ];
    fields.iter().rev().find(|(offset, _)| *offset <= at).map_or("magic", |(_, name)| name)
}
