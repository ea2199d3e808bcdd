//! Two nodes on simulated machines, joined by a network that is a table.

mod crashes;
mod files;
mod messages;
mod queue;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pilot_env::{Env, World};
use pilot_wire::service::dataexchange::message::Tag;
use pilot_wire::service::dataexchange::record::Record;
use pilot_wire::service::dataexchange::{HEADER_LEN, Header};
use pilot_wire::{Address, SocketAddress};
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::{Dialing, Events, Network};

/// Where a node keeps things.
const DIR: &str = "/home/pilot";

/// Who serves which node.
type Table = Arc<Mutex<BTreeMap<u32, Arc<dyn Service>>>>;

#[derive(Clone)]
struct Cable {
    table: Table,
    own: u32,
}

impl Cable {
    fn open(&self, to: u32) -> Result<DuplexStream, CallError> {
        let offline = || CallError::new("peer_offline", format!("dial {to}: peer did not answer"));
        let service = self.table.lock().get(&to).cloned().ok_or_else(offline)?;
        let (near, far) = tokio::io::duplex(256 * 1024);
        let remote = SocketAddress::new(Address::backbone(self.own), 50_000);
        tokio::spawn(service.serve(Box::new(far), Context { remote, unix: Arc::new(|| Duration::ZERO) }));
        Ok(near)
    }
}

impl Network for Cable {
    fn address(&self) -> Address {
        Address::backbone(self.own)
    }

    fn dial(&self, remote: SocketAddress) -> Dialing {
        let cable = self.clone();
        Box::pin(async move { cable.open(remote.addr.node).map(|stream| Box::new(stream) as Box<dyn Stream>) })
    }

    fn trusted(&self) -> Vec<u32> {
        Vec::new()
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<(&'static str, Map<String, Value>)>>);

impl Events for Heard {
    fn emit(&self, name: &'static str, data: Map<String, Value>) {
        self.0.lock().push((name, data));
    }
}

/// A network and the machines on it.
struct Lab {
    world: World,
    table: Table,
}

/// A machine, and the service on it while it runs.
struct Machine {
    env: Env,
    cable: Cable,
    heard: Arc<Heard>,
    offer: DataExchange,
    running: Option<(Arc<dyn Service>, tokio::task::JoinHandle<()>)>,
}

impl Lab {
    fn new(seed: u64) -> Self {
        Self { world: World::new(seed), table: Table::default() }
    }

    fn machine(&self, node: u32) -> Machine {
        let env = self.world.host(std::net::Ipv4Addr::new(10, 0, 0, node as u8).into());
        let cable = Cable { table: self.table.clone(), own: node };
        let (heard, offer) = (Arc::default(), DataExchange::default());
        Machine { env, cable, heard, offer, running: None }
    }
}

impl Machine {
    fn node(&self) -> u32 {
        self.cable.own
    }

    /// Starts the service. Fails when the disk does.
    fn start(&mut self) -> Result<(), CallError> {
        self.env.fs().create_dir_all(Path::new(DIR), 0o700).map_err(|e| CallError::new("disk", e.to_string()))?;
        let host = Host {
            env: self.env.clone(),
            dir: Some(DIR.into()),
            events: self.heard.clone(),
            network: Arc::new(self.cable.clone()),
        };
        let service = self.offer.open(&host)?;
        let work = service.work().unwrap();
        self.running = Some((service.clone(), tokio::spawn(work)));
        self.cable.table.lock().insert(self.node(), service);
        Ok(())
    }

    /// Stops the service; what waits for the disk is let through first.
    async fn stop(&mut self) {
        self.cable.table.lock().remove(&self.node());
        if let Some((_, work)) = self.running.take() {
            work.abort();
            let _ = work.await;
        }
        // Storing goes on by itself for a moment.
        self.env.sleep(Duration::from_secs(200)).await;
    }

    /// Pulls the plug and starts again.
    async fn crash(&mut self) {
        self.stop().await;
        self.env.sim().unwrap().crash_disk();
        self.start().unwrap();
    }

    fn local(&self) -> Arc<dyn LocalMethods> {
        self.running.as_ref().unwrap().0.local().unwrap()
    }

    fn list(&self, dir: &str) -> Vec<String> {
        let entries = self.env.fs().list(&Path::new(DIR).join(dir)).unwrap_or_default();
        let files = entries.into_iter().filter(|entry| !entry.name.to_string_lossy().starts_with('.'));
        files.map(|entry| entry.name.into_string().unwrap()).collect()
    }

    fn path(&self, dir: &str, name: &str) -> PathBuf {
        Path::new(DIR).join(dir).join(name)
    }

    fn read(&self, dir: &str, name: &str) -> Vec<u8> {
        self.env.fs().read(&self.path(dir, name)).unwrap()
    }

    /// The messages of the inbox in the order of their names.
    fn inbox(&self) -> Vec<Record> {
        self.list("inbox").iter().map(|name| Record::parse(&self.read("inbox", name)).unwrap()).collect()
    }

    fn texts(&self) -> Vec<String> {
        self.inbox().into_iter().map(|record| String::from_utf8(record.payload).unwrap()).collect()
    }

    /// A stream from this machine to another one.
    fn dial(&self, to: u32) -> DuplexStream {
        self.cable.open(to).unwrap()
    }

    async fn send(&self, to: u32, text: &str, id: &str) -> Result<Delivery, SendError> {
        let stream = self.cable.open(to).map_err(|e| SendError::Write(e.message))?;
        Client::new(stream, None).send(&message(text, Some(id))).await
    }

    /// Queues a message and returns the lines until the service ends them.
    async fn put(&self, to: u32, payload: &[u8], mut args: Value) -> Result<Vec<Value>, CallError> {
        args["to"] = Address::backbone(to).to_string().into();
        args["bytes"] = payload.len().into();
        let serve = self.local().open("outbox.put", args).await?;
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let serving = tokio::spawn(serve(Box::new(far)));
        let mut text = Vec::new();
        let (mut from, mut into) = tokio::io::split(&mut near);
        let write = async {
            let _ = into.write_all(payload).await;
        };
        let (_, read) = tokio::join!(write, from.read_to_end(&mut text));
        read.unwrap();
        serving.await.unwrap().unwrap();
        Ok(text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect())
    }

    async fn call(&self, method: &str, args: Value) -> Result<Value, CallError> {
        self.local().call(method, args).await
    }

    async fn state(&self, id: &str) -> String {
        let status = self.call("outbox.status", serde_json::json!({ "message_id": id })).await;
        status.map_or_else(|e| e.code, |status| status["state"].as_str().unwrap().to_owned())
    }

    /// Waits, for hours if need be, until a message has a state.
    async fn until(&self, id: &str, state: &str) {
        for _ in 0..20_000 {
            if self.state(id).await == state {
                return;
            }
            self.env.sleep(Duration::from_secs(30)).await;
        }
        panic!("message {id} never became {state}: {}", self.state(id).await);
    }
}

fn message(text: &str, id: Option<&str>) -> MessageToSend {
    MessageToSend {
        kind: MessageType::Text,
        payload: Arc::new(bytes::Bytes::from(text.to_owned())),
        tag: Tag { message_id: id.map(ToOwned::to_owned), reply_to: None, wants_receipt: false },
        trace: None,
    }
}

/// Reads one frame.
async fn read_frame(stream: &mut DuplexStream) -> Option<(u32, Vec<u8>)> {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head).await.ok()?;
    let header = Header::parse(head);
    let mut body = vec![0; header.len as usize];
    stream.read_exact(&mut body).await.ok()?;
    Some((header.kind, body))
}

async fn answer(stream: &mut DuplexStream, wire: &[u8]) -> String {
    stream.write_all(wire).await.unwrap();
    let (_, body) = read_frame(stream).await.expect("an answer");
    String::from_utf8(body).unwrap()
}
