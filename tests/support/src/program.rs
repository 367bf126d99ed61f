//! The program under test, run as its own process in a clean environment.
//!
//! In every test, the output of the program is searched for every secret the program was given; a secret in the output
//! fails the test.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{POLL, command, die_with_us, signal, spawn};
use crate::{rabbit, registry};

/// How the names of variables end whose values must stay secret.
const SECRETS: [&str; 4] = ["PASSWORD", "SECRET", "TOKEN", "KEY"];
/// How the names of variables end that name a file with a secret in it.
const SECRET_FILES: [&str; 2] = ["TOKEN_FILE", "CREDENTIALS"];
/// Shorter ones would be found by chance.
const SHORTEST_SECRET: usize = 8;

/// How the program is to be started. The environment holds PATH, LANG, HOME, and what is added here.
pub struct Program {
    command: Command,
    secrets: Vec<String>,
    folder: TempDir,
}

/// A program that runs. It is killed when this value is dropped.
pub struct Running {
    child: Child,
    secrets: Vec<String>,
    folder: TempDir,
    peak_memory: u64,
}

/// How a program ended.
#[derive(Debug)]
pub struct Exit {
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// All of standard output.
    pub stdout: String,
    /// All of standard error.
    pub stderr: String,
    /// The most memory seen resident, in bytes. It is looked at every few milliseconds while the end is waited for, so a
    /// peak in the last moment may be missed.
    pub peak_memory: u64,
}

impl Program {
    /// A program by its path, such as `env!("CARGO_BIN_EXE_cloud-image-uploader")`.
    pub fn new(path: impl AsRef<OsStr>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self {
            command: command(path, folder.path()),
            secrets: [rabbit::PASSWORD, registry::PASSWORD].map(str::to_owned).to_vec(),
            folder,
        })
    }

    /// Writes `text` to a file and passes it with `--conf`. Call it before the command's own arguments.
    pub fn config(self, text: &str) -> Result<Self> {
        let file = self.folder.path().join("config.toml");
        fs::write(&file, text)?;
        Ok(self.arg("--conf").arg(file))
    }

    /// One argument.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.command.arg(argument.into());
        self
    }

    /// Several arguments.
    pub fn args<T: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.command.args(arguments);
        self
    }

    /// One environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.secrets.extend(secrets(name, value.as_ref()));
        self.command.env(name, value);
        self
    }

    /// A folder of the program's own, gone when it has ended and its value is dropped.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it.
    pub fn start(self) -> Result<Running> {
        let output = |name: &str| fs::File::create(self.folder.path().join(name));
        let mut command = die_with_us(&self.command, false)?;
        command
            .stdin(Stdio::null())
            .stdout(output("stdout")?)
            .stderr(output("stderr")?);
        let child = spawn(command).with_context(|| format!("start {:?}", self.command))?;
        Ok(Running {
            child,
            secrets: self.secrets,
            folder: self.folder,
            peak_memory: 0,
        })
    }

    /// Runs it to its end, which must come within `limit`.
    pub async fn run(self, limit: Duration) -> Result<Exit> {
        self.start()?.wait(limit).await
    }
}

impl Running {
    /// The program's standard output so far.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// The program's standard error so far.
    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A folder of the program's own, also its HOME.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The most memory it ever had resident so far, in bytes (`VmHWM`).
    pub fn peak_memory(&mut self) -> u64 {
        let status = PathBuf::from(format!("/proc/{}/status", self.child.id()));
        // Gone, or a zombie: what was seen last stays.
        let kibibytes = fs::read_to_string(status).ok().and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        });
        if let Some(kibibytes) = kibibytes {
            self.peak_memory = self.peak_memory.max(kibibytes * 1024);
        }
        self.peak_memory
    }

    /// Waits until standard error, where logs go, holds `text`. Fails at once when the program ends without it.
    pub async fn wait_for_log(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            // Asked before the log is read: what a program wrote last is there when it has ended.
            let ended = self.child.try_wait()?;
            let log = self.stderr();
            if log.contains(text) {
                return Ok(());
            }
            if let Some(status) = ended {
                bail!("the program ended with {status} before {text:?}:\n{log}");
            }
            if Instant::now() > deadline {
                bail!("no {text:?} within {limit:?}:\n{log}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends SIGTERM and returns at once.
    pub fn terminate(&self) -> Result<()> {
        signal(self.child.id(), "TERM")
    }

    /// Ends it with SIGKILL, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for the end. A program that does not end in time is killed, and that is an error.
    pub async fn wait(mut self, limit: Duration) -> Result<Exit> {
        let deadline = Instant::now() + limit;
        loop {
            self.peak_memory();
            if let Some(status) = self.child.try_wait()? {
                return Ok(Exit {
                    code: status.code(),
                    stdout: self.stdout(),
                    stderr: self.stderr(),
                    peak_memory: self.peak_memory,
                });
            }
            if Instant::now() > deadline {
                bail!("still running after {limit:?}:\n{}", self.stderr());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn read(&self, name: &str) -> String {
        fs::read(self.folder.path().join(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A second panic would end the test program.
        if !std::thread::panicking() {
            for output in [self.stdout(), self.stderr()] {
                let told = self.secrets.iter().find(|secret| output.contains(*secret));
                assert!(told.is_none(), "the secret {told:?} is in the output:\n{output}");
            }
        }
    }
}

/// The secret parts of a variable, or of the file that it names.
fn secrets(name: &str, value: &OsStr) -> Vec<String> {
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    let text = if ends(&SECRET_FILES) {
        fs::read_to_string(value).unwrap_or_default()
    } else if ends(&SECRETS) {
        value.to_string_lossy().into_owned()
    } else {
        return Vec::new();
    };
    let key = serde_json::from_str(&text)
        .ok()
        .and_then(|document: Value| Some(document["private_key"].as_str()?.to_owned()));
    // A key is known by each of its lines; the first and last one say only that it is one.
    key.unwrap_or(text)
        .lines()
        .filter(|line| line.len() >= SHORTEST_SECRET && !line.starts_with("-----"))
        .map(str::to_owned)
        .collect()
}
