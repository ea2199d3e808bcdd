//! Networks: what the administrator commands the registry, past every daemon. One network for each side.

use super::*;

/// Begins the names of this side's networks.
fn prefix(side: &Side<'_>) -> String {
    format!("owned-{}-", side.me.node())
}

/// Id and name of this side's network, as another node sees it.
fn find(side: &Side<'_>) -> Result<Option<(String, String)>> {
    let list = our_tool(side.asking, &["network", "list"])?;
    let networks = list["networks"].as_array().context("networks")?;
    let named = |network: &Value| network["name"].as_str().is_some_and(|name| name.starts_with(&prefix(side)));
    Ok(networks
        .iter()
        .find(|network| named(network))
        .map(|network| (network["id"].to_string(), network["name"].as_str().unwrap_or_default().to_owned())))
}

/// The id of this side's network, made when it is not there yet, with `asked` in it.
fn owned(side: &Side<'_>) -> Result<String> {
    let id = match find(side)? {
        Some((id, _)) => id,
        None => {
            let name = format!("{}made", prefix(side));
            our_tool(side.asking, &["network", "create", "--name", &name])?["network_id"].to_string()
        }
    };
    if !has_asked(side, &id)? {
        our_tool(side.asked, &["network", "join", &id])?;
    }
    Ok(id)
}

fn has_asked(side: &Side<'_>, id: &str) -> Result<bool> {
    Ok(lists(&our_tool(side.asking, &["network", "members", id])?["nodes"], side.asked.node()))
}

/// The role that `asked` sees for itself.
fn role_of_asked(side: &Side<'_>, id: &str) -> Result<Value> {
    Ok(our_tool(side.asked, &["network", "role", id, &side.asked.node_text()])?["role"].clone())
}

fn command(side: &Side<'_>, words: &[&str]) -> Result<Value> {
    side.admin(&side.extras(&[&["network"], words].concat()))
}

pub(super) fn create(side: &Side<'_>) -> Result<()> {
    let name = format!("{}new", prefix(side));
    let words = ["network", "create", "--name", &name, "--join-rule", "open", "--node-id", &side.me.node_text()];
    let answer = side.admin(&words)?;
    let (id, seen) = find(side)?.context("not on the list")?;
    let made = answer["network_id"].to_string();
    ensure!(made == id && seen == name, "{answer}");
    let members = our_tool(side.asking, &["network", "members", &id])?;
    ensure!(lists(&members["nodes"], side.me.node()), "its owner is no member: {members}");
    Ok(())
}

pub(super) fn rename(side: &Side<'_>) -> Result<()> {
    let (id, name) = (owned(side)?, format!("{}renamed", prefix(side)));
    let answer = command(side, &["rename", &id, &name])?;
    ensure!(find(side)? == Some((id, name)), "{answer}");
    Ok(())
}

pub(super) fn role(side: &Side<'_>) -> Result<()> {
    let id = owned(side)?;
    let answer = command(side, &["role", &id, &side.asked.node_text()])?;
    ensure!(answer["role"] == "member" && answer["role"] == role_of_asked(side, &id)?, "{answer}");
    Ok(())
}

pub(super) fn promote(side: &Side<'_>) -> Result<()> {
    let id = owned(side)?;
    let answer = command(side, &["promote", &id, &side.asked.node_text()])?;
    ensure!(role_of_asked(side, &id)? == "admin", "{answer}");
    Ok(())
}

/// The one promoted in the row before.
pub(super) fn demote(side: &Side<'_>) -> Result<()> {
    let id = owned(side)?;
    let answer = command(side, &["demote", &id, &side.asked.node_text()])?;
    ensure!(role_of_asked(side, &id)? == "member", "{answer}");
    Ok(())
}

pub(super) fn policy(side: &Side<'_>) -> Result<()> {
    let id = owned(side)?;
    // The help of the official tools names another form, `--set key=value`, of which they send nothing.
    let answer = command(side, &["policy", &id, "--max-members", "7"])?;
    let shown = command(side, &["policy", &id])?;
    ensure!(shown["max_members"] == 7, "{shown}, after {answer}");
    Ok(())
}

pub(super) fn kick(side: &Side<'_>) -> Result<()> {
    let id = owned(side)?;
    let answer = command(side, &["kick", &id, &side.asked.node_text()])?;
    ensure!(!has_asked(side, &id)?, "still a member after {answer}");
    Ok(())
}

pub(super) fn delete(side: &Side<'_>) -> Result<()> {
    let id = owned(side)?;
    let answer = command(side, &["delete", &id])?;
    ensure!(find(side)?.is_none(), "still there after {answer}");
    Ok(())
}
