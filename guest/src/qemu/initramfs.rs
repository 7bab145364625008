//! A guest's files in memory: an archive in the format that the kernel unpacks at its start (cpio, "newc").

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Error, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive that is being written.
#[derive(Debug)]
pub(super) struct Initramfs {
    bytes: Vec<u8>,
    /// What is in it, by path without the first slash.
    paths: BTreeSet<PathBuf>,
}

impl Initramfs {
    pub(super) fn new() -> Initramfs {
        Initramfs { bytes: Vec::new(), paths: BTreeSet::new() }
    }

    /// A directory, and those that it lies in.
    pub(super) fn directory(&mut self, path: &Path) {
        let path = relative(path);
        let parents: Vec<_> = path.ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
        for parent in parents.into_iter().rev() {
            self.entry(parent, DIRECTORY, &[]);
        }
    }

    /// A file that may be run, and the directories that it lies in. The first of a name stands.
    pub(super) fn file(&mut self, path: &Path, contents: &[u8]) {
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        self.entry(relative(path), PROGRAM, contents);
    }

    /// A file of this machine at `path`.
    pub(super) fn copy(&mut self, source: &Path, path: &Path) -> Result<()> {
        self.file(path, &read(source)?);
        Ok(())
    }

    /// A program of this machine at `path`, and the libraries that it needs where they are here.
    pub(super) fn program(&mut self, source: &Path, path: &Path) -> Result<()> {
        self.copy(source, path)?;
        for library in libraries(source)? {
            if !self.paths.contains(relative(&library)) {
                self.copy(&library, &library)?;
            }
        }
        Ok(())
    }

    /// Ends the archive, and writes it to a file.
    pub(super) fn write(mut self, to: &Path) -> Result<()> {
        self.entry(Path::new("TRAILER!!!"), 0, &[]);
        fs::write(to, self.bytes).map_err(Error::io("write", to))
    }

    fn entry(&mut self, path: &Path, mode: u32, contents: &[u8]) {
        if !self.paths.insert(path.to_path_buf()) {
            return;
        }
        let name = path.as_os_str().as_encoded_bytes();
        // Inode, mode, user, group, links, time, size, four device numbers, the name's size with its 0, a sum that is none.
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let numbers =
            [self.paths.len(), mode as usize, 0, 0, links, 0, contents.len(), 0, 0, 0, 0, name.len() + 1, 0];
        let header: String = numbers.iter().map(|number| format!("{number:08x}")).collect();
        self.bytes.extend_from_slice(b"070701");
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io("read", path))
}

/// The libraries of a program with all that they need, and its dynamic loader: `ldd` knows.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io("start", "ldd"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        let missing = io::Error::new(io::ErrorKind::NotFound, line.trim().to_owned());
        return Err(Error::io("find the libraries of", program)(missing));
    }
    Ok(paths_of_ldd(&text))
}

/// The paths in what `ldd` prints: `name => path (address)`, or `path (address)`.
fn paths_of_ldd(text: &str) -> Vec<PathBuf> {
    let words = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_what_the_kernel_reads() {
        let mut archive = Initramfs::new();
        archive.file(Path::new("/a/b/c"), b"hello");
        archive.directory(Path::new("/a/b"));
        archive.file(Path::new("/a/b/c"), b"not this one");
        let expected = concat!(
            "070701000000010000",
            "41ed00000000000000000000000200000000000000000000000000000000000000000000000000000002",
            "00000000a\0",
            "070701000000020000",
            "41ed00000000000000000000000200000000000000000000000000000000000000000000000000000004",
            "00000000a/b\0\0\0",
            "070701000000030000",
            "81ed00000000000000000000000100000000000000050000000000000000000000000000000000000006",
            "00000000a/b/c\0",
            "hello\0\0\0",
        );
        let found = String::from_utf8(archive.bytes.clone()).unwrap();
        assert_eq!(found.replace('\0', "."), expected.replace('\0', "."));
        let dir = tempfile::tempdir().unwrap();
        archive.write(&dir.path().join("archive")).unwrap();
        let written = fs::read(dir.path().join("archive")).unwrap();
        assert_eq!(written.len() % 4, 0);
        assert!(written.windows(10).any(|bytes| bytes == b"TRAILER!!!"));
    }

    #[test]
    fn ldd_is_understood() {
        let text = "\tlinux-vdso.so.1 (0x0)\n\tlibm.so.6 => /lib/libm.so.6 (0x1)\n\t/lib64/ld.so (0x2)\n";
        assert_eq!(paths_of_ldd(text), [Path::new("/lib/libm.so.6"), Path::new("/lib64/ld.so")]);
        assert_eq!(paths_of_ldd("\tstatically linked\n"), [""; 0].map(PathBuf::from));
    }
}
