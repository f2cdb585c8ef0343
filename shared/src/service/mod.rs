//! One way to start, drain and stop for all services.
//!
//! A service binds, serves and watches one [`Shutdown`]. SIGTERM and SIGINT begin the drain: no new connection is
//! taken, requests in flight end, background tasks finish or hand back, and the process exits with 0 inside the grace
//! period. Every spawned task has an owner that awaits it.

mod health;
mod openapi;
mod problem;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Auth;

pub use health::{Check, Detail, Readiness, health_routes};
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
            tracing::info!("{name}: draining");
            shutdown.begin();
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

/// Serves until the shutdown begins, then lets requests in flight end, for at most `drain`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, router: Router, shutdown: Shutdown, drain: Duration) -> io::Result<()> {
    let graceful = {
        let shutdown = shutdown.clone();
        axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.wait().await })
    };
    let overdue = async {
        shutdown.wait().await;
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        outcome = graceful.into_future() => outcome,
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

/// As [`serve`], but the end is announced: readiness says no as soon as the shutdown begins, and only after the notice,
/// in which a balancer hears of it, no more connections are taken. Meanwhile every answer asks its client to close the
/// connection, so that none is closed under a client that has just sent a request.
///
/// # Errors
/// When the listener fails.
pub async fn serve_with_notice(
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
    let serving = serve(listener, router, closing.clone(), drain.grace - notice);
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
    let path = request.uri().path();
    let open = path == "/health" || path.starts_with("/health/") || path == "/metrics";
    let given =
        request.headers().get("x-api-key").map(axum::http::HeaderValue::as_bytes).or_else(|| {
            request.headers().get("authorization").and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
        });
    if open || given.is_some_and(|key| auth.accepts(key)) {
        return next.run(request).await;
    }
    let detail = if given.is_some() { "the key is not one of this service's" } else { "send a key in X-API-Key" };
    Problem::new(axum::http::StatusCode::UNAUTHORIZED, "unauthorized", detail).into_response()
}
