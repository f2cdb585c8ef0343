//! How large shards are beside archives that cannot be read at random, and beside files compressed each by itself.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use des_bench::corpus::Corpus;
use des_shared::segment::{CodecChoice, PackOptions};
use des_shared::store::SharedStore;
use des_shared::store::local::LocalStore;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::report::{Measured, Ratio, Table, grouped};
use super::{Args, Failure, worker};

/// Most shards of one size.
const SHARDS: usize = 10;

/// What one way of storing takes, in bytes.
struct Sizes {
    what: String,
    raw: u64,
    each: u64,
    /// By name, and as drawn.
    tar: [u64; 2],
    des: [u64; 2],
}

/// Files of one shard: by name, and in the order in which they were drawn.
struct Shard {
    files: Corpus,
    drawn: Corpus,
}

/// Packs parts of the corpus and made-up documents, and adds up what that takes.
pub(super) fn measure(args: &Args, corpus: &Corpus, scratch: &Path) -> Result<Measured, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut all = Vec::new();
    for files in [1_000, 10_000] {
        let shards = parts(corpus, files, args.seed);
        if !shards.is_empty() {
            let what = format!("{} files a shard ({} of them)", grouped(files as f64), shards.len());
            all.push(runtime.block_on(sizes(what, &shards, scratch))?);
        }
    }
    let folder = scratch.join("documents");
    let documents = documents(&folder, args.documents, args.seed)?;
    let what = format!("one shard of {} JSON documents", grouped(documents.files.len() as f64));
    let mut drawn = documents.files.clone();
    drawn.shuffle(&mut StdRng::seed_from_u64(args.seed));
    let shard = Shard { drawn: documents.part(drawn), files: documents };
    all.push(runtime.block_on(sizes(what, &[shard], scratch))?);
    fs::remove_dir_all(&folder)?;
    Ok(report(&all))
}

/// Disjoint parts with so many files each, chosen at random, as routing does.
fn parts(corpus: &Corpus, files: usize, seed: u64) -> Vec<Shard> {
    let mut shuffled = corpus.files.clone();
    shuffled.shuffle(&mut StdRng::seed_from_u64(seed));
    let whole = shuffled.chunks_exact(files).take(SHARDS);
    let shards = whole.map(|part| {
        let mut sorted = part.to_vec();
        sorted.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
        Shard { files: corpus.part(sorted), drawn: corpus.part(part.to_vec()) }
    });
    shards.collect()
}

async fn sizes(what: String, shards: &[Shard], scratch: &Path) -> Result<Sizes, Failure> {
    let mut sizes = Sizes { what, raw: 0, each: 0, tar: [0; 2], des: [0; 2] };
    for (codec, stored) in [CodecChoice::Zstd, CodecChoice::Auto].into_iter().zip(&mut sizes.des) {
        let out = scratch.join("out");
        let store: SharedStore = Arc::new(LocalStore::create(&out)?);
        let options = PackOptions { codec, ..PackOptions::default() };
        for (number, Shard { files: shard, .. }) in shards.iter().enumerate() {
            let segment = worker::one_shard(shard, u32::try_from(number)?, &options)?;
            *stored += worker::pack(&store, vec![segment], &shard.root).await?;
        }
        worker::verified(&store, shards.iter().map(|shard| shard.files.files.len()).sum()).await?;
        drop(store);
        fs::remove_dir_all(&out)?;
    }
    let mut context = zstd::bulk::Compressor::new(3)?;
    for Shard { files: shard, drawn } in shards {
        sizes.raw += shard.bytes;
        for file in &shard.files {
            let raw = fs::read(shard.path(file))?;
            sizes.each += context.compress(&raw)?.len().min(raw.len()) as u64;
        }
        for (order, bytes) in [shard, drawn].into_iter().zip(&mut sizes.tar) {
            *bytes += tar(order, scratch)?;
        }
    }
    eprintln!("{}: raw {}, each {}, tar {:?}, DES {:?}", sizes.what, sizes.raw, sizes.each, sizes.tar, sizes.des);
    Ok(sizes)
}

/// Bytes of `tar --zstd` of the files, in their order.
fn tar(files: &Corpus, scratch: &Path) -> Result<u64, Failure> {
    let (names, archive) = (scratch.join("names"), scratch.join("files.tar.zst"));
    files.write_names(&names)?;
    let mut tar = Command::new("tar");
    tar.args(["--use-compress-program", "zstd -q -3", "-cf"]).arg(&archive).arg("-C").arg(&files.root);
    tar.args(["--no-recursion", "--verbatim-files-from", "-T"]).arg(&names).stdin(Stdio::null());
    let status = tar.status().map_err(|e| format!("tar: {e}"))?;
    if !status.success() {
        return Err(format!("tar: {status}").into());
    }
    let bytes = fs::metadata(&archive)?.len();
    fs::remove_file(archive)?;
    Ok(bytes)
}

/// Orders of a shop, about 1 KB each: what all documents of one kind have in common, and what none does.
fn documents(folder: &Path, count: u32, seed: u64) -> Result<Corpus, Failure> {
    let mut rng = StdRng::seed_from_u64(seed);
    for number in 0..count {
        let within = folder.join(format!("{:03}", number / 1000));
        if number.is_multiple_of(1000) {
            fs::create_dir_all(&within)?;
        }
        fs::write(within.join(format!("order-{number:06}.json")), document(&mut rng, number))?;
    }
    Ok(Corpus::read(folder)?)
}

fn document(rng: &mut StdRng, number: u32) -> String {
    const NAMES: [&str; 12] =
        ["Anna", "Boris", "Chen", "Dilara", "Emil", "Fatima", "Goran", "Hana", "Ivo", "Jana", "Karim", "Lena"];
    const STREETS: [&str; 8] = [
        "Main Street",
        "Oak Avenue",
        "Harbour Road",
        "Mill Lane",
        "Station Road",
        "Park View",
        "High Street",
        "Elm Court",
    ];
    const CITIES: [&str; 8] = ["Hamburg", "Lyon", "Porto", "Gdansk", "Leeds", "Turin", "Graz", "Malmo"];
    const GOODS: [&str; 8] =
        ["Desk lamp", "Paper, A4", "Office chair", "USB cable", "Notebook", "Whiteboard", "Headset", "Monitor arm"];
    const STATES: [&str; 5] = ["received", "paid", "packed", "shipped", "delivered"];
    let (first, last) = (NAMES[rng.random_range(0..12)], NAMES[rng.random_range(0..12)]);
    let (street, city) = (STREETS[rng.random_range(0..8)], CITIES[rng.random_range(0..8)]);
    let items: Vec<_> = (0..rng.random_range(1..=5))
        .map(|position| {
            let price = rng.random_range(199..99_999);
            serde_json::json!({
                "position": position, "sku": format!("SKU-{:06}", rng.random_range(0..1_000_000)),
                "title": GOODS[rng.random_range(0..8)], "quantity": rng.random_range(1..9), "unit_price_cents": price,
                "tax_rate": 0.19, "discount": null,
            })
        })
        .collect();
    let mut trace = String::new();
    for _ in 0..2 {
        write!(trace, "{:016x}", rng.random::<u64>()).expect("a string takes any text");
    }
    serde_json::json!({
        "id": format!("order-{number:06}"), "trace_id": trace, "status": STATES[rng.random_range(0..5)],
        "created_at": format!("2025-03-10T{:02}:{:02}:{:02}.{:03}Z", rng.random_range(0..24), rng.random_range(0..60), rng.random_range(0..60), rng.random_range(0..1000)),
        "currency": "EUR", "channel": "web", "language": "en", "gift": false,
        "customer": {
            "id": rng.random_range(0..10_000_000), "first_name": first, "last_name": format!("{last}sen"),
            "email": format!("{}.{}{}@example.com", first.to_lowercase(), last.to_lowercase(), rng.random_range(1..9999)),
            "phone": format!("+49 40 {:07}", rng.random_range(0..10_000_000)), "newsletter": rng.random_bool(0.3),
        },
        "shipping_address": {
            "street": format!("{} {street}", rng.random_range(1..200)), "city": city,
            "postcode": format!("{:05}", rng.random_range(1000..99_999)), "country": "DE", "instructions": null,
        },
        "payment": { "method": "card", "authorised": true, "reference": format!("{:012x}", rng.random_range(0..1u64 << 48)) },
        "items": items,
    })
    .to_string()
}

fn report(all: &[Sizes]) -> Measured {
    let mut measured = Measured::new("sizes");
    measured.say("Bytes. Every file of a shard can be read by itself. `tar` takes the files of each shard into `zstd -3`, once in the order of their names, in which versions of a file follow each other, and once in the random order in which they were drawn; a shard is as large either way.");
    let headings = [
        "files",
        "raw",
        "each by itself, zstd -3",
        "tar into zstd -3, by name",
        "as drawn",
        "DES, zstd 3",
        "DES, auto",
    ];
    let mut table = Table::new(&headings);
    let mut ratios = Vec::new();
    for sizes in all {
        let numbers = [sizes.raw, sizes.each, sizes.tar[0], sizes.tar[1], sizes.des[0], sizes.des[1]];
        let cells = numbers.map(|bytes| grouped(bytes as f64));
        table.row(&[&[sizes.what.clone()][..], &cells].concat());
        let archive = if sizes.what.contains("10,000") { "at most 1" } else { "at most 1.02" };
        let beside = if sizes.what.ends_with("documents") {
            vec![(sizes.each, "each by itself", "at most 0.4")]
        } else {
            vec![
                (sizes.tar[1], "tar into zstd -3, as drawn", archive),
                (sizes.tar[0], "tar into zstd -3, by name", archive),
            ]
        };
        for (theirs, beside, wanted) in beside {
            for (codec, stored) in ["zstd 3", "auto"].into_iter().zip(sizes.des) {
                let what = format!("{}: DES, {codec} / {beside}", sizes.what);
                ratios.push(Ratio::new(what, stored as f64 / theirs as f64, wanted));
            }
        }
    }
    measured.table(&table);
    measured.ratios(&ratios);
    measured
}
