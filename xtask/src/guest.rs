//! `cargo xtask guest`: one command from a fresh machine to a Linux that uses a zoned disk.

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use virtio_zbd_guest::packages::{self, GUEST_TOOLS};
use virtio_zbd_guest::{DiskTarget, Error, Geometry, Guest, Kernel, Qemu, ServedDisk, StockKernel};

use crate::cargo::cargo;
use crate::{interrupt_flag, say};

/// When it is not the command that failed.
pub(crate) const OWN_FAILURE: u8 = 125;
/// As timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// As a shell has it for SIGINT.
const INTERRUPTED: u8 = 130;
/// As a shell has it for SIGPIPE.
pub(crate) const BROKEN_PIPE: u8 = 141;

const TIMEOUT_S: u64 = 600;

const DEFAULT_SIZE: &str = "4G";

/// Below this the kernel comes up, but hardly a tool does.
const LEAST_MEMORY_MIB: u32 = 64;

/// Boot a Linux with a zoned disk, /dev/vda, and run COMMAND in it.
///
/// What is needed is set up first: Debian packages (as root), the kernel (once, some minutes), the disk. The guest sees the
/// host's files and has its tools; what it writes goes away with it, but for --share and --disk PATH. COMMAND's output and
/// exit status become those of this call; 124 is a timeout, 125 a failure before or around COMMAND. Without COMMAND: a shell,
/// or the script on standard input.
///
/// The guest is a User-mode Linux, up in a second. With --qemu it is a machine of QEMU's with Debian's own kernel, and the disk is
/// attached by QEMU's vhost-user-test-device-pci; the rest is the same.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The disk: an image (made if it is not there; kept), the socket of one that is served already, `ram`, or `none`. By default an
    /// image that goes away
    #[arg(long, value_name = "PATH|ram|none")]
    disk: Option<PathBuf>,

    /// Run it in QEMU: downloaded at the first call (200 MB with the kernel), unless there is a new one already
    #[arg(long)]
    qemu: bool,

    /// An argument for QEMU, like -s; more of them for more
    #[arg(long, value_name = "WORD", requires = "qemu", allow_hyphen_values = true)]
    qemu_arg: Vec<OsString>,

    /// A file or block device that QEMU's own virtio-blk attaches, behind the disk if there is one
    #[arg(long, value_name = "PATH", requires = "qemu")]
    qemu_disk: Vec<PathBuf>,

    /// Queues that the disk offers
    #[arg(long)]
    queues: Option<u16>,

    /// Serve the disk read-only
    #[arg(long)]
    read_only: bool,

    /// The guest's memory
    #[arg(long, default_value = "1G", value_name = "SIZE", value_parser = parse_mib)]
    memory: u32,

    /// Seconds until the guest is stopped; 0 is no limit [default: 600 for a COMMAND, none for a shell]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,

    /// A directory that the guest may write to, at the same path
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,

    /// A word for the kernel's command line, like null_blk.nr_devices=1
    #[arg(long, value_name = "WORD")]
    kernel_arg: Vec<String>,

    /// Give COMMAND this standard input (all of it is read first) and not an empty one
    #[arg(long)]
    stdin: bool,

    /// Run COMMAND on this terminal
    #[arg(long, short, conflicts_with = "stdin")]
    tty: bool,

    /// The command and its arguments
    #[arg(last = true)]
    command: Vec<OsString>,

    // Last: the heading of its options would go on over those behind it.
    #[command(flatten)]
    shape: Shape,
}

/// A new disk's shape. The defaults show what zoned disks are about: conventional zones, a capacity below the size, limits.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "A new disk")]
struct Shape {
    /// Size of the disk [default: 4G]
    #[arg(long)]
    size: Option<OsString>,
    /// Size of a zone [default: 64M]
    #[arg(long, value_name = "SIZE")]
    zone_size: Option<OsString>,
    /// How much of a zone can be written [default: 48M for zones of the default size]
    #[arg(long, value_name = "SIZE")]
    zone_capacity: Option<OsString>,
    /// Conventional zones [default: 4]
    #[arg(long, value_name = "COUNT")]
    conventional: Option<OsString>,
    /// Zones that may be open at once [default: 6]
    #[arg(long, value_name = "COUNT")]
    max_open: Option<OsString>,
    /// Zones that may be active at once [default: 8]
    #[arg(long, value_name = "COUNT")]
    max_active: Option<OsString>,
    /// Bytes in a logical block
    #[arg(long, value_name = "BYTES")]
    block_size: Option<OsString>,
    /// Largest zone append
    #[arg(long, value_name = "SIZE")]
    max_append: Option<OsString>,
    /// host-managed, or none for a regular disk
    #[arg(long, value_name = "MODEL")]
    zoned: Option<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let stop = interrupt_flag()?;
    tools()?;
    let guest = args.machine()?;
    let mut packages = vec!["--package", "virtio-zbd-guest"];
    if !args.has_no_disk() {
        packages.extend(["--package", "vzbd"]);
    }
    cargo("build", packages.into_iter().chain(["--quiet", "--bins"]))?;

    let mut disk = args.disk()?;
    let mut guest = guest.memory_mib(args.memory).stop_when(stop);
    let socket = disk.as_ref().map(ServedDisk::socket).or(args.socket());
    guest = socket.into_iter().fold(guest, |guest, socket| guest.disk(socket));
    guest = args.qemu_disk.iter().fold(guest, |guest, path| guest.qemus_disk(path));
    guest = args.share.iter().fold(guest, |guest, dir| guest.share(dir));
    guest = args.kernel_arg.iter().fold(guest, |guest, word| guest.kernel_arg(word));
    for (name, value) in [("TERM", std::env::var_os("TERM")), ("PATH", path_with_admin())] {
        guest = value.into_iter().fold(guest, |guest, value| guest.env(name, value));
    }

    let on_terminal = args.tty || (args.command.is_empty() && std::io::stdin().is_terminal());
    guest = match args.timeout {
        Some(0) => guest,
        Some(seconds) => guest.timeout(Duration::from_secs(seconds)),
        None if on_terminal => guest,
        None => guest.timeout(Duration::from_secs(TIMEOUT_S)),
    };
    let status = if on_terminal {
        let shell = [OsString::from("/bin/bash"), OsString::from("-i")];
        let command = if args.command.is_empty() { &shell[..] } else { &args.command };
        if args.command.is_empty() {
            say("a shell in the guest; leave it with `exit` or Ctrl-D");
        }
        guest.run_interactive(command)
    } else {
        let script = [OsString::from("sh")];
        let command = if args.command.is_empty() { &script[..] } else { &args.command };
        if args.stdin || args.command.is_empty() {
            let mut input = Vec::new();
            std::io::stdin().read_to_end(&mut input).context("can't read standard input")?;
            guest = guest.stdin(input);
        }
        let (mut stdout, mut stderr) = (std::io::stdout().lock(), std::io::stderr().lock());
        guest.run_streaming(command, &mut stdout, &mut stderr).map(|output| output.status)
    };
    // Before the verdict: an image that is kept must be whole even when the command failed.
    let stopped = disk.as_mut().map_or(Ok(()), ServedDisk::stop);
    let code = status?.code();
    stopped?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(OWN_FAILURE)))
}

/// The exit code of an error that has one of its own.
pub(crate) fn failure_code(error: &anyhow::Error) -> Option<u8> {
    match error.downcast_ref::<Error>()? {
        Error::TimedOut { .. } => Some(TIMED_OUT),
        Error::Interrupted => Some(INTERRUPTED),
        Error::Io { source, .. } if source.kind() == ErrorKind::BrokenPipe => Some(BROKEN_PIPE),
        _ => None,
    }
}

/// The tools are for the guest's use: a command that needs none of them can do without.
fn tools() -> Result<()> {
    match packages::ensure(GUEST_TOOLS, &mut say) {
        Err(error @ (Error::MissingPackages { .. } | Error::NotDebian { .. })) => {
            say(&format!("the guest will lack some tools: {error}"));
            Ok(())
        }
        other => other.map_err(Into::into),
    }
}

/// Who calls this has tools of their own, and the guest's root those of administration.
fn path_with_admin() -> Option<OsString> {
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    for dir in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from) {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    std::env::join_paths(dirs).ok()
}

impl Args {
    /// A disk that somebody else serves.
    fn socket(&self) -> Option<&Path> {
        let is_socket = |path: &&Path| path.metadata().is_ok_and(|meta| meta.file_type().is_socket());
        self.disk.as_deref().filter(is_socket)
    }

    fn has_no_disk(&self) -> bool {
        self.disk.as_deref() == Some(Path::new("none"))
    }

    /// What the guest runs on, with nothing in it.
    fn machine(&self) -> Result<Guest> {
        if !self.qemu {
            return Ok(Guest::new(&Kernel::ensure(&mut say)?));
        }
        let (qemu, kernel) = (Qemu::ensure(&mut say)?, StockKernel::ensure(&mut say)?);
        // As many processors as the disk has queues: Linux takes one for each.
        let processors = self.queues.unwrap_or(1);
        Ok(Guest::in_qemu(&qemu, &kernel).processors(processors).qemu_args(&self.qemu_arg))
    }

    fn disk(&self) -> Result<Option<ServedDisk>> {
        if self.has_no_disk() || self.socket().is_some() {
            return Ok(None);
        }
        let mut serve = Vec::<OsString>::new();
        if let Some(queues) = self.queues {
            serve.extend(["--queues".into(), queues.to_string().into()]);
        }
        if self.read_only {
            serve.push("--read-only".into());
        }
        let target = match &self.disk {
            None => DiskTarget::Temporary(self.shape.geometry()),
            Some(word) if word == Path::new("ram") => DiskTarget::Ram(self.shape.geometry()),
            Some(path) => {
                if let Some(model) = &self.shape.zoned {
                    serve.extend(["--zoned".into(), model.clone()]);
                }
                if !path.exists() {
                    self.shape.geometry().create_image(path)?;
                    say(&format!("made {}", path.display()));
                } else if self.shape.is_given() {
                    let path = path.display();
                    bail!(
                        "{path} exists and has its shape: leave out the options for a new disk, or name a new file"
                    );
                }
                DiskTarget::Image(path.clone())
            }
        };
        Ok(Some(ServedDisk::serve(target, serve)?))
    }
}

impl Shape {
    /// The options as they were given, under `vzbd`'s names.
    fn given(&self) -> impl Iterator<Item = (&'static str, &OsString)> {
        let options = [
            ("--size", &self.size),
            ("--zone-size", &self.zone_size),
            ("--zone-capacity", &self.zone_capacity),
            ("--conventional", &self.conventional),
            ("--max-open", &self.max_open),
            ("--max-active", &self.max_active),
            ("--block-size", &self.block_size),
            ("--max-append", &self.max_append),
            ("--zoned", &self.zoned),
        ];
        options.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)))
    }

    /// Whether it asks for anything but a model, which a file of other origin needs, too.
    fn is_given(&self) -> bool {
        self.given().any(|(name, _)| name != "--zoned")
    }

    fn geometry(&self) -> Geometry {
        let is_regular = self.zoned.as_ref().is_some_and(|model| model == "none");
        let mut geometry = if is_regular {
            Geometry::regular(DEFAULT_SIZE)
        } else {
            let zoned = Geometry::new(DEFAULT_SIZE, "64M").conventional(4).max_open(6).max_active(8);
            // A capacity of our own choice would not fit zones of somebody else's.
            if self.zone_size.is_none() { zoned.zone_capacity("48M") } else { zoned }
        };
        for (name, value) in self.given() {
            geometry = geometry.set(name, value);
        }
        geometry
    }
}

/// A size as people write it, in MiB.
fn parse_mib(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text} is no size: write 512M or 2G");
    let (digits, factor) = match text.strip_suffix(['M', 'm']) {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix(['G', 'g']).ok_or_else(wrong)?, 1024),
    };
    let count: u32 = digits.parse().map_err(|_| wrong())?;
    let mib = count.checked_mul(factor).ok_or_else(wrong)?;
    if mib < LEAST_MEMORY_MIB {
        return Err(format!("{text} is too little: a guest needs {LEAST_MEMORY_MIB}M"));
    }
    Ok(mib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_mib("512M"), Ok(512));
        assert_eq!(parse_mib("2g"), Ok(2048));
        for wrong in ["", "G", "512", "1T", "-1G", "99999999999G", "5000000G"] {
            assert_eq!(parse_mib(wrong), Err(format!("{wrong} is no size: write 512M or 2G")));
        }
        assert_eq!(parse_mib("8M"), Err("8M is too little: a guest needs 64M".to_owned()));
    }
}
