//! What a listing asks for, and in which order keys come.
//!
//! A key is `{YYYYMMDD}/{uid}`; keys are ordered by their UTF-8 bytes. A listing goes on behind a marker: a key, or a
//! common prefix, which stands for all keys that begin with it.

use des_shared::routing::ShardDate;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The most keys of a page, as in S3.
pub(super) const MAX_KEYS: usize = 1000;

/// The part of the keys that is listed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Query {
    /// What the keys begin with.
    pub(super) prefix: String,
    /// Keys that go on with the same text up to this one behind the prefix are one item; never empty.
    pub(super) delimiter: Option<String>,
    /// The last item that is not wanted any more.
    pub(super) marker: Option<String>,
}

impl Query {
    /// The common prefix that stands for a key.
    pub(super) fn common_prefix<'a>(&self, key: &'a str) -> Option<&'a str> {
        let (delimiter, rest) = (self.delimiter.as_deref()?, key.strip_prefix(self.prefix.as_str())?);
        let end = self.prefix.len() + rest.find(delimiter)? + delimiter.len();
        Some(&key[..end])
    }

    /// The least bytes that a wanted key can be.
    pub(super) fn first(&self) -> Vec<u8> {
        match self.marker.as_deref() {
            Some(marker) if marker >= self.prefix.as_str() => match self.common_prefix(marker) {
                Some(common) => behind(common),
                None => [marker.as_bytes(), &[0]].concat(),
            },
            _ => self.prefix.clone().into_bytes(),
        }
    }

    /// True when the marker is behind everything that begins with the prefix.
    pub(super) fn is_over(&self) -> bool {
        let marker = self.marker.as_deref().unwrap_or_default();
        marker > self.prefix.as_str() && !marker.starts_with(&self.prefix)
    }
}

/// The least bytes that are greater than everything that begins with `common`, which is not empty.
pub(super) fn behind(common: &str) -> Vec<u8> {
    let mut bytes = common.as_bytes().to_vec();
    if let Some(last) = bytes.last_mut() {
        // No byte of UTF-8 is the greatest there is.
        *last += 1;
    }
    bytes
}

/// Takes a key apart. `None` for one that no file can have: its date is none, or written otherwise.
pub(super) fn parse_key(key: &str) -> Option<(ShardDate, &str)> {
    let (date, uid) = key.split_once('/')?;
    Some((date.parse().ok()?, uid))
}

/// What stays as it is in `encoding-type=url`. A space is never a plus, which clients disagree about.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// A text in `encoding-type=url`.
pub(super) fn url_encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// A continuation token: the marker, in letters that survive every client.
pub(super) fn token(marker: &str) -> String {
    use std::fmt::Write;
    marker.bytes().fold(String::from("m"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}

/// The marker of a token.
pub(super) fn parse_token(token: &str) -> Option<String> {
    let digits = token.strip_prefix('m').filter(|d| d.len() % 2 == 0 && d.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let bytes = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16));
    String::from_utf8(bytes.collect::<Result<_, _>>().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(prefix: &str, delimiter: &str, marker: &str) -> Query {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Query { prefix: prefix.to_owned(), delimiter: some(delimiter), marker: some(marker) }
    }

    #[test]
    fn keys_roll_up_to_what_is_before_the_delimiter() {
        for (prefix, delimiter, key, common) in [
            ("", "/", "20250310/a", Some("20250310/")),
            ("20250310/", "/", "20250310/a", None),
            ("20250310/", "/", "20250310/a/b/c", Some("20250310/a/")),
            ("20250310/a", "/", "20250310/a/b/c", Some("20250310/a/")),
            ("20250310/a/", "/", "20250310/a/b/c", Some("20250310/a/b/")),
            ("20250310/", "ä", "20250310/xäy", Some("20250310/xä")),
            ("", "0/a", "20250310/a", Some("20250310/a")),
            ("2025", "", "20250310/a/b", None),
            ("x", "/", "20250310/a/b", None),
        ] {
            assert_eq!(query(prefix, delimiter, "").common_prefix(key), common, "{prefix} {delimiter} {key}");
        }
    }

    #[test]
    fn a_listing_goes_on_behind_its_marker() {
        for (prefix, delimiter, marker, first) in [
            ("", "", "", &b""[..]),
            ("2025", "/", "", b"2025"),
            ("2025", "/", "2024", b"2025"),
            ("", "", "20250310/a", b"20250310/a\0"),
            ("", "/", "20250310/a", b"202503100"),
            ("20250310/", "/", "20250310/a/", b"20250310/a0"),
            ("20250310/", "/", "20250310/a", b"20250310/a\0"),
            ("20250310/", "\u{bf}", "20250310/\u{bf}", b"20250310/\xc2\xc0"),
        ] {
            assert_eq!(query(prefix, delimiter, marker).first(), first, "{prefix} {delimiter} {marker}");
        }
        assert!(query("20250310/a", "", "20250310/b").is_over());
        assert!(!query("20250310/a", "", "20250310/ab").is_over());
        assert!(!query("20250310/b", "", "20250310/a").is_over());
    }

    #[test]
    fn tokens_and_names_come_back() {
        for text in ["", "20250310/a", "20250310/ä\0%\u{10ffff} +"] {
            assert_eq!(parse_token(&token(text)).as_deref(), Some(text));
            let encoded = url_encoded(text);
            assert!(encoded.bytes().all(|b| b.is_ascii_graphic() && b != b'+'), "{encoded}");
            let decoded = percent_encoding::percent_decode_str(&encoded).decode_utf8().expect("UTF-8");
            assert_eq!(decoded, text);
        }
        for wrong in ["", "x", "m0", "mzz", "mff", "20250310/a"] {
            assert_eq!(parse_token(wrong), None, "{wrong}");
        }
        assert_eq!(
            parse_key("20250310/a/b").map(|(date, uid)| (date.to_string(), uid)),
            Some(("20250310".into(), "a/b"))
        );
        for wrong in ["20250310", "020250310/a", "20250230/a", "2025-03-10/a", "/a", ""] {
            assert_eq!(parse_key(wrong), None, "{wrong}");
        }
    }
}
