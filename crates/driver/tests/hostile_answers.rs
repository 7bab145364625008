//! Devices whose answers can't be: statuses that there are not, appends that landed nowhere, data that was never written.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says loudly what is wrong")]

mod common;

use common::rig::{Blk, assert_usable, cases, rig};
use common::{FakeDevice, Shape, Watch, on_both_hals};
use virtio_zbd_driver::{Command, DeviceError, Error, Hal, Wrong};
use virtio_zbd_spec::{RequestType, Status};

on_both_hals!(
    l10_every_status_of_every_request,
    statuses_that_there_are_not,
    a_status_that_is_never_written,
    an_in_header_that_is_never_written,
    r11_appends_that_landed_where_they_can_not,
    r11_appends_that_landed_where_they_can,
    r11_the_sector_of_a_failed_append,
    data_that_is_never_written,
    serials,
);

type Call<H> = fn(&mut Blk<H>) -> Result<(), Error>;

/// Each request that a zoned disk takes, and the sector in its header.
fn calls<H: Hal>() -> [(RequestType, u64, Call<H>); 11] {
    [
        (RequestType::In, 8, |disk| disk.read(8, &mut [0; 512])),
        (RequestType::Out, 8, |disk| disk.write(8, &[1; 512])),
        (RequestType::Flush, 0, |disk| disk.flush()),
        (RequestType::GetId, 0, |disk| disk.id().map(drop)),
        (RequestType::ZoneAppend, 128, |disk| disk.append(128, &[1; 4096]).map(drop)),
        (RequestType::ZoneReport, 128, |disk| disk.zone(130).map(drop)),
        (RequestType::ZoneOpen, 192, |disk| disk.open_zone(192)),
        (RequestType::ZoneClose, 192, |disk| disk.close_zone(192)),
        (RequestType::ZoneFinish, 192, |disk| disk.finish_zone(192)),
        (RequestType::ZoneReset, 192, |disk| disk.reset_zone(192)),
        (RequestType::ZoneResetAll, 0, |disk| disk.reset_all_zones()),
    ]
}

fn l10_every_status_of_every_request<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    for (status, error) in cases([
        (Status::IoErr, DeviceError::IoError),
        (Status::Unsupp, DeviceError::Unsupported),
        (Status::ZoneInvalidCmd, DeviceError::InvalidCommand),
        (Status::ZoneUnalignedWp, DeviceError::UnalignedWritePointer),
        (Status::ZoneOpenResource, DeviceError::OpenResource),
        (Status::ZoneActiveResource, DeviceError::ActiveResource),
    ]) {
        for (request, sector, call) in calls::<H>() {
            device.lie_to(request, move |_, reply| {
                reply.set_status(status.into());
                // A failed request need not have written its data.
                reply.data.clear();
                reply.set_used_len(0);
            });
            assert_eq!(call(&mut disk), Err(Error::Device { request, sector, status: error }));
            device.be_honest();
        }
    }
    assert_usable(&device, &mut disk);
}

fn statuses_that_there_are_not<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    for status in cases([7, 0x80, 0xff, 8, 0x0f, 0xfe]) {
        for (request, _, call) in calls::<H>() {
            device.lie_to(request, move |_, reply| reply.set_status(status));
            assert_eq!(call(&mut disk), Err(Error::Wrong(Wrong::Status(status))), "{request:?}");
            device.be_honest();
        }
    }
    assert_usable(&device, &mut disk);
}

fn a_status_that_is_never_written<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    for (request, _, call) in calls::<H>() {
        // A used length that does not reach it.
        for len in [0, 1] {
            device.lie_to(request, move |_, reply| {
                let status = reply.in_header.pop();
                assert_eq!(status, Some(0), "{request:?}");
                // What is in front of it stays where it was.
                reply.data.extend_from_slice(&std::mem::take(&mut reply.in_header));
                let room = u32::try_from(reply.data.len()).unwrap();
                reply.set_used_len(len * room);
            });
            let result = call(&mut disk);
            assert!(matches!(result, Err(Error::Wrong(_))), "{request:?}: {result:?}");
            device.be_honest();
            disk.reset_all_zones().unwrap();
            disk.open_zone(192).unwrap();
        }
    }
    assert_usable(&device, &mut disk);
}

fn an_in_header_that_is_never_written<H: Hal>() {
    let _watch = Watch::begin();
    // Status OK, and no sector: the driver's own bytes must not pass for one.
    let (device, mut disk) = rig::<H>(Shape::default());
    device.lie_to(RequestType::ZoneAppend, |_, reply| {
        reply.in_header.drain(..8);
        reply.set_used_len(1);
    });
    let result = disk.append(128, &[1; 4096]);
    assert!(matches!(result, Err(Error::Wrong(_))), "{result:?}");
    device.be_honest();
    assert_eq!(disk.append(128, &[1; 4096]), Ok(136));
    assert_usable(&device, &mut disk);
}

fn append_at<H: Hal>(device: &FakeDevice, disk: &mut Blk<H>, sector: u64) -> Result<u64, Error> {
    device.lie_to(RequestType::ZoneAppend, move |_, reply| {
        reply.in_header[..8].copy_from_slice(&sector.to_le_bytes());
    });
    let result = disk.append(128, &[1; 8192]);
    device.be_honest();
    disk.reset_zone(128).unwrap();
    result
}

fn r11_appends_that_landed_where_they_can_not<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    let wrong =
        |found_sector| Err(Error::Wrong(Wrong::AppendSector { zone_start_sector: 128, found_sector }));
    // Before the zone, behind it, so close to its end that it would not fit, beyond the disk, not aligned.
    let sectors = [0, 184, u64::MAX, 64, 120, 127, 192, 180, 552, 1 << 40, u64::MAX - 15, 129, 132, 143];
    for sector in cases(sectors) {
        assert_eq!(append_at(&device, &mut disk, sector), wrong(sector));
    }
    // Asynchronously it is the same.
    device.lie_to(RequestType::ZoneAppend, |_, reply| reply.in_header[..8].fill(0));
    let buffer = vec![1; 8192];
    let _ = disk.submit(0, Command::Append { zone_start_sector: 128, buffer }).unwrap();
    disk.notify(0).unwrap();
    let done = disk.complete(0).unwrap().unwrap();
    assert_eq!(done.result.map(|_| 0), wrong(0));
    assert_eq!(done.buffer.unwrap().len(), 8192);
    device.be_honest();
    assert_usable(&device, &mut disk);
    drop(disk);
    // In the runt at the end of the disk, 40 sectors long.
    let (device, mut disk) = rig::<H>(Shape::default());
    device.lie_to(RequestType::ZoneAppend, |_, reply| {
        reply.in_header[..8].copy_from_slice(&(512_u64 + 32).to_le_bytes());
    });
    let expected = Wrong::AppendSector { zone_start_sector: 512, found_sector: 544 };
    assert_eq!(disk.append(512, &[1; 8192]), Err(Error::Wrong(expected)));
    assert_usable(&device, &mut disk);
}

fn r11_appends_that_landed_where_they_can<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    for sector in [128, 136, 144, 176] {
        assert_eq!(append_at(&device, &mut disk, sector), Ok(sector));
    }
    assert_usable(&device, &mut disk);
}

fn r11_the_sector_of_a_failed_append<H: Hal>() {
    let _watch = Watch::begin();
    // It does not count, whatever it is.
    let (device, mut disk) = rig::<H>(Shape::default());
    device.lie_to(RequestType::ZoneAppend, |_, reply| {
        reply.in_header[..8].fill(0xff);
        reply.set_status(Status::ZoneActiveResource.into());
    });
    let (request, status) = (RequestType::ZoneAppend, DeviceError::ActiveResource);
    assert_eq!(disk.append(128, &[1; 8192]), Err(Error::Device { request, sector: 128, status }));
    device.be_honest();
    assert_usable(&device, &mut disk);
}

fn data_that_is_never_written<H: Hal>() {
    let _watch = Watch::begin();
    let (device, mut disk) = rig::<H>(Shape::default());
    disk.write(8, &[0x77; 1024]).unwrap();
    // Half of it, and the used length says so.
    device.lie_to(RequestType::In, |_, reply| {
        reply.data.truncate(512);
        reply.set_used_len(512);
    });
    let mut back = [0; 1024];
    let result = disk.read(8, &mut back);
    assert!(matches!(result, Err(Error::Wrong(_))), "{result:?}");
    // Half of it, and the used length says otherwise: that can't be seen. What is in the gap is not another's data.
    device.be_honest();
    device.lie_to(RequestType::In, |_, reply| reply.data.truncate(512));
    disk.read(8, &mut back).unwrap();
    assert_eq!(back[..512], [0x77; 512]);
    assert_eq!(back[512..], [0; 512]);
    device.be_honest();
    assert_usable(&device, &mut disk);
}

fn serials<H: Hal>() {
    let _watch = Watch::begin();
    for (serial, shown) in [
        (*b"0123456789abcdefghij", "0123456789abcdefghij"),
        ([0; 20], ""),
        (*b"a\0garbage behind NUL", "a"),
        ([0xff; 20], &"\u{fffd}".repeat(20)),
    ] {
        let (_, mut disk) = rig::<H>(Shape { serial, ..Shape::default() });
        assert_eq!(disk.id().unwrap().to_string(), shown);
    }
}
