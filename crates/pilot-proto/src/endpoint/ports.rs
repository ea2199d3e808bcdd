//! Bound ports and the choice of source ports (02 §6, §29.35).

use rustc_hash::FxHashMap;

use super::events::BindError;

/// First ephemeral port; the choice wraps from 65,535 back to here.
pub const EPHEMERAL_FIRST: u16 = 49_152;
const EPHEMERAL_COUNT: u16 = 65_535 - EPHEMERAL_FIRST + 1;

#[derive(Debug)]
pub(crate) struct Ports {
    /// Bound ports with the number of connections that peers opened to each.
    bound: FxHashMap<u16, usize>,
    next: u16,
}

impl Ports {
    /// `start` makes the first choice random, so that a restarted node does not meet its own stale connections (02 §27.4).
    pub(crate) fn new(start: u16) -> Self {
        Self { bound: FxHashMap::default(), next: start % EPHEMERAL_COUNT }
    }

    pub(crate) fn bind(&mut self, port: u16) -> Result<(), BindError> {
        if self.bound.contains_key(&port) {
            return Err(BindError::InUse(port));
        }
        self.bound.insert(port, 0);
        Ok(())
    }

    pub(crate) fn unbind(&mut self, port: u16) -> bool {
        self.bound.remove(&port).is_some()
    }

    pub(crate) fn is_bound(&self, port: u16) -> bool {
        self.bound.contains_key(&port)
    }

    /// Connections peers opened to a bound port.
    pub(crate) fn connections(&self, port: u16) -> usize {
        self.bound.get(&port).copied().unwrap_or(0)
    }

    pub(crate) fn connection_opened(&mut self, port: u16) {
        if let Some(n) = self.bound.get_mut(&port) {
            *n += 1;
        }
    }

    /// Connections opened before the port was bound anew are not counted, so the count stops at zero.
    pub(crate) fn connection_gone(&mut self, port: u16) {
        if let Some(n) = self.bound.get_mut(&port) {
            *n = n.saturating_sub(1);
        }
    }

    /// A source port that nobody listens on and for which `taken` says no. `None` when all 16,384 are taken.
    pub(crate) fn ephemeral(&mut self, taken: impl Fn(u16) -> bool) -> Option<u16> {
        for _ in 0..EPHEMERAL_COUNT {
            let port = EPHEMERAL_FIRST + self.next;
            self.next = (self.next + 1) % EPHEMERAL_COUNT;
            if !self.bound.contains_key(&port) && !taken(port) {
                return Some(port);
            }
        }
        None
    }

    pub(crate) fn list(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.bound.keys().copied().collect();
        ports.sort_unstable();
        ports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ephemeral_ports_wrap_to_49152_and_skip_listeners_and_taken_ones() {
        let mut ports = Ports::new(EPHEMERAL_COUNT - 2);
        ports.bind(65_535).unwrap();
        assert_eq!(ports.ephemeral(|_| false), Some(65_534));
        assert_eq!(ports.ephemeral(|p| p == 49_152), Some(49_153));
        assert_eq!(ports.ephemeral(|_| true), None);
    }

    #[test]
    fn a_second_bind_fails_and_names_the_port() {
        let mut ports = Ports::new(0);
        ports.bind(7).unwrap();
        assert_eq!(ports.bind(7).unwrap_err().to_string(), "port 7 already bound");
        assert!(ports.unbind(7) && !ports.unbind(7));
        ports.bind(7).unwrap();
    }
}
