//! What becomes of a request: zones asked, store driven, zones told, answer given.
//!
//! A request moves from [`Step`] to [`Step`]; each function here takes it one step on and either answers it or leaves it waiting for
//! the lane, the committer or a zone.

use std::io;
use std::sync::Arc;

use virtio_zbd_spec::{Features, ID_LEN_BYTES, Status};
use virtio_zbd_store::{IoBuffer, NotMade, Zeroing, medium_is_bad};
use virtio_zbd_zones::{Begun, Grant, ReadPlan, Refusal, ResetEnd, Retirement, SECTOR_LEN_BYTES, ZoneKind};

use crate::commit::{Change, CommitEnd, CommitKind};
use crate::disk::Zones;
use crate::flight::{Answer, Probe, ResetAll, Step};
use crate::inflight::Note;
use crate::request::{Request, SectorRange};
use crate::spans::{Spans, len_of};
use crate::worker::Worker;

impl Worker {
    /// Starts a request that was just taken.
    pub(crate) fn start(&mut self, slot: u32, request: Request) {
        if log::log_enabled!(target: "vzbd::request", log::Level::Trace) {
            let head = self.flights.get_mut(slot).map_or(0, |flight| flight.head);
            log::trace!(target: "vzbd::request", "queue {} head {head}: {request:?}", self.place.index);
        }
        self.place.take_up_growth();
        if self.place.shape.offer.read_only && request.changes_the_disk() {
            return self.answer(slot, Answer::status(Status::IoErr));
        }
        self.make(slot, request);
    }

    /// Makes a request again that has waited for its zone.
    pub(crate) fn retry(&mut self, slot: u32) {
        self.place.take_up_growth();
        match self.set_step(slot, Step::Starting) {
            Some(Step::Waiting(request)) => self.make(slot, request),
            Some(Step::WaitingToResetAll(progress)) => self.reset_all(slot, progress),
            other => self.lost(slot, other),
        }
    }

    fn make(&mut self, slot: u32, request: Request) {
        match request {
            Request::Read { sector, data } => self.read(slot, sector, &data),
            Request::Write { .. } | Request::Append { .. } => self.write(slot, request),
            Request::Flush => self.commit(slot, CommitKind::Flush, Step::Flushing { answer: Answer::OK }),
            Request::GetId { data } => {
                let serial = self.place.disk.serial;
                data.write(&self.place.memory, 0, &serial);
                data.fill_zero(&self.place.memory, len_of::<[u8; ID_LEN_BYTES]>());
                self.answer(slot, Answer::FILLED);
            }
            Request::Discard { ranges } | Request::WriteZeroes { ranges } => self.zero(slot, &ranges),
            Request::ZoneReport { sector, data } => self.report(slot, sector, &data),
            Request::ZoneOpen { .. }
            | Request::ZoneClose { .. }
            | Request::ZoneFinish { .. }
            | Request::ZoneReset { .. } => self.manage(slot, request),
            Request::ZoneResetAll => self.reset_all(slot, ResetAll::default()),
        }
    }

    fn read(&mut self, slot: u32, sector: u64, data: &Spans) {
        let sectors = u64::from(data.len_bytes() / SECTOR_LEN_BYTES);
        let shape = &self.place.shape;
        let stored_sectors = match &shape.zones {
            Some(zones) => match zones.admit_read(sector, sectors) {
                Ok(plan) if plan.more.is_empty() => plan.stored_sectors,
                Ok(plan) => return self.read_stretches(slot, sector, data, &plan),
                Err(refusal) => return self.refuse(slot, refusal),
            },
            None if !shape.offer.holds(sector, sectors) => {
                return self.answer(slot, Answer::status(Status::IoErr));
            }
            None => sectors,
        };
        let Some(mut buffer) = self.buffer(data) else {
            return self.answer(slot, Answer::status(Status::IoErr));
        };
        // Not more than the data's length, which was a u32.
        let stored_bytes =
            usize::try_from(stored_sectors * u64::from(SECTOR_LEN_BYTES)).unwrap_or(usize::MAX);
        let unwritten_bytes = buffer.len_bytes().saturating_sub(stored_bytes);
        if buffer.fill_zero(buffer.len_bytes() - unwritten_bytes, unwritten_bytes).is_err() {
            return self.answer(slot, Answer::status(Status::IoErr));
        }
        if stored_bytes == 0 {
            return self.answer(slot, Answer::FILLED);
        }
        self.set_step(slot, Step::Reading { sector });
        self.lane.read(slot.into(), buffer, stored_bytes, byte_offset(sector));
    }

    /// A read across zones of which one is not written to its end: stretch after stretch, with zeros between.
    fn read_stretches(&mut self, slot: u32, sector: u64, data: &Spans, plan: &ReadPlan) {
        let len_bytes =
            |sectors: u64| u32::try_from(sectors * u64::from(SECTOR_LEN_BYTES)).unwrap_or(u32::MAX);
        let mut stretches = Vec::new();
        let mut rest = data.clone();
        let mut at = 0;
        let first = 0..plan.stored_sectors;
        for stretch in std::iter::once(&first).chain(&plan.more) {
            let cut = |rest: &mut Spans, to: u64| rest.split_front(len_bytes(to - at));
            let Some(gap) = cut(&mut rest, stretch.start) else { break };
            gap.fill_zero(&self.place.memory, 0);
            at = stretch.start;
            let Some(part) = rest.split_front(len_bytes(stretch.end - at)) else { break };
            at = stretch.end;
            if part.len_bytes() == 0 {
                continue;
            }
            let Some(buffer) = self.buffer(&part) else {
                return self.answer(slot, Answer::status(Status::IoErr));
            };
            stretches.push((buffer, sector + stretch.start));
        }
        rest.fill_zero(&self.place.memory, 0);
        let left = u32::try_from(stretches.len()).unwrap_or(u32::MAX);
        self.set_step(slot, Step::ReadingStretches { left, status: Status::Ok });
        for (buffer, sector) in stretches {
            let len_bytes = buffer.len_bytes();
            self.lane.read(slot.into(), buffer, len_bytes, byte_offset(sector));
        }
    }

    /// A write or an append: a place for it, then the data.
    fn write(&mut self, slot: u32, request: Request) {
        let (&Request::Write { sector, ref data } | &Request::Append { sector, ref data }) = &request else {
            return self.lost(slot, None);
        };
        let append = matches!(request, Request::Append { .. });
        let sectors = data.len_bytes() / SECTOR_LEN_BYTES;
        let Some(buffer) = self.buffer(data) else {
            return self.answer(slot, Answer::status(Status::IoErr));
        };
        let shape = &self.place.shape;
        let ticket = self.place.mailbox.ticket(slot);
        let grant = match &shape.zones {
            Some(zones) => {
                let head = self.flights.get_mut(slot).map_or(0, |flight| flight.head);
                // Noted before another request, perhaps of another queue, can have the place behind it.
                let placed = |sector| self.notes.set(head, Note::Placed { sector, sectors });
                let admitted = match append {
                    true => zones.place_append(sector, sectors, ticket, placed),
                    false => zones.place_write(sector, sectors, ticket, placed),
                };
                match admitted {
                    Ok(grant) => Some(grant),
                    Err(Refusal::Busy) => {
                        self.set_step(slot, Step::Waiting(request));
                        return;
                    }
                    Err(refusal) => return self.refuse(slot, refusal),
                }
            }
            None if shape.offer.holds(sector, sectors.into()) => None,
            None => return self.answer(slot, Answer::status(Status::IoErr)),
        };
        let mut grant = grant;
        if let Some(room) = grant.as_mut().and_then(Grant::take_room)
            && let Some(grant) = grant.take()
        {
            let closed = vec![room.zone()];
            let step = Step::MakingRoom { room, grant, sectors, append, buffer };
            return self.commit(slot, CommitKind::Change(Change { closed, ..Change::default() }), step);
        }
        let at = grant.as_ref().map_or(sector, Grant::sector);
        self.set_step(slot, Step::Writing { grant, sectors, append });
        if sectors == 0 {
            return self.io_done(slot, Ok(()));
        }
        self.lane.write(slot.into(), buffer, byte_offset(at));
    }

    /// DISCARD and WRITE_ZEROES, of a plain disk: all ranges at once, one answer.
    fn zero(&mut self, slot: u32, ranges: &[SectorRange]) {
        let shape = &self.place.shape;
        if !ranges.iter().all(|range| shape.offer.holds(range.sector, range.sectors.into())) {
            return self.answer(slot, Answer::status(Status::IoErr));
        }
        let ranges = ranges.iter().filter(|range| range.sectors != 0);
        let left = u32::try_from(ranges.clone().count()).unwrap_or(u32::MAX);
        if left == 0 {
            return self.stable_then_answer(slot, Answer::OK);
        }
        self.set_step(slot, Step::Zeroing { left, status: Status::Ok });
        for range in ranges {
            let how = if range.may_unmap { Zeroing::Deallocate } else { Zeroing::KeepAllocated };
            self.lane.zero(slot.into(), byte_offset(range.sector), byte_offset(range.sectors.into()), how);
        }
    }

    /// The lane has done something for this request.
    pub(crate) fn io_done(&mut self, slot: u32, result: io::Result<()>) {
        let ok = result.is_ok();
        let bad = result.as_ref().is_err_and(medium_is_bad);
        let step = self.set_step(slot, Step::Starting);
        if let Err(error) = &result {
            // One that has failed takes all behind it along.
            let level = if NotMade::is_in(error) { log::Level::Debug } else { log::Level::Error };
            log::log!(level, "queue {}: I/O on the store failed in {step:?}: {error}", self.place.index);
        }
        match step {
            Some(Step::Reading { .. }) if ok => self.answer(slot, Answer::FILLED),
            Some(Step::Reading { sector }) if bad && self.store_keeps() => {
                let zones = self.place.shape.zones.as_ref();
                let doubted = zones.and_then(|zones| zones.doubt(sector));
                self.reread_then_answer(slot, doubted, Answer::status(Status::IoErr));
            }
            Some(Step::Reading { sector }) if bad => self.probe_zone_of(slot, sector),
            // It is that place, or it will pass.
            Some(Step::Reading { .. }) => self.answer(slot, Answer::status(Status::IoErr)),
            Some(Step::Probing(probe)) if bad => self.probe(slot, probe),
            Some(Step::Probing(_)) => self.answer(slot, Answer::status(Status::IoErr)),
            // Nothing can be cleared there: what is left of it, the store must say.
            Some(Step::Writing { grant: Some(grant), .. })
                if !ok && self.store_keeps() && grant.is_reserved() =>
            {
                let answer = Answer::status(Status::IoErr);
                self.note(slot, Note::Ended(answer));
                let doubted = self.fail(grant);
                self.reread_then_answer(slot, doubted, answer);
            }
            // What is left of it goes first: once the zone knows, the place may lie below its write pointer, or be reset and
            // written anew.
            // Where nothing is reserved, what is left of it is nobody's business.
            Some(Step::Writing { grant: Some(grant), sectors, .. }) if !ok && grant.is_reserved() => {
                let (at, len) = (byte_offset(grant.sector()), byte_offset(sectors.into()));
                self.set_step(slot, Step::Clearing { grant, medium_is_bad: bad });
                self.lane.zero(slot.into(), at, len, Zeroing::Deallocate);
            }
            Some(Step::Writing { grant, sectors, append }) => {
                let sector = grant.as_ref().map(Grant::sector).filter(|_| append && ok);
                if let Some(grant) = grant.as_ref().filter(|grant| ok && grant.is_reserved()) {
                    self.note(slot, Note::Written { sector: grant.sector(), sectors });
                }
                let doubted = self.settle(grant, ok);
                let status = if ok { Status::Ok } else { Status::IoErr };
                let answer = Answer { append_sector: sector, ..Answer::status(status) };
                self.reread_then_answer(slot, doubted, answer);
            }
            Some(Step::Clearing { grant, medium_is_bad }) => {
                let zone = grant.zone();
                // First the zone, so that nobody comes to write between the two.
                let retired = (medium_is_bad || bad) && self.retire(zone, Retirement::ReadOnly);
                // Its place may be another's next.
                self.note(slot, Note::Ended(Answer::status(Status::IoErr)));
                // Of no store that would have to be asked.
                let _ = self.settle(Some(grant), false);
                match retired {
                    true => self.retired(slot, vec![zone]),
                    false => self.answer(slot, Answer::status(Status::IoErr)),
                }
            }
            Some(Step::ReadingStretches { left, status }) => {
                let status = if ok { status } else { Status::IoErr };
                match left - 1 {
                    0 if status == Status::Ok => self.answer(slot, Answer::FILLED),
                    0 => self.answer(slot, Answer::status(status)),
                    left => drop(self.set_step(slot, Step::ReadingStretches { left, status })),
                }
            }
            Some(Step::Zeroing { left, status }) => {
                let status = if ok { status } else { Status::IoErr };
                match left - 1 {
                    0 => self.stable_then_answer(slot, Answer::status(status)),
                    left => drop(self.set_step(slot, Step::Zeroing { left, status })),
                }
            }
            other => self.lost(slot, other),
        }
    }

    /// Tells the zone how a write has ended, and those who waited for the zone. The gap that a failure may leave holds zeros
    /// already. Returns a zone of which the store is to be asked now.
    pub(crate) fn settle(&mut self, grant: Option<Grant>, ok: bool) -> Option<Begun> {
        let settled = self.place.shape.zones.as_ref()?.settle(grant?, ok);
        self.wake(settled.woken);
        settled.reread
    }

    /// Tells the zone that a write has failed of which only the store knows what it has left. Returns the zone if the store is to be asked now.
    pub(crate) fn fail(&mut self, grant: Grant) -> Option<Begun> {
        let settled = self.place.shape.zones.as_ref()?.fail(grant);
        self.wake(settled.woken);
        settled.reread
    }

    /// Asks the store what a zone in doubt is now, if there is one, and answers.
    pub(crate) fn reread_then_answer(&mut self, slot: u32, doubted: Option<Begun>, answer: Answer) {
        let Some(begun) = doubted else { return self.stable_then_answer(slot, answer) };
        let reread = vec![begun.zone()];
        let kind = CommitKind::Change(Change { reread, ..Change::default() });
        self.commit(slot, kind, Step::Rereading { begun, answer });
    }

    /// Whether the store keeps the zones' conditions itself.
    pub(crate) fn store_keeps(&self) -> bool {
        self.place.disk.store.keeps_conditions()
    }

    /// A read at `sector` has failed because of the medium. Is it only that place? The beginning, the middle and the end of what the
    /// zone holds are tried.
    fn probe_zone_of(&mut self, slot: u32, sector: u64) {
        let zones = self.place.shape.zones.as_ref();
        let Some(probe) = zones.and_then(|zones| Probe::of(zones, sector)) else {
            return self.answer(slot, Answer::status(Status::IoErr));
        };
        self.probe(slot, probe);
    }

    /// Tries the next block; with none left the zone can't be read.
    fn probe(&mut self, slot: u32, mut probe: Probe) {
        let Some(sector) = probe.left.pop() else {
            // Unless it was reset meanwhile: then what could not be read is nobody's business any more.
            let zones = self.place.shape.zones.as_ref();
            let holds_data = zones.is_some_and(|zones| {
                let start = zones.geometry().zone_start(probe.zone);
                zones.admit_read(start, 1).is_ok_and(|plan| plan.stored_sectors > 0)
            });
            return match holds_data && self.retire(probe.zone, Retirement::Offline) {
                true => self.retired(slot, vec![probe.zone]),
                false => self.answer(slot, Answer::status(Status::IoErr)),
            };
        };
        self.set_step(slot, Step::Probing(probe));
        let len_bytes = usize::try_from(self.place.shape.offer.block_len_bytes).unwrap_or(4096);
        self.lane.read(slot.into(), IoBuffer::owned(vec![0; len_bytes]), len_bytes, byte_offset(sector));
    }

    /// Takes a zone out of use. Returns whether it was in use.
    pub(crate) fn retire(&self, zone: u32, to: Retirement) -> bool {
        let retired = self.place.shape.zones.as_ref().is_some_and(|zones| zones.retire(zone, to));
        if retired {
            let fate = match to {
                Retirement::ReadOnly => "can't be written any more: it is read-only",
                Retirement::Offline => "can't be read any more: it is offline",
            };
            log::error!("zone {zone} {fate} from now on");
        }
        retired
    }

    /// Makes it last that zones were taken out of use, and answers the request that has met it.
    fn retired(&mut self, slot: u32, zones: Vec<u32>) {
        let answer = Answer::status(Status::IoErr);
        self.commit(slot, CommitKind::Retire(zones), Step::Flushing { answer });
    }

    /// Answers a request that the zones have refused. Who does not know zones is told nothing of them: to such a driver a host-aware disk
    /// is a regular one (R5).
    fn refuse(&mut self, slot: u32, refusal: Refusal) {
        let status = match self.place.negotiated.has(Features::ZONED) {
            true => status_of(refusal),
            false => Status::IoErr,
        };
        self.answer(slot, Answer::status(status));
    }

    /// Answers a change of the disk: at once with the write-back cache, after a flush without (D1).
    pub(crate) fn stable_then_answer(&mut self, slot: u32, answer: Answer) {
        if answer.status != Status::Ok || self.place.negotiated.write_back() {
            return self.answer(slot, answer);
        }
        self.commit(slot, CommitKind::Flush, Step::Flushing { answer });
    }

    /// OPEN, CLOSE, FINISH, RESET.
    fn manage(&mut self, slot: u32, request: Request) {
        let shape = Arc::clone(&self.place.shape);
        let Some(zones) = &shape.zones else {
            return self.answer(slot, Answer::status(Status::Unsupp));
        };
        let ticket = self.place.mailbox.ticket(slot);
        let (result, finished) = match request {
            Request::ZoneOpen { sector } => (zones.begin_open(sector, ticket), None),
            Request::ZoneClose { sector } => (zones.begin_close(sector, ticket), None),
            Request::ZoneFinish { sector } => {
                (zones.begin_finish(sector, ticket), zones.geometry().zone_of(sector))
            }
            Request::ZoneReset { sector } => (zones.begin_reset(sector, ticket), None),
            _ => return self.lost(slot, None),
        };
        match (result, finished) {
            // Full already, perhaps by having been written: that is durable when this answers, too (D3).
            (Ok(None), Some(zone)) => {
                // A store that finishes zones itself must not finish this one: it may be reset and written meanwhile.
                let kind = if self.store_keeps() { CommitKind::Flush } else { CommitKind::Finish(zone) };
                self.commit(slot, kind, Step::Flushing { answer: Answer::OK });
            }
            (Ok(None), None) => self.answer(slot, Answer::OK),
            (Ok(Some(mut begun)), finished) => {
                let (zone, room) = (begun.zone(), begun.take_room());
                let kind = match (&request, finished) {
                    (Request::ZoneReset { .. }, _) => CommitKind::Reset(vec![zone]),
                    (_, Some(zone)) if !self.store_keeps() => CommitKind::Finish(zone),
                    _ => CommitKind::Change(change_of(&request, zone, room.as_ref())),
                };
                self.commit(slot, kind, Step::Ending { begun, room });
            }
            (Err(Refusal::Busy), _) => drop(self.set_step(slot, Step::Waiting(request))),
            (Err(refusal), _) => self.answer(slot, Answer::status(status_of(refusal))),
        }
    }

    /// RESET_ALL: zone after zone is taken in ascending order, so that two of them can't wait for each other; then
    /// one commit for all.
    fn reset_all(&mut self, slot: u32, mut progress: ResetAll) {
        let shape = Arc::clone(&self.place.shape);
        let Some(zones) = &shape.zones else {
            return self.answer(slot, Answer::status(Status::Unsupp));
        };
        let ticket = self.place.mailbox.ticket(slot);
        while progress.next_zone < zones.geometry().zone_count() {
            match zones.begin_reset_all(progress.next_zone, ticket) {
                Ok(begun) => progress.begun.extend(begun),
                Err(_) => {
                    self.set_step(slot, Step::WaitingToResetAll(progress));
                    return;
                }
            }
            progress.next_zone += 1;
        }
        if progress.begun.is_empty() {
            return self.answer(slot, Answer::OK);
        }
        let zones = progress.begun.iter().map(Begun::zone).collect();
        self.commit(slot, CommitKind::Reset(zones), Step::EndingAll(progress.begun));
    }

    fn commit(&mut self, slot: u32, kind: CommitKind, step: Step) {
        self.set_step(slot, step);
        self.place.disk.committer.submit(kind, self.place.mailbox.ticket(slot));
    }

    /// The committer has ended what this request waited for.
    pub(crate) fn committed(&mut self, slot: u32, end: CommitEnd) {
        let status = if end == CommitEnd::Durable { Status::Ok } else { Status::IoErr };
        let mut ended = None;
        let begun = match self.set_step(slot, Step::Starting) {
            Some(Step::Flushing { answer }) => {
                let answer = if status == Status::Ok { answer } else { Answer::status(status) };
                return self.answer(slot, answer);
            }
            Some(Step::Ending { begun, room }) => {
                ended = Some(begun.zone());
                room.into_iter().chain([begun]).collect()
            }
            Some(Step::EndingAll(begun)) => begun,
            Some(Step::MakingRoom { room, grant, sectors, append, buffer }) => {
                self.end_zone(room, &end);
                let at = byte_offset(grant.sector());
                self.set_step(slot, Step::Writing { grant: Some(grant), sectors, append });
                return self.lane.write(slot.into(), buffer, at);
            }
            Some(Step::Rereading { begun, answer }) => {
                self.end_zone(begun, &end);
                return self.stable_then_answer(slot, answer);
            }
            other => return self.lost(slot, other),
        };
        // The room for a zone is not what was asked for.
        let status = match (&end, ended) {
            (CommitEnd::Zones(zones), Some(ended)) if !zones.iter().any(|(zone, _)| *zone == ended) => {
                Status::Ok
            }
            _ => status,
        };
        // The zones may be written by others next.
        self.note(slot, Note::Ended(Answer::status(status)));
        let mut lost = Vec::new();
        for begun in begun {
            let zone = begun.zone();
            let end = self.end_zone(begun, &end);
            lost.extend((end == ResetEnd::Lost).then_some(zone));
        }
        match lost.is_empty() {
            true => self.answer(slot, Answer::status(status)),
            false => self.retired(slot, lost),
        }
    }

    /// Ends what was begun in a zone as its commit has ended. Returns how that is.
    fn end_zone(&mut self, begun: Begun, end: &CommitEnd) -> ResetEnd {
        let zone = begun.zone();
        let end = match end {
            CommitEnd::Durable => ResetEnd::Done,
            CommitEnd::Failed => ResetEnd::Undone,
            CommitEnd::Zones(zones) => {
                zones.iter().find(|(other, _)| *other == zone).map_or(ResetEnd::Done, |(_, end)| *end)
            }
        };
        if let Some(settled) = self.place.shape.zones.as_ref().map(|zones| zones.end(begun, end)) {
            self.wake(settled.woken);
        }
        end
    }

    /// Notes how far a request has come, for the process after this one.
    fn note(&mut self, slot: u32, note: Note) {
        if let Some(flight) = self.flights.get_mut(slot) {
            self.notes.set(flight.head, note);
        }
    }

    /// Puts a request into a new step and returns the one it was in.
    pub(crate) fn set_step(&mut self, slot: u32, step: Step) -> Option<Step> {
        self.flights.get_mut(slot).map(|flight| std::mem::replace(&mut flight.step, step))
    }

    /// A completion that fits no step: answered with an error rather than never.
    fn lost(&mut self, slot: u32, step: Option<Step>) {
        log::error!("queue {}: slot {slot} in {step:?}: a fault in this program", self.place.index);
        self.answer(slot, Answer::status(Status::IoErr));
    }
}

impl Probe {
    /// The last, the middle and the first written block of the zone that `sector` lies in, to be taken from the back. `None`: one that is written
    /// in any order. A conventional zone has no way to be offline, and a preferred one goes on like it.
    fn of(zones: &Zones, sector: u64) -> Option<Self> {
        let geometry = zones.geometry();
        let required = |zone: &u32| geometry.kind(*zone) == ZoneKind::SequentialRequired;
        let zone = geometry.zone_of(sector).filter(required)?;
        let start = geometry.zone_start(zone);
        let plan = zones.admit_read(start, geometry.zone_len_sectors(zone).into()).ok()?;
        let block = u64::from(geometry.granularity_sectors());
        let last = (plan.stored_sectors / block).checked_sub(1)?;
        let mut left = [last, last / 2, 0].map(|number| start + number * block).to_vec();
        left.dedup();
        Some(Self { zone, left })
    }
}

/// What a store that keeps conditions is to do for a request on `zone`: after it has closed the one that makes room.
fn change_of(request: &Request, zone: u32, room: Option<&Begun>) -> Change {
    let mut change = Change { closed: room.map(Begun::zone).into_iter().collect(), ..Change::default() };
    match request {
        Request::ZoneOpen { .. } => change.opened.push(zone),
        Request::ZoneClose { .. } => change.closed.push(zone),
        _ => change.finished.push(zone),
    }
    change
}

impl Request {
    /// Whether a read-only disk must refuse it (5.2.6.2, G5).
    fn changes_the_disk(&self) -> bool {
        match self {
            Self::Read { .. } | Self::Flush | Self::GetId { .. } | Self::ZoneReport { .. } => false,
            Self::Write { .. }
            | Self::Append { .. }
            | Self::Discard { .. }
            | Self::WriteZeroes { .. }
            | Self::ZoneOpen { .. }
            | Self::ZoneClose { .. }
            | Self::ZoneFinish { .. }
            | Self::ZoneReset { .. }
            | Self::ZoneResetAll => true,
        }
    }
}

/// The status that tells the driver of a refusal.
fn status_of(refusal: Refusal) -> Status {
    match refusal {
        Refusal::InvalidCommand => Status::ZoneInvalidCmd,
        Refusal::UnalignedWritePointer => Status::ZoneUnalignedWp,
        Refusal::OpenResource => Status::ZoneOpenResource,
        Refusal::ActiveResource => Status::ZoneActiveResource,
        Refusal::Unsupported => Status::Unsupp,
        // Busy never comes here: the request waits.
        Refusal::OutOfRange | Refusal::Unswept | Refusal::Busy => Status::IoErr,
    }
}

/// Sectors in bytes. A sector inside the disk does not overflow; the disk's length in bytes is a u64.
pub(crate) fn byte_offset(sectors: u64) -> u64 {
    sectors.saturating_mul(SECTOR_LEN_BYTES.into())
}
