//! A mail server that takes every e-mail and keeps it.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A running mail server without TLS. It ends when dropped.
pub struct MailServer {
    port: u16,
    letters: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl MailServer {
    /// Listens on a free port of loopback.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let letters = Arc::new(Mutex::default());
        let kept = letters.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let letters = kept.clone();
                // A client that hangs up early has sent nothing worth keeping.
                tokio::spawn(async move { drop(serve(stream, &letters).await) });
            }
        });
        Ok(Self { port, letters, task })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Every e-mail so far, headers and text.
    pub fn letters(&self) -> Vec<String> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The least of [SMTP](https://www.rfc-editor.org/rfc/rfc5321#section-4.1.1) that a client gets along with.
async fn serve(stream: TcpStream, letters: &Mutex<Vec<String>>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 test\r\n").await?;
    let mut line = String::new();
    let mut letter: Option<String> = None;
    while stream.read_line(&mut line).await? > 0 {
        let answer = match (&mut letter, line.trim_end()) {
            (Some(text), ".") => {
                let text = std::mem::take(text);
                letters.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                letter = None;
                Some("250 taken")
            }
            (Some(text), _) => {
                text.push_str(&line);
                None
            }
            (None, "DATA") => {
                letter = Some(String::new());
                Some("354 go on")
            }
            (None, "QUIT") => Some("221 bye"),
            (None, _) => Some("250 fine"),
        };
        if let Some(answer) = answer {
            stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
        }
        line.clear();
    }
    Ok(())
}
