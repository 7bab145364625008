//! Random sequences of requests against a model that knows only facts: a queue runs exactly when all that it
//! needs is there.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use fastrand::Rng;
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::GuestMemoryBackend;

use self::common::guest::Guest;
use self::common::peer::*;
use self::common::toy::{MQ, STRIDE, Toy, VERSION_1, ZONED};
use self::common::{Harness, seed};

const QUEUES: u32 = 3;
const STEPS: usize = 6000;
/// The areas of queues are a multiple of this from the region's start; the last of them reach out of the
/// region.
const AREA_BYTES: u64 = 0x4_0000;

/// What has been said of a queue.
#[derive(Clone, Copy, Default)]
struct Queue {
    size: Option<u16>,
    /// Which region, and which multiple of `AREA_BYTES` in it.
    place: Option<(usize, u64)>,
    base: u16,
    kick: bool,
    call: bool,
    enabled: Option<bool>,
}

/// What has been said in all.
#[derive(Default)]
struct Model {
    queues: [Queue; QUEUES as usize],
    /// Which of the regions are there.
    regions: [bool; 2],
    features: Option<u64>,
    accepted: Option<u64>,
    refused: bool,
    status: u8,
}

impl Model {
    /// Facts only: nothing about when and how.
    fn should_run(&self, queue: &Queue) -> bool {
        let placed = queue.place.is_some_and(|(region, _)| self.regions[region]);
        self.complete(queue) && placed
    }

    /// All has been said, but the memory has been taken away: each request for the queue is answered with
    /// that.
    fn is_stuck(&self, queue: &Queue) -> bool {
        let gone = queue.place.is_some_and(|(region, _)| !self.regions[region]);
        self.complete(queue) && gone
    }

    fn complete(&self, queue: &Queue) -> bool {
        let Some(features) = self.features else { return false };
        let enabled = queue.enabled.unwrap_or(features & PROTOCOL_FEATURES == 0);
        enabled && queue.kick && queue.size.is_some()
    }

    fn running(&self) -> BTreeMap<u16, Queue> {
        let indices = 0..u16::try_from(QUEUES).unwrap();
        indices.zip(self.queues).filter(|(_, queue)| self.should_run(queue)).collect()
    }

    /// A queue that is or was running over a change moves on by what the toy takes each time.
    fn stopped(queue: &mut Queue) {
        queue.base = queue.base.wrapping_add(STRIDE);
    }
}

struct Run {
    harness: Harness,
    peer: Peer,
    guests: [Guest; 2],
    fds: Vec<OwnedFd>,
    model: Model,
    rng: Rng,
}

#[test]
fn a_queue_runs_when_all_that_it_needs_is_there() {
    let toy = Toy { echo: false, wanted: ZONED, ..Toy::new() };
    let harness = Harness::start(Toy { queue_count: u16::try_from(QUEUES).unwrap(), ..toy });
    let peer = Peer::negotiated(harness.path(), ALL_OFFERED);
    let mut run = Run {
        harness,
        peer,
        guests: [Guest::new(0x1_0000_0000, 0x7f00_0000_0000, 0), Guest::new(0x2000, 0x6000_0000, 0x5000)],
        fds: (0..2).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect(),
        model: Model::default(),
        rng: Rng::with_seed(seed()),
    };
    let mut ran = [0; QUEUES as usize + 1];
    for step in 0..STEPS {
        let what = run.step();
        run.check(step, &what);
        ran[run.model.running().len()] += 1;
    }
    println!("so often 0, 1, … queues ran: {ran:?}");
    assert!(ran.iter().all(|&times| times > STEPS / 100), "some states were hardly tried");
    run.harness.stop();
}

impl Run {
    /// Sends something, tells the model, and checks the reply. Gives back what it was.
    fn step(&mut self) -> String {
        let before = self.model.running();
        let index = self.rng.u32(0..QUEUES);
        let queue = &mut self.model.queues[usize::try_from(index).unwrap()];
        let runs = before.contains_key(&u16::try_from(index).unwrap());
        // What stops over this request, apart from what it changes: nothing, this queue, or all.
        let mut stops: Vec<u32> = Vec::new();
        let all: Vec<u32> = before.keys().copied().map(u32::from).collect();
        let this = if runs { vec![index] } else { Vec::new() };
        let (what, found, expected) = match self.rng.u32(0..100) {
            0..12 => {
                let size = self.rng.u32(0..12);
                let good = !runs && size <= 8;
                if good {
                    queue.size = Some(1 << size);
                }
                let found = self.peer.ask_vring(SET_VRING_NUM, index, 1 << size);
                (format!("SET_VRING_NUM {index} {}", 1 << size), found, good)
            }
            12..16 => {
                let base = self.rng.u16(..);
                if !runs {
                    queue.base = base;
                }
                let found = self.peer.ask_vring(SET_VRING_BASE, index, base.into());
                (format!("SET_VRING_BASE {index} {base}"), found, !runs)
            }
            16..32 => {
                let (region, area) = (self.rng.usize(0..2), self.rng.u64(0..5));
                let at = self.guests[region].user + area * AREA_BYTES;
                // The fifth area is past the end of a megabyte.
                let good = self.model.regions[region] && area < 4;
                if good {
                    queue.place = Some((region, area));
                    stops = this;
                }
                let addr = vring_addr(index, at, at + 0x1000, at + 0x2000);
                let found = self.peer.ask(SET_VRING_ADDR, &addr, &[]);
                (format!("SET_VRING_ADDR {index} in region {region} at {area}"), found, good)
            }
            32..46 => {
                queue.kick = true;
                stops = this;
                let found = self.peer.ask(SET_VRING_KICK, &longs(&[index.into()]), &[self.fds[0].as_fd()]);
                (format!("SET_VRING_KICK {index}"), found, true)
            }
            46..54 => {
                queue.call = self.rng.bool();
                stops = this;
                let word = u64::from(index) | if queue.call { 0 } else { 0x100 };
                let fds = [self.fds[1].as_fd()];
                let fds = if queue.call { &fds[..] } else { &[] };
                let found = self.peer.ask(SET_VRING_CALL, &longs(&[word]), fds);
                (format!("SET_VRING_CALL {index} {}", queue.call), found, true)
            }
            54..68 => {
                let enable = self.rng.u32(0..8).min(1);
                queue.enabled = Some(enable == 1);
                if enable == 0 {
                    stops = this;
                }
                let found = self.peer.ask_vring(SET_VRING_ENABLE, index, enable);
                (format!("SET_VRING_ENABLE {index} {enable}"), found, true)
            }
            68..72 => {
                if runs {
                    Model::stopped(queue);
                }
                (queue.kick, queue.call) = (false, false);
                let found = self.peer.get_vring_base(index);
                assert_eq!(found, u32::from(queue.base), "GET_VRING_BASE {index}");
                (format!("GET_VRING_BASE {index}"), 0, true)
            }
            72..76 => {
                stops = all;
                let region = self.rng.usize(0..2);
                let there = self.model.regions[region];
                self.model.regions[region] = !there;
                let guest = &self.guests[region];
                let payload = [longs(&[0]), guest.region()].concat();
                if there {
                    let found = self.peer.ask(REM_MEM_REG, &payload, &[]);
                    (format!("REM_MEM_REG {region}"), found, true)
                } else {
                    let found = self.peer.ask(ADD_MEM_REG, &payload, &[guest.fd()]);
                    (format!("ADD_MEM_REG {region}"), found, true)
                }
            }
            76..85 => {
                stops = all;
                self.model.regions = [true; 2];
                let [one, two] = &self.guests;
                let table = [longs(&[2]), one.region(), two.region()].concat();
                let found = self.peer.ask(SET_MEM_TABLE, &table, &[one.fd(), two.fd()]);
                ("SET_MEM_TABLE".to_owned(), found, true)
            }
            85..93 => {
                let mut features = 0;
                for bit in [VERSION_1, ZONED, MQ, PROTOCOL_FEATURES, PROTOCOL_FEATURES] {
                    features |= if self.rng.u32(0..4) > 0 { bit } else { 0 };
                }
                stops = all;
                self.model.features = Some(features);
                let driver = features & !PROTOCOL_FEATURES;
                self.model.accepted = (driver != 0).then_some(driver);
                self.model.refused = driver != 0 && driver & ZONED == 0;
                if self.model.refused {
                    self.model.status &= !8;
                }
                let found = self.peer.ask_u64(SET_FEATURES, features);
                (format!("SET_FEATURES {features:#x}"), found, true)
            }
            93..98 => {
                let status = self.rng.u8(1..16);
                if status & 8 != 0 && self.model.accepted.is_none() {
                    (self.model.accepted, self.model.refused) = (Some(0), true);
                }
                self.model.status = if self.model.refused { status & !8 } else { status };
                let found = self.peer.ask_u64(SET_STATUS, status.into());
                (format!("SET_STATUS {status}"), found, true)
            }
            98 if self.rng.bool() => {
                for &index in before.keys() {
                    Model::stopped(&mut self.model.queues[usize::from(index)]);
                }
                for queue in &mut self.model.queues {
                    queue.kick = false;
                }
                ("RESET_OWNER".to_owned(), self.peer.ask(RESET_OWNER, &[], &[]), true)
            }
            _ => {
                self.model = Model { regions: self.model.regions, ..Model::default() };
                if self.rng.bool() {
                    ("RESET_DEVICE".to_owned(), self.peer.ask(RESET_DEVICE, &[], &[]), true)
                } else {
                    ("SET_STATUS 0".to_owned(), self.peer.ask_u64(SET_STATUS, 0), true)
                }
            }
        };
        for index in stops {
            Model::stopped(&mut self.model.queues[usize::try_from(index).unwrap()]);
        }
        // A queue that starts without a driver having spoken speaks for one that accepts nothing: the toy
        // refuses it.
        if !self.model.running().is_empty() && self.model.accepted.is_none() {
            (self.model.accepted, self.model.refused) = (Some(0), true);
            self.model.status &= !8;
        }
        let queue = &self.model.queues[usize::try_from(index).unwrap()];
        let starts = ["NUM", "BASE", "KICK", "CALL", "ENABLE"];
        let stuck = starts.map(|name| what.starts_with(&format!("SET_VRING_{name}"))).contains(&true)
            && self.model.is_stuck(queue);
        assert_eq!(found == 0, expected && !stuck, "{what}");
        what
    }

    /// The device has what the model says, and has it with the right contents.
    fn check(&self, step: usize, what: &str) {
        let expected = self.model.running();
        let found = self.harness.toy.running();
        let keys = (found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert_eq!(keys.0, keys.1, "running and expected after step {step}: {what}");
        for (index, vring) in found {
            let queue = &expected[&index];
            let (region, area) = queue.place.unwrap();
            let desc = self.guests[region].guest + area * AREA_BYTES;
            let found = (Some(vring.size), vring.next_avail, vring.call.is_some(), vring.features);
            let wanted = (queue.size, queue.base, queue.call, self.model.accepted.unwrap());
            assert_eq!(found, wanted, "queue {index} after step {step}: {what}");
            let found = [vring.desc.0, vring.avail.0, vring.used.0];
            assert_eq!(found, [desc, desc + 0x1000, desc + 0x2000], "step {step}: {what}");
            let regions = self.model.regions.iter().filter(|there| **there).count();
            assert_eq!(vring.memory.num_regions(), regions, "step {step}: {what}");
        }
        assert_eq!(self.peer.get(GET_STATUS), u64::from(self.model.status), "step {step}: {what}");
    }
}
