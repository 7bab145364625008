//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    /// Show what a disk is. The disk must not be in use.
    Info(InfoArgs),
    /// Show the zones of a disk. The disk must not be in use.
    Report(ReportArgs),
}

/// What kind of disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Zoned {
    /// Sequential zones that are written only at their write pointer.
    HostManaged,
    /// No zones: a regular disk, its sectors from the file's first byte on.
    None,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The file to make; by habit its name ends in .zbd.
    pub(crate) path: PathBuf,
    /// Length of the disk: 4G, 1.5T; powers of 1024.
    #[arg(long)]
    pub(crate) size: Size,
    #[command(flatten)]
    pub(crate) geometry: GeometryArgs,
    /// The kind of disk.
    #[arg(long, value_enum, default_value = "host-managed")]
    pub(crate) zoned: Zoned,
    /// Replace a file that is there already.
    #[arg(long)]
    pub(crate) force: bool,
}

/// The zones of a disk. Given for a disk without zones they are an error.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Zones")]
pub(crate) struct GeometryArgs {
    /// Length of a zone; the last one may be shorter [default: 64M].
    #[arg(long)]
    pub(crate) zone_size: Option<Size>,
    /// Writable part of a sequential zone [default: the whole zone].
    #[arg(long)]
    pub(crate) zone_capacity: Option<Size>,
    /// How many zones at the start are conventional [default: 0].
    #[arg(long)]
    pub(crate) conventional: Option<u32>,
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
    /// The Unix socket to listen on. A stale one is replaced, a live one is an error.
    #[arg(long)]
    pub(crate) socket: PathBuf,
    /// How many queues the virtual machine may use.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) queues: u16,
    /// Refuse every write.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// The kind of disk. `none` serves any file as a regular disk.
    #[arg(long, value_enum, default_value = "host-managed")]
    pub(crate) zoned: Zoned,
    /// How to reach the disk's file.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) io: IoEngine,
    /// Length of a disk in RAM [default: 1G].
    #[arg(long)]
    pub(crate) size: Option<Size>,
    #[command(flatten)]
    pub(crate) geometry: GeometryArgs,
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

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// An image made by `vzbd create`.
    pub(crate) path: PathBuf,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// An image made by `vzbd create`.
    pub(crate) path: PathBuf,
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
