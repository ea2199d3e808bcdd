//! Sessions come up, whoever begins, and say what they are.

use pilot_proto::crypto::Scheme;
use pilot_proto::tunnel::{SchemeState, TunnelEvent};

use crate::net::{A, B, Net};

#[test]
fn two_nodes_establish_in_one_round_trip_and_deliver_each_packet_once() {
    let mut net = Net::new(1);
    net.send(A, 7);
    net.run_ms(45);
    assert_eq!(net.delivered(B), [7]);
    net.run_ms(2000);
    for who in [A, B] {
        let status = net.tunnel(who).status();
        assert!(status.encrypted && status.authenticated && status.hello, "{status:?}");
        assert_eq!(status.scheme, SchemeState::Known(Scheme::B));
        assert_eq!(status.generation, 1);
        let established = net.ours(who).events.iter().filter(|e| matches!(e, TunnelEvent::Established { .. })).count();
        assert_eq!(established, 1);
    }
    let (start, frames) = (net.start, net.log.len());
    assert!(
        net.key_frames(A, start) <= 2 && net.key_frames(B, start) <= 2,
        "{} {}",
        net.key_frames(A, start),
        net.key_frames(B, start)
    );
    net.run_ms(120_000);
    assert_eq!(net.log.len(), frames, "two idle nodes say nothing");
    assert_eq!(net.delivered(B), [7]);
}
