//! What a node counts, for Prometheus: names, help and units by its conventions. Nothing here is labelled by peer or
//! address: the number of series is fixed, and a scrape tells nobody whom this node talks to.

use std::fmt;

use pilot_proto::endpoint::{EndpointInfo, PeerInfo};
use pilot_proto::stream::State;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::Shared;
use super::monitor::Monitor;
use crate::directory::LinkState;

/// Longest file of `/proc` that is read.
const MAX_PROC: u64 = 64 * 1024;
const STATES: [State; 7] = [
    State::SynSent,
    State::SynReceived,
    State::Established,
    State::FinWait,
    State::CloseWait,
    State::TimeWait,
    State::Closed,
];

/// Writes metrics one after the other.
pub(crate) struct Metrics<'a>(pub(crate) DescriptorEncoder<'a>);

impl Metrics<'_> {
    pub(crate) fn gauge<N: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: N,
    ) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?)
    }

    pub(crate) fn counter<N: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: N,
    ) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, unit, MetricType::Counter)?)
    }

    pub(crate) fn gauges<'v>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        label: &str,
        values: impl IntoIterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (value, number) in values {
            ConstGauge::new(number).encode(family.encode_family(&[(label, value)])?)?;
        }
        Ok(())
    }

    pub(crate) fn counters<'v>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        label: &str,
        values: impl IntoIterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (value, number) in values {
            ConstCounter::new(number).encode(family.encode_family(&[(label, value)])?)?;
        }
        Ok(())
    }
}

impl Collector for Monitor {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let shared = &*self.shared;
        let info = shared.engine.look(|core, now| core.endpoint.info(now));
        let mut out = Metrics(encoder);
        build(&mut out)?;
        node(&mut out, shared, &info)?;
        tunnels(&mut out, &info)?;
        streams(&mut out, &info)?;
        drops(&mut out, shared, &info)?;
        queues(&mut out, shared, &info)?;
        process(&mut out, shared)
    }
}

fn build(out: &mut Metrics<'_>) -> fmt::Result {
    let mut family = out.0.encode_descriptor("pilot_build", "What this program is.", None, MetricType::Info)?;
    family.encode_info(&[("version", crate::VERSION), ("os", std::env::consts::OS), ("arch", std::env::consts::ARCH)])
}

fn node(out: &mut Metrics<'_>, shared: &Shared, info: &EndpointInfo) -> fmt::Result {
    let bool = u64::from;
    let connected = *shared.directory.state().borrow() == LinkState::Connected;
    out.gauge("pilot_registered", "1 while the registry has this node.", None, bool(*shared.registered.borrow()))?;
    out.gauge("pilot_registry_connected", "1 while connected to the registry.", None, bool(connected))?;
    let uptime = shared.env.now().saturating_duration_since(shared.started).as_secs_f64();
    out.gauge("pilot_uptime", "Time since the node started.", Some(&Unit::Seconds), uptime)?;
    let help = "Time since the beacon last answered; absent when there is none or it never did.";
    if let Some(seen) = info.beacon_seen {
        out.gauge("pilot_beacon_silence", help, Some(&Unit::Seconds), seen.as_secs_f64())?;
    }
    out.gauge("pilot_trusted_nodes", "Nodes trusted.", None, shared.trust.trusted_nodes().len() as u64)?;
    let help = "Trust requests that wait for a decision.";
    out.gauge("pilot_handshakes_pending", help, None, shared.trust.pending_count() as u64)?;
    out.gauge("pilot_local_clients", "Programs connected to the local socket.", None, shared.clients.len() as u64)?;
    out.gauge("pilot_ports_bound", "Ports that streams can be opened to.", None, info.ports.len() as u64)
}

fn tunnels(out: &mut Metrics<'_>, info: &EndpointInfo) -> fmt::Result {
    out.gauge("pilot_peers", "Peers that something is kept of.", None, info.peers.len() as u64)?;
    let count = |test: fn(&&PeerInfo) -> bool| info.peers.iter().filter(test).count() as u64;
    let paths = [
        ("direct", count(|peer| peer.encrypted && !peer.relay && peer.endpoint.is_some())),
        ("relay", count(|peer| peer.encrypted && peer.relay)),
        ("none", count(|peer| peer.encrypted && !peer.relay && peer.endpoint.is_none())),
    ];
    out.gauges("pilot_tunnels", "Tunnels with a session, by the way packets take.", None, "path", paths)?;
    let help = "Tunnels on which a frame of the proven peer has opened.";
    out.gauge("pilot_tunnels_authenticated", help, None, count(|peer| peer.authenticated))?;
    let c = &info.counters;
    let ways = [("sent", c.pkts_sent), ("received", c.pkts_recv)];
    out.counters("pilot_tunnel_packets", "Frames exchanged with peers.", None, "direction", ways)?;
    let ways = [("sent", c.bytes_sent), ("received", c.bytes_recv)];
    let help = "Bytes exchanged with peers, UDP payload.";
    out.counters("pilot_tunnel", help, Some(&Unit::Bytes), "direction", ways)?;
    let ways = [("sent", c.datagrams_out), ("received", c.datagrams_in)];
    out.counters("pilot_datagrams", "Datagrams of applications.", None, "direction", ways)?;
    out.counter("pilot_punches", "Hole punches sent.", None, c.punches_sent)
}

fn streams(out: &mut Metrics<'_>, info: &EndpointInfo) -> fmt::Result {
    let states = STATES.map(|state| {
        let count = info.conns.iter().filter(|conn| conn.state == state).count();
        (state.name(), count as u64)
    });
    out.gauges("pilot_streams", "Streams, by state.", None, "state", states)?;
    let s = &info.streams;
    let ways = [("dialled", s.dialled), ("accepted", s.accepted)];
    out.counters("pilot_streams_opened", "Streams that came about.", None, "direction", ways)?;
    let ways = [("sent", s.bytes_sent), ("received", s.bytes_recv)];
    let help = "Payload of streams, without what was sent again.";
    out.counters("pilot_stream", help, Some(&Unit::Bytes), "direction", ways)?;
    let ways = [("sent", s.segs_sent), ("received", s.segs_recv)];
    out.counters("pilot_stream_segments", "Data segments of streams.", None, "direction", ways)?;
    let causes = [("timeout", s.retransmits), ("fast", s.fast_retx)];
    out.counters("pilot_stream_retransmits", "Segments sent again, by cause.", None, "cause", causes)
}

fn drops(out: &mut Metrics<'_>, shared: &Shared, info: &EndpointInfo) -> fmt::Result {
    let c = &info.counters;
    let reasons = [
        ("malformed", c.malformed),
        ("foreign_beacon", c.foreign_beacon),
        ("unreadable", c.unreadable),
        ("no_session", c.no_session),
        ("plaintext", c.plaintext_dropped),
        ("misaddressed", c.misaddressed),
        ("exchange_failed", c.exchange_failed),
        ("exchange_limited", c.exchange_limited),
        ("refused_by_gate", c.refused),
        ("syn_limited", c.syn_limited),
        ("stray_segment", c.stray_segments),
        ("invalid_segment", info.streams.invalid),
        ("beyond_window", info.streams.overrun),
    ];
    out.counters("pilot_received_drops", "What came and was dropped, by reason.", None, "reason", reasons)?;
    let reasons = [
        ("accept_queue_full", shared.engine.look(|core, _| core.accept_drops)),
        ("node_busy", c.events_dropped),
        ("client_too_slow", shared.clients.queues().datagrams_dropped),
    ];
    let help = "What opened and could not be handed to an application, by reason.";
    out.counters("pilot_delivery_drops", help, None, "reason", reasons)?;
    let help = "Send calls that the operating system refused.";
    out.counter("pilot_send_errors", help, None, shared.engine.send_errors())
}

fn queues(out: &mut Metrics<'_>, shared: &Shared, info: &EndpointInfo) -> fmt::Result {
    let local = shared.clients.queues();
    let sum = |of: fn(&pilot_proto::stream::Stats) -> u64| info.conns.iter().map(|conn| of(&conn.stats)).sum::<u64>();
    let lengths = [
        ("stream_send", sum(|stats| stats.send_queue)),
        ("stream_receive", sum(|stats| stats.recv_queue)),
        ("client_replies", local.frames),
        ("client_streams", local.pending),
        ("client_datagrams", local.datagrams),
    ];
    out.gauges("pilot_queue", "Bytes waiting, by queue.", Some(&Unit::Bytes), "queue", lengths)?;
    let (waiting, most) = shared.engine.notices();
    out.gauge("pilot_notices_waiting", "Notices waiting for the node's own tasks.", None, waiting as u64)?;
    out.gauge("pilot_notices_limit", "How many may wait.", None, most as u64)?;
    let tasks = tokio::runtime::Handle::try_current().map(|handle| handle.metrics().num_alive_tasks());
    out.gauge("pilot_tasks", "Tasks of the runtime.", None, tasks.unwrap_or_default() as u64)
}

/// The standard metrics of a process, where the system tells (Linux).
fn process(out: &mut Metrics<'_>, shared: &Shared) -> fmt::Result {
    if let Some(time) = shared.env.cpu_time() {
        let help = "Processor time used, user and system.";
        out.counter("process_cpu", help, Some(&Unit::Seconds), time.as_secs_f64())?;
    }
    let read = |name: &str| {
        let content = shared.env.fs().read_limited(std::path::Path::new("/proc/self").join(name).as_path(), MAX_PROC);
        content.ok().map(|content| String::from_utf8_lossy(&content).into_owned()).unwrap_or_default()
    };
    let status = read("status");
    let number = |line: &str| line.split_ascii_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).and_then(number);
    if let Some(kib) = field("VmRSS:") {
        out.gauge("process_resident_memory", "Memory in use.", Some(&Unit::Bytes), kib * 1024)?;
    }
    if let Some(kib) = field("VmSize:") {
        out.gauge("process_virtual_memory", "Address space in use.", Some(&Unit::Bytes), kib * 1024)?;
    }
    if let Some(threads) = field("Threads:") {
        out.gauge("process_threads", "Threads.", None, threads)?;
    }
    if let Ok(open) = shared.env.fs().list(std::path::Path::new("/proc/self/fd")) {
        out.gauge("process_open_fds", "Open file descriptors.", None, open.len() as u64)?;
    }
    let limits = read("limits");
    if let Some(most) = limits.lines().find_map(|line| line.strip_prefix("Max open files")).and_then(number) {
        out.gauge("process_max_fds", "How many may be open.", None, most)?;
    }
    Ok(())
}
