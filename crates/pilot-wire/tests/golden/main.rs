//! The golden vectors of every format: bytes recorded from the official programs, valid and invalid.

mod beacon;
mod dataexchange;
mod events;
mod handshake;
mod ipc;
mod ipc_ext;
mod nameserver;
mod packets;
mod registry;
mod secure;
mod tasks;
mod tunnel;

use std::collections::BTreeMap;

use serde_json::Value;

/// A vector file.
fn load(name: &str) -> Value {
    let texts: BTreeMap<&str, &str> = [
        ("wire-addresses", include_str!("../vectors/wire-addresses.json")),
        ("wire-packets", include_str!("../vectors/wire-packets.json")),
        ("wire-beacon", include_str!("../vectors/wire-beacon.json")),
        ("wire-daemon-beacon", include_str!("../vectors/wire-daemon-beacon.json")),
        ("wire-beacon-registry", include_str!("../vectors/wire-beacon-registry.json")),
        ("wire-tunnel-frames", include_str!("../vectors/wire-tunnel-frames.json")),
        ("wire-trace-direct", include_str!("../vectors/wire-trace-direct.json")),
        ("wire-trace-datagram-first-contact", include_str!("../vectors/wire-trace-datagram-first-contact.json")),
        ("wire-trace-plaintext-to-encrypted", include_str!("../vectors/wire-trace-plaintext-to-encrypted.json")),
        ("wire-trace-relay-fallback", include_str!("../vectors/wire-trace-relay-fallback.json")),
        ("transport-sack", include_str!("../vectors/transport-sack.json")),
        ("transport-ipc-daemon", include_str!("../vectors/transport-ipc-daemon.json")),
        ("transport-ipc-driver", include_str!("../vectors/transport-ipc-driver.json")),
        ("drift-ipc", include_str!("../vectors/drift-ipc.json")),
        ("registry-messages", include_str!("../vectors/registry-messages.json")),
        ("registry-validation", include_str!("../vectors/registry-validation.json")),
        ("services-dataexchange", include_str!("../vectors/services-dataexchange.json")),
        ("drift-dataexchange", include_str!("../vectors/drift-dataexchange.json")),
        ("services-eventstream", include_str!("../vectors/services-eventstream.json")),
        ("services-secure", include_str!("../vectors/services-secure.json")),
        ("drift-secure-channel", include_str!("../vectors/drift-secure-channel.json")),
        ("registry-nameserver", include_str!("../vectors/registry-nameserver.json")),
        ("services-task", include_str!("../vectors/services-task.json")),
        ("cli-files", include_str!("../vectors/cli-files.json")),
        ("services-handshake", include_str!("../vectors/services-handshake.json")),
        ("drift-registry-binary", include_str!("../vectors/drift-registry-binary.json")),
        ("drift-registry-sequence", include_str!("../vectors/drift-registry-sequence.json")),
    ]
    .into();
    serde_json::from_str(texts[name]).unwrap()
}

/// The rows of a list in a vector file. An empty list would make a test that cannot fail, so it is an error.
fn rows<'a>(file: &'a Value, name: &str) -> &'a Vec<Value> {
    let rows = file[name].as_array().unwrap();
    assert!(!rows.is_empty(), "no rows in {name}");
    rows
}

fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name].as_str().unwrap_or_else(|| panic!("{name} is not a string in {row}"))
}

fn number(row: &Value, name: &str) -> u64 {
    row[name].as_u64().unwrap_or_else(|| panic!("{name} is not a number in {row}"))
}

fn bytes(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2), "odd hex {hex:?}");
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
