//! The rows of the matrix. To add one, add an entry to [`ROWS`]: the name, which tools have the command, and what has to
//! work.

mod basics;
mod gateways;
mod networks;
mod owners;
mod processes;
mod services;
mod tasks;

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pilot_testkit::agent::Agent;
use pilot_testkit::programs::ours;
use serde_json::Value;

/// Longest time for a command that answers at once when it works.
const QUICK: Duration = Duration::from_secs(20);
/// The same where a peer or the registry is asked, on a busy machine.
const SLOW: Duration = Duration::from_secs(60);
/// Trust may come through the registry, where an old daemon looks once a minute.
const TRUST: Duration = Duration::from_secs(90);

/// The admin token of the registry and of the official daemons.
pub(crate) const ADMIN_TOKEN: &str = "the-administrator";

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

/// Which tools have a command. Ours has all but those of `OfficialFrom` and `Only`.
enum Tools {
    All,
    From(&'static str),
    Until(&'static str),
    /// None but ours.
    Ours,
    /// Official ones; ours does it in another way, or not.
    OfficialFrom(&'static str),
    /// One release.
    Only(&'static str),
}

impl Row {
    /// Whether a tool has the command.
    pub(crate) fn has(&self, tool: &str) -> bool {
        match self.tools {
            Tools::Only(release) => tool == release,
            Tools::Ours => tool == "ours",
            Tools::OfficialFrom(first) => tool != "ours" && number(tool) >= number(first),
            _ if tool == "ours" => true,
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
    row("init", Tools::All, processes::init),
    row("version", Tools::From("1.9.1"), basics::version),
    row("context", Tools::All, basics::context),
    row("config", Tools::All, basics::config),
    row("daemon status", Tools::All, basics::daemon_status),
    row("info", Tools::All, basics::info),
    row("health", Tools::All, basics::health),
    row("find", Tools::All, basics::find),
    row("lookup", Tools::All, basics::lookup),
    row("lookup name", Tools::From("1.13.11"), basics::lookup_name),
    row("register", Tools::All, basics::register),
    row("set-public", Tools::All, basics::set_public),
    row("set-private", Tools::All, basics::set_private),
    row("set-tags", Tools::All, basics::set_tags),
    row("clear-tags", Tools::All, basics::clear_tags),
    row("clear-hostname", Tools::All, basics::clear_hostname),
    row("set-hostname", Tools::All, basics::set_hostname),
    row("handshake", Tools::All, basics::handshake),
    row("pending", Tools::All, basics::pending),
    row("approve", Tools::All, basics::approve),
    row("trust", Tools::All, basics::trust),
    row("ping", Tools::All, basics::ping),
    row("traceroute", Tools::All, basics::traceroute),
    row("bench", Tools::All, basics::bench),
    row("connect", Tools::All, basics::connect),
    row("send", Tools::All, basics::send),
    row("recv", Tools::All, basics::recv),
    row("dgram", Tools::From("1.9.1"), basics::dgram),
    row("listen", Tools::All, basics::listen),
    row("send-message", Tools::All, services::send_message),
    row("inbox", Tools::All, services::inbox),
    row("send-file", Tools::All, services::send_file),
    row("received", Tools::All, services::received),
    row("data send", Tools::Ours, services::data_send),
    row("data recv", Tools::Ours, services::data_recv),
    row("subscribe", Tools::All, services::subscribe),
    row("publish", Tools::All, services::publish),
    row("events subscribe", Tools::Ours, services::events_subscribe),
    row("events publish", Tools::Ours, services::events_publish),
    row("set-webhook", Tools::All, services::set_webhook),
    row("clear-webhook", Tools::All, services::clear_webhook),
    row("enable-tasks", Tools::Until("1.9.1"), tasks::enable),
    row("disable-tasks", Tools::Until("1.9.1"), tasks::disable),
    row("task submit", Tools::Until("1.9.1"), tasks::submit),
    row("task list", Tools::Until("1.9.1"), tasks::list),
    row("task accept", Tools::Until("1.9.1"), tasks::accept),
    row("task queue", Tools::Until("1.9.1"), tasks::queue),
    row("task execute", Tools::Until("1.9.1"), tasks::execute),
    row("task send-results", Tools::Until("1.9.1"), tasks::send_results),
    row("task result", Tools::Only("1.9.1"), tasks::result),
    row("task decline", Tools::Until("1.9.1"), tasks::decline),
    row("sign-request", Tools::From("1.13.11"), basics::sign_request),
    row("verify-request", Tools::From("1.13.11"), basics::verify_request),
    row("verify", Tools::OfficialFrom("1.13.11"), basics::verify),
    row("network list", Tools::All, networks::list),
    row("network join", Tools::All, networks::join),
    row("network members", Tools::All, networks::members),
    row("network invite", Tools::All, networks::invite),
    row("network leave", Tools::All, networks::leave),
    row("network invites", Tools::All, networks::invites),
    row("network reject", Tools::All, networks::reject),
    row("network accept", Tools::All, networks::accept),
    row("network create", Tools::All, owners::create),
    row("network rename", Tools::All, owners::rename),
    row("network role", Tools::All, owners::role),
    row("network promote", Tools::All, owners::promote),
    row("network demote", Tools::All, owners::demote),
    row("network policy", Tools::All, owners::policy),
    row("network kick", Tools::All, owners::kick),
    row("network delete", Tools::All, owners::delete),
    row("broadcast", Tools::All, networks::broadcast),
    row("gateway start", Tools::Until("1.9.1"), gateways::start),
    row("gateway list", Tools::Until("1.9.1"), gateways::list),
    row("gateway map", Tools::Until("1.9.1"), gateways::map),
    row("gateway unmap", Tools::Until("1.9.1"), gateways::unmap),
    row("gateway stop", Tools::Until("1.9.1"), gateways::stop),
    row("peers", Tools::All, basics::peers),
    row("prefer-direct", Tools::From("1.13.11"), basics::prefer_direct),
    row("connections", Tools::All, basics::connections),
    row("disconnect", Tools::All, basics::disconnect),
    row("untrust", Tools::All, basics::untrust),
    row("reject", Tools::All, basics::reject),
    row("rotate-key <id>", Tools::Until("1.7.2"), basics::rotate_key_with_arguments),
    row("rotate-key", Tools::From("1.9.1"), basics::rotate_key),
    row("deregister", Tools::All, basics::deregister),
    row("daemon start", Tools::OfficialFrom("1.13.11"), processes::daemon_start),
    row("daemon stop", Tools::All, processes::daemon_stop),
];

impl Side<'_> {
    fn spawn(&self, args: &[&str]) -> Result<Child> {
        self.spawn_with(args, |command| command)
    }

    fn spawn_with(&self, args: &[&str], more: impl FnOnce(&mut Command) -> &mut Command) -> Result<Child> {
        let mut command = self.me.command(&[&["--json"], args].concat());
        more(&mut command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("run pilotctl")
    }

    /// The `data` of a command that succeeds.
    fn ctl(&self, limit: Duration, args: &[&str]) -> Result<Value> {
        data(args, self.spawn(args)?, limit)
    }

    /// The same for a command that newer official tools keep behind `extras`.
    fn extra(&self, limit: Duration, args: &[&str]) -> Result<Value> {
        self.ctl(limit, &self.extras(args))
    }

    /// The words of a command that newer official tools keep behind `extras`.
    fn extras<'a>(&self, args: &[&'a str]) -> Vec<&'a str> {
        match self.is_old() {
            true => args.to_vec(),
            false => [&["extras"], args].concat(),
        }
    }

    /// As [`Side::ctl`], by the administrator.
    fn admin(&self, args: &[&str]) -> Result<Value> {
        let child = self.spawn_with(args, |command| command.env("PILOT_ADMIN_TOKEN", ADMIN_TOKEN))?;
        data(args, child, SLOW)
    }

    fn flip(&self) -> Side<'_> {
        Side { tool: self.daemon, daemon: self.tool, me: self.peer, peer: self.me, ..*self }
    }

    fn is_old(&self) -> bool {
        self.tool != "ours" && number(self.tool) < number("1.9.1")
    }
}

/// Another program than the agent's own tool, in the same surroundings.
fn with(agent: &Agent, program: &Path, args: &[&str]) -> Command {
    let own = agent.command(&[]);
    let mut command = Command::new(program);
    command.env_clear().envs(own.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The `data` of a command of ours at any daemon: to prepare, and to look at what another tool did.
fn our_tool(agent: &Agent, args: &[&str]) -> Result<Value> {
    let child = with(agent, &ours().ctl, &[&["--json"], args].concat()).spawn().context("run our pilotctl")?;
    data(args, child, SLOW)
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

fn lists(list: &Value, node: u32) -> bool {
    list.as_array().is_some_and(|list| list.iter().any(|entry| entry["node_id"] == node))
}
