//! A node inside the Python program.

use std::time::Duration;

use pilot::Embedded;
use pilot::node::NodeConfig;
use pilot_proto::endpoint::Encryption;
use pilot_proto::trust::Approval;
use pyo3::prelude::*;
use serde_json::Value;

use crate::errors::{Failure, Kind};
use crate::network::{Backend, Network, parse};
use crate::op::Op;

fn text(args: &Value, key: &str) -> Result<Option<String>, Failure> {
    match args.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Failure::argument(format!("{key} must be a text"))),
    }
}

fn flag(args: &Value, key: &str) -> Result<Option<bool>, Failure> {
    match args.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(yes)) => Ok(Some(*yes)),
        Some(_) => Err(Failure::argument(format!("{key} must be true or false"))),
    }
}

/// Where a server is: a wrong address would be tried for ever.
fn server(args: &Value, key: &str) -> Result<Option<String>, Failure> {
    let given = text(args, key)?;
    let is_wrong = |server: &&String| {
        let parts = server.rsplit_once(':');
        !parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
    };
    match given.as_ref().filter(is_wrong) {
        Some(wrong) => Err(Failure::argument(format!("{key}: {wrong:?} is no address and port"))
            .hint("as in rendezvous.example:9000, 192.0.2.1:9000 or [2001:db8::1]:9000")),
        None => Ok(given),
    }
}

fn config(args: &Value) -> Result<NodeConfig, Failure> {
    let mut config = NodeConfig::default();
    if let Some(registry) = server(args, "registry")? {
        config.registry = registry;
    }
    // None turns it off; absent leaves the default.
    if args.get("beacon").is_some() {
        config.beacon = server(args, "beacon")?;
    }
    if let Some(pin) = text(args, "registry_fingerprint")? {
        let parsed = pin.parse().map_err(|error| Failure::argument(format!("registry_fingerprint: {error}")))?;
        config.registry_fingerprint = Some(parsed);
    }
    if let Some(listen) = text(args, "listen")? {
        config.listen = listen.parse().map_err(|_| {
            Failure::argument(format!("listen: {listen:?} is no address")).hint("as in [::]:0 or 127.0.0.1:4000")
        })?;
    }
    config.identity = text(args, "identity")?.map(Into::into);
    config.socket = text(args, "socket")?.map(Into::into);
    config.endpoint = text(args, "endpoint")?;
    config.owner = text(args, "owner")?.unwrap_or_default();
    config.hostname = text(args, "hostname")?.unwrap_or_default();
    config.public = flag(args, "public")?.unwrap_or(false);
    config.approval = Approval { all: flag(args, "trust_everybody")?.unwrap_or(false), ..Approval::default() };
    if let Some(keepalive) = args.get("keepalive").and_then(Value::as_f64) {
        config.keepalive = Duration::try_from_secs_f64(keepalive)
            .map_err(|_| Failure::argument("keepalive must be a number of seconds"))?;
    }
    config.encrypt = match text(args, "encrypt")?.as_deref() {
        None | Some("required") => Encryption::Required,
        Some("allow-plain") => Encryption::AllowPlain,
        Some("off") => Encryption::Off,
        Some(other) => {
            return Err(Failure::argument(format!("encrypt: {other:?}")).hint("use required, allow-plain or off"));
        }
    };
    if let Some(Value::Array(ports)) = args.get("public_ports") {
        let ports = ports.iter().map(|port| port.as_u64().and_then(|port| u16::try_from(port).ok()));
        let ports: Option<Vec<u16>> = ports.collect();
        config.public_ports = ports.ok_or_else(|| Failure::argument("public_ports must be ports, 0 to 65535"))?;
    }
    Ok(config)
}

/// Starts a node; `args` is a JSON object with its settings.
#[pyfunction]
pub(crate) fn start_node(args: &str) -> PyResult<Op> {
    let config = config(&parse(args)?)?;
    Ok(Op::new(async move {
        let started = Embedded::start(config).await;
        let node = started.map_err(|error| {
            let failure = Failure::new(Kind::Refused, error.code(), error.to_string());
            Some(error.hint()).filter(|hint| !hint.is_empty()).map_or(failure.clone(), |hint| failure.hint(hint))
        })?;
        Ok(Network::new(Backend::Node(node)))
    }))
}
