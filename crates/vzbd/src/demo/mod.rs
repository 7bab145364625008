//! `vzbd demo`: a zoned disk from the first byte to the last, in one process.
//!
//! Each step checks what it shows, down to the byte; the first thing that is not as it must be ends the demo with an error.

mod show;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use virtio_zbd_driver::{Command, DeviceError, Done, Error, Options, ZoneState};
use virtio_zbd_store::{CreateOptions, ImageStore, OpenOptions};
use virtio_zbd_vhost_user::client::ArenaBuffer;
use virtio_zbd_zones::{Geometry, GeometryConfig};
use vzbd::{ServeOptions, ServedDisk};

use crate::report::Zone;
use crate::size::Size;
use crate::target::{Access, Driver, Target, private_dir};

use show::Show;

const MIB: u64 = 1 << 20;
const SECTOR_LEN_BYTES: u64 = 512;
const DISK_BYTES: u64 = 256 * MIB;
const ZONE_BYTES: u64 = 32 * MIB;
const ZONE_CAPACITY_BYTES: u64 = 24 * MIB;
const CONVENTIONAL_ZONES: u32 = 2;
const MAX_OPEN_ZONES: u32 = 4;
const MAX_ACTIVE_ZONES: u32 = 6;
const BLOCK_LEN_BYTES: u32 = 4096;
const APPEND_BYTES_MAX: u64 = 512 << 10;

/// The disk is in this process: if it does not answer at once it never will.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where each zone's part in the demo is played.
const CONVENTIONAL: u64 = 1;
const WRITTEN: u64 = 2;
const APPENDED: u64 = 3;
const OPENED: u64 = 4;
const FINISHED: u64 = 5;
const RESET: u64 = 6;

const APPENDS: u64 = 64;
const APPEND_LEN_BYTES: u64 = 128 << 10;

pub(crate) fn run() -> anyhow::Result<()> {
    let start = Instant::now();
    let place = private_dir().context("there is no place for the disk")?;
    clean_up_on_signal(place.path())?;
    let image = place.path().join("demo.zbd");
    let mut show = Show::new();

    show.title("A zoned disk, made, served and used in this one process: no root, no kernel, no set-up.");
    make(&image, &mut show)?;
    let mut demo = Demo { target: serve(&image, &mut show)?, show, image, data: Vec::new() };
    demo.zones("before, 1M a column", &[])?;
    demo.conventional()?;
    demo.write()?;
    demo.append()?;
    demo.open()?;
    demo.finish()?;
    demo.reset()?;
    demo.read_back()?;
    let wp = |zone: u64, bytes: u64| Some((zone * ZONE_BYTES + bytes) / SECTOR_LEN_BYTES);
    demo.zones(
        "after, 1M a column",
        &[
            (WRITTEN, ZoneState::ImplicitOpen, wp(WRITTEN, 6 * MIB)),
            (APPENDED, ZoneState::Closed, wp(APPENDED, APPENDS * APPEND_LEN_BYTES)),
            (OPENED, ZoneState::ExplicitOpen, wp(OPENED, MIB)),
            (FINISHED, ZoneState::Full, None),
        ],
    )?;
    let demo = demo.restart()?;
    demo.show.end(&format!(
        "All as it must be, in {:.1} s. The disk and its file are gone again.",
        start.elapsed().as_secs_f64()
    ));
    demo.target.close()
}

/// A disk in use, and what was written to it.
struct Demo {
    target: Target,
    show: Show,
    image: PathBuf,
    /// Where, and what: to be read back.
    data: Vec<(u64, Vec<u8>)>,
}

fn make(image: &Path, show: &mut Show) -> anyhow::Result<()> {
    let sectors = |bytes: u64| bytes / SECTOR_LEN_BYTES;
    let geometry = Geometry::new(GeometryConfig {
        capacity_sectors: sectors(DISK_BYTES),
        zone_sectors: u32::try_from(sectors(ZONE_BYTES))?,
        zone_capacity_sectors: u32::try_from(sectors(ZONE_CAPACITY_BYTES))?,
        conventional_zones: CONVENTIONAL_ZONES,
        max_open_zones: MAX_OPEN_ZONES,
        max_active_zones: MAX_ACTIVE_ZONES,
        max_append_sectors: u32::try_from(sectors(APPEND_BYTES_MAX))?,
        write_granularity_bytes: BLOCK_LEN_BYTES,
    })?;
    let zone_count = geometry.zone_count();
    ImageStore::create(image, geometry, CreateOptions::default())?;
    show.step(
        "make",
        &format!(
            "a disk of {} in one sparse file: {} zones of {}, of which {} can be written",
            Size::from(DISK_BYTES),
            zone_count,
            Size::from(ZONE_BYTES),
            Size::from(ZONE_CAPACITY_BYTES)
        ),
    );
    Ok(())
}

/// Serves the image and attaches to it.
fn serve(image: &Path, show: &mut Show) -> anyhow::Result<Target> {
    let (mut target, socket) = attach(image)?;
    show.step(
        "serve",
        &format!("it on the vhost-user socket {}, as for a virtual machine", socket.display()),
    );
    let id = target.call(Driver::id)?;
    let driver = &target.driver;
    let Some(zoned) = driver.zoned() else { bail!("the driver found no zones") };
    show.step(
        "attach",
        &format!(
            "our driver to it: disk {id} has {} zones, at most {} open and {} active",
            zoned.zones, zoned.open_max, zoned.active_max
        ),
    );
    Ok(target)
}

fn attach(image: &Path) -> anyhow::Result<(Target, PathBuf)> {
    let socket = image.with_extension("sock");
    let store = Arc::new(ImageStore::open(image, OpenOptions::default())?);
    let served = ServedDisk::start(store, ServeOptions::default(), &socket)?;
    let options = Options::default();
    let target = Target::attach(image, &socket, TIMEOUT, Access::Write, options, Some(served))?;
    Ok((target, socket))
}

impl Demo {
    fn conventional(&mut self) -> anyhow::Result<()> {
        let sector = sector_of(CONVENTIONAL) + 12_000;
        self.write_at(sector, 2 * MIB)?;
        self.show.zone_step(
            "write",
            CONVENTIONAL,
            "2M somewhere inside; conventional zones are written anywhere",
        );
        Ok(())
    }

    fn write(&mut self) -> anyhow::Result<()> {
        self.write_at(sector_of(WRITTEN), 6 * MIB)?;
        self.show.zone_step("write", WRITTEN, "6M at the write pointer; the zone opens by itself");
        let elsewhere = sector_of(WRITTEN) + 20 * MIB / SECTOR_LEN_BYTES;
        let refused = self.target.driver.write(elsewhere, &[0; BLOCK_LEN_BYTES as usize]);
        match refused {
            Err(Error::Device { status: DeviceError::UnalignedWritePointer, .. }) => {}
            other => bail!(
                "a write beside the write pointer must be refused with UNALIGNED_WP, and was: {other:?}"
            ),
        }
        self.show.zone_step(
            "write",
            WRITTEN,
            "4K beside the write pointer: refused (UNALIGNED_WP), as it must be",
        );
        Ok(())
    }

    /// Many appends at once: each says where it landed.
    fn append(&mut self) -> anyhow::Result<()> {
        let zone_start_sector = sector_of(APPENDED);
        let mut sent = Vec::new();
        for number in 0..APPENDS {
            let data = pattern(1000 + number, APPEND_LEN_BYTES);
            let mut buffer = ArenaBuffer::zeroed(data.len()).context("no memory for an append")?;
            buffer.copy_from_slice(&data);
            let command = Command::Append { zone_start_sector, buffer };
            match self.target.driver.submit(0, command) {
                Ok(token) => sent.push((token, data)),
                Err(rejected) => return Err(self.target.explain(&rejected.error)),
            }
        }
        let in_flight = self.target.driver.in_flight(0);
        self.target.call(|driver| driver.notify(0))?;
        let mut landed = Vec::new();
        while !sent.is_empty() {
            let completion = self.target.call(|driver| {
                driver.wait(0)?;
                driver.complete(0)
            })?;
            let Some(completion) = completion else { continue };
            let found = sent.iter().position(|(token, _)| *token == completion.token);
            let (_, data) = sent.swap_remove(found.context("an answer to nothing that was asked")?);
            match completion.result {
                Ok(Done::Appended { sector }) => landed.push((sector, data)),
                Ok(Done::Plain) => bail!("an append that does not say where it landed"),
                Err(error) => return Err(self.target.explain(&error)),
            }
        }
        landed.sort_unstable_by_key(|(sector, _)| *sector);
        for ((sector, _), number) in landed.iter().zip(0..) {
            let expected = zone_start_sector + number * APPEND_LEN_BYTES / SECTOR_LEN_BYTES;
            ensure!(
                *sector == expected,
                "append {number} of the zone is at sector {sector}, not at {expected}"
            );
        }
        self.data.append(&mut landed);
        self.show.zone_step(
            "append",
            APPENDED,
            &format!(
                "{in_flight} times {}, all in flight at once; the disk says where each one landed",
                Size::from(APPEND_LEN_BYTES)
            ),
        );
        self.target.call(|driver| driver.close_zone(zone_start_sector))?;
        self.show.zone_step("close", APPENDED, "no longer open, and to be written on when it is wanted");
        Ok(())
    }

    fn open(&mut self) -> anyhow::Result<()> {
        self.target.call(|driver| driver.open_zone(sector_of(OPENED)))?;
        self.write_at(sector_of(OPENED), MIB)?;
        self.show.zone_step("open", OPENED, "explicitly, and write 1M");
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.write_at(sector_of(FINISHED), 2 * MIB)?;
        self.target.call(|driver| driver.finish_zone(sector_of(FINISHED)))?;
        self.show.zone_step("finish", FINISHED, "after 2M: nothing more can be written");
        Ok(())
    }

    fn reset(&mut self) -> anyhow::Result<()> {
        self.write_at(sector_of(RESET), 8 * MIB)?;
        self.data.pop();
        let before_bytes = self.allocated_bytes()?;
        self.target.call(|driver| driver.reset_zone(sector_of(RESET)))?;
        let after_bytes = self.allocated_bytes()?;
        let mut read = vec![1; usize::try_from(MIB)?];
        self.target.call(|driver| driver.read(sector_of(RESET), &mut read))?;
        ensure!(read.iter().all(|byte| *byte == 0), "a zone that was reset must read as zeros");
        let given_back = match before_bytes.saturating_sub(after_bytes) {
            0 => String::new(),
            bytes => format!(", and {} of the host's disk is free again", Size::from(bytes / MIB * MIB)),
        };
        self.show.zone_step("reset", RESET, &format!("after 8M: it reads as zeros{given_back}"));
        Ok(())
    }

    fn read_back(&mut self) -> anyhow::Result<()> {
        self.target.call(Driver::flush)?;
        let len_bytes = self.check_data()?;
        self.show
            .step("read", &format!("back all {}: byte for byte what was written", Size::from(len_bytes)));
        Ok(())
    }

    /// Ends the serving and begins again: a disk must be where it was left.
    fn restart(mut self) -> anyhow::Result<Self> {
        let before = self.report()?;
        let Self { target, show, image, data } = self;
        target.close()?;
        let (target, _) = attach(&image)?;
        let mut demo = Self { target, show, image, data };
        for (before, after) in before.iter().zip(demo.report()?) {
            let open = matches!(before.state, ZoneState::ImplicitOpen | ZoneState::ExplicitOpen);
            let expected = Zone { state: if open { ZoneState::Closed } else { before.state }, ..*before };
            ensure!(
                after == expected,
                "zone {} is {after:?} after the restart, not {expected:?}",
                after.index
            );
        }
        demo.check_data()?;
        demo.show
            .step("restart", "the server: open zones are closed now, all else and every byte is as it was");
        Ok(demo)
    }

    /// Shows the zones. Each must be empty (or conventional), but for those that are named.
    fn zones(&mut self, when: &str, expected: &[(u64, ZoneState, Option<u64>)]) -> anyhow::Result<()> {
        let zones = self.report()?;
        self.show.zones(when, &zones, MIB);
        for zone in zones {
            let conventional = zone.index < CONVENTIONAL_ZONES.into();
            let named = expected.iter().find(|(index, ..)| *index == zone.index);
            let expected = match named {
                Some((_, state, wp_sector)) => (*state, *wp_sector),
                None if conventional => (ZoneState::NotWp, None),
                None => (ZoneState::Empty, Some(zone.start_sector)),
            };
            let found = (zone.state, zone.wp_sector);
            ensure!(found == expected, "zone {} is {found:?}, and must be {expected:?}", zone.index);
        }
        Ok(())
    }

    fn report(&mut self) -> anyhow::Result<Vec<Zone>> {
        self.target.call(|driver| {
            driver.zones(0)?.map(|zone| Ok(Zone::of_driver(&zone?, ZONE_BYTES / SECTOR_LEN_BYTES))).collect()
        })
    }

    fn write_at(&mut self, sector: u64, len_bytes: u64) -> anyhow::Result<()> {
        let data = pattern(sector, len_bytes);
        self.target.call(|driver| driver.write(sector, &data))?;
        self.data.push((sector, data));
        Ok(())
    }

    /// Reads everything that was written and is not reset. Returns how much it is.
    fn check_data(&mut self) -> anyhow::Result<u64> {
        let mut len_bytes = 0;
        for (sector, data) in &self.data {
            let mut read = vec![0; data.len()];
            self.target.call(|driver| driver.read(*sector, &mut read))?;
            let wrong = read.iter().zip(data).position(|(found, expected)| found != expected);
            ensure!(
                wrong.is_none(),
                "byte {} from sector {sector} on is not what was written",
                wrong.unwrap_or(0)
            );
            len_bytes += data.len() as u64;
        }
        Ok(len_bytes)
    }

    fn allocated_bytes(&self) -> anyhow::Result<u64> {
        Ok(fs::metadata(&self.image)?.blocks() * 512)
    }
}

fn sector_of(zone: u64) -> u64 {
    zone * ZONE_BYTES / SECTOR_LEN_BYTES
}

/// Bytes that are nowhere the same for two tags.
fn pattern(tag: u64, len_bytes: u64) -> Vec<u8> {
    (0..len_bytes / 8).flat_map(|word| (tag << 32 | word).to_le_bytes()).collect()
}

/// Ctrl-C leaves nothing behind either.
fn clean_up_on_signal(place: &Path) -> anyhow::Result<()> {
    let stop = crate::serve::stop_signal().context("signals can't be handled")?;
    let place = place.to_owned();
    thread::Builder::new().name("signals".into()).spawn(move || {
        if std::io::Read::read(&mut &stop, &mut [0]).is_ok() {
            let _ = fs::remove_dir_all(place);
            process::exit(130);
        }
    })?;
    Ok(())
}
