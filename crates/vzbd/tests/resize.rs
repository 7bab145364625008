//! Disks that grow while they are used: under our driver's appends on two queues, by the program's control socket, over kills; and who speaks
//! nonsense to that socket. `SEED` repeats a random test.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails this way")]

mod common;
mod driver;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Daemon, Place, vzbd_fails, vzbd_json, vzbd_ok};
use driver::{Driver, PATIENCE, attach, wait};
use virtio_zbd_driver::{Command, Done, Error, Options, VirtioBlk, ZoneState};
use virtio_zbd_store::{CreateOptions, ImageStore, OpenOptions, RamStore, Store};
use virtio_zbd_vhost_user::client::{ArenaBuffer, ConnectOptions, VhostUserTransport};
use virtio_zbd_zones::{Geometry, GeometryConfig};
use vzbd::{ServeOptions, ServedDisk, control};

const ZONE_SECTORS: u64 = 256;
const BLOCK: usize = 4096;

/// 12 zones of 128 KiB, 96 KiB of each usable, and a shorter one; no limits.
fn shape() -> Geometry {
    Geometry::new(GeometryConfig {
        capacity_sectors: 12 * ZONE_SECTORS + 64,
        zone_sectors: 256,
        zone_capacity_sectors: 192,
        conventional_zones: 1,
        max_open_zones: 0,
        max_active_zones: 0,
        max_append_sectors: 64,
        write_granularity_bytes: 4096,
    })
    .unwrap()
}

/// Waits until the device has said that its configuration changed, and takes that in.
fn take_up(disk: &mut Driver) -> virtio_zbd_driver::Change {
    let start = Instant::now();
    while !disk.ack_interrupt().config {
        assert!(start.elapsed() < PATIENCE, "nobody says that the disk has grown");
        std::thread::sleep(Duration::from_millis(1));
    }
    disk.config_changed().unwrap()
}

/// A block that says where it belongs: who appended it, and when.
fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 8)
}

/// What was appended: by the sector where it landed.
#[derive(Default)]
struct Appended(BTreeMap<u64, u64>);

impl Appended {
    /// Each zone holds this and nothing else, without a gap.
    fn check(&self, disk: &mut Driver) {
        let zones: Vec<_> = disk.zones(0).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(zones.last().unwrap().end_sector(), disk.capacity_sectors());
        for zone in zones.iter().skip(1) {
            let mut at = zone.start_sector;
            let found: Vec<_> = self.0.range(at..zone.end_sector()).collect();
            let mut data = vec![0; usize::try_from(zone.len_sectors * 512).unwrap()];
            disk.read(zone.start_sector, &mut data).unwrap();
            for (&sector, &number) in found {
                assert_eq!(sector, at, "a gap in zone {zone:?}");
                let offset = usize::try_from(sector - zone.start_sector).unwrap() * 512;
                assert!(data[offset..offset + BLOCK] == block(number), "sector {sector}");
                data[offset..offset + BLOCK].fill(0);
                at += 8;
            }
            assert!(data.iter().all(|&byte| byte == 0), "something is in {zone:?} that nobody wrote");
            match zone.state {
                ZoneState::Full => assert!(at > zone.start_sector),
                _ => assert_eq!(zone.write_pointer_sector, Some(at), "{zone:?}"),
            }
        }
    }
}

fn grows_under_appends(store: Arc<dyn Store>, seed: u64) -> u64 {
    println!("SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let options = ServeOptions { queues: 2, ..ServeOptions::default() };
    let served = ServedDisk::start(store, options, &dir.path().join("disk.sock")).unwrap();
    let mut disk = attach(served.socket(), Options { queues: 2, ..Options::default() }).unwrap();
    let (mut appended, mut next) = (Appended::default(), 0u64);
    let mut in_flight: BTreeMap<_, u64> = BTreeMap::new();
    let mut zones = 12u64;
    let mut room: BTreeMap<u64, u64> = (1..12).map(|zone| (zone, 192 / 8)).collect();
    for growth in 0..6u64 {
        // Now and then there is a shorter last zone again.
        zones += rng.u64(1..40);
        let wanted = zones * ZONE_SECTORS + rng.u64(0..2) * 64;
        let backend = served.backend().clone();
        let before = disk.capacity_sectors();
        let delay = Duration::from_micros(rng.u64(0..3_000));
        let grower = std::thread::spawn(move || {
            std::thread::sleep(delay);
            backend.grow(wanted).unwrap()
        });
        // Appends on both queues to the same zones, until the disk says that it has grown, and a little longer.
        let mut grown = None;
        let mut rounds = 0;
        while grown.is_none() || rounds < 40 {
            rounds += u32::from(grown.is_some());
            for queue in 0..2 {
                let Some((&zone, left)) = room.iter_mut().nth(rng.usize(..3)) else { continue };
                let zone_start_sector = zone * ZONE_SECTORS;
                let mut buffer = disk.buffer(BLOCK).unwrap();
                buffer.copy_from_slice(&block(next));
                match disk.submit(queue, Command::Append { zone_start_sector, buffer }) {
                    Ok(token) => {
                        in_flight.insert(token, next);
                        next += 1;
                        *left -= 1;
                        if *left == 0 {
                            room.remove(&zone);
                        }
                    }
                    Err(rejected) => assert_eq!(rejected.error, Error::QueueFull),
                }
                disk.notify(queue).unwrap();
                while let Some(done) = disk.complete(queue).unwrap() {
                    let number = in_flight.remove(&done.token).unwrap();
                    let Done::Appended { sector } = done.result.unwrap() else { panic!("no sector") };
                    assert_eq!(appended.0.insert(sector, number), None, "two appends at sector {sector}");
                }
            }
            if grown.is_none() && disk.ack_interrupt().config {
                let change = disk.config_changed().unwrap();
                assert_eq!((change.capacity_sectors_before, change.capacity_sectors), (before, wanted));
                assert_eq!(disk.zoned().unwrap().zones, wanted.div_ceil(ZONE_SECTORS));
                // What is new can be used at once, on either queue, also what was a shorter zone.
                room.extend((before / ZONE_SECTORS..zones).map(|zone| (zone, 192 / 8)));
                grown = Some(change);
            }
            if room.len() < 3 {
                // All is written: wait for the disk to grow.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let (change, told) = grower.join().unwrap();
        assert_eq!((change.capacity_sectors, told), (wanted, 1), "growth {growth}");
    }
    for queue in 0..2 {
        while disk.in_flight(queue) > 0 {
            disk.wait(queue).unwrap();
            while let Some(done) = disk.complete(queue).unwrap() {
                let number = in_flight.remove(&done.token).unwrap();
                let Done::Appended { sector } = done.result.unwrap() else { panic!("no sector") };
                assert_eq!(appended.0.insert(sector, number), None, "two appends at sector {sector}");
            }
        }
    }
    assert!(in_flight.is_empty() && appended.0.len() == usize::try_from(next).unwrap());
    appended.check(&mut disk);
    disk.flush().unwrap();
    drop(disk);
    served.stop().unwrap();
    next
}

fn seed() -> u64 {
    std::env::var("SEED").ok().map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap())
}

#[test]
fn a_disk_in_memory_grows_under_appends_on_two_queues() {
    assert!(grows_under_appends(Arc::new(RamStore::new(shape()).unwrap()), seed()) > 300);
}

#[test]
fn an_image_grows_under_appends_on_two_queues_and_keeps_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.zbd");
    ImageStore::create(&path, shape(), CreateOptions::default()).unwrap();
    let store = ImageStore::open(&path, OpenOptions::default()).unwrap();
    grows_under_appends(Arc::new(store), seed());
    assert!(ImageStore::inspect(&path).unwrap().states.len() > 12);
}

/// The new size is there for who connects later, and for who waits for nothing.
#[test]
fn a_disk_that_nobody_uses_grows() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(RamStore::plain(1 << 20).unwrap());
    let served = ServedDisk::start(store, ServeOptions::default(), &dir.path().join("disk.sock")).unwrap();
    let (growth, told) = served.backend().grow(4096).unwrap();
    assert_eq!((growth.capacity_sectors, growth.zones, told), (4096, 0, 0));
    let mut disk = attach(served.socket(), Options::default()).unwrap();
    assert_eq!(disk.capacity_sectors(), 4096);
    disk.write(4088, &[7; 4096]).unwrap();
    let (_, told) = served.backend().grow(8192).unwrap();
    assert_eq!(told, 1);
    assert_eq!(take_up(&mut disk).capacity_sectors, 8192);
    disk.write(8184, &[8; 4096]).unwrap();
    // The same size again is no change, and nobody is told.
    assert_eq!(served.backend().grow(8192).unwrap().1, 0);
    assert!(served.backend().grow(4096).is_err());
    assert!(!disk.ack_interrupt().config);
}

#[test]
fn a_served_image_grows_by_its_control_socket_and_comes_back_grown_after_a_kill() {
    let place = Place::new();
    let (image, socket, sock) = (place.small_image(), place.path("sock"), place.path("control"));
    let (path, control) = (image.to_str().unwrap(), sock.to_str().unwrap());
    let options = ["--control", control, "--queues", "2"];
    let daemon = Daemon::start(&image, &socket, &options);
    assert_eq!(std::fs::metadata(&sock).unwrap().permissions().mode() & 0o777, 0o600);
    let connect =
        ConnectOptions { timeout: PATIENCE, reconnect: Some(PATIENCE), ..ConnectOptions::default() };
    let transport = VhostUserTransport::connect(&socket, &connect).unwrap();
    let mut disk: Driver =
        VirtioBlk::with(transport, Options::default(), wait(PATIENCE), ArenaBuffer::zeroed).unwrap();
    disk.append(2 * 2048, &[2; 8192]).unwrap();

    let resized = vzbd_json(&["resize", control, "--size", "32M"]);
    let expected = serde_json::json!({
        "size_bytes": 32 << 20, "size_bytes_before": 16 << 20, "zones": 32, "zones_before": 16, "frontends_told": 1,
    });
    assert_eq!(resized, expected);
    assert_eq!(take_up(&mut disk).capacity_sectors, 32 * 2048);
    assert_eq!(disk.append(31 * 2048, &[3; 4096]).unwrap(), 31 * 2048);
    let info = control::info(&sock, PATIENCE).unwrap();
    assert_eq!((info.size_bytes, info.zones), (32 << 20, 32));

    // Killed right after the next growth: its guest has not looked yet.
    vzbd_ok(&["resize", control, "--size", "40M"]);
    daemon.kill();
    let daemon = Daemon::start(&image, &socket, &options);
    let mut data = [0; 4096];
    disk.read(31 * 2048, &mut data).unwrap();
    assert_eq!(data, [3; 4096]);
    assert_eq!(take_up(&mut disk).capacity_sectors, 40 * 2048);
    disk.append(39 * 2048, &[4; 4096]).unwrap();

    // What is refused.
    let said = vzbd_fails(1, &["resize", path, "--size", "64M"]);
    assert!(said.contains("in use") && said.contains("--control"), "{said}");
    let said = vzbd_fails(1, &["resize", control, "--size", "8M"]);
    assert!(said.contains("can't be made shorter"), "{said}");
    vzbd_fails(2, &["resize", control, "--size", "41M1"]);
    assert_eq!(control::info(&sock, PATIENCE).unwrap().zones, 40);
    drop(disk);
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    assert!(!sock.exists() && !socket.exists(), "its sockets' files stay: {log}");

    // Nobody serves it any more.
    let said = vzbd_ok(&["resize", path, "--size", "48M"]);
    assert!(said.contains("48 zones (40)"), "{said}");
    assert_eq!(ImageStore::inspect(&image).unwrap().states.len(), 48);
    vzbd_ok(&["check", path]);
    let said = vzbd_fails(1, &["resize", path, "--size", "16M"]);
    assert!(said.contains("can't be made shorter"), "{said}");
    vzbd_ok(&["check", path]);
}

#[test]
fn an_image_grows_as_far_as_it_says() {
    let place = Place::new();
    let image = place.path("a.zbd");
    let path = image.to_str().unwrap();
    vzbd_ok(&["create", path, "--size", "16M", "--zone-size", "1M", "--grow-to", "600M"]);
    let most_zones = vzbd_json(&["info", path])["grows_to_bytes"].as_u64().unwrap() >> 20;
    assert!(most_zones >= 600, "{most_zones}");
    let said = vzbd_fails(1, &["resize", path, "--size", &format!("{}M", most_zones + 1)]);
    assert!(said.contains(&most_zones.to_string()), "{said}");
    vzbd_ok(&["resize", path, "--size", &format!("{most_zones}M")]);
    assert_eq!(vzbd_json(&["info", path])["zones"]["count"], most_zones);
    vzbd_ok(&["check", path]);
}

#[test]
fn a_file_without_zones_grows() {
    let place = Place::new();
    let file = place.path("a.img");
    let path = file.to_str().unwrap();
    vzbd_ok(&["create", path, "--zoned", "none", "--size", "1M"]);
    vzbd_ok(&["resize", path, "--zoned", "none", "--size", "2M"]);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 2 << 20);
    let said = vzbd_fails(1, &["resize", path, "--size", "4M"]);
    assert!(said.contains("--zoned none"), "{said}");
    let said = vzbd_fails(2, &["resize", place.path("none").to_str().unwrap(), "--size", "4M"]);
    assert!(said.contains("no such"), "{said}");
}

/// What comes over the control socket is not believed; after all of it, it works.
#[test]
fn nonsense_on_the_control_socket() {
    let place = Place::new();
    let sock = place.path("control");
    let daemon = place.ram(&format!("--size 16M --zone-size 1M --control {}", sock.display()));
    let said = |bytes: &[u8]| {
        let mut client = UnixStream::connect(&sock).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may hang up before it has read all of it.
        let _ = client.write_all(bytes);
        let _ = client.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    for bytes in [
        &b"\n"[..],
        b"null\n",
        b"[]\n",
        b"{}\n",
        b"\xff\xfe\x00\n",
        b"{\"command\":\"burn\"}\n",
        b"{\"command\":\"resize\"}\n",
        b"{\"command\":\"resize\",\"size_bytes\":-1}\n",
        b"{\"command\":\"resize\",\"size_bytes\":1e30}\n",
        b"{\"command\":\"resize\",\"size_bytes\":\"8G\"}\n",
        b"{\"command\":\"resize\",\"size_bytes\":18446744073709551616}\n",
        b"{\"command\":\"resize\",\"size_bytes\":18446744073709551615}\n",
        b"{\"command\":\"resize\",\"size_bytes\":9223372036854775296}\n",
        b"{\"command\":\"resize\",\"size_bytes\":0}\n",
        b"{\"command\":\"resize\",\"size_bytes\":513}\n",
        b"{\"command\":\"resize\",\"size_bytes\":33554432,\"force\":true}\n",
        b"{\"command\":\"info\",\"more\":1}\n",
    ] {
        let answer = said(bytes);
        let line: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert!(line["error"].is_string() && answer.ends_with('\n'), "{answer}");
    }
    let deep = [vec![b'['; 4000], b"\n".to_vec()].concat();
    assert!(said(&deep).contains("error"));
    let long = said(&vec![b'x'; 100_000]);
    assert!(long.is_empty() || long.contains("4096"), "{long}");
    assert_eq!(said(b""), "");
    assert_eq!(said(b"{\"command\":\"info\"}"), "", "no line's end");
    // A vhost-user message, and a client that is gone at once.
    assert!(said(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).is_empty());
    drop(UnixStream::connect(&sock).unwrap());
    // Several lines at once, in order.
    let answer = said(b"{\"command\":\"info\"}\nx\n{\"command\":\"resize\",\"size_bytes\":33554432}\n{\"command\":\"info\"}\n");
    let lines: Vec<serde_json::Value> =
        answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4, "{answer}");
    assert_eq!((&lines[0]["ok"]["zones"], &lines[3]["ok"]["zones"]), (&16.into(), &32.into()));
    assert!(lines[1]["error"].is_string() && lines[2]["ok"]["frontends_told"] == 0);

    // The socket for virtual machines is none, and none is the other.
    let error = vzbd_fails(1, &["resize", daemon.socket(), "--size", "64M", "--timeout", "2"]);
    assert!(error.contains("--control"), "{error}");
    assert!(!vzbd_fails(1, &["info", sock.to_str().unwrap(), "--timeout", "2"]).is_empty());
    assert_eq!(control::info(Path::new(&sock), PATIENCE).unwrap().zones, 32);
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
}
