//! `gateway start|stop|map|unmap|list`: ordinary TCP programs reach agents (06 §6.10, docs/spec/gateway.md). The commands behind
//! `start` act on the gateway that runs, over its control socket.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pilot_env::Env;
use pilot_gateway::{DEFAULT_PORTS, Gateway, GatewayConfig, GatewayError, control, parse_ports, program};
use pilot_wire::gateway::control::{Answer, Request};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::ChildStdout;
use tokio::time::{Instant, sleep};

use crate::app::App;
use crate::args::{self, Args};
use crate::errors::{CliError, Code, Outcome};
use crate::log_file::{self, LogFile};
use crate::process;
use crate::table::{Arg, Command};

/// Longest wait for a gateway in the background to serve, and for one that was told to end to be gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often we look.
const INTERVAL: Duration = Duration::from_millis(50);
/// Longest first line of a gateway in the background, bytes.
const MAX_LINE: u64 = 16 << 20;
/// Lines of the log shown when a gateway in the background does not start.
const LOG_LINES: usize = 5;

pub(crate) const START: Command = Command {
    name: "gateway start",
    args: &[
        Arg::new("[--subnet <cidr>]", "addresses for mapped agents (default: 10.4.0.0/16 for root, else 127.4.0.0/16)"),
        Arg::new(
            "[--ports <list>]",
            "ports of each address, LOCAL:REMOTE where they differ (default: 80,443,1000,1001,1002,7,8080,8443)",
        ),
        Arg::new(
            "[<pilot-addr>...]",
            "agents to map: addresses or hostnames; an IP address behind one is what it gets",
        ),
        Arg::extra("[--socks5 <addr>]", "serve SOCKS5 here, such as 127.0.0.1:1080 or 1080"),
        Arg::extra("[--http-proxy <addr>]", "serve an HTTP proxy here, such as 127.0.0.1:3128 or 3128"),
        Arg::extra("[--allow-remote]", "let other machines in; without it only loopback addresses can be named"),
        Arg::extra("[--allow-users]", "let other users of this host in"),
        Arg::extra("[--max-connections <n>]", "connections at once (default 1024)"),
        Arg::extra("[--idle-timeout <dur>]", "silence after which a connection is closed (default 1h)"),
        Arg::extra("[--background]", "return once it serves; pilotctl gateway stop ends it"),
    ],
    about: "let curl, browsers and other TCP programs reach agents",
    details: "Runs in the foreground until a signal or `pilotctl gateway stop`. Without root:\n  \
              pilotctl gateway start --socks5 1080 --http-proxy 3128\n  \
              curl --proxy http://127.0.0.1:3128 http://bob.pilot/\n  \
              curl --socks5-hostname 127.0.0.1:1080 http://0000.0000.0005.pilot/\n  \
              pilotctl gateway start --ports 8080:80 bob    # then: curl http://127.4.0.1:8080/\n\
              Only agents can be reached through it, never the internet.",
    returns: "pid, subnet, mappings [{local_ip, pilot_addr, target, ports, failed}], socks5, http_proxy",
    raw: false,
    run: |app, args| Box::pin(start(app, args)),
};

pub(crate) const STOP: Command = Command {
    name: "gateway stop",
    args: &[],
    about: "end the gateway",
    details: "",
    returns: "pid",
    raw: true,
    run: |app, args| Box::pin(stop(app, args)),
};

pub(crate) const MAP: Command = Command {
    name: "gateway map",
    args: &[
        Arg::new("<pilot-addr>", "the agent: an address or a hostname"),
        Arg::new("[local-ip]", "the address it gets; the next free one otherwise"),
    ],
    about: "give an agent an address of this host, in the running gateway",
    details: "An agent that has one keeps it. Ports that cannot be listened on are named under \"failed\".",
    returns: "local_ip, pilot_addr, target, ports [{local, remote}], failed [{local, error}]",
    raw: false,
    run: |app, args| Box::pin(map(app, args)),
};

pub(crate) const UNMAP: Command = Command {
    name: "gateway unmap",
    args: &[Arg::new("<local-ip>", "the address")],
    about: "take an address back, in the running gateway",
    details: "Connections that stand go on.",
    returns: "unmapped, pilot_addr",
    raw: true,
    run: |app, args| Box::pin(unmap(app, args)),
};

pub(crate) const LIST: Command = Command {
    name: "gateway list",
    args: &[],
    about: "show what the running gateway serves",
    details: "",
    returns: "mappings [{local_ip, pilot_addr, target, ports, failed, served, failures, last_error}], total, subnet, socks5, \
              http_proxy, pid, connections, max_connections, turned_away, last_error",
    raw: true,
    run: |app, args| Box::pin(list(app, args)),
};

const START_HINT: &str = "start with: pilotctl gateway start";

fn not_running() -> CliError {
    CliError::new(Code::NotRunning, "gateway is not running")
}

/// A code of the gateway as one of ours.
fn code(text: &str) -> Code {
    match text {
        "invalid_argument" | "bad_request" => Code::InvalidArgument,
        "not_found" => Code::NotFound,
        "already_exists" => Code::AlreadyExists,
        "not_running" => Code::NotRunning,
        "connection_failed" => Code::ConnectionFailed,
        "permission_denied" => Code::PermissionDenied,
        _ => Code::Internal,
    }
}

fn failure(prefix: &str, code_text: &str, message: &str, hint: &str) -> CliError {
    let error = CliError::new(code(code_text), format!("{prefix}{message}"));
    if hint.is_empty() { error } else { error.hint(hint) }
}

fn explain(prefix: &str, error: &GatewayError) -> CliError {
    failure(prefix, error.code(), &error.to_string(), error.hint())
}

/// Asks the gateway that runs; `None` when there is none.
async fn ask(app: &App, prefix: &str, request: &Request) -> Result<Option<Value>, CliError> {
    let socket = app.home.gateway_socket();
    match control::ask(&Env::real(), &socket, request).await {
        Ok(Answer::Done(data)) => Ok(Some(data)),
        Ok(Answer::Failed { code, message, hint }) => Err(failure(prefix, &code, &message, &hint)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) if error.kind() == ErrorKind::TimedOut => {
            Err(CliError::new(Code::Timeout, "the gateway does not answer within 1m0s"))
        }
        Err(error) => Err(CliError::connection(format!("ask the gateway at {}: {error}", socket.display()))),
    }
}

/// Settings from the command line, in the order of the official tool's checks (06 §6.10).
fn configure(app: &App, args: &Args) -> Result<GatewayConfig, CliError> {
    let env = Env::real();
    let list = args.flag("ports").unwrap_or(DEFAULT_PORTS);
    for word in list.split(',').map(str::trim).filter(|word| !word.is_empty() && !word.contains(':')) {
        args::port(word)?;
    }
    let ports = parse_ports(list).map_err(CliError::argument)?;
    let subnet = args.flag("subnet").unwrap_or_else(|| program::default_subnet(&env));
    let subnet = subnet.parse().map_err(|error| CliError::internal(format!("create gateway: {error}")))?;
    let mut config = GatewayConfig::new(&env, subnet);
    config.ports = ports;
    let proxy = |flag: &str| {
        let named = args.flag(flag).map(program::proxy_address).transpose();
        named.map_err(|why| CliError::argument(format!("--{flag}: {why}")))
    };
    config.socks5 = proxy("socks5")?;
    config.http_proxy = proxy("http-proxy")?;
    config.allow_remote = args.is_set("allow-remote");
    config.allow_users = args.is_set("allow-users");
    config.users = program::users(&env, std::env::var("SUDO_UID").ok().as_deref());
    let connections = args.int("max-connections", 1024)?;
    config.max_connections = usize::try_from(connections)
        .ok()
        .filter(|n| (1..=1 << 20).contains(n))
        .ok_or_else(|| CliError::argument(format!("--max-connections must be 1 to {}, not {connections}", 1 << 20)))?;
    if args.flag("idle-timeout").is_some() {
        let limit = args.span("idle-timeout", crate::go::Span::seconds(3600))?.wait();
        config.idle_limit =
            program::idle_limit(limit).map_err(|why| CliError::argument(format!("--idle-timeout: {why}")))?;
    }
    config.control = Some(app.home.gateway_socket());
    Ok(config)
}

async fn start(app: &App, args: &Args) -> Outcome {
    if let Some(running) = ask(app, "", &Request::List).await? {
        return Err(CliError::new(Code::AlreadyExists, format!("gateway is already running (pid {})", running["pid"]))
            .hint("stop it first with: pilotctl gateway stop"));
    }
    let config = configure(app, args)?;
    let targets = program::targets(args.words()).map_err(CliError::argument)?;
    if args.is_set("background") {
        return background(app, args).await;
    }
    let socket = app.home.socket()?;
    let driver = program::driver(Some(Path::new(&socket))).await.map_err(|error| {
        let message = format!("start gateway: connect to daemon: {error}");
        CliError::internal(message).hint("start the daemon with: pilotctl daemon start")
    })?;
    app.home.create()?;
    log(app);
    let mut end =
        program::Ending::listen().map_err(|error| CliError::internal(format!("listen for signals: {error}")))?;
    let gateway = Gateway::start(Env::real(), Arc::new(driver), config).await.map_err(|error| explain("", &error))?;
    let pid_file = app.home.gateway_pid_path();
    let outcome = end.after(&gateway, begin(app, &gateway, &targets, &pid_file)).await;
    gateway.shutdown().await;
    // It is ours: whoever starts a second gateway gets no further than the control socket.
    let _ = fs::remove_file(&pid_file);
    outcome.map(|()| 0)
}

/// Has the warnings of a program that runs for days written in lines: to standard error, or, in the background, to a file
/// that does not grow without end.
fn log(app: &App) {
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false);
    let file = std::env::var_os(process::DETACH_VARIABLE).and_then(|_| LogFile::open(app.home.gateway_log_path()).ok());
    let _ = match file {
        Some(file) => log.with_writer(Mutex::new(file)).try_init(),
        None => log.with_writer(std::io::stderr).try_init(),
    };
}

/// Maps the agents and tells that the doors are open.
async fn begin(
    app: &App,
    gateway: &Gateway,
    targets: &[(String, Option<IpAddr>)],
    pid_file: &Path,
) -> Result<(), CliError> {
    let mut mappings = Vec::new();
    for (target, ip) in targets {
        let mapping = gateway.map(target, *ip).await.map_err(|error| explain(&format!("map {target}: "), &error))?;
        mappings.push(mapping);
    }
    let written = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(pid_file);
    let written = written.and_then(|mut file| write!(file, "{}", std::process::id()));
    written.map_err(|error| CliError::internal(format!("write {}: {error}", pid_file.display())))?;
    let mut human = String::new();
    for mapping in &mappings {
        human.push_str(&line(mapping));
        for failed in mapping["failed"].as_array().into_iter().flatten() {
            let why = failed["error"].as_str().unwrap_or_default();
            app.out.note(&format!("port {} of {} is not served: {why}", failed["local"], text(mapping, "local_ip")));
        }
    }
    let listed = gateway.list();
    human.push_str(&proxies(&listed));
    human.push_str("gateway running\n");
    let data = json!({
        "pid": std::process::id(),
        "subnet": listed["subnet"],
        // As the official tool has it.
        "mappings": if mappings.is_empty() { Value::Null } else { mappings.into() },
        "socks5": listed["socks5"],
        "http_proxy": listed["http_proxy"],
    });
    app.out.result(&data, || human);
    Ok(())
}

/// Starts this program again without a terminal, and waits until it serves.
async fn background(app: &App, args: &Args) -> Outcome {
    app.home.create()?;
    let log_path = app.home.gateway_log_path();
    let internal = |what: &str, error: std::io::Error| CliError::internal(format!("{what}: {error}"));
    let log = log_file::open(&log_path).map_err(|error| internal(&format!("open {}", log_path.display()), error))?;
    let log_start = log.metadata().map_or(0, |metadata| metadata.len());
    let words = args.given().filter(|(name, _)| *name != "background");
    let flags = words.map(|(name, value)| format!("--{name}={value}").into());
    let mut child = process::again(process::GATEWAY_RUN, flags.chain(args.words().iter().map(Into::into)))?
        .env(process::DETACH_VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| internal("start the gateway", error))?;
    let pid = child.id();
    let late = || {
        let error = CliError::new(Code::Timeout, format!("gateway started (pid {pid}) but does not serve"));
        error.hint(format!("check logs: tail -f {}; end it with: kill {pid}", log_path.display()))
    };
    let first = async {
        let mut line = String::new();
        // What cannot be read is told like what was not said.
        if let Some(Ok(out)) = child.stdout.take().map(ChildStdout::from_std) {
            let _ = BufReader::new(out.take(MAX_LINE)).read_line(&mut line).await;
        }
        line
    };
    let deadline = Instant::now() + PATIENCE;
    let first = tokio::time::timeout_at(deadline, first).await.map_err(|_| late())?;
    let answer: Value = serde_json::from_str(&first).unwrap_or(Value::Null);
    if answer["status"] != "ok" {
        // It has closed its output, and so is about to end. An error here means that it has been collected.
        while let Ok(None) = child.try_wait() {
            if Instant::now() > deadline {
                return Err(late());
            }
            sleep(INTERVAL).await;
        }
        let lines = process::log_tail(&log_path, log_start, LOG_LINES);
        let told: Value = lines.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or(Value::Null);
        let text = |key: &str| told[key].as_str().unwrap_or_default();
        return Err(match text("message") {
            "" => CliError::internal("the gateway ended at once").cause(lines),
            message => failure("", text("code"), message, text("hint")),
        });
    }
    let mut data = answer["data"].clone();
    data["log_file"] = log_path.display().to_string().into();
    app.out.result(&data, || {
        let mut human: String = data["mappings"].as_array().into_iter().flatten().map(line).collect();
        human.push_str(&proxies(&data));
        format!("{human}gateway running (pid {})\n", data["pid"])
    });
    Ok(0)
}

async fn stop(app: &App, _args: &Args) -> Outcome {
    let Some(data) = ask(app, "", &Request::Stop).await? else { return Err(not_running()) };
    let Some(pid) = data["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()) else {
        return Err(CliError::connection("the gateway does not say who it is"));
    };
    let deadline = Instant::now() + PATIENCE;
    while process::is_alive(pid) {
        if Instant::now() > deadline {
            let error = CliError::new(Code::Timeout, format!("gateway (pid {pid}) was told to end and still runs"));
            return Err(error.hint(format!("end it with: kill {pid}")));
        }
        sleep(INTERVAL).await;
    }
    app.out.object(&json!({ "pid": pid }));
    Ok(0)
}

async fn map(app: &App, args: &Args) -> Outcome {
    let ip = args.get(1).map(|text| {
        text.parse::<IpAddr>().map_err(|_| CliError::argument(format!("invalid IP: {}", super::line(text))))
    });
    let request = Request::Map { target: args.word(0).to_owned(), ip: ip.transpose()? };
    let data = ask(app, "map: ", &request).await?.ok_or_else(|| not_running().hint(START_HINT))?;
    app.out.object(&data);
    Ok(0)
}

async fn unmap(app: &App, args: &Args) -> Outcome {
    let text = args.word(0);
    let request = match text.parse() {
        Ok(ip) => Request::Unmap { ip },
        // A word that is no address has no mapping.
        Err(_) => Request::List,
    };
    let data = ask(app, "", &request).await?.ok_or_else(|| not_running().hint(START_HINT))?;
    if request == Request::List {
        return Err(CliError::new(Code::NotFound, format!("no mapping for {}", super::line(text))));
    }
    app.out.object(&data);
    Ok(0)
}

async fn list(app: &App, _args: &Args) -> Outcome {
    let hint = "start with: pilotctl gateway start [--ports <list>] [<pilot-addr>...]";
    let data = ask(app, "", &Request::List).await?.ok_or_else(|| not_running().hint(hint))?;
    app.out.result(&data, || {
        let mappings = data["mappings"].as_array().map(Vec::as_slice).unwrap_or_default();
        let total = match mappings.len() {
            0 => "no mappings\n".to_owned(),
            n => format!("total: {n}\n"),
        };
        format!("{}{total}{}", mappings.iter().map(pair).collect::<String>(), proxies(&data))
    });
    Ok(0)
}

fn text(value: &Value, key: &str) -> String {
    super::line(value[key].as_str().unwrap_or_default())
}

fn pair(mapping: &Value) -> String {
    format!("{} → {}\n", text(mapping, "local_ip"), text(mapping, "pilot_addr"))
}

fn line(mapping: &Value) -> String {
    format!("mapped {}", pair(mapping))
}

/// Where the proxies are, a line each.
fn proxies(listed: &Value) -> String {
    let shown = [("SOCKS5", "socks5"), ("HTTP proxy", "http_proxy")].into_iter();
    let shown = shown.filter_map(|(name, key)| Some(format!("{name} on {}\n", listed[key].as_str()?)));
    shown.collect()
}
