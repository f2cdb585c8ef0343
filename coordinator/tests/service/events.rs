//! Server-sent events: whole snapshots, from whichever coordinator.

use futures::StreamExt;
use serde_json::Value;

use crate::harness::{Service, World, lines, until};

/// One event as it came.
#[derive(Clone, Debug)]
struct Event {
    id: u64,
    kind: String,
    data: Value,
}

/// Reads events until there is one that `enough` says is enough, or the stream ends.
async fn read(
    service: &Service,
    path: &str,
    last: Option<u64>,
    mut enough: impl AsyncFnMut(&Event) -> bool,
) -> Vec<Event> {
    let mut request = service.http.get(format!("{}{path}", service.url));
    if let Some(last) = last {
        request = request.header("Last-Event-ID", last.to_string());
    }
    let answer = request.send().await.expect("an answer");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (200, &"text/event-stream".parse().expect("a value"))
    );
    let (mut body, mut text, mut events) = (answer.bytes_stream(), String::new(), Vec::new());
    while let Some(chunk) = body.next().await {
        text.push_str(std::str::from_utf8(&chunk.expect("bytes")).expect("text"));
        while let Some((block, rest)) = text.split_once("\n\n") {
            let field =
                |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(|v| v.trim().to_owned());
            if let Some(data) = field("data:") {
                let event = Event {
                    id: field("id:").expect("an id").parse().expect("a number"),
                    kind: field("event:").expect("a kind"),
                    data: serde_json::from_str(&data).expect("JSON"),
                };
                events.push(event.clone());
                if enough(&event).await {
                    return events;
                }
            }
            text = rest.to_owned();
        }
    }
    events
}

#[tokio::test]
async fn a_job_is_followed_from_its_plan_to_its_end() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(5)).await.id();
    world.queued(job).await;
    let path = format!("/v1/jobs/{job}/events");
    let mut step = 0;
    let events = read(&service, &path, None, async |event| {
        assert_eq!(event.data["id"], job.to_string());
        let packed = event.data["files"]["packed"].as_u64().expect("a number");
        match (step, event.kind.as_str()) {
            (0, "state") => {
                let leases = world.claim(2).await;
                world.pack(&leases).await;
                step = 1;
            }
            (1, "progress") if packed == 2 => {
                service.order(&format!("/v1/jobs/{job}/pause")).await;
                step = 2;
            }
            (2, "state") => {
                assert_eq!(event.data["state"], "paused");
                service.order(&format!("/v1/jobs/{job}/resume")).await;
                step = 3;
            }
            (3, "state") => {
                assert_eq!(event.data["state"], "running");
                world.pack_all(job).await;
                step = 4;
            }
            _ => {}
        }
        false
    })
    .await;
    assert_eq!(step, 4);
    let last = events.last().expect("events");
    assert_eq!((last.kind.as_str(), &last.data["state"]), ("end", &Value::from("completed")));
    assert_eq!(last.data["files"]["packed"], 5);
    assert_eq!(events.iter().map(|event| event.id).collect::<Vec<_>>(), (1..=events.len() as u64).collect::<Vec<_>>());
    assert_eq!(events.iter().filter(|event| event.kind == "end").count(), 1);
    service.stop().await;
}

#[tokio::test]
async fn a_client_goes_on_with_another_coordinator_and_misses_nothing() {
    let world = World::new();
    let first = world.start().await;
    let job = first.submit_lines("?max_shard_size=10", lines(5)).await.id();
    world.queued(job).await;
    let path = format!("/v1/jobs/{job}/events");
    let seen = read(&first, &path, None, async |_| true).await;
    let leases = world.claim(3).await;
    world.pack(&leases).await;
    first.stop().await;
    let second = world.start().await;
    let last = seen[0].id;
    let events = read(&second, &path, Some(last + 40), async |_| true).await;
    assert_eq!((events[0].id, events[0].kind.as_str()), (last + 41, "state"), "ids go on, and the first is a snapshot");
    assert_eq!(events[0].data["files"]["packed"], 3);
    world.pack_all(job).await;
    let events = read(&second, &path, Some(events[0].id), async |_| false).await;
    assert_eq!(events.len(), 1, "an ended job has one event");
    assert_eq!(events[0].kind, "end");
    second.stop().await;
}

#[tokio::test]
async fn a_coordinator_that_stops_lets_its_watchers_go() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("", lines(1)).await.id();
    world.queued(job).await;
    let url = format!("{}/v1/jobs/{job}/events", service.url);
    let mut body = service.http.get(url).send().await.expect("an answer").bytes_stream();
    body.next().await.expect("a first event").expect("bytes");
    // The stream has to end for this to return before the drain time is over.
    let began = tokio::time::Instant::now();
    service.stop().await;
    assert!(began.elapsed() < std::time::Duration::from_secs(4), "{:?}", began.elapsed());
    while let Some(chunk) = body.next().await {
        chunk.expect("a clean end");
    }
}

#[tokio::test]
async fn events_go_on_while_the_queue_is_away() {
    let world = World::new();
    let service = world.start().await;
    let job = service.submit_lines("?max_shard_size=10", lines(3)).await.id();
    world.queued(job).await;
    let mut step = 0;
    let events = read(&service, &format!("/v1/jobs/{job}/events"), None, async |event| {
        match (step, event.data["stale"].as_bool()) {
            (0, _) => {
                world.queue.pull(true);
                step = 1;
            }
            (1, Some(true)) => {
                world.queue.pull(false);
                world.memory.lose_everything();
                world.pack_all(job).await;
                step = 2;
            }
            _ => {}
        }
        false
    })
    .await;
    assert_eq!((step, events.last().expect("events").kind.as_str()), (2, "end"));
    service.stop().await;
}

#[tokio::test]
async fn seats_for_watchers_are_bounded_and_come_free() {
    let mut world = World::new();
    world.limits.watchers = 2;
    let service = world.start().await;
    let job = service.submit_lines("", lines(1)).await.id();
    world.queued(job).await;
    let path = format!("/v1/jobs/{job}/events");
    let watch = async || service.http.get(format!("{}{path}", service.url)).send().await.expect("an answer");
    let seats = [watch().await, watch().await];
    assert!(seats.iter().all(|seat| seat.status() == 200));
    let refused = service.get(&path).await;
    refused.assert_problem(503, &["too many clients", "GET /v1/jobs/{id}"]);
    drop(seats);
    until("a seat to come free", async || (watch().await.status() == 200).then_some(())).await;
    let nobody = des_shared::ids::JobId::from_parts(1, [1; 10]);
    service.get(&format!("/v1/jobs/{nobody}/events")).await.assert_problem(404, &["unknown-job"]);
    service.stop().await;
}
