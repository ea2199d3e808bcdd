//! The extension of the local socket: the frames printed in `docs/spec/local-socket.md`, byte for byte.

use pilot_wire::frame::PREFIX_LEN;
use pilot_wire::ipc::ext::{
    ClientFrame, DaemonFrame, ExtError, Limits, MAX_DATA, MAX_JSON, MAX_METHOD, Opened, Problem, code,
};
use pilot_wire::ipc::{Request, RequestError};
use serde_json::json;

use super::{bytes, hex};

fn peer() -> pilot_wire::SocketAddress {
    "0:0000.0000.0002:1000".parse().unwrap()
}

fn client(frame: &ClientFrame<'_>, wanted: &str) {
    let mut out = Vec::new();
    frame.emit(&mut out).unwrap();
    assert_eq!(hex(&out), wanted.replace(' ', ""), "{frame:?}");
    assert_eq!(ClientFrame::parse(&out[PREFIX_LEN..]).as_ref(), Ok(frame));
}

fn daemon(frame: &DaemonFrame<'_>, wanted: &str) {
    let mut out = Vec::new();
    frame.emit(&mut out).unwrap();
    assert_eq!(hex(&out), wanted.replace(' ', ""), "{frame:?}");
    assert_eq!(DaemonFrame::parse(&out[PREFIX_LEN..]).as_ref(), Ok(frame));
}

#[test]
fn every_frame_of_a_client_has_the_bytes_of_the_specification() {
    client(
        &ClientFrame::Greet { version: 1, credit: 65_536, about: br#"{"client":"x"}"# },
        "00000015 80 0001 00010000 7b22636c69656e74223a2278227d",
    );
    client(
        &ClientFrame::Bind { request: 1, port: 2000, backlog: 64, datagrams: true },
        "0000000a 81 00000001 07d0 0040 01",
    );
    client(&ClientFrame::Unbind { request: 2, port: 2000 }, "00000007 82 00000002 07d0");
    client(&ClientFrame::Accept { request: 3, port: 2000 }, "00000007 83 00000003 07d0");
    client(
        &ClientFrame::Dial { request: 4, remote: peer(), timeout_ms: 5000 },
        "00000011 84 00000004 000000000002 03e8 00001388",
    );
    client(&ClientFrame::Cancel { request: 4 }, "00000005 85 00000004");
    client(
        &ClientFrame::SendDatagram { request: 5, port: 0, to: peer(), data: b"dg" },
        "00000011 86 00000005 0000 000000000002 03e8 6467",
    );
    client(
        &ClientFrame::Call { request: 6, method: "health", params: b"{}" },
        "0000000e 87 00000006 06 6865616c7468 7b7d",
    );
    client(&ClientFrame::Open { request: 7, method: "events", params: b"" }, "0000000c 88 00000007 06 6576656e7473");
    client(&ClientFrame::Data { stream: 9, data: b"hello" }, "0000000a 90 00000009 68656c6c6f");
    client(&ClientFrame::Credit { stream: 9, bytes: 65_536 }, "00000009 91 00000009 00010000");
    client(&ClientFrame::Finish { request: 8, stream: 9, both: false }, "0000000a 92 00000008 00000009 00");
    client(&ClientFrame::Finish { request: 8, stream: 9, both: true }, "0000000a 92 00000008 00000009 01");
    client(&ClientFrame::Close { stream: 9 }, "00000005 93 00000009");
    client(&ClientFrame::Reset { stream: 9 }, "00000005 94 00000009");
}

#[test]
fn every_frame_of_the_daemon_has_the_bytes_of_the_specification() {
    daemon(&DaemonFrame::Greeting { version: 1, credit: 65_536, about: b"{}" }, "00000009 c0 0001 00010000 7b7d");
    daemon(&DaemonFrame::Done { request: 1 }, "00000005 c1 00000001");
    daemon(
        &DaemonFrame::Failed { request: 3, problem: Problem::new(code::CANCELLED, "x") },
        "00000027 c2 00000003 7b22636f6465223a2263616e63656c6c6564222c226d657373616765223a2278227d",
    );
    let opened = Opened { stream: 9, conn: 31, local_port: 2000, remote: "0:0000.0000.0003:49154".parse().unwrap() };
    daemon(
        &DaemonFrame::Opened { request: 3, opened, about: b"" },
        "00000017 c3 00000003 00000009 0000001f 07d0 000000000003 c002",
    );
    daemon(&DaemonFrame::Result { request: 6, body: b"{}" }, "00000007 c4 00000006 7b7d");
    daemon(
        &DaemonFrame::Datagram { port: 5000, from: peer(), missed: 2, data: b"dg" },
        "00000011 c5 1388 000000000002 03e8 00000002 6467",
    );
    daemon(&DaemonFrame::Received { stream: 9, data: b"world!" }, "0000000b d0 00000009 776f726c6421");
    daemon(&DaemonFrame::Granted { stream: 9, bytes: 65_536 }, "00000009 d1 00000009 00010000");
    daemon(&DaemonFrame::Finished { stream: 9 }, "00000005 d2 00000009");
    let clean = || Problem::new(code::CLEAN, "x");
    daemon(
        &DaemonFrame::Stopped { stream: 9, delivered: 5, problem: clean() },
        "0000002b d3 00000009 0000000000000005 7b22636f6465223a22636c65616e222c226d657373616765223a2278227d",
    );
    daemon(
        &DaemonFrame::Closed { stream: 9, delivered: 5, problem: clean() },
        "0000002b d4 00000009 0000000000000005 7b22636f6465223a22636c65616e222c226d657373616765223a2278227d",
    );
}

#[test]
fn a_broken_frame_says_which_request_it_belongs_to() {
    let short = |op, request| Err(ExtError::Short { op, request });
    assert_eq!(ClientFrame::parse(&bytes("81")), short(0x81, None));
    assert_eq!(ClientFrame::parse(&bytes("8100000007")), short(0x81, Some(7)));
    assert_eq!(ClientFrame::parse(&bytes("810000000707d00040")), short(0x81, Some(7)));
    assert_eq!(ClientFrame::parse(&bytes("900000")), short(0x90, None));
    // A name that reaches behind the end of the frame.
    assert_eq!(ClientFrame::parse(&bytes("87000000070561")), short(0x87, Some(7)));
    for name in ["", "A", "a b", "a\0", "\u{e9}"] {
        let frame = [&bytes("8700000007")[..], &[name.len() as u8], name.as_bytes()].concat();
        assert_eq!(ClientFrame::parse(&frame).unwrap_err().request(), Some(7), "{name:?}");
    }
    let long = "m".repeat(MAX_METHOD);
    for (name, valid) in [(&long[..], true), (&format!("{long}m"), false)] {
        let mut out = Vec::new();
        ClientFrame::Call { request: 1, method: name, params: b"" }.emit(&mut out).unwrap();
        assert_eq!(ClientFrame::parse(&out[PREFIX_LEN..]).is_ok(), valid);
    }
    for zero in ["85 00000000", "81 00000000 07d0 0040 01", "92 00000000 00000001", "80 0000 00000000"] {
        let error = ClientFrame::parse(&bytes(&zero.replace(' ', ""))).unwrap_err();
        assert!(matches!(error, ExtError::Invalid { request: None, .. }), "{zero}: {error}");
    }
    for problem in ["", "null", "[]", "{"] {
        let frame = [&bytes("c200000007")[..], problem.as_bytes()].concat();
        assert!(matches!(DaemonFrame::parse(&frame), Err(ExtError::Invalid { op: 0xC2, .. })), "{problem}");
    }
    assert_eq!(ClientFrame::parse(&[]), Err(ExtError::Empty));
    assert_eq!(ClientFrame::parse(&[0xC0]), Err(ExtError::Unknown(0xC0)));
    assert_eq!(DaemonFrame::parse(&[0x80]), Err(ExtError::Unknown(0x80)));
}

#[test]
fn an_older_daemon_refuses_every_frame_of_the_extension_by_its_opcode() {
    for opcode in 0x80..=0xFFu8 {
        assert_eq!(Request::parse(&[opcode, 0, 1, 2, 3]), Err(RequestError::UnknownCommand(opcode)));
    }
    assert_eq!(RequestError::UnknownCommand(0x80).to_string(), "unknown command: 0x80");
}

#[test]
fn limits_and_problems_survive_their_json() {
    let limits = Limits { requests: 1, streams: 2, ports: 3, call: 4, datagrams: 5 };
    assert_eq!(Limits::from_json(&json!({ "limits": limits.to_json() })), limits);
    assert_eq!(Limits::from_json(&json!({})), Limits::default());
    assert_eq!(Limits::from_json(&json!({"limits": {"call": -1, "streams": 1_u64 << 40}})).streams, u32::MAX);
    let problem = Problem::new("port_in_use", "port 7 <\u{2028}>").hint("choose \"another\"");
    let mut out = Vec::new();
    DaemonFrame::Failed { request: 1, problem: problem.clone() }.emit(&mut out).unwrap();
    let parsed = DaemonFrame::parse(&out[PREFIX_LEN..]);
    assert_eq!(parsed, Ok(DaemonFrame::Failed { request: 1, problem }));
}

#[test]
fn received_data_is_framed_in_place_and_nothing_is_no_frame() {
    let mut out = b"before".to_vec();
    DaemonFrame::emit_received(9, 100, &mut out, |room| {
        assert_eq!(room.len(), 100);
        room[..3].copy_from_slice(b"abc");
        3
    });
    assert_eq!(hex(&out[6..]), "00000008d000000009616263");
    DaemonFrame::emit_received(9, 100, &mut out, |_| 0);
    DaemonFrame::emit_received(9, usize::MAX, &mut out, |room| {
        assert_eq!(room.len(), MAX_DATA);
        0
    });
    assert_eq!(out.len(), 6 + 12);
}

#[test]
fn the_longest_call_and_result_fit_a_frame() {
    let params = vec![b' '; MAX_JSON];
    let method = "m".repeat(MAX_METHOD);
    let mut out = Vec::new();
    ClientFrame::Call { request: 1, method: &method, params: &params }.emit(&mut out).unwrap();
    DaemonFrame::Result { request: 1, body: &params }.emit(&mut out).unwrap();
    DaemonFrame::Opened { request: 1, opened: Opened::default(), about: &params }.emit(&mut out).unwrap();
}
