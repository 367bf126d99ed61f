//! `log_config`: a Python `logging.config.dictConfig`, of which levels and mail handlers are honoured.
//!
//! <https://docs.python.org/3/library/logging.config.html#logging-config-dictschema>. Handlers and
//! formatters of other kinds are accepted, whatever they hold: they configure Python classes, and
//! where this program logs to does not depend on the file.

use std::collections::BTreeMap;

use toml::de::DeValue;

use super::reader::{Table, Value};
use crate::base::secret::Secret;

/// Which records are wanted, and who gets mail about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// Level of the root logger. Default: warning.
    pub root: Level,
    /// Levels of other loggers, by dotted Python name. Default: info for `fedora_messaging` and
    /// `fedora_image_uploader`, the names the existing files give levels to.
    pub loggers: BTreeMap<String, Level>,
    /// One entry per `SMTPHandler` that a logger uses. Default: none.
    pub mail: Vec<Mail>,
}

/// A level of Python's logging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Debug,
    /// The steps of the work.
    Info,
    /// Conditions that may need attention.
    Warning,
    /// Failures.
    Error,
    /// Failures that end the program.
    Critical,
}

/// A `logging.handlers.SMTPHandler`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// Mail server.
    pub host: String,
    /// Port of the mail server. Default: 25.
    pub port: u16,
    /// Sender.
    pub from: String,
    /// Recipients, at least one.
    pub to: Vec<String>,
    /// Subject of every mail.
    pub subject: String,
    /// User and password, if the server wants them.
    pub credentials: Option<(String, Secret)>,
    /// Least level that is worth a mail. Default: every record.
    pub level: Level,
    /// Whether `secure` is given: STARTTLS, which Python does only with credentials.
    pub starttls: bool,
}

impl Default for Logging {
    fn default() -> Self {
        let info = |name: &str| (name.to_owned(), Level::Info);
        Self {
            root: Level::Warning,
            loggers: BTreeMap::from([info("fedora_messaging"), info("fedora_image_uploader")]),
            mail: Vec::new(),
        }
    }
}

impl Logging {
    /// The level of a logger: its own, else that of the nearest one above it (`a.b` is above
    /// `a.b.c`), else the root's.
    pub fn level(&self, logger: &str) -> Level {
        let mut name = logger;
        loop {
            if let Some(level) = self.loggers.get(name) {
                return *level;
            }
            match name.rsplit_once('.') {
                Some((above, _)) => name = above,
                None => return self.root,
            }
        }
    }

    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let table = value.free_table()?;
        let handlers = table.optional("handlers", Vec::new(), |value| Some(value.free_table()?.all()))?;
        let names: Vec<&str> = handlers.iter().map(|(name, _)| *name).collect();
        let mut used = Vec::new();
        let mut root = Some(Level::Warning);
        let mut loggers = BTreeMap::new();
        let mut read_logger = |name: &str, value: &Value<'_>| {
            let Some(table) = value.free_table() else {
                return;
            };
            let level = table.optional("level", None, level);
            used.extend(handlers_of(&table, &names));
            match level {
                // A logger without a level of its own has that of the logger above.
                Some(None) => {}
                Some(Some(level)) if name.is_empty() => root = Some(level),
                Some(Some(level)) => {
                    loggers.insert(name.to_owned(), level);
                }
                None => root = None,
            }
        };
        if let Some(value) = table.get("loggers") {
            for (name, value) in value.free_table()?.all() {
                read_logger(name, &value);
            }
        }
        if let Some(value) = table.get("root") {
            read_logger("", &value);
        }
        let mail = handlers
            .iter()
            .filter(|(name, _)| used.iter().any(|used| used == name))
            .filter_map(|(_, value)| Mail::read(&value.free_table()?))
            .collect();
        Some(Self {
            root: root?,
            loggers,
            mail,
        })
    }
}

impl Mail {
    /// Reads a handler, if it is of this kind. Keys of later Python versions are accepted.
    fn read(table: &Table<'_>) -> Option<Self> {
        let class = table.get("class")?;
        if class.raw().as_str() != Some("logging.handlers.SMTPHandler") {
            return None;
        }
        let server = table.required("mailhost", server);
        let from = table.required("fromaddr", Value::filled);
        let to = table.required("toaddrs", |value| match value.raw() {
            DeValue::String(_) => Some(vec![value.filled()?]),
            _ => value.some(Value::filled),
        });
        let subject = table.required("subject", Value::string);
        let credentials = table.optional("credentials", None, |value| {
            let mut pair = value.list(Value::string)?.into_iter();
            match (pair.next(), pair.next(), pair.next()) {
                (Some(user), Some(password), None) => Some(Some((user, Secret::new(password)))),
                _ => value.refuse("expected [\"user\", \"password\"]"),
            }
        });
        let level = table.optional("level", None, level);
        let starttls = table.get("secure").is_some();
        let (host, port) = server?;
        Some(Self {
            host,
            port,
            from: from?,
            to: to?,
            subject: subject?,
            credentials: credentials?,
            level: level?.unwrap_or(Level::Debug),
            starttls,
        })
    }
}

/// `"host"`, `"host:port"`, or `["host", port]`.
fn server(value: &Value<'_>) -> Option<(String, u16)> {
    const EXPECTED: &str = "\"mail.example.org\" or [\"mail.example.org\", 25]";
    match value.raw() {
        DeValue::String(_) => {
            let text = value.filled()?;
            match text.rsplit_once(':').filter(|(host, _)| !host.contains(':')) {
                Some((host, port)) => match port.parse() {
                    Ok(port) => Some((host.to_owned(), port)),
                    Err(_) => value.refuse(format!("expected {EXPECTED}, found \"{text}\"")),
                },
                None => Some((text, 25)),
            }
        }
        DeValue::Array(_) => match value.items()?.as_slice() {
            [host, port] => {
                let host = host.filled();
                let port = port.integer(1..=i64::from(u16::MAX));
                Some((host?, port?))
            }
            _ => value.refuse(format!("expected {EXPECTED}")),
        },
        _ => value.wrong_type(EXPECTED),
    }
}

/// The handlers a logger names; one that is not defined is a problem, as it is in Python.
fn handlers_of(logger: &Table<'_>, defined: &[&str]) -> Vec<String> {
    let read = logger.optional("handlers", Vec::new(), |value| {
        value.list(|item| {
            let name = item.string()?;
            if !defined.contains(&name.as_str()) {
                return item.refuse(format!("no handler \"{name}\" in log_config.handlers"));
            }
            Some(name)
        })
    });
    read.unwrap_or_default()
}

/// A level by name or number. `NOTSET` is no level.
fn level(value: &Value<'_>) -> Option<Option<Level>> {
    if value.raw().is_integer() {
        let number: i64 = value.integer(0..=i64::MAX)?;
        return Some(match number {
            0 => None,
            1..=10 => Some(Level::Debug),
            11..=20 => Some(Level::Info),
            21..=30 => Some(Level::Warning),
            31..=40 => Some(Level::Error),
            _ => Some(Level::Critical),
        });
    }
    value.one_of(&[
        ("DEBUG", Some(Level::Debug)),
        ("INFO", Some(Level::Info)),
        ("WARNING", Some(Level::Warning)),
        ("WARN", Some(Level::Warning)),
        ("ERROR", Some(Level::Error)),
        ("CRITICAL", Some(Level::Critical)),
        ("FATAL", Some(Level::Critical)),
        ("NOTSET", None),
    ])
}
