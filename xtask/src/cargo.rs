//! Cargo, called by a program that cargo runs.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Runs cargo in the workspace with the profile that this program was built with, so that its programs come to lie beside
/// this one.
pub(crate) fn cargo<A: AsRef<OsStr>>(subcommand: &str, args: impl IntoIterator<Item = A>) -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&program);
    command.arg(subcommand);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    // Set by `cargo run`; without it the caller stands in the workspace.
    if let Some(own) = std::env::var_os("CARGO_MANIFEST_DIR") {
        command.current_dir(std::path::Path::new(&own).join(".."));
    }
    command.args(args);
    let status = command.status().with_context(|| format!("can't run {}", program.display()))?;
    ensure!(status.success(), "cargo {subcommand} failed ({status})");
    Ok(())
}
