//! Networks and broadcasts, as calls (docs/spec/networks.md). What the official commands do too has the same answers.

use std::sync::Arc;
use std::time::Duration;

use pilot_proto::directory::Call;
use pilot_services::CallError;
use pilot_wire::base64;
use pilot_wire::registry::{NetworkChange, PolicyChange};
use serde_json::Value;

use super::methods::{invalid, number};
use super::official::{peer, registry, text};
use crate::node::{Shared, broadcast};

/// Their names.
pub(super) const NAMES: [&str; 19] = [
    "network.broadcast",
    "network.create",
    "network.delete",
    "network.demote",
    "network.invite",
    "network.invites",
    "network.join",
    "network.kick",
    "network.leave",
    "network.list",
    "network.members",
    "network.policy",
    "network.promote",
    "network.rename",
    "network.respond",
    "network.role",
    "network.set_policy",
    "network.transfer",
    "trust.broadcast",
];

fn network(args: &Value) -> Result<u16, CallError> {
    let id = args.get("network").and_then(Value::as_u64).and_then(|id| u16::try_from(id).ok());
    id.ok_or_else(|| invalid("network is the number of a network, 0 to 65535"))
}

fn port(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| u16::try_from(port).ok())
}

/// The message: `data` in base64, or `text`.
fn message(args: &Value) -> Result<Vec<u8>, CallError> {
    let data = match args.get("data") {
        None | Some(Value::Null) => text(args, "text")?.into_bytes(),
        Some(Value::String(data)) => base64::decode(data).ok_or_else(|| invalid("data is base64"))?,
        Some(_) => return Err(invalid("data is base64")),
    };
    if data.is_empty() { Err(invalid("the message is empty")) } else { Ok(data) }
}

fn destination(args: &Value) -> Result<u16, CallError> {
    match args.get("port") {
        None | Some(Value::Null) => Ok(broadcast::PORT),
        Some(value) => port(value).ok_or_else(|| invalid("port is 0 to 65535")),
    }
}

fn limit(args: &Value) -> Result<Duration, CallError> {
    let default = u64::try_from(broadcast::PER_PEER.as_millis()).unwrap_or(u64::MAX);
    Ok(Duration::from_millis(number(args, "timeout_ms", default)?).min(broadcast::MAX_PER_PEER))
}

fn policy(args: &Value) -> Result<PolicyChange, CallError> {
    let ports = match args.get("allowed_ports") {
        None | Some(Value::Null) => None,
        Some(Value::Array(list)) => {
            let ports: Option<Vec<u16>> = list.iter().map(port).collect();
            Some(ports.ok_or_else(|| invalid("allowed_ports is a list of ports"))?)
        }
        Some(_) => return Err(invalid("allowed_ports is a list of ports")),
    };
    let max_members = match args.get("max_members") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let max = value.as_u64().and_then(|max| u32::try_from(max).ok());
            Some(max.ok_or_else(|| invalid("max_members is a number from 0 up"))?)
        }
    };
    let description = match args.get("description") {
        None | Some(Value::Null) => None,
        Some(_) => Some(text(args, "description")?),
    };
    Ok(PolicyChange { allowed_ports: ports, max_members, description })
}

/// Does it, and answers as the registry does.
pub(super) async fn call(node: &Arc<Shared>, method: &str, args: &Value) -> Result<Value, CallError> {
    let change = match method {
        "network.list" => return node.directory.list_networks().await.map_err(registry),
        "network.members" => return node.directory.list_nodes(network(args)?).await.map_err(registry),
        "network.policy" => {
            return node.directory.network(Call::NetworkPolicy { network: network(args)? }).await.map_err(registry);
        }
        "network.role" => {
            let call = Call::MemberRole { network: network(args)?, node: peer(args)? };
            return node.directory.network(call).await.map_err(registry);
        }
        "network.invites" => return node.directory.network(Call::PollInvites).await.map_err(registry),
        "network.invite" => {
            let call = Call::InviteToNetwork { network: network(args)?, node: peer(args)? };
            return node.directory.network(call).await.map_err(registry);
        }
        "network.join" => {
            let call = Call::JoinNetwork { network: network(args)?, token: text(args, "token")? };
            return node.network(call).await.map_err(registry);
        }
        "network.leave" => {
            return node.network(Call::LeaveNetwork { network: network(args)? }).await.map_err(registry);
        }
        "network.respond" => {
            let accept = args.get("accept").and_then(Value::as_bool);
            let accept = accept.ok_or_else(|| invalid("accept is true or false"))?;
            return node.network(Call::RespondInvite { network: network(args)?, accept }).await.map_err(registry);
        }
        "network.broadcast" => {
            let (data, port) = (message(args)?, destination(args)?);
            let no_port = || CallError::new("no_port", "no free source port for datagrams");
            let datagrams = node.engine.datagrams().ok_or_else(no_port)?;
            let send = |to| datagrams.send_to(to, &data).map_err(|error| error.to_string());
            let turn = node.broadcast_turn()?;
            let mut told = node.broadcast(turn, network(args)?, port, limit(args)?, send).await?;
            told["bytes"] = data.len().into();
            return Ok(told);
        }
        "trust.broadcast" => {
            let data = message(args)?;
            let (port, limit) = (destination(args)?, limit(args)?);
            return Ok(node.broadcast_trusted(node.broadcast_turn()?, port, limit, &data).await);
        }
        "network.create" => NetworkChange::Create {
            name: text(args, "name")?,
            join_rule: text(args, "join_rule")?,
            token: text(args, "token")?,
        },
        "network.delete" => NetworkChange::Delete { network: network(args)? },
        "network.rename" => NetworkChange::Rename { network: network(args)?, name: text(args, "name")? },
        "network.kick" => NetworkChange::Kick { network: network(args)?, target: peer(args)? },
        "network.promote" => NetworkChange::Promote { network: network(args)?, target: peer(args)? },
        "network.demote" => NetworkChange::Demote { network: network(args)?, target: peer(args)? },
        "network.transfer" => NetworkChange::Transfer { network: network(args)?, target: peer(args)? },
        "network.set_policy" => NetworkChange::SetPolicy { network: network(args)?, policy: policy(args)? },
        _ => return Err(CallError::new("unknown_method", format!("{method} cannot be called"))),
    };
    node.change_network(change).await.map_err(registry)
}
