//! Through the stores of a zone: its own first, then the copies, until one has an answer.
//!
//! - A store that fails is followed by the next at once. One that does not answer is followed after a while and goes on
//!   beside it: the first answer counts, the others are dropped, and their calls end with them.
//! - Stores whose circuit breaker is open come last: they refuse at no cost.
//! - A copy may lag behind. That there is no such file is believed only of the zone's own store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use des_shared::routing::Slot;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::error::Error;
use crate::locate::Freshness;
use crate::places::Replica;
use crate::serve::{Answer, Files, Wanted, shown};

/// Whether a file found beside a damaged shard, which might hold a newer one, is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BesideDamage {
    /// Another store of the zone may have the shard intact.
    AskElsewhere,
    /// There is none that has.
    Accept,
}

/// Asks the stores of a zone for the same thing. `patience` is how long one may take before the next is asked too.
/// `None` means that there is no such file.
pub(crate) async fn first_answer<'a, T, Ask, Fut>(
    replicas: &'a [Arc<Replica>],
    patience: Duration,
    ask: Ask,
) -> Result<Option<T>, Error>
where
    Ask: Fn(&'a Arc<Replica>, BesideDamage) -> Fut,
    Fut: Future<Output = Result<Option<T>, Error>>,
{
    first_answer_from(replicas, (0, patience), ask).await
}

/// The same, but the store with this number is asked before the others that are worth asking.
pub(crate) async fn first_answer_from<'a, T, Ask, Fut>(
    replicas: &'a [Arc<Replica>],
    (first, patience): (usize, Duration),
    ask: Ask,
) -> Result<Option<T>, Error>
where
    Ask: Fn(&'a Arc<Replica>, BesideDamage) -> Fut,
    Fut: Future<Output = Result<Option<T>, Error>>,
{
    if let [only] = replicas {
        return ask(only, BesideDamage::Accept).await;
    }
    Box::pin(among(replicas, (first, patience), ask)).await
}

/// The same where there are several. Boxed by its caller: most zones have one store, and need no room for this.
async fn among<'a, T, Ask, Fut>(
    replicas: &'a [Arc<Replica>],
    (first, patience): (usize, Duration),
    ask: Ask,
) -> Result<Option<T>, Error>
where
    Ask: Fn(&'a Arc<Replica>, BesideDamage) -> Fut,
    Fut: Future<Output = Result<Option<T>, Error>>,
{
    let mut order: Vec<usize> = (0..replicas.len()).collect();
    order.sort_by_key(|at| (!replicas[*at].guard.would_pass(), *at != first));
    let mut order = order.into_iter().peekable();
    let mut failed: Option<(usize, Error)> = None;
    let start = |at: usize| {
        let asked = ask(&replicas[at], BesideDamage::AskElsewhere);
        async move { (at, asked.await) }
    };
    let mut running = FuturesUnordered::new();
    loop {
        let idle = running.is_empty();
        let (at, outcome) = tokio::select! {
            Some(ended) = running.next() => ended,
            // Nothing is under way, or nothing of it has answered for a while.
            () = wait_unless(idle, patience), if order.peek().is_some() => {
                running.extend(order.next().map(&start));
                continue;
            }
            else => break,
        };
        match outcome {
            Ok(Some(found)) => {
                if at > 0 {
                    replicas[at].stood_in.inc();
                }
                return Ok(Some(found));
            }
            Ok(None) if at == 0 => return Ok(None),
            Ok(None) => {}
            Err(error) if error.may_differ_elsewhere() => {
                if !error.is_unasked()
                    && let Some(kept_back) = replicas[at].told.due(Instant::now())
                {
                    let store = replicas[at].source.store().url();
                    tracing::warn!(store, kept_back, "trying the zone's other stores: {error}");
                }
                if failed.as_ref().is_none_or(|(before, _)| at < *before) {
                    failed = Some((at, error));
                }
                running.extend(order.next().map(&start));
            }
            Err(error) => return Err(error),
        }
    }
    match failed {
        None => Ok(None),
        // Nobody knows better.
        Some((at, error @ Error::Damaged { .. })) => {
            let answer = ask(&replicas[at], BesideDamage::Accept).await;
            answer.ok().flatten().map_or(Err(error), |answer| Ok(Some(answer)))
        }
        Some((_, error)) => Err(error),
    }
}

async fn wait_unless(at_once: bool, wait: Duration) {
    if !at_once {
        tokio::time::sleep(wait).await;
    }
}

impl Files {
    /// The answer of a slot's zone.
    pub(crate) async fn in_slot(&self, slot: Slot, wanted: &Wanted) -> Result<Option<Answer>, Error> {
        let replicas = self.places.replicas(slot.index)?;
        let ask = |replica, beside| self.at_replica(replica, slot, wanted, beside);
        first_answer(replicas, self.places.patience(), ask).await
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
            Err(Error::Moving { .. }) => Box::pin(self.once(replica, slot, wanted, (Freshness::New, beside))).await,
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
}
