//! Random work for the driver, on random disks, compared with a second disk that is fed what the caller gave, not what came through the
//! rings: every result, every byte, every zone.
//!
//! `DRIVER_SEED=n` repeats a run, `DRIVER_OPS=n` sets how many operations each test makes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says loudly what is wrong"
)]

mod common;

use std::collections::BTreeMap;

use common::rig::{Blk, allocate, attach_with, expected_zones, zones};
use common::{Disk, FakeDevice, FakeTransport, Logged, SECTOR, Shape, Watch, memory, on_both_hals};
use virtio_zbd_driver::{
    Command, Completion, DeviceError, Done, Error, Hal, Options, Token, VirtioBlk, Waited,
};
use virtio_zbd_spec::{DiscardWriteZeroes, Features, RequestType, Status, ZoneState, ZoneType};
use zerocopy::IntoBytes;

on_both_hals!(one_call_after_the_other, many_requests_on_many_queues);

/// Operations on one disk; then there is another one.
const OPS_PER_DISK: u64 = if cfg!(miri) { 40 } else { 300 };

fn disks(run: impl Fn(&mut fastrand::Rng) -> Seen) {
    let env = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seed = env("DRIVER_SEED").unwrap_or_else(|| if cfg!(miri) { 7 } else { fastrand::u64(..) });
    let ops = env("DRIVER_OPS").unwrap_or(if cfg!(miri) { 80 } else { 30_000 });
    println!("DRIVER_SEED={seed}");
    let mut all = Seen::default();
    for disk in 0..ops.div_ceil(OPS_PER_DISK) {
        println!("disk {disk}");
        let _watch = Watch::begin();
        all.add(run(&mut fastrand::Rng::with_seed(seed.wrapping_add(disk))));
    }
    println!("{all:?}");
    // No test that was idle: each status that an honest disk gives was seen. (Nothing fails, and nothing is unsupported.)
    if ops >= 10_000 {
        let [ok, _, _, zones @ ..] = all.0;
        assert!(ok > 0 && zones.iter().all(|count| *count > 0), "{all:?}");
    }
}

/// How many requests ended with each status.
#[derive(Debug, Default)]
struct Seen([u64; 7]);

impl Seen {
    fn take(&mut self, status: Status) {
        self.0[usize::from(u8::from(status))] += 1;
    }

    fn add(&mut self, other: Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }
}

fn shape(rng: &mut fastrand::Rng) -> Shape {
    let granularity_bytes = *rng.choice(&[512, 1024, 4096]).unwrap();
    let zone_sectors = *rng.choice(&[16, 24, 40, 64]).unwrap();
    let mut more = Features::empty();
    for feature in [Features::FLUSH, Features::INDIRECT_DESC, Features::EVENT_IDX] {
        more.set(feature, rng.u8(..4) > 0);
    }
    let zoned = rng.u8(..4) > 0;
    if !zoned {
        more |= Features::DISCARD | Features::WRITE_ZEROES | Features::SECURE_ERASE;
    }
    let unit = u64::from(granularity_bytes) / 512;
    Shape {
        capacity_sectors: u64::from(zone_sectors) * rng.u64(3..10) + unit * rng.u64(..2),
        zone_sectors: if zoned { zone_sectors } else { 0 },
        zone_capacity_sectors: *rng.choice(&[16, zone_sectors - 8, zone_sectors]).unwrap(),
        conventional: rng.usize(..3),
        open_max: rng.u32(..4),
        active_max: rng.u32(..5),
        append_sectors_max: *rng.choice(&[0, 8, 16]).unwrap(),
        granularity_bytes,
        block_bytes: if rng.bool() { 512 } else { granularity_bytes },
        // One segment at least holds the granularity, or several do together.
        size_max: *rng.choice(&[None, Some(4096), Some(5000), Some(1024), Some(700)]).unwrap(),
        seg_max: Some(rng.u32(6..12)),
        queues: Some(3),
        queue_size: *rng.choice(&[16, 32]).unwrap(),
        more,
        ranges_max: (8, 1),
        ..Shape::default()
    }
}

fn device_error(status: Status) -> Option<DeviceError> {
    match status {
        Status::Ok => None,
        Status::IoErr => Some(DeviceError::IoError),
        Status::Unsupp => Some(DeviceError::Unsupported),
        Status::ZoneInvalidCmd => Some(DeviceError::InvalidCommand),
        Status::ZoneUnalignedWp => Some(DeviceError::UnalignedWritePointer),
        Status::ZoneOpenResource => Some(DeviceError::OpenResource),
        Status::ZoneActiveResource => Some(DeviceError::ActiveResource),
    }
}

/// A place and a length for data: mostly where a write can go, in blocks.
fn place(rng: &mut fastrand::Rng, disk: &Disk, sectors_max: u64) -> (u64, u64) {
    let unit = u64::from(disk.shape.block_bytes) / 512;
    let capacity = disk.shape.capacity_sectors;
    let sector = match disk.zones.get(rng.usize(..disk.zones.len().max(1))) {
        Some(zone) if zone.kind != ZoneType::Conventional && rng.u8(..8) > 0 && zone.wp < capacity => zone.wp,
        _ => rng.u64(..capacity) / unit * unit,
    };
    let granule = if rng.u8(..8) > 0 { u64::from(disk.shape.granularity_bytes.max(512)) / 512 } else { unit };
    let sectors = (rng.u64(1..=sectors_max.div_ceil(granule)) * granule).min(capacity - sector);
    (sector, (sectors / unit * unit).max(unit).min(capacity - sector))
}

fn bytes(rng: &mut fastrand::Rng, sectors: u64) -> Vec<u8> {
    let mut data = vec![0; usize::try_from(sectors).unwrap() * SECTOR];
    if cfg!(miri) {
        data.fill(rng.u8(1..));
    } else {
        rng.fill(&mut data);
    }
    data
}

fn zone_start(rng: &mut fastrand::Rng, disk: &Disk) -> u64 {
    rng.choice(&disk.zones).map_or(0, |zone| zone.start)
}

/// A worn zone, now and then.
fn wear(rng: &mut fastrand::Rng, device: &FakeDevice, oracle: &mut Disk) {
    if !oracle.zones.is_empty() && rng.u8(..200) == 0 {
        let zone = rng.usize(..oracle.zones.len());
        if oracle.zones[zone].kind != ZoneType::Conventional {
            let state = if rng.bool() { ZoneState::ReadOnly } else { ZoneState::Offline };
            oracle.zones[zone].state = state;
            device.disk(|disk| disk.zones[zone].state = state);
        }
    }
}

/// Feeds the oracle with the pieces that a call was sent in, with the caller's data. Gives the first that failed, and what was read.
fn replay(
    oracle: &mut Disk,
    kind: RequestType,
    sector: u64,
    data: &[u8],
    room: usize,
    log: &[Logged],
    seen: &mut Seen,
) -> (Result<(), Error>, Vec<u8>) {
    let zoned = oracle.shape.is_zoned();
    let (mut at, mut read) = (0, Vec::new());
    for (number, piece) in log.iter().enumerate() {
        let expected = sector + (at / SECTOR) as u64;
        assert_eq!((piece.kind, piece.sector), (u32::from(kind), expected), "piece {number} of {log:?}");
        let len = if kind == RequestType::Out {
            piece.readable.iter().skip(1).sum::<usize>()
        } else {
            piece.writable.iter().rev().skip(1).sum()
        };
        let answer = if kind == RequestType::Out {
            oracle.request(piece.kind, piece.sector, &data[at..at + len], 0, zoned)
        } else {
            oracle.request(piece.kind, piece.sector, &[], len, zoned)
        };
        seen.take(answer.status);
        if let Some(status) = device_error(answer.status) {
            assert_eq!(number + 1, log.len(), "it went on after {status:?}");
            return (Err(Error::Device { request: kind, sector: piece.sector, status }), read);
        }
        read.extend_from_slice(&answer.data);
        at += len;
    }
    assert_eq!(at, data.len() + room, "{log:?}");
    (Ok(()), read)
}

/// A request of one piece.
fn once(
    oracle: &mut Disk,
    kind: RequestType,
    sector: u64,
    data: &[u8],
    seen: &mut Seen,
) -> Result<u64, Error> {
    let answer = oracle.request(kind.into(), sector, data, 0, oracle.shape.is_zoned());
    seen.take(answer.status);
    match device_error(answer.status) {
        None => Ok(answer.append_sector),
        Some(status) => Err(Error::Device { request: kind, sector, status }),
    }
}

fn assert_same<H: Hal>(device: &FakeDevice, disk: &mut Blk<H>, oracle: &Disk) {
    assert_eq!(device.disk(|disk| disk.zones.clone()), oracle.zones);
    assert!(device.disk(|disk| disk.bytes == oracle.bytes), "the bytes differ");
    if disk.zoned().is_some() {
        assert_eq!(zones(disk), expected_zones(oracle));
    }
    device.take_log();
}

fn one_call_after_the_other<H: Hal>() {
    disks(|rng| {
        let device = FakeDevice::new(shape(rng));
        let mut oracle = device.disk(|disk| disk.clone());
        let mut disk = attach_with::<H>(&device, Options { queue_depth: 16, ..Options::default() }).unwrap();
        let mut seen = Seen::default();
        for _ in 0..OPS_PER_DISK {
            wear(rng, &device, &mut oracle);
            device.take_log();
            call(rng, &device, &mut disk, &mut oracle, &mut seen);
            if rng.u8(..if cfg!(miri) { 20 } else { 4 }) == 0 {
                assert_same(&device, &mut disk, &oracle);
            }
        }
        assert_same(&device, &mut disk, &oracle);
        seen
    });
}

/// One synchronous call, and the same for the oracle.
fn call<H: Hal>(
    rng: &mut fastrand::Rng,
    device: &FakeDevice,
    disk: &mut Blk<H>,
    oracle: &mut Disk,
    seen: &mut Seen,
) {
    let zoned = oracle.shape.is_zoned();
    let start = zone_start(rng, oracle);
    let kinds = [
        RequestType::In,
        RequestType::Out,
        RequestType::Out,
        RequestType::Out,
        RequestType::Flush,
        RequestType::ZoneAppend,
        RequestType::ZoneAppend,
        RequestType::ZoneReport,
        RequestType::ZoneOpen,
        RequestType::ZoneClose,
        RequestType::ZoneFinish,
        RequestType::ZoneReset,
        RequestType::ZoneResetAll,
    ];
    let ranges = [RequestType::Discard, RequestType::WriteZeroes, RequestType::SecureErase];
    let kind = if zoned {
        *rng.choice(&kinds).unwrap()
    } else {
        *rng.choice(&[&kinds[..5], &ranges].concat()).unwrap()
    };
    match kind {
        RequestType::In => {
            let (sector, sectors) = place(rng, oracle, 60);
            let mut back = vec![0xaa; usize::try_from(sectors).unwrap() * SECTOR];
            let result = disk.read(sector, &mut back);
            let (expected, read) = replay(oracle, kind, sector, &[], back.len(), &device.take_log(), seen);
            assert_eq!(result, expected);
            assert!(back[..read.len()] == read, "{sectors} sectors at {sector}");
        }
        RequestType::Out => {
            let (sector, sectors) = place(rng, oracle, 60);
            let data = bytes(rng, sectors);
            let result = disk.write(sector, &data);
            let (expected, _) = replay(oracle, kind, sector, &data, 0, &device.take_log(), seen);
            assert_eq!(result, expected);
        }
        RequestType::Flush => disk.flush().unwrap(),
        RequestType::ZoneAppend => {
            let granule = u64::from(oracle.shape.granularity_bytes) / 512;
            let data_sectors = rng.u64(1..=16_u64.div_ceil(granule)) * granule;
            let data = bytes(rng, data_sectors);
            match disk.append(start, &data) {
                Err(Error::Invalid(_)) => {
                    let longest = u64::from(oracle.shape.append_sectors_max);
                    let transfer = disk.limits().transfer_len_bytes_max;
                    assert!(data_sectors > longest || data.len() > transfer);
                    assert_eq!(device.take_log(), []);
                }
                result => assert_eq!(result, once(oracle, kind, start, &data, seen)),
            }
        }
        RequestType::ZoneReport => {
            let sector = rng.u64(..oracle.shape.capacity_sectors);
            let zone = expected_zones(oracle)[oracle.zone_of(sector).unwrap()];
            assert_eq!(disk.zone(sector), Ok(zone));
        }
        RequestType::ZoneOpen => {
            assert_eq!(disk.open_zone(start).map(|()| 0), once(oracle, kind, start, &[], seen))
        }
        RequestType::ZoneClose => {
            assert_eq!(disk.close_zone(start).map(|()| 0), once(oracle, kind, start, &[], seen))
        }
        RequestType::ZoneFinish => {
            assert_eq!(disk.finish_zone(start).map(|()| 0), once(oracle, kind, start, &[], seen))
        }
        RequestType::ZoneReset => {
            assert_eq!(disk.reset_zone(start).map(|()| 0), once(oracle, kind, start, &[], seen))
        }
        RequestType::ZoneResetAll if rng.u8(..6) == 0 => {
            assert_eq!(disk.reset_all_zones().map(|()| 0), once(oracle, kind, 0, &[], seen));
        }
        RequestType::Discard | RequestType::WriteZeroes | RequestType::SecureErase => {
            let (sector, sectors) = place(rng, oracle, 40);
            match kind {
                RequestType::Discard => disk.discard(sector, sectors).unwrap(),
                RequestType::WriteZeroes => disk.write_zeroes(sector, sectors, rng.bool()).unwrap(),
                _ => disk.secure_erase(sector, sectors).unwrap(),
            }
            let (from, to) = (usize::try_from(sector).unwrap(), usize::try_from(sector + sectors).unwrap());
            oracle.bytes[from * SECTOR..to * SECTOR].fill(0);
        }
        _ => {}
    }
}

/// What was submitted and what has to come of it.
struct Expected {
    result: Result<Done, Error>,
    /// What the buffer has to hold.
    buffer: Option<Vec<u8>>,
    /// Where the buffer lies.
    place: usize,
}

/// A command as it was given, until the device is told of it.
struct Given {
    token: Token,
    kind: RequestType,
    sector: u64,
    data: Vec<u8>,
    room: usize,
    place: usize,
}

fn many_requests_on_many_queues<H: Hal>() {
    disks(|rng| {
        let device = FakeDevice::new(shape(rng));
        let mut oracle = device.disk(|disk| disk.clone());
        let seed = rng.u64(..);
        // Answers come one at a time, from anywhere among those that are ready.
        let mut order = fastrand::Rng::with_seed(seed);
        let wait = move |transport: &mut FakeTransport, queue: u16, turn: u64| {
            let device = transport.device();
            match device.waiting(queue) {
                0 => assert!(turn == 0, "nothing is under way on queue {queue}"),
                waiting => device.deliver(queue, order.usize(..waiting)),
            }
            Waited::Again
        };
        let options = Options { queues: 3, queue_depth: 16, ..Options::default() };
        let mut disk: Blk<H> = VirtioBlk::with(device.transport(), options, wait, allocate).unwrap();
        device.face(|face| face.holds_answers = true);
        let mut work = Work {
            device: &device,
            given: BTreeMap::new(),
            expected: BTreeMap::new(),
            seen: Seen::default(),
        };
        for _ in 0..OPS_PER_DISK {
            let queue = rng.u16(..3);
            match rng.u8(..10) {
                0..=5 => work.submit(rng, &mut disk, &oracle, queue),
                6 => work.notify(&mut disk, &mut oracle, queue),
                7 => {
                    for _ in 0..rng.usize(..4) {
                        if device.waiting(queue) > 0 {
                            device.deliver(queue, rng.usize(..device.waiting(queue)));
                        }
                    }
                }
                8 => work.complete(&mut disk, queue),
                _ => work.flush(rng, &mut disk, &mut oracle),
            }
        }
        for queue in 0..3 {
            work.notify(&mut disk, &mut oracle, queue);
            while work.expected.keys().any(|(on, _)| *on == queue) {
                disk.wait(queue).unwrap();
                work.complete(&mut disk, queue);
            }
            assert_eq!(disk.in_flight(queue), 0);
            assert_eq!(disk.complete(queue), Ok(None));
        }
        assert_eq!(memory::shared(), (0, 0));
        device.face(|face| face.holds_answers = false);
        assert_same(&device, &mut disk, &oracle);
        work.seen
    });
}

struct Work<'a> {
    device: &'a FakeDevice,
    /// By queue, in the order of submission.
    given: BTreeMap<u16, Vec<Given>>,
    expected: BTreeMap<(u16, Token), Expected>,
    seen: Seen,
}

impl Work<'_> {
    fn submit<H: Hal>(&mut self, rng: &mut fastrand::Rng, disk: &mut Blk<H>, oracle: &Disk, queue: u16) {
        let limit = disk.limits().transfer_len_bytes_max as u64 / 512;
        let zoned = oracle.shape.is_zoned();
        let start = zone_start(rng, oracle);
        let none = Vec::new;
        let (kind, sector, data, room, command) = match rng.u8(..if zoned { 12 } else { 8 }) {
            0..=1 => {
                let (sector, sectors) = place(rng, oracle, limit);
                let sectors = sectors.min(limit);
                let buffer = vec![0x11; usize::try_from(sectors).unwrap() * SECTOR];
                (RequestType::In, sector, none(), buffer.len(), Command::Read { sector, buffer })
            }
            2..=5 => {
                let (sector, sectors) = place(rng, oracle, limit);
                let buffer = bytes(rng, sectors.min(limit));
                (RequestType::Out, sector, buffer.clone(), 0, Command::Write { sector, buffer })
            }
            6 if disk.limits().flush => (RequestType::Flush, 0, none(), 0, Command::Flush),
            6..=7 if !zoned => {
                let (sector, sectors) = place(rng, oracle, 8);
                let sectors = u32::try_from(sectors).unwrap().min(8);
                let range = DiscardWriteZeroes {
                    sector: sector.into(),
                    num_sectors: sectors.into(),
                    flags: 0.into(),
                };
                let command = Command::WriteZeroes { sector, sectors, unmap: false };
                (RequestType::WriteZeroes, 0, range.as_bytes().to_vec(), 0, command)
            }
            8 => (RequestType::ZoneOpen, start, none(), 0, Command::OpenZone { start_sector: start }),
            9 => (RequestType::ZoneClose, start, none(), 0, Command::CloseZone { start_sector: start }),
            10 => (RequestType::ZoneFinish, start, none(), 0, Command::FinishZone { start_sector: start }),
            11 => (RequestType::ZoneReset, start, none(), 0, Command::ResetZone { start_sector: start }),
            _ if oracle.shape.append_sectors_max > 0 && zoned => {
                let granule = u64::from(oracle.shape.granularity_bytes) / 512;
                let longest = u64::from(oracle.shape.append_sectors_max).min(limit) / granule;
                let sectors = rng.u64(1..=longest) * granule;
                let buffer = bytes(rng, sectors);
                let command = Command::Append { zone_start_sector: start, buffer: buffer.clone() };
                (RequestType::ZoneAppend, start, buffer, 0, command)
            }
            _ => return,
        };
        let place = match &command {
            Command::Read { buffer, .. } | Command::Write { buffer, .. } | Command::Append { buffer, .. } => {
                buffer.as_ptr().addr()
            }
            _ => 0,
        };
        let in_flight = disk.in_flight(queue);
        match disk.submit(queue, command) {
            Ok(token) => {
                self.given.entry(queue).or_default().push(Given { token, kind, sector, data, room, place });
            }
            Err(rejected) => {
                assert_eq!(rejected.error, Error::QueueFull);
                // With indirect tables each request takes one entry.
                assert!(in_flight >= 16 || !disk.features().contains(Features::INDIRECT_DESC));
                if let Some(buffer) = rejected.buffer {
                    assert_eq!(buffer.as_ptr().addr(), place);
                }
            }
        }
    }

    /// The device does what it was given: so does the oracle.
    fn notify<H: Hal>(&mut self, disk: &mut Blk<H>, oracle: &mut Disk, queue: u16) {
        disk.notify(queue).unwrap();
        self.replay(oracle, queue);
    }

    fn replay(&mut self, oracle: &mut Disk, queue: u16) {
        for given in self.given.remove(&queue).unwrap_or_default() {
            let Given { token, kind, sector, data, room, place } = given;
            let answer = oracle.request(kind.into(), sector, &data, room, oracle.shape.is_zoned());
            self.seen.take(answer.status);
            let result = match device_error(answer.status) {
                Some(status) => Err(Error::Device { request: kind, sector, status }),
                None if kind == RequestType::ZoneAppend => {
                    Ok(Done::Appended { sector: answer.append_sector })
                }
                None => Ok(Done::Plain),
            };
            let buffer = match kind {
                // What a failed read leaves in it does not count.
                RequestType::In => Some(answer.data).filter(|_| result.is_ok()),
                RequestType::Out | RequestType::ZoneAppend => Some(data),
                _ => None,
            };
            self.expected.insert((queue, token), Expected { result, buffer, place });
        }
    }

    fn complete<H: Hal>(&mut self, disk: &mut Blk<H>, queue: u16) {
        while let Some(done) = disk.complete(queue).unwrap() {
            self.check(queue, done);
        }
    }

    fn check(&mut self, queue: u16, done: Completion<Vec<u8>>) {
        let expected = self.expected.remove(&(queue, done.token)).expect("a token that was given, once");
        assert_eq!(done.result, expected.result);
        assert_eq!(done.buffer.as_ref().map_or(0, |buffer| buffer.as_ptr().addr()), expected.place);
        if let Some(buffer) = expected.buffer {
            assert!(done.buffer == Some(buffer), "the data differs");
        }
    }

    /// A synchronous call among what is in flight: it goes over the first queue, behind what is there.
    fn flush<H: Hal>(&mut self, rng: &mut fastrand::Rng, disk: &mut Blk<H>, oracle: &mut Disk) {
        if rng.bool() || oracle.zones.is_empty() {
            disk.flush().unwrap();
            // Without a cache nothing is sent.
            if disk.limits().flush {
                self.replay(oracle, 0);
            }
            return;
        }
        let zone = rng.usize(..oracle.zones.len());
        let found = disk.zone(oracle.zones[zone].start);
        self.replay(oracle, 0);
        assert_eq!(found, Ok(expected_zones(oracle)[zone]));
        self.device.take_log();
    }
}
