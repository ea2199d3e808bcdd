//! Events and tasks against the golden vectors: our command line with a February daemon that has a peer, bob (node 2).

#![allow(clippy::disallowed_methods)]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use pilot_wire::ipc::{Answer, Request};
use pilot_wire::json as pilot_json;
use pilot_wire::service::{events, tasks};
use serde_json::Value;
use support::{Handler, Place, cases, february, serve};

/// The February daemon, whose dials to ports 1002 and 1003 reach bob. `refuses` is bob's answer to a task.
fn with_bob(refuses: Option<&'static str>) -> Arc<Handler> {
    let plain = february(|_| None);
    let streams: Mutex<BTreeMap<u32, (u16, Vec<u8>)>> = Mutex::default();
    Arc::new(move |request, answer| match request {
        Request::Dial { remote } if matches!(remote.port, 1002 | 1003) => {
            let mut streams = streams.lock().unwrap();
            let conn = 1000 + streams.len() as u32;
            streams.insert(conn, (remote.port, Vec::new()));
            answer(Answer::DialOk { conn });
        }
        Request::Send { conn, data } if *conn >= 1000 => {
            let mut streams = streams.lock().unwrap();
            let (port, got) = streams.get_mut(conn).unwrap();
            got.extend_from_slice(data);
            match port {
                1002 => broker(got, |bytes| answer(Answer::Recv { conn: *conn, data: bytes })),
                _ => {
                    if let Some(reply) = worker(got, refuses) {
                        answer(Answer::Recv { conn: *conn, data: &reply });
                        answer(Answer::CloseOk { conn: *conn });
                    } else if tasks::Frame::parse(got).unwrap().is_some() {
                        answer(Answer::CloseOk { conn: *conn });
                    }
                }
            }
        }
        _ => plain(request, answer),
    })
}

/// Two events for a subscriber of `news` or everything; the subscription has no payload, as the official one.
fn broker(got: &mut Vec<u8>, mut send: impl FnMut(&[u8])) {
    let Some((frame, used)) = events::Frame::parse(got).unwrap() else { return };
    if frame.topic == b"news" || frame.topic == b"*" {
        assert!(frame.payload.is_empty() || frame.payload == b"n1 <x>", "{frame:?}");
        for payload in [&b"n1 <x>"[..], b"n2"] {
            let mut out = Vec::new();
            events::Frame { topic: b"news", payload }.emit(&mut out).unwrap();
            send(&out);
        }
    }
    got.drain(..used);
}

fn worker(got: &[u8], refuses: Option<&str>) -> Option<Vec<u8>> {
    let (frame, _) = tasks::Frame::parse(got).unwrap()?;
    if frame.kind != tasks::kind::SUBMIT {
        return None;
    }
    let submit = tasks::Submit::parse(frame.body).unwrap();
    assert_eq!((submit.from.as_str(), submit.to.as_str()), ("0:0000.0000.0001", "0:0000.0000.0002"));
    let (status, message) = refuses.map_or((200, "Task received with status NEW"), |why| (400, why));
    let response = tasks::Response { task_id: submit.task_id, status, message: message.into() };
    Some(tasks::Frame { kind: tasks::kind::SUBMIT, body: &response.emit() }.emit().unwrap())
}

/// The recorded case of this name.
fn case(name: &str) -> Value {
    let all = cases(include_str!("vectors/cli-json-commands.json"));
    all.into_iter().find(|case| case["name"] == name).unwrap_or_else(|| panic!("no case {name}"))
}

/// Runs a recorded case with `id` as its task; every byte must be as recorded, but for ids and times.
fn replay(place: &Place, name: &str, id: &str) {
    let case = case(name);
    let dir = place.dir.path().display().to_string();
    let here = |text: &str| text.replace("<task_id>", id).replace("<DIR>", &dir);
    let words: Vec<String> = case["argv"].as_array().unwrap().iter().map(|word| here(word.as_str().unwrap())).collect();
    let run = place.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(i64::from(run.code), case["exit_code"].as_i64().unwrap(), "{name}: {} {}", run.stdout, run.stderr);
    let lines = |text: &str| text.lines().map(|line| pilot_json::parse(line.as_bytes()).unwrap()).collect::<Vec<_>>();
    let (printed, expected) = match (&case["stdout_json"], &case["stdout_ndjson"], &case["stderr_json"]) {
        (Value::Null, Value::Array(lines), _) => (&run.stdout, lines.clone()),
        (Value::Null, _, Value::Null) => (&run.stdout, Vec::new()),
        (Value::Null, _, error) => (&run.stderr, vec![error.clone()]),
        (result, _, _) => (&run.stdout, vec![result.clone()]),
    };
    let expected: Vec<Value> =
        expected.iter().map(|value| serde_json::from_str(&here(&value.to_string())).unwrap()).collect();
    let mut got = lines(printed);
    assert_eq!(got.len(), expected.len(), "{name}: {printed}");
    for (got, expected) in got.iter_mut().zip(&expected) {
        alike(got, expected);
        assert_eq!(got, expected, "{name}");
    }
}

/// Puts the placeholder where the recording has one. The recording lists the task twice, after two submissions.
fn alike(got: &mut Value, expected: &Value) {
    match (got, expected) {
        (got, Value::String(text)) if text == "<rfc3339>" && got.is_string() => *got = expected.clone(),
        (Value::Object(got), Value::Object(expected)) => {
            // Keys of ours and of newer releases.
            got.retain(|key, _| expected.contains_key(key) || !matches!(key.as_str(), "cause" | "error"));
            for (key, value) in got.iter_mut() {
                alike(value, &expected[key]);
            }
        }
        (Value::Array(got), Value::Array(expected)) => {
            if let ([one], [_, _]) = (&got[..], &expected[..]) {
                let again = one.clone();
                got.push(again);
            }
            got.iter_mut().zip(expected).for_each(|(got, expected)| alike(got, expected));
        }
        _ => {}
    }
}

#[test]
fn events_are_those_of_the_official_tool() {
    let place = Place::new();
    serve(&place, with_bob(None));
    for name in [
        "publish bob news --data n1 <x>",
        "publish without --data",
        "subscribe bob news --count 2 --timeout 20s",
        "subscribe unbounded (NDJSON) until timeout",
        "subscribe timeout, no events",
        "subscribe unbounded timeout, no events",
    ] {
        replay(&place, name, "");
    }
    let run = place.run(&["subscribe", "bob", "news", "--count", "1", "--timeout", "20s"]);
    assert_eq!(run.stdout, "[news] n1 <x>\n");
    assert!(
        run.stderr.ends_with("subscribed to \"news\" on 0:0000.0000.0002 — waiting for events...\n"),
        "{}",
        run.stderr
    );
    let run = place.run(&["--json", "subscribe", "bob", "news", "--count", "1", "--since", "0", "--timeout", "20s"]);
    assert_eq!(run.code, 1, "an official broker has no replay: {}", run.stdout);
}

#[test]
fn tasks_are_those_of_the_official_tool() {
    let worker = Place::new();
    serve(&worker, with_bob(None));
    let id = "2e28d2e9-b3dc-87c4-fd09-d2cb9a2df6ec";
    let received = worker.home().join(".pilot/tasks/received");
    std::fs::create_dir_all(&received).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let file = |age: u64| tasks::TaskFile {
        task_id: id.into(),
        description: "summarise".into(),
        created_at: pilot_wire::time::rfc3339(std::time::Duration::from_secs(now.as_secs() - age)),
        status: "NEW".into(),
        justification: "A new task was created".into(),
        from: "0:0000.0000.0001".into(),
        to: "0:0000.0000.0002".into(),
        ..tasks::TaskFile::default()
    };
    let path = received.join(format!("{id}.json"));
    std::fs::write(&path, file(3600).emit()).unwrap();
    let late = worker.run(&["--json", "task", "accept", "--id", id]);
    assert!(late.stderr.contains("\"code\":\"expired\""), "{}", late.stderr);
    // Far enough in the future that a slow machine is not late.
    std::fs::write(
        &path,
        tasks::TaskFile { created_at: pilot_wire::time::rfc3339(now + std::time::Duration::from_secs(600)), ..file(0) }
            .emit(),
    )
    .unwrap();
    for (name, content) in [("r.go", "code"), ("r.zip", "zip"), ("r.txt", "result")] {
        std::fs::write(worker.dir.path().join(name), content).unwrap();
    }
    for name in [
        "task list (receiver)",
        "task list --type received",
        "task list --type bogus",
        "task execute (none accepted)",
        "task send-results wrong state",
        "task accept --id <task_id>",
        "task queue",
        "task execute",
        "task decline wrong state",
        "task send-results --id <task_id> --file <DIR>/r.go",
        "task send-results --id <task_id> --file <DIR>/r.zip",
        "task send-results --id <task_id> --file <DIR>/nope.txt",
        "task send-results --id <task_id> --file <DIR>/r.txt",
    ] {
        replay(&worker, name, id);
    }
    let text = std::fs::read(&path).unwrap();
    assert_eq!(tasks::TaskFile::parse(&text).unwrap().status, "SUCCEEDED");
    let outside = worker.run(&["--json", "task", "accept", "--id", "../../trust"]);
    assert!(outside.stderr.contains("task not found: ../../trust"), "{}", outside.stderr);

    let submitter = Place::new();
    serve(&submitter, with_bob(None));
    let submit = ["--json", "task", "submit", "bob", "--task", "summarise", "--id", id];
    let run = submitter.run(&submit);
    let expected = case("task submit bob --task summarise")["stdout_json"].to_string().replace("<task_id>", id);
    assert_eq!(run.stdout, format!("{}\n", pilot_json::to_string(&serde_json::from_str(&expected).unwrap())));
    replay(&submitter, "task submit without --task", id);
    replay(&submitter, "task list (submitter)", id);

    let poor = Place::new();
    serve(&poor, with_bob(Some("Polo score too low: submitter=-1, receiver=1")));
    let run = poor.run(&["--json", "task", "submit", "bob", "--task", "two", "--id", id]);
    let expected = case("task submit (score too low)")["stdout_json"].to_string().replace("<task_id>", id);
    assert_eq!(run.stdout, format!("{}\n", pilot_json::to_string(&serde_json::from_str(&expected).unwrap())));
    // A refused task leaves nothing behind.
    assert_eq!(poor.run(&["task", "list"]).stdout, "No tasks found\n");
}
