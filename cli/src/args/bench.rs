//! Arguments of `des bench`.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use des_shared::segment::CodecChoice;

use crate::values::parse_shard_size;

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchArgs {
    /// Folders whose files are packed; may be given more than once [default: /usr/share]
    #[arg(value_name = "FOLDER")]
    pub(crate) folders: Vec<PathBuf>,
    /// Files to choose, at most
    #[arg(long, value_name = "N", default_value = "20000", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) files: u32,
    /// Bytes of all chosen files together, at most: the free space it needs
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_shard_size)]
    pub(crate) bytes: u64,
    /// Decides which files are chosen and in which order they are read back
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Compression: auto, none, zstd or lz4
    #[arg(long, value_name = "CODEC", default_value_t = CodecChoice::Zstd, env = "DES_CODEC")]
    pub(crate) codec: CodecChoice,
    /// zstd level, 1 to 22
    #[arg(long, value_name = "LEVEL", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=22), env = "DES_LEVEL")]
    pub(crate) level: i32,
    /// Shards packed side by side; one a core when not set
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: Option<u16>,
    /// Folder of the disk to measure; what is written there is removed again [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}
