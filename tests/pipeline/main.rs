//! From delivery to acknowledgement, on a real broker: the program with the local provider, which needs nothing else.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod advice;
mod broker;
mod budget;
mod gates;
mod health;
mod load;
mod locations;
mod mail;
mod messages;
mod metrics;
mod world;
