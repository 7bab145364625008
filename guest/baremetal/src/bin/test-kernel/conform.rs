//! A disk, and the conformance suite on it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use virtio_drivers::transport::SomeTransport;
use virtio_zbd_baremetal::{Found, Identity, Machine, say};
use virtio_zbd_conform::driver::DriverLink;
use virtio_zbd_conform::{CaseResult, Outcome, RunOptions, Summary, run as run_cases};

use crate::wait::Patience;

type Link = DriverLink<Identity, SomeTransport<'static>>;

/// How many descriptors a queue has.
const QUEUE_DEPTH: u16 = 128;

/// What the command line asks for, if it asks for the suite: `conform=all`, or cases and rules with commas between them.
///
/// # Panics
/// A word's value is none.
pub(crate) fn options(machine: &Machine) -> Option<RunOptions> {
    let names = machine.word("conform")?;
    let list = |names: &str| names.split(',').map(ToString::to_string).collect::<Vec<String>>();
    let number = |name| match machine.word(name).map(str::parse) {
        None => None,
        Some(Ok(number)) => Some(number),
        Some(Err(error)) => panic!("{name}: {error}"),
    };
    let mut options = RunOptions {
        seed: number("seed").unwrap_or(0),
        only: if names == "all" { Vec::new() } else { list(names) },
        except: machine.word("except").map(list).unwrap_or_default(),
        ..RunOptions::default()
    };
    if let Some(sectors) = number("fill_max_sectors") {
        options.fill_max_sectors = sectors;
    }
    Some(options)
}

/// Runs the cases; whether all that are required passed.
pub(crate) fn run(found: Found, options: &RunOptions) -> bool {
    let Found { place, transport } = found;
    let link = transport.and_then(|transport| {
        Link::new(transport, QUEUE_DEPTH, Patience::short()).map_err(|error| error.to_string())
    });
    let mut link = match link {
        Ok(link) => link,
        Err(error) => {
            say!("{place}: {error}");
            return false;
        }
    };
    let summary = run_cases(&mut link, options, &mut tell);
    let Summary { passed, failed_required, failed_recommended, failed_ours, skipped } = summary;
    say!(
        "{place}: conform: {passed} passed, {failed_required} required failed, {failed_recommended} recommended failed, \
         {failed_ours} ours failed, {skipped} skipped"
    );
    summary.conforms()
}

/// One line for a case, `conform V26-a required passed: title`; more for one that did not pass.
fn tell(result: &CaseResult) {
    let CaseResult { case, outcome, exchange, exchanges_left_out } = result;
    let word = match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed(_) => "failed",
        Outcome::Skipped(_) => "skipped",
    };
    say!("conform {} {} {word}: {}", case.id, case.level, case.title);
    match outcome {
        Outcome::Passed => {}
        Outcome::Skipped(reason) => say!("  because {reason}"),
        Outcome::Failed(finding) => {
            say!("  asked {}", case.asks);
            say!("  sent {}", finding.sent);
            say!("  expected {}", finding.expected);
            say!("  found {}", finding.found);
            if *exchanges_left_out > 0 {
                say!("  ({exchanges_left_out} steps before)");
            }
            for step in exchange {
                say!("  step {}: {}", step.sent, step.came);
            }
        }
    }
}
