//! A retriever over folders, with a clock that stands still.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use bytes::Bytes;
use des_shared::archive::{RecordedCall, RecordingStore};
use des_shared::clock::{Dice, ManualClock};
use des_shared::config::{Auth, Listen};
use des_shared::created_at::CreatedAt;
use des_shared::metrics::Metrics;
use des_shared::retry::RetryPolicy;
use des_shared::routing::{NBits, Slot, candidate_slots};
use des_shared::segment::{CodecChoice, PackOptions, ShardFormat};
use des_shared::service::Shutdown;
use des_shared::shard::{Encoder, Meta, PackDictionary, ShardWriter, choose_samples};
use des_shared::store::call::Operation;
use des_shared::store::faults::FaultStore;
use des_shared::store::guarded::GuardOptions;
use des_shared::store::local::LocalStore;
use des_shared::store::zones::{ShardRange, Zone, Zones};
use des_shared::store::{ByteRange, SharedStore};
use des_shared::tombstone::TOMBSTONES_PREFIX;
use futures::TryStreamExt;
use tempfile::TempDir;

use crate::error::Error;
use crate::keys::KeySettings;
use crate::metrics::RetrieverMetrics;
use crate::serve::{Answer, Body, Files, Wanted};
use crate::{Config, Deps, Endurance, Retriever, Running, S3FaceConfig};

/// The day of all files here that are not about days.
pub(super) const NOON: &str = "2025-03-10T12:00:00Z";

/// One folder with a store on it.
pub(super) struct Place {
    pub(super) folder: TempDir,
    pub(super) faults: Arc<FaultStore>,
    pub(super) recording: Arc<RecordingStore>,
}

impl Place {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let local: SharedStore = Arc::new(LocalStore::open(folder.path()).expect("the folder is there"));
        let faults = Arc::new(FaultStore::scripted(local));
        let recording = Arc::new(RecordingStore::new(faults.clone()));
        Self { folder, faults, recording }
    }

    pub(super) fn store(&self) -> SharedStore {
        self.recording.clone()
    }

    /// Writes an object under a name of its own first, so that a replaced one is another file.
    pub(super) fn put(&self, key: &str, bytes: impl AsRef<[u8]>) {
        let path = self.folder.path().join(key);
        std::fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
        let temporary = self.folder.path().join(".des-tmp-test");
        std::fs::write(&temporary, bytes).expect("written");
        std::fs::rename(temporary, path).expect("renamed");
    }

    pub(super) fn remove(&self, key: &str) {
        std::fs::remove_file(self.folder.path().join(key)).expect("it was there");
    }

    /// The calls since the last time; none of them may ask for nothing.
    pub(super) fn calls(&self) -> Vec<RecordedCall> {
        let calls = self.recording.take();
        for call in &calls {
            if let Some(ByteRange::Span(span)) = &call.range {
                assert!(!span.is_empty(), "{call:?}");
            }
            assert_ne!(call.range, Some(ByteRange::Suffix(0)), "{call:?}");
        }
        calls
    }

    /// How many listings of shards and reads there were since the last time. With a new listing of shards goes one of
    /// tombstones, which is not counted.
    pub(super) fn counted(&self) -> (usize, usize) {
        let mut calls = self.calls();
        calls.retain(|call| call.operation != Operation::List || !call.key.starts_with(TOMBSTONES_PREFIX));
        let lists = calls.iter().filter(|call| call.operation == Operation::List).count();
        (lists, calls.len() - lists)
    }
}

/// A retriever without a socket.
pub(super) struct Rig {
    pub(super) files: Arc<Files>,
    pub(super) clock: Arc<ManualClock>,
    pub(super) deps: Deps,
    pub(super) config: Config,
}

pub(super) fn n_bits(bits: u8) -> NBits {
    NBits::new(bits).expect("a legal width")
}

/// Every call is made once: most tests count them, or want to see their failures.
fn once() -> Endurance {
    let usual = Endurance::default();
    let guard = GuardOptions { hedge_share: 0.0, ..usual.guard };
    Endurance { retry: RetryPolicy::NEVER, guard, ..usual }
}

impl Rig {
    pub(super) fn new(place: &Place, bits: u8) -> Self {
        Self::over(Zones::single(n_bits(bits), place.store()))
    }

    /// One zone with copies.
    pub(super) fn with_copies(place: &Place, copies: &[&Place]) -> Self {
        let zone = Zone {
            name: "zone-a".to_owned(),
            range: ShardRange::all(n_bits(8)),
            store: place.store(),
            replicas: copies.iter().map(|copy| copy.store()).collect(),
        };
        Self::over(Zones::new(n_bits(8), vec![zone]).expect("one zone"))
    }

    pub(super) fn over(zones: Zones) -> Self {
        let listen =
            Listen { address: ([127, 0, 0, 1], 0).into(), auth: Auth::default(), drain: Duration::from_secs(5) };
        let config = Config {
            listen,
            backend: "local",
            cache_bytes: 64 << 20,
            payload_cache_bytes: 0,
            disk: None,
            listing_ttl: Duration::from_secs(5),
            bigfiles_prefix: "_bigFiles".to_owned(),
            cache_control: None,
            deleters: None,
            endurance: once(),
            keys: KeySettings::default(),
            batch_max_files: 10_000,
            s3_face: None,
            serving_threads: 0,
        };
        let clock = Arc::new(ManualClock::new(1_750_000_000_000));
        let deps = Deps {
            zones: Arc::new(zones),
            clock: clock.clone(),
            dice: Arc::new(Dice::seeded(1)),
            metrics: Metrics::new(),
        };
        let metrics = RetrieverMetrics::register(&Metrics::new(), "local");
        let files = Arc::new(crate::files(&config, &deps, &metrics));
        Self { files, clock, deps, config }
    }

    /// Everything again, by what the configuration says now.
    pub(super) fn rebuild(&mut self) {
        let metrics = RetrieverMetrics::register(&Metrics::new(), "local");
        self.files = Arc::new(crate::files(&self.config, &self.deps, &metrics));
    }

    pub(super) async fn answer(&self, wanted: &Wanted) -> Result<Answer, Error> {
        self.files.answer(wanted).await
    }

    /// The bytes of a file, all of them.
    pub(super) async fn get(&self, uid: &str) -> Result<Bytes, Error> {
        self.get_at(uid, NOON).await
    }

    pub(super) async fn get_at(&self, uid: &str, created_at: &str) -> Result<Bytes, Error> {
        let answer = self.answer(&wanted(uid, created_at)).await?;
        assert_eq!(answer.status, StatusCode::OK);
        let length = answer.length;
        let bytes = bytes_of(answer).await.expect("the whole body");
        assert_eq!(bytes.len() as u64, length);
        Ok(bytes)
    }

    pub(super) async fn status(&self, uid: &str) -> u16 {
        match self.answer(&wanted(uid, NOON)).await {
            Ok(answer) => answer.status.as_u16(),
            Err(error) => error.status().as_u16(),
        }
    }

    /// Two zones with 16 slots; those from `split` on are the second one's.
    pub(super) fn two_zones(places: [&Place; 2], split: u32) -> Self {
        let ranges = [(0, split - 1), (split, 15)].into_iter().zip(places);
        let zones = ranges.map(|((start, end), place)| Zone {
            name: format!("from-{start}"),
            range: ShardRange { start, end },
            store: place.store(),
            replicas: Vec::new(),
        });
        Self::over(Zones::new(n_bits(4), zones.collect()).expect("two zones"))
    }

    /// With an S3 interface for everybody.
    pub(super) fn with_s3_face(mut self) -> Self {
        let address = ([127, 0, 0, 1], 0).into();
        let domain = Some("s3.example".to_owned());
        self.config.s3_face = Some(S3FaceConfig { address, bucket: "des".to_owned(), keys: None, domain });
        self
    }

    /// The same zones behind a socket.
    pub(super) async fn serve(&self) -> Server {
        let shutdown = Shutdown::new();
        let running = Retriever::start(self.config.clone(), self.deps.clone(), shutdown.clone()).await;
        Server { running: running.expect("a free port"), shutdown }
    }
}

/// A retriever behind a socket.
pub(super) struct Server {
    running: Running,
    shutdown: Shutdown,
}

impl Server {
    pub(super) fn url(&self, path_and_query: &str) -> String {
        format!("http://{}{path_and_query}", self.running.local_addr())
    }

    pub(super) fn begin_to_stop(&self) {
        self.shutdown.begin();
    }

    /// The same at the S3 interface.
    pub(super) fn s3_url(&self, path_and_query: &str) -> String {
        format!("http://{}{path_and_query}", self.running.s3_addr().expect("an S3 interface"))
    }

    pub(super) async fn stop(self) {
        self.shutdown.begin();
        self.running.join().await.expect("stopped");
    }
}

pub(super) fn wanted(uid: &str, created_at: &str) -> Wanted {
    Wanted::whole(uid, CreatedAt::parse(created_at).expect("a moment"))
}

/// The body of an answer, or why it broke off.
pub(super) async fn bytes_of(answer: Answer) -> Result<Bytes, des_shared::archive::ArchiveError> {
    match answer.body {
        Body::Empty => Ok(Bytes::new()),
        Body::Bytes(bytes) => Ok(bytes),
        Body::Stream(stream) => {
            let all: Vec<Bytes> = stream.try_collect().await?;
            Ok(all.concat().into())
        }
    }
}

/// Files of a shard by uid.
pub(super) type Content = BTreeMap<String, Vec<u8>>;

pub(super) fn content(files: &[(&str, &[u8])]) -> Content {
    files.iter().map(|(uid, raw)| ((*uid).to_owned(), raw.to_vec())).collect()
}

/// Small files that resemble each other, one that is empty and one that does not compress.
pub(super) fn many(count: usize) -> Content {
    let text = |n: usize| format!("{{\"number\":{n},\"name\":\"file {n}\",\"tags\":[\"alpha\",\"beta\",\"gamma\"]}}");
    let mut files: Content = (0..count).map(|n| (format!("folder/file-{n:05}.json"), text(n).into_bytes())).collect();
    files.insert("folder/none.txt".to_owned(), Vec::new());
    files.insert("folder/noise.bin".to_owned(), noise(3_000));
    files
}

/// Bytes that do not compress, the same every time.
pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn options(format: ShardFormat, codec: CodecChoice) -> PackOptions {
    PackOptions { format, codec, ..PackOptions::default() }
}

/// A v3 shard with zstd.
pub(super) fn v3(sequence: u64, files: &Content) -> Vec<u8> {
    pack(&options(ShardFormat::V3, CodecChoice::Zstd), sequence, files, None)
}

/// A shard of inline files, with a dictionary where that pays.
pub(super) fn pack(options: &PackOptions, sequence: u64, files: &Content, meta: Option<&str>) -> Vec<u8> {
    let choice = choose_samples(options, files.iter().map(|(uid, raw)| (uid.as_str(), raw.len() as u64)));
    let dictionary = choice.and_then(|choice| {
        let all: Vec<&Vec<u8>> = files.values().collect();
        let samples: Vec<&[u8]> = choice.files.iter().map(|at| &all[*at][..]).collect();
        choice.train(&samples, options.level)
    });
    let dictionary = dictionary.map(|d| Arc::new(PackDictionary::new(d, options.level).expect("a dictionary")));
    let meta = meta.and_then(|text| Meta::parse(text).expect("JSON"));
    let mut writer =
        ShardWriter::new(options.format, dictionary.as_ref().map(|d| d.bytes()), sequence).expect("a writer");
    let mut encoder = Encoder::new(options, dictionary.clone()).expect("an encoder");
    let mut out = writer.header().to_vec();
    for (uid, raw) in files {
        let stored = encoder.encode(uid, raw).expect("encoded");
        writer.append(uid, &stored.info, meta.as_ref()).expect("appended");
        out.extend_from_slice(&stored.bytes);
    }
    out.extend_from_slice(&writer.finish().expect("finished"));
    out
}

/// Where new shards have a file.
pub(super) fn slot(uid: &str, created_at: &str, bits: u8) -> Slot {
    candidate_slots(uid, &CreatedAt::parse(created_at).expect("a moment"), n_bits(bits))[0]
}

/// The key of shard `number` of a file's slot, at noon and with 8 bits.
pub(super) fn key(uid: &str, number: u32) -> String {
    format!("{}{number:04}.des", slot(uid, NOON, 8).object_prefix())
}

/// Lays one shard out under every slot of the day, with 4 bits: then every uid in it is found.
pub(super) fn put_in_all_slots(place: &Place, name: &str, bytes: &[u8]) {
    for index in 0..16 {
        place.put(&format!("20250310_{index:X}_{name}.des"), bytes);
    }
}

/// Changes the time of an object's last change.
pub(super) fn touch(folder: &Path, key: &str, unix_ms: u64) {
    let file = std::fs::File::options().write(true).open(folder.join(key)).expect("it is there");
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_millis(unix_ms)).expect("set");
}
