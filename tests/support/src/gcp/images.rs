//! Images and operations, and the rules for changing them.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::PROJECT;
use super::faults::Fault;
use super::rules::{Refused, absent, check_features, check_labels, fingerprint, invalid, is_name, link, refused};

/// The bytes an image is to be made of, read before anything is locked.
pub(super) struct Content {
    pub(super) sha256: String,
    pub(super) length: usize,
    /// The disk's size in GiB, or why there is none.
    pub(super) disk: Result<u64, String>,
}

/// The effect of an operation at its end.
enum Effect {
    /// An import ends well or not; then an image may be left.
    Import(Result<u64, (String, bool)>),
    Delete,
    /// These fields get these values, or none.
    Change(Vec<(&'static str, Option<Value>)>),
}

struct Operation {
    kind: &'static str,
    image: String,
    due: Instant,
    effect: Option<Effect>,
    error: Option<(String, String, u16)>,
}

/// The content of the project.
#[derive(Default)]
pub(super) struct Project {
    pub(super) images: BTreeMap<String, Value>,
    /// All heads of each family so far; `None` stands for a time without a head.
    pub(super) heads: BTreeMap<String, Vec<Option<String>>>,
    /// SHA-256 of what each image was made of.
    pub(super) contents: HashMap<String, String>,
    operations: BTreeMap<String, Operation>,
    /// Operations by the id of the request that began them.
    requests: HashMap<String, String>,
    /// How long operations take.
    pub(super) delay: Duration,
    /// Images a page of a list has at most.
    pub(super) page: Option<usize>,
    /// Whether lists say that something is missing.
    pub(super) partial: bool,
    made: u64,
}

const PATCHABLE: [&str; 3] = ["family", "description", "deprecated"];
const INSERTABLE: [&str; 11] = [
    "name",
    "description",
    "family",
    "architecture",
    "guestOsFeatures",
    "labels",
    "licenses",
    "rawDisk",
    "storageLocations",
    "shieldedInstanceInitialState",
    "diskSizeGb",
];

impl Project {
    /// Carries out what is due, in the order in which it falls due.
    pub(super) fn settle(&mut self) {
        let now = Instant::now();
        let mut due: Vec<_> = self
            .operations
            .values_mut()
            .filter(|operation| operation.due <= now)
            .filter_map(|operation| Some((operation.due, operation.image.clone(), operation.effect.take()?)))
            .collect();
        due.sort_by_key(|(due, ..)| *due);
        for (_, image, effect) in due {
            self.carry_out(&image, effect);
            self.note_heads();
        }
    }

    fn carry_out(&mut self, name: &str, effect: Effect) {
        let fields = match effect {
            Effect::Delete | Effect::Import(Err((_, false))) => {
                self.images.remove(name);
                return;
            }
            Effect::Import(Ok(size)) => vec![
                ("status", Some(json!("READY"))),
                ("diskSizeGb", Some(json!(size.to_string()))),
            ],
            Effect::Import(Err(_)) => vec![("status", Some(json!("FAILED")))],
            Effect::Change(fields) => fields,
        };
        if let Some(image) = self.images.get_mut(name).and_then(Value::as_object_mut) {
            change(image, fields);
        }
    }

    /// Starts the import of an image, by [the rules](https://cloud.google.com/compute/docs/reference/rest/v1/images).
    pub(super) fn insert(
        &mut self,
        body: &Value,
        request: Option<&String>,
        content: Option<Content>,
        fault: Option<&Fault>,
    ) -> Result<Value, Refused> {
        if let Some(operation) = self.repeated(request)? {
            return Ok(operation);
        }
        let fields = body.as_object().ok_or_else(|| invalid("no image"))?;
        if let Some(field) = fields.keys().find(|field| !INSERTABLE.contains(&field.as_str())) {
            return Err(invalid(format!(
                "Invalid value for field 'resource.{field}': it cannot be set on insert"
            )));
        }
        let name = body["name"].as_str().unwrap_or_default().to_owned();
        if !is_name(&name) {
            return Err(invalid(format!("Invalid value for field 'resource.name': '{name}'")));
        }
        check_features(body)?;
        check_labels(&body["labels"])?;
        if body["description"]
            .as_str()
            .is_some_and(|text| text.chars().count() > 2048)
        {
            return Err(invalid("Invalid value for field 'resource.description'"));
        }
        if body["storageLocations"]
            .as_array()
            .is_some_and(|locations| locations.len() > 1)
        {
            return Err(invalid("Only one storage location is supported"));
        }
        if self.images.contains_key(&name) {
            let message = format!("The resource 'projects/{PROJECT}/global/images/{name}' already exists");
            return Err(refused(409, "alreadyExists", message));
        }
        let content = content.ok_or_else(|| invalid("Invalid value for field 'resource.rawDisk.source'"))?;
        let mut delay = self.delay;
        let mut error = None;
        let mut effect = match &content.disk {
            Ok(size) => Effect::Import(Ok(*size)),
            Err(why) => {
                let message = format!("The tar archive is not a valid image: {why}");
                error = Some(("INVALID_IMAGE".to_owned(), message.clone(), 400));
                Effect::Import(Err((message, true)))
            }
        };
        if let Some(Fault::Fails {
            code,
            status,
            after,
            leaves,
        }) = fault
        {
            delay = *after;
            error = Some(((*code).to_owned(), "as the test wants it".to_owned(), *status));
            effect = Effect::Import(Err((String::new(), *leaves)));
        }
        let mut image = self.describe(&name, fields.clone());
        image["status"] = json!("PENDING");
        image["archiveSizeBytes"] = json!(content.length.to_string());
        self.contents.insert(name.clone(), content.sha256);
        self.images.insert(name.clone(), image);
        Ok(self.begin("insert", name, delay, Some(effect), error, request))
    }

    /// Adds an image as if it had been created earlier; absent fields get defaults.
    pub(super) fn put(&mut self, name: &str, fields: &Value) {
        let mut image = self.describe(name, fields.as_object().cloned().unwrap_or_default());
        if image["status"].is_null() {
            image["status"] = json!("READY");
        }
        self.images.insert(name.to_owned(), image);
    }

    fn describe(&mut self, name: &str, mut fields: Map<String, Value>) -> Value {
        self.made += 1;
        let mut set = |field: &str, value: Value| {
            fields.entry(field).or_insert(value);
        };
        set("kind", json!("compute#image"));
        set("name", json!(name));
        set("id", json!((7_000_000_000_000_000_000 + self.made).to_string()));
        set("creationTimestamp", json!(Timestamp::now().to_string()));
        set("selfLink", json!(link("images", name)));
        set("sourceType", json!("RAW"));
        set("labelFingerprint", json!(fingerprint()));
        Value::Object(fields)
    }

    pub(super) fn delete(&mut self, key: &str, request: Option<&String>) -> Result<Value, Refused> {
        if let Some(operation) = self.repeated(request)? {
            return Ok(operation);
        }
        let name = self.name_of(key)?;
        if let Some(image) = self.images.get_mut(&name) {
            image["status"] = json!("DELETING");
        }
        Ok(self.begin("delete", name, self.delay, Some(Effect::Delete), None, request))
    }

    pub(super) fn deprecate(&mut self, key: &str, body: &Value, request: Option<&String>) -> Result<Value, Refused> {
        if let Some(operation) = self.repeated(request)? {
            return Ok(operation);
        }
        let name = self.name_of(key)?;
        let known = ["state", "replacement", "deprecated", "obsolete", "deleted"];
        for (field, value) in body.as_object().into_iter().flatten() {
            let fits = match field.as_str() {
                "state" => value
                    .as_str()
                    .is_some_and(|s| ["ACTIVE", "DEPRECATED", "OBSOLETE", "DELETED"].contains(&s)),
                "replacement" => value.as_str().is_some_and(|url| url.contains("/global/images/")),
                field if known.contains(&field) => value.as_str().is_some_and(|at| at.parse::<Timestamp>().is_ok()),
                _ => false,
            };
            if !fits {
                return Err(invalid(format!("Invalid value for field 'resource.{field}': {value}")));
            }
        }
        let status = match body["state"].as_str() {
            None | Some("ACTIVE") => None,
            Some(_) => Some(body.clone()),
        };
        let effect = Effect::Change(vec![("deprecated", status)]);
        Ok(self.begin("deprecate", name, self.delay, Some(effect), None, request))
    }

    pub(super) fn patch(&mut self, key: &str, body: &Value, request: Option<&String>) -> Result<Value, Refused> {
        if let Some(operation) = self.repeated(request)? {
            return Ok(operation);
        }
        let name = self.name_of(key)?;
        let mut fields = Vec::new();
        for (field, value) in body.as_object().into_iter().flatten() {
            let Some(field) = PATCHABLE.into_iter().find(|known| known == field) else {
                return Err(invalid(format!(
                    "Invalid value for field 'resource.{field}': it cannot be changed"
                )));
            };
            if field == "family" && !value.as_str().is_some_and(is_name) {
                return Err(invalid("Invalid value for field 'resource.family'"));
            }
            fields.push((field, Some(value.clone())));
        }
        Ok(self.begin("patch", name, self.delay, Some(Effect::Change(fields)), None, request))
    }

    pub(super) fn set_labels(&mut self, key: &str, body: &Value) -> Result<Value, Refused> {
        let name = self.name_of(key)?;
        if self.get(&name)?["labelFingerprint"] != body["labelFingerprint"] {
            return Err(refused(
                412,
                "conditionNotMet",
                "Labels fingerprint either invalid or resource labels have changed",
            ));
        }
        check_labels(&body["labels"])?;
        let effect = Effect::Change(vec![
            ("labels", Some(body["labels"].clone())),
            ("labelFingerprint", Some(json!(fingerprint()))),
        ]);
        Ok(self.begin("setLabels", name, self.delay, Some(effect), None, None))
    }

    /// An operation as it is now.
    pub(super) fn operation(&self, name: &str) -> Result<Value, Refused> {
        let operation = self.operations.get(name);
        let operation = operation.ok_or_else(|| absent(&format!("projects/{PROJECT}/global/operations/{name}")))?;
        let done = operation.effect.is_none();
        let mut answer = json!({
            "kind": "compute#operation",
            "id": name.bytes().fold(1u64, |id, byte| id.wrapping_mul(31).wrapping_add(byte.into())).to_string(),
            "name": name,
            "operationType": operation.kind,
            "targetLink": link("images", &operation.image),
            "selfLink": link("operations", name),
            "status": if done { "DONE" } else { "RUNNING" },
            "progress": if done { 100 } else { 0 },
        });
        if let Some((code, message, status)) = operation.error.as_ref().filter(|_| done) {
            answer["error"] = json!({"errors": [{"code": code, "message": message}]});
            answer["httpErrorStatusCode"] = json!(status);
            answer["httpErrorMessage"] = json!("FAILED");
        }
        Ok(answer)
    }

    /// When an operation will be done.
    pub(super) fn due(&self, name: &str) -> Option<Instant> {
        self.operations.get(name).map(|operation| operation.due)
    }

    fn begin(
        &mut self,
        kind: &'static str,
        image: String,
        delay: Duration,
        effect: Option<Effect>,
        error: Option<(String, String, u16)>,
        request: Option<&String>,
    ) -> Value {
        let name = format!("operation-{}", Uuid::new_v4());
        let due = Instant::now() + delay;
        let operation = Operation {
            kind,
            image,
            due,
            effect,
            error,
        };
        self.operations.insert(name.clone(), operation);
        if let Some(request) = request {
            self.requests.insert(request.clone(), name.clone());
        }
        self.operation(&name).unwrap_or_default()
    }

    /// The operation that a request with this id began before.
    fn repeated(&self, request: Option<&String>) -> Result<Option<Value>, Refused> {
        let Some(request) = request else { return Ok(None) };
        let valid = Uuid::parse_str(request).is_ok_and(|id| !id.is_nil());
        if !valid {
            return Err(invalid("requestId is no UUID"));
        }
        self.requests.get(request).map(|name| self.operation(name)).transpose()
    }
}

fn change(image: &mut Map<String, Value>, fields: Vec<(&'static str, Option<Value>)>) {
    for (field, value) in fields {
        match value {
            Some(value) => image.insert(field.to_owned(), value),
            None => image.remove(field),
        };
    }
}
