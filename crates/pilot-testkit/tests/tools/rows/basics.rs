//! Commands about the node, its names, its trust and its plain streams and datagrams.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pilot_testkit::agent::Agent;

use super::{QUICK, SLOW, Side, TRUST, data, eventually, lists, our_tool};

pub(super) fn version(side: &Side<'_>) -> Result<()> {
    // The official tool prints the bare number, in JSON mode too.
    let output = side.me.run(&["version"])?;
    ensure!(output.status.success() && !output.stdout.trim().is_empty(), "{output:?}");
    Ok(())
}

pub(super) fn context(side: &Side<'_>) -> Result<()> {
    let context = side.ctl(QUICK, &["context"])?;
    ensure!(context["commands"]["info"].is_object(), "{context}");
    Ok(())
}

pub(super) fn config(side: &Side<'_>) -> Result<()> {
    let config = side.ctl(QUICK, &["config"])?;
    ensure!(config["socket"] == side.me.socket().to_string_lossy().as_ref(), "{config}");
    Ok(())
}

pub(super) fn daemon_status(side: &Side<'_>) -> Result<()> {
    let status = side.ctl(QUICK, &["daemon", "status"])?;
    ensure!(status["responsive"] == true && status["node_id"] == side.me.node(), "{status}");
    Ok(())
}

pub(super) fn info(side: &Side<'_>) -> Result<()> {
    let info = side.ctl(QUICK, &["info"])?;
    ensure!(info["node_id"] == side.me.node() && info["address"] == side.me.address(), "{info}");
    ensure!(info["conn_list"].is_array() && info["public_key"].is_string(), "{info}");
    Ok(())
}

pub(super) fn health(side: &Side<'_>) -> Result<()> {
    let health = side.ctl(QUICK, &["health"])?;
    ensure!(health["status"] == "ok" && health["uptime_seconds"].is_number(), "{health}");
    Ok(())
}

fn hostname(agent: &Agent) -> Result<String> {
    let info = agent.ctl(&["info"])?;
    Ok(info["hostname"].as_str().context("hostname")?.to_owned())
}

pub(super) fn find(side: &Side<'_>) -> Result<()> {
    let found = side.ctl(SLOW, &["find", &hostname(side.peer)?])?;
    ensure!(found["address"] == side.peer.address() && found["public"] == true, "{found}");
    Ok(())
}

pub(super) fn lookup(side: &Side<'_>) -> Result<()> {
    let node = side.ctl(SLOW, &["lookup", &side.peer.node_text()])?;
    ensure!(node["address"] == side.peer.address() && node["public_key"].is_string(), "{node}");
    Ok(())
}

pub(super) fn lookup_name(side: &Side<'_>) -> Result<()> {
    let node = side.ctl(SLOW, &["lookup", &hostname(side.peer)?])?;
    ensure!(node["node_id"] == side.peer.node(), "{node}");
    Ok(())
}

/// Beside an official daemon ours registers the same key once more; where one of ours holds the identity it refuses.
pub(super) fn register(side: &Side<'_>) -> Result<()> {
    // Asked with our tool: newer official ones do not show it.
    let known = side.asking.ctl(&["lookup", &side.me.node_text()])?;
    let node = side.ctl(SLOW, &["register", known["real_addr"].as_str().context("real_addr")?])?;
    ensure!(node["node_id"] == side.me.node(), "{node}");
    Ok(())
}

pub(super) fn set_public(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["set-public"])?;
    ensure!(answer["visibility"] == "public", "{answer}");
    Ok(())
}

pub(super) fn set_private(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["set-private"])?;
    ensure!(answer["visibility"] == "private", "{answer}");
    set_public(side)
}

pub(super) fn set_tags(side: &Side<'_>) -> Result<()> {
    let answer = side.extra(SLOW, &["set-tags", "ml", "#gpu"])?;
    ensure!(answer["tags"] == serde_json::json!(["ml", "gpu"]), "{answer}");
    Ok(())
}

pub(super) fn clear_tags(side: &Side<'_>) -> Result<()> {
    let answer = side.extra(SLOW, &["clear-tags"])?;
    ensure!(answer["tags"] == serde_json::json!([]), "{answer}");
    Ok(())
}

pub(super) fn clear_hostname(side: &Side<'_>) -> Result<()> {
    let answer = side.extra(SLOW, &["clear-hostname"])?;
    ensure!(answer["hostname"] == "", "{answer}");
    Ok(())
}

pub(super) fn set_hostname(side: &Side<'_>) -> Result<()> {
    let name = format!("renamed-{}", side.me.node());
    let answer = side.ctl(SLOW, &["set-hostname", &name])?;
    ensure!(answer["hostname"] == name.as_str(), "{answer}");
    ensure!(hostname(side.me)? == name, "the daemon does not show the new name");
    Ok(())
}

/// The tool under test asks for trust, and is granted it.
pub(super) fn handshake(side: &Side<'_>) -> Result<()> {
    let asked = side.asked;
    let answer = side.ctl(SLOW, &["handshake", &asked.node_text(), "let us talk"])?;
    ensure!(answer["node_id"] == asked.node() && answer["status"] == "sent", "{answer}");
    eventually(TRUST, "the request arrives", || {
        Ok(lists(&asked.ctl(&["pending"])?["pending"], side.me.node()) || asked.trusts(side.me.node())?)
    })?;
    if !asked.trusts(side.me.node())? {
        asked.ctl(&["approve", &side.me.node_text()])?;
    }
    eventually(TRUST, "trust on both sides", || Ok(side.me.trusts(asked.node())? && asked.trusts(side.me.node())?))
}

/// Somebody asks for trust, and the tool under test sees it.
pub(super) fn pending(side: &Side<'_>) -> Result<()> {
    side.asking.ctl(&["handshake", &side.me.node_text(), "it is me"])?;
    eventually(TRUST, "the request is seen", || {
        let answer = side.ctl(QUICK, &["pending"])?;
        Ok(lists(&answer["pending"], side.asking.node()))
    })
}

/// And grants it.
pub(super) fn approve(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["approve", &side.asking.node_text()])?;
    ensure!(answer["node_id"] == side.asking.node() && answer["status"] == "approved", "{answer}");
    eventually(TRUST, "trust on both sides", || {
        Ok(side.me.trusts(side.asking.node())? && side.asking.trusts(side.me.node())?)
    })
}

pub(super) fn trust(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(QUICK, &["trust"])?;
    ensure!(lists(&answer["trusted"], side.peer.node()), "{answer}");
    Ok(())
}

pub(super) fn ping(side: &Side<'_>) -> Result<()> {
    let ping = side.ctl(SLOW, &["ping", side.peer.address(), "--count", "1"])?;
    ensure!(ping["results"][0]["bytes"] == 6 && ping["timeout"] == false, "{ping}");
    Ok(())
}

pub(super) fn traceroute(side: &Side<'_>) -> Result<()> {
    let trace = side.ctl(SLOW, &["traceroute", side.peer.address()])?;
    let samples = trace["rtt_samples"].as_array().context("rtt_samples")?;
    ensure!(samples.len() == 3 && samples.iter().all(|sample| sample["bytes"] == 7), "{trace}");
    Ok(())
}

pub(super) fn bench(side: &Side<'_>) -> Result<()> {
    let bench = side.ctl(SLOW, &["bench", side.peer.address(), "0.2"])?;
    ensure!(bench["sent_bytes"] == bench["recv_bytes"] && bench["recv_bytes"] == 209_715, "{bench}");
    Ok(())
}

pub(super) fn connect(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["connect", side.peer.address(), "7", "--message", "hello <&>"])?;
    ensure!(answer["response"] == "hello <&>", "{answer}");
    Ok(())
}

pub(super) fn send(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["send", &side.peer.node_text(), "7", "--data", "hello"])?;
    ensure!(answer["response"] == "hello" && answer["port"] == 7, "{answer}");
    Ok(())
}

pub(super) fn recv(side: &Side<'_>) -> Result<()> {
    let args = ["recv", "3000", "--count", "1", "--timeout", "50s"];
    let child = side.spawn(&args)?;
    let other = side.flip();
    // The port may not be bound yet; and whether the sender gets an answer is not the question.
    let sent = std::thread::scope(|scope| {
        let heard = scope.spawn(move || data(&args, child, SLOW));
        while !heard.is_finished() {
            let _ = other.ctl(SLOW, &["send", side.me.address(), "3000", "--data", "for you", "--timeout", "1s"]);
            std::thread::sleep(Duration::from_millis(100));
        }
        heard.join()
    });
    let answer = sent.map_err(|_| anyhow::anyhow!("panicked"))??;
    ensure!(answer["messages"][0]["data"] == "for you" && answer["timeout"] == false, "{answer}");
    Ok(())
}

pub(super) fn dgram(side: &Side<'_>) -> Result<()> {
    let answer = side.extra(SLOW, &["dgram", side.peer.address(), "5000", "--data", "quick"])?;
    ensure!(answer["bytes"] == 5 && answer["port"] == 5000, "{answer}");
    Ok(())
}

pub(super) fn listen(side: &Side<'_>) -> Result<()> {
    let args = ["listen", "5001", "--count", "1", "--timeout", "50s"];
    let args = if side.is_old() || side.tool == "ours" { args.to_vec() } else { [&["extras"], &args[..]].concat() };
    let child = side.spawn(&args)?;
    let other = side.flip();
    let heard = std::thread::scope(|scope| {
        let args = &args;
        let heard = scope.spawn(move || data(args, child, SLOW));
        // Datagrams get lost, and the tool may not listen yet.
        while !heard.is_finished() {
            datagram(&other, side.me, "for you");
            std::thread::sleep(Duration::from_millis(100));
        }
        heard.join()
    });
    let answer = heard.map_err(|_| anyhow::anyhow!("panicked"))??;
    ensure!(answer["messages"][0]["data"] == "for you" && answer["timeout"] == false, "{answer}");
    Ok(())
}

/// A datagram to port 5001 by whichever tool can: the oldest official ones cannot send any.
fn datagram(side: &Side<'_>, to: &Agent, text: &str) {
    let args = ["dgram", to.address(), "5001", "--data", text];
    // It may get lost, and the port may not be bound yet.
    let _ = if side.is_old() { our_tool(side.me, &args) } else { side.extra(SLOW, &args) };
}

pub(super) fn peers(side: &Side<'_>) -> Result<()> {
    let peers = side.ctl(QUICK, &["peers"])?;
    ensure!(lists(&peers["peers"], side.peer.node()) && peers["total"].as_u64() >= Some(1), "{peers}");
    Ok(())
}

pub(super) fn prefer_direct(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(QUICK, &["prefer-direct", &side.peer.node_text()])?;
    ensure!(answer["node_id"] == side.peer.node() && answer["had_tunnel"].is_boolean(), "{answer}");
    // The path is found again.
    ping(side)
}

pub(super) fn connections(side: &Side<'_>) -> Result<()> {
    let answer = side.extra(QUICK, &["connections"])?;
    ensure!(answer["connections"].is_array() && answer["total"].is_number(), "{answer}");
    Ok(())
}

pub(super) fn disconnect(side: &Side<'_>) -> Result<()> {
    // An id that nobody has is enough: every daemon confirms it (03 §6.6).
    let answer = side.extra(Duration::from_secs(10), &["disconnect", "4000000"])?;
    ensure!(answer["conn_id"] == 4_000_000, "{answer}");
    Ok(())
}

pub(super) fn untrust(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["untrust", &side.asked.node_text()])?;
    ensure!(answer["node_id"] == side.asked.node(), "{answer}");
    ensure!(!side.me.trusts(side.asked.node())?, "still trusted");
    Ok(())
}

pub(super) fn reject(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["reject", "999", "no reason"])?;
    ensure!(answer["node_id"] == 999 && answer["status"] == "rejected", "{answer}");
    Ok(())
}

pub(super) fn rotate_key_with_arguments(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["rotate-key", &side.me.node_text(), "me@example.com"])?;
    ensure!(answer["node_id"] == side.me.node(), "{answer}");
    Ok(())
}

/// The daemon goes on under the new key, and its peer follows.
pub(super) fn rotate_key(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["rotate-key"])?;
    ensure!(answer["node_id"] == side.me.node() && answer["public_key"].is_string(), "{answer}");
    // 1.18.0 shows the former key for a moment.
    eventually(QUICK, "the daemon shows its new key", || {
        Ok(our_tool(side.me, &["info"])?["public_key"] == answer["public_key"])
    })?;
    ping(side)
}

pub(super) fn sign_request(side: &Side<'_>) -> Result<()> {
    let signed = side.ctl(QUICK, &["sign-request", "--audience", "rows.test", "--body", "hello"])?;
    let envelope = signed["envelope"].as_str().context("envelope")?;
    ensure!(envelope.starts_with("pilot-req-v1|") && envelope.ends_with("|rows.test"), "{signed}");
    ensure!(signed["address"] == side.me.address() && signed["signature"].is_string(), "{signed}");
    Ok(())
}

pub(super) fn verify_request(side: &Side<'_>) -> Result<()> {
    let signed = side.ctl(QUICK, &["sign-request", "--audience", "rows.test", "--body", "hello"])?;
    let (envelope, signature) = (signed["envelope"].as_str(), signed["signature"].as_str());
    let (envelope, signature) = (envelope.context("envelope")?, signature.context("signature")?);
    let verify = |envelope: &str| side.ctl(SLOW, &["verify-request", "--envelope", envelope, "--signature", signature]);
    let answer = verify(envelope)?;
    ensure!(answer["valid"] == true, "{answer}");
    let forged = verify(&envelope.replace("rows.test", "row.tests"));
    ensure!(forged.is_err(), "a forged one is valid: {forged:?}");
    Ok(())
}

/// The state of the badge: none, as there is nobody here who gives badges.
pub(super) fn verify(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["verify", "status"])?;
    ensure!(answer["node_id"] == side.me.node() && answer["verified"] == false, "{answer}");
    Ok(())
}

pub(super) fn deregister(side: &Side<'_>) -> Result<()> {
    let answer = side.ctl(SLOW, &["deregister"])?;
    ensure!(answer["type"] == "deregister_ok", "{answer}");
    Ok(())
}
