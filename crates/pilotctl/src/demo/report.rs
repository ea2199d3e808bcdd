//! What the demonstration tells: lines for people as things happen, one object for programs at the end.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::network::Agent;
use super::transfer::{Input, Sides};
use crate::app::App;
use crate::commands::line;
use crate::go::short;

pub(super) struct Report<'a> {
    app: &'a App,
    data: Value,
    keep: bool,
}

fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// Decimal megabytes, as in the size of the file and on disks.
fn megabytes(bytes: u64) -> String {
    match bytes {
        0..100_000 => format!("{bytes} bytes"),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(app: &'a App, directory: &Path, keep: bool) -> Self {
        app.out.text(&format!("A Pilot network on this machine, in {}\n\n", directory.display()));
        Self { app, data: json!({ "directory": directory, "nodes": [], "tunnel": [], "kept": keep }), keep }
    }

    fn row(&self, label: &str, text: &str) {
        self.app.out.text(&format!("  {label:<12}{text}\n"));
    }

    pub(super) fn rendezvous(&mut self, registry: SocketAddr, beacon: SocketAddr) {
        self.data["rendezvous"] = json!({ "registry": registry.to_string(), "beacon": beacon.to_string() });
        self.row("rendezvous", &format!("registry {registry} (TCP), beacon {beacon} (UDP)"));
    }

    pub(super) fn agent(&mut self, agent: &Agent, info: &Value) {
        let endpoint = info["endpoint"].as_str().unwrap_or_default();
        let node = json!({
            "name": agent.name,
            "node_id": agent.node,
            "address": agent.address.to_string(),
            "socket": agent.socket,
            "endpoint": endpoint,
        });
        if let Some(nodes) = self.data["nodes"].as_array_mut() {
            nodes.push(node);
        }
        self.row(agent.name, &format!("{}  at {}", agent.address, line(endpoint)));
    }

    pub(super) fn started(&mut self, taken: Duration) {
        self.data["start_ms"] = millis(taken).into();
        self.row("started", &format!("three processes in {}", short(taken)));
    }

    pub(super) fn trust(&mut self, taken: Duration) {
        self.data["trust"] = json!({ "mutual": true, "duration_ms": millis(taken) });
        self.row("trust", &format!("alice asked, bob approved: {}", short(taken)));
    }

    pub(super) fn ping(&mut self, probes: &[Duration], open: Duration) {
        let all: Vec<f64> = probes.iter().map(|probe| millis(*probe)).collect();
        self.data["ping"] = json!({ "dial_and_echo_ms": all, "echo_p50_ms": millis(open) });
        let best = probes.iter().min().copied().unwrap_or_default();
        self.row("ping", &format!("{} with a new stream, {} on an open one (median)", short(best), short(open)));
    }

    pub(super) fn message(&mut self, heard: &str, answer: &str, taken: Duration) {
        self.data["message"] = json!({ "text": heard, "answer": answer, "duration_ms": millis(taken) });
        self.row("message", &format!("alice: {}", line(heard)));
        self.row("", &format!("bob:   {}  ({})", line(answer), short(taken)));
    }

    pub(super) fn file(&mut self, input: &Input, sides: &Sides) {
        let seconds = sides.taken.as_secs_f64();
        let rate = if seconds > 0.0 { sides.bytes as f64 / 1e6 / seconds } else { 0.0 };
        self.data["file"] = json!({
            "name": input.name,
            "bytes": sides.bytes,
            "duration_ms": millis(sides.taken),
            "mb_per_s": (rate * 10.0).round() / 10.0,
            "sender_sha256": sides.sender,
            "receiver_sha256": sides.receiver,
            "identical": sides.sender == sides.receiver,
        });
        let (size, taken) = (megabytes(sides.bytes), short(sides.taken));
        self.row("file", &format!("{}, {size} in {taken}: {rate:.0} MB/s", line(&input.name)));
        self.row("  sender", &format!("sha256 {}", sides.sender));
        self.row("  receiver", &format!("sha256 {}  identical", sides.receiver));
    }

    /// One side's entry for the other, as its status has it.
    pub(super) fn tunnel(&mut self, one: &Agent, other: &Agent, peer: &Value) {
        if let Some(list) = self.data["tunnel"].as_array_mut() {
            list.push(json!({ "from": one.name, "to": other.name, "state": peer }));
        }
        let is = |key: &str, yes: &'static str, no: &'static str| if peer[key] == true { yes } else { no };
        let path = peer["path"].as_str().unwrap_or(is("relay", "relay", "direct"));
        let scheme = peer["scheme"].as_str().map(|scheme| format!(" (scheme {})", line(scheme))).unwrap_or_default();
        let text = format!(
            "{} → {}: {} {}, {}{scheme}, {}",
            one.name,
            other.name,
            line(path),
            line(peer["endpoint"].as_str().unwrap_or_default()),
            is("encrypted", "encrypted", "not encrypted"),
            is("authenticated", "authenticated", "not authenticated"),
        );
        let first = self.data["tunnel"].as_array().is_some_and(|list| list.len() == 1);
        self.row(if first { "tunnel" } else { "" }, &text);
    }

    /// What to do next, and the object.
    pub(super) fn finish(mut self, alice: &Agent, bob: &Agent) {
        let program = program();
        let at = |agent: &Agent, command: &str| format!("PILOT_SOCKET={} {program} {command}", agent.socket.display());
        let (title, commands) = if self.keep {
            let commands = [
                at(alice, "info"),
                at(alice, "ping bob"),
                at(bob, "recv 1000"),
                at(alice, &format!("connect {} --message hello", bob.address)),
                at(alice, "bench bob 50"),
            ];
            ("Go on with, each in a terminal of its own:", commands.to_vec())
        } else {
            let commands = [
                format!("{program} demo --keep"),
                format!("{program} demo --file README.md"),
                format!("{program} init --registry HOST:9000 --beacon HOST:9001 --hostname NAME"),
                format!("{program} daemon start"),
            ];
            ("Nothing of this stays behind. Go on with:", commands.to_vec())
        };
        self.app.out.text(&format!("\n{title}\n"));
        for command in &commands {
            self.app.out.text(&format!("  {command}\n"));
        }
        self.data["commands"] = json!(commands);
        self.app.out.result(&self.data, String::new);
    }
}

/// How to call this program again: by its name when it is on the path, else by where it lies.
fn program() -> String {
    let Ok(this) = std::env::current_exe() else { return "pilotctl".into() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let name = this.file_name().map(ToOwned::to_owned).unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join(&name)).find(|file| file.is_file());
    let same = found.and_then(|file| file.canonicalize().ok()).is_some_and(|file| file == this);
    if same { name.to_string_lossy().into_owned() } else { this.display().to_string() }
}
