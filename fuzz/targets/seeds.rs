//! Writes the first inputs of each fuzz target: `seeds DIR` makes `DIR/report/`, `DIR/config/` and `DIR/ring/`.
#![allow(clippy::print_stdout, reason = "a program")]

#[path = "../../crates/driver/tests/common/mod.rs"]
mod common;

use std::io;
use std::path::Path;

fn main() -> io::Result<()> {
    let Some(dir) = std::env::args_os().nth(1) else {
        return Err(io::Error::other("usage: seeds DIR"));
    };
    for target in ["report", "config", "ring"] {
        let dir = Path::new(&dir).join(target);
        std::fs::create_dir_all(&dir)?;
        let seeds = common::fuzz::seeds(target);
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{number:03}")), seed)?;
        }
        println!("{}: {} seeds", dir.display(), seeds.len());
    }
    Ok(())
}
