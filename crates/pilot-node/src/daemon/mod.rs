//! The program `pilot-daemon`: flags, logs, signals, the service manager, health and metrics, and a [`Node`] in between.

mod flags;
mod http;
mod init;
mod log;
mod pid_file;
mod reload;
mod service;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use pilot_env::Env;
use pilot_env::args::Flags;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::NodeError;
use crate::node::{Node, SHUTDOWN_DEADLINE};
use flags::Settings;
use log::Log;
use pid_file::PidFile;
use reload::Reload;

/// Runs the daemon until SIGINT or SIGTERM. `args` are without the program's name. SIGHUP reads the settings again.
///
/// Exit status: 0 after an orderly end, 1 when it could not start, 2 for a bad command line (06 §11.1).
pub fn main(args: Vec<OsString>) -> ExitCode {
    if init::is_needed()
        && let Some(code) = init::run()
    {
        return code;
    }
    let flags = match flags::PROGRAM.parse(args.iter().cloned()) {
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
    let settings = match flags::settings(&flags) {
        Ok(settings) => settings,
        Err(error) => return fail(&error, 2),
    };
    let to_file = settings.log.file.is_some();
    let log = match Log::start(&Env::real(), settings.log.clone()) {
        Ok(log) => log,
        Err(error) => return fail(&error, 1),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(workers()).build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&NodeError::Config(format!("cannot start threads: {error}")), 1),
    };
    let status = match runtime.block_on(run(args, flags, settings, &log)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error gets it below, in words for people; once is enough.
            if to_file {
                tracing::error!(code = error.code(), %error, "cannot start");
            }
            fail(&error, 1)
        }
    };
    // A task that does not end must not keep the process alive.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    log.flush();
    status
}

/// The daemon's life.
async fn run(args: Vec<OsString>, flags: Flags, settings: Settings, log: &Log) -> Result<(), NodeError> {
    // Before anything is promised, so that no signal finds us unprepared.
    let mut signals = Asked::new()?;
    let env = Env::real();
    let starting = Node::start(env.clone(), settings.node);
    let node = tokio::select! {
        node = starting => node?,
        () = signals.end() => {
            tracing::info!("stopped while starting");
            return Ok(());
        }
    };
    let outcome = serve(&env, &node, &mut signals, (args, flags), settings.http, settings.pid_file, log).await;
    service::stopping();
    tracing::info!("stopping");
    tokio::select! {
        () = node.shutdown(SHUTDOWN_DEADLINE) => tracing::info!("stopped"),
        () = signals.end() => tracing::warn!("second signal: stopped at once"),
    }
    outcome
}

/// From the moment the node runs until somebody asks for its end.
async fn serve(
    env: &Env,
    node: &Node,
    signals: &mut Asked,
    (args, flags): (Vec<OsString>, Flags),
    http: Option<http::Options>,
    pid_file: Option<std::path::PathBuf>,
    log: &Log,
) -> Result<(), NodeError> {
    let monitor = node.monitor();
    let http = match http {
        None => None,
        Some(options) => {
            let addr = options.addr;
            let server = http::Server::start(env, options, monitor.clone(), log.stats())
                .map_err(|source| NodeError::Http { addr, source })?;
            // Whoever starts us learns the port of `:0` here; nobody may be reading, which is no reason to stop.
            if addr.port() == 0 {
                let _ = writeln!(std::io::stdout(), "http {}", server.addr());
            }
            tracing::info!(port = server.addr().port(), "serving health and metrics over HTTP");
            Some(server)
        }
    };
    let _pid_file = match pid_file {
        None => None,
        Some(path) => Some(PidFile::write(env, path)?),
    };
    let udp_port = node.local_addr().port();
    tracing::info!(version = crate::VERSION, address = %node.address(), udp_port, "daemon started");
    service::ready(&monitor);
    let attending = tokio::spawn(service::attend(env.clone(), monitor.clone()));
    let mut reload = Reload::new(args, flags);
    loop {
        match signals.next().await {
            Wish::End => break,
            Wish::Reload => {
                service::reloading();
                reload.run(node, log).await;
                service::ready(&monitor);
            }
        }
    }
    attending.abort();
    if let Some(http) = http {
        http.shutdown().await;
    }
    Ok(())
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

/// The signals a daemon obeys.
struct Asked {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Asked {
    fn new() -> Result<Self, NodeError> {
        let listen =
            |kind| signal(kind).map_err(|error| NodeError::Config(format!("cannot listen for signals: {error}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// SIGTERM or SIGINT.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// The next of all three.
    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::End,
            _ = self.interrupt.recv() => Wish::End,
            _ = self.hangup.recv() => Wish::Reload,
        }
    }
}

/// What a signal asks for.
enum Wish {
    End,
    Reload,
}
