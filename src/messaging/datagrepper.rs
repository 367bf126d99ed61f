//! Fetches one message by its id from [datagrepper](https://apps.fedoraproject.org/datagrepper/).

use reqwest::Client;
use url::Url;
use uuid::Uuid;

use super::message::Message;
use crate::base::failure::Classified;
use crate::base::http::{self, GetError};
use crate::base::retry::Policy;

/// Far more than any message on the bus.
const LIMIT: u64 = 16 << 20;

/// Fetches a message. Transient failures are retried for about a minute.
///
/// # Errors
///
/// An id that does not exist, a service that does not answer, or an answer that is no message.
pub async fn fetch(http: &Client, service: &Url, id: Uuid) -> Result<Message, Error> {
    let mut url = service.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(["v2", "id"]);
    }
    url.query_pairs_mut()
        .append_pair("id", &id.to_string())
        .append_pair("is_raw", "true");
    let body = Policy::CALL
        .run("datagrepper", GetError::class, || async {
            http::get(http, &url, LIMIT).await
        })
        .await;
    match body {
        Ok(body) => Message::of_serialized(&body).map_err(|source| Error::Message { id, source }),
        Err(GetError::Status { status: 404, .. }) => Err(Error::Unknown {
            id,
            service: service.clone(),
        }),
        Err(error) => Err(Error::Fetch(error)),
    }
}

/// A message that cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service has no message of this id.
    #[error("find message {id}: {service} does not know it")]
    Unknown {
        /// The id.
        id: Uuid,
        /// Who was asked.
        service: Url,
    },
    /// The service did not answer.
    #[error("fetch the message")]
    Fetch(#[source] GetError),
    /// The answer is not a message.
    #[error("understand message {id}")]
    Message {
        /// The id.
        id: Uuid,
        /// Why.
        source: super::message::Error,
    },
}
