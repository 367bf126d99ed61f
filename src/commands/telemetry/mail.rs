//! E-mails about failures, as `log_config` asks for with `logging.handlers.SMTPHandler`: one for each record of its level.
//!
//! Failures are logged at ERROR after all retries, once for each cause, and so are mailed once for each cause. A mail server
//! that is away holds nothing up: the e-mail is lost, and a warning says so.

use std::fmt::{self, Write as _};
use std::time::Duration;

use lettre::message::{Mailbox, header::ContentType};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::level;
use crate::base::failure::Chain;
use crate::config::logging::Mail;

/// Limits the sending of one e-mail.
const SENDING: Duration = Duration::from_secs(20);
/// Limits the wait of the ending process for its last e-mails.
const LAST: Duration = Duration::from_secs(20);
/// The number of e-mails that are kept for a slow server. Later ones are lost; the log has their records.
const QUEUE: usize = 100;

/// A layer of the log that turns records into e-mails.
pub struct Mails {
    handlers: Vec<Handler>,
}

struct Handler {
    level: tracing_subscriber::filter::LevelFilter,
    queue: mpsc::Sender<String>,
}

/// The background tasks that send e-mails.
pub struct Sending {
    tasks: Vec<JoinHandle<()>>,
    stop: watch::Sender<()>,
}

impl Mails {
    /// A layer for the log, and its background tasks. Needs a runtime.
    ///
    /// # Errors
    ///
    /// An invalid address, or a server name that TLS cannot be used with.
    pub fn new(config: &[Mail]) -> Result<(Self, Sending), Error> {
        let (stop, stopped) = watch::channel(());
        let mut handlers = Vec::new();
        let mut tasks = Vec::new();
        for mail in config {
            let letters = Letters::new(mail)?;
            let (queue, records) = mpsc::channel(QUEUE);
            tasks.push(tokio::spawn(letters.send_all(records, stopped.clone())));
            handlers.push(Handler {
                level: level(mail.level),
                queue,
            });
        }
        Ok((Self { handlers }, Sending { tasks, stop }))
    }
}

impl Sending {
    /// Sends the queued e-mails, and waits up to `LAST` for each handler's. Later records are not sent.
    pub async fn finish(self) {
        drop(self.stop);
        for task in self.tasks {
            // An e-mail that is late is lost, as with a server that is away.
            let _ = tokio::time::timeout(LAST, task).await;
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Mails {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        // The record of an e-mail that failed would be the next e-mail.
        if event.metadata().target() == module_path!() {
            return;
        }
        let wanted = self
            .handlers
            .iter()
            .filter(|handler| *event.metadata().level() <= handler.level);
        let mut text = None;
        for handler in wanted {
            let text = text.get_or_insert_with(|| record(event));
            // A full queue means a slow server or none; the log has the record.
            let _ = handler.queue.try_send(text.clone());
        }
    }
}

fn record(event: &Event<'_>) -> String {
    struct Text(String);
    impl Visit for Text {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            // Writing to a string cannot fail.
            let _ = match field.name() {
                "message" => write!(self.0, "{value:?}\n\n"),
                name => writeln!(self.0, "{name}: {value:?}"),
            };
        }
    }
    let metadata = event.metadata();
    let mut text = Text(format!(
        "{} {} {}\n\n",
        jiff::Timestamp::now(),
        metadata.level(),
        metadata.target()
    ));
    event.record(&mut text);
    text.0
}

/// One handler's connection and the parts that its e-mails share.
struct Letters {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    to: Vec<Mailbox>,
    subject: String,
    server: String,
}

impl Letters {
    fn new(mail: &Mail) -> Result<Self, Error> {
        let address = |text: &String| {
            text.parse().map_err(|source| Error::Address {
                text: text.clone(),
                source,
            })
        };
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&mail.host)
            .port(mail.port)
            .timeout(Some(SENDING));
        // As in Python, where `secure` without credentials does nothing. The certificate is verified, which Python leaves out.
        if let Some((user, password)) = &mail.credentials {
            transport = transport.credentials(Credentials::new(user.clone(), password.expose().to_owned()));
            if mail.starttls {
                let tls = TlsParameters::new(mail.host.clone()).map_err(Error::Tls)?;
                transport = transport.tls(Tls::Required(tls));
            }
        }
        Ok(Self {
            transport: transport.build(),
            from: address(&mail.from)?,
            to: mail.to.iter().map(address).collect::<Result<_, _>>()?,
            subject: mail.subject.clone(),
            server: format!("{}:{}", mail.host, mail.port),
        })
    }

    /// The log never closes its end of the queue, so `stopped` says when the process ends.
    async fn send_all(self, mut records: mpsc::Receiver<String>, mut stopped: watch::Receiver<()>) {
        loop {
            let record = tokio::select! {
                biased;
                record = records.recv() => record,
                _ = stopped.changed() => None,
            };
            let Some(record) = record else { return };
            if let Err(error) = self.send(record).await {
                tracing::warn!(server = self.server, "failed to {}", Chain(&error));
            }
        }
    }

    async fn send(&self, record: String) -> Result<(), Error> {
        let mut letter = Message::builder()
            .from(self.from.clone())
            .subject(&self.subject)
            .header(ContentType::TEXT_PLAIN);
        for to in &self.to {
            letter = letter.to(to.clone());
        }
        let letter = letter.body(record).map_err(Error::Letter)?;
        let sent = self.transport.send(letter).await;
        sent.map(drop).map_err(|source| Error::Send {
            server: self.server.clone(),
            source,
        })
    }
}

/// An e-mail that cannot be sent, or a handler that cannot send any.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Text that is not an e-mail address.
    #[error("read the address {text:?} of log_config")]
    Address {
        /// The text of the configuration.
        text: String,
        /// The underlying error.
        source: lettre::address::AddressError,
    },
    /// The TLS library refused its configuration.
    #[error("set up TLS for the mail server of log_config")]
    Tls(#[source] lettre::transport::smtp::Error),
    /// A header of the e-mail is invalid, such as a subject with control characters.
    #[error("write an e-mail")]
    Letter(#[source] lettre::error::Error),
    /// The server is away or refuses.
    #[error("send an e-mail through {server}")]
    Send {
        /// Host and port.
        server: String,
        /// The underlying error.
        source: lettre::transport::smtp::Error,
    },
}
