//! Real servers, fakes, and archives for the tests.
//!
//! A test starts what it needs and drops it. Everything listens on loopback, on a port that was free, with a folder of its
//! own. `tests/setup` installs the requirements; a test that misses one fails and says so.

pub mod advice;
pub mod amqp;
pub mod amqp_proxy;
pub mod archive;
pub mod aws;
pub mod azure;
pub mod certs;
pub mod fedora_messaging;
pub mod files;
pub mod front;
pub mod gcp;
pub mod http_server;
pub mod mail;
pub mod moto;
pub mod permissions;
pub mod process;
pub mod program;
pub mod proxy;
pub mod rabbit;
pub mod registry;
pub mod sink;
pub mod skopeo;
pub mod survival;
pub mod token_server;
