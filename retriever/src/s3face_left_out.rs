//! Stands in for the S3 interface in a build without it (feature `s3-gateway`). Asking for it is a problem of
//! the configuration.
#![allow(clippy::unused_async, reason = "the interface is that of what it stands in for")]

use std::future::Ready;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use des_shared::clock::Clock;
use des_shared::config::{Listen, Values, settings};
use des_shared::features;
use des_shared::service::{Drain, Lanes, Shutdown};

use crate::deadline::Deadline;
use crate::metrics::RetrieverMetrics;
use crate::serve::Files;

/// Never made.
#[derive(Clone, Debug)]
pub struct S3FaceConfig(());

impl S3FaceConfig {
    /// `None`; noted as a problem when such an interface is asked for.
    pub(crate) fn read(values: &mut Values, _listen: Option<&Listen>) -> Option<Self> {
        if values.text(&settings::S3_FACE_LISTEN).is_some() {
            let missing = features::missing("s3-gateway", "the S3 interface");
            values.problem(format!("{} (--s3-face-listen): {missing}", settings::S3_FACE_LISTEN.name));
        }
        None
    }
}

/// Never made, because its settings never are.
pub(crate) struct S3Face;

impl S3Face {
    pub(crate) fn new(
        _config: S3FaceConfig,
        _files: (Arc<Files>, Arc<dyn Clock>),
        _limits: (Deadline, RetrieverMetrics),
    ) -> Self {
        Self
    }

    pub(crate) async fn bind(
        self,
        _lanes: Lanes,
        _shutdown: Shutdown,
        _drain: Drain,
    ) -> io::Result<(SocketAddr, Ready<io::Result<()>>)> {
        Err(io::Error::other(features::missing("s3-gateway", "the S3 interface")))
    }
}
