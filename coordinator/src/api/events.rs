//! `GET /v1/jobs/{id}/events`: how a job stands, as server-sent events.
//!
//! Every event is a whole snapshot (a [`JobDetail`]), so a client that was away misses nothing by going on with the
//! next one, from whichever coordinator. Kinds: `state` first and whenever the state or what holds the job changes,
//! `progress` when anything else does, `end` last. Ids count on from the client's `Last-Event-ID`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use des_shared::job::JobRecord;
use futures::stream;
use tokio::sync::OwnedSemaphorePermit;

use super::described::JobProblems;
use super::{NoQuery, job_id, query};
use crate::Core;
use crate::error::Error;
use crate::view::JobDetail;

/// Silence after which a comment shows that the connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One client that watches one job.
struct Watcher {
    core: Arc<Core>,
    record: JobRecord,
    /// The last snapshot sent, and its number.
    sent: Option<JobDetail>,
    id: u64,
    ended: bool,
    _seat: OwnedSemaphorePermit,
}

/// A job live, as server-sent events.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/events",
    tag = "jobs",
    params(("id" = String, Path, description = "The job.")),
    responses((status = 200, description = "Events, each a whole snapshot of the job.", content_type = "text/event-stream", body = String), JobProblems)
)]
pub(super) async fn events(
    State(core): State<Arc<Core>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Error> {
    let NoQuery {} = query(&uri)?;
    let record = core.job_record(job_id(&id)?).await?;
    let seat = Arc::clone(&core.watchers).try_acquire_owned().map_err(|_| {
        Error::Busy("too many clients watch jobs already; ask GET /v1/jobs/{id} now and then instead".to_owned())
    })?;
    // The first snapshot before the status, so that a store that is away is a 503 and not an empty stream.
    let first = core.detail(&record).await?;
    let before = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
    let mut watcher =
        Watcher { core, record, sent: None, id: before.unwrap_or(0).min(u64::MAX / 2), ended: false, _seat: seat };
    let first = watcher.event(first);
    let rest = stream::unfold(watcher, |mut watcher| async move {
        let event = watcher.next().await?;
        Some((event, watcher))
    });
    let events = futures::StreamExt::chain(stream::iter([first]), rest);
    let events = futures::StreamExt::map(events, Ok::<_, Infallible>);
    let answer = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // Proxies that collect answers would hold events back.
    Ok(([("x-accel-buffering", "no")], answer).into_response())
}

impl Watcher {
    /// The next event that says something new; `None` after the end and at the shutdown.
    async fn next(&mut self) -> Option<Event> {
        while !self.ended {
            tokio::select! {
                biased;
                () = self.core.shutdown.wait() => return None,
                () = tokio::time::sleep(self.core.config.limits.events) => {}
            }
            match self.core.detail(&self.record).await {
                Ok(detail) if self.sent.as_ref().is_some_and(|sent| same(sent, &detail)) => {}
                Ok(detail) => return Some(self.event(detail)),
                // The client keeps what it has; the next look may succeed.
                Err(error) => tracing::debug!(job = %self.record.id, "no event: {error}"),
            }
        }
        None
    }

    fn event(&mut self, detail: JobDetail) -> Event {
        self.id += 1;
        self.ended = detail.body.view.state.is_final();
        let place = |detail: &JobDetail| (detail.body.view.state, detail.body.hold);
        let kind = if self.ended {
            "end"
        } else if self.sent.as_ref().map(place) == Some(place(&detail)) {
            "progress"
        } else {
            "state"
        };
        let data = serde_json::to_string(&detail).expect("a job always encodes");
        self.sent = Some(detail);
        Event::default().id(self.id.to_string()).event(kind).data(data)
    }
}

/// Whether nothing changed but the time.
fn same(a: &JobDetail, b: &JobDetail) -> bool {
    let mut b = b.clone();
    b.body.view.updated_at.clone_from(&a.body.view.updated_at);
    b.progress.eta_seconds = a.progress.eta_seconds;
    b.progress.average_bytes_per_second = a.progress.average_bytes_per_second;
    b.progress.bytes_per_second = a.progress.bytes_per_second;
    *a == b
}
