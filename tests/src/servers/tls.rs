//! Certificates for one test: an authority of its own, a server at 127.0.0.1 and a client, made with the openssl program.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{ServerError, on_path};

/// Certificates and keys in a folder that goes with them: `ca`, `server`, `client`, each `.crt` and `.key`.
#[derive(Debug)]
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Makes them; they are good for two days.
    ///
    /// # Errors
    /// [`ServerError`] when there is no openssl, or it refuses.
    pub fn make() -> Result<Self, ServerError> {
        let program = on_path("openssl")?;
        let folder = tempfile::Builder::new().prefix("des-tls-").tempdir().map_err(|e| failed(e.to_string()))?;
        let made = Self { folder };
        made.one(&program, "ca", &["-addext", "basicConstraints=critical,CA:TRUE"], false)?;
        let leaf = "basicConstraints=critical,CA:FALSE";
        made.one(&program, "server", &["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", leaf], true)?;
        made.one(&program, "client", &["-addext", leaf], true)?;
        Ok(made)
    }

    /// The file `name`, for example `ca.crt`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What is in the file `name`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, name: &str) -> std::io::Result<Vec<u8>> {
        std::fs::read(self.file(name))
    }

    fn one(&self, program: &Path, name: &str, extensions: &[&str], signed: bool) -> Result<(), ServerError> {
        let mut command = Command::new(program);
        command.current_dir(self.folder.path()).args(["req", "-x509", "-newkey", "ec", "-pkeyopt"]);
        command.args([
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            &format!("/CN=des-test-{name}"),
        ]);
        command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")]).args(extensions);
        if signed {
            command.args(["-CA", "ca.crt", "-CAkey", "ca.key"]);
        }
        let output = command.output().map_err(|e| failed(e.to_string()))?;
        if output.status.success() { Ok(()) } else { Err(failed(String::from_utf8_lossy(&output.stderr).into_owned())) }
    }
}

fn failed(why: String) -> ServerError {
    ServerError::NotStarted { program: "openssl", why, log: String::new() }
}
