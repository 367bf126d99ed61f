//! Progress of the images in flight: bars on a terminal, log lines at intervals elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::base::metrics::Reading;

/// Between two lines about one image.
const INTERVAL: Duration = Duration::from_secs(30);

/// All images in flight.
#[derive(Debug, Clone)]
pub struct Board(Arc<Display>);

#[derive(Debug)]
enum Display {
    Bars(MultiProgress),
    Log(Mutex<Vec<Weak<Counter>>>),
}

#[derive(Debug)]
struct Counter {
    name: String,
    size: u64,
    read: AtomicU64,
    started: Instant,
}

impl Board {
    /// Bars on standard error.
    #[must_use]
    pub fn bars() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        Self(Arc::new(Display::Bars(bars)))
    }

    /// Log lines. [`Self::report`] writes them.
    #[must_use]
    pub fn log() -> Self {
        Self(Arc::new(Display::Log(Mutex::default())))
    }

    /// The bars, for those who write to the terminal beside them.
    #[must_use]
    pub fn terminal(&self) -> Option<MultiProgress> {
        match &*self.0 {
            Display::Bars(bars) => Some(bars.clone()),
            Display::Log(_) => None,
        }
    }

    /// Puts an image on the board, and into the metrics as `what` it is, until the line is dropped.
    #[must_use]
    pub fn start(&self, name: &str, what: &str, size: u64) -> Line {
        Line {
            kind: self.line(name, size),
            reading: Reading::new(what, size),
        }
    }

    fn line(&self, name: &str, size: u64) -> Kind {
        match &*self.0 {
            Display::Bars(bars) => {
                let bar = ProgressBar::new(size).with_message(name.rsplit('/').next().unwrap_or(name).to_owned());
                if let Ok(style) = ProgressStyle::with_template(
                    "{msg:50!} {bar:30} {binary_bytes:>11} {binary_bytes_per_sec:>13} {eta:>4}",
                ) {
                    bar.set_style(style);
                }
                Kind::Bar(bars.add(bar))
            }
            Display::Log(counters) => {
                let counter = Arc::new(Counter {
                    name: name.to_owned(),
                    size,
                    read: AtomicU64::new(0),
                    started: Instant::now(),
                });
                let mut counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
                counters.retain(|counter| counter.strong_count() > 0);
                counters.push(Arc::downgrade(&counter));
                Kind::Counter(counter)
            }
        }
    }

    /// Writes a line for each image in flight at intervals, without end; returns at once if the board shows bars.
    pub async fn report(&self) {
        let Display::Log(counters) = &*self.0 else { return };
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + INTERVAL, INTERVAL);
        loop {
            ticks.tick().await;
            let current: Vec<_> = {
                let counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
                counters.iter().filter_map(Weak::upgrade).collect()
            };
            for counter in current {
                let read = counter.read.load(Ordering::Relaxed);
                let percent = (read * 100).checked_div(counter.size).unwrap_or(100);
                tracing::info!(
                    image = counter.name,
                    read_bytes = read,
                    size_bytes = counter.size,
                    elapsed_s = counter.started.elapsed().as_secs(),
                    "{percent} % of {} read",
                    counter.name
                );
            }
        }
    }
}

/// One image's progress.
#[derive(Debug)]
pub struct Line {
    kind: Kind,
    reading: Reading,
}

#[derive(Debug)]
enum Kind {
    Bar(ProgressBar),
    Counter(Arc<Counter>),
}

impl Line {
    /// So many bytes more have been read.
    pub fn read(&self, bytes: u64) {
        self.reading.read.add(bytes);
        match &self.kind {
            Kind::Bar(bar) => bar.inc(bytes),
            Kind::Counter(counter) => {
                counter.read.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    /// So many bytes more came out of it decompressed.
    pub fn decoded(&self, bytes: u64) {
        self.reading.decoded.add(bytes);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Kind::Bar(bar) = &self.kind {
            bar.finish_and_clear();
        }
    }
}
