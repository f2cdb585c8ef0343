//! `created_at`: a moment as people and programs write it.
//!
//! The spellings accepted are those of the existing implementation that mean one thing only (the golden file
//! `created_at.json`): RFC 3339, and of ISO 8601 the basic form, week dates, a date alone, and any one character
//! between date and time. A time without an offset is UTC. The text is kept as written, because a failure list
//! must be able to become a manifest again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::{Date, Month, Weekday};

use crate::routing::ShardDate;

/// The longest text that is read as a time, in bytes. Nothing that means a time is near it.
pub const MAX_CREATED_AT_BYTES: usize = 128;

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;
/// 1970-01-01 as `time` counts Julian days.
const UNIX_EPOCH_JULIAN_DAY: i64 = 2_440_588;

/// A moment, with the text it came from and the two dates it can be filed under.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CreatedAt {
    text: String,
    written_date: ShardDate,
    utc_date: ShardDate,
    unix_micros: i64,
}

/// A text that is not a time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{got:?} is not a time: {problem}; expected RFC 3339, for example 2025-03-10T12:00:00Z or 2025-03-10T12:00:00+05:30"
)]
pub struct CreatedAtError {
    got: String,
    problem: &'static str,
}

impl CreatedAt {
    /// Reads a time. A time without an offset is UTC; digits beyond microseconds are cut off.
    ///
    /// # Errors
    /// [`CreatedAtError`] says what is wrong with the text and shows a right one.
    pub fn parse(text: &str) -> Result<Self, CreatedAtError> {
        let fail = |problem| CreatedAtError { got: text.chars().take(64).collect(), problem };
        if text.len() > MAX_CREATED_AT_BYTES {
            return Err(fail("it is longer than 128 bytes"));
        }
        let moment = parse_moment(text.trim_matches(is_python_space)).map_err(fail)?;
        let days = i64::from(moment.date.to_julian_day()) - UNIX_EPOCH_JULIAN_DAY;
        let unix_micros = days * MICROS_PER_DAY + moment.micros_of_day - moment.offset_micros;
        let utc_julian = unix_micros.div_euclid(MICROS_PER_DAY) + UNIX_EPOCH_JULIAN_DAY;
        let utc_date = i32::try_from(utc_julian)
            .ok()
            .and_then(|day| Date::from_julian_day(day).ok())
            .and_then(shard_date)
            .ok_or_else(|| fail("in UTC it lies outside the years 1 to 9999"))?;
        let written_date = shard_date(moment.date).ok_or_else(|| fail("the year is not in 1 to 9999"))?;
        Ok(Self { text: text.to_owned(), written_date, utc_date, unix_micros })
    }

    /// As [`CreatedAt::parse`], for values out of a URL's query: form decoding turns the plus of an offset into a
    /// space, and `2025-03-10T12:00:00 00:00` means `+00:00` there.
    ///
    /// # Errors
    /// As [`CreatedAt::parse`], about the text as it came.
    pub fn parse_query(text: &str) -> Result<Self, CreatedAtError> {
        let as_written = Self::parse(text);
        if as_written.is_ok() {
            return as_written;
        }
        let trimmed = text.trim();
        match trimmed.rfind(' ') {
            Some(at) if trimmed.len() <= MAX_CREATED_AT_BYTES => {
                let repaired = format!("{}+{}", &trimmed[..at], &trimmed[at + 1..]);
                Self::parse(&repaired).or(as_written)
            }
            _ => as_written,
        }
    }

    /// The text as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The date as written, whatever the offset: where the existing implementation files it.
    pub fn written_date(&self) -> ShardDate {
        self.written_date
    }

    /// The date in UTC: where new shards have it.
    pub fn utc_date(&self) -> ShardDate {
        self.utc_date
    }

    /// The instant, in microseconds since 1970-01-01T00:00:00Z; negative before.
    pub fn unix_micros(&self) -> i64 {
        self.unix_micros
    }
}

/// The text as it was written.
impl fmt::Display for CreatedAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for CreatedAt {
    type Err = CreatedAtError;
    fn from_str(text: &str) -> Result<Self, CreatedAtError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for CreatedAt {
    type Error = CreatedAtError;
    fn try_from(text: String) -> Result<Self, CreatedAtError> {
        Self::parse(&text)
    }
}

impl From<CreatedAt> for String {
    fn from(at: CreatedAt) -> Self {
        at.text
    }
}

/// What the existing implementation strips from both ends.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn shard_date(date: Date) -> Option<ShardDate> {
    let year = u16::try_from(date.year()).ok().filter(|year| (1..=9999).contains(year))?;
    Some(ShardDate { year, month: u8::from(date.month()), day: date.day() })
}

struct Moment {
    date: Date,
    micros_of_day: i64,
    offset_micros: i64,
}

type Parsed<T> = Result<T, &'static str>;

const NOT_A_DATE: &str = "the date is not of the form YYYY-MM-DD";
const NOT_A_TIME: &str = "the time is not of the form HH:MM:SS";
const NOT_AN_OFFSET: &str = "the offset is not Z or of the form +HH:MM";

fn parse_moment(text: &str) -> Parsed<Moment> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let date_len = date_length(text.as_bytes());
    let (date, rest) = text.split_at_checked(date_len).ok_or(NOT_A_DATE)?;
    let date = parse_date(date.as_bytes())?;
    let mut rest = rest.chars();
    let Some(separator) = rest.next() else {
        return Ok(Moment { date, micros_of_day: 0, offset_micros: 0 });
    };
    // The separator may be any one character. A `Z` right after the date is the offset of midnight.
    if separator == 'Z' && rest.as_str().is_empty() {
        return Ok(Moment { date, micros_of_day: 0, offset_micros: 0 });
    }
    let (micros_of_day, offset_micros) = parse_time_and_offset(rest.as_str())?;
    Ok(Moment { date, micros_of_day, offset_micros })
}

/// Where the date ends, in bytes, told from its form. The week forms are ambiguous: the digit after a second
/// hyphen can be a weekday or an hour, and the existing implementation's way to tell is kept.
fn date_length(text: &[u8]) -> usize {
    let digit = |at: usize| text.get(at).is_some_and(u8::is_ascii_digit);
    match (text.get(4), text.get(5)) {
        (Some(b'-'), Some(b'W')) if text.get(8) == Some(&b'-') && !digit(10) => 10,
        (Some(b'-'), Some(b'W')) => 8,
        (Some(b'-'), _) => 10,
        (Some(b'W'), _) => {
            let digits = (7..text.len()).take_while(|&at| digit(at)).count();
            if digits == 0 || (digits > 1 && (7 + digits) % 2 == 0) { 7 } else { 8 }
        }
        _ => 8,
    }
}

fn parse_date(text: &[u8]) -> Parsed<Date> {
    let year = i32::from(number::<4>(text, 0).ok_or(NOT_A_DATE)?);
    if year == 0 {
        return Err("the year is not in 1 to 9999");
    }
    let two = |at| number::<2>(text, at).map(|n| n as u8);
    let week = |week: Option<u8>, day: u8| {
        let weekday = day.checked_sub(1).filter(|day| *day < 7).ok_or("the weekday is not in 1 to 7")?;
        let week = week.ok_or(NOT_A_DATE)?;
        Date::from_iso_week_date(year, week, Weekday::Monday.nth_next(weekday))
            .map_err(|_| "the year does not have that week")
    };
    match text {
        [_, _, _, _, b'-', b'W', _, _, b'-', day @ b'0'..=b'9'] => week(two(6), day - b'0'),
        [_, _, _, _, b'-', b'W', _, _] => week(two(6), 1),
        [_, _, _, _, b'W', _, _, day @ b'0'..=b'9'] => week(two(5), day - b'0'),
        [_, _, _, _, b'W', _, _] => week(two(5), 1),
        [_, _, _, _, b'-', _, _, b'-', _, _] => calendar_date(year, two(5), two(8)),
        [_, _, _, _, _, _, _, _] => calendar_date(year, two(4), two(6)),
        _ => Err(NOT_A_DATE),
    }
}

fn calendar_date(year: i32, month: Option<u8>, day: Option<u8>) -> Parsed<Date> {
    let (month, day) = month.zip(day).ok_or(NOT_A_DATE)?;
    let month = Month::try_from(month).map_err(|_| "the month is not in 01 to 12")?;
    Date::from_calendar_date(year, month, day).map_err(|_| "the month does not have that day")
}

/// Microseconds of the day, and of the offset east of UTC.
fn parse_time_and_offset(text: &str) -> Parsed<(i64, i64)> {
    let (clock, offset) = if let Some(clock) = text.strip_suffix('Z') {
        (clock, 0)
    } else if let Some(at) = text.find(['+', '-']) {
        let sign = if text.as_bytes()[at] == b'-' { -1 } else { 1 };
        let offset = parse_clock(&text[at + 1..]).map_err(|_| NOT_AN_OFFSET)?;
        // One space before the offset is how many programs print a time.
        (text[..at].strip_suffix(' ').unwrap_or(&text[..at]), sign * offset)
    } else {
        (text, 0)
    };
    Ok((parse_clock(clock)?, offset))
}

/// `HH`, `HH:MM`, `HH:MM:SS`, with a fraction, or the same without colons, to microseconds.
fn parse_clock(text: &str) -> Parsed<i64> {
    let (whole, fraction) = match text.split_once(['.', ',']) {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (text, None),
    };
    let bytes = whole.as_bytes();
    let (minute_at, second_at) = match bytes {
        [_, _] => (None, None),
        [_, _, b':', _, _] => (Some(3), None),
        [_, _, b':', _, _, b':', _, _] => (Some(3), Some(6)),
        [_, _, _, _] => (Some(2), None),
        [_, _, _, _, _, _] => (Some(2), Some(4)),
        _ => return Err(NOT_A_TIME),
    };
    let field = |at: Option<usize>, below: u16, problem| match at {
        None => Ok(0),
        Some(at) => match number::<2>(bytes, at) {
            Some(n) if n < below => Ok(i64::from(n)),
            Some(_) => Err(problem),
            None => Err(NOT_A_TIME),
        },
    };
    let hour = field(Some(0), 24, "the hour is not in 00 to 23")?;
    let minute = field(minute_at, 60, "the minute is not in 00 to 59")?;
    let second = field(second_at, 60, "the second is not in 00 to 59 (leap seconds are not supported)")?;
    let micros = match fraction {
        None => 0,
        Some(digits) if second_at.is_some() => parse_fraction(digits)?,
        Some(_) => return Err("only seconds can have a fraction"),
    };
    Ok(((hour * 60 + minute) * 60 + second) * MICROS_PER_SECOND + micros)
}

fn parse_fraction(digits: &str) -> Parsed<i64> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("the fraction of the second is not digits");
    }
    Ok(digits.bytes().chain(std::iter::repeat(b'0')).take(6).fold(0, |n, b| n * 10 + i64::from(b - b'0')))
}

/// Exactly `N` ASCII digits at `at`.
fn number<const N: usize>(text: &[u8], at: usize) -> Option<u16> {
    let digits = text.get(at..at + N)?;
    digits.iter().try_fold(0_u16, |n, b| b.is_ascii_digit().then(|| n * 10 + u16::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_spellings() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/vectors/created_at.json");
        let cases: Vec<serde_json::Value> =
            serde_json::from_slice(&std::fs::read(golden).expect("golden file")).expect("golden JSON");
        assert_eq!(cases.len(), 50);
        for case in cases {
            let input = case["input"].as_str().expect("input");
            match (CreatedAt::parse(input), case["date_dir"].as_str()) {
                (Ok(at), Some(date)) => {
                    assert_eq!(at.written_date().to_string(), date, "{input}");
                    assert_eq!(at.utc_date().to_string(), case["utc_date"].as_str().expect("utc_date"), "{input}");
                    assert_eq!(at.as_str(), input);
                    // Its `iso` is the same moment in another spelling.
                    let iso = CreatedAt::parse(case["iso"].as_str().expect("iso")).expect("iso parses");
                    assert_eq!(iso.unix_micros(), at.unix_micros(), "{input}");
                }
                (Err(_), None) => {}
                (ours, theirs) => panic!("{input:?}: ours {ours:?}, golden {theirs:?}"),
            }
        }
    }

    #[test]
    fn instants() {
        for (text, micros) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1969-12-31T23:59:59.5-00:00", -500_000),
            ("2038-01-19T03:14:08Z", 2_147_483_648 * MICROS_PER_SECOND),
            ("2025-03-10T12:00:00.1234567Z", 1_741_608_000_123_456),
            ("2025-W11-1 12", 1_741_608_000_000_000),
            ("2025W11T12:00", 1_741_608_000_000_000),
            ("2025W111T12:00:00 +00:00", 1_741_608_000_000_000),
            ("2025-03-10\u{e9}120000", 1_741_608_000_000_000),
            ("2025-W11-12:00", 1_741_608_000_000_000),
            ("2025-03-10Z", 1_741_564_800_000_000),
        ] {
            assert_eq!(CreatedAt::parse(text).map(|at| at.unix_micros()), Ok(micros), "{text}");
        }
    }

    #[test]
    fn errors_show_what_is_wrong_and_what_would_be_right() {
        let error = CreatedAt::parse("2025-02-30T00:00:00Z").expect_err("no such day").to_string();
        assert!(error.contains("2025-02-30T00:00:00Z") && error.contains("does not have that day"), "{error}");
        assert!(error.contains("2025-03-10T12:00:00Z"), "{error}");
        for text in [
            "2025-03-10T",
            "2025-03-10T12:",
            "2025-03-10T12:0000",
            "2025-03-10T12.5",
            "2025-03-10T12:00:00.",
            "2025-03-10T12:00:00+24:00",
            "2025-03-10T12:00:00+5",
            "2025-W54-1",
            "2025-W11-0",
            "2025-W11-8",
            "0000-01-01",
            "0001-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59-01:00",
            "2025-03\u{e9}10",
            "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}",
            "2025-03-10T12:00:00\u{2212}05:00",
        ] {
            assert!(CreatedAt::parse(text).is_err(), "{text}");
        }
        assert!(CreatedAt::parse(&format!("2025-03-10T12:00:00.{}Z", "0".repeat(200))).is_err());
    }

    #[test]
    fn a_query_may_have_lost_its_plus() {
        let want = CreatedAt::parse("2025-03-10T12:00:00+05:30").expect("valid");
        for text in ["2025-03-10T12:00:00 05:30", "2025-03-10 12:00:00 05:30", "2025-03-10T12:00:00+05:30"] {
            let got = CreatedAt::parse_query(text).expect(text);
            assert_eq!((got.unix_micros(), got.written_date()), (want.unix_micros(), want.written_date()));
        }
        // A space that separates date and time stays one.
        let plain = CreatedAt::parse_query("2025-03-10 12:00").expect("valid");
        assert_eq!(plain.unix_micros(), 1_741_608_000_000_000);
        assert!(CreatedAt::parse("2025-03-10T12:00:00 05:30").is_err());
        let error = CreatedAt::parse_query("not a date").expect_err("not a time").to_string();
        assert!(error.contains("\"not a date\""), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_time_or_an_error(text in "\\PC{0,40}") {
            let _ = CreatedAt::parse(&text).is_ok() | CreatedAt::parse_query(&text).is_ok();
        }

        #[test]
        fn near_times_never_panic(text in "[0-9W]{4}-?[0-9W]{0,4}-?[0-9]{0,2}.?[0-9:.,+ Z-]{0,20}") {
            if let Ok(at) = CreatedAt::parse(&text) {
                proptest::prop_assert_eq!(CreatedAt::parse(at.as_str()), Ok(at.clone()));
            }
        }
    }
}
