//! The rows of the matrix. To add one, add an entry to [`ROWS`]: the name, which official tools have the command, and what
//! has to work.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pilot_testkit::agent::Agent;
use serde_json::Value;

/// Longest time for a command that answers at once when it works.
const QUICK: Duration = Duration::from_secs(20);
/// The same where a peer or the registry is asked, on a busy machine.
const SLOW: Duration = Duration::from_secs(60);
/// Trust may come through the registry, where an old daemon looks once a minute.
const TRUST: Duration = Duration::from_secs(90);

/// A tool, the daemon it drives, and the peer to talk with.
pub(crate) struct Side<'a> {
    /// A release, or `ours`.
    pub(crate) tool: &'a str,
    /// The same.
    pub(crate) daemon: &'a str,
    /// The daemon with the tool.
    pub(crate) me: &'a Agent,
    /// The other one, with the other tool. Both trust each other.
    pub(crate) peer: &'a Agent,
    /// A daemon of ours that asks for trust.
    pub(crate) asking: &'a Agent,
    /// A daemon of ours that is asked for trust.
    pub(crate) asked: &'a Agent,
}

/// A command, or a few that belong together.
pub(crate) struct Row {
    /// Its name in the table.
    pub(crate) name: &'static str,
    /// The official tools that have it.
    tools: Tools,
    /// What has to work.
    pub(crate) run: fn(&Side<'_>) -> Result<()>,
}

/// Which official tools have a command. Ours has all.
enum Tools {
    All,
    From(&'static str),
    Until(&'static str),
}

impl Row {
    /// Whether a tool has the command.
    pub(crate) fn has(&self, tool: &str) -> bool {
        tool == "ours"
            || match self.tools {
                Tools::All => true,
                Tools::From(first) => number(tool) >= number(first),
                Tools::Until(last) => number(tool) <= number(last),
            }
    }
}

/// A release as numbers, for comparison.
fn number(release: &str) -> Vec<u32> {
    release.split('.').map(|part| part.parse().expect("a number")).collect()
}

const fn row(name: &'static str, tools: Tools, run: fn(&Side<'_>) -> Result<()>) -> Row {
    Row { name, tools, run }
}

/// Every row, in the order in which they run.
#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    row("version", Tools::From("1.9.1"), version),
    row("context", Tools::All, context),
    row("config", Tools::All, config),
    row("daemon status", Tools::All, daemon_status),
    row("info", Tools::All, info),
    row("health", Tools::All, health),
    row("find", Tools::All, find),
    row("lookup", Tools::All, lookup),
    row("lookup name", Tools::From("1.13.11"), lookup_name),
    row("register", Tools::All, register),
    row("set-public", Tools::All, set_public),
    row("set-private", Tools::All, set_private),
    row("set-tags", Tools::All, set_tags),
    row("clear-tags", Tools::All, clear_tags),
    row("clear-hostname", Tools::All, clear_hostname),
    row("set-hostname", Tools::All, set_hostname),
    row("handshake", Tools::All, handshake),
    row("pending", Tools::All, pending),
    row("approve", Tools::All, approve),
    row("trust", Tools::All, trust),
    row("ping", Tools::All, ping),
    row("traceroute", Tools::All, traceroute),
    row("bench", Tools::All, bench),
    row("connect", Tools::All, connect),
    row("send", Tools::All, send),
    row("recv", Tools::All, recv),
    row("dgram", Tools::From("1.9.1"), dgram),
    row("listen", Tools::All, listen),
    row("peers", Tools::All, peers),
    row("prefer-direct", Tools::From("1.13.11"), prefer_direct),
    row("connections", Tools::All, connections),
    row("disconnect", Tools::All, disconnect),
    row("untrust", Tools::All, untrust),
    row("reject", Tools::All, reject),
    row("rotate-key <id>", Tools::Until("1.7.2"), rotate_key_with_arguments),
    row("deregister", Tools::All, deregister),
];

impl Side<'_> {
    fn spawn(&self, args: &[&str]) -> Result<Child> {
        let args = [&["--json"], args].concat();
        self.me.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("run pilotctl")
    }

    /// The `data` of a command that succeeds.
    fn ctl(&self, limit: Duration, args: &[&str]) -> Result<Value> {
        data(args, self.spawn(args)?, limit)
    }

    /// The same for a command that newer official tools keep behind `extras`.
    fn extra(&self, limit: Duration, args: &[&str]) -> Result<Value> {
        match self.tool == "ours" || number(self.tool) >= number("1.9.1") {
            true => self.ctl(limit, &[&["extras"], args].concat()),
            false => self.ctl(limit, args),
        }
    }

    fn flip(&self) -> Side<'_> {
        Side { tool: self.daemon, daemon: self.tool, me: self.peer, peer: self.me, ..*self }
    }

    fn is_old(&self) -> bool {
        self.tool != "ours" && number(self.tool) < number("1.9.1")
    }
}

/// Waits for a command and takes its answer apart.
fn data(args: &[&str], mut child: Child, limit: Duration) -> Result<Value> {
    let what = args.join(" ");
    // Read by threads, so that a full pipe does not hold the command up.
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            pipe.map(|mut pipe| pipe.read_to_string(&mut text));
            text
        })
    };
    let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{what}: did not end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    ensure!(status.success(), "{what}: {} {}", stdout.trim(), stderr.trim());
    let answer: Value = serde_json::from_str(&stdout).with_context(|| format!("{what}: {stdout:?}"))?;
    ensure!(answer["status"] == "ok", "{what}: {stdout}");
    Ok(answer["data"].clone())
}

/// Asks until the answer is as wanted.
fn eventually(limit: Duration, what: &str, mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !ask()? {
        ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn version(side: &Side<'_>) -> Result<()> {
    // The official tool prints the bare number, in JSON mode too.
    let output = side.me.run(&["version"])?;
    ensure!(output.status.success() && !output.stdout.trim().is_empty(), "{output:?}");
    Ok(())
}

fn context(side: &Side<'_>) -> Result<()> {
    let context = side.ctl(QUICK, &["context"])?;
    ensure!(context["commands"]["info"].is_object(), "{context}");
    Ok(())
}

fn config(side: &Side<'_>) -> Result<()> {
    let config = side.ctl(QUICK, &["config"])?;
    ensure!(config["socket"] == side.me.socket().to_string_lossy().as_ref(), "{config}");
    Ok(())
}

fn daemon_status(side: &Side<'_>) -> Result<()> {
    let status = side.ctl(QUICK, &["daemon", "status"])?;
    ensure!(status["responsive"] == true && status["node_id"] == side.me.node(), "{status}");
    Ok(())
}

fn info(side: &Side<'_>) -> Result<()> {
    let info = side.ctl(QUICK, &["info"])?;
    ensure!(info["node_id"] == side.me.node() && info["address"] == side.me.address(), "{info}");
    ensure!(info["conn_list"].is_array() && info["public_key"].is_string(), "{info}");
    Ok(())
}

fn health(side: &Side<'_>) -> Result<()> {
    let health = side.ctl(QUICK, &["health"])?;
    ensure!(health["status"] == "ok" && health["uptime_seconds"].is_number(), "{health}");
    Ok(())
}

fn hostname(agent: &Agent) -> Result<String> {
    let info = agent.ctl(&["info"])?;
    Ok(info["hostname"].as_str().context("hostname")?.to_owned())
}

fn find(side: &Side<'_>) -> Result<()> {
    let found = side.ctl(SLOW, &["find", &hostname(side.peer)?])?;
    ensure!(found["address"] == side.peer.address() && found["public"] == true, "{found}");
    Ok(())
}

fn lookup(side: &Side<'_>) -> Result<()> {
    let node = side.ctl(SLOW, &["lookup", &side.peer.node_text()])?;
    ensure!(node["address"] == side.peer.address() && node["public_key"].is_string(), "{node}");
    Ok(())
}

fn lookup_name(side: &Side<'_>) -> Result<()> {
    let node = side.ctl(SLOW, &["lookup", &hostname(side.peer)?])?;
    ensure!(node["node_id"] == side.peer.node(), "{node}");
    Ok(())
}

/// Beside an official daemon ours registers the same key once more; where one of ours holds the identity it refuses.
fn register(side: &Side<'_>) -> Result<()> {
    // Asked with our tool: newer official ones do not show it.
    let known = side.asking.ctl(&["lookup", &side.me.node_text()])?;
    let node = side.ctl(SLOW, &["register", known["real_addr"].as_str().context("real_addr")?])?;
    ensure!(node["node_id"] == side.me.node(), "{node}");
    Ok(())
}

fn set_public(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["set-public"])?;
    ensure!(answer["visibility"] == "public", "{answer}");
    Ok(())
}

fn set_private(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["set-private"])?;
    ensure!(answer["visibility"] == "private", "{answer}");
    set_public(side)
}

fn set_tags(side: &Side<'_>) -> Result<()> {
    let answer = side.extra(SLOW, &["set-tags", "ml", "#gpu"])?;
    ensure!(answer["tags"] == serde_json::json!(["ml", "gpu"]), "{answer}");
    Ok(())
}

fn clear_tags(side: &Side<'_>) -> Result<()> {
    let answer = side.extra(SLOW, &["clear-tags"])?;
    ensure!(answer["tags"] == serde_json::json!([]), "{answer}");
    Ok(())
}

fn clear_hostname(side: &Side<'_>) -> Result<()> {
    let answer = side.extra(SLOW, &["clear-hostname"])?;
    ensure!(answer["hostname"] == "", "{answer}");
    Ok(())
}

fn set_hostname(side: &Side<'_>) -> Result<()> {
    let name = format!("renamed-{}", side.me.node());
    let answer = side.ctl(SLOW, &["set-hostname", &name])?;
    ensure!(answer["hostname"] == name.as_str(), "{answer}");
    ensure!(hostname(side.me)? == name, "the daemon does not show the new name");
    Ok(())
}

/// The tool under test asks for trust, and is granted it.
fn handshake(side: &Side<'_>) -> Result<()> {
    let asked = side.asked;
    let answer = side.ctl(SLOW, &["handshake", &asked.node_text(), "let us talk"])?;
    ensure!(answer["node_id"] == asked.node() && answer["status"] == "sent", "{answer}");
    eventually(TRUST, "the request arrives", || {
        Ok(lists(&asked.ctl(&["pending"])?["pending"], side.me.node()) || asked.trusts(side.me.node())?)
    })?;
    if !asked.trusts(side.me.node())? {
        asked.ctl(&["approve", &side.me.node_text()])?;
    }
    eventually(TRUST, "trust on both sides", || Ok(side.me.trusts(asked.node())? && asked.trusts(side.me.node())?))
}

fn lists(list: &Value, node: u32) -> bool {
    list.as_array().is_some_and(|list| list.iter().any(|entry| entry["node_id"] == node))
}

/// Somebody asks for trust, and the tool under test sees it.
fn pending(side: &Side<'_>) -> Result<()> {
    side.asking.ctl(&["handshake", &side.me.node_text(), "it is me"])?;
    eventually(TRUST, "the request is seen", || {
        let answer = side.ctl(QUICK, &["pending"])?;
        Ok(lists(&answer["pending"], side.asking.node()))
    })
}

/// And grants it.
fn approve(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["approve", &side.asking.node_text()])?;
    ensure!(answer["node_id"] == side.asking.node() && answer["status"] == "approved", "{answer}");
    eventually(TRUST, "trust on both sides", || {
        Ok(side.me.trusts(side.asking.node())? && side.asking.trusts(side.me.node())?)
    })
}

fn trust(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(QUICK, &["trust"])?;
    ensure!(lists(&answer["trusted"], side.peer.node()), "{answer}");
    Ok(())
}

fn ping(side: &Side<'_>) -> Result<()> {
    let ping = side.ctl(SLOW, &["ping", side.peer.address(), "--count", "1"])?;
    ensure!(ping["results"][0]["bytes"] == 6 && ping["timeout"] == false, "{ping}");
    Ok(())
}

fn traceroute(side: &Side<'_>) -> Result<()> {
    let trace = side.ctl(SLOW, &["traceroute", side.peer.address()])?;
    let samples = trace["rtt_samples"].as_array().context("rtt_samples")?;
    ensure!(samples.len() == 3 && samples.iter().all(|sample| sample["bytes"] == 7), "{trace}");
    Ok(())
}

fn bench(side: &Side<'_>) -> Result<()> {
    let bench = side.ctl(SLOW, &["bench", side.peer.address(), "0.2"])?;
    ensure!(bench["sent_bytes"] == bench["recv_bytes"] && bench["recv_bytes"] == 209_715, "{bench}");
    Ok(())
}

fn connect(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["connect", side.peer.address(), "7", "--message", "hello <&>"])?;
    ensure!(answer["response"] == "hello <&>", "{answer}");
    Ok(())
}

fn send(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["send", &side.peer.node_text(), "7", "--data", "hello"])?;
    ensure!(answer["response"] == "hello" && answer["port"] == 7, "{answer}");
    Ok(())
}

fn recv(side: &Side<'_>) -> Result<()> {
    let args = ["recv", "3000", "--count", "1", "--timeout", "50s"];
    let child = side.spawn(&args)?;
    let other = side.flip();
    // The port may not be bound yet; and whether the sender gets an answer is not the question.
    let sent = std::thread::scope(|scope| {
        let heard = scope.spawn(move || data(&args, child, SLOW));
        while !heard.is_finished() {
            let _ = other.ctl(SLOW, &["send", side.me.address(), "3000", "--data", "for you", "--timeout", "1s"]);
            std::thread::sleep(Duration::from_millis(100));
        }
        heard.join()
    });
    let answer = sent.map_err(|_| anyhow::anyhow!("panicked"))??;
    ensure!(answer["messages"][0]["data"] == "for you" && answer["timeout"] == false, "{answer}");
    Ok(())
}

fn dgram(side: &Side<'_>) -> Result<()> {
    let answer = side.extra(SLOW, &["dgram", side.peer.address(), "5000", "--data", "quick"])?;
    ensure!(answer["bytes"] == 5 && answer["port"] == 5000, "{answer}");
    Ok(())
}

fn listen(side: &Side<'_>) -> Result<()> {
    let args = ["listen", "5001", "--count", "1", "--timeout", "50s"];
    let args = if side.is_old() || side.tool == "ours" { args.to_vec() } else { [&["extras"], &args[..]].concat() };
    let child = side.spawn(&args)?;
    let other = side.flip();
    let heard = std::thread::scope(|scope| {
        let args = &args;
        let heard = scope.spawn(move || data(args, child, SLOW));
        // Datagrams get lost, and the tool may not listen yet.
        while !heard.is_finished() {
            datagram(&other, side.me, "for you");
            std::thread::sleep(Duration::from_millis(100));
        }
        heard.join()
    });
    let answer = heard.map_err(|_| anyhow::anyhow!("panicked"))??;
    ensure!(answer["messages"][0]["data"] == "for you" && answer["timeout"] == false, "{answer}");
    Ok(())
}

/// A datagram to port 5001 by whichever tool can: the oldest official ones cannot send any.
fn datagram(side: &Side<'_>, to: &Agent, text: &str) {
    let args = ["dgram", to.address(), "5001", "--data", text];
    if side.is_old() {
        let mut command = side.me.command(&args);
        let environment: Vec<_> =
            command.get_envs().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))).collect();
        command = std::process::Command::new(pilot_testkit::programs::ours().ctl);
        command.env_clear().envs(environment).args(args).stdin(Stdio::null());
        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    } else {
        let _ = side.extra(SLOW, &args);
    }
}

fn peers(side: &Side<'_>) -> Result<()> {
    let peers = side.ctl(QUICK, &["peers"])?;
    ensure!(lists(&peers["peers"], side.peer.node()) && peers["total"].as_u64() >= Some(1), "{peers}");
    Ok(())
}

fn prefer_direct(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(QUICK, &["prefer-direct", &side.peer.node_text()])?;
    ensure!(answer["node_id"] == side.peer.node() && answer["had_tunnel"].is_boolean(), "{answer}");
    // The path is found again.
    ping(side)
}

fn connections(side: &Side<'_>) -> Result<()> {
    let answer = side.extra(QUICK, &["connections"])?;
    ensure!(answer["connections"].is_array() && answer["total"].is_number(), "{answer}");
    Ok(())
}

fn disconnect(side: &Side<'_>) -> Result<()> {
    // An id that nobody has is enough: every daemon confirms it (03 §6.6).
    let answer = side.extra(Duration::from_secs(10), &["disconnect", "4000000"])?;
    ensure!(answer["conn_id"] == 4_000_000, "{answer}");
    Ok(())
}

fn untrust(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["untrust", &side.asked.node_text()])?;
    ensure!(answer["node_id"] == side.asked.node(), "{answer}");
    ensure!(!side.me.trusts(side.asked.node())?, "still trusted");
    Ok(())
}

fn reject(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["reject", "999", "no reason"])?;
    ensure!(answer["node_id"] == 999 && answer["status"] == "rejected", "{answer}");
    Ok(())
}

fn rotate_key_with_arguments(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["rotate-key", &side.me.node_text(), "me@example.com"])?;
    ensure!(answer["node_id"] == side.me.node(), "{answer}");
    Ok(())
}

fn deregister(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["deregister"])?;
    ensure!(answer["type"] == "deregister_ok", "{answer}");
    Ok(())
}
