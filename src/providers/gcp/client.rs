//! A session with Google Cloud: credentials, the calls to Compute Engine, and operations followed to their end.
//!
//! The client library makes one try per call; repetition is that of the rest of the program. The library takes no HTTP
//! client and has no limits of its own, neither for connecting nor for silence, nor for the token it may have to fetch
//! first. So a try as a whole gets no longer than [`http::SILENCE`]: its answers are short and come in one piece. What
//! cannot be told apart is a service that takes no connection, which is given up elsewhere after [`http::CONNECT`].

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use google_cloud_auth::credentials::service_account::AccessSpecifier;
use google_cloud_auth::credentials::{AccessTokenCredentials, external_account, service_account};
use google_cloud_compute_v1::client::{GlobalOperations, Images};
use google_cloud_compute_v1::model::operation::Status;
use google_cloud_compute_v1::model::{
    DeprecationStatus, GlobalSetLabelsRequest, Image, Operation, TestPermissionsRequest,
};
use google_cloud_gax::retry_policy::NeverRetry;
use jiff::Timestamp;
use reqwest::Client;
use serde_json::Value;
use url::Url;
use uuid::Uuid;

use super::error::Error;
use crate::base::http;
use crate::base::retry::Policy;
use crate::config::gcp::Gcp;
use crate::providers::poll::Pace;

/// What a token is asked for. Roles decide what it permits.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// An operation that takes longer is looked for again in the next round. It goes on meanwhile.
pub(super) const OPERATION_LIMIT: Duration = Duration::from_secs(60 * 60);
/// Images a page of a list; the most there can be.
const PAGE: u32 = 500;

/// Credentials and clients for one piece of work: the library gives up for good on credentials that were refused once.
pub(super) struct Cloud {
    pub(super) project: String,
    pub(super) bucket: String,
    pub(super) storage: Url,
    pub(super) http: Client,
    /// For the pieces of an upload.
    pub(super) uploads: Client,
    credentials: AccessTokenCredentials,
    images: Images,
    operations: GlobalOperations,
}

impl Cloud {
    /// Reads the credentials, and has them get their first token.
    pub(super) async fn new(section: &Gcp, file: &Path) -> Result<Self, Error> {
        let credentials = answered(file).await?;
        let endpoint = section.compute_endpoint.as_str();
        let images = Images::builder()
            .with_endpoint(endpoint)
            .with_credentials(credentials.clone())
            .with_retry_policy(NeverRetry);
        let operations = GlobalOperations::builder()
            .with_endpoint(endpoint)
            .with_credentials(credentials.clone())
            .with_retry_policy(NeverRetry);
        Ok(Self {
            project: section.project.clone(),
            bucket: section.bucket_name.clone(),
            storage: section.storage_endpoint.clone(),
            http: http::client().map_err(Error::Http)?,
            // Nothing is to be read while a piece is sent. Its 308 is no redirect.
            uploads: http::builder()
                .read_timeout(http::CALL)
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .map_err(|source| Error::Http(http::Error::Build(source)))?,
            images: images.build().await.map_err(Error::Client)?,
            operations: operations.build().await.map_err(Error::Client)?,
            credentials,
        })
    }

    /// A token for calls without the library.
    pub(super) async fn token(&self) -> Result<String, Error> {
        let what = "get a token for Google Cloud";
        let token = tokio::time::timeout(http::CALL, self.credentials.access_token()).await;
        let token = token.map_err(|_| Error::silent(what, http::CALL))?;
        Ok(token.map_err(Error::Token)?.token)
    }

    /// An image, if there is one.
    pub(super) async fn image(&self, name: &str) -> Result<Option<Image>, Error> {
        let get = || self.images.get().set_project(&self.project).set_image(name).send();
        match tried(&format!("get image {name}"), get).await {
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
            let page = tried(&what, list).await?;
            // Something could not be reached: what is missing here may be there all the same.
            if let Some(warning) = page.warning {
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

    /// Begins and follows the making of an image.
    pub(super) async fn insert(&self, image: &Image) -> Result<(), Error> {
        let what = format!("make image {}", image.name.as_deref().unwrap_or_default());
        let request = Uuid::new_v4();
        let insert = || {
            let insert = self.images.insert().set_project(&self.project).set_body(image.clone());
            insert.set_request_id(request.to_string()).send()
        };
        self.follow(&what, tried(&what, insert).await?).await
    }

    /// Removes an image by its number, so that another one of that name is safe. One that is gone is no fault.
    pub(super) async fn delete(&self, name: &str, id: u64) -> Result<(), Error> {
        let what = format!("delete image {name}");
        let request = Uuid::new_v4();
        let delete = || {
            let delete = self.images.delete().set_project(&self.project);
            delete
                .set_image(id.to_string())
                .set_request_id(request.to_string())
                .send()
        };
        match tried(&what, delete).await {
            Ok(operation) => self.follow(&what, operation).await,
            Err(error) if error.is_absent() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes an image deprecated, obsolete, or active.
    pub(super) async fn deprecate(&self, name: &str, status: DeprecationStatus) -> Result<(), Error> {
        let what = format!("set the state of image {name}");
        let request = Uuid::new_v4();
        let deprecate = || {
            let deprecate = self.images.deprecate().set_project(&self.project).set_image(name);
            deprecate
                .set_body(status.clone())
                .set_request_id(request.to_string())
                .send()
        };
        self.follow(&what, tried(&what, deprecate).await?).await
    }

    /// Puts an image into a family.
    pub(super) async fn set_family(&self, name: &str, family: &str) -> Result<(), Error> {
        let what = format!("put image {name} into family {family}");
        let request = Uuid::new_v4();
        let patch = || {
            let patch = self.images.patch().set_project(&self.project).set_image(name);
            let body = Image::new().set_family(family);
            patch.set_body(body).set_request_id(request.to_string()).send()
        };
        self.follow(&what, tried(&what, patch).await?).await
    }

    /// Replaces an image's labels, unless somebody else changed them since they were read. This call alone has no request
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
        match tried(&what, set).await {
            Ok(operation) => self.follow(&what, operation).await,
            Err(error) if error.is_conflict() => match self.image(name).await? {
                Some(image) if image.labels == labels => Ok(()),
                Some(_) | None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Which of these permissions there are on an image.
    pub(super) async fn permissions(&self, name: &str, asked: &[&str]) -> Result<Vec<String>, Error> {
        let body = TestPermissionsRequest::new().set_permissions(asked.iter().copied());
        let test = || {
            let test = self.images.test_iam_permissions().set_project(&self.project);
            test.set_resource(name).set_body(body.clone()).send()
        };
        let answer = tried(&format!("test the permissions on image {name}"), test).await?;
        Ok(answer.permissions)
    }

    /// Waits for the end of an operation, and tells its error.
    async fn follow(&self, what: &str, mut operation: Operation) -> Result<(), Error> {
        let name = operation.name.clone().unwrap_or_default();
        let mut pauses = Pace::within(OPERATION_LIMIT);
        while operation.status != Some(Status::Done) {
            pauses.pause(what, None).await?;
            let get = || {
                let get = self.operations.get().set_project(&self.project);
                get.set_operation(&name).send()
            };
            operation = tried(&format!("{what}: follow operation {name}"), get).await?;
        }
        let status = operation
            .http_error_status_code
            .and_then(|status| u16::try_from(status).ok());
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
}

/// The state that keeps an image from being its family's head. The time is for the clean-up policy: the service keeps it
/// and does nothing at it.
pub(super) fn deprecated(at: Timestamp, replacement: Option<&str>) -> DeprecationStatus {
    use google_cloud_compute_v1::model::deprecation_status::State;
    DeprecationStatus::new()
        .set_state(State::Deprecated)
        .set_deprecated(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .set_or_clear_replacement(replacement)
}

/// Reads a service account's key, or the configuration of a workload identity.
fn credentials(file: &Path) -> Result<AccessTokenCredentials, Error> {
    let unusable = |why: String| Error::Credentials {
        path: file.to_owned(),
        why,
    };
    let json = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
    // The parser's own error is left out: it may quote the key.
    let json: Value = serde_json::from_slice(&json).map_err(|_| unusable("it is not JSON".to_owned()))?;
    let kind = json.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let built = match kind.as_str() {
        "service_account" => service_account::Builder::new(json)
            .with_access_specifier(AccessSpecifier::from_scopes([SCOPE]))
            .build_access_token_credentials(),
        "external_account" => external_account::Builder::new(json)
            .with_scopes([SCOPE])
            .build_access_token_credentials(),
        _ => {
            return Err(unusable(format!(
                "its type is {kind:?}, and a service_account or an external_account is needed"
            )));
        }
    };
    built.map_err(|_| unusable(format!("something is missing in it, or it is no {kind}")))
}

/// Credentials whose first request for a token was answered. The library has no time-out, and asks only once at a time: one
/// request that is never answered would keep all calls of these credentials waiting. What the answer is, the first call
/// tells.
async fn answered(file: &Path) -> Result<AccessTokenCredentials, Error> {
    let first = credentials(file)?;
    match tokio::time::timeout(http::SILENCE, first.access_token()).await {
        Ok(_) => Ok(first),
        Err(_) => credentials(file),
    }
}

/// Makes a call until it is answered, for a while. Only for calls that may be repeated: those that change something carry
/// a request id, by which the service knows a repetition.
async fn tried<T, F>(what: &str, call: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, google_cloud_gax::error::Error>>,
{
    Policy::CALL
        .run("gcp compute", Error::class_of_call, || {
            let call = call();
            async {
                match tokio::time::timeout(http::SILENCE, call).await {
                    Ok(answer) => answer.map_err(|error| Error::of_compute(what, error)),
                    Err(_) => Err(Error::silent(what, http::SILENCE)),
                }
            }
        })
        .await
}
