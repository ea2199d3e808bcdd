//! What each command of the local socket does (03 §6 to §10, 07 §12).
//!
//! Quick commands are done at once, on the reader's task. Those that wait for the registry or a peer run beside it, so
//! that a client's streams flow on meanwhile; [`super::replies`] keeps the order of the answers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use pilot_proto::directory::Call;
use pilot_proto::endpoint::ConnId;
use pilot_wire::SocketAddress;
use pilot_wire::ipc::ext::{is_extension, op::GREET};
use pilot_wire::ipc::{
    Answer, HandshakeCommand, MAX_HANDSHAKE_WAIT_MS, MAX_TAGS, NetworkCommand, Request, RequestError, managed, op, text,
};
use serde_json::{Value, json};

use super::client::{Client, ClientPort, MAX_CONNS};
use super::ext::{self, Verdict};
use super::replies::Ticket;
use super::{envelope, pump, texts};
use crate::node::{Shared, broadcast, fitting};

/// Bytes of JSON one list may take of an answer of at most 1 MiB.
const MAX_LIST: usize = 1_000_000;

/// One client's commands.
pub(super) struct Commands {
    node: Arc<Shared>,
    client: Arc<Client>,
}

impl Commands {
    pub(super) fn new(node: Arc<Shared>, client: Arc<Client>) -> Self {
        Self { node, client }
    }

    /// Does what one frame says. Bytes to send are left in the core; the caller pumps after the last frame.
    ///
    /// Once a client has greeted, opcodes from 0x80 up are those of the extension; before, they are unknown (L2, L3).
    pub(super) fn handle(&self, body: &[u8]) -> Verdict {
        if body.first().is_some_and(|opcode| is_extension(*opcode)) {
            let greeted = self.client.state.lock().ext.is_some();
            if greeted || body.first() == Some(&GREET) {
                return ext::handle(&self.node, &self.client, body);
            }
        }
        self.official(body);
        Verdict::Continue
    }

    fn official(&self, body: &[u8]) {
        let request = match Request::parse(body) {
            Ok(request) => request,
            Err(RequestError::Empty) => return,
            Err(error) => {
                let opcode = body.first().copied().unwrap_or_default();
                let why = error.to_string();
                return self.client.update(|state| match opcode {
                    op::SEND | op::SEND_TO => state.late_error(&why),
                    _ => {
                        let ticket = state.replies.expect(opcode);
                        state.fail(ticket, &why);
                    }
                });
            }
        };
        match request {
            Request::Send { conn, data } => self.send(conn, data),
            Request::SendTo { to, data } => self.send_to(to, data),
            Request::Cancel => pump::cancel_dials(&self.node.engine, &self.client),
            other => self.with_answer(other),
        }
    }

    fn send(&self, conn: u32, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        if let Err(why) = pump::send(&self.node.engine, &self.client, ConnId(conn), data) {
            self.client.update(|state| state.late_error(&why));
        }
    }

    fn send_to(&self, to: SocketAddress, data: &[u8]) {
        if self.is_to_members(to) {
            return self.send_to_members(to, data);
        }
        // Receivers drop empty datagrams, so nobody misses one that was not sent (02 §21).
        if data.is_empty() && !to.addr.is_broadcast() {
            return;
        }
        if let Err(why) = self.datagram(to, data) {
            self.client.update(|state| state.late_error(&why));
        }
    }

    /// Whether this is the address of everybody in a network that we are in.
    fn is_to_members(&self, to: SocketAddress) -> bool {
        to.addr.is_broadcast() && self.node.status.lock().networks.contains(&to.addr.network)
    }

    /// A datagram to everybody in a network, without an answer (05 §11.1): only a failure is told.
    fn send_to_members(&self, to: SocketAddress, data: &[u8]) {
        let sending = Self::new(self.node.clone(), self.client.clone());
        let turn = match self.node.broadcast_turn() {
            Ok(turn) => turn,
            Err(error) => return self.client.update(|state| state.late_error(&format!("sendto: {}", error.message))),
        };
        let data = data.to_vec();
        self.node.spawn(async move {
            let send = |to| sending.datagram(to, &data);
            let told = sending.node.broadcast(turn, to.addr.network, to.port, broadcast::PER_PEER, send).await;
            sending.node.engine.pump();
            if let Err(why) = told.map_err(|error| error.message).and_then(broadcast::missed) {
                sending.client.update(|state| state.late_error(&format!("sendto: {why}")));
            }
        });
    }

    /// Sends a datagram to every member of a network. Who was not reached is named in the error.
    fn broadcast(&self, ticket: Ticket, confirms: bool, (network, port): (u16, u16), data: &[u8]) {
        let command = if confirms { "sendto" } else { "broadcast" };
        if data.is_empty() {
            return self.refuse(ticket, &format!("{command}: the message is empty"));
        }
        let turn = match self.node.broadcast_turn() {
            Ok(turn) => turn,
            Err(error) => return self.refuse(ticket, &format!("{command}: {}", error.message)),
        };
        let sending = Self::new(self.node.clone(), self.client.clone());
        let data = data.to_vec();
        self.node.spawn(async move {
            let send = |to| sending.datagram(to, &data);
            let told = sending.node.broadcast(turn, network, port, broadcast::PER_PEER, send).await;
            let told = told.map_err(|error| error.message).and_then(broadcast::missed);
            sending.node.engine.pump();
            if confirms {
                let sent = told.map(|_| Answer::SendToConfirmOk).map_err(|why| format!("{command}: {why}"));
                return sending.answer(ticket, sent);
            }
            sending.settled(ticket, op::BROADCAST_OK, command, told);
        });
    }

    /// Sends a datagram from the client's own source port, so that the answer comes back to this client.
    fn datagram(&self, to: SocketAddress, data: &[u8]) -> Result<(), String> {
        let start = self.node.env.random_u64() as u16;
        self.node.engine.with_unsent(|core, now| {
            let port = self.client.datagram_port(core, start).ok_or("sendto: no free source port")?;
            core.endpoint.send_datagram(now, port, to, data).map_err(|e| texts::datagram_error(&e))
        })
    }

    /// Says whether a datagram has left. To a node that nothing is known of it could still fail when the registry is asked,
    /// so the registry is asked first.
    fn confirmed_datagram(&self, ticket: Ticket, to: SocketAddress, data: &[u8]) {
        let known = to.addr.is_broadcast() || self.node.engine.look(|core, _| core.endpoint.knows(to.addr.node));
        if known || self.node.node() == 0 {
            let sent = self.datagram(to, data);
            return self.answer(ticket, sent.map(|()| Answer::SendToConfirmOk));
        }
        let sending = Self::new(self.node.clone(), self.client.clone());
        let data = data.to_vec();
        self.node.spawn(async move {
            let sent = match sending.node.directory.resolve(to.addr.node).await {
                Err(error) if !error.is_unavailable() => {
                    Err(format!("sendto: {}", text::resolve_node(to.addr.node, error)))
                }
                // Without a registry the tunnel tries what it remembers.
                Ok(_) | Err(_) => sending.datagram(to, &data),
            };
            sending.node.engine.pump();
            sending.answer(ticket, sent.map(|()| Answer::SendToConfirmOk));
        });
    }

    fn expect(&self, opcode: u8) -> Ticket {
        self.client.state.lock().replies.expect(opcode)
    }

    fn answer(&self, ticket: Ticket, answer: Result<Answer<'_>, String>) {
        self.client.update(|state| match answer {
            Ok(answer) => state.reply(ticket, &answer),
            Err(why) => state.fail(ticket, &why),
        });
    }

    fn with_answer(&self, request: Request<'_>) {
        let opcode = request.opcode();
        let ticket = self.expect(opcode);
        let node = self.node.clone();
        match request {
            Request::Bind { port } => self.bind(ticket, port),
            Request::Unbind { port } => self.unbind(ticket, port),
            Request::Dial { remote } => self.dial(ticket, remote),
            Request::Close { conn } => {
                pump::close(&node.engine, &self.client, ConnId(conn));
                self.answer(ticket, Ok(Answer::CloseOk { conn }));
            }
            Request::SendToConfirm { to, data } if self.is_to_members(to) => {
                self.broadcast(ticket, true, (to.addr.network, to.port), data);
            }
            Request::SendToConfirm { to, data } => self.confirmed_datagram(ticket, to, data),
            Request::Info => self.json(ticket, op::INFO_OK, &node.info()),
            Request::Health => self.json(ticket, op::HEALTH_OK, &node.health()),
            Request::PreferDirect { node: peer } => self.json(ticket, op::PREFER_DIRECT_OK, &node.prefer_direct(peer)),
            Request::Handshake(command) => self.handshake(ticket, command),
            Request::ResolveHostname { hostname } => {
                let call = async move { node.directory.resolve_hostname(&hostname).await };
                self.registry(ticket, op::RESOLVE_HOSTNAME_OK, "resolve_hostname", call);
            }
            Request::SetHostname { hostname } => {
                self.registry(
                    ticket,
                    op::SET_HOSTNAME_OK,
                    "set_hostname",
                    async move { node.set_hostname(hostname).await },
                );
            }
            Request::SetVisibility { public } => {
                self.registry(ticket, op::SET_VISIBILITY_OK, "set_visibility", async move {
                    node.set_visibility(public).await
                });
            }
            Request::Deregister => {
                self.registry(
                    ticket,
                    op::DEREGISTER_OK,
                    "deregister",
                    async move { node.directory.deregister().await },
                );
            }
            Request::SetTags { tags } if tags.len() > MAX_TAGS => {
                self.answer(ticket, Err(text::TOO_MANY_TAGS.to_owned()));
            }
            Request::SetTags { tags } => {
                self.registry(ticket, op::SET_TAGS_OK, "set_tags", async move { node.set_tags(tags).await });
            }
            Request::SetTaskExec { enabled } => {
                self.registry(ticket, op::SET_TASK_EXEC_OK, "set_task_exec", async move {
                    node.directory.set_task_exec(enabled).await
                });
            }
            Request::SetWebhook { url } => match node.set_webhook(&url) {
                Ok(()) => self.json(ticket, op::SET_WEBHOOK_OK, &json!({ "webhook": url })),
                Err(why) => self.answer(ticket, Err(format!("set_webhook: {why}"))),
            },
            Request::Network(command) => self.network(ticket, command),
            Request::SignEnvelope(body) => {
                self.settled(ticket, op::SIGN_ENVELOPE_OK, "sign_envelope", envelope::sign(&node, body));
            }
            Request::VerifyEnvelope(body) => {
                let body = body.to_vec();
                self.registry(ticket, op::VERIFY_ENVELOPE_OK, "verify_envelope", async move {
                    envelope::verify(&node, &body).await
                });
            }
            Request::RotateKey => {
                self.registry(ticket, op::ROTATE_KEY_OK, "rotate_key", async move { node.rotate_key().await });
            }
            // There is no engine here that could manage networks, and nobody who issues or checks badges (07 §12).
            Request::Managed { sub: sub @ (managed::STATUS | managed::CYCLE..=managed::RECONCILE), .. } => {
                tracing::debug!(sub, "a managed network was asked for");
                self.refuse(ticket, "managed: no active managed networks");
            }
            Request::Managed { sub, .. } => self.refuse(ticket, &format!("managed: unknown sub-command 0x{sub:02X}")),
            // The token is for registries that tell their members only to who has it; ours tells everybody.
            Request::Broadcast { network, port, data, .. } => self.broadcast(ticket, false, (network, port), data),
            Request::SubmitBadge(body) => {
                let why = envelope::refuse_json(body, "submit_badge", ["badge", "badge_sig"]);
                self.refuse(
                    ticket,
                    &why.unwrap_or_else(|| {
                        "submit_badge: this network has nobody who checks badges; trust nodes by handshake".to_owned()
                    }),
                );
            }
            Request::EnrollRecovery(body) => {
                let why = envelope::refuse_json(body, "enroll_recovery", ["enrollment", "enrollment_sig"]);
                self.refuse(ticket, &why.unwrap_or_else(|| {
                    "enroll_recovery: this network has nobody who recovers addresses; keep a copy of the identity file"
                        .to_owned()
                }));
            }
            _ => self.answer(ticket, Err(text::unknown_command(opcode))),
        }
    }

    fn refuse(&self, ticket: Ticket, why: &str) {
        self.answer(ticket, Err(why.to_owned()));
    }

    /// Answers at once with a JSON object, or with the command's name and the error.
    fn settled(&self, ticket: Ticket, opcode: u8, command: &'static str, result: Result<Value, String>) {
        match result {
            Ok(value) => self.json(ticket, opcode, &value),
            Err(why) => self.answer(ticket, Err(format!("{command}: {why}"))),
        }
    }

    /// What the registry says about networks. Texts begin as those of official daemons do.
    fn network(&self, ticket: Ticket, command: NetworkCommand) {
        let node = self.node.clone();
        let (name, call) = match command {
            NetworkCommand::List => {
                return self.registry(ticket, op::NETWORK_OK, "network list", async move {
                    node.directory.list_networks().await
                });
            }
            NetworkCommand::Members { network } => {
                return self.registry(ticket, op::NETWORK_OK, "network members", async move {
                    node.directory.list_nodes(network).await
                });
            }
            NetworkCommand::Join { network, token } => ("network join", Call::JoinNetwork { network, token }),
            NetworkCommand::Leave { network } => ("network leave", Call::LeaveNetwork { network }),
            NetworkCommand::Invite { network, node } => ("network invite", Call::InviteToNetwork { network, node }),
            NetworkCommand::PollInvites => ("network poll-invites", Call::PollInvites),
            NetworkCommand::Respond { network, accept } => {
                ("network respond-invite", Call::RespondInvite { network, accept })
            }
        };
        self.registry(ticket, op::NETWORK_OK, name, async move {
            match call {
                // These change nothing about us.
                Call::InviteToNetwork { .. } | Call::PollInvites => node.directory.network(call).await,
                call => node.network(call).await,
            }
        });
    }

    fn json(&self, ticket: Ticket, opcode: u8, value: &Value) {
        self.client.update(|state| state.reply_json(ticket, opcode, value));
    }

    /// Answers later with the JSON object that `call` gives, or with the command's name and the error.
    fn registry<E: std::fmt::Display>(
        &self,
        ticket: Ticket,
        opcode: u8,
        command: &'static str,
        call: impl Future<Output = Result<Value, E>> + Send + 'static,
    ) {
        let client = self.client.clone();
        self.node.spawn(async move {
            let result = call.await;
            client.update(|state| match result {
                Ok(value) => state.reply_json(ticket, opcode, &value),
                Err(why) => state.fail(ticket, &format!("{command}: {why}")),
            });
        });
    }

    fn bind(&self, ticket: Ticket, port: u16) {
        let owner = Arc::new(ClientPort(self.client.clone()));
        self.node.engine.with_unsent(|core, _| {
            let bound = core.bind(port, owner);
            // Answered while the core is locked: no Accept of the port can come before.
            let mut state = self.client.state.lock();
            match bound {
                Ok(()) => {
                    state.ports.insert(port);
                    state.reply(ticket, &Answer::BindOk { port });
                }
                Err(error) => state.fail(ticket, &error.to_string()),
            }
        });
        self.client.update(|_| ());
    }

    fn unbind(&self, ticket: Ticket, port: u16) {
        let owned = self.client.state.lock().ports.remove(&port);
        if owned {
            self.node.engine.with_unsent(|core, now| core.unbind(now, port));
        }
        let answer = if owned { Ok(Answer::UnbindOk { port }) } else { Err(text::UNBIND_NOT_OWNED.to_owned()) };
        self.answer(ticket, answer);
    }

    fn dial(&self, ticket: Ticket, remote: SocketAddress) {
        if self.client.state.lock().conns.len() >= MAX_CONNS {
            let why = format!("dial: this client has too many connections (limit {MAX_CONNS})");
            return self.answer(ticket, Err(why));
        }
        let started = self.node.engine.with_unsent(|core, now| {
            let id = core.endpoint.connect(now, remote)?;
            self.client.dialing(id, ticket);
            core.own(id, self.client.clone());
            Ok(())
        });
        if let Err(error) = started {
            self.answer(ticket, Err(texts::connect_error(&error)));
        }
    }

    fn handshake(&self, ticket: Ticket, command: HandshakeCommand) {
        let node = self.node.clone();
        let client = self.client.clone();
        let done = |peer: u32, status: &str| json!({ "node_id": peer, "status": status });
        match command {
            HandshakeCommand::Pending => {
                self.registry(ticket, op::HANDSHAKE_OK, "handshake pending", async move {
                    node.trust.refresh().await;
                    Ok::<_, String>(cut_list("pending", node.trust.pending()))
                });
            }
            HandshakeCommand::Trusted => {
                self.registry(ticket, op::HANDSHAKE_OK, "handshake trusted", async move {
                    node.trust.refresh().await;
                    Ok::<_, String>(cut_list("trusted", node.trust.trusted()))
                });
            }
            HandshakeCommand::Request { node: peer, justification } => {
                self.registry(ticket, op::HANDSHAKE_OK, "handshake request", async move {
                    // `sent` is what every release says; what really happened is beside it (03 §16.11).
                    let already = node.trust.is_trusted(peer);
                    let sent = node.trust.request(peer, justification).await;
                    sent.map(|()| json!({ "node_id": peer, "status": "sent", "already_trusted": already }))
                });
            }
            HandshakeCommand::Approve { node: peer } => {
                self.registry(ticket, op::HANDSHAKE_OK, "handshake approve", async move {
                    let waited = node.trust.waits(peer).await;
                    let approved = node.trust.approve(peer).await;
                    approved.map(|()| json!({ "node_id": peer, "status": "approved", "was_pending": waited }))
                });
            }
            HandshakeCommand::Reject { node: peer, reason } => {
                self.registry(ticket, op::HANDSHAKE_OK, "handshake reject", async move {
                    let waited = node.trust.waits(peer).await;
                    let rejected = node.trust.reject(peer, reason).await;
                    rejected.map(|()| json!({ "node_id": peer, "status": "rejected", "was_pending": waited }))
                });
            }
            HandshakeCommand::Revoke { node: peer } => {
                self.node.spawn(async move {
                    let known = node.trust.revoke(peer).await;
                    client.update(|state| match known {
                        Ok(true) => state.reply_json(ticket, op::HANDSHAKE_OK, &done(peer, "revoked")),
                        Ok(false) => state.fail(ticket, &text::was_not_trusted(peer)),
                        Err(why) => state.fail(ticket, &format!("handshake revoke: {why}")),
                    });
                });
            }
            HandshakeCommand::Wait { node: peer, millis } => {
                let limit = Duration::from_millis(u64::from(millis.min(MAX_HANDSHAKE_WAIT_MS)));
                self.registry(ticket, op::HANDSHAKE_OK, "handshake wait", async move {
                    let trusted = node.trust.wait(peer, limit).await;
                    Ok::<_, String>(json!({ "node_id": peer, "trusted": trusted }))
                });
            }
        }
    }
}

/// A list that fits an answer; what does not is left out, and said so (07 §12).
pub(super) fn cut_list(name: &str, elements: Vec<Value>) -> Value {
    let (list, cut) = fitting(elements.into_iter(), MAX_LIST, MAX_LIST);
    let mut object = json!({ name: list });
    if cut {
        object[format!("{name}_truncated")] = Value::Bool(true);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_more_than_eight_thousand_trusted_nodes_stays_below_the_frame_limit_and_says_so() {
        let element =
            |node: u32| json!({ "node_id": node, "public_key": "k".repeat(44), "approved_at": 1_780_000_000 });
        let few = cut_list("trusted", (0..100).map(element).collect());
        assert_eq!(few["trusted"].as_array().unwrap().len(), 100);
        assert!(few.get("trusted_truncated").is_none());
        let many = cut_list("trusted", (0..20_000).map(element).collect());
        let mut frame = Vec::new();
        Answer::emit_json(op::HANDSHAKE_OK, &many, &mut frame).unwrap();
        assert_eq!(many["trusted_truncated"], true);
        assert!(many["trusted"].as_array().unwrap().len() > 8000);
    }
}
