//! The program `pilot-daemon`: flags, logs, signals, and a [`Node`] in between.

mod flags;

use std::ffi::OsString;
use std::process::ExitCode;

use pilot_env::Env;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::error::NodeError;
use crate::node::{Node, SHUTDOWN_DEADLINE};

/// Environment variable with log directives (`pilot_node=debug,warn`) that go before `-log-level`.
const LOG_VARIABLE: &str = "PILOT_LOG";

/// Runs the daemon until SIGINT or SIGTERM. `args` are without the program's name.
///
/// Exit status: 0 after an orderly end, 1 when it could not start, 2 for a bad command line (06 §11.1).
pub fn main(args: Vec<OsString>) -> ExitCode {
    let flags = match flags::PROGRAM.parse(args) {
        Ok(flags) => flags,
        Err(error) => {
            if error.exit_status() == 0 {
                eprint!("{}", flags::PROGRAM.usage());
            } else {
                eprintln!("error: {error}");
                eprintln!("hint:  pilot-daemon -h lists the flags");
            }
            return ExitCode::from(error.exit_status());
        }
    };
    if flags.bool("version") {
        println!("pilot-daemon {}", crate::VERSION);
        return ExitCode::SUCCESS;
    }
    start_log(flags.text("log-level"), flags.text("log-format"));
    let config = match flags::config(&flags) {
        Ok(config) => config,
        Err(error) => return fail(&error, 2),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(workers()).build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&NodeError::Config(format!("cannot start threads: {error}")), 1),
    };
    let status = runtime.block_on(async {
        let node = match Node::start(Env::real(), config).await {
            Ok(node) => node,
            Err(error) => return fail(&error, 1),
        };
        tracing::info!(
            version = crate::VERSION,
            address = %node.address(),
            udp = %node.local_addr(),
            "daemon started"
        );
        wait_for_signal().await;
        tracing::info!("stopping");
        let stopping = node.shutdown(SHUTDOWN_DEADLINE);
        tokio::select! {
            () = stopping => {}
            () = wait_for_signal() => tracing::warn!("second signal: stopped at once"),
        }
        ExitCode::SUCCESS
    });
    // A task that does not end must not keep the process alive.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    status
}

/// One thread moves some 300 MB/s; more threads only help hosts with cores to spare.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().clamp(1, 4))
}

/// A failure is always told on standard error, whatever the log level hides (06 §24.19).
fn fail(error: &NodeError, status: u8) -> ExitCode {
    eprintln!("error: {error}");
    eprintln!("hint:  {}", error.hint());
    ExitCode::from(status)
}

fn start_log(level: &str, format: &str) {
    let level = if level == "warning" { "warn" } else { level };
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start in one process keeps the first one's log.
    let _ = match format {
        "json" => builder.json().try_init(),
        _ => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
    };
}

async fn wait_for_signal() {
    // Registration fails only where signals do not exist; then nothing ends the daemon but a kill.
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
