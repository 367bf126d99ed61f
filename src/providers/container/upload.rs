//! A request whose body takes as long as it takes, as long as it moves.
//!
//! The HTTP client's own time-out for silence starts with the request and not after its body, so it would cut every long
//! upload. The watch here instead: once the client has taken a piece, it must ask for the next in time; while it waits
//! for *us*, because the archive is slow or another registry is, the clock stands still.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use reqwest::{RequestBuilder, Response};

use super::error::Error;
use crate::base::http;
use crate::base::metrics;

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
        Error::lost(what(), source)
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

/// The side that has to do something next.
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

impl Progress {
    /// The limit that has passed, if any has.
    fn exceeded(&self) -> Option<Duration> {
        let limit = match self.turn {
            Turn::Ours => return None,
            Turn::Registry => SILENCE,
            Turn::Answer => http::CALL,
        };
        (self.moved.elapsed() > limit).then_some(limit)
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
            if let Some(limit) = self.lock().exceeded() {
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
                metrics::uploaded(bytes.len() as u64);
            }
            Some(Err(_)) => self.watch.lock().withdrawn = true,
            None => self.watch.turn(Turn::Answer),
        }
        Poll::Ready(piece)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn only_the_registry_is_hurried() {
        let watch = Watch::default();
        // As long ago as no limit allows.
        let exceeded = || {
            let mut progress = watch.lock();
            progress.moved -= 2 * http::CALL;
            progress.exceeded()
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let pieces =
            futures_util::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
        let mut body = Watched {
            inner: Box::pin(pieces),
            watch: watch.clone(),
        };
        assert_eq!(
            exceeded(),
            Some(SILENCE),
            "a connection that never asks for the first piece is dead"
        );
        assert!(body.next().now_or_never().is_none());
        assert_eq!(exceeded(), None, "it waits for us");
        sender.send(Ok(Bytes::from_static(b"a"))).await.unwrap();
        assert!(body.next().await.is_some());
        assert_eq!(watch.lock().exceeded(), None, "it has just moved");
        assert_eq!(exceeded(), Some(SILENCE));
        drop(sender);
        assert!(body.next().await.is_none());
        assert_eq!(exceeded(), Some(http::CALL), "it has everything");
    }
}
