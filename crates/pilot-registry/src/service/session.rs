//! What one connection has shown.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::domain::Register;
use crate::limits::{MAX_PROVED, MAX_PROVISIONAL};

/// State of one connection: where it comes from, which keys it has proved, which registrations wait for a proof.
#[derive(Debug)]
pub struct Session {
    source: SocketAddr,
    local: SocketAddr,
    proved: VecDeque<(u32, [u8; 32])>,
    provisional: VecDeque<(u32, Register)>,
}

impl Session {
    /// A new connection from `source` to our `local` address.
    pub fn new(source: SocketAddr, local: SocketAddr) -> Self {
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        Self { source, local, proved: VecDeque::new(), provisional: VecDeque::new() }
    }

    /// Where the connection comes from.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Which of our addresses it reached.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    pub(super) fn prove(&mut self, node: u32, key: [u8; 32]) {
        if self.proved.contains(&(node, key)) {
            return;
        }
        self.proved.retain(|(id, _)| *id != node);
        if self.proved.len() >= MAX_PROVED {
            self.proved.pop_front();
        }
        self.proved.push_back((node, key));
    }

    pub(super) fn has_proved_key(&self, key: &[u8; 32]) -> bool {
        self.proved.iter().any(|(_, proved)| proved == key)
    }

    pub(super) fn has_proved_node(&self, node: u32) -> bool {
        self.proved.iter().any(|(id, _)| *id == node)
    }

    pub(super) fn has_proved_any(&self) -> bool {
        !self.proved.is_empty()
    }

    /// Keeps a registration until its key is proved here. The newest of a node counts.
    pub(super) fn postpone(&mut self, node: u32, cmd: Register) {
        self.provisional.retain(|(id, _)| *id != node);
        if self.provisional.len() >= MAX_PROVISIONAL {
            self.provisional.pop_front();
        }
        self.provisional.push_back((node, cmd));
    }

    /// The registration that a proof of this key makes good.
    pub(super) fn take_provisional(&mut self, node: u32, key: &[u8; 32]) -> Option<Register> {
        let at = self.provisional.iter().position(|(id, cmd)| *id == node && cmd.key == *key)?;
        self.provisional.remove(at).map(|(_, cmd)| cmd)
    }

    pub(super) fn drop_provisional(&mut self, node: u32) {
        self.provisional.retain(|(id, _)| *id != node);
    }
}
