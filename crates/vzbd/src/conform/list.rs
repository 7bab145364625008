//! `vzbd conform --list`: the cases, without a disk.

use serde::Serialize;
use virtio_zbd_conform::Case;

use super::table::columns;
use crate::say;

/// A case; the names are the keys of `--json`.
#[derive(Serialize)]
struct Listed {
    id: &'static str,
    rule: &'static str,
    level: String,
    title: &'static str,
    asks: &'static str,
}

/// Prints the cases.
pub(super) fn print(cases: &[&'static Case], json: bool) -> anyhow::Result<()> {
    let listed: Vec<_> = cases
        .iter()
        .map(|case| Listed {
            id: case.id,
            rule: case.rule,
            level: case.level.to_string(),
            title: case.title,
            asks: case.asks,
        })
        .collect();
    if json {
        return say(&serde_json::to_string_pretty(&listed)?);
    }
    let (id, level) = columns(cases);
    let mut lines: Vec<String> = Vec::new();
    for case in &listed {
        lines.push(format!("{:id$}  {:level$}  {}", case.id, case.level, case.title));
        lines.push(format!("{:id$}  {:level$}    {}", "", "", case.asks));
    }
    say(&lines.join("\n"))
}
