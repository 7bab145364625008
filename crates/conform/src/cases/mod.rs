//! The cases, a file for each theme, and the table of all.

mod append;
mod boundaries;
mod config;
mod framing;
mod limits;
mod management;
mod negotiation;
mod ours;
mod plain;
mod read;
mod report;
mod write;

use crate::case::Case;

/// The themes, each with its cases.
const THEMES: &[&[Case]] = &[
    config::CASES,
    negotiation::CASES,
    report::CASES,
    management::CASES,
    limits::CASES,
    write::CASES,
    append::CASES,
    read::CASES,
    boundaries::CASES,
    framing::CASES,
    plain::CASES,
    ours::CASES,
];

static CASES: [Case; count()] = sorted();

/// All cases, sorted by rule: V, then S, R and G, each by number and letter.
///
/// V1 to V32 are the device's rules, R what the driver's rules ask of the device, G1 to G6 where the specification is
/// silent, as numbered in virtio-zbd's documentation. G7 are chains that are no requests. S are other sentences of the
/// specification (5.2 and 2 of virtio 1.3):
///
/// | | |
/// |---|---|
/// | S1 | padding of the configuration |
/// | S2 | the configuration's length, and that its zoned part is read-only |
/// | S3 | the number of queues |
/// | S4 | which features may be accepted |
/// | S5 | FLUSH and CONFIG_WCE |
/// | S6 | requests that find nothing to do |
/// | S7 | zone types and states that a report may show |
/// | S8 | how many zones a report has |
/// | S9 | write pointers in a report |
/// | S10 | capacities of zones |
/// | S11 | how resources are counted |
/// | S12 | conventional zones |
/// | S13 | sequential write preferred zones |
/// | S14 | reading what is written |
/// | S15 | any framing |
/// | S16 | the status byte, the in-header and the used length |
/// | S17 | requests that every block device has |
/// | S18 | read-only disks |
/// | S19 | how writes move the write pointer |
/// | S20 | how zones become full |
/// | S21 | requests past the disk |
/// | S22 | zones and sectors at the disk's edges |
/// | S23 | what outlives a reset of the device |
#[must_use]
pub fn cases() -> &'static [Case] {
    &CASES
}

const fn count() -> usize {
    let mut count = 0;
    let mut theme = 0;
    while theme < THEMES.len() {
        count += THEMES[theme].len();
        theme += 1;
    }
    count
}

/// Puts each case of each theme where it belongs, when the suite is compiled.
const fn sorted() -> [Case; count()] {
    let mut cases = [THEMES[0][0]; count()];
    let mut len = 0;
    let mut theme = 0;
    while theme < THEMES.len() {
        let mut index = 0;
        while index < THEMES[theme].len() {
            let case = THEMES[theme][index];
            let mut place = len;
            while place > 0 && rank(case.id) < rank(cases[place - 1].id) {
                cases[place] = cases[place - 1];
                place -= 1;
            }
            cases[place] = case;
            len += 1;
            index += 1;
        }
        theme += 1;
    }
    cases
}

/// The order of ids: letter, number, what stands behind the hyphen.
const fn rank(id: &str) -> u64 {
    let id = id.as_bytes();
    let mut rank = match id[0] {
        b'V' => 0,
        b'S' => 1,
        b'R' => 2,
        _ => 3,
    };
    let mut number = 0;
    let mut at = 1;
    while id[at] != b'-' {
        number = number * 10 + (id[at] - b'0') as u64;
        at += 1;
    }
    rank = rank * 1000 + number;
    let mut suffix = 0;
    while suffix < 2 {
        at += 1;
        rank = rank * 256 + if at < id.len() { id[at] as u64 } else { 0 };
        suffix += 1;
    }
    rank
}
