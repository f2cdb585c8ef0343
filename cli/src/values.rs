//! Values on the command line: how they are read, and what is wrong with the others.

use clap::ValueEnum;
use des_shared::job::{MAX_INLINE_BYTES, MAX_SHARD_SIZE};
use des_shared::routing::{DateRule, NBits};

/// [`DateRule`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DateRuleArg {
    // No help of their own: with it, clap prints every option of every command over several lines.
    Utc,
    Written,
}

impl From<DateRuleArg> for DateRule {
    fn from(rule: DateRuleArg) -> Self {
        match rule {
            DateRuleArg::Utc => Self::Utc,
            DateRuleArg::Written => Self::Written,
        }
    }
}

/// Reads 4 to 16.
pub(crate) fn parse_n_bits(text: &str) -> Result<NBits, String> {
    text.parse::<u8>().map_err(|_| "expected a whole number from 4 to 16".to_owned()).and_then(NBits::new)
}

/// Reads a key prefix that no shard name starts with.
pub(crate) fn parse_bigfiles_prefix(text: &str) -> Result<String, String> {
    let text = text.trim_matches('/');
    // A prefix that looks like a shard name would break every look-up: nothing else may start like one.
    let ok = !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if ok {
        Ok(text.to_owned())
    } else {
        Err("expected a name such as _bigFiles, not starting with a digit".to_owned())
    }
}

/// Reads a size that a shard may have.
pub(crate) fn parse_shard_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if (1..=MAX_SHARD_SIZE).contains(&size) { Ok(size) } else { Err(format!("expected 1 to {MAX_SHARD_SIZE} bytes")) }
}

/// Reads a size that a file inside a shard may have.
pub(crate) fn parse_inline_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if size <= MAX_INLINE_BYTES { Ok(size) } else { Err(format!("expected at most {MAX_INLINE_BYTES} bytes")) }
}

/// Reads bytes with an optional unit: `1000`, `64KiB`, `500MB`, `1g`. One letter alone is a power of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || "expected bytes, with a unit if you like: 1000000, 500MB or 1GiB".to_owned();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

/// Reads a time in seconds with an optional unit: `90`, `15m`, `12h`, `7d`; at least a second, at most ten years.
pub(crate) fn parse_duration_s(text: &str) -> Result<u64, String> {
    let wrong = || "expected a time from 1s to 3660d such as 90s, 15m, 12h or 7d".to_owned();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit: u64 = match &text[digits..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).filter(|seconds| (1..=3660 * 86_400).contains(seconds)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("90", 90), ("1s", 1), ("15m", 900), ("12h", 43_200), ("90d", 7_776_000)] {
            assert_eq!(parse_duration_s(text), Ok(seconds), "{text}");
        }
        for text in ["", "0", "h", "-1h", "1w", "1.5h", "3661d", "99999999999999999999d"] {
            assert!(parse_duration_s(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("0", 0), ("17", 17), ("64KiB", 65536), ("5 MB", 5_000_000), ("1g", 1 << 30)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "-1", "1.5GB", "1 TBs", "99999999999999999999", "18446744073709551615k"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
