//! Secure channels against the golden vectors, and against who replays, reflects and forges.

use serde_json::Value;
use tokio::io::{DuplexStream, duplex};

use super::*;

const FEBRUARY: &str = include_str!("../tests/vectors/services-secure.json");
const CURRENT: &str = include_str!("../tests/vectors/drift-secure-channel.json");

fn load(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn array<const N: usize>(hex: &Value) -> [u8; N] {
    bytes(hex).try_into().unwrap()
}

async fn expect(stream: &mut DuplexStream, wire: &[u8]) {
    let mut got = vec![0; wire.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, wire);
}

/// Plays the recorded conversation against one of our sides; the other side is the recording.
async fn play(
    role: Role,
    private: [u8; 32],
    form: Option<Form>,
    auth: Option<Authentication>,
    script: Vec<(Role, Vec<u8>, Option<Vec<u8>>)>,
) {
    let (mut far, near) = duplex(1 << 16);
    let ours = tokio::spawn(async move {
        match role {
            Role::Client => SecureStream::connect(near, &private, form.unwrap(), auth).await,
            Role::Server => SecureStream::accept(near, &private, form, auth).await,
        }
        .unwrap()
    });
    let mut channel = None;
    let mut ours = Some(ours);
    for (from, wire, plain) in script {
        let Some(plain) = plain else {
            // Hellos, and frames of authentication.
            if from == role {
                expect(&mut far, &wire).await
            } else {
                far.write_all(&wire).await.unwrap()
            }
            continue;
        };
        if channel.is_none() {
            channel = Some(ours.take().unwrap().await.unwrap());
        }
        let channel = channel.as_mut().unwrap();
        if from == role {
            if plain.is_empty() {
                channel.seal(&[]).unwrap();
            } else {
                channel.write_all(&plain).await.unwrap();
            }
            channel.flush().await.unwrap();
            expect(&mut far, &wire).await;
        } else {
            far.write_all(&wire).await.unwrap();
            let mut got = vec![0; plain.len()];
            channel.read_exact(&mut got).await.unwrap();
            assert_eq!(got, plain);
        }
    }
    drop(far);
    let mut rest = Vec::new();
    channel.unwrap().read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
}

fn role(value: &Value) -> Role {
    if value == "client" { Role::Client } else { Role::Server }
}

#[tokio::test(start_paused = true)]
async fn the_february_conversation_is_reproduced_byte_for_byte_by_both_sides() {
    let file = load(FEBRUARY);
    let mut script = vec![
        (Role::Client, bytes(&file["client_hello_hex"]), None),
        (Role::Server, bytes(&file["server_hello_hex"]), None),
    ];
    for row in file["messages"].as_array().unwrap() {
        script.push((role(&row["from"]), bytes(&row["wire_hex"]), Some(bytes(&row["plaintext_hex"]))));
    }
    let client = array(&file["client_private_key_hex"]);
    let server = array(&file["server_private_key_hex"]);
    play(Role::Client, client, Some(Form::February), None, script.clone()).await;
    // The side that accepts finds the form out by itself.
    play(Role::Server, server, None, None, script).await;
}

fn authentication(case: &Value, own: &str, peer: &str, frame: &Value) -> Authentication {
    let identity = |side: &str| Identity::from_seed(array(&case[format!("{side}_ed25519_seed_hex")]));
    let auth = Auth::parse(&bytes(frame)).unwrap();
    let (peer_node, peer_key) = (case[format!("{peer}_node_id")].as_u64().unwrap() as u32, identity(peer).public_key());
    Authentication {
        node: auth.node,
        identity: Arc::new(identity(own)),
        find_key: Arc::new(move |node| (node == peer_node).then_some(peer_key)),
        unix: auth.unix,
        nonce: auth.nonce,
        seen: Arc::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn the_current_conversations_are_reproduced_byte_for_byte_by_both_sides() {
    let file = load(CURRENT);
    for case in file["cases"].as_array().unwrap() {
        let writes = case["wire_writes_in_order"].as_array().unwrap();
        let script: Vec<_> = writes
            .iter()
            .map(|row| {
                let plain = row["plaintext_hex"].is_string() && row["signed_message_hex"].is_null();
                (role(&row["from"]), bytes(&row["hex"]), plain.then(|| bytes(&row["plaintext_hex"])))
            })
            .collect();
        let frame = |side: &str| {
            writes
                .iter()
                .find(|w| w["from"] == side && w["signed_message_hex"].is_string())
                .map(|w| &w["plaintext_hex"])
        };
        let auth = |own: &str, peer: &str| frame(own).map(|frame| authentication(case, own, peer, frame));
        assert_eq!(frame("client").is_some(), case["mutual_auth"].as_bool().unwrap());
        let (client, server) = (array(&case["client_x25519_private_hex"]), array(&case["server_x25519_private_hex"]));
        play(Role::Client, client, Some(Form::Current), auth("client", "server"), script.clone()).await;
        play(Role::Server, server, None, auth("server", "client"), script).await;
    }
}

async fn channels(form: Form) -> (SecureStream<DuplexStream>, SecureStream<DuplexStream>) {
    let (a, b) = duplex(1 << 16);
    let (client, server) =
        tokio::join!(SecureStream::connect(a, &[1; 32], form, None), SecureStream::accept(b, &[2; 32], None, None));
    (client.unwrap(), server.unwrap())
}

#[tokio::test(start_paused = true)]
async fn much_data_flows_both_ways_in_each_form() {
    for form in [Form::February, Form::Current] {
        let (mut client, mut server) = channels(form).await;
        let data: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        let echo = tokio::spawn(async move {
            let mut all = Vec::new();
            server.read_to_end(&mut all).await.unwrap();
            assert_eq!(server.form(), Some(form));
            server.write_all(&all).await.unwrap();
            server.shutdown().await.unwrap();
        });
        client.write_all(&data).await.unwrap();
        client.shutdown().await.unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).await.unwrap();
        assert!(back == data);
        echo.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn replayed_reflected_reordered_and_changed_records_end_the_channel() {
    let file = load(FEBRUARY);
    // The reference takes both.
    let taken = ["replay_to_receiver", "reflection_to_sender"];
    assert!(taken.iter().all(|case| file[*case].is_object()));
    crate::compatibility::check("services-secure", taken);
    let rows = file["messages"].as_array().unwrap();
    let wire = |i: usize| bytes(&rows[i]["wire_hex"]);
    let mut changed = wire(0);
    *changed.last_mut().unwrap() ^= 1;
    // For the server: the client's first record again, the client's third before its second, the server's own, a changed
    // one, one without a tag, one that is too large.
    let attacks: Vec<Vec<Vec<u8>>> = vec![
        vec![wire(0), wire(0)],
        vec![wire(0), wire(3)],
        vec![wire(1)],
        vec![changed],
        vec![bytes(&file["malformed"][1]["wire_hex"])],
        vec![bytes(&file["malformed"][2]["wire_hex"])],
        vec![wire(0), wire(1)],
    ];
    for (i, attack) in attacks.into_iter().enumerate() {
        let (mut far, near) = duplex(1 << 16);
        far.write_all(&bytes(&file["client_hello_hex"])).await.unwrap();
        let private = array(&file["server_private_key_hex"]);
        let mut server = SecureStream::accept(near, &private, None, None).await.unwrap();
        for record in &attack {
            far.write_all(record).await.unwrap();
        }
        // The right record behind it no longer counts.
        far.write_all(&wire(2)).await.unwrap();
        drop(far);
        let mut got = Vec::new();
        let error = server.read_to_end(&mut got).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "attack {i}: {error}");
        assert_eq!(got, if attack.len() > 1 { bytes(&rows[0]["plaintext_hex"]) } else { Vec::new() });
        let mut more = Vec::new();
        server.read_to_end(&mut more).await.unwrap();
        assert!(more.is_empty(), "attack {i}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_cannot_prove_who_it_is_gets_no_channel() {
    let identity = |n: u8| Arc::new(Identity::from_seed([n; 32]));
    let keys = [(1, identity(1).public_key()), (2, identity(2).public_key())];
    let seen: Arc<Seen> = Arc::default();
    let auth = |node: u32, key: u8, unix: u64, nonce: u8, seen: &Arc<Seen>| Authentication {
        node,
        identity: identity(key),
        find_key: Arc::new(move |node| keys.iter().find(|(n, _)| *n == node).map(|(_, key)| *key)),
        unix,
        nonce: [nonce; 16],
        seen: seen.clone(),
    };
    for (client, expected) in [
        (auth(2, 2, 1000, 7, &Arc::default()), None),
        (auth(2, 3, 1000, 8, &Arc::default()), Some("the signature is wrong")),
        (auth(3, 3, 1000, 9, &Arc::default()), Some("unknown node")),
        (auth(2, 2, 1006, 10, &Arc::default()), Some("the clocks differ by more than 5 s")),
        (auth(2, 2, 1000, 7, &Arc::default()), Some("the authentication was used before")),
        (auth(1, 1, 1000, 11, &Arc::default()), Some("the peer claims to be us")),
    ] {
        let (a, b) = duplex(1 << 16);
        let server = auth(1, 1, 1000, 99, &seen);
        // The client takes the server's word, to show what the server thinks of it.
        let (node, unix) = (client.node, client.unix);
        let client = Authentication { seen: Arc::default(), ..client };
        let (c, s) = tokio::join!(
            SecureStream::connect(a, &[1; 32], Form::Current, Some(client)),
            SecureStream::accept(b, &[2; 32], None, Some(server))
        );
        match expected {
            None => {
                let (c, s) = (c.unwrap(), s.unwrap());
                assert_eq!((c.peer(), s.peer()), (Some(1), Some(2)));
            }
            // A clock that is off, or our own name, shows at the client first.
            Some(_) if unix != 1000 || node == 1 => assert!(c.is_err() && s.is_err()),
            Some(why) => assert_eq!(s.err().unwrap().to_string(), format!("secure channel: {why}")),
        }
    }
    let (mut far, near) = duplex(64);
    far.write_all(&[0; 32]).await.unwrap();
    let error = SecureStream::accept(near, &[2; 32], None, None).await.err().unwrap();
    assert_eq!(error.code(), "secure_low_order");
    let (_far, near) = duplex(64);
    let error = SecureStream::accept(near, &[2; 32], None, None).await.err().unwrap();
    assert_eq!(error.code(), "secure_timeout");
}

#[tokio::test(start_paused = true)]
async fn an_announced_length_takes_no_memory() {
    let (mut far, near) = duplex(1 << 16);
    far.write_all(&bytes(&load(FEBRUARY)["client_hello_hex"])).await.unwrap();
    let mut server = SecureStream::accept(near, &[2; 32], None, None).await.unwrap();
    far.write_all(&(16u32 << 20).to_be_bytes()).await.unwrap();
    far.write_all(&[0; 100]).await.unwrap();
    let mut got = [0; 16];
    let waiting = tokio::time::timeout(std::time::Duration::from_secs(1), server.read(&mut got)).await;
    assert!(waiting.is_err(), "{waiting:?}");
    assert!(server.incoming.capacity() < 1 << 17, "{}", server.incoming.capacity());
    drop(far);
    assert_eq!(server.read(&mut got).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}
