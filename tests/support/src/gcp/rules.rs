//! The service's rules for names, labels, features, and filters, and its refusals.

use base64::{Engine, prelude::BASE64_URL_SAFE};
use serde_json::Value;
use uuid::Uuid;

use super::PROJECT;

const X86_FEATURES: [&str; 5] = [
    "SEV_CAPABLE",
    "SEV_SNP_CAPABLE",
    "SEV_LIVE_MIGRATABLE",
    "SEV_LIVE_MIGRATABLE_V2",
    "TDX_CAPABLE",
];

/// An error as the service answers it.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

pub(super) fn refused(status: u16, reason: &'static str, message: impl Into<String>) -> Refused {
    Refused {
        status,
        reason,
        message: message.into(),
    }
}

pub(super) fn invalid(message: impl Into<String>) -> Refused {
    refused(400, "invalid", message)
}

pub(super) fn absent(what: &str) -> Refused {
    refused(404, "notFound", format!("The resource '{what}' was not found"))
}

pub(super) fn link(kind: &str, name: &str) -> String {
    format!("https://www.googleapis.com/compute/v1/projects/{PROJECT}/global/{kind}/{name}")
}

/// Bytes are in [the alphabet of addresses](https://developers.google.com/discovery/v1/type-format).
pub(super) fn fingerprint() -> String {
    BASE64_URL_SAFE.encode(&Uuid::new_v4().as_bytes()[..8])
}

pub(super) fn is_name(name: &str) -> bool {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.len() <= 63
        && name.chars().all(letters)
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
}

pub(super) fn check_labels(labels: &Value) -> Result<(), Refused> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let labels = labels.as_object().cloned().unwrap_or_default();
    for (name, value) in &labels {
        let value = value.as_str().unwrap_or("?");
        let fits = name.starts_with(|c: char| c.is_ascii_lowercase()) && name.len() <= 63 && name.chars().all(letters);
        if !fits || value.len() > 63 || !value.chars().all(letters) {
            return Err(invalid(format!(
                "Invalid value for field 'resource.labels': {name} = {value}"
            )));
        }
    }
    if labels.len() > 64 {
        return Err(invalid("Invalid value for field 'resource.labels': more than 64"));
    }
    Ok(())
}

pub(super) fn check_features(body: &Value) -> Result<(), Refused> {
    let features = body["guestOsFeatures"].as_array().cloned().unwrap_or_default();
    let x86_only = |feature: &&Value| {
        feature["type"]
            .as_str()
            .is_some_and(|name| X86_FEATURES.contains(&name))
    };
    match body["architecture"].as_str() {
        Some("ARM64") => match features.iter().find(x86_only) {
            Some(feature) => Err(invalid(format!(
                "guest OS feature {} is not for ARM64",
                feature["type"]
            ))),
            None => Ok(()),
        },
        None | Some("X86_64") => Ok(()),
        Some(other) => Err(invalid(format!(
            "Invalid value for field 'resource.architecture': '{other}'"
        ))),
    }
}

/// `family = x`, `labels.name = x`, or `name = x`, with or without quotes.
pub(super) fn filter(text: &str) -> Result<(String, String), Refused> {
    let (field, value) = text
        .split_once('=')
        .ok_or_else(|| invalid(format!("Invalid filter: {text}")))?;
    let value = value.trim().trim_matches('"');
    Ok((field.trim().to_owned(), value.to_owned()))
}

pub(super) fn field_of(image: &Value, path: &str) -> String {
    let found = path.split('.').fold(image, |value, field| &value[field]);
    found.as_str().unwrap_or_default().to_owned()
}
