//! `des get`: one file from a retriever, or with a manifest many ([`super::get_many`]). A file on disk appears only when all of it is there.

use std::io::{self, Write};
use std::path::Path;

use des_shared::created_at::CreatedAt;
use des_shared::shard::hex32;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::args::GetArgs;
use crate::client::{Client, Service, next_chunk};
use crate::error::{CliError, Exit};
use crate::output::{Screen, bytes, written};

/// Where bytes go: a temporary file that gets its name at the end, or standard output.
pub(crate) enum Sink<'a> {
    /// Beside its target.
    File(tempfile::NamedTempFile, &'a Path),
    /// Standard output.
    Stdout,
}

impl<'a> Sink<'a> {
    /// Opens it.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn open(path: Option<&'a Path>) -> Result<Self, CliError> {
        let Some(path) = path else { return Ok(Self::Stdout) };
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // As any file a program creates: what the umask leaves of rw-rw-rw-.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        let file = tempfile::Builder::new().prefix(".des-get-").permissions(mode).tempfile_in(folder);
        Ok(Self::File(file.map_err(|e| CliError::path("write to", path, &e))?, path))
    }

    /// Writes a piece.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&mut self, piece: &[u8]) -> Result<(), CliError> {
        match self {
            Self::File(file, path) => file.write_all(piece).map_err(|e| CliError::path("write to", path, &e)),
            Self::Stdout => written(io::stdout().lock().write_all(piece)),
        }
    }

    /// Makes it whole: the file gets its name, standard output is flushed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn finish(self) -> Result<(), CliError> {
        match self {
            Self::Stdout => written(io::stdout().lock().flush()),
            Self::File(ref file, path) => {
                file.as_file().sync_all().map_err(|e| CliError::path("write to", path, &e))?;
                self.name()
            }
        }
    }

    /// Makes it whole without waiting for the disk: after a power cut it may be gone, as the folder's other new files.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn name(self) -> Result<(), CliError> {
        match self {
            Self::Stdout => written(io::stdout().lock().flush()),
            Self::File(file, path) => {
                file.persist(path).map_err(|e| CliError::path("write to", path, &e.error))?;
                Ok(())
            }
        }
    }
}

/// Runs `des get`.
///
/// # Errors
/// When the retriever cannot be reached or has no such file, or the output cannot be written.
pub(crate) async fn get(args: GetArgs, screen: Screen) -> Result<Exit, CliError> {
    let (Some(uid), Some(created_at)) = (&args.uid, &args.created_at) else {
        return super::get_many::get_many(args, screen).await;
    };
    CreatedAt::parse(created_at).map_err(|e| CliError::usage(format!("--created-at: {e}")))?;
    if screen.json() && args.output.is_none() {
        return Err(CliError::usage("--json needs --output FILE: both would go to standard output"));
    }
    let client = Client::new(Service::Retriever, &args.retriever, &args.key)?;
    let url = client.file_url(uid, created_at)?;
    let mut response = client.get(url).await?;
    let content_type = response.headers().get("content-type").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let mut sink = Sink::open(args.output.as_deref())?;
    let (mut hash, mut size) = (Sha256::new(), 0_u64);
    while let Some(piece) = next_chunk(&client, &mut response).await? {
        sink.write(&piece)?;
        hash.update(&piece);
        size += piece.len() as u64;
    }
    sink.finish()?;
    let sha256 = hex32(&hash.finalize().into());
    if screen.json() {
        screen.object(&json!({
            "uid": uid, "created_at": created_at, "size_bytes": size, "sha256": sha256,
            "content_type": content_type, "output": args.output,
        }))?;
    } else {
        let to = args.output.as_ref().map(|p| format!(" -> {}", p.display())).unwrap_or_default();
        screen.note(&format!("{}  sha256 {sha256}{to}", bytes(size)));
    }
    Ok(Exit::Done)
}
