//! The commands and their help.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgGroup, Args, Parser, Subcommand, ValueEnum};
use url::Url;
use uuid::Uuid;

use crate::base::resource;
use crate::commands::telemetry::LogFormat;

/// Publishes the images of finished composes to AWS, Azure, Google Cloud, container registries, or a local directory.
///
/// One process serves one provider: the one that the configuration file has a section for.
#[derive(Debug, Parser)]
#[command(version = crate::VERSION, arg_required_else_help = true)]
pub struct Arguments {
    /// The fedora-messaging configuration file [default: the variable FEDORA_MESSAGING_CONF, else
    /// /etc/fedora-messaging/config.toml]
    #[arg(long, value_name = "FILE", global = true)]
    pub conf: Option<PathBuf>,
    /// The form of log lines on standard error.
    #[arg(long, value_enum, global = true, default_value = "text")]
    pub log_format: LogFormat,
    /// The command.
    #[command(subcommand)]
    pub invocation: Invocation,
}

/// The commands, with and without a configuration.
#[derive(Debug, Subcommand)]
pub enum Invocation {
    /// A command that reads the configuration file.
    #[command(flatten)]
    Configured(Command),
    /// Write the manual pages and shell completions that a package installs, below a folder such as /usr/share.
    PackageFiles {
        /// The folder, which is created if it is missing.
        share: PathBuf,
    },
}

/// The commands that read the configuration file.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: take messages from the queue and publish what they announce.
    ///
    /// Exit codes: 0 stopped by a signal; 2 bad configuration; 10 a queue or binding could not be declared; 12 the
    /// queue was deleted and is not back; 14 the TLS or AMQP handshake was refused; 15 no permission to read the queue.
    Consume,
    /// Publish one compose in the foreground, without a queue. Sends notifications if the configuration says so.
    ///
    /// Exit codes: 0 done; 1 an image or a location failed; 2 bad option, configuration, or message.
    Reconsume(Reconsume),
    /// Show what would be published, changing nothing. Needs no broker, no credentials, and no cloud.
    Plan(Plan),
    /// Run the provider's retention policy now: remove the images it retires, and print each decision with its reason.
    ///
    /// Azure and Google Cloud have such a policy; it also runs after each new image. Exit codes: 0 done; 1 something
    /// could not be removed, or a list could not be read in full, and then nothing was removed; 2 bad option or
    /// configuration.
    CleanUp {
        /// Remove nothing, only print the decisions.
        #[arg(long)]
        dry_run: bool,
    },
    /// Check the configuration, the broker, and the provider's credentials and targets; one line per finding.
    Check {
        /// Look at the configuration file and the environment only.
        #[arg(long)]
        offline: bool,
    },
}

/// Arguments of `reconsume`.
#[derive(Debug, Args)]
pub struct Reconsume {
    /// The compose.
    #[command(flatten)]
    pub subject: Subject,
    /// Change only this location: a region or a registry, as the configuration names it. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub location: Vec<String>,
    /// Move container tags even if they hold a newer compose.
    #[arg(long)]
    pub allow_older: bool,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// The compose.
    #[command(flatten)]
    pub subject: Subject,
    /// A table for people, or JSON for programs.
    #[arg(long, value_enum, default_value = "table")]
    pub format: PlanFormat,
}

/// The form of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlanFormat {
    /// A line per image.
    Table,
    /// One object.
    Json,
}

/// The compose that a command is about.
#[derive(Debug, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("which").required(true).args(["id", "file", "compose"]))]
pub struct Subject {
    /// The id of a message to fetch from datagrepper.
    pub id: Option<Uuid>,
    /// A file with one serialized message. A relative location in it starts at the file's folder.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The location of a finished compose, instead of its message.
    #[arg(long, value_name = "URL")]
    pub compose: Option<String>,
    /// Ask this datagrepper instead of the configured one.
    #[arg(long, value_name = "URL", value_parser = Address)]
    pub datagrepper_url: Option<Url>,
    /// Only image paths, file names, or repositories that match; * and ? stand for anything.
    #[arg(long, value_name = "PATTERN")]
    pub only: Option<String>,
}

/// The address of a web service. An error of clap's own would repeat it, and with it a password.
#[derive(Debug, Clone)]
struct Address;

impl TypedValueParser for Address {
    type Value = Url;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&Arg>, value: &OsStr) -> Result<Url, clap::Error> {
        resource::web(&value.to_string_lossy()).map_err(|_| {
            let option = arg.map(Arg::to_string).unwrap_or_default();
            let why = "only http and https are accepted, without user name and password";
            let text = format!("invalid value for '{option}': {why}\n");
            clap::Error::raw(ErrorKind::ValueValidation, text).with_cmd(command)
        })
    }
}
