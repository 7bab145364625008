//! Recordings that are torn, damaged, or made up.

use std::fs;

use virtio_zbd_store::record::{Keep, RecordError, Recording};

use crate::device::Device;
use crate::place;

fn small_recording(dir: &std::path::Path) -> Vec<u8> {
    let mut device = Device::new(dir, 2, 2, true);
    assert!(device.begin(0, 0, 0, 2) && device.begin(1, 1, 0, 2));
    device.end_all(1);
    device.commit(true, &[], &[]);
    device.end_all(0);
    assert!(device.begin(0, 1, 0, 1));
    drop(device);
    fs::read(dir.join("log")).unwrap()
}

/// Wherever it ends, what is whole is read: a recording that loses its end says no more than it did up to there.
#[test]
fn a_torn_end_is_left_out() {
    let dir = place();
    let whole = small_recording(dir.path());
    let path = dir.path().join("torn");
    let all = Recording::open(&dir.path().join("log")).unwrap().end();
    let (mut last, mut refused) = (0, 0);
    for len in 0..=whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        match Recording::open(&path) {
            Ok(found) => {
                assert!((last..=last + 1).contains(&found.end()), "cut at {len}");
                last = found.end();
                assert!(found.torn_bytes() < 4096, "cut at {len}: {} bytes", found.torn_bytes());
                // A machine that stops may leave zeros behind the end.
                fs::write(&path, [&whole[..len], &[0; 100]].concat()).unwrap();
                if let Ok(zeros) = Recording::open(&path) {
                    assert!(zeros.end() >= last && zeros.end() <= last + 1, "cut at {len}, then zeros");
                }
            }
            Err(
                RecordError::NotARecording { .. } | RecordError::Header { .. } | RecordError::NoStart { .. },
            ) => {
                assert_eq!(last, 0, "cut at {len}");
                refused += 1;
            }
            Err(error) => panic!("cut at {len}: {error}"),
        }
    }
    assert_eq!(last, all);
    assert!(refused > 128 && all >= 8, "{refused} {all}");
}

/// Any byte that is another one is an error, or, in the last record, a torn end.
#[test]
fn a_damaged_byte_is_found() {
    let dir = place();
    let whole = small_recording(dir.path());
    let path = dir.path().join("damaged");
    let all = Recording::open(&dir.path().join("log")).unwrap().end();
    let mut bytes = whole.clone();
    // Data is the greater part of it, and alike: every seventh byte is enough.
    for at in (0..whole.len()).step_by(7).chain(0..600) {
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        match Recording::open(&path) {
            Err(error) => assert!(error.to_string().contains("damaged"), "byte {at}: {error}"),
            Ok(found) => assert_eq!(found.end(), all - 1, "byte {at} is another one and nobody says so"),
        }
        bytes[at] = whole[at];
    }
}

/// Records with right check sums that say anything: an error or a recording, never a panic; and its images are made.
#[test]
fn nonsense_is_refused_or_harmless() {
    let dir = place();
    let whole = small_recording(dir.path());
    let path = dir.path().join("nonsense");
    let mut rng = crate::common::seeded("nonsense_is_refused_or_harmless");
    let (mut read, mut images) = (0, 0);
    for _ in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..rng.usize(1..4) {
            change_a_record(&mut bytes, &mut rng);
        }
        fs::write(&path, &bytes).unwrap();
        let Ok(found) = Recording::open(&path) else { continue };
        read += 1;
        let mut replay = found.replay();
        for moment in 0..=found.end() {
            replay.advance_to(moment);
        }
        let medium = crate::common::sim::SimMedium::new(1);
        images += u32::from(replay.write_image_on(Keep::Random(rng.u64(..)), None, medium).is_ok());
    }
    assert!(read > 20 && images > 20, "{read} of 400 could be read, {images} images were made");
}

/// Changes a number in one record's payload, or its kind, and makes the sums right.
fn change_a_record(bytes: &mut [u8], rng: &mut fastrand::Rng) {
    let mut starts = Vec::new();
    let mut at = 128;
    let length =
        |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
    while at < bytes.len() {
        starts.push(at);
        at += 32 + length(bytes, at);
    }
    let at = starts[rng.usize(..starts.len())];
    let payload = at + 32..at + 32 + length(bytes, at);
    match payload.len() / 8 {
        _ if rng.u32(..6) == 0 => bytes[at] = [1, 2, 3, 16, 17, 18, 19, 20, 21, 99][rng.usize(..10)],
        0 => {}
        words => {
            let word = payload.start + rng.usize(..words.min(3)) * 8;
            let value = match rng.u32(..4) {
                0 => rng.u64(..),
                1 => rng.u64(..8),
                2 => rng.u64(..40) * 512,
                _ => rng.u64(..16) << 56 | rng.u64(..13),
            };
            bytes[word..word + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    let payload_sum = crc32c::crc32c(&bytes[payload]);
    bytes[at + 16..at + 20].copy_from_slice(&payload_sum.to_le_bytes());
    bytes[at + 20..at + 24].fill(0);
    let head_sum = crc32c::crc32c(&bytes[at..at + 32]);
    bytes[at + 20..at + 24].copy_from_slice(&head_sum.to_le_bytes());
}
