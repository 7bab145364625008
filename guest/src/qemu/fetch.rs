//! Getting QEMU from a newer Debian than the machine's own, beside it: its packages with all that they need, C library included,
//! are unpacked into a directory and run from there by their own dynamic loader.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use super::apt::{RELEASE, Wanted};
use crate::command::run_logged;
use crate::{Progress, Result, cache};

const WANTED: Wanted = Wanted {
    name: "qemu",
    what: "QEMU 10.2 or newer",
    instead: "install one, or set VIRTIO_ZBD_QEMU=PATH to its qemu-system-x86_64, or",
    packages: &["qemu-system-x86", "qemu-utils"],
};

/// What is unpacked and then thrown away: nobody reads it here.
const NOT_KEPT: &[&str] = &["usr/share/doc", "usr/share/locale", "usr/share/man", "usr/lib/systemd"];

/// The programs wanted of them.
const PROGRAMS: [&str; 2] = [super::SYSTEM, super::STORAGE_DAEMON];

/// In the directory: a launcher for each program, under the program's name, and nothing else.
pub(super) const LAUNCHERS: &str = "bin";

/// The libraries of the packages, and not the machine's; QEMU's modules and firmware beside it, for the program is not where
/// it was compiled for.
const LAUNCHER_TEXT: &str = r#"#!/bin/sh
name=$(basename "$0")
usr=$(dirname "$(readlink -f "$0")")/../root/usr
libraries=$usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR="$libraries/qemu"
case $name in
qemu-system-*) set -- -L "$usr/share/qemu" -L "$usr/share/seabios" "$@" ;;
esac
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$usr/bin/$name" "$@"
"#;

/// The directory of the launchers. They are downloaded if they are not in the cache; processes that ask at the same time wait
/// for the one that downloads.
pub(super) fn ensure(progress: Progress<'_>) -> Result<PathBuf> {
    let started = Instant::now();
    let place = WANTED.provide(&key(), progress, |work, ready, progress| {
        work.programs(ready, NOT_KEPT, (LAUNCHERS, LAUNCHER_TEXT), &PROGRAMS, progress)?;
        let launchers = ready.join(LAUNCHERS);
        // Seen to work before it gets its name.
        let version = super::Qemu::at(launchers.join(super::SYSTEM))?.version();
        let mut daemon = Command::new(launchers.join(super::STORAGE_DAEMON));
        run_logged(daemon.arg("--version"), "trying qemu-storage-daemon", work.log, &mut |_| {})?;
        progress(&format!("qemu: {version} in {} s", started.elapsed().as_secs()));
        Ok(())
    })?;
    Ok(place.join(LAUNCHERS))
}

/// The directory's name in the cache.
pub(super) fn key() -> String {
    let what = format!("{}\n{LAUNCHER_TEXT}", WANTED.packages.join(" "));
    format!("qemu-{RELEASE}-{}", cache::fingerprint(what.as_bytes()))
}
