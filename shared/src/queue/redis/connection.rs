//! Connections to Redis: a few that many calls share, one for listening, and what an error means.
//!
//! A call is one round trip. No command that blocks is ever sent on a shared connection. A connection that erred is
//! dropped by the first who sees it and replaced by the next who needs it; calls that are under way on it end with an
//! error of their own. Whether a call is tried again is for the caller to say, with these exceptions, in which the server
//! has done nothing yet: a script it did not know, and a slot that is another node's.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{Client, Cmd, ErrorKind, ProtocolVersion, RedisError, Script, ServerErrorKind, Value};
use tokio::time::Instant;

use super::finder::{Finder, Live, OLDEST_SERVER, OpenError};
use super::place::Place;
use crate::clock::Dice;
use crate::queue::QueueError;
use crate::queue::redis_options::{RedisOptions, redact};
use crate::retry::{RetryPolicy, Schedule};

/// Waits between attempts to connect, for all connections together: what is down is not asked by everybody at once.
const RECONNECT: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(50),
    max: Duration::from_secs(1),
    attempts: u32::MAX,
    deadline: Duration::MAX,
};
/// Times a call is sent, after answers that say that nothing was done.
const SENDS: usize = 5;

/// The connections of one process.
pub(super) struct Connections {
    finder: Finder,
    slots: Vec<Slot>,
    opening: tokio::sync::Mutex<Opening>,
    dice: Arc<Dice>,
    shown: String,
    connect_timeout: Duration,
}

/// The place of one connection.
#[derive(Default)]
struct Slot {
    live: Mutex<Option<Live>>,
    /// Calls under way.
    busy: AtomicUsize,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self) -> Option<Live> {
        let mut live = self.lock();
        if live.as_ref().is_some_and(Live::is_lost) {
            *live = None;
        }
        live.clone()
    }

    fn drop_connection(&self, which: &Live) {
        let mut live = self.lock();
        if live.as_ref().is_some_and(|live| live.is(which)) {
            *live = None;
        }
    }
}

/// A call under way on a slot.
struct Busy<'a>(&'a Slot);

impl<'a> Busy<'a> {
    fn on(slot: &'a Slot) -> Self {
        slot.busy.fetch_add(1, Ordering::Relaxed);
        Self(slot)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How the last attempts to connect went.
struct Opening {
    waits: Schedule,
    not_before: Option<Instant>,
    /// When the last attempt began that failed, and why it did.
    failed: Option<(Instant, QueueError)>,
}

impl Opening {
    fn new() -> Self {
        Self { waits: RECONNECT.schedule(), not_before: None, failed: None }
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("url", &self.shown).finish_non_exhaustive()
    }
}

/// What an error means for the connection it came on, and for the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The server does not know the script: teach it, send again.
    Teach,
    /// Another node has the slot: go there, send again.
    Follow,
    /// The server answered; the connection is as good as before.
    Answer,
    /// The connection is in an unknown state.
    Replace,
    /// The server cannot serve us now, on no connection: look for the right one.
    ReplaceAll,
}

impl Connections {
    /// Prepares the connections; connects when first used. `tag` is the hash tag all keys share.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] when the options make no sense.
    pub(super) fn new(options: &RedisOptions, tag: &str, dice: Arc<Dice>) -> Result<Self, QueueError> {
        let finder = Finder::new(Place::of(options)?, tag, options.connect_timeout, options.response_timeout);
        let mut slots = Vec::new();
        slots.resize_with(options.connections.max(1), Slot::default);
        Ok(Self {
            finder,
            slots,
            opening: tokio::sync::Mutex::new(Opening::new()),
            dice,
            shown: redact(&options.url),
            connect_timeout: options.connect_timeout,
        })
    }

    /// Runs a script with `{ns}` as its key. A server that does not know the script yet is taught it.
    pub(super) async fn run(&self, script: &Script, tag: &str, args: &[String]) -> Result<Vec<Value>, QueueError> {
        let mut call = redis::cmd("EVALSHA");
        call.arg(script.get_hash()).arg(1).arg(tag).arg(args);
        match self.call(&call, Some(script)).await? {
            Value::Array(values) => Ok(values),
            other => Err(self.invalid(&format!("a script answered {other:?}"))),
        }
    }

    /// Whether the server answers.
    pub(super) async fn ping(&self) -> Result<(), QueueError> {
        self.call(&redis::cmd("PING"), None).await.map(drop)
    }

    /// A connection of its own that hears what is published on `channel`. In a cluster every node hears it.
    pub(super) async fn listen(&self, channel: &str) -> Result<redis::aio::PubSub, QueueError> {
        let live = self.live(self.least_busy()).await?;
        let settings = live.info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
        let info = live.info.clone().set_redis_settings(settings);
        let subscribe = async {
            let mut listener = Client::open(info)?.get_async_pubsub().await?;
            listener.subscribe(channel).await?;
            Ok(listener)
        };
        match tokio::time::timeout(self.connect_timeout, subscribe).await {
            Ok(result) => result.map_err(|error| self.error(&live, &error)),
            Err(_) => Err(self.unavailable(&format!("{} let nobody listen in time", live.address()))),
        }
    }

    /// Sends a command and waits for its answer.
    async fn call(&self, command: &Cmd, script: Option<&Script>) -> Result<Value, QueueError> {
        let slot = self.least_busy();
        let _busy = Busy::on(slot);
        let mut sends = 0;
        loop {
            let mut live = self.live(slot).await?;
            let error = match command.query_async(&mut live.connection).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            sends += 1;
            match self.verdict(&error) {
                Verdict::Answer => return Err(self.error(&live, &error)),
                Verdict::Replace => {
                    slot.drop_connection(&live);
                    return Err(self.error(&live, &error));
                }
                Verdict::ReplaceAll => {
                    self.drop_all();
                    return Err(self.error(&live, &error));
                }
                _ if sends >= SENDS => return Err(self.error(&live, &error)),
                Verdict::Follow => {
                    let (address, _slot) = error.redirect_node().unwrap_or_default();
                    self.finder.moved_to(&live, address);
                    slot.drop_connection(&live);
                }
                Verdict::Teach => {
                    let Some(script) = script else { return Err(self.error(&live, &error)) };
                    self.teach(slot, &mut live, script).await?;
                }
            }
        }
    }

    async fn teach(&self, slot: &Slot, live: &mut Live, script: &Script) -> Result<(), QueueError> {
        let Err(error) = script.load_async(&mut live.connection).await else { return Ok(()) };
        let text = error.to_string();
        if text.contains("unexpected symbol near '#'") {
            return Err(self.invalid(&format!(
                "{} cannot read our scripts: Redis {OLDEST_SERVER}.0 or newer is needed",
                live.address()
            )));
        }
        match self.verdict(&error) {
            Verdict::Answer => {}
            Verdict::ReplaceAll => self.drop_all(),
            _ => slot.drop_connection(live),
        }
        Err(self.error(live, &error))
    }

    /// The slot with the fewest calls under way; the first of them, so that few calls need few connections.
    fn least_busy(&self) -> &Slot {
        let busy = |slot: &&Slot| slot.busy.load(Ordering::Relaxed);
        // There is at least one.
        self.slots.iter().min_by_key(busy).unwrap_or(&self.slots[0])
    }

    /// The connection of a slot, opened if there is none.
    async fn live(&self, slot: &Slot) -> Result<Live, QueueError> {
        if let Some(live) = slot.get() {
            return Ok(live);
        }
        let asked = Instant::now();
        // On the heap: this is rare, and every call would carry its state otherwise.
        match tokio::time::timeout(self.connect_timeout, Box::pin(self.open(slot, asked))).await {
            Ok(result) => result,
            Err(_) => Err(self.unavailable(&format!("no connection within {:?}", self.connect_timeout))),
        }
    }

    /// One attempt at a time, and not too soon after one that failed. Who waited while it failed shares its error.
    async fn open(&self, slot: &Slot, asked: Instant) -> Result<Live, QueueError> {
        let mut opening = self.opening.lock().await;
        if let Some(live) = slot.get() {
            return Ok(live);
        }
        if let Some((_, error)) = opening.failed.as_ref().filter(|(began, _)| *began >= asked) {
            return Err(error.clone());
        }
        if let Some(not_before) = opening.not_before {
            tokio::time::sleep_until(not_before).await;
        }
        let began = Instant::now();
        match self.finder.open().await {
            Ok(live) => {
                *opening = Opening::new();
                *slot.lock() = Some(live.clone());
                Ok(live)
            }
            Err(error) => {
                let wait = opening.waits.next_wait(Duration::ZERO, &self.dice).unwrap_or(RECONNECT.max);
                opening.not_before = Some(Instant::now() + wait);
                let error = match error {
                    OpenError::Down(text) => self.unavailable(&text),
                    OpenError::Wrong(text) => self.invalid(&text),
                };
                opening.failed = Some((began, error.clone()));
                Err(error)
            }
        }
    }

    fn drop_all(&self) {
        for slot in &self.slots {
            *slot.lock() = None;
        }
    }

    fn verdict(&self, error: &RedisError) -> Verdict {
        match error.kind() {
            ErrorKind::Server(kind) => match kind {
                ServerErrorKind::NoScript => Verdict::Teach,
                ServerErrorKind::Moved if self.finder.is_cluster() => Verdict::Follow,
                ServerErrorKind::Moved
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ClusterDown => Verdict::ReplaceAll,
                // ASK is not followed: while a slot is on its way, part of our keys lie here and part there, and a
                // script needs all of them. The node refused to begin it, so waiting is safe.
                _ => Verdict::Answer,
            },
            // Only an error the server itself sent leaves the connection in a known state. Who is asked for a password
            // on an open connection has had it changed.
            ErrorKind::Extension if error.code() != Some("NOAUTH") => Verdict::Answer,
            ErrorKind::UnexpectedReturnType => Verdict::Answer,
            _ => Verdict::Replace,
        }
    }

    /// What the caller should do: data and scripts that do not fit are [`QueueError::Invalid`], all else may pass.
    fn error(&self, live: &Live, error: &RedisError) -> QueueError {
        let text = error.to_string();
        let invalid = match error.kind() {
            ErrorKind::UnexpectedReturnType => true,
            ErrorKind::Server(ServerErrorKind::ResponseError) => {
                text.contains("script") && !text.contains("non local key")
            }
            ErrorKind::Extension => error.code() == Some("WRONGTYPE"),
            _ => false,
        };
        let text = format!("{}: {text}", live.address());
        if invalid { self.invalid(&text) } else { self.unavailable(&text) }
    }

    fn unavailable(&self, text: &str) -> QueueError {
        QueueError::Unavailable(format!("{}: {text}", self.shown))
    }

    fn invalid(&self, text: &str) -> QueueError {
        QueueError::Invalid(format!("{}: {text}", self.shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_ever_shown() {
        for url in [
            "redis://:hunter2@h:6379/0",
            "rediss://me:hunter2@h",
            "redis://me:p%40hunter2@h/0",
            "redis+unix:///s?pass=hunter2",
            "redis+sentinel://:hunter2@a,b/m?sentinel_password=hunter2",
            "redis+cluster://:hunter2@a,b",
            "hunter2",
            "redis://:hunter2@h:notaport",
        ] {
            let options = RedisOptions::new(url);
            let made = match Connections::new(&options, "{des}", Arc::new(Dice::seeded(1))) {
                Ok(connections) => format!("{connections:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            let shown = format!("{options:?} {made}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[tokio::test]
    async fn what_is_down_is_asked_less_and_less() {
        // Takes connections and closes them at once, and counts them.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let accepted = AtomicUsize::new(0);
        let accept = async {
            while listener.accept().await.is_ok() {
                accepted.fetch_add(1, Ordering::Relaxed);
            }
        };
        let options = RedisOptions::new(format!("redis://127.0.0.1:{port}"));
        let connections = Connections::new(&options, "{des}", Arc::new(Dice::seeded(1))).expect("options");
        let hammer = async || {
            loop {
                assert!(matches!(connections.ping().await, Err(QueueError::Unavailable(_))));
            }
        };
        let all = async { tokio::join!(accept, hammer(), hammer(), hammer(), hammer()) };
        let ended = tokio::time::timeout(Duration::from_secs(2), all).await;
        assert!(ended.is_err(), "they go on for ever");
        let accepted = accepted.load(Ordering::Relaxed);
        assert!((3..40).contains(&accepted), "{accepted} attempts in two seconds");
    }
}
