//! What stands in front of every route: who sends a request, and may they?
//!
//! A route that is not named here needs the scope `read`. Without any key there is nobody to tell apart: reading is open
//! to all who reach the service (which start-up allows on loopback only, unless told otherwise), and deleting is not
//! possible.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use des_shared::clock::Clock;
use des_shared::metrics::Metrics;
use des_shared::service::{self, Problem};
use tracing::Instrument;

use super::KeySettings;
use super::key::{Scope, Scopes};
use super::metrics::KeyMetrics;
use super::ring::{Keyring, of_environment};
use super::sign::{Refused, UrlKeys};
use crate::config::Config;

/// Where one file is.
const FILES: &str = "/files/";

/// Who sent a request: the name of a key, or `url:` and the id of what signed the URL. An extension of the request.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) Arc<str>);

/// The gate.
#[derive(Debug)]
pub(crate) struct Gate {
    ring: Arc<Keyring>,
    /// Reading needs a key or a signature.
    closed: bool,
    /// There is no key at all, so that nobody may delete.
    keyless: bool,
    signing: UrlKeys,
    longest_signed: Duration,
    clock: Arc<dyn Clock>,
    metrics: KeyMetrics,
}

/// Why a request is not let in.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    NoKey {
        signing: bool,
    },
    Unknown,
    Expired,
    /// A key that may do other things.
    Scope(Scopes),
    TooMany {
        name: Arc<str>,
        retry_after_s: u32,
    },
    Signature(Refused),
    /// Nobody may delete.
    NoDeleters,
}

impl Gate {
    /// A gate for these settings.
    pub(crate) fn new(config: &Config, clock: Arc<dyn Clock>, metrics: &Metrics) -> Self {
        let metrics = KeyMetrics::register(metrics);
        let closed = config.listen.auth.required() || config.keys.closed();
        let KeySettings { file, signing, longest_signed } = config.keys.clone();
        let readers = Scopes::of(&[Scope::Read, Scope::Admin]);
        let deleters = Scopes::of(&[Scope::Read, Scope::Delete]);
        let mut fixed = of_environment("DES_API_KEYS", &config.listen.auth, readers);
        if let Some(keys) = &config.deleters {
            fixed.extend(of_environment("DES_DELETE_API_KEY", keys, deleters));
        }
        let keyless = fixed.is_empty() && !closed;
        let ring = Arc::new(Keyring::new(fixed, file, metrics.clone()));
        Self { ring, closed, keyless, signing, longest_signed, clock, metrics }
    }

    /// Keeps the keys fresh as long as it is polled.
    ///
    /// # Errors
    /// When SIGHUP cannot be listened to.
    pub(crate) fn watch(&self) -> io::Result<impl Future<Output = Infallible> + Send + use<>> {
        self.ring.watch()
    }

    /// Stands in front of all routes.
    pub(crate) fn guard(self: Arc<Self>, router: Router) -> Router {
        router.layer(middleware::from_fn_with_state(self, check))
    }

    fn admit(&self, request: &Request) -> Result<Option<Caller>, Refusal> {
        let (method, uri) = (request.method(), request.uri());
        let Some(needed) = needed(method, uri.path()) else { return Ok(None) };
        let deleting = needed == Scopes::of(&[Scope::Delete]);
        let open = !self.closed && !deleting;
        if let Some(given) = service::given_key(request.headers()) {
            match self.known(given, needed) {
                // Where none is needed, one that means nothing here does no harm.
                Err(Refusal::Unknown) if open => return Ok(None),
                Err(Refusal::Unknown) if self.keyless => return Err(Refusal::NoDeleters),
                other => return other.map(Some),
            }
        }
        if open {
            return Ok(None);
        }
        let reading = matches!(*method, Method::GET | Method::HEAD) && uri.path().starts_with(FILES);
        if reading && !self.signing.is_empty() && UrlKeys::signed(uri) {
            let signed = self.signing.verify(uri, self.clock.now_ms(), self.longest_signed.as_secs());
            return signed.map(|id| Some(Caller(format!("url:{id}").into()))).map_err(Refusal::Signature);
        }
        if self.keyless {
            return Err(Refusal::NoDeleters);
        }
        Err(Refusal::NoKey { signing: reading && !self.signing.is_empty() })
    }

    fn known(&self, given: &[u8], needed: Scopes) -> Result<Caller, Refusal> {
        let known = self.ring.find(given).ok_or(Refusal::Unknown)?;
        let now_ms = self.clock.now_ms();
        if known.key.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) {
            return Err(Refusal::Expired);
        }
        if let Some(Err(retry_after_s)) = known.bucket.as_ref().map(|bucket| bucket.take(now_ms)) {
            return Err(Refusal::TooMany { name: known.key.name, retry_after_s });
        }
        if known.key.scopes.meets(needed) { Ok(Caller(known.key.name)) } else { Err(Refusal::Scope(needed)) }
    }
}

async fn check(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    match gate.admit(&request) {
        Ok(None) => next.run(request).await,
        Ok(Some(caller)) => {
            // Whatever is logged about the request says whose it is.
            let span = tracing::info_span!("request", key = %caller.0);
            request.extensions_mut().insert(caller);
            next.run(request).instrument(span).await
        }
        Err(refusal) => {
            gate.metrics.refused(refusal.word());
            tracing::debug!(path = %path_of(request.uri()), "not let in: {refusal:?}");
            refusal.into_response()
        }
    }
}

fn path_of(uri: &Uri) -> String {
    uri.path().chars().take(300).collect()
}

/// One of these scopes; `None` where nobody is asked.
fn needed(method: &Method, path: &str) -> Option<Scopes> {
    if service::is_open(path) {
        return None;
    }
    Some(match path {
        "/tombstones" => Scopes::of(&[Scope::Delete, Scope::Admin]),
        path if path.starts_with(FILES) && method == Method::DELETE => Scopes::of(&[Scope::Delete]),
        _ => Scopes::of(&[Scope::Read]),
    })
}

impl Refusal {
    /// For the metric.
    fn word(&self) -> &'static str {
        match self {
            Self::NoKey { .. } => "no_key",
            Self::Unknown => "unknown_key",
            Self::Expired => "expired_key",
            Self::Scope(_) => "scope",
            Self::TooMany { .. } => "rate",
            Self::Signature(_) => "signature",
            Self::NoDeleters => "no_deleters",
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::NoKey { signing } => {
                let or = if signing { ", or use a signed URL" } else { "" };
                service::unauthorized(format!("send a key in X-API-Key or as Authorization: Bearer{or}"), None)
            }
            Self::Unknown => service::unauthorized("the key is not one of this service's", Some("invalid_token")),
            Self::Expired => service::unauthorized("the key is not good any more: it expired", Some("invalid_token")),
            Self::Scope(needed) => {
                let words = needed.to_string().replace(',', " or ");
                let detail = format!("the key is good, but not for this: it lacks the scope {words}");
                let problem = Problem::new(StatusCode::FORBIDDEN, "scope-missing", detail);
                let scope = needed.to_string().replace(',', " ");
                service::challenged(problem, &format!(", error=\"insufficient_scope\", scope=\"{scope}\""))
            }
            Self::TooMany { name, retry_after_s } => {
                let detail =
                    format!("the key {name} has made as many requests as it may; ask again in {retry_after_s} s");
                let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", detail);
                problem.retry_after(retry_after_s).into_response()
            }
            Self::Signature(refused) => {
                Problem::new(StatusCode::FORBIDDEN, refused.kind(), refused.to_string()).into_response()
            }
            Self::NoDeleters => {
                let detail = "this service deletes nothing: neither DES_DELETE_API_KEY nor DES_KEYS_FILE is set";
                Problem::new(StatusCode::FORBIDDEN, "deleting-not-configured", detail).into_response()
            }
        }
    }
}
