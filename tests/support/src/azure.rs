//! A stateful stand-in for Azure Resource Manager and its token endpoint: galleries, image definitions, and versions.
//!
//! It is as strict as Azure about the api-version, the names of properties, fixed properties, one operation at a time, names
//! that stay taken for a while after a delete, and source blobs, without which a version's regions cannot change. An import
//! reads the blob from a real [`Azurite`] and checks it. Operations and replication take time, and fail on demand. It does not check quotas, roles, and billing, and knows no
//! gallery applications.

mod azurite;
mod disk;
mod faults;
mod gallery;
mod regions;
mod reply;
mod rules;
mod sdk;
mod serve;
mod tokens;
mod version;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use axum::{Router, body::Body, response::Response};
use serde_json::{Value, json};

pub use azurite::{ACCOUNT, Azurite};
pub use disk::{seal, vhd};
pub use faults::{Call, Fault};
pub use rules::check_end;
pub use sdk::Sdk;
pub use tokens::{CLIENT_ID, SECRET, TENANT};

use crate::{http_server::HttpServer, process::POLL};

/// The subscription that exists.
pub const SUBSCRIPTION: &str = "7d2c1c7e-0c1b-4d5e-9f0a-2b6c8d4e1f30";
/// Its only resource group.
pub const GROUP: &str = "fedora-cloud";
/// The version of the API that the rules here are those of.
pub const API_VERSION: &str = "2023-07-03";

/// A page of a list: small, so that every list has several.
const PAGE: usize = 3;

/// A running stand-in.
pub struct Azure {
    server: HttpServer,
    shared: Arc<Shared>,
}

/// Which headers lead to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `Azure-AsyncOperation`: a document with a status.
    AsyncOperation,
    /// `Location`: 202 until it has ended.
    Location,
    /// Both.
    Both,
    /// None: only the resource itself tells.
    None,
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From a blob to the first replica.
    pub import: Duration,
    /// Between one region's replica and the next one's.
    pub region: Duration,
    /// To create a gallery or a definition, and to delete a resource.
    pub other: Duration,
    /// How long a deleted name cannot be used again.
    pub forgetting: Duration,
}

struct Shared {
    state: Mutex<Fake>,
    /// Where imports read from.
    blobs: Option<azurite::Reader>,
}

struct Fake {
    base: String,
    times: Times,
    form: Form,
    calls: Vec<Call>,
    faults: Vec<faults::Planned>,
    tokens: tokens::Tokens,
    galleries: BTreeMap<String, gallery::Resource>,
    definitions: BTreeMap<String, gallery::Resource>,
    versions: BTreeMap<String, version::Version>,
    operations: HashMap<String, String>,
    forgotten: HashMap<String, Instant>,
    endings: BTreeMap<String, (version::Ending, usize)>,
    failing_imports: Option<(&'static str, usize)>,
    imports: BTreeMap<String, Vec<u8>>,
    permissions: Option<Value>,
}

impl Azure {
    /// Starts it. Imports read blobs from `azurite`; without one they read nothing, and have ended when they begin.
    pub async fn start(azurite: Option<&Azurite>) -> Result<Self> {
        let short = Duration::from_millis(50);
        let fake = Fake {
            base: String::new(),
            times: Times {
                import: short,
                region: Duration::from_millis(5),
                other: Duration::from_millis(20),
                forgetting: Duration::from_millis(300),
            },
            form: Form::AsyncOperation,
            calls: Vec::new(),
            faults: Vec::new(),
            tokens: tokens::Tokens::default(),
            galleries: BTreeMap::new(),
            definitions: BTreeMap::new(),
            versions: BTreeMap::new(),
            operations: HashMap::new(),
            forgotten: HashMap::new(),
            endings: BTreeMap::new(),
            failing_imports: None,
            imports: BTreeMap::new(),
            permissions: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(fake),
            blobs: azurite.map(Azurite::reader),
        });
        let router = Router::new().fallback(serve::serve).with_state(shared.clone());
        let server = HttpServer::start(router).await?;
        shared.lock().base = server.url();
        Ok(Self { server, shared })
    }

    /// `resource_manager_endpoint` and `authority_host`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Clients reach it by another address, to which all its links must lead.
    pub fn reached_at(&self, url: &str) {
        self.shared.lock().base = url.to_owned();
    }

    /// The variables that a program needs to authenticate.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("AZURE_SUBSCRIPTION_ID", SUBSCRIPTION.into()),
            ("AZURE_CLIENT_ID", CLIENT_ID.into()),
            ("AZURE_TENANT", TENANT.into()),
            ("AZURE_SECRET", SECRET.into()),
        ]
    }

    /// Changes how long things take.
    pub fn set_times(&self, change: impl FnOnce(&mut Times)) {
        change(&mut self.shared.lock().times);
    }

    /// Changes which headers lead to operations.
    pub fn set_form(&self, form: Form) {
        self.shared.lock().form = form;
    }

    /// Applies a fault to the next `times` calls of this name: `PUT version`, `GET operation`, `LIST versions`, `POST token`, …
    pub fn fault(&self, call: &str, fault: Fault, times: usize) {
        let planned = faults::Planned::new(call, fault, 0, times);
        self.shared.lock().faults.push(planned);
    }

    /// Applies a fault to all calls of this name but the next `before`.
    pub fn fault_after(&self, before: usize, call: &str, fault: Fault) {
        let planned = faults::Planned::new(call, fault, before, usize::MAX);
        self.shared.lock().faults.push(planned);
    }

    /// Removes all faults.
    pub fn mend(&self) {
        let mut fake = self.shared.lock();
        fake.faults.clear();
        fake.endings.clear();
        fake.failing_imports = None;
    }

    /// Lets replication to this region fail the next `times` times.
    pub fn fail_region(&self, region: &str, times: usize) {
        self.end_region(region, version::Ending::Failed, times);
    }

    /// Lets the next `times` replications to this region end without a status.
    pub fn hush_region(&self, region: &str, times: usize) {
        self.end_region(region, version::Ending::Unsaid, times);
    }

    /// Lets no replication to this region end any more.
    pub fn stall_region(&self, region: &str) {
        self.end_region(region, version::Ending::Never, usize::MAX);
    }

    fn end_region(&self, region: &str, ending: version::Ending, times: usize) {
        let region = regions::canonical(region);
        self.shared.lock().endings.insert(region, (ending, times));
    }

    /// Lets the next `times` imports end with this code.
    pub fn fail_imports(&self, code: &'static str, times: usize) {
        self.shared.lock().failing_imports = Some((code, times));
    }

    /// Accepts this federated assertion instead of the secret.
    pub fn accept_assertion(&self, assertion: &str) {
        self.shared.lock().tokens.accept_assertion(assertion);
    }

    /// Refuses every token that was given out so far, as if its time were over.
    pub fn expire_tokens(&self) {
        self.shared.lock().tokens.expire();
    }

    /// A token for other clients.
    pub fn token(&self) -> String {
        self.shared.lock().tokens.grant("https://management.azure.com")
    }

    /// How many tokens were given out.
    pub fn tokens(&self) -> usize {
        self.shared.lock().tokens.issued()
    }

    /// Sets the permissions that a client reads; without this call, it may not read them.
    pub fn permit(&self, actions: &[&str]) {
        let permissions =
            json!({"value": [{"actions": actions, "notActions": [], "dataActions": [], "notDataActions": []}]});
        self.shared.lock().permissions = Some(permissions);
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.lock().calls.clone()
    }

    /// The calls that changed something, or would have.
    pub fn changes(&self) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.name.starts_with("PUT") || call.name.starts_with("DELETE"));
        calls
    }

    /// Waits until there were `count` calls of this name. A call counts once the server has dealt with it, before it answers.
    pub async fn wait_for_calls(&self, name: &str, count: usize, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let calls = self.calls();
            if calls.iter().filter(|call| call.name == name).count() >= count {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("no {name} within {limit:?}, but {calls:#?}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The gallery as a client sees it.
    pub fn gallery(&self, name: &str) -> Option<Value> {
        self.shared.lock().gallery(&gallery_key(name))
    }

    /// A definition as a client sees it.
    pub fn definition(&self, gallery: &str, definition: &str) -> Option<Value> {
        self.shared
            .lock()
            .definition(&format!("{}/images/{definition}", gallery_key(gallery)).to_lowercase())
    }

    /// A version as a client sees it that asks for the replication status.
    pub fn version(&self, gallery: &str, definition: &str, version: &str) -> Option<Value> {
        self.shared
            .lock()
            .version(&version_key(gallery, definition, version), true)
    }

    /// The names of all versions, `definition/version`.
    pub fn versions(&self) -> BTreeSet<String> {
        let fake = self.shared.lock();
        let keys: Vec<String> = fake.versions.keys().cloned().collect();
        drop(fake);
        keys.iter()
            .filter_map(|key| {
                let document = self.shared.lock().version(key, false)?;
                let mut parts = document["id"].as_str()?.rsplit('/').map(str::to_owned);
                let (version, _, definition) = (parts.next()?, parts.next()?, parts.next()?);
                Some(format!("{definition}/{version}"))
            })
            .collect()
    }

    /// The bytes that a version was imported from.
    pub fn imported(&self, gallery: &str, definition: &str, version: &str) -> Option<Vec<u8>> {
        let key = version_key(gallery, definition, version);
        self.shared.lock().imports.get(&key).cloned()
    }

    /// Adds a gallery, as an operator does.
    pub fn add_gallery(&self, name: &str, location: &str) {
        let body = json!({"location": location, "properties": {"description": "made by hand"}});
        let resource = gallery::Resource::ready(&format!("/{}", gallery_path(name)), name, body);
        self.shared.lock().galleries.insert(gallery_key(name), resource);
    }

    /// Shares a gallery with everybody under this name.
    pub fn share(&self, name: &str, public: &str) {
        if let Some(gallery) = self.shared.lock().galleries.get_mut(&gallery_key(name)) {
            gallery.body["properties"]["sharingProfile"] = json!({
                "permissions": "Community",
                "communityGalleryInfo": {
                    "publisherContact": "cloud@example.org",
                    "publicNamePrefix": public.split('-').next(),
                    "communityGalleryEnabled": true,
                    "publicNames": [public],
                },
            });
        }
    }

    /// Adds a definition with these properties, as an operator does.
    pub fn add_definition(&self, gallery: &str, name: &str, properties: Value) {
        let id = format!("/{}/images/{name}", gallery_path(gallery));
        let body = json!({"location": "eastus", "properties": properties});
        let key = id.trim_start_matches('/').to_lowercase();
        let resource = gallery::Resource::ready(&id, name, body);
        self.shared.lock().definitions.insert(key, resource);
    }

    /// Adds a version that succeeded in the regions of its publishing profile.
    pub fn add_version(&self, gallery: &str, definition: &str, name: &str, tags: Value, profile: Value) {
        let key = version_key(gallery, definition, name);
        let id = format!("/{}/images/{definition}/versions/{name}", gallery_path(gallery));
        let version = version::Version::ready(&id, name, tags, profile);
        self.shared.lock().versions.insert(key, version);
    }

    /// Lets users get a version as the latest, as an operator does.
    pub fn promote(&self, gallery: &str, definition: &str, name: &str) {
        let key = version_key(gallery, definition, name);
        if let Some(version) = self.shared.lock().versions.get_mut(&key) {
            version.promote();
        }
    }

    /// Lets a change of a version fail because its source blob is gone.
    pub fn lose_source(&self, gallery: &str, definition: &str, name: &str) {
        let key = version_key(gallery, definition, name);
        if let Some(version) = self.shared.lock().versions.get_mut(&key) {
            version.lose_source();
        }
    }

    /// Runs `change` on a version's tags.
    pub fn retag(&self, gallery: &str, definition: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let key = version_key(gallery, definition, name);
        if let Some(version) = self.shared.lock().versions.get_mut(&key) {
            change(version.tags());
        }
    }
}

fn group_path() -> String {
    format!("subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}")
}

fn gallery_path(name: &str) -> String {
    format!("{}/providers/Microsoft.Compute/galleries/{name}", group_path())
}

/// Azure's names have no case.
fn gallery_key(name: &str) -> String {
    gallery_path(name).to_lowercase()
}

fn version_key(gallery: &str, definition: &str, version: &str) -> String {
    format!("{}/images/{definition}/versions/{version}", gallery_path(gallery)).to_lowercase()
}

impl Shared {
    /// A test that panicked with the lock held has failed already.
    fn lock(&self) -> MutexGuard<'_, Fake> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn empty(status: u16) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = reply::status(status);
    response
}
