//! One-liners for tests that run something in a guest.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::panic, reason = "a test fails this way")]

pub(crate) mod machine;

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use virtio_zbd_guest::{Error, Guest, Kernel, Output, Qemu, StockKernel, cache};

/// Long for what a test does, short for a test run that hangs.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);

/// A guest without a disk, limited in time.
pub(crate) fn guest() -> Guest {
    Guest::new(&Kernel::cached().or_fail("no kernel")).timeout(TIMEOUT).current_dir("/")
}

/// A machine of QEMU's with a stock kernel, without a disk, limited in time.
pub(crate) fn qemu_guest() -> Guest {
    let (qemu, kernel) =
        (Qemu::cached().or_fail("no QEMU"), StockKernel::cached().or_fail("no stock kernel"));
    Guest::in_qemu(&qemu, &kernel).timeout(TIMEOUT).current_dir("/")
}

/// Runs a script in a guest when it is our turn.
pub(crate) fn run(guest: &Guest, script: &str) -> Result<Output, Error> {
    let _turn = cache::take_turn().or_fail("no turn");
    guest.sh(script)
}

/// Runs a script in a guest with one disk; the script has to succeed. Gives back what it wrote on standard output.
pub(crate) fn exec_in_guest(socket: &Path, script: &str) -> String {
    succeed(&guest().disk(socket), script)
}

/// Runs a script that has to succeed in a guest; gives back what it wrote on standard output.
pub(crate) fn succeed(guest: &Guest, script: &str) -> String {
    let output = run(guest, script).or_fail(script);
    let stdout = text(&output.stdout);
    assert!(
        output.status.success(),
        "{script}\nended with {:?}\n--- standard output ---\n{stdout}\n--- standard error ---\n{}\n--- kernel log ---\n{}",
        output.status,
        text(&output.stderr),
        output.kernel_log,
    );
    stdout
}

/// Compares two reports, as `blkzone report` writes them. The write pointer of a full zone means nothing (it is the zone's end, or
/// where the writing has ended); nor does that of one that can't be written.
pub(crate) fn assert_same_zones(one: &str, other: &str) {
    let comparable = |line: &str| {
        let Some((before, rest)) = line.split_once("wptr ") else { return line.to_owned() };
        let (pointer, after) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
        let is_pointless = ["14(fu)", "13(ro)", "15(of)"].iter().any(|condition| after.contains(condition));
        format!("{before}wptr {}{after}", if is_pointless { "any" } else { pointer })
    };
    for (zone, (one, other)) in one.lines().zip(other.lines()).enumerate() {
        assert_eq!(comparable(one), comparable(other), "zone {zone}");
    }
    assert_eq!(one.lines().count(), other.lines().count());
}

/// Output that is meant to be text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `unwrap` with an error that people can read: our errors have line breaks.
pub(crate) trait OrFail<T> {
    fn or_fail(self, doing: &str) -> T;
}

impl<T> OrFail<T> for Result<T, Error> {
    fn or_fail(self, doing: &str) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("{doing}: {:#}", anyhow::Error::new(error)),
        }
    }
}

/// A shell's single-quoted word.
pub(crate) fn quoted(word: impl Display) -> String {
    format!("'{}'", word.to_string().replace('\'', r"'\''"))
}
