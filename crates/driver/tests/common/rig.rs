//! The driver on the fake device.

use virtio_drivers::transport::DeviceStatus;
use virtio_zbd_driver::{Error, Hal, Options, VirtioBlk, Zone};
use virtio_zbd_spec::{Model, ZoneState};

use super::disk::{Disk, Shape};
use super::transport::{Face, FakeDevice, FakeTransport};

/// The driver of a fake device.
pub type Blk<H> = VirtioBlk<H, FakeTransport>;

/// After so many looks in vain a call gives up: the fake device has answered by then, or it never will.
pub const TURNS_MAX: u64 = 100;

/// How deep the queue of most tests is.
pub const QUEUE_DEPTH: u16 = if cfg!(miri) { 16 } else { 32 };

/// Takes the device into use.
pub fn attach_with<H: Hal>(device: &FakeDevice, options: Options) -> Result<Blk<H>, Error> {
    VirtioBlk::with(device.transport(), options, virtio_zbd_driver::Spin { turns_max: TURNS_MAX }, allocate)
}

/// As [`attach_with`], as most tests want it; the queue is small, for Miri's sake.
pub fn attach<H: Hal>(device: &FakeDevice) -> Result<Blk<H>, Error> {
    attach_with(device, Options { queue_depth: QUEUE_DEPTH, ..Options::default() })
}

/// A device of this shape and its driver.
pub fn rig<H: Hal>(shape: Shape) -> (FakeDevice, Blk<H>) {
    let device = FakeDevice::new(shape);
    let disk = attach(&device).expect("an honest device");
    (device, disk)
}

/// A zeroed buffer.
#[allow(clippy::unnecessary_wraps, reason = "as `VirtioBlk::with` wants it")]
pub fn allocate(len_bytes: usize) -> Option<Vec<u8>> {
    Some(vec![0; len_bytes])
}

/// Why a device that was changed in one thing can't be taken into use. FAILED was set, or there was no talking to it at all.
pub fn refusal<H: Hal>(shape: Shape, change: impl FnOnce(&mut Face)) -> Error {
    let device = FakeDevice::new(shape);
    device.face(change);
    refusal_of::<H>(&device)
}

/// As [`refusal`], for a device that there is.
pub fn refusal_of<H: Hal>(device: &FakeDevice) -> Error {
    let error = attach::<H>(device).expect_err("a device that can't be used");
    let statuses = device.statuses();
    if statuses.iter().any(|status| status.contains(DeviceStatus::DRIVER)) {
        assert!(statuses.iter().any(|status| status.contains(DeviceStatus::FAILED)), "R4: {statuses:?}");
    }
    assert_eq!(device.ring_sizes(), [0_u16; 0], "the device has rings of a driver that has left");
    error
}

/// What the driver says of all zones.
pub fn zones<H: Hal>(disk: &mut Blk<H>) -> Vec<Zone> {
    let zones: Result<Vec<Zone>, Error> = disk.zones(0).expect("a zoned disk").take(1000).collect();
    zones.expect("good zones")
}

/// The zones of the honest disk, as the driver has to say them.
pub fn expected_zones(disk: &Disk) -> Vec<Zone> {
    let zone = |zone: &super::DiskZone| Zone {
        start_sector: zone.start,
        len_sectors: zone.len,
        capacity_sectors: zone.capacity,
        kind: zone.kind,
        state: zone.state,
        write_pointer_sector: match zone.state {
            ZoneState::NotWp | ZoneState::ReadOnly | ZoneState::Offline => None,
            ZoneState::Full => Some(zone.start + zone.len), // L9
            _ => Some(zone.wp),
        },
    };
    disk.zones.iter().map(zone).collect()
}

/// The disk works: what the device is, is what the driver says, and data goes there and back.
pub fn assert_usable<H: Hal>(device: &FakeDevice, disk: &mut Blk<H>) {
    assert_eq!(disk.capacity_sectors(), device.disk(|disk| disk.shape.capacity_sectors));
    let block = usize::try_from(disk.block_len_bytes()).expect("a small block");
    if disk.model() == Model::HostManaged {
        assert_eq!(zones(disk), device.disk(|disk| expected_zones(disk)));
    }
    if !disk.read_only() {
        let data: Vec<u8> = (0..block).map(|byte| byte.to_le_bytes()[0] ^ 0x5a).collect();
        disk.write(0, &data).expect("a write");
        let mut back = vec![0; block];
        disk.read(0, &mut back).expect("a read");
        assert_eq!(back, data);
    }
    disk.flush().expect("a flush");
    assert_eq!(disk.id().expect("an id").as_bytes(), b"fake disk 7");
}

/// The disk is given up: the device is reset, and every call says so.
pub fn assert_broken<H: Hal>(device: &FakeDevice, disk: &mut Blk<H>) {
    assert_all_calls_end_with(disk, Error::Broken);
    assert_eq!(device.ring_sizes(), [0_u16; 0], "the device was not reset");
    assert_eq!(device.held(), 0, "the device was not reset");
}

/// Every call ends with this error, and nothing reaches the device.
pub fn assert_all_calls_end_with<H: Hal>(disk: &mut Blk<H>, error: Error) {
    use virtio_zbd_driver::Command;

    let block = vec![0; usize::try_from(disk.block_len_bytes()).expect("a small block")];
    assert_eq!(disk.read(0, &mut block.clone()), Err(error));
    assert_eq!(disk.write(0, &block), Err(error));
    assert_eq!(disk.flush(), Err(error));
    assert_eq!(disk.id().map(|_| ()), Err(error));
    assert_eq!(disk.submit(0, Command::Flush).map(|_| ()).map_err(|rejected| rejected.error), Err(error));
    assert_eq!(disk.notify(0), Err(error));
    assert_eq!(disk.complete(0).map(|completion| completion.is_some()), Err(error));
    assert_eq!(disk.config_changed().map(|_| ()), Err(error));
    if disk.model() == Model::HostManaged {
        assert_eq!(disk.zones(0).map(|_| ()), Err(error));
        assert_eq!(disk.zone(0).map(|_| ()), Err(error));
        assert_eq!(disk.append(128, &vec![0; 4096]).map(|_| ()), Err(error));
        assert_eq!(disk.open_zone(128), Err(error));
        assert_eq!(disk.reset_all_zones(), Err(error));
    }
}

/// All cases; under Miri, where each costs a second, some: the memory that they touch is the same.
pub fn cases<T>(all: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
    all.into_iter().take(if cfg!(miri) { 2 } else { usize::MAX })
}

/// Runs each test on both kinds of memory. Miri, which is slow, only where the device works in the driver's own bytes: there it has
/// something to say.
macro_rules! on_both_hals {
    ($($(#[$attr:meta])* $name:ident),* $(,)?) => {
        mod identity {
            $( #[test] $(#[$attr])* fn $name() { super::$name::<crate::common::Identity>(); } )*
        }
        #[cfg(not(miri))]
        mod bounce {
            $( #[test] $(#[$attr])* fn $name() { super::$name::<crate::common::Bounce>(); } )*
        }
    };
}

pub(crate) use on_both_hals;
