//! A session with Google Cloud: the calls to Compute Engine, operations followed to their end, and effects read back.
//!
//! The client library makes one try per call; the program's own policy repeats it. The library takes no HTTP client and
//! has no limits of its own, neither for connecting nor for silence, nor for the token it may have to fetch first. So one
//! try gets at most [`http::SILENCE`]: its answers are short and come in one piece. This covers a service
//! that accepts no connection, which other providers give up after [`http::CONNECT`].
//!
//! An operation that ended well is no proof, and some answers cannot be followed: each change of an image is read back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use google_cloud_compute_v1::client::{GlobalOperations, Images};
use google_cloud_compute_v1::model::image_list::warning::Code;
use google_cloud_compute_v1::model::operation::Status;
use google_cloud_compute_v1::model::{
    DeprecationStatus, GlobalSetLabelsRequest, Image, Operation, TestPermissionsRequest,
};
use google_cloud_gax::retry_policy::NeverRetry;
use jiff::Timestamp;
use reqwest::Client;
use url::Url;
use uuid::Uuid;

use super::credentials::{Generation, SharedCredentials};
use super::error::Error;
use super::inventory::deprecation;
use crate::base::http;
use crate::base::retry::Policy;
use crate::config::gcp::Gcp;
use crate::providers::poll::Pace;

/// An operation that takes longer continues without us; the next round looks for it again.
pub(super) const OPERATION_LIMIT: Duration = Duration::from_secs(60 * 60);
/// A change must show within this time after its operation ended. Changes of metadata take a second or two.
const EFFECT_LIMIT: Duration = Duration::from_secs(10);
/// Images on one page of a list; the service's maximum.
const PAGE: u32 = 500;

/// The clients of one piece of work.
pub(super) struct Cloud {
    pub(super) project: String,
    pub(super) bucket: String,
    pub(super) storage: Url,
    pub(super) http: Client,
    /// For the pieces of an upload.
    pub(super) uploads: Client,
    shared: Arc<SharedCredentials>,
    generation: Generation,
    images: Images,
    operations: GlobalOperations,
}

impl Cloud {
    /// Starts a session with the shared credentials.
    pub(super) async fn new(section: &Gcp, shared: &Arc<SharedCredentials>) -> Result<Self, Error> {
        let generation = shared.get().await?;
        let endpoint = section.compute_endpoint.as_str();
        let images = Images::builder()
            .with_endpoint(endpoint)
            .with_credentials(generation.credentials.clone())
            .with_retry_policy(NeverRetry);
        let operations = GlobalOperations::builder()
            .with_endpoint(endpoint)
            .with_credentials(generation.credentials.clone())
            .with_retry_policy(NeverRetry);
        Ok(Self {
            project: section.project.clone(),
            bucket: section.bucket_name.clone(),
            storage: section.storage_endpoint.clone(),
            http: http::client().map_err(Error::Http)?,
            // The service reads a whole piece before it answers. Its 308 is no redirect.
            uploads: http::builder()
                .read_timeout(http::CALL)
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .map_err(|source| Error::Http(http::Error::Build(source)))?,
            images: images.build().await.map_err(Error::Client)?,
            operations: operations.build().await.map_err(Error::Client)?,
            shared: shared.clone(),
            generation,
        })
    }

    /// A token for calls that the library does not make.
    pub(super) async fn token(&self) -> Result<String, Error> {
        let what = "get a token for Google Cloud";
        let token = tokio::time::timeout(http::CALL, self.generation.credentials.access_token()).await;
        let token = token.map_err(|_| Error::silent(what, http::CALL))?;
        Ok(token.map_err(Error::Token)?.token)
    }

    /// Has the next session ask for another token if this one was refused.
    pub(super) async fn note_refusal(&self, error: &Error) {
        if error.is_unauthorized() {
            self.shared.reject(&self.generation).await;
        }
    }

    /// An image by name or number; `None` if the project has none.
    pub(super) async fn image(&self, name: &str) -> Result<Option<Image>, Error> {
        let get = || self.images.get().set_project(&self.project).set_image(name).send();
        match self.repeat(&format!("get image {name}"), get).await {
            Ok(image) => Ok(Some(image)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All images of the project.
    pub(super) async fn list(&self) -> Result<Vec<Image>, Error> {
        let what = format!("list the images of project {}", self.project);
        let mut images = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let list = || {
                let list = self.images.list().set_project(&self.project).set_max_results(PAGE);
                list.set_or_clear_page_token(token.clone()).send()
            };
            let page = self.repeat(&what, list).await?;
            // A page may be empty and not the last one. Any other warning may mean that images are missing in the list.
            let warning = page
                .warning
                .filter(|warning| warning.code != Some(Code::NoResultsOnPage));
            if let Some(warning) = warning {
                return Err(Error::Partial {
                    project: self.project.clone(),
                    warning: warning.message.unwrap_or_else(|| "the service warns".to_owned()),
                });
            }
            images.extend(page.items);
            match page.next_page_token.filter(|token| !token.is_empty()) {
                Some(next) => token = Some(next),
                None => return Ok(images),
            }
        }
    }

    /// Creates an image and follows its import. The caller reads it back.
    pub(super) async fn insert(&self, image: &Image) -> Result<(), Error> {
        let what = format!("create image {}", image.name.as_deref().unwrap_or_default());
        let request = Uuid::new_v4();
        let insert = || {
            let insert = self.images.insert().set_project(&self.project).set_body(image.clone());
            insert.set_request_id(request.to_string()).send()
        };
        self.operate(&what, insert).await
    }

    /// Deletes an image by its number, which another image of that name does not have. An image that is gone is no error.
    pub(super) async fn delete(&self, name: &str, id: Option<u64>) -> Result<(), Error> {
        let what = format!("delete image {name}");
        let request = Uuid::new_v4();
        let key = id.map_or_else(|| name.to_owned(), |id| id.to_string());
        let delete = || {
            let delete = self.images.delete().set_project(&self.project);
            delete.set_image(&key).set_request_id(request.to_string()).send()
        };
        match self.operate(&what, delete).await {
            Err(error) if error.is_absent() => return Ok(()),
            done => done?,
        }
        let mut pace = Pace::within(EFFECT_LIMIT);
        while self.image(&key).await?.is_some() {
            if pace.pause(&what, None).await.is_err() {
                return Err(Error::odd(&what, "success, but the image still exists"));
            }
        }
        Ok(())
    }

    /// Makes an image deprecated or active, and returns it as it is then.
    pub(super) async fn deprecate(&self, name: &str, status: DeprecationStatus) -> Result<Image, Error> {
        let what = format!("set the state of image {name}");
        let request = Uuid::new_v4();
        let deprecate = || {
            let deprecate = self.images.deprecate().set_project(&self.project).set_image(name);
            deprecate
                .set_body(status.clone())
                .set_request_id(request.to_string())
                .send()
        };
        self.operate(&what, deprecate).await?;
        let wanted = std::mem::discriminant(&deprecation(Some(&status)));
        let shows = |image: &Image| std::mem::discriminant(&deprecation(image.deprecated.as_ref())) == wanted;
        self.read_back(&what, name, shows).await
    }

    /// Puts an image into a family, and returns it as it is then.
    pub(super) async fn set_family(&self, name: &str, family: &str) -> Result<Image, Error> {
        let what = format!("put image {name} into family {family}");
        let request = Uuid::new_v4();
        let patch = || {
            let patch = self.images.patch().set_project(&self.project).set_image(name);
            let body = Image::new().set_family(family);
            patch.set_body(body).set_request_id(request.to_string()).send()
        };
        self.operate(&what, patch).await?;
        self.read_back(&what, name, |image| image.family.as_deref() == Some(family))
            .await
    }

    /// Replaces an image's labels, unless another process changed them since they were read. This call alone has no request
    /// id, so its repetition meets the labels that it set itself.
    pub(super) async fn set_labels(&self, image: &Image, labels: HashMap<String, String>) -> Result<(), Error> {
        let name = image.name.as_deref().unwrap_or_default();
        let what = format!("label image {name}");
        let body = GlobalSetLabelsRequest::new()
            .set_labels(labels.clone())
            .set_or_clear_label_fingerprint(image.label_fingerprint.clone());
        let set = || {
            let set = self.images.set_labels().set_project(&self.project).set_resource(name);
            set.set_body(body.clone()).send()
        };
        match self.operate(&what, set).await {
            Ok(()) => {
                let shows = |image: &Image| labels.iter().all(|(name, value)| image.labels.get(name) == Some(value));
                self.read_back(&what, name, shows).await.map(drop)
            }
            Err(error) if error.is_conflict() => match self.image(name).await? {
                Some(image) if image.labels == labels => Ok(()),
                Some(_) | None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Those of these permissions that the account has on an image.
    pub(super) async fn permissions(&self, name: &str, asked: &[&str]) -> Result<Vec<String>, Error> {
        let body = TestPermissionsRequest::new().set_permissions(asked.iter().copied());
        let test = || {
            let test = self.images.test_iam_permissions().set_project(&self.project);
            test.set_resource(name).set_body(body.clone()).send()
        };
        let answer = self
            .repeat(&format!("test the permissions on image {name}"), test)
            .await?;
        Ok(answer.permissions)
    }

    /// Starts an operation and waits for its end. An answer that names no operation ends the wait at once.
    async fn operate<F>(&self, what: &str, start: impl Fn() -> F) -> Result<(), Error>
    where
        F: Future<Output = Result<Operation, google_cloud_gax::error::Error>>,
    {
        let start = || {
            let start = start();
            async {
                match start.await {
                    // A success whose body says nothing.
                    Err(error) if error.is_deserialization() => Ok(Operation::default()),
                    answer => answer,
                }
            }
        };
        let mut operation = self.repeat(what, start).await?;
        let name = operation.name.clone().filter(|name| !name.is_empty());
        let mut pace = Pace::within(OPERATION_LIMIT);
        while operation.status != Some(Status::Done) {
            let Some(name) = &name else { return Ok(()) };
            pace.pause(what, None).await?;
            let get = || {
                let get = self.operations.get().set_project(&self.project);
                get.set_operation(name).send()
            };
            operation = self.repeat(&format!("{what}: follow operation {name}"), get).await?;
        }
        let status = operation
            .http_error_status_code
            .and_then(|status| u16::try_from(status).ok())
            .filter(|status| *status >= 400);
        let error = operation.error.and_then(|error| error.errors.into_iter().next());
        let (code, message) = match (error, status) {
            (None, None) => return Ok(()),
            (Some(error), _) => (error.code, error.message),
            (None, Some(_)) => (None, operation.http_error_message),
        };
        Err(Error::of_operation(
            what,
            &code.unwrap_or_default(),
            &message.unwrap_or_default(),
            status.unwrap_or_default(),
        ))
    }

    /// Reads an image until a change shows in it.
    async fn read_back(&self, what: &str, name: &str, shows: impl Fn(&Image) -> bool) -> Result<Image, Error> {
        let mut pace = Pace::within(EFFECT_LIMIT);
        loop {
            let image = self.image(name).await?;
            let image = image.ok_or_else(|| Error::Vanished(name.to_owned()))?;
            if shows(&image) {
                return Ok(image);
            }
            if pace.pause(what, None).await.is_err() {
                return Err(Error::odd(what, "success, but the image is unchanged"));
            }
        }
    }

    /// Repeats a call after transient failures. Only for calls that may be repeated: those that change something carry a
    /// request id, by which the service recognizes a repetition.
    async fn repeat<T, F>(&self, what: &str, call: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, google_cloud_gax::error::Error>>,
    {
        let attempt = || {
            let call = call();
            async {
                match tokio::time::timeout(http::SILENCE, call).await {
                    Ok(answer) => answer.map_err(|error| Error::of_compute(what, error)),
                    Err(_) => Err(Error::silent(what, http::SILENCE)),
                }
            }
        };
        let done = Policy::CALL.run("gcp compute", Error::class_of_call, attempt).await;
        if let Err(error) = &done {
            self.note_refusal(error).await;
        }
        done
    }
}

/// The state that keeps an image from being the head of its family. The service stores the time and does nothing then; the
/// clean-up policy reads it.
pub(super) fn deprecated(at: Timestamp, replacement: Option<&str>) -> DeprecationStatus {
    use google_cloud_compute_v1::model::deprecation_status::State;
    DeprecationStatus::new()
        .set_state(State::Deprecated)
        .set_deprecated(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .set_or_clear_replacement(replacement)
}
