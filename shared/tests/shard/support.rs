//! What the shard tests share: where the golden files are, a seeded generator, and packing in memory.

use std::path::PathBuf;
use std::sync::Arc;

use des_shared::segment::{CodecChoice, PackOptions, ShardFormat};
use des_shared::shard::{Encoder, Meta, PackDictionary, PayloadInfo, ShardWriter, hex32};
use sha2::{Digest, Sha256};

/// A file or folder under `tests/golden`.
pub(crate) fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

pub(crate) fn read(name: &str) -> Vec<u8> {
    let path = golden(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(crate) fn read_json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&read(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex32(&Sha256::digest(bytes).into())
}

pub(crate) fn options(format: ShardFormat, codec: CodecChoice) -> PackOptions {
    PackOptions { format, codec, ..PackOptions::default() }
}

/// One file to pack.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) uid: String,
    pub(crate) meta: Option<Meta>,
    pub(crate) body: Body,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Inline(Vec<u8>),
    Big([u8; 32], u64),
}

impl File {
    pub(crate) fn inline(uid: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { uid: uid.into(), meta: None, body: Body::Inline(bytes.into()) }
    }

    pub(crate) fn with_meta(mut self, text: &str) -> Self {
        self.meta = Meta::parse(text).unwrap();
        self
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.body {
            Body::Inline(bytes) => bytes,
            Body::Big(..) => &[],
        }
    }
}

/// Packs files, in the order given for version 2 and sorted for version 3.
pub(crate) fn pack(options: &PackOptions, files: &[File], dictionary: Option<Vec<u8>>, sequence: u64) -> Vec<u8> {
    let mut files: Vec<&File> = files.iter().collect();
    if options.format == ShardFormat::V3 {
        files.sort_by(|a, b| a.uid.cmp(&b.uid));
    }
    let mut writer = ShardWriter::new(options.format, dictionary.as_deref(), sequence).unwrap();
    let prepared = dictionary.map(|d| Arc::new(PackDictionary::new(d, options.level).unwrap()));
    let mut encoder = Encoder::new(options, prepared).unwrap();
    let mut out = writer.header().to_vec();
    for file in files {
        match &file.body {
            Body::Inline(raw) => {
                let payload = encoder.encode(&file.uid, raw).unwrap();
                let offset = writer.append(&file.uid, &payload.info, file.meta.as_ref()).unwrap();
                assert_eq!(offset, out.len() as u64);
                out.extend_from_slice(&payload.bytes);
            }
            Body::Big(sha256, size) => writer.append_bigfile(&file.uid, *sha256, *size, file.meta.as_ref()).unwrap(),
        }
    }
    assert_eq!(writer.position(), out.len() as u64);
    out.extend_from_slice(&writer.finish().unwrap());
    out
}

/// Learns the dictionary of a shard the way a worker does.
pub(crate) fn dictionary_for(options: &PackOptions, files: &[File]) -> Option<Vec<u8>> {
    let sizes = files.iter().map(|f| (f.uid.as_str(), f.bytes().len() as u64));
    let choice = des_shared::shard::choose_samples(options, sizes)?;
    let samples: Vec<&[u8]> = choice.files.iter().map(|at| files[*at].bytes()).collect();
    choice.train(&samples, options.level)
}

/// Payload bytes as they are, described for a writer.
pub(crate) fn stored(bytes: &[u8]) -> PayloadInfo {
    PayloadInfo::of(des_shared::shard::Codec::None, bytes.len() as u64, bytes)
}

/// The `SplitMix64` generator: small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// A small JSON record as services write them by the million.
pub(crate) fn record(random: &mut Random) -> Vec<u8> {
    let kinds = ["invoice", "credit_note", "reminder", "receipt"];
    let cities = ["Lisboa", "København", "Kraków", "Graz", "Leiden", "Oulu"];
    format!(
        "{{\"document_id\":\"{:016x}\",\"document_type\":\"{}\",\"customer\":{{\"id\":{},\"city\":\"{}\",\"vat\":\"EU{:09}\"}},\
         \"currency\":\"EUR\",\"amount_cents\":{},\"status\":\"archived\",\"created_by\":\"billing-service\",\"pages\":{}}}\n",
        random.next(),
        kinds[random.below(4)],
        random.below(90_000),
        cities[random.below(6)],
        random.below(999_999_999),
        random.below(5_000_000),
        random.below(9) + 1,
    )
    .into_bytes()
}

/// The files the golden shards and the damage tests are made of: every kind of entry.
pub(crate) fn every_kind(random: &mut Random) -> Vec<File> {
    let mut files: Vec<File> = (0..6).map(|i| File::inline(format!("records/{i:03}.json"), record(random))).collect();
    files.push(File::inline("empty", Vec::new()));
    files.push(File::inline("noise.bin", random.bytes(61)));
    files.push(File::inline("photo.JPG", b"not compressed, by its name. ".repeat(4)));
    files.push(File::inline("repeat.txt", b"the same again and again, ".repeat(40)));
    files.push(
        File::inline("日本語/ファイル.txt", "内容 ".repeat(30)).with_meta(r#"{"content_type":"text/plain","k":"é"}"#),
    );
    files.push(File { uid: "big.iso".into(), meta: None, body: Body::Big([0xab; 32], 5_000_000_000) });
    files.push(
        File { uid: "big-meta.iso".into(), meta: None, body: Body::Big([7; 32], 20) }.with_meta(r#"{"a":[1,{}]}"#),
    );
    files
}

/// Standard base64 with padding.
pub(crate) fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for c in text.bytes().filter(|c| *c != b'=') {
        let value = ALPHABET.iter().position(|a| *a == c).expect("base64") as u32;
        bits = bits << 6 | value;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}
