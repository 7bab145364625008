//! What a fault rule says: `OPERATION:FAULT[@CONDITION[,CONDITION]…]`.

use std::fmt;
use std::io;
use std::num::ParseIntError;
use std::ops::Range;
use std::str::FromStr;

use thiserror::Error;

/// A fault, and when it happens: `write:eio@zone=5`, `flush:eio@after=3`, `reset:enospc@zone=2,times=1`.
///
/// | Operation | What fails |
/// |---|---|
/// | `read` | a read of sectors |
/// | `write` | a write of sectors |
/// | `clear` | zeros over a range: what a failed write has left, DISCARD, WRITE_ZEROES |
/// | `reset` | taking away what a zone held before its reset |
/// | `flush` | the sync of a FLUSH or FINISH; all that are committed together count as one |
/// | `engine` | the waiting for I/O: all that is under way on one queue is lost |
///
/// The fault is an errno by its name (`eio`, `enospc`, `edquot`, `efbig`, `erofs`, `enomem`, `etimedout`, `enolink`, and, as `eio`
/// for a bad medium, `eremoteio`, `enodata`, `ebadmsg`, `enxio`); or, of reads and writes, `short` (the first system call moves
/// half of it: no failure at all), or `torn` (half of it is moved, then EIO).
///
/// | Condition | When |
/// |---|---|
/// | `zone=N`, `zone=N..M` | the operation touches zone N; one of the zones from N to before M |
/// | `lba=N`, `lba=N..M` | it touches sector N (of 512 bytes, from the disk's start); one from N to before M |
/// | `after=N` | not the first N such operations |
/// | `times=N` | not more than N times |
///
/// Of several rules that are met by one operation the first one is taken; each counts for itself. A flush that fails is
/// believed as a real one is: nothing can be made durable any more until the disk is opened again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRule {
    pub(crate) operation: Operation,
    pub(crate) fault: Fault,
    pub(crate) place: Place,
    /// How many operations go well first.
    pub(crate) after: u64,
    /// How many fail then; `None`: all.
    pub(crate) times: Option<u64>,
}

/// What may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Clear,
    Reset,
    Flush,
    Engine,
}

/// How.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing is done, and this is said.
    Errno(i32),
    /// The first call moves half of it.
    Short,
    /// The first call moves half of it, the next one says EIO.
    Torn,
}

/// Where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Anywhere,
    /// Never empty.
    Zones(Range<u32>),
    /// Never empty.
    Sectors(Range<u64>),
}

const OPERATIONS: [(&str, Operation); 6] = [
    ("read", Operation::Read),
    ("write", Operation::Write),
    ("clear", Operation::Clear),
    ("reset", Operation::Reset),
    ("flush", Operation::Flush),
    ("engine", Operation::Engine),
];

const FAULTS: [(&str, Fault); 14] = [
    ("eio", Fault::Errno(libc::EIO)),
    ("enospc", Fault::Errno(libc::ENOSPC)),
    ("edquot", Fault::Errno(libc::EDQUOT)),
    ("efbig", Fault::Errno(libc::EFBIG)),
    ("erofs", Fault::Errno(libc::EROFS)),
    ("enomem", Fault::Errno(libc::ENOMEM)),
    ("etimedout", Fault::Errno(libc::ETIMEDOUT)),
    ("enolink", Fault::Errno(libc::ENOLINK)),
    ("eremoteio", Fault::Errno(libc::EREMOTEIO)),
    ("enodata", Fault::Errno(libc::ENODATA)),
    ("ebadmsg", Fault::Errno(libc::EBADMSG)),
    ("enxio", Fault::Errno(libc::ENXIO)),
    ("short", Fault::Short),
    ("torn", Fault::Torn),
];

impl Fault {
    pub(crate) fn error(self) -> io::Error {
        match self {
            Self::Errno(errno) => io::Error::from_raw_os_error(errno),
            Self::Short | Self::Torn => io::Error::from_raw_os_error(libc::EIO),
        }
    }
}

impl FromStr for FaultRule {
    type Err = FaultRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (what, conditions) = match text.split_once('@') {
            Some((what, conditions)) => (what, Some(conditions)),
            None => (text, None),
        };
        let Some((operation, fault)) = what.split_once(':') else {
            return Err(FaultRuleError::NoFault { rule: text.to_owned() });
        };
        let operation = named(&OPERATIONS, operation).ok_or_else(|| FaultRuleError::Operation {
            found: operation.to_owned(),
            expected: names(&OPERATIONS),
        })?;
        let fault = named(&FAULTS, fault)
            .ok_or_else(|| FaultRuleError::Fault { found: fault.to_owned(), expected: names(&FAULTS) })?;
        if matches!(fault, Fault::Short | Fault::Torn)
            && !matches!(operation, Operation::Read | Operation::Write)
        {
            return Err(FaultRuleError::Misfit {
                operation: name(&OPERATIONS, operation),
                fault: name(&FAULTS, fault),
            });
        }
        let mut rule = Self { operation, fault, place: Place::Anywhere, after: 0, times: None };
        let mut seen = Vec::new();
        for condition in conditions.iter().flat_map(|conditions| conditions.split(',')) {
            let Some((key, value)) = condition.split_once('=') else {
                return Err(FaultRuleError::Condition { found: condition.to_owned() });
            };
            // There is one place.
            let slot = if key == "lba" { "zone" } else { key };
            if seen.contains(&slot) {
                return Err(FaultRuleError::Twice { rule: text.to_owned() });
            }
            seen.push(slot);
            if slot == "zone" && matches!(operation, Operation::Flush | Operation::Engine) {
                return Err(FaultRuleError::Placeless { operation: name(&OPERATIONS, operation) });
            }
            match key {
                "zone" => rule.place = Place::Zones(range(key, value)?),
                "lba" => rule.place = Place::Sectors(range(key, value)?),
                "after" => rule.after = number(key, value)?,
                "times" => rule.times = Some(number(key, value)?),
                _ => return Err(FaultRuleError::Condition { found: condition.to_owned() }),
            }
        }
        Ok(rule)
    }
}

impl fmt::Display for FaultRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", name(&OPERATIONS, self.operation), name(&FAULTS, self.fault))?;
        let mut before = '@';
        let mut condition = |f: &mut fmt::Formatter<'_>, text: String| {
            write!(f, "{}{text}", std::mem::replace(&mut before, ','))
        };
        match &self.place {
            Place::Anywhere => {}
            Place::Zones(range) if range.len() == 1 => condition(f, format!("zone={}", range.start))?,
            Place::Zones(range) => condition(f, format!("zone={}..{}", range.start, range.end))?,
            Place::Sectors(range) if range.end - range.start == 1 => {
                condition(f, format!("lba={}", range.start))?;
            }
            Place::Sectors(range) => condition(f, format!("lba={}..{}", range.start, range.end))?,
        }
        if self.after != 0 {
            condition(f, format!("after={}", self.after))?;
        }
        match self.times {
            Some(times) => condition(f, format!("times={times}")),
            None => Ok(()),
        }
    }
}

/// A fault rule that can't be read, or not on this disk.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the message of each variant names its fields")]
pub enum FaultRuleError {
    #[error(
        "{rule:?} has no fault; a rule is OPERATION:FAULT or OPERATION:FAULT@CONDITION, as in write:eio@zone=5"
    )]
    NoFault { rule: String },
    #[error("{found:?} is no operation; there are {expected}")]
    Operation { found: String, expected: String },
    #[error("{found:?} is no fault; there are {expected}")]
    Fault { found: String, expected: String },
    #[error("{fault} does not go with {operation}, only with read and write")]
    Misfit { operation: &'static str, fault: &'static str },
    #[error("{found:?} is no condition; there are zone=N, zone=N..M, lba=N, lba=N..M, after=N and times=N")]
    Condition { found: String },
    #[error(
        "{rule:?} has a condition twice; a place is one zone=, or one lba=, and a second place is a second rule"
    )]
    Twice { rule: String },
    #[error("{operation} has no place on the disk: neither zone= nor lba= goes with it")]
    Placeless { operation: &'static str },
    #[error("{key}={value} is no number: {why}")]
    Number { key: String, value: String, why: ParseIntError },
    #[error("{key}={value} is an empty range; N..M ends before M")]
    EmptyRange { key: String, value: String },
    #[error("{rule}: the disk has no such zone, but {zones} zones from 0 on")]
    NoSuchZone { rule: String, zones: u32 },
    #[error("{rule}: the disk has no such sector, but {sectors} sectors from 0 on")]
    NoSuchSector { rule: String, sectors: u64 },
    #[error("{rule}: the disk has no zones; a place on it is lba=")]
    NoZones { rule: String },
}

fn named<T: Copy>(table: &[(&'static str, T)], wanted: &str) -> Option<T> {
    table.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value)
}

fn name<T: Copy + PartialEq>(table: &[(&'static str, T)], value: T) -> &'static str {
    table.iter().find(|(_, other)| *other == value).map_or("?", |(name, _)| name)
}

fn names<T>(table: &[(&'static str, T)]) -> String {
    table.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn number<T: FromStr<Err = ParseIntError>>(key: &str, value: &str) -> Result<T, FaultRuleError> {
    value.parse().map_err(no_number(key, value))
}

fn no_number(key: &str, value: &str) -> impl Fn(ParseIntError) -> FaultRuleError {
    move |why| FaultRuleError::Number { key: key.to_owned(), value: value.to_owned(), why }
}

/// `N` or `N..M`.
fn range<T>(key: &str, value: &str) -> Result<Range<T>, FaultRuleError>
where
    T: FromStr<Err = ParseIntError> + PartialOrd + Copy + Successor,
{
    let empty = || FaultRuleError::EmptyRange { key: key.to_owned(), value: value.to_owned() };
    let (start, end) = match value.split_once("..") {
        Some((start, end)) => {
            let number = |text: &str| text.parse().map_err(no_number(key, value));
            (number(start)?, number(end)?)
        }
        None => {
            let start: T = number(key, value)?;
            (start, start.successor().ok_or_else(empty)?)
        }
    };
    if start < end { Ok(start..end) } else { Err(empty()) }
}

trait Successor: Sized {
    fn successor(self) -> Option<Self>;
}

impl Successor for u32 {
    fn successor(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Successor for u64 {
    fn successor(self) -> Option<Self> {
        self.checked_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_says_the_same_when_it_is_written_again() {
        for text in [
            "write:eio",
            "write:eio@zone=5",
            "write:torn@zone=5..8",
            "read:short@lba=4096",
            "read:ebadmsg@lba=4096..8192,times=3",
            "flush:eio@after=3",
            "reset:enospc@zone=2,times=1",
            "clear:edquot@zone=0,after=1,times=2",
            "engine:enomem@times=1",
        ] {
            let rule: FaultRule = text.parse().unwrap();
            assert_eq!(rule.to_string(), text);
        }
        let rule: FaultRule = "write:enospc@times=1,zone=2,after=9".parse().unwrap();
        assert_eq!(rule.to_string(), "write:enospc@zone=2,after=9,times=1", "the order is free");
    }

    #[test]
    fn what_is_no_rule_is_told_what_is_wrong() {
        for (text, says) in [
            ("", "has no fault"),
            ("write", "has no fault"),
            ("write@zone=5", "has no fault"),
            ("wrote:eio", "\"wrote\" is no operation; there are read, write,"),
            ("write:", "\"\" is no fault; there are eio,"),
            ("write:EIO", "\"EIO\" is no fault"),
            ("flush:short", "short does not go with flush"),
            ("clear:torn", "torn does not go with clear"),
            ("write:eio@", "\"\" is no condition"),
            ("write:eio@zone", "\"zone\" is no condition"),
            ("write:eio@size=4", "\"size=4\" is no condition"),
            ("write:eio@zone=5,zone=6", "twice"),
            ("write:eio@zone=5,lba=6", "twice"),
            ("flush:eio@zone=5", "flush has no place"),
            ("engine:eio@lba=5", "engine has no place"),
            ("write:eio@zone=five", "zone=five is no number"),
            ("write:eio@zone=-1", "zone=-1 is no number"),
            ("write:eio@zone=4294967296", "zone=4294967296 is no number"),
            ("write:eio@zone=4294967295", "empty range"),
            ("write:eio@zone=5..", "zone=5.. is no number"),
            ("write:eio@lba=7..7", "empty range"),
            ("write:eio@lba=7..3", "empty range"),
            ("write:eio@after=", "after= is no number"),
        ] {
            let error = text.parse::<FaultRule>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
