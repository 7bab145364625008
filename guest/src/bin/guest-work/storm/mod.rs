//! Random operations on a zoned disk through Linux's driver, and the model beside them: the same answers, the same zones, the same
//! bytes.
//!
//! Zone append can't be asked for on a block device: no system call has it. It is btrfs that sends it.

mod choose;
mod crowd;
mod ioctl;
mod linux;
mod zones;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::bytes::{Aligned, difference};
use crate::ring::{DEPTH_MAX, Ring, Work};
use choose::{Chooser, List, Op};
use ioctl::Manage;
use linux::{Errno, Linux};
use zones::{Condition, Disk, Zone};

/// After how many operations all reports are compared; all bytes; and when several threads work at once.
const REPORT_EVERY: usize = 250;
const READ_EVERY: usize = 2_500;
const CROWD_EVERY: usize = 1_000;

/// How many operations are told when one goes wrong.
const HISTORY: usize = 40;

/// What a full read is cut into.
const READ_BYTES: usize = 64 << 10;

pub(crate) fn work(words: &[&str]) -> Result<()> {
    let &[path, seed, count, max_open, max_active, order] = words else {
        bail!("DISK SEED COUNT MAX_OPEN MAX_ACTIVE plain|merging are wanted")
    };
    let seed: u64 = seed.parse().context("SEED")?;
    let count: usize = count.parse().context("COUNT")?;
    let merging = order == "merging";
    let mut disk = Real::open(Path::new(path), merging)?;
    let mut linux =
        disk.model(max_open.parse().context("MAX_OPEN")?, max_active.parse().context("MAX_ACTIVE")?)?;

    let started = Instant::now();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut chooser = Chooser::new(merging, &linux, &mut random);
    let mut done = 0;
    let mut history = VecDeque::with_capacity(HISTORY);
    let (mut reports, mut reads, mut crowds) = (0, 0, 0);
    while done < count {
        let op = chooser.next(&mut random, &linux);
        let number = done;
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(format!("{number}: {op}"));
        let told = history.make_contiguous().join("\n");
        let at = || format!("operation {number} of seed {seed}, after\n{told}\n");
        done += disk.play(&mut linux, &op).with_context(at)?;
        if done / REPORT_EVERY > reports {
            reports = done / REPORT_EVERY;
            disk.compare_reports(&mut linux).with_context(at)?;
        }
        if done / READ_EVERY > reads {
            reads = done / READ_EVERY;
            disk.compare_bytes(&linux).with_context(at)?;
        }
        if done / CROWD_EVERY > crowds {
            crowds = done / CROWD_EVERY;
            done += crowd::work(&mut disk, &mut linux, &mut random).with_context(at)?;
        }
    }
    disk.compare_reports(&mut linux)?;
    disk.compare_bytes(&linux)?;

    let mut out = io::stdout().lock();
    writeln!(out, "operations: {done} in {:.1} s", started.elapsed().as_secs_f64())?;
    for (what, count) in &disk.seen {
        writeln!(out, "{what}: {count}")?;
    }
    Ok(())
}

/// The disk itself.
struct Real {
    path: std::path::PathBuf,
    file: File,
    /// Whose writes are flushed before they answer.
    synced: File,
    ring: Ring,
    /// How often each outcome was seen.
    seen: BTreeMap<String, usize>,
}

impl Real {
    fn open(path: &Path, merging: bool) -> Result<Real> {
        let open = |flags| {
            let file =
                OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT | flags).open(path);
            file.with_context(|| format!("can't open {}", path.display()))
        };
        let disk = Real {
            path: path.to_path_buf(),
            file: open(0)?,
            synced: open(libc::O_DSYNC)?,
            ring: Ring::new().context("can't make a ring")?,
            seen: BTreeMap::new(),
        };
        // As they come, or as the kernel would have them: then what depends on their order is left out.
        if !merging {
            disk.set("scheduler", "none")?;
            disk.set("nomerges", "2")?;
        }
        // What was read when the disk appeared.
        ioctl::drop_cache(&disk.file).context("can't empty the page cache")?;
        Ok(disk)
    }

    /// The same disk for another thread.
    fn another(&self) -> Result<Real> {
        Ok(Real {
            path: self.path.clone(),
            file: self.file.try_clone()?,
            synced: self.synced.try_clone()?,
            ring: Ring::new().context("can't make a ring")?,
            seen: BTreeMap::new(),
        })
    }

    fn attribute(&self, name: &str) -> Result<std::path::PathBuf> {
        let disk = self.path.file_name().context("the disk has no name")?;
        Ok(Path::new("/sys/block").join(disk).join("queue").join(name))
    }

    fn set(&self, attribute: &str, value: &str) -> Result<()> {
        let path = self.attribute(attribute)?;
        fs::write(&path, value).with_context(|| format!("can't set {}", path.display()))
    }

    fn get(&self, attribute: &str) -> Result<u64> {
        let path = self.attribute(attribute)?;
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        text.trim().parse().with_context(|| path.display().to_string())
    }

    /// The model of a new disk. How many zones it has and how long they are is taken from the report; the limits are not, because
    /// Linux forgets those that it thinks can't be met.
    fn model(&self, max_open: usize, max_active: usize) -> Result<Linux> {
        let zone_len = self.get("chunk_sectors")?;
        let count = u32::try_from(self.get("nr_zones")?)?;
        let reported = ioctl::report(&self.file, 0, count)?;
        ensure!(reported.len() == count as usize, "{} zones are reported of {count}", reported.len());
        let mut zones = Vec::new();
        for zone in reported {
            let condition = match zone.condition {
                0 => Condition::NotWp,
                1 => Condition::Empty,
                _ => bail!("the disk is not new: {zone:?}"),
            };
            let bytes = vec![0; usize::try_from(zone.len * 512)?];
            zones.push(Zone {
                start: zone.start,
                len: zone.len,
                capacity: zone.capacity,
                condition,
                wp: 0,
                bytes,
            });
        }
        let sectors = zones.iter().map(|zone| zone.len).sum();
        let plugs = vec![None; zones.len()];
        let granularity = self.get("zone_write_granularity")?;
        let disk = Disk { zones, max_open, max_active, granularity, implicit: Vec::new() };
        Ok(Linux { disk, plugs, sectors, zone_len, block: self.get("logical_block_size")? })
    }

    /// Does one thing on both; they have to agree. Answers how many operations it was.
    fn play(&mut self, linux: &mut Linux, op: &Op) -> Result<usize> {
        let what = || op.to_string();
        match op {
            Op::Write { offset, bytes, synced } => {
                let file = if *synced { &self.synced } else { &self.file };
                let found = file.write_at(&Aligned::copy(bytes), *offset);
                self.agree(found, linux.write(*offset, bytes)).with_context(what)?;
            }
            Op::Read { offset, len } => {
                let mut buffer = Aligned::zeros(*len);
                let found = self.file.read_at(&mut buffer, *offset);
                let expected = linux.read(*offset, *len);
                self.agree(found, expected.as_ref().map(Vec::len).map_err(|errno| *errno))
                    .with_context(what)?;
                if let Ok(expected) = expected {
                    let found = &buffer[..expected.len()];
                    ensure!(found == expected, "{op}: {}", difference(found, &expected));
                }
            }
            Op::Manage { what: how, sector, sectors } => {
                let found = ioctl::manage(&self.file, *how, *sector, *sectors);
                self.agree(found, linux.manage(*how, *sector, *sectors)).with_context(what)?;
            }
            Op::Report { sector, count } => {
                let found = ioctl::report(&self.file, *sector, u32::try_from(*count)?);
                let expected = linux.report(*sector, *count);
                self.agree(found, expected).with_context(what)?;
            }
            Op::Sync => self.agree(self.file.sync_all(), Ok(())).with_context(what)?,
            Op::Discard { offset, len } => {
                self.agree(ioctl::discard(&self.file, *offset, *len), Linux::discard()).with_context(what)?;
            }
            Op::Together { writes, reads } => {
                return self.play_together(linux, writes, reads).with_context(what);
            }
        }
        Ok(1)
    }

    fn play_together(
        &mut self,
        linux: &mut Linux,
        writes: &[(usize, List)],
        reads: &[(u64, usize)],
    ) -> Result<usize> {
        let mut expected = Vec::new();
        let mut buffers = Vec::new();
        // By turns, each zone's in their order.
        let mut turns = Vec::new();
        for (zone, writes) in writes {
            for (turn, outcome) in linux.write_listed(*zone, writes).into_iter().enumerate() {
                turns.push((turn, writes[turn].0 * 512, &writes[turn].1, outcome));
            }
        }
        turns.sort_by_key(|(turn, ..)| *turn);
        for (_, offset, bytes, outcome) in turns {
            buffers.push((offset, Aligned::copy(bytes)));
            expected.push(outcome);
        }
        let mut read_buffers = Vec::new();
        for (offset, len) in reads {
            read_buffers.push((*offset, Aligned::zeros(*len)));
            expected.push(linux.read(*offset, *len).map(|bytes| bytes.len()));
        }

        let file = self.file.as_fd();
        let mut works: Vec<Work<'_>> =
            buffers.iter().map(|(offset, bytes)| Work::Write { file, offset: *offset, bytes }).collect();
        works.extend(read_buffers.iter_mut().map(|(offset, bytes)| Work::Read {
            file,
            offset: *offset,
            bytes,
        }));
        let count = works.len();
        let results = self.ring.run(&mut works, DEPTH_MAX)?;
        drop(works);
        for (number, (result, expected)) in results.into_iter().zip(expected).enumerate() {
            let found = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            self.agree(found, expected).with_context(|| format!("number {number}"))?;
        }
        for (offset, found) in &read_buffers {
            let expected = linux.read(*offset, found.len()).unwrap_or_default();
            ensure!(
                found[..expected.len()] == expected,
                "read at {offset}: {}",
                difference(found, &expected)
            );
        }
        Ok(count)
    }

    /// The same outcome on both sides.
    fn agree<T: PartialEq + std::fmt::Debug>(
        &mut self,
        found: io::Result<T>,
        expected: std::result::Result<T, Errno>,
    ) -> Result<()> {
        let found = found.map_err(|error| error.raw_os_error().unwrap_or_default());
        let name = match &found {
            Ok(_) => "done".to_owned(),
            Err(errno) => io::Error::from_raw_os_error(*errno).to_string(),
        };
        *self.seen.entry(name).or_default() += 1;
        ensure!(found == expected, "the disk answers {found:?}, expected {expected:?}");
        Ok(())
    }

    fn compare_reports(&mut self, linux: &mut Linux) -> Result<()> {
        let count = linux.disk.zones.len();
        let found = ioctl::report(&self.file, 0, u32::try_from(count)?)?;
        let expected = linux.report(0, count).map_err(io::Error::from_raw_os_error)?;
        for (found, expected) in found.iter().zip(&expected) {
            ensure!(found == expected, "the disk reports {found:?}, expected {expected:?}");
        }
        ensure!(found.len() == expected.len(), "{} zones are reported of {}", found.len(), expected.len());
        for zone in &linux.disk.zones {
            *self.seen.entry(format!("zone {:?}", zone.condition)).or_default() += 1;
        }
        Ok(())
    }

    fn compare_bytes(&mut self, linux: &Linux) -> Result<()> {
        for zone in &linux.disk.zones {
            let mut buffers: Vec<_> =
                zone.bytes.chunks(READ_BYTES).map(|part| Aligned::zeros(part.len())).collect();
            let file = self.file.as_fd();
            let mut works: Vec<_> = buffers
                .iter_mut()
                .enumerate()
                .map(|(part, bytes)| Work::Read {
                    file,
                    offset: zone.start * 512 + (part * READ_BYTES) as u64,
                    bytes,
                })
                .collect();
            let results = self.ring.run(&mut works, DEPTH_MAX)?;
            drop(works);
            ensure!(results.iter().all(|result| *result >= 0), "the zone at {} can't be read", zone.start);
            for (part, (found, expected)) in buffers.iter().zip(zone.bytes.chunks(READ_BYTES)).enumerate() {
                let at = || format!("the zone at {}, byte {} and on", zone.start, part * READ_BYTES);
                ensure!(**found == *expected, "{}: {}", at(), difference(found, expected));
            }
        }
        Ok(())
    }
}

impl Manage {
    const ALL: [Manage; 4] = [Manage::Reset, Manage::Open, Manage::Close, Manage::Finish];
}
