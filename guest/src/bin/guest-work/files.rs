//! A tree of files of which every byte is known.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use crate::Rounds;
use crate::bytes::{Aligned, difference, random};

const DIRECTORIES: usize = 9;
const NAMES: usize = 400;

/// What may be there at once: it has to fit into a small disk, with room for a file system that only appends to move things about.
const LIVE_BYTES_MAX: usize = 40 << 20;
const FILE_BYTES_MAX: usize = 3 << 20;

/// What direct I/O is made in: no file system of ours has larger blocks.
const BLOCK: usize = 4096;

/// Compares the tree in `dir` with the rounds before, plays this one, compares again.
pub(crate) fn work(dir: &Path, rounds: Rounds) -> Result<()> {
    if rounds.round == 0 {
        fs::create_dir(dir).with_context(|| format!("can't make {}", dir.display()))?;
        for directory in 0..DIRECTORIES {
            fs::create_dir(dir.join(directory_name(directory))).context("can't make a directory")?;
        }
    }
    let mut tree = Tree::default();
    for round in 0..rounds.round {
        tree.play(&mut rounds.random(round), rounds.count, None)?;
    }
    tree.compare(dir).context("what the rounds before have left")?;
    tree.play(&mut rounds.random(rounds.round), rounds.count, Some(dir))?;
    tree.compare(dir).context("after this round")
}

/// What is there, by path below the tree's directory.
#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<String, Vec<u8>>,
}

/// One operation.
#[derive(Debug)]
enum Op {
    /// Into a file that is made if need be; a hole in front of it reads as zeros.
    Write {
        name: String,
        offset: usize,
        bytes: Vec<u8>,
        how: How,
    },
    Truncate {
        name: String,
        len: usize,
    },
    Rename {
        from: String,
        to: String,
    },
    Remove {
        name: String,
    },
    /// All of the file system.
    Sync,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Buffered,
    Synced,
    /// Whole blocks, around the page cache.
    Direct,
}

impl Tree {
    /// Plays a round in memory and, where it is given, in `dir`.
    fn play(&mut self, random: &mut Rng, count: usize, dir: Option<&Path>) -> Result<()> {
        for number in 0..count {
            let op = self.next(random);
            if let Some(dir) = dir {
                perform(&op, dir).with_context(|| format!("operation {number}: {}", op.short()))?;
            }
            self.apply(op);
        }
        Ok(())
    }

    /// Any operation that can be done now.
    fn next(&self, random: &mut Rng) -> Op {
        let some_name = |random: &mut Rng| {
            format!("{}/{}", directory_name(random.usize(..DIRECTORIES)), random.usize(..NAMES))
        };
        let there =
            |random: &mut Rng| self.files.keys().nth(random.usize(..self.files.len().max(1))).cloned();
        let live: usize = self.files.values().map(Vec::len).sum();
        let existing = there(random);
        match (random.u32(..100), existing) {
            (_, Some(name)) if live > LIVE_BYTES_MAX => Op::Remove { name },
            (0..10, Some(name)) => Op::Remove { name },
            (10..18, Some(from)) => Op::Rename { from, to: some_name(random) },
            (18..26, Some(name)) => {
                let now = self.files.get(&name).map_or(0, Vec::len);
                Op::Truncate { name, len: random.usize(..=(now + now / 2).min(FILE_BYTES_MAX)) }
            }
            (26..28, _) => Op::Sync,
            (28..60, Some(name)) => {
                let now = self.files.get(&name).map_or(0, Vec::len);
                next_write(random, name, now)
            }
            _ => {
                let name = some_name(random);
                let now = self.files.get(&name).map_or(0, Vec::len);
                next_write(random, name, now)
            }
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Write { name, offset, bytes, .. } => {
                let file = self.files.entry(name).or_default();
                if !bytes.is_empty() {
                    let end = offset + bytes.len();
                    if file.len() < end {
                        file.resize(end, 0);
                    }
                    file[offset..end].copy_from_slice(&bytes);
                }
            }
            Op::Truncate { name, len } => {
                if let Some(file) = self.files.get_mut(&name) {
                    file.resize(len, 0);
                }
            }
            Op::Rename { from, to } => {
                if let Some(bytes) = self.files.remove(&from) {
                    self.files.insert(to, bytes);
                }
            }
            Op::Remove { name } => {
                self.files.remove(&name);
            }
            Op::Sync => {}
        }
    }

    /// The same names, and the same bytes in each.
    fn compare(&self, dir: &Path) -> Result<()> {
        let mut found = Vec::new();
        list(dir, dir, &mut found)?;
        found.sort();
        let expected: Vec<_> = self.files.keys().cloned().collect();
        let extra: Vec<_> = found.iter().filter(|name| !self.files.contains_key(*name)).collect();
        let missing: Vec<_> = expected.iter().filter(|name| found.binary_search(name).is_err()).collect();
        ensure!(
            extra.is_empty() && missing.is_empty(),
            "files {missing:?} are missing, {extra:?} are too many"
        );
        for (name, expected) in &self.files {
            let found = fs::read(dir.join(name)).with_context(|| format!("can't read {name}"))?;
            ensure!(found == *expected, "{name}: {}", difference(&found, expected));
        }
        Ok(())
    }
}

/// A write to a file that is `now` bytes long.
fn next_write(random: &mut Rng, name: String, now: usize) -> Op {
    let len = match random.u32(..20) {
        0 => 0,
        1 => random.usize(200 << 10..2 << 20),
        2..6 => random.usize(20 << 10..200 << 10),
        _ => random.usize(1..24 << 10),
    };
    let how = match random.u32(..10) {
        0 | 1 => How::Synced,
        2 | 3 => How::Direct,
        _ => How::Buffered,
    };
    // At its end, inside it, or behind it with a hole between.
    let offset = match random.u32(..4) {
        0 | 1 => now,
        2 => random.usize(..=now),
        _ => (now + random.usize(..64 << 10)).min(FILE_BYTES_MAX),
    };
    let (offset, len) = match how {
        How::Direct => (offset / BLOCK * BLOCK, len.next_multiple_of(BLOCK)),
        _ => (offset, len),
    };
    let seed = random.u64(..);
    let len = if offset > FILE_BYTES_MAX { 0 } else { len };
    Op::Write { name, offset, bytes: random_text(seed, len), how }
}

impl Op {
    fn short(&self) -> String {
        match self {
            Op::Write { name, offset, bytes, how } => {
                format!("write of {} bytes to {name} at {offset}, {how:?}", bytes.len())
            }
            other => format!("{other:?}"),
        }
    }
}

fn perform(op: &Op, dir: &Path) -> Result<()> {
    match op {
        Op::Write { name, offset, bytes, how } => {
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).write(true);
            let offset = u64::try_from(*offset)?;
            match how {
                How::Buffered | How::Synced => {
                    let file = options.open(dir.join(name))?;
                    file.write_all_at(bytes, offset)?;
                    if matches!(how, How::Synced) {
                        file.sync_all()?;
                    }
                }
                How::Direct => {
                    let file = match options.clone().custom_flags(libc::O_DIRECT).open(dir.join(name)) {
                        // Not every file system can.
                        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                            options.open(dir.join(name))
                        }
                        opened => opened,
                    };
                    file?.write_all_at(&Aligned::copy(bytes), offset)?;
                }
            }
        }
        Op::Truncate { name, len } => {
            OpenOptions::new().write(true).open(dir.join(name))?.set_len(u64::try_from(*len)?)?;
        }
        Op::Rename { from, to } => fs::rename(dir.join(from), dir.join(to))?,
        Op::Remove { name } => fs::remove_file(dir.join(name))?,
        Op::Sync => rustix::fs::syncfs(File::open(dir)?)?,
    }
    Ok(())
}

/// Half of it random, half of it words: a file system that compresses has something to do, too.
fn random_text(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = random(seed, len);
    let half = len / 2;
    for (at, byte) in bytes[half..].iter_mut().enumerate() {
        *byte = b"a zone is written at its write pointer; "[at % 40] ^ seed.to_le_bytes()[at / 512 % 8];
    }
    bytes
}

fn list(dir: &Path, root: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))? {
        let path: PathBuf = entry?.path();
        if path.is_dir() {
            list(&path, root, found)?;
        } else {
            found.push(path.strip_prefix(root)?.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

fn directory_name(number: usize) -> String {
    format!("directory {number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_played_on_and_a_wrong_byte_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let mut rounds = Rounds { seed: 7, round: 0, count: 150 };
        for round in 0..3 {
            rounds.round = round;
            work(&tree, rounds).unwrap();
        }

        rounds.round = 3;
        let mut played = Tree::default();
        for round in 0..3 {
            played.play(&mut rounds.random(round), rounds.count, None).unwrap();
        }
        let (name, bytes) = played.files.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
        let mut wrong = bytes.clone();
        wrong[bytes.len() / 2] ^= 1;
        fs::write(tree.join(name), wrong).unwrap();
        let error = format!("{:#}", work(&tree, rounds).unwrap_err());
        assert!(error.contains(name.as_str()) && error.contains("1 bytes differ"), "{error}");
        fs::remove_file(tree.join(name)).unwrap();
        let error = format!("{:#}", work(&tree, rounds).unwrap_err());
        assert!(error.contains("are missing"), "{error}");
    }
}
