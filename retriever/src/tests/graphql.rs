//! GraphQL: the same answers as REST, and what a query may cost.

use axum::http::StatusCode;
use des_shared::layout::bigfile_key;
use des_shared::segment::{CodecChoice, ShardFormat};
use des_shared::shard::{ShardWriter, hex32};
use des_shared::store::StoreErrorKind;
use des_shared::store::faults::{Fault, Rule};
use reqwest::Client;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::support::{NOON, Place, Rig, Server, content, key, many, noise, options, pack, put_in_all_slots, v3};

const ALL: &str = "uid createdAt size etag contentType codec storedSize sha256 deletedAt \
    shard { key zone formatVersion entries bytes rawBytes dictionary { bytes crc32c } sequence }";

async fn post(server: &Server, body: &Value) -> (StatusCode, Value) {
    let answer = Client::new().post(server.url("/graphql")).json(body).send().await.expect("an answer");
    let status = answer.status();
    (StatusCode::from_u16(status.as_u16()).expect("a status"), answer.json().await.expect("JSON"))
}

/// An answer without errors.
async fn ask(server: &Server, query: &str, variables: Value) -> Value {
    let (status, mut answer) = post(server, &json!({"query": query, "variables": variables})).await;
    assert!(status == StatusCode::OK && answer.get("errors").is_none(), "{status}: {answer}");
    answer["data"].take()
}

fn one(fields: &str) -> String {
    format!("query($uid: String!, $at: String!) {{ file(uid: $uid, createdAt: $at) {{ {fields} }} }}")
}

#[tokio::test]
async fn a_file_is_what_rest_says_it_is() {
    let place = Place::new();
    let files = many(600);
    let shard = v3(7, &files);
    put_in_all_slots(&place, "0000", &shard);
    let rig = Rig::new(&place, 4);
    let server = rig.serve().await;
    for uid in ["folder/file-00001.json", "folder/none.txt", "folder/noise.bin"] {
        let url = server.url(&format!("/files/{uid}?created_at={NOON}"));
        let rest = Client::new().get(url).send().await.expect("an answer");
        let file = ask(&server, &one(ALL), json!({"uid": uid, "at": NOON})).await["file"].take();
        assert_eq!(file["etag"], rest.headers()["etag"].to_str().expect("text"));
        assert_eq!(file["contentType"], rest.headers()["content-type"].to_str().expect("text"));
        assert_eq!(file["size"], rest.bytes().await.expect("the body").len());
        assert_eq!((&file["uid"], &file["createdAt"], &file["deletedAt"]), (&json!(uid), &json!(NOON), &Value::Null));
        let shard_key = file["shard"]["key"].as_str().expect("text");
        assert!(shard_key.starts_with("20250310_") && shard_key.ends_with("_0000.des"), "{shard_key}");
        let shard = json!({
            "key": shard_key, "zone": "default", "formatVersion": 3, "entries": files.len(), "bytes": shard.len(),
            "rawBytes": files.values().map(Vec::len).sum::<usize>(), "sequence": 7,
            "dictionary": file["shard"]["dictionary"],
        });
        assert_eq!(file["shard"], shard);
        assert!(file["shard"]["dictionary"]["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{file}");
        // The shard by its name is the same one.
        let query = format!(
            "query($key: String!) {{ shard(key: $key) {{ {} }} }}",
            &ALL[ALL.find('{').unwrap() + 1..ALL.len() - 1]
        );
        assert_eq!(ask(&server, &query, json!({"key": shard_key})).await["shard"], shard);
    }
    let small = ask(&server, &one("codec storedSize"), json!({"uid": "folder/file-00001.json", "at": NOON})).await;
    assert_eq!(small["file"]["codec"], "zstd-dictionary");
    let empty = ask(&server, &one("codec storedSize"), json!({"uid": "folder/none.txt", "at": NOON})).await;
    assert_eq!(empty["file"], json!({"codec": "none", "storedSize": 0}));
    server.stop().await;
}

#[tokio::test]
async fn large_files_old_shards_and_deleted_files() {
    let place = Place::new();
    let raw = noise(100_000);
    let sha256: [u8; 32] = Sha256::digest(&raw).into();
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 1).expect("a writer");
    let mut out = writer.header().to_vec();
    writer.append_bigfile("movie.mp4", sha256, raw.len() as u64, None).expect("appended");
    out.extend_from_slice(&writer.finish().expect("finished"));
    place.put(&key("movie.mp4", 0), out);
    place.put(&bigfile_key("_bigFiles", &sha256), &raw);
    let old = pack(&options(ShardFormat::V2, CodecChoice::Lz4), 1, &content(&[("old", &[7; 1000])]), None);
    place.put(&key("old", 0), old);
    place.put(&key("gone", 0), v3(1, &content(&[("gone", b"here")])));
    let stone = des_shared::tombstone::key(&super::support::slot("gone", NOON, 8), "gone", 1_741_600_000_000);
    place.put(&stone, "{}");
    let server = Rig::new(&place, 8).serve().await;
    let file = async |uid: &str, fields: &str| {
        ask(&server, &one(fields), json!({"uid": uid, "at": NOON})).await["file"].take()
    };
    let movie = file("movie.mp4", "size codec storedSize sha256 contentType").await;
    let expected = json!({"size": 100_000, "codec": "none", "storedSize": 100_000, "sha256": hex32(&sha256), "contentType": "video/mp4"});
    assert_eq!(movie, expected);
    let old = file("old", "codec sha256 shard { formatVersion rawBytes dictionary { bytes } }").await;
    assert_eq!(
        old,
        json!({"codec": "lz4", "sha256": null, "shard": {"formatVersion": 2, "rawBytes": null, "dictionary": null}})
    );
    let gone = file("gone", "uid size etag deletedAt shard { key }").await;
    let deleted_at = "2025-03-10T09:46:40Z";
    assert_eq!(gone, json!({"uid": "gone", "size": null, "etag": null, "deletedAt": deleted_at, "shard": null}));
    server.stop().await;
}

#[tokio::test]
async fn a_list_says_of_each_what_became_of_it() {
    let place = Place::new();
    put_in_all_slots(&place, "0000", &v3(7, &content(&[("a", b"first"), ("b", b"second!")])));
    let server = Rig::new(&place, 4).serve().await;
    let query = "query($list: [FileKey!]!) { files(list: $list) { uid file { size } problem { type status detail } } }";
    let long = "x".repeat(des_shared::ids::MAX_UID_BYTES + 1);
    let list = json!([
        {"uid": "b", "createdAt": NOON}, {"uid": "nowhere", "createdAt": NOON}, {"uid": "a", "createdAt": NOON},
        {"uid": "a", "createdAt": "yesterday"}, {"uid": "", "createdAt": NOON}, {"uid": long, "createdAt": NOON},
    ]);
    let answer = ask(&server, query, json!({"list": list})).await;
    let outcomes = answer["files"].as_array().expect("a list");
    let sizes: Vec<Option<u64>> = outcomes.iter().map(|outcome| outcome["file"]["size"].as_u64()).collect();
    assert_eq!(sizes, [Some(7), None, Some(5), None, None, None]);
    let kinds: Vec<&str> = outcomes.iter().filter_map(|outcome| outcome["problem"]["type"].as_str()).collect();
    let expected = ["file-not-found", "created-at-invalid", "uid-missing", "uid-too-long"];
    assert_eq!(kinds, expected.map(|kind| format!("/problems/{kind}")));
    assert_eq!(outcomes[1]["problem"]["status"], 404);
    // A hundred at once, with everything there is to know, and not one more.
    let everything = format!(
        "query($list: [FileKey!]!) {{ files(list: $list) {{ uid createdAt file {{ {ALL} }} problem {{ type status detail }} }} }}"
    );
    let hundred: Vec<Value> = (0..100).map(|_| json!({"uid": "a", "createdAt": NOON})).collect();
    let answer = ask(&server, &everything, json!({"list": hundred})).await;
    assert!(answer["files"].as_array().expect("a list").iter().all(|outcome| outcome["file"]["size"] == 5));
    let more: Vec<Value> = (0..101).map(|_| json!({"uid": "a", "createdAt": NOON})).collect();
    place.calls();
    let (_, answer) = post(
        &server,
        &json!({"query": "query($list: [FileKey!]!) { files(list: $list) { uid } }", "variables": {"list": more}}),
    )
    .await;
    assert!(answer["errors"][0]["message"].as_str().expect("text").contains("100"), "{answer}");
    assert_eq!(place.calls().len(), 0, "nothing was looked up");
    server.stop().await;
}

#[tokio::test]
async fn errors_have_the_kinds_of_rest() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
    let server = Rig::new(&place, 8).serve().await;
    let error = async |query: &str| {
        let (status, answer) = post(&server, &json!({"query": query})).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let extensions = &answer["errors"][0]["extensions"];
        (extensions["type"].as_str().expect("a kind").to_owned(), extensions["status"].as_u64(), answer)
    };
    let (kind, status, answer) = error("{ file(uid: \"b\", createdAt: \"2025-03-10\") { size } }").await;
    assert_eq!((kind.as_str(), status), ("/problems/file-not-found", Some(404)));
    assert_eq!(answer["data"], json!({"file": null}));
    for (query, expected) in [
        ("{ file(uid: \"a\", createdAt: \"x\") { size } }", ("created-at-invalid", 400)),
        ("{ shard(key: \"20250310_2A_9999.des\") { bytes } }", ("shard-not-found", 404)),
        ("{ shard(key: \"../20250310_2A_0000.des\") { bytes } }", ("shard-not-found", 404)),
        ("{ shard(key: \"etc\") { bytes } }", ("shard-not-found", 404)),
        ("{ nothing }", ("query-invalid", 400)),
        ("{ file(uid: 3, createdAt: \"2025-03-10\") { size } }", ("query-invalid", 400)),
        ("mutation { file }", ("query-invalid", 400)),
    ] {
        let (kind, status, answer) = error(query).await;
        assert_eq!((kind, status), (format!("/problems/{}", expected.0), Some(expected.1)), "{query}: {answer}");
    }
    place.faults.add(Rule::always(Fault::Before(StoreErrorKind::Unavailable)));
    let (kind, status, answer) = error("{ file(uid: \"c\", createdAt: \"2025-03-11\") { size } }").await;
    assert_eq!((kind.as_str(), status), ("/problems/zone-unavailable", Some(503)));
    assert_eq!(answer["errors"][0]["extensions"]["retryAfter"], 5);
    let folder = place.folder.path().to_str().expect("text");
    assert!(!answer.to_string().contains(folder), "how the store is configured is not told: {answer}");
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_query_is_a_problem() {
    let server = Rig::new(&Place::new(), 8).serve().await;
    let client = Client::new();
    let json_type = "application/json";
    let long = format!("{{\"query\": \"{{ a }}\", \"x\": \"{}\"}}", "y".repeat(1 << 20));
    let wordy = json!({"query": format!("{{ {} }}", "a ".repeat(40_000))}).to_string();
    for (content_type, body, status) in [
        (json_type, "", 400),
        (json_type, "{\"query\": 3}", 400),
        (json_type, "[{\"query\": \"{ __typename }\"}]", 400),
        (json_type, "{\"query\": \"{ file(\"}", 400),
        ("text/plain", "{\"query\": \"{ __typename }\"}", 415),
        ("application/x-www-form-urlencoded", "query=x", 415),
        (json_type, &long, 413),
        (json_type, &wordy, 400),
        (json_type, "{\"query\": \"{ __typename }\"}", 200),
        ("application/json; charset=utf-8", "{\"query\": \"{ __typename }\"}", 200),
    ] {
        let request = client.post(server.url("/graphql")).header("content-type", content_type).body(body.to_owned());
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), status, "{content_type}: {}", &body[..body.len().min(60)]);
        let expected = if status == 200 { json_type } else { "application/problem+json" };
        assert_eq!(answer.headers()["content-type"], expected);
    }
    let answer = client.get(server.url("/graphql")).send().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.headers()["allow"].as_bytes()), (405, &b"POST, OPTIONS"[..]));
    server.stop().await;
}

#[tokio::test]
async fn a_query_that_costs_too_much_is_refused_at_once() {
    let place = Place::new();
    put_in_all_slots(&place, "0000", &v3(7, &content(&[("a", b"first")])));
    let server = Rig::new(&place, 4).serve().await;
    let refused = async |what: &str, query: String| {
        let began = std::time::Instant::now();
        let (_, answer) = post(&server, &json!({"query": query})).await;
        let told = answer["errors"][0]["message"].as_str().or(answer["detail"].as_str()).unwrap_or_default().to_owned();
        assert!(began.elapsed().as_secs() < 5, "{what} took {:?}", began.elapsed());
        assert!(!told.is_empty(), "{what}: {answer}");
        told
    };
    place.calls();
    let look_up = format!("file(uid: \"a\", createdAt: \"{NOON}\") {{ size }}");
    // Many look-ups under other names.
    let named = |count: usize| (0..count).map(|n| format!("f{n}: {look_up} ")).collect::<Vec<_>>().concat();
    assert!(refused("aliases", format!("{{ {} }}", named(400))).await.contains("too complex"));
    // Fragments that spread each other twice: 2^40 fields.
    let spread = |n: usize| format!("fragment f{n} on Query {{ ...f{} ...f{} }} ", n + 1, n + 1);
    let doubling = |levels: usize| {
        let fragments = (0..levels).map(spread).collect::<Vec<_>>().concat();
        format!("{{ ...f0 }} {fragments} fragment f{levels} on Query {{ {look_up} }}")
    };
    refused("doubling", doubling(40)).await;
    let wide = doubling(10);
    assert!(refused("wide", wide).await.contains("more than 1000 fields"));
    refused("a circle", "{ ...a } fragment a on Query { ...b } fragment b on Query { ...a }".to_owned()).await;
    // Depth, in braces and in brackets, as far as the text may go, and further.
    for levels in [20, 500, 999, 30_000] {
        refused("braces", format!("{}a{}", "{a".repeat(levels), "}".repeat(levels))).await;
        refused("lists", format!("{{ file(uid: {}{}) {{ size }} }}", "[".repeat(levels - 3), "]".repeat(levels - 3)))
            .await;
        refused(
            "objects",
            format!("{{ file(uid: {}1{}) {{ size }} }}", "{a:".repeat(levels - 4), "}".repeat(levels - 4)),
        )
        .await;
    }
    // One file, and nothing wrong but its depth.
    let deep = |levels: usize| format!("{{ {}{look_up}{} }}", "... on Query { ".repeat(levels), " }".repeat(levels));
    assert!(refused("depth", deep(25)).await.contains("more than 20 levels deep"));
    assert_eq!(place.calls().len(), 0, "nothing was looked up");
    assert_eq!(ask(&server, &deep(10), json!({})).await["file"]["size"], 5);
    assert_eq!(ask(&server, &format!("{{ {} }}", named(100)), json!({})).await["f99"]["size"], 5);
    server.stop().await;
}

/// What tools ask for first, and the longest answer that a question about the schema can have.
#[tokio::test]
async fn the_schema_can_be_asked_for() {
    let server = Rig::new(&Place::new(), 8).serve().await;
    let of_type = (0..9).fold("kind name".to_owned(), |inner, _| format!("kind name ofType {{ {inner} }}"));
    let tools = format!(
        "query IntrospectionQuery {{ __schema {{ queryType {{ name }} mutationType {{ name }} subscriptionType {{ name }} \
         types {{ ...FullType }} directives {{ name description locations args {{ ...InputValue }} }} }} }} \
         fragment FullType on __Type {{ kind name description \
         fields(includeDeprecated: true) {{ name description args {{ ...InputValue }} type {{ ...TypeRef }} isDeprecated deprecationReason }} \
         inputFields {{ ...InputValue }} interfaces {{ ...TypeRef }} \
         enumValues(includeDeprecated: true) {{ name description isDeprecated deprecationReason }} possibleTypes {{ ...TypeRef }} }} \
         fragment InputValue on __InputValue {{ name description type {{ ...TypeRef }} defaultValue }} \
         fragment TypeRef on __Type {{ {of_type} }}"
    );
    let answer = ask(&server, &tools, json!({})).await;
    let types = answer["__schema"]["types"].as_array().expect("a list");
    let names: Vec<&str> = types.iter().filter_map(|kind| kind["name"].as_str()).collect();
    for name in ["Query", "File", "Shard", "Dictionary", "FileKey", "Outcome", "Problem", "Long"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    // As wide as it gets: every list of the schema inside a list.
    for (lists, allowed) in [(2, true), (3, false)] {
        let wrap = |inner: String, _| format!("fields {{ name type {{ name ofType {{ ofType {{ {inner} }} }} }} }}");
        let nested = (0..lists).fold("name".to_owned(), wrap);
        let (_, answer) = post(&server, &json!({"query": format!("{{ __schema {{ types {{ {nested} }} }} }}")})).await;
        assert_eq!(answer.get("data").is_some(), allowed, "{lists}");
        assert!(answer.to_string().len() < 1 << 20, "{} bytes", answer.to_string().len());
    }
    server.stop().await;
}
