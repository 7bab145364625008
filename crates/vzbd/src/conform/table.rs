//! The results for people: a row for each case as it ends, and under a failed one what was sent, what came back and what is asked.

use std::time::Duration;

use virtio_zbd_conform::{Case, CaseResult, Level, Outcome, Summary};

/// The widths of the columns, and what is shown in them.
pub(super) struct Table {
    id: usize,
    level: usize,
    /// Exchanges of all cases, not only of failed ones.
    verbose: bool,
}

/// How wide the ids and the levels of these cases are.
pub(super) fn columns(cases: &[&'static Case]) -> (usize, usize) {
    let width = |text: fn(&Case) -> String| cases.iter().map(|case| text(case).len()).max().unwrap_or(0);
    (width(|case| case.id.to_owned()), width(|case| case.level.to_string()))
}

impl Table {
    pub(super) fn new(cases: &[&'static Case], verbose: bool) -> Self {
        let (id, level) = columns(cases);
        Self { id: id.max("case".len()), level: level.max("level".len()), verbose }
    }

    /// What stands above the columns.
    pub(super) fn head(&self) -> String {
        let Self { id, level, .. } = self;
        format!("{:id$}  {:level$}  outcome  title", "case", "level")
    }

    /// A case, in one line or more.
    pub(super) fn row(&self, result: &CaseResult) -> String {
        let Self { id, level, verbose } = self;
        let case = result.case;
        let outcome = match (&result.outcome, case.level) {
            (Outcome::Passed, _) => "passed",
            (Outcome::Skipped(_), _) => "skipped",
            (Outcome::Failed(_), Level::Required) => "FAILED",
            (Outcome::Failed(_), _) => "failed",
        };
        let mut lines =
            vec![format!("{:id$}  {:level$}  {outcome:7}  {}", case.id, case.level.to_string(), case.title)];
        let mut detail = |name: &str, text: &str| lines.push(format!("{:id$}    {name:9} {text}", ""));
        match &result.outcome {
            Outcome::Passed => {}
            Outcome::Skipped(reason) => detail("because", reason),
            Outcome::Failed(finding) => {
                detail("asked", case.asks);
                detail("sent", &finding.sent);
                detail("expected", &finding.expected);
                detail("found", &finding.found);
            }
        }
        if *verbose || matches!(result.outcome, Outcome::Failed(_)) {
            if result.exchanges_left_out > 0 {
                detail("", &format!("({} steps before)", result.exchanges_left_out));
            }
            for step in &result.exchange {
                detail("  step", &format!("{}: {}", step.sent, step.came));
            }
        }
        lines.join("\n")
    }

    /// What stands below.
    pub(super) fn end(&self, summary: &Summary, took: Duration) -> String {
        format!("\n{} ({:.1} s)", verdict(summary), took.as_secs_f64())
    }
}

/// The summary in a line.
pub(super) fn verdict(summary: &Summary) -> String {
    let Summary { passed, failed_required, failed_recommended, failed_ours, skipped } = summary;
    let mut failed: Vec<String> = Vec::new();
    for (count, level) in [
        (failed_required, Level::Required),
        (failed_recommended, Level::Recommended),
        (failed_ours, Level::Ours),
    ] {
        if *count > 0 {
            failed.push(format!("{count} {level}"));
        }
    }
    let failed = if failed.is_empty() { "0 failed".into() } else { format!("failed: {}", failed.join(", ")) };
    let verdict = match (summary.conforms(), passed) {
        (false, _) => "the disk does not keep the specification",
        (true, 0) => "nothing was shown of this disk",
        (true, _) => "all that is required and could be tried is kept",
    };
    format!("{passed} passed, {failed}, {skipped} skipped: {verdict}")
}
