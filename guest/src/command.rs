//! Running a long command: all of its output to a log, each line to whoever counts them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Error, Result};

/// How much of a log an error shows.
const TAIL_LINES: usize = 25;
const TAIL_BYTES: usize = 4096;

/// Runs `command` without input; standard output and standard error are appended to `log`, and `on_line` sees each line of
/// standard output. A status other than 0 is an error with the log's end.
pub(crate) fn run_logged(
    command: &mut Command,
    what: &'static str,
    log: &Path,
    on_line: &mut dyn FnMut(&str),
) -> Result<()> {
    let open = || File::options().create(true).append(true).open(log).map_err(Error::io("open", log));
    let mut file = open()?;
    let program = Path::new(command.get_program()).to_path_buf();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(open()?)
        .spawn()
        .map_err(Error::io("start", &program))?;

    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).map_err(Error::io("read the output of", &program))? > 0 {
            file.write_all(&line).map_err(Error::io("write", log))?;
            on_line(String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
    }
    let status = child.wait().map_err(Error::io("wait for", &program))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command { what, status, log: log.to_path_buf(), tail: tail_of_file(log) })
}

/// The last lines of a file; empty if it can't be read: this is for errors, which have something else to say.
pub(crate) fn tail_of_file(path: &Path) -> String {
    std::fs::read(path).map(|bytes| tail(&bytes)).unwrap_or_default()
}

/// The last lines of a text, at most a few kilobytes.
pub(crate) fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_shows_the_end_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut seen = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; echo three; exit 3"]);
        let error =
            run_logged(&mut command, "the test", &log, &mut |line| seen.push(line.to_owned())).unwrap_err();
        assert_eq!(seen, ["one", "three"]);
        let Error::Command { status, tail, .. } = error else { panic!("{error}") };
        assert_eq!(status.code(), Some(3));
        let mut lines: Vec<_> = tail.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["one", "three", "two"]);
    }

    #[test]
    fn a_tail_is_the_last_lines() {
        let text: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        let tail = tail(text.as_bytes());
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 999"));
    }
}
