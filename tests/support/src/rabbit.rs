//! RabbitMQ as the production broker is set up: client certificates name the users, who may declare nothing, read their
//! own queues, and send their own topics. Queues, bindings, and rights come from a definitions file at start.
//!
//! Each broker has two listeners on loopback: one with TLS that wants a client certificate, and a plain one for the tests'
//! own eyes and for daemons that log in with a password.

use std::{fs, os::unix::fs::chown, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    amqp::Admin,
    certs::{Authority, Identity},
    process::{NOBODY, Server, command, free_port, is_root, listens, tool},
};

/// The virtual host of all tests, named as in production.
pub const VHOST: &str = "/pubsub";
/// The daemon's user: configures nothing, reads and writes `amq.topic` and queues that start with its name, sends only its
/// own topics. Its password is [`PASSWORD`]; with TLS its certificate's name is enough.
pub const DAEMON: &str = "cloud-image-uploader";
/// The user of the program that announces composes.
pub const ANNOUNCER: &str = "pungi";
/// A user who may do anything.
pub const ADMIN: &str = "admin";
/// The password of all users.
pub const PASSWORD: &str = "test-password";
/// The routing key that production queues are bound with.
pub const COMPOSE_CHANGES: &str = "org.fedoraproject.*.pungi.compose.status.change";

const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// How a broker differs from the usual one.
#[derive(Clone, Debug)]
pub struct Options {
    /// Durable queues to exist from the start, bound to `amq.topic` with [`COMPOSE_CHANGES`].
    pub queues: Vec<String>,
    /// How long a delivery may stay unacknowledged. The broker's own default is 30 minutes. It looks once a second.
    pub consumer_timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        let queues = ["aws", "azure", "containers", "gcp"];
        Self {
            queues: queues.map(|name| format!("{DAEMON}-{name}")).to_vec(),
            consumer_timeout: None,
        }
    }
}

/// A broker with its own data, certificates, and ports.
pub struct Rabbit {
    // Fields drop in order: the broker, its name server, then the data.
    broker: Option<Server>,
    _epmd: Server,
    /// Signed the broker's certificate; signs those of clients.
    pub authority: Authority,
    /// The port without TLS.
    pub plain_port: u16,
    /// The port with TLS, which wants a client certificate.
    pub tls_port: u16,
    dist_port: u16,
    epmd_port: u16,
    starts: u32,
    folder: TempDir,
}

impl Rabbit {
    /// Starts a broker and waits until it takes connections (about four seconds).
    pub async fn start(options: Options) -> Result<Self> {
        // Read by another user, so neither in the source tree, which may be root's, nor private.
        let folder = tempfile::Builder::new().prefix("rabbit-").tempdir()?;
        let authority = Authority::new()?;
        let (plain_port, tls_port) = (free_port()?, free_port()?);
        let (dist_port, epmd_port) = (free_port()?, free_port()?);
        configure(folder.path(), &authority, &options, plain_port, tls_port)?;

        let mut epmd = command(tool("epmd")?, folder.path());
        epmd.args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()]);
        let mut epmd = Server::start_unprivileged("epmd", &epmd, &folder.path().join("epmd.log"))?;
        // A broker that finds none starts one of its own, which would outlive the test.
        epmd.wait_ready(async || listens(epmd_port).await).await?;
        let mut rabbit = Self {
            broker: None,
            _epmd: epmd,
            authority,
            plain_port,
            tls_port,
            dist_port,
            epmd_port,
            starts: 0,
            folder,
        };
        rabbit.start_again().await?;
        Ok(rabbit)
    }

    /// Starts the broker on the data that a stopped one left.
    pub async fn start_again(&mut self) -> Result<()> {
        let folder = self.folder.path();
        let mut broker = command(SERVER, folder);
        broker
            .current_dir(folder)
            .env("RABBITMQ_NODENAME", "test@localhost")
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", folder.join("mnesia"))
            .env("RABBITMQ_LOG_BASE", folder)
            .env("RABBITMQ_PID_FILE", folder.join("pid"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.join("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("enabled_plugins"))
            // Busy waiting would take the processors from the programs under test.
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+sbwt none")
            // Makes the start script become the broker, so that one process id stands for it.
            .env("RUNNING_UNDER_SYSTEMD", "1");
        anyhow::ensure!(
            Path::new(SERVER).exists(),
            "rabbitmq-server is not installed: run tests/setup"
        );
        self.starts += 1;
        let log = folder.join(format!("broker-{}.log", self.starts));
        let mut broker = Server::start_unprivileged("rabbitmq-server", &broker, &log)?;
        broker
            .wait_ready(async || {
                fs::read_to_string(&log).is_ok_and(|log| log.contains("Server startup complete"))
                    && listens(self.plain_port).await
            })
            .await?;
        self.broker = Some(broker);
        Ok(())
    }

    /// Stops the broker in order; its data stay for [`Rabbit::start_again`].
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut broker) = self.broker.take() {
            broker.stop().await?;
        }
        Ok(())
    }

    /// Ends the broker as a crash would; what it wrote to disk stays for [`Rabbit::start_again`].
    pub fn kill(&mut self) {
        // Dropped, it is killed.
        self.broker = None;
    }

    /// Whether the daemon's user may read its queues, from the next start on.
    pub fn let_read(&self, yes: bool) -> Result<()> {
        let pattern = if yes { own() } else { "^amq\\.topic$".to_owned() };
        let file = self.folder.path().join("definitions.json");
        let mut definitions: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let permissions = definitions["permissions"].as_array_mut().into_iter().flatten();
        for permission in permissions.filter(|permission| permission["user"] == DAEMON) {
            permission["read"] = json!(pattern);
        }
        fs::write(&file, definitions.to_string())?;
        Ok(())
    }

    /// Gives the broker another certificate, from the next start on.
    pub fn identify_as(&self, identity: &Identity) -> Result<()> {
        identity.write(self.folder.path(), "server").map(drop)
    }

    /// The broker's log since its last start.
    pub fn log(&self) -> String {
        self.broker.as_ref().map(Server::log).unwrap_or_default()
    }

    /// The URL without TLS for a user.
    pub fn plain_url(&self, user: &str) -> String {
        url("amqp", user, self.plain_port)
    }

    /// The URL with TLS. The user is named by the certificate; the one in the URL is decoration, as in production.
    pub fn tls_url(&self, user: &str) -> String {
        format!("amqps://{user}:@localhost:{}/%2Fpubsub", self.tls_port)
    }

    /// Writes `ca.crt`, `<user>.crt`, and `<user>.key` for a client into `folder`, and returns the `[tls]` table of a
    /// fedora-messaging configuration that names them.
    pub fn tls_table(&self, user: &str, folder: &Path) -> Result<String> {
        let ca = self.authority.write(folder)?;
        let (cert, key) = self.authority.client(user)?.write(folder, user)?;
        Ok(format!(
            "[tls]\nca_cert = {ca:?}\ncertfile = {cert:?}\nkeyfile = {key:?}\n"
        ))
    }

    /// A connection of the administrator.
    pub async fn admin(&self) -> Result<Admin> {
        Admin::connect(&self.plain_url(ADMIN)).await
    }
}

/// The part of a configuration that consumes compose messages from a queue as in production.
pub fn consuming(queue: &str) -> String {
    format!(
        r#"
[queues."{queue}"]
durable = true
auto_delete = false
exclusive = false
arguments = {{}}
[[bindings]]
queue = "{queue}"
exchange = "amq.topic"
routing_keys = ["org.fedoraproject.*.pungi.compose.status.change"]
"#
    )
}

/// A URL for one of this file's users at any port of loopback, such as that of a proxy.
pub fn url(scheme: &str, user: &str, port: u16) -> String {
    format!("{scheme}://{user}:{PASSWORD}@localhost:{port}/%2Fpubsub")
}

/// Writes everything the broker reads at start, and hands the folder to the user it runs as.
fn configure(folder: &Path, authority: &Authority, options: &Options, plain_port: u16, tls_port: u16) -> Result<()> {
    let ca = authority.write(folder)?;
    let (cert, key) = authority.server()?.write(folder, "server")?;
    let definitions = folder.join("definitions.json");
    fs::write(&definitions, definitions_for(&options.queues).to_string())?;
    let mut conf = format!(
        "listeners.tcp.1 = 127.0.0.1:{plain_port}\n\
         listeners.ssl.1 = 127.0.0.1:{tls_port}\n\
         ssl_options.cacertfile = {ca}\n\
         ssl_options.certfile = {cert}\n\
         ssl_options.keyfile = {key}\n\
         ssl_options.verify = verify_peer\n\
         ssl_options.fail_if_no_peer_cert = true\n\
         ssl_cert_login_from = common_name\n\
         auth_mechanisms.1 = EXTERNAL\n\
         auth_mechanisms.2 = PLAIN\n\
         load_definitions = {definitions}\n\
         log.console = true\n\
         log.file = false\n",
        ca = ca.display(),
        cert = cert.display(),
        key = key.display(),
        definitions = definitions.display(),
    );
    if let Some(limit) = options.consumer_timeout {
        conf += &format!("consumer_timeout = {}\n", limit.as_millis());
    }
    fs::write(folder.join("rabbitmq.conf"), conf)?;
    // The tick is when the consumer time-out is looked at; every minute by default.
    fs::write(
        folder.join("advanced.config"),
        "[{kernel,[{inet_dist_use_interface,{127,0,0,1}}]},{rabbit,[{channel_tick_interval,1000}]}].\n",
    )?;
    fs::write(folder.join("enabled_plugins"), "[rabbitmq_auth_mechanism_ssl].\n")?;
    if is_root()? {
        let all = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
        for path in all.chain([Ok(folder.to_owned())]) {
            chown(path?, Some(NOBODY), Some(NOBODY)).context("hand the broker its folder")?;
        }
    }
    Ok(())
}

/// The names that belong to the daemon's user, as a pattern.
fn own() -> String {
    format!("^(amq\\.topic|{DAEMON}.*)$")
}

fn definitions_for(queues: &[String]) -> Value {
    let own = own();
    let user = |name: &str, tags: &[&str]| json!({"name": name, "password": PASSWORD, "tags": tags});
    let permission = |user: &str, configure: &str, write: &str, read: &str| json!({"user": user, "vhost": VHOST, "configure": configure, "write": write, "read": read});
    json!({
        "vhosts": [{"name": VHOST}],
        "users": [user(ADMIN, &["administrator"]), user(DAEMON, &[]), user(ANNOUNCER, &[])],
        "permissions": [
            permission(ADMIN, ".*", ".*", ".*"),
            permission(DAEMON, "^$", &own, &own),
            permission(ANNOUNCER, "^$", "^amq\\.topic$", "^$"),
        ],
        "topic_permissions": [{
            "user": DAEMON, "vhost": VHOST, "exchange": "amq.topic", "read": ".*",
            "write": "^org\\.fedoraproject\\.(prod|stg)\\.fedora_image_uploader\\..*",
        }],
        "queues": queues.iter().map(|name| json!({
            "name": name, "vhost": VHOST, "durable": true, "auto_delete": false, "arguments": {},
        })).collect::<Vec<_>>(),
        "bindings": queues.iter().map(|name| json!({
            "source": "amq.topic", "vhost": VHOST, "destination": name, "destination_type": "queue",
            "routing_key": COMPOSE_CHANGES, "arguments": {},
        })).collect::<Vec<_>>(),
    })
}
