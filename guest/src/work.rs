//! What a guest does with a zoned disk: recipes for file systems and benchmarks, in shell text, so that the same ones run in
//! any Linux guest on any zoned disk.
//!
//! A recipe makes something on the disk, mounts it, writes what is known byte by byte, unmounts, mounts again and compares. That
//! is its [`first`](Recipe::first) script. Its [`again`](Recipe::again) script runs in a later guest, when the disk's daemon may
//! have been stopped and started: it checks, mounts, compares, works on and compares once more.
//!
//! What is written and compared is the work of the program `guest-work` of this package: it plays the same random operations in
//! memory and on the disk, and needs nothing from the guest before to know what must be there.
//!
//! ```no_run
//! use virtio_zbd_guest::work::{BTRFS, Place};
//! use virtio_zbd_guest::{Geometry, Guest, Kernel, ServedDisk};
//!
//! # fn main() -> Result<(), virtio_zbd_guest::Error> {
//! let disk = ServedDisk::create(&Geometry::new("4G", "64M"))?;
//! let place = Place::new(1, &mut |_| {})?;
//! let output = Guest::new(&Kernel::cached()?).disk(disk.socket()).sh(BTRFS.first(&place))?;
//! assert!(output.status.success());
//! # Ok(())
//! # }
//! ```

mod recipes;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::tools::ZonedTools;
use crate::{Progress, Result, programs};

pub use self::recipes::{ALL, BTRFS, DM_ZONED, F2FS, FIO, ZONEFS, ZONEFS_AGGREGATED};

/// One way to use a zoned disk.
///
/// Its steps are shell functions. They find `$disk`, `$dir` (to mount at), `$work` (the program `guest-work`), `$seed`, `$amount`
/// and, as far as the disk has them, `$conventional` (how many conventional zones), `$zone_mib`.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// One word.
    pub name: &'static str,
    /// Programs that the guest has to have beside a shell and util-linux.
    pub programs: &'static [&'static str],
    /// What it asks of the disk.
    pub needs: Needs,
    /// Makes the file system.
    make: &'static str,
    /// Mounts it at `$dir`.
    mount: &'static str,
    /// Round `$1` of the work: compares with the rounds before, does its own, compares.
    work: &'static str,
    /// Takes it down.
    unmount: &'static str,
    /// Checks it, unmounted.
    check: &'static str,
}

/// What a [`Recipe`] asks of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// It keeps something in conventional zones.
    pub conventional_zones: bool,
    /// Each zone's capacity has to be its whole length.
    pub whole_capacity: bool,
    /// How many zones have to be able to be active, if that is limited.
    pub active_zones: u32,
}

/// Where recipes run, and how much they do.
#[derive(Clone, Debug)]
pub struct Place {
    disk: PathBuf,
    dir: PathBuf,
    program: PathBuf,
    tools: ZonedTools,
    seed: u64,
    amount: u32,
}

impl Place {
    /// `/dev/vda`, mounted at `/mnt`, with the programs of this machine's files; a recipe's work takes a few seconds and follows
    /// from `seed`.
    ///
    /// # Errors
    /// `guest-work` is not built; or mkzonefs and dmzadm are not there and can't be downloaded.
    pub fn new(seed: u64, progress: Progress<'_>) -> Result<Place> {
        Ok(Place {
            disk: "/dev/vda".into(),
            dir: "/mnt".into(),
            program: programs::guest_work()?,
            tools: ZonedTools::ensure(progress)?,
            seed,
            amount: 100,
        })
    }

    /// Another disk than `/dev/vda`.
    #[must_use]
    pub fn disk(mut self, disk: impl Into<PathBuf>) -> Place {
        self.disk = disk.into();
        self
    }

    /// Another program `guest-work` than the one that cargo built: where the guest sees its own files only.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Place {
        self.program = program.into();
        self
    }

    /// How much of a round's usual work is done, in percent.
    #[must_use]
    pub fn amount(mut self, percent: u32) -> Place {
        self.amount = percent;
        self
    }

    fn words(&self) -> String {
        let mut words = "set -eu\nexport LC_ALL=C\n".to_owned();
        if let Some(dir) = self.tools.dir() {
            let _ = writeln!(words, "PATH={}:$PATH", quoted(dir));
        }
        let _ = writeln!(
            words,
            "disk={} dir={} work={} seed={} amount={}\n{WORDS}",
            quoted(&self.disk),
            quoted(&self.dir),
            quoted(&self.program),
            self.seed,
            self.amount
        );
        words
    }
}

/// What recipes find out for themselves.
const WORDS: &str = r#"
name=$(basename "$(readlink -f "$disk")")
queue=/sys/block/$name/queue
zone_mib=$(($(cat $queue/chunk_sectors) / 2048))
conventional=$(blkzone report "$disk" | grep -c 'zcond: 0(nw)' || true)
say() { echo "$name: $*" >&2; }
"#;

impl Recipe {
    /// The script of a first guest: make, mount, work, unmount; mount, compare, work, unmount.
    #[must_use]
    pub fn first(&self, place: &Place) -> String {
        self.script(place, "make; up; work 0; down; up; work 1; down; check")
    }

    /// The script of the guest after it, number 1 and up: check, mount, compare, work, unmount.
    #[must_use]
    pub fn again(&self, place: &Place, number: u32) -> String {
        let round = number.saturating_add(1);
        self.script(place, &format!("check; up; work {round}; down; check"))
    }

    fn script(&self, place: &Place, steps: &str) -> String {
        let Recipe { make, mount, work, unmount, check, .. } = self;
        let functions = [("make", make), ("up", mount), ("work", work), ("down", unmount), ("check", check)];
        let mut script = place.words();
        for (name, text) in functions {
            let _ = writeln!(script, "{name}() {{\n{text}\n}}");
        }
        script + steps + "\n"
    }
}

/// A shell's single-quoted word.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
