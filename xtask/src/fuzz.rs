//! `cargo xtask fuzz`: what a device may say to the driver, and what a driver, a front-end or a file may say to the device, made up
//! by libFuzzer.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use virtio_zbd_guest::{packages, programs};

use crate::say;

/// Coverage that libFuzzer is led by, on a stable compiler. It is for our code, not for build scripts: hence `--target`.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 \
    --cfg fuzzing";

/// The program for each: `fuzz/targets`.
const TARGETS: [&str; 6] = ["config", "report", "ring", "device", "messages", "image"];

/// Run the fuzz targets, one after another. What is found is written to `target/fuzz/TARGET-findings`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long each one runs
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) seconds: u32,

    /// Only these
    #[arg(value_name = "TARGET", value_parser = clap::builder::PossibleValuesParser::new(TARGETS))]
    pub(crate) targets: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    // libFuzzer is C++.
    packages::ensure(packages::FUZZER, &mut say)?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let target_dir = programs::target_dir()?.join("fuzz");
    let host = host()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--target", &host])
        .current_dir(&sources)
        .env("RUSTFLAGS", INSTRUMENTATION)
        .env("CARGO_TARGET_DIR", &target_dir)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("can't run cargo")?;
    ensure!(status.success(), "the fuzz targets don't compile ({status})");

    let all = TARGETS.map(String::from);
    for target in if args.targets.is_empty() { &all[..] } else { &args.targets } {
        let program = target_dir.join(&host).join("release").join(target);
        fuzz(&target_dir, &program, &sources.join("corpus").join(target), args.seconds)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs one target on the inputs of earlier runs, on those that are committed, and on those that it writes itself to begin with.
fn fuzz(dir: &Path, program: &Path, committed: &Path, seconds: u32) -> Result<()> {
    let target = committed.file_name().and_then(OsStr::to_str).context("a target has a name")?;
    let corpus = dir.join(format!("{target}-corpus"));
    let findings = dir.join(format!("{target}-findings"));
    for dir in [&corpus, &findings] {
        std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    }
    say(&format!("fuzzing {target} for {seconds} s"));
    let status = Command::new(program)
        .arg(&corpus)
        .args(committed.is_dir().then_some(committed))
        .arg(format!("-max_total_time={seconds}"))
        // An input that takes this long is a loop without end.
        .arg("-timeout=60")
        .arg("-print_final_stats=1")
        .arg("-verbosity=0")
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .env("FUZZ_SEEDS_DIR", &corpus)
        .status()
        .with_context(|| format!("can't run {}", program.display()))?;
    ensure!(
        status.success(),
        "{target} found something ({status}): the input is in {}, run {} on it again",
        findings.display(),
        program.display()
    );
    Ok(())
}

/// The compiler's own target.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("can't run rustc")?;
    let version = String::from_utf8(output.stdout).context("rustc -vV")?;
    let host =
        version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    Ok(host.to_owned())
}
