//! A queue whose lane has failed, not one operation of it but the engine itself: it must not take others with it. Its zones are free for other
//! queues, its requests are answered.
//!
//! The first time the worker goes on with a second lane, one that does its I/O by plain calls. If that fails too it gives up.

use std::io;
use std::thread;
use std::time::Duration;

use virtio_zbd_spec::Status;
use virtio_zbd_store::{EngineChoice, Event, Lane};
use virtio_zbd_zones::Retirement;

use crate::flight::{Answer, Step};
use crate::worker::{KICK, MAILBOX, Worker};

/// How often a worker without a lane looks at its messages.
const MAIL_INTERVAL: Duration = Duration::from_millis(5);

impl Worker {
    /// The lane can't be waited for any more. Takes a second one, and ends what the first one has lost. Returns `false` where there is
    /// none to be had, or the second one has failed.
    pub(crate) fn take_another_lane(&mut self, error: &io::Error, events: &mut Vec<Event>) -> bool {
        let index = self.place.index;
        log::error!("queue {index}: its {} has failed: {error}", self.lane.engine_name());
        if self.lane_is_spare {
            return false;
        }
        let spare = match self.spare_lane() {
            Ok(spare) => spare,
            Err(error) => {
                log::error!("queue {index}: there is no other: {error}");
                return false;
            }
        };
        self.lane_is_spare = true;
        let mut failed = std::mem::replace(&mut self.lane, spare);
        self.end_lane(&mut failed, events);
        // It may have swallowed a wake-up until now.
        drop(failed);
        self.read_mail();
        log::warn!("queue {index}: it goes on with {}", self.lane.engine_name());
        true
    }

    fn spare_lane(&self) -> io::Result<Lane> {
        let mut lane = self.place.disk.store.open_lane(EngineChoice::Sync)?;
        lane.watch(self.place.kick.try_clone()?, KICK)?;
        lane.watch(self.place.mailbox.wake_fd()?, MAILBOX)?;
        Ok(lane)
    }

    /// What the failed lane still knows is taken; what it had under way and says nothing of has failed.
    fn end_lane(&mut self, failed: &mut Lane, events: &mut Vec<Event>) {
        let was_under_way: Vec<u32> =
            self.flights.slots().into_iter().filter(|slot| self.is_in_the_lane(*slot)).collect();
        let all_ended = failed.end(events);
        let mut said: Vec<u32> = Vec::new();
        for event in &*events {
            if let Event::Done { token, .. } = event {
                said.extend(u32::try_from(*token));
            }
        }
        for event in events.drain(..) {
            self.handle(event);
        }
        for slot in was_under_way {
            // A request with several ranges may have had an answer for one of them: its step is still the same.
            let several = matches!(self.step(slot), Some(Step::Zeroing { .. }));
            if said.contains(&slot) && !several {
                continue;
            }
            // A write that nobody can stop any more would fall on whatever is there by then: nothing may be.
            let lost = || match all_ended {
                true => io::Error::other("its end was lost with the lane"),
                false => io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()),
            };
            match self.step(slot) {
                Some(Step::Zeroing { left, .. }) => {
                    for _ in 0..*left {
                        self.io_done(slot, Err(lost()));
                    }
                }
                _ => self.io_done(slot, Err(lost())),
            }
        }
    }

    /// There is nothing to wait with: all that is under way is answered, and the queue is left to its front-end.
    pub(crate) fn give_up(&mut self) {
        log::error!("queue {}: it is not served any more", self.place.index);
        (self.place.broken)();
        let mut events = Vec::new();
        loop {
            // Clearing after a failed write may come of it, which is done at once.
            self.lane.end(&mut events);
            if events.is_empty() {
                break;
            }
            for event in events.drain(..) {
                self.handle(event);
            }
        }
        loop {
            // Zones that become free wake others, and commits end: each of these brings mail.
            for slot in self.flights.slots() {
                if self.is_in_the_lane(slot) {
                    self.abandon(slot);
                }
            }
            self.read_mail();
            while let Some(slot) = self.retries.pop_front() {
                // Its ticket has come back: the zone knows no more of it.
                self.answer(slot, Answer::status(Status::IoErr));
            }
            if self.flights.is_empty() {
                break;
            }
            thread::sleep(MAIL_INTERVAL);
        }
        self.publish();
    }

    /// Ends a request that the lane had. Nobody can clear what a write has left any more, so its zone is not written again.
    fn abandon(&mut self, slot: u32) {
        let answer = Answer::status(Status::IoErr);
        if let Some(Step::Writing { grant: Some(grant), .. } | Step::Clearing { grant, .. }) =
            self.set_step(slot, Step::Starting)
        {
            if self.store_keeps() {
                let doubted = self.fail(grant);
                return self.reread_then_answer(slot, doubted, answer);
            }
            self.retire(grant.zone(), Retirement::ReadOnly);
            let _ = self.settle(Some(grant), false);
        }
        self.answer(slot, answer);
    }

    fn is_in_the_lane(&mut self, slot: u32) -> bool {
        self.step(slot).is_some_and(Step::is_in_the_lane)
    }

    fn step(&mut self, slot: u32) -> Option<&Step> {
        self.flights.get_mut(slot).map(|flight| &flight.step)
    }
}
