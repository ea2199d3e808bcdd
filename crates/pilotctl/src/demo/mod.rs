//! The demonstration: starts the network, lets two agents talk, reports, and cleans up in every case.

mod network;
mod report;
mod talk;
mod transfer;

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::app::App;
use crate::errors::{CliError, Code, Outcome};
use network::Network;
use report::Report;

/// What to show.
pub(crate) struct Options {
    /// What alice says.
    pub(crate) message: String,
    /// What alice sends.
    pub(crate) source: Source,
    /// Leave the network running.
    pub(crate) keep: bool,
}

/// Where the bytes of the file come from.
pub(crate) enum Source {
    /// Made up on the spot.
    Generated,
    /// A file, a pipe, a device.
    File(PathBuf),
}

/// Longest time for everything but the file.
const STAGE_WAIT: Duration = Duration::from_secs(60);

/// Runs the demonstration; exit code 130 or 143 when a signal ended it early.
pub(crate) async fn run(app: &App, options: Options) -> Outcome {
    let failed = |error: std::io::Error| CliError::internal(format!("demo: watch for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let mut network = Network::prepare()?;
    // Whatever ends this block, the network is taken down below it.
    let outcome = tokio::select! {
        outcome = show(app, &options, &mut network) => outcome,
        _ = interrupt.recv() => Ok(130),
        _ = terminate.recv() => Ok(143),
        _ = hangup.recv() => Ok(129),
    };
    let outcome = match outcome {
        Ok(0) if options.keep => {
            app.out.note("The network runs until Ctrl-C.");
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            Ok(0)
        }
        Err(error) if error.cause.is_none() => match network.last_words() {
            words if words.is_empty() => Err(error),
            words => Err(error.cause(words)),
        },
        other => other,
    };
    network.stop().await;
    outcome
}

async fn show(app: &App, options: &Options, network: &mut Network) -> Outcome {
    // Before anything is started: a file that cannot be read needs no network.
    let mut file = transfer::open(&options.source, network.directory())?;
    let mut report = Report::new(app, network.directory(), options.keep);
    let (alice, bob) = stage("start the network", network.start(&mut report)).await?;
    stage("trust", talk::trust(&alice, &bob, &mut report)).await?;
    stage("ping", talk::ping(&alice, &bob, &mut report)).await?;
    stage("message", talk::message(&alice, &bob, &options.message, &mut report)).await?;
    transfer::file(app, &alice, &bob, &mut file, &mut report).await?;
    stage("status", talk::tunnel(&alice, &bob, &mut report)).await?;
    report.finish(&alice, &bob);
    Ok(0)
}

/// A part of the demonstration under its time limit.
async fn stage<T>(name: &str, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::time::timeout(STAGE_WAIT, work).await.unwrap_or_else(|_| {
        let limit = crate::go::Span::from(STAGE_WAIT);
        Err(CliError::new(Code::Timeout, format!("demo: {name}: not done within {limit}")))
    })
}

/// A failure of the driver, in a part of the demonstration.
fn failed(name: &str) -> impl Fn(pilot::Error) -> CliError {
    move |error| CliError::connection(format!("demo: {name}: {error}"))
}
