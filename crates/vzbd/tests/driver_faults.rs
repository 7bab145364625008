//! Our driver on our device over a medium that fails: what the caller is told, and what it can find out afterwards.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod driver;
#[path = "../../device/tests/common/faulty.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod faulty;
#[path = "../../device/tests/common/gate.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod gate;

use std::sync::Arc;

use driver::{Driver, attach};
use faulty::{Call, FaultyMedium};
use rustix::io::Errno;
use virtio_zbd_driver::{Command, DeviceError, Done, Error, Options, RequestType, Token, ZoneState};
use virtio_zbd_zones::GeometryConfig;
use vzbd::{ServeOptions, ServedDisk};

/// Of a sector, in bytes.
const SECTOR: usize = 512;
const ZONE_SECTORS: u64 = 8192;
const BLOCK_SECTORS: u64 = 8;
const BLOCK_LEN: usize = 4096;

/// Zones of 4 MiB, so that a call makes several requests in one.
const SHAPE: GeometryConfig = GeometryConfig {
    capacity_sectors: 8 * ZONE_SECTORS,
    zone_sectors: 8192,
    zone_capacity_sectors: 8192,
    conventional_zones: 1,
    max_open_zones: 3,
    max_active_zones: 4,
    max_append_sectors: 1024,
    write_granularity_bytes: 4096,
};

struct Rig {
    _dir: tempfile::TempDir,
    _served: ServedDisk,
    medium: Arc<FaultyMedium>,
    disk: Driver,
}

fn rig() -> Rig {
    let (medium, store) = FaultyMedium::zoned(SHAPE);
    let dir = tempfile::tempdir().unwrap();
    let options = ServeOptions { queues: 2, ..ServeOptions::default() };
    let served = ServedDisk::start(store, options, &dir.path().join("disk.sock")).unwrap();
    let disk = attach(served.socket(), Options { queues: 2, ..Options::default() }).unwrap();
    Rig { _dir: dir, _served: served, medium, disk }
}

fn io_error(request: RequestType, sector: u64) -> Error {
    Error::Device { request, sector, status: DeviceError::IoError }
}

fn data(sectors: u64, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut data = vec![0; usize::try_from(sectors).unwrap() * SECTOR];
    random.fill(&mut data);
    data
}

fn read(disk: &mut Driver, sector: u64, sectors: u64) -> Vec<u8> {
    let mut data = vec![0xa5; usize::try_from(sectors).unwrap() * SECTOR];
    disk.read(sector, &mut data).unwrap();
    data
}

/// One call, several requests, a later one fails: the error names it, the zone tells how far the write came, and from there
/// it goes on.
#[test]
fn a_long_write_that_fails_in_its_middle() {
    let Rig { _dir, _served, medium, mut disk } = rig();
    let start = 2 * ZONE_SECTORS;
    let long = data(6144, 1);
    let bad = start + 3000;
    medium.fail(Call::Write, bad..bad + 1);
    let Err(Error::Device { request, sector, status }) = disk.write(start, &long) else { panic!() };
    assert_eq!((request, status), (RequestType::Out, DeviceError::IoError));
    assert!(sector > start && sector <= bad, "{sector}");
    let zone = disk.zone(start).unwrap();
    assert_eq!(zone.state, ZoneState::ImplicitOpen);
    assert_eq!(zone.write_pointer_sector, Some(sector));
    let written = usize::try_from(sector - start).unwrap() * SECTOR;
    assert!(read(&mut disk, start, sector - start) == long[..written]);
    assert!(read(&mut disk, sector, 64).iter().all(|byte| *byte == 0));

    medium.heal();
    disk.write(sector, &long[written..]).unwrap();
    assert!(read(&mut disk, start, 6144) == long);
}

/// A failed first write leaves an empty zone, whichever way it was made.
#[test]
fn a_first_write_that_fails() {
    let Rig { _dir, _served, medium, mut disk } = rig();
    let start = 2 * ZONE_SECTORS;
    let before = disk.zone(start).unwrap();
    medium.fail(Call::Write, start..start + ZONE_SECTORS);
    assert_eq!(disk.write(start, &data(8, 1)), Err(io_error(RequestType::Out, start)));
    assert_eq!(disk.zone(start).unwrap(), before);
    assert_eq!(disk.append(start, &data(16, 2)), Err(io_error(RequestType::ZoneAppend, start)));
    assert_eq!(disk.zone(start).unwrap(), before);
    let mut buffer = disk.buffer(BLOCK_LEN).unwrap();
    buffer.fill(7);
    let token = disk.submit(1, Command::Append { zone_start_sector: start, buffer }).unwrap();
    disk.notify(1).unwrap();
    disk.wait(1).unwrap();
    let completion = disk.complete(1).unwrap().unwrap();
    assert_eq!((completion.token, completion.result), (token, Err(io_error(RequestType::ZoneAppend, start))));
    assert!(completion.buffer.unwrap().iter().all(|byte| *byte == 7));
    assert_eq!(disk.zone(start).unwrap(), before);
    medium.heal();
    assert_eq!(disk.append(start, &data(8, 3)), Ok(start));
}

/// Of many appends some fail: the others have their data, and what is in between reads as zeros.
#[test]
fn some_of_many_appends() {
    let Rig { _dir, _served, medium, mut disk } = rig();
    let start = 3 * ZONE_SECTORS;
    for bad in [5, 17, 18, 40] {
        let bad = start + bad * BLOCK_SECTORS;
        medium.fail(Call::Write, bad..bad + 1);
    }
    let mut blocks = Vec::new();
    for number in 1..=64_u8 {
        let mut buffer = disk.buffer(BLOCK_LEN).unwrap();
        buffer.fill(number);
        let command = Command::Append { zone_start_sector: start, buffer };
        blocks.push((disk.submit(0, command).unwrap(), number));
    }
    disk.notify(0).unwrap();
    let number_of = |blocks: &[(Token, u8)], token| blocks.iter().find(|block| block.0 == token).unwrap().1;
    let mut expected = vec![0; 80 * BLOCK_LEN];
    let mut failed = 0;
    for _ in 0..64 {
        disk.wait(0).unwrap();
        let completion = disk.complete(0).unwrap().unwrap();
        match completion.result {
            Ok(Done::Appended { sector }) => {
                let at = usize::try_from(sector - start).unwrap() * SECTOR;
                expected[at..at + BLOCK_LEN].fill(number_of(&blocks, completion.token));
            }
            Err(error) => {
                assert_eq!(error, io_error(RequestType::ZoneAppend, start));
                failed += 1;
            }
            Ok(done) => panic!("{done:?}"),
        }
    }
    assert!(failed >= 4, "{failed}");
    assert!(read(&mut disk, start, 80 * BLOCK_SECTORS) == expected);
    let zone = disk.zone(start).unwrap();
    let end = expected.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    assert_eq!(zone.write_pointer_sector, Some(start + (end / SECTOR) as u64));
}

#[test]
fn reads_and_flushes() {
    let Rig { _dir, _served, medium, mut disk } = rig();
    let start = 2 * ZONE_SECTORS;
    let written = data(2048 + 8, 1);
    disk.write(start, &written).unwrap();
    medium.fail(Call::Read, start + 2048..start + 2049);
    let mut found = vec![0; written.len()];
    // The error names the request that failed, which is the second of this call.
    assert_eq!(disk.read(start, &mut found), Err(io_error(RequestType::In, start + 2048)));
    assert!(read(&mut disk, start, 2048) == written[..2048 * SECTOR]);
    medium.heal();
    assert!(read(&mut disk, start, 2056) == written);

    medium.fail_syncs();
    assert_eq!(disk.flush(), Err(io_error(RequestType::Flush, 0)));
    assert!(read(&mut disk, start, 2056) == written);
}

/// A reset whose old data does not go takes the zone offline. The driver says so, and the disk goes on without it.
#[test]
fn a_zone_that_goes_offline() {
    let Rig { _dir, _served, medium, mut disk } = rig();
    let start = 4 * ZONE_SECTORS;
    disk.write(start, &data(64, 1)).unwrap();
    medium.fail_with(Call::Punch, start..start + ZONE_SECTORS, Errno::IO);
    assert_eq!(disk.reset_zone(start), Err(io_error(RequestType::ZoneReset, start)));
    let zone = disk.zone(start + 1).unwrap();
    assert_eq!((zone.state, zone.write_pointer_sector), (ZoneState::Offline, None));
    assert_eq!(zone.remaining_sectors(), 0);
    // V29.
    let invalid = |request| Error::Device { request, sector: start, status: DeviceError::InvalidCommand };
    assert_eq!(disk.read(start, &mut [0; BLOCK_LEN]), Err(invalid(RequestType::In)));
    assert_eq!(disk.write(start, &[0; BLOCK_LEN]), Err(invalid(RequestType::Out)));
    assert_eq!(disk.append(start, &[0; BLOCK_LEN]), Err(invalid(RequestType::ZoneAppend)));
    assert_eq!(disk.open_zone(start), Err(invalid(RequestType::ZoneOpen)));
    assert_eq!(disk.close_zone(start), Err(invalid(RequestType::ZoneClose)));
    assert_eq!(disk.finish_zone(start), Err(invalid(RequestType::ZoneFinish)));
    assert_eq!(disk.reset_zone(start), Err(invalid(RequestType::ZoneReset)));
    // V19: it is none of those that are reset.
    assert_eq!(disk.reset_all_zones(), Ok(()));
    let states: Result<Vec<_>, _> = disk.zones(0).unwrap().map(|zone| zone.map(|zone| zone.state)).collect();
    let mut expected = vec![ZoneState::Empty; 8];
    (expected[0], expected[4]) = (ZoneState::NotWp, ZoneState::Offline);
    assert_eq!(states.unwrap(), expected);
    assert_eq!(disk.append(start + ZONE_SECTORS, &data(8, 2)), Ok(start + ZONE_SECTORS));
}
