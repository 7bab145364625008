//! The harness itself: the fake device on virtio-drivers' queue, without the driver.
#![allow(clippy::unwrap_used, clippy::panic, unsafe_code, reason = "a test says loudly what is wrong")]

mod common;

use common::{FakeDevice, FakeHal, Shape, Watch};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_zbd_spec::{Features, OutHeader, RequestType, Status};
use zerocopy::IntoBytes;

fn one_request<const BOUNCE: bool>(indirect: bool) {
    let _watch = Watch::begin();
    let device = FakeDevice::new(Shape::default());
    let mut transport = device.transport();
    let ack = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    transport.set_status(DeviceStatus::empty());
    transport.set_status(ack);
    let mut features = Features::VERSION_1 | Features::ZONED;
    features.set(Features::INDIRECT_DESC, indirect);
    transport.write_driver_features(features.bits());
    transport.set_status(ack | DeviceStatus::FEATURES_OK);
    assert!(transport.get_status().contains(DeviceStatus::FEATURES_OK));
    let mut queue = VirtQueue::<FakeHal<BOUNCE>, 16>::new(&mut transport, 0, indirect, false).unwrap();
    transport.set_status(ack | DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);

    let header = |kind: RequestType, sector: u64| OutHeader {
        request_type: u32::from(kind).into(),
        reserved: 0.into(),
        sector: sector.into(),
    };
    let mut status = [0xff];
    let data = vec![7; 8192];
    let write = header(RequestType::Out, 128);
    let len =
        queue.add_notify_wait_pop(&[write.as_bytes(), &data], &mut [&mut status], &mut transport).unwrap();
    assert_eq!((len, status[0]), (1, Status::Ok.into()));
    let mut back = vec![0; 8192];
    let read = header(RequestType::In, 128);
    let len =
        queue.add_notify_wait_pop(&[read.as_bytes()], &mut [&mut back, &mut status], &mut transport).unwrap();
    assert_eq!((len, status[0]), (8193, Status::Ok.into()));
    assert_eq!(back, data);
    assert_eq!(device.disk(|disk| disk.zones[2].wp), 128 + 16);
    transport.set_status(DeviceStatus::empty());
}

#[test]
fn a_request_over_direct_descriptors() {
    one_request::<false>(false);
    one_request::<true>(false);
}

#[test]
#[cfg_attr(miri, ignore = "virtio-drivers' queue keeps a pointer into a box that it then moves")]
fn a_request_over_an_indirect_table() {
    one_request::<false>(true);
    one_request::<true>(true);
}
