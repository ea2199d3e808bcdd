//! Local socket frames.

use pilot_wire::frame::{FrameDecoder, MAX_FRAME, PREFIX_LEN};
use pilot_wire::ipc::{Answer, Request, RequestError, op, text as texts};
use serde_json::{Value, json};

use super::{bytes, hex, load, rows, text};

/// The frames of a recording, complete with prefix.
fn frames(row: &Value, name: &str) -> Vec<Vec<u8>> {
    let list = row[name].as_array().cloned().unwrap_or_default();
    list.iter().map(|frame| bytes(frame.as_str().unwrap())).collect()
}

fn request_frame(request: &Request<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    request.emit(&mut out).unwrap();
    out
}

/// A boolean byte other than 0 and 1, and `null` for an empty list, are read but not written.
fn is_canonical(row: &Value) -> bool {
    !["SetVisibility byte 2", "SetTags null", "SetTaskExec byte 2"].contains(&text(row, "name"))
}

#[test]
fn every_recorded_request_parses_to_itself_or_to_the_recorded_error() {
    let (mut parsed, mut refused) = (0, 0);
    for row in rows(&load("transport-ipc-daemon"), "steps") {
        let Some(request) = row["request_hex"].as_str().filter(|hex| !hex.contains("...")) else { continue };
        let frame = bytes(request);
        let Some(body) = frame.get(PREFIX_LEN..).filter(|body| !body.is_empty()) else { continue };
        match Request::parse(body) {
            Ok(request) => {
                parsed += 1;
                if is_canonical(row) {
                    assert_eq!(hex(&request_frame(&request)), hex(&frame), "{}", row["name"]);
                }
            }
            Err(error) => {
                refused += 1;
                let answer = frames(row, "frames_received_hex");
                let Ok(Answer::Error { code: 1, text }) = Answer::parse(&answer[0][PREFIX_LEN..]) else {
                    panic!("{row} refused: {error}");
                };
                match error {
                    RequestError::Json(..) => assert!(text.starts_with("set_tags: invalid JSON: "), "{text}"),
                    // February did not know the commands that came later.
                    _ if body[0] == op::NETWORK => assert_eq!(text, texts::unknown_command(op::NETWORK)),
                    _ => assert_eq!(error.to_string(), text),
                }
            }
        }
    }
    assert!(parsed > 40 && refused > 15, "{parsed} {refused}");
}

#[test]
fn every_recorded_answer_parses_and_re_encodes() {
    let mut seen = 0;
    for row in rows(&load("transport-ipc-daemon"), "steps") {
        for frame in frames(row, "frames_received_hex") {
            let answer = Answer::parse(&frame[PREFIX_LEN..]).unwrap_or_else(|e| panic!("{row}: {e}"));
            let mut out = Vec::new();
            answer.emit(&mut out).unwrap();
            assert_eq!(hex(&out), hex(&frame), "{}", row["name"]);
            if let Answer::Json { op, body } = answer {
                // Keys are sorted and escapes are the official ones: reading and writing gives the same bytes.
                let value = pilot_wire::json::parse(body).unwrap();
                let mut again = Vec::new();
                Answer::emit_json(op, &value, &mut again).unwrap();
                assert_eq!(hex(&again), hex(&frame), "{}", row["name"]);
            }
            seen += 1;
        }
    }
    assert!(seen > 60);
}

#[test]
fn the_frames_the_driver_writes_are_ours() {
    let mut seen = 0;
    for row in rows(&load("transport-ipc-driver"), "steps") {
        for frame in frames(row, "frames_sent_hex") {
            let request = Request::parse(&frame[PREFIX_LEN..]).unwrap_or_else(|e| panic!("{row}: {e}"));
            if !text(row, "driver_call").contains("SetTags(nil)") {
                assert_eq!(hex(&request_frame(&request)), hex(&frame), "{row}");
            }
            seen += 1;
        }
        for frame in frames(row, "frames_from_daemon_hex") {
            let answer = Answer::parse(&frame[PREFIX_LEN..]).unwrap_or_else(|e| panic!("{row}: {e}"));
            if frame.len() == PREFIX_LEN + 1 {
                assert_eq!(answer, Answer::Error { code: 0, text: String::new() });
            }
        }
    }
    assert!(seen > 20);
}

#[test]
fn three_generations_of_requests_and_answers_are_understood() {
    let file = load("drift-ipc");
    let mut refused = 0;
    for (generation, daemon) in file["daemons"].as_object().unwrap() {
        for row in rows(daemon, "rows") {
            let body = bytes(text(row, "request"));
            let replies = row["replies"].as_array().unwrap();
            let parsed = Request::parse(&body);
            if let Err(error) = &parsed {
                // An opcode unknown to us is unknown to the newest release too.
                if generation == "1.18.0" {
                    assert_eq!(replies[0]["text"].as_str().unwrap(), error.to_string(), "{row}");
                    refused += 1;
                }
            } else if replies.first().is_some_and(|r| r["op"] != "0a") {
                let expected = parsed.unwrap().answer_opcode().unwrap();
                assert_eq!(replies[0]["op"].as_str().unwrap(), format!("{expected:02x}"), "{row}");
            }
            for reply in replies {
                let mut body = bytes(text(reply, "op"));
                if let Some(payload) = reply["hex"].as_str() {
                    body.extend(bytes(payload));
                } else if let Some(message) = reply["text"].as_str() {
                    body.extend([0, reply["code"].as_u64().unwrap() as u8]);
                    body.extend(message.as_bytes());
                } else {
                    body.extend(pilot_wire::json::to_vec(&reply["json"]));
                }
                let answer = Answer::parse(&body).unwrap_or_else(|e| panic!("{row}: {e}"));
                if let Answer::Error { text, .. } = &answer {
                    let unowned = text == &texts::connection_not_found(777) || text.starts_with("sendto:");
                    assert_eq!(texts::is_asynchronous(text), unowned, "{text}");
                }
            }
        }
    }
    assert!(refused > 5, "{refused}");
}

#[test]
fn fixed_texts_are_those_of_the_daemon() {
    let file = load("transport-ipc-daemon");
    let mut wanted = vec![
        texts::already_bound(2000),
        texts::connection_not_found(99),
        texts::CONNECTION_REFUSED.to_owned(),
        texts::resolve_node(3, texts::REGISTRY_FAILED),
        texts::NO_BROADCAST.to_owned(),
        texts::payload_too_large(65_536),
        texts::TOO_MANY_TAGS.to_owned(),
        texts::was_not_trusted(4000),
        texts::NOT_ESTABLISHED.to_owned(),
        texts::unknown_command(0xEE),
        format!("resolve_hostname: {}", texts::registry("request failed")),
    ];
    for row in rows(&file, "steps") {
        for frame in frames(row, "frames_received_hex") {
            if let Ok(Answer::Error { text, .. }) = Answer::parse(&frame[PREFIX_LEN..]) {
                wanted.retain(|wanted| *wanted != text);
            }
        }
    }
    assert_eq!(wanted, Vec::<String>::new(), "never said by a daemon");
}

#[test]
fn a_frame_of_exactly_the_limit_passes_and_one_more_does_not() {
    let mut frame = (MAX_FRAME as u32).to_be_bytes().to_vec();
    frame.push(0xEE);
    frame.resize(PREFIX_LEN + MAX_FRAME, 0);
    let mut decoder = FrameDecoder::default();
    for chunk in frame.chunks(70_001) {
        assert_eq!(decoder.next_frame(), Ok(None));
        decoder.push(chunk);
    }
    let body = decoder.next_frame().unwrap().unwrap();
    assert_eq!(Request::parse(body), Err(RequestError::UnknownCommand(0xEE)));
    assert_eq!(decoder.next_frame(), Ok(None));

    decoder.push(&0x0010_0001u32.to_be_bytes());
    assert!(decoder.next_frame().is_err());
    assert!(decoder.buffer().capacity() <= 3 * MAX_FRAME, "memory does not grow with an announced length");

    let data = vec![0; pilot_wire::ipc::MAX_SEND + 1];
    let mut out = Vec::new();
    assert!(Request::Send { conn: 1, data: &data }.emit(&mut out).is_err());
    assert!(out.is_empty());
    assert!(Request::Send { conn: 1, data: &data[1..] }.emit(&mut out).is_ok());
}

#[test]
fn commands_of_newer_daemons_round_trip() {
    use pilot_wire::ipc::{HandshakeCommand, NetworkCommand};
    let to = "1:0001.0000.0009:53".parse().unwrap();
    let requests = [
        Request::Network(NetworkCommand::List),
        Request::Network(NetworkCommand::Join { network: 9, token: "secret".to_owned() }),
        Request::Network(NetworkCommand::Leave { network: 9 }),
        Request::Network(NetworkCommand::Members { network: 9 }),
        Request::Network(NetworkCommand::Invite { network: 9, node: 7 }),
        Request::Network(NetworkCommand::PollInvites),
        Request::Network(NetworkCommand::Respond { network: 9, accept: true }),
        Request::Handshake(HandshakeCommand::Wait { node: 7, millis: 30_000 }),
        Request::Health,
        Request::Managed { sub: 2, rest: &[0, 9] },
        Request::RotateKey,
        Request::Broadcast { network: 9, port: 5000, token: b"t", data: b"hello" },
        Request::Cancel,
        Request::PreferDirect { node: 7 },
        Request::SubmitBadge(b"{}"),
        Request::EnrollRecovery(b"{}"),
        Request::SignEnvelope(b"{}"),
        Request::VerifyEnvelope(b"{}"),
        Request::Unbind { port: 80 },
        Request::SendToConfirm { to, data: b"dg" },
        Request::SetTags { tags: vec!["a<b".to_owned(), String::new()] },
    ];
    for request in requests {
        let frame = request_frame(&request);
        assert_eq!(Request::parse(&frame[PREFIX_LEN..]), Ok(request));
    }
    let mut out = Vec::new();
    Answer::emit_json(op::HEALTH_OK, &json!({"status": "ok", "peers": 1}), &mut out).unwrap();
    assert_eq!(&out[PREFIX_LEN..], b"\x22{\"peers\":1,\"status\":\"ok\"}");
}
