//! What a check came to, for people and for a log.

use alloc::string::String;
use core::fmt;

/// One check and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What was tried.
    pub check: &'static str,
    /// What came of it.
    pub verdict: Verdict,
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All is as expected. The text names a known difference of the peer that was expected and found, or is empty.
    Passed(String),
    /// What was done, expected and found.
    Failed(String),
    /// This disk can't be asked; why.
    NotHere(String),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, text) = match &self.verdict {
            Verdict::Passed(text) => ("ok", text),
            Verdict::Failed(text) => ("FAILED", text),
            Verdict::NotHere(text) => ("not here", text),
        };
        write!(f, "{word:<8}  {}", self.check)?;
        if text.is_empty() { Ok(()) } else { write!(f, " ({text})") }
    }
}

/// How many checks passed, failed and were not possible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Summary {
    /// All as expected.
    pub passed: u32,
    /// Something was not.
    pub failed: u32,
    /// Not possible on this disk.
    pub skipped: u32,
}

impl Summary {
    /// Counts a line and shows it.
    pub(crate) fn count(&mut self, line: &Line, report: &mut dyn FnMut(&Line)) {
        match line.verdict {
            Verdict::Passed(_) => self.passed += 1,
            Verdict::Failed(_) => self.failed += 1,
            Verdict::NotHere(_) => self.skipped += 1,
        }
        report(line);
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}
