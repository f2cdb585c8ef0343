//! A real browser: what is packed shows, plays and can be fetched by its uid, and what could run does not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use des_shared::layout::bigfile_key;
use des_shared::segment::ShardFormat;
use des_shared::shard::ShardWriter;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::mpsc;

use super::support::{Content, Place, Rig, put_in_all_slots, v3};
use super::webm;

/// 64 by 48 green pixels.
const PNG: &[u8] =
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x40\x00\x00\x00\x30\x08\x06\x00\x00\x00\xa1\x4b\x7c\
    \x1f\x00\x00\x00\x98IDATx\x01\xec\x95\x31\x0e\x80\x40\x0c\xc3\x4e\xf7\x7a\x7e\x0d\x7b\x96\x88\x35\x36\x12\x43\xd5\
    \x29\x8e\x0b\xf7\x3c\xe7\x25\xbf\xf7\xc0\x1f\x01\xc0\x05\x38\x1a\xa0\x01\x70\x02\x9e\x00\x5c\x00\x3f\x82\x9e\x80\
    \x27\x00\x27\xe0\x09\xc0\x05\xe0\xfd\x05\xb2\x70\x4f\x20\x89\xd0\x66\x0d\xa0\x35\x9e\x79\x35\x20\x89\xd0\x66\x0d\
    \xa0\x35\x9e\x79\x35\x20\x89\xd0\x66\x0d\xa0\x35\x9e\x79\x35\x20\x89\xd0\x66\x0d\x58\x6f\xbc\xe5\xd3\x80\x46\x68\
    \x7d\xaf\x01\xeb\x0d\xb7\x7c\x1a\xd0\x08\xad\xef\x35\x60\xbd\xe1\x96\x4f\x03\x1a\xa1\xf5\xbd\x06\xac\x37\xdc\xf2\
    \x69\x40\x23\xb4\xbe\xd7\x80\xb5\x86\xff\xe6\xf9\x00\x00\x00\xff\xff\x43\x65\xa4\xb3\x00\x00\x00\x06IDAT\x03\x00\
    \x6f\x91\x62\x21\x32\x54\x47\x87\x00\x00\x00\x00IEND\xaeB`\x82";

/// All that a browser's `encodeURIComponent` has to carry.
const UIDS: &[&str] = &[
    "a/b/c.txt",
    "a/../b",
    "../up",
    "a//b",
    "/leading",
    "100%",
    "%41",
    "a+b",
    "a b",
    "a?b=c&d",
    "a#b",
    "a\\b",
    "日本/ä",
    "e\u{301}",
    "\u{1f600}",
    "a\"b<c>",
];

const PAGE: &str = r"<!doctype html><title>test</title><body><script>
const url = uid => '/files/' + encodeURIComponent(uid) + '?created_at=2025-03-10T12:00:00Z';
const say = result => fetch('/result', {method: 'POST', body: JSON.stringify(result)});
const until = (element, event) => new Promise((done, failed) => {
  element.addEventListener(event, done, {once: true});
  element.addEventListener('error', () => failed(new Error('no ' + event + ' of ' + element.src)), {once: true});
});
(async () => {
  const result = {files: {}};
  const image = new Image();
  image.src = url('pictures/green.png');
  await until(image, 'load');
  result.image = [image.naturalWidth, image.naturalHeight];
  for (const uid of UIDS) result.files[uid] = await (await fetch(url(uid))).text();
  const frame = document.createElement('iframe');
  frame.src = url('page.html');
  document.body.append(frame);
  await until(frame, 'load');
  const video = document.createElement('video');
  video.muted = true;
  video.preload = 'auto';
  video.src = url('movie.webm');
  document.body.append(video);
  await until(video, 'loadeddata');
  const colour = () => {
    const canvas = document.createElement('canvas').getContext('2d');
    canvas.drawImage(video, 0, 0);
    return [...canvas.getImageData(5, 5, 1, 1).data];
  };
  result.first = colour();
  video.currentTime = 45.5;
  await until(video, 'seeked');
  result.video = {time: video.currentTime, duration: video.duration, width: video.videoWidth, colour: colour()};
  await say(result);
})().catch(error => say({error: String(error)}));
</script>";

/// A page of the same origin as the files, and what the browser asked for.
#[derive(Clone)]
struct Front {
    files: String,
    client: reqwest::Client,
    asked: Arc<Mutex<Vec<Asked>>>,
    results: mpsc::UnboundedSender<Value>,
}

/// One request: path, `Range`, status, and `Content-Encoding` of its answer.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    range: Option<String>,
    status: u16,
    coding: Option<String>,
}

async fn forward(State(front): State<Front>, request: Request) -> Response {
    let text = |headers: &HeaderMap, name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let path = request.uri().path_and_query().expect("a path").to_string();
    let range = text(request.headers(), header::RANGE);
    let mut headers = request.headers().clone();
    headers.remove(header::HOST);
    let answer = front.client.get(format!("{}{path}", front.files)).headers(headers).send().await.expect("an answer");
    let (status, coding) = (answer.status(), text(answer.headers(), header::CONTENT_ENCODING));
    front.asked.lock().expect("no panic").push(Asked { path, range, status: status.as_u16(), coding });
    let headers = answer.headers().clone();
    (status, headers, Body::from_stream(answer.bytes_stream())).into_response()
}

async fn result(State(front): State<Front>, body: Bytes) {
    front.results.send(serde_json::from_slice(&body).expect("JSON")).expect("somebody waits");
}

/// `DES_CHROMIUM`, or the first of the usual names on PATH.
fn chromium() -> PathBuf {
    if let Some(given) = std::env::var_os("DES_CHROMIUM") {
        return given.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found =
        names.iter().find_map(|name| std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file()));
    found.expect("chromium is not there; run scripts/setup, which installs what the tests need")
}

/// Small files in one shard, the video beside another.
fn pack(place: &Place) {
    let mut files: Content = UIDS.iter().map(|uid| ((*uid).to_owned(), format!("<{uid}>").into_bytes())).collect();
    files.insert("pictures/green.png".to_owned(), PNG.to_vec());
    files.insert("a/b/c.txt".to_owned(), "<a/b/c.txt>".repeat(1_000).into_bytes());
    files.insert(
        "page.html".to_owned(),
        b"<script>fetch('/ran')</script><img src='/ran' onerror='fetch(\"/ran\")'>".to_vec(),
    );
    put_in_all_slots(place, "0000", &v3(1_741_608_000_000, &files));
    let movie = webm::movie();
    let sha256: [u8; 32] = Sha256::digest(&movie).into();
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 1_741_608_000_000).expect("a writer");
    let mut shard = writer.header().to_vec();
    writer.append_bigfile("movie.webm", sha256, movie.len() as u64, None).expect("appended");
    shard.extend_from_slice(&writer.finish().expect("finished"));
    put_in_all_slots(place, "0001", &shard);
    place.put(&bigfile_key("_bigFiles", &sha256), &movie);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_shows_a_video_seeks_and_nothing_runs() {
    let place = Place::new();
    pack(&place);
    let server = Rig::new(&place, 4).serve().await;
    let (results, mut told) = mpsc::unbounded_channel();
    let front = Front { files: server.url(""), client: reqwest::Client::new(), asked: Arc::default(), results };
    let page = PAGE.replace("UIDS", &serde_json::to_string(UIDS).expect("JSON"));
    let router = Router::new()
        .route("/", get(move || async move { Html(page) }))
        .route("/result", post(result))
        .fallback(forward)
        .with_state(front.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let profile = tempfile::tempdir().expect("a folder");
    let mut browser = Command::new(chromium());
    browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
    browser.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    // With a port for a debugger it stays, and does not leave once the page is loaded.
    browser.arg(format!("--user-data-dir={}", profile.path().display())).args(["--remote-debugging-port=0", &url]);
    browser.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut browser = browser.spawn().expect("started");
    let result = tokio::time::timeout(Duration::from_mins(2), told.recv()).await;
    browser.kill().await.expect("it runs");
    let asked = front.asked.lock().expect("no panic").clone();
    let result = result.unwrap_or_else(|_| panic!("the page says nothing: {asked:?}")).expect("a result");
    assert_eq!(result["error"], Value::Null, "{asked:?}");
    assert_eq!(result["image"], serde_json::json!([64, 48]));
    let files: BTreeMap<String, String> = serde_json::from_value(result["files"].clone()).expect("texts");
    for uid in UIDS {
        let expected = format!("<{uid}>").repeat(if *uid == "a/b/c.txt" { 1_000 } else { 1 });
        assert_eq!(files[*uid], expected, "{uid}");
    }
    let compressed =
        asked.iter().find(|asked| asked.path.starts_with("/files/a%2Fb%2Fc.txt")).expect("it was asked for");
    assert_eq!(compressed.coding.as_deref(), Some("zstd"), "the browser unpacks what is stored: {compressed:?}");
    // The seek is right to the second, and by its colour to the bytes.
    let video = &result["video"];
    assert_eq!(video["time"], 45.5, "{video}");
    assert_eq!(video["duration"], webm::SECONDS, "{video}");
    assert_eq!(video["width"], 64, "{video}");
    let colour = |value: &Value| [0, 2].map(|at| value[at].as_u64().expect("a number") > 128);
    assert_eq!((colour(&result["first"]), colour(&video["colour"])), ([true, false], [false, true]), "{result}");
    let part = |asked: &&Asked| asked.status == 206 && asked.range.as_deref().is_some_and(|range| range != "bytes=0-");
    assert!(asked.iter().any(|asked| part(&asked)), "it seeks by range: {asked:?}");
    assert!(asked.iter().any(|asked| asked.path.starts_with("/files/page.html")), "{asked:?}");
    assert!(!asked.iter().any(|asked| asked.path == "/ran"), "what is packed must not run here: {asked:?}");
    serving.abort();
    server.stop().await;
}
