//! Our driver on our device: taken into use, given back, dropped with requests in flight, removed from another thread.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails this way")]

mod driver;

use std::sync::{Arc, mpsc};
use std::time::Instant;

use driver::{Driver, PATIENCE, attach, wait};
use virtio_zbd_driver::{
    Command, Done, Error, Features, Invalid, Model, Options, ProbeError, Transport, VirtioBlk, ZoneState,
    ZoneSupport,
};
use virtio_zbd_store::RamStore;
use virtio_zbd_vhost_user::client::{ArenaBuffer, ConnectOptions, VhostUserTransport};
use virtio_zbd_zones::{Geometry, GeometryConfig};
use vzbd::{ServeOptions, ServedDisk};

const SHAPE: GeometryConfig = GeometryConfig {
    capacity_sectors: 20 * 2048,
    zone_sectors: 2048,
    zone_capacity_sectors: 1536,
    conventional_zones: 2,
    max_open_zones: 4,
    max_active_zones: 6,
    max_append_sectors: 256,
    write_granularity_bytes: 4096,
};

const ZONE_SECTORS: u64 = 2048;

struct Place {
    disk: ServedDisk,
    _dir: tempfile::TempDir,
}

fn serve(shape: GeometryConfig, queues: u16) -> Place {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(RamStore::new(Geometry::new(shape).unwrap()).unwrap());
    let options = ServeOptions { queues, ..ServeOptions::default() };
    let disk = ServedDisk::start(store, options, &dir.path().join("disk.sock")).unwrap();
    Place { disk, _dir: dir }
}

impl Place {
    fn attach(&self, options: Options) -> Result<Driver, Error> {
        attach(self.disk.socket(), options)
    }
}

/// L4 to L7: what the driver says of the disk is what the disk is.
#[test]
fn what_the_disk_is() {
    let place = serve(SHAPE, 3);
    let disk = place.attach(Options { queues: 8, queue_depth: 100, ..Options::default() }).unwrap();
    assert_eq!(disk.capacity_sectors(), SHAPE.capacity_sectors);
    assert_eq!((disk.block_len_bytes(), disk.physical_block_len_bytes()), (4096, 4096));
    assert_eq!((disk.queue_count(), disk.queue_depth()), (3, 64));
    assert_eq!((disk.read_only(), disk.model()), (false, Model::HostManaged));
    let zoned = *disk.zoned().unwrap();
    assert_eq!((zoned.zone_sectors, zoned.zones), (2048, 20));
    assert_eq!((zoned.open_max, zoned.active_max, zoned.append_sectors_max), (4, 6, 256));
    assert_eq!(zoned.write_granularity_bytes, 4096);
    let limits = disk.limits();
    assert!(limits.flush);
    assert_eq!((limits.discard, limits.write_zeroes, limits.secure_erase), (None, None, None));
    let features = disk.features();
    let expected = Features::VERSION_1 | Features::ZONED | Features::MQ | Features::INDIRECT_DESC;
    assert!(features.contains(expected), "{features:?}");
    assert!(!features.intersects(Features::DISCARD | Features::RO), "{features:?}");
}

/// L3: the disk is refused, and whoever can cope with zones gets it afterwards.
#[test]
fn zones_that_are_not_wanted() {
    let place = serve(SHAPE, 1);
    let refused = place.attach(Options { zones: ZoneSupport::No, ..Options::default() });
    assert_eq!(refused.err(), Some(Error::Probe(ProbeError::ZonesNotWanted)));
    let mut disk = place.attach(Options::default()).unwrap();
    disk.reset_zone(2 * ZONE_SECTORS).unwrap();
}

/// A regular disk is the same to both.
#[test]
fn zones_that_are_not_wanted_and_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(RamStore::plain(1 << 20).unwrap());
    let served = ServedDisk::start(store, ServeOptions::default(), &dir.path().join("disk.sock")).unwrap();
    let options = Options { zones: ZoneSupport::No, ..Options::default() };
    let mut disk = attach(served.socket(), options).unwrap();
    assert_eq!((disk.model(), disk.zoned()), (Model::None, None));
    disk.write(7, &[7; 512]).unwrap();
}

/// The transport comes back and can be used anew, also with another number of queues; the zones stay what they are.
#[test]
fn released_and_probed_again() {
    let place = serve(SHAPE, 4);
    let connect = ConnectOptions { timeout: PATIENCE, ..ConnectOptions::default() };
    let mut transport = VhostUserTransport::connect(place.disk.socket(), &connect).unwrap();
    for round in 0..4_u16 {
        let options = Options { queues: round + 1, queue_depth: 8 << round, ..Options::default() };
        let mut disk: Driver =
            VirtioBlk::with(transport, options, wait(PATIENCE), ArenaBuffer::zeroed).unwrap();
        let zone_start_sector = 3 * ZONE_SECTORS;
        let sector = disk.append(zone_start_sector, &[1; 4096]).unwrap();
        assert_eq!(sector, zone_start_sector + u64::from(round) * 8);
        transport = disk.release().unwrap();
        assert!(transport.get_status().is_empty());
        assert_eq!(transport.monitor().lost(), None);
    }
}

/// Dropping waits for the device, so what was in flight is either done or never was: the next driver finds whole appends.
#[test]
fn dropped_with_requests_in_flight() {
    let place = serve(SHAPE, 2);
    let zone_start_sector = 4 * ZONE_SECTORS;
    for _ in 0..8 {
        let mut disk = place.attach(Options { queues: 2, ..Options::default() }).unwrap();
        disk.reset_zone(zone_start_sector).unwrap();
        for number in 1..=64_u8 {
            let mut buffer = disk.buffer(8192).unwrap();
            buffer.fill(number);
            disk.submit(u16::from(number) % 2, Command::Append { zone_start_sector, buffer }).unwrap();
        }
        disk.notify(0).unwrap();
        disk.notify(1).unwrap();
        drop(disk);

        let mut disk = place.attach(Options::default()).unwrap();
        let zone = disk.zone(zone_start_sector).unwrap();
        let written = zone.write_pointer_sector.unwrap() - zone_start_sector;
        assert_eq!(written % 16, 0);
        let mut found = vec![0; usize::try_from(written).unwrap() * 512];
        if found.is_empty() {
            continue;
        }
        disk.read(zone_start_sector, &mut found).unwrap();
        let mut numbers = Vec::new();
        for piece in found.chunks(8192) {
            assert!((1..=64).contains(&piece[0]) && piece.iter().all(|byte| *byte == piece[0]));
            numbers.push(piece[0]);
        }
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), found.len() / 8192, "an append landed twice");
    }
}

/// L8: a report runs over and over in one thread; another one says that the disk is gone.
#[test]
fn removed_while_a_report_runs() {
    let place = serve(SHAPE, 1);
    let mut disk = place.attach(Options::default()).unwrap();
    let removal = disk.removal();
    let (running, is_running) = mpsc::channel();
    let reporter = std::thread::spawn(move || {
        let mut reports = 0;
        loop {
            let report = disk.zones(0).and_then(|mut zones| zones.try_for_each(|zone| zone.map(drop)));
            match report {
                Ok(()) => reports += 1,
                Err(error) => return (error, reports, disk),
            }
            if reports == 10 {
                running.send(()).unwrap();
            }
        }
    });
    is_running.recv().unwrap();
    let start = Instant::now();
    removal.remove();
    let (error, reports, mut disk) = reporter.join().unwrap();
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(error, Error::Removed);
    assert!(reports >= 10);
    assert_eq!(disk.read(0, &mut [0; 4096]), Err(Error::Removed));
    assert_eq!(disk.complete(0).err(), Some(Error::Removed));
    drop(disk);
    place.attach(Options::default()).unwrap().read(0, &mut [0; 4096]).unwrap();
}

/// The disk as its next user finds it: zones stay through drivers, open ones too.
#[test]
fn one_driver_after_the_other() {
    let place = serve(SHAPE, 1);
    let start_sector = 5 * ZONE_SECTORS;
    let mut disk = place.attach(Options::default()).unwrap();
    disk.open_zone(start_sector).unwrap();
    disk.append(start_sector, &[5; 4096]).unwrap();
    drop(disk);
    let mut disk = place.attach(Options { queue_depth: 1024, ..Options::default() }).unwrap();
    assert_eq!(disk.queue_depth(), 1024);
    let zone = disk.zone(start_sector).unwrap();
    assert_eq!((zone.state, zone.write_pointer_sector), (ZoneState::ExplicitOpen, Some(start_sector + 8)));
    let no_change = disk.config_changed().unwrap();
    assert_eq!(no_change.capacity_sectors, no_change.capacity_sectors_before);
    assert_eq!((no_change.model, no_change.model_before), (Model::HostManaged, Model::HostManaged));
}

/// A thousand requests on a queue of a thousand entries.
#[test]
fn the_deepest_queue() {
    let place = serve(SHAPE, 1);
    let mut disk = place.attach(Options { queue_depth: 1024, ..Options::default() }).unwrap();
    let mut tokens = Vec::new();
    for _ in 0..1024 {
        let buffer = disk.buffer(4096).unwrap();
        tokens.push(disk.submit(0, Command::Read { sector: 0, buffer }).unwrap());
    }
    let buffer = disk.buffer(4096).unwrap();
    let rejected = disk.submit(0, Command::Read { sector: 0, buffer }).unwrap_err();
    assert_eq!((rejected.error, rejected.buffer.is_some()), (Error::QueueFull, true));
    disk.notify(0).unwrap();
    let mut found = Vec::new();
    while found.len() < 1024 {
        disk.wait(0).unwrap();
        while let Some(completion) = disk.complete(0).unwrap() {
            assert_eq!(completion.result, Ok(Done::Plain));
            found.push(completion.token);
        }
    }
    found.sort_unstable();
    assert_eq!(found, tokens);
    assert_eq!(disk.flush(), Ok(()));
    let no_queue = Error::Invalid(Invalid::NoSuchQueue { queue: 1, queues: 1 });
    assert_eq!(disk.submit(1, Command::Flush).map_err(|rejected| rejected.error), Err(no_queue));
}
