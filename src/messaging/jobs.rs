//! The work behind the deliveries, as the consumer knows it: it hands in tickets and gets them back with a decision.

use crate::base::failure::Disposition;
use crate::messaging::message::Request;

/// The work that deliveries wait for. A ticket (`T`) stands for one delivery, and comes back when it is to be settled.
pub trait Jobs<T: 'static> {
    /// Starts the work that a message asks for, or adds the ticket to that work if it is running. A message that is
    /// delivered again after its work has ended gets its ticket back at once, with the outcome.
    fn join(&mut self, request: Request, ticket: T, redelivered: bool) -> Option<(T, Disposition)>;

    /// Waits for the next work to end; without end while none is running. May be dropped and called again.
    fn next(&mut self) -> impl Future<Output = Ended<T>>;

    /// Keeps an outcome that no delivery could be settled with, for when the messages come back.
    fn remember(&mut self, subjects: Vec<Subject>, disposition: Disposition);

    /// The tickets of all work that has not ended.
    fn tickets(&self) -> impl Iterator<Item = &T>;

    /// The number of composes in work.
    fn len(&self) -> usize;

    /// True while no compose is in work.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Starts no further work, and lets no delivery rest before it goes back to the queue.
    fn stop(&mut self);

    /// Drops the running work. Its deliveries stay unsettled and come back.
    fn abandon(&mut self);
}

/// A compose in one location: messages about the same subject ask for the same work.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The compose's id.
    pub compose: String,
    /// Its location.
    pub location: String,
}

impl Subject {
    /// The subject of a message.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        Self {
            compose: request.compose.to_string(),
            location: request.location.to_string(),
        }
    }
}

/// Work that has ended, and the deliveries to be settled with it.
#[derive(Debug)]
pub struct Ended<T> {
    /// The composes and locations that this is the outcome of.
    pub subjects: Vec<Subject>,
    /// The decision about the deliveries.
    pub disposition: Disposition,
    /// Those that joined.
    pub tickets: Vec<T>,
}
