//! The keys that are good at the moment: those of the environment, and those of the file, which is read again once a
//! second and at SIGHUP. A file that cannot be used changes nothing: the keys of its last good state stay.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use des_shared::config::Auth;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::file::KeysFile;
use super::key::{Key, MIN_KEY_BYTES, Scopes};
use super::limit::Bucket;
use super::metrics::KeyMetrics;

/// How often the file is read.
const READ_EVERY: Duration = Duration::from_secs(1);

/// A key that is good, with its count of requests.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) key: Key,
    pub(super) bucket: Option<Arc<Bucket>>,
    /// Shorter keys are not taken.
    min_bytes: usize,
}

/// The ring.
#[derive(Debug)]
pub(super) struct Keyring {
    /// Those of the environment.
    fixed: Vec<Known>,
    known: ArcSwap<Vec<Known>>,
    file: Mutex<Option<Watched>>,
    metrics: KeyMetrics,
}

#[derive(Debug)]
struct Watched {
    /// Its last good state.
    good: KeysFile,
    /// What was last wrong with it, so that it is told once.
    wrong: Option<String>,
}

/// Keys of one variable, under the variable's name and their number in it.
pub(super) fn of_environment(variable: &str, keys: &Auth, scopes: Scopes) -> Vec<Known> {
    let key = |(at, digest): (usize, &[u8; 32])| Key {
        name: format!("{variable}#{}", at + 1).into(),
        scopes,
        expires_ms: None,
        limit: None,
        digest: *digest,
    };
    let known = |key| Known { key, bucket: None, min_bytes: 0 };
    keys.digests().iter().enumerate().map(key).map(known).collect()
}

impl Keyring {
    /// A key that stands in two variables may do what either says.
    pub(super) fn new(environment: Vec<Known>, file: Option<KeysFile>, metrics: KeyMetrics) -> Self {
        let mut fixed: Vec<Known> = Vec::new();
        for known in environment {
            match fixed.iter_mut().find(|other| other.key.digest == known.key.digest) {
                Some(other) => other.key.scopes = other.key.scopes.and(known.key.scopes),
                None => fixed.push(known),
            }
        }
        let ring = Self { fixed, known: ArcSwap::default(), file: Mutex::new(None), metrics };
        let keys = file.as_ref().map_or(&[][..], KeysFile::keys);
        ring.take_over(keys);
        *ring.watched() = file.map(|good| Watched { good, wrong: None });
        ring
    }

    /// The key that was sent; where the environment has it too, what the file says of it counts. Compared are digests, with every key there is and to the end of each.
    pub(super) fn find(&self, given: &[u8]) -> Option<Known> {
        let digest: [u8; 32] = Sha256::digest(given).into();
        let known = self.known.load();
        let mut found = None;
        for candidate in known.iter() {
            if bool::from(candidate.key.digest[..].ct_eq(&digest)) {
                found = Some(candidate);
            }
        }
        found.filter(|key| given.len() >= key.min_bytes).cloned()
    }

    /// Makes these the keys of the file. One that stays keeps its count of requests.
    fn take_over(&self, keys: &[Key]) {
        let old = self.known.load();
        let bucket = |key: &Key| {
            let limit = key.limit?;
            let same = |known: &&Known| known.key.digest == key.digest;
            let kept = old.iter().find(same).and_then(|known| known.bucket.clone());
            Some(kept.filter(|bucket| bucket.limit() == limit).unwrap_or_else(|| Arc::new(Bucket::new(limit))))
        };
        let known = |key: &Key| Known { key: key.clone(), bucket: bucket(key), min_bytes: MIN_KEY_BYTES };
        let all: Vec<Known> = self.fixed.iter().cloned().chain(keys.iter().map(known)).collect();
        self.metrics.keys_known(all.len());
        self.known.store(Arc::new(all));
    }

    /// Reads the file again. Blocks while it is read.
    pub(super) fn reload(&self) {
        let mut watched = self.watched();
        let Some(Watched { good, wrong }) = watched.as_mut() else { return };
        match good.again() {
            Ok(changed) => {
                self.metrics.file_is(true);
                if let Some(file) = changed {
                    self.metrics.file_read();
                    self.take_over(file.keys());
                    tracing::info!(file = %file.path().display(), keys = file.keys().len(), "the file of keys was read");
                    *good = file;
                } else if wrong.is_some() {
                    tracing::info!(file = %good.path().display(), "the file of keys is as it was before it broke");
                }
                *wrong = None;
            }
            Err(error) => {
                self.metrics.file_is(false);
                let text = error.to_string();
                if wrong.as_ref() != Some(&text) {
                    self.metrics.file_broke();
                    tracing::error!("the file of keys cannot be used, the old keys stay good: {text}");
                    *wrong = Some(text);
                }
            }
        }
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, Option<Watched>> {
        // A panic leaves at worst an older state of the file, which the next look replaces.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the file again and again, as long as it is polled.
    ///
    /// # Errors
    /// When SIGHUP cannot be listened to.
    pub(super) fn watch(self: &Arc<Self>) -> io::Result<impl Future<Output = Infallible> + Send + use<>> {
        let ring = self.clone();
        let watched = self.watched().is_some();
        read_again(watched.then_some(move || ring.reload()))
    }
}

/// Calls `read`, which may block, once a second and at SIGHUP, as long as it is polled; nothing where there is none.
///
/// # Errors
/// When SIGHUP cannot be listened to.
pub(crate) fn read_again<R>(read: Option<R>) -> io::Result<impl Future<Output = Infallible> + Send + use<R>>
where
    R: Fn() + Clone + Send + 'static,
{
    // Without a file SIGHUP goes on to mean what it means to every program.
    let read = read.map(|read| signal(SignalKind::hangup()).map(|hangup| (read, hangup))).transpose()?;
    Ok(async move {
        let Some((read, mut hangup)) = read else { return std::future::pending().await };
        let mut tick = tokio::time::interval(READ_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = hangup.recv() => {}
            }
            if let Err(error) = tokio::task::spawn_blocking(read.clone()).await {
                tracing::error!("reading a file of keys panicked: {error}");
            }
        }
    })
}
