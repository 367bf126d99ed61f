//! A request whose body takes as long as it takes, as long as it moves.
//!
//! The HTTP client's own time-out for silence starts with the request and not after its body, so it would cut every long
//! upload. What is watched instead: once the client has taken a piece, it must ask for the next in time; while it waits
//! for *us*, because the archive is slow or another registry is, the clock stands still.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use reqwest::{RequestBuilder, Response};

use super::registry::Error;
use crate::http;

/// A connection that takes nothing for this long is dead.
const SILENCE: Duration = Duration::from_secs(30);
/// Between two looks at the clock.
const LOOK: Duration = Duration::from_millis(500);

/// Sends a request with a body that comes as a stream.
pub(super) async fn send(
    what: impl Fn() -> String,
    request: RequestBuilder,
    body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Result<Response, Error> {
    let watch = Watch::default();
    let body = Watched {
        inner: Box::pin(body),
        watch: watch.clone(),
    };
    let answer = tokio::select! {
        answer = request.body(reqwest::Body::wrap_stream(body)).send() => answer,
        limit = watch.stalled() => return Err(Error::Stalled { what: what(), seconds: limit.as_secs() }),
    };
    answer.map_err(|source| {
        if watch.lock().withdrawn {
            return Error::Withdrawn(what());
        }
        Error::Lost {
            what: what(),
            source: source.without_url(),
        }
    })
}

/// How far a body has got.
#[derive(Clone, Default)]
struct Watch(Arc<Mutex<Progress>>);

struct Progress {
    moved: Instant,
    turn: Turn,
    withdrawn: bool,
}

/// Who has to do something next.
enum Turn {
    /// The registry takes what it has been given.
    Registry,
    /// We have nothing to give.
    Ours,
    /// The registry has everything and must answer.
    Answer,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            moved: Instant::now(),
            turn: Turn::Registry,
            withdrawn: false,
        }
    }
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, turn: Turn) {
        let mut progress = self.lock();
        progress.moved = Instant::now();
        progress.turn = turn;
    }

    /// Ends when the registry has let us wait for too long.
    async fn stalled(&self) -> Duration {
        loop {
            tokio::time::sleep(LOOK).await;
            let progress = self.lock();
            let limit = match progress.turn {
                Turn::Ours => continue,
                Turn::Registry => SILENCE,
                Turn::Answer => http::CALL,
            };
            if progress.moved.elapsed() > limit {
                return limit;
            }
        }
    }
}

struct Watched<S> {
    inner: Pin<Box<S>>,
    watch: Watch,
}

impl<S: Stream<Item = io::Result<Bytes>>> Stream for Watched<S> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.watch.turn(Turn::Ours);
        let piece = ready!(self.inner.as_mut().poll_next(context));
        match &piece {
            Some(Ok(bytes)) => {
                self.watch.turn(Turn::Registry);
                metrics::counter!("uploader_uploaded_bytes_total", "provider" => "container")
                    .increment(bytes.len() as u64);
            }
            Some(Err(_)) => self.watch.lock().withdrawn = true,
            None => self.watch.turn(Turn::Answer),
        }
        Poll::Ready(piece)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_registry_is_hurried() {
        let watch = Watch::default();
        let mut body = Watched {
            inner: Box::pin(futures_util::stream::iter([Ok(Bytes::from_static(b"a"))])),
            watch: watch.clone(),
        };
        assert!(
            matches!(watch.lock().turn, Turn::Registry),
            "a connection that never takes the first piece is dead"
        );
        assert!(body.next().await.is_some());
        assert!(matches!(watch.lock().turn, Turn::Registry));
        assert!(body.next().await.is_none());
        assert!(matches!(watch.lock().turn, Turn::Answer));
        watch.turn(Turn::Ours);
        watch.lock().moved -= 2 * http::CALL;
        assert!(
            tokio::time::timeout(Duration::from_secs(3600), watch.stalled())
                .await
                .is_err()
        );
        watch.lock().turn = Turn::Registry;
        assert_eq!(watch.stalled().await, SILENCE);
    }
}
