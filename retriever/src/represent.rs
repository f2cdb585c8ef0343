//! What HTTP says about a file: its entity tag, its time, its type and how a browser may treat it.

use des_shared::shard::{Entry, Location, hex32};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::fetch::Form;
use crate::locate::Located;

/// Names under which an entry's meta may hold the media type.
const TYPE_FIELDS: [&str; 4] = ["content_type", "content-type", "Content-Type", "mime_type"];
/// The longest name in `Content-Disposition`, in bytes.
const MAX_NAME_BYTES: usize = 200;
/// Everything but letters, digits and the other `attr-char` of RFC 8187.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

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
    said.unwrap_or_else(|| {
        let guessed = mime_guess::from_path(&entry.uid);
        guessed.first_raw().unwrap_or("application/octet-stream").to_owned()
    })
}

/// Whether a browser only shows what has this type. Everything else is sent with a policy under which it runs nothing
/// (`api::files`). Pictures of the kind that can hold scripts are not in it; PDF is, because browsers refuse to show it
/// under that policy and their viewers run nothing of the page's origin.
pub(crate) fn is_passive(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.split_once('/') {
        Some(("image" | "audio" | "video", kind)) => !kind.contains("xml"),
        _ => essence == "application/pdf",
    }
}

/// `Content-Disposition` for a download (RFC 6266): a name in ASCII that every client reads, and where that is not all of
/// it, the right one in UTF-8 (RFC 8187).
pub(crate) fn attachment(name: &str) -> String {
    let name = file_name(name);
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let mut value = format!("attachment; filename=\"{plain}\"");
    if plain != name {
        value.push_str("; filename*=UTF-8''");
        value.extend(utf8_percent_encode(&name, ESCAPED));
    }
    value
}

/// What needs no escaping inside quotes. A percent sign would be decoded by some clients.
fn is_plain(c: char) -> bool {
    matches!(c, ' '..='~') && !matches!(c, '"' | '\\' | '%')
}

/// A name that names a file and nothing else: the last component, without what is invisible, leads elsewhere or turns the
/// direction of the text.
fn file_name(text: &str) -> String {
    let last = text.rsplit(['/', '\\']).find(|part| !part.trim().is_empty()).unwrap_or_default();
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut name: String = last.trim().chars().map(|c| if c.is_control() || turns(c) { '_' } else { c }).collect();
    while name.len() > MAX_NAME_BYTES {
        name.pop();
    }
    if name.trim_matches('.').is_empty() { "download".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn what_can_hold_scripts_is_not_passive() {
        for passive in ["image/png", "IMAGE/JPEG", "video/mp4", "audio/ogg; codecs=opus", "application/pdf"] {
            assert!(is_passive(passive), "{passive}");
        }
        for active in [
            "image/svg+xml",
            "Image/SVG+XML ; charset=utf-8",
            "text/html",
            "text/plain",
            "application/xhtml+xml",
            "text/xml",
            "application/octet-stream",
            "nonsense",
            "",
        ] {
            assert!(!is_passive(active), "{active}");
        }
    }

    #[test]
    fn names_of_downloads_are_safe_to_write_and_to_keep() {
        for (name, value) in [
            ("a.txt", "attachment; filename=\"a.txt\""),
            ("folder/b c.txt", "attachment; filename=\"b c.txt\""),
            ("..\\..\\evil.exe", "attachment; filename=\"evil.exe\""),
            ("a/", "attachment; filename=\"a\""),
            ("", "attachment; filename=\"download\""),
            ("a/..", "attachment; filename=\"download\""),
            ("naïve.txt", "attachment; filename=\"na_ve.txt\"; filename*=UTF-8''na%C3%AFve.txt"),
            ("a\"b.txt", "attachment; filename=\"a_b.txt\"; filename*=UTF-8''a%22b.txt"),
            ("100%.txt", "attachment; filename=\"100_.txt\"; filename*=UTF-8''100%25.txt"),
            ("a\r\nX-Y: z", "attachment; filename=\"a__X-Y: z\""),
            ("photo\u{202e}gpj.exe", "attachment; filename=\"photo_gpj.exe\""),
        ] {
            assert_eq!(attachment(name), value, "{name:?}");
        }
        let long = attachment(&"ü".repeat(1_000));
        assert!(long.len() < 1_000 && long.ends_with("%C3%BC"), "{long}");
    }
}
