//! Takes a device into use (3.1.1): features, limits, queues, zones.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::AtomicBool;

use virtio_drivers::Hal;
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};
use virtio_zbd_spec::{Features, Model};

use crate::command::Buffer;
use crate::config;
use crate::disk::{Options, Queue, VirtioBlk, reset};
use crate::error::{Error, ProbeError};
use crate::limits::{Geometry, ZoneSupport};
use crate::ring::{Ring, depth};
use crate::wait::Wait;

/// What this driver makes use of. ACCESS_PLATFORM is among it because each address that the device gets comes from the
/// [`Hal`], which may translate.
const TAKEN: Features = Features::VERSION_1
    .union(Features::INDIRECT_DESC)
    .union(Features::EVENT_IDX)
    .union(Features::SIZE_MAX)
    .union(Features::SEG_MAX)
    .union(Features::RO)
    .union(Features::BLK_SIZE)
    .union(Features::FLUSH)
    .union(Features::CONFIG_WCE)
    .union(Features::MQ)
    .union(Features::DISCARD)
    .union(Features::WRITE_ZEROES)
    .union(Features::SECURE_ERASE)
    .union(Features::ZONED)
    .union(Features::ACCESS_PLATFORM);

pub(crate) fn probe<H: Hal, T: Transport, B: Buffer>(
    mut transport: T,
    options: Options,
    wait: Box<dyn Wait<T>>,
    allocate: fn(usize) -> Option<B>,
) -> Result<VirtioBlk<H, T, B>, Error> {
    if transport.device_type() != DeviceType::Block {
        return Err(ProbeError::NotABlockDevice(transport.device_type()).into());
    }
    if !reset(&mut transport) {
        // Its drop may wait for the reset, for ever.
        core::mem::forget(transport);
        return Err(ProbeError::NoReset.into());
    }
    let mut queues = Vec::new();
    let set_up = negotiate(&mut transport, options).and_then(|(features, geometry, queue_depth)| {
        set_up_queues::<H, T, B>(&mut queues, &mut transport, options, features, &geometry, queue_depth)?;
        Ok((features, geometry, queue_depth))
    });
    let (features, geometry, queue_depth) = match set_up {
        Ok(set_up) => set_up,
        Err(error) => {
            fail(&mut transport);
            // The device has the memory of queues that were set up, until it is reset.
            if !queues.is_empty() && !reset(&mut transport) {
                core::mem::forget((queues, transport));
            }
            return Err(error);
        }
    };
    transport.set_status(DRIVEN | DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
    let mut disk = VirtioBlk {
        transport: Some(transport),
        queues,
        geometry,
        features,
        support: options.zones,
        queue_depth,
        wait,
        allocate,
        removed: Arc::new(AtomicBool::new(false)),
        broken: false,
        next_serial: 0,
    };
    // L12: the disk is shown only when all its zones are known to be right.
    if let Err(error) = disk.check_zones() {
        if let (false, Some(transport)) = (disk.broken, &mut disk.transport) {
            fail(transport);
        }
        return Err(error);
    }
    Ok(disk)
}

/// The status of a device that its driver has begun with.
pub(crate) const DRIVEN: DeviceStatus = DeviceStatus::ACKNOWLEDGE.union(DeviceStatus::DRIVER);

/// Says that the driver has given up on the device (R4).
pub(crate) fn fail<T: Transport>(transport: &mut T) {
    let status = transport.get_status();
    transport.set_status(status | DeviceStatus::FAILED);
}

/// Chooses features, has them confirmed, and reads what the disk is.
fn negotiate<T: Transport>(transport: &mut T, options: Options) -> Result<(Features, Geometry, u16), Error> {
    transport.set_status(DeviceStatus::ACKNOWLEDGE);
    transport.set_status(DRIVEN);
    let offered = Features::from_bits_truncate(transport.read_device_features());
    if !offered.contains(Features::VERSION_1) || transport.requires_legacy_layout() {
        return Err(ProbeError::NoVersion1.into());
    }
    let mut features = offered & TAKEN;
    if features.contains(Features::ZONED) && looks_host_managed(transport) {
        if options.zones == ZoneSupport::No {
            return Err(ProbeError::ZonesNotWanted.into()); // L3, and R4: FEATURES_OK is not set
        }
        features.remove(Features::DISCARD); // R2
    }
    transport.write_driver_features(features.bits());
    transport.set_status(DRIVEN | DeviceStatus::FEATURES_OK);
    // R4, V4: the device has the last word, and it is read here.
    let status = transport.get_status();
    if status.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
        return Err(Error::NeedsReset);
    }
    if !status.contains(DeviceStatus::FEATURES_OK) {
        return Err(ProbeError::FeaturesRefused(features).into());
    }
    let config = config::read(transport, features)?;
    let queue_depth = depth(0, options.queue_depth, transport.max_queue_size(0))?;
    let geometry = Geometry::new(&config, features, queue_depth, options.zones)?;
    if geometry.model == Model::HostManaged && features.contains(Features::DISCARD) {
        log::warn!("DISCARD is negotiated on a host-managed disk: not used"); // L6
    }
    Ok((features, geometry, queue_depth))
}

/// A first look at the model, before features are chosen (3.1.1, step 4 allows it). What counts is read afterwards.
fn looks_host_managed<T: Transport>(transport: &T) -> bool {
    let config = config::read(transport, Features::ZONED);
    config.is_ok_and(|config| config.zoned.model == u8::from(Model::HostManaged))
}

fn set_up_queues<H: Hal, T: Transport, B: Buffer>(
    queues: &mut Vec<Queue<H, B>>,
    transport: &mut T,
    options: Options,
    features: Features,
    geometry: &Geometry,
    queue_depth: u16,
) -> Result<(), Error> {
    for index in 0..options.queues.clamp(1, geometry.queues) {
        let found = transport.max_queue_size(index);
        if found < u32::from(queue_depth) {
            return Err(ProbeError::QueueTooSmall { queue: index, found, expected: queue_depth }.into());
        }
        let ring = Ring::new(transport, index, queue_depth, features, segment_len_bytes(geometry))?;
        queues.push(Queue { ring, landed: VecDeque::new() });
    }
    Ok(())
}

/// How long a segment of data is at most.
pub(crate) fn segment_len_bytes(geometry: &Geometry) -> usize {
    usize::try_from(geometry.limits.segment_len_bytes_max).unwrap_or(usize::MAX)
}
