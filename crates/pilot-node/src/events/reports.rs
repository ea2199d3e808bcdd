//! What the core tells, in the words of the official events (05 §10.3, §11.2).

use pilot_proto::endpoint::{Ended, EndedHow, Event, RefusedReason};
use pilot_proto::tunnel::TunnelEvent;
use pilot_services::Events as _;
use pilot_wire::{Address, SocketAddress};
use rustc_hash::FxHashMap;
use serde_json::{Map, Value, json};

use super::EventBus;

/// Peers whose way is remembered, to tell a new peer from a changed path. When full all are forgotten: the worst that
/// follows is a second `tunnel.peer_added`.
const MAX_PEERS: usize = 65_536;

/// An event: name and data.
pub(crate) type Report = (&'static str, Map<String, Value>);

/// Turns what the core tells into events.
#[derive(Default)]
pub(crate) struct Reporter {
    /// By node: whether it was reached by relay when last heard of.
    relayed: FxHashMap<u32, bool>,
}

impl Reporter {
    /// Reports one thing, if it is worth an event and anybody listens.
    pub(crate) fn report(&mut self, bus: &EventBus, event: &Event) {
        match event {
            Event::PathChanged { node, direct, relay } => {
                if self.relayed.len() >= MAX_PEERS {
                    self.relayed.clear();
                }
                let before = self.relayed.insert(*node, *relay);
                if before.is_none() {
                    let endpoint = direct.map(|addr| addr.to_string()).unwrap_or_default();
                    emit(bus, "tunnel.peer_added", || json!({"endpoint": endpoint, "peer_node_id": node}));
                }
                if *relay && before != Some(true) {
                    emit(bus, "tunnel.relay_activated", || json!({"peer_node_id": node}));
                }
            }
            Event::Tunnel { node, event } => self.tunnel(bus, *node, event),
            Event::Accepted { conn, port, remote, .. } => {
                for name in ["conn.syn_received", "conn.established"] {
                    emit(bus, name, || {
                        json!({"conn_id": conn.0, "dst_port": port, "src_addr": remote.addr.to_string(),
                               "src_port": remote.port})
                    });
                }
            }
            Event::Ended(ended) if bus.is_heard() => {
                let (name, data) = conn_ended(ended);
                bus.emit(name, data);
            }
            Event::Datagram { src, dst_port, data } => {
                emit(bus, "data.datagram", || datagram(src, *dst_port, data.len()))
            }
            Event::Refused { node, remote_port, reason: RefusedReason::SynLimit, .. } => {
                emit(
                    bus,
                    "security.syn_rate_limited",
                    || json!({"src_addr": Address::backbone(*node).to_string(), "src_port": remote_port}),
                );
            }
            _ => {}
        }
    }

    fn tunnel(&self, bus: &EventBus, node: u32, event: &TunnelEvent) {
        let relay = self.relayed.get(&node).copied().unwrap_or(false);
        let established = |authenticated: bool, rekeyed: bool| {
            emit(
                bus,
                "tunnel.established",
                || json!({"authenticated": authenticated, "peer_node_id": node, "rekeyed": rekeyed, "relay": relay}),
            );
        };
        match event {
            TunnelEvent::Established { authenticated, .. } => established(*authenticated, false),
            // Keys change only under an identity that was proven before.
            TunnelEvent::Rekeyed { .. } => established(true, true),
            TunnelEvent::NonceReplay { counter } => {
                emit(bus, "security.nonce_replay", || json!({"counter": counter, "peer_node_id": node}));
            }
            _ => {}
        }
    }
}

fn emit(bus: &EventBus, name: &'static str, data: impl FnOnce() -> Value) {
    if bus.is_heard()
        && let Value::Object(data) = data()
    {
        bus.emit(name, data);
    }
}

fn datagram(src: &SocketAddress, dst_port: u16, size: usize) -> Value {
    json!({"dst_port": dst_port, "size": size, "src_addr": src.addr.to_string(), "src_port": src.port})
}

/// The one event of a connection's end: the official keys, who ended it, and what it did.
pub(crate) fn conn_ended(ended: &Ended) -> Report {
    let (name, initiator) = match ended.how {
        EndedHow::FinByPeer => ("conn.fin", "remote"),
        EndedHow::FinByUs => ("conn.fin", "local"),
        EndedHow::ResetByPeer => ("conn.rst", "remote"),
        EndedHow::ResetByUs => ("conn.rst", "local"),
        EndedHow::IdleTimeout => ("conn.idle_timeout", "local"),
    };
    let s = &ended.stats;
    let stats = json!({
        "bytes_sent": s.bytes_sent, "bytes_recv": s.bytes_recv, "segs_sent": s.segs_sent, "segs_recv": s.segs_recv,
        "retransmits": s.retransmits, "fast_retx": s.fast_retx, "sack_recv": s.sack_recv, "sack_sent": s.sack_sent,
        "dup_acks": s.dup_acks, "duration_ms": u64::try_from(ended.lasted.as_millis()).unwrap_or(u64::MAX),
    });
    let data = json!({
        "conn_id": ended.conn.0, "local_port": ended.local.port, "remote_addr": ended.remote.addr.to_string(),
        "remote_port": ended.remote.port, "initiator": initiator, "stats": stats,
    });
    match data {
        Value::Object(data) => (name, data),
        _ => (name, Map::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilot_env::Env;
    use pilot_proto::endpoint::ConnId;
    use pilot_proto::stream::Stats;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn remote() -> SocketAddress {
        SocketAddress::new(Address::backbone(2), 49152)
    }

    fn ended(how: EndedHow) -> Event {
        let stats = Stats { bytes_sent: 5, retransmits: 1, ..Stats::default() };
        let local = SocketAddress::new(Address::backbone(1), 444);
        let lasted = Duration::from_millis(1500);
        Event::Ended(Box::new(Ended { conn: ConnId(1), local, remote: remote(), how, stats, lasted }))
    }

    /// What the reference posted, by event.
    fn official() -> BTreeMap<String, Value> {
        let file: Value = serde_json::from_str(include_str!("../../tests/vectors/services-webhook.json")).unwrap();
        let samples = file["events"].as_array().unwrap().iter().map(|sample| {
            let body: Value = serde_json::from_str(sample["body_utf8"].as_str().unwrap()).unwrap();
            (sample["event"].as_str().unwrap().to_owned(), body["data"].clone())
        });
        samples.collect()
    }

    #[tokio::test]
    async fn every_event_of_the_core_has_the_official_keys_and_types() {
        let bus = EventBus::new(Env::real());
        let mut stream = bus.subscribe();
        let mut reporter = Reporter::default();
        let addr = "127.0.0.1:4000".parse().unwrap();
        let established = TunnelEvent::Established { scheme: pilot_proto::crypto::Scheme::B, authenticated: true };
        let told = [
            Event::PathChanged { node: 2, direct: Some(addr), relay: false },
            Event::Tunnel { node: 2, event: established },
            Event::PathChanged { node: 2, direct: None, relay: true },
            Event::Tunnel { node: 2, event: TunnelEvent::NonceReplay { counter: 7 } },
            Event::Accepted { conn: ConnId(1), port: 444, remote: remote(), local: remote() },
            ended(EndedHow::FinByPeer),
            ended(EndedHow::ResetByPeer),
            ended(EndedHow::IdleTimeout),
            Event::Datagram { src: remote(), dst_port: 5000, data: vec![1, 2] },
            Event::Refused { node: 2, port: 7, remote_port: 49153, reason: RefusedReason::SynLimit },
        ];
        for event in &told {
            reporter.report(&bus, event);
        }
        drop(bus);
        let official = official();
        // The same events, seen by another recorder.
        let samples: Value =
            serde_json::from_str(include_str!("../../tests/vectors/cli-webhook-samples.json")).unwrap();
        let mut sampled = 0;
        let mut longer = std::collections::BTreeSet::new();
        let mut names = Vec::new();
        while let Some(event) = stream.next().await.unwrap() {
            let sample = official.get(event.name).unwrap_or_else(|| panic!("{} is no official event", event.name));
            for (key, value) in sample.as_object().unwrap() {
                let ours = event.data.get(key).unwrap_or_else(|| panic!("{}: no {key}", event.name));
                assert_eq!(std::mem::discriminant(ours), std::mem::discriminant(value), "{}: {key}", event.name);
            }
            if event.data.len() > sample.as_object().unwrap().len() {
                longer.insert(event.name);
            }
            if let Some(data) = samples["samples"][event.name]["data"].as_object() {
                assert!(data.keys().all(|key| event.data.contains_key(key)), "{}: {data:?}", event.name);
                sampled += 1;
            }
            names.push(event.name);
        }
        let expected = [
            "tunnel.peer_added",
            "tunnel.established",
            "tunnel.relay_activated",
            "security.nonce_replay",
            "conn.syn_received",
            "conn.established",
            "conn.fin",
            "conn.rst",
            "conn.idle_timeout",
            "data.datagram",
            "security.syn_rate_limited",
        ];
        assert_eq!(names, expected);
        assert_eq!(sampled, 5);
        crate::compatibility::check("services-webhook", longer);
    }

    #[test]
    fn the_end_of_a_connection_says_who_ended_it_and_what_it_did() {
        for (how, name, initiator) in [
            (EndedHow::FinByUs, "conn.fin", "local"),
            (EndedHow::FinByPeer, "conn.fin", "remote"),
            (EndedHow::ResetByUs, "conn.rst", "local"),
        ] {
            let Event::Ended(event) = ended(how) else { unreachable!() };
            let (got, data) = conn_ended(&event);
            assert_eq!((got, data["initiator"].as_str()), (name, Some(initiator)));
            assert_eq!(data["stats"]["bytes_sent"], 5);
            assert_eq!(data["stats"]["duration_ms"], 1500);
            assert_eq!(data["stats"].as_object().unwrap().len(), 10);
        }
    }
}
