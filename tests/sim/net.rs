//! The network between processes and servers: it delays, loses, repeats and reorders calls, and processes at its ends
//! freeze and die.
//!
//! A call is carried out by a task of the server's own. So what was sent happens although its sender has died, has
//! given up waiting, or asks again meanwhile.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use des_shared::clock::{Clock, Dice};
use futures::future::BoxFuture;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::ledger::Ledger;

/// The time of every server and process: that of the runtime, which moves on when nothing can be done.
#[derive(Debug)]
pub(crate) struct SimClock {
    began: Instant,
    base_ms: u64,
}

impl SimClock {
    pub(crate) fn new(base_ms: u64) -> Self {
        Self { began: Instant::now(), base_ms }
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        self.base_ms + self.began.elapsed().as_millis() as u64
    }
}

/// The servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Queue,
    State,
    Zone,
    Sources,
}

impl Target {
    pub(crate) const ALL: [Self; 4] = [Self::Queue, Self::State, Self::Zone, Self::Sources];

    /// How long a caller waits for an answer.
    fn patience(self) -> Duration {
        if self == Self::Queue { Duration::from_secs(3) } else { Duration::from_secs(8) }
    }
}

/// What goes wrong, in thousandths of the calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Odds {
    /// The server refuses (503).
    pub(crate) refused: u64,
    /// The call never arrives.
    pub(crate) lost: u64,
    /// The call is carried out, its answer never arrives.
    pub(crate) lost_answer: u64,
    /// The call is carried out twice.
    pub(crate) twice: u64,
    /// The call or its answer takes up to twenty seconds.
    pub(crate) slow: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Pass,
    Refused,
    Lost,
    LostAnswer,
    Twice,
}

struct Way {
    fate: Fate,
    there: Duration,
    back: Duration,
}

pub(crate) struct Net {
    dice: Dice,
    odds: Mutex<Odds>,
    /// The longest usual way of a call or an answer, ms.
    pace_ms: AtomicU64,
    away: Mutex<BTreeSet<Target>>,
    faults: AtomicU64,
    pub(crate) clock: Arc<SimClock>,
    pub(crate) ledger: Ledger,
}

impl Net {
    pub(crate) fn new(dice: Dice, clock: Arc<SimClock>, ledger: Ledger) -> Arc<Self> {
        let (odds, away) = (Mutex::default(), Mutex::default());
        let (pace_ms, faults) = (AtomicU64::new(20), AtomicU64::new(0));
        Arc::new(Self { dice, odds, pace_ms, away, faults, clock, ledger })
    }

    pub(crate) fn set_odds(&self, odds: Odds) {
        *self.odds.lock().unwrap_or_else(PoisonError::into_inner) = odds;
    }

    /// How long the way of a call or an answer usually is at most.
    pub(crate) fn set_pace(&self, longest: Duration) {
        self.pace_ms.store(longest.as_millis() as u64, Ordering::Relaxed);
    }

    /// A server goes away or comes back.
    pub(crate) fn set_away(&self, target: Target, away: bool) {
        let mut all = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if away {
            all.insert(target)
        } else {
            all.remove(&target)
        };
    }

    fn is_away(&self, target: Target) -> bool {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).contains(&target)
    }

    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    pub(crate) fn event(&self, text: fmt::Arguments<'_>) {
        self.ledger.event(self.clock.now_ms(), text);
    }

    fn roll(&self) -> Way {
        let odds = *self.odds.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = || {
            let slow = self.dice.up_to(999) < odds.slow;
            let bound = if slow { 20_000 } else { self.pace_ms.load(Ordering::Relaxed) };
            Duration::from_millis(1 + self.dice.up_to(bound))
        };
        let (there, back) = (wait(), wait());
        let mut rolled = self.dice.up_to(999);
        let chances = [
            (odds.refused, Fate::Refused),
            (odds.lost, Fate::Lost),
            (odds.lost_answer, Fate::LostAnswer),
            (odds.twice, Fate::Twice),
        ];
        let fate = chances.into_iter().find_map(|(chance, fate)| {
            let hit = rolled < chance;
            rolled = rolled.saturating_sub(chance);
            hit.then_some(fate)
        });
        if fate.is_some() || (there + back).as_millis() > 2000 {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
        Way { fate: fate.unwrap_or(Fate::Pass), there, back }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    Frozen,
    Dead,
}

/// One process: whatever it sends passes here.
pub(crate) struct Node {
    pub(crate) net: Arc<Net>,
    pub(crate) name: String,
    gate: Mutex<Gate>,
    // Not a watch channel: that one wakes in random order.
    opened: Notify,
    cut: Mutex<BTreeSet<Target>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Node {
    pub(crate) fn new(net: &Arc<Net>, name: String) -> Arc<Self> {
        Arc::new(Self {
            net: Arc::clone(net),
            name,
            gate: Mutex::new(Gate::Open),
            opened: Notify::new(),
            cut: Mutex::default(),
        })
    }

    pub(crate) fn freeze(&self, frozen: bool) {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if *gate != Gate::Dead {
            *gate = if frozen { Gate::Frozen } else { Gate::Open };
            self.opened.notify_waiters();
        }
    }

    /// The process is gone: nothing is sent any more, and no answer is heard.
    pub(crate) fn die(&self) {
        *self.gate.lock().unwrap_or_else(PoisonError::into_inner) = Gate::Dead;
    }

    /// The process cannot reach a server, or can again.
    pub(crate) fn set_cut(&self, target: Target, cut: bool) {
        let mut all = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        if cut {
            all.insert(target)
        } else {
            all.remove(&target)
        };
    }

    /// Returns when the process runs; never once it is dead.
    pub(crate) async fn running(&self) {
        loop {
            let changed = self.opened.notified();
            if *self.gate.lock().unwrap_or_else(PoisonError::into_inner) == Gate::Open {
                return;
            }
            changed.await;
        }
    }

    /// A call of this process. `carry_out` is what the server does, `away` makes the error of a server that cannot be
    /// reached.
    pub(crate) async fn call<T, E>(
        &self,
        target: Target,
        what: String,
        carry_out: impl Fn() -> BoxFuture<'static, Result<T, E>> + Send + 'static,
        away: impl Fn(&str) -> E + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: Clone + fmt::Display + Send + 'static,
    {
        self.running().await;
        let mut way = self.net.roll();
        if self.cut.lock().unwrap_or_else(PoisonError::into_inner).contains(&target) {
            way.fate = Fate::Lost;
        }
        let no_answer = away("no answer came");
        let (sender, receiver) = oneshot::channel();
        let (net, name) = (Arc::clone(&self.net), self.name.clone());
        let serve = async move {
            tokio::time::sleep(way.there).await;
            let refused = way.fate == Fate::Refused || net.is_away(target);
            let answer = if way.fate == Fate::Lost {
                None
            } else if refused {
                Some(Err(away("it is away")))
            } else {
                let answer = carry_out().await;
                net.said(&name, &what, &answer);
                (way.fate != Fate::LostAnswer).then_some(answer)
            };
            tokio::time::sleep(way.back).await;
            if way.fate == Fate::Twice && !net.is_away(target) {
                net.said(&name, &what, &carry_out().await);
            }
            match answer {
                // The caller may be gone.
                Some(answer) => drop(sender.send(answer)),
                None => tokio::time::sleep(target.patience() * 2).await,
            }
        };
        tokio::spawn(serve);
        let answer = tokio::time::timeout(target.patience(), receiver).await;
        self.running().await;
        match answer {
            Ok(Ok(answer)) => answer,
            _ => Err(no_answer),
        }
    }
}

impl Net {
    fn said<T, E: fmt::Display>(&self, node: &str, what: &str, answer: &Result<T, E>) {
        match answer {
            Ok(_) => self.event(format_args!("{node} {what}")),
            Err(e) => self.event(format_args!("{node} {what}: {e}")),
        }
    }
}
