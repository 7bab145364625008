//! Guests without a disk of ours: what a command in a guest can rely on, and what the host can.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{OrFail, guest, quoted, run, succeed, text};
use virtio_zbd_guest::{Error, Kernel, Status, cache};

#[test]
fn a_command_has_its_status_and_two_separate_outputs() {
    let script = "echo out; echo err >&2; echo more; exit 7";
    let output = run(&guest(), script).or_fail(script);
    assert_eq!(output.status, Status::Exited(7));
    assert_eq!(text(&output.stdout), "out\nmore\n");
    assert_eq!(text(&output.stderr), "err\n");
    assert!(output.kernel_log.contains("Linux version 6."), "{}", output.kernel_log);
}

#[test]
fn arguments_environment_directory_and_input_arrive_as_they_are() {
    let odd = std::ffi::OsStr::from_bytes(b"a \"b\" 'c' $d \\ \xff\n=");
    let guest = guest().env("ODD", odd).current_dir("/usr/bin").stdin(b"in\0put\xff".as_slice());
    let _turn = cache::take_turn().or_fail("no turn");
    let script = r#"printf '%s|' "$@" "$ODD" "$PWD" "$(id -u)"; cat"#;
    let argv = ["sh".as_ref(), "-c".as_ref(), script.as_ref(), "sh".as_ref(), odd, "".as_ref()];
    let output = guest.run(argv).or_fail(script);
    let mut expected = Vec::new();
    for word in [odd.as_bytes(), b"", odd.as_bytes(), b"/usr/bin", b"0"] {
        expected.extend_from_slice(word);
        expected.push(b'|');
    }
    expected.extend_from_slice(b"in\0put\xff");
    assert_eq!(output.stdout, expected, "{}", text(&output.stderr));
}

#[test]
fn a_megabyte_of_bytes_arrives_whole_while_it_is_written() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut bytes = vec![0; 1 << 20];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    let guest = guest().stdin(bytes.clone());
    let _turn = cache::take_turn().or_fail("no turn");
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let script = "tee /dev/stderr";
    let output = guest.run_streaming(["sh", "-c", script], &mut stdout, &mut stderr).or_fail(script);
    assert_eq!(output.status, Status::Exited(0));
    for (name, got) in [
        ("stdout", &output.stdout),
        ("stderr", &output.stderr),
        ("stdout, streamed", &stdout),
        ("stderr, streamed", &stderr),
    ] {
        assert!(*got == bytes, "{name} differs: {} of {} bytes", got.len(), bytes.len());
    }
}

#[test]
fn output_of_what_a_command_leaves_behind_does_not_hold_up_the_end() {
    let output = run(&guest().timeout(Duration::from_secs(60)), "sleep 600 & echo done")
        .or_fail("sleep in the background");
    assert_eq!((output.status, text(&output.stdout)), (Status::Exited(0), "done\n".to_owned()));
}

#[test]
fn commands_that_can_not_run_and_signals_are_statuses_as_in_a_shell() {
    let _turn = cache::take_turn().or_fail("no turn");
    let missing = guest().run(["no-such-program"]).or_fail("a missing program");
    assert_eq!(missing.status, Status::Exited(127));
    assert!(text(&missing.stderr).starts_with("no-such-program: "), "{}", text(&missing.stderr));
    let no_program = guest().run(["/etc/passwd"]).or_fail("a program that is none");
    assert_eq!(no_program.status, Status::Exited(126));
    let killed = guest().sh("kill -KILL $$").or_fail("a signal");
    assert_eq!((killed.status, killed.status.code()), (Status::Killed(9), 137));
}

#[test]
fn a_timeout_leaves_no_process_and_tells_how_far_it_came() {
    let limit = Duration::from_secs(6);
    let script = "echo got this far; echo and that >&2; sleep 600 & sleep 600";
    let error = run(&guest().timeout(limit).kernel_arg("zbd.mark=timeout"), script).unwrap_err();
    let Error::TimedOut { after, stdout, stderr, log } = &error else { panic!("{error}") };
    assert_eq!(*after, limit);
    assert_eq!((stdout.as_str(), stderr.as_str()), ("got this far", "and that"));
    assert!(log.contains("Run /"), "{log}");
    assert_eq!(processes_with("zbd.mark=timeout"), Vec::<String>::new());
}

#[test]
fn an_interrupted_guest_leaves_no_process() {
    let stop = Arc::new(AtomicBool::new(false));
    let guest = guest().stop_when(Arc::clone(&stop)).kernel_arg("zbd.mark=stop");
    let _turn = cache::take_turn().or_fail("no turn");
    let mut noticed = Noticed { stop, seen: Vec::new() };
    let error = guest
        .run_streaming(["sh", "-c", "echo ready; sleep 600"], &mut noticed, &mut std::io::sink())
        .unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    assert_eq!(noticed.seen, b"ready\n");
    assert_eq!(processes_with("zbd.mark=stop"), Vec::<String>::new());
}

/// Asks for the stop as soon as the guest has said something.
struct Noticed {
    stop: Arc<AtomicBool>,
    seen: Vec<u8>,
}

impl std::io::Write for Noticed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.seen.extend_from_slice(bytes);
        self.stop.store(true, Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_panic_a_power_off_and_a_reboot_are_told_apart() {
    // What is still in a pipe dies with the guest: the words get a moment to reach the host.
    let error =
        run(&guest(), "echo last words >&2; sleep 1; echo c >/proc/sysrq-trigger; sleep 60").unwrap_err();
    let Error::Panicked { stderr, log } = &error else { panic!("{error}") };
    assert_eq!(stderr, "last words");
    assert!(log.contains("sysrq triggered crash"), "{log}");

    let error = run(&guest(), "echo o >/proc/sysrq-trigger; sleep 60").unwrap_err();
    assert!(matches!(error, Error::Ended { .. }), "{error}");

    let error = run(&guest(), "echo b >/proc/sysrq-trigger; sleep 60").unwrap_err();
    let Error::GuestSetUp { message, .. } = &error else { panic!("{error}") };
    assert_eq!(message, "the command rebooted the guest");
}

#[test]
fn nothing_that_a_guest_writes_reaches_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    fs::write(&kept, "host").unwrap();
    let before = fs::read("/etc/passwd").unwrap();
    let script = format!(
        "set -e; cd {dir}; echo guest >kept; echo new >made; mkdir sub; cat kept made
         echo guest >>/etc/passwd; rm /etc/hostname; tail -n 1 /etc/passwd; test ! -e /etc/hostname
         touch /made-by-guest /tmp/made-by-guest /run/made-by-guest /root/made-by-guest /usr/bin/made-by-guest
         rm -r {dir}; test ! -e {dir}",
        dir = quoted(dir.path().display()),
    );
    assert_eq!(succeed(&guest(), &script), "guest\nnew\nguest\n");
    assert_eq!(fs::read_to_string(&kept).unwrap(), "host");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(fs::read("/etc/passwd").unwrap() == before);
    assert!(Path::new("/etc/hostname").exists());
    for place in ["", "tmp", "run", "root", "usr/bin"] {
        let path = Path::new("/").join(place).join("made-by-guest");
        assert!(!path.exists(), "{}", path.display());
    }
}

#[test]
fn a_shared_directory_is_the_hosts_own() {
    let dir = tempfile::Builder::new().prefix("a share, with 'odd' name ").tempdir().unwrap();
    fs::write(dir.path().join("from-host"), "hello").unwrap();
    let script = "set -e; cat from-host; mkdir sub; printf back >sub/from-guest; rm from-host";
    let guest = guest().share(dir.path()).current_dir(dir.path());
    assert_eq!(succeed(&guest, script), "hello");
    assert_eq!(fs::read_to_string(dir.path().join("sub/from-guest")).unwrap(), "back");
    assert!(!dir.path().join("from-host").exists());
}

#[test]
fn the_surroundings_are_those_of_a_linux() {
    let script = r#"set -e
        test "$(uname -n) $(uname -s)" = "guest Linux"
        test "$(stat -f -c %T /proc /sys /dev/shm /tmp | tr '\n' ' ')" = "proc sysfs tmpfs overlayfs "
        test -d /sys/kernel/debug/block; test -d /sys/kernel/config
        echo by name >/dev/stdout; echo by number >/dev/fd/2
        while read -r line; do echo "$line"; done </dev/stdin
        bash -c 'cat <(echo substituted)'
        test "$(cat /sys/class/net/lo/flags)" = 0x9
        zcat /proc/config.gz | grep -x CONFIG_BLK_DEV_ZONED=y
        test ! -e /dev/nullb0; test ! -e /dev/vda
        echo "$HOME $PATH""#;
    let output = run(&guest().stdin("a line\n"), script).or_fail(script);
    assert_eq!(text(&output.stderr), "by number\n", "{:?}", output.status);
    let expected = "by name\na line\nsubstituted\nCONFIG_BLK_DEV_ZONED=y\n\
                    /root /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n";
    assert_eq!(text(&output.stdout), expected);
    assert_eq!(output.status, Status::Exited(0));
}

#[test]
fn null_blk_on_the_kernels_command_line_is_a_zoned_disk() {
    let args = ["nr_devices=1", "zoned=1", "gb=1", "zone_size=64", "zone_nr_conv=2", "memory_backed=1"];
    let guest = args.iter().fold(guest(), |guest, arg| guest.kernel_arg(format!("null_blk.{arg}")));
    let report = succeed(
        &guest,
        "set -e; cat /sys/block/nullb0/queue/zoned
         dd if=/dev/zero of=/dev/nullb0 bs=4k count=1 seek=32768 oflag=direct status=none
         blkzone report /dev/nullb0",
    );
    let mut lines = report.lines();
    assert_eq!(lines.next(), Some("host-managed"));
    let zones: Vec<_> = lines.collect();
    assert_eq!(zones.len(), 16, "{report}");
    assert!(zones[1].contains("type: 1(CONVENTIONAL)"), "{report}");
    assert!(zones[2].contains("start: 0x000040000") && zones[2].contains("wptr 0x000008"), "{report}");
    assert!(zones[3].contains("wptr 0x000000") && zones[3].contains("(em)"), "{report}");
}

#[test]
fn a_request_that_can_not_be_met_is_refused_before_the_boot() {
    let not_met = |error: Error| error.to_string();
    let error = guest().kernel_arg("two words").sh("true").unwrap_err();
    assert_eq!(not_met(error), "the kernel's argument \"two words\": must be one plain word");
    let error = guest().share("/no/such/directory").sh("true").unwrap_err();
    assert_eq!(not_met(error), "the shared directory \"/no/such/directory\": is not a directory");
    let error = guest().disk("/etc/passwd").sh("true").unwrap_err();
    assert_eq!(not_met(error), "the disk \"/etc/passwd\": is not a socket");
    let error = guest().disk("/no/such/socket").sh("true").unwrap_err();
    assert_eq!(not_met(error), "cannot find the socket /no/such/socket");
    let error = guest().run(Vec::<String>::new()).unwrap_err();
    assert_eq!(not_met(error), "the command \"\": is empty");
    let error = guest().memory_mib(u32::MAX).sh("true").unwrap_err();
    assert!(matches!(error, Error::NoRoomForMemory { .. }), "{error}");
}

#[test]
fn a_disk_that_nobody_serves_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nobody");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let error = run(&guest().disk(&socket), "true").unwrap_err();
    let Error::GuestSetUp { message, .. } = &error else { panic!("{error}") };
    assert!(message.starts_with("/dev/vda did not appear"), "{message}");
    assert_eq!(
        succeed(&guest().disk(&socket).allow_missing_disks(), "test ! -e /dev/vda; echo none"),
        "none\n"
    );
}

#[test]
fn the_kernel_is_found_in_the_cache() {
    let kernel = Kernel::cached().or_fail("no kernel");
    assert!(kernel.path().is_file() && kernel.path().is_absolute());
}

/// The command lines of all processes of this host that contain `mark`, our own aside.
fn processes_with(mark: &str) -> Vec<String> {
    let numbers = fs::read_dir("/proc").unwrap().flatten();
    let lines = numbers.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| text(&line).replace('\0', " "));
    lines.filter(|line| line.contains(mark)).collect()
}
