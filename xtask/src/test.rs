//! `cargo xtask test`: everything.

use std::process::ExitCode;

use anyhow::Result;
use virtio_zbd_guest::packages::{self, GUEST_TOOLS};
use virtio_zbd_guest::{BareMetal, Kernel, Qemu};

use crate::cargo::cargo;
use crate::say;

const GUEST_PACKAGE: &str = "virtio-zbd-guest";

/// Run all tests: unit, property, protocol and guest tests, and before them all of the set-up that they need.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the tests that boot a guest (and the set-up for them)
    #[arg(long)]
    no_guest: bool,

    /// Arguments for `cargo test`
    #[arg(last = true, value_name = "ARGUMENT")]
    cargo_test: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if !args.no_guest {
        packages::ensure(GUEST_TOOLS, &mut say)?;
        Kernel::ensure(&mut say)?;
        Qemu::ensure(&mut say)?;
        say("baremetal: building the test kernel");
        BareMetal::build()?;
    }
    // The guest tests start programs of other packages, which `cargo test` would not build.
    cargo("build", ["--workspace", "--all-targets"])?;
    let test = |selection: &[&str]| {
        cargo("test", selection.iter().copied().chain(args.cargo_test.iter().map(String::as_str)))
    };
    if args.no_guest {
        test(&["--workspace", "--exclude", GUEST_PACKAGE])?;
        test(&["--package", GUEST_PACKAGE, "--lib", "--bins"])?;
    } else {
        test(&["--workspace"])?;
    }
    Ok(ExitCode::SUCCESS)
}
