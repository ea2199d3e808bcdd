//! What each command exchanges with the daemon, frame by frame: golden vectors.

#![allow(clippy::disallowed_methods)]

#[path = "../../pilot-testkit/tests/support/compatibility.rs"]
mod compatibility;
mod support;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use pilot_wire::frame::{self, FrameDecoder};
use pilot_wire::json as pilot_json;
use serde_json::Value;
use support::{Place, commands};

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The bytes of a recorded reply; volatile values are made up.
fn body(frame: &Value) -> Vec<u8> {
    if let Some(hex) = frame["hex"].as_str() {
        return unhex(hex);
    }
    let op = u8::from_str_radix(frame["cmd"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    let mut json = frame["json"].clone();
    for (_, value) in json.as_object_mut().unwrap() {
        if matches!(value.as_str(), Some("<int>" | "<number>")) {
            *value = 1.into();
        }
    }
    [&[op][..], &pilot_json::to_vec(&json)].concat()
}

#[derive(Default)]
struct Script {
    frames: VecDeque<Value>,
    wrong: Vec<String>,
}

fn client(mut socket: UnixStream, script: &Mutex<Script>) {
    let mut decoder = FrameDecoder::default();
    let mut chunk = vec![0; 4096];
    while let Ok(n) = socket.read(&mut chunk) {
        if n == 0 {
            return;
        }
        decoder.push(&chunk[..n]);
        while let Ok(Some(got)) = decoder.next_frame() {
            let mut script = script.lock().unwrap();
            // Ours asks for more: a port to be freed (a February daemon does not know that), by which way a peer is
            // reached, and for the port it listens on for datagrams.
            let next = script.frames.front().and_then(|frame| frame["hex"].as_str()).map(unhex);
            let unknown = format!("\x0a\0\x01unknown command: 0x{:02X}", got.first().copied().unwrap_or(0));
            let extra: Option<&[u8]> = match got.first() {
                // The extended local socket, asked for first.
                Some(0x80..) => Some(unknown.as_bytes()),
                Some(0x37) => Some(b"\x0a\x00\x01unknown command: 0x37"),
                Some(0x0d) if next.as_deref() != Some(got) => Some(b"\x0e{}"),
                Some(0x01) if next.as_deref() != Some(got) => Some(b"\x02\x23\x28"),
                _ => None,
            };
            if let Some(answer) = extra {
                let mut out = Vec::new();
                frame::emit(answer, &mut out).unwrap();
                let _ = socket.write_all(&out);
                continue;
            }
            match script.frames.pop_front() {
                Some(expected) if expected["dir"] == "request" && unhex(expected["hex"].as_str().unwrap()) == got => {}
                other => script.wrong.push(format!("{got:02x?} instead of {other:?}")),
            }
            while script.frames.front().is_some_and(|next| next["dir"] == "reply") {
                let mut out = Vec::new();
                frame::emit(&body(&script.frames.pop_front().unwrap()), &mut out).unwrap();
                let _ = socket.write_all(&out);
            }
        }
    }
}

#[test]
fn every_command_sends_the_frames_of_the_official_tool() {
    let known = commands();
    let file: Value = serde_json::from_str(include_str!("vectors/cli-ipc-trace.json")).unwrap();
    let mut checked = 0;
    let mut different = std::collections::BTreeSet::new();
    for trace in file["traces"].as_array().unwrap() {
        let argv: Vec<&str> = trace["argv"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let frames: VecDeque<Value> = trace["frames"].as_array().unwrap().iter().cloned().collect();
        let local = frames.iter().all(|frame| frame.get("cmd").is_some());
        // The official `disconnect` never returned, and `gateway map` did not ask the gateway that runs.
        if matches!(argv[0], "send-message" | "send-file" | "gateway") || !trace["exit_code"].is_i64() {
            different.insert(argv.join(" "));
        }
        // A task has a random id, and messages and files begin with the question what the peer understands; what they
        // exchange is tested with real daemons.
        if !known.contains(argv[0]) || !local || matches!(argv[0], "task" | "send-message" | "send-file" | "gateway") {
            continue;
        }
        let place = Place::new();
        let script = Arc::new(Mutex::new(Script { frames, wrong: Vec::new() }));
        let listener = UnixListener::bind(place.socket()).unwrap();
        std::thread::spawn({
            let script = Arc::clone(&script);
            move || {
                for socket in listener.incoming().flatten() {
                    let script = Arc::clone(&script);
                    std::thread::spawn(move || client(socket, &script));
                }
            }
        });
        let run = place.run(&argv);
        let code = trace["exit_code"].as_i64().unwrap_or(0);
        assert_eq!(i64::from(run.code), code, "{argv:?}: {}", run.stderr);
        let script = script.lock().unwrap();
        assert!(
            script.wrong.is_empty() && script.frames.is_empty(),
            "{argv:?}: {:?}, left {:?}",
            script.wrong,
            script.frames
        );
        checked += 1;
    }
    assert!(checked >= 18, "only {checked} traces");
    compatibility::check("cli-ipc-trace", different);
}
