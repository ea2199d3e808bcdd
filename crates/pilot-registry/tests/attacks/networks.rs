//! Networks: who may do what in them, and what nobody can (docs/spec/networks.md N1 to N12).

use std::cell::Cell;
use std::sync::Arc;

use pilot_env::Env;
use pilot_registry::limits::{MAX_INVITED, MAX_INVITES, MAX_NETWORKS_OF_NODE, MAX_OWNED};
use pilot_registry::{AdminToken, NetworkCreation, Rate, RedbStore, RegistryConfig};
use pilot_wire::registry::{Authority, NetworkChange, PolicyChange, Request};
use pilot_wire::signed;
use serde_json::{Value, json};

use super::common::{Peers, sign};

fn now() -> u64 {
    Env::real().unix().as_secs()
}

/// A command of node `node`, which has key `node`, signed at `at`.
fn command_at(node: u32, change: NetworkChange, at: u64) -> Value {
    let signature = sign(u8::try_from(node).unwrap(), &signed::network_command(node, &change, at));
    let by = Authority { node, timestamp: at, signature, ..Authority::default() };
    Request::ChangeNetwork { by, change }.to_value()
}

/// This time, or the next one that no command of this test has: each counts once.
fn unused(at: u64) -> u64 {
    thread_local! {
        static LAST: Cell<u64> = const { Cell::new(0) };
    }
    LAST.with(|last| {
        last.set(at.max(last.get() + 1));
        last.get()
    })
}

fn create(name: &str, join_rule: &str, token: &str) -> NetworkChange {
    NetworkChange::Create { name: name.into(), join_rule: join_rule.into(), token: token.into() }
}

/// The tests' words: node `n` has key `n` and speaks from address `n`.
trait Networks {
    async fn nodes(&mut self, count: u8);
    async fn command(&mut self, node: u32, change: NetworkChange) -> Value;
    async fn admin(&mut self, token: &str, node: u32, change: NetworkChange) -> Value;
    async fn join_network(&mut self, node: u32, network: u16, token: &str) -> Value;
    async fn leave_network(&mut self, node: u32, network: u16) -> Value;
    async fn invite(&mut self, inviter: u32, network: u16, target: u32) -> Value;
    async fn invites(&mut self, node: u32) -> Value;
    async fn respond(&mut self, node: u32, network: u16, accept: bool) -> Value;
    async fn members(&mut self, network: u16) -> Vec<u64>;
    async fn role(&mut self, network: u16, node: u32) -> Value;
    async fn new_network(&mut self, owner: u32, name: &str, rule: &str, token: &str) -> u16;
}

fn host(node: u32) -> u8 {
    u8::try_from(node).unwrap()
}

impl Networks for Peers {
    async fn nodes(&mut self, count: u8) {
        for seed in 1..=count {
            assert_eq!(self.join(seed, seed).await, u32::from(seed));
        }
    }

    async fn command(&mut self, node: u32, change: NetworkChange) -> Value {
        self.from(host(node), command_at(node, change, unused(now()))).await
    }

    async fn admin(&mut self, token: &str, node: u32, change: NetworkChange) -> Value {
        let by = Authority { node, admin_token: token.into(), ..Authority::default() };
        self.from(200, Request::ChangeNetwork { by, change }.to_value()).await
    }

    async fn join_network(&mut self, node: u32, network: u16, token: &str) -> Value {
        let signature = sign(host(node), &format!("join_network:{node}:{network}"));
        let request = json!({"type": "join_network", "node_id": node, "network_id": network, "token": token,
                             "inviter_id": 0, "signature": signature});
        self.from(host(node), request).await
    }

    async fn leave_network(&mut self, node: u32, network: u16) -> Value {
        let signature = sign(host(node), &format!("leave_network:{node}:{network}"));
        let request = json!({"type": "leave_network", "node_id": node, "network_id": network, "signature": signature});
        self.from(host(node), request).await
    }

    async fn invite(&mut self, inviter: u32, network: u16, target: u32) -> Value {
        let signature = sign(host(inviter), &format!("invite:{inviter}:{network}:{target}"));
        let request = json!({"type": "invite_to_network", "inviter_id": inviter, "network_id": network,
                             "target_node_id": target, "signature": signature});
        self.from(host(inviter), request).await
    }

    async fn invites(&mut self, node: u32) -> Value {
        self.signed(host(node), host(node), "poll_invites", node, json!({})).await["invites"].clone()
    }

    async fn respond(&mut self, node: u32, network: u16, accept: bool) -> Value {
        let signature = sign(host(node), &format!("respond_invite:{node}:{network}"));
        let request = json!({"type": "respond_invite", "node_id": node, "network_id": network, "accept": accept,
                             "signature": signature});
        self.from(host(node), request).await
    }

    async fn members(&mut self, network: u16) -> Vec<u64> {
        let list = self.from(250, json!({"type": "list_nodes", "network_id": network})).await;
        list["nodes"].as_array().into_iter().flatten().filter_map(|node| node["node_id"].as_u64()).collect()
    }

    async fn role(&mut self, network: u16, node: u32) -> Value {
        let ask = json!({"type": "get_member_role", "network_id": network, "target_node_id": node});
        self.from(250, ask).await["role"].clone()
    }

    async fn new_network(&mut self, owner: u32, name: &str, rule: &str, token: &str) -> u16 {
        let made = self.command(owner, create(name, rule, token)).await;
        assert_eq!(made["type"], "create_network_ok", "{made}");
        u16::try_from(made["network_id"].as_u64().unwrap()).unwrap()
    }
}

#[tokio::test]
async fn each_rule_lets_in_whom_it_names_and_nobody_else() {
    let mut peers = Peers::new();
    peers.nodes(4).await;
    let open = peers.new_network(1, "open-lab", "", "").await;
    let token = peers.new_network(1, "token-lab", "token", "sekret").await;
    let invite = peers.new_network(1, "invite-lab", "invite", "").await;
    assert_eq!((open, token, invite), (1, 2, 3));

    let joined = peers.join_network(2, open, "").await;
    assert_eq!(joined, json!({"type": "join_network_ok", "network_id": 1, "address": "1:0001.0000.0002"}));
    assert_eq!(peers.join_network(2, open, "").await["code"], "already_member");
    assert_eq!(peers.join_network(2, 0, "").await["code"], "already_member");
    assert_eq!(peers.join_network(2, 9, "").await["code"], "network_not_found");

    for wrong in ["", "sekre", "sekret ", "Sekret"] {
        assert_eq!(peers.join_network(2, token, wrong).await["code"], "network_token_invalid", "{wrong:?}");
    }
    assert_eq!(peers.join_network(2, token, "sekret").await["type"], "join_network_ok");

    // To name a member as inviter, as February's protocol has it, opens nothing.
    assert_eq!(peers.join_network(2, invite, "").await["code"], "not_invited");
    assert_eq!(peers.invite(3, invite, 2).await["code"], "not_member");
    assert_eq!(peers.invite(1, invite, 2).await["type"], "invite_to_network_ok");
    let waiting = peers.invites(2).await;
    assert_eq!(waiting[0]["network_id"], invite);
    assert_eq!(waiting[0]["inviter_id"], 1);
    assert_eq!(waiting[0]["network_name"], "invite-lab");
    // Looking does not use it up.
    assert_eq!(peers.invites(2).await.as_array().unwrap().len(), 1);
    assert_eq!(peers.respond(3, invite, true).await["code"], "invite_not_found");
    assert_eq!(peers.respond(2, invite, true).await["type"], "respond_invite_ok");
    assert_eq!(peers.invites(2).await, json!([]));
    assert_eq!(peers.respond(2, invite, true).await["code"], "invite_not_found");
    // An invitation that was refused is gone.
    assert_eq!(peers.invite(1, invite, 3).await["type"], "invite_to_network_ok");
    assert_eq!(peers.respond(3, invite, false).await["accept"], false);
    assert_eq!(peers.join_network(3, invite, "").await["code"], "not_invited");

    assert_eq!(peers.members(invite).await, [1, 2]);
    assert_eq!(peers.lookup(2).await["networks"], json!([0, 1, 2, 3]));
    // Members find each other, others do not.
    assert_eq!(peers.resolve(2, 2, 2, 1).await["real_addr"], "203.0.113.1:4000");
    assert_eq!(peers.resolve(4, 4, 4, 1).await["code"], "private");
    // The token is shown to nobody.
    assert!(!peers.from(250, json!({"type": "list_networks"})).await.to_string().contains("sekret"));
}

#[tokio::test]
async fn nothing_is_done_in_anothers_name() {
    let mut peers = Peers::new();
    peers.nodes(3).await;
    let id = peers.new_network(1, "lab", "open", "").await;
    assert_eq!(peers.join_network(2, id, "").await["type"], "join_network_ok");

    // Unsigned, signed by another, or over another network.
    for signature in [
        String::new(),
        sign(3, &format!("leave_network:2:{id}")),
        sign(2, "leave_network:2:9"),
        sign(2, &format!("join_network:2:{id}")),
    ] {
        let request = json!({"type": "leave_network", "node_id": 2, "network_id": id, "signature": signature});
        let code = peers.from(3, request).await["code"].clone();
        assert!(code == "signature_required" || code == "signature_failed", "{code}");
    }
    let unsigned = Request::ChangeNetwork {
        by: Authority { node: 1, ..Authority::default() },
        change: NetworkChange::Delete { network: id },
    };
    assert_eq!(peers.from(3, unsigned.to_value()).await["code"], "signature_required");
    // A signature holds for what was signed, and nothing else.
    let mut kick = command_at(1, NetworkChange::Kick { network: id, target: 2 }, now());
    kick["target_node_id"] = 3.into();
    assert_eq!(peers.from(3, kick).await["code"], "signature_failed");
    let mut other = command_at(1, NetworkChange::Promote { network: id, target: 2 }, now());
    other["type"] = "kick_member".into();
    assert_eq!(peers.from(3, other).await["code"], "signature_failed");
    // Nor for ever, nor from a clock far ahead.
    for at in [now() - 400, now() + 400] {
        let old = command_at(1, NetworkChange::Delete { network: id }, at);
        let answer = peers.from(1, old).await;
        assert_eq!(answer["code"], "signature_expired", "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("expired"), "{answer}");
    }
    let mut fresh = command_at(1, NetworkChange::Delete { network: id }, now() - 400);
    fresh["timestamp"] = now().into();
    assert_eq!(peers.from(1, fresh).await["code"], "signature_failed");
    assert_eq!(peers.members(id).await, [1, 2]);
}

#[tokio::test]
async fn a_signed_command_counts_once() {
    let mut peers = Peers::new();
    peers.nodes(3).await;
    let id = peers.new_network(1, "lab", "open", "").await;
    assert_eq!(peers.join_network(2, id, "").await["type"], "join_network_ok");
    let kick = command_at(1, NetworkChange::Kick { network: id, target: 2 }, now());
    assert_eq!(peers.from(1, kick.clone()).await["type"], "kick_member_ok");
    assert_eq!(peers.join_network(2, id, "").await["type"], "join_network_ok");
    // Whoever has seen it gives it again.
    for from in [1, 3] {
        let answer = peers.from(from, kick.clone()).await;
        assert_eq!(answer["code"], "signature_expired", "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("given already"), "{answer}");
    }
    // Also one that was refused.
    let promote = command_at(2, NetworkChange::Promote { network: id, target: 2 }, now());
    assert_eq!(peers.from(2, promote.clone()).await["code"], "not_allowed");
    assert_eq!(peers.command(1, NetworkChange::Transfer { network: id, target: 2 }).await["role"], "owner");
    assert_eq!(peers.from(3, promote).await["code"], "signature_expired");
    assert_eq!(peers.members(id).await, [1, 2]);
}

#[tokio::test]
async fn a_role_allows_what_it_names_and_no_more() {
    use NetworkChange as C;
    let mut peers = Peers::new();
    peers.nodes(6).await;
    let network = peers.new_network(1, "lab", "invite", "").await;
    for node in 2..=5 {
        assert_eq!(peers.invite(1, network, node).await["type"], "invite_to_network_ok");
        assert_eq!(peers.respond(node, network, true).await["type"], "respond_invite_ok");
    }
    for target in [2, 3] {
        assert_eq!(peers.command(1, C::Promote { network, target }).await["role"], "admin");
    }
    let list = peers.from(250, json!({"type": "list_nodes", "network_id": network})).await;
    let roles: Vec<&str> = list["nodes"].as_array().unwrap().iter().map(|n| n["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["owner", "admin", "admin", "member", "member"]);

    // Strangers: nothing.
    let policy = |max| C::SetPolicy { network, policy: PolicyChange { max_members: Some(max), ..Default::default() } };
    let all = |target| {
        [
            C::Kick { network, target },
            C::Promote { network, target },
            C::Demote { network, target },
            C::Transfer { network, target },
            C::Rename { network, name: "mine".into() },
            policy(9),
            C::Delete { network },
        ]
    };
    for change in all(4) {
        assert_eq!(peers.command(6, change.clone()).await["code"], "not_member", "{change:?}");
        assert_eq!(peers.command(4, change.clone()).await["code"], "not_allowed", "{change:?}");
    }
    assert_eq!(peers.invite(4, network, 6).await["code"], "not_allowed");
    // Administrators: invite, and put out members; not each other, not the owner.
    for change in all(4).into_iter().skip(1) {
        assert_eq!(peers.command(2, change.clone()).await["code"], "not_allowed", "{change:?}");
    }
    assert_eq!(peers.command(2, C::Kick { network, target: 3 }).await["code"], "not_allowed");
    assert_eq!(peers.command(2, C::Kick { network, target: 1 }).await["code"], "owner_stays");
    assert_eq!(peers.command(2, C::Kick { network, target: 6 }).await["code"], "not_member");
    assert_eq!(peers.command(2, C::Kick { network, target: 4 }).await["type"], "kick_member_ok");
    assert_eq!(peers.members(network).await, [1, 2, 3, 5]);
    assert_eq!(peers.lookup(4).await["networks"], json!([0]));
    assert_eq!(peers.resolve(4, 4, 4, 1).await["code"], "private", "put out is out");
    assert_eq!(peers.join_network(4, network, "").await["code"], "not_invited");
    assert_eq!(peers.invite(2, network, 6).await["type"], "invite_to_network_ok");
    // The owner: everything, but it stays.
    assert_eq!(peers.leave_network(1, network).await["code"], "owner_stays");
    for change in [C::Kick { network, target: 1 }, C::Demote { network, target: 1 }, C::Promote { network, target: 1 }]
    {
        assert_eq!(peers.command(1, change.clone()).await["code"], "owner_stays", "{change:?}");
    }
    assert_eq!(peers.command(1, C::Demote { network, target: 3 }).await["role"], "member");
    assert_eq!(peers.command(1, C::Transfer { network, target: 6 }).await["code"], "not_member");
    assert_eq!(peers.command(1, C::Transfer { network, target: 2 }).await["role"], "owner");
    assert_eq!((peers.role(network, 1).await, peers.role(network, 2).await), ("admin".into(), "owner".into()));
    assert_eq!(peers.command(1, C::Delete { network }).await["code"], "not_allowed");
    assert_eq!(peers.leave_network(1, network).await["type"], "leave_network_ok");
    assert_eq!(peers.role(network, 1).await, Value::Null);
    assert_eq!(peers.command(2, C::Rename { network, name: "labs".into() }).await["name"], "labs");
    assert_eq!(peers.command(2, policy(4)).await["max_members"], 4);
    // Deleted, it is gone from everywhere, and its id is not the next one's.
    assert_eq!(peers.command(2, C::Delete { network }).await["type"], "delete_network_ok");
    assert_eq!(peers.lookup(2).await["networks"], json!([0]));
    assert_eq!(peers.invites(6).await, json!([]));
    assert_eq!(peers.join_network(6, network, "").await["code"], "network_not_found");
    assert_eq!(peers.new_network(2, "labs", "open", "").await, network + 1);
    // Network 0 is nobody's.
    for change in
        [C::Delete { network: 0 }, C::Kick { network: 0, target: 2 }, C::Rename { network: 0, name: "x".into() }]
    {
        assert_eq!(peers.command(1, change.clone()).await["code"], "backbone", "{change:?}");
    }
    assert_eq!(peers.leave_network(1, 0).await["code"], "backbone");
}

#[tokio::test]
async fn the_admin_token_commands_and_a_wrong_one_does_not() {
    use NetworkChange as C;
    let env = Env::real();
    let config = RegistryConfig {
        admin_token: AdminToken("tok".into()),
        token_guesses: Rate { burst: 3, per_second: 0.000_001 },
        ..RegistryConfig::default()
    };
    let shown = format!("{config:?}");
    assert!(!shown.contains("tok\""), "{shown}");
    let mut peers = Peers::over(env, Arc::new(RedbStore::in_memory(now(), None).unwrap()), config);
    peers.nodes(2).await;
    // With an admin token, networks are made with it.
    assert_eq!(peers.command(1, create("lab", "open", "")).await["code"], "admin_token_required");
    // As the official command line does it: in nobody's name, or in a node's.
    let made = peers.admin("tok", 0, create("lab", "open", "")).await;
    assert_eq!((&made["type"], &made["network_id"]), (&"create_network_ok".into(), &1.into()));
    assert_eq!(peers.members(1).await, Vec::<u64>::new());
    assert_eq!(peers.admin("tok", 1, create("lab2", "open", "")).await["node_id"], 1);
    assert_eq!(peers.role(2, 1).await, "owner");
    assert_eq!(peers.admin("tok", 9, create("lab3", "open", "")).await["code"], "node_not_found");
    assert_eq!(peers.join_network(2, 1, "").await["type"], "join_network_ok");
    assert_eq!(peers.admin("tok", 0, C::Promote { network: 1, target: 2 }).await["role"], "admin");
    assert_eq!(peers.admin("tok", 0, C::Kick { network: 2, target: 1 }).await["type"], "kick_member_ok");
    assert_eq!(peers.admin("tok", 0, C::Transfer { network: 1, target: 2 }).await["role"], "owner");
    // Guesses are counted by source, right ones are not.
    for _ in 0..3 {
        assert_eq!(peers.admin("tik", 0, C::Delete { network: 1 }).await["code"], "admin_token_invalid");
    }
    assert_eq!(peers.admin("tok", 0, C::Delete { network: 1 }).await["code"], "rate_limited");
    // Without a token of the registry's none is right, the empty one least of all.
    let mut peers = Peers::new();
    peers.nodes(1).await;
    assert_eq!(peers.admin("x", 0, create("lab", "open", "")).await["code"], "admin_token_invalid");
    assert_eq!(peers.admin("", 0, create("lab", "open", "")).await["code"], "node_not_found");
    let config = RegistryConfig { network_creation: NetworkCreation::Admin, ..RegistryConfig::default() };
    let mut peers = Peers::over(Env::real(), Arc::new(RedbStore::in_memory(now(), None).unwrap()), config);
    peers.nodes(1).await;
    assert_eq!(peers.command(1, create("lab", "open", "")).await["code"], "admin_token_required");
}

#[tokio::test]
async fn a_join_token_cannot_be_guessed_quickly() {
    let mut peers = Peers::new();
    peers.nodes(2).await;
    let network = peers.new_network(1, "lab", "token", "sekret").await;
    let burst = RegistryConfig::default().token_guesses.burst;
    for _ in 0..burst {
        assert_eq!(peers.join_network(2, network, "guess").await["code"], "network_token_invalid");
    }
    assert_eq!(peers.join_network(2, network, "sekret").await["code"], "rate_limited", "also not by luck");
}

#[tokio::test]
async fn names_tokens_and_policies_are_checked() {
    let mut peers = Peers::new();
    peers.nodes(1).await;
    let long = "a".repeat(64);
    for name in ["", "Lab", "-lab", "lab_1", "backbone", "läb", "a:b", long.as_str()] {
        assert_eq!(peers.command(1, create(name, "open", "")).await["code"], "network_name_invalid", "{name:?}");
    }
    assert_eq!(peers.command(1, create("lab", "closed", "")).await["code"], "join_rule_invalid");
    assert_eq!(peers.command(1, create("lab", "token", "")).await["code"], "network_token_unusable");
    assert_eq!(peers.command(1, create("lab", "open", "x")).await["code"], "network_token_unusable");
    assert_eq!(peers.command(1, create("lab", "token", &"x".repeat(257))).await["code"], "network_token_unusable");
    let network = peers.new_network(1, "lab", "token", "x").await;
    assert_eq!(peers.command(1, create("lab", "open", "")).await["code"], "network_name_taken");
    let other = peers.new_network(1, "lab2", "open", "").await;
    let rename = |name: &str| NetworkChange::Rename { network: other, name: name.into() };
    assert_eq!(peers.command(1, rename("lab")).await["code"], "network_name_taken");
    assert_eq!(peers.command(1, rename("Lab")).await["code"], "network_name_invalid");
    assert_eq!(peers.command(1, rename("lab2")).await["name"], "lab2");
    for policy in [
        PolicyChange { allowed_ports: Some(vec![1; 65]), ..Default::default() },
        PolicyChange { max_members: Some(2001), ..Default::default() },
        PolicyChange { description: Some("x".repeat(513)), ..Default::default() },
    ] {
        let answer = peers.command(1, NetworkChange::SetPolicy { network, policy }).await;
        assert_eq!(answer["code"], "network_policy_invalid", "{answer}");
    }
    // What cannot be read never counts as "all ports", and what changes nothing is no success.
    let port = PolicyChange { allowed_ports: Some(vec![80]), ..Default::default() };
    assert_eq!(
        peers.command(1, NetworkChange::SetPolicy { network, policy: port }).await["allowed_ports"],
        json!([80])
    );
    for (field, value) in [
        ("allowed_ports", json!(["http"])),
        ("allowed_ports", json!([80, 70_000])),
        ("allowed_ports", json!("80")),
        ("max_members", json!(-1)),
        ("max_members", json!("5")),
        ("description", json!(5)),
    ] {
        let mut request = json!({"type": "set_network_policy", "network_id": network, "node_id": 1});
        request[field] = value;
        let answer = peers.from(1, request).await;
        assert_eq!(answer["code"], "network_policy_invalid", "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(field), "{answer}");
    }
    let nothing = peers.command(1, NetworkChange::SetPolicy { network, policy: PolicyChange::default() }).await;
    assert_eq!(nothing["code"], "network_policy_invalid", "{nothing}");
    let text = nothing["error"].as_str().unwrap();
    assert!(["allowed_ports", "max_members", "description"].iter().all(|field| text.contains(field)), "{text}");
    // What a change does not name stays.
    let ports = PolicyChange { allowed_ports: Some(vec![80, 443]), ..Default::default() };
    peers.command(1, NetworkChange::SetPolicy { network, policy: ports }).await;
    let text = PolicyChange { description: Some("for tests".into()), ..Default::default() };
    peers.command(1, NetworkChange::SetPolicy { network, policy: text }).await;
    let policy = peers.from(250, json!({"type": "get_network_policy", "network_id": network})).await;
    assert_eq!(
        policy,
        json!({"type": "get_network_policy_ok", "network_id": network, "allowed_ports": [80, 443], "max_members": 0,
               "description": "for tests"})
    );
}

#[tokio::test]
async fn every_table_of_networks_is_bounded() {
    let config = RegistryConfig {
        new_networks: Rate { burst: 10_000, per_second: 1.0 },
        new_nodes: Rate { burst: 10_000, per_second: 1.0 },
        ..RegistryConfig::default()
    };
    let store = Arc::new(RedbStore::in_memory(now(), None).unwrap());
    let mut peers = Peers::over(Env::real(), store, config);
    peers.nodes(8).await;
    // Networks of one owner.
    for i in 0..MAX_OWNED {
        peers.new_network(1, &format!("one-{i}"), "open", "").await;
    }
    assert_eq!(peers.command(1, create("one-more", "open", "")).await["code"], "too_many_networks");
    // Networks of one member.
    let mut ids: Vec<u16> = (1..=16).collect();
    for owner in 2..=5 {
        for i in 0..MAX_OWNED {
            ids.push(peers.new_network(owner, &format!("o{owner}-{i}"), "open", "").await);
        }
    }
    for id in &ids[..MAX_NETWORKS_OF_NODE] {
        assert_eq!(peers.join_network(8, *id, "").await["type"], "join_network_ok", "{id}");
    }
    assert_eq!(peers.join_network(8, ids[MAX_NETWORKS_OF_NODE], "").await["code"], "too_many_networks");
    // Members, by the policy.
    let two = PolicyChange { max_members: Some(2), ..Default::default() };
    peers.command(1, NetworkChange::SetPolicy { network: 1, policy: two }).await;
    assert_eq!(peers.join_network(7, 1, "").await["code"], "network_full");
    // Invitations of one node: more networks than it may be asked to.
    for owner in [6, 7] {
        for i in 0..MAX_OWNED {
            ids.push(peers.new_network(owner, &format!("o{owner}-{i}"), "open", "").await);
        }
    }
    let target = 9;
    assert_eq!(peers.join(9, 9).await, target);
    let owner_of = |id: u16| u32::from((id - 1) / 16 + 1);
    for id in &ids[..MAX_INVITES] {
        assert_eq!(peers.invite(owner_of(*id), *id, target).await["type"], "invite_to_network_ok");
    }
    let more = ids[MAX_INVITES];
    assert_eq!(peers.invite(owner_of(more), more, target).await["code"], "too_many_invites");
    assert_eq!(peers.invite(1, 1, target).await["type"], "invite_to_network_ok", "again is no second one");
    assert_eq!(peers.invites(target).await.as_array().unwrap().len(), MAX_INVITES);
    // Given away, they are no fewer.
    let gift = peers.new_network(9, "gift", "open", "").await;
    assert_eq!(peers.join_network(1, gift, "").await["type"], "join_network_ok");
    let given = peers.command(9, NetworkChange::Transfer { network: gift, target: 1 }).await;
    assert_eq!(given["code"], "too_many_networks", "{given}");
    assert_eq!(peers.command(9, NetworkChange::Transfer { network: gift, target: 9 }).await["role"], "owner");
    assert_eq!(peers.command(9, NetworkChange::Delete { network: gift }).await["type"], "delete_network_ok");
}

#[tokio::test]
async fn unanswered_invitations_of_a_network_are_bounded() {
    let config = RegistryConfig { new_nodes: Rate { burst: 10_000, per_second: 1.0 }, ..RegistryConfig::default() };
    let store = Arc::new(RedbStore::in_memory(now(), None).unwrap());
    let mut peers = Peers::over(Env::real(), store, config);
    peers.nodes(1).await;
    let network = peers.new_network(1, "lab", "invite", "").await;
    let last = u32::try_from(MAX_INVITED).unwrap() + 2;
    for node in 2..=last {
        // Nobody has to be there to be invited; it only has to exist.
        let key = pilot_wire::base64::encode(&[&node.to_be_bytes()[..], &[7; 28]].concat());
        assert_eq!(peers.from(99, json!({"type": "register", "public_key": key})).await["node_id"], node);
    }
    for node in 2..last {
        assert_eq!(peers.invite(1, network, node).await["type"], "invite_to_network_ok");
    }
    assert_eq!(peers.invite(1, network, last).await["code"], "too_many_invites");
    assert_eq!(peers.invite(1, network, last + 1).await["code"], "node_not_found");
}
