//! Galleries, image definitions, lists, and operations.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use axum::{
    http::{HeaderName, HeaderValue},
    response::Response,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    API_VERSION, Fake, Form, PAGE, SUBSCRIPTION, empty, regions,
    reply::{self, Refusal, one_of, only, text},
};

/// The features that a definition may have.
const FEATURES: [&str; 6] = [
    "SecurityType",
    "DiskControllerTypes",
    "IsAcceleratedNetworkSupported",
    "IsHibernateSupported",
    "ConfidentialVM",
    "StartsAtVersion",
];
/// The properties of a definition that cannot be changed.
const FIXED: [&str; 6] = [
    "osType",
    "osState",
    "hyperVGeneration",
    "architecture",
    "identifier",
    "features",
];

/// A gallery or a definition.
pub(super) struct Resource {
    id: String,
    name: String,
    pub(super) body: Value,
    until: Instant,
}

impl Resource {
    pub(super) fn ready(id: &str, name: &str, body: Value) -> Self {
        Self {
            id: id.to_owned(),
            name: name.to_owned(),
            body,
            until: Instant::now(),
        }
    }

    fn is_ready(&self) -> bool {
        Instant::now() >= self.until
    }

    fn show(&self, kind: &str) -> Value {
        let mut shown = self.body.clone();
        shown["id"] = json!(self.id);
        shown["name"] = json!(self.name);
        shown["type"] = json!(kind);
        let state = if self.is_ready() { "Succeeded" } else { "Creating" };
        shown["properties"]["provisioningState"] = json!(state);
        shown
    }
}

impl Fake {
    pub(super) fn gallery(&self, key: &str) -> Option<Value> {
        let mut shown = self.galleries.get(key)?.show("Microsoft.Compute/galleries");
        let name = shown["name"].as_str().unwrap_or_default().to_uppercase();
        shown["properties"]["identifier"] = json!({"uniqueName": format!("{SUBSCRIPTION}-{name}")});
        Some(shown)
    }

    pub(super) fn definition(&self, key: &str) -> Option<Value> {
        Some(self.definitions.get(key)?.show("Microsoft.Compute/galleries/images"))
    }

    pub(super) fn put_gallery(&mut self, key: &str, path: &str, name: &str, body: Value) -> Result<Response, Refusal> {
        only(&body, "Gallery", &["location", "tags", "properties"])?;
        only(
            &body["properties"],
            "GalleryProperties",
            &["description", "sharingProfile", "softDeletePolicy"],
        )?;
        reply::tags(&body)?;
        location(&body)?;
        if name.is_empty() || name.len() > 80 || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_.".contains(c)) {
            return Err(Refusal::invalid("galleryName", "has odd characters"));
        }
        let until = Instant::now() + self.times.other;
        let old = self.galleries.get(key);
        if old.is_some_and(|old| !old.is_ready()) {
            return Err(in_progress());
        }
        let status = if old.is_some() { 200 } else { 201 };
        let resource = Resource {
            until,
            ..Resource::ready(&format!("/{path}"), name, body)
        };
        self.galleries.insert(key.to_owned(), resource);
        let shown = self.gallery(key).unwrap_or_default();
        Ok(self.begun(status, key, Some(&shown)))
    }

    pub(super) fn put_definition(
        &mut self,
        key: &str,
        path: &str,
        name: &str,
        body: Value,
    ) -> Result<Response, Refusal> {
        let gallery = parent(key);
        if !self.galleries.get(gallery).is_some_and(Resource::is_ready) {
            return Err(Refusal::new(404, "ParentResourceNotFound", "there is no such gallery"));
        }
        check_definition(&body)?;
        let old = self.definitions.get(key);
        if let Some(old) = old {
            if !old.is_ready() {
                return Err(in_progress());
            }
            for property in FIXED {
                if old.body["properties"][property] != body["properties"][property] {
                    return Err(Refusal::fixed(&format!("galleryImage.properties.{property}")));
                }
            }
        }
        let same = |other: &Resource| other.body["properties"]["identifier"] == body["properties"]["identifier"];
        let mut others = self
            .definitions
            .iter()
            .filter(|(other, _)| parent(other) == gallery && *other != key);
        if others.any(|(_, other)| same(other)) {
            return Err(Refusal::new(409, "Conflict", "another definition has this identifier"));
        }
        let status = if old.is_some() { 200 } else { 201 };
        let resource = Resource {
            until: Instant::now() + self.times.other,
            ..Resource::ready(&format!("/{path}"), name, body)
        };
        self.definitions.insert(key.to_owned(), resource);
        let shown = self.definition(key).unwrap_or_default();
        Ok(self.begun(status, key, Some(&shown)))
    }

    pub(super) fn list_definitions(&self, key: &str, query: &HashMap<String, String>) -> Result<Response, Refusal> {
        let gallery = key.trim_end_matches("/images");
        if !self.galleries.contains_key(gallery) {
            return Err(Refusal::new(404, "ParentResourceNotFound", "there is no such gallery"));
        }
        let keys = below(&self.definitions, key);
        let all = keys.iter().filter_map(|key| self.definition(key)).collect();
        Ok(self.page(key, query, all))
    }

    pub(super) fn list_versions(&mut self, key: &str, query: &HashMap<String, String>) -> Result<Response, Refusal> {
        if !self.definitions.contains_key(key.trim_end_matches("/versions")) {
            return Err(Refusal::new(
                404,
                "ParentResourceNotFound",
                "there is no such definition",
            ));
        }
        self.settle();
        let keys = below(&self.versions, key);
        let all = keys.iter().filter_map(|key| self.version(key, false)).collect();
        Ok(self.page(key, query, all))
    }

    fn page(&self, key: &str, query: &HashMap<String, String>, all: Vec<Value>) -> Response {
        let from: usize = query
            .get("$skiptoken")
            .and_then(|token| token.parse().ok())
            .unwrap_or_default();
        let page: Vec<&Value> = all.iter().skip(from).take(PAGE).collect();
        let mut body = json!({"value": page});
        if from + PAGE < all.len() {
            let next = from + PAGE;
            body["nextLink"] = json!(format!(
                "{}/{key}?api-version={API_VERSION}&%24skiptoken={next}",
                self.base
            ));
        }
        reply::document(200, &body)
    }

    pub(super) fn show_permissions(&self) -> Result<Response, Refusal> {
        match &self.permissions {
            Some(permissions) => Ok(reply::document(200, permissions)),
            None => Err(Refusal::new(403, "AuthorizationFailed", "not permitted to look")),
        }
    }

    /// The answer to a request that starts an operation.
    pub(super) fn begun(&mut self, status: u16, key: &str, body: Option<&Value>) -> Response {
        let id = Uuid::new_v4().to_string();
        let url = format!(
            "{}/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute/locations/eastus/capsOperations/{id}?api-version={API_VERSION}",
            self.base
        );
        self.operations.insert(id.clone(), key.to_owned());
        if let Some(version) = self.versions.get_mut(key) {
            version.operation = id;
        }
        let mut response = match body {
            Some(body) => reply::document(status, body),
            None => empty(status),
        };
        let mut put = |name: &'static str, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        };
        if matches!(self.form, Form::AsyncOperation | Form::Both) {
            put("azure-asyncoperation", url.clone());
        }
        if matches!(self.form, Form::Location | Form::Both) {
            put("location", format!("{url}&monitor=true"));
        }
        response
    }

    /// How an operation is going. `monitor` is the form that `Location` leads to.
    pub(super) fn show_operation(&mut self, id: &str, monitor: bool) -> Result<Response, Refusal> {
        self.settle();
        let key = self.operations.get(id).cloned();
        let key = &key.ok_or_else(|| Refusal::new(404, "NotFound", "no such operation"))?;
        let waiting =
            |resources: &BTreeMap<String, Resource>| resources.get(key).is_some_and(|found| !found.is_ready());
        let (busy, error) = match self.versions.get(key) {
            // Another operation has started since; this one has ended.
            Some(version) if version.operation != id => (false, None),
            Some(version) => (version.is_busy(), version.error()),
            None => (waiting(&self.galleries) || waiting(&self.definitions), None),
        };
        let (status, body) = match (busy, error) {
            (true, _) => (
                "InProgress",
                json!({"startTime": "2025-01-01T00:00:00Z", "status": "InProgress", "name": id}),
            ),
            (false, None) => (
                "Succeeded",
                json!({"startTime": "2025-01-01T00:00:00Z", "status": "Succeeded", "name": id}),
            ),
            (false, Some((code, message))) => (
                "Failed",
                json!({"status": "Failed", "name": id, "error": {"code": code, "message": message}}),
            ),
        };
        Ok(match (monitor, status) {
            (false, _) => reply::document(200, &body),
            (true, "InProgress") => empty(202),
            (true, "Failed") => reply::document(409, &json!({"error": body["error"]})),
            // The created resource, or nothing after a deletion.
            (true, _) => {
                let made = self.gallery(key).or_else(|| self.definition(key));
                match made.or_else(|| self.version(key, false)) {
                    Some(made) => reply::document(200, &made),
                    None => empty(204),
                }
            }
        })
    }
}

/// The keys directly below a list.
fn below<T>(resources: &BTreeMap<String, T>, list: &str) -> Vec<String> {
    let is_below = |key: &&String| {
        let name = key.strip_prefix(list).and_then(|rest| rest.strip_prefix('/'));
        name.is_some_and(|name| !name.contains('/'))
    };
    resources.keys().filter(is_below).cloned().collect()
}

/// The resource that this one is in: two words less.
pub(super) fn parent(key: &str) -> &str {
    let up = key.rsplit_once('/').map_or(key, |(rest, _)| rest);
    up.rsplit_once('/').map_or(up, |(rest, _)| rest)
}

pub(super) fn in_progress() -> Refusal {
    let words = "The request failed due to conflict with a concurrent request.";
    Refusal::new(409, "Conflict", words)
}

pub(super) fn location(body: &Value) -> Result<String, Refusal> {
    let location = text(body, "location")?;
    let known = regions::display(location).map(regions::canonical);
    known.ok_or_else(|| {
        Refusal::new(
            400,
            "LocationNotAvailableForResourceType",
            format!("no location {location}"),
        )
    })
}

fn check_definition(body: &Value) -> Result<(), Refusal> {
    only(body, "GalleryImage", &["location", "tags", "properties"])?;
    reply::tags(body)?;
    location(body)?;
    let properties = &body["properties"];
    let known = [
        "description",
        "eula",
        "privacyStatementUri",
        "releaseNoteUri",
        "osType",
        "osState",
        "hyperVGeneration",
        "endOfLifeDate",
        "identifier",
        "recommended",
        "disallowed",
        "purchasePlan",
        "features",
        "architecture",
    ];
    only(properties, "GalleryImageProperties", &known)?;
    text(properties, "osType")?;
    text(properties, "osState")?;
    one_of(properties, "osType", &["Linux", "Windows"])?;
    one_of(properties, "osState", &["Generalized", "Specialized"])?;
    one_of(properties, "hyperVGeneration", &["V1", "V2"])?;
    one_of(properties, "architecture", &["x64", "Arm64"])?;
    let identifier = &properties["identifier"];
    only(identifier, "GalleryImageIdentifier", &["publisher", "offer", "sku"])?;
    for name in ["publisher", "offer", "sku"] {
        let value = text(identifier, name)?;
        if value.len() > 128 || !value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            return Err(Refusal::invalid(name, "has odd characters"));
        }
    }
    if properties["architecture"] == "Arm64" && properties["hyperVGeneration"] != "V2" {
        return Err(Refusal::invalid("hyperVGeneration", "must be V2 for Arm64"));
    }
    for feature in properties["features"].as_array().into_iter().flatten() {
        only(feature, "GalleryImageFeature", &["name", "value", "startsAtVersion"])?;
        let name = text(feature, "name")?;
        if !FEATURES.contains(&name) {
            return Err(Refusal::invalid("features.name", name));
        }
        let value = text(feature, "value")?;
        if name == "DiskControllerTypes" && value.contains("NVMe") && properties["hyperVGeneration"] != "V2" {
            return Err(Refusal::invalid("DiskControllerTypes", "NVMe needs generation 2"));
        }
    }
    Ok(())
}
