//! Assembles the parts of the program from the configuration.

use std::io::{Write, stdout};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use reqwest::Client;
use tokio::signal::unix::{SignalKind, signal};

use super::arguments::Subject;
use super::exit::Stop;
use crate::base::failure::{Chain, Failure};
use crate::base::http;
use crate::base::progress::Board;
use crate::base::resource::Resource;
use crate::base::retry;
use crate::config::{Config, Environment};
use crate::images::signature::Signatures;
use crate::images::source::Sources;
use crate::messaging::broker::Broker;
use crate::messaging::datagrepper;
use crate::messaging::message::{Intent, Message, RequestSource};
use crate::messaging::notify::Notifier;
use crate::model::compose::Compose;
use crate::model::compose::release::Releases;
use crate::providers::connect::connect;
use crate::providers::contract::{Provider, Retire};
use crate::publish::pipeline::Pipeline;

/// The pipeline that publishes, and the retention policy that removes afterwards.
pub(super) struct Assembled {
    pub pipeline: Pipeline,
    pub retire: Option<Arc<dyn Retire>>,
}

pub(super) fn assemble(
    config: &Config,
    environment: &Environment,
    broker: Arc<Broker>,
    board: Board,
) -> Result<Assembled, Stop> {
    let http = compose_client(config)?;
    let service = &config.service;
    let Provider { publish, retire } = provider(config, environment)?;
    let pipeline = Pipeline {
        releases: releases(config)?,
        hosts: service.allowed_compose_hosts.clone(),
        signatures: Signatures::new(service).map_err(|error| Stop::usage(anyhow!("failed to {}", Chain(&error))))?,
        section: config.provider.clone(),
        provider: publish,
        gates: Vec::new(),
        announced: Arc::default(),
        sources: Sources::new(
            http.clone(),
            board,
            service.max_concurrent_images,
            service.buffer_memory,
            service.decode_threads,
        ),
        notifier: Notifier::new(config.provider.publish_amqp_messages().then_some(broker)),
        location_patience: service.location_patience,
        give_up_after: service.give_up_after,
        conf: config.path.clone(),
        http,
    };
    Ok(Assembled { pipeline, retire })
}

pub(super) fn provider(config: &Config, environment: &Environment) -> Result<Provider, Stop> {
    connect(&config.provider, environment).map_err(|failure| Stop::usage(anyhow!("failed to {failure}")))
}

pub(super) fn compose_client(config: &Config) -> Result<Client> {
    Ok(http::client_within(config.service.allowed_compose_hosts.clone())?)
}

pub(super) fn releases(config: &Config) -> Result<Releases> {
    let service = &config.service;
    Ok(Releases::new(
        http::client()?,
        service.bodhi_url.clone(),
        service.release_metadata_url.clone(),
    ))
}

/// Reads the message or compose that the operator names. A transient failure is retried as long as an image's.
pub(super) async fn request(http: &Client, config: &Config, subject: &Subject) -> Result<Intent, Stop> {
    retry::within(config.service.give_up_after, read_request(http, config, subject)).await
}

async fn read_request(http: &Client, config: &Config, subject: &Subject) -> Result<Intent, Stop> {
    if let Some(url) = &subject.compose {
        let location = Resource::trusted(url, Path::new("")).map_err(Stop::usage)?;
        let hosts = &config.service.allowed_compose_hosts;
        location.within(hosts).map_err(Failure::from)?;
        let id = Compose::id_at(http, &location).await.map_err(Failure::from)?;
        return Ok(Intent::of_compose(&id, location, RequestSource::Compose(url.clone())));
    }
    if let Some(path) = &subject.file {
        let text = std::fs::read(path)
            .with_context(|| format!("failed to read {}", path.display()))
            .map_err(Stop::usage)?;
        let wish = Message::of_serialized(&text).and_then(|message| {
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            message.wish(absolute.parent())
        });
        let wish = wish
            .with_context(|| format!("failed to use {}", path.display()))
            .map_err(Stop::usage)?;
        return Ok(wish.from(RequestSource::File(path.clone())));
    }
    let id = subject.id.ok_or_else(|| Stop::usage(anyhow!("no message is named")))?;
    let service = subject
        .datagrepper_url
        .as_ref()
        .unwrap_or(&config.service.datagrepper_url);
    match datagrepper::fetch(&http::client().map_err(anyhow::Error::new)?, service, id).await {
        Ok(message) => Ok(message
            .wish(None)
            .with_context(|| format!("failed to use message {id}"))
            .map_err(Stop::usage)?
            .from(RequestSource::Message(id.to_string()))),
        Err(error @ datagrepper::Error::Fetch(_)) => Err(anyhow!("failed to {}", Chain(&error)).into()),
        Err(error) => Err(Stop::usage(anyhow!("failed to {}", Chain(&error)))),
    }
}

/// Warns that an empty selection may be due to the pattern rather than to the compose.
pub(super) fn warn_of_pattern(only: Option<&str>) {
    if let Some(pattern) = only {
        tracing::warn!("--only {pattern:?} was given; without it there may be something");
    }
}

/// Completes when SIGTERM or SIGINT asks the process to end. Further signals change nothing.
///
/// # Errors
///
/// The process may not listen for signals.
pub fn stop_signal() -> Result<impl Future<Output = ()>, Stop> {
    let listen = |kind| signal(kind).context("failed to listen for signals");
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Writes to standard output. A reader that closes it early, as `head` does, is not a failure of the program.
pub(super) fn print(text: &str) {
    let _ = stdout().write_all(text.as_bytes());
}
