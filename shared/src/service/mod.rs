//! One way to start, drain and stop for all services.
//!
//! A service binds, serves and watches one [`Shutdown`]. SIGTERM and SIGINT begin the drain: no new connection is
//! taken, requests in flight end, background tasks finish or hand back, and the process exits with 0 inside the grace
//! period. Every spawned task has an owner that awaits it.

mod health;
mod lanes;
mod openapi;
mod problem;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Auth;

pub use health::{Check, Detail, Readiness, health_routes};
pub use lanes::Lanes;
pub use openapi::{Routes, document_route, problems};
pub use problem::Problem;

/// The signal to stop, shared by everything in a process.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// Not asked to stop yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everything to stop.
    pub fn begin(&self) {
        self.0.cancel();
    }

    /// Whether it was asked.
    pub fn has_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns when it is asked.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }

    /// The underlying token, for libraries that take one.
    pub fn token(&self) -> &CancellationToken {
        &self.0
    }

    /// Begins the shutdown at SIGTERM or SIGINT. Await the returned future in a task of its own; it ends with the
    /// shutdown.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn on_signals(&self) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        Ok(async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                () = shutdown.wait() => return,
            };
            shutdown.begin();
            tracing::info!("{name}: draining");
        })
    }
}

/// Binds the address of a service and logs `listening` with the real one, which differs where the port was 0.
///
/// # Errors
/// Names the address, which the operating system's error does not.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let named = |e: io::Error| {
        io::Error::new(e.kind(), format!("cannot listen on {address}: {e}; choose another with --listen"))
    };
    let listener = TcpListener::bind(address).await.map_err(named)?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    Ok(listener)
}

/// Serves on the runtime that is there until the shutdown begins, then lets requests in flight end, for at most `drain`.
///
/// # Errors
/// When the listener fails.
pub fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: Shutdown,
    drain: Duration,
) -> BoxFuture<'static, io::Result<()>> {
    // Boxed: otherwise the server would be compiled in every crate that awaits this.
    Box::pin(async move { serve_on(&Lanes::none(), listener, router, (shutdown, drain)).await })
}

async fn serve_on(
    lanes: &Lanes,
    listener: TcpListener,
    router: Router,
    (shutdown, drain): (Shutdown, Duration),
) -> io::Result<()> {
    let overdue = async {
        shutdown.wait().await;
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        outcome = lanes.serve(listener, router, shutdown.clone()) => outcome,
        () = overdue => {
            tracing::warn!("requests were still open after {} s of draining; they were cut", drain.as_secs());
            Ok(())
        }
    }
}

/// How a service that is looked for by a balancer stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long it goes on taking requests after it has begun to say that it is not ready.
    pub notice: Duration,
    /// How long all of it may take, the notice included.
    pub grace: Duration,
}

/// As [`serve`], but on `lanes`, and the end is announced: readiness says no as soon as the shutdown begins, and only
/// after the notice, in which a balancer hears of it, no more connections are taken. Meanwhile every answer asks its
/// client to close the connection, so that none is closed under a client that has just sent a request.
///
/// # Errors
/// When the listener fails.
pub fn serve_with_notice(
    lanes: &Lanes,
    listener: TcpListener,
    router: Router,
    shutdown: Shutdown,
    drain: Drain,
) -> BoxFuture<'_, io::Result<()>> {
    Box::pin(serve_announced(lanes, listener, router, shutdown, drain))
}

async fn serve_announced(
    lanes: &Lanes,
    listener: TcpListener,
    router: Router,
    shutdown: Shutdown,
    drain: Drain,
) -> io::Result<()> {
    let closing = Shutdown::new();
    let notice = drain.notice.min(drain.grace);
    let announced = async {
        shutdown.wait().await;
        tokio::time::sleep(notice).await;
        closing.begin();
    };
    let router = router.layer(axum::middleware::from_fn_with_state(shutdown.clone(), close_when_stopping));
    let until = (closing.clone(), drain.grace.saturating_sub(notice));
    let serving = serve_on(lanes, listener, router, until);
    let ((), outcome) = tokio::join!(announced, async {
        let outcome = serving.await;
        // A listener that failed ends the service, whoever asked for it.
        shutdown.begin();
        outcome
    });
    outcome
}

async fn close_when_stopping(State(shutdown): State<Shutdown>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if shutdown.has_begun() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Puts a key check in front of every route but health and metrics.
pub fn with_auth(router: Router, auth: Auth) -> Router {
    if !auth.required() {
        return router;
    }
    router.layer(axum::middleware::from_fn_with_state(auth, check_key))
}

async fn check_key(State(auth): State<Auth>, request: Request, next: Next) -> Response {
    let given = given_key(request.headers());
    if is_open(request.uri().path()) || given.is_some_and(|key| auth.accepts(key)) {
        return next.run(request).await;
    }
    match given {
        None => unauthorized("send a key in X-API-Key", None),
        Some(_) => unauthorized("the key is not one of this service's", Some("invalid_token")),
    }
}

/// Whether a path needs no key, on any service: health and metrics.
pub fn is_open(path: &str) -> bool {
    path == "/health" || path.starts_with("/health/") || path == "/metrics"
}

/// The key a request carries: in `X-API-Key`, or else as `Authorization: Bearer`.
pub fn given_key(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes());
    }
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

/// 401 with the challenge of RFC 6750; `error` is its word for what is wrong with a key that was sent.
pub fn unauthorized(detail: impl Into<String>, error: Option<&'static str>) -> Response {
    let problem = Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
    let challenge = error.map_or_else(String::new, |error| format!(", error=\"{error}\""));
    challenged(problem, &challenge)
}

/// A problem with a challenge: what follows the realm, from its comma on.
pub fn challenged(problem: Problem, parameters: &str) -> Response {
    let mut response = problem.into_response();
    let challenge = HeaderValue::try_from(format!("Bearer realm=\"des\"{parameters}"));
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.expect("words that are written here"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_in_either_header() {
        let given = |pairs: &[(&'static str, &'static str)]| {
            let headers: HeaderMap =
                pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect();
            given_key(&headers).map(|key| String::from_utf8(key.to_vec()).unwrap())
        };
        for (pairs, key) in [
            (vec![("x-api-key", "k")], Some("k")),
            (vec![("authorization", "Bearer k")], Some("k")),
            (vec![("authorization", "bEARER  k")], Some("k")),
            (vec![("authorization", "Bearer other"), ("x-api-key", "k")], Some("k")),
            (vec![("authorization", "Bearer ")], Some("")),
            (vec![("authorization", "Bearer")], None),
            (vec![("authorization", "Basic a2s=")], None),
            (vec![("authorization", "k")], None),
            (vec![], None),
        ] {
            assert_eq!(given(&pairs).as_deref(), key, "{pairs:?}");
        }
    }

    #[test]
    fn a_refusal_says_how_to_come_in() {
        let response = unauthorized("send a key", Some("invalid_token"));
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer realm=\"des\", error=\"invalid_token\"");
        assert_eq!(unauthorized("x", None).headers()[header::WWW_AUTHENTICATE], "Bearer realm=\"des\"");
    }
}
