//! Waking those who wait for work: one connection per process that listens, reconnects by itself, and is never used for
//! anything else.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio_util::task::AbortOnDropHandle;

use super::connection::Connections;

/// First pause after a lost connection; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A connection that was silent for so long is replaced: its other end may be gone without a word.
const MAX_SILENCE: Duration = Duration::from_mins(1);

/// Hears when work may have come. The listener starts with the first wait and ends with its owner.
#[derive(Debug, Default)]
pub(super) struct Wake {
    notify: Arc<Notify>,
    listener: OnceLock<AbortOnDropHandle<()>>,
}

impl Wake {
    /// Starts the listener if it is not running yet.
    pub(super) fn start(&self, connections: &Arc<Connections>, channel: &str) {
        self.listener.get_or_init(|| {
            let (connections, channel, notify) =
                (Arc::clone(connections), channel.to_owned(), Arc::clone(&self.notify));
            AbortOnDropHandle::new(tokio::spawn(async move { listen(&connections, &channel, &notify).await }))
        });
    }

    /// Completes with the next word of work.
    pub(super) fn next(&self) -> Notified<'_> {
        self.notify.notified()
    }
}

/// Listens for ever.
async fn listen(connections: &Connections, channel: &str, notify: &Notify) {
    let mut pause = MIN_PAUSE;
    loop {
        match connections.listen(channel).await {
            Ok(listener) => {
                pause = MIN_PAUSE;
                // What was published while nobody listened is lost: everyone looks again.
                notify.notify_waiters();
                let mut messages = listener.into_on_message();
                while let Ok(Some(_)) = tokio::time::timeout(MAX_SILENCE, messages.next()).await {
                    notify.notify_waiters();
                }
            }
            Err(error) => tracing::debug!(%error, "cannot listen for work; waiting workers look by themselves"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}
