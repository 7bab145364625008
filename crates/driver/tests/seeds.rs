//! The fuzz targets of `fuzz/` on their seeds, and on some random bytes more, without a fuzzer. `FUZZ_SEED` repeats, `FUZZ_RUNS` sets how many.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says loudly what is wrong"
)]

mod common;

use common::fuzz;

fn run(name: &str, target: fn(&[u8])) {
    let env = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    target(&[]);
    // The short ones come first.
    for seed in fuzz::seeds(name).take(if cfg!(miri) { 8 } else { usize::MAX }) {
        target(&seed);
    }
    let start = env("FUZZ_SEED").unwrap_or_else(|| if cfg!(miri) { 1 } else { fastrand::u64(..) });
    let runs = env("FUZZ_RUNS").unwrap_or(if cfg!(miri) { 8 } else { 20_000 });
    println!("{name}: FUZZ_SEED={start}");
    for seed in start..start.saturating_add(runs) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let len = rng.usize(..400);
        let density = rng.u8(1..=8);
        let data: Vec<u8> = (0..len).map(|_| if rng.u8(..8) < density { rng.u8(..) } else { 0 }).collect();
        if std::panic::catch_unwind(|| target(&data)).is_err() {
            panic!("{name}: FUZZ_SEED={seed}, {data:?}");
        }
    }
}

#[test]
fn report() {
    run("report", fuzz::report);
}

#[test]
fn config() {
    run("config", fuzz::config);
}

#[test]
fn ring() {
    run("ring", fuzz::ring);
}
