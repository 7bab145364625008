//! The results for programs.

use std::time::Duration;

use serde::Serialize;
use virtio_zbd_conform::{CaseResult, Level, Outcome, Summary};

use super::disk::Description;

/// A whole run; the names are the keys of `--json`.
#[derive(Serialize)]
pub(super) struct Shown {
    pub(super) disk: Description,
    pub(super) seed: u64,
    /// Whether nothing that is required failed.
    pub(super) conforms: bool,
    pub(super) summary: Counts,
    pub(super) seconds: f64,
    pub(super) cases: Vec<ShownCase>,
}

#[derive(Serialize)]
pub(super) struct Counts {
    passed: usize,
    failed_required: usize,
    failed_recommended: usize,
    failed_ours: usize,
    skipped: usize,
}

/// A case and what came of it.
#[derive(Serialize)]
pub(super) struct ShownCase {
    pub(super) id: &'static str,
    pub(super) rule: &'static str,
    pub(super) level: String,
    pub(super) title: &'static str,
    pub(super) asks: &'static str,
    #[serde(flatten)]
    pub(super) outcome: ShownOutcome,
    /// What was sent and what came back.
    pub(super) exchange: Vec<ShownExchange>,
    /// How many steps came before those.
    pub(super) exchanges_left_out: usize,
    pub(super) seconds: f64,
}

#[derive(Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub(super) enum ShownOutcome {
    Passed,
    Failed { sent: String, expected: String, found: String },
    Skipped { reason: String },
}

#[derive(Serialize)]
pub(super) struct ShownExchange {
    pub(super) sent: String,
    pub(super) came: String,
}

impl Shown {
    pub(super) fn new(
        disk: Description,
        seed: u64,
        cases: Vec<ShownCase>,
        summary: &Summary,
        took: Duration,
    ) -> Self {
        let Summary { passed, failed_required, failed_recommended, failed_ours, skipped } = *summary;
        Self {
            disk,
            seed,
            conforms: summary.conforms(),
            summary: Counts { passed, failed_required, failed_recommended, failed_ours, skipped },
            seconds: took.as_secs_f64(),
            cases,
        }
    }
}

impl ShownCase {
    pub(super) fn of(result: &CaseResult, took: Duration) -> Self {
        let case = result.case;
        Self {
            id: case.id,
            rule: case.rule,
            level: case.level.to_string(),
            title: case.title,
            asks: case.asks,
            outcome: match &result.outcome {
                Outcome::Passed => ShownOutcome::Passed,
                Outcome::Failed(finding) => ShownOutcome::Failed {
                    sent: finding.sent.clone(),
                    expected: finding.expected.clone(),
                    found: finding.found.clone(),
                },
                Outcome::Skipped(reason) => ShownOutcome::Skipped { reason: reason.clone() },
            },
            exchange: result
                .exchange
                .iter()
                .map(|step| ShownExchange { sent: step.sent.clone(), came: step.came.clone() })
                .collect(),
            exchanges_left_out: result.exchanges_left_out,
            seconds: took.as_secs_f64(),
        }
    }

    /// Whether it failed and had to pass.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self.outcome, ShownOutcome::Failed { .. }) && self.level == Level::Required.to_string()
    }
}
