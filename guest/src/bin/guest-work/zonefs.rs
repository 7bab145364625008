//! The zones of a mounted zonefs: written where they end, one write at a time and many, emptied and filled up by truncation.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use libc::{EBUSY, EFBIG, EINVAL, EIO, EPERM};

use crate::Rounds;
use crate::bytes::{Aligned, difference, random};
use crate::ring::{Ring, Work};

/// How many zones of each kind are used: few, so that they come to be full and are used again.
const ZONES_MAX: usize = 12;

/// How much of a conventional zone is used.
const CONVENTIONAL_USED_MAX: usize = 1 << 20;

/// How much of what a finish has skipped is read.
const SKIPPED_READ_MAX: usize = 1 << 20;

/// Compares the zones with the rounds before, plays this one, compares again.
pub(crate) fn work(dir: &Path, rounds: Rounds) -> Result<()> {
    let mut zonefs = Zonefs::find(dir)?;
    for round in 0..rounds.round {
        zonefs.play(&mut rounds.random(round), rounds.count, None)?;
    }
    if rounds.round == 0 {
        zonefs.zero_conventional()?;
    }
    zonefs.compare().context("what the rounds before have left")?;
    let mut ring = Ring::new().context("can't make a ring")?;
    zonefs.play(&mut rounds.random(rounds.round), rounds.count, Some(&mut ring))?;
    zonefs.compare().context("after this round")
}

/// A mounted zonefs, and what must be in it.
#[derive(Debug)]
struct Zonefs {
    sequential: Vec<Zone>,
    conventional: Vec<Zone>,
    /// What direct I/O is made in.
    block: usize,
    /// How many zones may be partly written; and open for writing, where a file that is open is an open zone.
    max_active: usize,
    max_open: usize,
    explicit_open: bool,
}

#[derive(Debug)]
struct Zone {
    path: PathBuf,
    capacity: usize,
    /// How long the file is: up to the write pointer, or to the capacity.
    size: usize,
    /// What was written; behind it there are zeros.
    bytes: Vec<u8>,
}

/// One operation.
#[derive(Debug)]
enum Op {
    /// Writes to the ends of some zones, so many bytes each, one zone's after the other's.
    Append {
        parts: Vec<(usize, Vec<usize>)>,
        how: How,
        seed: u64,
    },
    Reset {
        zone: usize,
    },
    Finish {
        zone: usize,
    },
    Refusals {
        zone: usize,
    },
    /// More files than may be open for writing.
    TooManyOpen,
    Conventional {
        zone: usize,
        offset: usize,
        len: usize,
        direct: bool,
        seed: u64,
    },
    Read {
        zone: usize,
        offset: usize,
        len: usize,
        direct: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// One write after the other.
    Alone,
    /// Several at a time, each at its offset.
    Ring { depth: u32 },
    /// Several at a time; the file system says where.
    RingAppend { depth: u32 },
}

impl Zonefs {
    fn find(dir: &Path) -> Result<Zonefs> {
        let space = rustix::fs::statvfs(dir).with_context(|| format!("can't ask {}", dir.display()))?;
        let mounts = fs::read_to_string("/proc/self/mounts").context("can't read the mounts")?;
        let mount = mounts.lines().rev().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = mount.into_iter().find(|words| words.get(1).is_some_and(|at| Path::new(at) == dir));
        let Some([source, _, "zonefs", options, ..]) = mount.as_deref() else {
            bail!("no zonefs is mounted at {}", dir.display())
        };
        let name = Path::new(source).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let limit = |attribute: &str| -> Result<usize> {
            let path = format!("/sys/fs/zonefs/{name}/{attribute}");
            let text = fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
            let limit: usize = text.trim().parse().with_context(|| path.clone())?;
            Ok(if limit == 0 { usize::MAX } else { limit })
        };
        let mut sequential = zones(&dir.join("seq"))?;
        ensure!(!sequential.is_empty(), "there is no sequential zone");
        // The first ones, and the last: it may be shorter.
        if sequential.len() > ZONES_MAX {
            let last = sequential.len() - 1;
            sequential.swap(ZONES_MAX - 1, last);
            sequential.truncate(ZONES_MAX);
        }
        let mut conventional = zones(&dir.join("cnv"))?;
        conventional.truncate(ZONES_MAX);
        Ok(Zonefs {
            sequential,
            conventional,
            block: usize::try_from(space.f_bsize)?,
            max_active: limit("max_active_seq_files")?,
            max_open: limit("max_wro_seq_files")?,
            explicit_open: options.contains("explicit-open"),
        })
    }

    /// What a conventional zone had before is there still when a file system is made.
    fn zero_conventional(&self) -> Result<()> {
        let zeros = vec![0; CONVENTIONAL_USED_MAX];
        for zone in &self.conventional {
            zone.open(false, 0)?.write_all_at(&zeros[..zone.capacity.min(CONVENTIONAL_USED_MAX)], 0)?;
        }
        Ok(())
    }

    /// Plays a round in memory and, with a ring, on the disk.
    fn play(&mut self, random: &mut Rng, count: usize, mut ring: Option<&mut Ring>) -> Result<()> {
        for number in 0..count {
            let op = self.next(random);
            if let Some(ring) = &mut ring {
                self.perform(&op, ring).with_context(|| format!("operation {number}: {op:?}"))?;
            }
            self.apply(&op);
        }
        Ok(())
    }

    /// Any operation that the limits allow.
    fn next(&self, random: &mut Rng) -> Op {
        let zone = random.usize(..self.sequential.len());
        let active: Vec<_> =
            (0..self.sequential.len()).filter(|&zone| self.sequential[zone].is_active()).collect();
        let room = self.max_active.saturating_sub(active.len());
        let empties = usize::from(self.sequential[zone].size == 0);
        let seed = random.u64(..);
        match random.u32(..100) {
            // A file that is opened to be truncated is an open zone for that moment.
            0..8 if empties <= room => Op::Reset { zone },
            8..12 if empties <= room => Op::Finish { zone },
            12..16 if empties <= room => Op::Refusals { zone },
            16 if self.explicit_open && self.max_open <= self.sequential.len().min(room) => Op::TooManyOpen,
            17..30 if !self.conventional.is_empty() => {
                let zone = random.usize(..self.conventional.len());
                let capacity = self.conventional[zone].capacity.min(CONVENTIONAL_USED_MAX);
                let direct = random.bool();
                let unit = if direct { self.block } else { 1 };
                let len = random.usize(1..=(capacity / 4 / unit)) * unit;
                let offset = random.usize(..=(capacity - len) / unit) * unit;
                Op::Conventional { zone, offset, len, direct, seed }
            }
            30..40 => {
                let size = self.sequential[zone].bytes.len();
                let direct = random.bool();
                let unit = if direct { self.block } else { 1 };
                let offset = random.usize(..=size / unit) * unit;
                let len = random.usize(..=64 << 10) / unit * unit;
                Op::Read { zone, offset, len, direct }
            }
            _ => {
                let how = match random.u32(..4) {
                    0 => How::Alone,
                    1 => How::Ring { depth: [1, 8, 64][random.usize(..3)] },
                    _ => How::RingAppend { depth: [1, 8, 64][random.usize(..3)] },
                };
                let mut zones: Vec<_> = (0..random.usize(1..=2.min(self.max_open)))
                    .map(|_| random.usize(..self.sequential.len()))
                    .collect();
                zones.dedup();
                let mut parts = Vec::new();
                let mut room = room;
                for zone in zones {
                    let left = self.sequential[zone].capacity - self.sequential[zone].size;
                    let empty = usize::from(self.sequential[zone].size == 0);
                    if left == 0 || empty > room {
                        continue;
                    }
                    room -= empty;
                    parts.push((zone, self.lens(random, left)));
                }
                match active.first() {
                    None if parts.is_empty() => Op::Reset { zone },
                    // No room, or nothing but full zones.
                    Some(&first) if parts.is_empty() => {
                        Op::Reset { zone: if empties > 0 { first } else { zone } }
                    }
                    _ => Op::Append { parts, how, seed },
                }
            }
        }
    }

    /// Lengths of writes: whole blocks, together at most `left`.
    fn lens(&self, random: &mut Rng, mut left: usize) -> Vec<usize> {
        let mut lens = Vec::new();
        let largest = [self.block, 16 << 10, 64 << 10][random.usize(..3)].max(self.block);
        for _ in 0..random.usize(1..=70) {
            let len = (random.usize(1..=largest / self.block) * self.block).min(left);
            if len == 0 {
                break;
            }
            left -= len;
            lens.push(len);
        }
        lens
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Append { parts, seed, .. } => {
                for (zone, lens) in parts {
                    let bytes = random(seed ^ *zone as u64, lens.iter().sum());
                    let zone = &mut self.sequential[*zone];
                    zone.bytes.extend_from_slice(&bytes);
                    zone.size += bytes.len();
                }
            }
            Op::Reset { zone } => {
                self.sequential[*zone].bytes.clear();
                self.sequential[*zone].size = 0;
            }
            Op::Finish { zone } => self.sequential[*zone].size = self.sequential[*zone].capacity,
            Op::Conventional { zone, offset, len, seed, .. } => {
                let zone = &mut self.conventional[*zone];
                if zone.bytes.len() < offset + len {
                    zone.bytes.resize(offset + len, 0);
                }
                zone.bytes[*offset..offset + len].copy_from_slice(&random(*seed, *len));
            }
            Op::Refusals { .. } | Op::TooManyOpen | Op::Read { .. } => {}
        }
    }

    fn perform(&self, op: &Op, ring: &mut Ring) -> Result<()> {
        match op {
            Op::Append { parts, how, seed } => self.append(parts, *how, *seed, ring),
            Op::Reset { zone } => Ok(self.sequential[*zone].open(false, 0)?.set_len(0)?),
            Op::Finish { zone } => {
                let zone = &self.sequential[*zone];
                Ok(zone.open(false, 0)?.set_len(zone.capacity as u64)?)
            }
            Op::Refusals { zone } => self.refusals(&self.sequential[*zone]),
            Op::TooManyOpen => {
                let open = self.sequential.iter().filter(|zone| zone.size < zone.capacity);
                let mut open: Vec<_> = open.take(self.max_open).map(|zone| zone.open(true, 0)).collect();
                if open.len() == self.max_open {
                    ensure!(
                        open.iter().all(std::result::Result::is_ok),
                        "one of {} can't be opened",
                        open.len()
                    );
                    let mut open_ones = self.sequential.iter().filter(|zone| zone.size < zone.capacity);
                    if let Some(one_more) = open_ones.nth(self.max_open) {
                        open.push(one_more.open(true, 0));
                        refused(
                            open.pop().map_or(Ok(()), |last| last.map(drop)),
                            EBUSY,
                            "one file too many",
                        )?;
                    }
                }
                Ok(())
            }
            Op::Conventional { zone, offset, len, direct, seed } => {
                let zone = &self.conventional[*zone];
                let bytes = Aligned::copy(&random(*seed, *len));
                zone.open(*direct, 0)?.write_all_at(&bytes, *offset as u64)?;
                Ok(())
            }
            Op::Read { zone, offset, len, direct } => {
                let zone = &self.sequential[*zone];
                let expected = zone.expected(*offset, *len);
                let mut found = Aligned::zeros(*len);
                let read = zone.reader(*direct)?.read_at(&mut found, *offset as u64)?;
                ensure!(found[..read] == expected, "{}", difference(&found[..read], &expected));
                Ok(())
            }
        }
    }

    fn append(&self, parts: &[(usize, Vec<usize>)], how: How, seed: u64, ring: &mut Ring) -> Result<()> {
        let append_flag = if matches!(how, How::RingAppend { .. }) { libc::O_APPEND } else { 0 };
        let mut files = Vec::new();
        let mut writes = Vec::new();
        for (part, (zone, lens)) in parts.iter().enumerate() {
            let mut bytes = &random(seed ^ *zone as u64, lens.iter().sum())[..];
            let zone = &self.sequential[*zone];
            files.push(zone.open(true, append_flag).context("can't open a zone")?);
            let mut offset = zone.size as u64;
            for (turn, len) in lens.iter().enumerate() {
                let (now, later) = bytes.split_at(*len);
                writes.push((turn, part, offset, Aligned::copy(now)));
                offset += *len as u64;
                bytes = later;
            }
        }
        // By turns.
        writes.sort_by_key(|(turn, part, ..)| (*turn, *part));
        let depth = match how {
            How::Alone => {
                for (_, part, offset, bytes) in &writes {
                    let len = files[*part].write_at(bytes, *offset)?;
                    ensure!(len == bytes.len(), "{len} bytes of {} were written", bytes.len());
                }
                return Ok(());
            }
            How::Ring { depth } | How::RingAppend { depth } => depth,
        };
        let mut works: Vec<_> = writes
            .iter()
            .map(|(_, part, offset, bytes)| {
                // Where the file system says where, what is said is not looked at.
                let offset = if append_flag == 0 { *offset } else { 0 };
                Work::Write { file: files[*part].as_fd(), offset, bytes }
            })
            .collect();
        let results = ring.run(&mut works, depth)?;
        for (result, (_, part, offset, bytes)) in results.iter().zip(&writes) {
            let wanted = i32::try_from(bytes.len())?;
            ensure!(*result == wanted, "a write of {wanted} at {offset} of zone {part} ended with {result}");
        }
        Ok(())
    }

    /// What zonefs does not allow, each with its own error.
    fn refusals(&self, zone: &Zone) -> Result<()> {
        let block = Aligned::zeros(self.block);
        let (size, capacity) = (zone.size as u64, zone.capacity as u64);
        let direct = zone.open(true, 0)?;
        refused(direct.write_at(&block, capacity), EFBIG, "a write behind the capacity")?;
        if zone.size < zone.capacity {
            let step = self.block as u64;
            if size + step < capacity {
                refused(direct.write_at(&block, size + step), EINVAL, "a write behind the write pointer")?;
            }
            if let Some(before) = size.checked_sub(step) {
                refused(direct.write_at(&block, before), EINVAL, "a write before the write pointer")?;
            }
            refused(direct.write_at(&block[..self.block / 2], size), EINVAL, "half of a block")?;
            refused(zone.open(false, 0)?.write_at(&block, size), EIO, "a write through the page cache")?;
        }
        for len in [capacity / 2 + 3, capacity - 1] {
            refused(direct.set_len(len), EPERM, "a truncation to neither nothing nor all")?;
        }
        Ok(())
    }

    /// Each file's size and contents.
    fn compare(&self) -> Result<()> {
        for zone in &self.sequential {
            zone.compare().with_context(|| zone.path.display().to_string())?;
        }
        for zone in &self.conventional {
            let mut found = vec![0; zone.bytes.len()];
            zone.reader(false)?.read_exact_at(&mut found, 0)?;
            ensure!(found == zone.bytes, "{}: {}", zone.path.display(), difference(&found, &zone.bytes));
        }
        Ok(())
    }
}

impl Zone {
    fn is_active(&self) -> bool {
        self.size > 0 && self.size < self.capacity
    }

    fn open(&self, direct: bool, flags: i32) -> std::io::Result<File> {
        let direct = if direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new().write(true).custom_flags(direct | flags).open(&self.path)
    }

    fn reader(&self, direct: bool) -> Result<File> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&self.path);
        file.with_context(|| format!("can't open {}", self.path.display()))
    }

    /// What a read returns: nothing behind the file's end.
    fn expected(&self, offset: usize, len: usize) -> Vec<u8> {
        let end = (offset + len).min(self.size);
        let mut expected = vec![0; end.saturating_sub(offset)];
        for (to, from) in expected.iter_mut().zip(self.bytes.get(offset..).unwrap_or_default()) {
            *to = *from;
        }
        expected
    }

    fn compare(&self) -> Result<()> {
        let size = fs::metadata(&self.path)?.size();
        ensure!(size == self.size as u64, "the file has {size} bytes, expected {}", self.size);
        let len = self.size.min(self.bytes.len() + SKIPPED_READ_MAX);
        let mut found = vec![0; len];
        self.reader(false)?.read_exact_at(&mut found, 0)?;
        let expected = self.expected(0, len);
        ensure!(found == expected, "{}", difference(&found, &expected));
        Ok(())
    }
}

/// The zones of one kind, by number. A file's blocks are its capacity.
fn zones(dir: &Path) -> Result<Vec<Zone>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("can't read {}", dir.display()))?,
    };
    let mut zones = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let number: u32 =
            path.file_name().unwrap_or_default().to_string_lossy().parse().context("a zone's name")?;
        let capacity = usize::try_from(fs::metadata(&path)?.blocks() * 512)?;
        zones.push((number, Zone { path, capacity, size: 0, bytes: Vec::new() }));
    }
    zones.sort_by_key(|(number, _)| *number);
    Ok(zones.into_iter().map(|(_, zone)| zone).collect())
}

fn refused<T>(result: std::io::Result<T>, errno: i32, what: &str) -> Result<()> {
    match result {
        Ok(_) => bail!("{what} was not refused"),
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        Err(error) => bail!("{what} was refused with {error}, expected error {errno}"),
    }
}
