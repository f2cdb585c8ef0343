//! One request for one file, from its slot to the answer: which date, which store of the zone, which form.

use std::ops::Range;
use std::sync::Arc;

use axum::http::StatusCode;
use bytes::Bytes;
use des_shared::archive::{ArchiveError, check_big_file};
use des_shared::created_at::CreatedAt;
use des_shared::routing::{Slot, candidate_slots};
use des_shared::shard::{Codec, Location};
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::error::Error;
use crate::fetch::{Fetcher, Form};
use crate::locate::{Freshness, Located, Locator};
use crate::places::{Places, Replica};
use crate::represent::{self, Selected};

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
    /// The client understands `Content-Encoding: zstd`.
    pub(crate) accepts_zstd: bool,
    pub(crate) range: Option<String>,
    pub(crate) if_range: Option<String>,
    pub(crate) if_none_match: Option<String>,
}

impl Wanted {
    /// All of a file, as it is, without conditions.
    pub(crate) fn whole(uid: impl Into<String>, created_at: CreatedAt) -> Self {
        Self {
            uid: uid.into(),
            created_at,
            head: false,
            accepts_zstd: false,
            range: None,
            if_range: None,
            if_none_match: None,
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
}

/// The file service.
pub(crate) struct Files {
    pub(crate) places: Places,
    pub(crate) locator: Locator,
    pub(crate) fetcher: Fetcher,
    pub(crate) bigfiles_prefix: String,
}

/// Whether a file found beside a damaged shard, which might hold a newer one, is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BesideDamage {
    /// Another store of the zone may have the shard intact.
    AskElsewhere,
    Accept,
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
    pub(crate) async fn answer_in(&self, slot: Slot, wanted: &Wanted) -> Result<Answer, Error> {
        self.in_slot(slot, wanted).await?.ok_or_else(|| Error::NotFound { uid: shown(&wanted.uid) })
    }

    /// Asks the stores of a zone in order, until one has an answer.
    async fn in_slot(&self, slot: Slot, wanted: &Wanted) -> Result<Option<Answer>, Error> {
        let replicas = self.places.replicas(slot.index)?;
        let beside = if replicas.len() > 1 { BesideDamage::AskElsewhere } else { BesideDamage::Accept };
        let mut failed: Option<Error> = None;
        for replica in replicas {
            match self.at_replica(replica, slot, wanted, beside).await {
                // A copy may lag behind: that it has no such file proves nothing when another store failed.
                Ok(None) if failed.is_some() => {}
                Ok(answer) => return Ok(answer),
                Err(error) if error.may_differ_elsewhere() => {
                    if replicas.len() > 1 {
                        tracing::warn!(store = replica.source.store().url(), "trying the zone's other stores: {error}");
                    }
                    failed.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        match failed {
            None => Ok(None),
            Some(error @ Error::Damaged { .. }) if beside == BesideDamage::AskElsewhere => {
                // Nobody knows better.
                let answer = self.at_replica(&replicas[0], slot, wanted, BesideDamage::Accept).await;
                answer.ok().flatten().map_or(Err(error), |answer| Ok(Some(answer)))
            }
            Some(error) => Err(error),
        }
    }

    /// Finds and reads in one store. When an object was replaced or removed since it was listed, once more.
    async fn at_replica(
        &self,
        replica: &Arc<Replica>,
        slot: Slot,
        wanted: &Wanted,
        beside: BesideDamage,
    ) -> Result<Option<Answer>, Error> {
        match self.once(replica, slot, wanted, (Freshness::Cached, beside)).await {
            Err(Error::Moving { .. }) => self.once(replica, slot, wanted, (Freshness::New, beside)).await,
            other => other,
        }
    }

    async fn once(
        &self,
        replica: &Arc<Replica>,
        slot: Slot,
        wanted: &Wanted,
        (freshness, beside): (Freshness, BesideDamage),
    ) -> Result<Option<Answer>, Error> {
        let found = self.locator.find(replica, slot, &wanted.uid, freshness).await?;
        if let Some(deleted_ms) = found.deleted_ms {
            return Err(Error::Deleted { uid: shown(&wanted.uid), deleted_ms });
        }
        if let Some(damage) = found.damage {
            if found.best.is_none() || beside == BesideDamage::AskElsewhere {
                return Err(Error::Damaged { zone: replica.zone.clone(), source: damage });
            }
            tracing::error!("a shard of the slot cannot be searched, another one answers: {damage}");
        }
        match found.best {
            Some(located) => self.represent(replica, &located, wanted).await.map(Some),
            None => Ok(None),
        }
    }

    /// The form the client wants, with its bytes.
    async fn represent(&self, replica: &Replica, located: &Located, wanted: &Wanted) -> Result<Answer, Error> {
        let form = form(located, wanted);
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
            etag,
        };
        if wanted.if_none_match.as_deref().is_some_and(|tags| represent::matches_any(tags, &answer.etag)) {
            answer.status = StatusCode::NOT_MODIFIED;
            return Ok(answer);
        }
        let range = match represent::select(wanted, &answer.etag, size) {
            Selected::Whole => 0..size,
            Selected::Part(range) => {
                answer.status = StatusCode::PARTIAL_CONTENT;
                answer.part = Some((range.clone(), size));
                range
            }
            Selected::Nothing => return Err(Error::RangeNotSatisfiable { size }),
        };
        answer.length = range.end - range.start;
        answer.body = self.body(replica, located, (form, range), wanted.head).await?;
        Ok(answer)
    }

    async fn body(
        &self,
        replica: &Replica,
        located: &Located,
        (form, range): (Form, Range<u64>),
        head: bool,
    ) -> Result<Body, Error> {
        match located.entry.location {
            Location::Inline(_) if head => Ok(Body::Empty),
            Location::Inline(inline) => {
                let bytes = self.fetcher.inline(replica, located, inline, form).await?;
                Ok(Body::Bytes(bytes.slice(range.start as usize..range.end as usize)))
            }
            Location::BigFile { sha256, size } if head => {
                let checked = check_big_file(&replica.source, &self.bigfiles_prefix, sha256, size).await;
                checked.map_err(|e| Error::at_zone(&replica.zone, e))?;
                Ok(Body::Empty)
            }
            Location::BigFile { sha256, size } => {
                let whole = self.fetcher.big_file(replica, &self.bigfiles_prefix, sha256, size).await?;
                if range == (0..size) {
                    return Ok(Body::Stream(whole));
                }
                // A part is given out only of a file whose hash is right, so all of it is read.
                Ok(Body::Stream(part_of(whole, range)))
            }
        }
    }
}

/// A uid for messages.
pub(crate) fn shown(uid: &str) -> String {
    uid.chars().take(200).collect()
}

/// The stored frame is right when the client takes it, a checksum of it is known, and it needs no dictionary. Ranges
/// are of the file itself.
fn form(located: &Located, wanted: &Wanted) -> Form {
    match located.entry.location {
        Location::Inline(inline)
            if wanted.accepts_zstd
                && (wanted.head || wanted.range.is_none())
                && inline.codec == Codec::Zstd
                && inline.crc32c.is_some()
                && inline.raw_len <= MAX_FRAME_RAW_BYTES =>
        {
            Form::Stored
        }
        _ => Form::Raw,
    }
}

/// The part `range` of a stream that is read to its end. The last piece of the part waits for the end, which says
/// whether the whole is right.
fn part_of(
    whole: BoxStream<'static, Result<Bytes, ArchiveError>>,
    range: Range<u64>,
) -> BoxStream<'static, Result<Bytes, ArchiveError>> {
    struct State {
        whole: BoxStream<'static, Result<Bytes, ArchiveError>>,
        range: Range<u64>,
        at: u64,
        held: Bytes,
    }
    let state = State { whole, range, at: 0, held: Bytes::new() };
    let parts = stream::try_unfold(Some(state), |state| async move {
        let Some(mut state) = state else { return Ok(None) };
        while let Some(chunk) = state.whole.next().await.transpose()? {
            let start = state.at;
            state.at += chunk.len() as u64;
            let from = state.range.start.clamp(start, state.at) - start;
            let to = state.range.end.clamp(start, state.at) - start;
            if from < to {
                let ready = std::mem::replace(&mut state.held, chunk.slice(from as usize..to as usize));
                if !ready.is_empty() {
                    return Ok(Some((ready, Some(state))));
                }
            }
        }
        Ok((!state.held.is_empty()).then_some((state.held, None)))
    });
    parts.boxed()
}
