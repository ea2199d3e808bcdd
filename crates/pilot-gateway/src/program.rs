//! The program `pilot-gateway` (06 §12): `run` maps agents and serves until a signal; `map`, `unmap`, `list` and `stop` act
//! on the gateway of this user that runs.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use pilot::{Driver, Options};
use pilot_env::Env;
use pilot_env::args::{ArgsError, Flag, Flags, Program};
use pilot_env::output::{self, eprint, print};
use pilot_wire::gateway::control::{Answer, Request};
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::table::{OFFICIAL_SUBNET, Subnet, UNPRIVILEGED_SUBNET};
use crate::{DEFAULT_PORTS, Gateway, GatewayConfig, control, parse_ports};

/// How long a connection waits for a daemon that restarts.
const DAEMON_PATIENCE: Duration = Duration::from_secs(10);
/// Shortest silence that may end a connection.
const MIN_IDLE: Duration = Duration::from_secs(1);
/// Words that stand behind the flags.
const COMMANDS: [&str; 5] = ["run", "map", "unmap", "list", "stop"];

const PROGRAM: Program = Program {
    name: "pilot-gateway",
    about: "lets ordinary TCP programs reach Pilot agents: [flags] run [<agent> [<ip>]]... | map <agent> [<ip>] | unmap <ip> \
            | list | stop",
    flags: &[
        Flag::text("config", "", "JSON file with flags of this program as keys"),
        Flag::text("socket", "", "socket of the daemon; empty: the usual places"),
        Flag::text("subnet", "", "addresses for mapped agents; empty: 10.4.0.0/16 for root, else 127.4.0.0/16"),
        Flag::text("ports", DEFAULT_PORTS, "ports of each mapped address, LOCAL:REMOTE where they differ"),
        Flag::text("socks5", "", "address or port for a SOCKS5 proxy, such as 127.0.0.1:1080; empty: none"),
        Flag::text("http-proxy", "", "address or port for an HTTP proxy, such as 127.0.0.1:3128; empty: none"),
        Flag::switch("allow-remote", "let other machines in"),
        Flag::switch("allow-users", "let other users of this host in"),
        Flag::uint("max-connections", "1024", 1, 1 << 20, "connections at once"),
        Flag::duration("idle-timeout", "1h", "silence after which a connection is closed"),
        Flag::one_of("log-level", &["debug", "info", "warn", "error"], "info", "what is logged, to stderr"),
        Flag::one_of("log-format", &["text", "json"], "text", "how it is logged"),
        Flag::switch("version", "print the version and exit"),
    ],
};

/// The subnet a user gets who names none: the official one takes root.
pub fn default_subnet(env: &Env) -> &'static str {
    if env.user_id() == 0 { OFFICIAL_SUBNET } else { UNPRIVILEGED_SUBNET }
}

/// The user ids that may use a gateway started by this process: its own, and that of whoever became root with sudo.
pub fn users(env: &Env, sudo_uid: Option<&str>) -> Vec<u32> {
    let own = env.user_id();
    let before = sudo_uid.filter(|_| own == 0).and_then(|uid| uid.parse().ok());
    before.into_iter().chain([own]).collect()
}

/// Reads where a proxy shall listen: an address, or a port of 127.0.0.1 (`1080`, `:1080`).
///
/// # Errors
/// Says what is expected.
pub fn proxy_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    if let Ok(port) = port.parse::<u16>() {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    let text = text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    text.parse().map_err(|_| format!("invalid address {text:?}: write 127.0.0.1:1080, [::1]:1080, or a port alone"))
}

/// Agents to map, each with the address it shall have: an argument behind an agent that is an IP address is its address.
///
/// # Errors
/// Names an IP address that stands behind no agent.
pub fn targets(words: &[String]) -> Result<Vec<(String, Option<IpAddr>)>, String> {
    let mut targets: Vec<(String, Option<IpAddr>)> = Vec::new();
    for word in words {
        match (word.parse::<IpAddr>(), targets.last_mut()) {
            (Ok(ip), Some((_, of @ None))) => *of = Some(ip),
            (Ok(ip), _) => return Err(format!("{ip} stands behind no agent: write <agent> <ip>")),
            (Err(_), _) => targets.push((word.clone(), None)),
        }
    }
    Ok(targets)
}

/// A driver for a gateway: it goes on when the daemon restarts. `None` looks for the daemon in the usual places.
///
/// # Errors
/// When no daemon answers.
pub async fn driver(socket: Option<&Path>) -> Result<Driver, pilot::Error> {
    let options = Options::default().patience(DAEMON_PATIENCE);
    match socket {
        Some(socket) => Driver::connect_with(socket, options).await,
        None => Driver::connect_default_with(options).await,
    }
}

/// Checks how long a connection may be silent.
///
/// # Errors
/// Says what is expected.
pub fn idle_limit(limit: Duration) -> Result<Duration, String> {
    match limit >= MIN_IDLE {
        true => Ok(limit),
        false => Err("at least 1s is needed: a shorter silence would end every connection at once".to_owned()),
    }
}

/// What ends a gateway: SIGTERM, SIGINT, or `stop` over its control socket.
pub struct Ending {
    terminate: Signal,
    interrupt: Signal,
}

impl Ending {
    /// Listens for signals from now on. Do that before the gateway starts: what it has added to this host by the time a
    /// signal comes must be taken away again.
    ///
    /// # Errors
    /// When signals cannot be listened for.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Does what comes first in the life of a gateway, and then waits for the end. The end may come first; what was begun
    /// is given up then.
    ///
    /// # Errors
    /// That of `first`.
    pub async fn after<E>(&mut self, gateway: &Gateway, first: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        let told = async {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                () = gateway.stop_asked() => {}
            }
        };
        let work = async {
            match first.await {
                Ok(()) => std::future::pending().await,
                Err(error) => Err(error),
            }
        };
        tokio::select! {
            () = told => Ok(()),
            failed = work => failed,
        }
    }
}

/// Runs the program; `args` are without its name. Exit status: 0 in order, 1 when something failed, 2 for a bad command line.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let is_command = |arg: &OsString| arg.to_str().is_some_and(|arg| COMMANDS.contains(&arg));
    let at = args.iter().position(is_command).unwrap_or(args.len());
    let (flags, words) = args.split_at(at);
    let flags = match PROGRAM.parse(flags.iter().cloned()) {
        Ok(flags) => flags,
        Err(ArgsError::Help) => {
            print(&PROGRAM.usage());
            return output::success(lost);
        }
        Err(error) => {
            complain(&error.to_string(), "pilot-gateway -h lists the flags");
            return ExitCode::from(error.exit_status());
        }
    };
    if flags.bool("version") {
        print(concat!("pilot-gateway ", env!("CARGO_PKG_VERSION"), "\n"));
        return output::success(lost);
    }
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let Some((command, words)) = words.split_first() else {
        eprint(&PROGRAM.usage());
        return ExitCode::FAILURE;
    };
    let level = flags.text("log-level").parse().unwrap_or(tracing::Level::INFO);
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false);
    // A second initialisation in one process (tests) keeps the first.
    let _ = if flags.text("log-format") == "json" { builder.json().try_init() } else { builder.try_init() };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start threads: {error}"), "");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match command.as_str() {
            "run" => run(&flags, words).await,
            command => tell(command, words).await,
        }
    });
    match outcome {
        Ok(()) => output::success(lost),
        Err((message, hint)) => {
            complain(&message, &hint);
            ExitCode::FAILURE
        }
    }
}

/// A message and a hint, which may be empty.
type Failure = (String, String);

fn plain(message: impl ToString) -> Failure {
    (message.to_string(), String::new())
}

/// Tells that output was lost.
fn lost(why: &str) {
    complain(why, "");
}

/// Fatal errors are printed whatever the log level is.
fn complain(message: &str, hint: &str) {
    eprint(&format!("error: {message}\n"));
    if !hint.is_empty() {
        eprint(&format!("hint:  {hint}\n"));
    }
}

fn control_socket() -> Result<PathBuf, Failure> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    Ok(control::socket(Path::new(&home.ok_or_else(|| plain("HOME is not set"))?)))
}

fn configure(env: &Env, flags: &Flags) -> Result<GatewayConfig, Failure> {
    let subnet = flags.non_empty("subnet").unwrap_or_else(|| default_subnet(env));
    let subnet: Subnet = subnet.parse().map_err(|error| plain(format!("create gateway: {error}")))?;
    let mut config = GatewayConfig::new(env, subnet);
    config.ports = parse_ports(flags.text("ports")).map_err(plain)?;
    let proxy = |name: &str| flags.non_empty(name).map(proxy_address).transpose().map_err(plain);
    config.socks5 = proxy("socks5")?;
    config.http_proxy = proxy("http-proxy")?;
    config.allow_remote = flags.bool("allow-remote");
    config.allow_users = flags.bool("allow-users");
    config.users = users(env, std::env::var("SUDO_UID").ok().as_deref());
    config.max_connections = usize::try_from(flags.uint("max-connections")).unwrap_or(usize::MAX);
    config.idle_limit =
        idle_limit(flags.duration("idle-timeout")).map_err(|why| plain(format!("-idle-timeout: {why}")))?;
    config.control = Some(control_socket()?);
    Ok(config)
}

async fn run(flags: &Flags, words: &[String]) -> Result<(), Failure> {
    let env = Env::real();
    let (config, targets) = (configure(&env, flags)?, targets(words).map_err(plain)?);
    let no_daemon = |error: pilot::Error| {
        (format!("start gateway: connect to daemon: {error}"), error.hint().unwrap_or_default().into_owned())
    };
    let driver = driver(flags.non_empty("socket").map(Path::new)).await.map_err(no_daemon)?;
    let mut end = Ending::listen().map_err(|error| plain(format!("listen for signals: {error}")))?;
    let failed = |error: crate::GatewayError| (error.to_string(), error.hint().to_owned());
    let gateway = Gateway::start(env, Arc::new(driver), config).await.map_err(failed)?;
    let served = async {
        for (target, ip) in &targets {
            let mapping = gateway.map(target, *ip).await;
            let mapping = mapping.map_err(|error| (format!("map {target}: {error}"), error.hint().to_owned()))?;
            print(&format!("mapped {} → {}\n", text(&mapping, "local_ip"), text(&mapping, "pilot_addr")));
        }
        for (name, addr) in [("socks5", gateway.socks5_addr()), ("http-proxy", gateway.http_proxy_addr())] {
            if let Some(addr) = addr {
                print(&format!("{name} {addr}\n"));
            }
        }
        Ok(())
    };
    let outcome = end.after(&gateway, served).await;
    gateway.shutdown().await;
    outcome
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Tells the gateway that runs.
async fn tell(command: &str, words: &[String]) -> Result<(), Failure> {
    let word = |index: usize| words.get(index).map(String::as_str);
    let ip = |text: &str| text.parse::<IpAddr>().map_err(|_| plain(format!("invalid IP: {text}")));
    let (request, most) = match (command, word(0)) {
        ("map", Some(target)) => (Request::Map { target: target.to_owned(), ip: word(1).map(ip).transpose()? }, 2),
        ("unmap", Some(address)) => (Request::Unmap { ip: ip(address)? }, 1),
        ("list", _) => (Request::List, 0),
        ("stop", _) => (Request::Stop, 0),
        _ => {
            return Err(plain(format!(
                "usage: pilot-gateway {command} <{}>",
                if command == "map" { "agent" } else { "ip" }
            )));
        }
    };
    if let Some(surplus) = words.get(most) {
        return Err(plain(format!("unexpected argument {surplus:?}")));
    }
    let answer = control::ask(&Env::real(), &control_socket()?, &request).await;
    let data = match answer {
        Ok(Answer::Done(data)) => data,
        Ok(Answer::Failed { message, hint, .. }) => return Err((message, hint)),
        Err(error) => {
            let hint = "start it with: pilot-gateway run <agent>";
            return Err((format!("gateway is not running ({error})"), hint.to_owned()));
        }
    };
    match command {
        "map" => print(&format!("{} → {}\n", text(&data, "local_ip"), text(&data, "pilot_addr"))),
        "unmap" => print(&format!("unmapped {}\n", text(&data, "unmapped"))),
        "stop" => print(&format!("stopping (pid {})\n", data["pid"])),
        _ => {
            let mappings = data["mappings"].as_array().map(Vec::as_slice).unwrap_or_default();
            for mapping in mappings {
                print(&format!("{} → {}\n", text(mapping, "local_ip"), text(mapping, "pilot_addr")));
            }
            print(&format!("total: {}\n", mappings.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_declared_soundly() {
        PROGRAM.check();
    }

    #[test]
    fn a_port_alone_means_loopback() {
        for text in ["1080", ":1080", "127.0.0.1:1080", "localhost:1080"] {
            assert_eq!(proxy_address(text), Ok(SocketAddr::from(([127, 0, 0, 1], 1080))), "{text}");
        }
        assert_eq!(proxy_address("0.0.0.0:1"), Ok(SocketAddr::from(([0, 0, 0, 0], 1))));
        for bad in ["", "x", "1.2.3.4", "65536", "example.org:1"] {
            assert!(proxy_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_silence_of_nothing_would_end_every_connection() {
        assert_eq!(idle_limit(MIN_IDLE), Ok(MIN_IDLE));
        for short in [Duration::ZERO, Duration::from_millis(999)] {
            assert!(idle_limit(short).is_err());
        }
    }

    #[test]
    fn an_address_belongs_to_the_agent_before_it() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let ip = |text: &str| Some(text.parse().unwrap());
        assert_eq!(
            targets(&words("bob 10.4.0.9 0:0000.0000.0005 eve fd00::1")).unwrap(),
            [
                ("bob".to_owned(), ip("10.4.0.9")),
                ("0:0000.0000.0005".to_owned(), None),
                ("eve".to_owned(), ip("fd00::1"))
            ]
        );
        assert!(targets(&words("10.4.0.9 bob")).is_err() && targets(&words("bob 10.4.0.9 10.4.0.8")).is_err());
    }

    #[test]
    fn who_became_root_with_sudo_may_use_it_still() {
        let env = Env::simulated(1);
        assert_eq!(users(&env, Some("1000")), [env.user_id()]);
    }
}
