//! [`FebCore`] on a UDP socket, registered at a rendezvous the way February's daemon does (04 §18.2).
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a foreign daemon: real sockets and clock on purpose

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pilot_wire::beacon::BeaconMessage;
use serde_json::{Value, json};

use super::core::{Counters, Directory, FebCore};
use super::crypto::Keys;
use super::stream::State;

/// When a dial takes the relay: at the third timer of its SYN.
const RELAY_AFTER: Duration = Duration::from_millis(3_400);

/// How a peer starts.
#[derive(Clone, Debug)]
pub struct FebOptions {
    /// Registry, TCP.
    pub registry: SocketAddr,
    /// Beacon, UDP; none disables punching and relaying.
    pub beacon: Option<SocketAddr>,
    /// Local UDP address.
    pub listen: SocketAddr,
    /// Secrets are made from this, so that a run repeats.
    pub seed: u8,
    /// Registered name; empty for none.
    pub hostname: String,
    /// Whether `resolve` answers everybody.
    pub public: bool,
}

/// A connection to the registry, one request at a time.
struct Registry {
    stream: TcpStream,
    keys: Keys,
    node: u32,
}

impl Registry {
    fn connect(at: SocketAddr, keys: Keys) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&at, Duration::from_secs(5)).context("connect to the registry")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream, keys, node: 0 })
    }

    fn call(&mut self, request: &Value) -> Result<Value> {
        let body = serde_json::to_vec(request)?;
        // Two writes, as February does.
        self.stream.write_all(&u32::try_from(body.len())?.to_be_bytes())?;
        self.stream.write_all(&body)?;
        let mut len = [0; 4];
        self.stream.read_exact(&mut len)?;
        let mut body = vec![0; u32::from_be_bytes(len).min(1 << 20) as usize];
        self.stream.read_exact(&mut body)?;
        let answer: Value = serde_json::from_slice(&body)?;
        if let Some(error) = answer["error"].as_str() {
            bail!("registry: {error}");
        }
        Ok(answer)
    }

    fn signed(&mut self, mut request: Value, text: &str) -> Result<Value> {
        request["signature"] = STANDARD.encode(self.keys.sign(text.as_bytes())).into();
        self.call(&request)
    }
}

impl Directory for Arc<Mutex<Registry>> {
    fn key(&mut self, node: u32) -> Option<[u8; 32]> {
        let answer = lock(self).call(&json!({"type": "lookup", "node_id": node})).ok()?;
        STANDARD.decode(answer["public_key"].as_str()?).ok()?.try_into().ok()
    }

    fn resolve(&mut self, node: u32) -> Option<SocketAddr> {
        let mut registry = lock(self);
        let own = registry.node;
        let request = json!({"type": "resolve", "node_id": node, "requester_id": own});
        let answer = registry.signed(request, &format!("resolve:{own}:{node}")).ok()?;
        answer["real_addr"].as_str()?.parse().ok()
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn keys_of(seed: u8, generation: u8) -> Result<Keys> {
    let mut exchange = [seed ^ 0x5A; 32];
    exchange[1] = generation;
    Keys::new(&[seed; 32], &exchange)
}

/// A running peer. Dropping it ends its thread.
pub struct FebPeer {
    core: Arc<Mutex<FebCore>>,
    registry: Arc<Mutex<Registry>>,
    socket: UdpSocket,
    seed: u8,
    generation: AtomicU8,
    node: u32,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FebPeer {
    /// Registers and starts to serve echo (7) and the trust handshake (444).
    pub fn start(options: &FebOptions) -> Result<Self> {
        let socket = UdpSocket::bind(options.listen)?;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        let keys = keys_of(options.seed, 0)?;
        let public_key = STANDARD.encode(keys.identity());
        let mut registry = Registry::connect(options.registry, keys_of(options.seed, 0)?)?;
        let listen = socket.local_addr()?.to_string();
        let answer = registry.call(&json!({"type": "register", "listen_addr": listen, "public_key": public_key}))?;
        let node = answer["node_id"].as_u64().and_then(|n| u32::try_from(n).ok()).context("node_id missing")?;
        registry.node = node;
        if options.public {
            let request = json!({"type": "set_visibility", "node_id": node, "public": true});
            registry.signed(request, &format!("set_visibility:{node}"))?;
        }
        if !options.hostname.is_empty() {
            let request = json!({"type": "set_hostname", "node_id": node, "hostname": options.hostname});
            registry.signed(request, &format!("set_hostname:{node}"))?;
        }
        let registry = Arc::new(Mutex::new(registry));
        let mut drawn = u32::from(options.seed).wrapping_mul(0x9E37_79B9) | 1;
        let prefixes = move || {
            // xorshift: any sequence will do, as long as it differs from seed to seed.
            drawn ^= drawn << 13;
            drawn ^= drawn >> 17;
            drawn ^= drawn << 5;
            drawn.to_be_bytes()
        };
        let core = FebCore::new(node, keys, options.beacon, Box::new(Arc::clone(&registry)), Box::new(prefixes));
        let core = Arc::new(Mutex::new(core));
        if let Some(beacon) = options.beacon {
            let mut discover = Vec::new();
            BeaconMessage::Discover { node }.emit(&mut discover);
            socket.send_to(&discover, beacon)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (core, socket, stop, registry) =
                (Arc::clone(&core), socket.try_clone()?, Arc::clone(&stop), Arc::clone(&registry));
            std::thread::Builder::new().name("feb-peer".into()).spawn(move || {
                run(&core, &socket, &stop, &registry, node);
            })?
        };
        let (seed, generation) = (options.seed, AtomicU8::new(0));
        Ok(Self { core, registry, socket, seed, generation, node, stop, thread: Some(thread) })
    }

    /// Own node id.
    pub fn node(&self) -> u32 {
        self.node
    }

    /// Own UDP address.
    pub fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    /// Counts so far.
    pub fn counters(&self) -> Counters {
        lock(&self.core).counters
    }

    /// Runs `f` on the core and sends what it produced.
    pub fn with<R>(&self, f: impl FnOnce(&mut FebCore, Instant) -> R) -> R {
        let (result, out) = {
            let mut core = lock(&self.core);
            let result = f(&mut core, Instant::now());
            core.tick(Instant::now());
            (result, core.drain())
        };
        for (to, datagram) in out {
            // A full socket buffer loses a datagram, as it would for the real one.
            let _ = self.socket.send_to(&datagram, to);
        }
        result
    }

    /// Sends bytes as they are from the tunnel socket.
    pub fn send_raw(&self, to: SocketAddr, datagram: &[u8]) -> Result<()> {
        self.socket.send_to(datagram, to)?;
        Ok(())
    }

    /// Waits until `done` holds for the core.
    pub fn wait(&self, what: &str, limit: Duration, mut done: impl FnMut(&mut FebCore) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.with(|core, _| done(core)) {
            if Instant::now() > deadline {
                bail!("February peer waited {limit:?} for: {what}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Opens a stream and waits for the answer; what is not answered directly goes by relay (01 §20).
    pub fn dial(&self, node: u32, port: u16, limit: Duration) -> Result<u32> {
        let id = self.with(|core, now| core.dial(now, node, port));
        let begun = Instant::now();
        let mut state = State::SynSent;
        self.wait(&format!("SYN|ACK of node {node} port {port}"), limit, |core| {
            state = core.conn(id).map_or(State::Closed, |c| c.state);
            if state == State::SynSent && begun.elapsed() >= RELAY_AFTER {
                core.use_relay(node);
            }
            state != State::SynSent
        })?;
        if state == State::Closed { Err(anyhow!("connection refused")) } else { Ok(id) }
    }

    /// Writes to a stream.
    pub fn write(&self, id: u32, data: &[u8]) {
        self.with(|core, _| core.conn(id).map(|c| c.write(data)));
    }

    /// Reads a stream until the peer has ended it.
    pub fn read_to_end(&self, id: u32, limit: Duration) -> Result<Vec<u8>> {
        self.wait("the end of the stream", limit, |core| {
            core.conn(id).is_none_or(|c| matches!(c.state, State::TimeWait | State::Closed))
        })?;
        Ok(self.with(|core, _| core.conn(id).map(|c| std::mem::take(&mut c.received))).unwrap_or_default())
    }

    /// The next stream that somebody opened to `port`, which must be listened on.
    pub fn accept(&self, port: u16, limit: Duration) -> Result<u32> {
        let mut found = None;
        self.wait(&format!("a stream to port {port}"), limit, |core| {
            let mut others = Vec::new();
            while let Some(id) = core.accept() {
                if found.is_none() && core.conn(id).is_some_and(|c| c.local.port == port) {
                    found = Some(id);
                } else {
                    others.push(id);
                }
            }
            others.into_iter().for_each(|id| core.requeue(id));
            found.is_some()
        })?;
        found.context("no stream")
    }

    /// Reads exactly `len` bytes from a stream.
    pub fn read_exact(&self, id: u32, len: usize, limit: Duration) -> Result<Vec<u8>> {
        let mut have = 0;
        let waited = self.wait(&format!("{len} bytes"), limit, |core| {
            have = core.conn(id).map_or(0, |c| c.received.len());
            have >= len || core.conn(id).is_none_or(|c| c.state != State::Established)
        });
        waited.with_context(|| format!("{have} of {len} bytes came"))?;
        self.with(|core, _| match core.conn(id) {
            Some(c) if c.received.len() >= len => Ok(c.received.drain(..len).collect()),
            Some(c) => Err(anyhow!("stream ended ({:?}) after {} of {len} bytes", c.state, c.received.len())),
            None => Err(anyhow!("no stream {id}")),
        })
    }

    /// February's close.
    pub fn close(&self, id: u32) {
        self.with(|core, _| core.close(id));
    }

    /// Tells the registry that this node trusts `peer`, so that `resolve` works for both (04 §11).
    pub fn report_trust(&self, peer: u32) -> Result<()> {
        let node = self.node;
        let request = json!({"type": "report_trust", "node_id": node, "peer_id": peer});
        lock(&self.registry).signed(request, &format!("report_trust:{node}:{peer}"))?;
        Ok(())
    }

    /// Sends one trust message over a stream to port 444: one JSON object, half a second, close (05 §3.2).
    pub fn send_handshake(&self, peer: u32, kind: &str, limit: Duration) -> Result<()> {
        let message = handshake_message(&lock(&self.registry).keys, self.node, peer, kind);
        let id = self.dial(peer, 444, limit)?;
        self.write(id, &message);
        std::thread::sleep(Duration::from_millis(500));
        self.close(id);
        Ok(())
    }

    /// Ends and starts the process: new X25519 key, no sessions, no streams, same identity and socket.
    pub fn restart(&self) -> Result<()> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let keys = keys_of(self.seed, generation)?;
        self.with(|core, _| core.restart(keys));
        Ok(())
    }
}

impl Drop for FebPeer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The thread ends within one read time-out; a panic in it has failed the test already.
            let _ = thread.join();
        }
    }
}

fn handshake_message(keys: &Keys, own: u32, peer: u32, kind: &str) -> Vec<u8> {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let reason = if kind == "handshake_revoke" { "trust revoked" } else { "" };
    json!({
        "type": kind,
        "node_id": own,
        "public_key": STANDARD.encode(keys.identity()),
        "justification": "",
        "signature": STANDARD.encode(keys.sign(format!("handshake:{own}:{peer}").as_bytes())),
        "reason": reason,
        "timestamp": unix,
    })
    .to_string()
    .into_bytes()
}

/// Accept messages under way: stream, when to close it.
struct Reply {
    conn: u32,
    written: bool,
    message: Vec<u8>,
    close_at: Option<Instant>,
}

fn run(core: &Mutex<FebCore>, socket: &UdpSocket, stop: &AtomicBool, registry: &Arc<Mutex<Registry>>, node: u32) {
    let mut buf = vec![0; 65_573];
    let mut handshakes: Vec<u32> = Vec::new();
    let mut replies: Vec<Reply> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let received = match socket.recv_from(&mut buf) {
            Ok(r) => Some(r),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            // ICMP errors of earlier sends surface here.
            Err(_) => None,
        };
        let out = {
            let mut core = lock(core);
            let now = Instant::now();
            if let Some((len, from)) = received {
                core.handle(now, from, &buf[..len]);
            }
            serve_handshakes(&mut core, now, registry, node, &mut handshakes, &mut replies);
            core.tick(now);
            core.drain()
        };
        for (to, datagram) in out {
            let _ = socket.send_to(&datagram, to);
        }
    }
}

/// Port 444: every request is approved, by a stream of its own in the other direction (05 §3.3).
fn serve_handshakes(
    core: &mut FebCore,
    now: Instant,
    registry: &Arc<Mutex<Registry>>,
    node: u32,
    waiting: &mut Vec<u32>,
    replies: &mut Vec<Reply>,
) {
    let mut others = Vec::new();
    while let Some(id) = core.accept() {
        match core.conn(id) {
            Some(c) if c.local.port == 444 => waiting.push(id),
            _ => others.push(id),
        }
    }
    for id in others {
        core.requeue(id);
    }
    waiting.retain(|&id| {
        let Some(conn) = core.conn(id) else { return false };
        // Exactly the first segment is parsed; what our side sends fits one.
        let Ok(message) = serde_json::from_slice::<Value>(&conn.received) else {
            return conn.state == State::Established;
        };
        let Some(peer) = message["node_id"].as_u64().and_then(|n| u32::try_from(n).ok()) else { return false };
        core.note_handshake(peer, message["type"].as_str().unwrap_or_default());
        if message["type"] == "handshake_request" {
            let text = format!("report_trust:{node}:{peer}");
            let mut registry = lock(registry);
            // The peer learns of the approval from the accept message; the report only opens `resolve`.
            let _ = registry.signed(json!({"type": "report_trust", "node_id": node, "peer_id": peer}), &text);
            let message = handshake_message(&registry.keys, node, peer, "handshake_accept");
            drop(registry);
            let conn = core.dial(now, peer, 444);
            replies.push(Reply { conn, written: false, message, close_at: None });
        }
        false
    });
    replies.retain_mut(|reply| {
        let Some(conn) = core.conn(reply.conn) else { return false };
        if conn.state == State::Established && !reply.written {
            conn.write(&reply.message);
            reply.written = true;
            reply.close_at = Some(now + Duration::from_millis(500));
        }
        if reply.close_at.is_some_and(|at| now >= at) {
            core.close(reply.conn);
            return false;
        }
        conn_alive(core, reply.conn)
    });
}

fn conn_alive(core: &mut FebCore, id: u32) -> bool {
    core.conn(id).is_some_and(|c| matches!(c.state, State::SynSent | State::Established))
}
