//! The quick way through one element: an object whose values are numbers and strings without escapes, as programs
//! write manifests. Anything else, right or wrong, is left to the JSON parser, which alone says what is wrong.

use super::{ManifestEntry, plain};
use crate::created_at::CreatedAt;
use crate::ids::Uid;

/// The entry, where the element is of the usual form and everything in it is right.
pub(super) fn parse(text: &str) -> Option<ManifestEntry> {
    let (mut uid, mut created_at, mut size_bytes, mut source_path) = (None, None, None, None);
    let mut scan = Scan { text, at: 0 };
    scan.expect(b'{')?;
    loop {
        let Value::Text(name) = scan.value()? else { return None };
        scan.expect(b':')?;
        let value = scan.value()?;
        let slot = match name {
            "uid" => &mut uid,
            "created_at" => &mut created_at,
            "size_bytes" => &mut size_bytes,
            "source_path" => &mut source_path,
            _ => &mut None,
        };
        if slot.replace(value).is_some() {
            return None;
        }
        match scan.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    if scan.next().is_some() {
        return None;
    }
    let (Value::Text(uid) | Value::Number(uid)) = uid?;
    let (Value::Text(created_at), Value::Number(size), Value::Text(source)) = (created_at?, size_bytes?, source_path?)
    else {
        return None;
    };
    let source_path = Some(source).filter(|path| !path.is_empty())?.to_owned();
    let created_at = CreatedAt::parse(created_at).ok()?;
    Some(ManifestEntry { uid: Uid::new(uid).ok()?, created_at, size_bytes: size.parse().ok()?, source_path })
}

/// A value as it stands in the text.
enum Value<'a> {
    Text(&'a str),
    /// Digits, as JSON writes a whole number that is not negative.
    Number(&'a str),
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    /// The next byte that is no white space.
    fn next(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let white = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count();
        let found = rest.get(white).copied();
        self.at += white + usize::from(found.is_some());
        found
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    fn value(&mut self) -> Option<Value<'a>> {
        let first = self.next()?;
        let rest = &self.text.as_bytes()[self.at..];
        if first == b'"' {
            let len = plain::len(rest);
            let start = self.at;
            // Both ends are ASCII, so the cuts lie between characters.
            let text = (*rest.get(len)? == b'"').then(|| Value::Text(&self.text[start..start + len]));
            self.at += len + 1;
            return text;
        }
        let start = self.at.checked_sub(1)?;
        let more = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += more;
        let whole = first.is_ascii_digit() && (first != b'0' || more == 0);
        whole.then(|| Value::Number(&self.text[start..self.at]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_form_goes_the_quick_way_and_nothing_else() {
        let line =
            r#"{"uid": "a/ü", "created_at":"2025-03-10T12:00:00Z","size_bytes":12,"source_path":"/x y","more":0}"#;
        let entry = parse(line).expect("a usual line");
        assert_eq!((entry.uid.as_str(), entry.size_bytes, entry.source_path.as_str()), ("a/ü", 12, "/x y"));
        let number = line.replace("\"a/ü\"", "18446744073709551616");
        assert_eq!(parse(&number).expect("a number").uid.as_str(), "18446744073709551616");
        assert!(parse(&format!(" {line}\r")).is_some());
        for (from, to) in [
            ("12,", "012,"),
            ("12,", "-12,"),
            ("12,", "12.0,"),
            ("12,", "1e2,"),
            ("12,", "\"12\","),
            ("12,", ""),
            ("a/ü", "a\\u0041"),
            ("a/ü", "a\tb"),
            ("a/ü", ""),
            ("/x y", ""),
            ("2025", "x025"),
            ("more", "uid"),
            (":0}", ":0,}"),
            (":0}", ":null}"),
            (":0}", ":0}}"),
            (":0}", ":0"),
            ("{", "["),
        ] {
            let other = line.replacen(from, to, 1);
            assert!(parse(&other).is_none(), "{other}");
        }
    }
}
