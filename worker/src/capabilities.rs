//! What the stores of this installation honour, found out before the first claim: a shard key is to be created once, and
//! not every S3-compatible server refuses a second writer. Such a store is looked at before each write (see
//! `des_shared::store::s3`), and the log says so.

use std::time::Duration;

use des_shared::clock::Dice;
use des_shared::layout::SCRATCH_PREFIX;
use des_shared::service::Shutdown;
use des_shared::store::{Capabilities, SharedStore};

/// The longest pause before a store that did not answer is asked again.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Tries all stores side by side, each until it answers, or until the shutdown begins. A worker that cannot write has
/// nothing to claim.
pub(crate) async fn find_out(stores: Vec<(String, SharedStore)>, dice: &Dice, shutdown: &Shutdown) {
    let all = stores.iter().map(|(name, store)| ask(name, store, dice, shutdown));
    futures::future::join_all(all).await;
}

async fn ask(name: &str, store: &SharedStore, dice: &Dice, shutdown: &Shutdown) {
    let mut pause = Duration::from_millis(200);
    loop {
        let answer = tokio::select! {
            biased;
            () = shutdown.wait() => return,
            answer = store.probe(SCRATCH_PREFIX) => answer,
        };
        match answer {
            Ok(found) => return tell(name, &store.url(), found),
            Err(e) => tracing::error!("nothing is claimed before {name} can be written: {e}"),
        }
        let half = pause / 2;
        let jitter = Duration::from_millis(dice.up_to(half.as_millis() as u64));
        tokio::select! {
            biased;
            () = shutdown.wait() => return,
            () = tokio::time::sleep(half + jitter) => {}
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

fn tell(name: &str, url: &str, found: Capabilities) {
    let Capabilities { conditional_put, conditional_complete, metadata } = found;
    if conditional_put && conditional_complete {
        tracing::info!(url, metadata, "{name} refuses a second writer of a key");
    } else {
        tracing::warn!(
            url,
            conditional_put,
            conditional_complete,
            metadata,
            "{name} ignores If-None-Match: each write is preceded by a look, under the task's lease"
        );
    }
}
