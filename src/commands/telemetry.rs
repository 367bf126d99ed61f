//! Logs, e-mails, and progress of the process.
//!
//! Standard output carries results only, so logs go to standard error whatever `log_config` says; its levels are
//! honoured.

#[cfg(feature = "mail")]
pub mod mail;
#[cfg(not(feature = "mail"))]
#[path = "telemetry/no_mail.rs"]
pub mod mail;

use std::io::{self, Write};

use self::mail::{Mails, Sending};
use indicatif::MultiProgress;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::Logging;
use crate::config::logging::Level;

/// The logger's name in the files of the service this program replaces.
const LOGGER: &str = "fedora_image_uploader";

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line, for machines.
    Json,
}

/// Starts logging to standard error, around the progress bars if there are any, and to the e-mails of `log_config`.
///
/// # Errors
///
/// A mail handler that cannot be used.
pub fn start(config: &Logging, format: LogFormat, bars: Option<MultiProgress>) -> Result<Sending, mail::Error> {
    let filter = Targets::new()
        .with_default(level(config.root))
        .with_target(env!("CARGO_CRATE_NAME"), level(config.level(LOGGER)))
        // The module logs errors that it also returns; the program logs them where it handles them.
        .with_target("lapin", LevelFilter::OFF);
    let (mails, sending) = Mails::new(&config.mail)?;
    let registry = tracing_subscriber::registry().with(filter).with(mails);
    let colours = bars.is_some();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(Lines(bars))
        .with_ansi(colours)
        .with_target(false);
    let started = match format {
        LogFormat::Text => registry.with(lines).try_init(),
        LogFormat::Json => registry
            .with(lines.json().flatten_event(true).with_span_list(false))
            .try_init(),
    };
    // Only tests start twice; the first one stays.
    drop(started);
    Ok(sending)
}

fn level(level: Level) -> LevelFilter {
    match level {
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warning => LevelFilter::WARN,
        Level::Error | Level::Critical => LevelFilter::ERROR,
    }
}

/// Writes whole lines; the bars step aside for each.
struct Lines(Option<MultiProgress>);

struct Entry {
    bars: Option<MultiProgress>,
    text: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Entry;

    fn make_writer(&'a self) -> Entry {
        Entry {
            bars: self.0.clone(),
            text: Vec::new(),
        }
    }
}

impl Write for Entry {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // A record is lost if standard error is closed.
        let print = || drop(io::stderr().write_all(&self.text));
        match &self.bars {
            Some(bars) => bars.suspend(print),
            None => print(),
        }
    }
}
