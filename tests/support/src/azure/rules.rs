//! The versions that Azure accepts, and those that it refuses.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    gallery::location,
    regions,
    reply::{self, Refusal, one_of, only, text},
};

const STORAGE_TYPES: [&str; 3] = ["Standard_LRS", "Standard_ZRS", "Premium_LRS"];
const MIB: u64 = 1 << 20;

pub(super) fn check_disk(bytes: &[u8]) -> Result<(), String> {
    let end = bytes
        .last_chunk()
        .ok_or("The specified blob is no disk: it is too short.")?;
    check_end(bytes.len() as u64, end)
}

/// The rules for disks, by the length and the last bytes of one:
/// <https://learn.microsoft.com/azure/virtual-machines/linux/create-upload-generic>.
pub fn check_end(length: u64, footer: &[u8; 512]) -> Result<(), String> {
    let size = length.saturating_sub(512);
    if size == 0 || !size.is_multiple_of(MIB) {
        return Err(format!(
            "The specified cookie value in VHD footer indicates a size of {size}, which is no whole MiB."
        ));
    }
    if &footer[..8] != b"conectix" {
        return Err("The specified cookie value in VHD footer is not supported.".to_owned());
    }
    let sum: u32 = footer
        .iter()
        .enumerate()
        .filter(|(at, _)| !(64..68).contains(at))
        .map(|(_, byte)| u32::from(*byte))
        .sum();
    if footer[64..68] != (!sum).to_be_bytes() {
        return Err("The VHD footer has a wrong checksum.".to_owned());
    }
    if footer[48..56] != size.to_be_bytes() || footer[60..64] != 2_u32.to_be_bytes() {
        return Err("Only fixed VHDs whose size is that of the blob are supported.".to_owned());
    }
    Ok(())
}

pub(super) fn check_name(name: &str) -> Result<(), Refusal> {
    let parts: Vec<&str> = name.split('.').collect();
    let number = |part: &&str| {
        part.parse::<i32>()
            .is_ok_and(|number| number >= 0 && number.to_string() == **part)
    };
    if parts.len() == 3 && parts.iter().all(number) {
        return Ok(());
    }
    Err(Refusal::invalid("galleryImageVersionName", "is not Major.Minor.Patch"))
}

pub(super) fn target_names(body: &Value) -> Vec<String> {
    let regions = body["properties"]["publishingProfile"]["targetRegions"].as_array();
    let names = regions
        .into_iter()
        .flatten()
        .filter_map(|region| region["name"].as_str());
    names.map(regions::canonical).collect()
}

/// Refuses a body that Azure would not take. Returns its location.
pub(super) fn check(body: &Value) -> Result<String, Refusal> {
    only(body, "GalleryImageVersion", &["location", "tags", "properties"])?;
    reply::tags(body)?;
    let home = location(body)?;
    let properties = &body["properties"];
    only(
        properties,
        "GalleryImageVersionProperties",
        &["publishingProfile", "storageProfile", "safetyProfile"],
    )?;
    let profile = &properties["publishingProfile"];
    let known = [
        "targetRegions",
        "replicaCount",
        "excludeFromLatest",
        "endOfLifeDate",
        "storageAccountType",
        "replicationMode",
        "targetExtendedLocations",
    ];
    only(profile, "GalleryImageVersionPublishingProfile", &known)?;
    one_of(profile, "replicationMode", &["Full", "Shallow"])?;
    if !matches!(profile["excludeFromLatest"], Value::Null | Value::Bool(_)) {
        return Err(Refusal::invalid("excludeFromLatest", "is no boolean"));
    }
    let date = &profile["endOfLifeDate"];
    let is_date = |date: &str| date.parse::<jiff::Timestamp>().is_ok();
    if !date.is_null() && !date.as_str().is_some_and(is_date) {
        return Err(Refusal::invalid("endOfLifeDate", "is no date and time"));
    }
    for region in profile["targetRegions"].as_array().into_iter().flatten() {
        let known = [
            "name",
            "regionalReplicaCount",
            "storageAccountType",
            "encryption",
            "excludeFromLatest",
        ];
        only(region, "TargetRegion", &known)?;
        let name = text(region, "name")?;
        if regions::display(name).is_none() {
            return Err(Refusal::invalid("targetRegions.name", &format!("{name} is no region")));
        }
        one_of(region, "storageAccountType", &STORAGE_TYPES)?;
        let count = &region["regionalReplicaCount"];
        if !count.is_null() && !count.as_u64().is_some_and(|count| (1..=100).contains(&count)) {
            return Err(Refusal::invalid("regionalReplicaCount", "is not from 1 to 100"));
        }
    }
    let names = target_names(body);
    let mut unique = names.clone();
    unique.sort();
    unique.dedup();
    if unique.len() != names.len() {
        return Err(Refusal::invalid("targetRegions", "name a region twice"));
    }
    if !names.contains(&home) {
        return Err(Refusal::invalid(
            "targetRegions",
            "must hold the location of the version itself",
        ));
    }
    let storage = &properties["storageProfile"];
    only(
        storage,
        "GalleryImageVersionStorageProfile",
        &["source", "osDiskImage", "dataDiskImages"],
    )?;
    only(
        &storage["osDiskImage"],
        "GalleryOSDiskImage",
        &["hostCaching", "source"],
    )?;
    let source = &storage["osDiskImage"]["source"];
    only(source, "GalleryDiskImageSource", &["id", "uri", "storageAccountId"])?;
    let uri = text(source, "uri")?;
    if !uri.ends_with(".vhd") {
        return Err(Refusal::invalid("uri", "does not end in .vhd"));
    }
    let safety = ["allowDeletionOfReplicatedLocations", "blockDeletionBeforeEndOfLife"];
    if !properties["safetyProfile"].is_null() {
        only(
            &properties["safetyProfile"],
            "GalleryImageVersionSafetyProfile",
            &safety,
        )?;
    }
    // Versions that a test added have a source without an account.
    if uri.contains("gone.blob.core") {
        return Ok(home);
    }
    let account = text(source, "storageAccountId")?.to_lowercase();
    if !account.starts_with(&format!(
        "/{}/providers/microsoft.storage/storageaccounts/",
        super::group_path().to_lowercase()
    )) {
        return Err(Refusal::invalid(
            "storageAccountId",
            "is no storage account of the group",
        ));
    }
    Ok(home)
}

/// Refuses a change of fixed properties.
pub(super) fn check_change(old: &Value, new: &Value, home: &str) -> Result<(), Refusal> {
    if regions::canonical(old["location"].as_str().unwrap_or_default()) != home {
        return Err(Refusal::fixed("location"));
    }
    let (before, after) = (&old["properties"], &new["properties"]);
    if before["storageProfile"] != after["storageProfile"] {
        return Err(Refusal::fixed("galleryImageVersion.properties.storageProfile"));
    }
    let mode = |properties: &Value| {
        properties["publishingProfile"]["replicationMode"]
            .as_str()
            .unwrap_or("Full")
            .to_owned()
    };
    if mode(before) != mode(after) {
        return Err(Refusal::fixed("replicationMode"));
    }
    let names = target_names(new);
    let allowed = after["safetyProfile"]["allowDeletionOfReplicatedLocations"] == true;
    if !allowed && target_names(old).iter().any(|region| !names.contains(region)) {
        return Err(Refusal::new(
            409,
            "OperationNotAllowed",
            "regions must not be removed from this version",
        ));
    }
    let kinds = |body: &Value| -> BTreeMap<String, Value> {
        let regions = body["properties"]["publishingProfile"]["targetRegions"].as_array();
        let regions = regions.into_iter().flatten();
        regions
            .map(|region| {
                let name = regions::canonical(region["name"].as_str().unwrap_or_default());
                (name, region["storageAccountType"].clone())
            })
            .collect()
    };
    let (before, after) = (kinds(old), kinds(new));
    match before
        .iter()
        .find(|(region, kind)| after.get(*region).is_some_and(|new| new != *kind))
    {
        Some((region, _)) => Err(Refusal::fixed(&format!("targetRegions[{region}].storageAccountType"))),
        None => Ok(()),
    }
}
