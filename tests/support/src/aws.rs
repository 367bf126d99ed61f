//! AWS as far as images need it: EC2 and EBS direct in several regions, the calls of IAM, STS, and Service Quotas that a
//! check makes, and S3.
//!
//! The fake is strict where a client could be wrong without noticing: signatures, unknown parameters, unique names, states,
//! checksums, counts, tokens. It is checked from outside with Amazon's own SDK for Python (`tests/aws.rs` of this crate), and
//! what clients send can be checked against the model in that SDK ([`Cloud::validate_calls`]).
//!
//! Not there: encryption, other accounts, permissions of users (ask for them with [`Effect::Refuse`]), rate limits (likewise
//! [`Effect::Throttle`]), the time-out of unfinished snapshots.

mod account;
mod auth;
mod calls;
mod ebs;
mod ec2;
mod faults;
mod images;
mod import;
mod lifecycle;
mod listing;
mod multipart;
mod permissions;
mod python;
mod refusal;
mod regions;
mod request;
mod s3;
mod server;
mod settings;
mod snapshots;
mod state;
mod sts;
mod tags;
mod xml;

use std::{
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use axum::Router;
use tempfile::TempDir;

pub use self::{
    calls::Call,
    faults::{Effect, Fault},
    settings::Settings,
    state::{BLOCK, Blocks, Device, Image, ImportTask, Permissions, Snapshot, State, Tags},
};
use self::{
    calls::Calls,
    faults::Faults,
    multipart::Uploads,
    state::{Region, World},
};
use crate::http_server::HttpServer;

/// The account that owns everything.
pub const ACCOUNT: &str = "125523088429";

/// The only access key.
pub const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";

/// Its secret.
pub const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// The access key of a role's session, with its secret and token.
pub const SESSION_KEY: &str = "ASIAIOSFODNN7EXAMPLE";

/// The secret of a role's session.
pub const SESSION_SECRET: &str = "9drTJvcXLB89EXAMPLELB8923FB892xMFIhWJPQZ";

/// The token of a role's session.
pub const SESSION_TOKEN: &str = "FwoGZXIvYXdzEBYaDkEXAMPLETOKENofaSession0001";

/// The role that sessions have.
pub const ROLE_ARN: &str = "arn:aws:iam::125523088429:role/uploader";

/// The token that STS takes for the role.
pub const WEB_IDENTITY_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.EXAMPLE-of-a-pod.c2lnbmF0dXJl";

/// The token that a container's credentials are given for.
pub const CONTAINER_TOKEN: &str = "Bearer-EXAMPLE-of-a-container";

/// A running cloud, gone when dropped.
pub struct Cloud {
    server: HttpServer,
    s3: HttpServer,
    shared: Arc<Shared>,
    folder: TempDir,
}

/// The state that the servers share.
struct Shared {
    world: Mutex<World>,
    settings: Mutex<Settings>,
    faults: Mutex<Faults>,
    uploads: Mutex<Uploads>,
    calls: Calls,
}

impl Cloud {
    /// Starts an empty cloud with these regions, all enabled.
    pub async fn start(regions: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let objects = folder.path().join("s3");
        fs::create_dir(&objects)?;
        let world = World {
            regions: regions
                .iter()
                .map(|name| ((*name).to_owned(), Region::default()))
                .collect(),
            buckets: Default::default(),
            objects: objects.clone(),
            written: Default::default(),
        };
        let shared = Arc::new(Shared {
            world: Mutex::new(world),
            settings: Mutex::default(),
            faults: Mutex::default(),
            uploads: Mutex::default(),
            calls: Calls::default(),
        });
        let front = s3::Front::new(shared.clone(), &objects)?;
        Ok(Self {
            server: HttpServer::start(Router::new().fallback(server::answer).with_state(shared.clone())).await?,
            s3: HttpServer::start(Router::new().fallback(s3::answer).with_state(front)).await?,
            shared,
            folder,
        })
    }

    /// The endpoint of everything but S3.
    pub fn endpoint(&self) -> String {
        self.server.url()
    }

    /// The endpoint of S3; buckets are in the path.
    pub fn s3_endpoint(&self) -> String {
        self.s3.url()
    }

    /// Where a container asks for its credentials.
    pub fn container_credentials(&self) -> String {
        format!("{}{}", self.endpoint(), server::CONTAINER)
    }

    /// The environment with which a client uses this cloud and no other, with the lasting key.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut variables = self.endpoints();
        for (name, value) in [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)] {
            variables.push((name.into(), value.into()));
        }
        variables
    }

    /// The same without a key.
    pub fn endpoints(&self) -> Vec<(String, String)> {
        let mut variables: Vec<_> = ["EC2", "EBS", "IAM", "STS", "SERVICE_QUOTAS"]
            .into_iter()
            .map(|service| (format!("AWS_ENDPOINT_URL_{service}"), self.endpoint()))
            .collect();
        variables.push(("AWS_ENDPOINT_URL_S3".into(), self.s3_endpoint()));
        variables.push(("AWS_EC2_METADATA_DISABLED".into(), "true".into()));
        variables
    }

    /// Makes a bucket, whose name needs three characters or more.
    pub async fn create_bucket(&self, region: &str, name: &str) -> Result<()> {
        let mut world = lock(&self.shared.world);
        fs::create_dir(world.objects.join(name)).with_context(|| format!("create the bucket {name}"))?;
        world.buckets.insert(name.to_owned(), region.to_owned());
        Ok(())
    }

    /// How long things take, and limits. Change them in one statement: nothing is answered while this is held.
    pub fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.shared.settings)
    }

    /// Has something go wrong from now on.
    pub fn fault(&self, fault: Fault) {
        lock(&self.shared.faults).add(fault);
    }

    /// Ends all faults. Calls that hang stay so.
    pub fn clear_faults(&self) {
        lock(&self.shared.faults).clear();
    }

    /// Blocks public access to images, to snapshots, or no longer.
    pub fn block_public_access(&self, region: &str, images: bool, snapshots: bool) {
        let mut world = lock(&self.shared.world);
        let region = world.regions.entry(region.to_owned()).or_default();
        region.images_blocked = images;
        region.snapshots_blocked = snapshots;
    }

    /// Enables or disables a region; one that did not exist comes into being.
    pub fn enable_region(&self, region: &str, enabled: bool) {
        let mut world = lock(&self.shared.world);
        world.regions.entry(region.to_owned()).or_default().disabled = !enabled;
    }

    /// The images of a region, by id.
    pub fn images(&self, region: &str) -> Vec<Image> {
        self.look(region, |region| region.images.values().cloned().collect())
    }

    /// The snapshots of a region, by id.
    pub fn snapshots(&self, region: &str) -> Vec<Snapshot> {
        self.look(region, |region| region.snapshots.values().cloned().collect())
    }

    /// The import tasks of a region, by id, also those that have ended.
    pub fn import_tasks(&self, region: &str) -> Vec<ImportTask> {
        self.look(region, |region| region.tasks.values().cloned().collect())
    }

    /// The content of a snapshot: blocks of [`BLOCK`] bytes by index. Those left out are zeros.
    pub fn snapshot_data(&self, region: &str, id: &str) -> Option<Arc<Blocks>> {
        let snapshot = self.look(region, |region| region.snapshots.get(id).cloned());
        snapshot.map(|snapshot| snapshot.blocks)
    }

    /// The keys in a bucket, sorted.
    pub fn objects(&self, bucket: &str) -> Vec<String> {
        s3::objects(&lock(&self.shared.world).objects, bucket)
    }

    /// How many multipart uploads of a bucket are neither completed nor aborted.
    pub fn multipart_uploads(&self, bucket: &str) -> usize {
        lock(&self.shared.uploads).of_bucket(bucket).len()
    }

    /// Every call so far, in the order they were done.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.all()
    }

    /// The calls that could change something.
    pub fn changes(&self) -> Vec<Call> {
        self.calls().into_iter().filter(Call::changes).collect()
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        self.shared.calls.clear();
    }

    /// Waits until such a call has been done, refused, or (one that hangs) has come, in a region or in any. Give it a limit
    /// with `tokio::time::timeout`.
    pub async fn wait_for_call(&self, action: &str, region: Option<&str>) {
        self.shared
            .calls
            .wait_for(|call| call.action == action && region.is_none_or(|region| call.region == region))
            .await;
    }

    /// Waits until some call was left without an answer by [`Effect::Hang`], [`Effect::Stall`], or [`Effect::LostAnswer`].
    pub async fn wait_for_silence(&self) {
        self.shared.calls.wait_for(|call| call.status == 0).await;
    }

    /// Resources that should not be there once all images are published, one line each.
    pub fn leftovers(&self) -> Vec<String> {
        let settings = self.settings().clone();
        let mut world = lock(&self.shared.world);
        world.advance(&settings);
        let mut left = Vec::new();
        for bucket in world.buckets.keys() {
            let objects = s3::objects(&world.objects, bucket);
            left.extend(objects.iter().map(|key| format!("object {key} in {bucket}")));
            let uploads = lock(&self.shared.uploads);
            let uploads = uploads.of_bucket(bucket).into_iter();
            left.extend(uploads.map(|(_, upload)| format!("multipart upload of {} in {bucket}", upload.key)));
        }
        for (name, region) in &world.regions {
            for snapshot in region.snapshots.values() {
                let id = &snapshot.id;
                if snapshot.state != State::Ready {
                    left.push(format!("snapshot {id} in {name} is {}", snapshot.state.of_snapshot()));
                } else if snapshots::in_use(region, id).is_none() {
                    left.push(format!("snapshot {id} in {name} belongs to no image"));
                }
            }
            let tasks = region.tasks.values().filter(|task| task.runs());
            left.extend(tasks.map(|task| format!("import task {} in {name} is {}", task.id, task.status)));
        }
        left
    }

    fn look<T: Default>(&self, region: &str, get: impl FnOnce(&Region) -> T) -> T {
        let settings = self.settings().clone();
        let mut world = lock(&self.shared.world);
        world.advance(&settings);
        world.regions.get(region).map(get).unwrap_or_default()
    }
}

/// A test that panicked with the lock held has failed already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
