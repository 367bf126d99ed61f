//! Everything up to the first write: the compose's metadata, its release, and the selection of what to publish.

use reqwest::Client;

use crate::base::failure::Failure;
use crate::config;
use crate::messaging::message::Request;
use crate::model::compose::Compose;
use crate::model::compose::release::{Release, Releases};
use crate::model::select::{self, Only, Selection};

/// A compose, ready to be published.
#[derive(Debug)]
pub struct Prepared {
    /// Its metadata.
    pub compose: Compose,
    /// Its release.
    pub release: Release,
    /// The deliverables that this process publishes.
    pub selection: Selection,
}

/// Reads a compose and selects its deliverables; `plan` shows the result.
///
/// # Errors
///
/// Metadata or release data that cannot be read or understood.
pub async fn prepare(
    http: &Client,
    releases: &Releases,
    section: &config::Provider,
    request: &Request,
    only: Option<&Only>,
) -> Result<Prepared, Failure> {
    let compose = Compose::fetch(http, &request.location, &request.compose, request.label.as_deref()).await?;
    let release = releases.of(&compose).await?;
    let selection = select::select(&section.publisher(), &compose, &release, only);
    Ok(Prepared {
        compose,
        release,
        selection,
    })
}
