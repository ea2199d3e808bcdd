#![no_main]
//! Registry answers as a client reads them.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    use pilot_wire::registry::{
        BeaconEntry, ErrorAnswer, ListNodesOk, LookupOk, NetworkPolicyOk, PollOk, RegisterOk, ResolveHostnameOk, ResolveOk,
    };
    if let Ok(fields) = pilot_wire::registry::parse_body(input) {
        let _ = ErrorAnswer::from_fields(&fields);
        let _ = RegisterOk::from_fields(&fields);
        let _ = LookupOk::from_fields(&fields);
        let _ = ResolveOk::from_fields(&fields);
        let _ = ResolveHostnameOk::from_fields(&fields);
        let _ = PollOk::from_fields(&fields);
        let _ = ListNodesOk::from_fields(7, &fields);
        let _ = NetworkPolicyOk::from_fields(&fields);
        let _ = BeaconEntry::list_from_fields(&fields);
    }
});
