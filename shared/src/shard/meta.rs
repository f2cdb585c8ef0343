//! The JSON object an entry may carry, kept as text so that a shard can be rewritten byte for byte: the order of
//! keys and the spelling of numbers survive.

use std::fmt::Write;

use super::error::ShardError;

/// The longest meta text that is written, in bytes. Versions 1 and 2 may hold longer ones; they are read.
pub const MAX_META_BYTES: usize = 1 << 20;

/// A JSON object that is not empty, compact (no spaces between tokens) and in ASCII (everything else escaped).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Meta(String);

impl Meta {
    /// Checks that `text` is a JSON object and brings it into the stored form. An empty object is `None`.
    ///
    /// # Errors
    /// A sentence that says what is wrong. `NaN` and `Infinity`, which the existing implementation's JSON writer
    /// knows and JSON does not, become `null`.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let mut compact = compact_ascii(text);
        if let Err(error) = check_object(&compact) {
            compact = without_non_finite(&compact).ok_or_else(|| error.clone())?;
            check_object(&compact)?;
        }
        Ok(if compact == "{}" { None } else { Some(Self(compact)) })
    }

    /// The stored text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The fields. Of a key that stands twice the last value counts.
    ///
    /// # Errors
    /// [`ShardError::Usage`] for text that [`Meta::parse`] accepts and `serde_json` cannot hold (nesting deeper than
    /// 128, half of a surrogate pair).
    pub fn to_map(&self) -> Result<serde_json::Map<String, serde_json::Value>, ShardError> {
        serde_json::from_str(&self.0).map_err(|e| ShardError::Usage(format!("meta cannot be taken apart: {e}")))
    }

    /// Meta read from a checked block: already in the stored form.
    pub(super) fn from_stored(text: &str) -> Result<Self, String> {
        match Self::parse(text)? {
            Some(meta) if meta.0 == text => Ok(meta),
            _ => Err("meta is not a compact JSON object in ASCII".to_owned()),
        }
    }
}

fn check_object(text: &str) -> Result<(), String> {
    if !text.starts_with('{') {
        return Err("meta is not a JSON object".to_owned());
    }
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) => Ok(()),
        Err(e) => Err(format!("meta is not JSON: {e}")),
    }
}

/// Drops the white space between tokens and escapes what is not printable ASCII inside strings, as Python's
/// `json.dumps(..., ensure_ascii=True, separators=(",", ":"))` spells it.
fn compact_ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in text.chars() {
        if !in_string {
            in_string = c == '"';
            if !matches!(c, ' ' | '\t' | '\n' | '\r') {
                out.push(c);
            }
            continue;
        }
        in_string = escaped || c != '"';
        escaped = !escaped && c == '\\';
        // A control character inside a string is not JSON: kept, so that the check refuses it.
        if c < '\u{7f}' {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").expect("writing to a string cannot fail");
            }
        }
    }
    out
}

/// `NaN`, `Infinity` and `-Infinity` outside strings made `null`; `None` when there are none.
fn without_non_finite(compact: &str) -> Option<String> {
    let mut out = String::with_capacity(compact.len());
    let (mut rest, mut found) = (compact, false);
    while !rest.is_empty() {
        let word = ["NaN", "-Infinity", "Infinity"].iter().find(|w| rest.starts_with(**w));
        if let Some(word) = word {
            out.push_str("null");
            rest = &rest[word.len()..];
            found = true;
        } else if rest.starts_with('"') {
            let end = string_end(rest);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        } else {
            let c = rest.chars().next()?;
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    found.then_some(out)
}

/// Where the string that `text` starts with ends, its closing quote included.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return at + 1,
            _ => escaped = !escaped && byte == b'\\',
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_brought_into_the_stored_form() {
        let stored = |text| Meta::parse(text).unwrap().map(|m| m.0);
        assert_eq!(stored(" { } "), None);
        assert_eq!(stored("{ \"a\" : [ 1 , \"x y\" ] }").unwrap(), r#"{"a":[1,"x y"]}"#);
        assert_eq!(stored(r#"{"z":1,"a":"q\" : \\"}"#).unwrap(), r#"{"z":1,"a":"q\" : \\"}"#);
        assert_eq!(stored("{\"é\":\"😀\u{7f}\"}").unwrap(), r#"{"\u00e9":"\ud83d\ude00\u007f"}"#);
        assert_eq!(
            stored(r#"{"n":NaN,"s":"NaN","m":[-Infinity,Infinity]}"#).unwrap(),
            r#"{"n":null,"s":"NaN","m":[null,null]}"#
        );
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        for bad in ["", "[]", "1", "{", "{]", "{\"a\":}", "{\"a\":1}x", "{\"a\u{1}\":1}", "{\"a\":1", "{\"a", "{NaN:1}"]
        {
            assert!(Meta::parse(bad).is_err(), "{bad:?}");
        }
    }
}
