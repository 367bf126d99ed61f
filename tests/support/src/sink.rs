//! A place where uploads end: it takes what an object store, EBS direct, or a page blob takes, counts it, and keeps nothing.
//!
//! It answers the calls of an S3 multipart upload, and of a page blob, well enough for the vendors' own clients. It checks no
//! signature and no checksum, and lets the kernel drop the bodies instead of copying them: that would be work on the
//! processors whose time is measured.

mod page_blobs;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use httparse::{EMPTY_HEADER, Request, Status};
use rustix::net::{RecvFlags, recv};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use self::page_blobs::PageBlobs;

/// Where `GET` tells the counts, and starts over.
const COUNTS: &str = "/counts";
/// The most that a request may have before its body.
const HEAD: usize = 16 << 10;
/// Most bytes dropped at once.
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
    page_blobs: Mutex<PageBlobs>,
}

/// Bytes and requests that arrived.
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

    /// Bytes and requests that arrived since the last call.
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

/// The part of a request before its body.
struct Head {
    method: String,
    target: String,
    /// By their names in lower case.
    headers: BTreeMap<String, String>,
    length: usize,
}

impl Head {
    /// A header, or nothing.
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// The answer to a request.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn of(status: u16) -> Self {
        Self {
            status,
            headers: vec![("etag".to_owned(), "\"1\"".to_owned())],
            body: String::new(),
        }
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn body(self, kind: &str, body: String) -> Self {
        Self {
            body,
            ..self.header("content-type", kind)
        }
    }

    fn text(&self) -> String {
        let mut text = format!("HTTP/1.1 {} -\r\n", self.status);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        // An answer to HEAD brings its own length: that of the body it leaves out.
        if !self.headers.iter().any(|(name, _)| name == "content-length") {
            text += &format!("content-length: {}\r\n", self.body.len());
        }
        text + "\r\n" + &self.body
    }
}

async fn answer_all(mut stream: TcpStream, counts: &Counts) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(HEAD);
    let mut scratch = vec![0; STEP];
    while let Some((head, used)) = head(&mut stream, &mut buffer).await? {
        let here = head.length.min(buffer.len() - used);
        buffer.drain(..used + here);
        if head.headers.contains_key("expect") {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        discard(&stream, head.length - here, &mut scratch).await?;
        if head.method == "PUT" {
            counts.requests.fetch_add(1, Ordering::Relaxed);
            counts.bytes.fetch_add(head.length as u64, Ordering::Relaxed);
        }
        stream.write_all(answer(&head, counts)?.text().as_bytes()).await?;
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
    let headers: BTreeMap<String, String> = request
        .headers
        .iter()
        .map(|header| {
            let value = String::from_utf8_lossy(header.value).into_owned();
            (header.name.to_lowercase(), value)
        })
        .collect();
    ensure!(!headers.contains_key("transfer-encoding"), "a body without a length");
    Ok(Head {
        method: request.method.unwrap_or_default().to_owned(),
        target: request.path.unwrap_or_default().to_owned(),
        length: headers.get("content-length").map_or(Ok(0), |value| value.parse())?,
        headers,
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

fn answer(head: &Head, counts: &Counts) -> Result<Answer> {
    if head.headers.contains_key("x-ms-version") {
        let mut blobs = counts.page_blobs.lock().unwrap_or_else(PoisonError::into_inner);
        return Ok(blobs.answer(head));
    }
    let xml = |body: &str| Answer::of(200).body("application/xml", body.to_owned());
    Ok(match (head.method.as_str(), head.target.split_once('?')) {
        ("GET", None) if head.target == COUNTS => {
            Answer::of(200).body("application/json", serde_json::to_string(&counts.take())?)
        }
        ("PUT", _) => Answer::of(200),
        ("POST", Some((_, query))) if query.starts_with("uploads") => {
            xml("<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")
        }
        ("POST", _) => xml("<CompleteMultipartUploadResult><ETag>\"1\"</ETag></CompleteMultipartUploadResult>"),
        _ => Answer::of(404),
    })
}
