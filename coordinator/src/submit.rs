//! Makes a submission durable, and equal submissions one job.
//!
//! In the state store, in this order: the open marker, the manifest, the reservation, the place in the listing, the
//! job record. The job exists when its record does; everything before that is a leftover which the reconciler removes
//! after a day. A reservation holds the whole record and is created once, so whoever meets one whose record is
//! missing (its writer died in between) completes it instead of waiting for somebody.
//!
//! Equal submissions (same manifest bytes, options and base) meet at one key. Once the job of a reservation has
//! ended, the next equal submission reserves a key made from the one before and that job: reservations form a chain
//! in which every link is created once, so any number of racing submissions agree without a lock and without Redis.

use des_shared::ids::JobId;
use des_shared::job::{JobOptions, JobRecord};
use des_shared::layout;
use des_shared::state::Created;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::Core;
use crate::error::Error;
use crate::upload::{self, ByteStream, hex, is_missing};

/// After this time a reservation whose record is missing counts as given up, ms.
const GIVEN_UP_MS: u64 = 12 * 3600 * 1000;
/// After this time the leftovers of a submission without a record are removed, ms. Well above [`GIVEN_UP_MS`], so that
/// nobody completes a job whose manifest is being removed.
pub(crate) const LEFTOVER_MS: u64 = 24 * 3600 * 1000;
/// Longest Idempotency-Key, bytes.
pub(crate) const MAX_IDEMPOTENCY_KEY_BYTES: usize = 255;

/// A submission as it came.
pub(crate) struct Submission {
    pub(crate) options: JobOptions,
    /// A key of the state store that stands for this submission for as long as the job is kept; see
    /// [`idempotency_key`].
    pub(crate) bound_key: Option<String>,
    /// What relative source paths are relative to.
    pub(crate) base: Option<String>,
    pub(crate) body: ByteStream,
}

/// A job that stands for a submission.
pub(crate) struct Accepted {
    pub(crate) record: JobRecord,
    /// False when an equal submission was there before.
    pub(crate) new: bool,
}

/// A stored manifest that may become a job.
struct Draft {
    record: JobRecord,
    /// Its reservation stands. From then on whoever submits the same may complete it, so it is no longer ours to
    /// discard.
    reserved: bool,
}

/// What became of the job of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is under way, or can still begin.
    Open,
    /// It has ended, or never began and never will.
    Over,
}

impl Core {
    /// Accepts a submission: durable when this returns.
    pub(crate) async fn submit(&self, submission: Submission) -> Result<Accepted, Error> {
        let now = self.deps.clock.now_ms();
        let id = JobId::from_parts(now, self.deps.dice.bytes());
        self.state().write_bytes(&layout::open_marker(id), "{}".into()).await?;
        let stored = upload::store(self.state().objects(), &layout::manifest(id), submission.body).await;
        let stored = match stored {
            Ok(stored) if stored.bytes > 0 => stored,
            Ok(_) => {
                self.discard(id).await;
                return Err(empty_manifest());
            }
            Err(error) => {
                self.discard(id).await;
                return Err(error);
            }
        };
        let draft = JobRecord {
            id,
            options: submission.options,
            accepted_ms: self.deps.clock.now_ms(),
            manifest_sha256: stored.sha256,
            manifest_bytes: stored.bytes,
            source_base: submission.base,
            submission_key: String::new(),
        };
        let mut draft = Draft { record: draft, reserved: false };
        let settled = self.admit(self.settle_submission(&mut draft, submission.bound_key.as_deref())).await;
        let unused = match &settled {
            Ok(accepted) => accepted.record.id != id,
            Err(Error::KeyReused(_) | Error::QueueFull(_) | Error::Busy(_)) => true,
            // What was written before the failure is not known, so nothing is taken away.
            Err(_) => false,
        };
        if unused && !draft.reserved {
            self.discard(id).await;
        }
        settled
    }

    /// Finds or makes the job of a stored manifest.
    async fn settle_submission(&self, draft: &mut Draft, bound_key: Option<&str>) -> Result<Accepted, Error> {
        let id = draft.record.id;
        if let Some(bound_key) = bound_key
            && let Some(bound) = self.read_bound(bound_key).await?
        {
            return self.bound(&draft.record, bound).await;
        }
        let reserved = self.reserve(&draft.record).await?;
        draft.reserved = reserved.id == id;
        if let Some(bound_key) = bound_key {
            if let Created::Theirs(bound) = self.state().create(bound_key, &reserved).await?
                && bound.id != reserved.id
            {
                return self.bound(&draft.record, bound).await;
            }
            if let Some(note) = layout::bound_key(reserved.id, bound_key) {
                // Leads from the job to the key, so that both go together in the end.
                self.state().write_bytes(&note, "{}".into()).await?;
            }
        }
        self.complete(&reserved).await?;
        Ok(Accepted { new: reserved.id == id, record: reserved })
    }

    /// The job a key is bound to. A key whose job was removed since is free again.
    pub(crate) async fn read_bound(&self, bound_key: &str) -> Result<Option<JobRecord>, Error> {
        let Some(bound) = self.state().read::<JobRecord>(bound_key).await? else { return Ok(None) };
        let age = self.deps.clock.now_ms().saturating_sub(bound.accepted_ms);
        // A younger one may be about to be made, by whoever bound the key or by whoever meets it.
        if age < GIVEN_UP_MS || self.state().job(bound.id).await?.is_some() {
            return Ok(Some(bound));
        }
        self.state().delete(bound_key).await?;
        Ok(None)
    }

    /// The job an Idempotency-Key belongs to, if this is the same submission.
    async fn bound(&self, draft: &JobRecord, bound: JobRecord) -> Result<Accepted, Error> {
        if fingerprint(&bound) != fingerprint(draft) {
            return Err(Error::KeyReused(bound.id));
        }
        // The key may have been bound by somebody who died before writing the record.
        if self.state().end(bound.id).await?.is_none() {
            self.complete(&bound).await?;
        }
        Ok(Accepted { record: bound, new: false })
    }

    /// Reserves the draft's content, or finds the open job that has it.
    async fn reserve(&self, draft: &JobRecord) -> Result<JobRecord, Error> {
        let (head, hint) = reservation_of(draft);
        let start = self.state().read::<String>(&hint).await?;
        let mut key = start.unwrap_or_else(|| head.clone());
        loop {
            let ours = JobRecord { submission_key: key.clone(), ..draft.clone() };
            let theirs = match self.state().create(&key, &ours).await? {
                Created::Ours => {
                    if key != head {
                        // Only a short cut past the ended jobs before: losing it, or a race about it, costs reads.
                        let text = serde_json::to_vec(&key).expect("a string always encodes");
                        self.state().write_bytes(&hint, text.into()).await?;
                    }
                    return Ok(ours);
                }
                Created::Theirs(theirs) => theirs,
            };
            if theirs.id == draft.id || self.standing(&theirs).await? == Standing::Open {
                return Ok(theirs);
            }
            key = layout::submission_key(&digest(&["after", &key, &theirs.id.to_string()]));
        }
    }

    async fn standing(&self, reserved: &JobRecord) -> Result<Standing, Error> {
        if self.state().end(reserved.id).await?.is_some() {
            return Ok(Standing::Over);
        }
        if self.state().job(reserved.id).await?.is_some() {
            return Ok(Standing::Open);
        }
        let age = self.deps.clock.now_ms().saturating_sub(reserved.accepted_ms);
        let manifest = self.state().objects().head(&layout::manifest(reserved.id)).await;
        match manifest {
            Ok(_) if age < GIVEN_UP_MS => Ok(Standing::Open),
            Ok(_) => Ok(Standing::Over),
            Err(e) if is_missing(&e) => Ok(Standing::Over),
            Err(e) => Err(e.into()),
        }
    }

    /// Makes a reserved job exist. Whoever does it writes the same.
    pub(crate) async fn complete(&self, record: &JobRecord) -> Result<(), Error> {
        if self.state().job(record.id).await?.is_none() {
            // Again, because it tells the reconciler how long ago a sign of life was: uploads can take long.
            self.state().write_bytes(&layout::open_marker(record.id), "{}".into()).await?;
            self.state().write_bytes(&layout::newest_marker(record.id), "{}".into()).await?;
            self.state().create(&layout::job_record(record.id), record).await?;
        }
        self.planning.want(record.id);
        Ok(())
    }

    /// Removes what a submission left that became no job. What cannot be removed now, the reconciler removes later.
    pub(crate) async fn discard(&self, id: JobId) {
        // The open marker last: it is what leads the reconciler to the rest.
        for key in [layout::manifest(id), layout::newest_marker(id), layout::open_marker(id)] {
            if let Err(e) = self.state().delete(&key).await {
                tracing::warn!("a leftover of a submission stays for now: {e}");
                return;
            }
        }
    }
}

/// The error of a manifest without entries.
pub(crate) fn empty_manifest() -> Error {
    Error::BadManifest(des_shared::manifest::ManifestError::Empty.to_string())
}

/// The key where equal submissions meet, and the key of the short cut to the newest of them.
pub(crate) fn reservation_of(record: &JobRecord) -> (String, String) {
    let head = layout::submission_key(&fingerprint(record));
    let hint = layout::submission_key(&digest(&["hint", &head]));
    (head, hint)
}

/// Everything that makes two submissions the same, as one digest.
fn fingerprint(record: &JobRecord) -> String {
    let text = json!([record.manifest_sha256, record.options, record.source_base]).to_string();
    digest(&["content", &text])
}

/// The key of the state store that stands for an Idempotency-Key.
pub(crate) fn idempotency_key(key: &str) -> String {
    layout::submission_key(&digest(&["idempotency-key", key]))
}

/// SHA-256 over texts, each with its length, in hex.
pub(crate) fn digest(texts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hex(&hash.finalize())
}
