//! Sizes as people write them: `4G`, `1.5T`, `64M`, `4096`.

use std::fmt;
use std::str::FromStr;

/// A length in bytes, written with a unit that is a power of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
}

impl Size {
    /// The length in 512-byte sectors.
    ///
    /// # Errors
    /// It is no whole number of sectors.
    pub(crate) fn sectors(self, what: &str) -> Result<u64, String> {
        if self.bytes.is_multiple_of(512) {
            Ok(self.bytes / 512)
        } else {
            Err(format!("{what} is {} bytes; it must be a multiple of 512", self.bytes))
        }
    }

    /// As [`sectors`](Self::sectors), for a field that has 32 bits on the wire.
    pub(crate) fn sectors_u32(self, what: &str) -> Result<u32, String> {
        u32::try_from(self.sectors(what)?).map_err(|_| format!("{what} is {self}; it must be less than 2T"))
    }
}

impl From<u64> for Size {
    fn from(bytes: u64) -> Self {
        Self { bytes }
    }
}

const UNITS: [(char, u32); 6] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50), ('E', 60)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is no size: write a number of bytes, or one with K, M, G, T, P or E (64M, 1.5T)"
            )
        };
        let too_large = || format!("'{text}' is more than 16E");
        let number = text.trim();
        let unit = UNITS.iter().find(|(letter, _)| number.to_ascii_uppercase().ends_with(*letter));
        let (number, shift) = match unit {
            Some((_, shift)) => (&number[..number.len() - 1], *shift),
            None => (number, 0),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty()
            || !digits(whole)
            || !digits(fraction)
            || (number.contains('.') && fraction.is_empty())
        {
            return Err(wrong());
        }
        let scale = 1u128 << shift;
        let whole: u128 = whole.parse().map_err(|_| too_large())?;
        let tenths =
            10u128.checked_pow(u32::try_from(fraction.len()).map_err(|_| wrong())?).ok_or_else(wrong)?;
        let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| wrong())? };
        let part = fraction.checked_mul(scale).ok_or_else(wrong)?;
        if !part.is_multiple_of(tenths) {
            return Err(format!("'{text}' is no whole number of bytes"));
        }
        let bytes = whole
            .checked_mul(scale)
            .and_then(|bytes| bytes.checked_add(part / tenths))
            .ok_or_else(too_large)?;
        Ok(Self { bytes: u64::try_from(bytes).map_err(|_| too_large())? })
    }
}

impl fmt::Display for Size {
    /// With the largest unit that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |shift: u32| self.bytes != 0 && self.bytes.trailing_zeros() >= shift;
        match UNITS.iter().rev().find(|(_, shift)| fits(*shift)) {
            Some((letter, shift)) => write!(f, "{}{letter}", self.bytes >> shift),
            None => write!(f, "{}", self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        let bytes = |text: &str| text.parse::<Size>().map(|size| size.bytes);
        assert_eq!(bytes("0"), Ok(0));
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("64M"), Ok(64 << 20));
        assert_eq!(bytes("1.5T"), Ok(3 << 39));
        assert_eq!(bytes("0.5k"), Ok(512));
        assert_eq!(bytes("16383P"), Ok(16383 << 50));
        for bad in [
            "",
            "M",
            "1.5",
            "1..5M",
            "-1",
            "4 G",
            "4GiB",
            "1e3",
            "16E",
            "99999999999999999999999",
            ".5M",
            "1.M",
            "１",
        ] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_print_as_they_are_written() {
        for text in ["0", "511", "512", "1K", "48M", "1536M", "4G", "3T"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!(Size::from(512).sectors("it"), Ok(1));
        assert!(Size::from(513).sectors("it").is_err());
        assert!(Size::from(4 << 40).sectors_u32("it").is_err());
    }
}
