//! Every kind of right and wrong manifest.

use std::io::Write;

use super::*;

const GOOD: &str = r#"{"uid":"a","created_at":"2025-03-10T12:00:00Z","size_bytes":3,"source_path":"f"}"#;

/// Hands out at most `step` bytes at a time, and can fail at the end.
pub(super) struct Trickle<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) step: usize,
    pub(super) failure: Option<io::ErrorKind>,
}

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.step.min(buffer.len()).min(self.bytes.len());
        buffer[..n].copy_from_slice(&self.bytes[..n]);
        self.bytes = &self.bytes[n..];
        match (n, self.failure) {
            (0, Some(kind)) => Err(kind.into()),
            _ => Ok(n),
        }
    }
}

fn read(bytes: &[u8]) -> Result<Vec<(Position, ManifestEntry)>, ManifestError> {
    let mut reader = ManifestReader::new(bytes)?;
    let entries = reader.by_ref().collect::<Result<Vec<_>, _>>()?;
    assert_eq!(reader.entries_read(), entries.len() as u64);
    assert!(reader.next().is_none(), "the end stays the end");
    Ok(entries)
}

fn error(text: impl AsRef<[u8]>) -> String {
    match read(text.as_ref()) {
        Err(error) => error.to_string(),
        Ok(entries) => panic!("{:?} was read as {entries:?}", String::from_utf8_lossy(text.as_ref())),
    }
}

/// A manifest of one element with one field replaced.
fn with(field: &str, value: &str) -> String {
    let mut fields = [
        ("uid", r#""a""#.to_owned()),
        ("created_at", r#""2025-03-10T12:00:00Z""#.to_owned()),
        ("size_bytes", "3".to_owned()),
        ("source_path", r#""f""#.to_owned()),
    ];
    fields.iter_mut().filter(|(name, _)| *name == field).for_each(|(_, old)| value.clone_into(old));
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("[{{{}}}]", fields.join(", "))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).expect("in memory")
}

#[test]
fn lists_and_lines_plain_and_compressed_say_the_same() {
    let list = format!("\u{feff} [\r\n {GOOD} ,\n{GOOD}\t]\r\n");
    let lines = format!("\u{feff}{GOOD}\r\n\r\n  {GOOD}");
    for (text, unit, numbers) in [(list, PositionUnit::Element, [1, 2]), (lines, PositionUnit::Line, [1, 3])] {
        let bytes: Vec<_> = text.match_indices(GOOD).map(|(at, _)| at as u64).collect();
        let plain = text.as_bytes();
        let (first, second) = plain.split_at(plain.len() / 2);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9], zstd_frame(plain).as_slice()].concat();
        for packed in [
            plain.to_vec(),
            gzip(plain),
            zstd_frame(plain),
            [gzip(first), gzip(second)].concat(),
            [zstd_frame(first), zstd_frame(second)].concat(),
            skippable,
        ] {
            let entries = read(&packed).expect(&text);
            let positions: Vec<_> = entries.iter().map(|(position, _)| *position).collect();
            let want = [0, 1].map(|at| Position { unit, number: numbers[at], byte: bytes[at] });
            assert_eq!(positions, want, "{text}");
            assert_eq!(entries[0].1, entries[1].1);
            assert_eq!(entries[0].1.uid.as_str(), "a");
            assert_eq!(entries[0].1.size_bytes, 3);
            assert_eq!(entries[0].1.source_path, "f");
            assert_eq!(entries[0].1.created_at.as_str(), "2025-03-10T12:00:00Z");
        }
    }
}

#[test]
fn an_empty_manifest_has_no_entries() {
    for text in ["", "\n \r\n", "[]", "\u{feff}[ ]\n"] {
        assert_eq!(read(text.as_bytes()).expect("no error"), [], "{text:?}");
    }
    assert_eq!(read(&gzip(b"")).expect("no error"), []);
}

#[test]
fn integer_uids_keep_their_digits() {
    let long = "9".repeat(5_000);
    for (raw, uid) in [("0", "0"), ("1180591620717411303424", "1180591620717411303424"), (long.as_str(), long.as_str())]
    {
        assert_eq!(read(with("uid", raw).as_bytes()).expect(raw)[0].1.uid.as_str(), uid);
    }
    for raw in ["-5", "1.0", "1e3", "1E3", "-0", "true", "null", "[1]", "{\"a\":1}"] {
        let text = error(with("uid", raw));
        assert!(
            text.contains("element 1") && text.contains("uid: is") && text.contains("digits only"),
            "{raw}: {text}"
        );
    }
    assert!(error(with("uid", "007")).contains("line 1"), "not JSON");
}

#[test]
fn strings_are_decoded_and_unknown_fields_ignored() {
    let entries = read(
        br#"[{"x":{"uid":[1,{"uid":2}]},"\u0075id":"\u00e9\ud83d\ude00\n","created_at":"2025-03-10","size_bytes":0,"source_path":"s3://b/k","x":"]}\\"}]"#,
    )
    .expect("valid");
    assert_eq!(entries[0].1.uid.as_str(), "\u{e9}\u{1f600}\n");
    assert_eq!(entries[0].1.source_path, "s3://b/k");
}

#[test]
fn each_field_says_what_it_should_be() {
    for (field, value, parts) in [
        ("uid", r#""""#, ["empty", "1 to 65535"]),
        ("uid", r#""\ud800""#, ["not a valid string", "string"]),
        ("created_at", "1741608000", ["the number 1741608000", "2025-03-10T12:00:00Z"]),
        ("created_at", r#""yesterday""#, ["yesterday", "2025-03-10T12:00:00Z"]),
        ("created_at", "null", ["is null", "2025-03-10T12:00:00Z"]),
        ("size_bytes", "-1", ["-1 is negative", "whole number of bytes from 0"]),
        ("size_bytes", "1.5", ["1.5 is not written as a whole number", "whole number of bytes from 0"]),
        ("size_bytes", "1e3", ["1e3 is not written as a whole number", "whole number of bytes from 0"]),
        ("size_bytes", "18446744073709551616", ["too large", "18446744073709551615"]),
        ("size_bytes", r#""12""#, ["is a string", "whole number of bytes from 0"]),
        ("size_bytes", "false", ["is false", "whole number of bytes from 0"]),
        ("source_path", "[]", ["is a list", "path or an s3:// URI"]),
        ("source_path", r#""""#, ["is empty", "path or an s3:// URI"]),
    ] {
        let text = error(with(field, value));
        assert!(text.contains("element 1") && text.contains(&format!(" {field}: ")), "{text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    assert_eq!(read(with("size_bytes", "18446744073709551615").as_bytes()).expect("u64")[0].1.size_bytes, u64::MAX);
    let longest = format!("\"{}\"", "u".repeat(65_535));
    assert_eq!(read(with("uid", &longest).as_bytes()).expect("fits")[0].1.uid.as_str().len(), 65_535);
    let text = error(with("uid", &format!("\"{}\"", "u".repeat(65_536))));
    assert!(text.contains("65536 bytes") && text.contains("65535") && text.len() < 200, "{text}");
    assert!(error(with("uid", &"1".repeat(65_536))).contains("65536 bytes"));
}

#[test]
fn a_missing_or_repeated_field_is_named() {
    for field in ["uid", "created_at", "size_bytes", "source_path"] {
        let text = error(with(field, "1").replace(&format!("\"{field}\": 1"), "\"other\": 1"));
        assert!(text.contains("element 1") && text.contains(&format!("{field}: is missing; expected")), "{text}");
        let lines = format!("{GOOD}\n{}", GOOD.replace('}', &format!(",\"{field}\":1}}")));
        let text = error(lines);
        assert!(text.contains("line 2") && text.contains(&format!("{field}: stands twice")), "{text}");
    }
}

#[test]
fn broken_json_names_line_and_column() {
    let cases: [(String, &str, &str); 19] = [
        (format!("[\n{GOOD},\n{{\"uid\":}}]"), "line 3, column 8", "element 2"),
        (format!("[{GOOD},\n {{\n\"uid\": 1 \"x\"\n}}]"), "line 3, column 10", "expected `,` or `}`"),
        (format!("{GOOD}\n{{\"uid\":\n{GOOD}"), "line 2, column 7", "one whole object is expected on each line"),
        (format!("{GOOD}\n{GOOD} {GOOD}"), "line 2", "trailing characters"),
        (format!("{GOOD}\n[1]"), "line 2, column 1", "expected a JSON object"),
        (format!("[{GOOD},]"), "line 1, column 82", "comma before the end"),
        (format!("[{GOOD},,{GOOD}]"), "line 1, column 83", "starts with ','"),
        (format!("[,{GOOD}]"), "line 1, column 2", "starts with ','"),
        (format!("[{GOOD} {GOOD}]"), "line 1, column 83", "expected ',' or ']'"),
        (format!("[{GOOD}"), "line 1, column 82", "not closed"),
        (format!("[{GOOD},"), "line 1, column 83", "not closed"),
        ("[".to_owned(), "line 1, column 2", "not closed"),
        (format!("[{GOOD}]\n x"), "line 2, column 2", "behind the end of the list"),
        (format!("[{GOOD}][{GOOD}]"), "line 1, column 83", "behind the end of the list"),
        (format!("[{GOOD},\n1]"), "line 2, column 1", "element 2 starts with '1'"),
        ("[{\"uid\": \"a,\n\"created_at\"".to_owned(), "line 1, column 13", "closing quote"),
        ("[{\"uid\": \"a".to_owned(), "line 1, column 12", "ends inside a string"),
        ("uid,created_at\n1,2".to_owned(), "line 1, column 1", "starts with 'u'"),
        ("\"text\"".to_owned(), "line 1, column 1", "expected a JSON list"),
    ];
    for (text, place, problem) in cases {
        let got = error(&text);
        assert!(got.contains(&format!("{place}:")) && got.contains(problem), "{text}\n-> {got}");
    }
}

#[test]
fn bytes_that_are_not_utf8_are_placed() {
    for start in [&b"[\n"[..], b"\n"] {
        let text = [start, br#"{"uid":"a"#, &[0xff], br#"","created_at":"2025-03-10"}"#].concat();
        let got = error(&text);
        assert!(got.contains("line 2, column 10") && got.contains("0xFF is not UTF-8"), "{got}");
    }
    assert!(error([0xff, 0xfe, b'[', 0]).contains("0xFF"), "UTF-16");
    // A byte-order mark cut short is no start of a manifest.
    assert!(error([0xef, 0xbb, b'x']).contains("starts with 'x'"));
}

#[test]
fn an_element_is_bounded() {
    let path = "x".repeat(MAX_ELEMENT_BYTES);
    for text in [with("source_path", &format!("\"{path}\"")), GOOD.replace("\"f\"", &format!("\"{path}\""))] {
        let got = error(&text);
        assert!(got.contains("longer than 1048576 bytes") && got.contains("line 1"), "{got}");
    }
    // Deep nesting costs no stack.
    let deep = format!("[{{\"x\":{}1{}}}]", "[".repeat(400_000), "]".repeat(400_000));
    assert!(error(&deep).contains("element 1"));
}

#[test]
fn damaged_compression_is_told_from_a_failing_source() {
    let text = vec![GOOD; 2_000].join("\n");
    for packed in [gzip(text.as_bytes()), zstd_frame(text.as_bytes())] {
        let cut = &packed[..packed.len() - 5];
        let got = error(cut);
        assert!(got.contains("damaged or cut short"), "{got}");
        let mut flipped = packed.clone();
        let middle = flipped.len() / 2;
        flipped[middle..].iter_mut().for_each(|byte| *byte ^= 0xa5);
        assert!(read(&flipped).is_err());
        let source = Trickle { bytes: cut, step: 100, failure: Some(io::ErrorKind::ConnectionReset) };
        let failed = ManifestReader::new(source).expect("reader").find_map(Result::err).expect("error");
        assert!(
            matches!(&failed, ManifestError::Read { source, .. } if source.kind() == io::ErrorKind::ConnectionReset)
        );
    }
    let source = Trickle { bytes: b"[", step: 1, failure: Some(io::ErrorKind::PermissionDenied) };
    assert!(matches!(ManifestReader::new(source).err(), Some(ManifestError::Read { .. })));
    let garbage_behind = [gzip(text.as_bytes()), b"garbage".to_vec()].concat();
    assert!(error(garbage_behind).contains("gzip"));
}

#[test]
fn nothing_follows_an_error() {
    let text = format!("{GOOD}\nx\n{GOOD}");
    let mut reader = ManifestReader::new(text.as_bytes()).expect("reader");
    assert!(reader.next().is_some_and(|item| item.is_ok()));
    assert!(reader.next().is_some_and(|item| item.is_err()));
    assert!(reader.next().is_none());
    assert_eq!(reader.entries_read(), 1);
}

#[test]
fn a_source_resolves_against_its_manifest() {
    let folder = SourceBase::of_manifest("/data/in/m.json").expect("path");
    let bucket = SourceBase::of_manifest("s3://bucket/in/m.json").expect("uri");
    for (base, path, want) in [
        (&folder, "a/b.txt", "/data/in/a/b.txt"),
        (&folder, "./a//b.txt", "/data/in/a/b.txt"),
        (&folder, "../x", "/data/x"),
        (&folder, "../../../../x", "/x"),
        (&folder, "/abs/../x", "/x"),
        (&folder, "a:b", "/data/in/a:b"),
        (&folder, "a/c://d", "/data/in/a/c:/d"),
        (&folder, "s3://other/a/../b", "s3://other/a/../b"),
        (&bucket, "a/b.txt", "s3://bucket/in/a/b.txt"),
        (&bucket, "../x", "s3://bucket/x"),
        (&bucket, "/abs", "/abs"),
        (&SourceBase::None, "/abs", "/abs"),
        (&SourceBase::None, "s3://b/k", "s3://b/k"),
    ] {
        assert_eq!(resolve_source(base, path), Ok(want.to_owned()), "{path}");
    }
    for (base, path, problem) in [
        (&SourceBase::None, "a/b", "absolute path"),
        (&bucket, "../../x", "bucket"),
        (&bucket, "..", "object"),
        (&folder, "", "empty"),
        (&folder, "a\0b", "zero byte"),
        (&folder, "..", "folder"),
        (&folder, "a/", "folder"),
        (&folder, "/", "folder"),
        (&folder, "http://x/y", "scheme"),
        (&folder, "file:///x", "scheme"),
        (&folder, "s3://", "bucket is missing"),
        (&folder, "s3://b", "names no object"),
        (&folder, "s3://b/", "names no object"),
        (&folder, "s3://b ad/k", "letters"),
    ] {
        let error = resolve_source(base, path).expect_err(path).to_string();
        assert!(error.contains(problem), "{path}: {error}");
    }
    assert!(resolve_source(&folder, &format!("s3://b/{}", "k".repeat(1_025))).is_err());
    let uri: SourceUri = "s3://b/x/y z?.txt".parse().expect("uri");
    assert_eq!((uri.bucket(), uri.key(), uri.folder().key()), ("b", "x/y z?.txt", "x/"));
    assert_eq!(SourceBase::of_manifest("s3://b/m.json"), Ok(SourceBase::S3("s3://b/".parse().expect("uri"))));
    let relative = SourceBase::of_manifest("m.json").expect("in the current folder");
    assert!(matches!(relative, SourceBase::Folder(folder) if folder.is_absolute()));
}
