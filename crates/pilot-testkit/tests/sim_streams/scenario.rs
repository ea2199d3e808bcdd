//! A random run out of a seed, and what must be true at its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pilot_proto::profile::PeerProfile;
use pilot_proto::stream::{CloseReason, Connection, PlantedBug, StreamConfig};
use pilot_testkit::sim::{Conditions, Faults, Partition, SimNet};
use pilot_wire::addr::{Address, SocketAddress};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::host::{Script, StreamHost};

/// A defect of the run: in the streams, or in the frame layer under them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    ReplayCheckSkipped,
    Stream(PlantedBug),
}

/// How the ends part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parting {
    /// Each closes once it has written everything; needs half-close.
    Independent,
    /// Each closes once it has written and read everything.
    AfterAll,
    /// End 0 closes once it has written everything, and end 1 may be cut off.
    Early,
    /// End 0 resets at some time.
    Reset,
}

/// What a run has seen.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) faults: Faults,
    pub(crate) bytes: u64,
    pub(crate) datagrams: u64,
    pub(crate) virtual_time: Duration,
    pub(crate) retransmits: u64,
    pub(crate) wrong: Option<String>,
}

/// Virtual time after which a run that has not ended never will.
const LIMIT: Duration = Duration::from_secs(900);
/// Packets that may leave an end after it has reported the end.
const LAST_WORDS: u64 = 60;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn size(rng: &mut StdRng) -> usize {
    match rng.random_range(0..100) {
        0..10 => 0,
        10..40 => rng.random_range(1..3_000),
        40..80 => rng.random_range(3_000..40_000),
        80..97 => rng.random_range(40_000..200_000),
        _ => rng.random_range(200_000..=1_000_000),
    }
}

fn data(rng: &mut StdRng) -> Vec<u8> {
    let mut data = vec![0; size(rng)];
    rng.fill_bytes(&mut data);
    // Some data looks like lists of ranges.
    if rng.random_bool(0.2) {
        for _ in 0..rng.random_range(1..20) {
            let list = *b"SACK\x01\0\0\x10\0\0\0\x20\0";
            if data.len() > list.len() {
                let at = rng.random_range(0..data.len() - list.len());
                data[at..at + list.len()].copy_from_slice(&list);
            }
        }
    }
    data
}

fn conditions(rng: &mut StdRng, heal: Duration) -> Conditions {
    let mut c = Conditions { delay: ms(rng.random_range(1..80)), ..Conditions::default() };
    if rng.random_bool(0.5) {
        c.loss = rng.random_range(0.0..0.3);
    }
    if rng.random_bool(0.4) {
        c.duplicate = rng.random_range(0.0..0.2);
    }
    if rng.random_bool(0.4) {
        c.reorder = rng.random_range(0.0..0.3);
    }
    if rng.random_bool(0.3) {
        c.corrupt = rng.random_range(0.0..0.1);
    }
    if rng.random_bool(0.4) {
        c.jitter = ms(rng.random_range(1..60));
    }
    if rng.random_bool(0.3) {
        c.rate = Some(rng.random_range(20_000..3_000_000));
        c.queue = rng.random_range(3_000..200_000);
    }
    if rng.random_bool(0.1) {
        c.mtu = rng.random_range(500..1400);
    }
    if rng.random_bool(0.25) {
        let from = heal.mul_f64(rng.random());
        c.partitions.push(Partition { from, until: (from + ms(rng.random_range(100..8000))).min(heal) });
    }
    c
}

fn config(rng: &mut StdRng) -> StreamConfig {
    let buffer = |rng: &mut StdRng| match rng.random_range(0..4) {
        0 => 16 << 10,
        1 => rng.random_range(16 << 10..128 << 10),
        _ => 4 << 20,
    };
    StreamConfig {
        send_buffer: buffer(rng),
        receive_buffer: buffer(rng),
        nodelay: rng.random_bool(0.7),
        pacing: rng.random_bool(0.8),
        // Longer than any outage here: an end that forgets before the other has heard cannot part cleanly.
        time_wait: Duration::from_secs(30),
        accept_timeout: Duration::from_secs(30),
        ..StreamConfig::default()
    }
}

/// Runs one seed.
pub(crate) fn run(seed: u64, bug: Option<Bug>, trace: bool) -> Report {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let rng = &mut rng;
    let mut net: SimNet<StreamHost> = SimNet::new(rng.next_u64());
    let heal = ms(rng.random_range(500..12_000));
    let payloads = [data(rng), data(rng)];
    let (cautious, ours) = (PeerProfile::cautious(), PeerProfile::ours());
    // What each end believes of the other at first, and whether it learns better later.
    let beliefs: [PeerProfile; 2] = std::array::from_fn(|_| if rng.random_bool(0.5) { cautious } else { ours });
    // A Hello arrives, or the peer seems to have restarted and everything learned is forgotten until the next one.
    let learns: [Vec<(Duration, PeerProfile)>; 2] = std::array::from_fn(|_| {
        let count = if rng.random_bool(0.4) { rng.random_range(1..4) } else { 0 };
        let mut learn: Vec<_> = (0..count)
            .map(|_| (ms(rng.random_range(0..4000)), if rng.random_bool(0.7) { ours } else { cautious }))
            .collect();
        learn.sort_by_key(|l| std::cmp::Reverse(l.0));
        learn
    });
    let always_ours = beliefs == [ours, ours] && learns.iter().flatten().all(|l| l.1 == ours);
    let parting = match rng.random_range(0..10) {
        0..4 if always_ours => Parting::Independent,
        8 => Parting::Early,
        9 => Parting::Reset,
        _ => Parting::AfterAll,
    };
    let addresses: [SocketAddr; 2] = [([10, 0, 0, 1], 4000).into(), ([10, 0, 0, 2], 4000).into()];
    let streams = [SocketAddress::new(Address::backbone(1), 49152), SocketAddress::new(Address::backbone(2), 1000)];
    let links = [conditions(rng, heal), conditions(rng, heal)];
    for i in 0..2 {
        let path_limit = (links[0].mtu.min(links[1].mtu) < 1400)
            .then(|| (ms(rng.random_range(0..1500)), rng.random_range(400..700)))
            .or_else(|| rng.random_bool(0.2).then(|| (ms(0), rng.random_range(200..1400))));
        let script = Script {
            data: payloads[i].clone(),
            write_chunk: *[1, 100, 5_000, 100_000]
                .get(rng.random_range(0..4))
                .unwrap_or(&1000)
                .max(&(payloads[i].len() / 400)),
            read_chunk: rng.random_range(500..40_000),
            write_pause: if rng.random_bool(0.3) { ms(rng.random_range(1..20)) } else { Duration::ZERO },
            stall: rng.random_bool(0.2).then(|| {
                let from = ms(rng.random_range(0..2000));
                (from, from + ms(rng.random_range(100..15_000)))
            }),
            close_after_reading: match parting {
                Parting::AfterAll | Parting::Reset => payloads[1 - i].len(),
                Parting::Early if i == 1 => payloads[0].len(),
                Parting::Early | Parting::Independent => 0,
            },
            reset_at: (parting == Parting::Reset && i == 0).then(|| ms(rng.random_range(0..5000))),
            learn: learns[i].clone(),
            path_limit,
            messages: rng.random_range(0..12),
        };
        let mut host = StreamHost::new(["A", "B"][i], net.now(), addresses[1 - i], script, payloads[1 - i].clone());
        host.trace = trace;
        let mut cfg = config(rng);
        match bug {
            Some(Bug::Stream(planted)) => cfg.planted = Some(planted),
            Some(Bug::ReplayCheckSkipped) => host.skip_replay_check(),
            None => {}
        }
        let cfg = Arc::new(cfg);
        let isn = rng.next_u32();
        let (local, remote, belief) = (streams[i], streams[1 - i], beliefs[i]);
        if i == 0 {
            host.conn = Some(Connection::dial(net.now(), &cfg, belief, local, remote, isn));
        } else {
            host.accept =
                Some(Box::new(move |now, syn| Connection::accept(now, &cfg, belief, local, remote, syn, isn)));
        }
        net.add(addresses[i], host);
    }
    if trace {
        eprintln!("seed {seed}: {parting:?}, heals at {heal:?}, {} and {} bytes", payloads[0].len(), payloads[1].len());
        eprintln!("A to B: {:?}\nB to A: {:?}", links[0], links[1]);
    }
    let [forth, back] = links;
    net.set_conditions(0, 1, forth);
    net.set_conditions(1, 0, back);
    let wrong = drive(&mut net, heal, parting, trace);
    let mut report = Report {
        faults: net.faults(),
        datagrams: net.sent(0) + net.sent(1),
        virtual_time: net.elapsed(),
        wrong,
        ..Report::default()
    };
    for i in 0..2 {
        report.bytes += net.host(i).received as u64;
        if let Some(conn) = &net.host(i).conn {
            let stats = conn.stats();
            report.retransmits += stats.retransmits + stats.fast_retx;
        }
    }
    report
}

fn drive(net: &mut SimNet<StreamHost>, heal: Duration, parting: Parting, trace: bool) -> Option<String> {
    let start = net.now();
    let bad = |net: &SimNet<StreamHost>| (0..2).find_map(|i| net.host(i).wrong.clone());
    while net.step(start + heal) {
        if let Some(wrong) = bad(net) {
            return Some(wrong);
        }
    }
    net.heal();
    if trace {
        eprintln!("{:>12?} healed", net.elapsed());
    }
    while net.step(start + LIMIT) {
        if let Some(wrong) = bad(net) {
            return Some(wrong);
        }
        if net.is_quiet() && net.host(0).is_done() && (net.host(1).is_done() || net.host(1).conn.is_none()) {
            break;
        }
    }
    judge(net, parting)
}

/// What must be true at the end.
fn judge(net: &mut SimNet<StreamHost>, parting: Parting) -> Option<String> {
    for i in 0..2 {
        let h = net.host(i);
        let name = ["A", "B"][i];
        if h.conn.is_none() && parting == Parting::Reset {
            continue;
        }
        if !h.is_done() {
            let conn = h.conn.as_ref().map(|c| format!("{:?} {:?}", c.state(), c.stats()));
            return Some(format!(
                "{name}: something is left behind: received {} of {}, closed {:?}, {conn:?}",
                h.received,
                h.expected.len(),
                h.closed
            ));
        }
        if h.packets_after_close > LAST_WORDS {
            return Some(format!("{name}: {} packets after the end", h.packets_after_close));
        }
        let whole = h.received == h.expected.len();
        let ok = match parting {
            Parting::AfterAll | Parting::Independent => {
                whole && h.closed == Some(CloseReason::Clean) && h.read_end == Some(Ok(()))
            }
            // The one that closed last may not have been heard.
            Parting::Early if i == 1 => whole,
            Parting::Early | Parting::Reset => true,
        };
        if !ok {
            return Some(format!(
                "{name}: {parting:?}: received {} of {}, closed {:?}, read ended {:?}",
                h.received,
                h.expected.len(),
                h.closed,
                h.read_end
            ));
        }
    }
    None
}
