//! ZONE_REPORT: the zones, as the wire has them.

use std::sync::Arc;

use virtio_zbd_spec::{ReportHeader, Status, ZoneDescriptor, ZoneState as WireState, ZoneType};
use virtio_zbd_zones::{ZoneKind, ZoneReport};
use zerocopy::IntoBytes;

use crate::flight::Answer;
use crate::spans::{Spans, len_of};
use crate::worker::Worker;

impl Worker {
    /// ZONE_REPORT: as many zones as the buffer holds, from the one that `sector` lies in (R7). The rest of the buffer is
    /// zeroed, so that all of it counts as written.
    pub(crate) fn report(&mut self, slot: u32, sector: u64, data: &Spans) {
        const HEADER_LEN: u32 = len_of::<ReportHeader>();
        const ZONE_LEN: u32 = len_of::<ZoneDescriptor>();
        let shape = Arc::clone(&self.place.shape);
        let Some(zones) = &shape.zones else {
            return self.answer(slot, Answer::status(Status::Unsupp));
        };
        let first = zones.geometry().zone_of(sector);
        let (Some(first), Some(room)) = (first, data.len_bytes().checked_sub(HEADER_LEN)) else {
            // G4, and a buffer too short for the header.
            return self.answer(slot, Answer::status(Status::ZoneInvalidCmd));
        };
        let count = (zones.geometry().zone_count() - first).min(room / ZONE_LEN);
        let memory = &self.place.memory;
        data.write(memory, 0, ReportHeader::new(count.into()).as_bytes());
        let mut offset = HEADER_LEN;
        for zone in first..first + count {
            if let Some(zone) = zones.report(zone) {
                data.write(memory, offset, descriptor(&zone).as_bytes());
            }
            offset += ZONE_LEN;
        }
        data.fill_zero(memory, offset);
        self.answer(slot, Answer::FILLED);
    }
}

fn descriptor(zone: &ZoneReport) -> ZoneDescriptor {
    let kind = match zone.kind {
        ZoneKind::Conventional => ZoneType::Conventional,
        ZoneKind::SequentialRequired => ZoneType::SequentialRequired,
        ZoneKind::SequentialPreferred => ZoneType::SequentialPreferred,
    };
    // The zones' condition numbers are the wire's.
    let state = WireState::try_from(zone.condition as u8).unwrap_or(WireState::Offline);
    ZoneDescriptor::new(kind, state, zone.start, zone.capacity, zone.wp)
}
