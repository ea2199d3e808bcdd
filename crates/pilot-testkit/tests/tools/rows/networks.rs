//! Networks: what goes through the daemon. One network for each side, owned by the daemon that asks.

use super::*;

/// The network of this side, made when it is not there yet.
fn network(side: &Side<'_>) -> Result<u64> {
    let name = format!("team-{}", side.me.node());
    let list = our_tool(side.asking, &["network", "list"])?;
    let there = list["networks"].as_array().and_then(|list| list.iter().find(|network| network["name"] == *name));
    match there {
        Some(network) => network["id"].as_u64().context("no id"),
        None => {
            let made = our_tool(side.asking, &["network", "create", "--name", &name, "--join-rule", "open"])?;
            made["network_id"].as_u64().with_context(|| format!("no id: {made}"))
        }
    }
}

fn is_member(side: &Side<'_>, id: u64) -> Result<bool> {
    let members = our_tool(side.asking, &["network", "members", &id.to_string()])?;
    Ok(lists(&members["nodes"], side.me.node()))
}

fn invited(answer: &Value, id: u64) -> bool {
    answer["invites"].as_array().is_some_and(|list| list.iter().any(|invite| invite["network_id"] == id))
}

/// The owner invites this side.
fn invite_me(side: &Side<'_>, id: u64) -> Result<()> {
    our_tool(side.asking, &["network", "invite", &id.to_string(), &side.me.node_text()]).map(drop)
}

pub(super) fn list(side: &Side<'_>) -> Result<()> {
    let id = network(side)?;
    let answer = side.ctl(QUICK, &["network", "list"])?;
    let there = answer["networks"].as_array().is_some_and(|list| list.iter().any(|network| network["id"] == id));
    ensure!(there, "network {id} is missing: {answer}");
    Ok(())
}

pub(super) fn join(side: &Side<'_>) -> Result<()> {
    let id = network(side)?;
    let answer = side.ctl(QUICK, &["network", "join", &id.to_string()])?;
    ensure!(is_member(side, id)?, "no member after {answer}");
    Ok(())
}

pub(super) fn members(side: &Side<'_>) -> Result<()> {
    let id = network(side)?;
    let answer = side.ctl(QUICK, &["network", "members", &id.to_string()])?;
    ensure!(lists(&answer["nodes"], side.asking.node()), "the owner is missing: {answer}");
    Ok(())
}

pub(super) fn invite(side: &Side<'_>) -> Result<()> {
    let id = network(side)?;
    let answer = side.ctl(QUICK, &["network", "invite", &id.to_string(), &side.asked.node_text()])?;
    let invites = our_tool(side.asked, &["network", "invites"])?;
    ensure!(invited(&invites, id), "{invites}, after {answer}");
    our_tool(side.asked, &["network", "reject", &id.to_string()]).map(drop)
}

pub(super) fn leave(side: &Side<'_>) -> Result<()> {
    let id = network(side)?;
    let answer = side.ctl(QUICK, &["network", "leave", &id.to_string()])?;
    ensure!(!is_member(side, id)?, "a member after {answer}");
    Ok(())
}

pub(super) fn invites(side: &Side<'_>) -> Result<()> {
    let id = network(side)?;
    invite_me(side, id)?;
    let answer = side.ctl(QUICK, &["network", "invites"])?;
    ensure!(invited(&answer, id), "{answer}");
    Ok(())
}

/// The invitation of the row before.
pub(super) fn reject(side: &Side<'_>) -> Result<()> {
    let id = network(side)?;
    let answer = side.ctl(QUICK, &["network", "reject", &id.to_string()])?;
    ensure!(!is_member(side, id)?, "a member after {answer}");
    Ok(())
}

pub(super) fn accept(side: &Side<'_>) -> Result<()> {
    let id = network(side)?;
    invite_me(side, id)?;
    let answer = side.ctl(QUICK, &["network", "accept", &id.to_string()])?;
    ensure!(is_member(side, id)?, "no member after {answer}");
    side.ctl(QUICK, &["network", "leave", &id.to_string()]).map(drop)
}

/// To a member that has no trust in this side. Datagrams get lost, and the member may not listen yet.
pub(super) fn broadcast(side: &Side<'_>) -> Result<()> {
    let (id, port) = (network(side)?.to_string(), (20_000 + side.me.node() % 10_000).to_string());
    for member in [side.me, side.asked] {
        our_tool(member, &["network", "join", &id])?;
    }
    let words = side.extras(&["broadcast", &id, "to all", "--port", &port]);
    let listen = ["--json", "listen", &port, "--count", "1", "--timeout", "50s"];
    let mut listening = with(side.asked, &ours().ctl, &listen).spawn().context("run our pilotctl")?;
    while listening.try_wait()?.is_none() {
        if let Err(error) = side.admin(&words) {
            listening.kill()?;
            listening.wait()?;
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let heard = data(&listen, listening, QUICK)?;
    ensure!(heard["messages"][0]["data"] == "to all" && heard["timeout"] == false, "{heard}");
    for member in [side.me, side.asked] {
        our_tool(member, &["network", "leave", &id])?;
    }
    Ok(())
}
