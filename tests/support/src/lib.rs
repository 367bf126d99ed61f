//! Real servers, fakes, and archives for the tests.

pub mod amqp;
pub mod archive;
pub mod certs;
pub mod fedora_messaging;
pub mod http_server;
pub mod process;
pub mod rabbit;
pub mod registry;
pub mod skopeo;
pub mod token_server;
