//! Nameserver (port 53): names for addresses and networks, and who offers what (04 §22). A node serves it when told to.
//!
//! A stream is one request and one reply of text. Records live five minutes from their last registration and are kept in
//! one file. Whoever registered a name first has it until it expires; an address is registered by its own node only.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pilot_env::Env;
use pilot_wire::Address;
use pilot_wire::service::nameserver::{MAX_REPLY, MAX_REQUEST, Provider, Reply, Request};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{CallError, Context, Host, Offer, Service, Serving, Stream};

/// The port.
pub const PORT: u16 = 53;
/// Name in logs and flags.
const NAME: &str = "nameserver";
/// Lifetime of a record from its last registration (04 §22.4).
pub const LIFETIME: Duration = Duration::from_secs(300);
/// Records of each type. A further one is refused.
pub const MAX_RECORDS: usize = 10_000;
/// Records of all types of one node. A further one is refused.
pub const MAX_PER_NODE: usize = 256;
/// Longest name, in bytes.
pub const MAX_NAME: usize = 253;
/// Longest wait for a request.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// How long a request without a newline waits for more: official clients send it in one write, without one.
const QUIET: Duration = Duration::from_millis(500);
/// Largest file that is read.
const MAX_FILE: u64 = 64 << 20;

/// Offers the nameserver.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nameserver;

impl Offer for Nameserver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn open(&self, host: &Host) -> Result<Arc<dyn Service>, CallError> {
        let path = host.dir.as_ref().map(|dir| dir.join("nameserver.json"));
        let mut records = Records::default();
        if let Some(path) = &path {
            let unusable = |why: String| {
                CallError::new("nameserver_unusable", format!("{}: {why}", path.display()))
                    .hint("repair the file, or move it away to begin without records")
            };
            match host.env.fs().read_limited(path, MAX_FILE) {
                Ok(text) => {
                    let file = serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
                    records.load(file, host.env.unix());
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unusable(error.to_string())),
            }
        }
        Ok(Arc::new(Serve(Arc::new(Server { env: host.env.clone(), path, records: Mutex::new(records) }))))
    }
}

struct Serve(Arc<Server>);

impl Service for Serve {
    fn name(&self) -> &'static str {
        NAME
    }

    fn port(&self) -> u16 {
        PORT
    }

    fn serve(&self, stream: Box<dyn Stream>, context: Context) -> Serving {
        Box::pin(serve(stream, context, self.0.clone()))
    }
}

/// A record with its owner and its age.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record<T> {
    value: T,
    owner: u32,
    until: Duration,
}

/// The file, in the form of the official one.
#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    a_records: Option<Vec<AFile>>,
    n_records: Option<Vec<NFile>>,
    s_records: Option<Vec<SFile>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct AFile {
    name: String,
    address: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct NFile {
    name: String,
    network_id: u16,
    /// Ours: who registered it.
    #[serde(default, skip_serializing_if = "is_zero")]
    owner: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct SFile {
    name: String,
    address: String,
    network_id: u16,
    port: u16,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A service record: its name, and where it is offered.
type Offered = Record<(String, Address)>;

/// All records.
#[derive(Debug, Default)]
struct Records {
    a: BTreeMap<String, Record<Address>>,
    n: BTreeMap<String, Record<u16>>,
    s: BTreeMap<(u16, u16), Vec<Offered>>,
}

impl Records {
    fn load(&mut self, file: File, now: Duration) {
        let until = now + LIFETIME;
        for record in file.a_records.unwrap_or_default().into_iter().take(MAX_RECORDS) {
            if let Ok(address) = record.address.parse::<Address>() {
                self.a.insert(record.name, Record { value: address, owner: address.node, until });
            }
        }
        for record in file.n_records.unwrap_or_default().into_iter().take(MAX_RECORDS) {
            self.n.insert(record.name, Record { value: record.network_id, owner: record.owner, until });
        }
        for record in file.s_records.unwrap_or_default().into_iter().take(MAX_RECORDS) {
            if let Ok(address) = record.address.parse::<Address>() {
                let value = (record.name, address);
                let key = (record.network_id, record.port);
                self.s.entry(key).or_default().push(Record { value, owner: address.node, until });
            }
        }
    }

    fn file(&self) -> File {
        let list = |empty: bool| if empty { None } else { Some(()) };
        let a = self.a.iter().map(|(name, r)| AFile { name: name.clone(), address: r.value.to_string() });
        let n = self.n.iter().map(|(name, r)| NFile { name: name.clone(), network_id: r.value, owner: r.owner });
        let s = self.s.iter().flat_map(|((network_id, port), all)| {
            all.iter().map(|r| SFile {
                name: r.value.0.clone(),
                address: r.value.1.to_string(),
                network_id: *network_id,
                port: *port,
            })
        });
        File {
            a_records: list(self.a.is_empty()).map(|()| a.collect()),
            n_records: list(self.n.is_empty()).map(|()| n.collect()),
            s_records: list(self.s.is_empty()).map(|()| s.collect()),
        }
    }

    fn expire(&mut self, now: Duration) {
        self.a.retain(|_, record| record.until > now);
        self.n.retain(|_, record| record.until > now);
        self.s.retain(|_, all| {
            all.retain(|record| record.until > now);
            !all.is_empty()
        });
    }

    fn has_room(&self, owner: u32) -> Result<(), String> {
        let services = self.s.values().map(Vec::len).sum::<usize>();
        if self.a.len().max(self.n.len()).max(services) >= MAX_RECORDS {
            return Err(format!("too many records (limit {MAX_RECORDS})"));
        }
        let own = self.a.values().filter(|r| r.owner == owner).count()
            + self.n.values().filter(|r| r.owner == owner).count()
            + self.s.values().flatten().filter(|r| r.owner == owner).count();
        if own >= MAX_PER_NODE { Err(format!("too many records of one node (limit {MAX_PER_NODE})")) } else { Ok(()) }
    }

    /// Answers a request. The flag says whether the file has to change.
    fn handle(&mut self, request: Request, caller: u32, now: Duration) -> (Reply, bool) {
        self.expire(now);
        let until = now + LIFETIME;
        let changed = match request {
            Request::QueryA(name) => {
                return match self.a.get(&name) {
                    Some(record) => (Reply::A { address: record.value, name }, false),
                    None => (Reply::Err(format!("name {name:?} not found")), false),
                };
            }
            Request::QueryN(name) => {
                return match self.n.get(&name) {
                    Some(record) => (Reply::N { network: record.value, name }, false),
                    None => (Reply::Err(format!("network {name:?} not found")), false),
                };
            }
            Request::QueryS { network, port } => {
                let all = self.s.get(&(network, port)).map(Vec::as_slice).unwrap_or_default();
                let provider =
                    |r: &Record<(String, Address)>| Provider { name: r.value.0.clone(), address: r.value.1, port };
                return (Reply::S(all.iter().map(provider).collect()), false);
            }
            Request::RegisterA { name, address } => self.register_a(name, address, caller, until),
            Request::RegisterN { name, network } => self.register_n(name, network, caller, until),
            Request::RegisterS { name, address, network, port } => {
                self.register_s(name, address, (network, port), caller, until)
            }
        };
        match changed {
            Ok(changed) => (Reply::Ok, changed),
            Err(why) => (Reply::Err(why), false),
        }
    }

    fn register_a(&mut self, name: String, address: Address, caller: u32, until: Duration) -> Result<bool, String> {
        check_name(&name)?;
        if address.node != caller {
            return Err("cannot register address for another node".to_owned());
        }
        match self.a.get_mut(&name) {
            Some(record) if record.owner != caller => Err(format!("name {name:?} belongs to another node")),
            Some(record) => {
                let changed = record.value != address;
                *record = Record { value: address, owner: caller, until };
                Ok(changed)
            }
            None => {
                self.has_room(caller)?;
                self.a.insert(name, Record { value: address, owner: caller, until });
                Ok(true)
            }
        }
    }

    fn register_n(&mut self, name: String, network: u16, caller: u32, until: Duration) -> Result<bool, String> {
        check_name(&name)?;
        match self.n.get_mut(&name) {
            Some(record) if record.owner != caller && record.owner != 0 => {
                Err(format!("network {name:?} belongs to another node"))
            }
            Some(record) => {
                let changed = record.value != network || record.owner != caller;
                *record = Record { value: network, owner: caller, until };
                Ok(changed)
            }
            None => {
                self.has_room(caller)?;
                self.n.insert(name, Record { value: network, owner: caller, until });
                Ok(true)
            }
        }
    }

    fn register_s(
        &mut self,
        name: String,
        address: Address,
        key: (u16, u16),
        caller: u32,
        until: Duration,
    ) -> Result<bool, String> {
        check_name(&name)?;
        if address.node != caller {
            return Err("cannot register service for another node".to_owned());
        }
        let known = self.s.get_mut(&key).and_then(|all| all.iter_mut().find(|record| record.value.1 == address));
        if let Some(record) = known {
            // As officially: the name stays, only the age changes.
            record.until = until;
            return Ok(false);
        }
        self.has_room(caller)?;
        self.s.entry(key).or_default().push(Record { value: (name, address), owner: caller, until });
        Ok(true)
    }
}

fn check_name(name: &str) -> Result<(), String> {
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(format!("name must have at most {MAX_NAME} bytes and no control characters"));
    }
    Ok(())
}

struct Server {
    env: Env,
    path: Option<PathBuf>,
    records: Mutex<Records>,
}

impl Server {
    /// Answers a request. What is answered with `OK` is on disk.
    fn answer(&self, text: &[u8], caller: u32) -> Reply {
        let request = match Request::parse(text) {
            Ok(request) => request,
            Err(error) => return Reply::Err(error.to_string()),
        };
        let mut records = self.records.lock();
        let (reply, changed) = records.handle(request, caller, self.env.unix());
        let Some(path) = self.path.as_ref().filter(|_| changed) else { return reply };
        let text = serde_json::to_vec_pretty(&records.file()).unwrap_or_default();
        match self.env.fs().write_atomic(path, &text, 0o600) {
            Ok(()) => reply,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a record cannot be kept");
                Reply::Err("the record cannot be kept now".to_owned())
            }
        }
    }
}

async fn serve(mut stream: Box<dyn Stream>, context: Context, server: Arc<Server>) -> io::Result<()> {
    let text = tokio::time::timeout(REQUEST_WAIT, request(&mut stream)).await;
    let reply = match text {
        Ok(text) => {
            let text = text?;
            let caller = context.remote.addr.node;
            let answered = tokio::task::spawn_blocking(move || server.answer(&text, caller)).await;
            answered.unwrap_or_else(|_| Reply::Err("the node has stopped".to_owned()))
        }
        Err(_) => Reply::Err("no request within 10s".to_owned()),
    };
    stream.write_all(reply.emit().as_bytes()).await?;
    stream.shutdown().await
}

/// Reads to a newline, to the end, or until nothing more comes.
async fn request(stream: &mut Box<dyn Stream>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    loop {
        let begun = !text.is_empty();
        let read = stream.read_buf(&mut text);
        let n = if begun { tokio::time::timeout(QUIET, read).await.unwrap_or(Ok(0))? } else { read.await? };
        if n == 0 || text.contains(&b'\n') || text.len() > MAX_REQUEST {
            return Ok(text);
        }
    }
}

/// Asks a nameserver over a stream to its port 53.
///
/// # Errors
/// The stream's; `InvalidData` for a reply that is none.
pub async fn ask(mut stream: impl Stream, request: &Request) -> io::Result<Reply> {
    // A newline, so that a server of ours need not wait for more; official ones take it for white space.
    stream.write_all(format!("{}\n", request.emit()).as_bytes()).await?;
    stream.flush().await?;
    let mut text = Vec::new();
    (&mut stream).take(MAX_REPLY as u64).read_to_end(&mut text).await?;
    let _ = stream.shutdown().await;
    let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    let text = String::from_utf8(text).map_err(|_| invalid("the reply is no text".to_owned()))?;
    Reply::parse(&text).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
#[path = "nameserver_tests.rs"]
mod tests;
