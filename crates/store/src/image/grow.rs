//! Making the disk in an image longer, while it is used or not.

use std::io;

use virtio_zbd_zones::ZoneState;

use super::format::Layout;
use super::live::LiveArea;
use super::room;
use super::{Book, ImageStore, Shape};
use crate::error::StoreError;
use crate::medium::clear;

impl ImageStore {
    /// # Why the order is this one
    /// The process may be killed, or the machine may stop, between any two calls, and the next opening must find the disk as it was or
    /// as it is to be.
    ///
    /// 1. *Length.* What may lie in the file behind the data area is removed, and the file gets its new length. (A crash: the file is
    ///    longer than it needs to be, which it may.)
    /// 2. *Words.* The new zones' words go behind the ones in the live area, which grows where it is: whoever publishes a zone goes on
    ///    doing so. (A crash: they lie where nobody looks.)
    /// 3. *Pages.* The zone-state pages are written once more, with the new zones, to a place where nothing is that counts, with
    ///    the states that the medium has, both slots of each. Commits wait. (The same.)
    /// 4. *Sync.* All of this is on the medium before the superblock speaks of it.
    /// 5. *Superblock.* One copy, sync, the other, sync. (A crash: one of the two counts, and what it names is whole. A kill: the live area's
    ///    words are those of both.)
    /// 6. The old pages' place becomes a hole.
    ///
    /// Where the pages are in the way of the live area they are moved first, by steps 3 to 6, with the zones that there are.
    pub(super) fn grow_to(&self, book: &mut Book, capacity_sectors: u64) -> Result<(), StoreError> {
        let name = || self.name();
        let Some(live) = self.live() else { return Err(StoreError::ReadOnly { name: name() }) };
        if let Some(halt) = &book.halt {
            return Err(halt.error(name()));
        }
        let shape = self.shape();
        let now = shape.geometry.capacity_sectors();
        if capacity_sectors <= now {
            return match capacity_sectors == now {
                true => Ok(()),
                false => Err(StoreError::Shrunk {
                    name: name(),
                    capacity_sectors: now,
                    wanted_sectors: capacity_sectors,
                }),
            };
        }
        let refused = |why| StoreError::NoGrowth { name: name(), why };
        let geometry = shape.geometry.grown(capacity_sectors).map_err(|error| refused(error.to_string()))?;
        let (zones, zones_now) = (geometry.zone_count(), shape.geometry.zone_count());
        let plan = room::plan(&shape.layout, zones).ok_or_else(|| {
            let most = room::zones_max(&shape.layout, zones_now);
            refused(format!(
                "its file has room for the states of {most} zones and not of {zones}; make a new image with `vzbd create --grow-to`, \
                 and copy what is in this one"
            ))
        })?;
        let too_long = || refused("its file would be longer than a file can be".to_owned());
        let mut steps = Vec::new();
        for (step, &pages_start) in plan.iter().enumerate() {
            let geometry = if step + 1 == plan.len() { &geometry } else { &shape.geometry };
            let layout = steps.last().map_or(&shape.layout, |step: &Shape| &step.layout);
            let layout = layout.grown(geometry, pages_start).ok_or_else(too_long)?;
            steps.push(Shape { geometry: geometry.clone(), layout });
        }
        self.lengthen(&shape.layout, steps.last().map_or(&shape.layout, |step| &step.layout))?;
        steps.into_iter().try_for_each(|step| self.switch_to(book, live, step))
    }

    /// The most zones that [`grow_to`](Self::grow_to) has room for.
    pub(super) fn zones_max(&self) -> u32 {
        let shape = self.shape();
        room::zones_max(&shape.layout, shape.geometry.zone_count())
    }

    fn lengthen(&self, old: &Layout, new: &Layout) -> Result<(), StoreError> {
        let io = |what| StoreError::io(self.name(), what);
        let found_bytes = self.medium.len_bytes().map_err(io("finding the file's length"))?;
        if found_bytes < old.data.end {
            // To make it longer would make the loss unseen.
            let lost = "what was behind its end is gone".to_owned();
            return Err(StoreError::CutOff {
                name: self.name(),
                expected_bytes: old.data.end,
                found_bytes,
                lost,
            });
        }
        let beyond = old.data.end..found_bytes.min(new.data.end);
        if !beyond.is_empty()
            && self.medium.next_data(beyond.clone()).map_err(io("looking behind the data"))?.is_some()
        {
            clear(&*self.medium, beyond).map_err(io("removing what lies behind the data"))?;
        }
        if found_bytes < new.data.end {
            self.medium.set_len(new.data.end).map_err(io("making the file longer"))?;
        }
        Ok(())
    }

    /// Steps 2 to 6.
    fn switch_to(&self, book: &mut Book, live: &LiveArea, next: Shape) -> Result<(), StoreError> {
        let io = |what| StoreError::io(self.name(), what);
        let now = self.shape();
        self.extend_live(live, &now, &next).map_err(io("making the live area longer"))?;
        let pages = book.pages.moved(&next.geometry, &next.layout);
        self.allocate(next.layout.pages.clone()).map_err(io("taking the space for the zone states"))?;
        pages.write_new(&*self.medium, &next.layout).map_err(io("writing zone states"))?;
        self.medium.sync_data().map_err(|error| self.sync_failed(book, error))?;
        let named = book
            .superblocks
            .write(&*self.medium, |superblock| superblock.set_shape(&next.geometry, &next.layout));
        // Which of the two disks the next opening finds is not known. Until then nothing more may be told.
        named.map_err(|error| self.sync_failed(book, error))?;
        book.pages = pages;
        self.take_shape(next);
        if let Err(error) = clear(&*self.medium, now.layout.pages.clone()) {
            log::debug!("{}: where the zone states were is not a hole: {error}", self.name());
        }
        Ok(())
    }

    /// Puts the states of new zones behind those of the others.
    fn extend_live(&self, live: &LiveArea, now: &Shape, next: &Shape) -> io::Result<()> {
        let (from, to) = (now.geometry.zone_count(), next.geometry.zone_count());
        if from == to {
            return Ok(());
        }
        let area = &next.layout.live;
        self.allocate(now.layout.live.end..area.end)?;
        let words = (from..to).map(|zone| ZoneState::new(&next.geometry, zone).to_bits());
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let start = area.start + 8 * u64::from(from);
        // By plain writes to the end, so that a full host says so here: a store to a hole could not.
        if area.end > now.layout.live.end {
            bytes.resize(usize::try_from(area.end - start).map_err(io::Error::other)?, 0);
        }
        self.medium.write_at(&bytes, start)?;
        let zones = usize::try_from(to).map_err(io::Error::other)?;
        if zones > live.count() {
            // Whole multiples, so that the next growth finds its words mapped.
            let count = usize::try_from((area.end - area.start) / 8).map_err(io::Error::other)?;
            live.extend(self.medium.map_words(area.start, count)?)?;
        }
        Ok(())
    }

    fn allocate(&self, range: std::ops::Range<u64>) -> io::Result<()> {
        match self.medium.allocate(range) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }
}
