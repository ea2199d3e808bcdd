//! Networks and broadcasts between real daemons: ours with each other, by the command line, and with official releases.

use std::process::Stdio;
use std::time::{Duration, Instant};

use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::official::Official;
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};
use serde_json::Value;

use super::TRUST_LIMIT;
use super::with_official::need;

/// What `docs/networks.md` promises after a membership has ended, and a machine with other work to do on top.
const ENDED: Duration = Duration::from_secs(90);

fn agent(rendezvous: &RendezvousProcess, name: &str) -> Agent {
    let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name);
    Agent::start(&ours(), &options).expect("daemon")
}

/// Whether `from` gets an echo from `to`, as it should.
fn reaches(from: &Agent, to: &str) -> bool {
    echoes(from, to, "60s")
}

/// The same where nothing else is expected than that it does not, or soon no longer does.
fn still_reaches(from: &Agent, to: &str) -> bool {
    echoes(from, to, "8s")
}

fn echoes(from: &Agent, to: &str, limit: &str) -> bool {
    let ping = from.run(&["--json", "ping", to, "--count", "1", "--timeout", limit]).expect("ping");
    let answer: Value = serde_json::from_str(&ping.stdout).unwrap_or_default();
    let answered = ping.status.success() && answer["data"]["results"][0]["error"].is_null();
    let hinted = answer["data"]["hint"].as_str().is_some_and(|hint| hint.contains("trusted"));
    assert!(
        answered || hinted || from.label() != ours().label,
        "silence without a hint: {}{}",
        ping.stdout,
        ping.stderr
    );
    answered
}

fn ids(list: &Value) -> Vec<u32> {
    let ids = list.as_array().into_iter().flatten().filter_map(|node| node["node_id"].as_u64());
    ids.filter_map(|id| u32::try_from(id).ok()).collect()
}

/// The error object of a command that has to fail.
fn refusal(agent: &Agent, args: &[&str]) -> Value {
    let outcome = agent.run(&[&["--json"], args].concat()).expect("run");
    assert_eq!(outcome.status.code(), Some(1), "{args:?}: {}", outcome.stdout);
    serde_json::from_str(&outcome.stderr).unwrap_or_else(|_| panic!("{args:?}: {}", outcome.stderr))
}

#[test]
fn members_talk_without_a_handshake_until_they_leave_and_others_never() {
    isolated("networks::members_talk_without_a_handshake_until_they_leave_and_others_never", &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| agent(&rendezvous, name));
        let made = alice
            .ctl(&["network", "create", "--name", "lab", "--join-rule", "token", "--token", "sekret"])
            .expect("create");
        assert_eq!(
            (&made["network_id"], &made["name"], &made["join_rule"]),
            (&1.into(), &"lab".into(), &"token".into())
        );
        assert_eq!(made["node_id"], alice.node());
        let wrong = refusal(&bob, &["network", "join", "1", "--token", "nothing"]);
        assert_eq!((&wrong["code"], &wrong["status"]), (&"permission_denied".into(), &"error".into()), "{wrong}");
        assert!(wrong["hint"].as_str().expect("hint").contains("--token"), "{wrong}");
        let joined = bob.ctl(&["network", "join", "1", "--token", "sekret"]).expect("join");
        let address = format!("1:0001.0000.{:04X}", bob.node());
        assert_eq!(joined["address"], address.as_str(), "{joined}");
        assert_eq!(refusal(&bob, &["network", "join", "1"])["code"], "already_exists");
        let members = carol.ctl(&["network", "members", "1"]).expect("members");
        assert_eq!(ids(&members["nodes"]), [alice.node(), bob.node()]);
        assert_eq!(members["nodes"][0]["role"], "owner", "{members}");
        let list = bob.ctl(&["network", "list"]).expect("list");
        assert_eq!((&list["networks"][1]["name"], &list["networks"][1]["joined"]), (&"lab".into(), &true.into()));
        assert_eq!(carol.ctl(&["network", "list"]).expect("list")["networks"][1]["joined"], false);
        assert_eq!(bob.ctl(&["info"]).expect("info")["networks"], serde_json::json!([1]));

        // Both are private and have never shaken hands.
        assert!(reaches(&alice, "bob") && reaches(&bob, "alice"));
        assert!(reaches(&alice, &address), "by the address in the network");
        alice.ctl(&["send-message", "bob", "--data", "hello"]).expect("message");
        assert!(!still_reaches(&carol, "bob"), "who is no member gets nowhere");

        // An invitation, and a role that is not enough.
        assert_eq!(refusal(&bob, &["network", "invite", "1", "carol"])["code"], "permission_denied");
        alice.ctl(&["network", "invite", "1", "carol"]).expect("invite");
        let invites = carol.ctl(&["network", "invites"]).expect("invites");
        assert_eq!(
            (&invites["invites"][0]["network_id"], &invites["invites"][0]["network_name"]),
            (&1.into(), &"lab".into())
        );
        carol.ctl(&["network", "accept", "1"]).expect("accept");
        assert!(reaches(&carol, "bob"));
        assert_eq!(refusal(&bob, &["network", "kick", "1", "carol"])["code"], "permission_denied");
        alice.ctl(&["network", "promote", "1", "bob"]).expect("promote");
        assert_eq!(alice.ctl(&["network", "role", "1", "bob"]).expect("role")["role"], "admin");
        bob.ctl(&["network", "kick", "1", "carol"]).expect("kick");

        // Who was put out, and who leaves, is refused soon, though nobody has told the others.
        let ended = Instant::now();
        while still_reaches(&carol, "alice") {
            assert!(ended.elapsed() < ENDED, "still let in {:?} after being put out", ended.elapsed());
        }
        bob.ctl(&["network", "leave", "1"]).expect("leave");
        let left = Instant::now();
        while still_reaches(&bob, "alice") {
            assert!(left.elapsed() < ENDED, "still let in {:?} after leaving", left.elapsed());
        }
        assert!(!still_reaches(&alice, "bob"), "who has left lets nobody in, at once");
        assert_eq!(refusal(&bob, &["network", "leave", "1"])["code"], "permission_denied");
        alice.ctl(&["network", "delete", "1"]).expect("delete");
        assert_eq!(refusal(&bob, &["network", "members", "1"])["code"], "not_found");
    });
}

#[test]
fn a_broadcast_names_whom_it_did_not_reach() {
    isolated("networks::a_broadcast_names_whom_it_did_not_reach", &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| agent(&rendezvous, name));
        alice.ctl(&["network", "create", "--name", "lab"]).expect("create");
        for member in [&bob, &carol] {
            member.ctl(&["network", "join", "1"]).expect("join");
        }
        let hear = |agent: &Agent, command: &[&str]| {
            let mut command = agent.command(&[&["--json"], command].concat());
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("listen")
        };
        let bound = |agent: &Agent, ports: u64| {
            agent
                .wait("the port", TRUST_LIMIT, |agent| Ok(agent.ctl(&["info"])?["ports"].as_u64() > Some(ports)))
                .expect("listening");
        };
        let ports = bob.ctl(&["info"]).expect("info")["ports"].as_u64().expect("ports");
        let listening = hear(&bob, &["listen", "1000", "--count", "1", "--timeout", "120s"]);
        bound(&bob, ports);
        let told = alice.ctl(&["broadcast", "1", "to everybody"]).expect("broadcast");
        assert_eq!(
            (&told["network_id"], &told["port"], &told["bytes"]),
            (&1.into(), &1000.into(), &12.into()),
            "{told}"
        );
        assert_eq!((&told["members"], &told["sent"], &told["failed"]), (&2.into(), &2.into(), &serde_json::json!([])));
        assert_eq!(told["message"], "to everybody");
        let heard = String::from_utf8(listening.wait_with_output().expect("listen").stdout).expect("text");
        assert!(heard.contains("to everybody"), "{heard}");

        // One is gone, and the registry has not noticed: it is named, in time, and the others have the message.
        carol.signal(rustix::process::Signal::KILL).expect("kill");
        let started = Instant::now();
        let outcome = alice.run(&["--json", "broadcast", "1", "again", "--timeout", "20s"]).expect("broadcast");
        assert!(started.elapsed() < Duration::from_secs(100));
        assert_eq!(outcome.status.code(), Some(1));
        let told: Value = serde_json::from_str(&outcome.stdout).expect("json");
        let told = &told["data"];
        assert_eq!((&told["members"], &told["sent"]), (&2.into(), &1.into()), "{told}");
        assert_eq!(ids(&told["failed"]), [carol.node()]);
        assert_eq!(told["failed"][0]["hostname"], "carol", "{told}");
        assert!(told["failed"][0]["error"].as_str().is_some_and(|text| !text.is_empty()));
        assert_eq!(refusal(&alice, &["broadcast", "0", "x"])["code"], "permission_denied");
        assert_eq!(refusal(&alice, &["broadcast", "9", "x"])["code"], "not_found");
        assert_eq!(refusal(&alice, &["broadcast"])["code"], "invalid_argument");

        // A stream to every trusted node.
        make_trust(&alice, &bob, TRUST_LIMIT).expect("trust");
        let taking = hear(&bob, &["recv", "1000", "--count", "1", "--timeout", "120s"]);
        bound(&bob, ports);
        let told = alice.ctl(&["broadcast", "--trusted", "to friends"]).expect("broadcast");
        assert_eq!((&told["members"], &told["sent"]), (&1.into(), &1.into()), "{told}");
        let taken = String::from_utf8(taking.wait_with_output().expect("recv").stdout).expect("text");
        assert!(taken.contains("to friends"), "{taken}");
        // Nobody listens any more: that is no success.
        let outcome = alice.run(&["--json", "broadcast", "--trusted", "x"]).expect("broadcast");
        assert_eq!(outcome.status.code(), Some(1));
        assert!(outcome.stdout.contains("refused"), "{}", outcome.stdout);
    });
}

#[test]
fn official_daemons_join_our_networks_and_are_members_there() {
    isolated(
        "networks::official_daemons_join_our_networks_and_are_members_there",
        &[need_programs, || need(["0.1.2", "1.18.0"])],
        || {
            let rendezvous = RendezvousProcess::start().expect("rendezvous");
            // 1.18.0 dials private nodes, and serves others while private, only with trust, networks or not. Ours asks of
            // public nodes, too, that they are members.
            let options = |name: &str| AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
            let alice = Agent::start(&ours(), &options("alice")).expect("daemon");
            alice
                .ctl(&["network", "create", "--name", "lab", "--join-rule", "token", "--token", "sekret"])
                .expect("create");
            for version in ["1.18.0", "0.1.2"] {
                let release = Official::obtain(version).expect("release").release();
                let name = format!("v{}", version.replace('.', "-"));
                let theirs = Agent::start(&release, &options(&name)).expect("official daemon");
                let before = reaches(&theirs, "alice");
                assert!(!before, "{version} is no member yet");
                let joined = theirs.ctl(&["network", "join", "1", "--token", "sekret"]).expect("join");
                assert_eq!((&joined["network_id"], &joined["type"]), (&1.into(), &"join_network_ok".into()));
                let list = theirs.ctl(&["network", "list"]).expect("list");
                assert_eq!(list["networks"][1]["name"], "lab", "{version}: {list}");
                let members = theirs.ctl(&["network", "members", "1"]).expect("members");
                assert!(ids(&members["nodes"]).contains(&theirs.node()), "{version}: {members}");
                let human = theirs.run(&["network", "members", "1"]).expect("members");
                assert!(human.status.success() && human.stdout.contains("alice"), "{version}: {}", human.stdout);
                // It was refused a moment ago, which is remembered for some seconds.
                alice.wait("the official member", ENDED, |_| Ok(reaches(&theirs, "alice"))).expect("their ping");
                alice.wait("the official member", ENDED, |alice| Ok(reaches(alice, &name))).expect("our ping");
                let told = alice.ctl(&["broadcast", "1", "hello", "--timeout", "60s"]).expect("broadcast");
                assert_eq!(told["sent"], told["members"], "{version}: {told}");
                theirs.ctl(&["network", "leave", "1"]).expect("leave");
                let members = alice.ctl(&["network", "members", "1"]).expect("members");
                assert_eq!(ids(&members["nodes"]), [alice.node()], "{version}");
            }
        },
    );
}
