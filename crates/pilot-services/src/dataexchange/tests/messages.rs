//! Messages: what is answered, what is stored, what is refused.

use pilot_wire::service::dataexchange::message::Tagged;
use pilot_wire::service::dataexchange::{BINARY, FILE, TAGGED, TEXT, frame};
use serde_json::json;

use super::*;

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn answers_are_those_of_february_except_where_those_hid_a_loss() {
    let lab = Lab::new(1);
    let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.start().unwrap();
    let file: Value = serde_json::from_str(include_str!("../../../tests/vectors/services-dataexchange.json")).unwrap();
    let mut stream = sender.dial(2);
    let rows = file["frames"].as_array().unwrap();
    assert!(rows.len() > 5);
    let mut different = Vec::new();
    for row in rows {
        let ack = row["ack_text"].as_str().unwrap();
        let name = row["name"].as_str().unwrap();
        let expected = match row["type"].as_u64().unwrap() {
            // 07 D11: nothing is stored, so nothing is acknowledged.
            9 => {
                different.push(name.to_owned());
                "ERR UNKNOWN(9) save failed: unsupported frame type 9"
            }
            _ => ack,
        };
        if row["type"] == FILE && row["filename"] == "" {
            // Stored all the same: see below.
            different.push(name.to_owned());
        }
        assert_eq!(answer(&mut stream, &unhex(row["wire_hex"].as_str().unwrap())).await, expected, "{row}");
    }
    assert_eq!(receiver.list("inbox").len(), 5);
    // The unnamed one, too (05 §15.21).
    assert_eq!(receiver.list("received").len(), 3);
    crate::compatibility::check("services-dataexchange frames", different);
    for row in file["decode_edge_cases"].as_array().unwrap() {
        let mut stream = sender.dial(2);
        stream.write_all(&unhex(row["wire_hex"].as_str().unwrap())).await.unwrap();
        // The limit of newer receivers is 64 MiB (07 §11.2).
        if row["error"].is_string() {
            stream.shutdown().await.unwrap();
            assert!(read_frame(&mut stream).await.is_none(), "{row}");
        } else {
            let bytes = unhex(row["payload_hex"].as_str().unwrap()).len();
            let (_, body) = read_frame(&mut stream).await.unwrap();
            assert_eq!(String::from_utf8(body).unwrap(), format!("ACK FILE {bytes} bytes"), "{row}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_two_messages_share_a_name_and_nothing_is_lost_in_between() {
    let lab = Lab::new(2);
    let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.start().unwrap();
    assert!(!receiver.env.fs().exists(&receiver.path("inbox", "")), "made only when there is something to keep");
    let sending = (0..50).map(|i| {
        let mut stream = sender.dial(2);
        tokio::spawn(async move { answer(&mut stream, &frame(TEXT, &[format!("{i}").as_bytes()]).unwrap()).await })
    });
    for (i, sent) in sending.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(sent.await.unwrap(), format!("ACK TEXT {} bytes", i.to_string().len()));
    }
    let mut texts = receiver.texts();
    texts.sort_by_key(|text| text.parse::<u32>().unwrap());
    assert_eq!(texts, (0..50).map(|i| i.to_string()).collect::<Vec<_>>());
    let events = receiver.heard.0.lock();
    assert_eq!(events.len(), 50);
    let (name, data) = &events[0];
    assert_eq!((*name, &data["from"], &data["type"]), ("message.received", &json!("0:0000.0000.0001"), &json!("TEXT")));
}

#[tokio::test(start_paused = true)]
async fn a_message_with_an_id_is_stored_once_across_restarts_and_clearing() {
    let lab = Lab::new(3);
    let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.start().unwrap();
    let first = sender.send(2, "once", "m-1").await.unwrap();
    assert_eq!((first.ack.as_str(), first.duplicate, first.tagged), ("ACK TEXT 4 bytes", false, true));
    let again = sender.send(2, "once", "m-1").await.unwrap();
    assert_eq!((again.ack.as_str(), again.duplicate), ("ACK TEXT 4 bytes (duplicate)", true));
    // An id is unique for its sender only.
    let other = lab.machine(3);
    assert!(!other.send(2, "mine", "m-1").await.unwrap().duplicate);
    receiver.crash().await;
    assert!(sender.send(2, "once", "m-1").await.unwrap().duplicate);
    assert_eq!(receiver.texts().len(), 2);
    for name in receiver.list("inbox") {
        receiver.env.fs().remove_file(&receiver.path("inbox", &name)).unwrap();
    }
    receiver.stop().await;
    receiver.start().unwrap();
    assert!(sender.send(2, "once", "m-1").await.unwrap().duplicate);
    assert!(receiver.texts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_same_id_at_the_same_time_is_stored_once() {
    let lab = Lab::new(4);
    let (sender, mut receiver) = (Arc::new(lab.machine(1)), lab.machine(2));
    receiver.start().unwrap();
    let sending: Vec<_> = (0..10)
        .map(|_| {
            let sender = sender.clone();
            tokio::spawn(async move { sender.send(2, "once", "same").await.unwrap().duplicate })
        })
        .collect();
    let mut fresh = 0;
    for sent in sending {
        fresh += usize::from(!sent.await.unwrap());
    }
    assert_eq!((fresh, receiver.texts()), (1, vec!["once".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn quotas_refuse_and_never_delete() {
    let lab = Lab::new(5);
    let (sender, other, mut receiver) = (lab.machine(1), lab.machine(3), lab.machine(2));
    receiver.offer.limits = Limits { inbox_messages: 4, ..Limits::default() };
    receiver.start().unwrap();
    assert!(sender.send(2, "a", "1").await.is_ok() && sender.send(2, "b", "2").await.is_ok());
    let full = sender.send(2, "c", "3").await.unwrap_err();
    assert_eq!(full.ack(), Some("ERR TEXT save failed: inbox full: 2 of 2 messages for this sender"));
    assert!(!full.is_final() && !full.outcome_unknown());
    // One sender's messages leave room for the others.
    assert!(other.send(2, "d", "1").await.is_ok());
    assert_eq!(receiver.texts(), ["a", "b", "d"]);
    // Cleared by another program, behind the daemon's back.
    let name = receiver.list("inbox").remove(0);
    receiver.env.fs().remove_file(&receiver.path("inbox", &name)).unwrap();
    assert!(sender.send(2, "c", "3").await.is_ok());
    receiver.env.sim().unwrap().sim_disk().set_capacity(FREE_DISK);
    let full = other.send(2, "e", "2").await.unwrap_err();
    assert!(full.ack().unwrap().starts_with("ERR TEXT save failed: disk full"), "{full}");
    receiver.env.sim().unwrap().sim_disk().set_capacity(u64::MAX);
    assert!(other.send(2, "e", "2").await.is_ok());
    assert_eq!(receiver.texts().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn answers_disclose_no_paths_and_malformed_frames_are_named() {
    let lab = Lab::new(6);
    let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.start().unwrap();
    let mut stream = sender.dial(2);
    let bad_tag = frame(TAGGED, &[b"\x00\x02[]", b"\x00\x00\x00\x01x"]).unwrap();
    assert_eq!(answer(&mut stream, &bad_tag).await, "ERR TAGGED save failed: malformed TAGGED header");
    let inner = [&Tagged::emit_head(&Tag::default(), FILE)[..], b"x"].concat();
    let nested = answer(&mut stream, &frame(TAGGED, &[&inner]).unwrap()).await;
    assert_eq!(nested, "ERR UNKNOWN(4) save failed: unsupported frame type 4");
    receiver.env.sim().unwrap().sim_disk().stop_after(0);
    let failed = answer(&mut stream, &frame(TEXT, &[b"x"]).unwrap()).await;
    assert!(failed.starts_with("ERR TEXT save failed: ") && !failed.contains(DIR), "{failed}");
    // Longer than anybody takes: the stream ends without an answer.
    let mut stream = sender.dial(2);
    stream.write_all(&Header { kind: TEXT, len: MAX_BODY + 1 }.emit()).await.unwrap();
    assert!(read_frame(&mut stream).await.is_none());
    // Half a frame, and then silence: given up.
    let mut stream = sender.dial(2);
    stream.write_all(&Header { kind: BINARY, len: 10 }.emit()).await.unwrap();
    assert!(read_frame(&mut stream).await.is_none());
    assert!(receiver.texts().is_empty());
}

/// Frames that a scripted peer has read.
type Frames = Arc<Mutex<Vec<(u32, Vec<u8>)>>>;

/// A peer that answers like a daemon of February: everything is acknowledged, what is unknown is dropped.
async fn february(mut stream: DuplexStream, heard: Frames) {
    use pilot_wire::service::dataexchange::reply;
    while let Some((kind, body)) = read_frame(&mut stream).await {
        let data = if kind == FILE {
            pilot_wire::service::dataexchange::file::FileHead::split(&body).1.len()
        } else {
            body.len()
        };
        let known = MessageType::from_wire(kind).is_some() || kind == FILE;
        let name = if known { pilot_wire::service::dataexchange::type_name(kind) } else { format!("UNKNOWN({kind})") };
        let ack = if known { reply::ack(kind, data as u64, false) } else { format!("ACK {name} {data} bytes") };
        heard.lock().push((kind, body));
        stream.write_all(&frame(TEXT, &[ack.as_bytes()]).unwrap()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_without_ids_gets_the_payload_once_and_an_unknown_type_is_no_delivery() {
    let heard = Frames::default();
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(february(far, heard.clone()));
    let mut client = Client::new(near, None);
    let mut sent = message("hello", Some("m-1"));
    sent.trace = Some(7);
    let delivery = client.send(&sent).await.unwrap();
    assert_eq!(
        (delivery.ack.as_str(), delivery.tagged, client.known()),
        ("ACK TEXT 5 bytes", false, Some(Peer::Plain))
    );
    // Believed to know ids, found not to: sent again without.
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(february(far, heard.clone()));
    let mut client = Client::new(near, Some(Peer::Tagged));
    assert!(!client.send(&message("again", Some("m-2"))).await.unwrap().tagged);
    assert_eq!(client.known(), Some(Peer::Plain));
    let stored: Vec<_> = heard.lock().iter().filter(|(kind, _)| *kind == TEXT).map(|(_, body)| body.clone()).collect();
    assert_eq!(stored, [b"hello".to_vec(), b"again".to_vec()]);
}

#[tokio::test(start_paused = true)]
async fn only_a_true_acknowledgement_is_delivery() {
    for (reply, code, unknown) in [
        (Some("ACK UNKNOWN(1) 5 bytes"), "refused", false),
        (Some("ERR TEXT save failed: no"), "refused", false),
        (Some("ACK TEXT 4 bytes"), "unexpected_ack", true),
        (Some("hello to you"), "unexpected_ack", true),
        (None, "no_ack", true),
    ] {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            read_frame(&mut far).await;
            if let Some(reply) = reply {
                far.write_all(&frame(TEXT, &[reply.as_bytes()]).unwrap()).await.unwrap();
            }
            // Silence: the client gives up by itself.
            tokio::time::sleep(Duration::from_secs(600)).await;
        });
        let error = Client::new(near, Some(Peer::Plain)).send(&message("hello", Some("m"))).await.unwrap_err();
        assert_eq!((error.code(), error.outcome_unknown()), (code, unknown), "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn times_are_told_when_asked_for() {
    let lab = Lab::new(7);
    let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.start().unwrap();
    let mut traced = message("tr", Some("m-1"));
    traced.trace = Some(42);
    let delivery = Client::new(sender.dial(2), None).send(&traced).await.unwrap();
    assert_eq!((delivery.ack.as_str(), delivery.tagged), ("ACK TEXT 2 bytes", true));
    let trace = delivery.trace.unwrap();
    assert!(trace.received_at_ns > 0 && trace.ack_sent_at_ns >= trace.received_at_ns);
    assert_eq!(receiver.texts(), ["tr"]);
}

#[tokio::test(start_paused = true)]
async fn frames_that_never_come_take_no_room_and_are_given_up() {
    let lab = Lab::new(14);
    let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.start().unwrap();
    // Together they announce 16 GiB, and send next to nothing.
    let announced = Header { kind: TEXT, len: 16 << 20 }.emit();
    let mut stalled = Vec::new();
    for _ in 0..1024 {
        let mut stream = sender.dial(2);
        stream.write_all(&announced).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stalled.push(stream);
    }
    // Let the receiver read all of that.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let large = vec![b'y'; 1 << 20];
    let ack = answer(&mut sender.dial(2), &frame(TEXT, &[&large]).unwrap()).await;
    assert_eq!(ack, "ACK TEXT 1048576 bytes");
    for mut stream in stalled {
        let mut rest = Vec::new();
        // Ended by the receiver; this side never sends the rest.
        let ended = tokio::time::timeout(Duration::from_secs(3600), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "still waited for");
    }
    assert_eq!(receiver.list("inbox").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn payloads_are_stored_byte_for_byte() {
    let lab = Lab::new(15);
    let (sender, mut receiver) = (lab.machine(1), lab.machine(2));
    receiver.start().unwrap();
    let every: Vec<u8> = (0..=255).collect();
    let payloads: [(u32, &[u8]); 4] = [(BINARY, b"\xff\xfeA"), (BINARY, &every), (TEXT, b"\xff text"), (TEXT, b"")];
    for (kind, payload) in payloads {
        let ack = answer(&mut sender.dial(2), &frame(kind, &[payload]).unwrap()).await;
        assert!(ack.starts_with("ACK ") && ack.ends_with(&format!(" {} bytes", payload.len())), "{ack}");
    }
    let mut stored: Vec<Vec<u8>> = receiver.inbox().into_iter().map(|record| record.payload).collect();
    let mut sent: Vec<Vec<u8>> = payloads.iter().map(|(_, payload)| payload.to_vec()).collect();
    stored.sort();
    sent.sort();
    assert_eq!(stored, sent);
}
