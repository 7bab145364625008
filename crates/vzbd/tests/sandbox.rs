//! The cage around `vzbd serve`, and where its socket comes from. What can't be done inside is shown by the tests of the
//! crate `virtio-zbd-sandbox`, which enters as the program does.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may")]

mod common;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use common::{Daemon, Place, pattern, vzbd_bytes, vzbd_fails, vzbd_ok, vzbd_takes};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

const VZBD: &str = env!("CARGO_BIN_EXE_vzbd");

/// What the kernel says of each thread: no new privileges, seccomp mode.
fn threads(daemon: &Daemon) -> Vec<(bool, u8)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    tasks
        .map(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name)).unwrap();
                line.rsplit('\t').next().unwrap().parse::<u8>().unwrap()
            };
            (field("NoNewPrivs:") == 1, field("Seccomp:"))
        })
        .collect()
}

/// Writes, reads, resets and flushes, as a guest would.
fn use_disk(socket: &str) {
    let data = pattern(7, 64 << 10);
    vzbd_takes(&["write", socket, "--zone", "3"], &data);
    assert_eq!(vzbd_bytes(&["read", socket, "--zone", "3"]), data);
    vzbd_ok(&["finish", socket, "3"]);
    vzbd_ok(&["reset", socket, "3"]);
    vzbd_takes(&["append", socket, "4"], &data);
    assert_eq!(vzbd_bytes(&["read", socket, "--zone", "4"]), data);
}

#[test]
fn every_thread_is_confined_and_the_disk_works() {
    for (target, options) in [
        ("image", "--queues 4"),
        ("image", "--queues 2 --sandbox on --io io_uring"),
        ("image", "--sandbox on --io sync"),
        ("ram", "--sandbox on --queues 3 --zone-size 1M --size 16M"),
    ] {
        let place = Place::new();
        let target = if target == "ram" { "ram".into() } else { place.small_image() };
        let socket = place.path("sock");
        let daemon = Daemon::start(&target, &socket, &options.split(' ').collect::<Vec<_>>());
        for _ in 0..3 {
            use_disk(daemon.socket());
            vzbd_ok(&["reset", daemon.socket(), "--all"]);
        }
        // While a guest is there: the workers, too.
        let client = daemon.client(if options.contains("queues") { 2 } else { 1 });
        let threads = threads(&daemon);
        assert!(threads.len() > 1, "{threads:?}");
        assert!(threads.iter().all(|thread| *thread == (true, 2)), "{threads:?}");
        drop(client);
        let (status, log) = daemon.stop();
        assert!(status.success(), "{options}: {log}");
        assert!(!log.contains("not confined") && !log.contains("slower"), "{log}");
        assert!(!socket.exists(), "{log}");
    }
}

#[test]
fn an_image_is_closed_in_order_inside() {
    let place = Place::new();
    let image = place.small_image();
    let data = pattern(9, 32 << 10);
    let daemon = Daemon::start(&image, &place.path("sock"), &[]);
    vzbd_takes(&["write", daemon.socket(), "--zone", "5"], &data);
    // Its own file alone is removed, not what took its place.
    fs::remove_file(place.path("sock")).unwrap();
    let other = UnixListener::bind(place.path("sock")).unwrap();
    assert!(daemon.stop().0.success());
    assert!(place.path("sock").exists());
    drop(other);
    assert_eq!(vzbd_bytes(&["read", image.to_str().unwrap(), "--zone", "5"]), data);
}

#[test]
fn without_it_nothing_is_confined() {
    let place = Place::new();
    let daemon = place.ram("--sandbox off --size 16M --zone-size 1M");
    use_disk(daemon.socket());
    assert!(threads(&daemon).iter().all(|thread| *thread == (false, 0)));
    assert!(daemon.stop().0.success());
}

/// Runs `body` in a thread whose children live with a kernel that does not know this system call.
fn on_a_kernel_without(call: i64, body: impl FnOnce() + Send) {
    let errno = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let rules = [(call, Vec::new())].into();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, arch).unwrap();
    let program = BpfProgram::try_from(filter).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            apply_filter(&program).unwrap();
            body();
        });
    });
}

#[test]
fn what_the_kernel_lacks_is_said_and_insisted_on() {
    for (call, what) in [
        (libc::SYS_landlock_create_ruleset, "files (Landlock): "),
        (libc::SYS_seccomp, "system calls (seccomp): "),
    ] {
        on_a_kernel_without(call, || {
            let place = Place::new();
            let socket = place.path("sock");
            let options = ["--size", "16M", "--zone-size", "1M"];
            let daemon = Daemon::start(Path::new("ram"), &socket, &options);
            use_disk(daemon.socket());
            let (status, log) = daemon.stop();
            assert!(status.success(), "{log}");
            assert!(log.contains(&format!("not confined: {what}")), "{log}");
            // Without Landlock nothing can be removed; the next one replaces the file.
            if call == libc::SYS_landlock_create_ruleset {
                assert!(socket.exists() && log.contains("the socket file stays"), "{log}");
            }
            let socket = socket.to_str().unwrap();
            let said = vzbd_fails(1, &["serve", "ram", "--socket", socket, "--sandbox", "on"]);
            assert!(
                said.contains("--sandbox on: not all of it can be had here") && said.contains(what),
                "{said}"
            );
            assert!(!said.contains("serving ram"), "{said}");
        });
    }
}

#[test]
fn without_io_uring_it_says_so_and_goes_on() {
    on_a_kernel_without(libc::SYS_io_uring_setup, || {
        let place = Place::new();
        let image = place.small_image();
        let daemon = Daemon::start(&image, &place.path("sock"), &["--sandbox", "on"]);
        use_disk(daemon.socket());
        let (status, log) = daemon.stop();
        assert!(status.success() && log.contains("which is slower"), "{log}");
        let socket = place.path("sock");
        let (image, socket) = (image.to_str().unwrap(), socket.to_str().unwrap());
        let said = vzbd_fails(1, &["serve", image, "--socket", socket, "--io", "io_uring"]);
        assert!(said.contains("io_uring can't be used"), "{said}");
    });
}

#[test]
fn the_socket_is_for_its_user_whatever_the_umask() {
    for umask in ["000", "022", "777"] {
        let place = Place::new();
        let socket = place.path("sock");
        let script = format!("umask {umask}; exec {VZBD} serve ram --size 16M --socket {}", socket.display());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]);
        let daemon = Daemon::start_command(command, &socket, "info");
        let mode = fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
        // A umask may take from it, and adds nothing.
        assert_eq!(mode, if umask == "777" { 0 } else { 0o600 }, "umask {umask}");
        assert!(daemon.stop().0.success());
    }
}

/// A listening socket that a child process inherits.
fn listener(path: &Path) -> UnixListener {
    let listener = UnixListener::bind(path).unwrap();
    fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    listener
}

#[test]
fn a_supervisor_s_socket_is_served_and_left() {
    let place = Place::new();
    let socket = place.path("sock");
    let listener = listener(&socket);
    let number = listener.as_raw_fd();
    let serve = "exec \"$VZBD\" serve ram --size 16M --zone-size 1M";
    for script in [
        format!("{serve} --socket-fd {number}"),
        format!("export LISTEN_PID=$$ LISTEN_FDS=1; {serve} 3<&{number}"),
        // What is said outright goes first.
        format!("export LISTEN_PID=$$ LISTEN_FDS=7; {serve} --socket-fd {number}"),
    ] {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).env("VZBD", VZBD);
        let daemon = Daemon::start_command(command, &socket, "info");
        assert!(daemon.greeting.contains(socket.to_str().unwrap()), "{}", daemon.greeting);
        use_disk(daemon.socket());
        assert!(threads(&daemon).iter().all(|thread| *thread == (true, 2)));
        let (status, log) = daemon.stop();
        assert!(status.success() && !log.contains("not confined"), "{log}");
        // The supervisor's socket goes on, for the next one.
        assert!(socket.exists(), "{log}");
    }
}

#[test]
fn a_socket_that_is_none_is_refused() {
    let said = vzbd_fails(2, &["serve", "ram"]);
    assert!(
        said.contains("--socket PATH") && said.contains("--socket-fd N") && said.contains("LISTEN_FDS"),
        "{said}"
    );
    let said = vzbd_fails(2, &["serve", "ram", "--socket-fd", "97"]);
    assert!(said.contains("file descriptor 97"), "{said}");
    let said = vzbd_fails(2, &["serve", "ram", "--socket-fd", "1"]);
    assert!(said.contains("a listening Unix stream socket is expected"), "{said}");
    vzbd_fails(2, &["serve", "ram", "--socket-fd", "-1"]);
    vzbd_fails(2, &["serve", "ram", "--socket-fd", "3", "--socket", "/tmp/x"]);

    let run = |script: &str| {
        let output = Command::new("/bin/sh").args(["-c", script]).env("VZBD", VZBD).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run("export LISTEN_PID=$$ LISTEN_FDS=2; exec \"$VZBD\" serve ram");
    assert!(code == Some(2) && said.contains("LISTEN_FDS is 2, one socket is expected"), "{said}");
    let (code, said) = run("export LISTEN_PID=1 LISTEN_FDS=1; exec \"$VZBD\" serve ram");
    assert!(code == Some(2) && said.contains("where to listen?"), "{said}");
}

#[test]
fn a_signal_ends_it_inside_as_outside() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = Place::new();
        let mut daemon = place.ram("--size 16M");
        daemon.signal(signal);
        assert!(daemon.wait().success());
        assert!(!place.path("sock").exists());
    }
}
