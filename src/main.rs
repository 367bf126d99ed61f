//! Arguments, logging, configuration, the one provider, the command; errors to exit codes.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use cloud_image_uploader::base::failure::{Chain, Failure};
use cloud_image_uploader::base::progress::Board;
use cloud_image_uploader::base::resource::Resource;
use cloud_image_uploader::base::{http, metrics};
use cloud_image_uploader::commands::arguments::{Arguments, Command, Invocation, PlanFormat, Reconsume, Subject};
use cloud_image_uploader::commands::monitoring::{self, Health};
use cloud_image_uploader::commands::package_files;
use cloud_image_uploader::commands::plan::{self, Plan};
use cloud_image_uploader::commands::telemetry;
use cloud_image_uploader::commands::telemetry::LogFormat;
use cloud_image_uploader::config::{Config, Environment, Problem, Problems};
use cloud_image_uploader::images::signature::Signatures;
use cloud_image_uploader::images::source::Sources;
use cloud_image_uploader::messaging::broker::Broker;
use cloud_image_uploader::messaging::consumer::{self, End};
use cloud_image_uploader::messaging::datagrepper;
use cloud_image_uploader::messaging::message::{Intent, Message, Origin};
use cloud_image_uploader::messaging::notify::Notifier;
use cloud_image_uploader::model::compose;
use cloud_image_uploader::model::compose::release::Releases;
use cloud_image_uploader::model::select::Only;
use cloud_image_uploader::providers::contract::{self, Action, Decision, Provider};
use cloud_image_uploader::publish::pipeline::{self, Options, Pipeline};
use cloud_image_uploader::publish::work::Work;
use reqwest::Client;
use tokio::signal::unix::{SignalKind, signal};

/// Publishing failed.
const FAILED: u8 = 1;
/// A bad option or configuration, or an invalid message.
const USAGE: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments {
        conf,
        log_format,
        invocation,
    } = Arguments::parse();
    let outcome = match invocation {
        Invocation::Configured(command) => run(conf.as_deref(), log_format, command).await,
        Invocation::PackageFiles { share } => write_package_files(&share),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(Stop { code, error }) => {
            // There is no log yet.
            let _ = writeln!(stderr(), "cloud-image-uploader: {}", Chain(error.as_ref()));
            ExitCode::from(code)
        }
    }
}

/// An error and the exit code it ends with.
struct Stop {
    code: u8,
    error: anyhow::Error,
}

impl Stop {
    fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self {
            code: USAGE,
            error: error.into(),
        }
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self { code: FAILED, error }
    }
}

async fn run(conf: Option<&Path>, log_format: LogFormat, command: Command) -> Result<u8, Stop> {
    let variable = std::env::var_os("FEDORA_MESSAGING_CONF");
    let path = Config::path(conf, variable.as_deref());
    let mut config = Config::load(&path).map_err(Stop::usage)?;
    // Whoever looks only sees for himself what is wrong.
    if matches!(command, Command::Plan(_) | Command::Check { .. }) {
        config.logging.mail.clear();
    }
    let bars = matches!(command, Command::Reconsume(_)) && stderr().is_terminal();
    let board = if bars { Board::bars() } else { Board::log() };
    let mails = telemetry::start(&config.logging, log_format, board.terminal()).map_err(Stop::usage)?;
    let outcome = match command {
        Command::Consume => consume(config, board).await,
        Command::Reconsume(arguments) => unless_stopped(reconsume(config, arguments, board)).await,
        Command::Plan(arguments) => unless_stopped(plan(&config, &arguments.subject, arguments.format)).await,
        Command::CleanUp { dry_run } => unless_stopped(clean_up(&config, dry_run)).await,
        Command::Check { offline } => unless_stopped(check(config, offline)).await,
    };
    let code = outcome.unwrap_or_else(|Stop { code, error }| {
        tracing::error!("{}", Chain(error.as_ref()));
        code
    });
    mails.finish().await;
    Ok(code)
}

/// A command that may be left at any point: what it did stays, and the next one finds it.
async fn unless_stopped(command: impl Future<Output = Result<u8, Stop>>) -> Result<u8, Stop> {
    let stop = stop_signal()?;
    tokio::select! {
        outcome = command => outcome,
        () = stop => Ok(0),
    }
}

fn write_package_files(share: &Path) -> Result<u8, Stop> {
    let written = package_files::write(share);
    written.with_context(|| format!("failed to write below {}", share.display()))?;
    Ok(0)
}

async fn consume(config: Config, board: Board) -> Result<u8, Stop> {
    let environment = Environment::of_process();
    no_problems(config.check_environment(&environment))?;
    let health = Arc::new(Health::default());
    if let Some(address) = &config.monitoring {
        let metrics = metrics::start(config.provider.name()).context("failed to set up metrics")?;
        let bound = monitoring::start(address, health.clone(), metrics).await;
        let bound = bound
            .with_context(|| format!("failed to listen on {}:{}", address.address, address.port))
            .map_err(Stop::usage)?;
        tracing::info!("monitoring listens on {bound}");
    }
    let broker = Arc::new(Broker::new(config.amqp.clone()));
    let pipeline = Arc::new(assemble(&config, &environment, broker.clone(), board.clone())?);
    let mut stop = pin!(stop_signal()?);
    let findings = tokio::select! {
        findings = pipeline.provider.check() => findings,
        () = &mut stop => return Ok(0),
    };
    for finding in findings {
        match finding.result {
            Ok(found) => tracing::info!("{}: {found}", finding.subject),
            // The cloud may be back before the next message is; the operator is told at once all the same.
            Err(wrong) => tracing::error!("{}: {wrong}", finding.subject),
        }
    }
    tokio::spawn(async move { board.report().await });
    if let Some(interval) = pipeline.provider.upkeep_interval() {
        tokio::spawn(contract::upkeep(pipeline.provider.clone(), interval));
    }
    let mut work = Work::new(pipeline, health.clone());
    match consumer::consume(&broker, &mut work, &health, config.service.shutdown_grace, stop).await {
        End::Stopped => Ok(0),
        End::Broker { code, error } => Err(Stop {
            code,
            error: anyhow!(error).context("failed to consume"),
        }),
    }
}

async fn reconsume(config: Config, arguments: Reconsume, board: Board) -> Result<u8, Stop> {
    let environment = Environment::of_process();
    let mut problems = config.check_provider(&environment);
    if config.provider.publish_amqp_messages() {
        problems.extend(config.check_broker());
    }
    no_problems(problems)?;
    let known = config.provider.locations();
    if let Some(unknown) = arguments.location.iter().find(|location| !known.contains(location)) {
        let known = known.join(", ");
        return Err(Stop::usage(anyhow!(
            "there is no location {unknown:?}; configured are {known}"
        )));
    }
    let broker = Arc::new(Broker::new(config.amqp.clone()));
    let pipeline = assemble(&config, &environment, broker.clone(), board.clone())?;
    let request = match request(&pipeline.http, &config, &arguments.subject).await? {
        Intent::Publish(request) => request,
        Intent::Nothing(reason) => {
            print(&format!("Nothing to publish: {reason}\n"));
            return Ok(0);
        }
    };
    let options = Options {
        only: arguments.subject.only.as_deref().map(Only::new),
        locations: (!arguments.location.is_empty()).then(|| BTreeSet::from_iter(arguments.location)),
        allow_older: arguments.allow_older,
        ..Options::default()
    };
    let reporting = tokio::spawn(async move { board.report().await });
    let report = pipeline.run(&request, &options).await;
    reporting.abort();
    report.log_published();
    if report.published.is_empty() && report.broken.is_empty() {
        warn_of(arguments.subject.only.as_deref());
    }
    broker.close().await;
    print(&format!("{}\n", plan::summary(&report)));
    report.log_failures();
    Ok(if report.broken.is_empty() { 0 } else { FAILED })
}

async fn plan(config: &Config, subject: &Subject, format: PlanFormat) -> Result<u8, Stop> {
    let http = compose_client(config)?;
    let plan = match request(&http, config, subject).await? {
        Intent::Nothing(reason) => Plan::Nothing(reason),
        Intent::Publish(request) => {
            let only = subject.only.as_deref().map(Only::new);
            let hosts = &config.service.allowed_compose_hosts;
            request.location.within(hosts).map_err(|error| failed(error.into()))?;
            let releases = releases(config)?;
            let prepared = pipeline::prepare(&http, &releases, &config.provider, &request, only.as_ref()).await;
            Plan::Compose(Box::new(prepared.map_err(failed)?))
        }
    };
    if let Plan::Compose(prepared) = &plan
        && let [refused, ..] = &prepared.selection.refused[..]
    {
        return Err(anyhow!("failed to {refused}").into());
    }
    if let Plan::Compose(prepared) = &plan
        && prepared.selection.deliverables.is_empty()
    {
        warn_of(subject.only.as_deref());
    }
    match format {
        PlanFormat::Json => print(&format!("{:#}\n", plan.json())),
        PlanFormat::Table => print(&format!("{}\n", plan.table())),
    }
    Ok(0)
}

/// Nothing is selected: that may be the pattern's fault, and not the compose's.
fn warn_of(only: Option<&str>) {
    if let Some(pattern) = only {
        tracing::warn!("--only {pattern:?} was given; without it there may be something");
    }
}

async fn clean_up(config: &Config, dry_run: bool) -> Result<u8, Stop> {
    let environment = Environment::of_process();
    no_problems(config.check_provider(&environment))?;
    let provider = provider(config, &environment)?;
    let retired = provider.clean_up(dry_run).await.map_err(failed)?;
    if retired.decisions.is_empty() {
        print("Nothing to retire\n");
    }
    let mut good = true;
    for Decision { name, action, reason } in &retired.decisions {
        let line = match action {
            Action::Stays => format!("stays: {name}: {reason}\n"),
            Action::Goes if dry_run => format!("would go: {name}: {reason}\n"),
            Action::Goes => format!("gone: {name}: {reason}\n"),
            Action::GoesLater => format!("goes with the next run: {name}: {reason}\n"),
            Action::Failed(failure) => {
                good = false;
                tracing::error!("failed to retire {name}: {failure}");
                format!("failed: {name}: {failure}\n")
            }
        };
        print(&line);
    }
    Ok(if good { 0 } else { FAILED })
}

async fn check(config: Config, offline: bool) -> Result<u8, Stop> {
    let environment = Environment::of_process();
    let broker_is_used = !matches!(config.provider, cloud_image_uploader::config::Provider::Local(_))
        || config.provider.publish_amqp_messages();
    let mut problems = config.check_provider(&environment);
    if broker_is_used {
        problems.extend(config.check_broker());
    }
    no_problems(problems)?;
    let name = config.provider.name();
    print(&format!(
        "ok: configuration {}: provider {name}\n",
        config.path.display()
    ));
    if offline {
        return Ok(0);
    }
    let broker = Arc::new(Broker::new(config.amqp.clone()));
    let mut good = true;
    if broker_is_used {
        good &= match broker.check().await {
            Ok(queues) => finding(&format!("broker {}", broker.address()), &Ok(queues.join(", "))),
            Err(error) => finding(
                &format!("broker {}", broker.address()),
                &Err(format!("failed to {}", Chain(&error))),
            ),
        };
        broker.close().await;
    }
    let pipeline = assemble(&config, &environment, broker, Board::log())?;
    for found in pipeline.provider.check().await {
        good &= finding(&found.subject, &found.result);
    }
    Ok(if good { 0 } else { FAILED })
}

/// Prints one line; whether it is good news.
fn finding(subject: &str, result: &Result<String, String>) -> bool {
    match result {
        Ok(found) if found.is_empty() => print(&format!("ok: {subject}\n")),
        Ok(found) => print(&format!("ok: {subject}: {found}\n")),
        Err(wrong) => print(&format!("failed: {subject}: {wrong}\n")),
    }
    result.is_ok()
}

fn assemble(config: &Config, environment: &Environment, broker: Arc<Broker>, board: Board) -> Result<Pipeline, Stop> {
    let http = compose_client(config)?;
    let service = &config.service;
    Ok(Pipeline {
        releases: releases(config)?,
        hosts: service.allowed_compose_hosts.clone(),
        signatures: Signatures::new(service).map_err(|error| Stop::usage(anyhow!("failed to {}", Chain(&error))))?,
        section: config.provider.clone(),
        provider: provider(config, environment)?,
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
    })
}

fn provider(config: &Config, environment: &Environment) -> Result<Arc<dyn Provider>, Stop> {
    contract::build(&config.provider, environment).map_err(|failure| Stop::usage(anyhow!("failed to {failure}")))
}

fn compose_client(config: &Config) -> Result<Client> {
    Ok(http::client_within(config.service.allowed_compose_hosts.clone())?)
}

fn releases(config: &Config) -> Result<Releases> {
    let service = &config.service;
    Ok(Releases::new(
        http::client()?,
        service.bodhi_url.clone(),
        service.release_metadata_url.clone(),
    ))
}

/// What the operator asks for.
async fn request(http: &Client, config: &Config, subject: &Subject) -> Result<Intent, Stop> {
    if let Some(url) = &subject.compose {
        let location = Resource::trusted(url, Path::new("")).map_err(Stop::usage)?;
        let hosts = &config.service.allowed_compose_hosts;
        location.within(hosts).map_err(|error| failed(error.into()))?;
        let id = compose::Compose::id_at(http, &location)
            .await
            .map_err(|error| failed(error.into()))?;
        return Ok(Intent::of_compose(&id, location, Origin::Compose(url.clone())));
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
        return Ok(wish.from(Origin::File(path.clone())));
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
            .from(Origin::Message(id.to_string()))),
        Err(error @ datagrepper::Error::Fetch(_)) => Err(anyhow!("failed to {}", Chain(&error)).into()),
        Err(error) => Err(Stop::usage(anyhow!("failed to {}", Chain(&error)))),
    }
}

fn failed(failure: Failure) -> Stop {
    Stop {
        code: FAILED,
        error: anyhow!("failed to {failure}"),
    }
}

fn no_problems(problems: Vec<Problem>) -> Result<(), Stop> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(Stop::usage(Problems::new(problems)))
}

/// Completes when the process is asked to end. Further signals change nothing.
fn stop_signal() -> Result<impl Future<Output = ()>, Stop> {
    let listen = |kind| signal(kind).context("failed to listen for signals");
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// A reader that went away, as `head` does, is no failure of ours.
fn print(text: &str) {
    let _ = stdout().write_all(text.as_bytes());
}
