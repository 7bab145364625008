//! `vzbd replay`: the images that a power cut could have left of a recorded disk.

use std::path::Path;
use std::process::{Command, ExitStatus};

use anyhow::{Context, bail};
use fastrand::Rng;
use serde::Serialize;
use virtio_zbd_store::record::{Counts, Keep, RecordError, Recording, Replay};

use crate::cli::{Moment, ReplayArgs, ReplayKeep};
use crate::progress::Progress;
use crate::size::Size;
use crate::{say, wrong_call};

/// How many images are made where nobody says when and how many.
const RANDOM_CUTS: u32 = 100;

pub(crate) fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let recording = Recording::open(&args.log).map_err(record_error)?;
    if recording.torn_bytes() > 0 && !args.json {
        let bytes = recording.torn_bytes();
        say(&format!("the recording ends in a torn record: its last {bytes} bytes are left out"))?;
    }
    match (&args.exec, &args.out) {
        _ if args.list => list(&recording, args),
        (Some(command), _) => try_all(&recording, args, command),
        (None, Some(out)) => make_one(&recording, args, out),
        (None, None) => {
            Err(wrong_call("what to do? --list shows the moments, --out makes an image, --exec tries many"))
        }
    }
}

/// One image.
fn make_one(recording: &Recording, args: &ReplayArgs, out: &Path) -> anyhow::Result<()> {
    if args.each_flush || args.count.is_some() {
        return Err(wrong_call("--each-flush and --count go with --exec: --out alone makes one image"));
    }
    let moment = args.at.unwrap_or(Moment::End).of(recording)?;
    let keep = match args.keep {
        ReplayKeep::All => Keep::All,
        ReplayKeep::None => Keep::None,
        ReplayKeep::Random => Keep::Random(args.seed.unwrap_or_else(|| fastrand::u64(..))),
    };
    let mut replay = recording.replay();
    replay.advance_to(moment);
    write_image(&replay, keep, args, out, args.force)?;
    say(&format!("{}: the disk after a power cut {}", out.display(), options(moment, keep)))
}

/// A command for each of many images.
fn try_all(recording: &Recording, args: &ReplayArgs, command: &str) -> anyhow::Result<()> {
    let place = tempfile::tempdir().context("no directory for the images")?;
    let inside = place.path().join("disk.zbd");
    let image = args.out.as_deref().unwrap_or(&inside);
    if args.out.is_some() && image.exists() && !args.force {
        return Err(wrong_call(format!("{} exists already; --force replaces it", image.display())));
    }
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let cuts = cuts(recording, args, seed)?;
    if args.seed.is_none() && args.keep == ReplayKeep::Random {
        say(&format!("seed {seed} (--seed {seed} makes the same images again)"))?;
    }
    let mut replay = recording.replay();
    let mut failures = 0usize;
    let mut progress = Progress::of_images(Some(cuts.len()));
    for &(moment, keep) in &cuts {
        replay.advance_to(moment);
        write_image(&replay, keep, args, image, true)?;
        let status = execute(command, image, moment, keep)?;
        progress.advance(1);
        if !status.success() {
            failures += 1;
            say(&format!(
                "failed ({status}): vzbd replay {} {} --out IMAGE",
                args.log.display(),
                options(moment, keep)
            ))?;
        }
    }
    drop(progress);
    let count = cuts.len();
    match failures {
        0 => say(&format!("{count} images, and the command was content with each")),
        _ => bail!("the command failed for {failures} of {count} images"),
    }
}

/// When and how the power is cut, the moments in ascending order.
fn cuts(recording: &Recording, args: &ReplayArgs, seed: u64) -> anyhow::Result<Vec<(u64, Keep)>> {
    let mut rng = Rng::with_seed(seed);
    let moments: Vec<u64> = match (args.at, args.each_flush) {
        (Some(at), _) => vec![at.of(recording)?],
        // Before a flush ends most is in doubt; after it nothing that it has seen.
        (None, true) => recording.flushes().iter().flat_map(|flush| [flush.end - 1, flush.end]).collect(),
        (None, false) => {
            let count = args.count.unwrap_or(RANDOM_CUTS);
            let mut moments: Vec<u64> = (0..count).map(|_| rng.u64(..=recording.end())).collect();
            moments.sort_unstable();
            moments
        }
    };
    let random_moments = args.at.is_none() && !args.each_flush;
    let fixed = match args.keep {
        ReplayKeep::All => Some(Keep::All),
        ReplayKeep::None => Some(Keep::None),
        ReplayKeep::Random => None,
    };
    let each = if random_moments { 1 } else { args.count.unwrap_or(1) };
    if fixed.is_some() && each > 1 {
        return Err(wrong_call(
            "--count at one moment goes with --keep random: all and none leave one image each",
        ));
    }
    let mut cuts = Vec::new();
    for moment in moments {
        // A single image of a moment that was asked for has the seed that was asked for.
        let exactly = args.at.is_some() && each == 1;
        cuts.extend((0..each).map(|_| {
            let seed = if exactly { seed } else { rng.u64(..) };
            (moment, fixed.unwrap_or(Keep::Random(seed)))
        }));
    }
    Ok(cuts)
}

fn execute(command: &str, image: &Path, moment: u64, keep: Keep) -> anyhow::Result<ExitStatus> {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).env("VZBD_IMAGE", image).env("VZBD_EVENT", moment.to_string());
    if let Keep::Random(seed) = keep {
        shell.env("VZBD_SEED", seed.to_string());
    }
    shell.status().context("the command can't be started: there is no sh")
}

fn write_image(
    replay: &Replay<'_>,
    keep: Keep,
    args: &ReplayArgs,
    image: &Path,
    overwrite: bool,
) -> anyhow::Result<()> {
    let block_bytes = args.torn_block.map(|size| u32::try_from(size.bytes).unwrap_or(u32::MAX));
    replay.write_image(keep, block_bytes, image, overwrite).map_err(record_error)
}

/// What makes the same image again.
fn options(moment: u64, keep: Keep) -> String {
    match keep {
        Keep::All => format!("--at {moment} --keep all"),
        Keep::None => format!("--at {moment} --keep none"),
        Keep::Random(seed) => format!("--at {moment} --seed {seed}"),
    }
}

impl Moment {
    fn of(self, recording: &Recording) -> anyhow::Result<u64> {
        let no_such = |wanted| record_error(recording.no_such_moment(wanted));
        match self {
            Self::End => Ok(recording.end()),
            Self::Event(event) if event <= recording.end() => Ok(event),
            Self::Event(event) => Err(no_such(format!("event {event}"))),
            Self::Flush(flush) => {
                let mark = flush.checked_sub(1).and_then(|index| recording.flushes().get(index));
                mark.map(|mark| mark.end).ok_or_else(|| no_such(format!("flush {flush}")))
            }
        }
    }
}

/// A recording's error; a call that can't be is a wrong one.
fn record_error(error: RecordError) -> anyhow::Error {
    match error {
        RecordError::Store(error) => crate::store_error(error),
        RecordError::NoSuchMoment { .. } | RecordError::Block { .. } => wrong_call(error),
        RecordError::Io { ref source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            wrong_call(error)
        }
        other => other.into(),
    }
}

/// What there is in a recording.
#[derive(Serialize)]
struct Listing {
    capacity_bytes: u64,
    zones: u32,
    events: u64,
    base_bytes: u64,
    torn_bytes: u64,
    flushes: Vec<Line>,
    /// What comes after the last flush.
    rest: Line,
}

#[derive(Serialize)]
struct Line {
    flush: Option<usize>,
    event: u64,
    writes: u64,
    written_bytes: u64,
    finishes: u64,
    resets: u64,
}

fn list(recording: &Recording, args: &ReplayArgs) -> anyhow::Result<()> {
    let line = |flush, from, to| {
        let Counts { writes, written_bytes, finishes, resets } = recording.counts(from, to);
        Line { flush, event: to, writes, written_bytes, finishes, resets }
    };
    let ends = recording.flushes().iter().map(|flush| flush.end);
    let starts = std::iter::once(0).chain(ends.clone());
    let flushes: Vec<Line> =
        (1..).zip(starts.zip(ends)).map(|(number, (from, to))| line(Some(number), from, to)).collect();
    let rest = line(None, flushes.last().map_or(0, |line| line.event), recording.end());
    let zones = recording.geometry().map_or(0, virtio_zbd_zones::Geometry::zone_count);
    let listing = Listing {
        capacity_bytes: recording.capacity_bytes(),
        zones,
        events: recording.end(),
        base_bytes: recording.base_bytes(),
        torn_bytes: recording.torn_bytes(),
        flushes,
        rest,
    };
    if args.json {
        return say(&serde_json::to_string_pretty(&listing)?);
    }
    say(&text(&listing))
}

fn text(listing: &Listing) -> String {
    let Listing { capacity_bytes, zones, events, base_bytes, flushes, rest, .. } = listing;
    let size = |bytes: &u64| Size::from(*bytes).to_string();
    let mut lines = vec![
        format!(
            "a disk of {}, {zones} zones; {events} events, {} flushes",
            size(capacity_bytes),
            flushes.len()
        ),
        format!("{} of data were on it before", size(base_bytes)),
        format!(
            "{:>8} {:>10} {:>8} {:>10} {:>9} {:>7}",
            "FLUSH", "EVENT", "WRITES", "BYTES", "FINISHES", "RESETS"
        ),
    ];
    lines.extend(flushes.iter().chain([rest]).map(|line| {
        let name = line.flush.map_or("end".into(), |number| number.to_string());
        let Line { event, writes, written_bytes, finishes, resets, .. } = line;
        format!("{name:>8} {event:>10} {writes:>8} {:>10} {finishes:>9} {resets:>7}", size(written_bytes))
    }));
    lines.join("\n")
}
