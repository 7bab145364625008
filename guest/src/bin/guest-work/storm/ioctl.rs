//! The requests of `linux/blkzoned.h`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// What a program may do to a range of zones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manage {
    Reset,
    Open,
    Close,
    Finish,
}

/// A zone as Linux reports it; sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reported {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) wp: u64,
    pub(crate) kind: u8,
    pub(crate) condition: u8,
    pub(crate) capacity: u64,
}

const READ: u64 = 2;
const WRITE: u64 = 1;
const HEADER_WORDS: usize = 2;
const ZONE_WORDS: usize = 8;

/// `_IOC`, with the type of block devices.
const fn request(direction: u64, number: u64, len: u64) -> u64 {
    direction << 30 | len << 16 | 0x12 << 8 | number
}

const BLKREPORTZONE: u64 = request(READ | WRITE, 130, 16);
/// No size and direction: it is older than those.
const BLKDISCARD: u64 = request(0, 119, 0);
const BLKFLSBUF: u64 = request(0, 97, 0);

impl Manage {
    fn request(self) -> u64 {
        let number = match self {
            Manage::Reset => 131,
            Manage::Open => 134,
            Manage::Close => 135,
            Manage::Finish => 136,
        };
        request(WRITE, number, 16)
    }
}

/// Manages the zones of a range of sectors.
pub(crate) fn manage(file: &File, what: Manage, sector: u64, sectors: u64) -> io::Result<()> {
    call(file, what.request(), &mut [sector, sectors])
}

/// Discards a range of bytes.
pub(crate) fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    call(file, BLKDISCARD, &mut [offset, len])
}

/// Empties the page cache.
pub(crate) fn drop_cache(file: &File) -> io::Result<()> {
    call(file, BLKFLSBUF, &mut [0, 0])
}

/// At most `count` zones from the one that `sector` is in.
pub(crate) fn report(file: &File, sector: u64, count: u32) -> io::Result<Vec<Reported>> {
    let mut words = vec![0_u64; HEADER_WORDS + count as usize * ZONE_WORDS];
    words[0] = sector;
    words[1] = count.into();
    call(file, BLKREPORTZONE, &mut words)?;
    let found = usize::try_from(words[1] & u64::from(u32::MAX)).unwrap_or(usize::MAX);
    let zones = words[HEADER_WORDS..].chunks_exact(ZONE_WORDS).take(found);
    Ok(zones
        .map(|zone| {
            let [kind, condition, ..] = zone[3].to_le_bytes();
            Reported { start: zone[0], len: zone[1], wp: zone[2], kind, condition, capacity: zone[4] }
        })
        .collect())
}

fn call(file: &File, request: u64, words: &mut [u64]) -> io::Result<()> {
    // SAFETY: each of the requests reads and writes the structure that `words` holds, a report with as many zones behind it as
    // it asks for (`report` makes room for them), and keeps no pointer to it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, words.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
