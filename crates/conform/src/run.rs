//! Runs cases against a disk.

use alloc::string::String;
use alloc::vec::Vec;

use crate::bench::Bench;
use crate::case::{CaseResult, Level, Outcome};
use crate::cases::cases;
use crate::link::Link;

/// What to run, and how far to go.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Chooses zones and data. The same seed on the same disk sends the same.
    pub seed: u64,
    /// Only cases with these ids (`V26-a`) or of these rules (`V26`); empty: all.
    pub only: Vec<String>,
    /// Not those with these ids or of these rules.
    pub except: Vec<String>,
    /// How many zones are opened at most to see a limit exceeded. Disks with higher limits skip these cases.
    pub limit_max_zones: u32,
    /// How many sectors are written at most to fill a zone. Where all zones are larger, what needs a filled one is skipped.
    pub fill_max_sectors: u64,
    /// The longest data of one request in bytes.
    pub request_max_bytes: usize,
    /// How many zones of the disk are looked at.
    pub survey_max_zones: u64,
    /// How many steps of a case are kept for its result.
    pub exchanges_max: usize,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            only: Vec::new(),
            except: Vec::new(),
            limit_max_zones: 512,
            fill_max_sectors: 128 << 11,
            request_max_bytes: 4 << 20,
            survey_max_zones: 1 << 22,
            exchanges_max: 48,
        }
    }
}

/// How a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Cases that passed.
    pub passed: usize,
    /// Cases that failed and are required.
    pub failed_required: usize,
    /// Cases that failed and are recommended.
    pub failed_recommended: usize,
    /// Cases that failed where the specification leaves it open.
    pub failed_ours: usize,
    /// Cases that this disk can't show.
    pub skipped: usize,
}

impl Summary {
    /// Whether nothing that is required failed.
    #[must_use]
    pub const fn conforms(&self) -> bool {
        self.failed_required == 0
    }

    /// How many cases were run, skipped ones included.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.passed + self.failed_required + self.failed_recommended + self.failed_ours + self.skipped
    }

    fn count(&mut self, result: &CaseResult) {
        let counter = match (&result.outcome, result.case.level) {
            (Outcome::Passed, _) => &mut self.passed,
            (Outcome::Skipped(_), _) => &mut self.skipped,
            (Outcome::Failed(_), Level::Required) => &mut self.failed_required,
            (Outcome::Failed(_), Level::Recommended) => &mut self.failed_recommended,
            (Outcome::Failed(_), Level::Ours) => &mut self.failed_ours,
        };
        *counter += 1;
    }
}

/// Runs the cases that `options` names, in the order of [`cases`], and tells `report` of each when it has ended.
///
/// **Everything on the disk is destroyed.** The device is reset and its zones are, before the first case and after each.
pub fn run(link: &mut dyn Link, options: &RunOptions, report: &mut dyn FnMut(&CaseResult)) -> Summary {
    let mut bench = Bench::new(link, options);
    let mut summary = Summary::default();
    for case in cases().iter().filter(|case| options.names(case.id, case.rule)) {
        let outcome = bench.judge(case);
        let (exchange, exchanges_left_out) = bench.take_exchanges();
        let result = CaseResult { case, outcome, exchange, exchanges_left_out };
        summary.count(&result);
        report(&result);
    }
    summary
}

impl RunOptions {
    fn names(&self, id: &str, rule: &str) -> bool {
        let listed = |list: &[String]| list.iter().any(|name| name == id || name == rule);
        (self.only.is_empty() || listed(&self.only)) && !listed(&self.except)
    }
}
