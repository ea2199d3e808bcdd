//! A daemon inside the process (06 §18). It opens a local socket, which the caller then connects to.

use std::ffi::c_char;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pilot_env::Env;
use pilot_node::{Node, NodeConfig};
use pilot_wire::json;
use serde_json::{Map, Value, json};

use crate::answer::{run, value};
use crate::memory::text;
use crate::process::Process;

/// Time given to what is under way when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a start waits for the registry, as the official library does with its ten attempts. A configuration may say
/// otherwise with `register_timeout_sec`.
const REGISTRATION: u64 = 54;
/// Version in the status of a daemon whose configuration names none.
const VERSION: &str = "embedded";
/// Longest version, in bytes.
const MAX_VERSION: usize = 64;

fn string(config: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(_) => Err(format!("parse config: {key} is not a string")),
    }
}

/// A whole number of seconds, from 1 to a day.
fn seconds(config: &Map<String, Value>, key: &str) -> Result<Option<u64>, String> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(given) => match given.as_u64() {
            // The official library takes 0 for its default.
            Some(0) => Ok(None),
            Some(seconds) if seconds <= 86_400 => Ok(Some(seconds)),
            _ => Err(format!("parse config: {key} is not a number of seconds up to 86400")),
        },
    }
}

/// The configuration of the node, and how long it may take to register.
fn read(given: &str) -> Result<(NodeConfig, Duration), String> {
    let parsed = json::parse(given.as_bytes()).map_err(|error| format!("parse config: {error}"))?;
    let Value::Object(config) = parsed else { return Err("parse config: not a JSON object".into()) };
    let directory = PathBuf::from(string(&config, "data_dir")?.ok_or("data_dir required")?);
    let socket = PathBuf::from(string(&config, "socket_path")?.ok_or("socket_path required")?);
    let approve = match config.get("trust_auto_approve") {
        None | Some(Value::Null) => false,
        Some(given) => given.as_bool().ok_or("parse config: trust_auto_approve is not true or false")?,
    };
    let version = string(&config, "version")?.unwrap_or_else(|| VERSION.to_owned());
    if version.len() > MAX_VERSION {
        return Err(format!("parse config: version is longer than {MAX_VERSION} bytes"));
    }
    let limit = Duration::from_secs(seconds(&config, "register_timeout_sec")?.unwrap_or(REGISTRATION));
    // With the services that every node has.
    let mut node = NodeConfig {
        // The name that the official library uses; its files and ours are the same.
        identity: Some(directory.join("identity.json")),
        socket: Some(socket),
        version,
        ..NodeConfig::default()
    };
    node.approval.all = approve;
    if let Some(registry) = string(&config, "registry_addr")? {
        node.registry = registry;
    }
    if let Some(beacon) = string(&config, "beacon_addr")? {
        node.beacon = Some(beacon);
    }
    if let Some(seconds) = seconds(&config, "keepalive_sec")? {
        node.keepalive = Duration::from_secs(seconds);
    }
    Ok((node, limit))
}

async fn start(config: NodeConfig, limit: Duration) -> Result<Value, String> {
    let mut running = Process::current().embedded.lock().await;
    if running.is_some() {
        return Err("embedded daemon already started".to_owned());
    }
    let registry = config.registry.clone();
    let socket = config.socket.clone().unwrap_or_default();
    if let Some(directory) = config.identity.as_deref().and_then(Path::parent) {
        let made = Env::real().fs().create_dir_all(directory, 0o700);
        made.map_err(|error| format!("daemon start: {}: {error}", directory.display()))?;
    }
    let node = Node::start(Env::real(), config).await.map_err(|error| format!("daemon start: {error}"))?;
    if tokio::time::timeout(limit, node.registered()).await.is_err() {
        let why = match &node.info()["registry_error"] {
            Value::String(why) if !why.is_empty() => why.clone(),
            _ => "no answer".to_owned(),
        };
        node.shutdown(FAREWELL).await;
        return Err(format!("daemon start: not registered within {} s: registry {registry}: {why}", limit.as_secs()));
    }
    let mut info = node.info();
    let answer = json!({
        // Not in the form of an address, as SDKs know it.
        "address": node.address().node.to_string(),
        "node_id": node.address().node,
        "public_key": info["public_key"].take(),
        "socket": socket.display().to_string(),
    });
    *running = Some(node);
    Ok(answer)
}

/// Starts a daemon in this process, with a JSON configuration: `data_dir` and `socket_path` (required), `registry_addr`,
/// `beacon_addr`, `trust_auto_approve`, `keepalive_sec`, `version`, `register_timeout_sec`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotEmbeddedStart(configJSON: *const c_char) -> *mut c_char {
    value(|| {
        if configJSON.is_null() {
            return Err("parse config: nil".into());
        }
        // SAFETY: not NULL; the contract says that it is a string.
        let (config, limit) = read(&unsafe { text(configJSON) })?;
        run(start(config, limit))
    })
}

/// Stops it: `status` is `stopped` or `not_started`.
#[unsafe(no_mangle)]
pub extern "C" fn PilotEmbeddedStop() -> *mut c_char {
    value(|| {
        run(async {
            let mut running = Process::current().embedded.lock().await;
            let Some(node) = running.take() else { return Ok(json!({ "status": "not_started" })) };
            node.shutdown(FAREWELL).await;
            Ok(json!({ "status": "stopped" }))
        })
    })
}
