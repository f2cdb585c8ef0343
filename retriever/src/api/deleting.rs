//! `DELETE /files/{uid}` and `GET /tombstones`.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use des_shared::service::problems;
use des_shared::store::{ByteRange, ObjectMeta};
use des_shared::tombstone::{TOMBSTONES_PREFIX, Tombstone};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::{IntoResponses, ToSchema};

use super::{Api, request};
use crate::error::Error;
use crate::keys::Caller;
use crate::places::Replica;

/// Tombstones of a page, and the most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Tombstones read side by side.
const READS: usize = 16;
/// The longest tombstone that is read, in bytes: a uid and three short texts.
const MAX_TOMBSTONE_BYTES: u64 = 256 * 1024;

/// The answer to a deletion.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Buried {
    /// The word of the existing service.
    status: &'static str,
    #[serde(flatten)]
    tombstone: Tombstone,
}

/// A page of the list of what is deleted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page {
    tombstones: Vec<Listed>,
    /// `cursor` of the next page; none at the end.
    next: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Listed {
    zone: String,
    key: String,
    #[serde(flatten)]
    tombstone: Option<Tombstone>,
    /// Why it cannot be shown. It hides its file all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// Deletes a file: it is hidden at once, and stays in its shard. The gate lets nobody come here without a key that may.
#[utoipa::path(
    delete,
    path = "/files/{*uid}",
    tag = "files",
    params(
        ("uid" = String, Path, description = "As for GET.", example = "old.txt"),
        ("created_at" = String, Query, format = DateTime, description = "As for GET.", example = "2025-03-10T12:00:00Z"),
        ("deleted_by" = String, Query, description = "Who asks for it.", min_length = 1, max_length = 1000),
        ("reason" = String, Query, description = "Why.", min_length = 1, max_length = 1000),
        ("ticket_id" = Option<String>, Query, description = "Where it was asked for.", max_length = 1000),
    ),
    security(("api_key" = [])),
    responses((status = 200, description = "It is deleted.", body = Buried), DeletionProblems)
)]
pub(super) async fn delete(State(api): State<Api>, Extension(caller): Extension<Caller>, uri: Uri) -> Response {
    let outcome = match request::deletion(&uri, &caller.0) {
        Ok(deletion) => api.files.delete(&deletion, api.clock.now_ms()).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(tombstone) => Json(Buried { status: "tombstoned", tombstone }).into_response(),
        Err(error) => {
            super::log(&error, &uri);
            error.into_response()
        }
    }
}

/// Lists what is deleted, zone by zone, in the order of their names.
#[utoipa::path(
    get,
    path = "/tombstones",
    tag = "files",
    params(
        ("limit" = Option<u32>, Query, description = "Tombstones of a page.", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "`next` of the page before."),
    ),
    responses((status = 200, description = "A page of them.", body = Page), ListProblems)
)]
pub(super) async fn list(State(api): State<Api>, uri: Uri) -> Response {
    match page(&api, &uri).await {
        Ok(page) => Json(page).into_response(),
        Err(error) => {
            super::log(&error, &uri);
            error.into_response()
        }
    }
}

/// What can go wrong with a deletion.
struct DeletionProblems;

impl IntoResponses for DeletionProblems {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        problems(&[
            (StatusCode::BAD_REQUEST, "A parameter is missing or wrong."),
            (StatusCode::UNAUTHORIZED, "The key is none of those that may delete."),
            (StatusCode::FORBIDDEN, "This service deletes nothing: it has no such key."),
            (StatusCode::NOT_FOUND, "There is no such file."),
            (StatusCode::GONE, "It was deleted before."),
            (StatusCode::URI_TOO_LONG, "No uid is that long."),
            (StatusCode::INTERNAL_SERVER_ERROR, "The file cannot be looked for as this service is configured."),
            (StatusCode::BAD_GATEWAY, "Its shard is damaged."),
            (StatusCode::SERVICE_UNAVAILABLE, "A store of the zone was not told; send it again."),
        ])
    }
}

/// What can go wrong with the list.
struct ListProblems;

impl IntoResponses for ListProblems {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        problems(&[
            (StatusCode::BAD_REQUEST, "limit or cursor is wrong."),
            (StatusCode::UNAUTHORIZED, "A key is asked for."),
            (StatusCode::BAD_GATEWAY, "A store answers what was not asked."),
            (StatusCode::SERVICE_UNAVAILABLE, "A zone does not answer."),
        ])
    }
}

async fn page(api: &Api, uri: &Uri) -> Result<Page, Error> {
    let (limit, cursor) = request::page(uri, PAGE, MAX_PAGE)?;
    let zones = api.files.places.zones().all();
    let (mut at, mut after) = match cursor.as_deref().map(|text| text.split_once('~')) {
        None => (0, None),
        Some(Some((zone, key))) if zone.parse().is_ok_and(|zone: usize| zone < zones.len()) => {
            (zone.parse().unwrap_or(0), Some(key.to_owned()).filter(|key| !key.is_empty()))
        }
        Some(_) => return Err(request::bad("cursor-invalid", "cursor is not one of this list's")),
    };
    let mut tombstones: Vec<Listed> = Vec::new();
    while let Some(zone) = zones.get(at) {
        let own = &api.files.places.replicas(zone.range.start)?[0];
        let wanted = limit - tombstones.len();
        let listed = own.source.store().list(TOMBSTONES_PREFIX, after.as_deref(), wanted).await;
        let listed = listed.map_err(|e| Error::at_zone(&own.zone, e.into()))?;
        let last = listed.objects.last().map(|object| object.key.clone());
        let read = stream::iter(listed.objects).map(|object| read(own, object)).buffered(READS);
        tombstones.extend(read.try_collect::<Vec<Listed>>().await?);
        match listed.next {
            Some(next) => after = last.or(Some(next)),
            None => (at, after) = (at + 1, None),
        }
        if tombstones.len() == limit {
            break;
        }
    }
    let next = (at < zones.len()).then(|| format!("{at}~{}", after.unwrap_or_default()));
    Ok(Page { tombstones, next })
}

async fn read(replica: &Replica, object: ObjectMeta) -> Result<Listed, Error> {
    let key = object.key;
    let listed = |tombstone, problem| Listed { zone: replica.zone.clone(), key: key.clone(), tombstone, problem };
    if object.size > MAX_TOMBSTONE_BYTES {
        return Ok(listed(None, Some(format!("it is {} bytes long", object.size))));
    }
    let stored = replica.source.store().get(&key, ByteRange::Full).await;
    let bytes = stored.map_err(|e| Error::at_zone(&replica.zone, e.into()))?.bytes;
    Ok(match serde_json::from_slice(&bytes) {
        Ok(tombstone) => listed(Some(tombstone), None),
        Err(e) => listed(None, Some(format!("it cannot be read: {e}"))),
    })
}
