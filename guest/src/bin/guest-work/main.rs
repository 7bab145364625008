//! Work for a guest, with an exact oracle: random operations that are played in memory and on the guest's disk side by side.
//!
//! - `guest-work files DIRECTORY SEED ROUND COUNT`: a tree of files on any file system.
//! - `guest-work zonefs DIRECTORY SEED ROUND COUNT`: the zones of a mounted zonefs.
//!
//! - `guest-work storm DISK SEED COUNT MAX_OPEN MAX_ACTIVE plain|merging`: a zoned disk itself, with everything that Linux lets a
//!   program do to it, right and wrong, against a model of the zones and of what Linux adds.
//!
//! A round is COUNT operations that follow from SEED and the rounds before. Each call first compares what is there with what
//! the rounds before have left (they are played again, in memory alone), then plays its own round on both, then compares again.
//! So nothing has to be kept between two calls but the disk.
#![deny(unsafe_code)]

mod bytes;
mod files;
mod ring;
mod storm;
mod zonefs;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match work(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "guest-work {}: {error:#}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn work(args: &[String]) -> Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["files", dir, rest @ ..] => files::work(&PathBuf::from(dir).join("tree"), Rounds::parse(rest)?),
        ["zonefs", dir, rest @ ..] => zonefs::work(&PathBuf::from(dir), Rounds::parse(rest)?),
        ["storm", rest @ ..] => storm::work(rest),
        _ => {
            bail!("this is a helper of the project's guest tests; the head of its source says how to call it")
        }
    }
}

/// Which operations are played, and which of them were played before.
#[derive(Clone, Copy, Debug)]
struct Rounds {
    seed: u64,
    /// This one; those before it are on the disk already.
    round: u64,
    /// How many operations a round has.
    count: usize,
}

impl Rounds {
    fn parse(words: &[&str]) -> Result<Rounds> {
        let [seed, round, count] = words else { bail!("SEED ROUND COUNT are wanted") };
        Ok(Rounds {
            seed: seed.parse().context("SEED")?,
            round: round.parse().context("ROUND")?,
            count: count.parse().context("COUNT")?,
        })
    }

    /// The random numbers of a round.
    fn random(self, round: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(round))
    }
}
