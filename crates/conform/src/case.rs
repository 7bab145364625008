//! Cases, and what comes of them.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::bench::{Bench, Verdict};

/// One thing that a device is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name: the rule and a letter, `V26-a`.
    pub id: &'static str,
    /// The rule that it belongs to, `V26`: V for the device's rules, S for other sentences of the specification, R for
    /// what the driver's rules ask of the device, G for what the specification leaves open.
    pub rule: &'static str,
    /// What is tried, in a few words.
    pub title: &'static str,
    /// What the specification asks, in our words, with the section of virtio 1.3.
    pub asks: &'static str,
    /// How much it asks for it.
    pub level: Level,
    /// Tries it.
    pub(crate) run: fn(&mut Bench<'_>) -> Verdict,
}

/// How much is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// MUST, SHALL, or said of a device as a fact: a device that fails does not conform.
    Required,
    /// SHOULD: a device that fails had better have a reason.
    Recommended,
    /// The specification is silent or leaves it open; this is what virtio-zbd's device does.
    Ours,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Required => "required",
            Self::Recommended => "recommended",
            Self::Ours => "ours",
        })
    }
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The device does what is asked.
    Passed,
    /// It does not.
    Failed(Finding),
    /// This disk, or the way to it, can't show it, and why.
    Skipped(String),
}

/// What a device did that it should not have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The last thing that was sent.
    pub sent: String,
    /// What should have been.
    pub expected: String,
    /// What was.
    pub found: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {}: expected {}, found {}", self.sent, self.expected, self.found)
    }
}

/// One step of a case: what was sent and what came back, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What was sent.
    pub sent: String,
    /// What came back.
    pub came: String,
}

/// A case that was run.
#[derive(Clone, Debug)]
pub struct CaseResult {
    /// Which one.
    pub case: &'static Case,
    /// What came of it.
    pub outcome: Outcome,
    /// All that was sent and what came back, in this order; the latest [`crate::RunOptions::exchanges_max`] of it.
    pub exchange: Vec<Exchange>,
    /// How many steps came before those in `exchange`.
    pub exchanges_left_out: usize,
}

impl Case {
    pub(crate) const fn required(
        id: &'static str,
        title: &'static str,
        asks: &'static str,
        run: Run,
    ) -> Self {
        Self::new(id, title, asks, Level::Required, run)
    }

    pub(crate) const fn recommended(
        id: &'static str,
        title: &'static str,
        asks: &'static str,
        run: Run,
    ) -> Self {
        Self::new(id, title, asks, Level::Recommended, run)
    }

    pub(crate) const fn ours(id: &'static str, title: &'static str, asks: &'static str, run: Run) -> Self {
        Self::new(id, title, asks, Level::Ours, run)
    }

    const fn new(id: &'static str, title: &'static str, asks: &'static str, level: Level, run: Run) -> Self {
        Self { id, rule: rule_of(id), title, asks, level, run }
    }
}

type Run = fn(&mut Bench<'_>) -> Verdict;

/// What stands before the hyphen.
const fn rule_of(id: &'static str) -> &'static str {
    let mut len = 0;
    while id.as_bytes()[len] != b'-' {
        len += 1;
    }
    id.split_at(len).0
}
