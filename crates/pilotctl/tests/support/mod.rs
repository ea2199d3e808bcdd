//! A daemon that answers as the February daemon of the vectors would, and a way to run `pilotctl` against it.

#![allow(dead_code, clippy::disallowed_types)] // Each test program uses its part; it plays real servers.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pilot_wire::frame::FrameDecoder;
use pilot_wire::ipc::{Answer, HandshakeCommand, Request};
use pilot_wire::json;
use serde_json::{Value, json};

/// What a run of the program left.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A home directory and a socket path of a test's own.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("pilot.sock")
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilotctl"));
        command.env_clear().env("HOME", self.home()).env("PILOT_SOCKET", self.socket()).env("TZ", "UTC");
        command
    }

    pub(crate) fn run(&self, argv: &[&str]) -> Run {
        self.run_with(argv, &[], None)
    }

    /// Runs with further variables and, if given, something piped in.
    pub(crate) fn run_with(&self, argv: &[&str], variables: &[(&str, &str)], stdin: Option<&[u8]>) -> Run {
        let mut command = self.command();
        command.args(argv).envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().unwrap();
        if let Some(data) = stdin {
            child.stdin.take().unwrap().write_all(data).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The commands this build has, by their first word.
pub(crate) fn commands() -> BTreeSet<String> {
    let help = Place::new().run(&["help"]).stdout;
    help.lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

/// Answers one request on one connection; called for every frame.
pub(crate) type Handler = dyn Fn(&Request<'_>, &mut dyn FnMut(Answer<'_>)) + Send + Sync;

/// A daemon on the place's socket, answering in threads until the test ends.
pub(crate) fn serve(place: &Place, handler: Arc<Handler>) {
    let listener = UnixListener::bind(place.socket()).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let handler = Arc::clone(&handler);
            std::thread::spawn(move || client_loop(client, &*handler));
        }
    });
}

fn client_loop(mut client: UnixStream, handler: &Handler) {
    let mut decoder = FrameDecoder::default();
    let mut chunk = vec![0; 64 * 1024];
    let mut write = client.try_clone().unwrap();
    while let Ok(n) = client.read(&mut chunk) {
        if n == 0 {
            return;
        }
        decoder.push(&chunk[..n]);
        while let Ok(Some(body)) = decoder.next_frame() {
            let mut send = |answer: Answer<'_>| {
                let mut out = Vec::new();
                answer.emit(&mut out).unwrap();
                let _ = write.write_all(&out);
            };
            match Request::parse(body) {
                Ok(request) => handler(&request, &mut send),
                // Ours asks for the extended socket first; a February daemon does not know that.
                Err(error) => send(Answer::error(error.to_string())),
            }
        }
    }
}

/// A registry on a free port of loopback that answers in threads until the test ends. Each request is an object, and so
/// is each answer.
pub(crate) fn registry(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                let mut decoder = FrameDecoder::default();
                let mut chunk = vec![0; 64 * 1024];
                while let Ok(n @ 1..) = client.read(&mut chunk) {
                    decoder.push(&chunk[..n]);
                    while let Ok(Some(body)) = decoder.next_frame() {
                        let mut out = Vec::new();
                        let text = json::to_vec(&answer(&json::parse(body).unwrap()));
                        pilot_wire::frame::emit(&text, &mut out).unwrap();
                        let _ = client.write_all(&out);
                    }
                }
            });
        }
    });
    address
}

/// The February registry with the nodes of the vectors; `case` is the name of the recording.
pub(crate) fn february_registry(case: &str) -> String {
    let case = case.to_owned();
    registry(move |request| {
        let node = request["node_id"].as_u64().unwrap_or(0);
        if request["type"] != "lookup" || node > 2 {
            return json!({"error": "request failed", "type": "error"});
        }
        let mut answer = json!({"address": format!("0:0000.0000.000{node}"), "networks": [0], "node_id": node,
            "polo_score": 0, "public": false, "public_key": "k", "type": "lookup_ok"});
        if node == 2 {
            answer["hostname"] = "bob".into();
        }
        if node == 1 {
            answer["hostname"] = "alice".into();
        }
        if case.contains("tags") {
            answer["tags"] = json!(["ml", "gpu", "x-1"]);
        }
        if case.contains("task_exec") {
            answer["task_exec"] = true.into();
        }
        if case.contains("public") {
            answer["public"] = true.into();
            answer["real_addr"] = "127.0.0.1:4001".into();
        }
        answer
    })
}

/// The status of node 1 in the vectors.
pub(crate) fn info() -> Value {
    json!({
        "address": "0:0000.0000.0001", "authenticated_peers": 0, "bytes_recv": 10, "bytes_sent": 20, "conn_list": [],
        "connections": 0, "encrypt": true, "encrypted_peers": 0, "hostname": "alice", "identity": true, "node_id": 1,
        "owner": "", "peer_list": [], "peers": 0, "pkts_recv": 1, "pkts_sent": 2, "ports": 5,
        "public_key": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "uptime_secs": 61
    })
}

/// The February daemon with two public nodes: 1 (alice, itself) and 2 (bob). Echo on 7, silence on 3100 to 3199, a peer
/// that closes without reply on 3000, everything else refused. `change` may replace the answer to a request.
pub(crate) fn february(change: impl Fn(&Request<'_>) -> Option<Value> + Send + Sync + 'static) -> Arc<Handler> {
    let ports: Mutex<Vec<u16>> = Mutex::default();
    Arc::new(move |request, answer| {
        let json_op = request.answer_opcode().unwrap_or(0);
        if let Some(value) = change(request) {
            match value.as_str() {
                Some(error) => answer(Answer::error(error)),
                None => answer(Answer::Json { op: json_op, body: &json::to_vec(&value) }),
            }
            return;
        }
        let mut reply = |value: Value| answer(Answer::Json { op: json_op, body: &json::to_vec(&value) });
        match request {
            Request::Info => reply(info()),
            Request::ResolveHostname { hostname } => match hostname.as_str() {
                name @ ("alice" | "bob") => {
                    let node = if name == "alice" { 1 } else { 2 };
                    let address = format!("0:0000.0000.000{node}");
                    reply(json!({"address": address, "hostname": name, "node_id": node, "public": node == 1,
                        "type": "resolve_hostname_ok"}));
                }
                _ => answer(Answer::error("resolve_hostname: registry: request failed")),
            },
            Request::SetHostname { hostname } => match hostname.as_str() {
                "bob" | "Bad_Name" | "localhost" => answer(Answer::error("set_hostname: registry: request failed")),
                _ => reply(json!({"hostname": hostname, "node_id": 1, "type": "set_hostname_ok"})),
            },
            Request::Handshake(command) => match command {
                HandshakeCommand::Request { node: 999, .. } => {
                    answer(Answer::error("handshake request: handshake relay: registry: request failed"));
                }
                HandshakeCommand::Request { node, .. } => reply(json!({"node_id": node, "status": "sent"})),
                HandshakeCommand::Approve { node } => reply(json!({"node_id": node, "status": "approved"})),
                HandshakeCommand::Reject { node, .. } => reply(json!({"node_id": node, "status": "rejected"})),
                HandshakeCommand::Pending => reply(json!({"pending": []})),
                HandshakeCommand::Trusted => reply(json!({"trusted": []})),
                HandshakeCommand::Revoke { node: 999 } => {
                    answer(Answer::error("handshake revoke: node 999 was not trusted"));
                }
                HandshakeCommand::Revoke { node } => reply(json!({"node_id": node, "status": "revoked"})),
                HandshakeCommand::Wait { .. } => answer(Answer::error("handshake: unknown sub-command 0x07")),
            },
            Request::Dial { remote } => match remote.port {
                7 | 1001 | 3000 | 3100..=3199 => {
                    let mut ports = ports.lock().unwrap();
                    ports.push(remote.port);
                    answer(Answer::DialOk { conn: ports.len() as u32 });
                }
                _ => answer(Answer::error("connection refused")),
            },
            Request::Send { conn, data } => match ports.lock().unwrap()[*conn as usize - 1] {
                // As the reference does: one frame per segment of at most 4096 bytes.
                7 => data.chunks(4096).for_each(|data| answer(Answer::Recv { conn: *conn, data })),
                3000 => answer(Answer::CloseOk { conn: *conn }),
                1001 => dataexchange(data, &mut |data| answer(Answer::Recv { conn: *conn, data })),
                _ => {}
            },
            Request::Close { conn } => {
                answer(Answer::CloseOk { conn: *conn });
                answer(Answer::CloseOk { conn: *conn });
            }
            Request::SetVisibility { public } => reply(json!({"node_id": 1, "type": "set_visibility_ok",
                "visibility": if *public { "public" } else { "private" }})),
            Request::SetTags { tags } if tags.iter().any(|tag| tag == "BAD") => {
                answer(Answer::error("set_tags: registry: request failed"));
            }
            Request::SetTags { tags } => {
                let tags: Vec<&str> = tags.iter().map(|tag| tag.trim_start_matches('#')).collect();
                let tags = if tags.is_empty() { Value::Null } else { json!(tags) };
                reply(json!({"node_id": 1, "tags": tags, "type": "set_tags_ok"}));
            }
            Request::SetWebhook { url } => reply(json!({ "webhook": url })),
            Request::SetTaskExec { enabled } => {
                reply(json!({"node_id": 1, "task_exec": enabled, "type": "set_task_exec_ok"}));
            }
            Request::Deregister => reply(json!({"type": "deregister_ok"})),
            Request::Bind { port: 7 } => answer(Answer::error("port 7 already bound")),
            Request::Bind { port } => answer(Answer::BindOk { port: *port }),
            other => answer(Answer::error(format!("unknown command: 0x{:02X}", other.opcode()))),
        }
    })
}

/// A receiver of February: it acknowledges everything. Frames of these tests come whole.
fn dataexchange(mut data: &[u8], answer: &mut dyn FnMut(&[u8])) {
    use pilot_wire::service::dataexchange::{self as dx, file::FileHead, reply};
    while let Some((head, rest)) = data.split_first_chunk() {
        let header = dx::Header::parse(*head);
        let (body, more) = rest.split_at(header.len as usize);
        let bytes = if header.kind == dx::FILE { FileHead::split(body).1.len() } else { body.len() };
        let known = matches!(header.kind, 1..=4);
        let ack = if known {
            reply::ack(header.kind, bytes as u64, false)
        } else {
            format!("ACK UNKNOWN({}) {bytes} bytes", header.kind)
        };
        answer(&dx::frame(dx::TEXT, &[ack.as_bytes()]).unwrap());
        data = more;
    }
}

/// What earlier cases of the recording have left in the mailbox.
pub(crate) fn prepare_mail(name: &str, place: &Place) {
    let write = |path: String, content: &str| {
        let path = place.home().join(".pilot").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    let empty = |dir: &str| std::fs::create_dir_all(place.home().join(".pilot").join(dir)).unwrap();
    match name {
        "inbox (with messages)" | "inbox --clear (n)" => {
            let messages = [
                ("BINARY", "biné"),
                ("JSON", "{\"k\":1}"),
                ("JSON", "{\"k\":1}"),
                ("TEXT", "hello bob"),
                ("TEXT", "hello bob"),
            ];
            for (i, (kind, data)) in messages.iter().enumerate() {
                let message = json!({"bytes": data.len(), "data": data, "from": "0:0000.0000.0001",
                    "received_at": "2026-02-27T10:11:12Z", "type": kind});
                write(format!("inbox/{kind}-20260227-101112.{i:03}.json"), &json::to_string(&message));
            }
        }
        "received (with files)" | "received --clear (n)" => {
            for i in 0..2 {
                write(format!("received/report-20260227-101112.{i:03}.pdf"), "%PDF-1.7\n");
            }
        }
        "inbox (empty dir)" | "inbox --clear (0)" => empty("inbox"),
        "received (empty dir)" | "received --clear (0)" => empty("received"),
        "send-file bob <DIR>/report.pdf" => write("../report.pdf".into(), "%PDF-1.7\n"),
        _ => {}
    }
}

/// What the daemon of the case says instead of what it says usually.
pub(crate) fn changed(name: &str, request: &Request<'_>) -> Option<Value> {
    let peer = json!({"authenticated": true, "encrypted": true, "endpoint": "127.0.0.1:4002", "node_id": 2});
    Some(match (name, request) {
        ("ping untrusted private peer" | "connect untrusted private peer", Request::Dial { .. }) => {
            json!("resolve node 2: registry: request failed")
        }
        ("pending", Request::Handshake(HandshakeCommand::Pending)) => json!({"pending": [
            {"justification": "let us talk", "node_id": 1, "public_key": "", "received_at": 1_770_000_000}]}),
        ("trust" | "trust after peer untrust", Request::Handshake(HandshakeCommand::Trusted)) => json!({"trusted": [
            {"approved_at": 1_770_000_000, "mutual": false, "network": 0, "node_id": 1, "public_key": ""}]}),
        ("trust (requester side)", Request::Handshake(HandshakeCommand::Trusted)) => json!({"trusted": [
            {"approved_at": 1_770_000_000, "mutual": true, "network": 0, "node_id": 2, "public_key": "k"}]}),
        ("peers" | "peers --search 2" | "peers --search zzz", Request::Info) => {
            let mut info = info();
            info["peer_list"] = json!([peer]);
            info
        }
        ("info (fresh node, no peers)", Request::Info) => {
            let mut info = info();
            for (key, value) in
                [("address", json!("0:0000.0000.0002")), ("hostname", json!("bob")), ("node_id", json!(2))]
            {
                info[key] = value;
            }
            info
        }
        _ => return None,
    })
}

/// The cases of a vector file.
pub(crate) fn cases(text: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(text).unwrap();
    file["cases"].as_array().unwrap().clone()
}

/// The words of a recorded command line, with the places of this test.
pub(crate) fn argv(case: &Value, place: &Place) -> Vec<String> {
    let words = case["argv"].as_array().unwrap();
    words.iter().map(|word| here(word.as_str().unwrap(), place)).collect()
}

/// A recorded text with the places of this test.
pub(crate) fn here(text: &str, place: &Place) -> String {
    let mut text = text.replace("34.71.57.205:9000", "127.0.0.1:9000");
    text = text.replace("<DIR>", place.home().to_str().unwrap());
    for node in ["A", "B", "N"] {
        text = text.replace(&format!("<HOME_{node}>"), place.home().to_str().unwrap());
        text = text.replace(&format!("<SOCKET_{node}>"), place.socket().to_str().unwrap());
    }
    text
}

/// Waits for a condition that other threads or processes bring about.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not within 30 s: {what}");
}

/// Whether a path exists, dead links included.
pub(crate) fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}
