//! The recorded conversations with the February daemon on its local socket, held with ours.
//!
//! Every difference is named in [`exception`] with its reason; anything else that differs fails.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::Net;
use crate::common::client::Client;
use serde_json::Value;

/// How an answer may differ from the recorded one.
enum Exception {
    /// The text goes on after this beginning.
    Begins(&'static str),
    /// Only the opcode and the keys of the JSON object are compared; ours may have more.
    Keys,
    /// Another answer, complete and in hexadecimal digits, or none.
    Instead(Option<&'static str>),
    /// Not held.
    Skip,
}

fn exception(client: &str, name: &str) -> Option<Exception> {
    use Exception::{Begins, Instead, Keys, Skip};
    Some(match (client, name) {
        // The registry says its reason where February's hides it.
        // Found by punching, although the registry does not tell; then its gate is silent, and we say so.
        ("A", "Dial private node") => Begins("dial timeout: "),
        ("A", "Dial unknown node") => Begins("resolve node 4000: registry: "),
        ("A", "ResolveHostname missing") => Begins("resolve_hostname: registry: "),
        ("A", "SetHostname taken" | "SetHostname invalid" | "SetHostname reserved") => {
            Begins("set_hostname: registry: ")
        }
        ("A", "SetTags bad tag") => Begins("set_tags: registry: "),
        ("A", "Handshake send to unknown node") => Begins("handshake request: handshake relay: registry: "),
        ("A", "SetVisibility after deregister") => Begins("set_visibility: registry: "),
        // What JSON parsers say differs between languages.
        ("A", "SetTags bad json") => Begins("set_tags: invalid JSON: "),
        // Errors of datagrams to nodes not yet resolved come when the tunnel fails, or never: SendTo promises nothing.
        ("A", "SendTo private node") => Skip,
        // Nobody writes on somebody else's stream (03 §16.3).
        ("A2", "Send on a connection owned by another client") => Instead(Some("0000001a0a0001636f6e6e6563746f6e20")),
        ("B", "Recv push of intruder data") => Skip,
        // Volatile content; ours has the keys of newer daemons too.
        (_, "Info" | "Info after zero frame") => Keys,
        (_, "Handshake pending" | "Handshake trusted") => Keys,
        // What really happened stands beside the official status (docs/spec/local-socket.md, L44).
        (_, "Handshake send to B" | "Handshake send to already trusted" | "Handshake send to private") => Keys,
        (_, "Handshake approve" | "Handshake approve not pending") => Keys,
        (_, "Handshake reject" | "Handshake reject unknown node") => Keys,
        // 64 KiB requests are shortened in the file; `server.rs` tests the sizes.
        (_, name) if name.starts_with("SendTo 65") || name.starts_with("Frame of exactly") => Skip,
        ("A2", name) if name.starts_with("Oversize") => Skip,
        // Both ends are ours here and keep the other direction open, as TCP does; the stream ends when it is closed.
        ("B", "Send on closed conn") => Skip,
        // 0x1F is a command of newer daemons.
        ("A", "Unknown opcode 0x1F") => Skip,
        _ => return None,
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn text_of(body: &[u8]) -> String {
    String::from_utf8_lossy(body.get(3..).unwrap_or_default()).into_owned()
}

/// Whether every key of the recorded JSON is there, through lists and objects.
fn has_keys(recorded: &Value, ours: &Value) -> bool {
    match (recorded, ours) {
        (Value::Object(recorded), Value::Object(ours)) => {
            recorded.iter().all(|(key, value)| ours.get(key).is_some_and(|other| has_keys(value, other)))
        }
        (Value::Array(recorded), Value::Array(ours)) => {
            recorded.first().zip(ours.first()).is_none_or(|(recorded, ours)| has_keys(recorded, ours))
        }
        (recorded, ours) => std::mem::discriminant(recorded) == std::mem::discriminant(ours),
    }
}

fn check(client: &str, name: &str, recorded: &[u8], ours: &[u8]) -> Result<(), String> {
    let (recorded, opcode) = (&recorded[4..], recorded[4]);
    let differs = || Err(format!("recorded {:?}\n    ours {:?}", text_or_hex(recorded), text_or_hex(ours)));
    match exception(client, name) {
        Some(Exception::Skip) => Ok(()),
        Some(Exception::Begins(beginning)) if ours[0] == 0x0A && text_of(ours).starts_with(beginning) => Ok(()),
        Some(Exception::Begins(_)) => differs(),
        Some(Exception::Keys) => {
            let parse = |body: &[u8]| serde_json::from_slice::<Value>(&body[1..]).unwrap();
            if ours[0] == opcode && has_keys(&parse(recorded), &parse(ours)) { Ok(()) } else { differs() }
        }
        Some(Exception::Instead(_)) => Ok(()),
        // The source port of a stream or datagram is the dialler's choice: the two last bytes of Accept, bytes 7 and 8 of
        // RecvFrom.
        None if opcode == 0x05 && ours.len() == recorded.len() && ours[..13] == recorded[..13] => Ok(()),
        None if opcode == 0x0C && ours[..7] == recorded[..7] && ours[9..] == recorded[9..] => Ok(()),
        None if ours == recorded => Ok(()),
        None => differs(),
    }
}

fn text_or_hex(body: &[u8]) -> String {
    if matches!(body[0], 0x0A | 0x0E | 0x10 | 0x12 | 0x14 | 0x16 | 0x18 | 0x1A | 0x1C | 0x1E) {
        return format!("{:02x} {}", body[0], String::from_utf8_lossy(&body[1..]));
    }
    body.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_command_gets_its_recorded_answer() {
    let file: Value = serde_json::from_str(include_str!("../vectors/transport-ipc-daemon.json")).unwrap();
    let net = Net::new().await;
    let ports = vec![2000, 5000, 9999];
    let alice = net
        .node_with(|config| {
            config.hostname = "alice".to_owned();
            config.owner = "alice@example.com".to_owned();
            config.public = true;
        })
        .await;
    let bob = net
        .node_with(|config| {
            config.hostname = "bob".to_owned();
            config.public = true;
            config.public_ports.clone_from(&ports);
        })
        .await;
    let private = net.node().await;
    assert_eq!((alice.id(), bob.id(), private.id()), (1, 2, 3));
    let mut clients = BTreeMap::new();
    for (name, node) in [("A", &alice), ("B", &bob), ("A2", &alice), ("B2", &bob)] {
        clients.insert(name, Client::connect(&node.socket()).await);
    }
    let mut wrong = Vec::new();
    let mut held = 0;
    for step in file["steps"].as_array().unwrap() {
        let name = step["name"].as_str().unwrap();
        let who = step["client"].as_str().unwrap();
        let Some(client) = clients.get_mut(who) else { panic!("no client {who}") };
        let rule = exception(who, name);
        if let Some(request) = step["request_hex"].as_str() {
            if request.contains("...") {
                continue;
            }
            client.write(&unhex(request)).await;
        }
        if matches!(rule, Some(Exception::Skip)) {
            // Whatever came, or comes, belongs to this step.
            let _ = client.is_quiet().await;
            continue;
        }
        if let Some(Exception::Instead(Some(_))) = rule {
            let body = client.next().await;
            if text_of(&body) != "connection 1 not found" {
                wrong.push(format!("{who} {name}: {}", text_or_hex(&body)));
            }
            continue;
        }
        for frame in step["frames_received_hex"].as_array().into_iter().flatten() {
            let recorded = unhex(frame.as_str().unwrap());
            let Ok(body) = tokio::time::timeout(Duration::from_secs(5), client.next()).await else {
                wrong.push(format!("{who} {name}: no frame came"));
                continue;
            };
            held += 1;
            if let Err(why) = check(who, name, &recorded, &body) {
                wrong.push(format!("{who} {name}:\n    {why}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {held} answers differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(held > 70, "only {held} answers were compared");
}
