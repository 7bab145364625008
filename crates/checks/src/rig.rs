//! What a check works with: the disk, what is expected of it, and the words for what went wrong.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::{Debug, Display};

use virtio_zbd_driver::{Command, Completion, DeviceError, Error, RequestType, Token, Zone, ZoneType, Zoned};

use crate::data::{Contents, Piece, Source, len_bytes, sectors};
use crate::disk::Disk;
use crate::line::{Line, Verdict};
use crate::peer::Peer;
use crate::random::Random;

/// The most that is held in memory for one read or write, in sectors: 256 KiB.
pub(crate) const PIECE_SECTORS_MAX: u64 = 512;

/// Why a check did not pass.
#[derive(Debug)]
pub(crate) enum Stop {
    Failed(String),
    NotHere(String),
}

pub(crate) type Outcome = Result<(), Stop>;

pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Rig<'_>) -> Outcome,
}

/// Sectors that can be written anywhere: a regular disk, or conventional zones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    pub(crate) start_sector: u64,
    pub(crate) sectors: u64,
}

pub(crate) struct Rig<'a> {
    pub(crate) disk: &'a mut (dyn Disk + 'a),
    pub(crate) peer: &'a Peer,
    pub(crate) seed: u64,
    pub(crate) random: Random,
    pub(crate) source: Source,
    note: &'static str,
}

impl<'a> Rig<'a> {
    pub(crate) fn new(disk: &'a mut (dyn Disk + 'a), peer: &'a Peer, seed: u64) -> Self {
        Self { disk, peer, seed, random: Random::new(seed), source: Source::new(), note: "" }
    }

    pub(crate) fn line(&mut self, check: &Check) -> Line {
        self.line_of(check.name, check.run)
    }

    pub(crate) fn line_of(&mut self, check: &'static str, run: impl FnOnce(&mut Self) -> Outcome) -> Line {
        self.note = "";
        let verdict = match run(self) {
            Ok(()) => Verdict::Passed(self.note.into()),
            Err(Stop::Failed(text)) => Verdict::Failed(text),
            Err(Stop::NotHere(text)) => Verdict::NotHere(text),
        };
        Line { check, verdict }
    }

    /// Says with the check's line that a known difference of the peer was expected.
    pub(crate) fn note(&mut self, note: &'static str) {
        self.note = note;
    }

    /// The error that this peer must answer where the rules ask for `exact`.
    pub(crate) fn refusal(&mut self, request: RequestType, sector: u64, exact: DeviceError) -> Error {
        self.note = self.peer.about_refusals();
        Error::Device { request, sector, status: self.peer.status(request, exact) }
    }

    pub(crate) fn writable(&self) -> Outcome {
        if self.disk.read_only() { Err(not_here("the disk is read-only")) } else { Ok(()) }
    }

    pub(crate) fn zoned(&self) -> Result<Zoned, Stop> {
        self.disk.zoned().ok_or_else(|| not_here("the disk has no zones"))
    }

    /// The block in sectors.
    pub(crate) fn block_sectors(&self) -> u64 {
        u64::from(self.disk.block_len_bytes() / 512)
    }

    /// Where the plain checks may write: at most 64 MiB.
    pub(crate) fn area(&mut self) -> Result<Area, Stop> {
        const SECTORS_MAX: u64 = 64 << 11;
        self.writable()?;
        let (start_sector, sectors) = if self.disk.zoned().is_some() {
            let zones = ok("a report", self.disk.zones(0))?;
            let conventional = |zone: &&Zone| zone.kind == ZoneType::Conventional;
            let skipped = zones.iter().take_while(|zone| !conventional(zone)).count();
            let run: Vec<_> = zones.iter().skip(skipped).take_while(conventional).collect();
            let start_sector = run.first().map_or(0, |zone| zone.start_sector);
            (start_sector, run.iter().map(|zone| zone.len_sectors).sum())
        } else {
            (0, self.disk.capacity_sectors())
        };
        let block_sectors = self.block_sectors();
        let sectors: u64 = SECTORS_MAX.min(sectors);
        let sectors = sectors - sectors % block_sectors;
        if sectors == 0 {
            return Err(not_here("the disk has no conventional zones"));
        }
        if sectors < 16 * block_sectors {
            return Err(not_here("too few sectors"));
        }
        Ok(Area { start_sector, sectors })
    }

    /// The first `count` whole sequential zones, after all zones were reset.
    pub(crate) fn empty_zones(&mut self, count: usize) -> Result<Vec<Zone>, Stop> {
        let zoned = self.zoned()?;
        self.writable()?;
        ok("reset all", self.disk.reset_all_zones())?;
        let zones = ok("a report", self.disk.zones(0))?;
        // The last one may be shorter.
        let whole = |zone: &&Zone| {
            zone.kind == ZoneType::SequentialRequired && zone.len_sectors == u64::from(zoned.zone_sectors)
        };
        let wanted: Vec<Zone> = zones.iter().filter(whole).take(count).copied().collect();
        if wanted.len() < count {
            return Err(Stop::NotHere(format!(
                "{count} whole sequential zones are needed, the disk has {}",
                wanted.len()
            )));
        }
        Ok(wanted)
    }

    /// As [`empty_zones`](Self::empty_zones), each with room for so many writes of one grain.
    pub(crate) fn roomy_zones(&mut self, count: usize, writes: u64) -> Result<Vec<Zone>, Stop> {
        let zones = self.empty_zones(count)?;
        let sectors = writes * self.grain_sectors();
        if zones.iter().any(|zone| zone.capacity_sectors < sectors) {
            return Err(Stop::NotHere(format!("zones have room for less than {writes} writes")));
        }
        Ok(zones)
    }

    /// How many sequential zones may be written at a time, at most `wanted`.
    pub(crate) fn at_once(&self, wanted: usize) -> usize {
        let limits = self.disk.zoned().map_or([0; 2], |zoned| [zoned.open_max, zoned.active_max]);
        let limits = limits.into_iter().filter(|max| *max != 0);
        limits.fold(wanted, |least, max| usize::try_from(max).map_or(least, |max| max.min(least)))
    }

    /// The unit of writes to sequential zones, in sectors: block and write granularity.
    pub(crate) fn grain_sectors(&self) -> u64 {
        let granularity_bytes = self.disk.zoned().map_or(512, |zoned| zoned.write_granularity_bytes);
        u64::from(granularity_bytes.max(self.disk.block_len_bytes()) / 512)
    }

    /// New data.
    pub(crate) fn piece(&mut self, sectors: u64) -> Piece {
        self.source.piece(sectors)
    }

    /// Contents of which nothing is known to be written.
    pub(crate) fn contents(&self) -> Contents {
        Contents::new(self.peer.unwritten)
    }

    /// Writes new data from `sector` on, in pieces, and remembers it.
    pub(crate) fn write(&mut self, contents: &mut Contents, sector: u64, sectors: u64) -> Outcome {
        let piece_sectors_max = PIECE_SECTORS_MAX.next_multiple_of(self.grain_sectors());
        let mut done = 0;
        while done < sectors {
            let piece = self.piece((sectors - done).min(piece_sectors_max));
            ok(
                format_args!("write of {} bytes at sector {}", piece.bytes.len(), sector + done),
                self.disk.write(sector + done, &piece.bytes),
            )?;
            contents.write(sector + done, &piece);
            done += crate::data::sectors(&piece.bytes);
        }
        Ok(())
    }

    /// Reads from `sector` on, in pieces, and compares.
    pub(crate) fn compare(&mut self, contents: &Contents, sector: u64, sectors: u64) -> Outcome {
        self.each_piece(sector, sectors, |sector, bytes| contents.check(sector, bytes))
    }

    /// Reads from `sector` on, in pieces.
    pub(crate) fn each_piece(
        &mut self,
        sector: u64,
        sectors: u64,
        mut look: impl FnMut(u64, &[u8]) -> Outcome,
    ) -> Outcome {
        let piece_sectors_max = PIECE_SECTORS_MAX.next_multiple_of(self.block_sectors());
        let mut done = 0;
        while done < sectors {
            // Nothing of this may be left where the device should have written.
            let mut bytes = vec![0xa5; len_bytes((sectors - done).min(piece_sectors_max))];
            ok(
                format_args!("read of {} bytes at sector {}", bytes.len(), sector + done),
                self.disk.read(sector + done, &mut bytes),
            )?;
            look(sector + done, &bytes)?;
            done += crate::data::sectors(&bytes);
        }
        Ok(())
    }

    /// Submits a request that the driver must take.
    pub(crate) fn submit(&mut self, queue: u16, command: Command<Vec<u8>>) -> Result<Token, Stop> {
        self.disk.submit(queue, command).map_err(|rejected| {
            failed(format_args!("submit on queue {queue}: expected a token, found {:?}", rejected.error))
        })
    }

    /// Waits for the next completion on a queue.
    pub(crate) fn next_completion(&mut self, queue: u16) -> Result<Completion<Vec<u8>>, Stop> {
        ok("notify", self.disk.notify(queue))?;
        ok(format_args!("wait on queue {queue}"), self.disk.wait(queue))?;
        match ok("complete", self.disk.complete(queue))? {
            Some(completion) => Ok(completion),
            None => Err(failed(format_args!(
                "queue {queue}: the wait is over, {} requests are in flight, and none is completed",
                self.disk.in_flight(queue)
            ))),
        }
    }

    /// One request by submit, notify and complete, with nothing else in flight. Gives what came of it and the buffer.
    pub(crate) fn one(&mut self, queue: u16, command: Command<Vec<u8>>) -> Result<Completion<Vec<u8>>, Stop> {
        let token = self.submit(queue, command)?;
        let completion = self.next_completion(queue)?;
        same("the completed request's token", &completion.token, &token)?;
        Ok(completion)
    }

    /// Whether the zone is as it must be: state and write pointer.
    pub(crate) fn zone_is(&mut self, what: impl Display, expected: &Zone) -> Outcome {
        let found = ok(format_args!("{what}: report"), self.disk.zone(expected.start_sector))?;
        same(format_args!("{what}: the zone afterwards"), &found, expected)
    }

    /// How many sectors one request may carry, at most `sectors_max`, as whole grains.
    pub(crate) fn transfer_sectors(&self, sectors_max: u64) -> u64 {
        let transfer_sectors = (self.disk.limits().transfer_len_bytes_max as u64 / 512).min(sectors_max);
        transfer_sectors - transfer_sectors % self.grain_sectors()
    }
}

pub(crate) fn failed(text: impl Display) -> Stop {
    Stop::Failed(format!("{text}"))
}

pub(crate) fn not_here(why: &str) -> Stop {
    Stop::NotHere(why.into())
}

/// The value of a call that must succeed.
pub(crate) fn ok<X>(what: impl Display, result: Result<X, Error>) -> Result<X, Stop> {
    result.map_err(|error| failed(format_args!("{what}: expected success, found {error:?}")))
}

/// A call that must fail with just this error.
pub(crate) fn refused<X: Debug>(
    what: impl Display,
    result: Result<X, Error>,
    expected: impl Into<Error>,
) -> Outcome {
    let expected = expected.into();
    match result {
        Err(error) if error == expected => Ok(()),
        Err(error) => Err(failed(format_args!("{what}: expected {expected:?}, found {error:?}"))),
        Ok(value) => Err(failed(format_args!("{what}: expected {expected:?}, found success: {value:?}"))),
    }
}

pub(crate) fn same<X: PartialEq + Debug>(what: impl Display, found: &X, expected: &X) -> Outcome {
    if found == expected {
        Ok(())
    } else {
        Err(failed(format_args!("{what}: expected {expected:?}, found {found:?}")))
    }
}

pub(crate) fn holds(what: impl Display, condition: bool) -> Outcome {
    if condition { Ok(()) } else { Err(failed(format_args!("expected: {what}; it is not so"))) }
}

/// The buffer of a completed read, checked.
pub(crate) fn read_is(completion: &Completion<Vec<u8>>, contents: &Contents, sector: u64) -> Outcome {
    match (&completion.result, &completion.buffer) {
        (Ok(_), Some(bytes)) if sectors(bytes) > 0 => contents.check(sector, bytes),
        (result, buffer) => Err(failed(format_args!(
            "read at sector {sector}: expected data, found {result:?} with {:?} bytes",
            buffer.as_ref().map(Vec::len)
        ))),
    }
}
