//! Whether the state store keeps two writers of one record apart, found out by trying. Where it does not, the store
//! looks before each write (see `des_shared::store::s3`), so this has to be known before much is written: a store that
//! does not answer is asked until it does, and health says so meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use des_shared::layout;
use des_shared::store::StoreError;

use crate::Core;

/// The longest pause before a store that did not answer is asked again.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What is known of the state store. Inside another program, on folders, there is nothing to find out.
#[derive(Debug, Default)]
pub(crate) struct Conditions {
    unknown: Mutex<Option<String>>,
}

impl Conditions {
    /// For the health check: the error says why nothing is known yet.
    pub(crate) fn known(&self) -> Result<(), String> {
        match &*self.lock() {
            Some(why) => Err(format!("not tried yet whether it keeps two writers of a record apart: {why}")),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Tries the state store once.
    pub(crate) async fn try_state_store(&self) -> Result<(), StoreError> {
        match self.state().objects().probe(layout::SCRATCH_PREFIX).await {
            Ok(found) => {
                if !found.conditional_put {
                    tracing::warn!(
                        "the state store ignores If-None-Match: equal submissions at the same moment may become two jobs"
                    );
                }
                *self.conditions.lock() = None;
                Ok(())
            }
            Err(error) => {
                *self.conditions.lock() = Some(error.to_string());
                Err(error)
            }
        }
    }
}

/// Tries the state store until it answers, or until the shutdown.
pub(crate) async fn try_until_known(core: Arc<Core>) {
    let mut pause = core.config.limits.tick;
    loop {
        tokio::select! {
            biased;
            () = core.shutdown.wait() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let tried = tokio::select! {
            biased;
            () = core.shutdown.wait() => return,
            tried = core.try_state_store() => tried,
        };
        match tried {
            Ok(()) => return tracing::info!("the state store can be written now"),
            Err(error) => tracing::warn!("the state store cannot be written yet: {error}"),
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}
