//! `cargo xtask baremetal`: our driver without an operating system, to watch.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use virtio_zbd_guest::{BareMetal, Machine, Qemu, TestMachine, Verdict};

use crate::say;

/// A disk that nobody named: small, and gone afterwards.
const TEMPORARY_LEN_BYTES: u64 = 64 << 20;

/// Run a kernel with our driver and nothing else in QEMU: the test kernel, or the example.
///
/// The test kernel describes the virtio disks that it finds; with `--word peer=…` it runs the driver's test list on them, and
/// that overwrites them. Without an option for a disk there is a new plain one of 64 MiB.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which machine: PCI (q35) or virtio-mmio (microvm)
    #[arg(long, value_enum, default_value_t = MachineName::Q35)]
    machine: MachineName,

    /// A plain file or a block device (zoned or not) as QEMU's own virtio-blk disk
    #[arg(long, value_name = "PATH", conflicts_with = "socket")]
    disk: Option<PathBuf>,

    /// A vhost-user-blk socket: `vzbd serve`, for one
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// The example instead of the test kernel: it uses the first empty zone of a disk on PCI
    #[arg(long)]
    example: bool,

    /// The disk's queues
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    queues: u16,

    /// A word for the kernel's command line, as `log=debug`; may be given again
    #[arg(long = "word", value_name = "WORD")]
    words: Vec<String>,

    /// More arguments for QEMU, as `-d int`
    #[arg(last = true, value_name = "ARGUMENT")]
    qemu: Vec<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum MachineName {
    Q35,
    Microvm,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let qemu = Qemu::ensure(&mut say)?;
    let machine = match args.machine {
        MachineName::Q35 => Machine::Q35,
        MachineName::Microvm => Machine::Microvm,
    };
    let kernels = BareMetal::build()?;
    let kernel = if args.example { kernels.example() } else { kernels.test_kernel() };
    let mut machine = TestMachine::new(&qemu, kernel, machine);
    let dir = tempfile::tempdir().context("can't make a directory")?;
    machine = match (&args.socket, &args.disk) {
        (Some(socket), _) => machine.vhost_user(socket, args.queues),
        (None, Some(disk)) => {
            machine.block_node(disk, "").virtio_blk(&format!(",num-queues={}", args.queues))
        }
        (None, None) => {
            let disk = dir.path().join("disk");
            let made = File::create(&disk).and_then(|file| file.set_len(TEMPORARY_LEN_BYTES));
            made.context("can't make a disk")?;
            machine.block_node(&disk, "").virtio_blk(&format!(",num-queues={}", args.queues))
        }
    };
    machine = args.words.iter().fold(machine, |machine, word| machine.word(word));
    let argv = machine.args(&args.qemu).argv();
    let status = Command::new(&argv[0]).args(&argv[1..]).status().context("can't start QEMU")?;
    Ok(match status.code().map(Verdict::from_code) {
        Some(Verdict::Passed) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
