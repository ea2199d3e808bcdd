//! The status objects of the local socket: the keys of February and of the newest official release together, so that
//! scripts written for either keep working (03 §8, 07 §12), and ours.

use pilot_proto::crypto::Scheme;
use pilot_proto::endpoint::{ConnInfo, Encryption, EndpointInfo, PeerInfo};
use pilot_proto::stream::State;
use pilot_proto::tunnel::SchemeState;
use pilot_wire::json as wire_json;
use serde_json::{Map, Value, json};

use super::Shared;

/// Features of the newest release that this daemon has too (07 §12), and `datagram_ports`: a datagram goes to the program
/// that has bound its port, not to all.
const FEATURES: [&str; 5] = ["reply_window", "dial_awaits_key", "key_request", "dgram_confirm", "datagram_ports"];
/// Room for the lists in an answer of at most 1 MiB; what does not fit is left out and said so.
const LISTS_LEN: usize = 960 * 1024;
/// Most bytes of a peer or a connection as JSON.
const RECORD: usize = 1024;

fn counted(state: State) -> bool {
    matches!(state, State::Established | State::SynSent | State::SynReceived)
}

impl Shared {
    /// The Info object.
    pub(crate) fn info(&self) -> Value {
        let snapshot = self.engine.look(|core, now| core.endpoint.info(now));
        let mut object = self.common(&snapshot);
        let status = self.status.lock().clone();
        let endpoint = match (&self.config.endpoint, status.observed) {
            (Some(fixed), _) => fixed.clone(),
            (None, Some(observed)) => observed.to_string(),
            (None, None) => self.engine.local_addr().to_string(),
        };
        let networks: Value = if status.networks.is_empty() { Value::Null } else { json!(status.networks) };
        let (peers, peers_cut) = fitting(snapshot.peers.iter().map(peer_json), RECORD, LISTS_LEN / 2);
        let (conns, conns_cut) = fitting(snapshot.conns.iter().map(conn_json), RECORD, LISTS_LEN / 2);
        let registered = *self.registered.borrow();
        let more = json!({
            "node_id": self.node(),
            "address": self.address().to_string(),
            "hostname": status.hostname,
            "uptime_secs": self.uptime(),
            "ports": snapshot.ports.len(),
            "encrypt": self.config.encrypt != Encryption::Off,
            "identity": self.store.is_persistent(),
            "public_key": self.identity().public_key_base64(),
            "owner": self.config.owner,
            "email": self.config.owner,
            "pkts_sent": snapshot.counters.pkts_sent,
            "pkts_recv": snapshot.counters.pkts_recv,
            "peer_list": peers,
            "conn_list": conns,
            "endpoint": endpoint,
            "version": self.config.version,
            "networks": networks,
            "transport": "udp",
            "motd": "",
            "features": FEATURES,
            "tunnel_encryption_success": snapshot.peers.iter().filter(|peer| peer.authenticated).count(),
            "tunnel_encryption_failure": snapshot.counters.unreadable,
            "public": status.public,
            "registered": registered,
            "registry": self.config.registry,
            "registry_error": status.registry_error,
            "public_ports": snapshot.public_ports,
            "clients": self.clients.len(),
            "counters": counters_json(&snapshot, self.engine.send_errors()),
        });
        if let Value::Object(more) = more {
            object.extend(more);
        }
        if peers_cut {
            object.insert("peer_list_truncated".to_owned(), Value::Bool(true));
        }
        if conns_cut {
            object.insert("conn_list_truncated".to_owned(), Value::Bool(true));
        }
        Value::Object(object)
    }

    /// The Health object (07 §12).
    pub(crate) fn health(&self) -> Value {
        let snapshot = self.engine.look(|core, now| core.endpoint.info(now));
        let mut object = self.common(&snapshot);
        let registered = *self.registered.borrow();
        object.insert("status".to_owned(), json!(if registered { "ok" } else { "degraded" }));
        object.insert("uptime_seconds".to_owned(), json!(self.uptime()));
        Value::Object(object)
    }

    /// The connections, at most `limit` of them, as Info lists them.
    pub(crate) fn connections(&self, limit: usize) -> Value {
        let snapshot = self.engine.look(|core, now| core.endpoint.info(now));
        let (list, _) = fitting(snapshot.conns.iter().take(limit).map(conn_json), RECORD, LISTS_LEN);
        json!({ "connections": list, "total": snapshot.conns.len() })
    }

    /// The peers, at most `limit` of them, as Info lists them.
    pub(crate) fn peers(&self, limit: usize) -> Value {
        let snapshot = self.engine.look(|core, now| core.endpoint.info(now));
        let (list, _) = fitting(snapshot.peers.iter().take(limit).map(peer_json), RECORD, LISTS_LEN);
        json!({ "peers": list, "total": snapshot.peers.len() })
    }

    /// Asks for a direct path to a peer and says what there was (07 §12).
    pub(crate) fn prefer_direct(&self, node: u32) -> Value {
        let before = self.engine.look(|core, now| {
            let info = core.endpoint.info(now);
            info.peers.into_iter().find(|peer| peer.node == node)
        });
        self.engine.with(|core, now| core.endpoint.prefer_direct(now, node));
        let had_tunnel = before.as_ref().is_some_and(|peer| peer.encrypted);
        let relay = before.is_some_and(|peer| peer.relay);
        json!({
            "node_id": node,
            "had_tunnel": had_tunnel,
            "was_relay_active": relay,
            "was_relay_pinned": false,
            "pila_pushed": true,
            "resolve_error": "",
        })
    }

    fn uptime(&self) -> u64 {
        self.env.now().saturating_duration_since(self.started).as_secs()
    }

    /// What Info and Health share.
    fn common(&self, snapshot: &EndpointInfo) -> Map<String, Value> {
        let peers = |test: fn(&PeerInfo) -> bool| snapshot.peers.iter().filter(|peer| test(peer)).count();
        let drops = self.engine.look(|core, _| core.accept_drops);
        let webhook = self.webhook.counts();
        let object = json!({
            "connections": snapshot.conns.iter().filter(|conn| counted(conn.state)).count(),
            "peers": snapshot.peers.len(),
            "encrypted_peers": peers(|peer| peer.encrypted),
            "authenticated_peers": peers(|peer| peer.authenticated),
            "relay_peer_count": peers(|peer| peer.relay),
            "bytes_sent": snapshot.counters.bytes_sent,
            "bytes_recv": snapshot.counters.bytes_recv,
            "beacon_addr": snapshot.beacon.map(|addr| addr.to_string()).unwrap_or_default(),
            "handshake_pending_count": self.trust.pending_count(),
            "accept_queue_drops": drops,
            "webhook_circuit_skips": 0,
            "webhook_queue_dropped": webhook.dropped,
            "webhook_delivered": webhook.delivered,
            "webhook_failed": webhook.failed,
            "webhook_queued": webhook.queued,
        });
        match object {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

/// As many elements as fit `room` bytes of JSON, and whether some were left out. None has more than `each` bytes; where
/// that is little enough for all of them, they need not be measured.
pub(crate) fn fitting(elements: impl ExactSizeIterator<Item = Value>, each: usize, room: usize) -> (Value, bool) {
    if elements.len().saturating_mul(each.saturating_add(1)) <= room {
        return (Value::Array(elements.collect()), false);
    }
    let mut used = 0;
    let mut kept = Vec::new();
    let mut measured = Vec::new();
    for element in elements {
        measured.clear();
        wire_json::write_value(&element, &mut measured);
        used += measured.len() + 1;
        if used > room {
            return (Value::Array(kept), true);
        }
        kept.push(element);
    }
    (Value::Array(kept), false)
}

fn scheme_text(scheme: SchemeState) -> &'static str {
    match scheme.scheme() {
        None => "unknown",
        Some(Scheme::A) => "A",
        Some(Scheme::B) => "B",
    }
}

fn peer_json(peer: &PeerInfo) -> Value {
    json!({
        "node_id": peer.node,
        "endpoint": peer.endpoint.map(|addr| addr.to_string()).unwrap_or_default(),
        "encrypted": peer.encrypted,
        "authenticated": peer.authenticated,
        "relay": peer.relay,
        "path": if peer.relay { "relay" } else if peer.endpoint.is_some() { "direct" } else { "none" },
        "trusted": peer.trusted,
        "scheme": scheme_text(peer.scheme),
        "generation": peer.generation,
        "last_opened_ms_ago": peer.last_opened.map(|ago| ago.as_millis() as u64),
        "rtt_us": peer.rtt.map(|rtt| rtt.as_micros() as u64),
        "datagram_limit": peer.datagram_limit,
        "connections": peer.connections,
    })
}

fn conn_json(conn: &ConnInfo) -> Value {
    let s = &conn.stats;
    json!({
        "id": conn.id.0,
        "local_port": conn.local.port,
        "remote_addr": conn.remote.addr.to_string(),
        "remote_port": conn.remote.port,
        "state": conn.state.name(),
        "cong_win": s.cong_win,
        // "None yet" is the largest value inside; readers of JSON keep 53 bits at the most.
        "ssthresh": s.ssthresh.min(u64::from(u32::MAX)),
        "in_flight": s.in_flight,
        "srtt_ms": s.srtt_ms,
        "rttvar_ms": s.rttvar_ms,
        "srtt_us": s.srtt_us,
        "unacked": s.unacked,
        "ooo_buf": s.ooo_buf,
        "peer_recv_win": s.peer_recv_win,
        "recv_win": s.recv_win,
        "in_recovery": s.in_recovery,
        "bytes_sent": s.bytes_sent,
        "bytes_recv": s.bytes_recv,
        "segs_sent": s.segs_sent,
        "segs_recv": s.segs_recv,
        "retransmits": s.retransmits,
        "fast_retx": s.fast_retx,
        "sack_recv": s.sack_recv,
        "sack_sent": s.sack_sent,
        "dup_acks": s.dup_acks,
        "send_queue": s.send_queue,
        "recv_queue": s.recv_queue,
    })
}

fn counters_json(snapshot: &EndpointInfo, send_errors: u64) -> Value {
    let c = &snapshot.counters;
    json!({
        "malformed": c.malformed,
        "foreign_beacon": c.foreign_beacon,
        "unreadable": c.unreadable,
        "no_session": c.no_session,
        "plaintext_dropped": c.plaintext_dropped,
        "misaddressed": c.misaddressed,
        "exchange_failed": c.exchange_failed,
        "exchange_limited": c.exchange_limited,
        "refused": c.refused,
        "syn_limited": c.syn_limited,
        "stray_segments": c.stray_segments,
        "datagrams_in": c.datagrams_in,
        "datagrams_out": c.datagrams_out,
        "events_dropped": c.events_dropped,
        "punches_sent": c.punches_sent,
        "send_errors": send_errors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_record_is_longer_than_is_reckoned_with() {
        let addr = pilot_wire::SocketAddress::default();
        let conn = ConnInfo {
            id: pilot_proto::endpoint::ConnId(1),
            local: addr,
            remote: addr,
            state: State::SynReceived,
            stats: pilot_proto::stream::Stats::default(),
        };
        let mut longest = conn_json(&conn);
        for (_, value) in longest.as_object_mut().unwrap() {
            *value = if value.is_string() { "65535:FFFF.FFFF.FFFF".into() } else { u64::MAX.into() };
        }
        let size = wire_json::to_vec(&longest).len();
        assert!(size <= RECORD, "{size}");
    }

    #[test]
    fn a_status_of_more_than_eight_thousand_records_stays_below_the_frame_limit() {
        let peer = |node: u32| json!({ "node_id": node, "endpoint": "203.0.113.200:65535", "encrypted": true });
        let (list, cut) = fitting((0..30_000).map(peer), RECORD, LISTS_LEN / 2);
        assert!(cut && wire_json::to_vec(&list).len() <= LISTS_LEN / 2);
        let (list, cut) = fitting((0..8000).map(peer), RECORD, LISTS_LEN);
        assert!(!cut && list.as_array().unwrap().len() == 8000);
    }
}
