//! Small ranges without the SDK's machinery around each call.
//!
//! The SDK resolves, signs, times and interprets every call anew, which costs several times what the rest of a small read
//! does. Here it signs a URL for an object once (a presigned GET, "Authenticating Requests: Using Query Parameters" of the
//! S3 API) and ranges of the object are asked with that URL: `Range` is not among the signed headers. Credentials,
//! endpoint, region and path style stay the SDK's affair.
//!
//! What the signature's refusal means (rotated credentials, a server that knows no such URLs) is left to the SDK: then the
//! same call is made in the usual way.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::config::http::{HttpRequest, HttpResponse};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::{ByteStream, DateTime, DateTimeFormat, SdkBody};
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorSettings};
use moka::future::Cache;

use super::super::call::Call;
use super::super::{ByteRange, Fetched, StoreError, StoreErrorKind};
use super::errors::{Refused, causes, refusal};
use super::read::Answer;
use super::{S3Store, S3Timeouts};

/// The longest range read this way. Larger ones are paced by the network, for which the SDK's watch over stalled streams
/// is right, not a limit on the whole call.
const MOST_BYTES: u64 = 1 << 20;
/// How long a URL is signed for, and how long it is used: credentials may end before it does, so not very long.
const SIGNED_FOR: Duration = Duration::from_mins(30);
const USED_FOR: Duration = Duration::from_mins(15);
/// Objects whose URLs are kept; each takes about 600 bytes.
const MOST_URLS: u64 = 10_000;
/// What is read of a refusal's body.
const MOST_REFUSAL: usize = 16 * 1024;

/// Reads small ranges.
pub(super) struct SmallRanges {
    connector: Connector,
    /// By full key.
    signed: Cache<String, Arc<str>>,
    /// For the whole call.
    timeout: Duration,
}

impl fmt::Debug for SmallRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A signed URL is a secret for as long as it is good.
        f.debug_struct("SmallRanges").field("urls", &self.signed.entry_count()).finish_non_exhaustive()
    }
}

impl SmallRanges {
    pub(super) fn new(timeouts: &S3Timeouts) -> Self {
        let settings = HttpConnectorSettings::builder().connect_timeout(timeouts.connect).build();
        let connector = Connector::builder().connector_settings(settings);
        Self {
            connector: connector.tls_provider(Provider::Rustls(CryptoMode::Ring)).build(),
            signed: Cache::builder().max_capacity(MOST_URLS).time_to_live(USED_FOR).build(),
            timeout: timeouts.attempt,
        }
    }

    /// The range, read. `None` when the SDK has to ask: the range is not small, or the server does not take the URL.
    pub(super) async fn get(
        &self,
        store: &S3Store,
        call: &Call,
        full: &str,
        range: &ByteRange,
    ) -> Result<Option<Fetched>, StoreError> {
        let ByteRange::Span(span) = range else { return Ok(None) };
        if span.end - span.start > MOST_BYTES {
            return Ok(None);
        }
        let asked = async {
            let Some(url) = self.url(store, full).await else { return Ok(None) };
            let header = format!("bytes={}-{}", span.start, span.end - 1);
            let response = self.send(call, &url, header).await?;
            match response.status().as_u16() {
                200 | 206 => {
                    let answer = Answer::check(call, output(response), range)?;
                    answer.collect(call.clone()).await.map(Some)
                }
                status @ (404 | 412 | 416 | 429 | 500..) => Err(refused(call, status, response).await),
                _ => {
                    self.signed.invalidate(full).await;
                    Ok(None)
                }
            }
        };
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(call.error(StoreErrorKind::Unavailable, "no answer in time")),
        }
    }

    async fn url(&self, store: &S3Store, full: &str) -> Option<Arc<str>> {
        if let Some(url) = self.signed.get(full).await {
            return Some(url);
        }
        let sign = async {
            let config = PresigningConfig::expires_in(SIGNED_FOR).ok()?;
            let request = store.client.get_object().bucket(&store.bucket).key(full).presigned(config).await.ok()?;
            // Whatever else would have to be sent is for the SDK to send.
            let plain = request.headers().all(|(name, _)| name.eq_ignore_ascii_case("host"));
            plain.then(|| Arc::from(request.uri()))
        };
        self.signed.optionally_get_with_by_ref(full, sign).await
    }

    async fn send(&self, call: &Call, url: &str, range: String) -> Result<HttpResponse, StoreError> {
        let mut request = HttpRequest::new(SdkBody::empty());
        request.set_uri(url).map_err(|e| call.invalid(format!("a signed URL is none: {e}")))?;
        request.headers_mut().insert("range", range);
        let sent = self.connector.call(request).await;
        let failed = |e: &(dyn std::error::Error + 'static)| format!("the server cannot be reached: {}", causes(e));
        sent.map_err(|e| call.error(StoreErrorKind::Unavailable, failed(&e)))
    }
}

/// The answer as the SDK would have read it.
fn output(response: HttpResponse) -> GetObjectOutput {
    let headers = response.headers();
    let text = |name: &str| headers.get(name).map(str::to_owned);
    let modified =
        headers.get("last-modified").and_then(|text| DateTime::from_str(text, DateTimeFormat::HttpDate).ok());
    let metadata = headers.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix("x-amz-meta-")?;
        Some((name.to_owned(), value.to_owned()))
    });
    GetObjectOutput::builder()
        .set_content_length(headers.get("content-length").and_then(|text| text.parse().ok()))
        .set_content_range(text("content-range"))
        .set_e_tag(text("etag"))
        .set_last_modified(modified)
        .set_metadata(Some(metadata.collect()))
        .body(ByteStream::new(response.into_body()))
        .build()
}

/// What a refusal says: S3's error is a small XML document with a `Code` and a `Message`.
async fn refused(call: &Call, status: u16, response: HttpResponse) -> StoreError {
    let mut body = ByteStream::new(response.into_body());
    let mut text = Vec::new();
    while let Some(Ok(chunk)) = body.next().await {
        text.extend_from_slice(&chunk[..chunk.len().min(MOST_REFUSAL - text.len())]);
        if text.len() == MOST_REFUSAL {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text);
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(content, _)| content)
    };
    refusal(call, status, (element("Code").unwrap_or(""), element("Message")), Refused::Object)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::extract::Request;
    use axum::http::StatusCode;
    use axum::response::{IntoResponse, Response};

    use super::super::{S3Config, S3Credentials};
    use super::*;
    use crate::store::ObjectStore;

    async fn store_at(answer: impl Fn(&Request) -> Response + Clone + Send + Sync + 'static) -> S3Store {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let app = axum::Router::new().fallback(move |request: Request| {
            let answer = answer(&request);
            async move { answer }
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        let credentials = S3Credentials { access_key_id: "id".into(), secret_access_key: "secret".into() };
        let config = S3Config { endpoint_url: Some(endpoint), credentials: Some(credentials), ..S3Config::new("b") };
        S3Store::connect(&config).await.expect("usable")
    }

    fn is_signed_url(request: &Request) -> bool {
        request.uri().query().is_some_and(|query| query.contains("X-Amz-Signature="))
    }

    fn part() -> Response {
        let headers = [("content-range", "bytes 2-4/10"), ("etag", "\"e\""), ("x-amz-meta-name", "value")];
        (StatusCode::PARTIAL_CONTENT, headers, "cde").into_response()
    }

    #[tokio::test]
    async fn a_small_range_goes_by_a_signed_url_and_a_large_one_does_not() {
        let urls = Arc::new(AtomicUsize::new(0));
        let seen = urls.clone();
        let store = store_at(move |request| {
            seen.fetch_add(usize::from(is_signed_url(request)), Ordering::Relaxed);
            part()
        });
        let store = store.await;
        for _ in 0..3 {
            let fetched = store.get("k", ByteRange::Span(2..5)).await.expect("right");
            assert_eq!((&fetched.bytes[..], fetched.meta.etag.as_str()), (&b"cde"[..], "\"e\""));
            assert_eq!(fetched.meta.metadata.get("name").map(String::as_str), Some("value"));
        }
        assert_eq!(urls.load(Ordering::Relaxed), 3);
        let large = store.get("k", ByteRange::Span(2..MOST_BYTES + 3)).await.expect_err("three bytes are no megabyte");
        assert_eq!((large.kind, urls.load(Ordering::Relaxed)), (StoreErrorKind::InvalidRange, 3));
    }

    #[tokio::test]
    async fn a_server_that_refuses_signed_urls_is_asked_by_the_sdk() {
        for status in [StatusCode::FORBIDDEN, StatusCode::BAD_REQUEST, StatusCode::MOVED_PERMANENTLY] {
            let answer = move |request: &Request| if is_signed_url(request) { status.into_response() } else { part() };
            let store = store_at(answer).await;
            let fetched = store.get("k", ByteRange::Span(2..5)).await.expect("the other way");
            assert_eq!(&fetched.bytes[..], b"cde");
        }
    }

    #[tokio::test]
    async fn refusals_mean_what_the_sdk_says_they_do() {
        let slow = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>";
        let table = [
            (404, "<Error><Code>NoSuchKey</Code></Error>", StoreErrorKind::NotFound),
            (404, "<Error><Code>NoSuchBucket</Code></Error>", StoreErrorKind::NoSuchBucket),
            (404, "", StoreErrorKind::NotFound),
            (416, "", StoreErrorKind::InvalidRange),
            (503, slow, StoreErrorKind::Throttled),
            (500, "no XML", StoreErrorKind::Unavailable),
        ];
        for (status, body, kind) in table {
            let status = StatusCode::from_u16(status).expect("a status");
            let store = store_at(move |_| (status, body).into_response()).await;
            let error = store.get("k", ByteRange::Span(2..5)).await.expect_err("refused");
            assert_eq!(error.kind, kind, "{status} {body}");
            let text = error.to_string();
            assert!(text.contains(status.as_str()) && !text.contains("Signature"), "{text}");
        }
    }

    #[tokio::test]
    async fn wrong_answers_give_no_bytes() {
        let whole = store_at(|_| (StatusCode::OK, [("etag", "\"e\"")], "abcdefghij").into_response()).await;
        let error = whole.get("k", ByteRange::Span(2..5)).await.expect_err("the range was ignored");
        assert_eq!(error.kind, StoreErrorKind::Invalid);
        let other =
            store_at(|_| (StatusCode::PARTIAL_CONTENT, [("content-range", "bytes 3-5/10")], "def").into_response());
        let error = other.await.get("k", ByteRange::Span(2..5)).await.expect_err("another range");
        assert_eq!(error.kind, StoreErrorKind::Invalid);
    }

    #[tokio::test]
    async fn nobody_listening_is_unavailable_and_shows_no_secret() {
        let credentials = S3Credentials { access_key_id: "id".into(), secret_access_key: "secret".into() };
        let endpoint_url = Some("http://127.0.0.1:1".to_owned());
        let config = S3Config { endpoint_url, credentials: Some(credentials), ..S3Config::new("b") };
        let store = S3Store::connect(&config).await.expect("usable");
        let error = store.get("k", ByteRange::Span(0..5)).await.expect_err("nobody is there");
        assert_eq!(error.kind, StoreErrorKind::Unavailable);
        assert!(!error.to_string().contains("X-Amz"), "{error}");
    }
}
