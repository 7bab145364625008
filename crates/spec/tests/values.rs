//! What Linux's headers can't tell: the numbers that they lack, and bytes in and out.

use std::collections::BTreeSet;

use virtio_zbd_spec::request::{LIFETIME_EXCEEDED, PreEolInfo};
use virtio_zbd_spec::ring::{
    avail_event_offset_bytes, avail_ring_len_bytes, descriptor_table_len_bytes, used_event_offset_bytes,
    used_ring_len_bytes,
};
use virtio_zbd_spec::{
    AppendInHeader, BlkConfig, Features, Model, OutHeader, ReportHeader, RequestType, Status, UnknownValue,
    ZoneDescriptor, ZoneState, ZoneType,
};
use zerocopy::{FromBytes, IntoBytes};

#[test]
fn numbers_from_the_text() {
    assert_eq!(Features::LIFETIME.bits(), 1 << 15);
    assert_eq!(u32::from(RequestType::GetLifetime), 10);
    assert_eq!(PreEolInfo::ALL.iter().map(|&i| u16::from(i)).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(LIFETIME_EXCEEDED, 11);
}

/// Each number of a small range is either one value and comes back the same, or is refused by name.
macro_rules! round_trip {
    ($name:ty, $int:ty, $what:literal, $range:expr) => {
        let mut known = BTreeSet::new();
        for number in $range {
            match <$name>::try_from(number) {
                Ok(value) => {
                    assert_eq!(<$int>::from(value), number);
                    assert!(known.insert(value));
                }
                Err(error) => {
                    assert_eq!(error, UnknownValue { what: $what, value: number.into() });
                    assert_eq!(error.to_string(), format!("{number} is not a known {}", $what));
                }
            }
        }
        assert_eq!(known.into_iter().collect::<Vec<_>>(), <$name>::ALL);
    };
}

#[test]
fn every_number_is_known_or_refused() {
    round_trip!(Model, u8, "zoned model", 0..=u8::MAX);
    round_trip!(Status, u8, "request status", 0..=u8::MAX);
    round_trip!(ZoneType, u8, "zone type", 0..=u8::MAX);
    round_trip!(ZoneState, u8, "zone state", 0..=u8::MAX);
    round_trip!(PreEolInfo, u16, "pre-EOL information", 0..=u16::MAX);
    round_trip!(RequestType, u32, "request type", (0..=1000).chain([u32::MAX]));
    assert_eq!(
        (Model::ALL.len(), Status::ALL.len(), ZoneType::ALL.len(), ZoneState::ALL.len()),
        (3, 7, 3, 8)
    );
    assert_eq!(RequestType::ALL.len(), 15);
}

#[test]
fn seven_requests_are_zoned_and_one_has_a_long_in_header() {
    let zoned: Vec<u32> = RequestType::ALL.iter().filter(|t| t.is_zoned()).map(|&t| t.into()).collect();
    assert_eq!(zoned, [15, 16, 18, 20, 22, 24, 26]);
    for &request_type in RequestType::ALL {
        let expected = if request_type == RequestType::ZoneAppend { 9 } else { 1 };
        assert_eq!(request_type.in_header_len_bytes(), expected, "{request_type:?}");
    }
}

#[test]
fn numbers_are_little_endian_on_the_wire() {
    let header = OutHeader {
        request_type: u32::from(RequestType::ZoneReset).into(),
        reserved: 0.into(),
        sector: 0x0102_0304_0506_0708.into(),
    };
    assert_eq!(header.as_bytes(), [24, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);

    let in_header = AppendInHeader::read_from_bytes(&[8, 7, 6, 5, 4, 3, 2, 1, 6]).unwrap();
    assert_eq!(in_header.append_sector.get(), 0x0102_0304_0506_0708);
    assert_eq!(Status::try_from(in_header.status), Ok(Status::ZoneActiveResource));
}

#[test]
fn report_structures_are_built_with_zeroed_padding() {
    let mut expected = [0; 64];
    expected[0] = 3;
    assert_eq!(ReportHeader::new(3).as_bytes(), expected);

    let zone = ZoneDescriptor::new(ZoneType::SequentialRequired, ZoneState::Full, 0x1000, 0xc00, 0x1c00);
    let mut expected = [0; 64];
    expected[1] = 0x0c;
    expected[9] = 0x10;
    expected[17] = 0x1c;
    expected[24] = 2;
    expected[25] = 14;
    assert_eq!(zone.as_bytes(), expected);
}

#[test]
fn config_from_bytes_keeps_every_byte() {
    let bytes: Vec<u8> = (0..96).collect();
    let config = BlkConfig::read_from_bytes(&bytes).unwrap();
    assert_eq!(config.as_bytes(), bytes);
    assert_eq!(config.capacity.get(), 0x0706_0504_0302_0100);
    assert_eq!(config.num_queues.get(), 35 << 8 | 34);
    assert_eq!(config.zoned.zone_sectors.get(), u32::from_le_bytes([72, 73, 74, 75]));
    assert_eq!(config.zoned.model, 92);
    assert!(BlkConfig::read_from_bytes(&bytes[..95]).is_err());
}

#[test]
fn ring_sizes_follow_the_queue_size() {
    for queue_size in [1, 2, 4, 128, 256, 32768] {
        let n = u64::from(queue_size);
        assert_eq!(descriptor_table_len_bytes(queue_size), 16 * n);
        assert_eq!(used_event_offset_bytes(queue_size), 4 + 2 * n);
        assert_eq!(avail_ring_len_bytes(queue_size), 6 + 2 * n);
        assert_eq!(avail_event_offset_bytes(queue_size), 4 + 8 * n);
        assert_eq!(used_ring_len_bytes(queue_size), 6 + 8 * n);
    }
}
