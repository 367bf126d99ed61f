//! Reads the arguments and the configuration, starts the log, runs the command, and turns errors into exit codes.

use std::io::{IsTerminal, Write, stderr};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use cloud_image_uploader::base::failure::Chain;
use cloud_image_uploader::base::progress::Board;
use cloud_image_uploader::commands::arguments::{Arguments, Command, Invocation};
use cloud_image_uploader::commands::exit::Stop;
use cloud_image_uploader::commands::setup::stop_signal;
use cloud_image_uploader::commands::telemetry::{self, LogFormat};
use cloud_image_uploader::commands::{check, clean_up, consume, package_files, plan, reconsume};
use cloud_image_uploader::config::Config;

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
            // The log has not started yet.
            let _ = writeln!(stderr(), "cloud-image-uploader: {}", Chain(error.as_ref()));
            ExitCode::from(code)
        }
    }
}

async fn run(conf: Option<&Path>, log_format: LogFormat, command: Command) -> Result<u8, Stop> {
    let variable = std::env::var_os("FEDORA_MESSAGING_CONF");
    let path = Config::path(conf, variable.as_deref());
    let mut config = Config::load(&path).map_err(Stop::usage)?;
    // The operator reads the output of `plan` and `check`, so neither sends e-mails.
    if matches!(command, Command::Plan(_) | Command::Check { .. }) {
        config.logging.mail.clear();
    }
    let bars = matches!(command, Command::Reconsume(_)) && stderr().is_terminal();
    let board = if bars { Board::bars() } else { Board::log() };
    let mails = telemetry::start(&config.logging, log_format, board.terminal()).map_err(Stop::usage)?;
    let outcome = match command {
        Command::Consume => consume::run(config, board).await,
        Command::Reconsume(arguments) => unless_stopped(reconsume::run(config, arguments, board)).await,
        Command::Plan(arguments) => unless_stopped(plan::run(&config, &arguments.subject, arguments.format)).await,
        Command::CleanUp { dry_run } => unless_stopped(clean_up::run(&config, dry_run)).await,
        Command::Check { offline } => unless_stopped(check::run(config, offline)).await,
    };
    let code = outcome.unwrap_or_else(|Stop { code, error }| {
        tracing::error!("{}", Chain(error.as_ref()));
        code
    });
    mails.finish().await;
    Ok(code)
}

/// Runs a command until it ends or a signal stops it. A command may stop at any point: its results stay, and the next
/// command finds them.
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
