//! Messages, files, events and webhooks.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pilot_testkit::agent::Agent;
use serde_json::Value;

use super::{QUICK, SLOW, Side, data, eventually, our_tool};

/// Size of the files that are sent: several frames, and no multiple of anything.
const FILE: usize = 100_003;

/// Whether the list of an inbox has this text from this node. Daemons of ours store the bytes as base64 beside the text.
fn holds(inbox: &Value, from: &Agent, text: &str) -> bool {
    let encoded = STANDARD.encode(text);
    let messages = inbox["messages"].as_array();
    messages.into_iter().flatten().any(|message| {
        let said = ["data", "text", "preview"].iter().filter_map(|key| message[key].as_str());
        message["from"] == from.address() && said.into_iter().any(|said| said == text || said == encoded)
    })
}

pub(super) fn send_message(side: &Side<'_>) -> Result<()> {
    let text = format!("for node {} <&>", side.peer.node());
    let object = format!("{{\"for\":{}}}", side.peer.node());
    for (kind, payload, ack) in [("text", &text, "TEXT"), ("json", &object, "JSON")] {
        let args = ["send-message", side.peer.address(), "--data", payload, "--type", kind];
        let sent = side.ctl(SLOW, &args)?;
        ensure!(sent["ack"] == format!("ACK {ack} {} bytes", payload.len()), "{sent}");
        ensure!(sent["target"] == side.peer.address() && sent["bytes"] == payload.len(), "{sent}");
    }
    // Acknowledged means stored, so there is nothing to wait for.
    let inbox = our_tool(side.peer, &["inbox"])?;
    ensure!(holds(&inbox, side.me, &text) && holds(&inbox, side.me, &object), "{inbox}");
    Ok(())
}

pub(super) fn inbox(side: &Side<'_>) -> Result<()> {
    let text = format!("to be read by node {}", side.me.node());
    side.flip().ctl(SLOW, &["send-message", side.me.address(), "--data", &text])?;
    let inbox = side.ctl(QUICK, &["inbox"])?;
    ensure!(inbox["total"].as_u64() >= Some(1) && holds(&inbox, side.peer, &text), "{inbox}");
    let cleared = side.ctl(QUICK, &["inbox", "--clear"])?;
    ensure!(cleared["cleared"] == inbox["total"], "{cleared}");
    let inbox = side.ctl(QUICK, &["inbox"])?;
    ensure!(inbox["total"] == 0, "{inbox}");
    Ok(())
}

/// A file for this agent to send, and its content.
fn file(agent: &Agent) -> Result<(PathBuf, Vec<u8>)> {
    let seed = agent.node() as usize;
    let content: Vec<u8> = (0..FILE).map(|i| (i / 251 + i + seed) as u8).collect();
    let path = agent.home().join("sent.bin");
    std::fs::write(&path, &content)?;
    Ok((path, content))
}

/// Whether a list of received files has one of this content.
fn has_file(received: &Value, content: &[u8]) -> bool {
    let files = received["files"].as_array();
    files.into_iter().flatten().any(|file| {
        let path = file["path"].as_str().unwrap_or_default();
        file["bytes"] == FILE && std::fs::read(path).is_ok_and(|read| read == content)
    })
}

fn send_with(side: &Side<'_>, words: &[&str]) -> Result<()> {
    let (path, content) = file(side.me)?;
    let path = path.to_str().context("path")?;
    let sent = side.ctl(SLOW, &[words, &[side.peer.address(), path]].concat())?;
    ensure!(sent["bytes"] == FILE && sent["filename"] == "sent.bin", "{sent}");
    ensure!(sent["destination"] == side.peer.address(), "{sent}");
    ensure!(sent["verified"] == true || sent["ack"] == format!("ACK FILE {FILE} bytes"), "{sent}");
    let received = our_tool(side.peer, &["received"])?;
    ensure!(has_file(&received, &content), "{received}");
    Ok(())
}

pub(super) fn send_file(side: &Side<'_>) -> Result<()> {
    send_with(side, &["send-file"])
}

pub(super) fn data_send(side: &Side<'_>) -> Result<()> {
    send_with(side, &["data", "send"])
}

fn receive_with(side: &Side<'_>, words: &[&str]) -> Result<()> {
    let other = side.flip();
    let (path, content) = file(other.me)?;
    other.ctl(SLOW, &["send-file", side.me.address(), path.to_str().context("path")?])?;
    let received = side.ctl(QUICK, words)?;
    ensure!(has_file(&received, &content), "{received}");
    let cleared = side.ctl(QUICK, &[words, &["--clear"]].concat())?;
    ensure!(cleared["cleared"] == received["total"], "{cleared}");
    let received = side.ctl(QUICK, words)?;
    ensure!(received["total"] == 0, "{received}");
    Ok(())
}

pub(super) fn received(side: &Side<'_>) -> Result<()> {
    receive_with(side, &["received"])
}

pub(super) fn data_recv(side: &Side<'_>) -> Result<()> {
    receive_with(side, &["data", "recv"])
}

/// Whether the peer's broker has a subscription of this side: a stream on which something has arrived.
fn is_subscribed(side: &Side<'_>) -> Result<bool> {
    let answer = our_tool(side.peer, &["connections"])?;
    let connections = answer["connections"].as_array();
    Ok(connections.into_iter().flatten().any(|connection| {
        connection["local_port"] == 1002
            && connection["state"] == "ESTABLISHED"
            && connection["remote_addr"] == side.me.address()
            && connection["bytes_recv"].as_u64() > Some(0)
    }))
}

/// Runs a subscription while `publish` is called again and again, and gives the events.
///
/// Nothing is published before the subscription stands: 1.9.1 mixes up two streams to one port that its programs begin at
/// the same moment, whoever serves the port, and one of them ends at once.
fn events(
    side: &Side<'_>,
    args: &[&str],
    child: std::process::Child,
    mut publish: impl FnMut() -> Result<()>,
) -> Result<Value> {
    std::thread::scope(|scope| {
        let heard = scope.spawn(move || data(args, child, SLOW));
        let mut outcome = Ok(());
        while !heard.is_finished() {
            if outcome.is_ok() {
                outcome = is_subscribed(side).and_then(|stands| if stands { publish() } else { Ok(()) });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let events = heard.join().map_err(|_| anyhow::anyhow!("panicked"))?;
        outcome.and(events)
    })
}

fn check_events(answer: &Value, topic: &str) -> Result<()> {
    let events = answer["events"].as_array().context("events")?;
    ensure!(events.len() == 2 && answer["timeout"] == false, "{answer}");
    for event in events {
        ensure!(event["topic"] == topic && event["data"] == "it is <so>" && event["bytes"] == 10, "{answer}");
    }
    Ok(())
}

fn topic(side: &Side<'_>, word: &str) -> String {
    format!("{word}-{}", side.me.node())
}

fn subscribe_with(side: &Side<'_>, words: &[&str]) -> Result<()> {
    let topic = topic(side, "subscribe");
    let args = [words, &[side.peer.address(), &topic, "--count", "2", "--timeout", "50s"]].concat();
    let answer = events(side, &args, side.spawn(&args)?, || {
        our_tool(side.me, &["publish", side.peer.address(), &topic, "--data", "it is <so>"]).map(drop)
    })?;
    check_events(&answer, &topic)
}

pub(super) fn subscribe(side: &Side<'_>) -> Result<()> {
    subscribe_with(side, &["subscribe"])
}

pub(super) fn events_subscribe(side: &Side<'_>) -> Result<()> {
    subscribe_with(side, &["events", "subscribe"])
}

fn publish_with(side: &Side<'_>, words: &[&str]) -> Result<()> {
    let topic = topic(side, "publish");
    let args = ["--json", "subscribe", side.peer.address(), &topic, "--count", "2", "--timeout", "50s"];
    let child = super::with(side.me, &pilot_testkit::programs::ours().ctl, &args).spawn()?;
    let answer = events(side, &args, child, || {
        let published = side.ctl(SLOW, &[words, &[side.peer.address(), &topic, "--data", "it is <so>"]].concat())?;
        ensure!(published["topic"] == topic.as_str() && published["bytes"] == 10, "{published}");
        ensure!(published["target"] == side.peer.address(), "{published}");
        Ok(())
    })?;
    check_events(&answer, &topic)
}

pub(super) fn publish(side: &Side<'_>) -> Result<()> {
    publish_with(side, &["publish"])
}

pub(super) fn events_publish(side: &Side<'_>) -> Result<()> {
    publish_with(side, &["events", "publish"])
}

/// What was posted, after which the sender is told that it arrived.
fn posted(mut stream: TcpStream) -> Result<Value> {
    stream.set_read_timeout(Some(QUICK))?;
    let mut request = Vec::new();
    let mut part = [0; 4096];
    loop {
        let n = stream.read(&mut part)?;
        ensure!(n > 0, "the request ends early: {:?}", String::from_utf8_lossy(&request));
        request.extend_from_slice(&part[..n]);
        // The body is the last part, and one JSON object.
        let text = String::from_utf8_lossy(&request);
        let body = text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok());
        if let Some(body) = body {
            ensure!(text.starts_with("POST /hook HTTP/1.1\r\n"), "{text}");
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
            return Ok(body);
        }
    }
}

pub(super) fn set_webhook(side: &Side<'_>) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let url = format!("http://{}/hook", listener.local_addr()?);
    let (sender, events) = mpsc::channel();
    // It goes on until the test ends: official daemons wait for a receiver that is gone before they let it be cleared.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = sender.send(posted(stream));
        }
    });
    let answer = side.extra(SLOW, &["set-webhook", &url])?;
    ensure!(answer["webhook"] == url.as_str() && answer["applied"] == true, "{answer}");
    eventually(SLOW, "an event is posted", || {
        if let Ok(event) = events.try_recv() {
            let event = event?;
            ensure!(event["node_id"] == side.me.node() && event["event"].is_string(), "{event}");
            return Ok(true);
        }
        // Something that every release reports.
        our_tool(side.peer, &["send-message", side.me.address(), "--data", "something to report"])?;
        Ok(false)
    })
}

pub(super) fn clear_webhook(side: &Side<'_>) -> Result<()> {
    let answer = side.extra(SLOW, &["clear-webhook"])?;
    ensure!(answer["webhook"] == "" && answer["applied"] == true, "{answer}");
    Ok(())
}
