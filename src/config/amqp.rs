//! The keys of fedora-messaging that say how to reach the broker and what to consume.
//!
//! A section that is given replaces the default section whole, as in
//! <https://fedora-messaging.readthedocs.io/en/stable/user-guide/configuration.html>.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use toml::de::DeValue;

pub use super::amqp_url::AmqpUrl;
use super::problem::Problem;
use super::reader::{Table, Value};

/// The exchange that every RabbitMQ has, and that Fedora publishes to.
const DEFAULT_EXCHANGE: &str = "amq.topic";

/// Largest value of a 16 bit field of the protocol.
const SHORT: i64 = u16::MAX as i64;

/// Everything about the broker.
#[derive(Clone, Debug)]
pub struct Amqp {
    /// `amqp_url`: broker, virtual host, and account. Default: the broker on this machine.
    pub url: AmqpUrl,
    /// `passive_declares`: only check that queues exist. Default: false.
    pub passive_declares: bool,
    /// `tls`: certificates for an `amqps` URL. Default: the platform's authorities, no client
    /// certificate.
    pub tls: Option<Tls>,
    /// `client_properties`: what the broker's administrators see of this client, without the
    /// reserved ones. Default: `app = "Unknown"`.
    pub client_properties: BTreeMap<String, Field>,
    /// `exchanges`: accepted as fedora-messaging does, which never declares them when consuming.
    pub exchanges: BTreeMap<String, Exchange>,
    /// `queues`: those to declare and consume, in the order of the file. Default: one that the
    /// server names.
    pub queues: Vec<Queue>,
    /// `bindings`: what the queues get. Default: everything of `amq.topic`.
    pub bindings: Vec<Binding>,
    /// `qos`: how much may be delivered without being acknowledged.
    pub qos: Qos,
    /// `publish_exchange`: where notifications go. Default: `amq.topic`.
    pub publish_exchange: String,
    /// `topic_prefix`, without trailing dots: put before the topic of every notification with a
    /// dot between them, unless empty. Default: empty.
    pub topic_prefix: String,
    /// `publish_priority`: priority of notifications. Default: none.
    pub publish_priority: Option<u8>,
}

/// PEM files for a TLS connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Authorities to trust beside the platform's.
    pub ca_cert: Option<PathBuf>,
    /// Client certificate; always together with `keyfile`.
    pub certfile: Option<PathBuf>,
    /// Private key of the client certificate.
    pub keyfile: Option<PathBuf>,
}

impl Tls {
    /// Certificate and key, if the client shows one: then the account is the certificate's name
    /// and the password of the URL is not used.
    pub fn client_certificate(&self) -> Option<(&Path, &Path)> {
        Some((self.certfile.as_deref()?, self.keyfile.as_deref()?))
    }
}

/// An exchange as the file describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// `topic`, `direct`, `fanout`, `headers`, or a type of a plug-in.
    pub kind: String,
    /// Survives a restart of the broker.
    pub durable: bool,
    /// Goes with its last binding.
    pub auto_delete: bool,
    /// Arguments of the declaration.
    pub arguments: BTreeMap<String, Field>,
}

/// A queue to declare and consume.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// Its name; empty lets the server choose one.
    pub name: String,
    /// Survives a restart of the broker.
    pub durable: bool,
    /// Goes with its last consumer.
    pub auto_delete: bool,
    /// For this connection only.
    pub exclusive: bool,
    /// Arguments of the declaration.
    pub arguments: BTreeMap<String, Field>,
}

/// A binding of a queue to an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The queue; `None` stands for every queue of the file.
    pub queue: Option<String>,
    /// The exchange.
    pub exchange: String,
    /// One binding is made for each of these.
    pub routing_keys: Vec<String>,
}

/// Limits on deliveries that are not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qos {
    /// In bytes; 0 is no limit, and the only value RabbitMQ knows. Default: 0.
    pub prefetch_size: u32,
    /// In deliveries; 0 is no limit. Default: 10.
    pub prefetch_count: u16,
}

/// A value of an AMQP table.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// True or false.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// Text.
    String(String),
    /// A list.
    List(Vec<Field>),
    /// A table.
    Table(BTreeMap<String, Field>),
}

impl Amqp {
    pub(super) fn read(root: &Table<'_>) -> Option<Self> {
        let url = root.optional("amqp_url", AmqpUrl::default(), AmqpUrl::read);
        let passive_declares = root.optional("passive_declares", false, Value::boolean);
        let tls = root.optional("tls", None, |value| {
            let tls = value.table(|table| tls(table, value))?;
            if tls != Tls::default() && url.as_ref().is_some_and(|url| !url.is_tls()) {
                return value.refuse("needs an amqp_url that starts with amqps://");
            }
            Some(Some(tls))
        });
        let client_properties = root.optional("client_properties", default_properties(), properties);
        let exchanges = root.optional("exchanges", default_exchanges(), exchanges);
        let queues = root.optional("queues", vec![default_queue()], queues);
        let bindings = root.optional("bindings", vec![default_binding()], |value| {
            value.list(|item| binding(item, queues.as_deref()))
        });
        let qos = root.optional("qos", Qos::default(), |value| value.table(qos));
        let publish_exchange = root.optional("publish_exchange", DEFAULT_EXCHANGE.into(), Value::string);
        let topic_prefix = root.optional("topic_prefix", String::new(), Value::string);
        let publish_priority = root.optional("publish_priority", None, |value| value.integer(0..=255).map(Some));
        Some(Self {
            url: url?,
            passive_declares: passive_declares?,
            tls: tls?,
            client_properties: client_properties?,
            exchanges: exchanges?,
            queues: queues?,
            bindings: bindings?,
            qos: qos?,
            publish_exchange: publish_exchange?,
            topic_prefix: topic_prefix?.trim_end_matches('.').to_owned(),
            publish_priority: publish_priority?,
        })
    }

    /// Looks at the certificate files: there, readable, and of the right kind.
    pub(super) fn check_files(&self, file: &Path) -> Vec<Problem> {
        let Some(tls) = &self.tls else {
            return Vec::new();
        };
        [
            ("tls.ca_cert", &tls.ca_cert, "CERTIFICATE"),
            ("tls.certfile", &tls.certfile, "CERTIFICATE"),
            ("tls.keyfile", &tls.keyfile, "PRIVATE KEY"),
        ]
        .into_iter()
        .filter_map(|(key, path, kind)| {
            let text = check_pem(path.as_deref()?, kind).err()?;
            Some(Problem::outside(file, key, text))
        })
        .collect()
    }
}

/// Whether a PEM file can be read and holds an object whose label ends in `kind`.
pub(super) fn check_pem(path: &Path, kind: &str) -> Result<(), String> {
    let name = path.display();
    let pem = fs::read(path).map_err(|error| format!("cannot read {name}: {error}"))?;
    let found = String::from_utf8_lossy(&pem).lines().any(|line| {
        let label = line
            .trim()
            .strip_prefix("-----BEGIN ")
            .and_then(|rest| rest.strip_suffix("-----"));
        label.is_some_and(|label| label.ends_with(kind))
    });
    if found {
        Ok(())
    } else {
        let kind = kind.to_lowercase();
        Err(format!("{name} is not a PEM file with a {kind} in it"))
    }
}

impl Default for Qos {
    fn default() -> Self {
        Self {
            prefetch_size: 0,
            prefetch_count: 10,
        }
    }
}

fn tls(table: &Table<'_>, value: &Value<'_>) -> Option<Tls> {
    let path = |key| table.optional(key, None, |value| value.path().map(Some));
    let ca_cert = path("ca_cert");
    let certfile = path("certfile");
    let keyfile = path("keyfile");
    let tls = Tls {
        ca_cert: ca_cert?,
        certfile: certfile?,
        keyfile: keyfile?,
    };
    match (&tls.certfile, &tls.keyfile) {
        (Some(_), None) => value.refuse("has a certfile but no keyfile; both are needed"),
        (None, Some(_)) => value.refuse("has a keyfile but no certfile; both are needed"),
        _ => Some(tls),
    }
}

fn default_properties() -> BTreeMap<String, Field> {
    BTreeMap::from([("app".into(), Field::String("Unknown".into()))])
}

fn properties(value: &Value<'_>) -> Option<BTreeMap<String, Field>> {
    // The client sets these itself, so that administrators can rely on them.
    const RESERVED: [&str; 3] = ["product", "information", "version"];
    for (name, value) in value.free_table()?.all() {
        if RESERVED.contains(&name) {
            value.note("reserved: the program sets this property itself");
        }
    }
    fields(value)
}

fn default_exchanges() -> BTreeMap<String, Exchange> {
    let exchange = Exchange {
        kind: "topic".into(),
        durable: true,
        auto_delete: false,
        arguments: BTreeMap::new(),
    };
    BTreeMap::from([(DEFAULT_EXCHANGE.into(), exchange)])
}

fn exchanges(value: &Value<'_>) -> Option<BTreeMap<String, Exchange>> {
    let exchanges = value.free_table()?.all().into_iter().map(|(name, value)| {
        let exchange = value.table(|table| {
            let kind = table.required("type", Value::filled);
            let durable = table.required("durable", Value::boolean);
            let auto_delete = table.required("auto_delete", Value::boolean);
            let arguments = table.optional("arguments", BTreeMap::new(), fields);
            Some(Exchange {
                kind: kind?,
                durable: durable?,
                auto_delete: auto_delete?,
                arguments: arguments?,
            })
        });
        Some((name.to_owned(), exchange?))
    });
    let exchanges: Vec<_> = exchanges.collect();
    exchanges.into_iter().collect()
}

fn default_queue() -> Queue {
    Queue {
        name: String::new(),
        durable: false,
        auto_delete: true,
        exclusive: true,
        arguments: BTreeMap::new(),
    }
}

fn queues(value: &Value<'_>) -> Option<Vec<Queue>> {
    let queues = value.free_table()?.all().into_iter().map(|(name, value)| {
        value.table(|table| {
            let durable = table.required("durable", Value::boolean);
            let auto_delete = table.required("auto_delete", Value::boolean);
            let exclusive = table.required("exclusive", Value::boolean);
            let arguments = table.optional("arguments", BTreeMap::new(), fields);
            Some(Queue {
                name: name.to_owned(),
                durable: durable?,
                auto_delete: auto_delete?,
                exclusive: exclusive?,
                arguments: arguments?,
            })
        })
    });
    let queues: Vec<_> = queues.collect();
    queues.into_iter().collect()
}

fn default_binding() -> Binding {
    Binding {
        queue: None,
        exchange: DEFAULT_EXCHANGE.into(),
        routing_keys: vec!["#".into()],
    }
}

fn binding(item: &Value<'_>, queues: Option<&[Queue]>) -> Option<Binding> {
    // Queues that could not be read are reported already: nothing to compare with.
    let known = |name: &str| queues.is_none_or(|queues| queues.iter().any(|q| q.name == name));
    item.table(|table| {
        let queue = table.optional("queue", None, |value| {
            let name = value.string()?;
            if !known(&name) {
                return value.refuse(format!("no queue \"{name}\" in [queues]"));
            }
            Some(Some(name))
        });
        let exchange = table.required("exchange", Value::string);
        let routing_keys = table.required("routing_keys", |value| value.list(Value::string));
        Some(Binding {
            queue: queue?,
            exchange: exchange?,
            routing_keys: routing_keys?,
        })
    })
}

fn qos(table: &Table<'_>) -> Option<Qos> {
    let default = Qos::default();
    let size = table.optional("prefetch_size", default.prefetch_size, |value| {
        value.integer(0..=i64::from(u32::MAX))
    });
    let count = table.optional("prefetch_count", default.prefetch_count, |value| {
        value.integer(0..=SHORT)
    });
    Some(Qos {
        prefetch_size: size?,
        prefetch_count: count?,
    })
}

fn fields(value: &Value<'_>) -> Option<BTreeMap<String, Field>> {
    let fields = value.free_table()?.all().into_iter();
    let fields: Vec<_> = fields
        .map(|(name, value)| Some((name.to_owned(), field(&value)?)))
        .collect();
    fields.into_iter().collect()
}

fn field(value: &Value<'_>) -> Option<Field> {
    match value.raw() {
        DeValue::Boolean(boolean) => Some(Field::Boolean(*boolean)),
        DeValue::Integer(_) => value.integer(i64::MIN..=i64::MAX).map(Field::Integer),
        DeValue::Float(float) => float.as_str().parse().ok().map(Field::Float),
        DeValue::String(text) => Some(Field::String(text.to_string())),
        DeValue::Array(_) => value.list(field).map(Field::List),
        DeValue::Table(_) => fields(value).map(Field::Table),
        DeValue::Datetime(_) => value.wrong_type("a string, a number, an array, or a table"),
    }
}
