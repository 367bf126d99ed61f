//! A mail server that takes every e-mail and keeps it.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::certs::Identity;
use crate::http_server::acceptor;

/// A user name, a password, and whether they came over TLS.
pub type Login = (String, String, bool);

/// A running mail server. It ends when dropped.
pub struct MailServer {
    port: u16,
    kept: Arc<Kept>,
    task: JoinHandle<()>,
}

/// Everything that clients brought.
#[derive(Default)]
struct Kept {
    letters: Mutex<Vec<String>>,
    logins: Mutex<Vec<Login>>,
}

impl MailServer {
    /// Listens on a free port of loopback, without TLS.
    pub async fn start() -> Result<Self> {
        Self::with(None).await
    }

    /// The same with `STARTTLS`. Letters and passwords are refused before it.
    pub async fn with_starttls(identity: &Identity) -> Result<Self> {
        Self::with(Some(acceptor(identity)?)).await
    }

    async fn with(tls: Option<TlsAcceptor>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let kept = Arc::new(Kept::default());
        let keeper = kept.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, tls) = (keeper.clone(), tls.clone());
                // A client that hangs up early has sent nothing worth keeping.
                tokio::spawn(async move { drop(serve(stream, tls, &kept).await) });
            }
        });
        Ok(Self { port, kept, task })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Every e-mail so far, headers and text.
    pub fn letters(&self) -> Vec<String> {
        let letters = self.kept.letters.lock();
        letters.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every login so far. All are accepted.
    pub fn logins(&self) -> Vec<Login> {
        let logins = self.kept.logins.lock();
        logins.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, kept: &Kept) -> Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 test\r\n").await?;
    let security = if tls.is_some() {
        Security::Offered
    } else {
        Security::None
    };
    if talk(&mut stream, security, kept).await? == Next::StartTls
        && let Some(tls) = tls
    {
        let secured = tls.accept(stream.into_inner()).await?;
        talk(&mut BufReader::new(secured), Security::Running, kept).await?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Security {
    None,
    Offered,
    Running,
}

#[derive(PartialEq, Eq)]
enum Next {
    End,
    StartTls,
}

/// The least of [SMTP](https://www.rfc-editor.org/rfc/rfc5321#section-4.1.1) that a client gets along with.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    security: Security,
    kept: &Kept,
) -> Result<Next> {
    let mut line = String::new();
    let mut letter: Option<String> = None;
    while stream.read_line(&mut line).await? > 0 {
        let answer = match (&mut letter, line.trim_end()) {
            (Some(text), ".") => {
                let text = std::mem::take(text);
                kept.letters.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                letter = None;
                Some("250 taken")
            }
            (Some(text), _) => {
                text.push_str(&line);
                None
            }
            (None, "QUIT") => Some("221 bye"),
            (None, hello) if hello.starts_with("EHLO") => Some(match security {
                Security::Offered => "250-test\r\n250 STARTTLS",
                Security::None | Security::Running => "250-test\r\n250 AUTH PLAIN",
            }),
            (None, "STARTTLS") if security == Security::Offered => {
                stream.write_all(b"220 go on\r\n").await?;
                return Ok(Next::StartTls);
            }
            (None, _) if security == Security::Offered => Some("530 Must issue a STARTTLS command first"),
            (None, login) if login.starts_with("AUTH PLAIN ") => {
                let login = read_login(login.trim_start_matches("AUTH PLAIN "), security)?;
                kept.logins.lock().unwrap_or_else(PoisonError::into_inner).push(login);
                Some("235 fine")
            }
            (None, "DATA") => {
                letter = Some(String::new());
                Some("354 go on")
            }
            (None, _) => Some("250 fine"),
        };
        if let Some(answer) = answer {
            stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
            stream.flush().await?;
        }
        line.clear();
    }
    Ok(Next::End)
}

/// [SASL PLAIN](https://www.rfc-editor.org/rfc/rfc4616#section-2): three texts with NUL between them.
fn read_login(words: &str, security: Security) -> Result<Login> {
    let text = String::from_utf8(BASE64_STANDARD.decode(words)?)?;
    let parts: Vec<&str> = text.split('\0').collect();
    ensure!(parts.len() == 3, "{} parts of a login", parts.len());
    let part = |at: usize| {
        parts
            .get(at)
            .map(|part| (*part).to_owned())
            .context("a part is missing")
    };
    Ok((part(1)?, part(2)?, security == Security::Running))
}
