//! Requests in flight, by submit and complete.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use virtio_zbd_driver::{Command, Completion, Done, Error, Token};

use crate::data::{Contents, Piece, len_bytes};
use crate::rig::{Area, Outcome, Rig, Stop, failed, holds, ok, read_is, same};

/// Requests of each queue in a round.
const PER_QUEUE: u64 = 24;

/// What is in flight on the queues, by token: where it goes, and what is written there.
type Flights = BTreeMap<Token, (u64, Option<Piece>)>;

/// Rounds of writes, then of reads, on all queues at a time; each piece has its own place.
pub(super) fn many(rig: &mut Rig<'_>) -> Outcome {
    let area = rig.area()?;
    let queues = rig.disk.queue_count();
    let per_queue = PER_QUEUE.min(area.sectors / rig.block_sectors() / u64::from(queues));
    holds("room for a request on each queue", per_queue > 0)?;
    let slot_sectors = area.sectors / (per_queue * u64::from(queues));
    let slot_sectors = slot_sectors - slot_sectors % rig.block_sectors();
    let mut contents = rig.contents();
    let mut sizes = BTreeMap::new();
    for round in 0..3 {
        let mut flights: Vec<Flights> = (0..queues).map(|_| Flights::new()).collect();
        for index in 0..per_queue * u64::from(queues) {
            // Where a queue writes differs from round to round.
            let queue = u16::try_from((index + round) % u64::from(queues)).unwrap_or(0);
            let sector = area.start_sector + index * slot_sectors;
            let sectors = some_sectors(rig, slot_sectors);
            let sectors = rig.transfer_sectors(sectors).max(rig.block_sectors());
            let piece = rig.piece(sectors);
            sizes.insert(sector, sectors);
            let command = Command::Write { sector, buffer: piece.bytes.clone() };
            put(rig, queue, command, (sector, Some(piece)), &mut flights, &mut contents)?;
        }
        drain(rig, &mut flights, &mut contents)?;
        for (index, (sector, sectors)) in sizes.iter().enumerate() {
            let queue = u16::try_from(index % usize::from(queues)).unwrap_or(0);
            let command = Command::Read { sector: *sector, buffer: vec![0xa5; len_bytes(*sectors)] };
            put(rig, queue, command, (*sector, None), &mut flights, &mut contents)?;
        }
        drain(rig, &mut flights, &mut contents)?;
    }
    for (sector, sectors) in sizes {
        rig.compare(&contents, sector, sectors)?;
    }
    Ok(())
}

/// A random length up to `sectors_max`, mostly short.
fn some_sectors(rig: &mut Rig<'_>, sectors_max: u64) -> u64 {
    let blocks_max = (sectors_max / rig.block_sectors()).min(128);
    let bits = rig.random.below(8);
    (1 + rig.random.below(blocks_max.min(1 << bits))) * rig.block_sectors()
}

/// Submits a request; takes a completion first where the queue is full.
fn put(
    rig: &mut Rig<'_>,
    queue: u16,
    command: Command<Vec<u8>>,
    flight: (u64, Option<Piece>),
    flights: &mut [Flights],
    contents: &mut Contents,
) -> Outcome {
    let Some(flights) = flights.get_mut(usize::from(queue)) else { return Ok(()) };
    let token = loop {
        match rig.disk.submit(queue, command.clone()) {
            Ok(token) => break token,
            Err(rejected) if rejected.error == Error::QueueFull && !flights.is_empty() => {
                let completion = rig.next_completion(queue)?;
                landed(flights, &completion, contents)?;
            }
            Err(rejected) => {
                return Err(failed(format_args!("submit: expected a token, found {:?}", rejected.error)));
            }
        }
    };
    // The device is told of a request at a time, or of several.
    if rig.random.below(4) == 0 {
        ok("notify", rig.disk.notify(queue))?;
    }
    match flights.insert(token, flight) {
        None => Ok(()),
        Some(_) => Err(failed(format_args!("{token:?} was given out twice"))),
    }
}

/// Takes all completions, queue by queue, and checks each one.
fn drain(rig: &mut Rig<'_>, flights: &mut [Flights], contents: &mut Contents) -> Outcome {
    for queue in 0..rig.disk.queue_count() {
        ok("notify", rig.disk.notify(queue))?;
    }
    for (queue, flights) in (0..).zip(flights) {
        while !flights.is_empty() {
            same("requests in flight", &rig.disk.in_flight(queue), &flights.len())?;
            let completion = rig.next_completion(queue)?;
            landed(flights, &completion, contents)?;
        }
        same("requests in flight at last", &rig.disk.in_flight(queue), &0)?;
        same("a completion too many", &ok("complete", rig.disk.complete(queue))?, &None)?;
    }
    Ok(())
}

fn landed(flights: &mut Flights, completion: &Completion<Vec<u8>>, contents: &mut Contents) -> Outcome {
    let Some((sector, piece)) = flights.remove(&completion.token) else {
        return Err(failed(format_args!("{:?} is completed and was not in flight", completion.token)));
    };
    match piece {
        None => read_is(completion, contents, sector),
        Some(piece) => {
            same("a submitted write", &completion.result, &Ok(Done::Plain))?;
            holds("a write's buffer comes back as it was", completion.buffer.as_ref() == Some(&piece.bytes))?;
            contents.write(sector, &piece);
            Ok(())
        }
    }
}

/// Each queue takes requests until it is full, keeps all of them, and goes on afterwards.
pub(super) fn brim(rig: &mut Rig<'_>) -> Outcome {
    let mut contents = rig.contents();
    let area = match rig.area() {
        Ok(area) => {
            rig.write(&mut contents, area.start_sector, area.sectors.min(256))?;
            area
        }
        // Reads alone do it, too, where nothing can be written.
        Err(Stop::NotHere(_)) => Area { start_sector: 0, sectors: 0 },
        Err(other) => return Err(other),
    };
    let block = rig.block_sectors();
    let places = (area.sectors.min(256) / block).max(1);
    for queue in 0..rig.disk.queue_count() {
        let mut flights = Flights::new();
        loop {
            let sector = area.start_sector + rig.random.below(places) * block;
            let buffer = vec![0xa5; len_bytes(block)];
            match rig.disk.submit(queue, Command::Read { sector, buffer: buffer.clone() }) {
                Ok(token) => {
                    flights.insert(token, (sector, None));
                }
                Err(rejected) if rejected.error == Error::QueueFull => {
                    holds("the buffer comes back", rejected.buffer.as_ref() == Some(&buffer))?;
                    break;
                }
                Err(rejected) => {
                    let error = rejected.error;
                    return Err(failed(format_args!(
                        "submit: expected a token or QueueFull, found {error:?}"
                    )));
                }
            }
            let depth = usize::from(rig.disk.queue_depth());
            holds("no more requests in flight than the queue is deep", flights.len() <= depth)?;
        }
        // Three descriptors are the most that a request of one segment takes.
        let least = usize::from(rig.disk.queue_depth()) / 3;
        holds("a full queue holds a third of its depth at least", flights.len() >= least)?;
        same("requests in flight", &rig.disk.in_flight(queue), &flights.len())?;
        // One out, one in.
        let completion = rig.next_completion(queue)?;
        check_read(&mut flights, &completion, &contents, area.sectors > 0)?;
        let sector = area.start_sector;
        let token = rig.submit(queue, Command::Read { sector, buffer: vec![0xa5; len_bytes(block)] })?;
        flights.insert(token, (sector, None));
        while !flights.is_empty() {
            let completion = rig.next_completion(queue)?;
            check_read(&mut flights, &completion, &contents, area.sectors > 0)?;
        }
        same("requests in flight at last", &rig.disk.in_flight(queue), &0)?;
    }
    Ok(())
}

fn check_read(
    flights: &mut Flights,
    completion: &Completion<Vec<u8>>,
    contents: &Contents,
    known: bool,
) -> Outcome {
    let Some((sector, _)) = flights.remove(&completion.token) else {
        return Err(failed(format_args!("{:?} is completed and was not in flight", completion.token)));
    };
    if known {
        read_is(completion, contents, sector)
    } else {
        same("a read", &completion.result, &Ok(Done::Plain))
    }
}

/// Synchronous calls find their own answers and leave the others' for `complete`.
pub(super) fn calls_between(rig: &mut Rig<'_>) -> Outcome {
    let area = rig.area()?;
    let block = rig.block_sectors();
    let mut contents = rig.contents();
    let window = 16 * block;
    rig.write(&mut contents, area.start_sector, window)?;
    let mut flights = Flights::new();
    for index in 0..8 {
        let sector = area.start_sector + index * block;
        let token = rig.submit(0, Command::Read { sector, buffer: vec![0xa5; len_bytes(block)] })?;
        flights.insert(token, (sector, None));
        // These wait for their own request, behind or before those in flight.
        rig.compare(&contents, area.start_sector + (index + 1) * block, block)?;
        rig.write(&mut contents, area.start_sector + (8 + index) * block, block)?;
        ok("flush", rig.disk.flush())?;
    }
    same("requests in flight", &rig.disk.in_flight(0), &flights.len())?;
    while !flights.is_empty() {
        let completion = rig.next_completion(0)?;
        check_read(&mut flights, &completion, &contents, true)?;
    }
    rig.compare(&contents, area.start_sector, window)
}
