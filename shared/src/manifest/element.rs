//! One element's JSON to a [`ManifestEntry`], with errors that name the field and what it should be.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::elements::Start;
use super::{ManifestEntry, ManifestError, Place, quick};
use crate::created_at::CreatedAt;
use crate::ids::Uid;

/// Reads the bytes of one element.
pub(super) fn parse(bytes: &[u8], start: Start) -> Result<ManifestEntry, ManifestError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let problem = format!("the byte 0x{:02X} is not UTF-8", bytes[error.valid_up_to()]);
        ManifestError::Syntax { place: place_behind(before, start.place), problem }
    })?;
    if let Some(entry) = quick::parse(text) {
        return Ok(entry);
    }
    let raw: RawEntry<'_> = serde_json::from_str(text).map_err(|error| syntax(&error, start))?;
    if let Some(field) = raw.duplicate {
        let problem = "stands twice in one object; expected once".to_owned();
        return Err(ManifestError::Field { position: start.position, field, problem });
    }
    let fields = Fields { start };
    Ok(ManifestEntry {
        uid: fields.uid(raw.uid)?,
        created_at: fields.created_at(raw.created_at)?,
        size_bytes: fields.size_bytes(raw.size_bytes)?,
        source_path: fields.source_path(raw.source_path)?,
    })
}

/// The place right behind `before`, which starts at `start`.
fn place_behind(before: &[u8], start: Place) -> Place {
    let mut place = start;
    for byte in before {
        place = match byte {
            b'\n' => Place { line: place.line + 1, column: 1 },
            _ => Place { column: place.column + 1, ..place },
        };
    }
    place
}

fn syntax(error: &serde_json::Error, start: Start) -> ManifestError {
    let (line, column) = (error.line().max(1) as u64, error.column().max(1) as u64);
    let place = if line == 1 {
        Place { line: start.place.line, column: start.place.column + column - 1 }
    } else {
        Place { line: start.place.line + line - 1, column }
    };
    // The library's text ends with its own place, which counts from the element.
    let text = error.to_string();
    let problem = text.rsplit_once(" at line ").map_or(text.as_str(), |(problem, _)| problem);
    let hint = if error.is_eof() && start.position.unit == super::PositionUnit::Line {
        "; one whole object is expected on each line (a list of objects over several lines starts with '[')"
    } else {
        ""
    };
    ManifestError::Syntax { place, problem: format!("{}: {problem}{hint}", start.position) }
}

/// The values as they stand in the text. Unknown fields are ignored, as the existing tool does.
#[derive(Default)]
struct RawEntry<'a> {
    uid: Option<&'a RawValue>,
    created_at: Option<&'a RawValue>,
    size_bytes: Option<&'a RawValue>,
    source_path: Option<&'a RawValue>,
    duplicate: Option<&'static str>,
}

enum Field {
    Known(&'static str),
    Unknown,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_identifier(FieldVisitor)
    }
}

struct FieldVisitor;

impl Visitor<'_> for FieldVisitor {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Field, E> {
        const KNOWN: [&str; 4] = ["uid", "created_at", "size_bytes", "source_path"];
        Ok(KNOWN.into_iter().find(|known| *known == name).map_or(Field::Unknown, Field::Known))
    }
}

impl<'de> Deserialize<'de> for RawEntry<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntryVisitor)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = RawEntry<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with uid, created_at, size_bytes and source_path")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawEntry<'de>, A::Error> {
        let mut entry = RawEntry::default();
        while let Some(field) = map.next_key::<Field>()? {
            let (name, slot) = match field {
                Field::Known(name @ "uid") => (name, &mut entry.uid),
                Field::Known(name @ "created_at") => (name, &mut entry.created_at),
                Field::Known(name @ "size_bytes") => (name, &mut entry.size_bytes),
                Field::Known(name) => (name, &mut entry.source_path),
                Field::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if slot.replace(map.next_value()?).is_some() {
                entry.duplicate = Some(name);
            }
        }
        Ok(entry)
    }
}

/// Checks the fields of one element.
struct Fields {
    start: Start,
}

type Checked<T> = Result<T, ManifestError>;

impl Fields {
    fn error(&self, field: &'static str, problem: String) -> ManifestError {
        ManifestError::Field { position: self.start.position, field, problem }
    }

    fn required<'a>(&self, field: &'static str, expected: &str, value: Option<&'a RawValue>) -> Checked<&'a str> {
        value.map(RawValue::get).ok_or_else(|| self.error(field, format!("is missing; expected {expected}")))
    }

    fn string(&self, field: &'static str, expected: &str, raw: &str) -> Checked<String> {
        if !raw.starts_with('"') {
            return Err(self.error(field, format!("is {}; expected {expected}", describe(raw))));
        }
        serde_json::from_str(raw)
            .map_err(|_| self.error(field, format!("is not a valid string ({}); expected {expected}", shorten(raw))))
    }

    fn uid(&self, value: Option<&RawValue>) -> Checked<Uid> {
        let expected = "a string, or a whole number that is not negative, written in digits only";
        let raw = self.required("uid", expected, value)?;
        // An integer is kept digit for digit, however long: it never becomes a number here.
        let text =
            if raw.bytes().all(|b| b.is_ascii_digit()) { raw.to_owned() } else { self.string("uid", expected, raw)? };
        Uid::new(text).map_err(|error| self.error("uid", error.to_string()))
    }

    fn created_at(&self, value: Option<&RawValue>) -> Checked<CreatedAt> {
        let expected = "a time as a string, for example \"2025-03-10T12:00:00Z\"";
        let raw = self.required("created_at", expected, value)?;
        let text = self.string("created_at", expected, raw)?;
        CreatedAt::parse(&text).map_err(|error| self.error("created_at", error.to_string()))
    }

    fn size_bytes(&self, value: Option<&RawValue>) -> Checked<u64> {
        let expected = format!("a whole number of bytes from 0 to {}", u64::MAX);
        let raw = self.required("size_bytes", &expected, value)?;
        if raw.bytes().all(|b| b.is_ascii_digit()) {
            return raw
                .parse()
                .map_err(|_| self.error("size_bytes", format!("{} is too large; expected {expected}", shorten(raw))));
        }
        let number = raw.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        let problem = match raw {
            _ if number && raw.starts_with('-') => format!("{} is negative", shorten(raw)),
            _ if number => format!("{} is not written as a whole number", shorten(raw)),
            _ => format!("is {}", describe(raw)),
        };
        Err(self.error("size_bytes", format!("{problem}; expected {expected}")))
    }

    fn source_path(&self, value: Option<&RawValue>) -> Checked<String> {
        let expected = "a path or an s3:// URI as a string";
        let raw = self.required("source_path", expected, value)?;
        let path = self.string("source_path", expected, raw)?;
        if path.is_empty() {
            return Err(self.error("source_path", format!("is empty; expected {expected}")));
        }
        Ok(path)
    }
}

/// A JSON value that is not what was expected, in words.
fn describe(raw: &str) -> String {
    match raw.as_bytes().first() {
        Some(b'"') => "a string".to_owned(),
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "a list".to_owned(),
        Some(b'-' | b'0'..=b'9') => format!("the number {}", shorten(raw)),
        _ => raw.to_owned(),
    }
}

fn shorten(raw: &str) -> String {
    match raw.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &raw[..end]),
        None => raw.to_owned(),
    }
}
