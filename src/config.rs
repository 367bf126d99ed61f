//! The configuration file: that of fedora-messaging, with one provider in `consumer_config`.
//!
//! The whole file is read before anything is connected to, and every problem is reported by key and
//! line at once. Reading needs no network and no environment; what only running needs is looked at
//! by [`Config::check_environment`].

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use crate::base::http::Hosts;
use crate::base::resource::Resource;
use crate::model::target::{Publisher, Rules};

pub use environment::Environment;
pub use logging::Logging;
pub use problem::{Problem, Problems};
use reader::{Table, Value};

pub mod amqp;
mod amqp_url;
pub mod aws;
pub mod azure;
pub mod container;
mod environment;
pub mod gcp;
pub mod local;
pub mod logging;
mod problem;
mod reader;
mod value;

/// The file that is read where neither option nor variable names one.
const DEFAULT_PATH: &str = "/etc/fedora-messaging/config.toml";

const HOUR: Duration = Duration::from_secs(60 * 60);
const MINUTE: Duration = Duration::from_secs(60);

/// A file without problems.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// The broker.
    pub amqp: amqp::Amqp,
    /// `[monitoring]`. Default: none, nothing listens.
    pub monitoring: Option<Monitoring>,
    /// `[log_config]`
    pub logging: Logging,
    /// The keys of `[consumer_config]` that are the same for every provider.
    pub service: Service,
    /// The one provider.
    pub provider: Provider,
}

/// Where monitoring listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitoring {
    /// Address or host name. Default: empty, which is every interface.
    pub address: String,
    /// Port; 0 takes any free one.
    pub port: u16,
}

/// Settings of the service that do not depend on the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `datagrepper_url`. Default: `https://apps.fedoraproject.org/datagrepper`.
    pub datagrepper_url: Url,
    /// `bodhi_url`, or a folder with copies. Default: `https://bodhi.fedoraproject.org`.
    pub bodhi_url: Resource,
    /// `release_metadata_url`, or a file with a copy. Default:
    /// `https://fedorapeople.org/groups/qa/metadata/release.json`.
    pub release_metadata_url: Resource,
    /// `allowed_compose_hosts`: where composes may be, also after a redirect. Default: anywhere.
    pub allowed_compose_hosts: Hosts,
    /// `verify_signatures`: whether signed checksums have to vouch for images. Default: they need not be there, and are
    /// not looked for.
    pub verify_signatures: VerifySignatures,
    /// `keyring`: a file of public keys, needed unless that is off.
    pub keyring: Option<PathBuf>,
    /// `max_concurrent_images`: images worked on at once. Default: 4.
    pub max_concurrent_images: usize,
    /// `decode_threads`: threads for decompression. Default: the number of processors.
    pub decode_threads: usize,
    /// `buffer_memory`: bound on image bytes held in memory, in bytes. Default: 512 MiB.
    pub buffer_memory: u64,
    /// `give_up_after`: how long a transient failure of one image is retried. Default: 5 hours.
    pub give_up_after: Duration,
    /// `location_patience`: how long a failing region or registry delays the announcement of the
    /// others. Default: 30 minutes.
    pub location_patience: Duration,
    /// `shutdown_grace`: how long work in hand may go on after a signal. Default: 25 seconds.
    pub shutdown_grace: Duration,
}

/// Whether signed checksums have to vouch for images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifySignatures {
    /// They are not looked for.
    Off,
    /// Where there are some, they have to be right.
    IfPresent,
    /// Nothing is published without.
    Require,
}

/// Where images are published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Amazon EC2.
    Aws(aws::Aws),
    /// Azure compute gallery.
    Azure(azure::Azure),
    /// Google Compute Engine.
    Gcp(gcp::Gcp),
    /// Container registries.
    Container(container::Container),
    /// A local directory.
    Local(local::Local),
}

/// The questions that every provider's section answers.
trait Section {
    /// The section's key in `consumer_config`.
    fn name(&self) -> &'static str;
    /// The key of the same name.
    fn publish_amqp_messages(&self) -> bool;
    /// Every place an image goes to, in the order of the file.
    fn locations(&self) -> Vec<String>;
    /// The rows that are published, and their names.
    fn rules(&self) -> Box<dyn Rules>;
    /// Everything that publishing needs from the environment, and that is missing there.
    fn check(&self, _env: &Environment, _file: &Path) -> Vec<Problem> {
        Vec::new()
    }
}

impl Config {
    /// Which file to load: the option, else the variable `FEDORA_MESSAGING_CONF`, else the
    /// default place.
    pub fn path(option: Option<&Path>, variable: Option<&OsStr>) -> PathBuf {
        let variable = variable.filter(|value| !value.is_empty());
        option
            .or(variable.map(Path::new))
            .unwrap_or(Path::new(DEFAULT_PATH))
            .to_owned()
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it; a file that cannot be read is one problem.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) => {
                let text = format!("cannot be read: {error}");
                Err(Problems::new(vec![Problem::outside(path, "", text)]))
            }
        }
    }

    /// Checks the text of a file; `path` is for messages.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Problems> {
        reader::read(path, text, |root| Self::read(root, path))
    }

    fn read(root: &Table<'_>, path: &Path) -> Option<Self> {
        // Names the Python code to run, which this program is instead.
        root.get("callback");
        let amqp = amqp::Amqp::read(root);
        let monitoring = root.optional("monitoring", None, |value| value.table(Monitoring::read));
        let logging = root.optional("log_config", Logging::default(), Logging::read);
        let consumer = root.required("consumer_config", |value| {
            value.table(|table| {
                let service = Service::read(table, path.parent().unwrap_or(path));
                let provider = Provider::read(table);
                Some((service?, provider?))
            })
        });
        let (service, provider) = consumer?;
        Some(Self {
            path: path.to_owned(),
            amqp: amqp?,
            monitoring: monitoring?,
            logging: logging?,
            service,
            provider,
        })
    }

    /// Looks at what running needs beside the file: certificates for the broker, and what the
    /// provider reads from the environment. Names variables, never their values.
    pub fn check_environment(&self, env: &Environment) -> Vec<Problem> {
        let mut problems = self.check_broker();
        problems.extend(self.check_provider(env));
        problems
    }

    /// The part of [`Config::check_environment`] that only a connection to the broker needs.
    pub fn check_broker(&self) -> Vec<Problem> {
        self.amqp.check_files(&self.path)
    }

    /// The part of [`Config::check_environment`] that only publishing needs.
    pub fn check_provider(&self, env: &Environment) -> Vec<Problem> {
        self.provider.section().check(env, &self.path)
    }
}

impl Monitoring {
    /// An empty table turns monitoring off, as in fedora-messaging.
    fn read(table: &Table<'_>) -> Option<Option<Self>> {
        if table.is_empty() {
            return Some(None);
        }
        let address = table.optional("address", String::new(), Value::string);
        let port = table.required("port", |value| value.integer(0..=i64::from(u16::MAX)));
        Some(Some(Self {
            address: address?,
            port: port?,
        }))
    }
}

impl Service {
    fn read(table: &Table<'_>, folder: &Path) -> Option<Self> {
        let url = |key, default: &str| match table.get(key) {
            Some(value) => value.url(),
            None => Url::parse(default).ok(),
        };
        let location = |key, default: &str| match table.get(key) {
            Some(value) => value.location(folder),
            None => Resource::remote(default).ok(),
        };
        let count = |key, default| table.optional(key, default, |value| value.integer(1..=i64::MAX));
        let duration = |key, default| table.optional(key, default, Value::duration);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);

        let datagrepper_url = url("datagrepper_url", "https://apps.fedoraproject.org/datagrepper");
        let bodhi_url = location("bodhi_url", "https://bodhi.fedoraproject.org");
        let release_metadata_url = location(
            "release_metadata_url",
            "https://fedorapeople.org/groups/qa/metadata/release.json",
        );
        let allowed_compose_hosts = table.optional("allowed_compose_hosts", Hosts::default(), |value| {
            value.some(Value::host).map(Hosts::only)
        });
        let modes = [
            ("off", VerifySignatures::Off),
            ("if-present", VerifySignatures::IfPresent),
            ("require", VerifySignatures::Require),
        ];
        let keyring = table.optional("keyring", None, |value| value.path().map(Some));
        let verify_signatures = table.optional("verify_signatures", VerifySignatures::Off, |value| {
            match value.one_of(&modes)? {
                VerifySignatures::Off => Some(VerifySignatures::Off),
                _ if keyring == Some(None) => value.refuse("needs a keyring with the keys of those who sign"),
                mode => Some(mode),
            }
        });
        let max_concurrent_images = count("max_concurrent_images", 4);
        let decode_threads = count("decode_threads", processors);
        let buffer_memory = table.optional("buffer_memory", 512 << 20, Value::size);
        let give_up_after = duration("give_up_after", 5 * HOUR);
        let location_patience = duration("location_patience", 30 * MINUTE);
        let shutdown_grace = duration("shutdown_grace", Duration::from_secs(25));
        Some(Self {
            datagrepper_url: datagrepper_url?,
            bodhi_url: bodhi_url?,
            release_metadata_url: release_metadata_url?,
            allowed_compose_hosts: allowed_compose_hosts?,
            verify_signatures: verify_signatures?,
            keyring: keyring?,
            max_concurrent_images: max_concurrent_images?,
            decode_threads: decode_threads?,
            buffer_memory: buffer_memory?,
            give_up_after: give_up_after?,
            location_patience: location_patience?,
            shutdown_grace: shutdown_grace?,
        })
    }
}

impl Provider {
    /// The answers that every section has.
    fn section(&self) -> &dyn Section {
        match self {
            Self::Aws(aws) => aws,
            Self::Azure(azure) => azure,
            Self::Gcp(gcp) => gcp,
            Self::Container(container) => container,
            Self::Local(local) => local,
        }
    }

    /// The name of the section: `aws`, `azure`, `gcp`, `container`, or `local`.
    pub fn name(&self) -> &'static str {
        self.section().name()
    }

    /// Whether notifications are sent.
    pub fn publish_amqp_messages(&self) -> bool {
        self.section().publish_amqp_messages()
    }

    /// Every place an image goes to, by the name that notifications and `--location` use.
    pub fn locations(&self) -> Vec<String> {
        self.section().locations()
    }

    /// The locations, and the rules by which images are selected for them.
    pub fn publisher(&self) -> Publisher {
        Publisher {
            locations: self.locations(),
            rules: self.section().rules(),
        }
    }

    /// Reads the one provider section. Each section that is there is read, so that its own
    /// problems are reported together with the surplus of sections.
    fn read(table: &Table<'_>) -> Option<Self> {
        let sections = [
            section(table, "aws", |t| aws::Aws::read(t).map(Self::Aws)),
            section(table, "azure", |t| azure::Azure::read(t).map(Self::Azure)),
            section(table, "gcp", |t| gcp::Gcp::read(t).map(Self::Gcp)),
            section(table, "container", |t| {
                container::Container::read(t).map(Self::Container)
            }),
            section(table, "local", |t| local::Local::read(t).map(Self::Local)),
        ];
        let mut found: Vec<_> = sections.into_iter().flatten().collect();
        found.sort_by_key(|(value, _)| value.line());
        match found.as_slice() {
            [] => {
                table.note("no provider; expected one section of aws, azure, gcp, container, local");
                None
            }
            [_] => found.pop()?.1,
            [.., (last, _)] => {
                let names = found.iter().map(|(value, _)| {
                    let name = value.key().rsplit('.').next().unwrap_or_default();
                    format!("{name} (line {})", value.line())
                });
                let names: Vec<_> = names.collect();
                last.refuse(format!("exactly one provider is possible, found {}", names.join(", ")))
            }
        }
    }
}

/// A section if it is there, with what could be read of it.
fn section<'a, T>(
    table: &Table<'a>,
    key: &'static str,
    read: impl FnOnce(&Table<'a>) -> Option<T>,
) -> Option<(Value<'a>, Option<T>)> {
    let value = table.get(key)?;
    let section = value.table(read);
    Some((value, section))
}
