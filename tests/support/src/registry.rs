//! docker-registry in the three forms that matter: open, with a password and a client certificate over TLS, and with
//! bearer tokens.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::{
    certs::Authority,
    process::{POLL, Server, command, free_port, run, tool},
    token_server::{Lifetime, TokenServer},
};

/// The user of registries that want one.
pub const USER: &str = "uploader";
/// That user's password.
pub const PASSWORD: &str = "registry-password";

/// A registry with its own data.
pub struct Registry {
    server: Server,
    /// `localhost:<port>`.
    pub host: String,
    /// How to get in.
    pub access: Access,
    /// The token server, where there is one.
    pub tokens: Option<TokenServer>,
    probe: reqwest::Client,
    folder: TempDir,
}

/// The credentials and certificates that a registry wants.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Whether the registry speaks TLS.
    pub tls: bool,
    /// User name and password, where wanted.
    pub credentials: Option<(String, String)>,
    /// The certificate of the registry's authority (PEM file).
    pub ca: Option<PathBuf>,
    /// A folder with `ca.crt`, `client.cert`, and `client.key`, in the form that containers' tools read.
    pub cert_dir: Option<PathBuf>,
}

/// One line of the registry's access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The status answered.
    pub status: u16,
}

impl Registry {
    /// Plain HTTP, open to everyone.
    pub async fn open() -> Result<Self> {
        Self::start(tempfile::tempdir()?, Access::default(), json!({}), None, None).await
    }

    /// TLS that wants a client certificate, and a user with password.
    pub async fn guarded() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = Authority::new()?;
        let ca = authority.write(folder.path())?;
        let (cert, key) = authority.server()?.write(folder.path(), "server")?;
        let cert_dir = folder.path().join("certs.d");
        fs::create_dir(&cert_dir)?;
        authority.write(&cert_dir)?;
        let client = authority.client(USER)?;
        fs::write(cert_dir.join("client.cert"), &client.cert)?;
        fs::write(cert_dir.join("client.key"), &client.key)?;

        let mut htpasswd = command(tool("htpasswd")?, folder.path());
        htpasswd.args(["-Bbn", USER, PASSWORD]);
        let passwords = folder.path().join("htpasswd");
        fs::write(&passwords, run(htpasswd).await?)?;

        let probe = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(authority.pem().as_bytes())?])
            .identity(reqwest::Identity::from_pem(
                format!("{}{}", client.cert, client.key).as_bytes(),
            )?)
            .build()?;
        let access = Access {
            tls: true,
            credentials: Some((USER.into(), PASSWORD.into())),
            ca: Some(ca.clone()),
            cert_dir: Some(cert_dir),
        };
        let config = json!({
            "http": {"tls": {"certificate": cert, "key": key, "clientcas": [ca]}},
            "auth": {"htpasswd": {"realm": "test", "path": passwords}},
        });
        Self::start(folder, access, config, None, Some(probe)).await
    }

    /// Plain HTTP with bearer tokens from a server of its own.
    pub async fn with_tokens(lifetime: Lifetime) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let tokens = TokenServer::start(USER, PASSWORD, lifetime).await?;
        let roots = folder.path().join("token.crt");
        fs::write(&roots, tokens.certificate())?;
        let access = Access {
            credentials: Some((USER.into(), PASSWORD.into())),
            ..Access::default()
        };
        let config = json!({
            "auth": {"token": {
                "realm": tokens.url(),
                "service": TokenServer::SERVICE,
                "issuer": TokenServer::ISSUER,
                "rootcertbundle": roots,
            }},
        });
        Self::start(folder, access, config, Some(tokens), None).await
    }

    async fn start(
        folder: TempDir,
        access: Access,
        mut config: Value,
        tokens: Option<TokenServer>,
        probe: Option<reqwest::Client>,
    ) -> Result<Self> {
        let port = free_port()?;
        config["version"] = json!("0.1");
        config["log"] = json!({"level": "warn"});
        config["storage"] = json!({
            "filesystem": {"rootdirectory": folder.path().join("data")},
            "delete": {"enabled": true},
        });
        config["http"]["addr"] = json!(format!("127.0.0.1:{port}"));
        config["http"]["secret"] = json!("test");
        // Two registries may be given one port at the same moment. Only one of them gets it, and must be known from the other.
        let id = Uuid::new_v4().to_string();
        config["http"]["headers"] = json!({"X-Registry": [id]});
        // JSON is YAML.
        let file = folder.path().join("config.yml");
        fs::write(&file, config.to_string())?;
        let mut serve = command(tool("docker-registry")?, folder.path());
        serve.arg("serve").arg(&file);
        let log = folder.path().join("registry.log");
        let mut server = Server::start("docker-registry", &serve, &log)?;
        let probe = probe.unwrap_or_default();
        let scheme = if access.tls { "https" } else { "http" };
        let url = format!("{scheme}://localhost:{port}/v2/");
        let is_ours = async || {
            let answer = probe.get(&url).send().await;
            answer.is_ok_and(|answer| answer.headers().get("x-registry").is_some_and(|found| *found == *id))
        };
        server.wait_ready(is_ours).await?;
        Ok(Self {
            server,
            host: format!("localhost:{port}"),
            access,
            tokens,
            probe,
            folder,
        })
    }

    /// The base URL, `http://localhost:<port>` or with https.
    pub fn url(&self) -> String {
        let scheme = if self.access.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.host)
    }

    /// Every request answered so far, in order. The registry writes its log after the answer, so a request of our own is
    /// sent and waited for first.
    pub async fn requests(&self) -> Result<Vec<Request>> {
        let mark = Uuid::new_v4().to_string();
        let url = format!("{}/v2/?settle={mark}", self.url());
        self.probe
            .get(&url)
            .send()
            .await
            .with_context(|| format!("GET {url}"))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let log = self.server.log();
            if log.contains(&mark) {
                return Ok(log
                    .lines()
                    .filter_map(Request::parse)
                    .filter(|request| !request.path.contains("?settle="))
                    .collect());
            }
            if Instant::now() > deadline {
                bail!("the registry does not log requests:\n{log}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The requests that changed, or tried to change, what the registry holds.
    pub async fn writes(&self) -> Result<Vec<Request>> {
        let mut requests = self.requests().await?;
        requests.retain(|request| !matches!(request.method.as_str(), "GET" | "HEAD"));
        Ok(requests)
    }

    /// The folder with the registry's data, to damage it.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder for a test's own files, gone with the registry.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The server itself, to stop or kill it.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}

impl Request {
    /// Reads a line in Apache's combined log format; other lines are not requests.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once("] \"")?;
        let (request, rest) = rest.split_once("\" ")?;
        let mut words = request.split(' ');
        Some(Self {
            method: words.next()?.to_owned(),
            path: words.next()?.to_owned(),
            status: rest.split(' ').next()?.parse().ok()?,
        })
    }
}
