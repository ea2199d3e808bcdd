//! Datagrams of a client of the extension (L12).

use pilot_wire::SocketAddress;
use pilot_wire::ipc::ext::Problem;

use super::commands::{Cmd, not_owned, problem};
use super::state::{done, fail};
use crate::local::client::State;
use crate::local::commands::missed;
use crate::node::broadcast;

impl Cmd<'_> {
    /// Sends a datagram; the answer says whether it has left. One to the broadcast address of a network of ours goes to each
    /// member (docs/spec/networks.md, W4).
    pub(super) fn datagram(&self, request: u32, port: u16, to: SocketAddress, data: &[u8]) {
        let to_members = to.addr.is_broadcast() && self.node.status.lock().networks.contains(&to.addr.network);
        let start = self.node.env.random_u64() as u16;
        let sent = self.node.engine.with_unsent(|core, now| {
            {
                let mut guard = self.client.state.lock();
                let State { ext: Some(ext), frames, .. } = &mut *guard else { return None };
                if !ext.admit(request, frames) {
                    return None;
                }
                if port != 0 && !ext.takes_datagrams(port) {
                    fail(request, not_owned(port), frames);
                    return None;
                }
            }
            let source = match port {
                0 => self.client.datagram_port(core, start),
                port => Some(port),
            };
            let Some(source) = source else {
                return Some(Err(
                    Problem::new("no_port", "no free source port").hint("close sockets that are not needed")
                ));
            };
            if to_members {
                return Some(Ok(Some(source)));
            }
            let sent = core.endpoint.send_datagram(now, source, to, data);
            Some(sent.map(|()| None).map_err(|error| Problem::new(error.code(), error.to_string()).hint(error.hint())))
        });
        if let Some(Ok(Some(source))) = sent {
            return self.to_members(request, source, to, data);
        }
        self.ext(|_, frames| match sent {
            None | Some(Ok(Some(_))) => {}
            Some(Ok(None)) => done(request, frames),
            Some(Err(problem)) => fail(request, problem, frames),
        });
    }

    fn to_members(&self, request: u32, source: u16, to: SocketAddress, data: &[u8]) {
        let (node, client, data) = (self.node.clone(), self.client.clone(), data.to_vec());
        self.node.spawn(async move {
            let send = |to| {
                let sent = node.engine.with(|core, now| core.endpoint.send_datagram(now, source, to, &data));
                sent.map_err(|error| error.to_string())
            };
            let told = node.broadcast(to.addr.network, to.port, broadcast::PER_PEER, send).await;
            let told = told.map_err(problem).and_then(|told| {
                missed(told).map_err(|why| Problem::new("not_reached", why).hint("pilotctl broadcast names each"))
            });
            client.update(|state| match told {
                Ok(_) => done(request, &mut state.frames),
                Err(problem) => fail(request, problem, &mut state.frames),
            });
        });
    }
}
