//! The HTTP interface: routes, and what they share.

pub(crate) mod audit;
mod body;
mod control;
pub(crate) mod dead;
mod described;
mod error;
mod events;
pub(crate) mod jobs;
pub(crate) mod plan;
pub(crate) mod queue;

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::{StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use des_shared::ids::JobId;
use des_shared::service::{Check, Problem, Readiness, Routes};
use futures::FutureExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::openapi::OpenApi;

use crate::Core;
use crate::error::Error;
use crate::view::{JobBody, JobDetail};

pub(crate) use body::room_of_all;

/// Every route of the coordinator but health and metrics, with their description. A new one is a line here and
/// `#[utoipa::path]` on its handler.
pub(crate) fn routes(core: Arc<Core>) -> (Router, OpenApi) {
    let (router, described) = Routes::new()
        .add(jobs::__path_submit, jobs::submit)
        .add(jobs::__path_list, jobs::list)
        .add(jobs::__path_show, jobs::show)
        .add(control::__path_share, control::share)
        .add(control::__path_pause, control::pause)
        .add(control::__path_resume, control::resume)
        .add(control::__path_cancel, control::cancel)
        .add(control::__path_retry, control::retry)
        .add(events::__path_events, events::events)
        .add(jobs::__path_shards, jobs::shards)
        .add(jobs::__path_failures, jobs::failures)
        .add(plan::__path_dry_run, plan::dry_run)
        .add(dead::__path_list, dead::list)
        .add(dead::__path_forget, dead::forget)
        .add(dead::__path_retry, dead::retry)
        .add(audit::__path_look, audit::look)
        .add(audit::__path_repair, audit::repair)
        .add(queue::__path_queue, queue::queue)
        .add(queue::__path_workers, queue::workers)
        .schema::<JobBody>()
        .schema::<JobDetail>()
        .schema::<jobs::JobPage>()
        .schema::<plan::DryRun>()
        .schema::<queue::QueueView>()
        .into_parts();
    let counted = middleware::from_fn_with_state(Arc::clone(&core), count);
    (router.route_layer(counted).with_state(core), described)
}

async fn count(State(core): State<Arc<Core>>, route: MatchedPath, request: Request, next: Next) -> Response {
    let _in_flight = core.own_metrics.request_began();
    let response = next.run(request).await;
    core.own_metrics.request_answered(route.as_str(), response.status().as_u16());
    response
}

/// Asks the state store, the queue and every zone.
pub(crate) fn readiness(core: &Arc<Core>) -> Readiness {
    let state = Arc::clone(core.state().objects());
    let state_check: Check = Arc::new(move || {
        let state = Arc::clone(&state);
        async move { state.check().await.map_err(|e| e.to_string()) }.boxed()
    });
    let asked = Arc::clone(core);
    let conditions_check: Check = Arc::new(move || futures::future::ready(asked.conditions.known()).boxed());
    let queue = Arc::clone(core.queue());
    let queue_check: Check = Arc::new(move || {
        let queue = Arc::clone(&queue);
        async move { queue.ping().await.map_err(|e| e.to_string()) }.boxed()
    });
    let mut readiness =
        Readiness::new(core.shutdown.clone()).with("state store", state_check).with("queue", queue_check);
    readiness = readiness.with("conditional writes", conditions_check);
    for zone in core.deps.zones.all() {
        let store = Arc::clone(&zone.store);
        let check: Check = Arc::new(move || {
            let store = Arc::clone(&store);
            async move { store.check().await.map_err(|e| e.to_string()) }.boxed()
        });
        readiness = readiness.with(format!("zone {}", zone.name), check);
    }
    readiness
}

/// The answer to a path that is none of ours.
pub(crate) async fn not_found(uri: Uri) -> Response {
    let detail = format!("there is nothing at {:?}; the interface begins with /v1/", shortened(uri.path()));
    Problem::new(StatusCode::NOT_FOUND, "no-such-path", detail).into_response()
}

/// The beginning of a text that came from outside, for error messages.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// A query without anything in it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoQuery {}

/// Reads the whole query; an unknown name is an error.
fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Error> {
    match Query::<T>::try_from_uri(uri) {
        Ok(Query(value)) => Ok(value),
        Err(rejection) => {
            use std::error::Error as _;
            // The rejection's own text hides the field that is wrong in its source.
            let why = rejection.source().map_or_else(|| rejection.to_string(), ToString::to_string);
            Err(Error::BadRequest(format!("the query is wrong: {why}")))
        }
    }
}

fn job_id(text: &str) -> Result<JobId, Error> {
    text.parse().map_err(|e: des_shared::ids::IdError| Error::BadRequest(e.to_string()))
}

/// `limit` of a paged answer.
fn page_limit(given: Option<usize>, default: usize, max: usize) -> Result<usize, Error> {
    match given.unwrap_or(default) {
        limit if (1..=max).contains(&limit) => Ok(limit),
        limit => Err(Error::BadRequest(format!("limit is {limit}; expected 1 to {max}"))),
    }
}
