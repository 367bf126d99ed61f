//! Stands between a program and a server, knows every call by name, and gets in its way.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Result, ensure};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use tokio::{sync::watch, time::timeout};

use crate::http_server::HttpServer;

/// The longest body that is passed on.
const LONGEST: usize = 256 << 20;

/// A request, to be given a name.
pub struct Call<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path.
    pub path: &'a str,
    /// The part behind the question mark.
    pub query: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The body.
    pub body: &'a [u8],
}

/// The trouble that a call meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The server is not asked; the answer is this status.
    Refused(u16),
    /// The server is not asked; the answer is 429, to try again after a second.
    Throttled,
    /// The server is not asked, and the connection breaks.
    Cut,
    /// The server is asked, and the connection breaks instead of its answer.
    Lost,
    /// The server is not asked, and nothing is ever answered.
    Ignored,
    /// The server is asked, and nothing is ever answered.
    Unanswered,
}

/// The name of a call; `None` for one that the test does not know.
pub type Namer = fn(&Call<'_>) -> Option<&'static str>;

/// A running front.
pub struct Front {
    servers: Vec<HttpServer>,
    shared: Arc<Shared>,
}

/// The way to one server.
struct Door {
    http: reqwest::Client,
    target: String,
    shared: Arc<Shared>,
}

struct Shared {
    namer: Namer,
    state: Mutex<Seen>,
    /// Calls that will never be answered.
    silent: watch::Sender<usize>,
}

#[derive(Default)]
struct Seen {
    troubles: Vec<(&'static str, Trouble, usize)>,
    calls: BTreeMap<&'static str, usize>,
    unknown: Vec<String>,
}

impl Front {
    /// Passes on to `target`, a URL without a path.
    pub async fn start(target: &str, namer: Namer) -> Result<Self> {
        let mut front = Self {
            servers: Vec::new(),
            shared: Arc::new(Shared {
                namer,
                state: Mutex::default(),
                silent: watch::Sender::new(0),
            }),
        };
        front.also(target, reqwest::Client::builder()).await?;
        Ok(front)
    }

    /// Stands before another server too, which this client trusts, and returns the address that leads there.
    pub async fn also(&mut self, target: &str, client: reqwest::ClientBuilder) -> Result<String> {
        let door = Arc::new(Door {
            http: client.redirect(reqwest::redirect::Policy::none()).build()?,
            target: target.trim_end_matches('/').to_owned(),
            shared: self.shared.clone(),
        });
        let server = HttpServer::start(Router::new().fallback(pass).with_state(door)).await?;
        let url = server.url();
        self.servers.push(server);
        Ok(url)
    }

    /// `http://127.0.0.1:<port>`, which leads to the first server.
    pub fn url(&self) -> String {
        self.servers[0].url()
    }

    /// Gets in the way of the next `times` calls of a name.
    pub fn trouble(&self, name: &'static str, trouble: Trouble, times: usize) {
        self.shared.lock().troubles.push((name, trouble, times));
    }

    /// Takes back the trouble that was not met, and returns it with how many times were left.
    pub fn mend(&self) -> Vec<(&'static str, Trouble, usize)> {
        std::mem::take(&mut self.shared.lock().troubles)
    }

    /// Whether all trouble was met.
    pub fn troubles_met(&self) -> bool {
        self.shared.lock().troubles.is_empty()
    }

    /// How often each call was made so far.
    pub fn calls(&self) -> BTreeMap<&'static str, usize> {
        self.shared.lock().calls.clone()
    }

    /// Requests without a name.
    pub fn unknown(&self) -> Vec<String> {
        self.shared.lock().unknown.clone()
    }

    /// Waits until a call is left without an answer, other than those that were waited for before.
    pub async fn until_silent(&self, limit: Duration) -> Result<()> {
        let mut silent = self.shared.silent.subscribe();
        let came = timeout(limit, silent.wait_for(|count| *count > 0)).await.is_ok();
        ensure!(came, "no call was left without an answer; made were {:?}", self.calls());
        self.shared.silent.send_replace(0);
        Ok(())
    }
}

impl Shared {
    /// A test that panicked with the lock held has failed already.
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see(&self, call: &Call<'_>) -> Option<Trouble> {
        let mut seen = self.lock();
        let Some(name) = (self.namer)(call) else {
            seen.unknown.push(format!(
                "{} {}?{} {}",
                call.method,
                call.path,
                call.query,
                String::from_utf8_lossy(call.body)
            ));
            return None;
        };
        *seen.calls.entry(name).or_default() += 1;
        let position = seen.troubles.iter().position(|(wanted, ..)| *wanted == name)?;
        let (_, trouble, times) = &mut seen.troubles[position];
        let trouble = *trouble;
        *times -= 1;
        if *times == 0 {
            seen.troubles.remove(position);
        }
        Some(trouble)
    }
}

async fn pass(State(door): State<Arc<Door>>, request: Request) -> Response {
    let shared = &door.shared;
    let (parts, body) = request.into_parts();
    // A client that went away in mid-request asked for nothing.
    let Ok(body) = to_bytes(body, LONGEST).await else {
        return broken();
    };
    let call = Call {
        method: &parts.method,
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default(),
        headers: &parts.headers,
        body: &body,
    };
    let trouble = shared.see(&call);
    match trouble {
        Some(Trouble::Refused(status)) => return bare(StatusCode::from_u16(status).unwrap_or_default()),
        Some(Trouble::Throttled) => {
            let mut response = bare(StatusCode::TOO_MANY_REQUESTS);
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            return response;
        }
        Some(Trouble::Cut) => return broken(),
        Some(Trouble::Ignored) => return silence(shared).await,
        Some(Trouble::Lost | Trouble::Unanswered) | None => {}
    }
    let url = format!("{}{}", door.target, parts.uri);
    // The Host header goes through, so that the server's addresses lead back here, and signatures hold.
    let mut headers = parts.headers;
    headers.remove(header::TRANSFER_ENCODING);
    let asked = door.http.request(parts.method, url).headers(headers).body(body);
    let answer = match asked.send().await {
        Ok(answer) => answer,
        Err(_) => return broken(),
    };
    if matches!(trouble, Some(Trouble::Lost | Trouble::Unanswered)) {
        // The server is done when its answer has ended; what that says is lost.
        let _ = answer.bytes().await;
        return match trouble {
            Some(Trouble::Lost) => broken(),
            _ => silence(shared).await,
        };
    }
    let (status, headers) = (answer.status(), answer.headers().clone());
    // Passed on as it comes, so that an answer which breaks off does so here, too.
    let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.headers_mut().remove(header::TRANSFER_ENCODING);
    response
}

fn bare(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Ends the connection without a byte of an answer. A body that fails would not do: there is none in the answer to HEAD.
fn broken() -> Response {
    // This is no panic, and no hook reports it; the task that serves the connection is gone, and with it the connection.
    std::panic::resume_unwind(Box::new("the connection breaks"))
}

async fn silence(shared: &Shared) -> Response {
    shared.silent.send_modify(|count| *count += 1);
    std::future::pending().await
}
