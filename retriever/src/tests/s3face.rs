//! The S3 interface without credentials: what it answers and what it refuses. Real clients with signatures are in the
//! tests of the whole system.

use des_shared::layout::bigfile_key;
use des_shared::segment::ShardFormat;
use des_shared::shard::ShardWriter;
use des_shared::store::StoreErrorKind;
use des_shared::store::faults::{Fault, Rule};
use reqwest::{Client, Method, Response};
use sha2::{Digest, Sha256};

use super::support::{NOON, Place, Rig, Server, content, key, noise, slot, v3};

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).unwrap_or_else(|| panic!("{name} is there")).to_str().expect("text")
}

async fn ask(server: &Server, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = Client::new().request(method, server.s3_url(path));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.send().await.expect("an answer")
}

async fn get(server: &Server, path: &str, headers: &[(&str, &str)]) -> Response {
    ask(server, Method::GET, path, headers).await
}

/// Status and code of an error.
pub(super) async fn refusal(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    assert_eq!(header(&response, "content-type"), "application/xml");
    let xml = response.text().await.expect("XML");
    let code = xml.split("<Code>").nth(1).and_then(|rest| rest.split("</Code>").next());
    (status, code.unwrap_or_else(|| panic!("a code: {xml}")).to_owned())
}

#[tokio::test]
async fn objects_have_what_the_http_interface_says() {
    let place = Place::new();
    place.put(&key("a.json", 0), v3(1_741_600_000_000, &content(&[("a.json", b"0123456789")])));
    let server = Rig::new(&place, 8).with_s3_face().serve().await;
    let response = get(&server, "/des/20250310/a.json", &[]).await;
    assert_eq!((response.status().as_u16(), header(&response, "content-length")), (200, "10"));
    assert_eq!(header(&response, "content-type"), "application/json");
    assert_eq!(header(&response, "accept-ranges"), "bytes");
    assert_eq!(header(&response, "last-modified"), "Mon, 10 Mar 2025 09:46:40 GMT");
    let etag = header(&response, "etag").to_owned();
    assert_eq!(response.bytes().await.expect("bytes"), "0123456789");
    let url = server.url(&format!("/files/a.json?created_at={NOON}"));
    assert_eq!(header(&Client::new().get(url).send().await.expect("an answer"), "etag"), etag);
    // Clients take 32 digits for an MD5, and anything without a hyphen too.
    assert!(etag.contains('-'), "{etag}");

    let path = "/des/20250310/a.json";
    let part = get(&server, path, &[("range", "bytes=2-4"), ("if-match", &etag)]).await;
    assert_eq!((part.status().as_u16(), header(&part, "content-range")), (206, "bytes 2-4/10"));
    assert_eq!(part.bytes().await.expect("bytes"), "234");
    let head = ask(&server, Method::HEAD, path, &[]).await;
    assert_eq!((head.status().as_u16(), header(&head, "content-length"), header(&head, "etag")), (200, "10", &*etag));
    for (name, value) in [("if-none-match", &*etag), ("if-modified-since", "Mon, 10 Mar 2025 09:46:40 GMT")] {
        let same = get(&server, path, &[(name, value)]).await;
        assert_eq!((same.status().as_u16(), header(&same, "etag")), (304, &*etag), "{name}");
        assert_eq!(same.bytes().await.expect("none"), "");
    }
    for (name, value) in [("if-match", "\"other\""), ("if-unmodified-since", "Mon, 10 Mar 2025 09:46:39 GMT")] {
        let refused = refusal(get(&server, path, &[(name, value)]).await).await;
        assert_eq!(refused, (412, "PreconditionFailed".to_owned()), "{name}");
    }
    let beyond = get(&server, path, &[("range", "bytes=10-")]).await;
    assert_eq!(header(&beyond, "content-range"), "bytes */10");
    assert_eq!(refusal(beyond).await, (416, "InvalidRange".to_owned()));
    // A domain of its own, and what new clients send along.
    let response =
        get(&server, "/20250310/a.json", &[("host", "des.s3.example"), ("x-amz-checksum-mode", "ENABLED")]).await;
    assert_eq!(response.bytes().await.expect("bytes"), "0123456789");
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_told_in_the_words_of_s3() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"here"), ("gone", b"x")])));
    let gone = slot("gone", NOON, 8);
    place.put(&format!("{}0000.des", gone.object_prefix()), v3(1, &content(&[("gone", b"x")])));
    place.put(&des_shared::tombstone::key(&gone, "gone", 2), "{}");
    let server = Rig::new(&place, 8).with_s3_face().serve().await;
    for path in
        ["/des/20250310/b", "/des/20250311/a", "/des/20250310/gone", "/des/a", "/des/2025-03-10/a", "/des/20250230/a"]
    {
        assert_eq!(refusal(get(&server, path, &[]).await).await, (404, "NoSuchKey".to_owned()), "{path}");
        let head = ask(&server, Method::HEAD, path, &[]).await;
        assert_eq!((head.status().as_u16(), head.bytes().await.expect("none").len()), (404, 0));
    }
    for path in ["/other/20250310/a", "/other?list-type=2", "/other?location"] {
        assert_eq!(refusal(get(&server, path, &[]).await).await, (404, "NoSuchBucket".to_owned()), "{path}");
    }
    let long = format!("/des/20250310/{}", "x".repeat(2000));
    for (path, code) in [
        ("/des?list-type=2&continuation-token=x", "InvalidArgument"),
        ("/des?list-type=2&max-keys=-1", "InvalidArgument"),
        ("/des?list-type=2&encoding-type=html", "InvalidArgument"),
        ("/des/20250310/a?partNumber=2", "InvalidArgument"),
        ("/des/20250310/%FF", "InvalidURI"),
        (&long, "KeyTooLongError"),
    ] {
        assert_eq!(refusal(get(&server, path, &[]).await).await, (400, code.to_owned()), "{path}");
    }
    assert_eq!(refusal(get(&server, "/des/20250310/a?versionId=7", &[]).await).await.1, "NoSuchVersion");
    server.stop().await;
}

#[tokio::test]
async fn nothing_can_be_written() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
    let server = Rig::new(&place, 8).with_s3_face().serve().await;
    for (method, path) in [
        (Method::PUT, "/des/20250310/b"),
        (Method::DELETE, "/des/20250310/a"),
        (Method::PUT, "/new"),
        (Method::DELETE, "/des"),
        (Method::POST, "/des?delete"),
        (Method::POST, "/des/20250310/b?uploads"),
        (Method::PATCH, "/des/20250310/a"),
    ] {
        let body = vec![b'x'; 3 << 20];
        let response = Client::new().request(method.clone(), server.s3_url(path)).body(body).send().await;
        let response = response.expect("an answer, though the body was long");
        assert_eq!(header(&response, "allow"), "GET, HEAD");
        assert_eq!(refusal(response).await, (405, "MethodNotAllowed".to_owned()), "{method} {path}");
    }
    let old = get(&server, "/des/20250310/a", &[("authorization", "AWS id:signature")]).await;
    assert_eq!(refusal(old).await, (400, "InvalidRequest".to_owned()));
    // Where nobody needs a key, one that nobody can check does no harm.
    let signed = [(
        "authorization",
        "AWS4-HMAC-SHA256 Credential=x/20250310/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0",
    )];
    assert_eq!(get(&server, "/des/20250310/a", &signed).await.status(), 200);
    let presigned = "/des/20250310/a?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=x&X-Amz-Signature=0";
    assert_eq!(get(&server, presigned, &[]).await.status(), 200);
    server.stop().await;
}

#[tokio::test]
async fn a_zone_that_is_down_and_damage_are_never_an_empty_listing() {
    let place = Place::new();
    let whole = v3(1, &content(&[("a", b"here and intact")]));
    place.put(&key("a", 0), &whole);
    let server = Rig::new(&place, 8).with_s3_face().serve().await;
    let paths = ["/des/20250310/a", "/des?list-type=2&prefix=20250310/", "/des?list-type=2", "/des?delimiter=/"];
    for path in paths {
        place.faults.add(Rule::always(Fault::Before(StoreErrorKind::Unavailable)));
        let response = get(&server, path, &[]).await;
        assert!(header(&response, "retry-after").parse::<u32>().is_ok());
        assert_eq!(refusal(response).await, (503, "ServiceUnavailable".to_owned()), "{path}");
        place.faults.heal();
    }
    server.stop().await;
    for at in [10, whole.len() - 5] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        place.put(&key("a", 0), damaged);
        let server = Rig::new(&place, 8).with_s3_face().serve().await;
        assert_eq!(refusal(get(&server, paths[0], &[]).await).await, (500, "InternalError".to_owned()), "byte {at}");
        let listed = get(&server, paths[1], &[]).await;
        // A payload is looked at when it is read, the index when it is listed.
        assert_eq!(listed.status(), if at == 10 { 200 } else { 500 }, "byte {at}");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_copy_of_the_zone_stands_in_for_a_listing() {
    let (own, copy) = (Place::new(), Place::new());
    for place in [&own, &copy] {
        place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
        place.put(&key("b", 0), v3(1, &content(&[("b", b"there")])));
    }
    own.put(&key("b", 0), "not a shard any more");
    let server = Rig::with_copies(&own, &[&copy]).with_s3_face().serve().await;
    for delimiter in ["", "&delimiter=/"] {
        let response = get(&server, &format!("/des?list-type=2&prefix=20250310/{delimiter}"), &[]).await;
        assert_eq!(response.status(), 200);
        let xml = response.text().await.expect("XML");
        assert!(xml.contains("<Key>20250310/a</Key>") && xml.contains("<Key>20250310/b</Key>"), "{xml}");
    }
    server.stop().await;
}

#[tokio::test]
async fn big_files_are_streamed_and_broken_off_when_they_are_wrong() {
    let place = Place::new();
    let big = noise(3 << 20);
    let sha256: [u8; 32] = Sha256::digest(&big).into();
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 1).expect("a writer");
    let mut shard = writer.header().to_vec();
    writer.append_bigfile("big", sha256, big.len() as u64, None).expect("appended");
    shard.extend_from_slice(&writer.finish().expect("finished"));
    place.put(&key("big", 0), shard);
    place.put(&bigfile_key("_bigFiles", &sha256), &big);
    let server = Rig::new(&place, 8).with_s3_face().serve().await;
    let path = "/des/20250310/big";
    assert_eq!(get(&server, path, &[]).await.bytes().await.expect("bytes"), big);
    let part = get(&server, path, &[("range", "bytes=1000000-2000000")]).await;
    assert_eq!(part.bytes().await.expect("bytes"), big[1_000_000..=2_000_000]);
    let mut damaged = big.clone();
    damaged[1 << 20] ^= 1;
    place.put(&bigfile_key("_bigFiles", &sha256), damaged);
    let broken = get(&server, path, &[]).await;
    assert_eq!(header(&broken, "content-length"), big.len().to_string());
    assert!(broken.bytes().await.is_err(), "nobody may take it for whole");
    server.stop().await;
}
