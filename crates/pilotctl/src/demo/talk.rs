//! What the two agents say to each other: trust, echo, a message.

use std::time::Duration;

use pilot::{Address, SocketAddress};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use super::failed;
use super::network::{Agent, INTERVAL};
use super::report::Report;
use crate::commands::ping::{ECHO_PORT, Probe, probe};
use crate::errors::CliError;

/// Where agents expect messages (05 §4).
const MESSAGE_PORT: u16 = 1000;
/// Probes, each on a stream of its own.
const PROBES: i64 = 5;
/// Round trips on one open stream.
const ROUNDS: usize = 200;
/// Longest answer that is read, in bytes.
const MOST_ANSWER: u64 = 1 << 20;

fn knows(list: &Value, agent: &Agent) -> bool {
    list.as_array().is_some_and(|list| list.iter().any(|entry| entry["node_id"].as_u64() == Some(agent.node.into())))
}

/// Alice asks, bob approves, both wait until both trust.
pub(super) async fn trust(alice: &Agent, bob: &Agent, report: &mut Report<'_>) -> Result<(), CliError> {
    let began = Instant::now();
    let failed = failed("trust");
    alice.driver.handshake(bob.node, "demo").await.map_err(&failed)?;
    while !knows(&bob.driver.pending().await.map_err(&failed)?["pending"], alice) {
        sleep(INTERVAL).await;
    }
    bob.driver.approve(alice.node).await.map_err(&failed)?;
    for (one, other) in [(alice, bob), (bob, alice)] {
        while !knows(&one.driver.trusted().await.map_err(&failed)?["trusted"], other) {
            sleep(INTERVAL).await;
        }
    }
    report.trust(began.elapsed());
    Ok(())
}

/// Probes with a new stream each, then round trips on one stream.
pub(super) async fn ping(alice: &Agent, bob: &Agent, report: &mut Report<'_>) -> Result<(), CliError> {
    let mut probes = Vec::new();
    for seq in 0..PROBES {
        match probe(&alice.driver, bob.address, seq).await {
            Probe::Answered { rtt, .. } => probes.push(rtt),
            Probe::Failed { error, .. } | Probe::NotDialled { error } => {
                return Err(CliError::connection(format!("demo: ping: {error}")));
            }
        }
    }
    let to = SocketAddress::new(bob.address, ECHO_PORT);
    let mut stream = alice.driver.dial(to).await.map_err(failed("ping"))?;
    let mut rounds = Vec::with_capacity(ROUNDS);
    let mut echo = [0; 4];
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let round = async {
            stream.write_all(b"ping").await?;
            stream.read_exact(&mut echo).await
        };
        round.await.map_err(|error| CliError::connection(format!("demo: ping: {error}")))?;
        rounds.push(began.elapsed());
    }
    let _ = stream.close().await;
    report.ping(&probes, median(&mut rounds));
    Ok(())
}

fn median(values: &mut [Duration]) -> Duration {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Alice says something, bob answers.
pub(super) async fn message(alice: &Agent, bob: &Agent, text: &str, report: &mut Report<'_>) -> Result<(), CliError> {
    let listener = bob.driver.listen(MESSAGE_PORT).await.map_err(failed("message"))?;
    let broken = |error: std::io::Error| CliError::connection(format!("demo: message: {error}"));
    let began = Instant::now();
    let say = async {
        let to = SocketAddress::new(bob.address, MESSAGE_PORT);
        let mut stream = alice.driver.dial(to).await.map_err(failed("message"))?;
        stream.write_all(text.as_bytes()).await.map_err(broken)?;
        let mut answer = Vec::new();
        // Bob's answer ends with the stream.
        (&mut stream).take(MOST_ANSWER).read_to_end(&mut answer).await.map_err(broken)?;
        let taken = began.elapsed();
        let _ = stream.close().await;
        Ok::<_, CliError>((answer, taken))
    };
    let listen = async {
        let mut stream = listener.accept().await.map_err(failed("message"))?;
        let mut heard = vec![0; text.len()];
        stream.read_exact(&mut heard).await.map_err(broken)?;
        let from: Address = stream.remote().addr;
        stream.write_all(format!("bob heard {} bytes from {from}", heard.len()).as_bytes()).await.map_err(broken)?;
        stream.close().await.map_err(broken)?;
        Ok::<_, CliError>(heard)
    };
    let ((answer, taken), heard) = tokio::try_join!(say, listen)?;
    listener.close().await;
    report.message(&pilot_wire::json::text_lossy(&heard), &pilot_wire::json::text_lossy(&answer), taken);
    Ok(())
}

/// The tunnel as each side reports it.
pub(super) async fn tunnel(alice: &Agent, bob: &Agent, report: &mut Report<'_>) -> Result<(), CliError> {
    for (one, other) in [(alice, bob), (bob, alice)] {
        let info = one.driver.info().await.map_err(failed("status"))?;
        let peers = info["peer_list"].as_array();
        let peer =
            peers.and_then(|peers| peers.iter().find(|peer| peer["node_id"].as_u64() == Some(other.node.into())));
        let peer = peer.ok_or_else(|| {
            CliError::internal(format!("demo: the status of {} does not list {}", one.name, other.name))
        })?;
        report.tunnel(one, other, peer);
    }
    Ok(())
}
