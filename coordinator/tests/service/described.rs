//! The description of the interface says what is really answered.

use reqwest::Method;
use serde_json::Value;

use crate::harness::{Answer, World};

/// Every `$ref` below a value must lead somewhere.
fn check_references(value: &Value, document: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference} leads nowhere");
            }
            map.values().for_each(|value| check_references(value, document));
        }
        Value::Array(list) => list.iter().for_each(|value| check_references(value, document)),
        _ => {}
    }
}

#[tokio::test]
async fn every_operation_answers_as_described() {
    let world = World::new();
    let service = world.start().await;
    let document = service.get("/openapi.json").await.json();
    check_references(&document, &document);
    let paths = document["paths"].as_object().expect("paths");
    for path in ["/v1/jobs", "/v1/jobs/{id}/events", "/v1/dead/{job}/{task}", "/v1/queue", "/health/ready", "/metrics"]
    {
        assert!(paths.contains_key(path), "{path} in {:?}", paths.keys());
    }
    let unknown = "0190a0b0-0000-7000-8000-000000000000";
    for (path, item) in paths {
        let url = path.replace("{id}", unknown).replace("{job}", unknown).replace("{task}", "0");
        for (method, operation) in item.as_object().expect("operations") {
            let method: Method = method.to_uppercase().parse().expect("a method");
            let sent = service.http.request(method.clone(), format!("{}{url}", service.url)).send().await;
            let answer = Answer::of(sent.expect("an answer")).await;
            let known = operation["responses"].as_object().expect("responses");
            assert!(
                known.contains_key(&answer.status.to_string()),
                "{method} {path}: {} is not described",
                answer.status
            );
        }
    }
    service.stop().await;
}
