//! Tasks. Each side hands one to the other, and both work them off, row by row.

use anyhow::{Context as _, Result, ensure};
use pilot_testkit::agent::Agent;
use serde_json::Value;

use super::{QUICK, SLOW, Side, eventually, our_tool};

const WORK: &str = "add <1..10> & report";
const UNWANTED: &str = "dig a hole";
const RESULTS: &str = "55, and a bit";

fn switch(side: &Side<'_>, command: &str, on: bool) -> Result<()> {
    let answer = side.extra(SLOW, &[command])?;
    ensure!(answer["task_exec"] == on && answer["node_id"] == side.me.node(), "{answer}");
    Ok(())
}

pub(super) fn enable(side: &Side<'_>) -> Result<()> {
    switch(side, "enable-tasks", true)
}

pub(super) fn disable(side: &Side<'_>) -> Result<()> {
    switch(side, "disable-tasks", false)
}

fn hand_in(side: &Side<'_>, what: &str) -> Result<Value> {
    side.extra(SLOW, &["task", "submit", side.peer.address(), "--task", what])
}

/// A task in the list of an agent, with its state.
fn find(agent: &Agent, list: &str, what: &str) -> Result<(String, String)> {
    let answer = our_tool(agent, &["task", "list", "--type", list])?;
    let task = answer["tasks"].as_array().and_then(|tasks| tasks.iter().find(|task| task["description"] == what));
    let task = task.with_context(|| format!("no {list} task {what:?}: {answer}"))?;
    let text = |key: &str| task[key].as_str().map(str::to_owned).context("text");
    Ok((text("task_id")?, text("status")?))
}

/// The submitter hears of it.
fn reaches(submitter: &Agent, what: &str, states: &[&str]) -> Result<()> {
    eventually(SLOW, &format!("{what:?} is one of {states:?} for its submitter"), || {
        // An official daemon writes the file in place: a reader may come when it is empty.
        Ok(find(submitter, "submitted", what).is_ok_and(|(_, state)| states.contains(&state.as_str())))
    })
}

pub(super) fn submit(side: &Side<'_>) -> Result<()> {
    let answer = hand_in(side, WORK)?;
    ensure!(answer["accepted"] == true && answer["status"] == 200 && answer["task"] == WORK, "{answer}");
    ensure!(answer["target"] == side.peer.address() && answer["task_id"].is_string(), "{answer}");
    Ok(())
}

/// Nobody can hand in tasks at daemons without them, so only what was submitted is sure to be there.
pub(super) fn list(side: &Side<'_>) -> Result<()> {
    let answer = side.extra(QUICK, &["task", "list", "--type", "submitted"])?;
    let tasks = answer["tasks"].as_array().context("tasks")?;
    let shown = tasks.iter().any(|task| task["description"] == WORK && task["to"] == side.peer.address());
    ensure!(shown, "{answer}");
    let answer = side.extra(QUICK, &["task", "list", "--type", "received"])?;
    ensure!(answer["tasks"].is_array(), "{answer}");
    Ok(())
}

pub(super) fn accept(side: &Side<'_>) -> Result<()> {
    let (id, _) = find(side.me, "received", WORK)?;
    let answer = side.extra(SLOW, &["task", "accept", "--id", &id])?;
    ensure!(answer["status"] == "ACCEPTED" && answer["message"] == "Task accepted", "{answer}");
    reaches(side.peer, WORK, &["ACCEPTED"])
}

pub(super) fn queue(side: &Side<'_>) -> Result<()> {
    let (id, _) = find(side.me, "received", WORK)?;
    let answer = side.extra(QUICK, &["task", "queue"])?;
    ensure!(answer["queue"][0]["task_id"] == id.as_str() && answer["count"] == 1, "{answer}");
    Ok(())
}

pub(super) fn execute(side: &Side<'_>) -> Result<()> {
    let (id, _) = find(side.me, "received", WORK)?;
    let answer = side.extra(SLOW, &["task", "execute"])?;
    ensure!(answer["task_id"] == id.as_str() && answer["task_description"] == WORK, "{answer}");
    reaches(side.peer, WORK, &["EXECUTING"])
}

pub(super) fn send_results(side: &Side<'_>) -> Result<()> {
    let (id, _) = find(side.me, "received", WORK)?;
    let answer = side.extra(SLOW, &["task", "send-results", "--id", &id, "--results", RESULTS])?;
    ensure!(answer["status"] == "SUCCEEDED" && answer["sent_to"] == side.peer.address(), "{answer}");
    // An official submitter stays at COMPLETED.
    reaches(side.peer, WORK, &["COMPLETED", "SUCCEEDED"])?;
    let path = side.peer.home().join(".pilot/tasks/results").join(format!("{id}_result.txt"));
    ensure!(std::fs::read_to_string(&path).is_ok_and(|text| text == RESULTS), "no results in {}", path.display());
    Ok(())
}

/// What the other side sent in the row before.
pub(super) fn result(side: &Side<'_>) -> Result<()> {
    let (id, _) = find(side.me, "submitted", WORK)?;
    let answer = side.extra(QUICK, &["task", "result", &id])?;
    ensure!(answer.to_string().contains(RESULTS), "{answer}");
    Ok(())
}

pub(super) fn decline(side: &Side<'_>) -> Result<()> {
    let other = side.flip();
    // Both have worked for each other; until that is in the registry the score of one is too low.
    eventually(SLOW, "a second task is taken", || Ok(hand_in(&other, UNWANTED)?["accepted"] == true))?;
    let (id, _) = find(side.me, "received", UNWANTED)?;
    let answer = side.extra(SLOW, &["task", "decline", "--id", &id, "--justification", "busy"])?;
    ensure!(answer["status"] == "DECLINED" && answer["justification"] == "busy", "{answer}");
    reaches(side.peer, UNWANTED, &["DECLINED"])
}
