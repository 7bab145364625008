//! `cargo xtask test`: everything.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use virtio_zbd_guest::packages::{self, GUEST_TOOLS};
use virtio_zbd_guest::tools::ZonedTools;
use virtio_zbd_guest::{BareMetal, Kernel, Qemu, StockKernel};

use crate::cargo::{cargo, cargo_with_programs};
use crate::{fuzz, miri, say};

const GUEST_PACKAGE: &str = "virtio-zbd-guest";

/// How long each fuzz target runs: enough to see that it works, and for what a change broke badly.
const FUZZ_SECONDS: u32 = 5;

/// Run all tests: unit, property, protocol and guest tests, and before them all of the set-up that they need; after them the
/// fuzz targets for a moment, and Miri where it is installed.
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
        StockKernel::ensure(&mut say)?;
        ZonedTools::ensure(&mut say)?;
        say("baremetal: building the kernels");
        BareMetal::build()?;
    }
    let storage_daemon = match Qemu::storage_daemon(&mut say) {
        // There is much else to test.
        Err(error) if args.no_guest => {
            say(&format!("the tests with qemu-storage-daemon will fail: {error}"));
            None
        }
        found => Some(found?),
    };
    let programs = storage_daemon.as_deref().and_then(Path::parent);
    // The guest tests start programs of other packages, which `cargo test` would not build.
    cargo("build", ["--workspace", "--all-targets"])?;
    let test = |selection: &[&str]| {
        let args = selection.iter().copied().chain(args.cargo_test.iter().map(String::as_str));
        cargo_with_programs("test", args, programs)
    };
    if args.no_guest {
        test(&["--workspace", "--exclude", GUEST_PACKAGE])?;
        test(&["--package", GUEST_PACKAGE, "--lib", "--bins"])?;
    } else {
        test(&["--workspace"])?;
    }
    // Whoever asked for some tests wants those.
    if args.cargo_test.is_empty() {
        fuzz::run(&fuzz::Args { seconds: FUZZ_SECONDS, targets: Vec::new() })?;
        miri::run_if_installed()?;
    }
    Ok(ExitCode::SUCCESS)
}
