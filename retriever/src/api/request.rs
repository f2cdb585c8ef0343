//! From an HTTP request to what it wants: uid, moment, conditions.

use axum::http::{HeaderMap, HeaderName, Method, Uri, header};
use des_shared::created_at::CreatedAt;
use des_shared::ids::MAX_UID_BYTES;
use des_shared::tombstone::Reasons;
use percent_encoding::percent_decode_str;

use crate::delete::Deletion;
use crate::error::Error;
use crate::negotiate::Codings;
use crate::serve::Wanted;

/// The longest text about a deletion, in bytes.
const MAX_REASON_BYTES: usize = 1000;

/// Reads a request for a file.
pub(super) fn wanted(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Wanted, Error> {
    let (uid, created_at) = file_of(uri)?;
    Ok(Wanted {
        head: method == Method::HEAD,
        accepts: joined(headers, &header::ACCEPT_ENCODING).map_or(Codings::PLAIN, |text| Codings::read(&text)),
        range: single(headers, &header::RANGE),
        // Two of them match nothing, and then the whole is sent: mixing two versions would be worse.
        if_range: joined(headers, &header::IF_RANGE),
        if_match: joined(headers, &header::IF_MATCH),
        if_none_match: joined(headers, &header::IF_NONE_MATCH),
        if_modified_since: single(headers, &header::IF_MODIFIED_SINCE),
        if_unmodified_since: single(headers, &header::IF_UNMODIFIED_SINCE),
        ..Wanted::whole(uid, created_at)
    })
}

/// Under which name the file is to be saved: that of `download`, or the uid's where it has no value; `None` when the file
/// is to be shown.
pub(super) fn download(uri: &Uri) -> Result<Option<String>, Error> {
    parameter(uri.query().unwrap_or_default(), "download")
}

/// Which file a request is about, whatever it wants with it.
pub(crate) fn file_of(uri: &Uri) -> Result<(String, CreatedAt), Error> {
    Ok((uid(uri.path())?, created_at(uri.query().unwrap_or_default())?))
}

/// Reads a request to delete a file, which came with the key of this name.
pub(super) fn deletion(uri: &Uri, key_name: &str) -> Result<Deletion, Error> {
    let query = uri.query().unwrap_or_default();
    let said = |name: &'static str| -> Result<Option<String>, Error> {
        let Some(text) = parameter(query, name)? else { return Ok(None) };
        let text = text.trim();
        if text.len() > MAX_REASON_BYTES || text.chars().any(char::is_control) {
            let detail = format!("{name} is longer than {MAX_REASON_BYTES} bytes or has control characters");
            return Err(bad("parameter-invalid", detail));
        }
        Ok((!text.is_empty()).then(|| text.to_owned()))
    };
    let needed = |name: &'static str| {
        said(name)?
            .ok_or_else(|| bad("parameter-missing", format!("{name} is missing: say who deletes the file and why")))
    };
    let (uid, created_at) = file_of(uri)?;
    let why = Reasons {
        deleted_by: needed("deleted_by")?,
        reason: needed("reason")?,
        ticket_id: said("ticket_id")?,
        key_name: Some(key_name.to_owned()),
    };
    Ok(Deletion { uid, created_at, why })
}

/// Reads `limit` and `cursor` of a list.
pub(super) fn page(uri: &Uri, usual: usize, most: usize) -> Result<(usize, Option<String>), Error> {
    let query = uri.query().unwrap_or_default();
    let limit = match parameter(query, "limit")? {
        None => usual,
        Some(text) => {
            let number = text.parse().ok().filter(|n| (1..=most).contains(n));
            number.ok_or_else(|| bad("limit-invalid", format!("limit is {text:?}; expected 1 to {most}")))?
        }
    };
    Ok((limit, parameter(query, "cursor")?))
}

/// One parameter of a query, decoded as forms are.
fn parameter(query: &str, name: &'static str) -> Result<Option<String>, Error> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.replace('+', " "));
    let (first, more) = (values.next(), values.next());
    if more.is_some() {
        return Err(bad("parameter-twice", format!("{name} is there twice; send it once")));
    }
    let decode = |text: String| percent_decode_str(&text).decode_utf8().map(std::borrow::Cow::into_owned);
    first.map(decode).transpose().map_err(|_| bad("parameter-invalid", format!("{name} is not UTF-8")))
}

pub(super) fn bad(kind: &'static str, detail: impl Into<String>) -> Error {
    Error::BadRequest { kind, detail: detail.into() }
}

/// Everything behind `/files/`, decoded exactly once: `%2F` and `/` mean the same, `%252F` means `%2F`.
fn uid(path: &str) -> Result<String, Error> {
    let raw = path.strip_prefix("/files/").unwrap_or_default();
    let decoded = percent_decode_str(raw)
        .decode_utf8()
        .map_err(|_| bad("uid-not-utf8", "the uid is not UTF-8; percent-encode the bytes of its UTF-8 form"))?;
    if decoded.is_empty() {
        return Err(bad("uid-missing", "the uid is missing: /files/{uid}?created_at=<RFC 3339>"));
    }
    if decoded.len() > MAX_UID_BYTES {
        return Err(Error::UidTooLong { bytes: decoded.len() });
    }
    Ok(decoded.into_owned())
}

fn created_at(query: &str) -> Result<CreatedAt, Error> {
    let missing = "created_at is missing: send the file's own, for example ?created_at=2025-03-10T12:00:00Z";
    let mut values = query.split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name == "created_at").then_some(value)
    });
    let (Some(value), more) = (values.next(), values.next()) else {
        return Err(bad("created-at-missing", missing));
    };
    if more.is_some() {
        return Err(bad("created-at-twice", "created_at is there twice; send it once"));
    }
    // As forms are decoded, which makes a space of the plus of an offset; the parser knows.
    let value = value.replace('+', " ");
    let decoded = percent_decode_str(&value)
        .decode_utf8()
        .map_err(|_| bad("created-at-invalid", "created_at is not UTF-8; expected RFC 3339"))?;
    if decoded.trim().is_empty() {
        return Err(bad("created-at-missing", missing));
    }
    CreatedAt::parse_query(&decoded).map_err(|e| bad("created-at-invalid", format!("created_at: {e}")))
}

/// A header that may stand only once: one that stands there twice says nothing, and is ignored.
fn single(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().map(str::to_owned),
        _ => None,
    }
}

/// A header that is a list. What is not ASCII in it is kept as what it is not: a value that matches nothing of ours.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Vec<_> = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    (!values.is_empty()).then(|| values.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(target: &str) -> Result<Wanted, Error> {
        wanted(&Method::GET, &target.parse().expect("a request target"), &HeaderMap::new())
    }

    #[test]
    fn uids_are_decoded_once_and_exactly() {
        let at = "?created_at=2025-03-10T12:00:00Z";
        for (path, uid) in [
            ("/files/a", "a"),
            ("/files/a/b.txt", "a/b.txt"),
            ("/files/a%2Fb.txt", "a/b.txt"),
            ("/files/a%252Fb", "a%2Fb"),
            ("/files//a//b/", "/a//b/"),
            ("/files/a+b%20c", "a+b c"),
            ("/files/%E6%97%A5%E6%9C%AC", "日本"),
            ("/files/日本/ä", "日本/ä"),
            ("/files/..%2F..%2Fetc", "../../etc"),
            ("/files/a%00b", "a\0b"),
            ("/files/100%", "100%"),
        ] {
            assert_eq!(read(&format!("{path}{at}")).expect(path).uid, uid);
        }
        for path in ["/files/", "/files/%FF%FE", "/files/a%C3"] {
            assert_eq!(read(&format!("{path}{at}")).expect_err(path).status(), 400, "{path}");
        }
        let long = "x".repeat(MAX_UID_BYTES);
        let request = |uid: &str| super::uid(&format!("/files/{uid}"));
        assert_eq!(request(&long).expect("as long as possible").len(), MAX_UID_BYTES);
        assert_eq!(request(&format!("{long}x")).expect_err("too long").status(), 414);
    }

    #[test]
    fn moments_may_have_lost_their_plus() {
        let same = read("/files/a?created_at=2025-03-10T12:00:00%2B05:30").expect("escaped").created_at.unix_micros();
        for query in ["created_at=2025-03-10T12:00:00+05:30", "x=1&created_at=2025-03-10T12%3A00%3A00%2005:30&y"] {
            assert_eq!(read(&format!("/files/a?{query}")).expect(query).created_at.unix_micros(), same);
        }
        for (query, word) in [
            ("", "missing"),
            ("?created_at", "missing"),
            ("?created_at=", "missing"),
            ("?Created_At=2025-03-10", "missing"),
            ("?created_at=yesterday", "2025-03-10T12:00:00Z"),
            ("?created_at=2025-02-30", "does not have that day"),
            ("?created_at=%FF", "UTF-8"),
            ("?created_at=2025-03-10&created_at=2025-03-11", "twice"),
        ] {
            let error = read(&format!("/files/a{query}")).expect_err(query);
            assert!(error.status() == 400 && error.to_string().contains(word), "{query}: {error}");
        }
    }

    #[test]
    fn headers_that_stand_there_twice() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (header::RANGE, "bytes=0-1"),
            (header::RANGE, "bytes=2-3"),
            (header::IF_MODIFIED_SINCE, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (header::IF_MATCH, "\"a\""),
            (header::IF_MATCH, "\"b\""),
            (header::ACCEPT_ENCODING, "gzip"),
            (header::ACCEPT_ENCODING, "zstd"),
        ] {
            headers.append(name, value.parse().expect("a header value"));
        }
        headers.append(header::IF_NONE_MATCH, axum::http::HeaderValue::from_bytes(b"\"\xff\"").expect("legal"));
        let target = "/files/a?created_at=2025-03-10".parse().expect("a request target");
        let wanted = wanted(&Method::GET, &target, &headers).expect("understood");
        assert_eq!((wanted.range, wanted.if_unmodified_since), (None, None));
        assert_eq!(wanted.if_modified_since.as_deref(), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!(wanted.if_match.as_deref(), Some("\"a\",\"b\""));
        assert_eq!(wanted.if_none_match.as_deref(), Some("\"\u{fffd}\""));
        assert!(wanted.accepts.zstd && wanted.accepts.plain);
    }

    #[test]
    fn downloads_may_have_a_name() {
        for (query, name) in
            [("", None), ("&download", Some("")), ("&download=a+b%2Fc", Some("a b/c")), ("&Download=x", None)]
        {
            let target = format!("/files/a?created_at=2025-03-10{query}").parse().expect("a request target");
            assert_eq!(download(&target).expect("understood").as_deref(), name, "{query}");
        }
    }
}
