//! Resources that exist in the cloud, and how they change with time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io::{ErrorKind, Read},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::settings::Settings;

/// Tags of an image, a snapshot, or an import task.
pub type Tags = BTreeMap<String, String>;

/// The blocks of a snapshot that hold anything, by their index. Those left out read as zeros.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Blocks(pub BTreeMap<u32, Bytes>);

impl Deref for Blocks {
    type Target = BTreeMap<u32, Bytes>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Blocks {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// Which blocks there are, not what they hold.
impl fmt::Debug for Blocks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

/// Bytes of a block of EBS direct.
pub const BLOCK: usize = 512 * 1024;

/// Bytes of the unit of volume sizes.
pub(super) const GIB: u64 = 1 << 30;

/// All regions, and where the objects of S3 lie.
pub(super) struct World {
    pub(super) regions: BTreeMap<String, Region>,
    /// The region of each bucket.
    pub(super) buckets: BTreeMap<String, String>,
    /// A folder for each bucket, in it a file for each object.
    pub(super) objects: PathBuf,
    /// Blocks of EBS direct by their checksum.
    pub(super) written: BTreeMap<String, Bytes>,
}

/// The resources of one region.
#[derive(Default)]
pub(super) struct Region {
    /// Not opted in to, so that every call is refused.
    pub(super) disabled: bool,
    pub(super) images: BTreeMap<String, Image>,
    pub(super) snapshots: BTreeMap<String, Snapshot>,
    pub(super) tasks: BTreeMap<String, ImportTask>,
    /// Images deregistered, which answer otherwise than those that never were.
    pub(super) gone: BTreeSet<String>,
    /// The first call with each client token, by the token.
    pub(super) tokens: BTreeMap<String, Token>,
    pub(super) images_blocked: bool,
    pub(super) snapshots_blocked: bool,
}

/// The first call with a client token.
pub(super) struct Token {
    /// The request of that call.
    pub(super) request: String,
    /// The id of the resource that it created.
    pub(super) id: String,
    pub(super) made: Timestamp,
}

/// Who may use something beside its owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Everybody.
    pub public: bool,
    /// Accounts.
    pub users: BTreeSet<String>,
}

/// Where something is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Being made.
    Pending,
    /// Ready: `completed` for a snapshot, `available` for an image.
    Ready,
    /// Ended badly: `error` for a snapshot, `failed` for an image.
    Failed(String),
}

/// A machine image.
#[derive(Clone, Debug)]
pub struct Image {
    /// `ami-…`
    pub id: String,
    /// Unique in its region.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// `x86_64` or `arm64`.
    pub architecture: String,
    /// `hvm`
    pub virtualization: String,
    /// `legacy-bios`, `uefi`, or `uefi-preferred`.
    pub boot_mode: Option<String>,
    /// Enhanced networking.
    pub ena: bool,
    /// `simple`
    pub sriov: Option<String>,
    /// `v2.0`
    pub imds: Option<String>,
    /// `v2.0`
    pub tpm: Option<String>,
    /// Such as `/dev/sda1`.
    pub root_device: String,
    /// The volumes of an instance.
    pub devices: Vec<Device>,
    /// Those of the image itself; its snapshots have their own.
    pub tags: Tags,
    /// Who may launch it.
    pub permissions: Permissions,
    /// When it becomes deprecated.
    pub deprecated: Option<Timestamp>,
    /// When it was registered.
    pub created: Timestamp,
    /// `pending`, `available`, or `failed`.
    pub state: State,
    pub(super) hidden: Hidden,
    pub(super) pending: Pending,
}

/// One volume of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Such as `/dev/sda1`.
    pub name: String,
    /// The snapshot that the volume is created from.
    pub snapshot: String,
    /// Size in GiB.
    pub size: u64,
    /// Such as `gp3`.
    pub kind: String,
    /// Whether it goes with the instance.
    pub delete_on_termination: bool,
}

/// A snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// `snap-…`
    pub id: String,
    /// For people.
    pub description: Option<String>,
    /// Size of the volume in GiB.
    pub size: u64,
    /// Its own tags.
    pub tags: Tags,
    /// Who may make volumes of it.
    pub permissions: Permissions,
    /// When it was started.
    pub started: Timestamp,
    /// `pending`, `completed`, or `error`.
    pub state: State,
    /// Region and id of the snapshot it is a copy of.
    pub source: Option<(String, String)>,
    /// Its content. Copies share it.
    pub blocks: Arc<Blocks>,
    /// Whether it still takes blocks of EBS direct.
    pub(super) open: bool,
    /// Writes that are still to be refused, as if the snapshot did not exist yet.
    pub(super) refused_writes: u32,
    pub(super) hidden: Hidden,
    pub(super) pending: Pending,
}

/// The import of an object of S3 as a snapshot.
#[derive(Clone, Debug)]
pub struct ImportTask {
    /// `import-snap-…`
    pub id: String,
    /// `pending`, `active`, `completed`, `deleting`, `deleted`, `cancelling`, or `cancelled`.
    pub status: String,
    /// Why it did not work, or what it does.
    pub message: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// Those of the task: the snapshot gets none of them.
    pub tags: Tags,
    /// The bucket of the object.
    pub bucket: String,
    /// The key of the object.
    pub key: String,
    /// Bytes of the object.
    pub size: u64,
    /// The snapshot, once there is one.
    pub snapshot: Option<String>,
    pub(super) hidden: Hidden,
    pub(super) pending: Pending,
}

impl ImportTask {
    /// Whether it can still change.
    pub fn runs(&self) -> bool {
        !matches!(self.status.as_str(), "completed" | "deleted" | "cancelled")
    }
}

/// How many more times something new is overlooked, as long as news of it travels.
#[derive(Clone, Debug, Default)]
pub(super) struct Hidden(pub(super) u32);

impl Hidden {
    /// Whether it is overlooked now. Every look counts.
    pub(super) fn looks_absent(&mut self) -> bool {
        let hidden = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        hidden
    }
}

/// Since when something is being made, and the bad end that a fault has for it.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) since: Instant,
    pub(super) doom: Option<String>,
}

impl Pending {
    pub(super) fn new(doom: Option<String>) -> Self {
        Self {
            since: Instant::now(),
            doom,
        }
    }

    fn over(&self, limit: Duration) -> bool {
        self.since.elapsed() >= limit
    }

    fn end(&self) -> State {
        self.doom.clone().map_or(State::Ready, State::Failed)
    }
}

impl World {
    /// Lets everything happen that is due.
    pub(super) fn advance(&mut self, settings: &Settings) {
        for (name, region) in &mut self.regions {
            for image in region.images.values_mut() {
                if image.state == State::Pending && image.pending.over(settings.image) {
                    image.state = image.pending.end();
                }
            }
            for snapshot in region.snapshots.values_mut() {
                let limit = match snapshot.source {
                    Some(_) => settings.copy_to(name),
                    None => settings.seal,
                };
                if snapshot.state == State::Pending && !snapshot.open && snapshot.pending.over(limit) {
                    snapshot.state = snapshot.pending.end();
                }
            }
            for task in region.tasks.values_mut() {
                region.snapshots.extend(
                    task.advance(settings, &self.objects)
                        .map(|snapshot| (snapshot.id.clone(), snapshot)),
                );
            }
        }
    }

    /// The snapshots that a region is still copying to itself.
    pub(super) fn copies_in(&self, region: &str) -> usize {
        let region = self.regions.get(region);
        let snapshots = region.into_iter().flat_map(|region| region.snapshots.values());
        snapshots
            .filter(|snapshot| snapshot.state == State::Pending && snapshot.source.is_some())
            .count()
    }

    /// Where the content of an object lies.
    pub(super) fn object(&self, bucket: &str, key: &str) -> PathBuf {
        self.objects.join(bucket).join(key)
    }
}

impl ImportTask {
    /// Moves on; a task that completes returns its snapshot.
    fn advance(&mut self, settings: &Settings, objects: &Path) -> Option<Snapshot> {
        match self.status.as_str() {
            "pending" | "active" => {
                if !self.pending.over(settings.import_pending + settings.import_active) {
                    if self.pending.over(settings.import_pending) {
                        self.status = "active".into();
                        self.message = Some("converting".into());
                    }
                    return None;
                }
                // The object is read when the import ends: the import fails if the object was deleted before.
                let read = match self.pending.doom.take() {
                    Some(doom) => Err(doom),
                    None => read_blocks(&objects.join(&self.bucket).join(&self.key)),
                };
                match read {
                    Ok(blocks) => Some(self.complete(settings, blocks)),
                    Err(message) => {
                        self.fail("deleting", message);
                        None
                    }
                }
            }
            "deleting" if self.pending.over(settings.import_ending) => {
                self.status = "deleted".into();
                None
            }
            "cancelling" if self.pending.over(settings.import_ending) => {
                self.status = "cancelled".into();
                None
            }
            _ => None,
        }
    }

    fn complete(&mut self, settings: &Settings, blocks: Blocks) -> Snapshot {
        let id = new_id("snap");
        self.status = "completed".into();
        self.message = None;
        self.snapshot = Some(id.clone());
        Snapshot {
            id,
            description: Some(format!("Created by AWS-VMImport service for {}", self.id)),
            size: self.size.div_ceil(GIB),
            tags: Tags::new(),
            permissions: Permissions::default(),
            started: Timestamp::now(),
            state: State::Ready,
            source: None,
            blocks: Arc::new(blocks),
            open: false,
            refused_writes: 0,
            hidden: Hidden(settings.hidden),
            pending: Pending::new(None),
        }
    }

    /// Starts to end without a snapshot.
    pub(super) fn fail(&mut self, status: &str, message: String) {
        self.status = status.to_owned();
        self.message = Some(message);
        self.pending = Pending::new(None);
    }
}

/// Reads a disk; what is all zeros is left out.
fn read_blocks(file: &Path) -> Result<Blocks, String> {
    let failed = |error: std::io::Error| format!("ClientError: the disk image cannot be read: {error}");
    let mut file = File::open(file).map_err(failed)?;
    let mut blocks = Blocks::default();
    let mut block = vec![0; BLOCK];
    for index in 0.. {
        let mut filled = 0;
        while filled < BLOCK {
            match file.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        if filled == 0 {
            break;
        }
        block[filled..].fill(0);
        if block.iter().any(|byte| *byte != 0) {
            blocks.insert(index, Bytes::copy_from_slice(&block));
        }
    }
    Ok(blocks)
}

/// A new id in the long form: a word and 17 hexadecimal digits.
pub(super) fn new_id(kind: &str) -> String {
    let digits = Uuid::new_v4().simple().to_string();
    format!("{kind}-0{}", &digits[..16])
}
