//! Reads back a change that AWS has accepted: an answer alone is not taken for success.

use std::time::Duration;

use super::error::Error;
use crate::providers::call::CallError;
use crate::providers::poll::{Look, Status, until};

/// The longest time for which EC2 was seen to hide a change that it had accepted.
const VISIBILITY_DELAY: Duration = Duration::from_secs(60);

/// Looks until the change shows. `what` is the change, as it reads after "failed to".
pub(super) async fn confirmed<T, F>(what: &str, status: &Status, mut look: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<Option<T>, Error>>,
{
    let seen = until(what, VISIBILITY_DELAY, status, || {
        let looked = look();
        async move {
            Ok(match looked.await? {
                Some(found) => Look::Done(found),
                None => Look::Wait("the change does not show yet".to_owned()),
            })
        }
    });
    seen.await.map_err(|error| match error {
        Error::Call(CallError::Unfinished { what, .. }) => Error::Unconfirmed { what },
        error => error,
    })
}
