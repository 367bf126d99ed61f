//! A Google Cloud of a test's own: Compute Engine's images, a token endpoint, and a bucket in a real emulator.
//!
//! Images, families, and operations are kept as [the reference](https://cloud.google.com/compute/docs/reference/rest/v1/images)
//! says, and forbidden calls are refused. An import reads the object from the bucket and its content. The fake does *not*
//! check roles beyond a set of permissions, quotas, and whether a disk boots. [`Cloud::validate_calls`] holds every call
//! against Google's own description of its services.

mod answers;
mod auth;
mod compute;
mod faults;
mod find;
mod images;
mod rules;
mod storage;
pub mod tarball;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use axum::{Router, response::Response};
use serde_json::Value;
use tempfile::TempDir;

pub use self::faults::{Answer, Call, Fault};
pub use self::storage::Emulator;
pub use self::tarball::check as check_tarball;

use self::auth::Accounts;
use self::faults::Record;
use self::images::Project;
use crate::{
    http_server::HttpServer,
    process::{POLL, Server, command, free_port, run, test_env},
};

/// The one project there is.
pub const PROJECT: &str = "test-project";
/// The one bucket there is.
pub const BUCKET: &str = "test-bucket";
/// The longest wait for a call.
const CALL_LIMIT: Duration = Duration::from_secs(60);
const VALIDATE: &str = include_str!("gcp/validate.py");
const DESCRIBE: &str = include_str!("gcp/describe.py");

/// A running cloud.
pub struct Cloud {
    compute: HttpServer,
    front: HttpServer,
    shared: Arc<Shared>,
    folder: TempDir,
    _emulator: Server,
}

struct Shared {
    /// Where the storage emulator is.
    emulator: String,
    http: reqwest::Client,
    accounts: Mutex<Accounts>,
    project: Mutex<Project>,
    record: Mutex<Record>,
    lacking: Mutex<HashSet<String>>,
    /// Objects that must not be there when an upload ends, by its id.
    sessions: Mutex<HashMap<String, String>>,
}

impl Cloud {
    /// With its bucket in fake-gcs-server.
    pub async fn start() -> Result<Self> {
        Self::with(Emulator::FakeGcsServer).await
    }

    /// With its bucket in this emulator.
    pub async fn with(emulator: Emulator) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = free_port()?;
        let shared = Arc::new(Shared {
            emulator: format!("http://127.0.0.1:{port}"),
            http: reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .build()?,
            accounts: Mutex::new(Accounts::new()?),
            project: Mutex::default(),
            record: Mutex::default(),
            lacking: Mutex::default(),
            sessions: Mutex::default(),
        });
        let front = Router::new().fallback(storage::front).with_state(shared.clone());
        let front = HttpServer::start(front).await?;
        let compute = Router::new().fallback(compute::serve).with_state(shared.clone());
        let compute = HttpServer::start(compute).await?;
        let server = storage::start(emulator, port, &front.url(), folder.path()).await?;
        shared.make_bucket(BUCKET).await?;
        Ok(Self {
            compute,
            front,
            shared,
            folder,
            _emulator: server,
        })
    }

    /// Where Compute Engine listens.
    pub fn compute_url(&self) -> String {
        self.compute.url()
    }

    /// Where the bucket is.
    pub fn storage_url(&self) -> String {
        self.front.url()
    }

    /// The key file of the service account.
    pub fn service_account(&self) -> Result<PathBuf> {
        lock(&self.shared.accounts).write_key(self.folder.path(), &self.compute_url())
    }

    /// The key file of an account that this cloud does not know.
    pub fn stranger(&self) -> Result<PathBuf> {
        let folder = self.folder.path().join("stranger");
        fs::create_dir_all(&folder)?;
        Accounts::new()?.write_key(&folder, &self.compute_url())
    }

    /// The configuration file of a workload identity.
    pub fn workload_identity(&self) -> Result<PathBuf> {
        Accounts::write_workload(self.folder.path(), &self.compute_url())
    }

    /// How long operations take from now on.
    pub fn set_delay(&self, delay: Duration) {
        lock(&self.shared.project).delay = delay;
    }

    /// How many images a page of a list has at most.
    pub fn set_page(&self, images: usize) {
        lock(&self.shared.project).page = Some(images);
    }

    /// Whether lists say that they are not complete.
    pub fn set_partial(&self, partial: bool) {
        lock(&self.shared.project).partial = partial;
    }

    /// Takes a permission away, as far as asking for permissions goes.
    pub fn take_permission(&self, permission: &str) {
        lock(&self.shared.lacking).insert(permission.to_owned());
    }

    /// Applies a fault to the next `times` calls of this name. Several faults of one name take turns in the order given.
    pub fn fault(&self, call: &str, fault: Fault, times: usize) {
        lock(&self.shared.record).faults.push((call.to_owned(), fault, times));
    }

    /// Drops the faults that were not met.
    pub fn mend(&self) {
        lock(&self.shared.record).faults.clear();
    }

    /// Reports whether every fault has been met. A test that expects a fault to be survived checks that it happened.
    pub fn faults_met(&self) -> bool {
        lock(&self.shared.record).faults.is_empty()
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.shared.record).calls.clone()
    }

    /// The calls that changed, or tried to change, anything.
    pub fn writes(&self) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(Call::changes);
        calls
    }

    /// How many calls of this name there were.
    pub fn count(&self, name: &str) -> usize {
        self.calls().iter().filter(|call| call.name == name).count()
    }

    /// Waits until a call of this name has been carried out, `times` times since the start.
    pub async fn wait_for_call(&self, name: &str, times: usize) -> Result<()> {
        let deadline = Instant::now() + CALL_LIMIT;
        let done = || {
            lock(&self.shared.record)
                .done
                .iter()
                .filter(|done| *done == name)
                .count()
        };
        while done() < times {
            if Instant::now() > deadline {
                let names: Vec<_> = self.calls().into_iter().map(|call| call.name).collect();
                bail!("no {name} within {CALL_LIMIT:?}, but {names:?}");
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// All images as resources, by name.
    pub fn images(&self) -> BTreeMap<String, Value> {
        let mut project = lock(&self.shared.project);
        project.settle();
        project.images.clone()
    }

    /// SHA-256 of the bytes that an image was made of, in hex.
    pub fn content(&self, image: &str) -> Option<String> {
        lock(&self.shared.project).contents.get(image).cloned()
    }

    /// Adds an image as if it had been created earlier.
    pub fn put_image(&self, name: &str, fields: Value) {
        lock(&self.shared.project).put(name, &fields);
    }

    /// Changes every image's resource directly, as time does.
    pub fn change_images(&self, change: impl FnMut(&mut Value)) {
        let mut project = lock(&self.shared.project);
        project.settle();
        project.images.values_mut().for_each(change);
    }

    /// The name of a family's head.
    pub fn head(&self, family: &str) -> Option<String> {
        let mut project = lock(&self.shared.project);
        project.settle();
        let image = project.head_of(family).ok()?;
        image["name"].as_str().map(str::to_owned)
    }

    /// All heads of a family in order; `None` stands for a time without a head.
    pub fn heads(&self, family: &str) -> Vec<Option<String>> {
        let mut project = lock(&self.shared.project);
        project.settle();
        project.heads.get(family).cloned().unwrap_or_default()
    }

    /// The objects in the bucket, by name.
    pub async fn objects(&self) -> Result<Vec<String>> {
        let objects = self.shared.objects(BUCKET).await?;
        Ok(objects
            .iter()
            .filter_map(|object| object["name"].as_str().map(str::to_owned))
            .collect())
    }

    /// Adds an object as if it had been uploaded earlier.
    pub async fn put_object(&self, name: &str, bytes: Vec<u8>, metadata: &[(&str, &str)]) -> Result<()> {
        let metadata = metadata
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        self.shared.write_object(BUCKET, name, bytes, &metadata.collect()).await
    }

    /// Compares every call so far with Google's own description of its services.
    pub async fn validate_calls(&self) -> Result<()> {
        let calls = self.folder.path().join("calls.json");
        fs::write(&calls, serde_json::to_vec(&self.calls())?)?;
        self.python("validate.py", VALIDATE, &[&calls.display().to_string()])
            .await?;
        Ok(())
    }

    /// All images as Google's own client for Python reads them, by name; and the heads of families below `families`.
    pub async fn describe(&self, families: &[&str]) -> Result<Value> {
        let host = self.compute_url();
        let mut arguments = vec![host.trim_start_matches("http://"), PROJECT];
        arguments.extend(families);
        let answer = self.python("describe.py", DESCRIBE, &arguments).await?;
        serde_json::from_slice(&answer).context("parse the answer of describe.py")
    }

    /// Runs a script of Google's own clients as the service account.
    pub async fn python(&self, name: &str, script: &str, arguments: &[&str]) -> Result<Vec<u8>> {
        let file = self.folder.path().join(name);
        fs::write(&file, script)?;
        let mut python = command(test_env().join("venv/bin/python3"), self.folder.path());
        python.env("GOOGLE_APPLICATION_CREDENTIALS", self.service_account()?);
        python.arg(file).args(arguments);
        run(python).await
    }

    /// A folder for a test's own files, gone with the cloud.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Shared {
    /// Notes a call; its fault, if it has one.
    fn begin(&self, name: &str, target: &str, query: Vec<(String, String)>, body: Option<Value>) -> Option<Fault> {
        let mut record = lock(&self.record);
        record.calls.push(Call {
            name: name.to_owned(),
            target: target.to_owned(),
            query,
            body,
        });
        record.take(name)
    }

    /// Notes that a call was carried out, and answers it, or does not.
    async fn end(&self, name: &str, fault: &Option<Fault>, response: Response) -> Response {
        lock(&self.record).done.push(name.to_owned());
        answers::afterwards(fault, response).await
    }

    fn admit(&self, authorization: Option<&str>) -> Result<()> {
        lock(&self.accounts).admit(authorization)
    }

    /// The permissions among those asked for that the account has.
    fn granted<'a>(&self, asked: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        let lacking = lock(&self.lacking);
        asked.filter(|permission| !lacking.contains(*permission)).collect()
    }
}

/// A test that panicked with the lock held has failed already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
