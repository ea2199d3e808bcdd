//! Hello and what follows from it: what we say about ourselves, and the profile of a peer that said something.

use std::time::Duration;

use pilot_wire::hello::{Features, Hello};

use crate::path::sizes;
use crate::profile::{PeerProfile, V1_MAX_SEGMENT, V1_SEGMENTS_IN_FLIGHT, WINDOW_UNIT, WindowUnit};
use crate::stream::StreamConfig;

/// Segments toward a peer on loopback that takes large ones, payload bytes: long enough that the cost of a packet does not
/// show, short enough that a socket buffer of the usual 208 KiB holds a dozen.
pub const WIDE_SEGMENT: usize = 16_000;

/// What this endpoint tells peers.
pub(super) fn our_hello(stream: &StreamConfig) -> Hello {
    let ours = PeerProfile::ours();
    let receivable = sizes::UDP_MAX - sizes::SEALED_OVERHEAD;
    Hello {
        generation: Some(1),
        max_segment: u32::try_from(receivable).ok(),
        // What the receive buffer holds, in the smallest segments we ask for.
        segments_in_flight: u32::try_from(stream.receive_buffer / V1_MAX_SEGMENT).ok(),
        window_unit: u32::try_from(WINDOW_UNIT).ok(),
        sack_ranges: Some(4),
        max_datagram: u32::try_from(receivable).ok(),
        ack_delay_ms: u16::try_from(ours.max_ack_delay.as_millis()).ok(),
        idle_timeout_secs: u32::try_from(stream.idle_timeout.as_secs()).ok(),
        features: Features::REPACKETIZE
            .union(Features::ORDERED_FIN)
            .union(Features::HALF_CLOSE)
            .union(Features::WINDOW_PROBES)
            .union(Features::ZERO_WINDOW),
        software: Some(concat!("pilot/", env!("CARGO_PKG_VERSION")).to_owned()),
        reply: false,
    }
}

/// The rules towards a peer that said Hello. What it did not say keeps the careful value.
pub(super) fn profile_of(hello: &Hello) -> PeerProfile {
    let has = |feature| hello.features.contains(feature);
    let mut profile = PeerProfile::cautious();
    let ours = PeerProfile::ours();
    if let Some(max) = hello.max_segment {
        profile.max_segment = (max as usize).max(1);
    }
    if let Some(most) = hello.segments_in_flight {
        profile.segments_in_flight = (most as usize).max(V1_SEGMENTS_IN_FLIGHT);
    }
    if hello.window_unit.is_some_and(|unit| unit as usize == WINDOW_UNIT) {
        profile.window_unit = WindowUnit::Bytes;
    }
    if let Some(ms) = hello.ack_delay_ms {
        profile.max_ack_delay = Duration::from_millis(u64::from(ms).min(1_000));
    }
    profile.fixed_boundaries = !has(Features::REPACKETIZE);
    profile.orders_fin = has(Features::ORDERED_FIN);
    profile.half_close = has(Features::HALF_CLOSE);
    if has(Features::ZERO_WINDOW) {
        profile.zero_window_closes = true;
        profile.window_update_wakes = true;
    }
    // What everybody who says Hello does (docs/spec/hello.md), so there is no bit for it.
    profile.wants_duplicate_acks = ours.wants_duplicate_acks;
    profile.ack_floor = ours.ack_floor;
    profile.fin_delay = ours.fin_delay;
    profile.reset_has_sequence = ours.reset_has_sequence;
    profile.random_isn = ours.random_isn;
    profile.recent_sack_first = ours.recent_sack_first;
    profile
}

/// Whether the peer takes packets larger than an Ethernet path carries.
pub(super) fn is_wide(hello: &Hello) -> bool {
    hello.max_datagram.is_some_and(|max| max as usize + sizes::SEALED_OVERHEAD >= sizes::UDP_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_hello_gives_our_own_rules() {
        let hello = our_hello(&StreamConfig::default());
        let profile = profile_of(&hello);
        let ours = PeerProfile::ours();
        assert_eq!(
            PeerProfile { max_segment: 0, segments_in_flight: 0, ..profile },
            PeerProfile { max_segment: 0, segments_in_flight: 0, ..ours }
        );
        assert!(profile.segments_in_flight > V1_SEGMENTS_IN_FLIGHT && is_wide(&hello));
    }

    #[test]
    fn an_empty_hello_promises_nothing_about_sizes() {
        let profile = profile_of(&Hello::default());
        let careful = PeerProfile::cautious();
        assert_eq!(profile.max_segment, careful.max_segment);
        assert_eq!(profile.segments_in_flight, careful.segments_in_flight);
        assert!(profile.fixed_boundaries && !profile.zero_window_closes && !is_wide(&Hello::default()));
    }
}
