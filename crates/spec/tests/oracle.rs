//! Every number and layout of this crate that Linux's headers have too, compared with them (through `virtio-bindings`).
//!
//! What those headers lack is compared with the text of the specification instead, in `tests/values.rs`.

use core::mem::{offset_of, size_of};

use virtio_bindings::{virtio_blk as blk, virtio_config as cfg, virtio_ids as ids, virtio_ring};
use virtio_zbd_spec::config::{BlkConfig, Geometry, Model, ZonedCharacteristics};
use virtio_zbd_spec::request::{DiscardWriteZeroes, ID_LEN_BYTES, OutHeader, SegmentFlags};
use virtio_zbd_spec::ring::{self, Descriptor, DescriptorFlags, DeviceStatus, UsedElem};
use virtio_zbd_spec::zone::{ReportHeader, ZoneDescriptor, ZoneState, ZoneType};
use virtio_zbd_spec::{DEVICE_ID, Features, RequestType, Status};

/// Offset for offset, our field and theirs; then the sizes.
macro_rules! same_layout {
    ($ours:ty, $theirs:ty, { $($our_field:ident $(. $our_sub:ident)? = $their_field:ident),* $(,)? }) => {
        $(
            assert_eq!(
                offset_of!($ours, $our_field $(. $our_sub)?),
                offset_of!($theirs, $their_field),
                stringify!($our_field $(. $our_sub)?)
            );
        )*
        assert_eq!(size_of::<$ours>(), size_of::<$theirs>(), stringify!($ours));
    };
}

#[test]
fn feature_bits() {
    for (ours, bit) in [
        (Features::SIZE_MAX, blk::VIRTIO_BLK_F_SIZE_MAX),
        (Features::SEG_MAX, blk::VIRTIO_BLK_F_SEG_MAX),
        (Features::GEOMETRY, blk::VIRTIO_BLK_F_GEOMETRY),
        (Features::RO, blk::VIRTIO_BLK_F_RO),
        (Features::BLK_SIZE, blk::VIRTIO_BLK_F_BLK_SIZE),
        (Features::FLUSH, blk::VIRTIO_BLK_F_FLUSH),
        (Features::TOPOLOGY, blk::VIRTIO_BLK_F_TOPOLOGY),
        (Features::CONFIG_WCE, blk::VIRTIO_BLK_F_CONFIG_WCE),
        (Features::MQ, blk::VIRTIO_BLK_F_MQ),
        (Features::DISCARD, blk::VIRTIO_BLK_F_DISCARD),
        (Features::WRITE_ZEROES, blk::VIRTIO_BLK_F_WRITE_ZEROES),
        (Features::SECURE_ERASE, blk::VIRTIO_BLK_F_SECURE_ERASE),
        (Features::ZONED, blk::VIRTIO_BLK_F_ZONED),
        (Features::INDIRECT_DESC, virtio_ring::VIRTIO_RING_F_INDIRECT_DESC),
        (Features::EVENT_IDX, virtio_ring::VIRTIO_RING_F_EVENT_IDX),
        (Features::VERSION_1, cfg::VIRTIO_F_VERSION_1),
        (Features::ACCESS_PLATFORM, cfg::VIRTIO_F_ACCESS_PLATFORM),
        (Features::RING_PACKED, cfg::VIRTIO_F_RING_PACKED),
        (Features::IN_ORDER, cfg::VIRTIO_F_IN_ORDER),
        (Features::RING_RESET, cfg::VIRTIO_F_RING_RESET),
    ] {
        assert_eq!(ours.bits(), 1 << bit, "{ours:?}");
    }
}

#[test]
fn config_space() {
    same_layout!(BlkConfig, blk::virtio_blk_config, {
        capacity = capacity,
        size_max = size_max,
        seg_max = seg_max,
        geometry = geometry,
        blk_size = blk_size,
        topology.physical_block_exp = physical_block_exp,
        topology.alignment_offset = alignment_offset,
        topology.min_io_size = min_io_size,
        topology.opt_io_size = opt_io_size,
        writeback = wce,
        unused0 = unused,
        num_queues = num_queues,
        max_discard_sectors = max_discard_sectors,
        max_discard_seg = max_discard_seg,
        discard_sector_alignment = discard_sector_alignment,
        max_write_zeroes_sectors = max_write_zeroes_sectors,
        max_write_zeroes_seg = max_write_zeroes_seg,
        write_zeroes_may_unmap = write_zeroes_may_unmap,
        unused1 = unused1,
        max_secure_erase_sectors = max_secure_erase_sectors,
        max_secure_erase_seg = max_secure_erase_seg,
        secure_erase_sector_alignment = secure_erase_sector_alignment,
        zoned = zoned,
    });
    same_layout!(Geometry, blk::virtio_blk_config_virtio_blk_geometry, {
        cylinders = cylinders,
        heads = heads,
        sectors = sectors,
    });
    same_layout!(ZonedCharacteristics, blk::virtio_blk_config_virtio_blk_zoned_characteristics, {
        zone_sectors = zone_sectors,
        max_open_zones = max_open_zones,
        max_active_zones = max_active_zones,
        max_append_sectors = max_append_sectors,
        write_granularity = write_granularity,
        model = model,
        unused2 = unused2,
    });
}

#[test]
fn request_structures() {
    same_layout!(OutHeader, blk::virtio_blk_outhdr, {
        request_type = type_,
        reserved = ioprio,
        sector = sector,
    });
    same_layout!(DiscardWriteZeroes, blk::virtio_blk_discard_write_zeroes, {
        sector = sector,
        num_sectors = num_sectors,
        flags = flags,
    });
    assert_eq!(SegmentFlags::UNMAP.bits(), blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);
    assert_eq!(ID_LEN_BYTES, usize::try_from(blk::VIRTIO_BLK_ID_BYTES).unwrap());
    assert_eq!(DEVICE_ID, ids::VIRTIO_ID_BLOCK);
}

#[test]
fn request_types() {
    for (ours, theirs) in [
        (RequestType::In, blk::VIRTIO_BLK_T_IN),
        (RequestType::Out, blk::VIRTIO_BLK_T_OUT),
        (RequestType::Flush, blk::VIRTIO_BLK_T_FLUSH),
        (RequestType::GetId, blk::VIRTIO_BLK_T_GET_ID),
        (RequestType::Discard, blk::VIRTIO_BLK_T_DISCARD),
        (RequestType::WriteZeroes, blk::VIRTIO_BLK_T_WRITE_ZEROES),
        (RequestType::SecureErase, blk::VIRTIO_BLK_T_SECURE_ERASE),
        (RequestType::ZoneAppend, blk::VIRTIO_BLK_T_ZONE_APPEND),
        (RequestType::ZoneReport, blk::VIRTIO_BLK_T_ZONE_REPORT),
        (RequestType::ZoneOpen, blk::VIRTIO_BLK_T_ZONE_OPEN),
        (RequestType::ZoneClose, blk::VIRTIO_BLK_T_ZONE_CLOSE),
        (RequestType::ZoneFinish, blk::VIRTIO_BLK_T_ZONE_FINISH),
        (RequestType::ZoneReset, blk::VIRTIO_BLK_T_ZONE_RESET),
        (RequestType::ZoneResetAll, blk::VIRTIO_BLK_T_ZONE_RESET_ALL),
    ] {
        assert_eq!(u32::from(ours), theirs, "{ours:?}");
    }
}

#[test]
fn statuses() {
    for (ours, theirs) in [
        (Status::Ok, blk::VIRTIO_BLK_S_OK),
        (Status::IoErr, blk::VIRTIO_BLK_S_IOERR),
        (Status::Unsupp, blk::VIRTIO_BLK_S_UNSUPP),
        (Status::ZoneInvalidCmd, blk::VIRTIO_BLK_S_ZONE_INVALID_CMD),
        (Status::ZoneUnalignedWp, blk::VIRTIO_BLK_S_ZONE_UNALIGNED_WP),
        (Status::ZoneOpenResource, blk::VIRTIO_BLK_S_ZONE_OPEN_RESOURCE),
        (Status::ZoneActiveResource, blk::VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE),
    ] {
        assert_eq!(u32::from(u8::from(ours)), theirs, "{ours:?}");
    }
}

#[test]
fn zones() {
    for (ours, theirs) in [
        (Model::None, blk::VIRTIO_BLK_Z_NONE),
        (Model::HostManaged, blk::VIRTIO_BLK_Z_HM),
        (Model::HostAware, blk::VIRTIO_BLK_Z_HA),
    ] {
        assert_eq!(u32::from(u8::from(ours)), theirs, "{ours:?}");
    }
    for (ours, theirs) in [
        (ZoneType::Conventional, blk::VIRTIO_BLK_ZT_CONV),
        (ZoneType::SequentialRequired, blk::VIRTIO_BLK_ZT_SWR),
        (ZoneType::SequentialPreferred, blk::VIRTIO_BLK_ZT_SWP),
    ] {
        assert_eq!(u32::from(u8::from(ours)), theirs, "{ours:?}");
    }
    for (ours, theirs) in [
        (ZoneState::NotWp, blk::VIRTIO_BLK_ZS_NOT_WP),
        (ZoneState::Empty, blk::VIRTIO_BLK_ZS_EMPTY),
        (ZoneState::ImplicitOpen, blk::VIRTIO_BLK_ZS_IOPEN),
        (ZoneState::ExplicitOpen, blk::VIRTIO_BLK_ZS_EOPEN),
        (ZoneState::Closed, blk::VIRTIO_BLK_ZS_CLOSED),
        (ZoneState::ReadOnly, blk::VIRTIO_BLK_ZS_RDONLY),
        (ZoneState::Full, blk::VIRTIO_BLK_ZS_FULL),
        (ZoneState::Offline, blk::VIRTIO_BLK_ZS_OFFLINE),
    ] {
        assert_eq!(u32::from(u8::from(ours)), theirs, "{ours:?}");
    }
    same_layout!(ReportHeader, blk::virtio_blk_zone_report, {
        nr_zones = nr_zones,
        reserved = reserved,
    });
    assert_eq!(size_of::<ReportHeader>(), offset_of!(blk::virtio_blk_zone_report, zones));
    same_layout!(ZoneDescriptor, blk::virtio_blk_zone_descriptor, {
        z_cap = z_cap,
        z_start = z_start,
        z_wp = z_wp,
        z_type = z_type,
        z_state = z_state,
        reserved = reserved,
    });
}

#[test]
fn split_ring() {
    same_layout!(Descriptor, virtio_ring::vring_desc, {
        addr = addr,
        len = len,
        flags = flags,
        next = next,
    });
    same_layout!(UsedElem, virtio_ring::vring_used_elem, { id = id, len = len });

    let offset = |bytes: usize| u64::try_from(bytes).unwrap();
    assert_eq!(ring::AVAIL_FLAGS_OFFSET_BYTES, offset(offset_of!(virtio_ring::vring_avail, flags)));
    assert_eq!(ring::AVAIL_IDX_OFFSET_BYTES, offset(offset_of!(virtio_ring::vring_avail, idx)));
    assert_eq!(ring::AVAIL_ENTRIES_OFFSET_BYTES, offset(offset_of!(virtio_ring::vring_avail, ring)));
    assert_eq!(ring::USED_FLAGS_OFFSET_BYTES, offset(offset_of!(virtio_ring::vring_used, flags)));
    assert_eq!(ring::USED_IDX_OFFSET_BYTES, offset(offset_of!(virtio_ring::vring_used, idx)));
    assert_eq!(ring::USED_ENTRIES_OFFSET_BYTES, offset(offset_of!(virtio_ring::vring_used, ring)));
    assert_eq!(ring::DESCRIPTOR_TABLE_ALIGN_BYTES, virtio_ring::VRING_DESC_ALIGN_SIZE.into());
    assert_eq!(ring::AVAIL_RING_ALIGN_BYTES, virtio_ring::VRING_AVAIL_ALIGN_SIZE.into());
    assert_eq!(ring::USED_RING_ALIGN_BYTES, virtio_ring::VRING_USED_ALIGN_SIZE.into());

    for (ours, theirs) in [
        (DescriptorFlags::NEXT.bits(), virtio_ring::VRING_DESC_F_NEXT),
        (DescriptorFlags::WRITE.bits(), virtio_ring::VRING_DESC_F_WRITE),
        (DescriptorFlags::INDIRECT.bits(), virtio_ring::VRING_DESC_F_INDIRECT),
        (ring::AVAIL_F_NO_INTERRUPT, virtio_ring::VRING_AVAIL_F_NO_INTERRUPT),
        (ring::USED_F_NO_NOTIFY, virtio_ring::VRING_USED_F_NO_NOTIFY),
    ] {
        assert_eq!(u32::from(ours), theirs);
    }
}

#[test]
fn device_status() {
    for (ours, theirs) in [
        (DeviceStatus::ACKNOWLEDGE, cfg::VIRTIO_CONFIG_S_ACKNOWLEDGE),
        (DeviceStatus::DRIVER, cfg::VIRTIO_CONFIG_S_DRIVER),
        (DeviceStatus::DRIVER_OK, cfg::VIRTIO_CONFIG_S_DRIVER_OK),
        (DeviceStatus::FEATURES_OK, cfg::VIRTIO_CONFIG_S_FEATURES_OK),
        (DeviceStatus::NEEDS_RESET, cfg::VIRTIO_CONFIG_S_NEEDS_RESET),
        (DeviceStatus::FAILED, cfg::VIRTIO_CONFIG_S_FAILED),
    ] {
        assert_eq!(u32::from(ours.bits()), theirs, "{ours:?}");
    }
}
