//! `network create`, `delete`, `rename`, `kick`, `promote`, `demote`, `transfer`, `policy`: what owners and administrators
//! do.

use pilot_wire::registry::{Authority, NetworkChange, PolicyChange, Request};
use serde_json::Value;

use super::list::{by_registry, policy as show_policy};
use super::{admin_token, ask, id};
use crate::app::{ANSWER_WAIT, App};
use crate::args::{self, Args};
use crate::errors::{CliError, Code, Outcome};
use crate::go;
use crate::table::{Arg, Command, Run};

const NETWORK: Arg = Arg::new("<network_id>", "which network");
const MEMBER: Arg = Arg::new("<node_id|address|hostname>", "which member");
const BY: &str = "The daemon signs the command; with PILOT_ADMIN_TOKEN, or admin_token in the configuration, the registry\n\
                  is asked with that instead.";

pub(crate) const CREATE: Command = Command {
    name: "network create",
    args: &[
        Arg::new("--name <name>", "its name: lower-case letters, digits and hyphens"),
        Arg::new("[--join-rule open|token|invite]", "who may join (default open)"),
        Arg::new("[--token T]", "the token, for the rule token"),
        Arg::new(
            "[--node-id N]",
            "with the admin token: the node that owns it (default: the one of the running daemon; 0: none)",
        ),
    ],
    about: "create a network; this node owns it and is its first member",
    details: BY,
    returns: "network_id, name, join_rule, node_id, address",
    raw: false,
    run: |app, args| Box::pin(create(app, args)),
};

pub(crate) const DELETE: Command = Command {
    name: "network delete",
    args: &[NETWORK],
    about: "delete a network (its owner)",
    details: BY,
    returns: "network_id",
    raw: false,
    run: |app, args| Box::pin(delete(app, args)),
};

pub(crate) const RENAME: Command = Command {
    name: "network rename",
    args: &[NETWORK, Arg::new("<new_name>", "its new name")],
    about: "rename a network (its owner)",
    details: BY,
    returns: "network_id, name",
    raw: false,
    run: |app, args| Box::pin(rename(app, args)),
};

/// A command about a member.
const fn on_member(name: &'static str, about: &'static str, returns: &'static str, run: Run) -> Command {
    Command { name, args: &[NETWORK, MEMBER], about, details: BY, returns, raw: false, run }
}

pub(crate) const KICK: Command = on_member(
    "network kick",
    "put a member out of a network (its owner; administrators for members)",
    "network_id, target_node_id",
    |app, args| {
        Box::pin(member(
            app,
            args,
            "kick",
            |network, target| NetworkChange::Kick { network, target },
            |network, target| format!("kicked node {target} from network {network}\n"),
        ))
    },
);

pub(crate) const PROMOTE: Command = on_member(
    "network promote",
    "make a member an administrator, who invites and puts out members (the owner)",
    "network_id, target_node_id, role",
    |app, args| {
        let change = |network, target| NetworkChange::Promote { network, target };
        Box::pin(member(app, args, "promote", change, |network, target| {
            format!("promoted node {target} to admin in network {network}\n")
        }))
    },
);

pub(crate) const DEMOTE: Command = on_member(
    "network demote",
    "make an administrator a member again (the owner)",
    "network_id, target_node_id, role",
    |app, args| {
        let change = |network, target| NetworkChange::Demote { network, target };
        Box::pin(member(app, args, "demote", change, |network, target| {
            format!("demoted node {target} to member in network {network}\n")
        }))
    },
);

pub(crate) const TRANSFER: Command = on_member(
    "network transfer",
    "hand a network over to a member (the owner, who becomes an administrator)",
    "network_id, target_node_id, role",
    |app, args| {
        let change = |network, target| NetworkChange::Transfer { network, target };
        Box::pin(member(app, args, "transfer", change, |network, target| {
            format!("network {network} belongs to node {target} now\n")
        }))
    },
);

pub(crate) const POLICY: Command = Command {
    name: "network policy",
    args: &[
        NETWORK,
        Arg::extra("[--allowed-ports <list>]", "ports on which members reach each other, as 80,443; empty for all"),
        Arg::extra("[--max-members <n>]", "most members; 0 for as many as the registry takes"),
        Arg::extra("[--description <text>]", "what it is for"),
    ],
    about: "show the policy of a network, or change it (its owner)",
    details: BY,
    returns: "network_id, allowed_ports, max_members, description",
    raw: false,
    run: |app, args| Box::pin(policy(app, args)),
};

/// Commands it, by the admin token if there is one, else by the daemon's signature. `method` names it for the daemon.
async fn command(app: &App, method: &str, change: NetworkChange, owner: u32) -> Result<Value, CliError> {
    let name = format!("network {}", method.replace("set_", ""));
    if let Some(admin_token) = admin_token(app)? {
        let by = Authority { node: owner, admin_token, ..Authority::default() };
        let refused = by_registry(app, &name, &Request::ChangeNetwork { by, change }).await;
        return refused.map_err(|error| match error.message.contains("admin token") {
            true => error.hint("PILOT_ADMIN_TOKEN, or admin_token in the configuration, is not this registry's"),
            false => error,
        });
    }
    let driver = app.driver().await?;
    let mut params = pilot_wire::json::parse(change.canonical().as_bytes())
        .map_err(|error| CliError::internal(format!("{name}: {error}")))?;
    for (from, to) in [("network_id", "network"), ("target_node_id", "node")] {
        if let Some(value) = params.as_object_mut().and_then(|map| map.remove(from)) {
            params[to] = value;
        }
    }
    ask(&name, driver.call(&format!("network.{method}"), &params)).await.map_err(|error| {
        match error.message.contains("requires its admin token") {
            true => error.hint("set PILOT_ADMIN_TOKEN env var or admin_token in ~/.pilot/config.json"),
            false => error,
        }
    })
}

async fn target(app: &App, args: &Args) -> Result<(u16, u32), CliError> {
    let network = id(args.word(0))?;
    // A number needs no daemon.
    if let Ok(node) = args::node(args.word(1)) {
        return Ok((network, node));
    }
    let driver = app.driver().await?;
    Ok((network, app.resolve(&driver, args.word(1)).await?.node))
}

/// The node of the daemon that runs here, if one does.
async fn own_node(app: &App) -> Option<u32> {
    let driver = app.driver().await.ok()?;
    let info = tokio::time::timeout(ANSWER_WAIT, driver.info()).await.ok()?.ok()?;
    info["node_id"].as_u64().and_then(|node| u32::try_from(node).ok())
}

async fn create(app: &App, args: &Args) -> Outcome {
    let name = args.flag("name").unwrap_or_default().to_owned();
    if name.is_empty() {
        return Err(CliError::argument(CREATE.usage()));
    }
    let owner = match (args.flag("node-id").map(args::node).transpose()?, admin_token(app)?) {
        (Some(1..), None) => {
            return Err(CliError::argument("--node-id goes with the admin token only")
                .hint("without it the network belongs to the node of the running daemon"));
        }
        (Some(owner), _) => owner,
        // The daemon that signs is the owner.
        (None, None) => 0,
        (None, Some(_)) => own_node(app).await.unwrap_or(0),
    };
    let change = NetworkChange::Create {
        name,
        join_rule: args.flag("join-rule").unwrap_or("open").to_owned(),
        token: args.flag("token").unwrap_or_default().to_owned(),
    };
    let answer = command(app, "create", change, owner).await.map_err(|error| {
        // The daemon may be at another registry.
        match args.flag("node-id").is_none() && owner != 0 && error.code == Code::NotFound {
            true => error.hint("name its owner with --node-id, or none with --node-id 0"),
            false => error,
        }
    })?;
    app.out.result(&answer, || {
        format!(
            "created network {}: {} (join_rule={})\n",
            answer["network_id"],
            crate::commands::line(answer["name"].as_str().unwrap_or_default()),
            crate::commands::line(answer["join_rule"].as_str().unwrap_or_default()),
        )
    });
    if owner == 0 && admin_token(app)?.is_some() {
        app.out.note("it has no owner and no member: no daemon runs here, and no --node-id names a node");
    }
    Ok(0)
}

async fn delete(app: &App, args: &Args) -> Outcome {
    let network = id(args.word(0))?;
    let answer = command(app, "delete", NetworkChange::Delete { network }, 0).await?;
    app.out.result(&answer, || format!("deleted network {network}\n"));
    Ok(0)
}

async fn rename(app: &App, args: &Args) -> Outcome {
    let (network, name) = (id(args.word(0))?, args.word(1).to_owned());
    let change = NetworkChange::Rename { network, name: name.clone() };
    let answer = command(app, "rename", change, 0).await?;
    app.out.result(&answer, || format!("renamed network {network} to {}\n", go::quote(&name)));
    Ok(0)
}

/// Changes what a member is, and says so.
async fn member(
    app: &App,
    args: &Args,
    method: &str,
    change: impl Fn(u16, u32) -> NetworkChange,
    human: impl Fn(u16, u32) -> String,
) -> Outcome {
    let (network, target) = target(app, args).await?;
    let answer = command(app, method, change(network, target), 0).await?;
    app.out.result(&answer, || human(network, target));
    Ok(0)
}

async fn policy(app: &App, args: &Args) -> Outcome {
    let network = id(args.word(0))?;
    let allowed_ports = match args.flag("allowed-ports") {
        None => None,
        Some(list) => Some(
            list.split(',')
                .map(str::trim)
                .filter(|port| !port.is_empty())
                .map(args::port)
                .collect::<Result<Vec<u16>, _>>()?,
        ),
    };
    let max_members = match args.flag("max-members") {
        None => None,
        Some(text) => {
            let max = go::parse_uint(text, u64::from(u32::MAX));
            let max = max.map_err(|why| CliError::argument(format!("invalid integer for --max-members: {why}")))?;
            // The limit above makes the cast lossless.
            Some(max as u32)
        }
    };
    let description = args.flag("description").map(str::to_owned);
    let policy = PolicyChange { allowed_ports, max_members, description };
    if policy == PolicyChange::default() {
        return show_policy(app, network).await;
    }
    let answer = command(app, "set_policy", NetworkChange::SetPolicy { network, policy }, 0).await?;
    app.out.result(&answer, || format!("updated policy for network {network}\n"));
    Ok(0)
}
