//! What the stores of this installation honour, found out before the first claim: a shard key is to be created once, and
//! not every S3-compatible server refuses a second writer. Such a store is looked at before each write (see
//! `des_shared::store::s3`), and the log says so.

use std::time::Duration;

use des_shared::clock::Dice;
use des_shared::layout;
use des_shared::service::Shutdown;
use des_shared::store::{Capabilities, SharedStore};

/// The longest pause before a store that did not answer is asked again.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Tries every store until it answers, or until the shutdown begins. A worker that cannot write has nothing to claim.
pub(crate) async fn find_out(stores: Vec<(String, SharedStore)>, dice: &Dice, shutdown: &Shutdown) {
    for (name, store) in stores {
        let mut pause = Duration::from_millis(200);
        loop {
            let answer = tokio::select! {
                answer = store.probe(layout::SCRATCH_PREFIX) => answer,
                () = shutdown.wait() => return,
            };
            match answer {
                Ok(found) => break tell(&name, &store.url(), found),
                Err(e) => tracing::error!("nothing is claimed before {name} can be written: {e}"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(0.5) + Duration::from_millis(dice.up_to(pause.as_millis() as u64 / 2))) => {}
                () = shutdown.wait() => return,
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
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
