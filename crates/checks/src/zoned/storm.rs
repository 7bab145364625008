//! Many appends in flight at once, on all queues: those that landed lie side by side, each with its data.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use virtio_zbd_driver::{Command, Completion, Done, Error, Token, Zone, ZoneState};

use super::appends::{append_sectors_max, with_append};
use super::in_state;
use crate::data::{Contents, Piece, len_bytes, sectors};
use crate::rig::{Outcome, Rig, Stop, failed, holds, not_here, ok, read_is, same};

/// Appends in one check.
const APPENDS: usize = 96;

pub(super) fn one_zone(rig: &mut Rig<'_>) -> Outcome {
    with_append(rig)?;
    let zones = rig.empty_zones(1)?;
    let contents = rig.contents();
    Storm::new(rig, &zones, None, contents)?.run(rig)
}

pub(super) fn several_zones(rig: &mut Rig<'_>) -> Outcome {
    with_append(rig)?;
    let count = rig.at_once(4);
    if count < 2 {
        return Err(not_here("one zone only may be open"));
    }
    let zones = rig.empty_zones(count)?;
    let contents = rig.contents();
    Storm::new(rig, &zones, None, contents)?.run(rig)
}

/// Reads of a finished zone and flushes are in flight between the appends.
pub(super) fn among_others(rig: &mut Rig<'_>) -> Outcome {
    with_append(rig)?;
    let zones = rig.roomy_zones(2, 4)?;
    let [finished, rest @ ..] = zones.as_slice() else { return Err(not_here("two zones are needed")) };
    let grain = rig.grain_sectors();
    let sectors = (finished.capacity_sectors - finished.capacity_sectors % grain).min(64 * grain);
    let mut contents = rig.contents();
    rig.write(&mut contents, finished.start_sector, sectors)?;
    if sectors < finished.capacity_sectors {
        ok("finish", rig.disk.finish_zone(finished.start_sector))?;
    }
    Storm::new(rig, rest, Some((finished.start_sector, sectors)), contents)?.run(rig)?;
    rig.zone_is("a finished zone beside it", &in_state(finished, ZoneState::Full, 0))
}

/// A request in flight, and what must come of it.
enum Flight {
    Append { zone: usize, piece: Piece },
    Read { sector: u64 },
    Flush,
}

struct Storm<'z> {
    zones: &'z [Zone],
    /// How many sectors are left in each zone.
    room: Vec<u64>,
    /// By zone: where an append landed, and how long it is.
    landed: Vec<BTreeMap<u64, u64>>,
    /// What else is read: first sector, and how many.
    beside: Option<(u64, u64)>,
    contents: Contents,
    longest_sectors: u64,
    /// By queue.
    flights: Vec<BTreeMap<Token, Flight>>,
}

impl<'z> Storm<'z> {
    fn new(
        rig: &Rig<'_>,
        zones: &'z [Zone],
        beside: Option<(u64, u64)>,
        contents: Contents,
    ) -> Result<Self, Stop> {
        let zoned = with_append(rig)?;
        Ok(Self {
            zones,
            room: zones.iter().map(|zone| zone.capacity_sectors).collect(),
            landed: zones.iter().map(|_| BTreeMap::new()).collect(),
            beside,
            contents,
            longest_sectors: append_sectors_max(rig, &zoned).min(16 * rig.grain_sectors()),
            flights: (0..rig.disk.queue_count()).map(|_| BTreeMap::new()).collect(),
        })
    }

    fn run(mut self, rig: &mut Rig<'_>) -> Outcome {
        for _ in 0..APPENDS {
            self.append(rig)?;
            if let Some((sector, sectors)) = self.beside {
                self.others(rig, sector, sectors)?;
            }
        }
        for queue in 0..rig.disk.queue_count() {
            ok("notify", rig.disk.notify(queue))?;
        }
        for queue in 0..self.flights.len() {
            while self.flights.get(queue).is_some_and(|flights| !flights.is_empty()) {
                self.land(rig, queue)?;
            }
        }
        self.look(rig)
    }

    /// An append of a random length to a random zone, if there is room.
    fn append(&mut self, rig: &mut Rig<'_>) -> Outcome {
        let grain = rig.grain_sectors();
        let index = usize::try_from(rig.random.below(self.zones.len() as u64)).unwrap_or(0);
        let (Some(zone), Some(room)) = (self.zones.get(index), self.room.get_mut(index)) else {
            return Ok(());
        };
        let grains = 1 + rig.random.below(self.longest_sectors / grain);
        let sectors = (grains * grain).min(*room - *room % grain);
        if sectors == 0 {
            return Ok(());
        }
        *room -= sectors;
        let piece = rig.piece(sectors);
        let command = Command::Append { zone_start_sector: zone.start_sector, buffer: piece.bytes.clone() };
        self.submit(rig, command, Flight::Append { zone: index, piece })
    }

    /// A read of `sectors` from `sector` on, or a flush.
    fn others(&mut self, rig: &mut Rig<'_>, sector: u64, sectors: u64) -> Outcome {
        if rig.disk.limits().flush && rig.random.below(8) == 0 {
            return self.submit(rig, Command::Flush, Flight::Flush);
        }
        let grain = rig.grain_sectors();
        let grains = 1 + rig.random.below((sectors / grain).min(8));
        let offset = rig.random.below(sectors / grain - grains + 1) * grain;
        let sectors = rig.transfer_sectors(grains * grain).max(grain);
        let buffer = vec![0xa5; len_bytes(sectors)];
        let sector = sector + offset;
        self.submit(rig, Command::Read { sector, buffer }, Flight::Read { sector })
    }

    /// Submits a request on a random queue; takes a completion first where it is full.
    fn submit(&mut self, rig: &mut Rig<'_>, command: Command<Vec<u8>>, flight: Flight) -> Outcome {
        let queue = rig.random.below(rig.disk.queue_count().into());
        let (number, index) = (u16::try_from(queue).unwrap_or(0), usize::try_from(queue).unwrap_or(0));
        loop {
            let in_flight = rig.disk.in_flight(number);
            match rig.disk.submit(number, command.clone()) {
                Ok(token) => {
                    if let Some(flights) = self.flights.get_mut(index) {
                        flights.insert(token, flight);
                    }
                    return Ok(());
                }
                Err(rejected) if rejected.error == Error::QueueFull && in_flight > 0 => {
                    self.land(rig, index)?
                }
                Err(rejected) => {
                    let error = rejected.error;
                    return Err(failed(format_args!("submit: expected a token, found {error:?}")));
                }
            }
        }
    }

    /// Takes a completion and checks it.
    fn land(&mut self, rig: &mut Rig<'_>, queue: usize) -> Outcome {
        let completion = rig.next_completion(u16::try_from(queue).unwrap_or(0))?;
        let flight = self.flights.get_mut(queue).and_then(|flights| flights.remove(&completion.token));
        match flight {
            Some(Flight::Append { zone, piece }) => self.landed(zone, &piece, &completion),
            Some(Flight::Read { sector }) => read_is(&completion, &self.contents, sector),
            Some(Flight::Flush) => same("a flush", &completion.result, &Ok(Done::Plain)),
            None => Err(failed(format_args!("{:?} is completed and was not in flight", completion.token))),
        }
    }

    fn landed(&mut self, zone: usize, piece: &Piece, completion: &Completion<Vec<u8>>) -> Outcome {
        let Ok(Done::Appended { sector }) = completion.result else {
            return Err(failed(format_args!(
                "append: expected where it landed, found {:?}",
                completion.result
            )));
        };
        holds("an append's buffer comes back as it was", completion.buffer.as_ref() == Some(&piece.bytes))?;
        self.contents.write(sector, piece);
        match self.landed.get_mut(zone).and_then(|landed| landed.insert(sector, sectors(&piece.bytes))) {
            None => Ok(()),
            Some(_) => Err(failed(format_args!("two appends landed at sector {sector}"))),
        }
    }

    /// All that landed fits together, and is where it landed.
    fn look(&self, rig: &mut Rig<'_>) -> Outcome {
        for (zone, landed) in self.zones.iter().zip(&self.landed) {
            let mut next = zone.start_sector;
            for (sector, sectors) in landed {
                same("where the next append landed: no gap, no overlap", sector, &next)?;
                next += sectors;
            }
            let written = next - zone.start_sector;
            let state = match written {
                0 => ZoneState::Empty,
                _ if written == zone.capacity_sectors => ZoneState::Full,
                _ => ZoneState::ImplicitOpen,
            };
            rig.zone_is("after all appends", &in_state(zone, state, written))?;
            let behind = rig.grain_sectors();
            rig.compare(&self.contents, zone.start_sector, (written + behind).min(zone.len_sectors))?;
        }
        Ok(())
    }
}
