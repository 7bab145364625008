//! A queue taken up again: requests that an earlier worker took and did not answer, in this process or in one that died.
//!
//! What the notes mean, and why each case is right, is in `docs/reliability.md`.

use virtio_zbd_spec::Status;
use virtio_zbd_zones::{Condition, Grant, SECTOR_LEN_BYTES};

use crate::execute::byte_offset;
use crate::flight::{Answer, Step};
use crate::inflight::Note;
use crate::request::Request;
use crate::worker::Worker;

impl Worker {
    /// Starts what was under way when the queue was last served, in the order in which it was taken, before anything new.
    pub(crate) fn take_up(&mut self) {
        let disk = std::sync::Arc::clone(&self.place.disk);
        let Some(heads) = self.notes.resubmit() else {
            // A front-end that keeps nothing: what another one has kept is not coming back.
            return disk.forget_inflight();
        };
        for (head, note) in heads {
            log::debug!("queue {}: head {head} is made again: {note:?}", self.place.index);
            if let Some((slot, request)) = self.open(head) {
                self.start_again(slot, head, request, note);
            }
        }
        disk.inflight_taken_up(self.place.index);
    }

    fn start_again(&mut self, slot: u32, head: u16, request: Request, note: Note) {
        match note {
            Note::Ended(answer) => return self.answer(slot, answer),
            Note::Written { sector, sectors } if self.is_for(&request, sector, sectors) => {
                return self.stable_then_answer(slot, write_answer(&request, sector));
            }
            Note::Placed { sector, sectors } if self.is_for(&request, sector, sectors) => {
                let zones = self.place.shape.zones.as_ref();
                if let Some(grant) = zones.and_then(|zones| zones.adopt(sector, sectors)) {
                    return self.write_in_place(slot, &request, grant, sectors);
                }
            }
            _ => {}
        }
        // Before its new place is another's old one.
        self.notes.set(head, Note::Taken);
        if let Request::ZoneClose { sector } = request
            && self.is_empty(sector)
        {
            // The restart has closed what was open (D4), and what had nothing in it is empty now.
            return self.answer(slot, Answer::OK);
        }
        self.start(slot, request);
    }

    /// Whether a note can be this request's: it names a place that the request can have had.
    fn is_for(&self, request: &Request, sector: u64, sectors: u32) -> bool {
        let Some(zones) = &self.place.shape.zones else { return false };
        let geometry = zones.geometry();
        let data_sectors = |len_bytes: u32| len_bytes / SECTOR_LEN_BYTES;
        match request {
            Request::Write { sector: at, data } => *at == sector && data_sectors(data.len_bytes()) == sectors,
            Request::Append { sector: at, data } => {
                let zone = geometry.zone_of(sector);
                zone.is_some_and(|zone| geometry.zone_start(zone) == *at)
                    && data_sectors(data.len_bytes()) == sectors
            }
            _ => false,
        }
    }

    /// Writes data to where it was to go in the first place, below the write pointer.
    fn write_in_place(&mut self, slot: u32, request: &Request, grant: Grant, sectors: u32) {
        let at = grant.sector();
        let (Request::Write { data, .. } | Request::Append { data, .. }) = request else {
            return self.answer(slot, Answer::status(Status::IoErr));
        };
        let append = matches!(request, Request::Append { .. });
        let buffer = self.buffer(data);
        self.set_step(slot, Step::Writing { grant: Some(grant), sectors, append });
        match buffer {
            Some(buffer) => self.lane.write(slot.into(), buffer, byte_offset(at)),
            None => self.io_done(slot, Err(std::io::ErrorKind::InvalidInput.into())),
        }
    }

    fn is_empty(&self, sector: u64) -> bool {
        let zones = self.place.shape.zones.as_ref();
        zones.is_some_and(|zones| {
            let zone = zones.geometry().zone_of(sector).and_then(|zone| zones.report(zone));
            zone.is_some_and(|zone| zone.start == sector && zone.condition == Condition::Empty)
        })
    }
}

fn write_answer(request: &Request, sector: u64) -> Answer {
    let append_sector = matches!(request, Request::Append { .. }).then_some(sector);
    Answer { append_sector, ..Answer::OK }
}
