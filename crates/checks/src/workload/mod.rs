//! Random requests, each with the outcome that a naive model foretells.

mod model;

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use virtio_zbd_driver::{Command, DeviceError, Done, Error, RequestType, Zone, ZoneState, ZoneType, Zoned};

use crate::data::{Contents, len_bytes};
use crate::peer::MakesRoom;
use crate::random::Random;
use crate::rig::{Area, Outcome, Rig, Stop, failed, not_here, ok, read_is, refused, same};
use model::Model;

/// The most zones that take part.
const ZONES_MAX: usize = 12;
/// The longest write, in grains.
const WRITE_GRAINS_MAX: u64 = 24;
/// How much of a regular area takes part, in blocks.
const AREA_BLOCKS_MAX: u64 = 1024;
/// How often everything is looked at.
const STEPS_BETWEEN_LOOKS: u32 = 64;
/// How much is read behind the write pointer at the end, in grains.
const BEHIND_GRAINS: u64 = 16;

pub(crate) fn run(rig: &mut Rig<'_>, steps: u32) -> Outcome {
    rig.writable()?;
    rig.random = Random::new(rig.seed);
    let mut work = Work::new(rig)?;
    for step in 0..steps {
        let seed = rig.seed;
        let told = |stop| match stop {
            Stop::Failed(text) => Stop::Failed(format!("seed {seed}, step {step}: {text}")),
            other => other,
        };
        work.step(rig).map_err(told)?;
        if step % STEPS_BETWEEN_LOOKS == STEPS_BETWEEN_LOOKS - 1 {
            work.look(rig).map_err(told)?;
        }
    }
    work.look(rig)?;
    work.read_all(rig)
}

struct Work {
    /// `None` on a regular disk.
    model: Option<(Zoned, Model)>,
    /// Sectors that can be written anywhere.
    area: Option<Area>,
    contents: Contents,
}

impl Work {
    fn new(rig: &mut Rig<'_>) -> Result<Self, Stop> {
        let area = match rig.area() {
            Ok(area) => {
                let block = rig.block_sectors();
                Some(Area { sectors: area.sectors.min(AREA_BLOCKS_MAX * block), ..area })
            }
            Err(Stop::NotHere(_)) => None,
            Err(other) => return Err(other),
        };
        let mut work = Self { model: None, area, contents: rig.contents() };
        if let Some(area) = area {
            rig.write(&mut work.contents, area.start_sector, area.sectors)?;
        }
        if let Some(zoned) = rig.disk.zoned() {
            let zones = participants(rig, &zoned)?;
            work.model = Some((zoned, Model::new(&zones, &zoned, rig.peer.makes_room)));
        }
        if work.area.is_none() && work.model.is_none() {
            return Err(not_here("there is nothing to be written"));
        }
        Ok(work)
    }

    fn step(&mut self, rig: &mut Rig<'_>) -> Outcome {
        let to_area = self.model.is_none() || (self.area.is_some() && rig.random.below(6) == 0);
        match (&self.area, to_area) {
            (Some(area), true) => area_step(rig, *area, &mut self.contents),
            _ => match &mut self.model {
                Some((zoned, model)) => zone_step(rig, zoned, model, &mut self.contents),
                None => Ok(()),
            },
        }
    }

    /// All zones as the disk reports them.
    fn look(&mut self, rig: &mut Rig<'_>) -> Outcome {
        let Some((_, model)) = &self.model else { return Ok(()) };
        let found = ok("a report", rig.disk.zones(0))?;
        let mut expected = model.zones.iter().peekable();
        for found in found {
            match expected.next_if(|zone| zone.zone.start_sector == found.start_sector) {
                Some(zone) => same("a zone in the report", &found, &zone.reported())?,
                None if found.kind == ZoneType::Conventional => {}
                None => same("the state of a zone that nobody touched", &found.state, &ZoneState::Empty)?,
            }
        }
        Ok(())
    }

    fn read_all(&mut self, rig: &mut Rig<'_>) -> Outcome {
        if let Some(area) = self.area {
            rig.compare(&self.contents, area.start_sector, area.sectors)?;
        }
        let Some((_, model)) = &self.model else { return Ok(()) };
        let behind = BEHIND_GRAINS * rig.grain_sectors();
        for zone in &model.zones {
            let sectors = (zone.written_sectors + behind).min(zone.zone.len_sectors);
            rig.compare(&self.contents, zone.zone.start_sector, sectors)?;
        }
        Ok(())
    }
}

/// The zones that take part: so many that limits are reached, the last zone among them. All are empty.
fn participants(rig: &mut Rig<'_>, zoned: &Zoned) -> Result<Vec<Zone>, Stop> {
    ok("reset all", rig.disk.reset_all_zones())?;
    let zones = ok("a report", rig.disk.zones(0))?;
    let usable = |zone: &Zone| zone.kind == ZoneType::SequentialRequired && zone.state == ZoneState::Empty;
    let mut zones: Vec<Zone> = zones.into_iter().filter(usable).collect();
    let open_max = usize::try_from(zoned.open_max).unwrap_or(usize::MAX);
    let count = match rig.peer.makes_room {
        // Which zone would be closed can't be foretold: there are never more than may be open.
        MakesRoom::Some if open_max != 0 => open_max.min(ZONES_MAX),
        _ => ZONES_MAX,
    };
    if zones.len() > count {
        let last = zones.split_off(zones.len() - 1);
        zones.truncate(count - 1);
        zones.extend(last);
    }
    Ok(zones)
}

/// A request to sectors that can be written anywhere.
fn area_step(rig: &mut Rig<'_>, area: Area, contents: &mut Contents) -> Outcome {
    let block = rig.block_sectors();
    let area_blocks = area.sectors / block;
    let blocks = 1 + rig.random.below(area_blocks.min(64));
    let sector = area.start_sector + rig.random.below(area_blocks - blocks + 1) * block;
    let sectors = blocks * block;
    let limits = rig.disk.limits();
    let short = u32::try_from(sectors).unwrap_or(1);
    match rig.random.below(10) {
        0 if limits.write_zeroes.is_some_and(|limits| limits.sectors_max >= short) => {
            let unmap = rig.random.below(2) == 0;
            let result = perform(rig, Command::WriteZeroes { sector, sectors: short, unmap })?;
            same("write zeroes", &result, &Ok(Done::Plain))?;
            contents.zero(sector, sectors);
            rig.compare(contents, sector, sectors)
        }
        1 => ok("flush", rig.disk.flush()),
        2..6 => {
            let piece = rig.piece(sectors);
            let buffer = piece.bytes.clone();
            if rig.transfer_sectors(sectors) < sectors {
                ok("write", rig.disk.write(sector, &buffer))?;
            } else {
                let result = perform(rig, Command::Write { sector, buffer })?;
                same(format_args!("write of {sectors} sectors at {sector}"), &result, &Ok(Done::Plain))?;
            }
            contents.write(sector, &piece);
            Ok(())
        }
        _ => rig.compare(contents, sector, sectors),
    }
}

/// A request to one of the zones, and the look at it that follows.
fn zone_step(rig: &mut Rig<'_>, zoned: &Zoned, model: &mut Model, contents: &mut Contents) -> Outcome {
    let index = usize::try_from(rig.random.below(model.zones.len() as u64)).unwrap_or(0);
    let Some(before) = model.zones.get(index) else { return Err(not_here("there are no sequential zones")) };
    let zone = before.zone;
    let start_sector = zone.start_sector;
    let (request, command, foretold) = match rig.random.below(100) {
        0..45 => return write(rig, zoned, model, index, contents),
        45..60 => return read(rig, &zone, before.next_sector(), contents),
        60..70 => (RequestType::ZoneOpen, Command::OpenZone { start_sector }, model.open(index)),
        70..80 => (RequestType::ZoneClose, Command::CloseZone { start_sector }, model.close(index)),
        80..85 => (RequestType::ZoneFinish, Command::FinishZone { start_sector }, model.finish(index)),
        85..94 => {
            model.reset(index);
            contents.forget(start_sector, zone.len_sectors);
            (RequestType::ZoneReset, Command::ResetZone { start_sector }, Ok(None))
        }
        94 => {
            for index in 0..model.zones.len() {
                model.reset(index);
            }
            for zone in &model.zones {
                contents.forget(zone.zone.start_sector, zone.zone.len_sectors);
            }
            (RequestType::ZoneResetAll, Command::ResetAllZones, Ok(None))
        }
        _ => return ok("flush", rig.disk.flush()),
    };
    let what = format!("{request:?} of the zone at {start_sector}");
    let result = perform(rig, command)?;
    let closed = settled(rig, &what, request, start_sector, result, foretold)?;
    zones_are(rig, &what, model, index, closed)
}

/// A write or an append, mostly at the write pointer.
fn write(
    rig: &mut Rig<'_>,
    zoned: &Zoned,
    model: &mut Model,
    index: usize,
    contents: &mut Contents,
) -> Outcome {
    let grain = rig.grain_sectors();
    let Some(before) = model.zones.get(index) else { return Ok(()) };
    let zone = before.zone;
    let longest = rig.transfer_sectors(WRITE_GRAINS_MAX * grain);
    let append_max = u64::from(zoned.append_sectors_max).min(longest);
    let append = append_max >= grain && rig.random.below(3) == 0;
    let longest = if append { append_max } else { longest };
    let sectors = (1 + rig.random.below(longest / grain)) * grain;
    // A full zone's data may end at the zone's end, where another one begins.
    let at_wp = append || (rig.random.below(8) > 0 && before.next_sector() < zone.end_sector());
    let sector = match (append, at_wp) {
        (true, _) => zone.start_sector,
        (_, true) => before.next_sector(),
        _ => zone.start_sector + rig.random.below(zone.len_sectors / grain) * grain,
    };
    let at_wp = append || sector == before.next_sector();
    // Further than the zone's end is another matter (V25).
    let sectors = if append { sectors } else { sectors.min(zone.end_sector() - sector) };
    let sectors = sectors - sectors % grain;
    let fits = before.state != ZoneState::Full && sectors <= before.remaining_sectors();
    if sectors == 0 || (append && !fits && rig.peer.appends_behind_full_zones) {
        return Ok(());
    }
    let lands = before.next_sector();
    let piece = rig.piece(sectors);
    let buffer = piece.bytes.clone();
    let (request, command) = if append {
        (RequestType::ZoneAppend, Command::Append { zone_start_sector: sector, buffer })
    } else {
        (RequestType::Out, Command::Write { sector, buffer })
    };
    let what = format!("{request:?} of {sectors} sectors at {sector}, the write pointer at {lands}");
    let result = perform(rig, command)?;
    if append && let Ok(done) = &result {
        same(&what, done, &Done::Appended { sector: lands })?;
    }
    let foretold = model.write(index, at_wp, sectors);
    if foretold.is_ok() {
        contents.write(lands, &piece);
    }
    let closed = settled(rig, &what, request, sector, result, foretold)?;
    zones_are(rig, &what, model, index, closed)
}

/// A read somewhere around the write pointer or anywhere in the zone; it may end in the next one.
fn read(rig: &mut Rig<'_>, zone: &Zone, next_sector: u64, contents: &Contents) -> Outcome {
    let block = rig.block_sectors();
    let blocks = 1 + rig.random.below(32);
    let around = rig.random.below(2) == 0;
    let sector = if around {
        let back = rig.random.below(16) * block;
        (next_sector - next_sector % block).saturating_sub(back).max(zone.start_sector)
    } else {
        zone.start_sector + rig.random.below(zone.len_sectors / block) * block
    };
    // What comes behind the zone is one that takes part, an empty one, or the disk's end.
    let sectors = (blocks * block).min(rig.disk.capacity_sectors() - sector);
    if sectors == 0 {
        return Ok(());
    }
    let inside = sector + sectors <= zone.end_sector();
    if inside && rig.transfer_sectors(sectors) == sectors && rig.random.below(2) == 0 {
        let queue = some_queue(rig);
        let completion = rig.one(queue, Command::Read { sector, buffer: vec![0xa5; len_bytes(sectors)] })?;
        return read_is(&completion, contents, sector);
    }
    rig.compare(contents, sector, sectors)
}

/// The request's outcome held against the model's. Gives the zone that was closed to make room.
fn settled(
    rig: &mut Rig<'_>,
    what: &str,
    request: RequestType,
    sector: u64,
    result: Result<Done, Error>,
    foretold: Result<Option<usize>, DeviceError>,
) -> Result<Option<usize>, Stop> {
    match foretold {
        Ok(closed) => ok(what, result).map(|_| closed),
        Err(exact) => {
            let expected = rig.refusal(request, sector, exact);
            refused(what, result, expected).map(|()| None)
        }
    }
}

fn zones_are(rig: &mut Rig<'_>, what: &str, model: &Model, index: usize, closed: Option<usize>) -> Outcome {
    for index in [Some(index), closed].into_iter().flatten() {
        if let Some(zone) = model.zones.get(index) {
            rig.zone_is(what, &zone.reported())?;
        }
    }
    Ok(())
}

/// One request: by the synchronous call, or submitted on any queue.
fn perform(rig: &mut Rig<'_>, command: Command<Vec<u8>>) -> Result<Result<Done, Error>, Stop> {
    if rig.random.below(2) == 0 {
        let queue = some_queue(rig);
        return Ok(rig.one(queue, command)?.result);
    }
    let disk = &mut rig.disk;
    let result = match command {
        Command::Write { sector, buffer } => disk.write(sector, &buffer),
        Command::Append { zone_start_sector, buffer } => {
            return Ok(disk.append(zone_start_sector, &buffer).map(|sector| Done::Appended { sector }));
        }
        Command::WriteZeroes { sector, sectors, unmap } => disk.write_zeroes(sector, sectors.into(), unmap),
        Command::OpenZone { start_sector } => disk.open_zone(start_sector),
        Command::CloseZone { start_sector } => disk.close_zone(start_sector),
        Command::FinishZone { start_sector } => disk.finish_zone(start_sector),
        Command::ResetZone { start_sector } => disk.reset_zone(start_sector),
        Command::ResetAllZones => disk.reset_all_zones(),
        other => return Err(failed(format_args!("the list has no call for {other:?}"))),
    };
    Ok(result.map(|()| Done::Plain))
}

fn some_queue(rig: &mut Rig<'_>) -> u16 {
    let queues = rig.disk.queue_count();
    u16::try_from(rig.random.below(queues.into())).unwrap_or(0)
}
