//! Conditional requests, in the order of RFC 9110 section 13.2.2, and which bytes are asked for.

use std::ops::Range;
use std::time::{Duration, UNIX_EPOCH};

use crate::serve::Wanted;

/// The last second that an HTTP date can say.
const LAST_SECOND: u64 = 253_402_300_799;

/// What conditions are compared with: the representation that would be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Current<'a> {
    /// Its strong entity tag.
    pub(crate) etag: &'a str,
    /// Its last change in Unix seconds, where there is one.
    pub(crate) modified_s: Option<u64>,
    /// Its length in bytes.
    pub(crate) size: u64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// 200 or 206.
    Send(Selected),
    /// 304.
    NotModified,
    /// 412.
    Failed,
    /// 416.
    OutOfRange,
}

/// Which bytes are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selected {
    Whole,
    Part(Range<u64>),
}

/// Judges the conditions of a GET or HEAD. `parts` says whether a part may be sent at all: HEAD knows no ranges, and
/// ranges are of the file itself, not of a compressed form.
pub(crate) fn judge(wanted: &Wanted, current: Current<'_>, parts: bool) -> Verdict {
    let modified = current.modified_s;
    let date = |text: &Option<String>| text.as_deref().and_then(parse_date);
    let may = match (&wanted.if_match, date(&wanted.if_unmodified_since), modified) {
        (Some(tags), _, _) => names(tags, current.etag, Strength::Strong),
        (None, Some(date), Some(modified)) => modified <= date,
        _ => true,
    };
    if !may {
        return Verdict::Failed;
    }
    let known = match (&wanted.if_none_match, date(&wanted.if_modified_since), modified) {
        (Some(tags), _, _) => names(tags, current.etag, Strength::Weak),
        (None, Some(date), Some(modified)) => modified <= date,
        _ => false,
    };
    if known {
        return Verdict::NotModified;
    }
    match wanted.range.as_deref() {
        Some(range) if parts && same_as_known(wanted, current) => match parse_range(range, current.size) {
            Some(Asked::Part(range)) => Verdict::Send(Selected::Part(range)),
            Some(Asked::Nothing) => Verdict::OutOfRange,
            None => Verdict::Send(Selected::Whole),
        },
        _ => Verdict::Send(Selected::Whole),
    }
}

/// `If-Range`: a strong tag, or exactly our own date (RFC 9110 section 13.1.5). Anything else means another version.
fn same_as_known(wanted: &Wanted, current: Current<'_>) -> bool {
    let Some(known) = wanted.if_range.as_deref().map(str::trim) else { return true };
    known == current.etag || parse_date(known).is_some_and(|date| Some(date) == current.modified_s)
}

/// How entity tags are compared (RFC 9110 section 8.8.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strength {
    /// A weak tag is no match.
    Strong,
    /// Weak or not is the same.
    Weak,
}

/// Whether a list of entity tags names `etag`, or is `*`. Ours have no comma, so splitting at commas cannot make one out
/// of the pieces of another.
fn names(header: &str, etag: &str, strength: Strength) -> bool {
    let mut tags = header.split(',').map(str::trim);
    header.trim() == "*"
        || tags.any(|tag| match strength {
            Strength::Strong => tag == etag,
            Strength::Weak => tag.strip_prefix("W/").unwrap_or(tag) == etag,
        })
}

/// Unix seconds of an HTTP date in any of its three forms; `None` for anything else, and the condition is ignored.
fn parse_date(text: &str) -> Option<u64> {
    let time = httpdate::parse_http_date(text.trim()).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// An HTTP date of a time in Unix seconds.
pub(crate) fn http_date(unix_s: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix_s.min(LAST_SECOND)))
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Part(Range<u64>),
    /// A range that lies outside.
    Nothing,
}

/// Reads `Range` (RFC 9110 section 14.1.2). What is not one range of bytes is `None`, and the whole is sent: other units,
/// nonsense, and several ranges, as S3 does it.
fn parse_range(header: &str, size: u64) -> Option<Asked> {
    let (unit, spec) = header.split_once('=')?;
    let (first, last) = spec.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    // More digits than a u64 holds still mean a number: one behind the end of any file.
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let range = match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix)? {
            // The last bytes of nothing are nothing, and that is all of it; no Content-Range can say so.
            1.. if size == 0 => return None,
            suffix => size.saturating_sub(suffix)..size,
        },
        (first, "") => number(first)?..size,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            first..size.min(last.saturating_add(1))
        }
    };
    Some(if range.start < range.end { Asked::Part(range) } else { Asked::Nothing })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        use Asked::{Nothing, Part};
        let cases = [
            ("bytes=0-0", 10, Some(Part(0..1))),
            ("bytes=2-4", 10, Some(Part(2..5))),
            ("bytes=2-", 10, Some(Part(2..10))),
            ("bytes=-3", 10, Some(Part(7..10))),
            ("bytes=-30", 10, Some(Part(0..10))),
            ("BYTES = 1-99999999999999999999999", 10, Some(Part(1..10))),
            ("bytes=10-", 10, Some(Nothing)),
            ("bytes=10-12", 10, Some(Nothing)),
            ("bytes=99999999999999999999999-", 10, Some(Nothing)),
            ("bytes=-0", 10, Some(Nothing)),
            ("bytes=-0", 0, Some(Nothing)),
            ("bytes=0-", 0, Some(Nothing)),
            ("bytes=-5", 0, None),
            ("bytes=4-2", 10, None),
            ("bytes=0-1,3-4", 10, None),
            ("bytes=0-,1-", 10, None),
            ("bytes=a-b", 10, None),
            ("bytes=-", 10, None),
            ("bytes=+1-2", 10, None),
            ("rows=1-2", 10, None),
            ("bytes", 10, None),
        ];
        for (header, size, expected) in cases {
            assert_eq!(parse_range(header, size), expected, "{header} of {size}");
        }
    }

    #[test]
    fn entity_tags() {
        for (header, strong, weak) in [
            ("\"a\"", true, true),
            ("W/\"a\"", false, true),
            ("\"b\", \"a\"", true, true),
            (" \"b\" ,W/\"a\"", false, true),
            ("*", true, true),
            ("", false, false),
            ("a", false, false),
            ("\"b\"", false, false),
            ("\"a-zstd\"", false, false),
        ] {
            assert_eq!(names(header, "\"a\"", Strength::Strong), strong, "{header}");
            assert_eq!(names(header, "\"a\"", Strength::Weak), weak, "{header}");
        }
    }

    #[test]
    fn dates_have_three_forms() {
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(parse_date(text), Some(784_111_777), "{text}");
        }
        for text in ["", "784111777", "1994-11-06T08:49:37Z", "Sun, 06 Nov 1994 08:49:37 CET", "\"tag\""] {
            assert_eq!(parse_date(text), None, "{text}");
        }
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(http_date(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
