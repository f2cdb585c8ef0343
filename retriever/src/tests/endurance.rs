//! Stores that are slow or gone, clients that go away, and the end of a process.

use std::sync::Arc;
use std::time::Duration;

use des_shared::retry::RetryPolicy;
use des_shared::store::StoreErrorKind;
use des_shared::store::call::Operation;
use des_shared::store::faults::{Fault, Rule};
use des_shared::store::guarded::{BreakerState, Guard, GuardOptions};
use des_shared::store::zones::{ShardRange, Zone, Zones};
use futures::future::join_all;
use reqwest::Client;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::support::{Place, Rig, Server, content, key, n_bits, v3};
use crate::Endurance;

pub(super) const HANGS: Fault = Fault::Delay(Duration::from_hours(1));

/// A zone and its copy with the same file, and a retriever that soon loses patience.
pub(super) fn with_copy(patience: Duration) -> (Place, Place, Rig) {
    let (own, copy) = (Place::new(), Place::new());
    for place in [&own, &copy] {
        place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
    }
    let mut rig = Rig::with_copies(&own, &[&copy]);
    let guard = GuardOptions { slow: patience / 2, ..rig.config.endurance.guard };
    rig.config.endurance = Endurance { failover_after: patience, guard, ..rig.config.endurance };
    rig.rebuild();
    (own, copy, rig)
}

fn guard(rig: &Rig, store: usize) -> Arc<Guard> {
    rig.files.places.replicas(0).expect("a zone")[store].guard.clone()
}

pub(super) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) async fn metric(server: &Server, line: &str) -> bool {
    let text = reqwest::get(server.url("/metrics")).await.expect("metrics").text().await.expect("text");
    text.lines().any(|found| found == line)
}

#[tokio::test]
async fn a_store_that_hangs_costs_little_and_then_nothing() {
    let patience = Duration::from_millis(200);
    let (own, copy, rig) = with_copy(patience);
    assert_eq!(rig.get("a").await.expect("found"), &b"here"[..]);
    assert_eq!(copy.counted(), (0, 0));
    own.faults.add(Rule::always(HANGS));
    for _ in 0..5 {
        let began = Instant::now();
        assert_eq!(rig.get("a").await.expect("the copy has it"), &b"here"[..]);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    assert_eq!(guard(&rig, 0).breaker(), BreakerState::Open);
    own.calls();
    assert_eq!(rig.get("a").await.expect("the copy has it"), &b"here"[..]);
    assert_eq!(own.calls().len(), 0, "nobody waits for it any more");
    own.faults.heal();
    until("the own store is asked again", async || {
        // Old listings: the request that finds out makes two calls at once, and neither may spoil the other.
        rig.clock.advance(Duration::from_secs(6));
        assert_eq!(rig.get("a").await.expect("found"), &b"here"[..]);
        guard(&rig, 0).breaker() == BreakerState::Closed
    })
    .await;
    copy.calls();
    rig.get("a").await.expect("found");
    assert_eq!(copy.counted(), (0, 0), "the copy rests");
}

#[tokio::test]
async fn a_slow_store_is_waited_for_when_the_copy_does_not_know() {
    let (own, copy, rig) = with_copy(Duration::from_millis(10));
    copy.remove(&key("a", 0));
    own.faults.add(Rule::always(Fault::Delay(Duration::from_millis(60))));
    assert_eq!(rig.get("a").await.expect("found"), &b"here"[..]);
    assert!(copy.counted().0 > 0, "the copy was asked, and has no such file");
    assert_eq!(rig.status("nowhere").await, 404);
}

#[tokio::test]
async fn when_nothing_is_left_the_answer_is_quick_and_other_zones_go_on() {
    let (down, well) = (Place::new(), Place::new());
    let zone = |name: &str, start, end, place: &Place| Zone {
        name: name.to_owned(),
        range: ShardRange { start, end },
        store: place.store(),
        replicas: Vec::new(),
    };
    let zones = Zones::new(n_bits(8), vec![zone("down", 0, 127, &down), zone("well", 128, 255, &well)]);
    let rig = Rig::over(zones.expect("two zones"));
    well.put(&key("200", 0), v3(1, &content(&[("200", b"well")])));
    down.faults.add(Rule::always(Fault::Before(StoreErrorKind::Unavailable)));
    let server = rig.serve().await;
    let client = Client::new();
    let url = server.url("/files/5?created_at=2025-03-10");
    for _ in 0..20 {
        let answer = client.get(&url).send().await.expect("an answer");
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"5".parse().expect("text")));
    }
    let shards = |place: &Place| place.calls().iter().filter(|call| !call.key.starts_with("_tomb")).count();
    assert!(shards(&down) <= 5, "the breaker is open");
    let answer = client.get(server.url("/files/200?created_at=2025-03-10")).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert!(metric(&server, r#"des_store_breaker_state{store="own",zone="down"} 2"#).await);
    assert!(metric(&server, r#"des_store_breaker_state{store="own",zone="well"} 0"#).await);
    let ready = client.get(server.url("/health/ready")).send().await.expect("an answer");
    assert_eq!(ready.status(), 503);
    let ready: Value = ready.json().await.expect("JSON");
    assert_eq!(ready["checks"]["zone well"], "ok");
    assert_eq!(ready["stores"][0]["breaker"], "open", "{ready}");
    assert_eq!(ready["stores"][1]["breaker"], "closed", "{ready}");
    server.stop().await;
}

#[tokio::test]
async fn a_zone_that_hangs_holds_up_no_other() {
    let (hangs, well) = (Place::new(), Place::new());
    let zone = |name: &str, start, end, place: &Place| Zone {
        name: name.to_owned(),
        range: ShardRange { start, end },
        store: place.store(),
        replicas: Vec::new(),
    };
    let zones = Zones::new(n_bits(8), vec![zone("hangs", 0, 127, &hangs), zone("well", 128, 255, &well)]);
    let rig = Arc::new(Rig::over(zones.expect("two zones")));
    hangs.faults.add(Rule::always(HANGS));
    well.put(&key("200", 0), v3(1, &content(&[("200", b"well")])));
    // Of as many days, so that each waits for listings of its own, and more than may read at the same time.
    let stuck: Vec<_> = (0..112)
        .map(|n| {
            let rig = rig.clone();
            let day = format!("2025-{:02}-{:02}T12:00:00Z", 1 + n / 28, 1 + n % 28);
            tokio::spawn(async move { rig.get_at("1", &day).await.is_ok() })
        })
        .collect();
    let mut asked = 0;
    until("as many wait for listings as may", async || {
        asked += hangs.calls().len();
        asked >= 8
    })
    .await;
    let read = tokio::time::timeout(Duration::from_secs(3), rig.get("200")).await;
    assert_eq!(read.expect("nobody waits for the other zone").expect("found"), &b"well"[..]);
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
    join_all(stuck).await;
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_work_along() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
    let mut rig = Rig::new(&place, 8);
    // It would try again for ever.
    let retry = RetryPolicy { attempts: u32::MAX, deadline: Duration::from_hours(1), ..RetryPolicy::QUICK };
    rig.config.endurance.retry = retry;
    let server = rig.serve().await;
    place.faults.add(Rule::always(Fault::Before(StoreErrorKind::Unavailable)).times(2));
    place.faults.add(Rule::always(HANGS));
    let address = server.url("").trim_start_matches("http://").to_owned();
    let mut client = tokio::net::TcpStream::connect(&address).await.expect("connected");
    client.write_all(b"GET /files/a?created_at=2025-03-10 HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let mut seen = 0;
    until("the store is asked again and again, then hangs", async || {
        seen += place.calls().len();
        seen >= 4
    })
    .await;
    assert!(metric(&server, "des_requests_in_flight 1").await);
    drop(client);
    until("the request ends", async || metric(&server, "des_requests_in_flight 0").await).await;
    place.faults.heal();
    place.calls();
    // Whoever comes now starts anew, and nobody else asks the store.
    let answer = reqwest::get(server.url("/files/a?created_at=2025-03-10")).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(place.counted(), (1, 2));
    server.stop().await;
}

#[tokio::test]
async fn a_deadline_ends_waiting_and_trying_again() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
    let mut rig = Rig::new(&place, 8);
    let retry = RetryPolicy {
        first: Duration::from_millis(1),
        max: Duration::from_millis(1),
        attempts: u32::MAX,
        deadline: Duration::from_hours(1),
    };
    rig.config.endurance = Endurance { retry, request_deadline: Duration::from_millis(150), ..rig.config.endurance };
    let server = rig.serve().await;
    let client = Client::new();
    let url = server.url("/files/a?created_at=2025-03-10");
    for (fault, header, limit) in [
        (HANGS, None, 150),
        (HANGS, Some("40"), 40),
        (HANGS, Some("3600000"), 150),
        (Fault::Before(StoreErrorKind::Throttled), None, 150),
    ] {
        place.faults.heal();
        place.faults.add(Rule::always(fault));
        let began = Instant::now();
        let request = header.iter().fold(client.get(&url), |request, ms| request.header("x-request-timeout-ms", *ms));
        let answer = request.send().await.expect("an answer");
        assert!(began.elapsed() >= Duration::from_millis(limit) && began.elapsed() < Duration::from_secs(5));
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().expect("text")));
        let problem: Value = answer.json().await.expect("JSON");
        assert_eq!(problem["type"], "/problems/deadline-passed");
        assert!(problem["detail"].as_str().expect("text").contains(&limit.to_string()), "{problem}");
        // The handler's future is gone, and with it everything that could ask the store.
        place.calls();
        assert!(metric(&server, "des_requests_in_flight 0").await);
        assert_eq!(place.calls().len(), 0);
    }
    assert!(metric(&server, "des_request_deadlines_passed_total 4").await);
    place.faults.heal();
    for wrong in ["0", "-1", "soon", ""] {
        let answer = client.get(&url).header("x-request-timeout-ms", wrong).send().await.expect("an answer");
        assert_eq!(answer.status(), 400, "{wrong:?}");
    }
    assert_eq!(client.get(&url).send().await.expect("an answer").status(), 200);
    server.stop().await;
}

#[tokio::test]
async fn readiness_asks_once_for_all_who_ask_at_once() {
    let place = Place::new();
    let rig = Rig::new(&place, 8);
    let server = rig.serve().await;
    place.faults.add(Rule::once(Operation::Check, Fault::Delay(Duration::from_millis(100))));
    place.calls();
    let asking = (0..20).map(|_| reqwest::get(server.url("/health/ready")));
    for answer in join_all(asking).await {
        assert_eq!(answer.expect("an answer").status(), 200);
    }
    assert_eq!(place.calls().len(), 1);
    place.faults.add(Rule::always(Fault::Before(StoreErrorKind::Denied)));
    until("it is asked again", async || {
        reqwest::get(server.url("/health/ready")).await.expect("an answer").status() == 503
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_stopping_service_says_so_before_it_stops() {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
    let mut rig = Rig::new(&place, 8);
    rig.config.endurance.drain_notice = Duration::from_secs(1);
    let server = rig.serve().await;
    let client = Client::new();
    let get = |path: &str| client.get(server.url(path)).send();
    assert_eq!(get("/health/ready").await.expect("an answer").status(), 200);
    place.faults.add(Rule::once(Operation::Get, Fault::Delay(Duration::from_secs(2))));
    let slow = tokio::spawn(client.get(server.url("/files/a?created_at=2025-03-10")).send());
    until("it waits for the store", async || place.calls().iter().any(|call| call.operation == Operation::Get)).await;
    server.begin_to_stop();
    let ready = get("/health/ready").await.expect("still answered");
    assert_eq!((ready.status().as_u16(), &ready.headers()["connection"]), (503, &"close".parse().expect("text")));
    assert!(ready.text().await.expect("text").contains("draining"));
    let answer = get("/files/b?created_at=2025-03-10").await.expect("still served");
    assert_eq!(answer.status(), 404);
    until("nobody is let in any more", async || get("/health/live").await.is_err()).await;
    let answer = slow.await.expect("no panic").expect("what was under way is answered");
    assert_eq!(answer.text().await.expect("the body"), "here");
    server.stop().await;
}
