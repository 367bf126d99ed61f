//! The container provider on real registries.

mod faults;
mod hostile;
mod publish;
mod tags;
mod world;
