//! The programs that make zonefs and dm-zoned: the machine's own, otherwise those of a newer Debian, kept in the cache beside
//! QEMU. (Debian 12 has none.)

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::run_logged;
use crate::qemu::apt::{RELEASE, Wanted};
use crate::{Progress, Result, cache, packages};

/// What is wanted of them. `dmsetup` comes along: it has to speak to the same library.
const PROGRAMS: [&str; 3] = ["mkzonefs", "dmzadm", "dmsetup"];

const WANTED: Wanted = Wanted {
    name: "tools",
    what: "mkzonefs and dmzadm",
    instead: "install Debian's zonefs-tools, dm-zoned-tools and dmsetup (Debian 13 has them), or",
    packages: &["zonefs-tools", "dm-zoned-tools", "dmsetup"],
};

/// What is unpacked and then thrown away: nobody reads it here.
const NOT_KEPT: &[&str] = &["usr/share", "usr/lib/systemd", "usr/lib/x86_64-linux-gnu/gconv"];

/// In the directory: a launcher for each program, under the program's name, and nothing else.
const LAUNCHERS: &str = "bin";

/// The libraries of the packages, and not the machine's.
const LAUNCHER_TEXT: &str = r#"#!/bin/sh
usr=$(dirname "$(readlink -f "$0")")/../root/usr
libraries=$usr/lib/x86_64-linux-gnu
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$usr/sbin/$(basename "$0")" "$@"
"#;

/// `mkzonefs`, `dmzadm` and `dmsetup`.
#[derive(Clone, Debug)]
pub struct ZonedTools {
    /// What has to be in front of `PATH`; nothing where the machine has them all.
    dir: Option<PathBuf>,
}

impl ZonedTools {
    /// The programs; where the machine has not all of them, the first call downloads them: some 8 MB, in seconds. It needs no
    /// root and changes nothing outside the cache. Processes that ask at the same time wait for the one that downloads.
    ///
    /// # Errors
    /// The machine has no `apt-get` to get them, or none of its package sources has them.
    pub fn ensure(progress: Progress<'_>) -> Result<ZonedTools> {
        if PROGRAMS.iter().all(|name| packages::program(name).is_some()) {
            return Ok(ZonedTools { dir: None });
        }
        let place = WANTED.provide(&key(), progress, |work, ready, progress| {
            work.programs(ready, NOT_KEPT, (LAUNCHERS, LAUNCHER_TEXT), &PROGRAMS, progress)?;
            for program in PROGRAMS {
                // Seen to start before they get their place.
                let mut command = Command::new(ready.join(LAUNCHERS).join(program));
                run_logged(command.arg("--help"), program, work.log, &mut |_| {})?;
            }
            Ok(())
        })?;
        Ok(ZonedTools { dir: Some(place.join(LAUNCHERS)) })
    }

    /// The directory that a guest's `PATH` has to begin with; `None` where the machine's own programs are used.
    #[must_use]
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }
}

/// The directory's name in the cache.
fn key() -> String {
    let what = format!("{}\n{LAUNCHER_TEXT}", WANTED.packages.join(" "));
    format!("tools-{RELEASE}-{}", cache::fingerprint(what.as_bytes()))
}
