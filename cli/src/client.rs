//! The HTTP client of coordinator and retriever. A refusal is shown in the server's own words (`problem+json`), with what
//! to do next.

use std::time::Duration;

use bytes::Bytes;
use des_shared::features;
use des_shared::job::{JobRequest, JobView};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::args::KeyArgs;
use crate::error::CliError;

/// Everything but what RFC 3986 calls unreserved: a uid is one path segment, whatever is in it.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The longest error answer that is read, in bytes.
const MAX_PROBLEM_BYTES: usize = 64 * 1024;

/// Which service is meant; its name in messages and how to start one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// Accepts jobs.
    Coordinator,
    /// Serves files.
    Retriever,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Retriever => "retriever",
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::Coordinator => "--coordinator URL (DES_COORDINATOR_URL)",
            Self::Retriever => "--retriever URL (DES_RETRIEVER_URL)",
        }
    }
}

/// A service over HTTP.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    key: Option<String>,
    service: Service,
}

/// RFC 9457, what of it is shown.
#[derive(Debug, Default, Deserialize)]
struct Problem {
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    errors: Vec<String>,
}

impl Client {
    /// A client of the service at `url`.
    ///
    /// # Errors
    /// Wrong usage when the URL or the key makes no sense.
    pub(crate) fn new(service: Service, url: &str, key: &KeyArgs) -> Result<Self, CliError> {
        let wrong = |why: &dyn std::fmt::Display| {
            CliError::usage(format!("{url:?} is not the URL of a {}: {why}", service.name()))
                .hint(format!("expected something like http://127.0.0.1:8080; set it with {}", service.flag()))
        };
        let mut base = Url::parse(url).map_err(|e| wrong(&e))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(wrong(&"expected http:// or https://"));
        }
        // Joined paths replace what stands behind the last slash.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        if let Some(key) = &key.api_key
            && reqwest::header::HeaderValue::from_str(key).is_err()
        {
            return Err(CliError::usage("the key cannot be sent in a header (not shown: it is a secret)"));
        }
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_mins(2))
            // A redirect would send the key and the request to another host.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| CliError::failed(format!("cannot set up HTTP: {e}")))?;
        Ok(Self { http, base, key: key.api_key.clone(), service })
    }

    /// The URL of a path below the service's, for people too.
    pub(crate) fn url(&self, path: &str, query: &[(&str, String)]) -> Result<Url, CliError> {
        let mut url = self.base.join(path).map_err(|e| CliError::failed(format!("{path:?} is no path: {e}")))?;
        if !query.is_empty() {
            let text: Vec<String> =
                query.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, SEGMENT))).collect();
            url.set_query(Some(&text.join("&")));
        }
        Ok(url)
    }

    /// The URL a file is served at.
    pub(crate) fn file_url(&self, uid: &str, created_at: &str) -> Result<Url, CliError> {
        // Percent signs do not keep URL parsers from taking these as "this folder" and "the folder above".
        if matches!(uid, "." | "..") {
            return Err(CliError::usage(format!("the uid {uid:?} cannot stand in a URL"))
                .hint("read it with des cat from the shards themselves"));
        }
        self.url(&format!("files/{}", utf8_percent_encode(uid, SEGMENT)), &[("created_at", created_at.to_owned())])
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.key {
            Some(key) => request.header("X-API-Key", key),
            None => request,
        }
    }

    /// Sends a request and turns everything but a success into an error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        if self.base.scheme() == "https" && !cfg!(feature = "tls") {
            return Err(CliError::usage(format!("{}: {}", self.base, features::missing("tls", "TLS"))));
        }
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if response.status().is_success() { Ok(response) } else { Err(self.refused(response).await) }
    }

    /// A GET whose answer is a stream of bytes.
    ///
    /// # Errors
    /// When the service cannot be reached or refuses.
    pub(crate) async fn get(&self, url: Url) -> Result<Response, CliError> {
        self.send(self.request(Method::GET, url)).await
    }

    /// A GET whose answer is JSON.
    ///
    /// # Errors
    /// When the service cannot be reached, refuses, or answers something else.
    pub(crate) async fn json<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T, CliError> {
        let response = self.get(self.url(path, query)?).await?;
        self.decode(response).await
    }

    /// A request that changes something. Answers the status and the JSON of the answer, which is `null` when it is empty.
    ///
    /// # Errors
    /// When the service cannot be reached, refuses, or answers something else.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), CliError> {
        let request = self.request(method, self.url(path, query)?);
        let response = self.send(if let Some(body) = body { request.json(body) } else { request }).await?;
        let status = response.status();
        let value = if status == StatusCode::NO_CONTENT { Value::Null } else { self.decode(response).await? };
        Ok((status, value))
    }

    /// A request whose answer is a stream.
    ///
    /// # Errors
    /// When the service cannot be reached or refuses.
    pub(crate) async fn stream(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        headers: &[(&str, String)],
    ) -> Result<Response, CliError> {
        let request = self.request(method, self.url(path, query)?);
        self.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, value))).await
    }

    /// Asks a retriever for many files. The answer has a part for each.
    ///
    /// # Errors
    /// When the service cannot be reached or refuses.
    pub(crate) async fn batch(&self, list: &[Value]) -> Result<Response, CliError> {
        let request = self.request(Method::POST, self.url("files/batch", &[])?).header("Accept", "multipart/mixed");
        self.send(request.json(list)).await
    }

    async fn decode<T: DeserializeOwned>(&self, response: Response) -> Result<T, CliError> {
        let url = response.url().clone();
        let bytes = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        serde_json::from_slice(&bytes).map_err(|e| {
            CliError::failed(format!("{url} answered something else than this version understands: {e}"))
                .hint(format!("is it really a DES {}, of the same version?", self.service.name()))
        })
    }

    /// Submits a manifest that is sent along as NDJSON.
    ///
    /// # Errors
    /// When the service cannot be reached or refuses.
    pub(crate) async fn submit_stream(
        &self,
        body: reqwest::Body,
        options: &JobRequest,
        idempotency_key: Option<&str>,
    ) -> Result<Submitted, CliError> {
        let url = self.url("v1/jobs", &query_of(options)?)?;
        let request = self.request(Method::POST, url).header("Content-Type", "application/x-ndjson").body(body);
        self.submitted(request, idempotency_key).await
    }

    /// Submits a manifest that the coordinator reads itself.
    ///
    /// # Errors
    /// When the service cannot be reached or refuses.
    pub(crate) async fn submit_uri(
        &self,
        uri: &str,
        options: &JobRequest,
        idempotency_key: Option<&str>,
    ) -> Result<Submitted, CliError> {
        let body = json!({ "manifest": { "uri": uri }, "options": options });
        let request = self.request(Method::POST, self.url("v1/jobs", &[])?).json(&body);
        self.submitted(request, idempotency_key).await
    }

    async fn submitted(&self, request: RequestBuilder, key: Option<&str>) -> Result<Submitted, CliError> {
        let request = match key {
            Some(key) => request.header("Idempotency-Key", key),
            None => request,
        };
        let response = self.send(request).await?;
        // 202 is a new job, 200 one that was submitted before.
        let known = response.status() == StatusCode::OK;
        let raw: Value = self.decode(response).await?;
        Ok(Submitted { job: view(&raw)?, raw, known })
    }

    /// A job as the coordinator shows it, raw and read.
    ///
    /// # Errors
    /// When the service cannot be reached or refuses.
    pub(crate) async fn job(&self, id: &str) -> Result<(JobView, Value), CliError> {
        let raw: Value = self.json(&job_path(id, ""), &[]).await?;
        Ok((view(&raw)?, raw))
    }

    /// The failure list of a job, as NDJSON.
    ///
    /// # Errors
    /// When the service cannot be reached or refuses.
    pub(crate) async fn failures(&self, id: &str) -> Result<Response, CliError> {
        self.get(self.url(&job_path(id, "/failures"), &[])?).await
    }

    /// An error of the connection, in words.
    pub(crate) fn unreachable(&self, error: &reqwest::Error) -> CliError {
        let name = self.service.name();
        let base = self.base.as_str().trim_end_matches('/');
        if error.is_connect() {
            return CliError::failed(format!("no {name} answers at {base}: {}", innermost(error))).hint(format!(
                "start one (des dev --data DIR runs everything on this machine), or say where it is with {}",
                self.service.flag()
            ));
        }
        if error.is_timeout() {
            return CliError::failed(format!("the {name} at {base} did not answer in time"))
                .hint("it may be overloaded; try again, and look at its /health/ready");
        }
        CliError::failed(format!("the connection to the {name} at {base} broke: {}", innermost(error)))
            .hint("run the same command again; a repeated submission is the same job")
    }

    async fn refused(&self, mut response: Response) -> CliError {
        let (status, url) = (response.status(), response.url().clone());
        let retry_after = response.headers().get("retry-after").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let mut body: Vec<u8> = Vec::new();
        // A body that breaks off leaves the status, which says enough.
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk[..chunk.len().min(MAX_PROBLEM_BYTES - body.len())]);
            if body.len() == MAX_PROBLEM_BYTES {
                break;
            }
        }
        let name = self.service.name();
        if status.is_redirection() {
            return CliError::failed(format!(
                "{url} answered {status}: it leads to another address, which is not followed"
            ))
            .hint(format!("give the {name}'s own address: {}", self.service.flag()));
        }
        let Ok(problem) = serde_json::from_slice::<Problem>(&body) else {
            return CliError::failed(format!("{url} answered {status}"))
                .hint(format!("is it really a DES {name}? {} says where to look", self.service.flag()));
        };
        let mut message = if problem.detail.is_empty() { problem.title } else { problem.detail };
        for error in &problem.errors {
            message.push_str("\n  - ");
            message.push_str(error);
        }
        let error = CliError::failed(format!("the {name} answered {}: {message}", status.as_u16()));
        match status {
            StatusCode::UNAUTHORIZED => error.hint("give its key with --api-key or DES_API_KEY"),
            StatusCode::FORBIDDEN if self.service == Service::Retriever => {
                error.hint("give a key that may do this with --api-key or DES_API_KEY")
            }
            StatusCode::FORBIDDEN => error.hint(
                "the service decides what may be read: DES_SOURCE_ROOTS where it runs, --source-root for des dev",
            ),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                error.hint(format!("try again in {} s", retry_after.as_deref().unwrap_or("a few")))
            }
            StatusCode::NOT_FOUND if self.service == Service::Retriever => {
                error.hint("check uid and created_at: the date decides which shards are searched")
            }
            StatusCode::NOT_FOUND => error.hint("des jobs lists the jobs it knows"),
            StatusCode::CONFLICT => error.hint("des status JOB shows how it stands"),
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                error.hint("correct it and run the command again")
            }
            _ => error,
        }
    }
}

/// What a coordinator answered to a submission.
#[derive(Debug)]
pub(crate) struct Submitted {
    /// The job.
    pub(crate) job: JobView,
    /// The same as it came.
    pub(crate) raw: Value,
    /// Whether it had been submitted before.
    pub(crate) known: bool,
}

/// Reads a job; fields of later versions are left alone.
pub(crate) fn view(raw: &Value) -> Result<JobView, CliError> {
    serde_json::from_value(raw.clone())
        .map_err(|e| CliError::failed(format!("the coordinator's job is not one this version understands: {e}")))
}

/// The path of something about a job.
pub(crate) fn job_path(id: &str, rest: &str) -> String {
    format!("v1/jobs/{}{rest}", utf8_percent_encode(id, SEGMENT))
}

fn query_of(options: &JobRequest) -> Result<Vec<(&'static str, String)>, CliError> {
    const NAMES: [&str; 10] = [
        "name",
        "n_bits",
        "max_shard_size",
        "format",
        "codec",
        "level",
        "big_file_threshold_bytes",
        "priority",
        "weight",
        "max_running",
    ];
    let value =
        serde_json::to_value(options).map_err(|e| CliError::failed(format!("cannot write the options: {e}")))?;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(NAMES.into_iter().filter_map(|name| value.get(name).map(|v| (name, text(v)))).collect())
}

/// The system's own words at the bottom of a chain of errors.
pub(crate) fn innermost(error: &reqwest::Error) -> String {
    let mut at: &dyn std::error::Error = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

/// The chunks of a response, one by one.
///
/// # Errors
/// When the connection breaks.
pub(crate) async fn next_chunk(client: &Client, response: &mut Response) -> Result<Option<Bytes>, CliError> {
    response.chunk().await.map_err(|e| client.unreachable(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(url: &str) -> Result<Client, CliError> {
        Client::new(Service::Retriever, url, &KeyArgs { api_key: None })
    }

    #[test]
    fn a_uid_is_one_segment_whatever_is_in_it() {
        let client = client("http://h:1/des").unwrap();
        let url = client.file_url("a/../b c?d#e%f+ü", "2024-01-01T00:00:00+02:00").unwrap();
        let expected =
            "http://h:1/des/files/a%2F..%2Fb%20c%3Fd%23e%25f%2B%C3%BC?created_at=2024-01-01T00%3A00%3A00%2B02%3A00";
        assert_eq!(url.as_str(), expected);
        assert!(client.file_url("..", "x").is_err());
    }

    #[test]
    fn a_wrong_url_is_wrong_usage() {
        for url in ["", "localhost:8000", "ftp://x", "/path"] {
            assert!(matches!(client(url), Err(CliError::Usage { .. })), "{url}");
        }
    }

    #[test]
    fn options_go_into_the_query() {
        let options = JobRequest { name: Some("a&b".into()), level: Some(7), ..JobRequest::default() };
        assert_eq!(query_of(&options).unwrap(), [("name", "a&b".to_owned()), ("level", "7".to_owned())]);
    }
}
