//! The list a client sends: JSON or NDJSON of `{"uid", "created_at"}`. Other fields are left alone, so that a manifest
//! is such a list.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use des_shared::created_at::CreatedAt;
use des_shared::ids::Uid;
use des_shared::safe_name::{RESERVED, safe_name};
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// One file asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) uid: String,
    pub(crate) created_at: CreatedAt,
    /// An earlier one of the list has the same uid, so this one cannot have its name.
    again: bool,
}

/// The longest name in an archive, in bytes; no system takes longer ones.
const MAX_NAME: usize = 4096;

/// Why a list is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("{0}")]
    Wrong(String),
    #[error("more than {limit} files are asked for; send several lists (DES_BATCH_MAX_FILES is the limit)")]
    TooMany { limit: usize },
}

impl Asked {
    /// The name in an archive, for the file of this number in the list.
    pub(super) fn name(&self, index: usize) -> String {
        let name = safe_name(&self.uid);
        if name.len() > MAX_NAME {
            return format!("{RESERVED}/long/{index}");
        }
        if self.again { format!("{RESERVED}/again/{index}/{name}") } else { name }
    }
}

#[derive(Deserialize)]
struct Element<'a> {
    #[serde(borrow)]
    uid: Option<&'a RawValue>,
    #[serde(borrow)]
    created_at: Option<Cow<'a, str>>,
}

/// Reads a list of at most `limit` files.
pub(crate) fn read(body: &[u8], limit: usize) -> Result<Vec<Asked>, Unreadable> {
    let text = std::str::from_utf8(body).map_err(|e| Unreadable::Wrong(format!("the list is not UTF-8: {e}")))?;
    let example = "[{\"uid\": \"a.txt\", \"created_at\": \"2025-03-10T12:00:00Z\"}]";
    if text.trim().is_empty() {
        return Err(Unreadable::Wrong(format!("the body is empty; expected a list such as {example}")));
    }
    let mut list = List { limit, asked: Vec::new(), seen: HashSet::new(), too_many: false };
    let outcome = if text.trim_start().starts_with('[') {
        let mut json = serde_json::Deserializer::from_str(text);
        list.visit_list(&mut json).and_then(|()| json.end())
    } else {
        let mut elements = serde_json::Deserializer::from_str(text).into_iter::<Element<'_>>();
        elements.try_for_each(|element| list.add::<serde_json::Error>(&element?))
    };
    if list.too_many {
        return Err(Unreadable::TooMany { limit });
    }
    outcome.map_err(|e| {
        Unreadable::Wrong(format!("element {}: {e}; expected a list such as {example}", list.asked.len() + 1))
    })?;
    Ok(list.asked)
}

/// The list as far as it is read.
struct List {
    limit: usize,
    asked: Vec<Asked>,
    /// The uids so far.
    seen: HashSet<String>,
    too_many: bool,
}

impl List {
    fn visit_list<'de, D: Deserializer<'de>>(&mut self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }

    fn add<E: serde::de::Error>(&mut self, element: &Element<'_>) -> Result<(), E> {
        if self.asked.len() == self.limit {
            self.too_many = true;
            return Err(E::custom("too many"));
        }
        let raw = element.uid.map(RawValue::get).ok_or_else(|| E::missing_field("uid"))?;
        let uid = if raw.bytes().all(|b| b.is_ascii_digit()) {
            // A number is kept digit for digit, as in a manifest.
            raw.to_owned()
        } else {
            serde_json::from_str(raw).map_err(|_| E::custom("uid is neither a string nor a whole number"))?
        };
        let uid: String = Uid::new(uid).map_err(E::custom)?.into();
        let created_at = element.created_at.as_deref().ok_or_else(|| E::missing_field("created_at"))?;
        let created_at = CreatedAt::parse(created_at).map_err(|e| E::custom(format_args!("created_at: {e}")))?;
        let again = !self.seen.insert(uid.clone());
        self.asked.push(Asked { uid, created_at, again });
        Ok(())
    }
}

impl<'de> Visitor<'de> for &mut List {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element::<Element<'de>>()? {
            self.add::<A::Error>(&element)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uids(text: &str) -> Vec<String> {
        read(text.as_bytes(), 10).expect(text).into_iter().map(|asked| asked.uid).collect()
    }

    #[test]
    fn lists_and_lines_are_the_same() {
        let (a, b) = (
            r#"{"uid":"a/ü","created_at":"2025-03-10"}"#,
            r#"{"created_at":"2025-03-10T12:00:00+02:00","uid":98765432109876543210,"x":[{}]}"#,
        );
        for text in
            [format!("[{a},{b}]"), format!(" [ {a} , {b} ] \n"), format!("{a}\n{b}\n"), format!("{a}\r\n\r\n{b}")]
        {
            assert_eq!(uids(&text), ["a/ü", "98765432109876543210"], "{text}");
        }
        assert!(uids("[]").is_empty());
    }

    #[test]
    fn a_wrong_element_is_named() {
        let good = r#"{"uid":"a","created_at":"2025-03-10"}"#;
        for (second, word) in [
            (r#"{"uid":"a"}"#, "created_at"),
            (r#"{"created_at":"2025-03-10"}"#, "uid"),
            (r#"{"uid":"","created_at":"2025-03-10"}"#, "empty"),
            (r#"{"uid":-1,"created_at":"2025-03-10"}"#, "whole number"),
            (r#"{"uid":["a"],"created_at":"2025-03-10"}"#, "whole number"),
            (r#"{"uid":"b","created_at":"yesterday"}"#, "yesterday"),
            (r#""a""#, "expected"),
            (r"{", "expected"),
        ] {
            for text in [format!("[{good},{second}]"), format!("{good}\n{second}")] {
                let error = read(text.as_bytes(), 10).expect_err(&text).to_string();
                assert!(error.contains("element 2") && error.contains(word), "{text}: {error}");
            }
        }
        assert!(
            read(b" ", 10).is_err()
                && read(b"[] x", 10).is_err()
                && read(b"{}", 10).is_err()
                && read(b"\xff", 10).is_err()
        );
    }

    #[test]
    fn the_limit_holds_before_anything_else_is_read() {
        let ten = [r#"{"uid":"a","created_at":"2025-03-10"}"#; 10].join("\n");
        assert_eq!(read(ten.as_bytes(), 10).expect("ten").len(), 10);
        for text in [
            format!("{ten}\n{{\"uid\":1,\"created_at\":\"2025-03-10\"}}\nnonsense"),
            format!("[{}]", ["{}"; 11].join(",")),
        ] {
            let limit = if text.starts_with('[') { 0 } else { 10 };
            assert!(matches!(read(text.as_bytes(), limit), Err(Unreadable::TooMany { .. })), "{text}");
        }
    }

    #[test]
    fn the_same_uid_again_has_a_name_of_its_own() {
        let list = r#"[{"uid":"../a","created_at":"2025-03-10"},{"uid":"../a","created_at":"2025-03-11"}]"#;
        let asked = read(list.as_bytes(), 10).expect("two");
        assert_eq!([asked[0].name(0), asked[1].name(1)], ["%2E%2E/a", "_des/again/1/%2E%2E/a"]);
    }
}
