//! Requests in flight, as many as are wanted, until it is enough. Nothing is allocated on the way: buffers go round.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio_zbd_driver::{Error, Features, Token};
use virtio_zbd_vhost_user::client::ArenaBuffer;

use super::histogram::Histogram;
use super::plan::{LaneId, Plan};
use crate::progress::Progress;
use crate::target::{Driver, Target};

/// When it is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    Over(Duration),
    Count(u64),
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) took: Duration,
    pub(crate) latency: Histogram,
    pub(crate) in_flight_max: usize,
    pub(crate) zones_turned_over: u64,
}

/// A measurement.
pub(crate) struct Load<'a> {
    target: &'a mut Target,
    plan: Plan,
    until: Until,
    interrupted: &'a AtomicBool,
    queues: Vec<Queue>,
    latency: Histogram,
    submitted: u64,
    in_flight_max: usize,
    progress: Progress,
}

/// A queue's requests.
struct Queue {
    idle: Vec<ArenaBuffer>,
    /// Oldest first, which is mostly the order in which they come back.
    sent: VecDeque<Sent>,
}

struct Sent {
    token: Token,
    at: Instant,
    lane: LaneId,
}

impl<'a> Load<'a> {
    /// Prepares `depth` requests for each queue that the driver uses.
    ///
    /// # Errors
    /// There is no memory for the buffers.
    pub(crate) fn new(
        target: &'a mut Target,
        mut plan: Plan,
        depth: u16,
        until: Until,
        interrupted: &'a Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let queue_count = usize::from(target.driver.queue_count());
        let depth = usize::from(depth).min(room_of_queue(&target.driver, plan.block_len_bytes()));
        let mut room = plan.begin(&target.driver, depth * queue_count);
        let mut queues = Vec::with_capacity(queue_count);
        for left in (1..=queue_count).rev() {
            // As evenly as it goes where there can be fewer than were asked for.
            let count = room.div_ceil(left);
            room -= count;
            let idle = (0..count).map(|tag| filled(plan.block_len_bytes(), tag)).collect::<Option<Vec<_>>>();
            let Some(idle) = idle else {
                anyhow::bail!("there is no memory for {depth} requests on each queue")
            };
            queues.push(Queue { idle, sent: VecDeque::with_capacity(count) });
        }
        let progress = Progress::of_requests(match until {
            Until::Count(count) => Some(count),
            Until::Over(_) => None,
        });
        Ok(Self {
            target,
            plan,
            until,
            interrupted,
            queues,
            latency: Histogram::new(),
            submitted: 0,
            in_flight_max: 0,
            progress,
        })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// The disk refused a request, or was lost.
    pub(crate) fn run(mut self) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let mut now = start;
        // Queues are waited for in turn: each has something in flight, so each will call.
        let mut turn = 0;
        loop {
            if self.wants_more(now - start)
                && let Err(error) = self.fill(now)
            {
                return Err(self.target.explain(&error));
            }
            let Some(queue) = self.busy_queue(&mut turn) else { break };
            let waited = self.target.driver.wait(queue);
            now = Instant::now();
            if let Err(error) = waited.and_then(|()| self.drain(now)) {
                return Err(self.target.explain(&error));
            }
        }
        Ok(Outcome {
            took: now - start,
            latency: self.latency,
            in_flight_max: self.in_flight_max,
            zones_turned_over: self.plan.zones_turned_over(),
        })
    }

    fn wants_more(&self, elapsed: Duration) -> bool {
        let enough = match self.until {
            Until::Over(time) => elapsed >= time,
            Until::Count(count) => self.submitted >= count,
        };
        !enough && !self.interrupted.load(Ordering::Relaxed)
    }

    /// Puts every idle buffer into flight.
    fn fill(&mut self, now: Instant) -> Result<(), Error> {
        let left = match self.until {
            Until::Count(count) => count - self.submitted,
            Until::Over(_) => u64::MAX,
        };
        let driver = &mut self.target.driver;
        let mut in_flight = 0;
        let mut submitted = 0;
        for (index, queue) in (0..).zip(&mut self.queues) {
            let mut fresh = false;
            while submitted < left
                && let Some(buffer) = queue.idle.pop()
            {
                let (command, lane) = match self.plan.next(driver, buffer)? {
                    Ok(next) => next,
                    Err(buffer) => {
                        queue.idle.push(buffer);
                        break;
                    }
                };
                match driver.submit(index, command) {
                    Ok(token) => queue.sent.push_back(Sent { token, at: now, lane }),
                    Err(rejected) => return Err(rejected.error),
                }
                submitted += 1;
                fresh = true;
            }
            if fresh {
                driver.notify(index)?;
            }
            in_flight += queue.sent.len();
        }
        self.submitted += submitted;
        self.in_flight_max = self.in_flight_max.max(in_flight);
        Ok(())
    }

    /// The next queue in turn with something in flight.
    fn busy_queue(&self, turn: &mut usize) -> Option<u16> {
        let count = self.queues.len();
        let busy = (0..count)
            .map(|step| (*turn + step) % count)
            .find(|index| self.queues.get(*index).is_some_and(|queue| !queue.sent.is_empty()))?;
        *turn = busy + 1;
        u16::try_from(busy).ok()
    }

    /// Takes everything that is done.
    fn drain(&mut self, now: Instant) -> Result<(), Error> {
        let before = self.latency.count();
        for (index, queue) in (0..).zip(&mut self.queues) {
            while let Some(completion) = self.target.driver.complete(index)? {
                completion.result?;
                let found = queue.sent.iter().position(|sent| sent.token == completion.token);
                if let Some(sent) = found.and_then(|found| queue.sent.remove(found)) {
                    self.latency.add(now.saturating_duration_since(sent.at));
                    self.plan.done(sent.lane);
                }
                queue.idle.extend(completion.buffer);
            }
        }
        self.progress.advance(self.latency.count() - before);
        Ok(())
    }
}

/// How many requests of this length a queue holds.
fn room_of_queue(driver: &Driver, len_bytes: usize) -> usize {
    let descriptors = usize::from(driver.queue_depth());
    if driver.features().contains(Features::INDIRECT_DESC) {
        return descriptors;
    }
    let segment_len_bytes = usize::try_from(driver.limits().segment_len_bytes_max).unwrap_or(usize::MAX);
    // Header and in-header have one each.
    (descriptors / (2 + len_bytes.div_ceil(segment_len_bytes.max(1)))).max(1)
}

/// A buffer with something in it: some disks treat zeros as nothing.
fn filled(len_bytes: usize, tag: usize) -> Option<ArenaBuffer> {
    let mut buffer = ArenaBuffer::zeroed(len_bytes)?;
    fastrand::Rng::with_seed(tag as u64).fill(&mut buffer);
    Some(buffer)
}
