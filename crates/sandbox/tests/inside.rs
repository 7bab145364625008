//! What can be done inside, and what can't: each case in a process of its own, which enters and then tries.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::print_stderr, reason = "a test")]
#![allow(unsafe_code, reason = "system calls are made as an intruder would make them")]

use std::ffi::c_long;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, Output, exit};
use std::thread;

use virtio_zbd_sandbox::Sandbox;

/// What is done inside; an error is what the system said.
type Try = fn(&Scene) -> io::Result<()>;

/// What a case finds: a file that was opened before, and a directory in which files may be removed.
struct Scene {
    open: File,
    ours: String,
    others: String,
}

enum Outcome {
    /// It works.
    Fine,
    /// It is answered with an error.
    Refused(i32),
    /// It is the last thing the process does.
    Deadly(c_long),
}

const CASES: &[(&str, Try, Outcome)] = &[
    ("what is open is read and written", open_file, Outcome::Fine),
    ("threads start", thread_starts, Outcome::Fine),
    ("memory grows", memory_grows, Outcome::Fine),
    ("shared memory is made", shared_memory, Outcome::Fine),
    ("our own file is removed", remove_ours, Outcome::Fine),
    ("another file is opened", |scene| File::open(&scene.others).map(drop), Outcome::Refused(libc::EACCES)),
    ("our own file is opened", |scene| File::open(&scene.ours).map(drop), Outcome::Refused(libc::EACCES)),
    ("a file is opened through /proc", open_through_proc, Outcome::Refused(libc::EACCES)),
    ("a file is made", make_file, Outcome::Refused(libc::EACCES)),
    ("another file is removed", |scene| fs::remove_file(&scene.others), Outcome::Refused(libc::EACCES)),
    ("an io_uring is made", make_ring, Outcome::Refused(libc::EPERM)),
    // A file has none of these: that it says so itself is what shows that it was asked.
    ("an allowed control is made", |scene| control(scene, ALLOWED_CONTROL), Outcome::Refused(libc::ENOTTY)),
    ("another control is made", |scene| control(scene, ALLOWED_CONTROL + 1), Outcome::Refused(libc::EPERM)),
    ("a terminal is asked for", |scene| control(scene, 0x5401), Outcome::Refused(libc::EPERM)),
    ("a program is executed", execute, Outcome::Deadly(libc::SYS_execve)),
    ("a process is forked", fork, Outcome::Deadly(libc::SYS_clone)),
    ("a socket is made", |_| call(libc::SYS_socket, [1, 1, 0]), Outcome::Deadly(libc::SYS_socket)),
    ("a file is renamed", |scene| fs::rename(&scene.ours, &scene.others), Outcome::Deadly(RENAME)),
    ("memory is made executable", executable, Outcome::Deadly(libc::SYS_mmap)),
    ("another process is killed", |_| call(libc::SYS_kill, [1, 0, 0]), Outcome::Deadly(libc::SYS_kill)),
    (
        "another process is looked into",
        |_| call(libc::SYS_ptrace, [16, 1, 0]),
        Outcome::Deadly(libc::SYS_ptrace),
    ),
    ("a filter of its own", |_| call(libc::SYS_seccomp, [1, 0, 0]), Outcome::Deadly(libc::SYS_seccomp)),
];

#[cfg(target_arch = "x86_64")]
const RENAME: c_long = libc::SYS_rename;
#[cfg(not(target_arch = "x86_64"))]
const RENAME: c_long = libc::SYS_renameat;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, case, directory] = arguments.as_slice()
        && word == "--inside"
    {
        inside(case.parse().unwrap(), Path::new(directory));
    }
    let mut failed = 0;
    for (n, (name, _, expected)) in CASES.iter().enumerate() {
        let verdict = judge(&run(n), expected);
        println!("test {name} ... {}", if verdict.is_ok() { "ok" } else { "FAILED" });
        if let Err(why) = verdict {
            println!("    {why}");
            failed += 1;
        }
    }
    println!("\ntest result: {} passed; {failed} failed", CASES.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a case in its own process.
fn run(case: usize) -> Output {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("ours")).unwrap();
    for file in ["open", "ours/file", "others"] {
        fs::write(place.path().join(file), b"here").unwrap();
    }
    Command::new(std::env::current_exe().unwrap())
        .args(["--inside", &case.to_string(), place.path().to_str().unwrap()])
        .output()
        .unwrap()
}

fn judge(output: &Output, expected: &Outcome) -> Result<(), String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let found = format!("{}; {stderr}", output.status);
    let good = match *expected {
        Outcome::Fine => output.status.code() == Some(0),
        // Exit statuses have eight bits, and errnos these.
        Outcome::Refused(errno) => output.status.code() == Some(errno),
        Outcome::Deadly(call) => {
            output.status.signal() == Some(libc::SIGSYS)
                && stderr.starts_with(&format!("system call {call} ({})", std::env::consts::ARCH))
        }
    };
    if good { Ok(()) } else { Err(found) }
}

/// Enters, tries, and says by its exit status what came of it.
fn inside(case: usize, directory: &Path) -> ! {
    let path = |name| directory.join(name).to_str().unwrap().to_owned();
    let open = File::options().read(true).write(true).open(path("open")).unwrap();
    let scene = Scene { open, ours: path("ours/file"), others: path("others") };
    let gaps = Sandbox::new().remove_files_in(path("ours")).allow_controls(&[ALLOWED_CONTROL]).enter().gaps();
    assert!(gaps.is_empty(), "{gaps:?}");
    let (_, attempt, _) = &CASES[case];
    match attempt(&scene) {
        Ok(()) => exit(0),
        Err(error) => exit(error.raw_os_error().unwrap_or(255)),
    }
}

/// BLKOPENZONE.
const ALLOWED_CONTROL: u32 = 0x4010_1286;

fn control(scene: &Scene, number: u32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let mut range = [0u64; 2];
    let argument = c_long::try_from(range.as_mut_ptr().addr()).unwrap();
    call(libc::SYS_ioctl, [scene.open.as_raw_fd().into(), number.into(), argument])
}

fn call(number: c_long, arguments: [c_long; 3]) -> io::Result<()> {
    // SAFETY: none of the calls here would do anything to this process's memory.
    match unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn open_file(scene: &Scene) -> io::Result<()> {
    let mut file = &scene.open;
    file.write_all(b"more")?;
    file.rewind()?;
    let mut found = String::new();
    file.read_to_string(&mut found)?;
    assert_eq!(found, "more");
    file.set_len(100)?;
    file.sync_data()?;
    assert_eq!(file.metadata()?.len(), 100);
    file.try_clone().map(drop)
}

fn thread_starts(_: &Scene) -> io::Result<()> {
    for n in 0..4 {
        let started = thread::Builder::new().name(format!("thread {n}")).spawn(move || {
            // An arena of its own, and what the C library looks up for it.
            vec![n; 1 << 20].len()
        })?;
        assert_eq!(started.join().unwrap(), 1 << 20);
    }
    thread::sleep(std::time::Duration::from_millis(1));
    Ok(())
}

fn memory_grows(_: &Scene) -> io::Result<()> {
    let mut blocks: Vec<Vec<u8>> = (0..200_usize).map(|n| vec![1; n * 4000]).collect();
    blocks.iter_mut().for_each(|block| block.resize(block.len() * 2 + 1, 2));
    assert_eq!(blocks.iter().map(|block| usize::from(block[block.len() - 1])).sum::<usize>(), 400);
    Ok(())
}

fn shared_memory(_: &Scene) -> io::Result<()> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let file = memfd_create("shared", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, 8192)?;
    Ok(fcntl_add_seals(&file, SealFlags::SHRINK)?)
}

fn remove_ours(scene: &Scene) -> io::Result<()> {
    fs::symlink_metadata(&scene.ours)?;
    fs::remove_file(&scene.ours)
}

fn open_through_proc(scene: &Scene) -> io::Result<()> {
    let fd = std::os::fd::AsRawFd::as_raw_fd(&scene.open);
    File::open(format!("/proc/self/fd/{fd}")).map(drop)
}

fn make_file(scene: &Scene) -> io::Result<()> {
    File::create(format!("{}.new", scene.ours)).map(drop)
}

fn make_ring(_: &Scene) -> io::Result<()> {
    call(libc::SYS_io_uring_setup, [8, 0, 0])
}

fn execute(_: &Scene) -> io::Result<()> {
    Err(Command::new("/bin/true").exec())
}

fn fork(_: &Scene) -> io::Result<()> {
    call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0])
}

fn executable(_: &Scene) -> io::Result<()> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, which nobody uses.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}
