//! What HTTP says about a file: its entity tag, its type, and which part of it is asked for.

use std::ops::Range;

use des_shared::shard::{Entry, Location, hex32};
use sha2::{Digest, Sha256};

use crate::fetch::Form;
use crate::locate::Located;
use crate::serve::Wanted;

/// Names under which an entry's meta may hold the media type.
const TYPE_FIELDS: [&str; 4] = ["content_type", "content-type", "Content-Type", "mime_type"];

/// A strong entity tag: other bytes have another one. Of a big file it is its hash. Of a file in a shard it is a digest
/// of the shard's identity and the file's place in it, the same in every copy of a version 3 shard; versions 1 and 2
/// keep no checksums, so the store's own tag of the shard stands in for them.
///
/// It ends as that of an S3 object uploaded in one part does: clients of S3 take a tag without a hyphen for the MD5 of
/// the bytes, and refuse those when it is not.
pub(crate) fn etag(located: &Located, form: Form) -> String {
    let inline = match located.entry.location {
        Location::BigFile { sha256, .. } => return format!("\"{}-1\"", hex32(&sha256)),
        Location::Inline(inline) => inline,
    };
    let object = located.shard.object();
    let mut digest = Sha256::new();
    digest.update(object.key.as_bytes());
    digest.update([0]);
    match located.shard.footer() {
        Some(footer) => {
            digest.update(footer.directory_crc32c.to_le_bytes());
            digest.update(footer.sequence.to_le_bytes());
        }
        None => digest.update(object.etag.as_bytes()),
    }
    for number in [object.size, inline.offset, inline.stored_len, inline.raw_len] {
        digest.update(number.to_le_bytes());
    }
    digest.update(inline.crc32c.unwrap_or_default().to_le_bytes());
    let name = &hex32(&digest.finalize().into())[..32];
    match form {
        Form::Raw => format!("\"{name}-1\""),
        // Another sequence of bytes, so another strong tag.
        Form::Stored => format!("\"{name}-zstd\""),
    }
}

/// When the file last changed here, in Unix seconds: the sequence of its shard, which decides between two versions of a
/// file, so a newer version never has an older time. `None` where whoever packed it gave no time.
pub(crate) fn modified_s(located: &Located) -> Option<u64> {
    Some(located.shard.sequence() / 1000).filter(|seconds| *seconds > 0)
}

/// The media type: what the entry's meta says, else what the uid's extension says.
pub(crate) fn content_type(entry: &Entry) -> String {
    let said = entry.meta.as_ref().and_then(|meta| meta.to_map().ok()).and_then(|map| {
        let field = TYPE_FIELDS.iter().find_map(|name| map.get(*name)?.as_str())?;
        let fits = field.contains('/') && field.bytes().all(|b| (0x20..0x7f).contains(&b)) && field.len() <= 256;
        fits.then(|| field.to_owned())
    });
    said.unwrap_or_else(|| mime_guess::from_path(&entry.uid).first_or_octet_stream().to_string())
}

/// Whether `If-None-Match` names the tag (compared weakly, as RFC 9110 wants it) or is `*`.
pub(crate) fn matches_any(header: &str, etag: &str) -> bool {
    header.trim() == "*" || header.split(',').map(str::trim).any(|tag| tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// Which bytes are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selected {
    Whole,
    Part(Range<u64>),
    /// A range that lies outside the file.
    Nothing,
}

/// Reads `Range`, unless `If-Range` says that the client knows another version. What is not one range of bytes is
/// ignored, as RFC 9110 allows: several ranges, other units, nonsense.
pub(crate) fn select(wanted: &Wanted, etag: &str, size: u64) -> Selected {
    let Some(range) = wanted.range.as_deref().filter(|_| !wanted.head) else { return Selected::Whole };
    // Strong comparison: a weak tag or a date never matches.
    if wanted.if_range.as_deref().is_some_and(|known| known.trim() != etag) {
        return Selected::Whole;
    }
    parse_range(range, size).unwrap_or(Selected::Whole)
}

fn parse_range(header: &str, size: u64) -> Option<Selected> {
    let (unit, spec) = header.split_once('=')?;
    let (first, last) = spec.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") || last.contains(',') {
        return None;
    }
    // More digits than a u64 holds still mean a number: one behind the end of any file.
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let range = match (first.trim(), last.trim()) {
        ("", suffix) => size.saturating_sub(number(suffix)?)..size,
        (first, "") => number(first)?..size,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            first..size.min(last.saturating_add(1))
        }
    };
    Some(if range.start < range.end { Selected::Part(range) } else { Selected::Nothing })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        use Selected::{Nothing, Part};
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
            ("bytes=0-", 0, Some(Nothing)),
            ("bytes=-5", 0, Some(Nothing)),
            ("bytes=4-2", 10, None),
            ("bytes=0-1,3-4", 10, None),
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
    fn entity_tags_match_weakly() {
        for header in ["\"a\"", "W/\"a\"", "\"b\", \"a\"", "*", " \"b\" ,W/\"a\""] {
            assert!(matches_any(header, "\"a\""), "{header}");
        }
        for header in ["", "a", "\"b\"", "\"a-zstd\""] {
            assert!(!matches_any(header, "\"a\""), "{header}");
        }
    }

    #[test]
    fn types_come_from_meta_then_from_the_extension() {
        let entry = |uid: &str, meta: &str| Entry {
            uid: uid.to_owned(),
            location: Location::BigFile { sha256: [0; 32], size: 0 },
            meta: des_shared::shard::Meta::parse(meta).expect("JSON"),
        };
        assert_eq!(content_type(&entry("a/b.json", "{}")), "application/json");
        assert_eq!(content_type(&entry("a/b.PNG", "{}")), "image/png");
        assert_eq!(content_type(&entry("12345", "{}")), "application/octet-stream");
        assert_eq!(content_type(&entry("a.bin", r#"{"content_type":"text/csv"}"#)), "text/csv");
        assert_eq!(content_type(&entry("a.json", r#"{"content_type":"a/b\r\nX: y"}"#)), "application/json");
        assert_eq!(content_type(&entry("a.json", r#"{"content_type":7}"#)), "application/json");
    }
}
