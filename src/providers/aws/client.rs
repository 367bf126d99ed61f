//! The SDK's clients, one set for each region, and the functions that call them.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::time::Duration;

use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_config::{AppName, BehaviorVersion, SdkConfig};
use aws_config::{ecs::EcsCredentialsProvider, profile::ProfileFileCredentialsProvider};
use aws_sdk_ec2::config::{Credentials, Region as RegionName};
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use {aws_sdk_ebs as ebs, aws_sdk_ec2 as ec2, aws_sdk_iam as iam, aws_sdk_s3 as s3};
use {aws_sdk_servicequotas as servicequotas, aws_sdk_sts as sts};

use super::error::Error;
use crate::base::failure::Classified;
use crate::base::http;
use crate::base::retry::Policy;
use crate::config::Environment;
use crate::config::aws::Aws;

/// The slowest upload that is not given up, in bytes per second. The SDK measures from the request's first byte to the
/// answer's.
const SLOWEST_UPLOAD: u64 = 64 << 10;

/// The clients of one account in all configured regions.
pub(super) struct Clients {
    sdk: SdkConfig,
    environment: Environment,
    regions: BTreeMap<String, Region>,
    /// The client for the bucket, in the base region.
    pub(super) s3: s3::Client,
}

/// The clients of one region.
#[derive(Clone)]
pub(super) struct Region {
    /// The region's code, such as `us-east-1`.
    pub(super) name: String,
    pub(super) ec2: ec2::Client,
    pub(super) ebs: ebs::Client,
}

/// A client's configuration with the endpoint that the environment names, if it names one.
macro_rules! client {
    ($service:ident, $name:literal, $sdk:expr, $region:expr, $environment:expr) => {{
        let mut builder = $service::config::Builder::from($sdk).region(RegionName::new($region.to_owned()));
        if let Some(url) = endpoint($environment, $name) {
            builder = builder.endpoint_url(url);
        }
        builder
    }};
}

impl Clients {
    /// Reads profiles. Opens no connection.
    pub(super) async fn new(section: &Aws, environment: &Environment) -> Self {
        let base = section.base_region.clone();
        let limits = TimeoutConfig::builder()
            .connect_timeout(http::CONNECT)
            .read_timeout(http::SILENCE)
            .operation_attempt_timeout(http::CALL)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(RegionName::new(base.clone()))
            // Only the program's own policy retries: two policies would multiply.
            .retry_config(RetryConfig::disabled())
            .timeout_config(limits.clone());
        if let Ok(name) = AppName::new(env!("CARGO_PKG_NAME")) {
            loader = loader.app_name(name);
        }
        loader = match keys(environment) {
            Some(keys) => loader.credentials_provider(keys),
            None => loader.credentials_provider(chain(&base, limits)),
        };
        let sdk = loader.load().await;
        let regions = section.regions().into_iter().map(|name| {
            let region = Region {
                ec2: ec2::Client::from_conf(client!(ec2, "EC2", &sdk, name, environment).build()),
                ebs: ebs::Client::from_conf(client!(ebs, "EBS", &sdk, name, environment).build()),
                name: name.clone(),
            };
            (name, region)
        });
        let regions = regions.collect();
        // Only AWS itself has a host name for each bucket.
        let path_style = endpoint(environment, "S3").is_some();
        let s3 = client!(s3, "S3", &sdk, base, environment).force_path_style(path_style);
        Self {
            regions,
            s3: s3::Client::from_conf(s3.build()),
            environment: environment.clone(),
            sdk,
        }
    }

    /// The clients of a configured region.
    pub(super) fn region(&self, name: &str) -> Result<&Region, Error> {
        self.regions
            .get(name)
            .ok_or_else(|| Error::UnknownRegion(name.to_owned()))
    }

    /// The service that reports the identity behind the credentials.
    pub(super) fn sts(&self, region: &str) -> sts::Client {
        sts::Client::from_conf(client!(sts, "STS", &self.sdk, region, &self.environment).build())
    }

    /// The service that knows the import role.
    pub(super) fn iam(&self, region: &str) -> iam::Client {
        iam::Client::from_conf(client!(iam, "IAM", &self.sdk, region, &self.environment).build())
    }

    /// The service that knows the quota of public images.
    pub(super) fn quotas(&self, region: &str) -> servicequotas::Client {
        let builder = client!(servicequotas, "SERVICE_QUOTAS", &self.sdk, region, &self.environment);
        servicequotas::Client::from_conf(builder.build())
    }
}

/// `AWS_ENDPOINT_URL_EC2`, else `AWS_ENDPOINT_URL`. The SDK reads profiles for these besides.
fn endpoint<'a>(environment: &'a Environment, service: &str) -> Option<&'a str> {
    environment
        .get(&format!("AWS_ENDPOINT_URL_{service}"))
        .or_else(|| environment.get("AWS_ENDPOINT_URL"))
}

fn keys(environment: &Environment) -> Option<Credentials> {
    let token = environment.get("AWS_SESSION_TOKEN").map(str::to_owned);
    Some(Credentials::new(
        environment.get("AWS_ACCESS_KEY_ID")?,
        environment.get("AWS_SECRET_ACCESS_KEY")?,
        token,
        None,
        "Environment",
    ))
}

/// The sources of credentials besides keys in the environment: all sources of the SDK except the metadata of an instance,
/// which every process on that instance could read.
fn chain(region: &str, limits: TimeoutConfig) -> CredentialsProviderChain {
    let config = ProviderConfig::without_region()
        .with_region(Some(RegionName::new(region.to_owned())))
        .with_retry_config(RetryConfig::disabled())
        .with_timeout_config(limits);
    let profile = ProfileFileCredentialsProvider::builder().configure(&config).build();
    let token = WebIdentityTokenCredentialsProvider::builder()
        .configure(&config)
        .build();
    let container = EcsCredentialsProvider::builder().configure(&config).build();
    CredentialsProviderChain::first_try("Profile", profile)
        .or_else("WebIdentityToken", token)
        .or_else("Container", container)
}

/// The time-outs of a call that sends this many bytes.
pub(super) fn time_outs(bytes: u64) -> TimeoutConfig {
    let limit = http::CALL + Duration::from_secs(bytes / SLOWEST_UPLOAD);
    TimeoutConfig::builder()
        .connect_timeout(http::CONNECT)
        .read_timeout(limit)
        .operation_attempt_timeout(limit)
        .build()
}

/// Repeats a call until it succeeds, fails for good, or a minute is over. Only for calls that may take effect twice.
/// `action` names the call in metrics, `what` reads after "failed to".
pub(super) async fn call<T, E, F>(action: &'static str, what: &str, mut send: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, SdkError<E>>>,
    E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
{
    Policy::CALL
        .run(action, Error::class, || {
            // A future of the SDK has tens of kilobytes. Inline, those of all calls add up in every future that makes them,
            // and one of a whole publication does not fit on a worker's stack any more.
            let sent = Box::pin(send());
            async move { sent.await.map_err(|error| Error::of(action, what, error)) }
        })
        .await
}

/// The same for a change that is read back afterwards: any 2xx counts, also one without the body that the API has for it.
pub(super) async fn change<T, E, F>(action: &'static str, what: &str, mut send: impl FnMut() -> F) -> Result<(), Error>
where
    F: Future<Output = Result<T, SdkError<E>>>,
    E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
{
    call(action, what, || {
        let sent = Box::pin(send());
        async move {
            match sent.await {
                Err(error) if Error::is_unreadable_success(&error) => Ok(()),
                answer => answer.map(drop),
            }
        }
    })
    .await
}

/// Reads a list page by page. A page may be empty although another one follows. `read` gets the token of its page, and
/// returns the page's items with the token of the next one.
pub(super) async fn pages<T, F>(what: &str, mut read: impl FnMut(Option<String>) -> F) -> Result<Vec<T>, Error>
where
    F: Future<Output = Result<(Vec<T>, Option<String>), Error>>,
{
    let mut all = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let (items, next) = read(token.clone()).await?;
        all.extend(items);
        match next.filter(|next| !next.is_empty()) {
            None => return Ok(all),
            // A list that never ends.
            next if next == token => {
                return Err(Error::lacking(what, "new page"));
            }
            next => token = next,
        }
    }
}
