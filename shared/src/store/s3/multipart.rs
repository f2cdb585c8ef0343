//! Multipart uploads.

use std::sync::atomic::Ordering;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;

use super::super::call::{Call, MAX_PAGE};
use super::super::{MAX_PARTS, ObjectMeta, PartTag, StoreError, StoreErrorKind, UploadMeta, WriteMode};
use super::S3Store;
use super::errors::{Refused, s3_error};
use super::read::unix_ms;

pub(super) async fn put_part(
    store: &S3Store,
    call: &Call,
    full: String,
    upload_id: &str,
    (number, bytes): (u32, Bytes),
) -> Result<PartTag, StoreError> {
    let size = bytes.len() as u64;
    let request = store.uploader.upload_part().bucket(&store.bucket).key(full).upload_id(upload_id);
    let request = request.part_number(wire_number(call, number)?).body(ByteStream::from(bytes));
    let sent = request.send().await.map_err(|e| s3_error(call, &e, Refused::Upload))?;
    let etag = sent.e_tag.ok_or_else(|| call.error(StoreErrorKind::Unavailable, "the answer has no ETag"))?;
    Ok(PartTag { number, etag, size })
}

pub(super) async fn list_parts(
    store: &S3Store,
    call: &Call,
    full: &str,
    upload_id: &str,
) -> Result<Vec<PartTag>, StoreError> {
    let mut parts: Vec<PartTag> = Vec::new();
    let mut marker = None;
    loop {
        let request = store.client.list_parts().bucket(&store.bucket).key(full).upload_id(upload_id);
        let sent = request.set_part_number_marker(marker.clone()).send().await;
        let page = sent.map_err(|e| s3_error(call, &e, Refused::Upload))?;
        for part in page.parts.unwrap_or_default() {
            let number = part.part_number.and_then(|n| u32::try_from(n).ok());
            let size = part.size.and_then(|n| u64::try_from(n).ok());
            let (Some(number), Some(etag), Some(size)) = (number, part.e_tag, size) else {
                return Err(call.error(StoreErrorKind::Unavailable, "a part is listed without number, ETag or size"));
            };
            parts.push(PartTag { number, etag, size });
        }
        let next = page.next_part_number_marker;
        // A marker that does not move would go round for ever, and no upload has more parts than that.
        let done = page.is_truncated != Some(true) || next.is_none() || next == marker;
        if done || parts.len() > MAX_PARTS as usize {
            parts.sort_by_key(|part| part.number);
            return Ok(parts);
        }
        marker = next;
    }
}

pub(super) async fn complete(
    store: &S3Store,
    call: &Call,
    full: String,
    upload_id: &str,
    (parts, mode): (Vec<PartTag>, WriteMode),
) -> Result<ObjectMeta, StoreError> {
    let mut completed = CompletedMultipartUpload::builder();
    for part in &parts {
        let number = wire_number(call, part.number)?;
        completed = completed.parts(CompletedPart::builder().part_number(number).e_tag(&part.etag).build());
    }
    let request = store.uploader.complete_multipart_upload().bucket(&store.bucket).key(full).upload_id(upload_id);
    let mut request = request.multipart_upload(completed.build());
    if mode == WriteMode::CreateOnly {
        if store.ignores_complete_condition.load(Ordering::Relaxed) {
            store.check_free(call).await?;
        } else {
            request = request.if_none_match("*");
        }
    }
    match request.send().await.map_err(|e| s3_error(call, &e, Refused::Upload)) {
        Ok(done) => S3Store::written(call, parts.iter().map(|part| part.size).sum(), done.e_tag),
        // The answer of an earlier completion was lost, or another of its makers won: the key is taken.
        Err(gone) if gone.kind == StoreErrorKind::UploadGone && mode == WriteMode::CreateOnly => {
            store.check_free(call).await?;
            Err(gone)
        }
        Err(error) => Err(error),
    }
}

pub(super) async fn abort(
    store: &S3Store,
    checked: Result<(Call, String), StoreError>,
    upload_id: &str,
) -> Result<(), StoreError> {
    let (call, full) = checked?;
    let request = store.client.abort_multipart_upload().bucket(&store.bucket).key(full).upload_id(upload_id);
    request.send().await.map(drop).map_err(|e| s3_error(&call, &e, Refused::Upload))
}

/// Reads as many pages as it takes. Servers differ in whether a page's last key is named in full, so the markers are
/// handed back as they came.
pub(super) async fn list_uploads(
    store: &S3Store,
    call: &Call,
    full: &str,
    limit: usize,
) -> Result<Vec<UploadMeta>, StoreError> {
    let mut pending = Vec::new();
    let mut markers = (None, None);
    loop {
        let page_size = i32::try_from((limit - pending.len()).min(MAX_PAGE)).unwrap_or(1000);
        let request = store.client.list_multipart_uploads().bucket(&store.bucket).prefix(full).max_uploads(page_size);
        let request = request.set_key_marker(markers.0.clone()).set_upload_id_marker(markers.1.clone());
        let page = request.send().await.map_err(|e| s3_error(call, &e, Refused::Bucket))?;
        for upload in page.uploads.unwrap_or_default() {
            let (Some(key), Some(upload_id)) = (upload.key, upload.upload_id) else { continue };
            let Some(key) = store.stripped(&key).map(str::to_owned) else { continue };
            pending.push(UploadMeta { key, upload_id, started_ms: unix_ms(upload.initiated) });
        }
        let next = (page.next_key_marker, page.next_upload_id_marker);
        // Markers that do not move would go round for ever.
        let done = page.is_truncated != Some(true) || next == (None, None) || next == markers;
        if done || pending.len() >= limit {
            pending.sort_by(|a, b| (&a.key, &a.upload_id).cmp(&(&b.key, &b.upload_id)));
            pending.truncate(limit);
            return Ok(pending);
        }
        markers = next;
    }
}

fn wire_number(call: &Call, number: u32) -> Result<i32, StoreError> {
    i32::try_from(number).map_err(|_| call.invalid(format!("part number {number}; expected 1 to {MAX_PARTS}")))
}
