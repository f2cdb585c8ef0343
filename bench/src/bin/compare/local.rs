//! From files to durable archives in a folder.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use des_bench::corpus::Corpus;

use super::limits::{self, Work};
use super::plot::{self, Bar};
use super::report::{Measured, Ratio, Samples, Table, grouped};
use super::{Args, Failure, check};

/// Bits of the shard index: 16 shards.
const N_BITS: &str = "4";

/// Runs the existing packer with compression, for which its own command line has no option.
const PYTHON_WITH_ZSTD: &str = "
import functools
from des_core import cli_packer, packer
from des_core.compression import balanced_zstd_config
packer.ShardWriter = functools.partial(packer.ShardWriter, compression=balanced_zstd_config())
cli_packer.main()
";

/// One way to pack, or a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contestant {
    Read,
    ReadAllCores,
    DesNone,
    Tar,
    PythonNone,
    Lz4AllCores,
    DesLz4,
    ZstdAllCores,
    DesZstd,
    DesAuto,
    TarZstd,
    PythonZstd,
    Zip,
}

/// What is asked for: ours, theirs, at least.
const RATIOS: [(Contestant, Contestant, &str); 7] = [
    (Contestant::DesNone, Contestant::PythonNone, "10"),
    (Contestant::DesNone, Contestant::Tar, "1.5"),
    (Contestant::DesZstd, Contestant::TarZstd, "1.3"),
    (Contestant::DesZstd, Contestant::ZstdAllCores, "0.85"),
    (Contestant::DesAuto, Contestant::DesZstd, ""),
    (Contestant::DesLz4, Contestant::Lz4AllCores, ""),
    (Contestant::DesZstd, Contestant::PythonZstd, ""),
];

impl Contestant {
    const ALL: [Self; 13] = [
        Self::Read,
        Self::ReadAllCores,
        Self::DesNone,
        Self::Tar,
        Self::PythonNone,
        Self::Lz4AllCores,
        Self::DesLz4,
        Self::ZstdAllCores,
        Self::DesZstd,
        Self::DesAuto,
        Self::TarZstd,
        Self::PythonZstd,
        Self::Zip,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Read => "limit: open, read, close; one core",
            Self::ReadAllCores => "limit: open, read, close; all cores",
            Self::DesNone => "DES, none",
            Self::Tar => "tar",
            Self::PythonNone => "Python packer, none",
            Self::Lz4AllCores => "limit: read and LZ4; all cores",
            Self::DesLz4 => "DES, lz4",
            Self::ZstdAllCores => "limit: read and zstd 3; all cores",
            Self::DesZstd => "DES, zstd 3",
            Self::DesAuto => "DES, auto",
            Self::TarZstd => "tar into zstd -3 -T2",
            Self::PythonZstd => "Python packer, zstd 5",
            Self::Zip => "zip",
        }
    }

    fn codec(self) -> Option<&'static str> {
        match self {
            Self::DesNone => Some("none"),
            Self::DesLz4 => Some("lz4"),
            Self::DesZstd => Some("zstd"),
            Self::DesAuto => Some("auto"),
            _ => None,
        }
    }

    fn is_python(self) -> bool {
        matches!(self, Self::PythonNone | Self::PythonZstd)
    }
}

/// What all contestants share.
struct Arena<'a> {
    corpus: &'a Corpus,
    manifest: PathBuf,
    names: PathBuf,
    out: PathBuf,
    des: PathBuf,
    python: Option<&'a Path>,
    cores: usize,
}

/// Lets every contestant pack the corpus once in each round.
pub(super) fn measure(args: &Args, corpus: &Corpus, scratch: &Path) -> Result<Measured, Failure> {
    let arena = Arena::new(args, corpus, scratch)?;
    let mut samples = Samples::default();
    // What the first contestant read would be in memory for the second.
    limits::all_files(corpus, Work::Read, arena.cores)?;
    for round in 0..args.rounds {
        let (copy, hash) = limits::bytes_per_second();
        samples.add("memory copy", copy);
        samples.add("SHA-256", hash);
        for contestant in Contestant::ALL {
            let name = contestant.name();
            if !name.contains(&args.only) || (contestant.is_python() && args.python.is_none()) {
                continue;
            }
            let (seconds, stored) = arena.run(contestant).map_err(|e| format!("{name}: {e}"))?;
            if contestant.codec().is_some() || contestant.is_python() {
                check::verified(&arena.des, &arena.out, corpus.files.len())?;
                if round == 0 {
                    check::read_back(&arena.out, corpus)?;
                }
            }
            fs::remove_dir_all(&arena.out)?;
            let rate = corpus.files.len() as f64 / seconds;
            eprintln!("round {} {name}: {rate:.0} files/s, {stored} bytes", round + 1);
            samples.add(name, rate);
            samples.note(name, stored);
        }
    }
    Ok(report(args, corpus, &samples))
}

impl<'a> Arena<'a> {
    fn new(args: &'a Args, corpus: &'a Corpus, scratch: &Path) -> Result<Self, Failure> {
        let (manifest, names) = (scratch.join("manifest.json"), scratch.join("names"));
        corpus.write_manifest(&manifest)?;
        corpus.write_names(&names)?;
        Ok(Self {
            corpus,
            manifest,
            names,
            out: scratch.join("out"),
            des: beside("des")?,
            python: args.python.as_deref(),
            cores: std::thread::available_parallelism()?.get(),
        })
    }

    /// Seconds until everything is on disk, and how many bytes that are.
    fn run(&self, contestant: Contestant) -> Result<(f64, u64), Failure> {
        fs::create_dir(&self.out)?;
        let archive = |name: &str| self.out.join(name);
        let command = match contestant {
            Contestant::Read => return limits::all_files(self.corpus, Work::Read, 1),
            Contestant::ReadAllCores => return limits::all_files(self.corpus, Work::Read, self.cores),
            Contestant::Lz4AllCores => return limits::all_files(self.corpus, Work::Lz4, self.cores),
            Contestant::ZstdAllCores => return limits::all_files(self.corpus, Work::Zstd, self.cores),
            Contestant::Tar => self.tar(&archive("files.tar"), &[]),
            Contestant::TarZstd => {
                self.tar(&archive("files.tar.zst"), &["--use-compress-program".as_ref(), "zstd -q -3 -T2".as_ref()])
            }
            Contestant::Zip => {
                let mut zip = Command::new("zip");
                zip.arg("-q").arg(archive("files.zip")).arg("-@").current_dir(&self.corpus.root);
                zip.stdin(File::open(&self.names)?);
                zip
            }
            Contestant::PythonNone | Contestant::PythonZstd => self.packer(contestant)?,
            Contestant::DesNone | Contestant::DesLz4 | Contestant::DesZstd | Contestant::DesAuto => {
                let mut des = Command::new(&self.des);
                des.args(["--json", "pack"]).arg(&self.manifest).arg("-o").arg(&self.out);
                des.args(["--n-bits", N_BITS, "--level", "3", "--codec"]).args(contestant.codec());
                des
            }
        };
        self.finish(command)
    }

    fn tar(&self, to: &Path, options: &[&std::ffi::OsStr]) -> Command {
        let mut tar = Command::new("tar");
        tar.args(options).arg("-cf").arg(to).arg("-C").arg(&self.corpus.root);
        tar.args(["--no-recursion", "--verbatim-files-from", "-T"]).arg(&self.names);
        tar
    }

    fn packer(&self, contestant: Contestant) -> Result<Command, Failure> {
        let folder = self.python.ok_or("--python was not given")?;
        let mut python = Command::new(folder.join("venv/bin/python"));
        match contestant {
            Contestant::PythonZstd => python.args(["-c", PYTHON_WITH_ZSTD]),
            _ => python.args(["-m", "des_core.cli_packer"]),
        };
        python.arg("--input-json").arg(&self.manifest).arg("--output-dir").arg(&self.out).args(["--n-bits", N_BITS]);
        python.current_dir(folder).env("PYTHONPATH", folder.join("src"));
        Ok(python)
    }

    fn finish(&self, mut command: Command) -> Result<(f64, u64), Failure> {
        let log = self.out.with_extension("log");
        command.stdout(Stdio::null()).stderr(File::create(&log)?);
        let began = Instant::now();
        let status = command.status().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
        let stored = sync_all(&self.out)?;
        let seconds = began.elapsed().as_secs_f64();
        if !status.success() || stored == 0 {
            return Err(format!("{status}: {}", fs::read_to_string(log)?).into());
        }
        Ok((seconds, stored))
    }
}

/// Brings every file below a folder to disk; their bytes together.
fn sync_all(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            bytes += sync_all(&entry.path())?;
        } else {
            let file = File::open(entry.path())?;
            file.sync_all()?;
            bytes += file.metadata()?.len();
        }
    }
    File::open(folder)?.sync_all()?;
    Ok(bytes)
}

/// A program of this build.
pub(super) fn beside(name: &str) -> Result<PathBuf, Failure> {
    let path = std::env::current_exe()?.with_file_name(name);
    if path.is_file() { Ok(path) } else { Err(format!("{} is not built", path.display()).into()) }
}

fn report(args: &Args, corpus: &Corpus, samples: &Samples) -> Measured {
    let mut measured = Measured::new("packing");
    measured.say(&format!("{}; {} rounds, medians.", corpus.summary(), args.rounds));
    let megabytes = corpus.bytes as f64 / corpus.files.len() as f64 / 1e6;
    let mut table = Table::new(&["packing", "files/s", "lowest to highest", "MB/s", "bytes stored"]);
    let mut bars = Vec::new();
    for contestant in Contestant::ALL {
        let name = contestant.name();
        let Some(spread) = samples.spread(name) else { continue };
        let stored = match contestant {
            Contestant::Read | Contestant::ReadAllCores => String::new(),
            _ => grouped(samples.noted(name) as f64),
        };
        table.row(&[
            name.to_owned(),
            grouped(spread.median),
            format!("{} to {}", grouped(spread.lowest), grouped(spread.highest)),
            grouped(spread.median * megabytes),
            stored,
        ]);
        bars.push(Bar { name, value: spread.median, text: grouped(spread.median) });
    }
    measured.table(&table);
    let ratios =
        RATIOS.iter().filter_map(|(ours, theirs, wanted)| Ratio::of(samples, (ours.name(), theirs.name()), wanted));
    measured.ratios(&ratios.collect::<Vec<_>>());
    let rate = |name: &str| samples.spread(name).map_or(0.0, |spread| spread.median);
    measured.say(&format!(
        "In the same rounds, on one core: memory copy {:.1} GB/s, SHA-256 {:.2} GB/s.",
        rate("memory copy"),
        rate("SHA-256")
    ));
    measured.plot("packing.svg", plot::bars("Packing, files a second", &bars));
    measured
}
