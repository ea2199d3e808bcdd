//! Registry messages.

use pilot_wire::frame::{FrameDecoder, PREFIX_LEN};
use pilot_wire::registry::binary::{self, Detected, Frame};
use pilot_wire::registry::{
    Answer, BeaconEntry, ErrorAnswer, Fields, LookupOk, NetworkEntry, NetworkPolicyOk, PollOk, RegisterOk, Request,
    ResolveHostnameOk, ResolveOk, parse_body,
};
use pilot_wire::{base64, json, signed};
use serde_json::Value;

use super::{bytes, hex, load, number, rows, text};

fn fields(value: &Value) -> Fields {
    Fields(value.as_object().unwrap().clone())
}

/// The typed answer to a request, read from the recorded fields.
fn answer(f: &Fields) -> Answer {
    if let Some(error) = ErrorAnswer::from_fields(f) {
        return Answer::Error(error);
    }
    let node = f.u32("node_id");
    match f.text("type").unwrap() {
        "register_ok" => Answer::Register(RegisterOk::from_fields(f).unwrap()),
        "rotate_key_ok" => Answer::RotateKey { node, public_key: f.string("public_key") },
        "deregister_ok" => Answer::Deregister,
        "heartbeat_ok" => Answer::Heartbeat { time: f.i64("time").unwrap() as u64 },
        "lookup_ok" => Answer::Lookup(LookupOk::from_fields(f).unwrap()),
        "resolve_ok" => Answer::Resolve(ResolveOk::from_fields(f).unwrap()),
        "resolve_hostname_ok" => Answer::ResolveHostname(ResolveHostnameOk::from_fields(f).unwrap()),
        "punch_ok" => Answer::Punch {
            node_a: f.u32("node_a"),
            node_a_addr: f.string("node_a_addr"),
            node_b: f.u32("node_b"),
            node_b_addr: f.string("node_b_addr"),
        },
        "set_hostname_ok" => Answer::SetHostname { node, hostname: f.string("hostname") },
        "set_visibility_ok" => Answer::SetVisibility { node, public: f.text("visibility") == Some("public") },
        "set_tags_ok" => Answer::SetTags { node, tags: f.strings("tags") },
        "set_task_exec_ok" => Answer::SetTaskExec { node, enabled: f.bool("task_exec") },
        "report_trust_ok" => Answer::ReportTrust,
        "revoke_trust_ok" => Answer::RevokeTrust,
        "request_handshake_ok" => Answer::RequestHandshake,
        "poll_handshakes_ok" => Answer::Poll(PollOk::from_fields(f)),
        "respond_handshake_ok" => Answer::RespondHandshake { peer: f.u32("peer_id"), accept: f.bool("accept") },
        "update_polo_score_ok" => {
            Answer::PoloScore { request: "update_polo_score", node, score: f.i64("polo_score").unwrap() }
        }
        "set_polo_score_ok" => {
            Answer::PoloScore { request: "set_polo_score", node, score: f.i64("polo_score").unwrap() }
        }
        "get_polo_score_ok" => {
            Answer::PoloScore { request: "get_polo_score", node, score: f.i64("polo_score").unwrap() }
        }
        "list_networks_ok" => Answer::ListNetworks(
            f.objects("networks")
                .map(|n| NetworkEntry {
                    id: n.u16("id"),
                    name: n.string("name"),
                    members: n.u32("members") as usize,
                    join_rule: n.string("join_rule"),
                    created: n.i64("created").map(|t| t as u64),
                    enterprise: n.get("enterprise").and_then(Value::as_bool),
                })
                .collect(),
        ),
        "get_network_policy_ok" => Answer::NetworkPolicy(NetworkPolicyOk {
            network: f.u16("network_id"),
            allowed_ports: Vec::new(),
            max_members: f.u32("max_members"),
            description: f.string("description"),
        }),
        "beacon_register_ok" => Answer::BeaconRegister { beacon: f.u32("beacon_id") },
        "beacon_list_ok" => Answer::BeaconList(BeaconEntry::list_from_fields(f)),
        other => panic!("no answer of type {other}"),
    }
}

/// Request texts that no client of ours writes: sent raw to see what the server makes of them.
fn written_by_a_client(row: &Value) -> bool {
    let raw = [
        "set_tags/nil_list",
        "set_tags/mixed_types",
        "set_tags/non_string_dropped_ok",
        "register/empty_public_key",
        "create_network",
        "join_network",
        "leave_network",
        "missing_type",
        "type_not_string",
        "duplicate_key_last_wins",
        "key_case_matters",
        "unknown_fields_ignored",
        "node_id_",
        "leading_trailing_space_ok",
        "json_null",
        "fraction",
        "max_size",
        "pipelined_pair",
        "rotate_key/missing_new_key",
    ];
    !raw.iter().any(|name| text(row, "name").contains(name))
}

#[test]
fn requests_parse_and_re_encode_to_the_recorded_frames() {
    let (mut exact, mut closed) = (0, 0);
    for row in rows(&load("registry-messages"), "vectors") {
        let frame = bytes(text(row, "request_frame_hex"));
        let mut decoder = FrameDecoder::default();
        decoder.push(&frame);
        let Ok(Some(body)) = decoder.next_frame() else {
            assert!(["over_size_1048577", "max_size_1048576"].contains(&text(row, "name")), "{}", row["name"]);
            continue;
        };
        let closes = row["server_closes_connection"] == true && !text(row, "name").starts_with("subscribe");
        match Request::parse(body) {
            Ok(request) => {
                assert!(!closes, "read {}", row["name"]);
                if written_by_a_client(row) {
                    let mut out = Vec::new();
                    request.emit(&mut out).unwrap();
                    assert_eq!(hex(&out), hex(&frame), "{}", row["name"]);
                    exact += 1;
                }
            }
            Err(error) => {
                assert!(closes, "{} refused: {error}", row["name"]);
                closed += 1;
            }
        }
    }
    assert!(exact > 140, "{exact}");
    assert_eq!(closed, 4);
}

#[test]
fn answers_parse_and_re_encode_to_the_recorded_frames() {
    let mut seen = 0;
    for row in rows(&load("registry-messages"), "vectors") {
        let Some(frame) = row["response_frame_hex"].as_str().filter(|hex| !hex.is_empty()) else { continue };
        let frame = bytes(frame);
        let mut decoder = FrameDecoder::default();
        decoder.push(&frame);
        let mut out = Vec::new();
        while let Some(body) = decoder.next_frame().unwrap() {
            answer(&parse_body(body).unwrap()).emit(&mut out).unwrap();
            seen += 1;
        }
        assert_eq!(hex(&out), hex(&frame), "{}", row["name"]);
    }
    assert!(seen > 170, "{seen}");
}

/// The text that a request's signature covers.
fn signed_text(request: &Request) -> String {
    match request {
        Request::Register(r) => signed::register(&r.listen_addr, &r.public_key),
        Request::RotateKey { node, .. } => signed::rotate(*node),
        Request::Deregister { node, .. } => signed::deregister(*node),
        Request::Heartbeat { node, .. } => signed::heartbeat(*node),
        Request::Resolve { node, requester, .. } => signed::resolve(*requester, *node),
        Request::Punch { node_a, node_b, .. } => signed::punch(*node_a, *node_b),
        Request::SetHostname { node, .. } => signed::set_hostname(*node),
        Request::SetVisibility { node, .. } => signed::set_visibility(*node),
        Request::SetTags { node, .. } => signed::set_tags(*node),
        Request::SetTaskExec { node, .. } => signed::set_task_exec(*node),
        Request::ReportTrust { node, peer, .. } => signed::report_trust(*node, *peer),
        Request::RevokeTrust { node, peer, .. } => signed::revoke_trust(*node, *peer),
        Request::RequestHandshake { from, to, .. } => signed::handshake(*from, *to),
        Request::PollHandshakes { node, .. } => signed::poll_handshakes(*node),
        Request::RespondHandshake { node, peer, .. } => signed::respond(*node, *peer),
        other => panic!("{other:?} is not signed"),
    }
}

#[test]
fn signed_texts_are_as_recorded() {
    let mut kinds = std::collections::BTreeSet::new();
    for row in rows(&load("registry-messages"), "vectors") {
        let Some(recorded) = row["signed_text"].as_str() else { continue };
        let request = Request::parse(text(row, "request_json").as_bytes()).unwrap();
        assert_eq!(signed_text(&request), recorded, "{}", row["name"]);
        kinds.insert(request.kind().to_owned());
    }
    for session in rows(&load("drift-registry-sequence"), "sessions") {
        for message in rows(session, "messages") {
            let Some(recorded) = message["signed_text"].as_str() else { continue };
            let request = Request::from_fields(&fields(&message["msg"]));
            assert_eq!(signed_text(&request), recorded);
            kinds.insert(request.kind().to_owned());
        }
    }
    assert_eq!(kinds.len(), 15, "{kinds:?}");
}

#[test]
fn the_question_of_a_worker_of_release_1_9_1_is_read_as_it_was_sent() {
    let sent = br#"{"caller_node_id":3,"receiver_node_id":3,"signature":"dIrICdYnkmwUOicOGlFkBFjGno2EYYcdQ3AjnUaPS91KtKOCHdgjJ8qzpP5UX/oo9D5itGtICw/tbN7+ociDDA==","submitter_node_id":2,"type":"authorize_task_submit"}"#;
    let request = Request::parse(sent).unwrap();
    assert!(matches!(request, Request::AuthorizeTask { caller: 3, submitter: 2, receiver: 3, .. }), "{request:?}");
    assert_eq!(signed::authorize_task(3, 2, 3), "authorize_task_submit:3:2:3");
    let mut frame = Vec::new();
    request.emit(&mut frame).unwrap();
    assert_eq!(&frame[PREFIX_LEN..], sent);
    let answer = |refused: Option<&str>| Answer::AuthorizeTask { refused: refused.map(str::to_owned) }.to_value();
    assert_eq!(answer(None), serde_json::json!({"type": "authorize_task_submit_ok", "authorized": true}));
    assert_eq!(answer(Some("why"))["authorized"], false);
    assert_eq!(answer(Some("why"))["reason"], "why");
}

#[test]
fn traffic_of_three_generations_round_trips() {
    let mut seen = 0;
    for session in rows(&load("drift-registry-sequence"), "sessions") {
        for message in rows(session, "messages") {
            let recorded = &message["msg"];
            let again = if text(message, "dir") == "daemon->registry" {
                Request::from_fields(&fields(recorded)).to_value()
            } else {
                answer(&fields(recorded)).to_value()
            };
            assert_eq!(&again, recorded, "{}", session["daemon"]);
            seen += 1;
        }
    }
    for message in rows(&load("wire-beacon-registry"), "messages") {
        let body = text(message, "body").as_bytes();
        let again = if text(message, "direction") == "beacon->registry" {
            Request::parse(body).unwrap().to_value()
        } else {
            answer(&parse_body(body).unwrap()).to_value()
        };
        let mut out = Vec::new();
        pilot_wire::frame::emit(&json::to_vec(&again), &mut out).unwrap();
        assert_eq!(hex(&out[..PREFIX_LEN]), text(message, "length_prefix_hex"));
        assert_eq!(&out[PREFIX_LEN..], body);
        seen += 1;
    }
    assert!(seen > 100);
}

#[test]
fn numbers_are_coerced_as_recorded() {
    for row in rows(&load("registry-validation"), "number_coercion") {
        let body = format!("{{\"n\":{}}}", text(row, "json"));
        let f = parse_body(body.as_bytes()).unwrap();
        assert_eq!(u64::from(f.u32("n")), number(row, "as_uint32"), "{row}");
        assert_eq!(u64::from(f.u16("n")), number(row, "as_uint16"), "{row}");
    }
    let f = parse_body(br#"{"a":2.9,"b":-2.9,"c":1e30,"d":-1e30,"e":9223372036854775808,"f":"1"}"#).unwrap();
    let all: Vec<Option<i64>> = ["a", "b", "c", "d", "e", "f"].iter().map(|n| f.i64(n)).collect();
    assert_eq!(all, [Some(2), Some(-2), Some(i64::MIN), Some(i64::MIN), Some(i64::MIN), None]);
}

#[test]
fn signatures_decode_as_leniently_as_recorded() {
    let signature = base64::encode(&[0xA7; 64]);
    assert_eq!(signature.len(), 88);
    for row in rows(&load("registry-validation"), "signature_encoding") {
        let form = match text(row, "form") {
            "standard base64, padded" => signature.clone(),
            "CR/LF inserted in the middle" => format!("{}\r\n{}", &signature[..40], &signature[40..]),
            // The last character before the padding carries two bits of data and four unused ones.
            "non-zero unused trailing bits" => {
                assert_eq!(&signature[85..], "w==");
                format!("{}x==", &signature[..85])
            }
            "padding removed" => signature.trim_end_matches('=').to_owned(),
            "URL-safe alphabet" => base64::encode(&[0xFB; 64]).replace('+', "-").replace('/', "_"),
            "space inserted" => format!("{} {}", &signature[..40], &signature[40..]),
            other => panic!("unknown form {other}"),
        };
        let decoded = base64::decode_array::<64>(&form);
        assert_eq!(decoded.is_some(), row["accepted"].as_bool().unwrap(), "{row}");
        if decoded.is_some() {
            assert_eq!(decoded, Some([0xA7; 64]), "{row}");
        }
    }
    assert_eq!(base64::decode(&"A".repeat(base64::MAX_TEXT + 4)), None);
}

#[test]
fn binary_frames_parse_and_re_encode() {
    let mut seen = 0;
    for row in rows(&load("drift-registry-binary"), "vectors") {
        let recorded = bytes(text(row, "hex"));
        let name = text(row, "name");
        if name == "connection preface" {
            assert_eq!(recorded, binary::PREFACE);
            continue;
        }
        let frame = Frame::parse(&recorded[PREFIX_LEN..]).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut out = Vec::new();
        frame.emit(&mut out).unwrap();
        assert_eq!(hex(&out), hex(&recorded), "{name}");
        match &frame {
            Frame::Heartbeat { node, signature } => assert_eq!((*node, *signature), (7, [0xAB; 64])),
            Frame::HeartbeatOk { unix, key_expiry_warning } => {
                assert_eq!((*unix, *key_expiry_warning), (number(row, "unix"), true));
            }
            Frame::LookupOk(lookup) => {
                assert_eq!(lookup.hostname, text(row, "hostname"));
                assert_eq!(lookup.addr, text(row, "real_addr"));
                assert_eq!((lookup.public, lookup.task), (true, false));
                assert_eq!(lookup.networks, [0, 5]);
                assert_eq!(lookup.tags, ["x", "yz"]);
            }
            Frame::ResolveOk { addr, lan, key_age_days, .. } => {
                assert_eq!(addr, text(row, "real_addr"));
                assert_eq!(lan, &["10.0.0.5:4000"]);
                assert_eq!(*key_age_days, None);
            }
            Frame::Error(message) => assert_eq!(message, text(row, "text")),
            Frame::Json(message) => assert_eq!(message, text(row, "json").as_bytes()),
            Frame::Lookup { node } => assert_eq!(*node, 7),
            Frame::Resolve { node, requester, .. } => assert_eq!((*node, *requester), (7, 9)),
            other => panic!("{other:?}"),
        }
        seen += 1;
    }
    assert_eq!(seen, 8);
}

#[test]
fn json_and_binary_connections_are_told_apart_by_their_first_bytes() {
    assert_eq!(binary::detect(b""), Detected::More);
    assert_eq!(binary::detect(b"PIL"), Detected::More);
    assert_eq!(binary::detect(b"PILT"), Detected::More);
    assert_eq!(binary::detect(b"PILT\x01rest"), Detected::Binary);
    assert_eq!(binary::detect(b"PILT\x02"), Detected::Unsupported(2));
    assert_eq!(binary::detect(&[0]), Detected::Json);
    assert_eq!(binary::detect(b"PIX"), Detected::Json);
}

#[test]
fn binary_lists_are_bounded() {
    let mut body = vec![0x83, 0, 0, 0, 7, 0, 0];
    body.extend(1025u16.to_be_bytes());
    assert_eq!(Frame::parse(&body), Err(binary::BinaryError::ListTooLong(1025)));
}

/// Requests about networks as official programs send them: 1.18.0's daemon (the first five) and command line, recorded.
#[test]
fn requests_about_networks_parse_as_official_programs_send_them() {
    use pilot_wire::registry::{Authority, NetworkChange, PolicyChange};
    let parse = |text: &str| Request::parse(text.as_bytes()).unwrap();
    let signature = || "AAAA".to_owned();
    let recorded = [
        (
            r#"{"inviter_id":0,"network_id":7,"node_id":1,"signature":"AAAA","token":"sekret","type":"join_network"}"#,
            Request::JoinNetwork { node: 1, network: 7, token: "sekret".into(), signature: signature() },
        ),
        (
            r#"{"network_id":7,"node_id":1,"signature":"AAAA","type":"leave_network"}"#,
            Request::LeaveNetwork { node: 1, network: 7, signature: signature() },
        ),
        (
            r#"{"inviter_id":1,"network_id":7,"signature":"AAAA","target_node_id":2,"type":"invite_to_network"}"#,
            Request::InviteToNetwork { inviter: 1, network: 7, target: 2, signature: signature() },
        ),
        (
            r#"{"node_id":1,"signature":"AAAA","type":"poll_invites"}"#,
            Request::PollInvites { node: 1, signature: signature() },
        ),
        (
            r#"{"accept":true,"network_id":7,"node_id":1,"signature":"AAAA","type":"respond_invite"}"#,
            Request::RespondInvite { node: 1, network: 7, accept: true, signature: signature() },
        ),
        (
            r#"{"network_id":7,"target_node_id":2,"type":"get_member_role"}"#,
            Request::GetMemberRole { network: 7, target: 2 },
        ),
    ];
    for (text, request) in recorded {
        assert_eq!(parse(text), request, "{text}");
    }
    let by = |node| Authority { node, admin_token: "tok".into(), ..Authority::default() };
    let policy =
        PolicyChange { allowed_ports: Some(vec![80, 443]), max_members: Some(5), description: Some("foo".into()) };
    let commands = [
        (
            r#"{"admin_token":"tok","join_rule":"token","name":"lab","node_id":0,"token":"sekret","type":"create_network"}"#,
            NetworkChange::Create { name: "lab".into(), join_rule: "token".into(), token: "sekret".into() },
        ),
        (
            r#"{"admin_token":"tok","network_id":7,"node_id":0,"target_node_id":2,"type":"kick_member"}"#,
            NetworkChange::Kick { network: 7, target: 2 },
        ),
        (
            r#"{"admin_token":"tok","network_id":7,"node_id":0,"target_node_id":2,"type":"promote_member"}"#,
            NetworkChange::Promote { network: 7, target: 2 },
        ),
        (
            r#"{"admin_token":"tok","network_id":7,"node_id":0,"target_node_id":2,"type":"demote_member"}"#,
            NetworkChange::Demote { network: 7, target: 2 },
        ),
        (r#"{"admin_token":"tok","network_id":7,"type":"delete_network"}"#, NetworkChange::Delete { network: 7 }),
        (
            r#"{"admin_token":"tok","name":"newname","network_id":7,"type":"rename_network"}"#,
            NetworkChange::Rename { network: 7, name: "newname".into() },
        ),
        (
            r#"{"admin_token":"tok","allowed_ports":[80,443],"description":"foo","max_members":5,"network_id":7,"type":"set_network_policy"}"#,
            NetworkChange::SetPolicy { network: 7, policy },
        ),
    ];
    for (text, change) in commands {
        assert_eq!(parse(text), Request::ChangeNetwork { by: by(0), change }, "{text}");
    }
}
