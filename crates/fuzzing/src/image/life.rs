//! A disk in use: what a device does with its store, and what must be there afterwards.

use std::sync::Arc;
use std::time::Duration;

use virtio_zbd_store::{Commit, EngineChoice, Event, ImageStore, IoBuffer, Lane, Store};
use virtio_zbd_zones::{Condition, Geometry, ZoneState};

use crate::input::Input;

/// An image in use.
pub(super) struct Life {
    store: Arc<ImageStore>,
    lane: Lane,
    geometry: Geometry,
    /// Of each zone: now, and as the last commit has it.
    pub(super) now: Vec<ZoneState>,
    pub(super) durable: Vec<ZoneState>,
    /// All sectors.
    pub(super) data: Vec<u8>,
    marks: u8,
}

impl Life {
    /// Takes up an image with these states and sectors.
    pub(super) fn new(store: Arc<ImageStore>, states: Vec<ZoneState>, data: Vec<u8>) -> Self {
        let lane = store.open_lane(EngineChoice::Sync).unwrap();
        let geometry = store.geometry().unwrap();
        Self { store, lane, geometry, durable: states.clone(), now: states, data, marks: 0 }
    }

    /// So many steps, or fewer.
    pub(super) fn run(&mut self, input: &mut Input<'_>) {
        for _ in 0..input.u8() % 12 {
            let zone = u32::from(input.u16()) % self.geometry.zone_count();
            match input.u8() % 8 {
                0..3 => self.write(zone, u32::from(input.u8())),
                3 => self.flush(),
                4 => self.finish(zone),
                5 => self.reset(zone),
                6 => self.close_zone(zone),
                _ => self.lose(zone, input.u8() & 1 == 1),
            }
        }
    }

    /// The end, in order: all is durable.
    pub(super) fn close(self) {
        self.store.close().unwrap();
    }

    fn state(&mut self, zone: u32) -> &mut ZoneState {
        &mut self.now[usize::try_from(zone).unwrap()]
    }

    fn publish(&mut self, zone: u32, state: ZoneState) {
        *self.state(zone) = state;
        self.store.publish(zone, state);
    }

    fn may_become_active(&mut self, zone: u32) -> bool {
        let active = self.now.iter().filter(|state| state.condition.is_active()).count();
        let most = usize::try_from(self.geometry.config().max_active_zones).unwrap();
        self.state(zone).condition.is_active() || most == 0 || active < most
    }

    fn write(&mut self, zone: u32, blocks: u32) {
        let state = *self.state(zone);
        let capacity = self.geometry.zone_capacity_sectors(zone);
        let writable = matches!(state.condition, Condition::Empty) || state.condition.is_active();
        let conventional = state.condition == Condition::NotWp;
        let rest = capacity - state.wp_sectors;
        let sectors = (1 + blocks) * self.geometry.granularity_sectors();
        let sectors = sectors.min(rest);
        if !conventional && (!writable || !self.may_become_active(zone)) || sectors == 0 {
            return;
        }
        self.marks = self.marks.wrapping_add(1);
        let sector = self.geometry.zone_start(zone) + u64::from(state.wp_sectors);
        let at = usize::try_from(sector * 512).unwrap();
        let bytes = vec![self.marks | 1; usize::try_from(sectors * 512).unwrap()];
        self.data[at..at + bytes.len()].copy_from_slice(&bytes);
        self.lane.write(7, IoBuffer::owned(bytes), sector * 512);
        assert!(matches!(next(&mut self.lane), Event::Done { token: 7, result: Ok(()), .. }));
        if !conventional {
            let wp_sectors = state.wp_sectors + sectors;
            let condition = if wp_sectors == capacity { Condition::Full } else { Condition::ImplicitOpen };
            self.publish(zone, ZoneState { condition, wp_sectors });
        }
    }

    fn flush(&mut self) {
        self.commit(&Commit { flush: true, ..Commit::default() });
        self.durable.clone_from(&self.now);
    }

    fn finish(&mut self, zone: u32) {
        let state = *self.state(zone);
        let possible = state.condition == Condition::Empty || state.condition.is_active();
        if possible && self.may_become_active(zone) {
            self.publish(zone, ZoneState { condition: Condition::Full, ..state });
            self.commit(&Commit { finished: &[zone], ..Commit::default() });
            self.durable[usize::try_from(zone).unwrap()] = *self.state(zone);
        }
    }

    fn reset(&mut self, zone: u32) {
        let state = *self.state(zone);
        if matches!(state.condition, Condition::NotWp | Condition::ReadOnly | Condition::Offline) {
            return;
        }
        self.publish(zone, ZoneState::EMPTY);
        self.commit(&Commit { reset: &[zone], ..Commit::default() });
        self.durable[usize::try_from(zone).unwrap()] = ZoneState::EMPTY;
        let start = usize::try_from(self.geometry.zone_start(zone) * 512).unwrap();
        let end = start + usize::try_from(self.geometry.zone_capacity_sectors(zone)).unwrap() * 512;
        self.data[start..end].fill(0);
    }

    fn close_zone(&mut self, zone: u32) {
        let state = *self.state(zone);
        if state.condition.is_open() && state.wp_sectors > 0 {
            self.publish(zone, ZoneState { condition: Condition::Closed, ..state });
        }
    }

    /// A zone goes out of use, for good.
    fn lose(&mut self, zone: u32, wholly: bool) {
        let state = *self.state(zone);
        if state.condition != Condition::NotWp && state.condition != Condition::Offline {
            let condition = if wholly { Condition::Offline } else { Condition::ReadOnly };
            self.publish(zone, ZoneState { condition, ..state });
        }
    }

    fn commit(&self, work: &Commit<'_>) {
        let outcome = self.store.commit(work);
        outcome.durable.unwrap();
        assert!(outcome.hole_failures.is_empty());
    }
}

/// All sectors of a disk, whether written or not.
pub(super) fn sectors(store: &ImageStore) -> Vec<u8> {
    let len = usize::try_from(store.capacity_bytes()).unwrap();
    let mut lane = store.open_lane(EngineChoice::Sync).unwrap();
    lane.read(1, IoBuffer::owned(vec![0; len]), len, 0);
    match next(&mut lane) {
        Event::Done { token: 1, buffer: Some(buffer), result: Ok(()) } => buffer.into_owned().unwrap(),
        other => panic!("the sectors can't be read: {other:?}"),
    }
}

fn next(lane: &mut Lane) -> Event {
    let mut events = Vec::new();
    lane.wait(Some(Duration::from_secs(20)), &mut events).unwrap();
    events.pop().unwrap()
}
