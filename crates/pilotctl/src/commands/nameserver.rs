//! `nslookup` and `nsregister`: names at a nameserver, which a daemon serves with `-nameserver` (04 §22).

use pilot_services::nameserver::{PORT, ask};
use pilot_wire::service::nameserver::{Reply, Request};
use serde_json::{Value, json};

use crate::app::App;
use crate::args::{self, Args};
use crate::errors::{CliError, Code, Outcome};
use crate::go;
use crate::table::{Arg, Command};

/// Longest wait for the answer.
const WAIT: std::time::Duration = std::time::Duration::from_secs(30);

pub(crate) const LOOKUP: Command = Command {
    name: "nslookup",
    args: &[
        Arg::new("<name|network>", "the name; with --type S the id of a network"),
        Arg::new("[port]", "with --type S the port"),
        Arg::new("[--server <address|hostname>]", "the nameserver (default: nameserver of the configuration)"),
        Arg::new("[--type <A|N|S>]", "A an address (default), N a network, S who offers a port"),
    ],
    about: "look a name up at a nameserver",
    details: "  pilotctl nslookup alice --server 0:0000.0000.0001\n  pilotctl nslookup 0 80 --type S",
    returns: "server, type, name, address | network | services [{name, address, port}]",
    raw: false,
    run: |app, args| Box::pin(lookup(app, args)),
};

pub(crate) const REGISTER: Command = Command {
    name: "nsregister",
    args: &[
        Arg::new("<name>", "the name"),
        Arg::new("[--server <address|hostname>]", "the nameserver (default: nameserver of the configuration)"),
        Arg::new("[--type <A|N|S>]", "A this node (default), N a network, S a port of this node"),
        Arg::new("[--network <id>]", "the network, for N and S (default 0)"),
        Arg::new("[--port <port>]", "the port, for S"),
    ],
    about: "register a name at a nameserver, for five minutes",
    details: "Repeat it to keep the name. A name belongs to the node that registered it first, until it expires.",
    returns: "server, type, name, registered (bool)",
    raw: false,
    run: |app, args| Box::pin(register(app, args)),
};

fn kind(args: &Args) -> Result<String, CliError> {
    let kind = args.flag("type").unwrap_or("A").to_uppercase();
    match kind.as_str() {
        "A" | "N" | "S" => Ok(kind),
        _ => Err(CliError::argument(format!("unknown record type {} (use A, N or S)", go::quote(&kind)))),
    }
}

fn name(args: &Args) -> Result<String, CliError> {
    let name = args.word(0);
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(CliError::argument(format!("invalid name {}: a name has no spaces", go::quote(name))));
    }
    Ok(name.to_owned())
}

fn network(text: &str) -> Result<u16, CliError> {
    // The limit makes the cast lossless.
    go::parse_uint(text, u64::from(u16::MAX))
        .map(|id| id as u16)
        .map_err(|why| CliError::argument(format!("invalid network {}: {why}", go::quote(text))))
}

/// Asks the nameserver; its address with the answer.
async fn asked(app: &App, args: &Args, driver: &pilot::Driver, request: &Request) -> Result<(String, Reply), CliError> {
    let configured = app.home.load()?.text(&app.home, "nameserver")?;
    let server = args.flag("server").map(str::to_owned).or(configured).ok_or_else(|| {
        CliError::argument("--server is required")
            .hint("or set it once: pilotctl config --set nameserver=<address|hostname>")
    })?;
    let address = app.resolve(driver, &server).await?;
    let stream = app.dial(driver, address, PORT).await.map_err(|error| {
        CliError::connection(format!("cannot connect to {address} (nameserver port {PORT})"))
            .hint(format!("check that {address} runs with -nameserver: pilotctl ping {address}"))
            .because(&error)
    })?;
    match tokio::time::timeout(WAIT, ask(stream, request)).await {
        Ok(Ok(reply)) => Ok((address.to_string(), reply)),
        Ok(Err(error)) => Err(CliError::connection(format!("nameserver {address}: {error}"))),
        Err(_) => Err(CliError::new(Code::Timeout, format!("no answer of nameserver {address} within 30s"))),
    }
}

async fn lookup(app: &App, args: &Args) -> Outcome {
    let kind = kind(args)?;
    let request = match (kind.as_str(), args.get(1)) {
        ("S", Some(port)) => Request::QueryS { network: network(args.word(0))?, port: args::port(port)? },
        ("S", None) => return Err(CliError::argument("--type S needs a network and a port")),
        (_, Some(surplus)) => {
            return Err(CliError::argument(format!("unexpected argument {}", go::quote(surplus))));
        }
        ("N", None) => Request::QueryN(name(args)?),
        _ => Request::QueryA(name(args)?),
    };
    let driver = app.driver().await?;
    let (server, reply) = asked(app, args, &driver, &request).await?;
    let mut result = json!({ "server": server, "type": kind, "name": args.word(0) });
    let human = match reply {
        Reply::A { address, .. } => {
            result["address"] = address.to_string().into();
            format!("{} {address}\n", args.word(0))
        }
        Reply::N { network, .. } => {
            result["network"] = network.into();
            format!("{} network {network}\n", args.word(0))
        }
        Reply::S(providers) => {
            let services = providers.iter().map(|provider| {
                json!({ "name": provider.name, "address": provider.address.to_string(), "port": provider.port })
            });
            result["services"] = Value::Array(services.collect());
            let line = |p: &pilot_wire::service::nameserver::Provider| {
                format!("{} {}:{}\n", super::line(&p.name), p.address, p.port)
            };
            if providers.is_empty() { "no services\n".to_owned() } else { providers.iter().map(line).collect() }
        }
        Reply::Err(why) => {
            return Err(CliError::new(Code::NotFound, format!("nameserver {server}: {}", super::line(&why))));
        }
        Reply::Ok => return Err(CliError::connection(format!("nameserver {server}: unexpected answer"))),
    };
    app.out.result(&result, || human);
    Ok(0)
}

async fn register(app: &App, args: &Args) -> Outcome {
    let kind = kind(args)?;
    let name = name(args)?;
    let network = args.flag("network").map_or(Ok(0), network)?;
    let port = args.flag("port").map(args::port).transpose()?;
    let driver = app.driver().await?;
    let info = app.ask("info", driver.info()).await?;
    let address = info["address"].as_str().and_then(|text| text.parse().ok());
    let address = address.ok_or_else(|| CliError::connection("info: the daemon has no address yet"))?;
    let request = match (kind.as_str(), port) {
        ("S", Some(port)) => Request::RegisterS { name: name.clone(), address, network, port },
        ("S", None) => return Err(CliError::argument("--type S needs --port")),
        ("N", _) => Request::RegisterN { name: name.clone(), network },
        _ => Request::RegisterA { name: name.clone(), address },
    };
    let (server, reply) = asked(app, args, &driver, &request).await?;
    match reply {
        Reply::Ok => {
            let result = json!({ "server": server, "type": kind, "name": name, "registered": true });
            app.out.result(&result, || format!("registered {name} at {server} for 5 minutes\n"));
            Ok(0)
        }
        Reply::Err(why) => {
            Err(CliError::new(Code::PermissionDenied, format!("nameserver {server}: {}", super::line(&why))))
        }
        _ => Err(CliError::connection(format!("nameserver {server}: unexpected answer"))),
    }
}
