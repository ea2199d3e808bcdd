//! What the daemons list against what the clients hold: no stream both forgotten and open.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Ports below belong to the daemons' own services; above are those of clients, and the source ports.
const FIRST_CLIENT_PORT: u64 = 2000;
/// The trust handshake, which daemons dial themselves.
const HANDSHAKE: u64 = 444;

/// A stream as a daemon lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    id: u32,
    local_port: u64,
    remote: String,
    remote_port: u64,
    state: String,
}

/// A daemon's own view.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Its address.
    pub(super) address: String,
    /// Its streams.
    pub(super) conns: Vec<Listed>,
    /// Bound ports.
    pub(super) ports: u64,
    /// Local clients, the one that asked included.
    pub(super) clients: u64,
    /// Packets sent so far.
    pub(super) pkts_sent: u64,
}

impl View {
    /// From the status object.
    pub(super) fn parse(info: &Value) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let number = |value: &Value, key: &str| value[key].as_u64().with_context(|| format!("{key} in {value}"));
        let word = |value: &Value, key: &str| value[key].as_str().map(str::to_owned).with_context(|| key.to_owned());
        anyhow::ensure!(info.get("conn_list_truncated").is_none(), "the list of connections is cut short");
        let listed = |conn: &Value| {
            Ok(Listed {
                id: u32::try_from(number(conn, "id")?)?,
                local_port: number(conn, "local_port")?,
                remote: word(conn, "remote_addr")?,
                remote_port: number(conn, "remote_port")?,
                state: word(conn, "state")?,
            })
        };
        let conns =
            info["conn_list"].as_array().context("conn_list")?.iter().map(listed).collect::<anyhow::Result<_>>()?;
        Ok(Self {
            address: word(info, "address")?,
            conns,
            ports: number(info, "ports")?,
            clients: number(info, "clients")?,
            pkts_sent: number(info, "pkts_sent")?,
        })
    }

    /// Streams other than those only remembered for a moment after their end.
    fn open(&self) -> impl Iterator<Item = &Listed> {
        self.conns.iter().filter(|conn| !matches!(conn.state.as_str(), "TIME_WAIT" | "CLOSED"))
    }
}

/// Everything that is out of balance; empty when nothing is.
pub(super) fn compare(views: &[View], held: &[BTreeSet<u32>]) -> Vec<String> {
    let by_address: BTreeMap<&str, usize> = views.iter().enumerate().map(|(i, v)| (v.address.as_str(), i)).collect();
    let mut wrong = Vec::new();
    for (i, view) in views.iter().enumerate() {
        let nothing = BTreeSet::new();
        let held = held.get(i).unwrap_or(&nothing);
        for conn in view.open() {
            let own = conn.local_port < FIRST_CLIENT_PORT || conn.remote_port == HANDSHAKE;
            if conn.state != "ESTABLISHED" {
                wrong.push(format!("daemon {i}: {conn:?} is neither open nor over"));
            } else if !own && !held.contains(&conn.id) {
                wrong.push(format!("daemon {i}: {conn:?} is open, and no client holds it"));
            }
            let mirrored = by_address.get(conn.remote.as_str()).is_some_and(|j| {
                views[*j].open().any(|other| {
                    other.remote == view.address
                        && other.local_port == conn.remote_port
                        && other.remote_port == conn.local_port
                })
            });
            if !mirrored {
                wrong.push(format!("daemon {i}: {conn:?} is open, and its peer does not know it"));
            }
        }
        for id in held {
            if !view.open().any(|conn| conn.id == *id) {
                wrong.push(format!("daemon {i}: a client holds stream {id}, which the daemon has forgotten"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(address: &str, conns: &[(u32, u64, &str, u64, &str)]) -> View {
        let conns = conns.iter().map(|&(id, local_port, remote, remote_port, state)| Listed {
            id,
            local_port,
            remote: remote.to_owned(),
            remote_port,
            state: state.to_owned(),
        });
        View { address: address.to_owned(), conns: conns.collect(), ..View::default() }
    }

    #[test]
    fn only_streams_that_both_daemons_and_their_clients_know_balance() {
        let dialled = (1, 50_000, "b", 7, "ESTABLISHED");
        let served = (9, 7, "a", 50_000, "ESTABLISHED");
        let both = [view("a", &[dialled]), view("b", &[served])];
        assert_eq!(compare(&both, &[[1].into(), [].into()]), Vec::<String>::new());
        assert!(compare(&both, &[[].into(), [].into()])[0].contains("no client holds it"));
        assert!(compare(&both, &[[1, 2].into(), [].into()])[0].contains("has forgotten"));
        let half = [view("a", &[dialled]), view("b", &[])];
        assert!(compare(&half, &[[1].into(), [].into()])[0].contains("does not know it"));
        let over = [view("a", &[]), view("b", &[(9, 7, "a", 50_000, "TIME_WAIT")])];
        assert!(compare(&over, &[]).is_empty());
        let closing = [view("a", &[(1, 50_000, "b", 7, "FIN_WAIT")]), view("b", &[served])];
        assert!(compare(&closing, &[[1].into(), [].into()])[0].contains("neither"));
    }
}
