//! `network join`, `leave`, `invite`, `invites`, `accept`, `reject`: coming and going.

use pilot::NetworkCommand;
use serde_json::Value;

use super::{ask, id};
use crate::app::App;
use crate::args::Args;
use crate::commands::line;
use crate::errors::Outcome;
use crate::go::local_time;
use crate::table::{Arg, Command};

const NETWORK: Arg = Arg::new("<network_id>", "which network");

pub(crate) const JOIN: Command = Command {
    name: "network join",
    args: &[NETWORK, Arg::new("[--token TOKEN]", "the token, for a network that is joined by token")],
    about: "join a network",
    details: "Its rule says who may: open, everybody; token, who knows it; invite, who was invited.",
    returns: "network_id, address",
    raw: false,
    run: |app, args| Box::pin(join(app, args)),
};

pub(crate) const LEAVE: Command = Command {
    name: "network leave",
    args: &[NETWORK],
    about: "leave a network",
    details: "Members refuse this node within half a minute, unless they trust it. An owner hands its network over or\n\
              deletes it instead.",
    returns: "network_id",
    raw: false,
    run: |app, args| Box::pin(leave(app, args)),
};

pub(crate) const INVITE: Command = Command {
    name: "network invite",
    args: &[NETWORK, Arg::new("<node_id|address|hostname>", "whom")],
    about: "invite a node to a network",
    details: "Into an open network every member may invite, into others the owner and the administrators.",
    returns: "inviter_id, network_id, target_node_id",
    raw: false,
    run: |app, args| Box::pin(invite(app, args)),
};

pub(crate) const INVITES: Command = Command {
    name: "network invites",
    args: &[],
    about: "list invitations that wait for this node",
    details: "They wait 30 days for an answer.",
    returns: "invites [{network_id, network_name, inviter_id, timestamp}]",
    raw: false,
    run: |app, args| Box::pin(invites(app, args)),
};

pub(crate) const ACCEPT: Command = Command {
    name: "network accept",
    args: &[NETWORK],
    about: "accept an invitation",
    details: "",
    returns: "network_id, node_id, accept, address",
    raw: false,
    run: |app, args| Box::pin(respond(app, args, true)),
};

pub(crate) const REJECT: Command = Command {
    name: "network reject",
    args: &[NETWORK],
    about: "refuse an invitation",
    details: "",
    returns: "network_id, node_id, accept",
    raw: false,
    run: |app, args| Box::pin(respond(app, args, false)),
};

async fn join(app: &App, args: &Args) -> Outcome {
    let network = id(args.word(0))?;
    let token = args.flag("token").unwrap_or_default().to_owned();
    let driver = app.driver().await?;
    let joining = ask("network join", driver.network(NetworkCommand::Join { network, token })).await;
    let answer = joining.map_err(|error| match error.hint {
        None if error.message.contains("invalid token") => error.hint("give the token with --token"),
        None if error.message.contains("requires an invitation") => {
            error.hint("a member has to invite this node: pilotctl network invite <network_id> <node_id>")
        }
        _ => error,
    })?;
    app.out.result(&answer, || format!("joined network {network}\n"));
    Ok(0)
}

async fn leave(app: &App, args: &Args) -> Outcome {
    let network = id(args.word(0))?;
    let driver = app.driver().await?;
    let answer = ask("network leave", driver.network(NetworkCommand::Leave { network })).await?;
    app.out.result(&answer, || format!("left network {network}\n"));
    Ok(0)
}

async fn invite(app: &App, args: &Args) -> Outcome {
    let network = id(args.word(0))?;
    let driver = app.driver().await?;
    let target = app.resolve(&driver, args.word(1)).await?.node;
    let answer = ask("network invite", driver.network(NetworkCommand::Invite { network, node: target })).await?;
    app.out.result(&answer, || format!("invited node {target} to network {network}\n"));
    Ok(0)
}

async fn invites(app: &App, _args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let answer = ask("network invites", driver.network(NetworkCommand::PollInvites)).await?;
    app.out.result(&answer, || table(&answer));
    Ok(0)
}

fn table(answer: &Value) -> String {
    let list = answer["invites"].as_array().map_or(&[][..], Vec::as_slice);
    if list.is_empty() {
        return "no invitations\n".into();
    }
    let mut text = format!("{:<12} {:<12} {:<30} {}\n", "NETWORK", "INVITER", "NAME", "TIMESTAMP");
    for invite in list {
        let time = invite["timestamp"].as_i64().map_or_else(|| "-".to_owned(), local_time);
        text.push_str(&format!(
            "{:<12} {:<12} {:<30} {time}\n",
            invite["network_id"].as_u64().unwrap_or(0),
            invite["inviter_id"].as_u64().unwrap_or(0),
            line(invite["network_name"].as_str().unwrap_or("-")),
        ));
    }
    text.push_str("\naccept: pilotctl network accept <network_id>\nreject: pilotctl network reject <network_id>\n");
    text
}

async fn respond(app: &App, args: &Args, accept: bool) -> Outcome {
    let network = id(args.word(0))?;
    let driver = app.driver().await?;
    let command = if accept { "network accept" } else { "network reject" };
    let answer = ask(command, driver.network(NetworkCommand::Respond { network, accept })).await?;
    let done = if accept { "accepted" } else { "rejected" };
    app.out.result(&answer, || format!("{done} invite to network {network}\n"));
    Ok(0)
}
