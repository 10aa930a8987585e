//! Sizes and counts in the form that people write: `512m`, `8G`, `25%`, `4096`.
//!
//! The suffixes are those of kernel tmpfs: k, m, g, t in either case, powers of 1024; `%` is of physical RAM.
//! Anything else, and anything that does not fit 64 bits, is an error: a size is never guessed.

use std::num::IntErrorKind;

/// A size, before the machine's RAM is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Amount {
    /// A number of bytes.
    Bytes(u64),
    /// A percentage of physical RAM.
    Percent(u64),
}

/// The reason why a size is invalid. Its text continues a sentence: "memory '3x' …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SizeError {
    /// The text is not a number with a known suffix.
    #[error("is not a size; write bytes, or a number with k, m, g, t or %")]
    Garbage,
    /// The number does not fit 64 bits.
    #[error("is too large; it must fit 64 bits")]
    Overflow,
}

impl Amount {
    /// Parses `text`.
    pub(crate) fn parse(text: &str) -> Result<Self, SizeError> {
        match text.strip_suffix('%') {
            Some(number) => digits(number).map(Amount::Percent),
            None => count(text).map(Amount::Bytes),
        }
    }

    /// The number of bytes on a machine with `ram` bytes of physical memory.
    pub(crate) fn bytes(self, ram: u64) -> Result<u64, SizeError> {
        match self {
            Amount::Bytes(bytes) => Ok(bytes),
            Amount::Percent(percent) => {
                let bytes = u128::from(ram) * u128::from(percent) / 100;
                u64::try_from(bytes).map_err(|_| SizeError::Overflow)
            }
        }
    }
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Amount::Bytes(bytes) => write!(f, "{bytes}"),
            Amount::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Parses a number with an optional suffix k, m, g or t.
pub(crate) fn count(text: &str) -> Result<u64, SizeError> {
    let (number, shift) = match text.chars().last().map(|c| c.to_ascii_lowercase()) {
        Some('k') => (&text[..text.len() - 1], 10),
        Some('m') => (&text[..text.len() - 1], 20),
        Some('g') => (&text[..text.len() - 1], 30),
        Some('t') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    digits(number)?.checked_mul(1 << shift).ok_or(SizeError::Overflow)
}

/// Parses decimal digits and nothing else: no sign, no space, no point.
fn digits(text: &str) -> Result<u64, SizeError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SizeError::Garbage);
    }
    text.parse().map_err(|e: std::num::ParseIntError| match e.kind() {
        IntErrorKind::PosOverflow => SizeError::Overflow,
        _ => SizeError::Garbage,
    })
}

/// Formats bytes for people: three significant digits and a unit. Integer arithmetic, rounded down.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10).min(6);
    let unit = UNITS[usize::try_from(power).unwrap_or(1) - 1];
    let scale = 1u128 << (10 * power);
    let hundredths = u128::from(bytes) * 100 / scale;
    match hundredths {
        ..1000 => format!("{}.{:02} {unit}", hundredths / 100, hundredths % 100),
        1000..10000 => format!("{}.{} {unit}", hundredths / 100, hundredths % 100 / 10),
        _ => format!("{} {unit}", hundredths / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 10_000_000_000;

    fn bytes(text: &str) -> Result<u64, SizeError> {
        Amount::parse(text)?.bytes(RAM)
    }

    #[test]
    fn every_suffix_in_either_case() {
        assert_eq!(bytes("0"), Ok(0));
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("4k"), Ok(4096));
        assert_eq!(bytes("4K"), Ok(4096));
        assert_eq!(bytes("3m"), Ok(3 << 20));
        assert_eq!(bytes("3M"), Ok(3 << 20));
        assert_eq!(bytes("2g"), Ok(2 << 30));
        assert_eq!(bytes("1T"), Ok(1 << 40));
        assert_eq!(bytes("50%"), Ok(5_000_000_000));
        assert_eq!(bytes("1%"), Ok(100_000_000));
        assert_eq!(bytes("150%"), Ok(15_000_000_000));
    }

    #[test]
    fn garbage_is_refused() {
        for text in [
            "", " ", "k", "%", "-1", "+1", "1.5g", "1kb", "1KiB", "0x10", "1 g", "g1", "1kk", "5%%", "1k%",
            "٣", "1µ", "ten",
        ] {
            assert_eq!(bytes(text), Err(SizeError::Garbage), "{text:?}");
        }
    }

    #[test]
    fn overflow_is_refused_not_wrapped() {
        assert_eq!(bytes("18446744073709551615"), Ok(u64::MAX));
        for text in ["18446744073709551616", "16777216t", "18014398509481984k", "99999999999999999999%"] {
            assert_eq!(bytes(text), Err(SizeError::Overflow), "{text:?}");
        }
        assert_eq!(Amount::Percent(u64::MAX).bytes(u64::MAX), Err(SizeError::Overflow));
    }

    proptest::proptest! {
        #[test]
        fn what_is_taken_is_a_number_and_one_suffix(text in "[0-9]{0,22}[kKmMgGtT%]?|\\PC{0,8}", ram: u64) {
            let digits = text.trim_end_matches(|c| "kKmMgGtT%".contains(c));
            match Amount::parse(&text).and_then(|amount| amount.bytes(ram)) {
                Ok(_) => proptest::prop_assert!(
                    !digits.is_empty()
                        && digits.len() + 1 >= text.len()
                        && digits.bytes().all(|b| b.is_ascii_digit())
                ),
                Err(SizeError::Overflow) => proptest::prop_assert!(digits.parse::<u128>().is_ok_and(|n| n > 100)),
                Err(SizeError::Garbage) => {}
            }
        }
    }

    #[test]
    fn human_keeps_three_digits() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(1024), "1.00 KiB");
        assert_eq!(human(16 << 20), "16.0 MiB");
        assert_eq!(human((1 << 30) - 1), "1023 MiB");
        assert_eq!(human(u64::MAX), "15.9 EiB");
    }
}
