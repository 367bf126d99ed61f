//! What the process says of itself: logs, metrics, progress.

pub mod progress;
