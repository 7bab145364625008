//! Writing a recording.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use virtio_zbd_zones::{SECTOR_LEN_BYTES, ZoneState};
use zerocopy::IntoBytes;

use super::error::RecordError;
use super::format::{Header, Record, Sealed, kind};
use super::model::Shape;
use crate::buffer::IoBuffer;
use crate::lane::{Event, Lane};

/// How much is looked at once for what is on the disk at the beginning.
const BASE_CHUNK_BYTES: u64 = 1 << 20;
/// Zeros are left out in pieces of this.
const BASE_PIECE_BYTES: usize = 64 << 10;

/// A recording that is being written. Each record is one write to the file: when the process is killed, all are there but the
/// one that it was about to write.
pub(super) struct Log {
    name: String,
    file: File,
    next_record: u64,
}

impl Log {
    pub(super) fn create(path: &Path, shape: &Shape) -> Result<Self, RecordError> {
        let name = path.display().to_string();
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| match error
            .kind()
        {
            io::ErrorKind::AlreadyExists => RecordError::Exists { name: name.clone() },
            _ => RecordError::io(&name, "making the recording")(error),
        })?;
        let mut log = Self { name: name.clone(), file, next_record: 0 };
        log.begin(shape).map_err(RecordError::io(name, "writing the recording"))?;
        Ok(log)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn append(&mut self, record: Record) -> io::Result<()> {
        self.append_sealed(record.seal())
    }

    /// Adds a record. `None` is one that is too long.
    pub(super) fn append_sealed(&mut self, sealed: Option<Sealed>) -> io::Result<()> {
        let mut sealed = sealed
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a record would be too long"))?;
        self.file.write_all(sealed.number(self.next_record))?;
        self.next_record += 1;
        Ok(())
    }

    /// Puts down what is on the disk, read through `lane`. What is zero is left out. Returns how many bytes were not.
    pub(super) fn base(&mut self, lane: &mut Lane, shape: &Shape) -> io::Result<u64> {
        let mut base_bytes = 0;
        for (start, end) in stretches(shape) {
            let mut at = start;
            while at < end {
                let len = (end - at).min(BASE_CHUNK_BYTES);
                base_bytes += self.base_chunk(&read(lane, at, len)?, at)?;
                at += len;
            }
        }
        self.append(Record::new(kind::START, 0))?;
        Ok(base_bytes)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn begin(&mut self, shape: &Shape) -> io::Result<()> {
        self.file.write_all(Header::new(shape.capacity_bytes, shape.geometry.as_ref()).as_bytes())?;
        let words: Vec<u64> = shape.states.iter().copied().map(ZoneState::to_bits).collect();
        self.append(Record::numbers(kind::STATES, &words))
    }

    fn base_chunk(&mut self, bytes: &[u8], at_bytes: u64) -> io::Result<u64> {
        let mut base_bytes = 0;
        let mut offset_bytes = at_bytes;
        for piece in bytes.chunks(BASE_PIECE_BYTES) {
            if piece.iter().any(|&byte| byte != 0) {
                let mut record = Record::new(kind::BASE, 8 + piece.len()).u64(offset_bytes);
                record.room(piece.len()).copy_from_slice(piece);
                self.append(record)?;
                base_bytes += piece.len() as u64;
            }
            offset_bytes += piece.len() as u64;
        }
        Ok(base_bytes)
    }
}

/// Where there may be data, in bytes: all that can be written anywhere, and each zone up to its write pointer.
fn stretches(shape: &Shape) -> Vec<(u64, u64)> {
    let sector = u64::from(SECTOR_LEN_BYTES);
    let mut stretches = vec![(0, shape.free_end() * sector)];
    if let Some(geometry) = &shape.geometry {
        for (zone, state) in (0..).zip(&shape.states).filter(|(_, state)| state.wp_sectors != 0) {
            let start = geometry.zone_start(zone);
            stretches.push((start * sector, (start + u64::from(state.wp_sectors)) * sector));
        }
    }
    stretches
}

/// Reads a stretch of a disk.
pub(super) fn read(lane: &mut Lane, at_bytes: u64, len_bytes: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len_bytes).map_err(io::Error::other)?;
    lane.read(0, IoBuffer::owned(vec![0; len]), len, at_bytes);
    let buffer = done(lane)?;
    buffer.and_then(IoBuffer::into_owned).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Waits for the one operation that is under way.
pub(super) fn done(lane: &mut Lane) -> io::Result<Option<IoBuffer>> {
    let mut events = Vec::new();
    loop {
        lane.wait(None, &mut events)?;
        for event in events.drain(..) {
            if let Event::Done { buffer, result, .. } = event {
                return result.map(|()| buffer);
            }
        }
    }
}
