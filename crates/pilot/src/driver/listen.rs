//! A listener of a driver: a port that is bound again whenever the daemon has restarted.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use pilot_wire::{Address, SocketAddress};
use tokio::task::AbortHandle;

use super::core::Core;
use super::options::{FIRST_PAUSE, LAST_PAUSE};
use crate::datagram::Feed;
use crate::error::Error;
use crate::extended::listener::ExtendedBinding;
use crate::listener::{Door, Listener};
use crate::plain::listener::PlainBinding;
use crate::stream::Stream;

/// A port as one socket has it.
pub(crate) trait Binding: Send + Sync {
    /// The next stream; [`Error::Disconnected`] once the socket is gone. The task that asked last is woken.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>>;
    /// Ready when the socket is gone.
    fn gone(&self) -> BoxFuture<'static, ()>;
    /// Frees the port; what comes back is ready when the daemon has done so.
    fn release(&self) -> Option<BoxFuture<'static, ()>>;
}

/// A port and the own end of what is accepted on it.
pub(super) struct Bound {
    binding: Arc<dyn Binding>,
    local: SocketAddress,
}

/// Binds a port, on whichever socket the daemon calls for.
pub(super) async fn bind(core: &Core, port: u16) -> Result<Bound, Error> {
    let session = core.session("bind").await?;
    if session.ext().is_some() {
        let binding = ExtendedBinding::bind(session, port).await?;
        let local = binding.local();
        return Ok(Bound { binding: Arc::new(binding), local });
    }
    let link = core.another().await?;
    if core.path().is_some() {
        link.set_datagrams(Feed::listener(Arc::clone(&core.datagrams), port));
    }
    let binding = PlainBinding::bind(link, port).await?;
    Ok(Bound { binding: Arc::new(binding), local: SocketAddress::new(Address::default(), port) })
}

/// A listener on a port that is bound.
pub(super) fn listener(core: Arc<Core>, port: u16, Bound { binding, local }: Bound) -> Listener {
    let gone = binding.gone();
    let place = Arc::new(Mutex::new(Place { binding: Some(binding), ..Place::default() }));
    let keeper = core.reconnects().then(|| {
        let keep = keep(Arc::clone(&core), port, Arc::clone(&place), gone);
        tokio::spawn(keep).abort_handle()
    });
    Listener::new(Box::new(DriverDoor { core, place, keeper }), local)
}

#[derive(Default)]
struct Place {
    binding: Option<Arc<dyn Binding>>,
    /// Why the port will not be bound again.
    failed: Option<Error>,
    waiting: Option<Waker>,
}

impl Place {
    fn change(&mut self, binding: Option<Arc<dyn Binding>>, failed: Option<Error>) {
        self.binding = binding;
        self.failed = failed;
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

/// Binds the port again whenever its socket has gone, until the listener is closed.
async fn keep(core: Arc<Core>, port: u16, place: Arc<Mutex<Place>>, mut gone: BoxFuture<'static, ()>) {
    loop {
        gone.await;
        match rebind(&core, port).await {
            Ok(bound) => {
                gone = bound.binding.gone();
                place.lock().change(Some(bound.binding), None);
            }
            Err(error) => {
                tracing::warn!(port, %error, "a port could not be bound again after the daemon restarted");
                place.lock().change(None, Some(error));
                return;
            }
        }
    }
}

/// Tries for as long as the daemon is away, and, when it refuses, for as long as the program is patient: the socket of
/// before, or a program that tries as well, may still hold the port.
async fn rebind(core: &Core, port: u16) -> Result<Bound, Error> {
    let refused = Mutex::new(None);
    loop {
        if core.next_session().await.is_none() {
            return Err(Error::ListenerClosed);
        }
        let insist = async {
            let mut pause = FIRST_PAUSE;
            loop {
                match bind(core, port).await {
                    Ok(bound) => return Some(bound),
                    // Gone again: wait for it without a limit.
                    Err(error) if error.is_disconnected() => return None,
                    Err(error) => *refused.lock() = Some(error),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        };
        match tokio::time::timeout(core.patience(), insist).await {
            Ok(Some(bound)) => return Ok(bound),
            Ok(None) => tokio::time::sleep(FIRST_PAUSE).await,
            Err(_) => return Err(refused.into_inner().unwrap_or(Error::Timeout { op: "bind" })),
        }
    }
}

struct DriverDoor {
    core: Arc<Core>,
    place: Arc<Mutex<Place>>,
    /// The task that binds the port again.
    keeper: Option<AbortHandle>,
}

impl DriverDoor {
    /// Frees the port, once.
    fn release(&mut self) -> Option<BoxFuture<'static, ()>> {
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
        }
        let binding = self.place.lock().binding.take()?;
        binding.release()
    }
}

impl Door for DriverDoor {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>> {
        let binding = {
            let mut place = self.place.lock();
            if let Some(error) = &place.failed {
                return Poll::Ready(Err(error.clone()));
            }
            // Before the socket is asked: should it go at this moment, its successor wakes us.
            place.waiting = Some(cx.waker().clone());
            place.binding.clone()
        };
        match binding.map(|binding| binding.poll_accept(cx)) {
            Some(Poll::Ready(Err(error))) if error.is_disconnected() => {
                if self.core.reconnects() {
                    Poll::Pending
                } else {
                    Poll::Ready(Err(Error::ListenerClosed))
                }
            }
            Some(next) => next,
            None => Poll::Pending,
        }
    }

    fn lost(&self) -> BoxFuture<'_, Error> {
        if !self.core.reconnects() {
            // The socket itself says so.
            return Box::pin(std::future::pending());
        }
        Box::pin(self.core.lost("accept"))
    }

    fn close(&mut self) -> BoxFuture<'static, ()> {
        self.release().unwrap_or_else(|| Box::pin(std::future::ready(())))
    }
}

impl Drop for DriverDoor {
    fn drop(&mut self) {
        drop(self.release());
    }
}
