//! Tasks: between our daemons as processes, and with every official daemon that has them, in both directions.

use std::time::Duration;

use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};
use serde_json::{Value, json};

use crate::with_official::{Pair, need};

const LIMIT: Duration = Duration::from_secs(60);

fn status(agent: &Agent, side: &str, id: &str) -> Value {
    let list = task(agent, &["list", "--type", side]);
    let tasks = list["tasks"].as_array().expect("tasks");
    tasks.iter().find(|task| task["task_id"] == id).map_or(Value::Null, |task| task["status"].clone())
}

fn wait_status(agent: &Agent, side: &str, id: &str, wanted: &[&str]) {
    let done = |agent: &Agent| Ok(wanted.iter().any(|wanted| status(agent, side, id) == *wanted));
    agent.wait(&format!("{side} task {id} to be {wanted:?}"), LIMIT, done).expect("status");
}

/// A task command; 1.9.1 keeps them among its extras.
fn task(agent: &Agent, words: &[&str]) -> Value {
    let extras = agent.label().ends_with("1.9.1").then_some("extras");
    let words: Vec<&str> = extras.into_iter().chain(["task"]).chain(words.iter().copied()).collect();
    agent.ctl(&words).unwrap_or_else(|error| panic!("{}: {error:#}", words.join(" ")))
}

/// A whole life: `a` submits, `b` works, `a` has the results.
fn work(a: &Agent, b: &Agent) {
    let submitted = task(a, &["submit", b.address(), "--task", "sum <1..10> & report"]);
    assert_eq!((&submitted["accepted"], &submitted["status"]), (&json!(true), &json!(200)), "{submitted}");
    let id = submitted["task_id"].as_str().expect("id").to_owned();
    assert_eq!(status(a, "submitted", &id), "NEW");
    wait_status(b, "received", &id, &["NEW"]);
    let accepted = task(b, &["accept", "--id", &id]);
    assert_eq!(
        (&accepted["status"], &accepted["message"]),
        (&json!("ACCEPTED"), &json!("Task accepted")),
        "{accepted}"
    );
    wait_status(a, "submitted", &id, &["ACCEPTED"]);
    let executing = task(b, &["execute"]);
    assert_eq!(executing["task_id"], id.as_str(), "{executing}");
    assert_eq!(executing["task_description"], "sum <1..10> & report");
    wait_status(a, "submitted", &id, &["EXECUTING"]);
    let file = b.home().join("out.csv");
    std::fs::write(&file, "a,b\n1,2\n").expect("write");
    let path = file.display().to_string();
    let sent = task(b, &["send-results", "--id", &id, "--file", &path]);
    assert_eq!((&sent["status"], &sent["sent_type"]), (&json!("SUCCEEDED"), &json!("file")), "{sent}");
    // An official submitter stays at COMPLETED; ours learns that the worker knows.
    wait_status(a, "submitted", &id, &["COMPLETED", "SUCCEEDED"]);
    wait_status(b, "received", &id, &["SUCCEEDED"]);
    let results = a.home().join(".pilot/tasks/results").join(format!("{id}_out.csv"));
    assert_eq!(std::fs::read_to_string(results).expect("results"), "a,b\n1,2\n");
}

/// The registry's score of a node, by our command line.
fn score(agent: &Agent, of: &Agent) -> i64 {
    agent.ctl(&["lookup", &of.node_text()]).expect("lookup")["polo_score"].as_i64().expect("score")
}

fn both_ways(name: &str, need: pilot_testkit::isolate::Need, version: &str) {
    isolated(name, &[need_programs, need], || {
        let pair = Pair::start(version);
        // Whoever has worked may submit to whom it worked for.
        work(&pair.theirs, &pair.ours);
        pair.ours
            .wait("the scores", LIMIT, |ours| Ok(score(ours, ours) == 1 && score(ours, &pair.theirs) == -1))
            .expect("scores");
        // A worker of 1.9.1 asks the registry for leave first.
        work(&pair.ours, &pair.theirs);
        pair.ours
            .wait("the scores", LIMIT, |ours| Ok(score(ours, ours) == 0 && score(ours, &pair.theirs) >= 0))
            .expect("scores");
    });
}

#[test]
fn with_1_9_1() {
    both_ways("tasks::with_1_9_1", || need(["1.9.1"]), "1.9.1");
}

#[test]
fn with_1_7_2() {
    both_ways("tasks::with_1_7_2", || need(["1.7.2"]), "1.7.2");
}

#[test]
fn with_0_1_2() {
    both_ways("tasks::with_0_1_2", || need(["0.1.2"]), "0.1.2");
}

#[test]
fn results_outlive_kills_of_both_daemons() {
    isolated("tasks::results_outlive_kills_of_both_daemons", &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let start = |name: &str, flags: &[&str]| {
            let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
            let options = flags.iter().fold(options, |options, flag| options.flag(flag));
            Agent::start(&ours(), &options).expect("daemon")
        };
        let (mut alice, mut bob) = (start("alice", &[]), start("bob", &[]));
        make_trust(&alice, &bob, LIMIT).expect("trust");
        work(&alice, &bob);
        let id = "patience-1";
        // Bob has earned a point and alice lost one, so now bob asks.
        let submit = ["task", "submit", "alice", "--task", "wait for me", "--id", id];
        assert_eq!(bob.ctl(&submit).expect("submit")["accepted"], true);
        alice.crash_and_restart().expect("restart");
        // Sent again, because nobody knew; it is there once.
        bob.wait("alice", LIMIT, |bob| Ok(bob.ctl(&submit).is_ok_and(|answer| answer["accepted"] == true)))
            .expect("again");
        let list = task(&alice, &["list", "--type", "received"]);
        assert_eq!(list["tasks"].as_array().map(Vec::len), Some(1), "{list}");
        task(&alice, &["accept", "--id", id]);
        assert_eq!(task(&alice, &["queue"])["count"], 1);
        task(&alice, &["execute"]);
        let sent = task(&alice, &["send-results", "--id", id, "--results", "done"]);
        assert_eq!(sent["sent_to"], bob.address());
        bob.crash_and_restart().expect("restart");
        wait_status(&bob, "submitted", id, &["SUCCEEDED"]);
        let results = bob.home().join(".pilot/tasks/results").join(format!("{id}_result.txt"));
        assert_eq!(std::fs::read_to_string(results).expect("results"), "done");

        let carol = start("carol", &["-no-tasks"]);
        make_trust(&bob, &carol, LIMIT).expect("trust");
        let refused = bob.run(&["--json", "task", "submit", "carol", "--task", "x"]).expect("pilotctl");
        assert!(refused.stderr.contains("(task submit port 1003)"), "{refused:?}");
        assert_eq!(bob.ctl(&["enable-tasks"]).expect("enable")["task_exec"], true);
        assert_eq!(bob.ctl(&["lookup", &bob.node_text()]).expect("lookup")["task_exec"], true);
        assert_eq!(bob.ctl(&["disable-tasks"]).expect("disable")["task_exec"], false);
    });
}
