//! A guest in a machine of QEMU's is like one that is a User-mode Linux: what a command can rely on, and what the host can.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails this way, and says its seed"
)]

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use common::{OrFail, guest, qemu_guest, quoted, run};
use virtio_zbd_guest::{Error, Status, cache};

#[test]
fn a_command_has_what_it_has_in_a_user_mode_linux() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut input = vec![0; 1 << 20];
    fastrand::Rng::with_seed(seed).fill(&mut input);
    let odd = std::ffi::OsStr::from_bytes(b"a \"b\" 'c' $d \\ \xff\n=");
    let share = tempfile::Builder::new().prefix("a share, with 'odd', name ").tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    fs::write(share.path().join("from-host"), "hello").unwrap();
    fs::write(other.path().join("kept"), "host").unwrap();
    let script = format!(
        r#"set -e
        # Its own kernel, on the host's files.
        test "$(uname -n) $(uname -s)" = "guest Linux"
        test "$(stat -f -c %T /proc /sys /dev/shm /tmp | tr '\n' ' ')" = "proc sysfs tmpfs overlayfs "
        test -d /sys/kernel/debug/block; test -d /sys/kernel/config; test ! -e /dev/vda
        # What it writes goes with it, but for a share.
        cd {other}; echo guest >kept; echo new >made; rm -r /etc/hostname; touch /made-by-guest
        cd {share}; test "$(cat from-host)" = hello; mkdir sub; printf back >sub/from-guest; rm from-host; cd - >/dev/null
        # A module, by its own name and by that of what it is for.
        modprobe null_blk nr_devices=1 zoned=1 gb=1 zone_size=64 zone_nr_conv=2 memory_backed=1
        test "$(cat /sys/block/nullb0/queue/zoned)" = host-managed
        ! grep -q zonefs /proc/filesystems
        ! mount -t zonefs /dev/nullb0 /mnt 2>/dev/null
        grep -q zonefs /proc/filesystems
        ! modprobe no-such-module 2>/dev/null
        printf '%s|' "$@" "$ODD" "$PWD" "$(id -u)"
        tee /dev/stderr; exit 7"#,
        other = quoted(other.path().display()),
        share = quoted(share.path().display()),
    );
    let guest = qemu_guest()
        .kernel_arg("loglevel=7")
        .share(share.path())
        .env("ODD", odd)
        .stdin(input.clone())
        .current_dir(other.path());
    let argv = ["sh".as_ref(), "-c".as_ref(), script.as_ref(), "sh".as_ref(), odd, "".as_ref()];
    let _turn = cache::take_turn().or_fail("no turn");
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let output = guest.run_streaming(argv, &mut stdout, &mut stderr).or_fail("run");
    let mut expected = Vec::new();
    for word in [odd.as_bytes(), b"", odd.as_bytes(), other.path().as_os_str().as_bytes(), b"0"] {
        expected.extend_from_slice(word);
        expected.push(b'|');
    }
    expected.extend_from_slice(&input);
    assert_eq!(output.status, Status::Exited(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == expected && stdout == expected, "{} bytes", output.stdout.len());
    assert!(output.stderr == input && stderr == input, "{} bytes", output.stderr.len());
    assert!(output.kernel_log.contains("Linux version "), "{}", output.kernel_log);
    assert_eq!(fs::read_to_string(other.path().join("kept")).unwrap(), "host");
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1);
    assert!(Path::new("/etc/hostname").exists() && !Path::new("/made-by-guest").exists());
    assert_eq!(fs::read_to_string(share.path().join("sub/from-guest")).unwrap(), "back");
    assert!(!share.path().join("from-host").exists());
}

#[test]
fn ends_are_told_apart() {
    let error = run(&qemu_guest(), "echo last words >&2; sleep 1; echo c >/proc/sysrq-trigger; sleep 60")
        .unwrap_err();
    let Error::Panicked { stderr, log } = &error else { panic!("{error}") };
    assert_eq!(stderr, "last words");
    assert!(log.contains("sysrq triggered crash"), "{log}");

    // QEMU itself does not start.
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nobody, here");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let error = run(&qemu_guest().disk(&socket), "true").unwrap_err();
    let Error::Ended { log, .. } = &error else { panic!("{error}") };
    assert!(log.contains("nobody, here': Connection refused"), "{log}");
}

#[test]
fn what_only_qemu_has_is_refused_elsewhere() {
    for guest in [guest().qemus_disk("/dev/null"), guest().processors(2), guest().qemu_args(["-s"])] {
        let error = guest.sh("true").unwrap_err();
        assert_eq!(error.to_string(), "the guest \"User-mode Linux\": has no devices of QEMU's");
    }
}
