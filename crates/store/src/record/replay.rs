//! Making the images that a power cut could have left.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use virtio_zbd_zones::{Geometry, SECTOR_LEN_BYTES};

use super::error::RecordError;
use super::log::done;
use super::model::{Content, Cut, Keep, Memory, Model, Shape};
use super::read::{Event, Recording};
use crate::buffer::IoBuffer;
use crate::image::{CreateOptions, ImageStore, OpenOptions};
use crate::lane::EngineChoice;
use crate::medium::Medium;
use crate::store::Store;

/// How much is copied at once.
const COPY_BYTES: u64 = 1 << 20;

/// A recorded disk at a moment.
pub struct Replay<'a> {
    recording: &'a Recording,
    model: Model<Source>,
    moment: u64,
}

/// Where bytes are in the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source(u64);

impl Content for Source {
    fn at(&self, skip_bytes: u64) -> Self {
        Self(self.0 + skip_bytes)
    }
}

impl<'a> Replay<'a> {
    pub(super) fn new(recording: &'a Recording) -> Self {
        let shape = &recording.shape;
        let shape = Shape {
            capacity_bytes: shape.capacity_bytes,
            geometry: shape.geometry.clone(),
            states: shape.states.clone(),
        };
        let mut model = Model::new(shape, Memory::Everything);
        for stretch in &recording.base {
            model.base(stretch.offset_bytes, stretch.len_bytes, &Source(stretch.at_bytes));
        }
        Self { recording, model, moment: 0 }
    }

    /// How many events have happened.
    pub fn moment(&self) -> u64 {
        self.moment
    }

    /// Lets events happen until `moment`. An earlier one than now, or one behind the end, is as now, or the end.
    pub fn advance_to(&mut self, moment: u64) {
        let model = &mut self.model;
        while self.moment < moment {
            let event = usize::try_from(self.moment).ok().and_then(|index| self.recording.events.get(index));
            let Some(event) = event else { return };
            self.moment += 1;
            match event {
                Event::WriteBegin { change, data } => {
                    let content = Source(data.at_bytes);
                    model.begin(*change, data.offset_bytes, data.len_bytes, Some(&content), |_| None);
                }
                Event::ZeroBegin { change, offset_bytes, len_bytes } => {
                    model.begin(*change, *offset_bytes, *len_bytes, None, |_| None);
                }
                Event::ChangeEnd { change, ok } => model.end(*change, *ok),
                Event::Zone { zone, state } => model.publish(*zone, *state),
                Event::CommitBegin { commit, flush, finished, reset } => {
                    model.commit_begin(*commit, *flush, finished, reset);
                }
                Event::CommitEnd { commit, ok } => model.commit_end(*commit, *ok),
            }
        }
    }

    /// Makes the image that a power cut at this moment could have left: an image file for a zoned disk, which is found as after a
    /// power cut; a raw one for a disk without zones.
    ///
    /// Blocks of `block_bytes` are whole; `None`: the disk's own. An image that is there is replaced with `overwrite`.
    ///
    /// # Errors
    /// The image can't be made, or the recording not be read; `block_bytes` is none that can be.
    pub fn write_image(
        &self,
        keep: Keep,
        block_bytes: Option<u32>,
        path: &Path,
        overwrite: bool,
    ) -> Result<(), RecordError> {
        let cut = self.pick(keep, block_bytes)?;
        let Some(geometry) = self.recording.geometry() else {
            return self.write_plain(&cut, path, overwrite);
        };
        let options = CreateOptions { overwrite, ..CreateOptions::default() };
        ImageStore::create(path, geometry.clone(), options)?;
        self.fill(&ImageStore::open(path, OpenOptions::default())?, &cut)
    }

    /// As [`write_image`](Self::write_image), on an empty medium. The disk must have zones.
    ///
    /// # Errors
    /// As [`write_image`](Self::write_image).
    pub fn write_image_on(
        &self,
        keep: Keep,
        block_bytes: Option<u32>,
        medium: Arc<dyn Medium>,
    ) -> Result<(), RecordError> {
        let cut = self.pick(keep, block_bytes)?;
        let Some(geometry) = self.recording.geometry() else {
            return Err(RecordError::NoZones { name: self.recording.name.clone() });
        };
        ImageStore::create_on(&*medium, geometry.clone())?;
        self.fill(&ImageStore::open_on(medium, OpenOptions::default())?, &cut)
    }

    fn pick(&self, keep: Keep, block_bytes: Option<u32>) -> Result<Cut<Source>, RecordError> {
        let block_sectors = self.block_sectors(block_bytes)?;
        self.model.pick(keep, block_sectors).map_err(|error| {
            let geometry = self.recording.geometry();
            RecordError::TooManyActive {
                name: self.recording.name.clone(),
                event: self.moment,
                active: error.active,
                limit: geometry.map_or(0, Geometry::max_active_zones),
            }
        })
    }

    fn block_sectors(&self, block_bytes: Option<u32>) -> Result<u32, RecordError> {
        let own_sectors = self.recording.shape.block_sectors();
        let Some(block_bytes) = block_bytes else { return Ok(own_sectors) };
        // A disk without zones does not say how long its blocks are.
        let most_sectors = if self.recording.geometry().is_some() { own_sectors } else { 128 };
        let sectors = block_bytes / SECTOR_LEN_BYTES;
        match block_bytes.is_power_of_two() && (1..=most_sectors).contains(&sectors) {
            true => Ok(sectors),
            false => Err(RecordError::Block {
                block_bytes: block_bytes.into(),
                most_bytes: u64::from(most_sectors) * u64::from(SECTOR_LEN_BYTES),
            }),
        }
    }

    /// Puts a cut into a new image.
    fn fill(&self, store: &ImageStore, cut: &Cut<Source>) -> Result<(), RecordError> {
        let name = store.identity().description;
        let mut lane =
            store.open_lane(EngineChoice::Sync).map_err(RecordError::io(&name, "opening the image"))?;
        self.copy(cut, &name, |bytes, offset_bytes| {
            lane.write(0, IoBuffer::owned(bytes), offset_bytes);
            done(&mut lane).map(|_| ())
        })?;
        Ok(store.cut_power(&cut.states)?)
    }

    fn write_plain(&self, cut: &Cut<Source>, path: &Path, overwrite: bool) -> Result<(), RecordError> {
        let name = path.display().to_string();
        let mut options = File::options();
        options.write(true).truncate(true);
        if overwrite {
            options.create(true)
        } else {
            options.create_new(true)
        };
        let io = |what| RecordError::io(&name, what);
        let file = options.open(path).map_err(io("making the file"))?;
        file.set_len(self.recording.capacity_bytes()).map_err(io("giving the file its length"))?;
        self.copy(cut, &name, |bytes, offset_bytes| file.write_all_at(&bytes, offset_bytes))
    }

    /// Gives all pieces that are not zeros to `write`.
    fn copy(
        &self,
        cut: &Cut<Source>,
        name: &str,
        mut write: impl FnMut(Vec<u8>, u64) -> io::Result<()>,
    ) -> Result<(), RecordError> {
        for piece in &cut.pieces {
            let Some(Source(from_bytes)) = piece.content else { continue };
            let mut done_bytes = 0;
            while done_bytes < piece.len_bytes {
                let part_bytes = (piece.len_bytes - done_bytes).min(COPY_BYTES);
                let mut bytes = vec![0; usize::try_from(part_bytes).unwrap_or(usize::MAX)];
                self.recording
                    .file
                    .read_exact_at(&mut bytes, from_bytes + done_bytes)
                    .map_err(RecordError::io(&self.recording.name, "reading data"))?;
                write(bytes, piece.offset_bytes + done_bytes)
                    .map_err(RecordError::io(name, "writing data"))?;
                done_bytes += part_bytes;
            }
        }
        Ok(())
    }
}
