//! Numbers as people read them.

use std::time::Duration;

/// `17 B`, `1.5 KiB`, `12 MiB`, `3.4 GiB`: three digits at most.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64;
    let mut unit = "";
    for name in UNITS {
        value /= 1024.0;
        unit = name;
        // 1023.95 would be shown as 1024.
        if value < 1023.5 {
            break;
        }
    }
    if value < 99.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// `1,234,567`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 file`, `2,000 files`.
pub(crate) fn number_of(n: u64, what: &str) -> String {
    format!("{} {what}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A rate as a whole number.
#[expect(clippy::cast_sign_loss, reason = "negative and absurd rates become the nearest number there is")]
pub(crate) fn whole(rate: f64) -> u64 {
    rate.round() as u64
}

/// How many a second.
pub(crate) fn per_second(n: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(n) * 1_000_000 / time.as_micros().max(1)).unwrap_or(u64::MAX)
}

/// `0.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// How many times smaller: `3.2x`; `-` where nothing was stored.
pub(crate) fn ratio(source: u64, stored: u64) -> String {
    if stored == 0 { "-".to_owned() } else { format!("{:.2}x", source as f64 / stored as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_at_most() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_000_000_000, "954 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn counts_and_times_are_grouped() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!((number_of(1, "file").as_str(), number_of(0, "file").as_str()), ("1 file", "0 files"));
        assert_eq!(duration(Duration::from_millis(840)), "0.8 s");
        assert_eq!(duration(Duration::from_secs(185)), "3 min 05 s");
        assert_eq!(duration(Duration::from_mins(130)), "2 h 10 min");
        assert_eq!(ratio(300, 100), "3.00x");
        assert_eq!(ratio(300, 0), "-");
    }
}
