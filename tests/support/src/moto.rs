//! moto's server: IAM and STS as another project understood them.

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::process::{Server, command, free_port, listens, test_env};

/// A running server, with nothing in it.
pub struct Moto {
    port: u16,
    _server: Server,
    _folder: TempDir,
}

impl Moto {
    /// Starts it on a port of its own.
    pub async fn start() -> Result<Self> {
        let program = test_env().join("venv/bin/moto_server");
        ensure!(program.exists(), "no {}: run tests/setup", program.display());
        let (folder, port) = (tempfile::tempdir()?, free_port()?);
        let mut serve = command(program, folder.path());
        serve.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let mut server = Server::start("moto", &serve, &folder.path().join("log"))?;
        server.wait_ready(async || listens(port).await).await?;
        Ok(Self {
            port,
            _server: server,
            _folder: folder,
        })
    }

    /// Where all its services are.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
