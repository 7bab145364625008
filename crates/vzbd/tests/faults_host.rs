//! Faults that the host has for real: a limit on files (EFBIG), a full file system (ENOSPC), a file that somebody cuts off.
//!
//! The full file system is a small tmpfs in a mount namespace of its own; where no such namespace may be made (no root, and no user
//! namespaces) that test says so and shows nothing.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test fails this way"
)]

mod common;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use common::{Daemon, Place, SMALL, pattern};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use virtio_zbd_spec::{Status, ZoneState};
use virtio_zbd_store::ImageStore;
use virtio_zbd_testkit::{Client, Request};

const ZONE_SECTORS: u64 = 2048;
const ENGINES: [&str; 2] = ["io_uring", "sync"];

fn start_of(zone: u64) -> u64 {
    zone * ZONE_SECTORS
}

#[track_caller]
fn call(client: &mut Client, request: Request, status: Status) -> Vec<u8> {
    client.call(0, request).unwrap().expect(status).data
}

#[track_caller]
fn check(client: &mut Client, number: u64, condition: ZoneState, wp: u64) {
    let found = client.zone_report_all().unwrap()[number as usize];
    assert_eq!(
        (found.z_state, found.z_wp.get() - found.z_start.get()),
        (condition as u8, wp),
        "zone {number}"
    );
}

fn data_offset(image: &Path) -> u64 {
    ImageStore::inspect(image).unwrap().data_offset_bytes
}

/// EFBIG, and the signal that comes with it.
#[test]
fn a_limit_on_files_is_an_error_that_passes() {
    for io in ENGINES {
        let place = Place::new();
        let image = place.small_image();
        let limit = data_offset(&image) + start_of(9) * 512;
        let daemon = Daemon::start(&image, &place.path("sock"), &["--io", io]);
        let mut client = daemon.client(1);
        call(&mut client, Request::write(start_of(10), &pattern(10, 4096)), Status::Ok);
        let pid = Pid::from_raw(daemon.pid().cast_signed()).unwrap();
        let set = |current| prlimit(Some(pid), Resource::Fsize, Rlimit { current, maximum: None }).unwrap();
        set(Some(limit));
        call(&mut client, Request::write(start_of(8), &pattern(8, 4096)), Status::Ok);
        for _ in 0..2 {
            call(&mut client, Request::write(start_of(9), &pattern(9, 4096)), Status::IoErr);
            call(&mut client, Request::zone_append(start_of(10), &pattern(9, 4096)), Status::IoErr);
        }
        check(&mut client, 9, ZoneState::Empty, 0);
        check(&mut client, 10, ZoneState::ImplicitOpen, 8);
        call(&mut client, Request::flush(), Status::Ok);
        set(None);
        call(&mut client, Request::write(start_of(9), &pattern(9, 4096)), Status::Ok);
        call(&mut client, Request::zone_append(start_of(10), &pattern(11, 4096)), Status::Ok);
        let read = call(&mut client, Request::read(start_of(10), 8192), Status::Ok);
        assert_eq!(read, [pattern(10, 4096), pattern(11, 4096)].concat());
        drop(client);
        let (status, log) = daemon.stop();
        assert!(status.success(), "{log}");
    }
}

/// ENOSPC.
#[test]
fn a_full_file_system_is_an_error_that_passes() {
    for io in ENGINES {
        let place = Place::new();
        let small = place.path("small");
        std::fs::create_dir(&small).unwrap();
        // The namespace ends with the daemon, and the file system with it.
        let root = rustix::process::geteuid().is_root();
        let unshare = if root { "-m" } else { "-rm" };
        if !Command::new("unshare").args([unshare, "true"]).status().is_ok_and(|status| status.success()) {
            eprintln!("no mount namespace can be made here: a full file system is not tried");
            return;
        }
        let vzbd = env!("CARGO_BIN_EXE_vzbd");
        let script = format!(
            "mount -t tmpfs -o size=3M none {small} && {vzbd} create {small}/disk.zbd {SMALL} >/dev/null && \
             exec {vzbd} serve {small}/disk.zbd --socket {socket} --io {io}",
            small = small.display(),
            socket = place.path("sock").display()
        );
        let mut command = Command::new("unshare");
        command.args([unshare, "sh", "-c", &script]);
        let daemon = Daemon::start_command(command, &place.path("sock"), "info");
        let mut client = daemon.client(1);
        let block = 65536;
        let mut written = Vec::new();
        // Some of the requests are whole, one is cut off in the middle, the others find no room at all.
        for zone in 2..10 {
            for part in 0..8 {
                let request = Request::zone_append(start_of(zone), &pattern(zone << 8 | part, block));
                let done = client.call(0, request).unwrap();
                if done.status == Status::Ok as u8 {
                    written.push((zone << 8 | part, done.append_sector.unwrap()));
                } else {
                    assert_eq!(done.status, Status::IoErr as u8);
                }
            }
        }
        assert!((8..64).contains(&written.len()), "{} of 64 have found room", written.len());
        let verify = |client: &mut Client, written: &[(u64, u64)]| {
            for &(tag, sector) in written {
                assert!(
                    call(client, Request::read(sector, block), Status::Ok) == pattern(tag, block),
                    "{tag:x}"
                );
            }
        };
        verify(&mut client, &written);
        // No zone is lost for it: each ends where its data ends.
        for zone in 2..10 {
            let count = written.iter().filter(|(tag, _)| tag >> 8 == zone).count() as u64;
            let (found, wp) = {
                let zone = client.zone_report_all().unwrap()[zone as usize];
                (zone.z_state, zone.z_wp.get() - zone.z_start.get())
            };
            let expected = if count == 0 { ZoneState::Empty } else { ZoneState::ImplicitOpen };
            // Opened for others, six are open at most.
            let closed = count > 0 && found == ZoneState::Closed as u8;
            assert!(found == expected as u8 || closed, "zone {zone}: {found}");
            assert_eq!(wp, count * block as u64 / 512);
        }
        call(&mut client, Request::flush(), Status::Ok);
        // A reset makes room, and it goes on.
        call(&mut client, Request::zone_reset(start_of(2)), Status::Ok);
        written.retain(|(tag, _)| tag >> 8 != 2);
        let last = start_of(9);
        let at = client.call(0, Request::zone_append(last, &pattern(77, block))).unwrap().expect(Status::Ok);
        written.push((77, at.append_sector.unwrap()));
        verify(&mut client, &written);
        drop(client);
        let (status, log) = daemon.stop();
        assert!(status.success(), "{log}");
    }
}

#[test]
fn a_file_that_is_cut_off_costs_what_was_behind_its_end() {
    for io in ENGINES {
        let place = Place::new();
        let image = place.small_image();
        let data = data_offset(&image);
        let daemon = Daemon::start(&image, &place.path("sock"), &["--io", io]);
        let mut client = daemon.client(1);
        for zone in [5, 8, 9] {
            call(&mut client, Request::write(start_of(zone), &pattern(zone, 65536)), Status::Ok);
        }
        call(&mut client, Request::flush(), Status::Ok);
        let end = data + (start_of(8) + 64) * 512;
        File::options().write(true).open(&image).unwrap().set_len(end).unwrap();
        // Zone 8 is there in part, zone 9 and the empty zone 10 not at all.
        assert_eq!(
            call(&mut client, Request::read(start_of(8), 32768), Status::Ok),
            pattern(8, 65536)[..32768]
        );
        call(&mut client, Request::read(start_of(8) + 64, 4096), Status::IoErr);
        check(&mut client, 8, ZoneState::ImplicitOpen, 128);
        // What was answered is gone: nobody may be told that it is safe.
        call(&mut client, Request::flush(), Status::IoErr);
        call(&mut client, Request::read(start_of(9), 4096), Status::IoErr);
        check(&mut client, 9, ZoneState::Offline, ZONE_SECTORS);
        call(&mut client, Request::write(start_of(10), &pattern(10, 4096)), Status::IoErr);
        check(&mut client, 10, ZoneState::ReadOnly, ZONE_SECTORS);
        call(&mut client, Request::write(start_of(8) + 128, &pattern(10, 4096)), Status::IoErr);
        check(&mut client, 8, ZoneState::ReadOnly, ZONE_SECTORS);
        assert_eq!(image.metadata().unwrap().len(), end, "it was made longer");
        // The rest goes on.
        assert_eq!(call(&mut client, Request::read(start_of(5), 65536), Status::Ok), pattern(5, 65536));
        call(&mut client, Request::write(start_of(5) + 128, &pattern(6, 4096)), Status::Ok);
        call(&mut client, Request::zone_finish(start_of(5)), Status::Ok);
        // With nothing left of it the daemon is still there.
        File::options().write(true).open(&image).unwrap().set_len(0).unwrap();
        call(&mut client, Request::write(start_of(6), &pattern(6, 4096)), Status::IoErr);
        call(&mut client, Request::read(start_of(5), 4096), Status::IoErr);
        for request in [Request::flush(), Request::zone_finish(start_of(7)), Request::zone_reset(start_of(5))]
        {
            let done = client.call(0, request).unwrap();
            assert_ne!(done.status, Status::Ok as u8);
        }
        client.zone_report_all().unwrap();
        drop(client);
        let (status, log) = daemon.stop();
        assert_eq!(status.code(), Some(1), "{log}");
        assert_eq!(image.metadata().unwrap().len(), 0, "it was made longer");
    }
}
