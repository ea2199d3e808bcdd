//! One side of a cell: a daemon as a process, ours or an official one, or the scripted peer of February. Everything
//! blocks, and everything has a limit.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pilot::{Driver, Listener, Stream};
use pilot_testkit::agent::{Agent, AgentOptions, Release};
use pilot_testkit::lab::Host;
use pilot_testkit::scheme_a::stream::State;
use pilot_testkit::scheme_a::{FebOptions, FebPeer};
use pilot_wire::{Address, SocketAddress};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

/// For everything that ends quickly when it works: official dials give up after 30 s, and a heartbeat that fetches a
/// trust message comes after 65 s.
pub(crate) const LIMIT: Duration = Duration::from_secs(75);

/// Where a party lives, and which servers it uses.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) registry: SocketAddr,
    pub(crate) beacon: SocketAddr,
    pub(crate) listen: SocketAddr,
    /// A host of its own, unless it shares the test's.
    pub(crate) host: Option<Arc<Host>>,
}

/// A daemon. `label` is for messages.
pub(crate) trait Party: Send + Sync {
    fn label(&self) -> &str;
    fn node(&self) -> u32;

    /// Asks `peer` for trust.
    fn ask(&self, peer: u32) -> Result<()>;
    /// Waits for `peer`'s request and grants it.
    fn grant(&self, peer: u32) -> Result<()>;
    /// Waits until trust in `peer` is there, or gone.
    fn wait_trust(&self, peer: u32, there: bool) -> Result<()>;
    fn revoke(&self, peer: u32) -> Result<()>;

    fn ping(&self, peer: u32) -> Result<()>;
    /// A message to the echo service of `peer` and back.
    fn connect(&self, peer: u32, text: &str) -> Result<()>;
    /// So many MiB to the echo service of `peer` and back.
    fn bench(&self, peer: u32, megabytes: usize) -> Result<()>;

    fn dial(&self, peer: u32, port: u16) -> Result<Box<dyn Pipe>>;
    fn listen(&self, port: u16) -> Result<Box<dyn Acceptor + '_>>;

    /// Kills it without warning and starts it again: new session keys, same identity and address.
    fn restart(&mut self) -> Result<()>;
    /// Streams from or to `port` that it still holds, other than those that only wait for their time to pass.
    fn open_streams(&self, port: u16) -> Result<Vec<String>>;
    fn log(&self) -> String;
    /// Packets it has sent, where that can be told.
    fn packets_sent(&self) -> Result<Option<u64>>;
    /// Whether packets to `peer` go by relay, where that can be told.
    fn relays(&self, peer: u32) -> Result<Option<bool>>;
}

/// Gives out the streams that arrive at a port.
pub(crate) trait Acceptor {
    fn accept(&mut self) -> Result<Box<dyn Pipe>>;
}

/// A stream.
pub(crate) trait Pipe: Send {
    /// Writes `out` and reads `len` bytes, both at the same time.
    fn exchange(&mut self, out: &[u8], len: usize) -> Result<Vec<u8>>;
    /// Reads until the peer's end.
    fn drain(&mut self) -> Result<Vec<u8>>;
    /// Writes as much as the peer takes within `time`. Never an error: the peer may have closed.
    fn push(&mut self, out: &[u8], time: Duration);
    fn close(self: Box<Self>) -> Result<()>;
}

/// A process, ours or an official one, driven by its own command line and by our driver.
pub(crate) struct Daemon {
    agent: Agent,
    host: Option<Arc<Host>>,
    runtime: Arc<Runtime>,
    driver: Driver,
    is_ours: bool,
}

impl Daemon {
    pub(crate) fn start(
        release: &Release,
        is_ours: bool,
        name: &str,
        place: &Place,
        runtime: Arc<Runtime>,
    ) -> Result<Self> {
        let mut options = AgentOptions::new(place.registry, place.beacon, name).public();
        options.listen = place.listen;
        let agent = Agent::start_at(release, &options, |command| {
            if let Some(host) = &place.host {
                host.place(command);
            }
        })?;
        let driver = connect(&runtime, &agent)?;
        Ok(Self { agent, host: place.host.clone(), runtime, driver, is_ours })
    }

    fn address(peer: u32) -> String {
        Address::backbone(peer).to_string()
    }
}

fn connect(runtime: &Runtime, agent: &Agent) -> Result<Driver> {
    Ok(runtime.block_on(Driver::connect(agent.socket()))?)
}

impl Party for Daemon {
    fn label(&self) -> &str {
        self.agent.label()
    }

    fn node(&self) -> u32 {
        self.agent.node()
    }

    fn ask(&self, peer: u32) -> Result<()> {
        self.agent.ctl(&["handshake", &peer.to_string(), "interoperability"]).map(drop)
    }

    fn grant(&self, peer: u32) -> Result<()> {
        self.agent.wait(&format!("the request of node {peer}"), LIMIT, |me| {
            let pending = me.ctl(&["pending"])?;
            let waits = pending["pending"].as_array().is_some_and(|list| list.iter().any(|p| p["node_id"] == peer));
            Ok(waits || me.trusts(peer)?)
        })?;
        if !self.agent.trusts(peer)? {
            self.agent.ctl(&["approve", &peer.to_string()])?;
        }
        Ok(())
    }

    fn wait_trust(&self, peer: u32, there: bool) -> Result<()> {
        let what = if there { "trust in" } else { "the end of trust in" };
        self.agent.wait(&format!("{what} node {peer}"), LIMIT, |me| Ok(me.trusts(peer)? == there))
    }

    fn revoke(&self, peer: u32) -> Result<()> {
        self.agent.ctl(&["untrust", &peer.to_string()]).map(drop)
    }

    fn ping(&self, peer: u32) -> Result<()> {
        let ping = self.agent.ctl(&["ping", &Self::address(peer), "--count", "2"])?;
        let results = ping["results"].as_array().context("no results")?;
        let all = results.len() == 2 && results.iter().all(|r| r["bytes"] == 6 && r["error"].is_null());
        ensure!(all, "{ping}");
        Ok(())
    }

    fn connect(&self, peer: u32, text: &str) -> Result<()> {
        let answer = self.agent.ctl(&["connect", &Self::address(peer), "7", "--message", text])?;
        ensure!(answer["response"] == text, "{answer}");
        Ok(())
    }

    fn bench(&self, peer: u32, megabytes: usize) -> Result<()> {
        let bench = self.agent.ctl(&["bench", &Self::address(peer), &megabytes.to_string()])?;
        let size = megabytes << 20;
        ensure!(bench["sent_bytes"] == size && bench["recv_bytes"] == size, "{bench}");
        Ok(())
    }

    fn dial(&self, peer: u32, port: u16) -> Result<Box<dyn Pipe>> {
        let to = SocketAddress::new(Address::backbone(peer), port);
        let stream = self.runtime.block_on(self.driver.dial_timeout(to, LIMIT))?;
        Ok(Box::new(Local { stream, runtime: Arc::clone(&self.runtime) }))
    }

    fn listen(&self, port: u16) -> Result<Box<dyn Acceptor + '_>> {
        let listener = self.runtime.block_on(self.driver.listen(port))?;
        Ok(Box::new(Bound { listener, runtime: &self.runtime }))
    }

    fn restart(&mut self) -> Result<()> {
        let host = self.host.clone();
        self.agent.crash_and_restart_at(|command| {
            if let Some(host) = &host {
                host.place(command);
            }
        })?;
        self.driver = connect(&self.runtime, &self.agent)?;
        Ok(())
    }

    fn log(&self) -> String {
        self.agent.log()
    }

    fn open_streams(&self, port: u16) -> Result<Vec<String>> {
        let list = self.agent.ctl(&["connections"])?;
        let all = list["connections"].as_array().context("no connections")?;
        let waits = |state: &str| state.eq_ignore_ascii_case("time_wait") || state.eq_ignore_ascii_case("closed");
        let ours = |c: &&Value| c["local_port"] == port || c["remote_port"] == port;
        let open = all.iter().filter(ours).filter(|c| !c["state"].as_str().is_some_and(waits));
        Ok(open.map(|c| format!("{}:{} {}", c["local_port"], c["remote_port"], c["state"])).collect())
    }

    fn packets_sent(&self) -> Result<Option<u64>> {
        let info = self.runtime.block_on(self.driver.info())?;
        Ok(info["pkts_sent"].as_u64())
    }

    fn relays(&self, peer: u32) -> Result<Option<bool>> {
        if !self.is_ours {
            return Ok(None);
        }
        let info = self.runtime.block_on(self.driver.info())?;
        let list = info["peer_list"].as_array().context("no peer_list")?;
        let entry = list.iter().find(|p| p["node_id"] == peer).with_context(|| format!("{peer} is no peer: {info}"))?;
        Ok(Some(entry["path"] == "relay"))
    }
}

struct Bound<'a> {
    listener: Listener,
    runtime: &'a Arc<Runtime>,
}

impl Acceptor for Bound<'_> {
    fn accept(&mut self) -> Result<Box<dyn Pipe>> {
        let accepted = self.runtime.block_on(async { tokio::time::timeout(LIMIT, self.listener.accept()).await });
        let stream = accepted.context("no stream arrived")??;
        Ok(Box::new(Local { stream, runtime: Arc::clone(self.runtime) }))
    }
}

struct Local {
    stream: Stream,
    runtime: Arc<Runtime>,
}

impl Pipe for Local {
    fn exchange(&mut self, out: &[u8], len: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; len];
        let mut got = 0;
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let read = async {
            while got < len {
                match reader.read(&mut data[got..]).await? {
                    0 => bail!("the stream ended after {got} of {len} bytes"),
                    n => got += n,
                }
            }
            Ok(())
        };
        let write = async { Ok(writer.write_all(out).await?) };
        let both = async { tokio::try_join!(read, write) };
        let ended = self.runtime.block_on(async { tokio::time::timeout(LIMIT, both).await });
        ended.with_context(|| format!("{got} of {len} bytes came, {} to send", out.len()))??;
        Ok(data)
    }

    fn drain(&mut self) -> Result<Vec<u8>> {
        let mut data = Vec::new();
        let ended =
            self.runtime.block_on(async { tokio::time::timeout(LIMIT, self.stream.read_to_end(&mut data)).await });
        ended.with_context(|| format!("no end of the stream after {} bytes", data.len()))??;
        Ok(data)
    }

    fn push(&mut self, out: &[u8], time: Duration) {
        // What the peer refuses, or does not take in time, is no concern of the caller's.
        let _ = self.runtime.block_on(async { tokio::time::timeout(time, self.stream.write_all(out)).await });
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.runtime.block_on(self.stream.close())?)
    }
}

/// The scripted peer of February.
pub(crate) struct February {
    peer: Arc<FebPeer>,
}

impl February {
    pub(crate) fn start(place: &Place) -> Result<Self> {
        let options = FebOptions {
            registry: place.registry,
            beacon: Some(place.beacon),
            listen: place.listen,
            seed: 3,
            hostname: "theirs".to_owned(),
            public: true,
        };
        let peer = match &place.host {
            Some(host) => host.on(|| FebPeer::start(&options))??,
            None => FebPeer::start(&options)?,
        };
        Ok(Self { peer: Arc::new(peer) })
    }

    fn handshakes(&self, from: u32, kind: &str) -> usize {
        self.peer.with(|core, _| core.handshakes().iter().filter(|(node, what)| *node == from && what == kind).count())
    }

    fn open(&self, peer: u32, port: u16) -> Result<FebPipe> {
        let id = self.peer.dial(peer, port, LIMIT)?;
        Ok(FebPipe { peer: Arc::clone(&self.peer), id })
    }

    fn echo(&self, peer: u32, data: &[u8]) -> Result<()> {
        let mut pipe = self.open(peer, 7)?;
        ensure!(pipe.exchange(data, data.len())? == data, "the echo differs");
        Box::new(pipe).close()
    }
}

impl Party for February {
    fn label(&self) -> &str {
        "February"
    }

    fn node(&self) -> u32 {
        self.peer.node()
    }

    fn ask(&self, peer: u32) -> Result<()> {
        self.peer.send_handshake(peer, "handshake_request", LIMIT)
    }

    /// The script grants every request by itself.
    fn grant(&self, peer: u32) -> Result<()> {
        self.peer.wait("a request for trust", LIMIT, |core| {
            core.handshakes().iter().any(|(node, kind)| *node == peer && kind == "handshake_request")
        })
    }

    fn wait_trust(&self, peer: u32, there: bool) -> Result<()> {
        let started = Instant::now();
        let done = || match there {
            true => self.handshakes(peer, "handshake_accept") + self.handshakes(peer, "handshake_request") > 0,
            false => self.handshakes(peer, "handshake_revoke") > 0,
        };
        while !done() {
            ensure!(started.elapsed() < LIMIT, "February waited {LIMIT:?} for trust of node {peer} to be {there}");
            std::thread::sleep(Duration::from_millis(20));
        }
        if there { self.peer.report_trust(peer) } else { Ok(()) }
    }

    fn revoke(&self, peer: u32) -> Result<()> {
        self.peer.send_handshake(peer, "handshake_revoke", LIMIT)
    }

    /// February's command line pings by a stream to the echo service (02 §22).
    fn ping(&self, peer: u32) -> Result<()> {
        self.echo(peer, b"ping-0")
    }

    fn connect(&self, peer: u32, text: &str) -> Result<()> {
        self.echo(peer, text.as_bytes())
    }

    fn bench(&self, peer: u32, megabytes: usize) -> Result<()> {
        self.echo(peer, &super::cell::pattern(megabytes << 20, 9))
    }

    fn dial(&self, peer: u32, port: u16) -> Result<Box<dyn Pipe>> {
        Ok(Box::new(self.open(peer, port)?))
    }

    fn listen(&self, port: u16) -> Result<Box<dyn Acceptor + '_>> {
        self.peer.with(|core, _| core.listen(port));
        Ok(Box::new(FebPort { peer: &self.peer, port }))
    }

    fn restart(&mut self) -> Result<()> {
        self.peer.restart()
    }

    fn log(&self) -> String {
        format!("{:#?}", self.peer.counters())
    }

    fn open_streams(&self, port: u16) -> Result<Vec<String>> {
        Ok(self.peer.with(|core, _| core.open_streams(port)))
    }

    fn packets_sent(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn relays(&self, _peer: u32) -> Result<Option<bool>> {
        Ok(None)
    }
}

struct FebPort<'a> {
    peer: &'a Arc<FebPeer>,
    port: u16,
}

impl Acceptor for FebPort<'_> {
    fn accept(&mut self) -> Result<Box<dyn Pipe>> {
        let id = self.peer.accept(self.port, LIMIT)?;
        Ok(Box::new(FebPipe { peer: Arc::clone(self.peer), id }))
    }
}

struct FebPipe {
    peer: Arc<FebPeer>,
    id: u32,
}

impl Pipe for FebPipe {
    fn exchange(&mut self, out: &[u8], len: usize) -> Result<Vec<u8>> {
        self.peer.write(self.id, out);
        let data = self.peer.read_exact(self.id, len, LIMIT)?;
        self.peer.wait("everything to be acknowledged", LIMIT, |core| {
            core.conn(self.id).is_none_or(|c| c.is_flushed() || c.state != State::Established)
        })?;
        Ok(data)
    }

    fn drain(&mut self) -> Result<Vec<u8>> {
        self.peer.read_to_end(self.id, LIMIT)
    }

    fn push(&mut self, out: &[u8], time: Duration) {
        self.peer.write(self.id, out);
        std::thread::sleep(time);
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.peer.close(self.id);
        Ok(())
    }
}
