//! `vzbd read`, `write`, `append`: bytes from and to a disk.

mod input;
mod place;

use std::fs::File;
use std::io::{self, IsTerminal, Write};

use crate::cli::{AppendArgs, ReadArgs, WriteArgs};
use crate::progress::Progress;
use crate::size::Size;
use crate::target::{Access, Target};
use crate::{noted, say, wrong_call};
use serde::Serialize;

use input::Input;
use place::{Room, sector_of_zone};

/// How much is read or written between two looks at the other side.
const CHUNK_LEN_BYTES: u64 = 1 << 20;
const SECTOR_LEN_BYTES: u64 = 512;

/// `vzbd read`.
pub(crate) fn read(args: &ReadArgs) -> anyhow::Result<()> {
    let to_stdout = args.output.as_ref().is_none_or(|output| output.as_os_str() == "-");
    if args.output.is_none() && io::stdout().is_terminal() {
        return Err(wrong_call(
            "the data would go to the terminal; name a file with --output, or say --output - if you mean it",
        ));
    }
    let mut target = Target::open(&args.disk, Access::Read)?;
    let span = place::to_read(&mut target, &args.place, args.length)?;
    let mut out: Box<dyn Write> = match &args.output {
        Some(path) if !to_stdout => {
            Box::new(File::create(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?)
        }
        _ => Box::new(io::stdout()),
    };
    let mut progress = Progress::of_bytes(Some(span.end - span.start));
    let block_len_bytes = u64::from(target.driver.block_len_bytes());
    let mut buffer = Vec::new();
    let mut at_byte = span.start;
    while at_byte < span.end {
        // Whole blocks are read; of the first and the last one only what was asked for is handed on.
        let first_byte = at_byte - at_byte % block_len_bytes;
        let end_byte = span.end.min(first_byte.saturating_add(CHUNK_LEN_BYTES.max(block_len_bytes)));
        let len_bytes = (end_byte - first_byte).next_multiple_of(block_len_bytes);
        buffer.resize(usize::try_from(len_bytes)?, 0);
        target.call(|driver| driver.read(first_byte / SECTOR_LEN_BYTES, &mut buffer))?;
        let wanted = usize::try_from(at_byte - first_byte)?..usize::try_from(end_byte - first_byte)?;
        out.write_all(buffer.get(wanted).unwrap_or_default())?;
        progress.advance(end_byte - at_byte);
        at_byte = end_byte;
    }
    out.flush()?;
    target.close()
}

/// `vzbd write`.
pub(crate) fn write(args: &WriteArgs) -> anyhow::Result<()> {
    let mut target = Target::open(&args.disk, Access::Write)?;
    let (sector, mut room) = place::to_write(&mut target, &args.place)?;
    let mut input = Input::open(&args.data, room.unit_bytes(&target))?;
    let mut progress = Progress::of_bytes(input.len_bytes());
    let mut landed = Landed::new(args.json);
    let mut written_bytes = 0;
    let done = write_all(&mut target, &mut input, sector, &mut room, &mut |len_bytes| {
        written_bytes += len_bytes;
        progress.advance(len_bytes);
    });
    drop(progress);
    if done.is_ok() || written_bytes > 0 {
        landed.add(sector, written_bytes)?;
    }
    finish(target, landed, done)
}

fn write_all(
    target: &mut Target,
    input: &mut Input,
    sector: u64,
    room: &mut Room,
    written: &mut dyn FnMut(u64),
) -> anyhow::Result<()> {
    if let Some(len_bytes) = input.len_bytes() {
        room.check(target, sector, len_bytes)?;
    }
    let mut at_sector = sector;
    loop {
        let room_bytes = room.left_bytes(target, at_sector)?;
        // With no room left there must be nothing more to come.
        let data = input.next(room_bytes.min(CHUNK_LEN_BYTES))?;
        if data.is_empty() {
            return if input.has_more()? { Err(room.exhausted(target, at_sector)) } else { Ok(()) };
        }
        target.call(|driver| driver.write(at_sector, data))?;
        let len_bytes = data.len() as u64;
        at_sector += len_bytes / SECTOR_LEN_BYTES;
        written(len_bytes);
    }
}

/// `vzbd append`.
pub(crate) fn append(args: &AppendArgs) -> anyhow::Result<()> {
    let mut target = Target::open(&args.disk, Access::Write)?;
    let zoned = target.zoned()?;
    let start_sector = sector_of_zone(args.zone, &zoned)?;
    if zoned.append_sectors_max == 0 {
        return Err(wrong_call(format!("{}: the disk has no append; use `vzbd write`", target.name())));
    }
    let unit_bytes = u64::from(zoned.write_granularity_bytes);
    let append_bytes_max = u64::from(zoned.append_sectors_max) * SECTOR_LEN_BYTES;
    let request_bytes_max = append_bytes_max.min(target.driver.limits().transfer_len_bytes_max as u64);
    let request_bytes_max = request_bytes_max - request_bytes_max % unit_bytes;
    let mut input = Input::open(&args.data, unit_bytes)?;
    if let Some(len_bytes) = input.len_bytes() {
        Room::of_zone(&mut target, start_sector)?.check_append(&target, len_bytes)?;
    }
    let mut progress = Progress::of_bytes(input.len_bytes());
    let mut landed = Landed::new(args.json);
    let mut append_all = || loop {
        let data = input.next(request_bytes_max)?;
        if data.is_empty() {
            return Ok(());
        }
        let sector = target.call(|driver| driver.append(start_sector, data))?;
        let len_bytes = data.len() as u64;
        progress.advance(len_bytes);
        landed.add(sector, len_bytes)?;
    };
    let done = append_all();
    drop(progress);
    finish(target, landed, done)
}

/// Says where the data is, also before an error is reported, and makes it durable.
fn finish(target: Target, mut landed: Landed, done: anyhow::Result<()>) -> anyhow::Result<()> {
    let done = done.map_err(|error| match landed.len_bytes {
        0 => error,
        bytes => noted(&error, format_args!("{} before it is on the disk", Size::from(bytes))),
    });
    landed.end()?;
    let closed = target.close();
    done?;
    closed
}

/// Where data landed: told at once to people, at the end to programs.
#[derive(Serialize)]
struct Landed {
    #[serde(skip)]
    json: bool,
    #[serde(skip)]
    len_bytes: u64,
    landed: Vec<Span>,
}

#[derive(Serialize)]
struct Span {
    sector: u64,
    len_bytes: u64,
}

impl Landed {
    fn new(json: bool) -> Self {
        Self { json, len_bytes: 0, landed: Vec::new() }
    }

    fn add(&mut self, sector: u64, len_bytes: u64) -> anyhow::Result<()> {
        self.len_bytes += len_bytes;
        if self.json {
            self.landed.push(Span { sector, len_bytes });
            return Ok(());
        }
        say(&format!("{len_bytes} bytes at sector {sector}"))
    }

    fn end(&mut self) -> anyhow::Result<()> {
        if !self.json {
            return Ok(());
        }
        say(&serde_json::to_string_pretty(self)?)
    }
}
