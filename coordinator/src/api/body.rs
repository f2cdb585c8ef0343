//! Bodies that carry a manifest and options: JSON, held in memory up to a limit, or NDJSON, streamed.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Uri, header};
use bytes::{Bytes, BytesMut};
use des_shared::job::JobRequest;
use futures::StreamExt;
use futures::stream;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;

use super::query;
use crate::Core;
use crate::config::Limits;
use crate::error::Error;
use crate::upload::ByteStream;

/// Longest wait for room in memory.
const ROOM_WAIT: Duration = Duration::from_secs(10);

/// Where the manifest of a request is.
pub(super) enum Payload {
    /// In the request, as a JSON list. The permit bounds what is held at once.
    Inline(Bytes, OwnedSemaphorePermit),
    /// Somewhere else.
    Remote(String),
    /// In the body, as it comes.
    Stream(ByteStream),
}

/// A request to pack or to plan.
pub(super) struct ManifestRequest {
    pub(super) options: JobRequest,
    pub(super) payload: Payload,
}

enum Media {
    Json,
    Ndjson,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonBody<'a> {
    #[serde(borrow)]
    manifest: &'a RawValue,
    #[serde(default)]
    options: JobRequest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoteBody {
    uri: String,
}

impl Core {
    /// Reads a request up to its manifest.
    pub(super) async fn manifest_request(&self, request: Request) -> Result<ManifestRequest, Error> {
        let (parts, body) = request.into_parts();
        let idle = self.config.limits.body_idle;
        match media(&parts.headers)? {
            Media::Ndjson => {
                let options = query::<JobRequest>(&parts.uri)?;
                Ok(ManifestRequest { options, payload: Payload::Stream(byte_stream(body, idle)) })
            }
            Media::Json => self.json_request(&parts.headers, &parts.uri, byte_stream(body, idle)).await,
        }
    }

    async fn json_request(&self, headers: &HeaderMap, uri: &Uri, body: ByteStream) -> Result<ManifestRequest, Error> {
        if uri.query().is_some_and(|query| !query.is_empty()) {
            let text = "a JSON body has its options in \"options\"; the query must be empty";
            return Err(Error::BadRequest(text.to_owned()));
        }
        let limit = self.config.limits.inline_bytes;
        let promised = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if promised.is_some_and(|length| length > limit) {
            return Err(Error::BodyTooLarge { limit });
        }
        let permit = self.memory_for(promised.unwrap_or(limit)).await?;
        let bytes = read_up_to(body, limit).await?;
        self.offload(move || parse_json(&bytes, permit)).await
    }
}

impl Core {
    /// Waits for room for `bytes` in memory among the requests that are held there.
    pub(super) async fn memory_for(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Error> {
        let wanted = room(bytes).min(room_of_all(&self.config.limits));
        let room = Arc::clone(&self.inline).acquire_many_owned(wanted);
        match tokio::time::timeout(ROOM_WAIT, room).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(Error::Busy(
                "too many manifests are held in memory; come again, or stream the manifest as application/x-ndjson"
                    .to_owned(),
            )),
        }
    }
}

/// Permits for a body of so many bytes: one for each begun KiB.
fn room(bytes: u64) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX)
}

/// All permits there are.
pub(crate) fn room_of_all(limits: &Limits) -> u32 {
    room(limits.inline_bytes).saturating_mul(u32::try_from(limits.inline_requests.max(1)).unwrap_or(u32::MAX))
}

/// Decides by Content-Type and Content-Encoding. Encodings of NDJSON are kept as they are: the reader of manifests
/// looks at the first bytes itself.
fn media(headers: &HeaderMap) -> Result<Media, Error> {
    let text =
        |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase());
    let kind = text(header::CONTENT_TYPE).unwrap_or_default();
    let media = match kind.split(';').next().unwrap_or_default().trim() {
        "application/json" => Media::Json,
        "application/x-ndjson" | "application/ndjson" => Media::Ndjson,
        other => {
            return Err(Error::UnsupportedMedia(format!(
                "Content-Type is {other:?}; expected application/json or application/x-ndjson"
            )));
        }
    };
    match (&media, text(header::CONTENT_ENCODING).as_deref()) {
        (_, None | Some("" | "identity")) | (Media::Ndjson, Some("gzip" | "x-gzip" | "zstd")) => Ok(media),
        (Media::Ndjson, Some(other)) => {
            Err(Error::UnsupportedMedia(format!("Content-Encoding is {other:?}; expected gzip, zstd or none")))
        }
        (Media::Json, Some(other)) => Err(Error::UnsupportedMedia(format!(
            "Content-Encoding is {other:?}; JSON bodies are read plain, compressed ones as application/x-ndjson"
        ))),
    }
}

/// The body's bytes; an error when nothing comes for too long.
fn byte_stream(body: Body, idle: Duration) -> ByteStream {
    let chunks = body.into_data_stream();
    stream::try_unfold(chunks, move |mut chunks| async move {
        match tokio::time::timeout(idle, chunks.next()).await {
            Err(_) => Err(Error::BodyAborted(format!("nothing came for {} s", idle.as_secs_f64()))),
            Ok(None) => Ok(None),
            Ok(Some(Ok(chunk))) => Ok(Some((chunk, chunks))),
            Ok(Some(Err(e))) => Err(Error::BodyAborted(e.to_string())),
        }
    })
    .boxed()
}

async fn read_up_to(mut body: ByteStream, limit: u64) -> Result<Bytes, Error> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk?);
        if bytes.len() as u64 > limit {
            return Err(Error::BodyTooLarge { limit });
        }
    }
    Ok(bytes.freeze())
}

fn parse_json(bytes: &Bytes, permit: OwnedSemaphorePermit) -> Result<ManifestRequest, Error> {
    let expected = "expected {\"manifest\": [...] or {\"uri\": \"...\"}, \"options\": {...}}";
    let body: JsonBody<'_> = serde_json::from_slice(bytes)
        .map_err(|e| Error::BadRequest(format!("the body cannot be read: {e}; {expected}")))?;
    let manifest = body.manifest.get();
    let payload = match manifest.as_bytes().first() {
        Some(b'[') => Payload::Inline(bytes.slice_ref(manifest.as_bytes()), permit),
        Some(b'{') => {
            let remote: RemoteBody = serde_json::from_str(manifest)
                .map_err(|e| Error::BadRequest(format!("manifest cannot be read: {e}; {expected}")))?;
            Payload::Remote(remote.uri)
        }
        _ => return Err(Error::BadRequest(format!("manifest is neither a list nor an object; {expected}"))),
    };
    Ok(ManifestRequest { options: body.options, payload })
}
