//! A disk for a guest: `vzbd` as a child process, on files that go away with it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::process::Signal;

use crate::command::tail_of_file;
use crate::process::{Process, Role, launch};
use crate::{Error, Result, programs};

/// How long `vzbd` may take until it listens, and until it has ended: both are done in milliseconds, on a busy machine too.
const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

const MODEL_OPTION: &str = "--zoned";

/// What the first line says when the socket listens.
const READY_WORD: &str = "serving ";

/// The shape of a disk, as options of `vzbd create` (or of `vzbd serve ram`). What is not set is `vzbd`'s default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    options: Vec<(&'static str, OsString)>,
}

impl Geometry {
    /// A zoned disk of `size` in zones of `zone_size`, both as people write them: `4G`, `64M`.
    pub fn new(size: impl Into<OsString>, zone_size: impl Into<OsString>) -> Geometry {
        Geometry { options: Vec::new() }.set("--size", size).set("--zone-size", zone_size)
    }

    /// A regular disk, without zones.
    pub fn regular(size: impl Into<OsString>) -> Geometry {
        Geometry { options: Vec::new() }.set("--size", size).set(MODEL_OPTION, "none")
    }

    /// How much of each zone can be written.
    #[must_use]
    pub fn zone_capacity(self, size: impl Into<OsString>) -> Geometry {
        self.set("--zone-capacity", size)
    }

    /// How many zones at the start are conventional.
    #[must_use]
    pub fn conventional(self, count: u32) -> Geometry {
        self.set("--conventional", count.to_string())
    }

    /// How many zones may be open at once; 0 is no limit.
    #[must_use]
    pub fn max_open(self, count: u32) -> Geometry {
        self.set("--max-open", count.to_string())
    }

    /// How many zones may be active at once; 0 is no limit.
    #[must_use]
    pub fn max_active(self, count: u32) -> Geometry {
        self.set("--max-active", count.to_string())
    }

    /// The logical block's size in bytes.
    #[must_use]
    pub fn block_size(self, bytes: u32) -> Geometry {
        self.set("--block-size", bytes.to_string())
    }

    /// The largest zone append.
    #[must_use]
    pub fn max_append(self, size: impl Into<OsString>) -> Geometry {
        self.set("--max-append", size)
    }

    /// Any option of `vzbd create`; a later one of the same name stands.
    #[must_use]
    pub fn set(mut self, option: &'static str, value: impl Into<OsString>) -> Geometry {
        self.options.retain(|(other, _)| *other != option);
        self.options.push((option, value.into()));
        self
    }

    fn get(&self, option: &str) -> Option<&OsString> {
        self.options.iter().find(|(name, _)| *name == option).map(|(_, value)| value)
    }

    /// Makes an image: `vzbd create`.
    ///
    /// # Errors
    /// `vzbd` is not built or refused.
    pub fn create_image(&self, path: &Path) -> Result<()> {
        let vzbd = programs::vzbd()?;
        let output = Command::new(&vzbd)
            .arg("create")
            .arg(path)
            .args(self.args())
            .stdin(Stdio::null())
            .output()
            .map_err(Error::io("start", &vzbd))?;
        if output.status.success() {
            return Ok(());
        }
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Error::Disk { what: format!("create {} failed ({})", path.display(), output.status), log })
    }

    fn args(&self) -> impl Iterator<Item = OsString> + '_ {
        self.options.iter().flat_map(|(option, value)| [OsString::from(option), value.clone()])
    }
}

/// A disk that `vzbd` serves on a socket. Dropping it kills the daemon; [`stop`](ServedDisk::stop) ends it in order.
///
/// The daemon also ends when the thread that started it does: a disk for several threads is started by the one that lives
/// longest.
#[derive(Debug)]
pub struct ServedDisk {
    // Before the directory: the daemon is gone when its files go.
    process: Process,
    dir: tempfile::TempDir,
    socket: PathBuf,
    target: Served,
    serve_args: Vec<OsString>,
    banner: String,
}

/// What `vzbd serve` serves.
#[derive(Clone, Debug)]
pub enum DiskTarget {
    /// A new image that goes away with the [`ServedDisk`].
    Temporary(Geometry),
    /// Memory of the daemon, new at each start.
    Ram(Geometry),
    /// An image that is there, and stays there. Any other file is a regular disk with the option `--zoned none`.
    Image(PathBuf),
}

/// A target as `vzbd serve` knows it.
#[derive(Clone, Debug)]
enum Served {
    Ram(Geometry),
    Image(PathBuf),
}

impl ServedDisk {
    /// Makes an image in a directory of its own and serves it.
    ///
    /// # Errors
    /// `vzbd` is not built, refused the geometry, or did not listen in time.
    pub fn create(geometry: &Geometry) -> Result<ServedDisk> {
        ServedDisk::serve(DiskTarget::Temporary(geometry.clone()), [""; 0])
    }

    /// Serves an image that is there and stays there.
    ///
    /// # Errors
    /// As [`create`](ServedDisk::create); or the image can't be served.
    pub fn image(path: impl Into<PathBuf>) -> Result<ServedDisk> {
        ServedDisk::serve(DiskTarget::Image(path.into()), [""; 0])
    }

    /// Serves a disk in memory.
    ///
    /// # Errors
    /// As [`create`](ServedDisk::create).
    pub fn ram(geometry: &Geometry) -> Result<ServedDisk> {
        ServedDisk::serve(DiskTarget::Ram(geometry.clone()), [""; 0])
    }

    /// Serves `target` with more options of `vzbd serve`: `--read-only`, `--queues 2`.
    ///
    /// # Errors
    /// As [`create`](ServedDisk::create); or the image can't be served.
    pub fn serve<A: Into<OsString>>(
        target: DiskTarget,
        args: impl IntoIterator<Item = A>,
    ) -> Result<ServedDisk> {
        let dir = make_dir()?;
        let mut serve_args: Vec<_> = args.into_iter().map(Into::into).collect();
        let target = match target {
            DiskTarget::Temporary(geometry) => {
                let image = dir.path().join("disk.zbd");
                geometry.create_image(&image)?;
                // A regular disk's file does not say that it is one.
                if let Some(model) = geometry.get(MODEL_OPTION) {
                    serve_args.extend([MODEL_OPTION.into(), model.clone()]);
                }
                Served::Image(image)
            }
            DiskTarget::Ram(geometry) => Served::Ram(geometry),
            DiskTarget::Image(path) => Served::Image(path),
        };
        let socket = dir.path().join("disk.sock");
        let (process, banner) = start(dir.path(), &socket, &target, &serve_args)?;
        Ok(ServedDisk { process, dir, socket, target, serve_args, banner })
    }

    /// The socket to attach.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The image's file; `None` for a disk in memory.
    #[must_use]
    pub fn image_path(&self) -> Option<&Path> {
        match &self.target {
            Served::Image(path) => Some(path),
            Served::Ram(_) => None,
        }
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The first line that the daemon printed.
    #[must_use]
    pub fn banner(&self) -> &str {
        &self.banner
    }

    /// The end of what the daemon logged.
    #[must_use]
    pub fn log(&self) -> String {
        tail_of_file(&log_path(self.dir.path()))
    }

    /// Ends the daemon in order (SIGTERM) and waits for it. The image of [`create`](ServedDisk::create) stays as long as this
    /// value: a test looks at it, or serves it again.
    ///
    /// # Errors
    /// It did not end in time (it is killed then), or not with status 0.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::TERM);
        let status = self.process.wait(STOP_TIMEOUT)?;
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.error(format!("ended with {status} when it was asked to stop"))),
            None => {
                self.process.kill();
                Err(self.error(format!("did not stop within {STOP_TIMEOUT:?} and was killed")))
            }
        }
    }

    /// Kills the daemon where it stands (SIGKILL), for tests of what it must not lose.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Serves the same image (or a fresh disk in memory) again, on the same socket, after a [`stop`](ServedDisk::stop) or
    /// [`kill`](ServedDisk::kill); if it still runs it is stopped first.
    ///
    /// # Errors
    /// As [`create`](ServedDisk::create).
    pub fn restart(&mut self) -> Result<()> {
        if self.process.poll()?.is_none() {
            self.stop()?;
        }
        let (process, banner) = start(self.dir.path(), &self.socket, &self.target, &self.serve_args)?;
        self.process = process;
        self.banner = banner;
        Ok(())
    }

    fn error(&self, what: String) -> Error {
        Error::Disk { what, log: self.log() }
    }
}

/// Starts `vzbd serve` and waits until it listens.
fn start(dir: &Path, socket: &Path, target: &Served, serve_args: &[OsString]) -> Result<(Process, String)> {
    let log = log_path(dir);
    let log_file =
        File::options().create(true).append(true).open(&log).map_err(Error::io("open the log", &log))?;
    let mut command = launch(&programs::guest_init()?, Role::Daemon, &programs::vzbd()?);
    command.arg("serve");
    match target {
        Served::Ram(geometry) => command.arg("ram").args(geometry.args()),
        Served::Image(path) => command.arg(path),
    };
    command.arg("--socket").arg(socket).args(serve_args);
    let mut process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file))?;

    // A thread of its own: it goes on reading, so that the daemon never waits for us to take what it prints.
    let (sender, lines) = mpsc::channel();
    if let Some(stdout) = process.child().stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
                let _ = sender.send(line);
            }
        });
    }
    let problem = match lines.recv_timeout(START_TIMEOUT) {
        Ok(line) if line.starts_with(READY_WORD) => return Ok((process, line)),
        Ok(line) => {
            format!("serve printed {line:?} where a line that begins with {READY_WORD:?} was expected")
        }
        Err(RecvTimeoutError::Timeout) => format!("serve did not listen within {START_TIMEOUT:?}"),
        Err(RecvTimeoutError::Disconnected) => match process.wait(STOP_TIMEOUT)? {
            Some(status) => format!("serve ended ({status}) before it listened"),
            None => "serve closed its output before it listened".to_owned(),
        },
    };
    process.kill();
    Err(Error::Disk { what: problem, log: tail_of_file(&log) })
}

fn log_path(dir: &Path) -> PathBuf {
    dir.join("vzbd.log")
}

fn make_dir() -> Result<tempfile::TempDir> {
    let temp = std::env::temp_dir();
    tempfile::Builder::new().prefix("zbd-disk-").tempdir().map_err(Error::io("make a directory in", &temp))
}
