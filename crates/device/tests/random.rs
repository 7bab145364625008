//! Random requests against the naive disk of `naive`: every answer, every report and every byte is compared.
//!
//! `DEVICE_SEED` repeats a run, `DEVICE_OPS` sets how many requests each test makes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says loudly what is wrong"
)]

mod common;
mod naive;

use common::{Backing, How, Rig, assert_same_bytes, on_every_store};
use naive::NaiveDisk;
use virtio_zbd_spec::{Features, RequestType, ZoneState, ZoneType};
use virtio_zbd_testkit::{Completion, Framing, QueueOptions, Request, Token};
use virtio_zbd_zones::{Geometry, GeometryConfig, Model, ZoneLayout, ZoneRun};

on_every_store!(
    one_request_after_the_other_on_a_zoned_disk,
    one_request_after_the_other_on_an_odd_disk,
    one_request_after_the_other_on_a_plain_disk,
    many_requests_in_flight_on_two_queues,
);

/// Requests to one disk; then there is another one.
const REQUESTS_PER_DISK: u64 = 600;

/// How many requests a test makes.
fn requests(on: Backing) -> u64 {
    match std::env::var("DEVICE_OPS") {
        Ok(requests) => requests.parse().unwrap(),
        Err(_) if on == Backing::Ram => 30_000,
        Err(_) => 12_000,
    }
}

/// Calls `run` with a random generator for each disk.
fn disks(on: Backing, run: impl Fn(fastrand::Rng) -> Seen) {
    let seed = match std::env::var("DEVICE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("{on:?}: DEVICE_SEED={seed}");
    let mut all = Seen::default();
    for disk in 0..requests(on).div_ceil(REQUESTS_PER_DISK) {
        println!("disk {disk}");
        all.add(run(fastrand::Rng::with_seed(seed.wrapping_add(disk))));
    }
    println!("{all:?}");
    all.assert_enough();
}

/// How many answers there were with each status, so that a test can tell that it was not idle.
#[derive(Clone, Copy, Debug, Default)]
struct Seen([u64; 7]);

impl Seen {
    fn take(&mut self, done: &Completion) {
        self.0[usize::from(done.status)] += 1;
    }

    fn add(&mut self, other: Self) {
        for (sum, number) in self.0.iter_mut().zip(other.0) {
            *sum += number;
        }
    }

    fn assert_enough(&self) {
        assert!(self.0[0] * 3 > self.0.iter().sum(), "too little went well: {self:?}");
    }
}

/// A disk of a random shape: few small zones, each limit set or not, a runt or none, conventional zones or none.
fn random_shape(rng: &mut fastrand::Rng) -> GeometryConfig {
    let block = 1 << rng.u32(0..4);
    let zone_blocks = rng.u32(1..24);
    let zones = rng.u64(1..9);
    let runt_blocks = if rng.bool() { u64::from(rng.u32(0..zone_blocks)) } else { 0 };
    let zone_sectors = zone_blocks * block;
    let capacity_sectors = zones * u64::from(zone_sectors) + runt_blocks * u64::from(block);
    let limit = |rng: &mut fastrand::Rng| if rng.u8(0..3) == 0 { 0 } else { rng.u32(1..5) };
    let (max_open_zones, max_active_zones) = match (limit(rng), limit(rng)) {
        (open, 0) => (open, 0),
        (open, active) => (open.min(active), active.max(open)),
    };
    GeometryConfig {
        capacity_sectors,
        zone_sectors,
        zone_capacity_sectors: if rng.bool() { zone_sectors } else { rng.u32(1..=zone_blocks) * block },
        conventional_zones: rng.u32(0..=u32::try_from(zones).unwrap().min(3)),
        max_open_zones,
        max_active_zones,
        max_append_sectors: if rng.u8(0..6) == 0 { 0 } else { rng.u32(1..=zone_blocks + 2) * block },
        write_granularity_bytes: block * 512,
    }
}

/// A disk whose zones are of several kinds and capacities: its geometry, and what each zone is.
fn random_odd(rng: &mut fastrand::Rng) -> (Geometry, Vec<(ZoneType, u32)>) {
    let mut shape = random_shape(rng);
    let count = usize::try_from(shape.capacity_sectors.div_ceil(shape.zone_sectors.into())).unwrap();
    let aware = rng.bool();
    let has_preferred = aware || rng.bool();
    if has_preferred {
        (shape.max_open_zones, shape.max_active_zones) = (0, 0);
    }
    let block = shape.write_granularity_bytes / 512;
    let zone = |rng: &mut fastrand::Rng| match rng.u8(0..4) {
        0 => (ZoneType::Conventional, shape.zone_sectors),
        1 if has_preferred => (ZoneType::SequentialPreferred, shape.zone_sectors),
        _ if aware => (ZoneType::SequentialPreferred, shape.zone_sectors),
        _ => (ZoneType::SequentialRequired, rng.u32(1..=shape.zone_sectors / block) * block),
    };
    let head: Vec<_> = (0..rng.usize(0..=count)).map(|_| zone(rng)).collect();
    let cycle: Vec<_> = (0..rng.usize(1..4)).map(|_| zone(rng)).collect();
    let zones = head.iter().chain(cycle.iter().cycle()).copied().take(count).collect();
    let runs = |zones: Vec<(ZoneType, u32)>| {
        let run = |(kind, capacity)| match kind {
            ZoneType::Conventional => ZoneRun::conventional(1),
            ZoneType::SequentialRequired => ZoneRun::required(1, capacity),
            ZoneType::SequentialPreferred => ZoneRun::preferred(1, capacity),
        };
        zones.into_iter().map(run).collect()
    };
    let model = if aware { Model::HostAware } else { Model::HostManaged };
    let layout = ZoneLayout { model, head: runs(head), cycle: runs(cycle) };
    (Geometry::with_layout(shape, layout).unwrap(), zones)
}

fn options(rng: &mut fastrand::Rng) -> QueueOptions {
    let framings = [
        Framing::Classic,
        Framing::Indirect,
        Framing::TailIndirect,
        Framing::Joined,
        Framing::Random(rng.u64(..1 << 60)),
        Framing::IndirectRandom(rng.u64(..1 << 60)),
    ];
    QueueOptions {
        size: 1 << rng.u32(9..11),
        event_idx: rng.bool(),
        base: rng.u16(..),
        framing: rng.choice(framings).unwrap(),
        ..Default::default()
    }
}

fn random_bytes(rng: &mut fastrand::Rng, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    rng.fill(&mut data);
    data
}

/// Compares everything that can be seen of the disk.
#[track_caller]
fn compare(rig: &mut Rig, naive: &mut NaiveDisk) {
    let state = rig.state();
    assert_eq!(state.open_and_active, naive.open_and_active());
    if !naive.regular {
        let report = Request::zone_report(0, 64 + 64 * naive.zones.len());
        assert_eq!(rig.call(report.clone()), naive.call(&report));
    }
    // What lies beyond a write pointer is not there at all: no write has failed, and a reset gives everything back.
    assert_same_bytes(&naive.bytes(), &state.bytes, "the disk");
}

fn one_request_after_the_other_on_a_zoned_disk(on: Backing) {
    disks(on, |mut rng| {
        let shape = random_shape(&mut rng);
        println!("{shape:?}");
        let mut rig = Rig::zoned_with(on, shape, How { options: options(&mut rng), ..Default::default() });
        let mut naive = NaiveDisk::zoned(shape, rig.store.identity().serial);
        one_after_the_other(&mut rig, &mut naive, &mut rng, |naive, rng| random_request(naive, shape, rng))
    });
}

fn one_request_after_the_other_on_an_odd_disk(on: Backing) {
    disks(on, |mut rng| {
        let (geometry, zones) = random_odd(&mut rng);
        let regular = geometry.model() == Model::HostAware && rng.bool();
        println!("{:?} {zones:?}, used as a regular disk: {regular}", geometry.config());
        let shape = *geometry.config();
        let without = if regular { Features::ZONED } else { Features::empty() };
        let how = How { options: options(&mut rng), without, ..Default::default() };
        let mut rig = Rig::of(on, geometry, how);
        let mut naive = NaiveDisk::of_zones(shape, zones, rig.store.identity().serial);
        naive.regular = regular;
        one_after_the_other(&mut rig, &mut naive, &mut rng, |naive, rng| random_request(naive, shape, rng))
    });
}

fn one_request_after_the_other_on_a_plain_disk(on: Backing) {
    disks(on, |mut rng| {
        let sectors = rng.u64(1..200);
        println!("{sectors} sectors");
        let how = How { options: options(&mut rng), ..Default::default() };
        let mut rig = Rig::plain_with(on, sectors * 512, how);
        let mut naive = NaiveDisk::plain(sectors, rig.store.identity().serial);
        one_after_the_other(&mut rig, &mut naive, &mut rng, random_plain_request)
    });
}

fn one_after_the_other(
    rig: &mut Rig,
    naive: &mut NaiveDisk,
    rng: &mut fastrand::Rng,
    next: impl Fn(&NaiveDisk, &mut fastrand::Rng) -> Request,
) -> Seen {
    let mut seen = Seen::default();
    for i in 0..REQUESTS_PER_DISK {
        let request = next(naive, rng);
        let expected = naive.call(&request);
        let found = rig.call(request.clone());
        let what = || format!("request {i}: type {}, header {:x?}", request.header[0], request.header);
        assert_eq!(found.status, expected.status, "{}", what());
        assert_eq!(found.append_sector, expected.append_sector, "{}", what());
        assert_eq!(found.used_len, expected.used_len, "{}", what());
        assert_same_bytes(&expected.data, &found.data, &what());
        seen.take(&found);
        if rng.u8(0..30) == 0 {
            compare(rig, naive);
        }
        if rng.u16(0..400) == 0 {
            rig.restart();
            naive.restart();
            compare(rig, naive);
        }
    }
    compare(rig, naive);
    seen
}

/// A request that means something more often than not.
fn random_request(naive: &NaiveDisk, shape: GeometryConfig, rng: &mut fastrand::Rng) -> Request {
    let zone = rng.choice(&naive.zones).unwrap();
    let block = u64::from(shape.write_granularity_bytes / 512);
    if zone.state == ZoneState::Full && rng.u8(0..3) == 0 {
        return Request::zone_reset(zone.start);
    }
    let start = match rng.u8(0..20) {
        0 => zone.start + rng.u64(0..zone.len),
        1 => rng.u64(0..naive.sectors() + 3),
        _ => zone.start,
    };
    let sector = match rng.u8(0..12) {
        0 => rng.u64(0..naive.sectors() + 3),
        1 => zone.start + rng.u64(0..zone.len),
        2 => zone.wp().saturating_sub(block),
        3 => zone.wp() + block,
        4 => u64::MAX - rng.u64(0..20),
        5..8 if zone.kind == ZoneType::SequentialPreferred => zone.start + rng.u64(0..zone.len),
        _ if zone.state == ZoneState::NotWp => zone.start + rng.u64(0..zone.len),
        _ => zone.wp(),
    };
    let sectors = match rng.u8(0..10) {
        0 => rng.u64(0..2 * zone.len + 2),
        1 => zone.len,
        2 => zone.capacity.saturating_sub(zone.wp() - zone.start),
        _ => block * rng.u64(0..zone.len / block / 3 + 2),
    };
    let len = match rng.u8(0..40) {
        0 => sectors * 512 + rng.u64(1..512),
        _ => sectors * 512,
    };
    let len = usize::try_from(len).unwrap();
    match rng.u8(0..40) {
        0..10 => Request::write(sector, &random_bytes(rng, len)),
        10..18 => Request::zone_append(start, &random_bytes(rng, len)),
        18..24 => {
            let from = if rng.bool() { zone.start + rng.u64(0..zone.len) } else { sector };
            Request::read(from, len)
        }
        24 => Request::flush(),
        25 => Request::raw(RequestType::GetId.into(), 0, &[], rng.usize(0..60)),
        26..28 => Request::zone_report(rng.u64(0..naive.sectors() + 3), rng.usize(0..1000)),
        28..31 => Request::zone_open(start),
        31..34 => Request::zone_close(start),
        34 => Request::zone_finish(start),
        35..38 => Request::zone_reset(start),
        38 if rng.u8(0..6) == 0 => Request::zone_reset_all(),
        38 => Request::discard(&[(sector, 8)]),
        _ => Request::raw(rng.u32(0..40), sector, &random_bytes(rng, len), rng.usize(0..2) * len),
    }
}

fn random_plain_request(naive: &NaiveDisk, rng: &mut fastrand::Rng) -> Request {
    let place = |rng: &mut fastrand::Rng| match rng.u8(0..15) {
        0 => u64::MAX - rng.u64(0..20),
        1 => naive.sectors(),
        _ => rng.u64(0..naive.sectors() + 1),
    };
    let sector = place(rng);
    let rest = naive.sectors().saturating_sub(sector);
    let sectors = if rng.u8(0..8) == 0 { rng.u64(0..300) } else { rng.u64(0..=rest.min(40)) };
    let len = match rng.u8(0..30) {
        0 => sectors * 512 + rng.u64(1..512),
        _ => sectors * 512,
    };
    let len = usize::try_from(len).unwrap();
    let ranges = |rng: &mut fastrand::Rng| -> Vec<u8> {
        let count = if rng.u8(0..20) == 0 { rng.usize(0..40) } else { rng.usize(1..4) };
        let mut segments = Vec::new();
        for _ in 0..count {
            let sector = place(rng);
            let rest = naive.sectors().saturating_sub(sector);
            let sectors =
                if rng.u8(0..30) == 0 { rng.u32(..) } else { u32::try_from(rng.u64(0..=rest)).unwrap() };
            let flags = if rng.u8(0..20) == 0 { rng.u32(..) } else { 0 };
            segments.extend(sector.to_le_bytes());
            segments.extend([sectors, flags].map(u32::to_le_bytes).concat());
        }
        if rng.u8(0..40) == 0 {
            segments.push(0);
        }
        segments
    };
    match rng.u8(0..20) {
        0..8 => Request::write(sector, &random_bytes(rng, len)),
        8..13 => Request::read(sector, len),
        13..15 => Request::raw(RequestType::Discard.into(), 0, &ranges(rng), 0),
        15..17 => Request::raw(RequestType::WriteZeroes.into(), 0, &ranges(rng), 0),
        17 => Request::flush(),
        18 => Request::raw(RequestType::GetId.into(), 0, &[], rng.usize(0..60)),
        _ => Request::raw(rng.u32(0..40), sector, &random_bytes(rng, len), rng.usize(0..2) * len),
    }
}

/// What is done with a zone while many requests are in flight: so that the order in which they are served can't be seen.
#[derive(Clone, Copy)]
enum Role {
    /// Writes and appends, all on one queue, which serves them in the order in which they are given; and reads, on any queue, of
    /// what was written before.
    Write { queue: usize },
    /// One request that manages it.
    Manage,
    /// Reads on any queue.
    Read,
}

fn many_requests_in_flight_on_two_queues(on: Backing) {
    disks(on, |mut rng| {
        // Without limits no zone depends on another.
        let (geometry, zones) = random_odd(&mut rng);
        let shape = GeometryConfig { max_open_zones: 0, max_active_zones: 0, ..*geometry.config() };
        println!("{shape:?} {zones:?}");
        let how = How { queues: 2, options: options(&mut rng), ram_len: 8 << 20, ..Default::default() };
        let layout = geometry.layout().clone();
        let mut rig = Rig::of(on, Geometry::with_layout(shape, layout).unwrap(), how);
        let mut naive = NaiveDisk::of_zones(shape, zones, rig.store.identity().serial);
        let mut seen = Seen::default();
        let mut made = 0;
        while made < REQUESTS_PER_DISK {
            let batch = random_batch(&naive, shape, &mut rng);
            made += batch.len() as u64;
            let mut sent: [Vec<(Token, Completion)>; 2] = Default::default();
            for (queue, request) in batch {
                let expected = naive.call(&request);
                let token = rig.queues[queue].queue.enqueue(request).unwrap();
                sent[queue].push((token, expected));
                // Now and then the device sees what there is so far.
                if rng.u8(0..6) == 0 {
                    rig.queues[queue].queue.publish().unwrap();
                }
            }
            for served in &mut rig.queues {
                served.queue.publish().unwrap();
            }
            for (served, sent) in rig.queues.iter_mut().zip(sent) {
                let mut done = served.queue.complete_all().unwrap();
                done.sort_by_key(|(token, _)| *token);
                assert_eq!(done.len(), sent.len());
                for (found, expected) in done.into_iter().zip(sent) {
                    assert_eq!(found, expected);
                    seen.take(&found.1);
                }
            }
            if rng.u8(0..4) == 0 {
                compare(&mut rig, &mut naive);
            }
            if rng.u8(0..60) == 0 {
                rig.restart();
                naive.restart();
            }
        }
        compare(&mut rig, &mut naive);
        seen
    });
}

/// Up to a few dozen requests, and the queue that each is for.
fn random_batch(naive: &NaiveDisk, shape: GeometryConfig, rng: &mut fastrand::Rng) -> Vec<(usize, Request)> {
    let roles: Vec<Role> = naive
        .zones
        .iter()
        .map(|zone| match rng.u8(0..10) {
            _ if zone.state == ZoneState::Full && rng.bool() => Role::Manage,
            0..7 => Role::Write { queue: rng.usize(0..2) },
            7..9 => Role::Manage,
            _ => Role::Read,
        })
        .collect();
    // How far each zone will be written by what was given so far.
    let mut wps: Vec<u64> = naive.zones.iter().map(naive::NaiveZone::wp).collect();
    let mut managed = vec![false; naive.zones.len()];
    let block = u64::from(shape.write_granularity_bytes / 512);
    let mut batch = Vec::new();
    for _ in 0..rng.usize(1..30) {
        let any_queue = rng.usize(0..2);
        let i = rng.usize(0..naive.zones.len());
        let zone = &naive.zones[i];
        let anywhere = zone.kind != ZoneType::SequentialRequired;
        let sectors = block * rng.u64(1..zone.len / block / 4 + 2);
        let data = random_bytes(rng, usize::try_from(sectors * 512).unwrap());
        match roles[i] {
            Role::Write { queue } if anywhere => {
                // On one queue, too, but served in any order: each batch writes to such a zone once.
                if !std::mem::replace(&mut managed[i], true) {
                    let sector = zone.start + rng.u64(0..zone.len);
                    if sector + sectors <= zone.start + zone.len {
                        batch.push((queue, Request::write(sector, &data)));
                    }
                }
            }
            Role::Write { .. } if rng.u8(0..4) == 0 => {
                // What lies below the write pointer stays as it is.
                let below = zone.wp() - zone.start;
                if below > 0 {
                    let from = rng.u64(0..below);
                    let len = rng.u64(0..=below - from) * 512;
                    batch.push((any_queue, Request::read(zone.start + from, usize::try_from(len).unwrap())));
                }
            }
            Role::Write { queue } => {
                let fits = wps[i] + sectors <= zone.start + zone.capacity;
                let writable = !matches!(zone.state, ZoneState::Full);
                if fits && writable && rng.bool() {
                    batch.push((queue, Request::write(wps[i], &data)));
                    wps[i] += sectors;
                } else {
                    batch.push((queue, Request::zone_append(zone.start, &data)));
                    let allowed = sectors <= u64::from(shape.max_append_sectors);
                    wps[i] += if fits && writable && allowed { sectors } else { 0 };
                }
            }
            Role::Manage => {
                if !std::mem::replace(&mut managed[i], true) {
                    let request = match rng.u8(0..6) {
                        0 => Request::zone_open(zone.start),
                        1 => Request::zone_close(zone.start),
                        2 => Request::zone_finish(zone.start),
                        _ => Request::zone_reset(zone.start),
                    };
                    batch.push((any_queue, request));
                }
            }
            Role::Read => {
                let from = rng.u64(0..zone.len);
                let len = rng.u64(0..=zone.len - from) * 512;
                batch.push((any_queue, Request::read(zone.start + from, usize::try_from(len).unwrap())));
            }
        }
        if rng.u8(0..12) == 0 {
            batch.push((any_queue, Request::flush()));
        }
        if rng.u8(0..20) == 0 {
            batch.push((any_queue, Request::get_id()));
        }
    }
    batch
}
