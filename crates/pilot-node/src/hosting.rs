//! Services inside the node: what they may ask of it, their streams, their background work, and the methods that they
//! offer to programs on this host.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;
use pilot_services::{CallError, Context, Dialing, Host, LocalMethods, Network, Offer, Scoring, Service};
use pilot_wire::{Address, SocketAddress};

use crate::engine::NodeListener;
use crate::error::NodeError;
use crate::node::Shared;

/// Streams one service serves at once. Further ones are reset.
const SERVICE_STREAMS: usize = 1024;

/// Methods by name.
#[derive(Default)]
pub(crate) struct Methods(RwLock<BTreeMap<&'static str, Arc<dyn LocalMethods>>>);

impl Methods {
    /// Adds all methods of a service. A name that is taken stays with its first owner.
    pub(crate) fn add(&self, methods: &Arc<dyn LocalMethods>) {
        let mut all = self.0.write();
        for name in methods.methods() {
            all.entry(name).or_insert_with(|| methods.clone());
        }
    }

    /// The names of all methods, sorted.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.0.read().keys().copied().collect()
    }

    /// Who answers a method.
    pub(crate) fn find(&self, method: &str) -> Result<Arc<dyn LocalMethods>, CallError> {
        self.0.read().get(method).cloned().ok_or_else(|| {
            CallError::new("unknown_method", format!("this daemon has no method {method}"))
                .hint("the service may be switched off, or the daemon older than the program that calls it")
        })
    }
}

/// The network as seen by services. It does not keep the node alive.
struct Outside(Weak<Shared>);

fn stopped() -> CallError {
    CallError::new("node_stopped", "the node has stopped")
}

impl Network for Outside {
    fn address(&self) -> Address {
        self.0.upgrade().map_or_else(|| Address::backbone(0), |shared| shared.address())
    }

    fn dial(&self, remote: SocketAddress) -> Dialing {
        let node = self.0.clone();
        Box::pin(async move {
            let engine = node.upgrade().ok_or_else(stopped)?.engine.clone();
            let dial = engine.dial(remote).map_err(|e| CallError::new(e.code(), e.to_string()).hint(e.hint()))?;
            match dial.await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn pilot_services::Stream>),
                Err(e) => Err(CallError::new(e.code(), e.to_string()).hint(e.hint())),
            }
        })
    }

    fn trusted(&self) -> Vec<u32> {
        self.0.upgrade().map(|shared| shared.trust.trusted_nodes()).unwrap_or_default()
    }

    fn score(&self, node: u32) -> Scoring {
        let shared = self.0.upgrade();
        Box::pin(async move {
            let shared = shared.ok_or_else(stopped)?;
            shared.directory.score(node).await.map_err(|error| no_score(&error))
        })
    }

    fn add_score(&self, node: u32, delta: i64) -> Scoring {
        let shared = self.0.upgrade();
        Box::pin(async move {
            let shared = shared.ok_or_else(stopped)?;
            shared.directory.add_score(node, delta).await.map_err(|error| no_score(&error))
        })
    }
}

fn no_score(error: &crate::directory::DirectoryError) -> CallError {
    CallError::new(error.code(), error.to_string())
}

/// Opens services and serves them.
pub(crate) struct Hosting<'a>(&'a Arc<Shared>);

impl<'a> Hosting<'a> {
    pub(crate) fn new(shared: &'a Arc<Shared>) -> Self {
        Self(shared)
    }

    fn host(&self) -> Host {
        Host {
            env: self.0.env.clone(),
            dir: self.0.store.dir().map(ToOwned::to_owned),
            events: self.0.events.clone(),
            network: Arc::new(Outside(Arc::downgrade(self.0))),
        }
    }

    /// Opens a service, binds its port, and serves it until the node stops.
    pub(crate) fn serve(&self, offer: &dyn Offer) -> Result<(), NodeError> {
        let name = offer.name();
        let service = offer.open(&self.host()).map_err(|source| NodeError::Offer { service: name, source })?;
        let listener =
            self.0.engine.listen(service.port()).map_err(|source| NodeError::Service { service: name, source })?;
        if let Some(methods) = service.local() {
            self.0.methods.add(&methods);
        }
        if let Some(work) = service.work() {
            self.0.spawn(work);
        }
        self.0.spawn(accept(self.0.clone(), service, listener));
        Ok(())
    }
}

async fn accept(shared: Arc<Shared>, service: Arc<dyn Service>, listener: NodeListener) {
    let limit = Arc::new(tokio::sync::Semaphore::new(SERVICE_STREAMS));
    loop {
        let mut stream = listener.accept().await;
        let Ok(permit) = limit.clone().try_acquire_owned() else {
            tracing::warn!(service = service.name(), limit = SERVICE_STREAMS, "too many streams; reset one");
            stream.reset();
            continue;
        };
        let env = shared.env.clone();
        let context = Context { remote: stream.remote_addr(), unix: Arc::new(move || env.unix()) };
        let serving = service.serve(Box::new(stream), context);
        let name = service.name();
        shared.spawn(async move {
            if let Err(error) = serving.await {
                tracing::debug!(service = name, %error, "a stream ended early");
            }
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilot_services::{Calling, Opening, Serving, Stream};
    use serde_json::{Value, json};

    /// Offers one method of each kind.
    struct Mirror;

    impl LocalMethods for Mirror {
        fn methods(&self) -> &'static [&'static str] {
            &["mirror.call", "mirror.open"]
        }

        fn call(&self, _method: &str, args: Value) -> Calling {
            Box::pin(async move { Ok(json!({ "mirrored": args })) })
        }

        fn open(&self, _method: &str, _args: Value) -> Opening {
            Box::pin(async { Ok(Box::new(mirror) as pilot_services::Serve) })
        }
    }

    fn mirror(mut stream: Box<dyn Stream>) -> Serving {
        Box::pin(async move {
            let mut buf = [0; 64];
            let n = tokio::io::AsyncReadExt::read(&mut stream, &mut buf).await?;
            tokio::io::AsyncWriteExt::write_all(&mut stream, &buf[..n]).await
        })
    }

    #[tokio::test]
    async fn methods_are_found_by_name_and_strangers_get_a_clear_error() {
        let methods = Methods::default();
        let mirror: Arc<dyn LocalMethods> = Arc::new(Mirror);
        methods.add(&mirror);
        let answer = methods.find("mirror.call").unwrap().call("mirror.call", json!(5)).await;
        assert_eq!(answer, Ok(json!({ "mirrored": 5 })));
        let error = methods.find("mirror.nothing").err().unwrap();
        assert_eq!(error.code, "unknown_method");
        assert!(error.message.contains("mirror.nothing") && !error.hint.is_empty());
    }

    #[tokio::test]
    async fn a_stream_to_a_method_carries_bytes_both_ways() {
        let serve = Mirror.open("mirror.open", Value::Null).await.ok().unwrap();
        let (mut ours, theirs) = tokio::io::duplex(64);
        let serving = tokio::spawn(serve(Box::new(theirs)));
        tokio::io::AsyncWriteExt::write_all(&mut ours, b"hello").await.unwrap();
        let mut back = [0; 5];
        tokio::io::AsyncReadExt::read_exact(&mut ours, &mut back).await.unwrap();
        assert_eq!(&back, b"hello");
        serving.await.unwrap().unwrap();
    }
}
