//! The first door: an address of this host whose ports lead to the ports of an agent.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pilot_wire::Address;
use pilot_wire::gateway::name::Destination;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::gateway::{Guest, Shared};
use crate::ports::PortPair;
use crate::relay::relay;

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

    /// Serves one connection to a port of this address.
    pub(crate) async fn serve(self: Arc<Self>, shared: Arc<Shared>, pair: PortPair, guest: Guest) {
        let failed = |why: String| {
            tracing::info!(ip = %self.ip, agent = %self.address, port = pair.remote, why, "a mapped connection failed");
            self.failures.fetch_add(1, Ordering::Relaxed);
            *self.last_error.lock() = Some(format!("port {pair}: {why}"));
        };
        if let Err(refusal) = guest.permission {
            failed(refusal.message);
            return guest.client.reset();
        }
        // The client is not looked at before the agent has answered: what it sends waits in its socket.
        match shared.dialer.dial(&Destination::Address(self.address), pair.remote).await {
            Err(refusal) => {
                failed(refusal.message);
                guest.client.reset();
            }
            Ok(stream) => {
                self.served.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = relay(guest.client, &[], stream).await {
                    failed(error.to_string());
                }
            }
        }
    }
}
