//! Cargo, called by a program that cargo runs.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Runs cargo in the workspace with the profile that this program was built with, so that its programs come to lie beside
/// this one.
pub(crate) fn cargo<A: AsRef<OsStr>>(subcommand: &str, args: impl IntoIterator<Item = A>) -> Result<()> {
    cargo_with_programs(subcommand, args, None)
}

/// [`cargo`], and what it runs also finds the programs in the directory `programs`.
pub(crate) fn cargo_with_programs<A: AsRef<OsStr>>(
    subcommand: &str,
    args: impl IntoIterator<Item = A>,
    programs: Option<&Path>,
) -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&program);
    command.arg(subcommand);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    // Set by `cargo run`; without it the caller stands in the workspace.
    if let Some(own) = std::env::var_os("CARGO_MANIFEST_DIR") {
        command.current_dir(Path::new(&own).join(".."));
    }
    if let Some(programs) = programs {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Last: it must not change which compiler is found.
        let dirs = std::env::split_paths(&path).chain(std::iter::once(programs.to_path_buf()));
        command.env("PATH", std::env::join_paths(dirs).context("can't extend PATH")?);
    }
    command.args(args);
    let status = command.status().with_context(|| format!("can't run {}", program.display()))?;
    ensure!(status.success(), "cargo {subcommand} failed ({status})");
    Ok(())
}
