//! Child processes: the servers that tests talk to, and the short commands that tests run.
//!
//! Every child gets a clean environment. A variable that names trust roots, proxies, or credentials of this machine would
//! change what is tested.

use std::{
    ffi::OsStr,
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use uuid::Uuid;

/// How long a server may take to start. RabbitMQ needs four seconds alone and three times that beside a compiler.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a server may take to end by itself before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// How often a state is looked at while something waits for it.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// A server that runs until this value is dropped, also when a test panics. When the test program is killed, the kernel
/// ends the server.
pub struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `command` and appends its output to the file `log`.
    pub fn start(name: &str, command: &Command, log: &Path) -> Result<Self> {
        Self::start_bound(name, die_with_us(command, false)?, log)
    }

    /// The same as an ordinary user. When the tests run as root that is `nobody`, who must be able to read and write what
    /// the server needs.
    pub fn start_unprivileged(name: &str, command: &Command, log: &Path) -> Result<Self> {
        Self::start_bound(name, die_with_us(command, is_root()?)?, log)
    }

    fn start_bound(name: &str, mut bound: Command, log: &Path) -> Result<Self> {
        let output = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open the log {}", log.display()))?;
        bound.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawn(bound).with_context(|| format!("start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Waits until `ready` says yes. Fails, with the end of the log, when the server ends first or takes too long.
    pub async fn wait_ready(&mut self, mut ready: impl AsyncFnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if ready().await {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("{} is not ready:\n{}", self.name, self.log_tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The output of the server so far.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The server's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks the server to end (SIGTERM) and waits for it; one that does not end is killed, and that is an error.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        signal(self.child.id(), "TERM")?;
        let deadline = Instant::now() + STOP_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.kill();
                bail!("{} did not stop:\n{}", self.name, self.log_tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends the server at once (SIGKILL).
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port of the loopback interface that nothing listens on at the moment. It is drawn from below the range that the kernel
/// uses for outgoing connections: between now and the start of the server, one of those would easily take it.
pub fn free_port() -> Result<u16> {
    for _ in 0..100 {
        let port = 10_240 + (Uuid::new_v4().as_u128() % 22_000) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on loopback");
}

/// Whether something accepts connections on this port of the loopback interface.
pub async fn listens(port: u16) -> bool {
    tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .is_ok()
}

/// The path of an installed program. A missing one fails the test: nothing is skipped.
pub fn tool(name: &str) -> Result<PathBuf> {
    search_path()
        .split(':')
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| anyhow!("{name} is not installed: run tests/setup"))
}

/// The folder with what `tests/setup` installed: `CIU_TEST_ENV`, else `target/test-env`.
pub fn test_env() -> PathBuf {
    std::env::var_os("CIU_TEST_ENV").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-env"),
        PathBuf::from,
    )
}

/// A command with a clean environment: PATH, LANG, and a HOME of its own.
pub fn command(program: impl AsRef<OsStr>, home: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", search_path())
        .env("LANG", "C.UTF-8")
        .env("HOME", home);
    command
}

/// Runs a short command to its end and returns its standard output; a failure carries what it wrote.
pub async fn run(command: Command) -> Result<Vec<u8>> {
    let shown = format!("{command:?}");
    let output = tokio::process::Command::from(command)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("run {shown}"))?;
    if !output.status.success() {
        bail!(
            "{shown} ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

/// Sends a signal by name, such as `TERM`.
pub fn signal(id: u32, name: &str) -> Result<()> {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(id.to_string())
        .status()?;
    if !status.success() {
        bail!("signal {name} did not reach process {id}");
    }
    Ok(())
}

/// The user and group `nobody` of Linux.
pub(crate) const NOBODY: u32 = 65534;

/// Whether the tests run as root.
pub(crate) fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

/// The same command under `setpriv`, which has the kernel kill it when the thread that started it ends. A change of user
/// forgets that wish, so one `setpriv` does both, in the right order.
pub(crate) fn die_with_us(command: &Command, as_nobody: bool) -> Result<Command> {
    let mut bound = Command::new(tool("setpriv")?);
    bound.args(["--pdeathsig", "KILL"]);
    if as_nobody {
        bound
            .arg(format!("--reuid={NOBODY}"))
            .arg(format!("--regid={NOBODY}"))
            .arg("--clear-groups");
    }
    if let Some(folder) = command.get_current_dir() {
        bound.current_dir(folder);
    }
    bound.env_clear();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            bound.env(name, value);
        }
    }
    bound.arg(command.get_program()).args(command.get_args());
    Ok(bound)
}

/// Starts a process from a thread that lives as long as this program. The kernel counts the end of the *thread* that
/// started a child as the parent's death, and test threads and pools come and go.
pub(crate) fn spawn(command: Command) -> Result<Child> {
    type Request = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in requests {
                // The asker waits for the answer.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = mpsc::channel();
    spawner
        .send((command, answer))
        .map_err(|_| anyhow!("the spawning thread has ended"))?;
    Ok(child.recv()??)
}

/// PATH, and where Debian keeps what only root is thought to need.
fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}
