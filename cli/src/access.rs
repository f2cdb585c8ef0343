//! `des key new` and `des sign`: who may read what, and for how long.

use des_retriever::{Limit, NewKey, UrlKeys};
use des_shared::clock::{Clock, Dice, SystemClock};
use des_shared::created_at::CreatedAt;
use reqwest::Url;
use serde_json::json;

use crate::args::{KeyArgs, KeyCommand, KeyCommandArgs, NewKeyArgs, SignArgs};
use crate::client::{Client, Service};
use crate::error::{CliError, Exit};
use crate::output::Screen;

const SECRETS: &str = "DES_URL_SIGNING_KEYS";

/// Runs `des key`.
///
/// # Errors
/// When the name cannot be a key's.
pub(crate) fn key(args: &KeyCommandArgs, screen: Screen) -> Result<Exit, CliError> {
    let KeyCommand::New(args) = &args.command;
    new_key(args, screen)
}

fn new_key(args: &NewKeyArgs, screen: Screen) -> Result<Exit, CliError> {
    let expires_ms = args.expires_in.map(|seconds| SystemClock.now_ms() / 1000 * 1000 + seconds * 1000);
    let limit = args.rate.map(|per_second| Limit { per_second, burst: args.burst.unwrap_or(per_second) });
    let made = NewKey::make(&args.name, args.scopes, expires_ms, limit, &Dice::from_os());
    let NewKey { secret, key } = made.map_err(CliError::usage)?;
    if screen.json() {
        screen.object(&json!({ "name": &*key.name, "key": secret, "line": key.to_string() }))?;
        return Ok(Exit::Done);
    }
    screen.line(&format!("key   {secret}"))?;
    screen.line(&format!("line  {key}"))?;
    screen.note("Give the key to whoever is to use it: nobody can show it again.");
    screen
        .note("Append what stands behind \"line\" to the file DES_KEYS_FILE names; running retrievers see it at once.");
    Ok(Exit::Done)
}

/// Runs `des sign`.
///
/// # Errors
/// When there is no secret to sign with, or nothing that can be signed.
pub(crate) fn sign(args: &SignArgs, screen: Screen) -> Result<Exit, CliError> {
    let secrets = std::env::var(SECRETS).unwrap_or_default();
    if secrets.is_empty() {
        let missing = format!("{SECRETS} is not set, so there is nothing to sign with");
        return Err(CliError::usage(missing).hint("give it the id:secret pairs the retriever has"));
    }
    let keys = UrlKeys::parse(&secrets).map_err(|why| CliError::usage(format!("{SECRETS}: {why}")))?;
    let url = file_url(args)?;
    // What stands in front of the service's own path is not signed: only a proxy sees it.
    let no_file = || CliError::usage(format!("{url} is not the URL of a file: there is no /files/ in its path"));
    let (before, path) = url.path().split_at(url.path().find("/files/").ok_or_else(no_file)?);
    let target = format!("{path}?{}", url.query().unwrap_or_default());
    let expires_s = SystemClock.now_ms() / 1000 + args.expires_in;
    let signed = keys.sign(args.key_id.as_deref(), &target, expires_s);
    let signed = signed.map_err(|error| CliError::usage(error.to_string()))?;
    let whole = format!("{}{before}{signed}", url.origin().ascii_serialization());
    if screen.json() {
        screen.object(&json!({ "url": whole, "expires": expires_s }))?;
    } else {
        screen.line(&whole)?;
    }
    Ok(Exit::Done)
}

fn file_url(args: &SignArgs) -> Result<Url, CliError> {
    if let Some(created_at) = &args.created_at {
        CreatedAt::parse(created_at).map_err(|e| CliError::usage(format!("--created-at: {e}")))?;
        return Client::new(Service::Retriever, &args.retriever, &KeyArgs { api_key: None })?
            .file_url(&args.target, created_at);
    }
    let url = Url::parse(&args.target).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| {
        CliError::usage(format!("{:?} is not a URL", args.target)).hint("a uid needs its --created-at TIME")
    })
}
