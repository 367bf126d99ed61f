//! Versions: imported from a blob, replicated to regions.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Fake, Shared,
    azurite::Reader,
    empty,
    gallery::{in_progress, parent},
    regions,
    reply::Refusal,
    rules::{check, check_change, check_disk, check_name, target_names},
};

/// A version, its import, and its replicas.
pub(super) struct Version {
    id: String,
    name: String,
    body: Value,
    import: Import,
    is_new: bool,
    replicas: BTreeMap<String, Replica>,
    /// The last operation.
    pub(super) operation: String,
    deleted: Option<Instant>,
    /// A change was refused because the source blob is gone.
    lost_source: bool,
}

enum Import {
    Running,
    Done(Instant),
    Failed(&'static str, String),
}

struct Replica {
    begun: Instant,
    takes: Duration,
    ending: Ending,
}

/// How replication to a region ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Completed,
    Failed,
    /// It ends without a status.
    Unsaid,
    /// It never ends.
    Never,
}

impl Version {
    pub(super) fn ready(id: &str, name: &str, tags: Value, profile: Value) -> Self {
        let now = Instant::now();
        let regions = profile["targetRegions"].as_array().cloned().unwrap_or_default();
        let replicas = regions.iter().filter_map(|region| region["name"].as_str()).map(|name| {
            let replica = Replica {
                begun: now,
                takes: Duration::ZERO,
                ending: Ending::Completed,
            };
            (regions::canonical(name), replica)
        });
        let source = json!({"uri": "https://gone.blob.core.windows.net/vhds/gone.vhd"});
        let mut version = Self {
            id: id.to_owned(),
            name: name.to_owned(),
            replicas: replicas.collect(),
            body: json!({"location": "eastus", "tags": tags, "properties": {
                "publishingProfile": profile,
                "storageProfile": {"osDiskImage": {"source": source}},
                "safetyProfile": {"allowDeletionOfReplicatedLocations": true},
            }}),
            import: Import::Done(now),
            is_new: false,
            operation: String::new(),
            deleted: None,
            lost_source: false,
        };
        version.body["properties"]["publishingProfile"]["publishedDate"] = json!("2025-01-01T00:00:00Z");
        version
    }

    pub(super) fn tags(&mut self) -> &mut Value {
        &mut self.body["tags"]
    }

    pub(super) fn lose_source(&mut self) {
        self.lost_source = true;
    }

    pub(super) fn promote(&mut self) {
        self.body["properties"]["publishingProfile"]["excludeFromLatest"] = json!(false);
    }

    fn is_done(&self, replica: &Replica) -> bool {
        match self.import {
            Import::Done(_) if replica.ending == Ending::Never => false,
            Import::Done(at) => Instant::now() >= at.max(replica.begun) + replica.takes,
            Import::Running | Import::Failed(..) => false,
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        match self.import {
            Import::Running => true,
            Import::Failed(..) => self.deleted.is_some(),
            Import::Done(_) => self.deleted.is_some() || self.replicas.values().any(|replica| !self.is_done(replica)),
        }
    }

    /// The error of a failed version.
    pub(super) fn error(&self) -> Option<(&'static str, String)> {
        if let Import::Failed(code, message) = &self.import {
            return Some((code, message.clone()));
        }
        if self.lost_source {
            return Some(("SourceBlobNotFound", "The source blob does not exist.".to_owned()));
        }
        let failed: Vec<&str> = self
            .replicas
            .iter()
            .filter(|(_, replica)| replica.ending == Ending::Failed && self.is_done(replica))
            .map(|(region, _)| region.as_str())
            .collect();
        let message = format!("The replication jobs have not completed in {}.", failed.join(", "));
        (!failed.is_empty()).then_some(("ReplicationJobsNotCompleted", message))
    }

    fn state(&self) -> &'static str {
        if self.deleted.is_some() {
            "Deleting"
        } else if self.is_busy() {
            if self.is_new { "Creating" } else { "Updating" }
        } else if self.error().is_some() {
            "Failed"
        } else {
            "Succeeded"
        }
    }

    fn summary(&self) -> Value {
        let rows: Vec<Value> = self
            .replicas
            .iter()
            .filter_map(|(region, replica)| {
                let display = regions::display(region);
                Some(match (&self.import, self.is_done(replica), replica.ending) {
                    (Import::Failed(_, why), _, _) => {
                        json!({"region": display, "state": "Failed", "details": why, "progress": 0})
                    }
                    (_, false, _) => json!({"region": display, "state": "Replicating", "details": "", "progress": 40}),
                    (_, true, Ending::Completed) => {
                        json!({"region": display, "state": "Completed", "details": "", "progress": 100})
                    }
                    (_, true, Ending::Failed) => json!({
                        "region": display, "state": "Failed", "progress": 90,
                        "details": "Storage allocation failure: try the region again later.",
                    }),
                    (_, true, Ending::Unsaid | Ending::Never) => return None,
                })
            })
            .collect();
        let aggregated = match self.state() {
            "Succeeded" => "Completed",
            "Failed" => "Failed",
            _ => "InProgress",
        };
        json!({"aggregatedState": aggregated, "summary": rows})
    }
}

impl Fake {
    /// Forgets versions that were deleted long enough ago.
    pub(super) fn settle(&mut self) {
        let now = Instant::now();
        let gone = |version: &Version| version.deleted.is_some_and(|at| now >= at);
        let keys: Vec<String> = self
            .versions
            .iter()
            .filter(|(_, version)| gone(version))
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.versions.remove(&key);
            self.imports.remove(&key);
            self.forgotten.insert(key, now + self.times.forgetting);
        }
    }

    pub(super) fn version(&mut self, key: &str, expand: bool) -> Option<Value> {
        self.settle();
        let version = self.versions.get(key)?;
        let mut shown = version.body.clone();
        shown["id"] = json!(version.id);
        shown["name"] = json!(version.name);
        shown["type"] = json!("Microsoft.Compute/galleries/images/versions");
        let properties = &mut shown["properties"];
        properties["provisioningState"] = json!(version.state());
        let regions = properties["publishingProfile"]["targetRegions"].as_array_mut();
        for region in regions.into_iter().flatten() {
            region["name"] = json!(regions::display(region["name"].as_str().unwrap_or_default()));
        }
        if matches!(version.import, Import::Done(_)) {
            properties["storageProfile"]["osDiskImage"]["sizeInGB"] = json!(5);
        }
        properties["replicationStatus"] = if expand { version.summary() } else { Value::Null };
        Some(shown)
    }

    /// The blob that a version was imported from, if its replication still depends on it.
    pub(super) fn source_of(&self, key: &str) -> Option<String> {
        let source = &self.versions.get(key)?.body["properties"]["storageProfile"]["osDiskImage"]["source"];
        // Versions that a test added come from a service whose storage the stand-in does not see.
        let uri = source["uri"].as_str().filter(|uri| !uri.contains("gone.blob.core"));
        uri.map(str::to_owned)
    }

    /// The answer, and the blob to be imported. `has_source`: the blob that an existing version was imported from still
    /// exists. Without it, Azure neither replicates the version to other regions nor repairs it, and it is `Failed`.
    pub(super) fn put_version(
        &mut self,
        key: &str,
        path: &str,
        name: &str,
        mut body: Value,
        has_source: bool,
    ) -> Result<(Response, Option<String>), Refusal> {
        self.settle();
        let definition = parent(key);
        if !self.definitions.contains_key(definition) {
            return Err(Refusal::new(
                404,
                "ParentResourceNotFound",
                "there is no such definition",
            ));
        }
        check_name(name)?;
        let home = check(&body)?;
        let now = Instant::now();
        if self.forgotten.get(key).is_some_and(|until| now < *until) {
            return Err(Refusal::new(
                409,
                "Conflict",
                "The resource of this name is still being deleted.",
            ));
        }
        let wanted: Vec<String> = target_names(&body);
        let (status, import) = match self.versions.get(key) {
            None => {
                let uri = body["properties"]["storageProfile"]["osDiskImage"]["source"]["uri"].as_str();
                let uri = uri.map(str::to_owned);
                body["properties"]["publishingProfile"]["publishedDate"] = json!(Timestamp::now().to_string());
                let version = Version {
                    id: format!("/{path}"),
                    name: name.to_owned(),
                    body,
                    import: Import::Running,
                    is_new: true,
                    replicas: BTreeMap::new(),
                    operation: String::new(),
                    deleted: None,
                    lost_source: false,
                };
                self.versions.insert(key.to_owned(), version);
                (201, uri)
            }
            Some(old) => {
                if old.is_busy() {
                    return Err(in_progress());
                }
                if let Import::Failed(..) = old.import {
                    return Err(Refusal::new(
                        409,
                        "Conflict",
                        "a version that was never imported can only be deleted",
                    ));
                }
                check_change(&old.body, &body, &home)?;
                let is_repair = old.error().is_some() || target_names(&old.body) != wanted;
                if is_repair && !has_source {
                    if let Some(version) = self.versions.get_mut(key) {
                        version.lost_source = true;
                        version.is_new = false;
                    }
                    return Err(Refusal::new(400, "InvalidParameter", "The source blob does not exist."));
                }
                let published = old.body["properties"]["publishingProfile"]["publishedDate"].clone();
                body["properties"]["publishingProfile"]["publishedDate"] = published;
                if let Some(version) = self.versions.get_mut(key) {
                    version.body = body;
                    version.is_new = false;
                    version.lost_source = false;
                }
                (200, None)
            }
        };
        self.replicate(key, &wanted, &home);
        let shown = self.version(key, false).unwrap_or_default();
        Ok((self.begun(status, key, Some(&shown)), import))
    }

    /// Starts replication to new regions, and drops regions that are no longer targets. The version's own region, which cannot
    /// be dropped, is tried again if it failed.
    fn replicate(&mut self, key: &str, wanted: &[String], home: &str) {
        let Some(version) = self.versions.get_mut(key) else {
            return;
        };
        let stays = |region: &str, replica: &Replica| region != home || replica.ending == Ending::Completed;
        version
            .replicas
            .retain(|region, replica| wanted.contains(region) && stays(region, replica));
        let mut takes = Duration::ZERO;
        for region in wanted {
            if version.replicas.contains_key(region) {
                continue;
            }
            takes += self.times.region;
            let ending = match self.endings.get_mut(region) {
                Some((ending, left)) if *left > 0 => {
                    *left -= 1;
                    *ending
                }
                _ => Ending::Completed,
            };
            let replica = Replica {
                begun: Instant::now(),
                takes,
                ending,
            };
            version.replicas.insert(region.clone(), replica);
        }
    }

    pub(super) fn delete_version(&mut self, key: &str) -> Result<Response, Refusal> {
        self.settle();
        let Some(version) = self.versions.get_mut(key) else {
            return Ok(empty(204));
        };
        if version.is_busy() {
            return Err(in_progress());
        }
        version.deleted = Some(Instant::now() + self.times.other);
        Ok(self.begun(202, key, None))
    }

    /// Ends an import with the bytes that were read, or with an error.
    pub(super) fn end_import(&mut self, key: &str, imported: Result<Vec<u8>, (&'static str, String)>) {
        let Some(version) = self.versions.get_mut(key) else {
            return;
        };
        match imported {
            Ok(bytes) => {
                version.import = Import::Done(Instant::now());
                self.imports.insert(key.to_owned(), bytes);
            }
            Err((code, why)) => version.import = Import::Failed(code, why),
        }
    }
}

/// Reads the blob and checks that it is a disk.
pub(super) async fn import(shared: Arc<Shared>, blobs: Reader, key: String, uri: String) {
    let pause = shared.lock().times.import;
    tokio::time::sleep(pause).await;
    let read = blobs.disk(&uri).await;
    let imported = read.and_then(|bytes| check_disk(&bytes).map(|()| bytes));
    let mut fake = shared.lock();
    let imported = match &mut fake.failing_imports {
        Some((code, left)) if *left > 0 => {
            *left -= 1;
            Err((*code, "A test wants it so.".to_owned()))
        }
        _ => imported.map_err(|why| ("InvalidParameter", why)),
    };
    fake.end_import(&key, imported);
}
