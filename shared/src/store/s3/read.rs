//! Reading: ranges that are checked against the answer, and listings.

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};

use super::super::call::Call;
use super::super::{ByteRange, Fetched, FetchedStream, ListPage, ObjectMeta, StoreError, StoreErrorKind};
use super::S3Store;
use super::errors::{Refused, causes, s3_error};

/// Memory set aside at once for an answer; a longer one grows as bytes really arrive.
const FIRST_ALLOCATION: usize = 64 * 1024 * 1024;

/// An answer whose headers are what was asked for, its body not read yet.
pub(super) struct Answer {
    meta: ObjectMeta,
    offset: u64,
    length: u64,
    body: ByteStream,
}

/// Unix milliseconds; 0 where the server says nothing.
pub(super) fn unix_ms(at: Option<DateTime>) -> u64 {
    at.and_then(|at| at.to_millis().ok()).and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0)
}

impl S3Store {
    /// Sends a GET and checks what comes back. `None`: the last bytes of an empty object were asked for.
    pub(super) async fn open(&self, call: &Call, full: &str, range: &ByteRange) -> Result<Option<Answer>, StoreError> {
        let request = self.client.get_object().bucket(&self.bucket).key(full);
        let header = match range {
            ByteRange::Full => None,
            ByteRange::Span(span) => Some(format!("bytes={}-{}", span.start, span.end - 1)),
            ByteRange::Suffix(n) => Some(format!("bytes=-{n}")),
        };
        let sent = request.set_range(header).send().await;
        match sent.map_err(|e| s3_error(call, &e, Refused::Object)) {
            Ok(output) => Answer::check(call, output, range).map(Some),
            // An empty object has no last bytes, which servers answer with 416.
            Err(error) if error.kind == StoreErrorKind::InvalidRange && matches!(range, ByteRange::Suffix(_)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// `bytes 0-4/10`: first, last, size.
fn parse_content_range(header: &str) -> Option<(u64, u64, u64)> {
    let (span, size) = header.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = span.split_once('-')?;
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?, size.trim().parse().ok()?))
}

impl Answer {
    pub(super) fn check(call: &Call, output: GetObjectOutput, range: &ByteRange) -> Result<Self, StoreError> {
        let wrong = |why: String| Err(call.invalid(format!("the server did not answer the range asked for: {why}")));
        let Some(length) = output.content_length.and_then(|n| u64::try_from(n).ok()) else {
            return wrong("there is no Content-Length".to_owned());
        };
        let (first, size) = match output.content_range.as_deref() {
            None => (0, length),
            Some(header) => match parse_content_range(header) {
                Some((first, last, size)) if last >= first && last < size && last - first + 1 == length => {
                    (first, size)
                }
                _ => return wrong(format!("Content-Range {header:?} with Content-Length {length}")),
            },
        };
        // The same object of `size` bytes must mean the same span here as there.
        let span = call.resolve(range, size)?;
        if span != (first..first + length) {
            let (start, end) = (span.start, span.end);
            return wrong(format!("bytes {start}..{end} of {size} are wanted, {length} from {first} are sent"));
        }
        let meta = ObjectMeta {
            key: call.key.clone(),
            size,
            etag: output.e_tag.unwrap_or_default(),
            last_modified_ms: unix_ms(output.last_modified),
            metadata: output.metadata.unwrap_or_default().into_iter().collect(),
        };
        Ok(Self { meta, offset: first, length, body: output.body })
    }

    pub(super) async fn collect(self, call: Call) -> Result<Fetched, StoreError> {
        let (meta, offset, length) = (self.meta.clone(), self.offset, self.length as usize);
        let mut chunks = self.into_stream(call).stream;
        let Some(first) = chunks.next().await.transpose()? else {
            return Ok(Fetched { meta, offset, bytes: Bytes::new() });
        };
        if first.len() == length {
            // Small reads come in one piece and need no copy; the stream still checks that nothing follows.
            return match chunks.next().await.transpose()? {
                None => Ok(Fetched { meta, offset, bytes: first }),
                Some(_) => unreachable!("the stream fails before it gives more than the answer's length"),
            };
        }
        let mut bytes = BytesMut::with_capacity(length.min(FIRST_ALLOCATION));
        bytes.extend_from_slice(&first);
        while let Some(chunk) = chunks.next().await.transpose()? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(Fetched { meta, offset, bytes: bytes.freeze() })
    }

    /// Exactly `length` bytes, or an error at the end.
    pub(super) fn into_stream(self, call: Call) -> FetchedStream {
        let state = (self.body, self.length, call);
        let chunks = stream::try_unfold(state, |(mut body, left, call)| async move {
            match body.next().await {
                Some(Ok(chunk)) if chunk.len() as u64 <= left => {
                    let left = left - chunk.len() as u64;
                    Ok(Some((chunk, (body, left, call))))
                }
                Some(Ok(_)) => Err(call.invalid("the server sent more bytes than it said")),
                Some(Err(e)) => {
                    Err(call.error(StoreErrorKind::Unavailable, format!("the answer broke off: {}", causes(&e))))
                }
                None if left == 0 => Ok(None),
                None => Err(call.error(StoreErrorKind::Unavailable, format!("the answer ended {left} bytes early"))),
            }
        });
        FetchedStream { meta: self.meta, stream: chunks.boxed() }
    }
}

pub(super) async fn list(
    store: &S3Store,
    call: &Call,
    full: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<ListPage, StoreError> {
    let after = after.map(|after| format!("{}{after}", store.prefix));
    let request = store.client.list_objects_v2().bucket(&store.bucket).prefix(full).set_start_after(after);
    let sent = request.max_keys(i32::try_from(limit).unwrap_or(i32::MAX)).send().await;
    let page = sent.map_err(|e| s3_error(call, &e, Refused::Bucket))?;
    let mut objects = Vec::new();
    let mut last = None;
    for object in page.contents.unwrap_or_default() {
        let Some(key) = object.key.as_deref().and_then(|key| store.stripped(key)) else { continue };
        last = Some(key.to_owned());
        objects.push(ObjectMeta {
            size: object.size.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            etag: object.e_tag.unwrap_or_default(),
            last_modified_ms: unix_ms(object.last_modified),
            ..ObjectMeta::unasked(key)
        });
    }
    if page.is_truncated != Some(true) {
        return Ok(ListPage { objects, next: None });
    }
    if last.is_none() {
        // Going on from nowhere would ask for this page for ever.
        return Err(call.error(StoreErrorKind::Unavailable, "an empty page of a listing that goes on"));
    }
    Ok(ListPage { objects, next: last })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::call::Operation;

    fn answer(content_range: Option<&str>, body: &'static [u8]) -> GetObjectOutput {
        GetObjectOutput::builder()
            .set_content_range(content_range.map(str::to_owned))
            .content_length(i64::try_from(body.len()).expect("a short body"))
            .e_tag("\"e\"")
            .body(ByteStream::from_static(body))
            .build()
    }

    async fn read(range: ByteRange, output: GetObjectOutput) -> Result<Fetched, StoreErrorKind> {
        let call = Call::new(&"s3://b".into(), Operation::Get, "k");
        match Answer::check(&call, output, &range) {
            Ok(answer) => answer.collect(call).await.map_err(|e| e.kind),
            Err(error) => Err(error.kind),
        }
    }

    #[tokio::test]
    async fn right_answers_are_read() {
        let fetched = read(ByteRange::Span(2..5), answer(Some("bytes 2-4/10"), b"cde")).await.expect("right");
        assert_eq!((&fetched.bytes[..], fetched.offset, fetched.meta.size), (&b"cde"[..], 2, 10));
        let fetched = read(ByteRange::Suffix(3), answer(Some("bytes 7-9/10"), b"hij")).await.expect("right");
        assert_eq!((&fetched.bytes[..], fetched.offset), (&b"hij"[..], 7));
        let fetched = read(ByteRange::Suffix(30), answer(None, b"abc")).await.expect("all of a shorter object");
        assert_eq!((&fetched.bytes[..], fetched.offset), (&b"abc"[..], 0));
    }

    #[tokio::test]
    async fn wrong_answers_give_no_bytes() {
        let span = || ByteRange::Span(2..5);
        let wrong = [
            (span(), answer(None, b"abcdefghij"), StoreErrorKind::Invalid), // Range ignored
            (span(), answer(Some("bytes 3-5/10"), b"def"), StoreErrorKind::Invalid),
            (span(), answer(Some("bytes 2-4/10"), b"cd"), StoreErrorKind::Invalid),
            (span(), answer(Some("bytes 2-3/4"), b"cd"), StoreErrorKind::InvalidRange), // cut at the object's end
            (span(), answer(Some("nonsense"), b"cde"), StoreErrorKind::Invalid),
            (span(), answer(Some("bytes 4-2/10"), b"cde"), StoreErrorKind::Invalid),
            (ByteRange::Suffix(3), answer(None, b"abcdefghij"), StoreErrorKind::Invalid),
            (ByteRange::Suffix(3), answer(Some("bytes 0-2/10"), b"abc"), StoreErrorKind::Invalid),
            (ByteRange::Full, answer(Some("bytes 0-2/10"), b"abc"), StoreErrorKind::Invalid),
        ];
        for (range, output, kind) in wrong {
            let header = output.content_range.clone();
            assert_eq!(read(range.clone(), output).await.map(|f| f.bytes), Err(kind), "{range:?} {header:?}");
        }
    }

    #[tokio::test]
    async fn a_body_that_ends_early_is_an_error() {
        let output = GetObjectOutput::builder().content_length(10).body(ByteStream::from_static(b"abc")).build();
        assert_eq!(read(ByteRange::Full, output).await.map(|f| f.bytes), Err(StoreErrorKind::Unavailable));
        let output = GetObjectOutput::builder().content_length(2).body(ByteStream::from_static(b"abc")).build();
        assert_eq!(read(ByteRange::Full, output).await.map(|f| f.bytes), Err(StoreErrorKind::Invalid));
    }
}
