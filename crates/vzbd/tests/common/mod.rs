//! The program under test: run to its end, or serving until dropped.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use virtio_zbd_testkit::{Client, ClientOptions};

const VZBD: &str = env!("CARGO_BIN_EXE_vzbd");

/// How long the program may take to come up or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `vzbd` to its end.
pub(crate) fn vzbd<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(VZBD).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs `vzbd` to its end with these bytes on its standard input.
pub(crate) fn vzbd_with_input<S: AsRef<std::ffi::OsStr>>(args: &[S], input: &[u8]) -> Output {
    let (stdin, stdout, stderr) = (Stdio::piped(), Stdio::piped(), Stdio::piped());
    let mut child = Command::new(VZBD).args(args).stdin(stdin).stdout(stdout).stderr(stderr).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // What is printed is short: it waits in the pipes. A program that does not want its input may end before.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// Runs `vzbd`, which must succeed. Returns what it printed.
#[track_caller]
pub(crate) fn vzbd_ok<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> String {
    let output = vzbd(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `vzbd` with these bytes on its standard input; it must succeed. Returns what it printed.
#[track_caller]
pub(crate) fn vzbd_takes<S: AsRef<std::ffi::OsStr>>(args: &[S], input: &[u8]) -> String {
    let output = vzbd_with_input(args, input);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `vzbd`, which must succeed. Returns the bytes that it printed.
#[track_caller]
pub(crate) fn vzbd_bytes<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Vec<u8> {
    let output = vzbd(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Runs `vzbd` with `--json`, which must succeed. Returns what it printed.
#[track_caller]
pub(crate) fn vzbd_json(args: &[&str]) -> serde_json::Value {
    let mut args = args.to_vec();
    args.push("--json");
    serde_json::from_str(&vzbd_ok(&args)).unwrap()
}

/// Runs `vzbd`, which must fail with this exit status. Returns what it said.
#[track_caller]
pub(crate) fn vzbd_fails<S: AsRef<std::ffi::OsStr>>(status: i32, args: &[S]) -> String {
    let output = vzbd(args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{said}");
    said
}

/// 16 zones of 1 MiB: 768 KiB capacity, 2 conventional, 6 open, 8 active.
pub(crate) const SMALL: &str =
    "--size 16M --zone-size 1M --zone-capacity 768K --conventional 2 --max-open 6 --max-active 8";

/// A directory for one test, with the names used in it.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes an image: [`SMALL`].
    pub(crate) fn small_image(&self) -> PathBuf {
        let path = self.path("disk.zbd");
        let mut args = vec!["create".into(), path.clone().into_os_string()];
        args.extend(SMALL.split(' ').map(Into::into));
        vzbd_ok(&args);
        path
    }

    /// Serves a disk in RAM.
    pub(crate) fn ram(&self, options: &str) -> Daemon {
        Daemon::start(Path::new("ram"), &self.path("sock"), &options.split(' ').collect::<Vec<_>>())
    }
}

/// A serving `vzbd`. Dropping it kills it.
pub(crate) struct Daemon {
    child: Child,
    socket: PathBuf,
    /// What it printed before it served: the first line and how to attach.
    pub(crate) greeting: String,
}

impl Daemon {
    /// Starts `vzbd serve TARGET --socket SOCKET OPTIONS` and waits until it listens.
    pub(crate) fn start(target: &Path, socket: &Path, options: &[&str]) -> Self {
        Self::start_logging(target, socket, options, "info")
    }

    /// As [`start`](Self::start), with this as its `RUST_LOG`.
    pub(crate) fn start_logging(target: &Path, socket: &Path, options: &[&str], log: &str) -> Self {
        let mut command = Command::new(VZBD);
        command.arg("serve").arg(target).arg("--socket").arg(socket).args(options);
        Self::start_command(command, socket, log)
    }

    /// Starts a command that becomes a `vzbd serve` on this socket.
    pub(crate) fn start_command(mut command: Command, socket: &Path, log: &str) -> Self {
        let mut child = command
            .env("RUST_LOG", log)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut greeting = String::new();
        // It prints the greeting once it listens, and nothing after.
        while !greeting.contains("ends it cleanly") {
            if lines.read_line(&mut greeting).unwrap() == 0 {
                let mut said = String::new();
                child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                child.wait().unwrap();
                panic!("it does not serve: {said}");
            }
        }
        Self { child, socket: socket.to_owned(), greeting }
    }

    pub(crate) fn client(&self, queues: usize) -> Client {
        Client::connect(&self.socket, ClientOptions { queues, ..ClientOptions::default() }).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The socket as an argument.
    pub(crate) fn socket(&self) -> &str {
        self.socket.to_str().unwrap()
    }

    /// Waits until it has something to do: more than saying hello to somebody.
    pub(crate) fn wait_until_busy(&self) {
        let ticks = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
            // The fields after the name, which may have blanks in it: utime and stime are the 14th and 15th of all.
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        let (start, idle) = (Instant::now(), ticks());
        while ticks() < idle + 10 {
            assert!(start.elapsed() < PATIENCE, "nobody does anything with the disk");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Ends it with SIGTERM. Returns its exit status and its log.
    pub(crate) fn stop(mut self) -> (ExitStatus, String) {
        self.signal(rustix::process::Signal::TERM);
        let status = self.wait();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status, log)
    }

    /// Kills it, as a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "vzbd does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `len` bytes that differ from sector to sector and from `tag` to `tag`.
pub(crate) fn pattern(tag: u64, len: usize) -> Vec<u8> {
    (0..len / 8).flat_map(|word| (tag << 32 | word as u64).to_le_bytes()).collect()
}
