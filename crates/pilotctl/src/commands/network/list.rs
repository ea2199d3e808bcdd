//! `network list`, `members`, `role`, `policy` without changes: what everybody may see.

use pilot::NetworkCommand;
use pilot_wire::registry::Request;
use serde_json::{Value, json};

use super::{ask, id};
use crate::app::App;
use crate::args::Args;
use crate::commands::line;
use crate::errors::Outcome;
use crate::registry::{Failure, Registry};
use crate::table::{Arg, Command};

pub(crate) const LIST: Command = Command {
    name: "network list",
    args: &[],
    about: "list the networks of the registry, and which of them this node is in",
    details: "Network 0, the backbone, has every node. Members of another one talk without a handshake.",
    returns: "networks [{id, name, join_rule, members, created, enterprise, joined}]",
    raw: false,
    run: |app, args| Box::pin(list(app, args)),
};

pub(crate) const MEMBERS: Command = Command {
    name: "network members",
    args: &[Arg::new("<network_id>", "which network")],
    about: "list the members of a network",
    details: "Those that are away now are in a list of their own, where the registry tells them.",
    returns: "nodes [{node_id, address, hostname, version, public, role}], offline [...]",
    raw: false,
    run: |app, args| Box::pin(members(app, args)),
};

pub(crate) const ROLE: Command = Command {
    name: "network role",
    args: &[Arg::new("<network_id>", "which network"), Arg::new("<node_id|address|hostname>", "whose role")],
    about: "show a member's role in a network: owner, admin or member",
    details: "",
    returns: "network_id, target_node_id, role",
    raw: false,
    run: |app, args| Box::pin(role(app, args)),
};

async fn list(app: &App, _args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let mut answer = ask("network list", driver.network(NetworkCommand::List)).await?;
    // Official daemons tell their networks, too; without them nothing is marked.
    let info = app.ask("info", driver.info()).await?;
    let own: Vec<u64> = info["networks"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    for network in answer["networks"].as_array_mut().into_iter().flatten() {
        let joined = network["id"].as_u64().is_some_and(|id| id == 0 || own.contains(&id));
        network["joined"] = joined.into();
    }
    app.out.result(&answer, || {
        let mut text = format!("{:<8} {:<30} {:<10} {:<8} {}\n", "ID", "NAME", "JOIN RULE", "MEMBERS", "JOINED");
        for network in answer["networks"].as_array().into_iter().flatten() {
            text.push_str(&format!(
                "{:<8} {:<30} {:<10} {:<8} {}\n",
                network["id"].as_u64().unwrap_or(0),
                line(network["name"].as_str().unwrap_or_default()),
                line(network["join_rule"].as_str().unwrap_or_default()),
                network["members"].as_u64().unwrap_or(0),
                if network["joined"] == true { "yes" } else { "-" },
            ));
        }
        text
    });
    Ok(0)
}

async fn members(app: &App, args: &Args) -> Outcome {
    let network = id(args.word(0))?;
    let driver = app.driver().await?;
    let answer = ask("network members", driver.network(NetworkCommand::Members { network })).await?;
    app.out.result(&answer, || {
        let mut text = format!(
            "{:<12} {:<20} {:<12} {:<9} {:<7} {}\n",
            "NODE ID", "HOSTNAME", "VERSION", "PUBLIC", "ROLE", "STATE"
        );
        for (list, state) in [("nodes", "online"), ("offline", "offline")] {
            for member in answer[list].as_array().into_iter().flatten() {
                let word = |key: &str| match member[key].as_str() {
                    None | Some("") => "-".to_owned(),
                    Some(word) => line(word),
                };
                text.push_str(&format!(
                    "{:<12} {:<20} {:<12} {:<9} {:<7} {state}\n",
                    member["node_id"].as_u64().unwrap_or(0),
                    word("hostname"),
                    word("version"),
                    if member["public"] == true { "public" } else { "private" },
                    word("role"),
                ));
            }
        }
        if answer["truncated"] == true {
            text.push_str("… there are more than one answer holds\n");
        }
        text
    });
    Ok(0)
}

async fn role(app: &App, args: &Args) -> Outcome {
    let network = id(args.word(0))?;
    let driver = app.driver().await?;
    let target = app.resolve(&driver, args.word(1)).await?.node;
    let answer = by_registry(app, "network role", &Request::GetMemberRole { network, target }).await?;
    app.out.result(&answer, || {
        format!("node {target} in network {network}: role={}\n", line(answer["role"].as_str().unwrap_or("none")))
    });
    Ok(0)
}

/// A question to the registry itself.
pub(super) async fn by_registry(app: &App, command: &str, request: &Request) -> Result<Value, crate::errors::CliError> {
    let registry = Registry::of(&app.home, &app.home.load()?)?;
    registry.ask(request).await.map_err(|failure| {
        let code = match &failure {
            Failure::Refused(error) => Some(super::code_of_answer(error)),
            _ => None,
        };
        let mut error = registry.explain(command, failure);
        if let Some(code) = code {
            error.code = code;
        }
        error
    })
}

/// The policy of a network, as it is.
pub(super) async fn policy(app: &App, network: u16) -> Outcome {
    let answer = by_registry(app, "network policy", &Request::GetNetworkPolicy { network }).await?;
    app.out.object(&json!(answer));
    Ok(0)
}
