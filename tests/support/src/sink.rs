//! A place where uploads end: it takes what an object store, EBS direct, or a page blob takes, counts it, and keeps nothing.
//!
//! It answers the calls of an S3 multipart upload well enough for the vendor's own client. It checks no signature and no
//! checksum, and lets the kernel drop the bodies instead of copying them: that would be work on the processors whose time
//! is measured.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use httparse::{EMPTY_HEADER, Request, Status};
use rustix::net::{RecvFlags, recv};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Where `GET` tells the counts, and starts over.
const COUNTS: &str = "/counts";
/// The most that a request may have before its body.
const HEAD: usize = 16 << 10;
/// What is dropped at once.
const STEP: usize = 1 << 20;

/// A running sink.
pub struct Sink {
    address: SocketAddr,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    bytes: AtomicU64,
    requests: AtomicU64,
}

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Bytes of request bodies.
    pub bytes: u64,
    /// Requests with `PUT`.
    pub requests: u64,
}

impl Sink {
    /// Starts one with nothing in it.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .context("listen on loopback")?;
        let address = listener.local_addr()?;
        let counts = Arc::<Counts>::default();
        let task = tokio::spawn(serve(listener, counts.clone()));
        Ok(Self { address, counts, task })
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What arrived since the last time.
    pub fn take(&self) -> Taken {
        self.counts.take()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Counts {
    fn take(&self) -> Taken {
        Taken {
            bytes: self.bytes.swap(0, Ordering::Relaxed),
            requests: self.requests.swap(0, Ordering::Relaxed),
        }
    }
}

async fn serve(listener: TcpListener, counts: Arc<Counts>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let counts = counts.clone();
        connections.spawn(async move {
            if let Err(error) = answer_all(stream, &counts).await {
                eprintln!("sink: {error:#}");
            }
        });
    }
}

/// What a request says before its body.
struct Head {
    put: bool,
    get: bool,
    target: String,
    length: usize,
    waits: bool,
}

async fn answer_all(mut stream: TcpStream, counts: &Counts) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(HEAD);
    let mut scratch = vec![0; STEP];
    while let Some((head, used)) = head(&mut stream, &mut buffer).await? {
        let here = head.length.min(buffer.len() - used);
        buffer.drain(..used + here);
        if head.waits {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        discard(&stream, head.length - here, &mut scratch).await?;
        if head.put {
            counts.requests.fetch_add(1, Ordering::Relaxed);
            counts.bytes.fetch_add(head.length as u64, Ordering::Relaxed);
        }
        stream.write_all(answer(&head, counts)?.as_bytes()).await?;
    }
    Ok(())
}

/// The next request and how long its head is; none when the other end has closed.
async fn head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Option<(Head, usize)>> {
    loop {
        let mut headers = [EMPTY_HEADER; 64];
        let mut request = Request::new(&mut headers);
        if let Status::Complete(used) = request.parse(buffer)? {
            return Ok(Some((read_head(&request)?, used)));
        }
        ensure!(buffer.len() < HEAD, "a request's head is longer than {HEAD} bytes");
        if stream.read_buf(buffer).await? == 0 {
            ensure!(buffer.is_empty(), "the connection ended in mid-request");
            return Ok(None);
        }
    }
}

fn read_head(request: &Request<'_, '_>) -> Result<Head> {
    let header = |name: &str| {
        let found = request
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value))
    };
    if header("transfer-encoding").is_some() {
        bail!("a body without a length");
    }
    Ok(Head {
        put: request.method == Some("PUT"),
        get: request.method == Some("GET"),
        target: request.path.unwrap_or_default().to_owned(),
        length: header("content-length").map_or(Ok(0), |value| value.parse())?,
        waits: header("expect").is_some(),
    })
}

/// Drops the next bytes of a connection.
async fn discard(stream: &TcpStream, mut length: usize, scratch: &mut [u8]) -> io::Result<()> {
    while length > 0 {
        let step = length.min(scratch.len());
        // With this flag the kernel drops what it would copy: see tcp(7).
        let receive = || Ok(recv(stream, &mut scratch[..step], RecvFlags::TRUNC)?.1);
        match stream.async_io(Interest::READABLE, receive).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            dropped => length -= dropped,
        }
    }
    Ok(())
}

fn answer(head: &Head, counts: &Counts) -> Result<String> {
    let (kind, body) = match head.target.split_once('?') {
        None if head.get && head.target == COUNTS => ("application/json", serde_json::to_string(&counts.take())?),
        _ if head.put => ("text/plain", String::new()),
        Some((_, query)) if query.starts_with("uploads") => (
            "application/xml",
            "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>".to_owned(),
        ),
        _ => (
            "application/xml",
            "<CompleteMultipartUploadResult><ETag>\"1\"</ETag></CompleteMultipartUploadResult>".to_owned(),
        ),
    };
    let length = body.len();
    Ok(format!(
        "HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}"
    ))
}
