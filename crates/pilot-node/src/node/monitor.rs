//! A running node seen from outside: whether it is alive and of use, and what it counts. Health checks, the service
//! manager's watchdog and metrics are made of this.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use crate::directory::LinkState;

/// How long the driver has to make a round.
const TURN_LIMIT: Duration = Duration::from_secs(5);
/// How long the local socket has to accept us.
const SOCKET_LIMIT: Duration = Duration::from_secs(2);

/// Looks at a node. Cheap to clone; keeps the node's parts in memory, not the node running.
#[derive(Clone)]
pub struct Monitor {
    pub(super) shared: Arc<Shared>,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").field("node", &self.shared.node()).finish_non_exhaustive()
    }
}

/// One thing a node needs to be of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Stable name: `driver`, `registered`, `local_socket`, `udp_socket`.
    pub name: &'static str,
    /// What is wrong, for a person; `None` when nothing is.
    pub problem: Option<String>,
}

/// Whether a node is of use, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// What it needs.
    pub checks: Vec<Check>,
    /// What does not stop it, but should be known.
    pub warnings: Vec<String>,
}

impl Readiness {
    /// Whether every check passed.
    pub fn is_ready(&self) -> bool {
        self.checks.iter().all(|check| check.problem.is_none())
    }
}

impl Monitor {
    /// Whether the task that receives, sends and keeps time still turns: false after 5 s without a sign of it.
    pub async fn is_alive(&self) -> bool {
        self.shared.engine.is_turning(TURN_LIMIT).await
    }

    /// Whether the registry has this node, as far as it knows.
    pub fn is_registered(&self) -> bool {
        *self.shared.registered.borrow()
    }

    /// Waits until [`Monitor::is_registered`] changes; `None` when it never will again.
    pub async fn registration_changed(&self) -> Option<bool> {
        let mut registered = self.shared.registered.subscribe();
        registered.mark_unchanged();
        registered.changed().await.ok().map(|()| *registered.borrow())
    }

    /// Everything a node needs: a driver that turns, its registration, its local socket, its UDP socket.
    pub async fn readiness(&self) -> Readiness {
        let shared = &self.shared;
        let driver = (!self.is_alive().await).then(|| "the driver does not turn; restart the daemon".to_owned());
        let registered = (!self.is_registered()).then(|| self.why_not_registered());
        let mut checks =
            vec![Check { name: "driver", problem: driver }, Check { name: "registered", problem: registered }];
        if let Some(path) = &shared.config.socket {
            checks.push(Check { name: "local_socket", problem: self.socket_problem(path).await });
        }
        let udp = shared.engine.is_receive_failing().then(|| "receiving on the UDP socket fails".to_owned());
        checks.push(Check { name: "udp_socket", problem: udp });
        let mut warnings = Vec::new();
        if self.is_registered()
            && let LinkState::Down(reason) = &*shared.directory.state().borrow()
        {
            warnings.push(format!("the registry cannot be reached now; known peers are served: {reason}"));
        }
        Readiness { checks, warnings }
    }

    fn why_not_registered(&self) -> String {
        let error = self.shared.status.lock().registry_error.clone();
        if error.is_empty() { "not registered yet".to_owned() } else { error }
    }

    /// Whether clients that come to the socket come to us: its file may be gone, or another's.
    async fn socket_problem(&self, path: &Path) -> Option<String> {
        let connect = tokio::time::timeout(SOCKET_LIMIT, self.shared.env.unix_connect(path));
        match connect.await {
            Ok(Ok(stream)) => match stream.peer().pid {
                Some(pid) if pid != std::process::id() => {
                    Some(format!("{} is served by another process (pid {pid})", path.display()))
                }
                _ => None,
            },
            Ok(Err(error)) => Some(format!("{}: {error}; restart the daemon", path.display())),
            Err(_) => Some(format!("{} does not accept", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use pilot_env::Env;

    use super::*;
    use crate::{Node, NodeConfig};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_driver_that_stands_still_is_noticed() {
        let config = NodeConfig {
            registry: "127.0.0.1:1".to_owned(),
            beacon: None,
            listen: ([127, 0, 0, 1], 0).into(),
            ..NodeConfig::default()
        };
        let node = Node::start(Env::real(), config).await.unwrap();
        let monitor = node.monitor();
        assert!(monitor.is_alive().await);
        // Somebody holds the core and does not give it back.
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let (shared, (taken, is_taken)) = (monitor.shared.clone(), tokio::sync::oneshot::channel());
        let holder = std::thread::spawn(move || {
            shared.engine.look(|_, _| {
                let _ = taken.send(());
                let _ = held.recv();
            });
        });
        is_taken.await.unwrap();
        // Its round under way ends at the core; the next does not begin.
        let stuck = async { while monitor.shared.engine.is_turning(Duration::from_millis(200)).await {} };
        tokio::time::timeout(Duration::from_secs(60), stuck).await.expect("it stands still");
        drop(hold);
        holder.join().unwrap();
        assert!(monitor.is_alive().await, "it goes on");
        node.shutdown(Duration::from_secs(1)).await;
    }
}
