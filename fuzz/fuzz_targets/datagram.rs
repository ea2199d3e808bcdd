#![no_main]
//! Datagrams between daemons and to the beacon.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Some(pilot_wire::tunnel::Datagram::Beacon(message)) = pilot_wire::tunnel::Datagram::parse(input) {
        let mut out = Vec::new();
        message.emit(&mut out);
        assert_eq!(pilot_wire::beacon::BeaconMessage::parse(&out), Some(message));
    }
});
