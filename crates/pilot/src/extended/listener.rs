//! Ports bound over the extended socket (L8 to L11).

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use pilot_wire::SocketAddress;
use pilot_wire::ipc::ext::ClientFrame;

use super::{Pending, Reply};
use crate::driver::Binding;
use crate::error::Error;
use crate::listener::BACKLOG;
use crate::plain::link::Link;
use crate::stream::Stream;

/// A port of one socket.
pub(crate) struct ExtendedBinding {
    link: Link,
    port: u16,
    /// The Accept that waits. It outlives the call that sent it, so that a stream given to a call that was given up
    /// goes to the next one.
    asked: Mutex<Option<Pending>>,
}

impl ExtendedBinding {
    pub(crate) async fn bind(link: Link, port: u16) -> Result<Self, Error> {
        // Far below its type's limit.
        let backlog = BACKLOG as u16;
        link.ask("bind", |request| ClientFrame::Bind { request, port, backlog, datagrams: true })?.await?;
        Ok(Self { link, port, asked: Mutex::default() })
    }

    /// The own address, as the daemon gave it at the beginning.
    pub(crate) fn local(&self) -> SocketAddress {
        self.link.ext().map(|ext| ext.local(self.port)).unwrap_or_default()
    }
}

impl Binding for ExtendedBinding {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>> {
        let mut asked = self.asked.lock();
        let pending = match &mut *asked {
            Some(pending) => pending,
            none => {
                let accept = self.link.ask("accept", |request| ClientFrame::Accept { request, port: self.port })?;
                none.insert(accept)
            }
        };
        let Poll::Ready(answer) = Pin::new(pending).poll(cx) else { return Poll::Pending };
        *asked = None;
        drop(asked);
        Poll::Ready(match answer {
            Ok(Reply::Opened(opened, _, pipe)) => Ok(self.link.opened(opened, pipe)),
            Ok(Reply::Done | Reply::Result(_)) => Err(Error::InvalidDialResponse),
            Err(error) => Err(error),
        })
    }

    fn gone(&self) -> BoxFuture<'static, ()> {
        Box::pin(self.link.gone())
    }

    fn release(&self) -> Option<BoxFuture<'static, ()>> {
        // A stream that came meanwhile is closed with the request.
        *self.asked.lock() = None;
        let port = self.port;
        let answer = self.link.ask("unbind", |request| ClientFrame::Unbind { request, port }).ok()?;
        Some(Box::pin(async move { drop(answer.await) }))
    }
}
