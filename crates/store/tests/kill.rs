//! A program that is really killed, at a moment that nobody chose: what it has answered is there (D5).
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests may")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{LaneExt, closed, geometry, open, seeded};
use virtio_zbd_store::{Commit, CreateOptions, EngineChoice, ImageStore, LastUse, OpenOptions, Store};
use virtio_zbd_zones::{Condition, ZoneState};

const IMAGE: &str = "VZBD_KILL_TEST_IMAGE";
const ZONE_LEN_BYTES: u64 = 512 * 512;
/// The zones that are used, in turn.
const ZONES: [u32; 4] = [2, 3, 4, 5];

/// What block `block` of the zone's `life`-th life holds.
fn block(life: u32, block: u32) -> Vec<u8> {
    [life.to_le_bytes(), block.to_le_bytes()].concat().repeat(512)
}

/// The program: writes, and says after each step what it has answered. Does nothing when it is not called by the test below.
#[test]
fn writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(IMAGE).map(PathBuf::from) else { return };
    let store = ImageStore::open(&path, OpenOptions::default()).unwrap();
    let mut lane = store.open_lane(EngineChoice::Auto).unwrap();
    let mut out = std::io::stdout();
    let mut answer = |text: String| {
        out.write_all(text.as_bytes()).unwrap();
        out.flush().unwrap();
    };
    for step in 0u32.. {
        let zone = ZONES[step as usize % ZONES.len()];
        let life = step / 4;
        store.publish(zone, ZoneState::EMPTY);
        let outcome = store.commit(&Commit { reset: &[zone], ..Commit::default() });
        outcome.durable.unwrap();
        assert!(outcome.hole_failures.is_empty());
        answer(format!("answered {zone} {life} 0\n"));
        for n in 0..10 {
            lane.write_now(u64::from(zone) * ZONE_LEN_BYTES + u64::from(n) * 4096, &block(life, n)).unwrap();
            store.publish(zone, open((n + 1) * 8));
            answer(format!("answered {zone} {life} {}\n", n + 1));
        }
    }
}

#[test]
fn a_killed_program_loses_nothing() {
    let mut rng = seeded("a_killed_program_loses_nothing");
    for _ in 0..10 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.zbd");
        ImageStore::create(&path, geometry(), CreateOptions::default()).unwrap();
        let lines = rng.usize(1..200);
        check(&path, &run_and_kill(&path, lines));
    }
}

/// Runs the program until it has answered so often, kills it, and returns all that it has answered: zone, life, blocks.
fn run_and_kill(path: &Path, lines: usize) -> Vec<(u32, u32, u32)> {
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args(["writes_until_it_is_killed", "--exact", "--nocapture", "--test-threads=1"])
        .env(IMAGE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answers = Vec::new();
    for line in BufReader::new(program.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // The harness has begun a line of its own before the first one. The last one may be cut off.
        let Some(at) = line.find("answered ") else { continue };
        let numbers: Vec<u32> =
            line[at..].split(' ').skip(1).filter_map(|number| number.parse().ok()).collect();
        if let [zone, life, blocks] = numbers[..] {
            answers.push((zone, life, blocks));
        }
        if answers.len() == lines {
            program.kill().unwrap();
        }
    }
    program.wait().unwrap();
    assert!(answers.len() >= lines, "it stopped by itself");
    answers
}

fn check(path: &Path, answers: &[(u32, u32, u32)]) {
    // The true boot's id, this time.
    let store = ImageStore::open(path, OpenOptions::default()).unwrap();
    assert_eq!(store.info().unwrap().last_use, LastUse::Killed);
    let mut lane = store.open_lane(EngineChoice::Auto).unwrap();
    for (at, zone) in (0u32..).zip(ZONES) {
        let state = store.initial_states()[zone as usize];
        let found = state.wp_sectors / 8;
        let last = answers.iter().rev().find(|(answered, ..)| *answered == zone);
        let (life, blocks) = last.map_or((0, 0), |&(_, life, blocks)| (life, blocks));
        // One more step may have been done and not been answered: a block, or the zone's next reset.
        let reset = found == 0 && (blocks == 10 || blocks == 0);
        assert!(
            found == blocks || found == blocks + 1 || reset,
            "zone {zone} ({at}): {state:?} after {life}/{blocks}"
        );
        assert!(state == closed(found * 8) && found > 0 || state.condition == Condition::Empty);
        let bytes = lane.read_now(u64::from(zone) * ZONE_LEN_BYTES, 64 * 4096).unwrap();
        let expected: Vec<u8> = (0..found).flat_map(|n| block(life, n)).collect();
        let (written, behind) = bytes.split_at(expected.len());
        assert!(written == expected, "zone {zone}: the data below the write pointer");
        assert!(behind.iter().all(|&byte| byte == 0), "zone {zone}: something behind the write pointer");
    }
}
