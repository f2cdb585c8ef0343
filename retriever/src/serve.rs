//! One request for one file, from its slot to the answer: which date, which store of the zone, which form.

use std::ops::Range;

use axum::http::StatusCode;
use bytes::Bytes;
use des_shared::archive::ArchiveError;
use des_shared::created_at::CreatedAt;
use des_shared::routing::{Slot, candidate_slots};
use des_shared::shard::{Codec, Location};
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::conditions::{self, Current, Selected, Verdict};
use crate::error::Error;
use crate::fetch::{Fetcher, Form, STREAM_BYTES};
use crate::locate::{Located, Locator};
use crate::negotiate::Codings;
use crate::parts::Parts;
use crate::places::{Places, Replica};
use crate::represent;

/// A stored frame is handed out as it is only for files up to this size: HTTP's content coding `zstd` allows windows
/// of up to 8 MiB (RFC 9659), and the window of a frame is never larger than its content.
const MAX_FRAME_RAW_BYTES: u64 = 8 << 20;

/// What a client asks for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) uid: String,
    pub(crate) created_at: CreatedAt,
    /// HEAD: everything but the bytes.
    pub(crate) head: bool,
    /// The forms the client takes.
    pub(crate) accepts: Codings,
    /// These are the values of the headers of their names.
    pub(crate) range: Option<String>,
    pub(crate) if_range: Option<String>,
    pub(crate) if_match: Option<String>,
    pub(crate) if_none_match: Option<String>,
    pub(crate) if_modified_since: Option<String>,
    pub(crate) if_unmodified_since: Option<String>,
}

impl Wanted {
    /// All of a file, as it is, without conditions.
    pub(crate) fn whole(uid: impl Into<String>, created_at: CreatedAt) -> Self {
        Self {
            uid: uid.into(),
            created_at,
            head: false,
            accepts: Codings::PLAIN,
            range: None,
            if_range: None,
            if_match: None,
            if_none_match: None,
            if_modified_since: None,
            if_unmodified_since: None,
        }
    }
}

/// The body of an answer.
pub(crate) enum Body {
    Empty,
    Bytes(Bytes),
    Stream(BoxStream<'static, Result<Bytes, ArchiveError>>),
}

/// An answer that is not an error.
pub(crate) struct Answer {
    /// 200, 206 or 304.
    pub(crate) status: StatusCode,
    pub(crate) etag: String,
    /// When the file last changed here, Unix seconds, where that is known.
    pub(crate) modified_s: Option<u64>,
    pub(crate) content_type: String,
    /// The bytes are a zstd frame of the file's.
    pub(crate) zstd: bool,
    /// The part that is sent, and the size of the whole.
    pub(crate) part: Option<(Range<u64>, u64)>,
    /// Length of the body, also where it is not sent.
    pub(crate) length: u64,
    pub(crate) body: Body,
    /// Where the file lies, for whoever asked with HEAD.
    #[cfg_attr(not(feature = "graphql"), expect(dead_code, reason = "only GraphQL describes it"))]
    pub(crate) located: Option<Located>,
}

/// The file service.
pub(crate) struct Files {
    pub(crate) places: Places,
    pub(crate) locator: Locator,
    pub(crate) fetcher: Fetcher,
    pub(crate) parts: Parts,
    pub(crate) bigfiles_prefix: String,
}

impl Files {
    /// Answers a request: the UTC date first, then the date as written.
    pub(crate) async fn answer(&self, wanted: &Wanted) -> Result<Answer, Error> {
        let mut deleted = None;
        for slot in candidate_slots(&wanted.uid, &wanted.created_at, self.places.zones().n_bits()) {
            match self.in_slot(slot, wanted).await {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {}
                // Under its other date it may have been packed later.
                Err(error @ Error::Deleted { .. }) => drop(deleted.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = deleted {
            return Err(error);
        }
        Err(Error::NotFound { uid: shown(&wanted.uid) })
    }

    /// Answers a request for a file of one slot, whatever its `created_at` says.
    #[cfg_attr(not(feature = "s3-gateway"), expect(dead_code, reason = "only the S3 interface asks for it"))]
    pub(crate) async fn answer_in(&self, slot: Slot, wanted: &Wanted) -> Result<Answer, Error> {
        self.in_slot(slot, wanted).await?.ok_or_else(|| Error::NotFound { uid: shown(&wanted.uid) })
    }

    /// The form the client wants, with its bytes.
    pub(crate) async fn represent(
        &self,
        replica: &Replica,
        located: &Located,
        wanted: &Wanted,
    ) -> Result<Answer, Error> {
        let form = form(located, wanted)?;
        let etag = represent::etag(located, form);
        let size = match (form, located.entry.location) {
            (Form::Stored, Location::Inline(inline)) => inline.stored_len,
            _ => located.entry.raw_len(),
        };
        let mut answer = Answer {
            status: StatusCode::OK,
            modified_s: represent::modified_s(located),
            content_type: represent::content_type(&located.entry),
            zstd: form == Form::Stored,
            part: None,
            length: size,
            body: Body::Empty,
            located: wanted.head.then(|| located.clone()),
            etag,
        };
        let current = Current { etag: &answer.etag, modified_s: answer.modified_s, size };
        let range = match conditions::judge(wanted, current, !wanted.head && form == Form::Raw) {
            Verdict::NotModified => {
                answer.status = StatusCode::NOT_MODIFIED;
                return Ok(answer);
            }
            Verdict::Failed => return Err(Error::PreconditionFailed { etag: answer.etag }),
            Verdict::OutOfRange => return Err(Error::RangeNotSatisfiable { size }),
            Verdict::Send(Selected::Whole) => 0..size,
            Verdict::Send(Selected::Part(range)) => {
                answer.status = StatusCode::PARTIAL_CONTENT;
                answer.part = Some((range.clone(), size));
                range
            }
        };
        answer.length = range.end - range.start;
        if !wanted.head {
            answer.body = self.body(replica, located, form, range).await?;
        }
        Ok(answer)
    }

    async fn body(&self, replica: &Replica, located: &Located, form: Form, range: Range<u64>) -> Result<Body, Error> {
        match located.entry.location {
            Location::Inline(inline) => {
                let bytes = self.fetcher.inline(replica, located, inline, form).await?;
                Ok(Body::Bytes(bytes.slice(range.start as usize..range.end as usize)))
            }
            // Boxed: what big files need would make the future of every request larger.
            Location::BigFile { sha256, size } => Box::pin(self.big_body(replica, (sha256, size), range)).await,
        }
    }

    async fn big_body(
        &self,
        replica: &Replica,
        (sha256, size): ([u8; 32], u64),
        range: Range<u64>,
    ) -> Result<Body, Error> {
        if range == (0..size) {
            return Ok(Body::Stream(self.fetcher.big_file(replica, &self.bigfiles_prefix, sha256, size).await?));
        }
        let permit = self.fetcher.pay(STREAM_BYTES).await?;
        let part = self.parts.read(&replica.source, &self.bigfiles_prefix, (sha256, size), range).await;
        let part = part.map_err(|e| Error::at_zone(&replica.zone, e))?;
        let paid = part.map(move |chunk| {
            // Held as long as the stream.
            let _ = &permit;
            chunk
        });
        Ok(Body::Stream(paid.boxed()))
    }
}

/// A uid for messages.
pub(crate) fn shown(uid: &str) -> String {
    uid.chars().take(200).collect()
}

/// The stored frame is right when the client takes it, a checksum of it is known, and it needs no dictionary. Ranges
/// are of the file itself, so one that is asked for brings plain bytes where the client takes them.
fn form(located: &Located, wanted: &Wanted) -> Result<Form, Error> {
    let frame = match located.entry.location {
        Location::Inline(inline) => {
            inline.codec == Codec::Zstd && inline.crc32c.is_some() && inline.raw_len <= MAX_FRAME_RAW_BYTES
        }
        Location::BigFile { .. } => false,
    };
    let Codings { zstd, plain } = wanted.accepts;
    let part = !wanted.head && wanted.range.is_some();
    match (frame && zstd, plain) {
        (true, true) if part => Ok(Form::Raw),
        (true, _) => Ok(Form::Stored),
        (false, true) => Ok(Form::Raw),
        (false, false) => Err(Error::NotAcceptable),
    }
}
