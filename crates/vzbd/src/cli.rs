//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use virtio_zbd_store::FaultRule;

use crate::parse::{self, ZoneRange, ZoneSet};
use crate::size::Size;

/// Zoned disks for virtual machines: a host-managed zoned disk from a plain file or from RAM, for any VMM over vhost-user.
#[derive(Debug, Parser)]
#[command(name = "vzbd", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a disk: a sparse file that holds a host-managed zoned disk.
    Create(CreateArgs),
    /// Offer a disk to one virtual machine after another, on a vhost-user socket.
    Serve(ServeArgs),
    /// Make a disk, serve it, use it over vhost-user and show its zones: all in this process, and gone afterwards.
    Demo,
    /// Show the disks that have a name, for `vzbd create --profile`.
    Profiles(ProfilesArgs),
    /// Show what a disk is.
    Info(InfoArgs),
    /// Show the zones of a disk.
    Report(ReportArgs),
    /// Say everything that is wrong with an image that nobody uses, and what could be done: exit status 0 when it is clean,
    /// 1 when something was found. Writes nothing unless it is told to.
    Check(CheckArgs),
    /// Open zones explicitly: they stay open until they are closed, finished, reset or full.
    Open(ZonesArgs),
    /// Close zones that are open.
    Close(ZonesArgs),
    /// Make zones full: nothing more can be written to them before a reset.
    Finish(ZonesArgs),
    /// Make zones empty: what is in them is gone.
    Reset(ZonesArgs),
    /// Do something to the zones of an image by hand.
    #[command(subcommand)]
    Zone(ZoneCommand),
    /// Make a disk longer: zones are added at its end. A disk that is served grows while it is used, and its guest is told.
    Resize(ResizeArgs),
    /// Read from a disk.
    Read(ReadArgs),
    /// Write to a disk; flushed at the end.
    Write(WriteArgs),
    /// Append to a zone, wherever its write pointer is; flushed at the end. Prints where the data landed.
    Append(AppendArgs),
    /// Make the images that a power cut could have left of a disk that was served with --record.
    Replay(ReplayArgs),
    /// Measure a disk: requests a second, throughput, latency.
    Bench(BenchArgs),
    /// Try whether a disk keeps the virtio specification, rule by rule. All that is on it will be gone. Exit status 0 when nothing that is required
    /// failed, 1 when something did.
    Conform(ConformArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ZoneCommand {
    /// Take zones out of use, or back into use, in an image that nobody serves: to see what a driver or a file system makes of it.
    SetState(SetStateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SetStateArgs {
    /// The image.
    pub(crate) image: PathBuf,
    /// Zones by number: 3, 3..7 (without 7), 3..=7 (with 7), 3.. (to the last one), several with commas between.
    #[arg(value_name = "ZONE", value_delimiter = ',', required = true, num_args = 1)]
    pub(crate) zones: Vec<ZoneRange>,
    /// What becomes of them.
    #[arg(value_enum)]
    pub(crate) state: Fate,
}

/// What becomes of a zone by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fate {
    /// It can be read and not written, as after a failure of the medium.
    ReadOnly,
    /// It can't even be read.
    Offline,
    /// It is in use again, with what was below its write pointer: empty, closed or full.
    Good,
}

/// What kind of disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Zoned {
    /// Sequential zones that are written only at their write pointer.
    HostManaged,
    /// Zones that should be written so but take every write: a driver may use the disk as a regular one.
    HostAware,
    /// No zones: a regular disk, its sectors from the file's first byte on.
    None,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The file to make; by habit its name ends in .zbd.
    #[arg(required_unless_present = "profile")]
    pub(crate) path: Option<PathBuf>,
    /// Length of the disk: 4G, 1.5T; powers of 1024.
    #[arg(long, required_unless_present = "profile")]
    pub(crate) size: Option<Size>,
    #[command(flatten)]
    pub(crate) geometry: GeometryArgs,
    /// The kind of disk [default: host-managed].
    #[arg(long, value_enum)]
    pub(crate) zoned: Option<Zoned>,
    /// How long the disk may become one day (`vzbd resize`): leaves room in the file for the states of that many zones, which costs no space
    /// [default: eight times its size].
    #[arg(long, value_name = "SIZE")]
    pub(crate) grow_to: Option<Size>,
    /// Replace a file that is there already.
    #[arg(long)]
    pub(crate) force: bool,
}

/// The zones of a disk. Given for a disk without zones they are an error.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Zones")]
pub(crate) struct GeometryArgs {
    /// Begin with a disk that has a name: smr-20tb, zns-1077m, tiny ... or a TOML file. Other options change what it says. `list` shows them all.
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Length of a zone; the last one may be shorter [default: 64M].
    #[arg(long)]
    pub(crate) zone_size: Option<Size>,
    /// Writable part of a sequential zone; with commas between several, the sequential zones have them in turn, again and again to the end of the
    /// disk [default: the whole zone].
    #[arg(long, value_name = "SIZE[,SIZE]...", value_delimiter = ',')]
    pub(crate) zone_capacity: Option<Vec<Size>>,
    /// How many zones at the start are conventional, or which ones: 4, or 0..2,100..102 [default: 0].
    #[arg(long, value_name = "ZONES")]
    pub(crate) conventional: Option<ZoneSet>,
    /// Which zones of a host-managed disk are sequential-write-preferred: they take every write.
    #[arg(long, value_name = "ZONES")]
    pub(crate) preferred: Option<ZoneSet>,
    /// How many zones may be open at once; 0: no limit [default: 14].
    #[arg(long)]
    pub(crate) max_open: Option<u32>,
    /// How many zones may be active at once; 0: no limit [default: 14].
    #[arg(long)]
    pub(crate) max_active: Option<u32>,
    /// Block size, the write granularity of sequential zones: a power of two from 512 to 64K [default: 4096].
    #[arg(long)]
    pub(crate) block_size: Option<Size>,
    /// Longest zone append; 0: no append [default: 512K].
    #[arg(long)]
    pub(crate) max_append: Option<Size>,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// An image made by `vzbd create`, or `ram` for a disk that is forgotten at the end.
    pub(crate) target: String,
    /// The Unix socket to listen on, for this user only (mode 0600). A stale one is replaced, a live one is an error.
    #[arg(long)]
    pub(crate) socket: Option<PathBuf>,
    /// Listen on the Unix socket that whoever starts this has left open under this number. Without --socket and --socket-fd the one
    /// of LISTEN_FDS is taken, as systemd's socket units give it.
    #[arg(long, value_name = "N", conflicts_with = "socket", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) socket_fd: Option<i32>,
    /// Listen on this Unix socket, too, for this user only, for `vzbd resize` and whoever speaks its protocol (docs/resize.md).
    #[arg(long, value_name = "SOCK")]
    pub(crate) control: Option<PathBuf>,
    /// How many queues the virtual machine may use.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) queues: u16,
    /// Refuse every write.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// The kind of disk. `none` serves any file as a regular disk [default: host-managed; for an image what it is].
    #[arg(long, value_enum)]
    pub(crate) zoned: Option<Zoned>,
    /// How to reach the disk's file.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) io: IoEngine,
    /// Give up what serving does not need before the first byte of a guest is read: no other file can be opened, nothing executed.
    /// `on`: all of it or an error [default: as much as the kernel has, with a warning for what is missing].
    #[arg(long, value_enum)]
    pub(crate) sandbox: Option<OnOff>,
    /// Length of a disk in RAM [default: 1G].
    #[arg(long)]
    pub(crate) size: Option<Size>,
    /// A fault on purpose, to see what is above the disk live with it; can be given several times.
    ///
    /// RULE is OPERATION:FAULT[@CONDITION[,CONDITION]...]:
    ///
    ///   write:eio@zone=5           zone 5 can't be written
    ///   read:eio@lba=4096..8192    sectors from 4096 to before 8192 can't be read
    ///   flush:eio@after=3          the fourth flush fails, and all after it
    ///   reset:enospc@zone=2,times=1
    ///   write:short                each write comes in two halves, and succeeds
    ///
    /// OPERATION: read, write, clear (zeros over what a failed write has left; discard), reset (taking away what a zone held), flush (the sync
    /// of a flush or finish), engine (waiting for I/O at all).
    ///
    /// FAULT: an errno (eio, enospc, edquot, efbig, erofs, enomem, etimedout, enolink, eremoteio, enodata, ebadmsg, enxio), or short, or torn
    /// (half is written, then EIO).
    ///
    /// CONDITION: zone=N or N..M, lba=N or N..M (512-byte sectors), after=N (the first N go well), times=N (no more than N fail).
    #[arg(long, value_name = "RULE", verbatim_doc_comment)]
    pub(crate) inject: Vec<FaultRule>,
    /// Write everything that is done to the disk to this new file, for `vzbd replay`.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// Cut the disk's power when N changes have begun (writes, appends, zones finished, zones reset): nothing more is answered, the image is left in a
    /// state that a power cut may leave, and the program ends with exit status 3.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) power_cut_after: Option<u64>,
    /// Which of these states [default: any].
    #[arg(long, value_name = "SEED", requires = "power_cut_after")]
    pub(crate) power_cut_seed: Option<u64>,
    #[command(flatten)]
    pub(crate) geometry: GeometryArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The file that `vzbd serve --record` has written.
    pub(crate) log: PathBuf,
    /// Show what is in it: the flushes, and what was done before each.
    #[arg(long, conflicts_with_all = ["out", "exec", "at", "each_flush", "count", "seed"])]
    pub(crate) list: bool,
    /// With --list: for programs.
    #[arg(long, requires = "list")]
    pub(crate) json: bool,
    /// The image to make.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) out: Option<PathBuf>,
    /// Replace an image that is there already.
    #[arg(long)]
    pub(crate) force: bool,
    /// When the power goes: after so many events, `flush:K` (right after the K-th flush has ended), or `end` [default: end; with --exec random moments].
    #[arg(long, value_name = "EVENT", conflicts_with = "each_flush")]
    pub(crate) at: Option<Moment>,
    /// What is left of what was not flushed.
    #[arg(long, value_enum, default_value = "random")]
    pub(crate) keep: ReplayKeep,
    /// Which of the possible images: the same seed makes the same one [default: any].
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// What is always whole or not there at all, in conventional zones: 512 is harder than the disk's own block [default: the disk's block].
    #[arg(long, value_name = "SIZE")]
    pub(crate) torn_block: Option<Size>,
    /// Run this in a shell for each image, with its path in $VZBD_IMAGE. Where it fails, what makes that image again is printed, and the end is
    /// exit status 1.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) exec: Option<String>,
    /// With --exec: right before and right after the end of each flush.
    #[arg(long, requires = "exec")]
    pub(crate) each_flush: bool,
    /// With --exec: how many images, of each moment where moments are given [default: 1], else of random moments [default: 100].
    #[arg(long, value_name = "N", requires = "exec", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: Option<u32>,
}

/// What a power cut leaves of what was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReplayKeep {
    /// All that was answered.
    All,
    /// Nothing.
    None,
    /// What the seed says.
    Random,
}

/// A moment of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// After so many events.
    Event(u64),
    /// After the end of this flush, from 1 on.
    Flush(usize),
    /// After everything.
    End,
}

impl std::str::FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no moment: write a number of events, flush:3, or end");
        match text.strip_prefix("flush:") {
            Some(flush) => flush.parse().map(Self::Flush).map_err(|_| wrong()),
            None if text == "end" => Ok(Self::End),
            None => text.parse().map(Self::Event).map_err(|_| wrong()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOff {
    On,
    Off,
}

/// How I/O is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IoEngine {
    /// io_uring where it is allowed.
    Auto,
    /// io_uring, or an error.
    #[value(name = "io_uring")]
    Uring,
    /// pread and pwrite.
    Sync,
}

/// The disk that a command works on.
#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// The disk: the socket where it is served, or an image that nobody serves.
    pub(crate) target: PathBuf,
    /// What kind of disk a file holds; `none`: the file or device itself is the disk [default: host-managed].
    #[arg(long, value_enum)]
    pub(crate) zoned: Option<Zoned>,
    /// How many seconds the disk may take for one answer.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse::seconds)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct ProfilesArgs {
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    pub(crate) disk: TargetArgs,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    pub(crate) disk: TargetArgs,
    /// For programs.
    #[arg(long, conflicts_with = "format")]
    pub(crate) json: bool,
    /// How to write the zones.
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) format: ReportFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// A table for people.
    Table,
    /// As `blkzone report` of util-linux writes them, to compare with a guest's view.
    Blkzone,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The image.
    pub(crate) image: PathBuf,
    /// Do what can't lose anything. What it changes is kept before, in a new file beside the image.
    #[arg(long)]
    pub(crate) repair: bool,
    /// Also remove what lies behind write pointers in an image that was closed; a copy is kept. By the format it is no
    /// data, but if the image's first bytes were taken from another image, or an older copy, it would be.
    #[arg(long, requires = "repair")]
    pub(crate) clear_behind: bool,
    /// Bring back what was there before a repair, from the file that it has kept: IMAGE.repair-1, or a later one.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["repair", "json", "max_findings"])]
    pub(crate) undo: Option<PathBuf>,
    /// Show at most so many findings; the others are counted.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    pub(crate) max_findings: usize,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ZonesArgs {
    #[command(flatten)]
    pub(crate) disk: TargetArgs,
    /// Zones by number, from 0 on: 3, 3..7 (without 7), 3..=7 (with 7), 3.. (to the last one).
    #[arg(value_name = "ZONE", required_unless_present = "all")]
    pub(crate) zones: Vec<ZoneRange>,
    /// Every zone to which it can be done.
    #[arg(long, conflicts_with = "zones")]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    /// The disk: the socket of `vzbd serve --control`, or an image that nobody uses.
    pub(crate) target: PathBuf,
    /// Its new length: 8G, 1.5T; powers of 1024. A disk can't be made shorter.
    #[arg(long)]
    pub(crate) size: Size,
    /// What kind of disk a file holds; `none`: the file itself is the disk [default: host-managed].
    #[arg(long, value_enum)]
    pub(crate) zoned: Option<Zoned>,
    /// How many seconds who serves the disk may take.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse::seconds)]
    pub(crate) timeout: Duration,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A place on the disk.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct PlaceArgs {
    /// The zone, by its number from 0 on.
    #[arg(long, required_unless_present = "sector", conflicts_with = "sector")]
    pub(crate) zone: Option<u64>,
    /// How far into the zone [default: its start; to write to a sequential zone, its write pointer].
    #[arg(long, value_name = "SIZE", conflicts_with = "sector")]
    pub(crate) offset: Option<Size>,
    /// The place as a number of 512-byte sectors from the disk's start.
    #[arg(long)]
    pub(crate) sector: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ReadArgs {
    #[command(flatten)]
    pub(crate) disk: TargetArgs,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// How much to read: any number of bytes [default: what is written in the zone].
    #[arg(long, value_name = "SIZE", required_unless_present = "zone")]
    pub(crate) length: Option<Size>,
    /// The file to make or to replace; - is standard output, also where that is a terminal [default: standard output].
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Where data comes from.
#[derive(Debug, Args)]
pub(crate) struct InputArgs {
    /// The file with the data [default: standard input].
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Fill the last block with zeros where the data ends inside it.
    #[arg(long)]
    pub(crate) pad: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WriteArgs {
    #[command(flatten)]
    pub(crate) disk: TargetArgs,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    #[command(flatten)]
    pub(crate) data: InputArgs,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AppendArgs {
    #[command(flatten)]
    pub(crate) disk: TargetArgs,
    /// The zone, by its number from 0 on.
    pub(crate) zone: u64,
    #[command(flatten)]
    pub(crate) data: InputArgs,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) disk: TargetArgs,
    /// What to do.
    #[arg(long, value_enum, default_value = "randread")]
    pub(crate) mode: BenchMode,
    /// Length of each request.
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    pub(crate) block_size: Size,
    /// How many requests are under way at a time on each queue.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) depth: u16,
    /// How many queues to use.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) queues: u16,
    /// How long.
    #[arg(long, default_value = "5", value_parser = parse::seconds, conflicts_with = "count")]
    pub(crate) seconds: Duration,
    /// How many requests, instead of how long.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Yes, `write` and `append` reset zones and overwrite what is there.
    #[arg(long)]
    pub(crate) destroy_data: bool,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConformArgs {
    /// The disk: the socket where anybody's vhost-user-blk back-end serves it, or an image that nobody serves.
    #[arg(required_unless_present = "list")]
    pub(crate) target: Option<PathBuf>,
    /// What kind of disk a file holds; `none`: the file or device itself is the disk [default: host-managed].
    #[arg(long, value_enum)]
    pub(crate) zoned: Option<Zoned>,
    /// How many seconds the disk may take for one answer.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse::seconds)]
    pub(crate) timeout: Duration,
    /// Yes, all that is on the disk may be overwritten, and its zones reset.
    #[arg(long)]
    pub(crate) yes: bool,
    /// Only this case (V26-a), or all cases of this rule (V26); can be given several times.
    #[arg(long, value_name = "CASE|RULE")]
    pub(crate) case: Vec<String>,
    /// Not this case, or those of this rule; can be given several times.
    #[arg(long, value_name = "CASE|RULE")]
    pub(crate) except: Vec<String>,
    /// Show the cases, and what each asks; no disk is needed.
    #[arg(long, conflicts_with_all = ["target", "yes", "junit"])]
    pub(crate) list: bool,
    /// Which zones and which data: the same seed on the same disk sends the same.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Write the results to this file, too, as JUnit's XML for a CI system.
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
    /// Show what was sent and what came back for every case, not only for those that failed.
    #[arg(long, conflicts_with = "json")]
    pub(crate) verbose: bool,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchMode {
    /// Read what is written, from one end to the other.
    Read,
    /// Read what is written, anywhere.
    Randread,
    /// Write, in sequential zones at their write pointers; one request a zone at a time.
    Write,
    /// Append to sequential zones.
    Append,
}
