//! `des dev`: everything in one process on a data folder, until Ctrl-C. What was not finished goes on at the next start.

use std::path::PathBuf;

use des_shared::config::SourceRoots;
use des_shared::routing::NBits;
use serde_json::json;

use super::cluster::{COORDINATOR_ADDRESS, Cluster, Port, RETRIEVER_ADDRESS, Setup};
use crate::args::DevArgs;
use crate::error::{CliError, Exit};
use crate::output::Screen;

/// Runs `des dev`.
///
/// # Errors
/// When the folder or a port cannot be used, or a service fails.
pub(crate) async fn dev(args: DevArgs, screen: Screen) -> Result<Exit, CliError> {
    let roots = source_roots(&args.source_roots)?;
    let setup = Setup {
        data: args.data.clone(),
        roots: roots.clone(),
        coordinator: args.coordinator_listen.map_or(Port::Usual(COORDINATOR_ADDRESS), Port::Exactly),
        retriever: args.retriever_listen.map_or(Port::Usual(RETRIEVER_ADDRESS), Port::Exactly),
        slots: crate::pack::side_by_side(args.slots),
        n_bits: args.n_bits,
        usual_bits: NBits::default(),
    };
    let cluster = Cluster::start(setup, screen).await?;
    let folders: Vec<String> = roots.folders.iter().map(|folder| folder.display().to_string()).collect();
    if screen.json() {
        screen.object(&json!({
            "coordinator": cluster.coordinator(), "retriever": cluster.retriever(), "data": args.data,
            "shards": cluster.shards(), "source_roots": folders,
        }))?;
    } else {
        for line in greeting(&cluster, &folders) {
            screen.line(&line)?;
        }
    }
    cluster.run_until_stopped().await?;
    screen.note("stopping: running work is handed back");
    cluster.stop().await?;
    Ok(Exit::Done)
}

fn greeting(cluster: &Cluster, folders: &[String]) -> Vec<String> {
    let at = |url: &str, usual: std::net::SocketAddr, flag: &str| {
        if url == format!("http://{usual}") { String::new() } else { format!(" {flag} {url}") }
    };
    let coordinator = at(cluster.coordinator(), COORDINATOR_ADDRESS, "--coordinator");
    let retriever = at(cluster.retriever(), RETRIEVER_ADDRESS, "--retriever");
    vec![
        format!("coordinator  {}   accepts jobs", cluster.coordinator()),
        format!("retriever    {}   serves files", cluster.retriever()),
        format!("shards       {}", cluster.shards().display()),
        format!("sources      may lie in {} (more with --source-root DIR)", folders.join(", ")),
        String::new(),
        format!("pack a folder  des submit FOLDER --wait{coordinator}"),
        format!("fetch a file   des get UID --created-at TIME{retriever}"),
        "Ctrl-C stops it; the next start with the same folder goes on where it was.".to_owned(),
    ]
}

/// The folders of `--source-root`, or the current one: local services must not read everything their user can read.
fn source_roots(given: &[PathBuf]) -> Result<SourceRoots, CliError> {
    let folders: &[PathBuf] = if given.is_empty() { &[PathBuf::from(".")] } else { given };
    let mut roots = SourceRoots::default();
    for folder in folders {
        let real = std::fs::canonicalize(folder).map_err(|e| CliError::path("open the folder", folder, &e))?;
        if !real.is_dir() {
            return Err(CliError::usage(format!("--source-root {} is not a folder", folder.display())));
        }
        roots.folders.push(real);
    }
    Ok(roots)
}
