//! Raw clients at each door: what is let in arrives whole, what is not gets its reason, and nobody can take more than his
//! share.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pilot_env::Env;
use pilot_gateway::{Gateway, GatewayConfig, parse_ports};
use pilot_testkit::testnet::TestNet;
use pilot_wire::gateway::socks::{self, Host, Request};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::web::{self, BIG, ENDLESS, Seen, pattern};
use crate::{Addresses, patient};

/// Two agents that trust each other and one that trusts nobody; bob has a web server; a gateway at alice.
struct World {
    net: TestNet,
    gateway: Gateway,
    addresses: Addresses,
    seen: Arc<Seen>,
    socks: SocketAddr,
    proxy: SocketAddr,
}

async fn world(change: impl FnOnce(&mut GatewayConfig)) -> World {
    let mut net = TestNet::new(1).await.unwrap();
    net.add(|config| config.hostname = "bob".to_owned()).await.unwrap();
    net.add(|config| {
        config.hostname = "stranger".to_owned();
        config.public = true;
    })
    .await
    .unwrap();
    net.befriend(0, 1).await.unwrap();
    let seen = Arc::new(Seen::default());
    web::serve(&net.driver(1).await.unwrap(), Arc::clone(&seen)).await;
    let (env, addresses) = (Env::real(), Addresses::new());
    let mut config = GatewayConfig::new(&env, addresses.subnet().parse().unwrap());
    config.socks5 = Some(([127, 0, 0, 1], 0).into());
    config.http_proxy = Some(([127, 0, 0, 1], 0).into());
    change(&mut config);
    let gateway = Gateway::start(env, Arc::new(net.driver(0).await.unwrap()), config).await.unwrap();
    let (socks, proxy) = (gateway.socks5_addr().unwrap(), gateway.http_proxy_addr().unwrap());
    World { net, gateway, addresses, seen, socks, proxy }
}

impl World {
    async fn end(self) {
        patient("the gateway's end", self.gateway.shutdown()).await;
        self.net.shutdown().await;
    }

    /// Through SOCKS5: the reply code and the connection behind it.
    async fn socks(&self, host: Host, port: u16, early: &[u8]) -> (u8, TcpStream) {
        let mut tcp = TcpStream::connect(self.socks).await.unwrap();
        let request = Request { command: socks::CONNECT, host, port }.emit().unwrap();
        // All at once, as a client in a hurry does.
        tcp.write_all(&[&socks::greeting(socks::NO_AUTHENTICATION)[..], &request, early].concat()).await.unwrap();
        let mut reply = [0; 12];
        patient("the reply", tcp.read_exact(&mut reply)).await.unwrap();
        assert_eq!((&reply[..3], &reply[4..6]), (&[5, 0, 5][..], &[0, 1][..]), "{reply:?}");
        (reply[3], tcp)
    }

    async fn socks_name(&self, host: &str, port: u16) -> (u8, TcpStream) {
        self.socks(Host::Name(host.to_owned()), port, b"").await
    }

    /// Sends this to the HTTP proxy and reads to the end; the status, and everything.
    async fn http(&self, text: &str) -> (u16, String) {
        let mut tcp = TcpStream::connect(self.proxy).await.unwrap();
        tcp.write_all(text.as_bytes()).await.unwrap();
        let answer = patient("the answer", rest(tcp)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("{text:?}: {answer:?}")), answer)
    }

    async fn get(&self, url: &str) -> (u16, String) {
        self.http(&format!("GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }
}

async fn rest(mut tcp: TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    tcp.read_to_end(&mut all).await.map(|_| all)
}

/// Sends, ends the own direction, and reads the echo to its end.
async fn echoes(mut tcp: TcpStream, data: &[u8]) {
    let (mut read, mut write) = tcp.split();
    let mut got = Vec::new();
    let sending = async {
        write.write_all(data).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (read, ()) = patient("the echo", async { tokio::join!(read.read_to_end(&mut got), sending) }).await;
    read.unwrap();
    assert!(got == data, "{} bytes of {}", got.len(), data.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn socks_leads_to_agents_by_every_name_and_nowhere_else() {
    let world = world(|_| ()).await;
    let bob = world.net.node(1).address();
    let dashed = format!("0-0000-{:04x}-{:04x}.pilot", bob.node >> 16, bob.node & 0xFFFF);
    let dotted = format!("0000.{:04x}.{:04x}.pilot", bob.node >> 16, bob.node & 0xFFFF);
    for host in ["bob.pilot", "BOB.pilot.", &bob.to_string(), &dotted, &dashed] {
        let (code, tcp) = world.socks_name(host, 7).await;
        assert_eq!(code, 0, "{host}");
        // Half-close: the echo service answers everything before the end, and then ends.
        echoes(tcp, &pattern(500_000)).await;
    }
    let (code, mut tcp) = world.socks(Host::Name("bob.pilot".to_owned()), 7, b"too early").await;
    let mut early = [0; 9];
    patient("what was sent too early", tcp.read_exact(&mut early)).await.unwrap();
    assert_eq!((code, &early), (0, b"too early"));
    drop(tcp);

    // A target on this host that must not be reached.
    let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = outside.local_addr().unwrap().port();
    for (host, port, expected) in [
        (Host::Name("example.org".to_owned()), 80, 2),
        (Host::Name("localhost".to_owned()), port, 2),
        (Host::Name("127.0.0.1".to_owned()), port, 2),
        (Host::Ip([127, 0, 0, 1].into()), port, 2),
        (Host::Ip("::1".parse().unwrap()), port, 2),
        (Host::Name("nobody.pilot".to_owned()), 80, 4),
        (Host::Name("a_b.pilot".to_owned()), 80, 4),
        (Host::Name("bob.pilot".to_owned()), 81, 5),
    ] {
        let (code, tcp) = world.socks(host.clone(), port, b"").await;
        assert_eq!(code, expected, "{host:?}");
        assert_eq!(patient("the end", rest(tcp)).await.unwrap(), b"");
    }
    // The first to be accepted is the one that comes now.
    let ours = TcpStream::connect(outside.local_addr().unwrap()).await.unwrap();
    let (_, first) = patient("our own connection", outside.accept()).await.unwrap();
    assert_eq!(first, ours.local_addr().unwrap(), "the gateway connected to a TCP port of this host");
    let list = world.gateway.list();
    assert!(list["last_error"].as_str().is_some_and(|why| why.contains("bob.pilot") && why.contains("81")), "{list}");

    // A mapped address means its agent here, too.
    let mapping = world.gateway.map("bob", None).await;
    let ip = mapping.unwrap()["local_ip"].as_str().unwrap().parse().unwrap();
    let (code, tcp) = world.socks(Host::Ip(ip), 7, b"").await;
    assert_eq!(code, 0);
    echoes(tcp, b"by its address here").await;

    // What is not SOCKS5, or not CONNECT.
    for (sent, expected) in [
        (&b"\x05\x01\x02"[..], &b"\x05\xff"[..]),
        (b"\x05\x01\x00\x05\x02\x00\x01\x01\x02\x03\x04\x00\x50", b"\x05\x00\x05\x07\x00\x01\0\0\0\0\0\0"),
        (b"\x05\x01\x00\x05\x01\x00\x09", b"\x05\x00\x05\x08\x00\x01\0\0\0\0\0\0"),
        (b"\x05\x01\x00\x05\x01\x00\x03\x00", b"\x05\x00\x05\x01\x00\x01\0\0\0\0\0\0"),
        (b"\x04\x01\x00\x50\x01\x02\x03\x04\x00", b""),
        (b"\x05\x01", b""),
    ] {
        let mut tcp = TcpStream::connect(world.socks).await.unwrap();
        tcp.write_all(sent).await.unwrap();
        tcp.shutdown().await.unwrap();
        let got = patient("the answer", rest(tcp)).await.unwrap_or_default();
        assert_eq!(got, expected, "{sent:?}");
    }
    let mut lost = TcpStream::connect(world.socks).await.unwrap();
    lost.write_all(b"GET http://bob.pilot/ HTTP/1.1\r\n\r\n").await.unwrap();
    let mut told = [0; 12];
    lost.read_exact(&mut told).await.unwrap();
    assert_eq!(&told, b"HTTP/1.1 400");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_http_proxy_forwards_and_tunnels_and_says_why_not() {
    let world = world(|_| ()).await;
    let (status, page) = world.get("http://bob.pilot/").await;
    assert!(status == 200 && page.ends_with("<p id=who>hello from bob</p></body></html>"), "{page}");
    let head = world.seen.head.lock().unwrap().clone().to_ascii_lowercase();
    assert!(head.starts_with("get / http/1.1\r\n") && head.contains("\r\nhost: bob.pilot\r\n"), "{head}");
    assert!(head.contains("via: 1.1 pilot-gateway") && !head.contains("host: x"), "{head}");

    // One connection, several requests, to several agents' names; bodies in both directions.
    let mut tcp = TcpStream::connect(world.proxy).await.unwrap();
    let body = pattern(BIG);
    let address = format!("0000.{:04x}.{:04x}.pilot", world.net.id(1) >> 16, world.net.id(1) & 0xFFFF);
    let requests = [
        "GET http://bob.pilot/big HTTP/1.1\r\nHost: bob.pilot\r\nProxy-Connection: keep-alive\r\n\r\n".to_owned(),
        format!("POST http://{address}:80/count HTTP/1.1\r\nHost: {address}\r\nContent-Length: {BIG}\r\n\r\n"),
        "GET http://bob.pilot/open HTTP/1.1\r\nHost: bob.pilot\r\nConnection: close\r\n\r\n".to_owned(),
    ];
    tcp.write_all(requests[0].as_bytes()).await.unwrap();
    let mut got = Vec::new();
    patient("the big page", async {
        while !got.ends_with(&body[BIG - 100..]) {
            assert!(tcp.read_buf(&mut got).await.unwrap() > 0);
        }
    })
    .await;
    assert!(got.ends_with(&body));
    tcp.write_all(requests[1].as_bytes()).await.unwrap();
    tcp.write_all(&body).await.unwrap();
    got.clear();
    patient("the count", async {
        while !got.ends_with(b"true") {
            assert!(tcp.read_buf(&mut got).await.unwrap() > 0, "{}", String::from_utf8_lossy(&got));
        }
    })
    .await;
    assert!(got.ends_with(format!("{BIG} true").as_bytes()));
    tcp.write_all(requests[2].as_bytes()).await.unwrap();
    let open = patient("the open page", rest(tcp)).await.unwrap();
    assert!(String::from_utf8_lossy(&open).contains("until the end"));

    // A tunnel, half-closed.
    let mut tcp = TcpStream::connect(world.proxy).await.unwrap();
    tcp.write_all(b"CONNECT bob.pilot:7 HTTP/1.1\r\nHost: bob.pilot:7\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(patient("the tunnel", tcp.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    echoes(tcp, &pattern(500_000)).await;

    for (text, status, part) in [
        (
            "GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n",
            403,
            "not on the Pilot network",
        ),
        (
            "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n",
            403,
            "leads nowhere else",
        ),
        ("CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 403, "destination_ip_prohibited"),
        ("GET http://nobody.pilot/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 502, "dns_error"),
        ("GET http://bob.pilot:81/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 502, "connection_refused"),
        ("CONNECT bob.pilot:81 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 502, "connection_refused"),
        ("GET http://a_b.pilot/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400, "a_b.pilot"),
        ("GET https://bob.pilot/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400, "through CONNECT"),
        ("GET http://bob.pilot:99999/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "HTTP/1.1 400"),
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400, "not a web server"),
        (
            "GET /proxy.pac HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
            200,
            "dnsDomainIs(host, \".pilot\")",
        ),
        ("nonsense\r\n\r\n", 400, "HTTP/1.1 400"),
    ] {
        let (got, answer) = world.http(text).await;
        assert!(got == status && answer.contains(part), "{text}: {answer}");
    }
    // The stranger is public and lets nobody in.
    let (status, answer) = world.get("http://stranger.pilot/").await;
    assert!(matches!(status, 502 | 504) && answer.contains("proxy-status: pilot-gateway; error="), "{answer}");
    let long = format!("GET http://bob.pilot/{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(200_000));
    let mut tcp = TcpStream::connect(world.proxy).await.unwrap();
    // It stops reading when it has seen enough; what is still being sent may meet a reset.
    let _ = tcp.write_all(long.as_bytes()).await;
    let mut first = [0; 10];
    if patient("a refusal", tcp.read_exact(&mut first)).await.is_ok() {
        assert!(first.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&first));
    }
    // An answer that breaks off must not look whole.
    let mut tcp = TcpStream::connect(world.proxy).await.unwrap();
    tcp.write_all(b"GET http://bob.pilot/cut HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let cut = patient("the end of what was cut", rest(tcp)).await;
    assert!(
        cut.is_err() || String::from_utf8_lossy(&cut.unwrap()).contains("1000"),
        "the promised length is passed on"
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mapped_addresses_lead_to_their_agents_until_they_are_taken_back() {
    let world = world(|config| config.ports = parse_ports("7:7,8080:80").unwrap_or_default()).await;
    let ip = |offset| world.addresses.at(offset);
    let mapping = world.gateway.map("bob.pilot", None).await;
    let mapping = match mapping {
        Ok(mapping) => mapping,
        Err(error) => panic!("{error}"),
    };
    assert_eq!(mapping["local_ip"], ip(1).to_string());
    let again = world.gateway.map(&world.net.node(1).address().to_string(), Some(ip(9).into())).await.unwrap();
    assert_eq!(again["local_ip"], ip(1).to_string(), "an agent keeps its address");
    let root = mapping["failed"].as_array().is_some_and(Vec::is_empty);
    let web = SocketAddr::from((ip(1), 8080));
    let mut tcp = TcpStream::connect(web).await.unwrap();
    tcp.write_all(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let page = patient("the page", rest(tcp)).await.unwrap();
    assert!(page.ends_with(&pattern(BIG)), "{} bytes", page.len());
    if root {
        echoes(TcpStream::connect((ip(1), 7)).await.unwrap(), &pattern(300_000)).await;
    }
    // A connection that stands survives the address.
    let mut stands = TcpStream::connect(web).await.unwrap();
    stands.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    patient("the stream", async {
        while world.gateway.list()["mappings"][0]["served"] != if root { 3 } else { 2 } {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    for unmapped in [ip(2), [10, 0, 0, 1].into()] {
        assert_eq!(world.gateway.unmap(unmapped.into()).await.unwrap_err().code(), "not_found");
    }
    assert_eq!(world.gateway.unmap(ip(1).into()).await.unwrap()["unmapped"], ip(1).to_string());
    patient("the listener's end", async {
        while TcpStream::connect(web).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    stands.write_all(b"Host: x\r\n\r\n").await.unwrap();
    let page = patient("the page of a connection that stands", rest(stands)).await.unwrap();
    assert!(String::from_utf8_lossy(&page).contains("hello from bob"));
    assert_eq!(
        (world.gateway.list()["total"].clone(), world.gateway.list()["mappings"].clone()),
        (0.into(), Value::Array(vec![]))
    );
    for (target, asked, code) in [
        ("bob", Some([10, 5, 0, 1].into()), "internal"),
        ("nobody", None, "not_found"),
        ("example.org", None, "not_found"),
        ("bob", Some(ip(1)), ""),
        ("stranger", Some(ip(1)), "internal"),
    ] {
        let outcome = world.gateway.map(target, asked.map(Into::into)).await;
        assert_eq!(outcome.as_ref().err().map_or("", |error| error.code()), code, "{target} {asked:?}: {outcome:?}");
    }
    // Somebody else has the only port of an address.
    let taken = std::net::TcpListener::bind((ip(2), 8080)).unwrap();
    let other = world.gateway.map("stranger", None).await;
    match root {
        true => assert_eq!(other.unwrap()["failed"][0]["error"], "another program listens there"),
        false => assert!(other.unwrap_err().to_string().contains("another program listens there")),
    }
    drop(taken);
    // An agent that refuses reaches the TCP program as a reset, and the list says why.
    world.net.node(1).trust().revoke(world.net.id(0)).await.unwrap();
    patient("the revocation", async {
        while world.net.node(0).trust().is_trusted(world.net.id(1)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let error = patient("a reset", rest(TcpStream::connect(web).await.unwrap())).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let list = world.gateway.list();
    let why = list["mappings"][0]["last_error"].as_str().unwrap_or_default();
    assert!(why.starts_with("port 8080:80: ") && why.len() > 20, "{list}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_its_agent_back_and_nobody_gets_more_than_the_limit() {
    let world = world(|config| config.max_connections = 2).await;
    // A client that does not read: the agent gets rid of no more than fits between them.
    let (code, mut slow) = world.socks_name("bob.pilot", 80).await;
    assert_eq!(code, 0);
    slow.write_all(b"GET /endless HTTP/1.1\r\n\r\n").await.unwrap();
    let written = || world.seen.written.load(Ordering::Relaxed);
    patient("the agent to be held back", async {
        let mut last = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = written();
            if now > 0 && now == last {
                return;
            }
            last = now;
        }
    })
    .await;
    assert!(written() < ENDLESS / 2, "{} bytes are on their way to a client that reads nothing", written());
    // With a second one the house is full; the third is told at once, and is let in when there is room again.
    let (code, second) = world.socks_name("bob.pilot", 7).await;
    assert_eq!(code, 0);
    // The reset may come before connecting has returned.
    let third = match TcpStream::connect(world.proxy).await {
        Ok(tcp) => patient("to be turned away", rest(tcp)).await,
        Err(error) => Err(error),
    };
    assert!(third.is_err() || third.unwrap().is_empty());
    let list = world.gateway.list();
    assert_eq!(
        (&list["connections"], &list["turned_away"], &list["max_connections"]),
        (&2.into(), &1.into(), &2.into())
    );
    drop(second);
    patient("a place", async {
        while world.gateway.list()["connections"] != 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(world.get("http://bob.pilot/").await.0, 200);
    // And the slow one gets every byte once it reads.
    let all = patient("every byte", async {
        let (mut count, mut chunk) = (0u64, vec![0; 256 * 1024]);
        loop {
            match slow.read(&mut chunk).await.unwrap() {
                0 => return count,
                n => count += n as u64,
            }
        }
    })
    .await;
    assert!(all > ENDLESS && all < ENDLESS + 1000, "{all}");
    world.end().await;
}

/// Reads to the end, which must be a reset; what came before it.
async fn until_reset(mut tcp: TcpStream) -> usize {
    let mut got = Vec::new();
    let end = patient("the end", tcp.read_to_end(&mut got)).await;
    assert_eq!(
        end.map_err(|error| error.kind()),
        Err(io::ErrorKind::ConnectionReset),
        "{} bytes looked whole",
        got.len()
    );
    got.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_off_ends_with_a_reset_on_both_sides() {
    let world = world(|config| config.ports = parse_ports("8080:80,8090:90").unwrap_or_default()).await;
    world.gateway.map("bob", None).await.unwrap();
    let mapped = |port| TcpStream::connect((world.addresses.at(1), port));
    // The agent breaks off a page without a length, of which a client of HTTP/1.0 sees nothing but the end.
    let old = async |path: &str| {
        let mut tcp = TcpStream::connect(world.proxy).await.unwrap();
        tcp.write_all(format!("GET http://bob.pilot{path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        tcp
    };
    until_reset(old("/broken").await).await;

    // A client breaks off what it sends: the agent must not take the part for the whole.
    let listener = world.net.driver(1).await.unwrap().listen(90).await.unwrap();
    let (code, socks) = world.socks_name("bob.pilot", 90).await;
    assert_eq!(code, 0);
    for mut tcp in [socks, mapped(8090).await.unwrap()] {
        tcp.write_all(b"half a file").await.unwrap();
        let mut stream = patient("the stream", listener.accept()).await.unwrap();
        let mut half = [0; 11];
        patient("the half", stream.read_exact(&mut half)).await.unwrap();
        tcp.set_zero_linger().unwrap();
        drop(tcp);
        let end = patient("the end", stream.read_u8()).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset, "{end}");
    }

    // The gateway ends in the middle of pages, and of something that a client sends.
    let (_, mut socks) = world.socks_name("bob.pilot", 80).await;
    socks.write_all(b"GET /unended HTTP/1.1\r\n\r\n").await.unwrap();
    let mut direct = mapped(8080).await.unwrap();
    direct.write_all(b"GET /unended HTTP/1.1\r\n\r\n").await.unwrap();
    let mut proxied = old("/unended").await;
    for tcp in [&mut socks, &mut direct, &mut proxied] {
        let mut got = Vec::new();
        patient("the page's beginning", async {
            while !got.ends_with(b"only this") {
                assert!(tcp.read_buf(&mut got).await.unwrap() > 0);
            }
        })
        .await;
    }
    let mut upload = mapped(8090).await.unwrap();
    upload.write_all(b"half a file").await.unwrap();
    let mut stream = patient("the stream", listener.accept()).await.unwrap();
    patient("the half", stream.read_exact(&mut [0; 11])).await.unwrap();
    let World { net, gateway, .. } = world;
    patient("the gateway's end", gateway.shutdown()).await;
    for tcp in [socks, direct, proxied, upload] {
        assert_eq!(until_reset(tcp).await, 0);
    }
    let end = patient("the end", stream.read_u8()).await.unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::ConnectionReset, "{end}");
    net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doors_open_to_other_machines_and_users_only_when_that_is_wanted() {
    let net = TestNet::new(1).await.unwrap();
    let network: Arc<dyn pilot::Pilot> = Arc::new(net.driver(0).await.unwrap());
    let env = Env::real();
    let config = || GatewayConfig::new(&env, Addresses::new().subnet().parse().unwrap());
    let everywhere = Some(SocketAddr::from(([0, 0, 0, 0], 0)));
    for wide in [GatewayConfig { socks5: everywhere, ..config() }, GatewayConfig { http_proxy: everywhere, ..config() }]
    {
        let refused = Gateway::start(env.clone(), network.clone(), wide.clone()).await.err().unwrap();
        assert!(refused.code() == "invalid_argument" && refused.hint().contains("--allow-remote"), "{refused}");
        let wide = GatewayConfig { allow_remote: true, ..wide };
        Gateway::start(env.clone(), network.clone(), wide).await.unwrap().shutdown().await;
    }
    // Only another user's connections would be let in here.
    let proxy = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let others = GatewayConfig { http_proxy: proxy, socks5: proxy, users: vec![env.user_id() + 1], ..config() };
    let strict = env.user_id() != 0;
    let gateway = Gateway::start(env.clone(), network.clone(), others).await.unwrap();
    let ask = async |addr: Option<SocketAddr>, text: &[u8]| {
        let mut tcp = TcpStream::connect(addr.unwrap()).await.unwrap();
        tcp.write_all(text).await.unwrap();
        patient("the answer", rest(tcp)).await.unwrap()
    };
    let request = b"GET http://0000.0000.9999.pilot/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = ask(gateway.http_proxy_addr(), request).await;
    let answer = String::from_utf8_lossy(&answer);
    // Root may always: it could be that user.
    assert_eq!(answer.starts_with("HTTP/1.1 403") && answer.contains("--allow-users"), strict, "{answer}");
    gateway.shutdown().await;
    net.shutdown().await;
}
