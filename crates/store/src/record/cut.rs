//! Cutting a disk's power.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::pipe::{PipeFlags, pipe_with};
use virtio_zbd_zones::SECTOR_LEN_BYTES;

use super::error::RecordError;
use super::log::{done, read};
use super::model::{Content, Keep, Memory, Model, Piece, Shape};
use crate::buffer::IoBuffer;
use crate::lane::{EngineChoice, Lane, Zeroing};
use crate::store::Store;

/// When the power is cut, and what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerCut {
    /// The power goes when this many changes have begun, at least 1: the last of them is under way. A change is a write or an
    /// append that has data, a range that is zeroed, a zone that is finished, a zone that is reset (a reset of all zones
    /// is as many as there are in it).
    pub after: u64,
    /// What is left of what was not flushed.
    pub keep: Keep,
}

/// What a power cut has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutReport {
    /// How many zones have less written in them than before.
    pub zones_set_back: u32,
    /// How many bytes were put back to what they were, or to zeros.
    pub bytes_changed: u64,
}

/// What cuts the power.
pub(super) struct Cutter {
    pub(super) model: Model<Bytes>,
    /// Changes until then.
    left: u64,
    keep: Keep,
    name: String,
    /// To read what is overwritten, and to put it back.
    lane: Lane,
    /// A pipe. When its writing end is closed all lanes wake.
    wake: Option<OwnedFd>,
    woken: OwnedFd,
    /// Lanes that may still have something under way.
    pub(super) lanes: usize,
    /// Commits that are with the store.
    pub(super) commits: usize,
    /// What was overwritten could not be read.
    failed: Option<io::Error>,
    done: Option<CutReport>,
}

impl Cutter {
    pub(super) fn new(cut: PowerCut, store: &dyn Store, shape: Shape) -> Result<Self, RecordError> {
        let name = store.identity().description;
        let lane = store.open_lane(EngineChoice::Sync).map_err(RecordError::io(&name, "opening the disk"))?;
        let (woken, wake) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|error| RecordError::io(&name, "making a pipe")(error.into()))?;
        Ok(Self {
            model: Model::new(shape, Memory::Doubtful),
            left: cut.after.max(1),
            keep: cut.keep,
            name,
            lane,
            wake: Some(wake),
            woken,
            lanes: 0,
            commits: 0,
            failed: None,
            done: None,
        })
    }

    /// A change begins. What it overwrites is kept where a cut could bring it back.
    pub(super) fn begin(&mut self, id: u64, offset_bytes: u64, len_bytes: u64, content: Option<&Bytes>) {
        let Self { model, lane, failed, .. } = self;
        let mut old: Option<Bytes> = None;
        model.begin(id, offset_bytes, len_bytes, content, |sector| {
            if old.is_none() {
                // All of it at once. What else is being written in there is not asked for.
                match read(lane, offset_bytes, len_bytes) {
                    Ok(bytes) => old = Some(Bytes::new(bytes)),
                    Err(error) => *failed = Some(error),
                }
            }
            let skip_bytes = (sector * u64::from(SECTOR_LEN_BYTES)).saturating_sub(offset_bytes);
            old.as_ref().map(|old| old.at(skip_bytes))
        });
    }

    /// So many changes more have begun. Returns whether the power goes.
    pub(super) fn count(&mut self, changes: u64) -> bool {
        let before = self.left;
        self.left = before.saturating_sub(changes);
        before > 0 && self.left == 0
    }

    pub(super) fn waker(&self) -> io::Result<OwnedFd> {
        self.woken.try_clone()
    }

    pub(super) fn wake_lanes(&mut self) {
        self.wake = None;
    }

    /// Whether nothing is under way that could still change the disk.
    pub(super) fn is_quiet(&self) -> bool {
        self.lanes == 0 && self.commits == 0
    }

    /// Brings the disk into one of the states that the cut may leave.
    ///
    /// The sectors go first, then the zones. Each step leaves an allowed state: zones and blocks do not depend on each other.
    pub(super) fn apply(&mut self, store: &dyn Store) -> Result<CutReport, RecordError> {
        if let Some(done) = self.done {
            return Ok(done);
        }
        let io = |what| RecordError::io(&self.name, what);
        if let Some(error) = self.failed.take() {
            return Err(io("reading what was overwritten")(error));
        }
        let shape = self.model.shape();
        let block_sectors = shape.block_sectors();
        let as_after_a_kill = self.pick(Keep::All, block_sectors)?.states;
        let cut = self.pick(self.keep, block_sectors)?;
        let pairs = as_after_a_kill.iter().zip(&cut.states);
        let set_back = pairs.filter(|(all, left)| left.wp_sectors < all.wp_sectors).count();
        let mut bytes_changed = 0;
        for piece in cut.pieces {
            bytes_changed += piece.len_bytes;
            put(&mut self.lane, piece).map_err(io("putting back what was there"))?;
        }
        store.cut_power(&cut.states)?;
        let zones_set_back = u32::try_from(set_back).unwrap_or(u32::MAX);
        let report = CutReport { zones_set_back, bytes_changed };
        self.done = Some(report);
        Ok(report)
    }

    fn pick(&self, keep: Keep, block_sectors: u32) -> Result<super::model::Cut<Bytes>, RecordError> {
        self.model.pick(keep, block_sectors).map_err(|error| {
            let geometry = self.model.shape().geometry.as_ref();
            let limit = geometry.map_or(0, virtio_zbd_zones::Geometry::max_active_zones);
            RecordError::TooManyActive { name: self.name.clone(), event: 0, active: error.active, limit }
        })
    }
}

/// Writes one piece, in parts: it may be as long as all that was written.
fn put(lane: &mut Lane, piece: Piece<Bytes>) -> io::Result<()> {
    match piece.content {
        Some(content) => lane.write(0, IoBuffer::owned(content.slice(piece.len_bytes)?), piece.offset_bytes),
        None => lane.zero(0, piece.offset_bytes, piece.len_bytes, Zeroing::Deallocate),
    }
    done(lane).map(|_| ())
}

/// Bytes in memory, from some place on.
#[derive(Clone, Debug)]
pub(super) struct Bytes {
    all: Arc<[u8]>,
    skip_bytes: u64,
}

impl Bytes {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { all: bytes.into(), skip_bytes: 0 }
    }

    fn slice(&self, len_bytes: u64) -> io::Result<Vec<u8>> {
        let end = self.skip_bytes.checked_add(len_bytes);
        let range = usize::try_from(self.skip_bytes).ok().zip(end.and_then(|end| usize::try_from(end).ok()));
        let bytes = range.and_then(|(start, end)| self.all.get(start..end));
        bytes.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.all, &other.all) && self.skip_bytes == other.skip_bytes
    }
}

impl Content for Bytes {
    fn at(&self, skip_bytes: u64) -> Self {
        Self { all: Arc::clone(&self.all), skip_bytes: self.skip_bytes + skip_bytes }
    }
}
