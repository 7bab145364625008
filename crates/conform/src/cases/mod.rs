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
