//! A file that somebody cuts off while it is in use: what is gone is an error, what is there goes on, and the program lives.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says loudly what is wrong"
)]

mod common;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use common::{LaneExt, closed, geometry};
use virtio_zbd_store::{
    Commit, CreateOptions, EngineChoice, ImageFault, ImageStore, OpenOptions, RawStore, Store, StoreError,
    Zeroing,
};
use virtio_zbd_zones::{Condition, ZoneState};

const ENGINES: [EngineChoice; 2] = [EngineChoice::IoUring, EngineChoice::Sync];
/// Length of a zone of [`geometry`], in bytes.
const ZONE: u64 = 512 * 512;
const FLUSH: Commit<'_> =
    Commit { flush: true, finished: &[], reset: &[], closed: &[], opened: &[], reread: &[] };

fn cut(path: &Path, len_bytes: u64) {
    File::options().write(true).open(path).unwrap().set_len(len_bytes).unwrap();
}

fn len_bytes(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

/// An image with a block in zones 3 and 7, and where its data begins in the file.
fn image(path: &Path) -> (ImageStore, u64) {
    ImageStore::create(path, geometry(), CreateOptions { overwrite: true, ..CreateOptions::default() })
        .unwrap();
    let store = ImageStore::open(path, OpenOptions::default()).unwrap();
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    for zone in [3, 7] {
        lane.write_now(u64::from(zone) * ZONE, &[5; 4096]).unwrap();
        store.publish(zone, closed(8));
    }
    store.commit(&FLUSH).durable.unwrap();
    let data = store.info().unwrap().data_offset_bytes;
    (store, data)
}

#[test]
fn what_is_behind_the_end_is_an_error_and_the_file_grows_no_more() {
    let directory = tempfile::tempdir().unwrap();
    for engine in ENGINES {
        let path = directory.path().join("image");
        let (store, data) = image(&path);
        let mut lane = store.open_lane(engine).unwrap();
        // In the second block of zone 5.
        let end = data + 5 * ZONE + 6000;
        cut(&path, end);
        for (offset, len) in
            [(5 * ZONE + 4096, 4096), (6 * ZONE, 4096), (7 * ZONE + 4096, 512), (5 * ZONE, 8192)]
        {
            let error = lane.write_now(offset, &vec![1; len]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
            let error = lane.zero_now(offset, len as u64, Zeroing::KeepAllocated).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
        }
        assert_eq!(lane.read_now(7 * ZONE, 4096).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(len_bytes(&path), end);
        // What is there is there.
        lane.write_now(5 * ZONE, &[6; 4096]).unwrap();
        assert_eq!(lane.read_now(5 * ZONE, 4096).unwrap(), [6; 4096]);
        assert_eq!(lane.read_now(3 * ZONE, 4096).unwrap(), [5; 4096]);
    }
}

#[test]
fn a_flush_fails_for_as_long_as_it_would_speak_of_data_that_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let (store, data) = image(&path);
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    cut(&path, data + 7 * ZONE + 512);
    lane.write_now(4 * ZONE, &[6; 4096]).unwrap();
    store.publish(4, closed(8));
    for _ in 0..2 {
        let error = store.commit(&FLUSH).durable.unwrap_err();
        assert!(matches!(error, StoreError::CutOff { .. }), "{error}");
        assert!(error.to_string().contains("data of zones 7–7 is gone"), "{error}");
    }
    // A finish speaks of one zone only, a reset of no data.
    store.publish(3, ZoneState { condition: Condition::Full, wp_sectors: 8 });
    store.commit(&Commit { finished: &[3], ..Commit::default() }).durable.unwrap();
    store.publish(4, ZoneState::EMPTY);
    store.commit(&Commit { reset: &[4], ..Commit::default() }).durable.unwrap();
    // Nobody hopes to read a zone that is offline.
    store.publish(7, ZoneState { condition: Condition::Offline, wp_sectors: 8 });
    store.commit(&Commit { finished: &[7], ..Commit::default() }).durable.unwrap();
    store.commit(&FLUSH).durable.unwrap();
    store.close().unwrap();
    assert_eq!(len_bytes(&path), data + 7 * ZONE + 512, "it was not made longer");
    drop((store, lane));
    // Nor is such a file taken for a whole one later.
    let Err(StoreError::Image { fault: ImageFault::TooShort { .. }, .. }) =
        ImageStore::open(&path, OpenOptions::default())
    else {
        panic!("it was opened")
    };
}

#[test]
fn without_its_pages_and_live_area_an_image_promises_nothing_and_the_program_lives() {
    let directory = tempfile::tempdir().unwrap();
    for to in [0, 4096, 12288, 70_000] {
        let path = directory.path().join("image");
        let (store, data) = image(&path);
        assert!(to < data);
        let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
        cut(&path, to);
        // A store to a shared mapping that has no file behind it.
        store.publish(3, closed(16));
        store.publish(4, closed(8));
        for _ in 0..2 {
            let error = store.commit(&FLUSH).durable.unwrap_err();
            assert!(matches!(error, StoreError::LiveLost { .. }), "{error}");
        }
        store.publish(3, ZoneState::EMPTY);
        assert!(store.commit(&Commit { reset: &[3], ..Commit::default() }).durable.is_err());
        assert_eq!(lane.read_now(3 * ZONE, 4096).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(lane.write_now(4 * ZONE, &[1; 512]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert!(store.close().is_err());
        assert_eq!(len_bytes(&path), to, "it was not made longer");
    }
}

#[test]
fn a_plain_disk_that_was_cut_off_fails_behind_its_end_and_can_not_be_flushed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("raw");
    for engine in ENGINES {
        fs::write(&path, vec![5; 65536]).unwrap();
        let store = RawStore::open(&path, false).unwrap();
        let mut lane = store.open_lane(engine).unwrap();
        store.commit(&FLUSH).durable.unwrap();
        cut(&path, 32768);
        assert_eq!(lane.write_now(32768 - 512, &[1; 1024]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        lane.write_now(32768 - 512, &[1; 512]).unwrap();
        assert_eq!(lane.read_now(32768, 512).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let error = store.commit(&FLUSH).durable.unwrap_err();
        assert!(
            matches!(error, StoreError::CutOff { found_bytes: 32768, expected_bytes: 65536, .. }),
            "{error}"
        );
        assert_eq!(len_bytes(&path), 32768);
    }
}
