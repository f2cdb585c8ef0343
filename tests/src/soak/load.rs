//! The clients of a soak: mixed requests, each answer compared with what it must be.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::json;
use tokio::time::Instant;

use super::files::{File, Files, State};

/// The key that may delete.
pub(super) const DELETER: &str = "soak-deleter";
/// Wrong things that are described; more are counted.
const DESCRIBED: usize = 50;

/// What the clients saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Requests by kind and status; 0 for an answer that broke off.
    pub requests: BTreeMap<(&'static str, u16), u64>,
    /// Files of batches by status.
    pub batch_files: BTreeMap<u16, u64>,
    /// Bytes that were compared.
    pub bytes: u64,
    /// Answers that broke off where that is the way to say that bytes are wrong.
    pub broken_off: u64,
    /// 502s of big files: a range whose first block is damaged is told before anything is sent.
    pub big_refused: u64,
    /// What must not be: how many, and the first of them described.
    pub wrong: u64,
    /// The first of them.
    pub described: Vec<String>,
}

impl Seen {
    fn wrong(&mut self, what: String) {
        self.wrong += 1;
        if self.described.len() < DESCRIBED {
            self.described.push(what);
        }
    }

    /// Requests for single files with this status.
    pub fn singles(&self, status: u16) -> u64 {
        self.requests.iter().filter(|((kind, own), _)| *kind != "batch" && *own == status).map(|(_, count)| count).sum()
    }
}

/// What the clients share.
pub(super) struct Load {
    pub(super) files: Files,
    pub(super) base: String,
    pub(super) http: Client,
    pub(super) seen: Mutex<Seen>,
    pub(super) until: Instant,
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

impl Load {
    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn counted(&self, kind: &'static str, status: u16) {
        self.note(|seen| *seen.requests.entry((kind, status)).or_default() += 1);
    }

    fn wrong(&self, kind: &str, uid: &str, what: &str) {
        self.note(|seen| seen.wrong(format!("{kind} {uid:?}: {what}")));
    }

    /// One client, until the time is over.
    pub(super) async fn client(self: Arc<Self>, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        while Instant::now() < self.until {
            let file = &self.files.all[rng.random_range(0..self.files.all.len())];
            match rng.random_range(0..100) {
                0..45 => self.whole(file).await,
                45..60 => self.range(file, &mut rng).await,
                60..70 => self.head(file).await,
                70..78 => self.zstd(file).await,
                78..86 => self.conditional(file).await,
                86..92 => self.missing(&mut rng).await,
                92..94 => self.delete(file).await,
                _ => self.batch(&mut rng).await,
            }
        }
    }

    fn request(&self, method: Method, file: &File) -> RequestBuilder {
        let url = format!("{}/files/{}?created_at={}", self.base, encoded(&file.uid), encoded(file.created_at));
        self.http.request(method, url)
    }

    /// Sends a request. `None` when the answer is one that needs no look at its bytes.
    async fn send(&self, kind: &'static str, file: &File, request: RequestBuilder, fine: &[u16]) -> Option<Response> {
        let before = file.state();
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                self.counted(kind, 0);
                self.wrong(kind, &file.uid, &format!("no answer: {error}"));
                return None;
            }
        };
        let status = response.status().as_u16();
        self.counted(kind, status);
        if status == 502 && file.big {
            self.note(|seen| seen.big_refused += 1);
        }
        let gone = status == 410;
        // What was deleted before the request must be gone, what is there after it must be there.
        let (must_be_gone, must_be_there) = (before == State::Deleted, file.state() == State::There);
        if (must_be_gone && !gone && status != 503) || (must_be_there && gone) {
            self.wrong(kind, &file.uid, &format!("{status} of a file that is {before:?}"));
            return None;
        }
        if fine.contains(&status) {
            return Some(response);
        }
        if !matches!(status, 410 | 502 | 503) {
            self.wrong(kind, &file.uid, &format!("{status}"));
        }
        None
    }

    /// The body; only that of a big file may break off.
    async fn body(&self, kind: &'static str, file: &File, response: Response) -> Option<Bytes> {
        match response.bytes().await {
            Ok(bytes) => {
                self.note(|seen| seen.bytes += bytes.len() as u64);
                Some(bytes)
            }
            Err(_) if file.big => {
                self.note(|seen| seen.broken_off += 1);
                None
            }
            Err(error) => {
                self.wrong(kind, &file.uid, &format!("its answer broke off: {error}"));
                None
            }
        }
    }

    fn compare(&self, kind: &str, uid: &str, (got, right): (&[u8], &[u8])) {
        if got != right {
            self.wrong(kind, uid, &format!("WRONG BYTES: {} where {} are right", got.len(), right.len()));
        }
    }

    async fn whole(&self, file: &File) {
        let Some(response) = self.send("get", file, self.request(Method::GET, file), &[200]).await else { return };
        if let Some(bytes) = self.body("get", file, response).await {
            self.compare("get", &file.uid, (&bytes, &file.raw));
        }
    }

    async fn range(&self, file: &File, rng: &mut StdRng) {
        if file.raw.is_empty() {
            return;
        }
        let from = rng.random_range(0..file.raw.len());
        let to = rng.random_range(from..file.raw.len());
        let (header, right) = if rng.random_bool(0.3) {
            let last = file.raw.len() - from;
            (format!("bytes=-{last}"), &file.raw[from..])
        } else {
            (format!("bytes={from}-{to}"), &file.raw[from..=to])
        };
        let request = self.request(Method::GET, file).header("Range", &header);
        let Some(response) = self.send("range", file, request, &[206]).await else { return };
        if let Some(bytes) = self.body("range", file, response).await {
            self.compare("range", &file.uid, (&bytes, right));
        }
    }

    async fn head(&self, file: &File) {
        let Some(response) = self.send("head", file, self.request(Method::HEAD, file), &[200]).await else { return };
        let length = response.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
        if length != Some(file.raw.len()) {
            self.wrong("head", &file.uid, &format!("Content-Length {length:?}"));
        }
    }

    async fn zstd(&self, file: &File) {
        let request = self.request(Method::GET, file).header("Accept-Encoding", "zstd");
        let Some(response) = self.send("zstd", file, request, &[200]).await else { return };
        let frame = response.headers().get("content-encoding").is_some_and(|value| value == "zstd");
        let Some(bytes) = self.body("zstd", file, response).await else { return };
        let raw = if frame { zstd::decode_all(&bytes[..]).unwrap_or_default() } else { bytes.to_vec() };
        self.compare("zstd", &file.uid, (&raw, &file.raw));
    }

    async fn conditional(&self, file: &File) {
        let Some(response) = self.send("head", file, self.request(Method::HEAD, file), &[200]).await else { return };
        let Some(etag) = response.headers().get("etag").cloned() else {
            return self.wrong("head", &file.uid, "no entity tag");
        };
        let request = self.request(Method::GET, file).header("If-None-Match", etag);
        if let Some(response) = self.send("conditional", file, request, &[304]).await
            && let Some(bytes) = self.body("conditional", file, response).await
        {
            self.compare("conditional", &file.uid, (&bytes, &[]));
        }
    }

    async fn missing(&self, rng: &mut StdRng) {
        let uid = format!("never/there-{}", rng.random::<u32>());
        let url = format!("{}/files/{}?created_at=2025-03-10", self.base, encoded(&uid));
        match self.http.get(url).send().await {
            Ok(response) => {
                let status = response.status().as_u16();
                self.counted("missing", status);
                if !matches!(status, 404 | 503) {
                    self.wrong("missing", &uid, &format!("{status}"));
                }
            }
            Err(error) => self.wrong("missing", &uid, &format!("no answer: {error}")),
        }
    }

    async fn delete(&self, file: &File) {
        if !file.mortal {
            return;
        }
        let before = file.state();
        file.set(State::Unsure);
        let url = format!(
            "{}/files/{}?created_at={}&deleted_by=soak&reason=test",
            self.base,
            encoded(&file.uid),
            encoded(file.created_at)
        );
        let status = match self.http.delete(url).header("X-API-Key", DELETER).send().await {
            Ok(response) => response.status().as_u16(),
            Err(_) => 0,
        };
        self.counted("delete", status);
        match status {
            200 | 410 => file.set(State::Deleted),
            503 => {}
            _ => self.wrong("delete", &file.uid, &format!("{status} of a file that was {before:?}")),
        }
    }

    async fn batch(&self, rng: &mut StdRng) {
        let count = rng.random_range(20..400);
        let mut numbers: Vec<usize> = (0..count).map(|_| rng.random_range(0..self.files.all.len())).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let files: Vec<&File> = numbers.iter().map(|number| &self.files.all[*number]).collect();
        let before: Vec<State> = files.iter().map(|file| file.state()).collect();
        let list: Vec<_> = files.iter().map(|f| json!({"uid": f.uid, "created_at": f.created_at})).collect();
        let request = self.http.post(format!("{}/files/batch", self.base)).header("Accept", "multipart/mixed");
        let response = match request.json(&list).send().await {
            Ok(response) => response,
            Err(error) => return self.wrong("batch", "", &format!("no answer: {error}")),
        };
        let status = response.status().as_u16();
        self.counted("batch", status);
        if status != 200 {
            if status != 503 {
                self.wrong("batch", "", &format!("{status}"));
            }
            return;
        }
        let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let boundary = format!("\r\n--{}", kind.split("boundary=").nth(1).unwrap_or_default());
        match response.bytes().await {
            Ok(bytes) => self.parts(&bytes, &boundary, (&files, &before)),
            Err(_) if files.iter().any(|file| file.big) => self.note(|seen| seen.broken_off += 1),
            Err(error) => self.wrong("batch", "", &format!("it broke off: {error}")),
        }
    }

    /// Looks at all parts of a batch's answer; each says its length.
    fn parts(&self, mut rest: &[u8], boundary: &str, (files, before): (&[&File], &[State])) {
        let mut number = 0;
        loop {
            let Some(part) = rest.strip_prefix(boundary.as_bytes()) else {
                return self.wrong("batch", "", "a part does not end where it says");
            };
            if part.starts_with(b"--") {
                break;
            }
            let Some(end) = part.windows(4).position(|four| four == b"\r\n\r\n") else {
                return self.wrong("batch", "", "a part without a head");
            };
            let head = String::from_utf8_lossy(&part[..end]);
            let value = |name: &str| {
                let line = head.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|value| value.trim().parse::<usize>().ok())
            };
            let length = value("Content-Length:").unwrap_or(0);
            let Some(body) = part.get(end + 4..end + 4 + length) else {
                return self.wrong("batch", "", "a part is shorter than it says");
            };
            if let (Some(index), Some(status)) = (value("X-DES-Index:"), value("X-DES-Status:")) {
                if index != number || index >= files.len() {
                    return self.wrong("batch", "", "its files come in another order");
                }
                self.part(files[index], before[index], (status as u16, body));
                number += 1;
            }
            rest = &part[end + 4 + length..];
        }
        if number != files.len() {
            let mut what = String::new();
            write!(what, "{number} of {} files", files.len()).expect("writing to a string cannot fail");
            self.wrong("batch", "", &what);
        }
    }

    fn part(&self, file: &File, before: State, (status, body): (u16, &[u8])) {
        self.note(|seen| {
            *seen.batch_files.entry(status).or_default() += 1;
            seen.bytes += body.len() as u64;
        });
        let after = file.state();
        match status {
            200 if before != State::Deleted => self.compare("batch", &file.uid, (body, &file.raw)),
            410 if after != State::There => {}
            502 if file.big => self.note(|seen| seen.big_refused += 1),
            502 | 503 => {}
            _ => self.wrong("batch", &file.uid, &format!("{status} of a file that was {before:?}")),
        }
    }
}
