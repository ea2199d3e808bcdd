//! The program `pilot-rendezvous`: flags in, a running rendezvous until a signal comes (04 §20).

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use pilot_env::Env;
use pilot_env::args::{ArgsError, Flag, Flags, Program};
use pilot_env::output::{self, eprint, print};
use pilot_registry::{AdminToken, NetworkCreation};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::{Rendezvous, RendezvousConfig, Tls};

const PROGRAM: Program = Program {
    name: "pilot-rendezvous",
    about: "registry (TCP) and beacon (UDP) of a Pilot network",
    flags: &[
        Flag::text("config", "", "JSON config file"),
        Flag::host_port("registry-addr", ":9000", "where the registry listens (TCP)"),
        Flag::host_port("beacon-addr", ":9001", "where the beacon listens (UDP)"),
        Flag::host_port("beacon-public", "", "the beacon's address for relay-only nodes; empty: where it listens"),
        Flag::text("beacon-peers", "", "other beacons to gossip with, ip:port separated by commas"),
        Flag::uint("beacon-id", "0", 0, u32::MAX as u64, "this beacon's id in gossip"),
        Flag::text("store", "", "store file; empty keeps everything in memory"),
        Flag::text("import", "", "snapshot of an official registry to fill a new store with"),
        Flag::switch("tls", "TLS for the registry"),
        Flag::text("tls-cert", "", "certificate chain (PEM); empty: self-signed, kept beside the store"),
        Flag::text("tls-key", "", "private key (PEM)"),
        Flag::host_port("health", "", "where /healthz is served (HTTP)"),
        Flag::text(
            "admin-token",
            "",
            "proves commands about any network; other users of this host can see it: better -admin-token-file",
        ),
        Flag::text("admin-token-file", "", "file with the admin token, which other users then do not see"),
        Flag::one_of(
            "network-creation",
            &["default", "anyone", "admin"],
            "default",
            "who may create networks; default: everybody, or with an admin token only who has it",
        ),
        Flag::uint("new-nodes-per-minute", "10", 1, 1_000_000, "new nodes from one address"),
        Flag::uint("max-connections", "20000", 1, 10_000_000, "connections to the registry"),
        Flag::uint("max-connections-per-source", "2000", 1, 10_000_000, "connections from one address"),
        Flag::one_of("log-level", &["debug", "info", "warn", "error"], "info", "what is logged, to stderr"),
        Flag::one_of("log-format", &["text", "json"], "text", "how it is logged"),
        Flag::switch("version", "print the version and exit"),
    ],
};

/// Largest file with the admin token, bytes.
const MAX_ADMIN_TOKEN: u64 = 4096;

/// Runs the program until it is told to stop (SIGTERM, SIGINT); arguments are without the program's name.
///
/// Prints `registry ADDR`, `beacon ADDR` and, with TLS, `fingerprint HEX` on standard output once it serves. Exit status: 0
/// after an orderly stop, 1 when it cannot start or its output could not be written, 2 for a bad command line.
pub fn main<I>(args: I) -> ExitCode
where
    I: IntoIterator<Item = OsString>,
{
    let flags = match PROGRAM.parse(args) {
        Ok(flags) => flags,
        Err(ArgsError::Help) => {
            print(&PROGRAM.usage());
            return output::success(complain);
        }
        Err(error) => {
            complain(&error.to_string());
            if error.exit_status() == 2 {
                eprint(&format!("\n{}", PROGRAM.usage()));
            }
            return ExitCode::from(error.exit_status());
        }
    };
    if flags.bool("version") {
        print(concat!("pilot-rendezvous ", env!("CARGO_PKG_VERSION"), "\n"));
        return output::success(complain);
    }
    log_to_stderr(&flags);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&flags)) {
        Ok(()) => output::success(complain),
        Err(text) => {
            complain(&text);
            ExitCode::FAILURE
        }
    }
}

/// Fatal errors are printed whatever the log level is (04 §24.46).
fn complain(text: &str) {
    eprint(&format!("pilot-rendezvous: {text}\n"));
}

fn log_to_stderr(flags: &Flags) {
    let level = flags.text("log-level").parse().unwrap_or(tracing::Level::INFO);
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false);
    // A second initialisation in one process (tests) keeps the first.
    let _ = if flags.text("log-format") == "json" { builder.json().try_init() } else { builder.try_init() };
}

/// Where to listen: a missing host means every interface.
async fn listen_addr(env: &Env, flags: &Flags, name: &str) -> Result<Option<SocketAddr>, String> {
    let Some(text) = flags.non_empty(name) else { return Ok(None) };
    if let Some(port) = text.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()) {
        return Ok(Some(SocketAddr::from(([0u16; 8], port))));
    }
    if let Ok(addr) = text.parse() {
        return Ok(Some(addr));
    }
    let found = env.resolve(text).await.map_err(|error| format!("-{name} {text:?}: {error}"))?;
    found.first().copied().map(Some).ok_or_else(|| format!("-{name} {text:?}: the name has no address"))
}

async fn configure(env: &Env, flags: &Flags) -> Result<RendezvousConfig, String> {
    let required = |name: &'static str, addr: Option<SocketAddr>| {
        addr.ok_or_else(|| format!("-{name} is empty: expected host:port, such as :9000"))
    };
    let registry_addr = required("registry-addr", listen_addr(env, flags, "registry-addr").await?)?;
    let beacon_addr = required("beacon-addr", listen_addr(env, flags, "beacon-addr").await?)?;
    let mut config = RendezvousConfig::new(registry_addr, beacon_addr);
    config.beacon_public = listen_addr(env, flags, "beacon-public").await?;
    config.health = listen_addr(env, flags, "health").await?;
    config.store = flags.non_empty("store").map(PathBuf::from);
    config.import = flags.non_empty("import").map(PathBuf::from);
    config.tls = match (flags.bool("tls"), flags.non_empty("tls-cert"), flags.non_empty("tls-key")) {
        (true, None, None) => Tls::SelfSigned,
        (true, Some(certificate), Some(key)) => Tls::Files { certificate: certificate.into(), key: key.into() },
        (false, None, None) => Tls::Off,
        (false, ..) => return Err("-tls-cert and -tls-key do nothing without -tls".to_owned()),
        (true, ..) => return Err("-tls-cert and -tls-key are given together or not at all".to_owned()),
    };
    config.beacon.id = u32::try_from(flags.uint("beacon-id")).unwrap_or(0);
    for peer in flags.text("beacon-peers").split(',').map(str::trim).filter(|peer| !peer.is_empty()) {
        let addr = peer.parse().map_err(|_| format!("-beacon-peers: {peer:?} is not ip:port"))?;
        config.beacon.peers.push(addr);
    }
    config.registry.admin_token = admin_token(env, flags)?;
    config.registry.network_creation = match flags.text("network-creation") {
        "anyone" => NetworkCreation::Anyone,
        "admin" if config.registry.admin_token.0.is_empty() => {
            return Err("-network-creation admin needs -admin-token or -admin-token-file".to_owned());
        }
        "admin" => NetworkCreation::Admin,
        _ => NetworkCreation::Default,
    };
    let per_minute = u32::try_from(flags.uint("new-nodes-per-minute")).unwrap_or(u32::MAX);
    config.registry.new_nodes.burst = per_minute;
    config.registry.new_nodes.per_second = f64::from(per_minute) / 60.0;
    let count = |name| usize::try_from(flags.uint(name)).unwrap_or(usize::MAX);
    config.max_connections = count("max-connections");
    config.max_per_source = count("max-connections-per-source");
    Ok(config)
}

/// The admin token, from the command line or a file.
fn admin_token(env: &Env, flags: &Flags) -> Result<AdminToken, String> {
    let given = flags.text("admin-token").to_owned();
    let Some(path) = flags.non_empty("admin-token-file") else { return Ok(AdminToken(given)) };
    if !given.is_empty() {
        return Err("-admin-token and -admin-token-file are two answers to one question; give one".to_owned());
    }
    let fail = |why: String| format!("-admin-token-file {path}: {why}");
    let text = env.fs().read_limited(path.as_ref(), MAX_ADMIN_TOKEN).map_err(|error| fail(error.to_string()))?;
    let text = String::from_utf8(text).map_err(|_| fail("it is not text".to_owned()))?;
    match text.trim() {
        "" => Err(fail("it is empty".to_owned())),
        token => Ok(AdminToken(token.to_owned())),
    }
}

async fn run(flags: &Flags) -> Result<(), String> {
    // Before anything is promised, so that no signal finds us unprepared.
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let env = Env::real();
    let config = configure(&env, flags).await?;
    let in_memory = config.store.is_none();
    let rendezvous = Rendezvous::start(env, config).await.map_err(|error| error.to_string())?;
    if in_memory {
        tracing::warn!("no -store: every node gets a new address after a restart");
    }
    let mut ready = format!("registry {}\nbeacon {}\n", rendezvous.registry_addr(), rendezvous.beacon_addr());
    if let Some(addr) = rendezvous.health_addr() {
        ready.push_str(&format!("health {addr}\n"));
    }
    if let Some(fingerprint) = rendezvous.fingerprint() {
        ready.push_str(&format!("fingerprint {fingerprint}\n"));
    }
    print(&ready);
    if let Some(why) = output::lost() {
        // Nodes are served all the same.
        tracing::warn!(why, "where this rendezvous listens could not be written to standard output");
    }
    // Without a service manager nothing happens, and one that does not listen is no reason to stop.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    rendezvous.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::PROGRAM;

    #[test]
    fn the_flags_are_declared_soundly() {
        PROGRAM.check();
    }
}
