//! The fuzz targets on their committed corpora (`fuzz/corpus`), and on some random bytes more, without a fuzzer. `FUZZ_SEED`
//! repeats, `FUZZ_RUNS` sets how many random inputs each target gets.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says loudly what is wrong"
)]

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use virtio_zbd_fuzzing::{TARGETS, Target};

/// How many random inputs, unless said otherwise.
const RUNS: u64 = 400;

/// One after the other: `messages` counts what the process has left.
static TURN: Mutex<()> = Mutex::new(());

fn target(name: &str) -> Target {
    *TARGETS.iter().find(|(found, _)| *found == name).unwrap()
}

/// Inputs that once led somewhere new.
fn replay(name: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, run) = target(name);
    run(&[]);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let mut inputs: Vec<_> = fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", corpus.display());
    for path in inputs {
        let data = fs::read(&path).unwrap();
        assert!(catch_unwind(|| run(&data)).is_ok(), "{} on {}", name, path.display());
    }
}

fn random(name: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, run) = target(name);
    let env = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let start = env("FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    let runs = env("FUZZ_RUNS").unwrap_or(RUNS);
    println!("{name}: FUZZ_SEED={start}");
    for i in 0..runs {
        let seed = start.wrapping_add(i);
        let mut rng = fastrand::Rng::with_seed(seed);
        let len = rng.usize(..600);
        let density = rng.u8(1..=8);
        let data: Vec<u8> = (0..len).map(|_| if rng.u8(..8) < density { rng.u8(..) } else { 0 }).collect();
        assert!(catch_unwind(|| run(&data)).is_ok(), "{name}: FUZZ_SEED={seed} FUZZ_RUNS=1");
    }
}

#[test]
fn device() {
    replay("device");
}

#[test]
fn device_random() {
    random("device");
}

#[test]
fn messages() {
    replay("messages");
}

#[test]
fn messages_random() {
    random("messages");
}

#[test]
fn image() {
    replay("image");
}

#[test]
fn image_random() {
    random("image");
}
