//! Words of the command line that clap does not know.

use std::str::FromStr;
use std::time::Duration;

/// Zones by number: one, or a range as Rust writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ZoneRange {
    /// The first one.
    pub(crate) first: u64,
    /// The one after the last; `None`: up to the disk's last.
    pub(crate) end: Option<u64>,
}

impl FromStr for ZoneRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is no zone: write a number (3) or a range (3..7 without 7, 3..=7 with it, 3.. to the last)"
            )
        };
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse::<u64>().map_err(|_| wrong()),
            false => Err(wrong()),
        };
        let Some((first, last)) = text.split_once("..") else {
            let first = number(text)?;
            let end = first.checked_add(1).ok_or_else(wrong)?;
            return Ok(Self { first, end: Some(end) });
        };
        let first = if first.is_empty() { 0 } else { number(first)? };
        let end = match last.strip_prefix('=') {
            Some(last) => Some(number(last)?.checked_add(1).ok_or_else(wrong)?),
            None if last.is_empty() => None,
            None => Some(number(last)?),
        };
        if end.is_some_and(|end| end <= first) {
            return Err(format!("'{text}' is an empty range of zones"));
        }
        Ok(Self { first, end })
    }
}

/// Some zones of a disk: the first so many, or ranges of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ZoneSet {
    /// The first ones.
    First(u32),
    /// These, in ascending order; without an end: to the disk's last zone.
    Ranges(Vec<ZoneRange>),
}

impl FromStr for ZoneSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(first) = text.parse() {
            return Ok(Self::First(first));
        }
        if !text.contains("..") && !text.contains(',') {
            return Err(format!(
                "'{text}' are no zones: write how many at the start (4), or which (0..2,7,100..102)"
            ));
        }
        let ranges: Vec<ZoneRange> = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let follows = |pair: &[ZoneRange]| match pair {
            [one, next] => one.end.is_some_and(|end| end <= next.first),
            _ => true,
        };
        match ranges.windows(2).all(follows) {
            true => Ok(Self::Ranges(ranges)),
            false => Err(format!("'{text}': write the zones in ascending order, each once")),
        }
    }
}

impl ZoneSet {
    /// Whether it has zone `zone`.
    pub(crate) fn contains(&self, zone: u32) -> bool {
        match self {
            Self::First(first) => zone < *first,
            Self::Ranges(ranges) => ranges
                .iter()
                .any(|range| range.first <= zone.into() && range.end.is_none_or(|end| u64::from(zone) < end)),
        }
    }

    /// The zone behind which it says the same of all, as long as the disk is: 0 where it is empty.
    pub(crate) fn settled_from(&self) -> u64 {
        match self {
            Self::First(first) => (*first).into(),
            Self::Ranges(ranges) => ranges.last().map_or(0, |range| range.end.unwrap_or(range.first)),
        }
    }
}

/// A time in seconds: `5`, `0.5`.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    const SECONDS_MAX: f64 = 1e6;
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= SECONDS_MAX => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("'{text}' is no time: write seconds (5, 0.5), more than 0 and at most 1000000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_a_number_or_a_range() {
        let range = |first, end| Ok(ZoneRange { first, end });
        assert_eq!("3".parse(), range(3, Some(4)));
        assert_eq!("3..7".parse(), range(3, Some(7)));
        assert_eq!("3..=7".parse(), range(3, Some(8)));
        assert_eq!("3..".parse(), range(3, None));
        assert_eq!("..7".parse(), range(0, Some(7)));
        assert_eq!("..".parse(), range(0, None));
        let max = u64::MAX;
        for bad in [
            "",
            "-1",
            "3-7",
            "a",
            "3..a",
            "3...7",
            "3..=",
            "7..3",
            "3..3",
            "+3",
            &format!("{max}"),
            "0..=18446744073709551615",
        ] {
            assert!(bad.parse::<ZoneRange>().is_err(), "{bad}");
        }
        assert!("7..3".parse::<ZoneRange>().unwrap_err().contains("empty"));
    }

    #[test]
    fn sets_of_zones_are_how_many_or_which() {
        let set = |text: &str| text.parse::<ZoneSet>();
        assert_eq!(set("4"), Ok(ZoneSet::First(4)));
        let zones =
            |text: &str| (0..12).filter(|zone| set(text).unwrap().contains(*zone)).collect::<Vec<_>>();
        assert_eq!(zones("4"), [0, 1, 2, 3]);
        assert_eq!(zones("0..2,7,9.."), [0, 1, 7, 9, 10, 11]);
        assert_eq!(zones("3,4"), [3, 4]);
        assert_eq!((set("0..2,7").unwrap().settled_from(), set("9..").unwrap().settled_from()), (8, 9));
        for bad in ["", "a", "-1", "3,2", "0..4,3", "0..,7", "1,,2"] {
            assert!(set(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_seconds() {
        assert_eq!(seconds("5"), Ok(Duration::from_secs(5)));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "0", "-1", "5s", "NaN", "inf", "1e9"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
