//! Sources that wait, fail or panic when a test says so.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use des_shared::segment::SegmentFile;
use des_worker::source::{SourceError, SourceOpener, SourceReader};
use tokio::sync::watch;

/// What happens when a file is read.
#[derive(Clone, Debug)]
pub(crate) enum Trick {
    /// Nobody gets past it until the gate opens.
    Wait,
    Fail(SourceError),
    Panic,
}

#[derive(Debug)]
pub(crate) struct Gate {
    inner: Arc<dyn SourceOpener>,
    tricks: Mutex<BTreeMap<String, Trick>>,
    open: watch::Sender<bool>,
    waiting: watch::Sender<u64>,
    opened: AtomicU64,
    between: Mutex<Option<Between>>,
}

/// Runs before the n-th time a file is opened to be streamed.
struct Between(u64, Box<dyn Fn() + Send>);

impl fmt::Debug for Between {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Between({})", self.0)
    }
}

impl Gate {
    pub(crate) fn new(inner: Arc<dyn SourceOpener>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            tricks: Mutex::default(),
            open: watch::Sender::new(false),
            waiting: watch::Sender::new(0),
            opened: AtomicU64::new(0),
            between: Mutex::default(),
        })
    }

    pub(crate) fn trick(&self, uid: &str, trick: Trick) {
        self.tricks.lock().unwrap().insert(uid.to_owned(), trick);
    }

    pub(crate) fn heal(&self) {
        self.tricks.lock().unwrap().clear();
    }

    pub(crate) fn open_up(&self) {
        self.open.send_replace(true);
    }

    /// Returns once a read waits at the gate.
    pub(crate) async fn somebody_waits(&self) {
        self.waiting.subscribe().wait_for(|n| *n > 0).await.unwrap();
    }

    pub(crate) fn before_opening(&self, nth: u64, action: impl Fn() + Send + 'static) {
        *self.between.lock().unwrap() = Some(Between(nth, Box::new(action)));
    }

    async fn play(&self, file: &SegmentFile) -> Option<SourceError> {
        let trick = self.tricks.lock().unwrap().get(file.uid.as_str()).cloned();
        match trick {
            None => None,
            Some(Trick::Fail(error)) => Some(error),
            Some(Trick::Panic) => panic!("a trick for {}", file.uid),
            Some(Trick::Wait) => {
                self.waiting.send_modify(|n| *n += 1);
                self.open.subscribe().wait_for(|open| *open).await.unwrap();
                None
            }
        }
    }
}

#[async_trait]
impl SourceOpener for Gate {
    async fn read(&self, files: Vec<SegmentFile>) -> Vec<Result<Bytes, SourceError>> {
        let mut faults = Vec::new();
        for file in &files {
            faults.push(self.play(file).await);
        }
        let answers = self.inner.read(files).await;
        faults.into_iter().zip(answers).map(|(fault, answer)| fault.map_or(answer, Err)).collect()
    }

    async fn open(&self, file: &SegmentFile) -> Result<Box<dyn SourceReader>, SourceError> {
        let nth = self.opened.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(Between(at, action)) = &*self.between.lock().unwrap()
            && *at == nth
        {
            action();
        }
        match self.play(file).await {
            Some(error) => Err(error),
            None => self.inner.open(file).await,
        }
    }
}
