//! Arguments of the commands that make keys and signed URLs.

use std::str::FromStr;

use clap::{Args as ClapArgs, Subcommand};
use des_retriever::{Limit, Scopes};

use crate::values::parse_duration_s;

#[derive(Debug, ClapArgs)]
pub(crate) struct KeyCommandArgs {
    #[command(subcommand)]
    pub(crate) command: KeyCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key: shows it once, and the line for the retriever's file of keys
    New(NewKeyArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct NewKeyArgs {
    /// What logs and tombstones call it: A-Z a-z 0-9 . _ - @
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// What it may do: read, delete, admin, separated by commas
    #[arg(long = "scope", value_name = "SCOPES", value_parser = Scopes::from_str)]
    pub(crate) scopes: Scopes,
    /// How long it is good, for example 12h or 90d; for ever when not set
    #[arg(long, value_name = "TIME", value_parser = parse_duration_s)]
    pub(crate) expires_in: Option<u64>,
    /// Requests a second it may make; no bound when not set
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(Limit::MOST)))]
    pub(crate) rate: Option<u32>,
    /// Requests it may make at once after a pause; by default those of one second
    #[arg(long, value_name = "N", requires = "rate", value_parser = clap::value_parser!(u32).range(1..=i64::from(Limit::MOST)))]
    pub(crate) burst: Option<u32>,
}

// The secrets come from the environment alone: what stands on a command line is seen by everybody on the machine.
#[derive(Debug, ClapArgs)]
#[command(after_help = "DES_URL_SIGNING_KEYS must have the retriever's id:secret pairs.")]
pub(crate) struct SignArgs {
    /// The whole URL of a file, or with --created-at a uid
    #[arg(value_name = "URL|UID")]
    pub(crate) target: String,
    /// When the file was created, as its manifest says
    #[arg(long, value_name = "TIME")]
    pub(crate) created_at: Option<String>,
    /// How long the URL is good, for example 15m, 12h or 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration_s)]
    pub(crate) expires_in: u64,
    /// Id of the secret to sign with; the first one when not set
    #[arg(long, value_name = "ID")]
    pub(crate) key_id: Option<String>,
    /// URL of the retriever a uid is fetched from
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000", env = "DES_RETRIEVER_URL")]
    pub(crate) retriever: String,
}
