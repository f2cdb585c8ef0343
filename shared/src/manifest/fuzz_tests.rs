//! The reader against `serde_json` on right manifests, and against anything at all on wrong ones.
//!
//! `DES_FUZZ_INPUTS` sets how many inputs the last test tries; the normal run tries a few thousand.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::{Value, json};

use super::tests::Trickle;
use super::*;

/// What is expected of one right element, by a parser of the whole text.
type Fields = (String, String, u64, String);

fn entries(bytes: &[u8], step: usize) -> Result<Vec<(Position, Fields)>, String> {
    let reader = ManifestReader::new(Trickle { bytes, step, failure: None }).map_err(|e| e.to_string())?;
    reader
        .map(|item| {
            let (position, entry) = item.map_err(|e| e.to_string())?;
            let fields =
                (String::from(entry.uid), entry.created_at.as_str().to_owned(), entry.size_bytes, entry.source_path);
            Ok((position, fields))
        })
        .collect()
}

fn any_element() -> impl Strategy<Value = Value> {
    let uid = prop_oneof!["\\PC{1,12}".prop_map(Value::from), any::<u64>().prop_map(Value::from)];
    let extra = prop_oneof![Just(Value::Null), "\\PC{0,8}".prop_map(|s| json!([{ "uid": s }, "]}", "\\"]))];
    (uid, any::<u64>(), "[^\0]{1,20}", extra).prop_map(|(uid, size, path, extra)| {
        json!({"uid": uid, "created_at": "2025-03-10T12:00:00Z", "size_bytes": size, "source_path": path, "x": extra})
    })
}

fn expected(elements: &[Value]) -> Vec<Fields> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fields = |e: &Value| {
        (text(&e["uid"]), text(&e["created_at"]), e["size_bytes"].as_u64().unwrap_or_default(), text(&e["source_path"]))
    };
    elements.iter().map(fields).collect()
}

fn pack(bytes: &[u8], how: u8) -> Vec<u8> {
    use std::io::Write;
    match how {
        0 => bytes.to_vec(),
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).expect("in memory");
            encoder.finish().expect("in memory")
        }
        _ => zstd::bulk::compress(bytes, 1).expect("in memory"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn right_manifests_read_as_serde_json_reads_them(
        elements in proptest::collection::vec(any_element(), 0..12),
        (pretty, how, step) in (any::<bool>(), 0_u8..3, 1_usize..200),
    ) {
        let list = if pretty { serde_json::to_string_pretty(&elements) } else { serde_json::to_string(&elements) };
        let lines = elements.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
        for text in [list.expect("JSON"), lines] {
            let got = entries(&pack(text.as_bytes(), how), step);
            let got = got.map(|all| all.into_iter().map(|(_, fields)| fields).collect::<Vec<_>>());
            prop_assert_eq!(got, Ok(expected(&elements)), "{}", text);
        }
    }

    #[test]
    fn pieces_change_nothing(
        elements in proptest::collection::vec(any_element(), 1..6),
        (at, byte, how, step) in (any::<prop::sample::Index>(), any::<u8>(), 0_u8..3, 1_usize..64),
    ) {
        // One byte is changed, so that errors too are the same whatever the pieces.
        let mut bytes = serde_json::to_vec(&elements).expect("JSON");
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let packed = pack(&bytes, how);
        prop_assert_eq!(entries(&packed, usize::MAX), entries(&packed, step));
    }
}

/// Pieces of manifests, right and wrong.
const PIECES: [&str; 24] = [
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "\"",
    "\\",
    "\n",
    "\r\n",
    " ",
    "null",
    "true",
    "-1",
    "1e9",
    "12345678901234567890123",
    "\"uid\"",
    "\"created_at\"",
    "\"size_bytes\"",
    "\"source_path\"",
    "\"2025-03-10T12:00:00Z\"",
    "\"\\ud800\"",
    "{\"uid\":1,\"created_at\":\"2025-03-10\",\"size_bytes\":1,\"source_path\":\"f\"}",
    "\u{feff}",
];

fn random_input(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = Vec::new();
    if random.random_bool(0.2) {
        bytes.resize(random.random_range(0..200), 0);
        random.fill_bytes(&mut bytes);
    } else {
        for _ in 0..random.random_range(0..40) {
            bytes.extend_from_slice(PIECES[random.random_range(0..PIECES.len())].as_bytes());
        }
    }
    let mut bytes = pack(&bytes, random.random_range(0..3));
    for _ in 0..random.random_range(0..4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..3) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes.truncate(at),
            _ => bytes.insert(at, random.random()),
        }
    }
    bytes
}

#[test]
fn no_input_panics_and_every_refusal_says_why() {
    let inputs = std::env::var("DES_FUZZ_INPUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000_u64);
    let mut random = StdRng::seed_from_u64(2);
    let (mut accepted, mut refused) = (0_u64, 0_u64);
    for _ in 0..inputs {
        let bytes = random_input(&mut random);
        match entries(&bytes, random.random_range(1..100)) {
            Ok(entries) => {
                accepted += 1;
                assert!(entries.windows(2).all(|pair| pair[0].0 < pair[1].0), "positions grow: {bytes:?}");
            }
            Err(error) => {
                refused += 1;
                assert!(!error.is_empty() && error.len() < 1_000, "{bytes:?}: {error}");
            }
        }
    }
    assert_eq!(accepted + refused, inputs);
    println!("{inputs} inputs: {accepted} accepted, {refused} refused");
}
