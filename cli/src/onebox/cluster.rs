//! Starts and stops the three services in this process.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};

use crate::error::CliError;
use crate::output::Screen;

/// Where a coordinator listens when nobody says anything.
pub(super) const COORDINATOR_ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080));
/// Where a retriever listens when nobody says anything.
pub(super) const RETRIEVER_ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8000));
