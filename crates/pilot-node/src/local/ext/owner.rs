//! What the protocol core tells about the streams and ports of a client.

use std::sync::Arc;

use pilot_proto::endpoint::{ConnId, DialError};
use pilot_proto::stream::StreamEvent;
use pilot_wire::SocketAddress;
use pilot_wire::ipc::ext::Problem;

use super::state::{Cause, End, Over, Phase, fail, shutdown};
use crate::engine::{ConnOwner, Incoming, PortOwner, Wakers};
use crate::local::client::{Client, MAX_FRAMES_LEN, State};

/// The owner of one connection.
pub(super) struct StreamOwner {
    pub(super) client: Arc<Client>,
    pub(super) stream: u32,
}

impl ConnOwner for StreamOwner {
    fn stream_event(&self, _conn: ConnId, event: StreamEvent, wakers: &mut Wakers) {
        let mut guard = self.client.state.lock();
        let State { ext: Some(ext), frames, .. } = &mut *guard else { return };
        let Some(stream) = ext.streams.get_mut(&self.stream) else { return };
        match event {
            StreamEvent::Connected => {
                if let Phase::Dialing(request) = stream.phase {
                    ext.settle(request);
                    ext.open(request, self.stream, &[], frames);
                }
            }
            StreamEvent::Closed(reason) => {
                stream.over = Some(Over::Core(reason));
                ext.schedule(self.stream);
            }
            StreamEvent::Readable | StreamEvent::Finished | StreamEvent::Writable | StreamEvent::Delivered => {
                ext.schedule(self.stream);
            }
        }
        if guard.has_work() {
            guard.wake_pump(wakers);
        }
    }

    fn dial_failed(&self, _conn: ConnId, error: DialError, wakers: &mut Wakers) {
        let mut guard = self.client.state.lock();
        let State { ext: Some(ext), frames, .. } = &mut *guard else { return };
        let Some(stream) = ext.remove_stream(self.stream) else { return };
        if let Phase::Dialing(request) = stream.phase {
            ext.settle(request);
            fail(request, Problem::new(error.code(), error.to_string()).hint(error.hint()), frames);
        }
        guard.wake_pump(wakers);
    }

    fn close_requested(&self, _conn: ConnId, wakers: &mut Wakers) {
        let mut guard = self.client.state.lock();
        let State { ext: Some(ext), .. } = &mut *guard else { return };
        let cause = if ext.ending { Cause::Shutdown } else { Cause::Disconnected };
        if let Some(stream) = ext.streams.get_mut(&self.stream) {
            stream.cause.get_or_insert(cause);
        }
        ext.schedule(self.stream);
        guard.wake_pump(wakers);
    }
}

/// The owner of a port.
pub(super) struct ExtPort(pub(super) Arc<Client>);

impl PortOwner for ExtPort {
    fn accepted(&self, incoming: &Incoming, wakers: &mut Wakers) -> Option<Arc<dyn ConnOwner>> {
        let mut guard = self.0.state.lock();
        if guard.gone || guard.frames.len() >= MAX_FRAMES_LEN {
            return None;
        }
        let State { ext: Some(ext), frames, .. } = &mut *guard else { return None };
        let stream = ext.incoming(incoming.conn, incoming.port, incoming.remote, frames)?;
        guard.wake_pump(wakers);
        Some(Arc::new(StreamOwner { client: self.0.clone(), stream }))
    }

    fn datagram(&self, src: SocketAddress, dst_port: u16, data: &[u8], wakers: &mut Wakers) {
        let wanted = self.0.state.lock().ext.as_ref().is_some_and(|ext| ext.takes_datagrams(dst_port));
        if wanted {
            self.0.extended_datagram(src, dst_port, data, wakers);
        }
    }
}

/// The daemon ends: from now on streams end for that reason, and nothing new begins. With `last`, what still waits is
/// answered.
pub(in crate::local) fn dismiss(state: &mut State, last: bool) {
    let State { ext: Some(ext), frames, .. } = state else { return };
    ext.ending = true;
    let services: Vec<u32> = ext
        .streams
        .iter_mut()
        .filter(|(_, stream)| last || matches!(stream.end, End::Service(_)))
        .map(|(id, stream)| {
            stream.cause.get_or_insert(Cause::Shutdown);
            *id
        })
        .collect();
    services.into_iter().for_each(|id| ext.schedule(id));
    if last {
        let waiting: Vec<u32> = ext.requests.keys().copied().collect();
        for request in waiting {
            ext.settle(request);
            fail(request, shutdown(), frames);
        }
    }
}
