//! A web server for a compose's folder that misbehaves on demand.

use std::{
    collections::HashMap,
    io::SeekFrom,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
};
use tokio_util::io::ReaderStream;

use crate::http_server::HttpServer;

/// A fault of one request. Offsets count from the start of the file, also when a range is asked for.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection breaks once this many bytes of the answer's body were sent.
    Cut {
        /// Bytes of this answer.
        after: u64,
    },
    /// The answer is this status, without the file.
    Status {
        /// The status.
        code: u16,
        /// The value of `Retry-After`.
        retry_after: Option<String>,
    },
    /// The byte at this place is another one.
    Flip {
        /// Place in the file.
        offset: u64,
    },
    /// Ranges are not known: the answer is 200 and the whole file.
    NoRange,
    /// Nothing comes any more after this many bytes of the answer's body; the connection stays.
    Stall {
        /// Bytes of this answer.
        after: u64,
    },
    /// The answer's body comes in pieces with a pause before each.
    Slow {
        /// Bytes of a piece.
        piece: usize,
        /// Before each.
        pause: Duration,
    },
    /// The answer is that the file is elsewhere.
    Redirect(String),
    /// Other content is there, with an entity tag of its own.
    Replaced(Bytes),
}

/// One request, in the order they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The status answered.
    pub status: u16,
}

/// A running file server.
pub struct Files {
    server: HttpServer,
    state: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    faults: Mutex<HashMap<String, Vec<(Fault, usize)>>>,
    served: Mutex<Vec<Served>>,
}

impl Files {
    /// Serves the files below `root`.
    pub async fn start(root: &Path) -> Result<Self> {
        let state = Arc::new(Shared {
            root: root.to_owned(),
            faults: Mutex::default(),
            served: Mutex::default(),
        });
        let router = Router::new().fallback(serve).with_state(state.clone());
        Ok(Self {
            server: HttpServer::start(router).await?,
            state,
        })
    }

    /// The URL of a path, which starts with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.server.url())
    }

    /// Gives the next `times` GET requests for `path` a fault. Several faults of one path are used up in the order
    /// given.
    pub fn fault(&self, path: &str, fault: Fault, times: usize) {
        lock(&self.state.faults)
            .entry(path.to_owned())
            .or_default()
            .push((fault, times));
    }

    /// Takes back the faults that were not met, and returns their number.
    pub fn mend(&self) -> usize {
        let left = std::mem::take(&mut *lock(&self.state.faults));
        left.values().flatten().map(|(_, times)| times).sum()
    }

    /// Whether every fault has been met. A test that expects a fault to be survived checks that it happened.
    pub fn faults_met(&self) -> bool {
        lock(&self.state.faults).values().all(Vec::is_empty)
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Served> {
        lock(&self.state.served).clone()
    }

    /// The requests for one path.
    pub fn requests_for(&self, path: &str) -> Vec<Served> {
        let mut requests = self.requests();
        requests.retain(|request| request.path == path);
        requests
    }
}

impl Shared {
    fn take_fault(&self, path: &str) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let queue = faults.get_mut(path)?;
        let (fault, times) = queue.first_mut()?;
        let fault = fault.clone();
        *times = times.saturating_sub(1);
        if *times == 0 {
            queue.remove(0);
        }
        Some(fault)
    }

    /// The file behind a URL's path; nothing outside the root.
    fn file(&self, path: &str) -> Option<PathBuf> {
        let inner = Path::new(path.strip_prefix('/')?);
        inner
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
            .then(|| self.root.join(inner))
    }
}

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let fault = match *request.method() {
        Method::GET => shared.take_fault(&path),
        _ => None,
    };
    let response = answer(&shared, &path, request.headers(), fault)
        .await
        .unwrap_or_else(|_| bare(StatusCode::NOT_FOUND));
    let range = request.headers().get(header::RANGE);
    lock(&shared.served).push(Served {
        method: request.method().to_string(),
        path,
        range: range.map(|range| String::from_utf8_lossy(range.as_bytes()).into_owned()),
        status: response.status().as_u16(),
    });
    response
}

/// Any input or output error reads as "not found".
async fn answer(shared: &Shared, path: &str, headers: &HeaderMap, fault: Option<Fault>) -> std::io::Result<Response> {
    if let Some(Fault::Status { code, retry_after }) = &fault {
        let mut response = bare(StatusCode::from_u16(*code).unwrap_or(StatusCode::IM_A_TEAPOT));
        if let Some(Ok(value)) = retry_after.as_deref().map(HeaderValue::from_str) {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        return Ok(response);
    }
    if let Some(Fault::Redirect(url)) = &fault {
        let mut response = bare(StatusCode::FOUND);
        response.headers_mut().insert(header::LOCATION, text(url));
        return Ok(response);
    }
    let mut content = match &fault {
        Some(Fault::Replaced(bytes)) => Content::memory(bytes.clone()),
        _ => {
            let file = shared.file(path).ok_or(std::io::ErrorKind::NotFound)?;
            Content::open(&file).await?
        }
    };
    let whole = 0..content.size;
    let range = match headers.get(header::RANGE) {
        Some(_) if matches!(fault, Some(Fault::NoRange)) => None,
        Some(range) if content.still_the_one(headers.get(header::IF_RANGE)) => {
            match parse_range(range.to_str().unwrap_or_default(), content.size) {
                Some(range) if range.start < content.size => Some(range),
                _ => return Ok(out_of_range(content.size)),
            }
        }
        _ => None,
    };
    let wanted = range.clone().unwrap_or(whole);
    let length = wanted.end - wanted.start;
    let mut response = bare(StatusCode::OK);
    let described = response.headers_mut();
    described.insert(header::CONTENT_LENGTH, length.into());
    described.insert(header::ETAG, text(&content.tag));
    described.insert(header::LAST_MODIFIED, text(&content.modified));
    if !matches!(fault, Some(Fault::NoRange)) {
        described.insert(header::ACCEPT_RANGES, text("bytes"));
    }
    if range.is_some() {
        let last = wanted.end - 1;
        let part = format!("bytes {}-{last}/{}", wanted.start, content.size);
        described.insert(header::CONTENT_RANGE, text(&part));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let start = wanted.start;
    let bytes = content.read(wanted).await?;
    *response.body_mut() = match fault {
        Some(Fault::Cut { after }) => {
            Body::from_stream(up_to(bytes, after).chain(stream::once(async {
                // Time for what was sent before to leave, so that the cut is where the test wants it.
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::ErrorKind::ConnectionReset.into())
            })))
        }
        Some(Fault::Stall { after }) => Body::from_stream(up_to(bytes, after).chain(stream::pending())),
        Some(Fault::Slow { piece, pause }) => Body::from_stream(slowed(bytes, piece, pause)),
        Some(Fault::Flip { offset }) => Body::from_stream(flipped(bytes, start, offset)),
        _ => Body::from_stream(bytes),
    };
    Ok(response)
}

type Chunks = stream::BoxStream<'static, std::io::Result<Bytes>>;

/// A file, or what replaces it.
struct Content {
    size: u64,
    tag: String,
    modified: String,
    source: Source,
}

enum Source {
    Memory(Bytes),
    Disk(File),
}

impl Content {
    fn memory(bytes: Bytes) -> Self {
        Self {
            size: bytes.len() as u64,
            tag: "\"replaced\"".into(),
            modified: http_date(Timestamp::now()),
            source: Source::Memory(bytes),
        }
    }

    async fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path).await?;
        let metadata = file.metadata().await?;
        if !metadata.is_file() {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        let modified = Timestamp::try_from(metadata.modified()?).unwrap_or_default();
        Ok(Self {
            size: metadata.len(),
            tag: format!("\"{:x}-{:x}\"", metadata.len(), modified.as_nanosecond()),
            modified: http_date(modified),
            source: Source::Disk(file),
        })
    }

    fn still_the_one(&self, condition: Option<&HeaderValue>) -> bool {
        condition.is_none_or(|value| *value == *self.tag || *value == *self.modified)
    }

    async fn read(&mut self, range: std::ops::Range<u64>) -> std::io::Result<Chunks> {
        match &mut self.source {
            Source::Memory(bytes) => {
                let part = bytes.slice(range.start as usize..range.end as usize);
                Ok(stream::once(async { Ok(part) }).boxed())
            }
            Source::Disk(file) => {
                let mut file = file.try_clone().await?;
                file.seek(SeekFrom::Start(range.start)).await?;
                let part = file.take(range.end - range.start);
                Ok(ReaderStream::with_capacity(part, 64 * 1024).boxed())
            }
        }
    }
}

/// `bytes=a-b`, `bytes=a-`, or `bytes=-n` as a half-open range; anything else is none.
fn parse_range(text: &str, size: u64) -> Option<std::ops::Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        let count: u64 = last.parse().ok()?;
        return Some(size.saturating_sub(count)..size);
    }
    let first = first.parse().ok()?;
    let end = match last {
        "" => size,
        last => last.parse::<u64>().ok()?.saturating_add(1).min(size),
    };
    (first < end).then_some(first..end)
}

fn up_to(bytes: Chunks, limit: u64) -> impl Stream<Item = std::io::Result<Bytes>> {
    bytes.scan(limit, |left, chunk| {
        let kept = chunk.map(|mut chunk| {
            chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= chunk.len() as u64;
            chunk
        });
        let over = matches!(&kept, Ok(chunk) if chunk.is_empty());
        std::future::ready((!over).then_some(kept))
    })
}

fn slowed(bytes: Chunks, piece: usize, pause: Duration) -> impl Stream<Item = std::io::Result<Bytes>> {
    let pieces = bytes.flat_map(move |chunk| {
        let pieces = match chunk {
            Ok(chunk) => (0..chunk.len())
                .step_by(piece)
                .map(|at| Ok(chunk.slice(at..chunk.len().min(at + piece))))
                .collect(),
            Err(error) => vec![Err(error)],
        };
        stream::iter(pieces)
    });
    pieces.then(move |piece| async move {
        tokio::time::sleep(pause).await;
        piece
    })
}

fn flipped(bytes: Chunks, start: u64, offset: u64) -> impl Stream<Item = std::io::Result<Bytes>> {
    bytes.scan(start, move |position, chunk| {
        let chunk = chunk.map(|chunk| {
            let here = *position..*position + chunk.len() as u64;
            *position = here.end;
            if !here.contains(&offset) {
                return chunk;
            }
            let mut changed = BytesMut::from(&chunk[..]);
            changed[(offset - here.start) as usize] ^= 1;
            changed.freeze()
        });
        std::future::ready(Some(chunk))
    })
}

fn bare(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn out_of_range(size: u64) -> Response {
    let mut response = bare(StatusCode::RANGE_NOT_SATISFIABLE);
    let range = text(&format!("bytes */{size}"));
    response.headers_mut().insert(header::CONTENT_RANGE, range);
    response
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn http_date(time: Timestamp) -> String {
    DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&time)
        .unwrap_or_default()
}

/// A test that panicked with the lock held has failed already.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
