//! What a running pack shows to whoever owns it: signs of life, how far it is, and what it would leave behind.
//!
//! A pack can be dropped at any point. Whoever drops it waits until everything it had started has ended, and then
//! drops the uploads that nobody will continue.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use des_shared::store::SharedStore;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// How long aborted parts of a pack may take to end. They stop at their next step, which is at most a file system call.
const ENDING: Duration = Duration::from_secs(1);
/// How long dropping uploads may take: what stays behind is found by the coordinator.
const DROPPING: Duration = Duration::from_secs(10);

/// The vitals of one pack. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Vitals {
    shared: Arc<Shared>,
}

/// Hears the key of every upload that is about to begin.
type Note = Box<dyn Fn(&str) + Send + Sync>;

#[derive(Default)]
struct Shared {
    note: Option<Note>,
    signs: AtomicU64,
    done_bytes: AtomicU64,
    /// By key and upload id.
    open: Mutex<BTreeMap<(String, String), Open>>,
    tasks: TaskTracker,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vitals").field("signs", &self.signs).field("open", &self.open).finish_non_exhaustive()
    }
}

/// An unfinished upload.
#[derive(Clone, Debug)]
struct Open {
    store: SharedStore,
    /// Somebody can continue it.
    kept: bool,
}

impl Vitals {
    /// Vitals that also say the key of every upload before it begins, so that its owner can find it after a crash.
    pub fn noting(note: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { shared: Arc::new(Shared { note: Some(Box::new(note)), ..Shared::default() }) }
    }

    /// Something was done: read, compressed, uploaded.
    pub(crate) fn sign(&self) {
        self.shared.signs.fetch_add(1, Ordering::Relaxed);
    }

    /// Grows as long as the pack gets on.
    pub(crate) fn signs(&self) -> u64 {
        self.shared.signs.load(Ordering::Relaxed)
    }

    /// Source bytes packed so far.
    pub(crate) fn progressed(&self, done_bytes: u64) {
        self.shared.done_bytes.store(done_bytes, Ordering::Relaxed);
        self.sign();
    }

    pub(crate) fn done_bytes(&self) -> u64 {
        self.shared.done_bytes.load(Ordering::Relaxed)
    }

    /// Runs a part of the pack beside it.
    pub(crate) fn spawn<F>(&self, part: F) -> AbortOnDropHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        AbortOnDropHandle::new(self.shared.tasks.spawn(part))
    }

    /// An upload is about to begin.
    pub(crate) fn opening(&self, key: &str) {
        if let Some(note) = &self.shared.note {
            note(key);
        }
    }

    /// An upload has begun, or one that was begun before is known.
    pub(crate) fn opened(&self, store: &SharedStore, key: &str, id: &str, kept: bool) {
        let open = Open { store: store.clone(), kept };
        self.open().entry((key.to_owned(), id.to_owned())).or_insert(open).kept |= kept;
    }

    /// An upload is finished or dropped.
    pub(crate) fn closed(&self, key: &str, id: &str) {
        self.open().remove(&(key.to_owned(), id.to_owned()));
    }

    /// Waits until what the dropped pack had started has ended, so that nothing is written any more.
    pub(crate) async fn stopped(&self) {
        self.shared.tasks.close();
        if tokio::time::timeout(ENDING, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!(parts = self.shared.tasks.len(), "parts of a stopped pack have not ended yet");
        }
    }

    /// Drops open uploads, all or those that nobody can continue. A failure is only logged: what stays behind does no
    /// harm and is found by the coordinator.
    pub(crate) async fn drop_uploads(&self, all: bool) {
        let mut open = self.open().clone();
        open.retain(|_, upload| all || !upload.kept);
        let dropping = async {
            for ((key, id), upload) in open {
                match upload.store.abort_upload(&key, &id).await {
                    Ok(()) => self.closed(&key, &id),
                    Err(e) => tracing::warn!("an unfinished upload stays behind: {e}"),
                }
            }
        };
        if tokio::time::timeout(DROPPING, dropping).await.is_err() {
            tracing::warn!("unfinished uploads stay behind: the store does not answer");
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<(String, String), Open>> {
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
