//! `vzbd conform`: whether a disk keeps the specification, rule by rule.

mod disk;
mod junit;
mod link;
mod list;
mod shown;
mod table;

use std::fmt;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use virtio_zbd_conform::{Case, Outcome, RunOptions, Summary, cases};

use crate::cli::{ConformArgs, TargetArgs};
use crate::target::Access;
use crate::{say, wrong_call};
use disk::Description;
use link::Connected;
use shown::{Shown, ShownCase};
use table::Table;

/// Something that is required failed. It has been said already; exit status 1.
#[derive(Debug)]
pub(crate) struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the disk does not keep the specification")
    }
}

impl std::error::Error for Failed {}

pub(crate) fn run(args: &ConformArgs) -> anyhow::Result<()> {
    let chosen = chosen(args)?;
    if args.list {
        return list::print(&chosen, args.json);
    }
    let Some(target) = &args.target else { return Err(wrong_call("name a disk: a socket or an image")) };
    let target = TargetArgs { target: target.clone(), zoned: args.zoned, timeout: args.timeout };
    if !args.yes {
        let mut disk = Connected::open(&target, Access::Read)?;
        let described = disk.describe();
        disk.close()?;
        ask(&described?)?;
    }
    let mut disk = Connected::open(&target, Access::Write)?;
    let judged = judge(&mut disk, args, &chosen);
    let closed = disk.close();
    let summary = judged?;
    closed?;
    if summary.conforms() { Ok(()) } else { Err(Failed.into()) }
}

/// The cases that are to be run.
///
/// # Errors
/// A name is none of a case or a rule, or nothing is left.
fn chosen(args: &ConformArgs) -> anyhow::Result<Vec<&'static Case>> {
    for name in args.case.iter().chain(&args.except) {
        if !cases().iter().any(|case| is_named(case, name)) {
            return Err(wrong_call(format!(
                "there is no case and no rule '{name}'; `vzbd conform --list` shows all"
            )));
        }
    }
    let named = |case: &Case, names: &[String]| names.iter().any(|name| is_named(case, name));
    let chosen: Vec<_> = cases()
        .iter()
        .filter(|case| (args.case.is_empty() || named(case, &args.case)) && !named(case, &args.except))
        .collect();
    if chosen.is_empty() {
        return Err(wrong_call("--case and --except leave no case to run"));
    }
    Ok(chosen)
}

fn is_named(case: &Case, name: &str) -> bool {
    case.id == name || case.rule == name
}

/// Says what will be gone, and asks for a word on a terminal; elsewhere that is the end.
fn ask(disk: &Description) -> anyhow::Result<()> {
    let warning = format!(
        "{}\nThe cases overwrite the disk and reset its zones: all that is on it will be gone.",
        disk.text()
    );
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(wrong_call(format!("{warning} Give --yes if it may")));
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "{warning}\nGo on? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(wrong_call("nothing was changed on the disk")),
    }
}

/// Runs the cases and shows what comes of them.
fn judge(disk: &mut Connected, args: &ConformArgs, chosen: &[&'static Case]) -> anyhow::Result<Summary> {
    let description = disk.describe()?;
    let options = RunOptions {
        seed: args.seed,
        only: args.case.clone(),
        except: args.except.clone(),
        ..RunOptions::default()
    };
    let table = Table::new(chosen, args.verbose);
    let mut said = Ok(());
    if !args.json {
        said = say(&format!("{}\n\n{}", description.text(), table.head()));
    }
    let mut results = Vec::new();
    let begun = Instant::now();
    let mut case_begun = begun;
    let summary = virtio_zbd_conform::run(disk.link(), &options, &mut |result| {
        let took = case_begun.elapsed();
        case_begun = Instant::now();
        if !args.json && said.is_ok() {
            said = say(&table.row(result));
        }
        if !matches!(result.outcome, Outcome::Passed) {
            log::debug!("{}: {:?}", result.case.id, result.outcome);
        }
        results.push(ShownCase::of(result, took));
    });
    let took = begun.elapsed();
    let shown = Shown::new(description, args.seed, results, &summary, took);
    if let Some(path) = &args.junit {
        write_junit(path, &shown, took)?;
    }
    // Who reads our output may have gone; what was asked for as a file is there all the same.
    said?;
    if args.json {
        say(&serde_json::to_string_pretty(&shown)?)?;
    } else {
        say(&table.end(&summary, took))?;
    }
    Ok(summary)
}

fn write_junit(path: &Path, shown: &Shown, took: Duration) -> anyhow::Result<()> {
    fs::write(path, junit::xml(shown, took)).with_context(|| format!("can't write {}", path.display()))
}
