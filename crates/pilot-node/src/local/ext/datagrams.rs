//! Datagrams of a client of the extension (L12).

use pilot_wire::SocketAddress;
use pilot_wire::ipc::ext::Problem;

use super::commands::{Cmd, not_owned, problem};
use super::state::{done, fail};
use crate::engine::Core;
use crate::local::client::State;
use crate::node::broadcast;

impl Cmd<'_> {
    /// Sends a datagram; the answer says whether it has left. One to the broadcast address of a network of ours goes to each
    /// member (docs/spec/networks.md, W4).
    pub(super) fn datagram(&self, request: u32, port: u16, to: SocketAddress, data: &[u8]) {
        let start = self.node.env.random_u64() as u16;
        if to.addr.is_broadcast() && self.node.status.lock().networks.contains(&to.addr.network) {
            let source = self.node.engine.with_unsent(|core, _| self.source(core, request, port, start));
            return source.into_iter().for_each(|source| self.to_members(request, source, to, data));
        }
        let sent = self.node.engine.with_unsent(|core, now| {
            let source = self.source(core, request, port, start)?;
            Some(core.endpoint.send_datagram(now, source, to, data))
        });
        self.ext(|_, frames| match sent {
            None => {}
            Some(Ok(())) => done(request, frames),
            Some(Err(error)) => {
                fail(request, Problem::new(error.code(), error.to_string()).hint(error.hint()), frames);
            }
        });
    }

    /// Where the datagram of a request leaves from. Without that the request has had its answer.
    fn source(&self, core: &mut Core, request: u32, port: u16, start: u16) -> Option<u16> {
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
        if source.is_none() {
            let none = Problem::new("no_port", "no free source port").hint("close sockets that are not needed");
            self.ext(|_, frames| fail(request, none, frames));
        }
        source
    }

    fn to_members(&self, request: u32, source: u16, to: SocketAddress, data: &[u8]) {
        let turn = match self.node.broadcast_turn() {
            Ok(turn) => turn,
            Err(error) => return self.ext(|_, frames| fail(request, problem(error), frames)),
        };
        let mut stopped = None;
        self.ext(|ext, frames| stopped = ext.begin_task(request, data.len(), frames));
        let Some(stopped) = stopped else { return };
        let (node, client, data) = (self.node.clone(), self.client.clone(), data.to_vec());
        self.node.spawn(async move {
            let send = |to| {
                let sent = node.engine.with(|core, now| core.endpoint.send_datagram(now, source, to, &data));
                sent.map_err(|error| error.to_string())
            };
            let told = tokio::select! {
                told = node.broadcast(turn, to.addr.network, to.port, broadcast::PER_PEER, send) => told,
                _ = stopped => return,
            };
            let told = told.and_then(|told| broadcast::missed(told).map_err(broadcast::not_reached));
            client.update(|state| {
                let State { ext: Some(ext), frames, .. } = state else { return };
                match told {
                    _ if ext.settle(request).is_none() => {}
                    Ok(_) => done(request, frames),
                    Err(error) => fail(request, problem(error), frames),
                }
            });
        });
    }
}
