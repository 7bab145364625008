//! The results as JUnit's XML, which CI systems read.
//!
//! A required case that failed is a `failure`. One that is recommended, or ours, must not turn a build red: it is `skipped`, with
//! a message that says that it failed.

use std::fmt::{self, Write};
use std::time::Duration;

use super::shown::{Shown, ShownCase, ShownOutcome};

/// The whole file.
pub(super) fn xml(shown: &Shown, took: Duration) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, shown, took);
    out
}

fn write(out: &mut String, shown: &Shown, took: Duration) -> fmt::Result {
    let failures = shown.cases.iter().filter(|case| case.is_broken()).count();
    let skipped = shown.cases.iter().filter(|case| is_skipped(case)).count();
    let counts = format!(
        "tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\" time=\"{:.3}\"",
        shown.cases.len(),
        took.as_secs_f64()
    );
    writeln!(out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>")?;
    writeln!(out, "<testsuites {counts}>")?;
    writeln!(out, "  <testsuite name=\"{}\" {counts}>", Escaped(&shown.disk.text()))?;
    writeln!(out, "    <properties>")?;
    writeln!(out, "      <property name=\"seed\" value=\"{}\"/>", shown.seed)?;
    writeln!(out, "    </properties>")?;
    for case in &shown.cases {
        write_case(out, case)?;
    }
    writeln!(out, "  </testsuite>")?;
    writeln!(out, "</testsuites>")
}

fn is_skipped(case: &ShownCase) -> bool {
    !matches!(case.outcome, ShownOutcome::Passed) && !case.is_broken()
}

fn write_case(out: &mut String, case: &ShownCase) -> fmt::Result {
    let name = format!("{} {}", case.id, case.title);
    writeln!(
        out,
        "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\">",
        Escaped(case.rule),
        Escaped(&name),
        case.seconds
    )?;
    match &case.outcome {
        ShownOutcome::Passed => {}
        ShownOutcome::Skipped { reason } => {
            writeln!(out, "      <skipped message=\"{}\"/>", Escaped(reason))?;
        }
        ShownOutcome::Failed { sent, expected, found } => {
            let message = format!("after {sent}: expected {expected}, found {found}");
            if case.is_broken() {
                writeln!(
                    out,
                    "      <failure type=\"{}\" message=\"{}\">{}</failure>",
                    Escaped(&case.level),
                    Escaped(&message),
                    Escaped(&details(case))
                )?;
            } else {
                let message = format!("failed, but {}: {message}", case.level);
                writeln!(out, "      <skipped message=\"{}\"/>", Escaped(&message))?;
                writeln!(out, "      <system-out>{}</system-out>", Escaped(&details(case)))?;
            }
        }
    }
    writeln!(out, "    </testcase>")
}

/// What is asked, and all steps.
fn details(case: &ShownCase) -> String {
    let mut lines = vec![format!("asked: {}", case.asks)];
    lines.extend(case.exchange.iter().map(|step| format!("{}: {}", step.sent, step.came)));
    lines.join("\n")
}

/// A text as it stands in an attribute or an element. What XML can't hold at all is replaced.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&apos;")?,
                '\n' | '\t' | '\r' => write!(f, "&#{};", u32::from(c))?,
                '\u{fffe}' | '\u{ffff}' => f.write_char(char::REPLACEMENT_CHARACTER)?,
                c if c < ' ' => f.write_char(char::REPLACEMENT_CHARACTER)?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_taken_for_markup() {
        let escaped = |text: &str| Escaped(text).to_string();
        assert_eq!(
            escaped("OUT -> INVALID & \"so\" <on>'s"),
            "OUT -&gt; INVALID &amp; &quot;so&quot; &lt;on&gt;&apos;s"
        );
        assert_eq!(escaped("a\nb\tc\rd"), "a&#10;b&#9;c&#13;d");
        assert_eq!(escaped("\0\u{1b}[31m\u{fffe}é𝄞"), "\u{fffd}\u{fffd}[31m\u{fffd}é𝄞");
        assert_eq!(escaped("]]>"), "]]&gt;");
    }
}
