//! The S3 interface beside stores that hang or are slow, and while its keys change.

use std::time::Duration;

use des_shared::config::{Values, settings};
use des_shared::layout::bigfile_key;
use des_shared::segment::ShardFormat;
use des_shared::shard::ShardWriter;
use des_shared::store::call::Operation;
use des_shared::store::faults::{Fault, Rule};
use des_shared::store::s3::{S3Config, S3Credentials, S3Store};
use des_shared::store::{ByteRange, ObjectStore};
use des_shared::tombstone;
use reqwest::{Client, Method};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::Instant;

use super::endurance::{HANGS, metric, until, with_copy};
use super::s3face::refusal;
use super::support::{NOON, Place, Rig, Server, content, key, noise, slot, v3};
use crate::{Endurance, S3FaceConfig};

const OBJECT: &str = "/des/20250310/a";
const LISTING: &str = "/des?list-type=2&prefix=20250310/";

fn place() -> Place {
    let place = Place::new();
    place.put(&key("a", 0), v3(1, &content(&[("a", b"here")])));
    place
}

#[tokio::test]
async fn a_client_hears_in_time_that_a_store_hangs() {
    let place = place();
    let mut rig = Rig::new(&place, 8).with_s3_face();
    rig.config.endurance = Endurance { request_deadline: Duration::from_millis(150), ..rig.config.endurance };
    let server = rig.serve().await;
    let client = Client::new();
    place.faults.add(Rule::always(HANGS));
    // A listing may take four times as long.
    for (path, header, least) in
        [(OBJECT, None, 150), (OBJECT, Some("40"), 40), (LISTING, Some("40"), 40), (LISTING, None, 600)]
    {
        let began = Instant::now();
        let request = client.get(server.s3_url(path));
        let request = header.iter().fold(request, |request, ms| request.header("x-request-timeout-ms", *ms));
        let response = request.send().await.expect("an answer");
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(least) && took < Duration::from_secs(10), "{path}: {took:?}");
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(refusal(response).await, (503, "SlowDown".to_owned()), "{path}");
    }
    let head = client.request(Method::HEAD, server.s3_url(OBJECT)).send().await.expect("an answer");
    assert_eq!((head.status().as_u16(), head.bytes().await.expect("none").len()), (503, 0));
    assert!(metric(&server, "des_request_deadlines_passed_total 5").await);
    let wrong = client.get(server.s3_url(OBJECT)).header("x-request-timeout-ms", "soon").send().await;
    assert_eq!(refusal(wrong.expect("an answer")).await, (400, "InvalidArgument".to_owned()));
    place.faults.heal();
    assert_eq!(client.get(server.s3_url(OBJECT)).send().await.expect("an answer").status(), 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_streams_is_not_cut() {
    let place = Place::new();
    let big = noise(16 << 20);
    let sha256: [u8; 32] = Sha256::digest(&big).into();
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 1).expect("a writer");
    let mut shard = writer.header().to_vec();
    writer.append_bigfile("big", sha256, big.len() as u64, None).expect("appended");
    shard.extend_from_slice(&writer.finish().expect("finished"));
    place.put(&key("big", 0), shard);
    place.put(&bigfile_key("_bigFiles", &sha256), &big);
    let deadline = Duration::from_secs(1);
    let mut rig = Rig::new(&place, 8).with_s3_face();
    rig.config.endurance = Endurance { request_deadline: deadline, ..rig.config.endurance };
    let server = rig.serve().await;
    let address = server.s3_url("").trim_start_matches("http://").to_owned();
    // Otherwise the kernel takes all of it for the client.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(256 << 10).expect("set");
    let mut client = socket.connect(address.parse().expect("an address")).await.expect("connected");
    let request = format!("GET /des/20250310/big HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    client.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = vec![0; 1000];
    client.read_exact(&mut answer).await.expect("the beginning");
    tokio::time::sleep(deadline * 2).await;
    client.read_to_end(&mut answer).await.expect("the rest");
    assert!(answer.ends_with(&big[big.len() - 1000..]), "{} bytes came", answer.len());
    server.stop().await;
}

#[tokio::test]
async fn a_store_that_hangs_holds_up_no_listing() {
    let (own, copy, rig) = with_copy(Duration::from_millis(100));
    let server = rig.with_s3_face().serve().await;
    for path in [LISTING, "/des?list-type=2&delimiter=/"] {
        own.faults.add(Rule::always(HANGS));
        copy.calls();
        let began = Instant::now();
        let response = Client::new().get(server.s3_url(path)).send().await.expect("an answer");
        let xml = response.text().await.expect("XML");
        assert!(xml.contains("<Key>20250310/a</Key>") || xml.contains("<Prefix>20250310/</Prefix>"), "{xml}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert!(!copy.calls().is_empty(), "the copy has answered");
        own.faults.heal();
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_not_asked_for_a_listing_while_the_own_store_gets_on() {
    let (own, copy, mut rig) = with_copy(Duration::from_millis(300));
    // Sixteen are read side by side, so this takes nine steps, and longer than a store may be silent.
    for n in 0..128 {
        own.put(&key(&n.to_string(), 1), v3(1, &content(&[(&format!("{n}"), b"x")])));
    }
    rig.config.endurance.guard.slow = Duration::from_hours(1);
    let server = rig.with_s3_face().serve().await;
    own.faults.add(Rule::always(Fault::Delay(Duration::from_millis(200))));
    let began = Instant::now();
    let response = Client::new().get(server.s3_url(LISTING)).send().await.expect("an answer");
    assert_eq!(response.text().await.expect("XML").matches("<Key>").count(), 129);
    assert!(began.elapsed() > Duration::from_millis(1300), "{:?}", began.elapsed());
    assert!(copy.calls().is_empty(), "it knows less");
    server.stop().await;
}

#[tokio::test]
async fn a_page_is_made_of_one_store_alone() {
    let (own, copy, mut rig) = with_copy(Duration::from_millis(100));
    rig.config.endurance.guard.slow = Duration::from_hours(1);
    for place in [&own, &copy] {
        place.put(&key("gone", 0), v3(1, &content(&[("gone", b"x")])));
    }
    // The copy has not heard of a deletion, and hangs when it has told the half of what it knows.
    own.put(&tombstone::key(&slot("gone", NOON, 8), "gone", 2), "{}");
    copy.put(&key("z", 0), v3(1, &content(&[("z", b"x")])));
    copy.faults.add(Rule::always(HANGS).on_keys_with(key("z", 0)));
    own.faults.add(Rule::once(Operation::List, Fault::Delay(Duration::from_millis(1500))));
    let server = rig.with_s3_face().serve().await;
    let response = Client::new().get(server.s3_url(LISTING)).send().await.expect("an answer");
    let xml = response.text().await.expect("XML");
    let read = copy.calls().iter().any(|call| call.key == key("gone", 0));
    assert!(read, "the copy was read meanwhile");
    assert!(xml.contains("<Key>20250310/a</Key>") && !xml.contains("gone"), "{xml}");
    server.stop().await;
}

async fn store(server: &Server, access: &str, secret: &str) -> S3Store {
    let config = S3Config {
        region: Some("us-east-1".to_owned()),
        endpoint_url: Some(server.s3_url("")),
        credentials: Some(S3Credentials { access_key_id: access.to_owned(), secret_access_key: secret.to_owned() }),
        ..S3Config::new("des")
    };
    S3Store::connect(&config).await.expect("a client")
}

#[tokio::test]
async fn keys_change_while_it_runs() {
    let (place, folder) = (place(), tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("keys");
    std::fs::write(&file, "reader:the-first-secret\n").expect("written");
    let path = file.to_str().expect("UTF-8");
    let given = [
        ("DES_S3_FACE_LISTEN", "127.0.0.1:0"),
        ("DES_S3_FACE_KEYS", "fixed:always-the-same"),
        ("DES_S3_FACE_KEYS_FILE", path),
    ];
    let mut values = Values::from_pairs(&[settings::S3_FACE, settings::PROCESS].concat(), &given);
    let face = S3FaceConfig::read(&mut values, None);
    let mut rig = Rig::new(&place, 8);
    rig.config.s3_face = Some(values.finish(face).expect("settings"));
    let server = rig.serve().await;
    let fixed = store(&server, "fixed", "always-the-same").await;
    let first = store(&server, "reader", "the-first-secret").await;
    let second = store(&server, "reader", "the-second-secret").await;
    let third = store(&server, "another", "the-third-secret").await;
    let reads = async |store: &S3Store| store.get("20250310/a", ByteRange::Full).await.is_ok();
    assert!(reads(&fixed).await && reads(&first).await && !reads(&second).await && !reads(&third).await);
    std::fs::write(&file, "reader:the-second-secret\nanother:the-third-secret\n").expect("written");
    until("the new keys are good", async || reads(&second).await && reads(&third).await).await;
    assert!(reads(&fixed).await && !reads(&first).await, "the old one is good no more");
    // A file that cannot be used changes nothing, and is told.
    std::fs::write(&file, "reader=the-first-secret\n").expect("written");
    until("it is told", async || metric(&server, "des_s3_face_keys_file_broken 1").await).await;
    assert!(reads(&second).await && !reads(&first).await);
    std::fs::write(&file, "reader:the-first-secret\n").expect("written");
    until("the first one is good again", async || reads(&first).await).await;
    assert!(!reads(&second).await && !reads(&third).await && reads(&fixed).await);
    until("that is told too", async || metric(&server, "des_s3_face_keys_file_broken 0").await).await;
    server.stop().await;
}
