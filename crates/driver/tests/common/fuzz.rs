//! What a fuzzer does with a driver: arbitrary bytes decide what the device is and says. Each of these is a libFuzzer target in `fuzz/`, and a
//! test of its own on seeds (`seeds.rs`).
//!
//! More is asked than not to panic: whatever the driver believes must be possible, and what it lent must come back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use virtio_drivers::transport::DeviceStatus;
use virtio_zbd_driver::{
    Command, Error, Hal, Options, Token, VirtioBlk, Waited, Wrong, Zone, ZoneSupport, Zoned,
};
use virtio_zbd_spec::{Features, Model, RequestType, Status, ZoneDescriptor, ZoneState, ZoneType};
use zerocopy::IntoBytes;

use super::rig::{Blk, allocate, assert_broken, assert_usable, attach, attach_with};
use super::{Bounce, FakeDevice, FakeTransport, Generation, Identity, Reply, Request, Shape, Watch};

/// Bytes to be decided by; zeros when they are at an end.
#[derive(Clone)]
pub struct Input(Arc<Mutex<(Vec<u8>, usize)>>);

impl Input {
    /// All of `data`.
    pub fn new(data: &[u8]) -> Self {
        Self(Arc::new(Mutex::new((data.to_vec(), 0))))
    }

    fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }

    fn array<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    fn fill(&self, to: &mut [u8]) {
        let mut input = self.0.lock().expect("one thread");
        let (data, at) = &mut *input;
        let rest = &data[*at..];
        let len = rest.len().min(to.len());
        to[..len].copy_from_slice(&rest[..len]);
        *at += len;
    }

    fn is_at_end(&self) -> bool {
        let input = self.0.lock().expect("one thread");
        input.1 == input.0.len()
    }

    fn byte(&self) -> u8 {
        self.array::<1>()[0]
    }

    fn bit(&self) -> bool {
        self.byte() & 1 != 0
    }

    fn below(&self, bound: usize) -> usize {
        usize::from(self.half()) % bound.max(1)
    }

    fn half(&self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn word(&self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn long(&self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

/// Zone reports that say anything.
pub fn report(data: &[u8]) {
    let input = Input::new(data);
    if input.bit() { report_on::<Bounce>(&input) } else { report_on::<Identity>(&input) }
}

fn report_on<H: Hal>(input: &Input) {
    let _watch = Watch::begin();
    let zone_sectors = 1 + u32::from(input.byte() % 32);
    let shape = Shape {
        zone_sectors,
        zone_capacity_sectors: 1 + u32::from(input.byte()) % zone_sectors,
        capacity_sectors: 1 + u64::from(input.byte()),
        conventional: usize::from(input.byte() % 4),
        granularity_bytes: 512,
        seg_max: Some(1 + u32::from(input.byte() % 4)),
        size_max: [None, Some(512), Some(600), Some(1100)][input.below(4)],
        queue_size: 16,
        ..Shape::default()
    };
    let device = FakeDevice::new(shape);
    let lie = input.clone();
    device.lie_to(RequestType::ZoneReport, move |_, reply| distort(&lie, reply));
    let mut disk = match attach::<H>(&device) {
        Ok(disk) => disk,
        Err(Error::Wrong(_) | Error::Device { request: RequestType::ZoneReport, .. }) => return,
        Err(other) => panic!("{other:?}"),
    };
    let zoned = *disk.zoned().expect("a host-managed disk");
    let mut broken = false;
    for _ in 0..3 {
        if broken {
            break;
        }
        device.take_log();
        let capacity_sectors = disk.capacity_sectors();
        let from = input.long() % capacity_sectors;
        let mut expected_start = zoned.zone_start_sector(from);
        let mut found = 0;
        for zone in disk.zones(from).expect("on the disk") {
            match zone {
                Ok(zone) => assert_possible(&zone, &zoned, expected_start, capacity_sectors),
                Err(Error::Wrong(Wrong::UsedLen { .. })) => broken = true,
                Err(Error::Wrong(_) | Error::Device { request: RequestType::ZoneReport, .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
            expected_start += u64::from(zone_sectors);
            found += 1;
            assert!(found <= zoned.zones, "{found} zones of {}", zoned.zones);
        }
        assert!(device.take_log().len() as u64 <= found, "reports without zones");
    }
    device.be_honest();
    if broken {
        assert_broken(&device, &mut disk);
    } else {
        assert_usable(&device, &mut disk);
    }
}

fn distort(input: &Input, reply: &mut Reply) {
    match input.byte() % 8 {
        0 => {}
        1 => reply.data = input.bytes(input.below(reply.data.len() + 1)),
        count => {
            for _ in 1..count {
                let bytes = if input.bit() { input.bytes(8) } else { input.bytes(1) };
                if let Some(last) = reply.data.len().checked_sub(bytes.len()) {
                    reply.patch(input.below(last + 1), &bytes);
                }
            }
        }
    }
    let flags = input.byte();
    if flags & 1 != 0 {
        reply.set_used_len(input.word());
    }
    if flags & 2 != 0 {
        reply.set_status(input.byte());
    }
}

/// What a zone must be, whatever the device says.
fn assert_possible(zone: &Zone, zoned: &Zoned, expected_start: u64, capacity_sectors: u64) {
    let len = u64::from(zoned.zone_sectors).min(capacity_sectors - expected_start);
    assert_eq!((zone.start_sector, zone.len_sectors), (expected_start, len), "{zone:?}");
    assert!(zone.capacity_sectors <= len, "{zone:?}");
    let writable = zone.start_sector..=zone.start_sector + zone.capacity_sectors;
    match (zone.state, zone.write_pointer_sector) {
        (ZoneState::NotWp | ZoneState::ReadOnly | ZoneState::Offline, None) => {}
        (ZoneState::Full, Some(wp)) => assert_eq!(wp, zone.end_sector(), "{zone:?}"),
        (ZoneState::Empty, Some(wp)) => assert_eq!(wp, zone.start_sector, "{zone:?}"),
        (_, Some(wp)) => assert!(writable.contains(&wp), "{zone:?}"),
        (_, None) => panic!("{zone:?}"),
    }
    assert_eq!(zone.kind == ZoneType::Conventional, zone.state == ZoneState::NotWp, "{zone:?}");
    assert!(zone.remaining_sectors() <= zone.capacity_sectors, "{zone:?}");
}

/// Configuration spaces, features and queues that say anything, and change.
pub fn config(data: &[u8]) {
    let input = Input::new(data);
    if input.bit() { config_on::<Bounce>(&input) } else { config_on::<Identity>(&input) }
}

/// How many reports an obliging device answers; a disk can have more zones than there is time for.
const REPORTS_MAX: usize = 8;

fn config_on<H: Hal>(input: &Input) {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape { capacity_sectors: 64, ..Shape::regular() });
    let options = Options {
        queues: u16::from(input.byte() % 6),
        queue_depth: u16::from(input.byte()),
        zones: if input.bit() { ZoneSupport::No } else { ZoneSupport::Yes },
    };
    device.face(|face| {
        // A whole feature word is rarely good; mostly those bits that mean something are chosen.
        let known = Features::all().bits() & !Features::RING_PACKED.bits();
        face.offered = if input.bit() { input.long() } else { input.long() & known };
        face.offered &= !Features::RING_PACKED.bits();
        if input.byte() != 0 {
            face.offered |= Features::VERSION_1.bits();
        }
        face.refuses_features = input.byte() == 0xff;
        face.checks_limits = false;
        face.queue_sizes = (0..1 + input.byte() % 4).map(|_| size(input)).collect();
        face.generation = generation(input);
        let len = 96 - usize::from(input.byte() % 128).min(96);
        let mut config = face.config.take().expect("there is one");
        scribble(input, &mut config);
        config.truncate(len);
        face.config = Some(config);
        let later = input.clone();
        face.on_config_read = Some(Box::new(move |_, view| {
            if later.byte() == 0xff {
                scribble(&later, view.config);
                *view.generation = generation(&later);
            }
        }));
    });
    oblige(&device, input);
    let mut disk = match attach_with::<H>(&device, options) {
        Ok(disk) => disk,
        Err(Error::Probe(_) | Error::Wrong(_) | Error::Device { .. }) => {
            assert_eq!(device.ring_sizes(), [0_u16; 0], "rings are left");
            return;
        }
        Err(other) => panic!("{other:?}"),
    };
    assert!(disk.queue_count() >= 1 && disk.queue_count() <= options.queues.max(1));
    assert!(disk.queue_depth().is_power_of_two());
    for _ in 0..3 {
        assert_sensible(&disk);
        let ended = try_out(&device, &mut disk);
        assert_eq!(disk.flush() == Err(Error::Broken), ended, "broken for that one reason");
        if ended || input.is_at_end() {
            break;
        }
        let before = (disk.capacity_sectors(), disk.model(), disk.zoned().copied(), *disk.limits());
        device.face(|face| {
            let mut config = face.config.take().expect("there is one");
            scribble(input, &mut config);
            (face.config, face.generation) = (Some(config), generation(input));
        });
        oblige(&device, input);
        match disk.config_changed() {
            Ok(change) => assert_eq!(change.capacity_sectors, disk.capacity_sectors()),
            Err(Error::Probe(_) | Error::Wrong(_) | Error::Device { .. }) => {
                let after = (disk.capacity_sectors(), disk.model(), disk.zoned().copied(), *disk.limits());
                assert_eq!(before, after, "a change that was refused");
                if disk.flush() == Err(Error::Broken) {
                    break;
                }
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn size(input: &Input) -> u32 {
    match input.byte() % 4 {
        0 => 16,
        1 => 64,
        2 => u32::from(input.byte()),
        _ => input.word(),
    }
}

fn generation(input: &Input) -> Generation {
    match input.byte() {
        0xff => Generation::Restless(input.word()),
        looks @ 0xf0..0xff => Generation::RestlessFor(u32::from(looks - 0xf0), input.word()),
        _ => Generation::Steady(input.word()),
    }
}

/// Changes some fields, or all of it.
fn scribble(input: &Input, config: &mut [u8]) {
    let count = input.byte() % 16;
    if count == 15 {
        let bytes = input.bytes(config.len());
        config.copy_from_slice(&bytes);
        return;
    }
    for _ in 0..count {
        // Where the fields are.
        let fields = [0, 4, 8, 12, 20, 32, 34, 36, 40, 48, 60, 64, 68, 72, 76, 80, 84, 88, 92];
        let at = fields[input.below(fields.len())];
        let value = match input.byte() % 4 {
            0 => input.word(),
            1 => u32::from(input.byte()),
            2 => 1 << (input.byte() % 32),
            _ => u32::MAX,
        };
        for (to, from) in config.iter_mut().skip(at).zip(value.to_le_bytes()) {
            *to = from;
        }
    }
}

/// Reports zones as the configuration has them, a few times.
fn oblige(device: &FakeDevice, input: &Input) {
    device.be_honest();
    let mut left = REPORTS_MAX;
    let distorted = input.bit();
    let input = input.clone();
    device.lie(move |request: &Request, reply: &mut Reply, face| {
        if !request.is(RequestType::ZoneReport) {
            return;
        }
        let config = face.config.as_deref().unwrap_or_default();
        let field = |at: usize| {
            config.get(at..at + 4).map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().expect("four")))
        };
        let zone_sectors = u64::from(field(72));
        let capacity = u64::from(field(0)) | u64::from(field(4)) << 32;
        let Some(left_now) = left.checked_sub(1).filter(|_| zone_sectors != 0) else {
            reply.set_status(Status::IoErr.into());
            return;
        };
        left = left_now;
        reply.set_status(Status::Ok.into());
        reply.data = vec![0; 64];
        let mut start = request.sector - request.sector % zone_sectors;
        let mut nr_zones = 0_u64;
        while start < capacity && reply.data.len() + 64 <= request.room() {
            let cap = zone_sectors.min(capacity - start);
            let zone = ZoneDescriptor::new(ZoneType::SequentialRequired, ZoneState::Empty, start, cap, start);
            reply.data.extend_from_slice(zone.as_bytes());
            nr_zones += 1;
            start = start.saturating_add(zone_sectors);
        }
        reply.patch(0, &nr_zones.to_le_bytes());
        reply.set_used_len(u32::try_from(reply.data.len()).expect("a small buffer"));
        if distorted && input.byte() == 0xff {
            distort(&input, reply);
        }
    });
}

/// What the driver believes of a disk can be worked with.
fn assert_sensible<H: Hal>(disk: &Blk<H>) {
    let (block, limits) = (disk.block_len_bytes(), disk.limits());
    assert!(block.is_power_of_two() && block >= 512);
    assert!(disk.capacity_sectors().checked_mul(512).is_some());
    assert!(limits.transfer_len_bytes_max > 0);
    assert_eq!(limits.transfer_len_bytes_max as u64 % u64::from(block), 0);
    assert!(limits.segments_max >= 1 && limits.segments_max <= u32::from(disk.queue_depth()) - 2);
    let carried = u64::from(limits.segments_max) * u64::from(limits.segment_len_bytes_max);
    assert!(limits.transfer_len_bytes_max as u64 <= carried);
    for range in [limits.discard, limits.write_zeroes, limits.secure_erase].into_iter().flatten() {
        assert!(range.sectors_max > 0 && u64::from(range.sectors_max) * 512 % u64::from(block) == 0);
    }
    assert_eq!(disk.model() == Model::HostManaged, disk.zoned().is_some());
    if let Some(zoned) = disk.zoned() {
        assert_eq!(limits.discard, None);
        assert!(zoned.zone_sectors > 0 && zoned.write_granularity_bytes.is_multiple_of(512));
        assert!(limits.transfer_len_bytes_max as u64 >= u64::from(zoned.write_granularity_bytes));
        assert_eq!(zoned.zones, disk.capacity_sectors().div_ceil(zoned.zone_sectors.into()));
        if zoned.append_sectors_max != 0 {
            assert!(u64::from(zoned.append_sectors_max) * 512 >= u64::from(zoned.write_granularity_bytes));
        }
    }
}

/// Every call, at the edges of what the driver believes the disk to be. The segments of what was sent are as it believes, too. Whether the
/// device broke the ring meanwhile: it can do so in a report.
fn try_out<H: Hal>(device: &FakeDevice, disk: &mut Blk<H>) -> bool {
    device.take_log();
    let block = disk.block_len_bytes().min(1 << 16) as usize;
    let capacity = disk.capacity_sectors();
    let mut results = Vec::new();
    for sector in [0, capacity.saturating_sub(1), capacity, u64::MAX - 7] {
        results.push(disk.read(sector, &mut vec![0; block]));
        results.push(disk.write(sector, &vec![0; block]));
        results.push(disk.discard(sector, 8));
        results.push(disk.write_zeroes(sector, 8, true));
        results.push(disk.secure_erase(sector, 8));
        results.push(disk.zone(sector).map(drop));
        results.push(disk.append(sector, &[0; 4096]).map(drop));
        results.push(disk.open_zone(sector));
    }
    results.push(disk.flush());
    results.push(disk.id().map(drop));
    results.push(disk.zones(0).and_then(|zones| zones.take(20).try_for_each(|zone| zone.map(drop))));
    let ended =
        |result: &Result<(), Error>| matches!(result, Err(Error::Wrong(wrong)) if is_of_the_ring(*wrong));
    let segment = disk.limits().segment_len_bytes_max as usize;
    let segments = disk.limits().segments_max as usize;
    for done in device.take_log() {
        let data = done.readable.iter().skip(1).chain(done.writable.iter().rev().skip(1));
        let ranges = matches!(done.kind, 11 | 13 | 14);
        for len in data.clone() {
            assert!(*len <= segment || ranges, "{done:?}, segments of at most {segment}");
        }
        assert!(data.count() <= segments || ranges, "{done:?}, at most {segments} segments");
    }
    results.iter().any(ended)
}

/// A used ring that says anything, in any order, and other accidents of a device's life.
pub fn ring(data: &[u8]) {
    let input = Input::new(data);
    if input.bit() { ring_on::<Bounce>(&input) } else { ring_on::<Identity>(&input) }
}

fn ring_on<H: Hal>(input: &Input) {
    let _watch = Watch::begin();
    let mut shape = Shape { queues: Some(2), queue_size: 8, granularity_bytes: 512, ..Shape::default() };
    shape.more.set(Features::INDIRECT_DESC, input.bit());
    shape.more.set(Features::EVENT_IDX, input.bit());
    if input.bit() {
        shape.size_max = Some(512);
    }
    let device = FakeDevice::new(shape);
    let wait = |transport: &mut FakeTransport, queue: u16, turn: u64| {
        let device = transport.device();
        if device.waiting(queue) > 0 {
            device.deliver(queue, 0);
        }
        if turn < 20 { Waited::Again } else { Waited::GiveUp }
    };
    let options = Options { queues: 2, queue_depth: 8, ..Options::default() };
    let mut disk: Blk<H> =
        VirtioBlk::with(device.transport(), options, wait, allocate).expect("it is honest at first");
    device.face(|face| face.holds_answers = true);
    let lie = input.clone();
    device.lie(move |_, reply, _| {
        if lie.byte() >= 0xc0 {
            distort(&lie, reply);
        }
    });
    let mut lent = Lent::default();
    let removal = disk.removal();
    for _ in 0..100 {
        if input.is_at_end() {
            break;
        }
        let queue = u16::from(input.byte() % 2);
        let alive = device.ring_sizes().len() == 2;
        let what = input.byte() % 16;
        if alive && (8..=10).contains(&what) {
            device.lose_track();
        }
        match what {
            0..=4 => lent.submit(input, &mut disk, queue),
            5 => drop(disk.notify(queue)),
            6 | 7 if device.waiting(queue) > 0 => device.deliver(queue, input.below(device.waiting(queue))),
            8 if alive => device.used(queue, input.word() % 10, u32::from(input.half())),
            9 if alive => device.used(queue, input.word(), input.word()),
            10 if alive => device.jump(queue, input.half() % 16),
            11 => lent.end(disk.flush()),
            12 => lent.end(disk.zone(u64::from(input.half()) % 552).map(drop)),
            13 => match disk.wait(queue) {
                // There is no need to wait for what comes back from a broken disk.
                Ok(()) => assert!(lent.ended.is_none() || disk.in_flight(queue) > 0),
                error => lent.end(error),
            },
            14 if input.byte() == 0xff => removal.remove(),
            15 if input.byte() == 0xff => {
                device.face(|face| face.status |= DeviceStatus::DEVICE_NEEDS_RESET);
            }
            _ => lent.complete(&mut disk, queue),
        }
        assert_eq!(disk.in_flight(0) + disk.in_flight(1), lent.buffers.len());
    }
    if lent.ended.is_some() {
        // What was lent comes back, all of it.
        for queue in [0, 1] {
            while disk.in_flight(queue) > 0 {
                lent.complete(&mut disk, queue);
            }
            assert!(matches!(disk.complete(queue), Err(Error::Broken | Error::Removed)));
        }
        assert!(lent.buffers.is_empty(), "buffers are lost");
        assert!(device.ring_sizes().is_empty() && device.held() == 0, "the device was not reset");
        assert!(matches!(disk.flush(), Err(Error::Broken | Error::Removed)));
    }
}

/// What was submitted: where each buffer lies and how long it is.
#[derive(Default)]
struct Lent {
    buffers: BTreeMap<Token, (usize, usize)>,
    /// The error after which nothing more is possible.
    ended: Option<Error>,
}

impl Lent {
    fn submit<H: Hal>(&mut self, input: &Input, disk: &mut Blk<H>, queue: u16) {
        let buffer = vec![1; 512 * (1 + input.below(4))];
        let (place, len) = (buffer.as_ptr().addr(), buffer.len());
        let sector = u64::from(input.byte());
        let (command, has_buffer) = match input.byte() % 6 {
            0 | 1 => (Command::Read { sector, buffer }, true),
            2 => (Command::Write { sector, buffer }, true),
            3 => (Command::Append { zone_start_sector: 128, buffer }, true),
            4 => (Command::Flush, false),
            _ => (Command::OpenZone { start_sector: 192 }, false),
        };
        let expected = if has_buffer { (place, len) } else { (0, 0) };
        match disk.submit(queue, command) {
            Ok(token) => assert_eq!(self.buffers.insert(token, expected), None, "a token is given twice"),
            Err(rejected) => {
                assert_eq!(lies_at(rejected.buffer.as_ref()), expected, "a rejected buffer");
                if rejected.error != Error::QueueFull {
                    self.end::<()>(Err(rejected.error));
                }
            }
        }
    }

    fn complete<H: Hal>(&mut self, disk: &mut Blk<H>, queue: u16) {
        match disk.complete(queue) {
            Ok(Some(done)) => {
                let lent = self.buffers.remove(&done.token).expect("a token that was given, once");
                assert_eq!(lies_at(done.buffer.as_ref()), lent, "another buffer came back");
            }
            Ok(None) => assert_eq!(self.ended, None, "nothing more comes of a broken disk"),
            Err(error) => self.end::<()>(Err(error)),
        }
    }

    /// Takes note of an error that ends the disk.
    fn end<T>(&mut self, result: Result<T, Error>) {
        match result {
            Ok(_) => assert_eq!(self.ended, None, "a broken disk answers"),
            // The device's word, or data of one answer: the disk goes on.
            Err(Error::Device { .. }) => assert_eq!(self.ended, None, "a broken disk answers"),
            Err(Error::Wrong(wrong)) if !is_of_the_ring(wrong) => {
                assert_eq!(self.ended, None, "a broken disk answers");
            }
            Err(Error::Broken) => assert!(self.ended.is_some(), "broken without a reason"),
            Err(error @ (Error::Wrong(_) | Error::TimedOut | Error::NeedsReset | Error::Removed)) => {
                self.ended = Some(error)
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn lies_at(buffer: Option<&Vec<u8>>) -> (usize, usize) {
    buffer.map_or((0, 0), |buffer| (buffer.as_ptr().addr(), buffer.len()))
}

/// Whether the device broke the ring with it, so that nothing can be believed any more.
fn is_of_the_ring(wrong: Wrong) -> bool {
    matches!(wrong, Wrong::UsedId { .. } | Wrong::UsedIdx { .. } | Wrong::UsedLen { .. })
}

/// Inputs that are known to go deep, to begin with.
pub fn seeds(target: &str) -> impl Iterator<Item = Vec<u8>> {
    let mut rng = fastrand::Rng::with_seed(target.len() as u64);
    (0..64).map(move |number| {
        let mut seed = vec![0; 8 << (number / 8)];
        rng.fill(&mut seed);
        if number % 2 == 1 {
            // Mostly honest, with a lie now and then.
            for byte in &mut seed {
                *byte &= if rng.u8(..4) > 0 { 0 } else { 0xff };
            }
        }
        seed
    })
}

/// Writes [`seeds`] as files into the directory that `FUZZ_SEEDS_DIR` names, if it is set.
pub fn write_seeds(target: &str) {
    let Some(dir) = std::env::var_os("FUZZ_SEEDS_DIR").map(std::path::PathBuf::from) else { return };
    std::fs::create_dir_all(&dir).expect("a directory for the seeds");
    for (number, seed) in seeds(target).enumerate() {
        std::fs::write(dir.join(format!("seed-{number:03}")), seed).expect("room for the seeds");
    }
}
