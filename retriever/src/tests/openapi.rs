//! The description of the interface: complete, and true.

use std::collections::BTreeSet;

use des_shared::metrics::Metrics;
use des_shared::service::Shutdown;
use reqwest::{Client, Method};
use serde_json::Value;

use crate::metrics::RetrieverMetrics;

use super::support::{Place, Rig};

/// Every `$ref` below a value.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn what_is_served_is_described_and_what_is_described_is_served() {
    let place = Place::new();
    // The router knows its routes only by what it prints.
    let rig = Rig::new(&place, 8);
    let metrics = RetrieverMetrics::register(&Metrics::new(), "local");
    let printed =
        format!("{:?}", crate::router(&rig.config, (rig.deps.clone(), metrics, rig.files.clone()), &Shutdown::new()));
    let paths =
        printed.split('"').filter(|text| text.len() > 1 && text.starts_with('/') && !text.contains("__private"));
    let routed: BTreeSet<String> = paths.map(|path| path.replace("{*", "{")).collect();
    let server = Rig::new(&place, 8).serve().await;
    let client = Client::new();
    let response = client.get(server.url("/openapi.json")).send().await.expect("an answer");
    assert_eq!(response.headers()["content-type"], "application/json");
    let document: Value = response.json().await.expect("JSON");
    assert_eq!(document["openapi"].as_str().map(|version| &version[..3]), Some("3.1"));
    let paths = document["paths"].as_object().expect("paths");
    let described: BTreeSet<String> = paths.keys().cloned().collect();
    assert_eq!(described, routed);
    for path in ["/files/{uid}", "/tombstones", "/health", "/health/ready", "/metrics", "/openapi.json"] {
        assert!(described.contains(path), "{path} in {described:?}");
    }
    for (path, item) in paths {
        let url = server.url(&path.replace(['{', '}'], ""));
        let allowed = client.request(Method::OPTIONS, &url).send().await.expect("an answer");
        let allowed = allowed.headers()["allow"].to_str().expect("text").to_ascii_lowercase();
        let mut allowed: BTreeSet<&str> = allowed.split(", ").collect();
        let operations = item.as_object().expect("operations");
        let mut described: BTreeSet<&str> = operations.keys().map(String::as_str).collect();
        // Every GET has a HEAD, and OPTIONS is everywhere.
        described.extend(["options", "head"]);
        allowed.insert("head");
        assert_eq!(described, allowed, "{path}");
        for (method, operation) in operations {
            let method: Method = method.to_uppercase().parse().expect("a method");
            let status = client.request(method.clone(), &url).send().await.expect("an answer").status();
            assert_ne!(status, 405, "{method} {path}");
            let known = operation["responses"].as_object().expect("responses");
            assert!(known.contains_key(status.as_str()), "{method} {path} answered {status}, which is not described");
        }
    }
    let mut referred = BTreeSet::new();
    references(&document, &mut referred);
    for reference in referred {
        let pointer = reference.trim_start_matches('#');
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    server.stop().await;
}
