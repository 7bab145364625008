//! `cargo xtask miri`: the driver's tests in an interpreter that sees every wrong access to memory.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::say;

/// Run the driver's unit tests under Miri. It needs a nightly toolchain with the components miri and rust-src.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Arguments for `cargo miri test`
    #[arg(last = true, value_name = "ARGUMENT")]
    cargo_test: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if !is_installed() {
        bail!("there is no Miri here: rustup toolchain install nightly --component miri,rust-src");
    }
    tests(&args.cargo_test)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs them where Miri is installed, and says so where it is not: it comes with a nightly compiler only, which nothing
/// else here needs.
pub(crate) fn run_if_installed() -> Result<()> {
    if is_installed() {
        return tests(&[]);
    }
    say("miri: not installed, left out (rustup toolchain install nightly --component miri,rust-src)");
    Ok(())
}

fn tests(args: &[String]) -> Result<()> {
    say("miri: the driver's tests");
    let status = miri()
        .args(["test", "--package", "virtio-zbd-driver"])
        .args(args)
        // The fake device finds the driver's memory by address, as a real one does.
        .env("MIRIFLAGS", "-Zmiri-permissive-provenance")
        .status()
        .context("can't run cargo miri")?;
    ensure!(status.success(), "cargo miri test failed ({status})");
    Ok(())
}

fn is_installed() -> bool {
    // The set-up builds Miri's own standard library, which is what takes rust-src.
    let output = miri().arg("setup").stdout(Stdio::null()).stderr(Stdio::null()).status();
    output.is_ok_and(|status| status.success())
}

/// `cargo miri` of the nightly toolchain, not of the one that runs this program.
fn miri() -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo", "miri"]);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "CARGO_MANIFEST_DIR"] {
        command.env_remove(name);
    }
    command
}
