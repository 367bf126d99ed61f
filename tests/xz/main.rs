//! Decoding of .xz files: equal to liblzma on whatever there is, in bounded memory.

mod files;
mod fuzz;
mod hostile;
mod properties;
mod ways;
