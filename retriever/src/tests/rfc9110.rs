//! What RFC 9110 (HTTP semantics) asks for, point by point, against a listening retriever. Each line names the section.
//! Every case is asked by hand and by curl.

use des_shared::config::Auth;
use des_shared::layout::bigfile_key;
use des_shared::segment::ShardFormat;
use des_shared::shard::ShardWriter;
use sha2::{Digest, Sha256};

use super::support::{Place, Rig, Server, content, noise, put_in_all_slots, v3};
use super::wire::{Asked, Client, Reply};

const AT: &str = "?created_at=2025-03-10T12:00:00Z";
/// When the shards' jobs were accepted, and the same as HTTP has it.
const SEQUENCE: u64 = 1_741_608_000_123;
const MODIFIED: &str = "Mon, 10 Mar 2025 12:00:00 GMT";
const EARLIER: &str = "Mon, 10 Mar 2025 11:59:59 GMT";
const LATER: &str = "Mon, 10 Mar 2025 12:00:01 GMT";

/// A listening retriever with some files and what the cases need to know of them.
struct Fixture {
    server: Server,
    address: String,
    text: Vec<u8>,
    noise: Vec<u8>,
    movie: Vec<u8>,
    /// Entity tags of text.txt as it is and compressed, of noise.bin and of movie.mp4.
    tag: String,
    zstd_tag: String,
    noise_tag: String,
    movie_tag: String,
    _place: Place,
}

impl Fixture {
    async fn new() -> Self {
        let place = Place::new();
        let text = "the same words again and again ".repeat(5_000).into_bytes();
        let (noise, movie) = (noise(10_000), noise(1_000_000));
        let files = content(&[
            ("text.txt", &text),
            ("noise.bin", &noise),
            ("empty", b""),
            ("page.html", b"<script>1</script>"),
            ("gone.txt", b"secret"),
        ]);
        put_in_all_slots(&place, "0000", &v3(SEQUENCE, &files));
        let sha256: [u8; 32] = Sha256::digest(&movie).into();
        let mut writer = ShardWriter::new(ShardFormat::V3, None, SEQUENCE).expect("a writer");
        let mut shard = writer.header().to_vec();
        writer.append_bigfile("movie.mp4", sha256, movie.len() as u64, None).expect("appended");
        shard.extend_from_slice(&writer.finish().expect("finished"));
        put_in_all_slots(&place, "0001", &shard);
        place.put(&bigfile_key("_bigFiles", &sha256), &movie);
        let mut rig = Rig::new(&place, 4);
        rig.config.deleters = Some(Auth::new(vec!["a-key".to_owned()]));
        let server = rig.serve().await;
        let address = server.url("").trim_start_matches("http://").to_owned();
        let tag = async |file: &str, coding: &str| {
            let headers = vec![("Accept-Encoding", coding.to_owned())];
            let asked = Asked { method: "HEAD", target: format!("/files/{file}{AT}"), headers };
            Client::ByHand.ask(&address, &asked).await.header("etag").expect("a tag").to_owned()
        };
        let (plain, zstd) = (tag("text.txt", "identity").await, tag("text.txt", "zstd").await);
        let (noise_tag, movie_tag) = (tag("noise.bin", "").await, tag("movie.mp4", "").await);
        let target = format!("/files/gone.txt{AT}&deleted_by=ann&reason=asked");
        let asked = Asked { method: "DELETE", target, headers: vec![("X-API-Key", "a-key".to_owned())] };
        assert_eq!(Client::ByHand.ask(&address, &asked).await.status, 200);
        Self { server, address, text, noise, movie, tag: plain, zstd_tag: zstd, noise_tag, movie_tag, _place: place }
    }
}

/// One line of the table.
struct Case {
    section: &'static str,
    asked: Asked,
    status: u16,
    headers: Vec<(&'static str, Option<String>)>,
    body: Option<Vec<u8>>,
}

fn get(section: &'static str, file: &str) -> Case {
    case(section, "GET", &format!("/files/{file}{AT}"))
}

fn head(section: &'static str, file: &str) -> Case {
    case(section, "HEAD", &format!("/files/{file}{AT}"))
}

fn case(section: &'static str, method: &'static str, target: &str) -> Case {
    let asked = Asked { method, target: target.to_owned(), headers: Vec::new() };
    Case { section, asked, status: 0, headers: Vec::new(), body: None }
}

impl Case {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.asked.headers.push((name, value.into()));
        self
    }

    fn is(self, status: u16) -> Self {
        Self { status, ..self }
    }

    fn has(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, Some(value.into())));
        self
    }

    fn lacks(mut self, name: &'static str) -> Self {
        self.headers.push((name, None));
        self
    }

    fn body(self, body: impl AsRef<[u8]>) -> Self {
        Self { body: Some(body.as_ref().to_vec()), ..self }
    }

    fn check(&self, client: Client, reply: &Reply) {
        let Self { section, asked, status, .. } = self;
        let shown =
            format!("RFC 9110 section {section}: {asked:?} by {client:?} gave {} {:?}", reply.status, reply.headers);
        assert_eq!(reply.status, *status, "{shown}");
        for (name, value) in &self.headers {
            assert_eq!(reply.header(name), value.as_deref(), "{name}: {shown}");
        }
        if let Some(body) = &self.body {
            assert!(reply.body == *body, "another body of {} bytes: {shown}", reply.body.len());
        }
        // What holds for every answer.
        assert!(reply.header("date").is_some_and(|date| date.ends_with(" GMT")), "6.6.1: {shown}");
        match (asked.method, reply.status) {
            ("HEAD", _) | (_, 304 | 204) => assert!(reply.body.is_empty(), "9.3.2, 15.4.5: {shown}"),
            (_, 400..) => {
                assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{shown}");
                let problem: serde_json::Value = serde_json::from_slice(&reply.body).expect("JSON");
                assert_eq!(problem["status"], reply.status, "{shown}");
                assert_eq!(reply.header("cache-control"), Some("no-store"), "{shown}");
            }
            _ => {}
        }
        if asked.method != "HEAD" && !matches!(reply.status, 304 | 204) {
            assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()), "8.6: {shown}");
        }
    }
}

async fn check(fixture: Fixture, cases: Vec<Case>) {
    for case in &cases {
        for client in [Client::ByHand, Client::Curl] {
            case.check(client, &client.ask(&fixture.address, &case.asked).await);
        }
    }
    fixture.server.stop().await;
}

#[tokio::test]
async fn methods_and_targets() {
    let f = Fixture::new().await;
    let allow = "GET, HEAD, DELETE, OPTIONS";
    let cases = vec![
        get("9.3.1 GET", "text.txt").is(200).body(&f.text),
        head("9.3.2 HEAD", "text.txt").is(200).has("content-length", f.text.len().to_string()),
        head("9.3.2 HEAD of what is not there", "nothing").is(404),
        case("9.1 method that is not allowed, 15.5.6", "PUT", "/files/text.txt").is(405).has("allow", allow),
        case("9.1 POST", "POST", "/files/text.txt").is(405).has("allow", allow),
        case("9.1 PATCH", "PATCH", "/files/text.txt").is(405).has("allow", allow),
        case("9.3.8 TRACE", "TRACE", "/files/text.txt").is(405).has("allow", allow),
        case("9.1 unknown method", "BREW", "/files/text.txt").is(405).has("allow", allow),
        case("9.1 method names are case-sensitive", "get", "/files/text.txt").is(405).has("allow", allow),
        case("9.3.7 OPTIONS of a file", "OPTIONS", "/files/text.txt").is(204).has("allow", allow),
        case("9.3.7 OPTIONS of the server", "OPTIONS", "*").is(204).has("allow", allow),
        case("9.3.7 OPTIONS of another resource", "OPTIONS", "/health").is(204).has("allow", "GET, HEAD, OPTIONS"),
        case("10.2.1 Allow of another resource", "POST", "/metrics").is(405).has("allow", "GET, HEAD, OPTIONS"),
        case("10.2.1 Allow of the list", "DELETE", "/tombstones").is(405).has("allow", "GET, HEAD, OPTIONS"),
        case("15.5.5 no such resource", "GET", "/").is(404),
        case("15.5.5 no such resource", "GET", "/file/text.txt").is(404),
        case("15.5.5 no uid", "GET", "/files/").is(404),
        get("15.5.5 no such file", "nothing").is(404),
        get("15.5.11 deleted", "gone.txt").is(410).lacks("etag"),
        head("15.5.11 deleted", "gone.txt").is(410),
        case("15.5.1 a parameter is missing", "GET", "/files/text.txt").is(400),
        case("15.5.1 not UTF-8", "GET", &format!("/files/%FF{AT}")).is(400),
        case("7.1 absolute form", "GET", &format!("http://{}/files/text.txt{AT}", f.address)).is(200).body(&f.text),
        case("4.2.3 equivalent encodings", "GET", &format!("/files/%74ext%2Etxt{AT}")).is(200).body(&f.text),
        get("5.1 names of fields in any case", "noise.bin").with("rAnGe", "bytes=0-1").is(206).body(&f.noise[..2]),
        get("6.4 content of a GET is ignored", "text.txt").with("Content-Length", "0").is(200),
    ];
    check(f, cases).await;
}

#[tokio::test]
async fn representations() {
    let f = Fixture::new().await;
    let text = |section| get(section, "text.txt");
    let policy = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:";
    let plain = |case: Case| case.is(200).lacks("content-encoding").has("etag", &f.tag).body(&f.text);
    let zstd = |case: Case| case.is(200).has("content-encoding", "zstd").has("etag", &f.zstd_tag);
    let cases = vec![
        text("8.3 Content-Type").is(200).has("content-type", "text/plain").has("x-content-type-options", "nosniff"),
        get("8.3 Content-Type", "noise.bin").is(200).has("content-type", "application/octet-stream"),
        get("8.3 Content-Type", "movie.mp4").is(200).has("content-type", "video/mp4").body(&f.movie),
        get("8.6 Content-Length of nothing", "empty").is(200).has("content-length", "0").body(""),
        text("8.8.2 Last-Modified").is(200).has("last-modified", MODIFIED),
        get("8.8.2 Last-Modified", "movie.mp4").is(200).has("last-modified", MODIFIED),
        text("8.8.3 ETag").is(200).has("etag", &f.tag),
        plain(text("12.5.3 nothing said")),
        plain(text("12.5.3 identity").with("Accept-Encoding", "identity")),
        plain(text("12.5.3 another coding").with("Accept-Encoding", "gzip, br")),
        plain(text("12.5.3 a star is no zstd").with("Accept-Encoding", "*")),
        plain(text("12.5.3 weight 0").with("Accept-Encoding", "zstd;q=0")),
        plain(text("12.5.3 plain bytes liked more").with("Accept-Encoding", "zstd;q=0.5, identity;q=0.8")),
        plain(text("12.4.2 weights in a browser's media request").with("Accept-Encoding", "identity;q=1, *;q=0")),
        zstd(text("12.5.3 zstd").with("Accept-Encoding", "zstd")),
        zstd(text("12.5.3 zstd among others").with("Accept-Encoding", "gzip, deflate, br, zstd")),
        zstd(text("12.5.3 in two lines").with("Accept-Encoding", "gzip").with("Accept-Encoding", "ZSTD;Q=0.1")),
        zstd(text("12.5.3 plain bytes refused").with("Accept-Encoding", "zstd, identity;q=0")),
        zstd(text("12.5.3 a star, plain bytes refused").with("Accept-Encoding", "*, identity;q=0")),
        text("12.5.3 everything refused, 15.5.7").with("Accept-Encoding", "*;q=0").is(406),
        get("12.5.3 no such form", "noise.bin").with("Accept-Encoding", "zstd, identity;q=0").is(406),
        get("12.5.3 not compressed", "noise.bin").with("Accept-Encoding", "zstd").is(200).lacks("content-encoding"),
        text("12.5.5 Vary").is(200).has("vary", "Accept-Encoding"),
        text("12.5.5 Vary").with("Accept-Encoding", "zstd").is(200).has("vary", "Accept-Encoding"),
        text("RFC 9111 section 5.2 Cache-Control").is(200).has("cache-control", "no-cache"),
        text("14.3 Accept-Ranges").is(200).has("accept-ranges", "bytes"),
        get("content that could run", "page.html").is(200).has("content-security-policy", policy),
        get("content that cannot run", "movie.mp4").is(200).lacks("content-security-policy"),
        text("RFC 6266").is(200).lacks("content-disposition"),
        get("RFC 6266", &format!("text.txt{AT}&download&x="))
            .is(200)
            .has("content-disposition", "attachment; filename=\"text.txt\""),
        get("RFC 6266, RFC 8187", &format!("text.txt{AT}&download=%C3%BC.txt&x="))
            .is(200)
            .has("content-disposition", "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%BC.txt"),
        get("RFC 6266", &format!("text.txt{AT}&download=a%0D%0AX:y&x="))
            .is(200)
            .has("content-disposition", "attachment; filename=\"a__X:y\"")
            .lacks("x"),
        get("a parameter twice", &format!("text.txt{AT}&download=a&download=b&x=")).is(400),
    ];
    let cases: Vec<Case> = cases.into_iter().map(once_at).collect();
    assert!(f.tag.starts_with('"') && f.tag != f.zstd_tag, "8.8.3.3: one tag for each encoding");
    check(f, cases).await;
}

/// `get` puts the moment behind the file; a case that has more parameters has it already.
fn once_at(mut case: Case) -> Case {
    if let Some(target) = case.asked.target.strip_suffix(&format!("&x={AT}")) {
        case.asked.target = target.to_owned();
    }
    case
}

#[tokio::test]
async fn conditions() {
    let f = Fixture::new().await;
    let get = |section| get(section, "text.txt");
    let (tag, weak, list) = (f.tag.as_str(), format!("W/{}", f.tag), format!("\"x\", {}", f.tag));
    let known =
        |case: Case| case.is(304).has("etag", tag).has("vary", "Accept-Encoding").has("cache-control", "no-cache");
    let zoned =
        |name| get("13.1 of the compressed form").with("Accept-Encoding", "zstd").with(name, f.zstd_tag.as_str());
    let cases = vec![
        get("13.1.1 If-Match").with("If-Match", tag).is(200),
        get("13.1.1 If-Match: a list").with("If-Match", &list).is(200),
        get("13.1.1 If-Match: two lines").with("If-Match", "\"x\"").with("If-Match", tag).is(200),
        get("13.1.1 If-Match: any").with("If-Match", "*").is(200),
        get("13.1.1 If-Match: another").with("If-Match", "\"x\"").is(412).has("etag", tag),
        get("13.1.1 If-Match compares strongly").with("If-Match", &weak).is(412),
        get("13.1.1 If-Match: no tag at all").with("If-Match", "x").is(412),
        head("13.1.1 If-Match of HEAD", "text.txt").with("If-Match", "\"x\"").is(412),
        zoned("If-Match").is(200),
        known(get("13.1.2 If-None-Match").with("If-None-Match", tag)),
        known(get("13.1.2 If-None-Match: a list").with("If-None-Match", &list)),
        known(get("13.1.2 If-None-Match: any").with("If-None-Match", "*")),
        known(get("13.1.2 If-None-Match compares weakly").with("If-None-Match", &weak)),
        known(head("13.1.2 If-None-Match of HEAD", "text.txt").with("If-None-Match", tag)),
        get("13.1.2 If-None-Match: another").with("If-None-Match", "\"x\"").is(200),
        get("13.1.2 If-None-Match: another encoding's").with("If-None-Match", &f.zstd_tag).is(200),
        zoned("If-None-Match").is(304).has("etag", &f.zstd_tag),
        known(get("13.1.3 If-Modified-Since").with("If-Modified-Since", MODIFIED)),
        known(get("13.1.3 If-Modified-Since").with("If-Modified-Since", LATER)),
        get("13.1.3 If-Modified-Since: changed").with("If-Modified-Since", EARLIER).is(200),
        get("13.1.3 If-Modified-Since: no date").with("If-Modified-Since", "yesterday").is(200),
        get("13.1.3 more than one").with("If-Modified-Since", LATER).with("If-Modified-Since", LATER).is(200),
        known(get("5.6.7 obsolete date").with("If-Modified-Since", "Monday, 10-Mar-25 12:00:00 GMT")),
        known(get("5.6.7 obsolete date").with("If-Modified-Since", "Mon Mar 10 12:00:00 2025")),
        get("13.1.4 If-Unmodified-Since").with("If-Unmodified-Since", MODIFIED).is(200),
        get("13.1.4 If-Unmodified-Since: changed").with("If-Unmodified-Since", EARLIER).is(412),
        get("13.1.4 If-Unmodified-Since: no date").with("If-Unmodified-Since", "0").is(200),
        get("13.2.2 If-Match before If-Unmodified-Since")
            .with("If-Match", tag)
            .with("If-Unmodified-Since", EARLIER)
            .is(200),
        get("13.2.2 If-Match before all").with("If-Match", "\"x\"").with("If-None-Match", tag).is(412),
        get("13.2.2 If-Unmodified-Since first").with("If-Unmodified-Since", EARLIER).with("If-None-Match", tag).is(412),
        known(get("13.2.2 then If-None-Match").with("If-Match", tag).with("If-None-Match", tag)),
        get("13.2.2 If-None-Match alone").with("If-None-Match", "\"x\"").with("If-Modified-Since", LATER).is(200),
        known(get("13.2.2 before ranges").with("If-None-Match", tag).with("Range", "bytes=0-1")),
        get("13.2.2 before ranges").with("If-Match", "\"x\"").with("Range", "bytes=0-1").is(412),
        super::rfc9110::get("13.2.1 not of what is not there", "nothing").with("If-Match", "*").is(404),
        super::rfc9110::get("13.2.1 not of what is not there", "nothing").with("If-None-Match", "*").is(404),
        super::rfc9110::get("13.2.1 not of what is gone", "gone.txt").with("If-Modified-Since", LATER).is(410),
    ];
    check(f, cases).await;
}

#[tokio::test]
async fn ranges() {
    let f = Fixture::new().await;
    let get = |section| get(section, "noise.bin");
    let tag = f.noise_tag.as_str();
    let size = f.noise.len();
    let part = |case: Case, from: usize, to: usize| {
        let value = format!("bytes {from}-{}/{size}", to - 1);
        case.is(206).has("content-range", value).has("etag", tag).body(&f.noise[from..to])
    };
    let whole = |case: Case| case.is(200).lacks("content-range").body(&f.noise);
    let outside = |case: Case| case.is(416).has("content-range", format!("bytes */{size}"));
    let movie = |section| super::rfc9110::get(section, "movie.mp4");
    let text = |section| super::rfc9110::get(section, "text.txt");
    let cases = vec![
        part(get("14.1.2 first bytes").with("Range", "bytes=0-99"), 0, 100),
        part(get("14.1.2 in the middle").with("Range", "bytes=100-199"), 100, 200),
        part(get("14.1.2 one byte").with("Range", "bytes=0-0"), 0, 1),
        part(get("14.1.2 to the end").with("Range", "bytes=9900-"), 9_900, size),
        part(get("14.1.2 beyond the end").with("Range", "bytes=9900-20000"), 9_900, size),
        part(get("14.1.2 suffix").with("Range", "bytes=-100"), 9_900, size),
        part(get("14.1.2 longer suffix").with("Range", "bytes=-20000"), 0, size),
        part(get("14.1 units in any case").with("Range", "Bytes=0-99"), 0, 100),
        part(get("15.3.7 all of it as a part").with("Range", "bytes=0-"), 0, size),
        outside(get("15.5.17 behind the end").with("Range", "bytes=10000-")),
        outside(get("15.5.17 behind the end").with("Range", "bytes=99999999999999999999999-")),
        outside(get("14.1.2 suffix of nothing").with("Range", "bytes=-0")),
        whole(get("14.1.2 last before first").with("Range", "bytes=5-3")),
        whole(get("14.2 unknown unit").with("Range", "rows=0-1")),
        whole(get("14.2 nonsense").with("Range", "bytes=a-b")),
        whole(get("14.2 nonsense").with("Range", "bytes")),
        whole(get("14.2 several ranges").with("Range", "bytes=0-1, 5-6")),
        whole(get("5.3 two lines of one value").with("Range", "bytes=0-1").with("Range", "bytes=5-6")),
        head("14.2 HEAD has no ranges", "noise.bin")
            .with("Range", "bytes=0-1")
            .is(200)
            .has("content-length", size.to_string()),
        part(get("13.1.5 If-Range: tag").with("Range", "bytes=0-99").with("If-Range", tag), 0, 100),
        part(get("13.1.5 If-Range: date").with("Range", "bytes=0-99").with("If-Range", MODIFIED), 0, 100),
        whole(get("13.1.5 If-Range: another").with("Range", "bytes=0-99").with("If-Range", "\"x\"")),
        whole(get("13.1.5 If-Range: weak").with("Range", "bytes=0-99").with("If-Range", format!("W/{tag}"))),
        whole(get("13.1.5 If-Range: not that date").with("Range", "bytes=0-99").with("If-Range", LATER)),
        whole(get("13.1.5 If-Range: not that date").with("Range", "bytes=0-99").with("If-Range", EARLIER)),
        whole(get("13.1.5 If-Range: nonsense").with("Range", "bytes=0-99").with("If-Range", "x")),
        whole(
            get("13.1.5 of another version, 416 is no answer").with("Range", "bytes=10000-").with("If-Range", "\"x\""),
        ),
        whole(get("13.1.5 without Range").with("If-Range", tag)),
        super::rfc9110::get("15.5.17 of nothing", "empty")
            .with("Range", "bytes=0-")
            .is(416)
            .has("content-range", "bytes */0"),
        super::rfc9110::get("14.1.2 the end of nothing", "empty").with("Range", "bytes=-5").is(200).body(""),
        text("14.2 of a compressed entry").with("Range", "bytes=4-7").is(206).body("same").has("etag", &f.tag),
        text("14.2 zstd taken, part of plain bytes")
            .with("Accept-Encoding", "zstd")
            .with("Range", "bytes=4-7")
            .is(206)
            .lacks("content-encoding")
            .has("etag", &f.tag)
            .body("same"),
        text("14.2 may be ignored: only zstd taken")
            .with("Accept-Encoding", "zstd, identity;q=0")
            .with("Range", "bytes=4-7")
            .is(200)
            .has("content-encoding", "zstd")
            .lacks("content-range"),
        text("13.1.5 another encoding's tag")
            .with("Accept-Encoding", "zstd")
            .with("Range", "bytes=4-7")
            .with("If-Range", &f.zstd_tag)
            .is(200)
            .body(&f.text),
        movie("14.1.2 of a big file").with("Range", "bytes=262143-524289").is(206).body(&f.movie[262_143..524_290]),
        movie("14.1.2 of a big file")
            .with("Range", "bytes=-10")
            .is(206)
            .body(&f.movie[999_990..])
            .has("etag", &f.movie_tag),
        movie("15.5.17 of a big file").with("Range", "bytes=1000000-").is(416).has("content-range", "bytes */1000000"),
        movie("15.3.7 all of a big file").with("Range", "bytes=0-").is(206).body(&f.movie),
    ];
    check(f, cases).await;
}

/// 9.3.2: the header fields of HEAD are those of GET.
#[tokio::test]
async fn head_says_what_get_says() {
    let f = Fixture::new().await;
    for file in ["text.txt", "noise.bin", "empty", "page.html", "movie.mp4", "nothing", "gone.txt"] {
        for (name, value) in [
            ("Accept-Encoding", "identity"),
            ("Accept-Encoding", "zstd"),
            ("Accept-Encoding", "*;q=0"),
            ("If-None-Match", "*"),
            ("If-Match", "\"x\""),
        ] {
            let ask = async |method| {
                let target = format!("/files/{file}{AT}&download");
                let asked = Asked { method, target, headers: vec![(name, value.to_owned())] };
                let mut reply = Client::ByHand.ask(&f.address, &asked).await;
                // A 304 of GET may leave its length out; that of HEAD has the file's.
                let length = reply.header("content-length").unwrap_or_default().to_owned();
                assert!(reply.status != 304 || file == "empty" || length != "0", "{reply:?}");
                reply.headers.retain(|(name, _)| name != "date" && (reply.status != 304 || name != "content-length"));
                (reply.status, reply.headers)
            };
            assert_eq!(ask("HEAD").await, ask("GET").await, "{file}, {name}: {value}");
        }
    }
    f.server.stop().await;
}
