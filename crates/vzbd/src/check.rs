//! `vzbd check`: whether an image is as it should be, and what is wrong with it.

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use virtio_zbd_store::{
    CheckOptions, CheckReport, CheckedImage, Finding, ImageFault, ImageStore, LastUse, NextOpening, Opens,
    Remedy, Repaired, StoreError, ZoneRanges,
};
use virtio_zbd_zones::Geometry;

use crate::cli::CheckArgs;
use crate::size::Size;
use crate::{say, store_error, wrong_call};

/// Something was found. It has been said already; exit status 1.
#[derive(Debug)]
pub(crate) struct Found;

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("something is wrong with the image")
    }
}

impl std::error::Error for Found {}

pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let image = &args.image;
    if let Some(kept) = &args.undo {
        ImageStore::undo_repair(image, kept).map_err(unusable)?;
        return say(&format!("{} is byte for byte what it was before the repair", image.display()));
    }
    let options = CheckOptions {
        findings_max: args.max_findings,
        clear_behind: args.clear_behind,
        ..CheckOptions::default()
    };
    let done = match args.repair {
        true => ImageStore::repair(image, options),
        false => ImageStore::check(image, options).map(|before| Repaired { before, after: None, kept: None }),
    };
    let done = done.map_err(unusable)?;
    if args.json {
        say(&serde_json::to_string_pretty(&shown(&done))?)?;
    } else {
        print(&done, args)?;
    }
    match done.after.as_ref().unwrap_or(&done.before).is_clean() {
        true => Ok(()),
        false => Err(Found.into()),
    }
}

fn unusable(error: StoreError) -> anyhow::Error {
    match error {
        StoreError::Image { fault: ImageFault::NotAFile { .. }, .. } => wrong_call(error),
        StoreError::InUse { name } => anyhow::anyhow!(
            "{name} is in use by another program; an image is checked while nobody writes to it, and repaired while nobody \
             uses it at all"
        ),
        error => store_error(error),
    }
}

/// For people.
fn print(done: &Repaired, args: &CheckArgs) -> anyhow::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let report = &done.before;
    writeln!(out, "{}: {}", report.name, head(report))?;
    if let Some(image) = &report.image {
        for line in state_lines(image, report.next_opening.as_ref()) {
            writeln!(out, "  {line}")?;
        }
    }
    print_findings(&mut out, report)?;
    if let (Some(after), Some(kept)) = (&done.after, &done.kept) {
        writeln!(out, "repaired; what was there before is kept in {}", kept.display())?;
        writeln!(
            out,
            "  to bring it back, before the image is used again: vzbd check {} --undo {}",
            quoted(&args.image),
            quoted(kept)
        )?;
        print_findings(&mut out, after)?;
        writeln!(out, "{}", summary(after, "after the repair: "))?;
    } else {
        writeln!(out, "{}", summary(report, ""))?;
    }
    Ok(out.flush()?)
}

/// A path as it can be given to a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn head(report: &CheckReport) -> String {
    let file =
        format!("a file of {} bytes, {} of them allocated", report.file_len_bytes, report.allocated_bytes);
    let Some(image) = &report.image else { return file };
    let disk = image.geometry.as_ref().map_or_else(
        || "a disk that can't be".to_owned(),
        |geometry| {
            format!("{} in {} zones", Size::from(geometry.capacity_sectors() * 512), geometry.zone_count())
        },
    );
    format!("image {}, {disk}; {file}", image.uuid)
}

/// How it was left, and what that means.
fn state_lines(image: &CheckedImage, next: Option<&NextOpening>) -> Vec<String> {
    let mut lines = vec![match image.last_use {
        LastUse::Closed => "closed cleanly".to_owned(),
        LastUse::Killed => "not closed: its program was stopped since this machine was booted; nothing that it has answered is lost".to_owned(),
        LastUse::PowerLost => format!(
            "not closed: the machine has stopped since, or it comes from another one (opened in boot {}, this is boot {}); what \
             was flushed counts",
            image.live_boot_id, image.boot_id
        ),
        LastUse::MediumFailed => "not closed: its medium has failed; what was flushed before that counts".to_owned(),
    }];
    let Some(next) = next else { return lines };
    let zones = &next.zones;
    let counts: Vec<String> = [
        (zones.conventional, "conventional"),
        (zones.empty, "empty"),
        (zones.closed, "closed"),
        (zones.full, "full"),
        (zones.read_only, "read-only"),
        (zones.offline, "offline"),
    ]
    .iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, name)| format!("{count} {name}"))
    .collect();
    lines.push(format!("zones: {}", counts.join(", ")));
    let mut does = Vec::new();
    if next.live_area_counts {
        does.push("takes the zones' states from the live area".to_owned());
    } else if image.last_use != LastUse::Closed {
        does.push("takes the zones' states from the zone-state pages".to_owned());
    }
    if next.unflushed_zones > 0 {
        does.push(format!(
            "makes the states of {} durable that were not yet",
            zone_count(next.unflushed_zones)
        ));
    }
    if next.open_zones > 0 {
        does.push(format!("closes {}", zone_count(next.open_zones)));
    }
    if next.pages_written > 0 {
        does.push(format!("writes {} anew", count(next.pages_written.into(), "zone-state page")));
    }
    if next.swept_zones > 0 {
        does.push(format!(
            "removes {} bytes behind the data of {}",
            next.swept_bytes,
            zone_count(next.swept_zones)
        ));
    }
    if !does.is_empty() {
        lines.push(format!("the next opening for writing {}", does.join(", ")));
    }
    lines
}

fn zone_count(zones: u32) -> String {
    count(zones.into(), "zone")
}

fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn print_findings(out: &mut impl Write, report: &CheckReport) -> io::Result<()> {
    for finding in &report.findings {
        let zones = match &finding.zones {
            ZoneRanges(ranges) if ranges.is_empty() => String::new(),
            ZoneRanges(ranges) => match &ranges[..] {
                [one] if one.start() == one.end() => format!(", zone {}", one.start()),
                _ => format!(", {}", finding.zones),
            },
        };
        let bytes = match finding.bytes.end - finding.bytes.start {
            0 => String::new(),
            1 => format!(", byte {}", finding.bytes.start),
            _ => format!(", bytes {} to {}", finding.bytes.start, finding.bytes.end - 1),
        };
        writeln!(out, "{}: {}{zones}{bytes}", finding.severity.code(), finding.kind.code())?;
        writeln!(out, "    {}", finding.found)?;
        if !finding.expected.is_empty() {
            writeln!(out, "    expected: {}", finding.expected)?;
        }
        if !finding.advice.is_empty() {
            writeln!(out, "    {}.", finding.advice)?;
        }
    }
    let omitted = &report.omitted;
    let more = omitted.problems + omitted.repairable + omitted.notes;
    if more > 0 {
        writeln!(out, "… and {more} more; --max-findings shows more of them")?;
    }
    Ok(())
}

/// The last line.
fn summary(report: &CheckReport, when: &str) -> String {
    let opens = match &report.opens {
        Opens::Yes => "",
        Opens::ReadOnly(_) => "; it opens for reading only",
        Opens::No(_) => "; it does not open",
    };
    if report.is_clean() {
        return format!("{when}clean{opens}");
    }
    let by = |remedy| {
        let is = |finding: &&Finding| finding.is_problem() && finding.remedy == remedy;
        report.findings.iter().filter(is).count() as u64
    };
    let mut parts: Vec<String> = [
        (report.repairable(), "that --repair mends"),
        (by(Remedy::NextOpening), "that the next opening for writing mends"),
        (by(Remedy::NewerProgram), "for a newer program"),
        (by(Remedy::Advice), "where something else is to be done"),
        (by(Remedy::Copy), "that nothing but a copy of the image mends"),
        (report.omitted.problems, "not shown"),
    ]
    .iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    if let [only] = &mut parts[..] {
        // "3 problems: 3 that …" says the number twice.
        *only = only.split_once(' ').map_or_else(String::new, |(_, what)| what.to_owned());
        return format!("{when}{} {only}{opens}", count(report.problems(), "problem"));
    }
    format!("{when}{}: {}{opens}", count(report.problems(), "problem"), parts.join(", "))
}

/// For programs: the keys of `--json`.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    report: ShownReport<'a>,
    /// Where there was something to repair, and it was asked for.
    repair: Option<ShownRepair<'a>>,
}

#[derive(Serialize)]
struct ShownRepair<'a> {
    kept: Option<String>,
    after: ShownReport<'a>,
}

#[derive(Serialize)]
struct ShownReport<'a> {
    name: &'a str,
    clean: bool,
    problems: u64,
    repairable: u64,
    file_len_bytes: u64,
    allocated_bytes: u64,
    image: Option<ShownImage>,
    opens: &'static str,
    refusal: Option<&'a str>,
    next_opening: Option<ShownNext>,
    findings: Vec<ShownFinding<'a>>,
    omitted: u64,
}

#[derive(Serialize)]
struct ShownImage {
    uuid: String,
    format_version: u32,
    superblock_sequence: u64,
    capacity_bytes: Option<u64>,
    zones: Option<u32>,
    last_use: &'static str,
    /// None where it was closed, or a sync has failed.
    live_boot_id: Option<String>,
    boot_id: String,
}

#[derive(Serialize)]
struct ShownNext {
    live_area_counts: bool,
    unflushed_zones: u32,
    open_zones: u32,
    pages_written: u32,
    swept_bytes: u64,
    swept_zones: u32,
    conventional: u32,
    empty: u32,
    closed: u32,
    full: u32,
    read_only: u32,
    offline: u32,
}

#[derive(Serialize)]
struct ShownFinding<'a> {
    kind: &'static str,
    severity: &'static str,
    remedy: &'static str,
    /// First and last of each range.
    zones: Vec<[u32; 2]>,
    start_byte: u64,
    end_byte: u64,
    found: &'a str,
    expected: &'a str,
    advice: &'a str,
}

fn shown(done: &Repaired) -> Shown<'_> {
    let repair = done.after.as_ref().map(|after| ShownRepair {
        kept: done.kept.as_ref().map(|kept| kept.display().to_string()),
        after: shown_report(after),
    });
    Shown { report: shown_report(&done.before), repair }
}

fn shown_report(report: &CheckReport) -> ShownReport<'_> {
    let (opens, refusal) = match &report.opens {
        Opens::Yes => ("yes", None),
        Opens::ReadOnly(why) => ("read-only", Some(why.as_str())),
        Opens::No(why) => ("no", Some(why.as_str())),
    };
    let omitted = &report.omitted;
    ShownReport {
        name: &report.name,
        clean: report.is_clean(),
        problems: report.problems(),
        repairable: report.repairable(),
        file_len_bytes: report.file_len_bytes,
        allocated_bytes: report.allocated_bytes,
        image: report.image.as_ref().map(shown_image),
        opens,
        refusal,
        next_opening: report.next_opening.as_ref().map(shown_next),
        findings: report.findings.iter().map(shown_finding).collect(),
        omitted: omitted.problems + omitted.repairable + omitted.notes,
    }
}

fn shown_image(image: &CheckedImage) -> ShownImage {
    let (last_use, live) = match image.last_use {
        LastUse::Closed => ("closed", false),
        LastUse::Killed => ("killed", true),
        LastUse::PowerLost => ("power-lost", true),
        LastUse::MediumFailed => ("medium-failed", false),
    };
    ShownImage {
        uuid: image.uuid.to_string(),
        format_version: image.version,
        superblock_sequence: image.sequence,
        capacity_bytes: image.geometry.as_ref().map(|geometry| geometry.capacity_sectors() * 512),
        zones: image.geometry.as_ref().map(Geometry::zone_count),
        last_use,
        live_boot_id: live.then(|| image.live_boot_id.to_string()),
        boot_id: image.boot_id.to_string(),
    }
}

fn shown_next(next: &NextOpening) -> ShownNext {
    let zones = &next.zones;
    ShownNext {
        live_area_counts: next.live_area_counts,
        unflushed_zones: next.unflushed_zones,
        open_zones: next.open_zones,
        pages_written: next.pages_written,
        swept_bytes: next.swept_bytes,
        swept_zones: next.swept_zones,
        conventional: zones.conventional,
        empty: zones.empty,
        closed: zones.closed,
        full: zones.full,
        read_only: zones.read_only,
        offline: zones.offline,
    }
}

fn shown_finding(finding: &Finding) -> ShownFinding<'_> {
    ShownFinding {
        kind: finding.kind.code(),
        severity: finding.severity.code(),
        remedy: finding.remedy.code(),
        zones: finding.zones.0.iter().map(|range| [*range.start(), *range.end()]).collect(),
        start_byte: finding.bytes.start,
        end_byte: finding.bytes.end,
        found: &finding.found,
        expected: &finding.expected,
        advice: &finding.advice,
    }
}
