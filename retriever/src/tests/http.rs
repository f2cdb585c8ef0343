//! What goes over the wire.

use std::time::Duration;

use des_shared::config::Auth;
use des_shared::layout::bigfile_key;
use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::shard::{Codec, Entry, Inline, Location, ShardWriter, decode_payload};
use des_shared::store::StoreErrorKind;
use des_shared::store::faults::{Fault, Rule};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::support::{NOON, Place, Rig, content, key, many, noise, options, pack, put_in_all_slots, v3};

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).unwrap_or_else(|| panic!("{name} is there")).to_str().expect("text")
}

async fn problem(response: Response) -> Value {
    assert_eq!(header(&response, "content-type"), "application/problem+json");
    let status = response.status().as_u16();
    let problem: Value = response.json().await.expect("JSON");
    assert_eq!(problem["status"], status);
    problem
}

#[tokio::test]
async fn files_come_with_their_headers() {
    let place = Place::new();
    let files = content(&[("a/b ü.json", b"{}"), ("empty", b""), ("plain.txt", b"some text, some text, some text")]);
    put_in_all_slots(&place, "0000", &v3(1, &files));
    let server = Rig::new(&place, 4).serve().await;
    let client = Client::new();
    for path in ["a/b%20%C3%BC.json", "a%2Fb%20%C3%BC.json", "a/b%20ü.json", "%61/b%20%c3%bc.json"] {
        let url = server.url(&format!("/files/{path}?created_at={NOON}"));
        let response = client.get(&url).send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(header(&response, "content-type"), "application/json");
        assert_eq!(header(&response, "x-content-type-options"), "nosniff");
        assert_eq!(header(&response, "vary"), "Accept-Encoding");
        assert_eq!(header(&response, "content-length"), "2");
        assert!(header(&response, "etag").starts_with('"'));
        assert_eq!(response.bytes().await.expect("the body"), "{}");
    }
    let url = server.url(&format!("/files/empty?created_at={NOON}"));
    let response = client.get(&url).send().await.expect("an answer");
    assert_eq!((response.status(), header(&response, "content-length")), (StatusCode::OK, "0"));
    assert_eq!(header(&response, "content-type"), "application/octet-stream");
    // The same for HEAD, without a body and without reading the payload.
    place.calls();
    let url = server.url(&format!("/files/plain.txt?created_at={NOON}"));
    let response = client.head(&url).send().await.expect("an answer");
    assert_eq!((response.status(), header(&response, "content-length")), (StatusCode::OK, "31"));
    assert_eq!(header(&response, "content-type"), "text/plain");
    assert_eq!(response.bytes().await.expect("no body"), "");
    let reads = place.calls().iter().filter(|c| matches!(c.range, Some(des_shared::store::ByteRange::Span(_)))).count();
    assert_eq!(reads, 0);
    server.stop().await;
}

#[tokio::test]
async fn offsets_need_no_escaping() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
    let server = Rig::new(&place, 8).serve().await;
    for moment in [
        "2025-03-10T12:00:00+00:00",
        "2025-03-10T12:00:00%2B00:00",
        "2025-03-10T14:30:00+02:30",
        "2025-03-10T07:00:00-05:00",
        "2025-03-09T23:00:00-05:00",
        "2025-03-10",
        "2025-03-10T12:00:00.123456Z",
    ] {
        // Sent as it is: the client must not repair the query.
        let text = raw_get(&server.url(""), &format!("/files/a?created_at={moment}")).await;
        assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("here"), "{moment}: {text}");
    }
    let text = raw_get(&server.url(""), "/files/\u{65e5}\u{672c}?created_at=2025-03-10").await;
    assert!(text.starts_with("HTTP/1.1 404 "), "raw UTF-8 in the path is understood: {text}");
    let text = raw_get(&server.url(""), &format!("/files/{}?created_at=2025-03-10", "x".repeat(70_000))).await;
    assert!(text.starts_with("HTTP/1.1 414 "), "{}", &text[..60]);
    server.stop().await;
}

async fn raw_get(base: &str, target: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = base.strip_prefix("http://").expect("http");
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut text = Vec::new();
    // A server that refuses a long target may close before it has read all of it.
    if let Err(e) = stream.read_to_end(&mut text).await {
        assert!(!text.is_empty(), "{e}");
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn wrong_requests_are_told_what_would_be_right() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
    let server = Rig::new(&place, 8).serve().await;
    let client = Client::new();
    for (method, target, status, word) in [
        ("GET", "/files/a", 400, "created_at is missing"),
        ("HEAD", "/files/a", 400, ""),
        ("GET", "/files/a?created_at=yesterday", 400, "2025-03-10T12:00:00Z"),
        ("GET", "/files/%FF?created_at=2025-03-10", 400, "UTF-8"),
        ("GET", "/files/?created_at=2025-03-10", 404, "/files/{uid}"),
        ("GET", "/files/b?created_at=2025-03-10", 404, "\"b\""),
        ("GET", "/files?created_at=2025-03-10", 404, "/files/{uid}"),
        ("GET", "/", 404, "/files/{uid}"),
        ("POST", "/files/a?created_at=2025-03-10", 405, "GET, HEAD, DELETE"),
        ("DELETE", "/files/a?created_at=2025-03-10", 403, "DES_DELETE_API_KEY"),
        ("PUT", "/files/a/b", 405, "GET, HEAD, DELETE"),
    ] {
        let method: Method = method.parse().expect("a method");
        let response = client.request(method.clone(), server.url(target)).send().await.expect("an answer");
        assert_eq!(response.status(), status, "{method} {target}");
        if status == 405 {
            assert_eq!(header(&response, "allow"), "GET, HEAD, DELETE, OPTIONS");
        }
        if method != Method::HEAD {
            let problem = problem(response).await;
            assert!(problem["detail"].as_str().expect("text").contains(word), "{target}: {problem}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn conditions_and_ranges() {
    let place = Place::new();
    let raw = noise(10_000);
    place.put(&key("a", 0), v3(1, &content(&[("a", &raw), ("z", b"")])));
    let rig = Rig::new(&place, 8);
    let server = rig.serve().await;
    let client = Client::new();
    let url = server.url(&format!("/files/a?created_at={NOON}"));
    let get = |name: &'static str, value: String| client.get(&url).header(name, value).send();
    let etag = header(&client.get(&url).send().await.expect("an answer"), "etag").to_owned();
    for value in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()] {
        let response = get("if-none-match", value).await.expect("an answer");
        assert_eq!((response.status(), header(&response, "etag")), (StatusCode::NOT_MODIFIED, etag.as_str()));
        assert_eq!(response.bytes().await.expect("no body"), "");
    }
    assert_eq!(get("if-none-match", "\"other\"".to_owned()).await.expect("an answer").status(), 200);
    let response = get("range", "bytes=100-199".to_owned()).await.expect("an answer");
    assert_eq!(response.status(), 206);
    assert_eq!(header(&response, "content-range"), "bytes 100-199/10000");
    assert_eq!(header(&response, "content-length"), "100");
    assert_eq!(response.bytes().await.expect("the part"), &raw[100..200]);
    let response = get("range", "bytes=-1".to_owned()).await.expect("an answer");
    assert_eq!(response.bytes().await.expect("the part"), &raw[9_999..]);
    let response = get("range", "bytes=10000-".to_owned()).await.expect("an answer");
    assert_eq!((response.status().as_u16(), header(&response, "content-range")), (416, "bytes */10000"));
    problem(response).await;
    let both = |known: &str| client.get(&url).header("range", "bytes=0-0").header("if-range", known).send();
    assert_eq!(both(&etag).await.expect("an answer").status(), 206);
    for known in ["\"other\"", &format!("W/{etag}"), "Mon, 10 Mar 2025 12:00:00 GMT"] {
        assert_eq!(both(known).await.expect("an answer").status(), 200, "{known}");
    }
    // The file is packed again with other bytes: another tag.
    place.put(&key("a", 1), v3(2, &content(&[("a", b"new")])));
    rig.clock.advance(Duration::from_secs(6));
    let response = get("if-none-match", etag.clone()).await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert_ne!(header(&response, "etag"), etag);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_zstd_gets_the_stored_frame() {
    let place = Place::new();
    let raw = "the same words again and again ".repeat(5_000).into_bytes();
    let files = content(&[("big.txt", &raw), ("tiny", b"x")]);
    put_in_all_slots(&place, "0000", &v3(1, &files));
    let server = Rig::new(&place, 4).serve().await;
    let client = Client::new();
    let url = server.url(&format!("/files/big.txt?created_at={NOON}"));
    let plain = client.get(&url).send().await.expect("an answer");
    let plain_tag = header(&plain, "etag").to_owned();
    assert!(plain.headers().get("content-encoding").is_none());
    assert_eq!(plain.bytes().await.expect("the body"), raw);
    let response = client.get(&url).header("accept-encoding", "gzip, zstd").send().await.expect("an answer");
    assert_eq!(header(&response, "content-encoding"), "zstd");
    assert_eq!(header(&response, "vary"), "Accept-Encoding");
    assert_ne!(header(&response, "etag"), plain_tag);
    let length: u64 = header(&response, "content-length").parse().expect("a number");
    let frame = response.bytes().await.expect("the frame");
    assert!(frame.len() as u64 == length && frame.len() < raw.len() / 10);
    let inline = Inline { offset: 0, stored_len: length, codec: Codec::Zstd, raw_len: raw.len() as u64, crc32c: None };
    let entry = Entry { uid: String::new(), location: Location::Inline(inline), meta: None };
    assert_eq!(decode_payload(&entry, frame, None).expect("a frame"), raw);
    // HEAD says the same; ranges are of the file itself; what is not compressed is sent as it is.
    let head = client.head(&url).header("accept-encoding", "zstd").send().await.expect("an answer");
    assert_eq!(header(&head, "content-length"), length.to_string());
    let part = client.get(&url).header("accept-encoding", "zstd").header("range", "bytes=4-7").send().await;
    let part = part.expect("an answer");
    assert_eq!((part.status().as_u16(), header(&part, "etag")), (206, plain_tag.as_str()));
    assert_eq!(part.bytes().await.expect("the part"), "same");
    let url = server.url(&format!("/files/tiny?created_at={NOON}"));
    let tiny = client.get(&url).header("accept-encoding", "zstd").send().await.expect("an answer");
    assert!(tiny.headers().get("content-encoding").is_none());
    server.stop().await;
    // Frames that need the shard's dictionary, and those of version 2, which nothing protects, are decompressed here.
    let dictionary = many(600);
    for shard in [v3(1, &dictionary), pack(&options(ShardFormat::V2, CodecChoice::Zstd), 1, &files, None)] {
        put_in_all_slots(&place, "0000", &shard);
        let server = Rig::new(&place, 4).serve().await;
        let mut seen = 0;
        for uid in ["folder/file-00001.json", "big.txt"] {
            let url = server.url(&format!("/files/{uid}?created_at={NOON}"));
            let response = client.get(&url).header("accept-encoding", "zstd").send().await.expect("an answer");
            if response.status() == 200 {
                assert!(response.headers().get("content-encoding").is_none());
                seen += 1;
            }
        }
        assert_eq!(seen, 1);
        server.stop().await;
    }
}

#[tokio::test]
async fn the_media_type_can_be_in_the_meta() {
    let place = Place::new();
    let meta = Some(r#"{"content_type":"text/csv; charset=utf-8"}"#);
    let shard = pack(&options(ShardFormat::V3, CodecChoice::Zstd), 1, &content(&[("a.json", b"1,2")]), meta);
    place.put(&key("a.json", 0), shard);
    let server = Rig::new(&place, 8).serve().await;
    let response = Client::new().get(server.url("/files/a.json?created_at=2025-03-10")).send().await.expect("answer");
    assert_eq!(header(&response, "content-type"), "text/csv; charset=utf-8");
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_big_file_breaks_the_connection_off() {
    let place = Place::new();
    let raw = noise(2_000_000);
    let sha256: [u8; 32] = Sha256::digest(&raw).into();
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 1).expect("a writer");
    let mut out = writer.header().to_vec();
    writer.append_bigfile("movie.mp4", sha256, raw.len() as u64, None).expect("appended");
    out.extend_from_slice(&writer.finish().expect("finished"));
    place.put(&key("movie.mp4", 0), out);
    place.put(&bigfile_key("_bigFiles", &sha256), &raw);
    let server = Rig::new(&place, 8).serve().await;
    let client = Client::new();
    let url = server.url(&format!("/files/movie.mp4?created_at={NOON}"));
    let response = client.get(&url).send().await.expect("an answer");
    assert_eq!((header(&response, "content-length"), header(&response, "content-type")), ("2000000", "video/mp4"));
    assert_eq!(response.bytes().await.expect("whole"), raw);
    let head = client.head(&url).send().await.expect("an answer");
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, "2000000"));
    let mut wrong = raw.clone();
    wrong[1_999_999] ^= 1;
    place.put(&bigfile_key("_bigFiles", &sha256), &wrong);
    let response = client.get(&url).send().await.expect("the headers");
    assert_eq!(response.status(), 200);
    assert!(response.bytes().await.is_err(), "the body must not look whole");
    let metrics = client.get(server.url("/metrics")).send().await.expect("metrics").text().await.expect("text");
    assert!(metrics.contains("des_responses_broken_off_total 1"), "{metrics}");
    server.stop().await;
}

#[tokio::test]
async fn health_and_metrics_tell_the_truth() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
    let server = Rig::new(&place, 8).serve().await;
    let client = Client::new();
    let get = |path: &str| client.get(server.url(path)).send();
    let ready = get("/health/ready").await.expect("an answer");
    assert_eq!(ready.status(), 200);
    assert_eq!(ready.json::<Value>().await.expect("JSON")["checks"]["zone default"], "ok");
    for path in ["/files/a?created_at=2025-03-10", "/files/a?created_at=2025-03-10", "/files/b?created_at=2025-03-10"] {
        get(path).await.expect("an answer");
    }
    place.faults.add(Rule::always(Fault::Before(StoreErrorKind::Denied)));
    // An answer is believed for a second.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while get("/health/ready").await.expect("an answer").status() != 503 {
        assert!(tokio::time::Instant::now() < deadline, "it does not notice");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(get("/health/live").await.expect("an answer").status(), 200);
    let response = get("/files/a?created_at=2025-03-10").await.expect("an answer");
    assert_eq!(header(&response, "retry-after"), "60");
    assert!(problem(response).await["detail"].as_str().expect("text").contains("refuses"));
    place.faults.heal();
    place.faults.add(Rule::always(Fault::Before(StoreErrorKind::Unavailable)));
    let response = get("/files/a?created_at=2025-03-10").await.expect("an answer");
    assert_eq!((response.status().as_u16(), header(&response, "retry-after")), (503, "5"));
    let metrics = get("/metrics").await.expect("metrics").text().await.expect("text");
    for line in [
        "des_retrievals_total{backend=\"local\",status=\"200\"} 2",
        "des_retrievals_total{backend=\"local\",status=\"404\"} 1",
        "des_retrievals_total{backend=\"local\",status=\"503\"} 2",
        "des_retrieval_seconds_count{backend=\"local\"} 5",
        "des_s3_range_calls_total{backend=\"local\",type=\"tail\"} 1",
        "des_s3_range_calls_total{backend=\"local\",type=\"payload\"} 4",
        "des_requests_in_flight 0",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    assert!(!metrics.contains("20250310"), "no key is a label");
    server.stop().await;
}

#[tokio::test]
async fn a_folder_that_is_gone_is_told() {
    let place = Place::new();
    let server = Rig::new(&place, 8).serve().await;
    std::fs::remove_dir_all(place.folder.path()).expect("removed");
    let client = Client::new();
    let response = client.get(server.url("/files/a?created_at=2025-03-10")).send().await.expect("an answer");
    assert_eq!(response.status(), 503, "an empty answer would say that the file does not exist");
    let ready = client.get(server.url("/health/ready")).send().await.expect("an answer");
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.expect("text").contains("does not exist"));
    std::fs::create_dir(place.folder.path()).expect("back");
    server.stop().await;
}

#[tokio::test]
async fn keys_are_asked_for() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
    let mut rig = Rig::new(&place, 8);
    rig.config.listen.auth = Auth::new(vec!["correct-horse".to_owned()]);
    let server = rig.serve().await;
    let client = Client::new();
    let url = server.url("/files/a?created_at=2025-03-10");
    assert_eq!(client.get(&url).send().await.expect("an answer").status(), 401);
    let response = client.get(&url).header("x-api-key", "correct-horse").send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    server.stop().await;
}
