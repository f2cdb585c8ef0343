//! Every wrong request is told what is wrong, where, and what would be right.

use des_shared::job::JobState;
use serde_json::{Value, json};

use crate::harness::{Answer, World, entry, lines};

/// Entries with one wrong field each, and what the error must name.
fn wrong_entries() -> Vec<(Value, Vec<&'static str>)> {
    let with = |field: &str, value: Value| {
        let mut entry = entry("x");
        entry[field] = value;
        entry
    };
    let without = |field: &str| {
        let mut entry = entry("x");
        entry.as_object_mut().expect("an object").remove(field);
        entry
    };
    vec![
        (without("size_bytes"), vec!["size_bytes", "missing"]),
        (without("uid"), vec!["uid", "missing"]),
        (without("source_path"), vec!["source_path", "missing"]),
        (with("size_bytes", json!(-1)), vec!["size_bytes", "negative"]),
        (with("size_bytes", json!("10")), vec!["size_bytes", "a string"]),
        (with("size_bytes", json!(u64::MAX)), vec!["size_bytes", "expected at most"]),
        (with("created_at", json!("2025-02-30T00:00:00Z")), vec!["created_at", "RFC 3339"]),
        (with("uid", json!("")), vec!["uid", "empty"]),
        (with("uid", json!("u".repeat(65_536))), vec!["uid", "65536", "65535"]),
        (with("source_path", json!("relative/x")), vec!["source_path", "relative", "absolute path"]),
        (with("source_path", json!("ftp://host/x")), vec!["source_path", "scheme"]),
    ]
}

#[tokio::test]
async fn a_wrong_inline_manifest_is_refused_at_once_with_element_and_field() {
    let world = World::new();
    let service = world.start().await;
    for (bad, words) in wrong_entries() {
        let body = json!({"manifest": [entry("first"), bad]});
        let answer = service.submit_json(&body).await;
        answer.assert_problem(400, &words);
        answer.assert_problem(400, &["element 2", "bad-manifest"]);
        let planned = Answer::of(service.post("/v1/plan").json(&body).send().await.expect("an answer")).await;
        planned.assert_problem(400, &words);
    }
    let twice = json!({"manifest": [entry("a"), entry("b"), entry("a")]});
    service.submit_json(&twice).await.assert_problem(400, &["stands twice", "element 1", "element 3"]);
    service.submit_json(&json!({"manifest": []})).await.assert_problem(400, &["the manifest is empty"]);
    assert!(world.keys("").await.is_empty(), "nothing was stored");
    service.stop().await;
}

#[tokio::test]
async fn a_wrong_streamed_manifest_ends_failed_with_line_and_field() {
    let world = World::new();
    let service = world.start().await;
    let mut cases: Vec<(String, Vec<&str>)> = wrong_entries()
        .into_iter()
        .map(|(bad, mut words)| {
            words.push("line 3");
            (format!("{}{bad}\n", lines(2)), words)
        })
        .collect();
    cases.push((format!("{}{{\"uid\": \"x\", \n{}", lines(1), lines(1)), vec!["line 2"]));
    cases.push((format!("{}{}\n", lines(2), entry("file-0")), vec!["stands twice", "line 1", "line 3"]));
    cases.push((" \n\n".to_owned(), vec!["the manifest is empty"]));
    for (body, words) in cases {
        let answer = service.submit_lines("", body).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
        let job = answer.id();
        let end = world.ended(job).await;
        assert_eq!(end.state, JobState::Failed);
        let shown = service.get(&format!("/v1/jobs/{job}")).await.json();
        let error = shown["error"].as_str().expect("a text");
        for word in words {
            assert!(error.contains(word), "{word:?} is missing in {error}");
        }
        assert_eq!((&shown["state"], &shown["files"]["packed"]), (&json!("failed"), &json!(0)));
    }
    service.submit_lines("", "").await.assert_problem(400, &["the manifest is empty"]);
    let cut = zstd::bulk::compress(lines(1000).as_bytes(), 3).expect("in memory");
    let job = service.submit_lines("", cut[..cut.len() / 2].to_vec()).await.id();
    let error = world.ended(job).await.error.expect("a text");
    assert!(error.contains("damaged or cut short"), "{error}");
    service.stop().await;
}

#[tokio::test]
async fn json_that_is_none_says_where() {
    let world = World::new();
    let service = world.start().await;
    let post = async |body: &str| {
        let request = service.post("/v1/jobs").header("content-type", "application/json").body(body.to_owned());
        Answer::of(request.send().await.expect("an answer")).await
    };
    let middle = format!("{{\"manifest\": [{}, {{\"uid\": }}, {}]}}", entry("a"), entry("b"));
    post(&middle).await.assert_problem(400, &["line 1 column"]);
    post("").await.assert_problem(400, &["the body cannot be read"]);
    post("{\"manifest\": 7}").await.assert_problem(400, &["neither a list nor an object"]);
    post("{\"manifest\": {\"url\": \"x\"}}").await.assert_problem(400, &["unknown field `url`"]);
    post("{\"manifest\": [], \"extra\": 1}").await.assert_problem(400, &["unknown field `extra`"]);
    post("{\"options\": {}}").await.assert_problem(400, &["missing field `manifest`"]);
    service.stop().await;
}

#[tokio::test]
async fn options_are_checked_all_at_once_and_unknown_ones_are_errors() {
    let world = World::new();
    let service = world.start().await;
    for bits in [3, 17, 9] {
        let body = json!({"manifest": [entry("a")], "options": {"n_bits": bits, "level": 99, "weight": 0}});
        service
            .submit_json(&body)
            .await
            .assert_problem(400, &["n_bits", "laid out for 8", "level", "weight", "errors"]);
        let query = format!("?n_bits={bits}&level=99");
        service.submit_lines(&query, lines(1)).await.assert_problem(400, &["n_bits", "laid out for 8", "level"]);
    }
    let unknown = json!({"manifest": [entry("a")], "options": {"shard_size": 1}});
    service.submit_json(&unknown).await.assert_problem(400, &["unknown field `shard_size`", "max_shard_size"]);
    service.submit_lines("?shard_size=1", lines(1)).await.assert_problem(400, &["unknown field `shard_size`"]);
    service.submit_lines("?format=v9", lines(1)).await.assert_problem(400, &["v9", "v3"]);
    let post = service.post("/v1/jobs?level=3").json(&json!({"manifest": [entry("a")]}));
    Answer::of(post.send().await.expect("an answer")).await.assert_problem(400, &["the query must be empty"]);
    assert!(world.keys("").await.is_empty(), "nothing was stored");
    service.stop().await;
}

#[tokio::test]
async fn a_uri_outside_the_roots_is_refused_also_through_a_link() {
    let world = World::new();
    let service = world.start().await;
    let outside = world.outside().join("secret.json");
    std::fs::write(&outside, json!([entry("a")]).to_string()).expect("a file");
    std::os::unix::fs::symlink(&outside, world.root().join("link.json")).expect("a link");
    std::os::unix::fs::symlink(world.outside(), world.root().join("folder")).expect("a link");
    world.put_object("secret.json", json!([entry("a")]).to_string()).await;
    world.put_object("internal.json", json!([entry("a")]).to_string()).await;
    let root = world.root().display().to_string();
    let uris = [
        format!("file://{}", outside.display()),
        format!("file://{root}/link.json"),
        format!("file://{root}/folder/secret.json"),
        format!("file://{root}/../secret.json"),
        "file:///etc/passwd".to_owned(),
        "file:///no/such/file".to_owned(),
        "s3://data/secret.json".to_owned(),
        "s3://data/in/../secret.json".to_owned(),
        "s3://data/internal.json".to_owned(),
        "s3://other/in/x".to_owned(),
    ];
    for uri in uris {
        let answer = service.submit_json(&json!({"manifest": {"uri": uri}})).await;
        answer.assert_problem(403, &["DES_SOURCE_ROOTS"]);
    }
    for uri in ["https://example.com/m", "file://relative", "in/m.json", "s3://data/in/", "s3:///x"] {
        service.submit_json(&json!({"manifest": {"uri": uri}})).await.assert_problem(400, &["manifest.uri"]);
    }
    for uri in [format!("file://{root}/none.json"), "s3://data/in/none.json".to_owned()] {
        service.submit_json(&json!({"manifest": {"uri": uri}})).await.assert_problem(400, &["does not exist"]);
    }
    assert!(world.job_records().await.is_empty() && world.keys("open/").await.is_empty(), "nothing was stored");
    service.stop().await;
}

#[tokio::test]
async fn a_body_too_large_for_memory_is_sent_to_the_other_ways() {
    let mut world = World::new();
    world.limits.inline_bytes = 1000;
    let service = world.start().await;
    let body = json!({"manifest": (0..50).map(|n| entry(&n.to_string())).collect::<Vec<_>>()});
    service.submit_json(&body).await.assert_problem(413, &["1000 bytes", "application/x-ndjson", "uri"]);
    // The same without a Content-Length.
    let chunks =
        body.to_string().into_bytes().chunks(100).map(|c| Ok::<_, std::io::Error>(c.to_vec())).collect::<Vec<_>>();
    let request = service
        .post("/v1/jobs")
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(futures::stream::iter(chunks)));
    Answer::of(request.send().await.expect("an answer")).await.assert_problem(413, &["application/x-ndjson"]);
    assert_eq!(service.submit_lines("", lines(50)).await.status, 202);
    service.stop().await;
}

#[tokio::test]
async fn wrong_types_paths_and_ids_are_problems() {
    let world = World::new();
    let service = world.start().await;
    let post = async |kind: &str, encoding: &str| {
        let request = service.post("/v1/jobs").header("content-type", kind).header("content-encoding", encoding);
        Answer::of(request.body(lines(1)).send().await.expect("an answer")).await
    };
    post("text/csv", "identity").await.assert_problem(415, &["application/x-ndjson"]);
    post("application/x-ndjson", "br").await.assert_problem(415, &["gzip"]);
    post("application/json", "gzip").await.assert_problem(415, &["application/x-ndjson"]);
    let unknown = "0190a0b0-0000-7000-8000-000000000000";
    for tail in ["", "/shards", "/failures"] {
        service.get(&format!("/v1/jobs/{unknown}{tail}")).await.assert_problem(404, &[unknown]);
        service.get(&format!("/v1/jobs/nonsense{tail}")).await.assert_problem(400, &["nonsense"]);
        service.get(&format!("/v1/jobs/{}{tail}", unknown.to_uppercase())).await.assert_problem(400, &["job id"]);
        service.get(&format!("/v1/jobs/{unknown}{tail}?x=1")).await.assert_problem(400, &["unknown field `x`"]);
    }
    service.get("/v1/jobs?state=done").await.assert_problem(400, &["done", "completed"]);
    service.get("/v1/jobs?limit=0").await.assert_problem(400, &["1 to 200"]);
    service.get("/v1/jobs?cursor=x").await.assert_problem(400, &["cursor"]);
    service.get("/v2/jobs").await.assert_problem(404, &["/v2/jobs"]);
    let delete = service.http.delete(format!("{}/v1/jobs", service.url)).send().await.expect("an answer");
    Answer::of(delete).await.assert_problem(405, &["method"]);
    service.stop().await;
}
