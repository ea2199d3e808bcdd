//! Every command of every tool: the official ones drive our daemon, ours drives the official daemons. For each release there
//! is one pair of daemons, ours and theirs, who are each other's peer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::official::{Official, RELEASES, need_all};
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};

use super::allowed::Allowed;
use super::rows::{ADMIN_TOKEN, ROWS, Side};

/// Long enough for one heartbeat of an official daemon (65 s), at which it fetches what waits for it.
const TRUST_LIMIT: Duration = Duration::from_secs(90);
/// Pairs at a time.
const AT_A_TIME: usize = 2;
/// Runs only releases and commands whose name contains this: `PILOT_TOOLS_ONLY=1.9.1` or `PILOT_TOOLS_ONLY=ping`.
const ONLY: &str = "PILOT_TOOLS_ONLY";

/// How a command ended.
struct Ended {
    error: Option<String>,
    took: Duration,
}

/// By tool, daemon and row.
type Table = BTreeMap<(String, String, &'static str), Ended>;
/// Release and command.
type Commands = BTreeSet<(String, String)>;

#[test]
fn every_tool_drives_every_daemon() {
    isolated("matrix::every_tool_drives_every_daemon", &[need_programs, need_all], || {
        let only = std::env::var(ONLY).unwrap_or_default();
        let releases: Vec<&str> = match RELEASES.contains(&only.as_str()) {
            true => vec![RELEASES.iter().find(|release| **release == only).expect("just found")],
            false => RELEASES.to_vec(),
        };
        // Networks may be made by everybody, as without an administrator.
        let flags = ["-admin-token", ADMIN_TOKEN, "-network-creation", "anyone"];
        let rendezvous = RendezvousProcess::start_with(&flags).expect("rendezvous");
        let guest = |name: &str| {
            let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name);
            Agent::start(&ours(), &options.public()).expect("daemon")
        };
        let guests = [guest("asking"), guest("asked")];
        let found = Mutex::new((Table::new(), Commands::new()));
        let left = Mutex::new(releases.clone());
        std::thread::scope(|scope| {
            for _ in 0..AT_A_TIME {
                scope.spawn(|| {
                    // Taken in a statement of its own, so that the lock is not held while the pair runs.
                    while let Some(release) = { left.lock().expect("no panic holds it").pop() } {
                        let (ended, commands) = pair(release, &rendezvous, &guests, &only);
                        let mut found = found.lock().expect("no panic holds it");
                        found.0.extend(ended);
                        found.1.extend(commands);
                    }
                });
            }
        });
        let (table, commands) = found.into_inner().expect("no panic holds it");
        judge(&table, &commands, &releases, only.is_empty());
    });
}

/// One release: both daemons, then every row from either side.
fn pair(release: &str, rendezvous: &RendezvousProcess, [asking, asked]: &[Agent; 2], only: &str) -> (Table, Commands) {
    let official = Official::obtain(release).expect("release").release();
    let digits: String = release.chars().map(|c| if c == '.' { '-' } else { c }).collect();
    let options = |name: &str| {
        AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), &format!("{name}-{digits}")).public()
    };
    let mut our_daemon = ours();
    our_daemon.ctl.clone_from(&official.ctl);
    our_daemon.label = format!("ours under pilotctl {release}");
    let mut their_daemon = official;
    their_daemon.ctl = ours().ctl;
    their_daemon.label = format!("{release} under our pilotctl");
    let ours = Agent::start(&our_daemon, &options("ours")).expect("daemon");
    // An official daemon broadcasts for the administrator only.
    let by_admin = options("theirs").flag("-admin-token").flag(ADMIN_TOKEN);
    let theirs = Agent::start(&their_daemon, &by_admin).expect("daemon");
    let sides = [
        Side { tool: release, daemon: "ours", me: &ours, peer: &theirs, asking, asked },
        Side { tool: "ours", daemon: release, me: &theirs, peer: &ours, asking, asked },
    ];
    let commands = commands(&ours).into_iter().map(|command| (release.to_owned(), command)).collect();
    let mut ended = Table::new();
    let began = Instant::now();
    let error = make_trust(&ours, &theirs, TRUST_LIMIT).err().map(|error| format!("{error:#}"));
    assert!(error.is_none(), "{release}: {error:?}, after {:?}", began.elapsed());
    // Row by row, so that what one side does last does not come before what the other does first.
    for row in ROWS.iter().filter(|row| only.is_empty() || release == only || row.name.contains(only)) {
        for side in sides.iter().filter(|side| row.has(side.tool)) {
            let began = Instant::now();
            let error = (row.run)(side).err().map(|error| format!("{error:#}"));
            let key = (side.tool.to_owned(), side.daemon.to_owned(), row.name);
            ended.insert(key, Ended { error, took: began.elapsed() });
        }
    }
    (ended, commands)
}

/// Every command that the tool of an agent tells of.
fn commands(agent: &Agent) -> Vec<String> {
    let context = agent.ctl(&["context"]).expect("context");
    let [plain, extras, gateway] = ["/commands", "/extras/commands", "/pilot_gateway/commands"]
        .map(|path| context.pointer(path).and_then(|commands| commands.as_object()));
    let names = |commands: Option<&serde_json::Map<String, serde_json::Value>>, prefix: &str| {
        commands.into_iter().flatten().map(|(name, _)| format!("{prefix}{name}")).collect::<Vec<_>>()
    };
    assert!(plain.is_some_and(|commands| commands.len() > 20), "{context}");
    [names(plain, ""), names(extras, ""), names(gateway, "gateway ")].concat()
}

/// Prints the table (times are those of each row, setting up included), and fails when something failed that must not, or worked that was said to fail.
fn judge(table: &Table, commands: &Commands, releases: &[&str], complete: bool) {
    let allowed = Allowed::read();
    let mut columns: Vec<(&str, &str)> = releases.iter().map(|release| (*release, "ours")).collect();
    columns.extend(releases.iter().map(|release| ("ours", *release)));
    let mut text = format!("{:<16}", "tool -> daemon");
    for (tool, daemon) in &columns {
        let _ = write!(text, " {:>12}", format!("{tool}>{daemon}"));
    }
    text.push('\n');
    let mut wrong = Vec::new();
    for row in ROWS {
        let _ = write!(text, "{:<16}", row.name);
        for (tool, daemon) in &columns {
            let ended = table.get(&((*tool).to_owned(), (*daemon).to_owned(), row.name));
            let reason = allowed.reason(tool, daemon, row.name);
            let cell = match (ended, reason) {
                (None, _) => "-".to_owned(),
                (Some(Ended { error: None, took }), None) => format!("{:.1}s", took.as_secs_f64()),
                (Some(Ended { error: Some(_), .. }), Some(_)) => "(fails)".to_owned(),
                (Some(Ended { error: None, .. }), Some(reason)) => {
                    wrong.push(format!("{tool} x {daemon}: {} works, though allowed.md says: {reason}", row.name));
                    "WORKS".to_owned()
                }
                (Some(Ended { error: Some(error), took }), None) => {
                    wrong.push(format!("{tool} x {daemon}: {} ({:.1}s): {error}", row.name, took.as_secs_f64()));
                    "FAILS".to_owned()
                }
            };
            let _ = write!(text, " {cell:>12}");
        }
        text.push('\n');
    }
    let total: Duration = table.values().map(|ended| ended.took).sum();
    println!("{text}\n{} commands in {:.0}s of their own time", table.len(), total.as_secs_f64());
    if complete {
        let ran = |tool: &str, daemon: &str, name: &str| {
            table.keys().any(|(t, d, row)| t == tool && d == daemon && *row == name)
        };
        wrong.extend(
            allowed.unknown(ran).into_iter().map(|entry| format!("allowed.md names what did not run: {entry}")),
        );
    }
    // The tasks are missing in the contexts of the tools that have them, and have rows all the same.
    let shown = |tool: &str, command: &str| {
        ROWS.iter().any(|row| {
            row.has(tool) && row.name.strip_prefix(command).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        })
    };
    if complete {
        wrong.extend(allowed.gaps(commands, shown));
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
