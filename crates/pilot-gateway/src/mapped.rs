//! The first door: an address of this host whose ports lead to the ports of an agent.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pilot_wire::Address;
use pilot_wire::gateway::name::Destination;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::dial::Cause;
use crate::gateway::{Guest, Shared};
use crate::ports::PortPair;
use crate::relay::relay;

/// Longest reason kept, in characters.
const MAX_REASON: usize = 200;

/// A mapped agent.
pub(crate) struct Mapping {
    pub(crate) ip: IpAddr,
    pub(crate) address: Address,
    /// As it was asked for.
    pub(crate) target: String,
    /// Ports that are listened on.
    pub(crate) ports: Vec<PortPair>,
    /// Ports that are not, and why.
    pub(crate) failed: Vec<(PortPair, String)>,
    /// Ends the listeners.
    pub(crate) stop: CancellationToken,
    served: AtomicU64,
    failures: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Mapping {
    pub(crate) fn new(ip: IpAddr, address: Address, target: &str, stop: CancellationToken) -> Self {
        Self {
            ip,
            address,
            target: target.to_owned(),
            ports: Vec::new(),
            failed: Vec::new(),
            stop,
            served: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            last_error: Mutex::default(),
        }
    }

    /// As `map` and `list` show it.
    pub(crate) fn to_json(&self) -> Value {
        let pair = |pair: &PortPair| json!({ "local": pair.local, "remote": pair.remote });
        let failed = self.failed.iter().map(|(pair, why)| json!({ "local": pair.local, "error": why }));
        json!({
            "local_ip": self.ip.to_string(),
            "pilot_addr": self.address.to_string(),
            "target": self.target,
            "ports": self.ports.iter().map(pair).collect::<Vec<_>>(),
            "failed": failed.collect::<Vec<_>>(),
            "served": self.served.load(Ordering::Relaxed),
            "failures": self.failures.load(Ordering::Relaxed),
            "last_error": *self.last_error.lock(),
        })
    }

    fn failed(&self, pair: PortPair, why: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        // Part of it is what the registry or a peer says.
        let why: String = why.chars().take(MAX_REASON).collect();
        *self.last_error.lock() = Some(format!("port {pair}: {why}"));
    }

    /// Serves one connection to a port of this address.
    pub(crate) async fn serve(self: Arc<Self>, shared: Arc<Shared>, pair: PortPair, guest: Guest) {
        let failed = |cause: Option<Cause>, why: &str| {
            let line = format!("{} to {}, port {pair}: {why}", self.ip, self.address);
            shared.note(cause, &line, "a mapped connection failed");
            self.failed(pair, why);
        };
        if let Err(refusal) = guest.permission {
            failed(Some(refusal.cause), &refusal.message);
            return guest.client.reset();
        }
        // It has no other way to learn that there was no answer.
        guest.client.debt().owe();
        // The client is not looked at before the agent has answered: what it sends waits in its socket.
        match shared.dialer.dial(&Destination::Address(self.address), pair.remote).await {
            Err(refusal) => {
                failed(Some(refusal.cause), &refusal.message);
                guest.client.reset();
            }
            Ok(stream) => {
                self.served.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = relay(guest.client, &[], stream).await {
                    failed(None, &error.to_string());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::MAX_LISTENED;
    use crate::table::MAX_MAPPINGS;
    use pilot_wire::gateway::control::{Answer, MAX_ANSWER};

    #[test]
    fn the_longest_list_fits_into_an_answer() {
        let longest = |number: usize| {
            let node = u32::try_from(number).unwrap();
            let ip = IpAddr::from((u128::MAX - number as u128).to_be_bytes());
            let target = format!("{}.pilot", "a".repeat(63));
            let mut mapping = Mapping::new(ip, Address::backbone(u32::MAX - node), &target, CancellationToken::new());
            let pair = PortPair { local: 65_535, remote: 65_535 };
            // The system's longest reasons are shorter.
            mapping.failed = vec![(pair, "e".repeat(100)); MAX_LISTENED / MAX_MAPPINGS];
            mapping.served.store(u64::MAX, Ordering::Relaxed);
            // A character that JSON writes with six.
            mapping.failed(pair, &"\u{1}".repeat(1000));
            mapping.to_json()
        };
        let mappings: Vec<Value> = (0..MAX_MAPPINGS).map(longest).collect();
        let size = Answer::Done(json!({ "mappings": mappings })).emit().len();
        assert!(size + 16 * 1024 < MAX_ANSWER, "{size} bytes");
    }
}
