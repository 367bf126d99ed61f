//! Azurite, the blob service's emulator, over https with an authority of the test's own and bearer tokens.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Certificate, Client, ClientBuilder, Method, RequestBuilder, Response};
use tempfile::TempDir;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::tokens::jwt;
use crate::{
    certs::Authority,
    process::{POLL, Server, command, free_port, listens, test_env},
};

/// The storage account that Azurite knows.
pub const ACCOUNT: &str = "devstoreaccount1";

/// Tells requests of the tests from those of a program. Blobs are not waited for that long.
const OURS: &str = "timeout=59";

/// A version of the protocol that has everything needed here.
const VERSION: &str = "2023-11-03";

/// A container of its own in a running Azurite. It takes seconds to start, so tests that run at once share one.
pub struct Azurite {
    running: Arc<Running>,
    reader: Reader,
}

struct Running {
    server: Server,
    _folder: TempDir,
    port: u16,
    authority: String,
    ca: PathBuf,
}

/// Reads blobs as Azure does itself.
#[derive(Clone)]
pub(super) struct Reader {
    http: Client,
    endpoint: String,
    container: String,
}

impl Azurite {
    /// A new, empty container; starts the server unless it runs.
    pub async fn start() -> Result<Self> {
        static RUNNING: Mutex<Weak<Running>> = Mutex::const_new(Weak::new());
        let running = {
            let mut shared = RUNNING.lock().await;
            match shared.upgrade() {
                Some(running) => running,
                None => {
                    let running = Arc::new(Running::start().await?);
                    *shared = Arc::downgrade(&running);
                    running
                }
            }
        };
        // Clients belong to the runtime of one test.
        let http = running.client()?.build()?;
        let reader = Reader {
            http,
            endpoint: format!("https://127.0.0.1:{}/{ACCOUNT}", running.port),
            container: format!("vhds-{}", Uuid::new_v4().simple()),
        };
        let created = reader
            .send(Method::PUT, "?restype=container", |request| request)
            .await?;
        ensure!(created.status() == 201, "create the container: {}", created.status());
        Ok(Self { running, reader })
    }

    /// `blob_endpoint`, with the account's path.
    pub fn url(&self) -> &str {
        &self.reader.endpoint
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.running.port
    }

    /// A client that trusts it.
    pub fn client(&self) -> Result<ClientBuilder> {
        self.running.client()
    }

    /// `storage_container_name`.
    pub fn container(&self) -> &str {
        &self.reader.container
    }

    /// The authority's certificate, a PEM file: the value of `SSL_CERT_FILE`.
    pub fn ca(&self) -> &Path {
        &self.running.ca
    }

    /// A token for blobs, for other clients.
    pub fn token(&self) -> String {
        jwt("https://storage.azure.com")
    }

    /// The names of all blobs.
    pub async fn blobs(&self) -> Result<Vec<String>> {
        let list = "?restype=container&comp=list";
        let text = self
            .reader
            .send(Method::GET, list, |request| request)
            .await?
            .text()
            .await?;
        let mut names = text.split("<Name>").skip(1);
        Ok(names
            .by_ref()
            .filter_map(|rest| rest.split("</Name>").next().map(str::to_owned))
            .collect())
    }

    /// Where a blob is.
    pub fn url_of(&self, blob: &str) -> String {
        format!("{}/{}/{blob}", self.reader.endpoint, self.reader.container)
    }

    /// The content of a blob.
    pub async fn read(&self, blob: &str) -> Result<Vec<u8>> {
        Ok(self.reader.get(&self.url_of(blob)).await?.bytes().await?.to_vec())
    }

    /// Creates a page blob of this size with these headers, as another process would have left it.
    pub async fn leave(&self, blob: &str, size: u64, headers: &[(&str, &str)]) -> Result<()> {
        let created = self
            .reader
            .send(Method::PUT, &format!("/{blob}"), |request| {
                let request = request
                    .header("x-ms-blob-type", "PageBlob")
                    .header("x-ms-blob-content-length", size.to_string())
                    .header("content-length", "0");
                headers
                    .iter()
                    .fold(request, |request, (name, value)| request.header(*name, *value))
            })
            .await?;
        ensure!(created.status() == 201, "create {blob}: {}", created.status());
        Ok(())
    }

    /// Writes bytes at the start of a page blob; whole pages.
    pub async fn scribble(&self, blob: &str, bytes: &[u8]) -> Result<()> {
        let (range, bytes) = (format!("bytes=0-{}", bytes.len() - 1), bytes.to_vec());
        let written = self
            .reader
            .send(Method::PUT, &format!("/{blob}?comp=page"), |request| {
                request
                    .header("x-ms-page-write", "update")
                    .header("x-ms-range", &range)
                    .body(bytes.clone())
            })
            .await?;
        ensure!(written.status() == 201, "write to {blob}: {}", written.status());
        Ok(())
    }

    /// Deletes a blob, as the storage account's own rule does.
    pub async fn delete(&self, blob: &str) -> Result<()> {
        let deleted = self
            .reader
            .send(Method::DELETE, &format!("/{blob}"), |request| request)
            .await?;
        ensure!(deleted.status() == 202, "delete {blob}: {}", deleted.status());
        Ok(())
    }

    /// Waits until a blob is there and its lease is in this state: `leased`, `expired`, …
    pub async fn wait_for_lease(&self, state: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            for blob in self.blobs().await? {
                let found = self
                    .reader
                    .send(Method::HEAD, &format!("/{blob}"), |request| request)
                    .await?;
                if found
                    .headers()
                    .get("x-ms-lease-state")
                    .is_some_and(|found| found == state)
                {
                    return Ok(());
                }
            }
            ensure!(Instant::now() < deadline, "no blob is {state} within {limit:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Leases a blob for a minute, as a process that died a moment ago did.
    pub async fn lease(&self, blob: &str) -> Result<()> {
        let leased = self
            .reader
            .send(Method::PUT, &format!("/{blob}?comp=lease"), |request| {
                request
                    .header("x-ms-lease-action", "acquire")
                    .header("x-ms-lease-duration", "60")
                    .header("content-length", "0")
            })
            .await?;
        ensure!(leased.status() == 201, "lease {blob}: {}", leased.status());
        Ok(())
    }

    /// The kinds of requests that a program has sent about this container: `PUT blob page`, `HEAD blob`, `GET container`.
    pub async fn requests(&self) -> Result<BTreeSet<String>> {
        // The log is written after the answer, and in order: a request of our own is the last one.
        let mark = format!("settle-{}", Uuid::new_v4().simple());
        self.reader
            .send(Method::HEAD, &format!("/{mark}"), |request| request)
            .await?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let log = self.running.server.log();
            if log.contains(&mark) {
                return Ok(log.lines().filter_map(|line| self.kind(line)).collect());
            }
            ensure!(Instant::now() < deadline, "Azurite does not log requests:\n{log}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// The kind of request in a line of the log.
    fn kind(&self, line: &str) -> Option<String> {
        let (_, request) = line.split_once('"')?;
        let (method, rest) = request.split_once(' ')?;
        let path = rest
            .split(' ')
            .next()?
            .strip_prefix(&format!("/{ACCOUNT}/{}", self.reader.container))?;
        let (blob, query) = path.split_once('?').unwrap_or((path, ""));
        if query.contains(OURS) {
            return None;
        }
        let of_query = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
        let noun = if blob.is_empty() { "container" } else { "blob" };
        Some(match of_query("comp=") {
            Some(part) => format!("{method} {noun} {part}"),
            None => format!("{method} {noun}"),
        })
    }

    pub(super) fn reader(&self) -> Reader {
        self.reader.clone()
    }
}

impl Running {
    fn client(&self) -> Result<ClientBuilder> {
        let authority = Certificate::from_pem(self.authority.as_bytes())?;
        Ok(Client::builder().tls_certs_only([authority]))
    }

    async fn start() -> Result<Self> {
        let program = test_env().join("node/node_modules/.bin/azurite-blob");
        ensure!(
            program.exists(),
            "no azurite-blob in {}: run tests/setup",
            test_env().display()
        );
        let folder = tempfile::tempdir()?;
        let authority = Authority::new()?;
        let ca = authority.write(folder.path())?;
        let (cert, key) = authority.server()?.write(folder.path(), "server")?;
        let port = free_port()?;
        let mut serve = command(&program, folder.path());
        serve
            .args([
                "--oauth",
                "basic",
                "--skipApiVersionCheck",
                "--disableTelemetry",
                "--inMemoryPersistence",
            ])
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
            .arg("--cert")
            .arg(cert)
            .arg("--key")
            .arg(key);
        let log = folder.path().join("azurite.log");
        let mut server = Server::start("azurite-blob", &serve, &log)?;
        server.wait_ready(async || listens(port).await).await?;
        Ok(Self {
            server,
            _folder: folder,
            port,
            authority: authority.pem(),
            ca,
        })
    }
}

impl Reader {
    async fn send(
        &self,
        method: Method,
        path: &str,
        with: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let url = format!("{}/{}{path}{separator}{OURS}", self.endpoint, self.container);
        let request = self.http.request(method, &url).header("x-ms-version", VERSION);
        let request = request.bearer_auth(jwt("https://storage.azure.com"));
        with(request).send().await.with_context(|| url.clone())
    }

    async fn get(&self, url: &str) -> Result<Response> {
        // Host and port may be those of a proxy.
        let path = url.split_once(&format!("/{ACCOUNT}/{}", self.container));
        let (_, path) = path.with_context(|| format!("{url} is not a blob of {}", self.container))?;
        let response = self.send(Method::GET, path, |request| request).await?;
        if !response.status().is_success() {
            bail!("{url}: {}", response.status());
        }
        Ok(response)
    }

    /// Whether a blob exists.
    pub(super) async fn exists(&self, url: &str) -> bool {
        let Some((_, path)) = url.split_once(&format!("/{ACCOUNT}/{}", self.container)) else {
            return false;
        };
        let found = self.send(Method::HEAD, path, |request| request).await;
        found.is_ok_and(|found| found.status().is_success())
    }

    /// The bytes of a page blob without a lease.
    pub(super) async fn disk(&self, url: &str) -> Result<Vec<u8>, String> {
        let response = self.get(url).await.map_err(|error| format!("{error:#}"))?;
        let header = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        if header("x-ms-blob-type") != "PageBlob" {
            return Err("The blob is not a page blob.".to_owned());
        }
        if header("x-ms-lease-status") == "locked" {
            return Err("There is currently a lease on the blob.".to_owned());
        }
        let bytes = response.bytes().await.map_err(|error| error.to_string())?;
        Ok(bytes.to_vec())
    }
}
