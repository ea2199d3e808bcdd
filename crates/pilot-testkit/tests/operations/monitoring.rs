//! `/healthz`, `/readyz`, `/metrics`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use pilot_testkit::agent::{Agent, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::programs::{RendezvousProcess, need_programs};
use serde_json::Value;

use super::{PATIENCE, eventually, start};

/// Where an agent started with `-http 127.0.0.1:0` serves.
pub(crate) fn http_addr(agent: &Agent) -> SocketAddr {
    let find = || agent.log().lines().filter_map(|line| line.strip_prefix("http ")?.trim().parse().ok()).next_back();
    eventually("the HTTP address", find)
}

/// Sends a request as it stands; the status and the body. (0, …) when there was no answer.
fn exchange(addr: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(addr).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
    stream.write_all(request.as_bytes()).expect("send");
    let mut answer = String::new();
    // A server that closes early, on a request too large, may reset the connection.
    let _ = stream.read_to_string(&mut answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, head.to_lowercase(), body.to_owned())
}

pub(crate) fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    let (status, _, body) = exchange(addr, &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\n\r\n"));
    (status, body)
}

fn readiness(addr: SocketAddr) -> (u16, Value) {
    let (status, body) = get(addr, "/readyz");
    (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body:?}")))
}

/// What a scrape says: values by series, and the type of each metric.
struct Scrape {
    values: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

impl Scrape {
    /// Reads the text and holds it to the rules of the format and the conventions of names.
    fn parse(text: &str, is_open_metrics: bool) -> Self {
        let (mut values, mut types, mut helped) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        let mut ended = false;
        for line in text.lines() {
            assert!(!ended, "something behind the end: {line}");
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words[..] {
                ["#", "HELP", name, help] => {
                    assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
                }
                ["#", "TYPE", name, kind] => {
                    assert!(["counter", "gauge", "info"].contains(&kind), "{line}");
                    assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {line}");
                }
                ["#", "UNIT", name, unit] => assert!(name.ends_with(&format!("_{unit}")), "{line}"),
                ["#", "EOF"] => ended = true,
                _ => {
                    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
                    let name = series.split('{').next().unwrap_or_default();
                    let family = types.keys().any(|family| {
                        name == family || name == format!("{family}_total") || name == format!("{family}_info")
                    });
                    assert!(family, "a sample of no family: {line}");
                    assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{line}");
                    assert!(name.starts_with("pilot_") || name.starts_with("process_"), "{line}");
                    let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
                    assert!(value.is_finite() && value >= 0.0, "{line}");
                    assert!(values.insert(series.to_owned(), value).is_none(), "twice: {line}");
                }
            }
        }
        assert_eq!(ended, is_open_metrics);
        assert_eq!(types.keys().collect::<Vec<_>>(), helped.iter().collect::<Vec<_>>(), "each has help");
        Self { values, types }
    }

    fn of(addr: SocketAddr) -> Self {
        let (status, body) = get(addr, "/metrics");
        assert_eq!(status, 200);
        Self::parse(&body, false)
    }

    #[track_caller]
    fn value(&self, series: &str) -> f64 {
        *self.values.get(series).unwrap_or_else(|| panic!("no {series} among {:?}", self.values.keys()))
    }
}

#[test]
fn health_readiness_and_metrics_tell_what_is() {
    let name = "monitoring::health_readiness_and_metrics_tell_what_is";
    isolated(name, &[need_programs], || {
        let mut rendezvous = RendezvousProcess::start().expect("rendezvous");
        let a = start(&rendezvous, "a", &["-http", "127.0.0.1:0"]);
        let b = start(&rendezvous, "b", &[]);
        let addr = http_addr(&a);
        assert_eq!(get(addr, "/healthz"), (200, "ok\n".to_owned()));
        let (status, ready) = readiness(addr);
        assert_eq!((status, &ready["ready"]), (200, &true.into()), "{ready}");
        for check in ["driver", "registered", "local_socket", "udp_socket"] {
            assert_eq!(ready["checks"][check]["ok"], true, "{ready}");
        }

        let before = Scrape::of(addr);
        assert_eq!(before.value("pilot_registered"), 1.0);
        make_trust(&a, &b, PATIENCE).expect("trust");
        a.ctl(&["connect", b.address(), "7", "--message", "some bytes"]).expect("connect");
        let series = "pilot_streams_opened_total{direction=\"dialled\"}";
        // Scrapes of one second get the same text.
        let after = eventually("the stream in the metrics", || {
            let scrape = Scrape::of(addr);
            (scrape.value(series) > before.value(series)).then_some(scrape)
        });
        assert_eq!(after.value("pilot_trusted_nodes"), 1.0);
        assert_eq!(after.value("pilot_tunnels{path=\"direct\"}"), 1.0);
        assert_eq!(after.value("pilot_tunnels_authenticated"), 1.0);
        for counter in [
            "pilot_stream_bytes_total{direction=\"sent\"}",
            "pilot_tunnel_bytes_total{direction=\"received\"}",
            "pilot_tunnel_packets_total{direction=\"sent\"}",
            "pilot_log_lines_total{level=\"info\"}",
        ] {
            assert!(after.value(counter) > 0.0, "{counter}");
        }
        for (name, kind) in &after.types {
            // What only grows is a counter and says so in its name; nothing else does.
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        }
        for series in ["process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"] {
            assert!(after.value(series) > 0.0, "{series}");
        }
        for series in ["pilot_handshakes_pending", "pilot_queue_bytes{queue=\"stream_send\"}", "pilot_local_clients"] {
            after.value(series);
        }
        let version = after.values.keys().find(|series| series.starts_with("pilot_build_info{")).expect("build");
        assert!(version.contains("version=\""), "{version}");
        assert!(!after.values.keys().any(|series| series.contains("127.0.0.1")), "a scrape names an address");

        let request = format!("GET /metrics HTTP/1.1\r\nHost: {addr}\r\nAccept: application/openmetrics-text\r\n\r\n");
        let (status, head, body) = exchange(addr, &request);
        assert!(status == 200 && head.contains("content-type: application/openmetrics-text"), "{head}");
        Scrape::parse(&body, true);

        // The registry goes: registered still, for peers are served; that it is unreachable is said.
        rendezvous.kill().expect("kill");
        let warned = eventually("the warning", || {
            let (status, ready) = readiness(addr);
            let warned = ready["warnings"].as_array().is_some_and(|warnings| !warnings.is_empty());
            warned.then_some((status, ready))
        });
        assert_eq!((warned.0, &warned.1["checks"]["registered"]["ok"]), (200, &true.into()), "{}", warned.1);

        // Nobody finds the socket any more.
        std::fs::remove_file(a.socket()).expect("remove the socket");
        let (status, ready) = readiness(addr);
        assert_eq!(
            (status, &ready["ready"], &ready["checks"]["local_socket"]["ok"]),
            (503, &false.into(), &false.into())
        );
        assert!(ready["checks"]["local_socket"]["reason"].is_string(), "{ready}");
        assert_eq!(get(addr, "/healthz").0, 200, "it lives all the same");
    });
}

#[test]
fn a_node_without_registry_is_alive_and_not_ready_and_bad_requests_harm_nobody() {
    let name = "monitoring::a_node_without_registry_is_alive_and_not_ready_and_bad_requests_harm_nobody";
    isolated(name, &[need_programs], || {
        let home = tempfile::tempdir().expect("home");
        let log = std::fs::File::create(home.path().join("log")).expect("log");
        let mut daemon = std::process::Command::new(pilot_testkit::programs::program("pilot-daemon"))
            .args(["-registry", "127.0.0.1:1", "-beacon", "", "-http", "127.0.0.1:0", "-listen", "127.0.0.1:0"])
            .arg("-identity")
            .arg(home.path().join("identity.key"))
            .arg("-socket")
            .arg(home.path().join("pilot.sock"))
            .stdout(log)
            .spawn()
            .expect("daemon");
        let addr: SocketAddr = eventually("the HTTP address", || {
            super::read(&home.path().join("log")).lines().find_map(|line| line.strip_prefix("http ")?.parse().ok())
        });
        assert_eq!(get(addr, "/healthz").0, 200);
        let (status, ready) = readiness(addr);
        assert_eq!((status, &ready["checks"]["registered"]["ok"]), (503, &false.into()), "{ready}");
        assert!(ready["checks"]["registered"]["reason"].as_str().is_some_and(|r| r.contains("registry")), "{ready}");
        assert_eq!(ready["checks"]["local_socket"]["ok"], true, "{ready}");

        // A page of evil.example whose name means 127.0.0.1 now; a request without a name; not a GET.
        let status = |request: String| exchange(addr, &request).0;
        assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned()), 421);
        assert_eq!(status(format!("GET http://evil.example/metrics HTTP/1.1\r\nHost: {addr}\r\n\r\n")), 421);
        assert_eq!(status("GET /metrics HTTP/1.0\r\n\r\n".to_owned()), 421);
        assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned()), 200);
        assert_eq!(status(format!("POST /healthz HTTP/1.1\r\nHost: {addr}\r\nContent-Length: 0\r\n\r\n")), 405);
        assert_eq!(status(format!("GET /../etc/passwd HTTP/1.1\r\nHost: {addr}\r\n\r\n")), 404);
        assert_eq!(status("\u{1}\u{2}nonsense\r\n\r\n".to_owned()), 400);
        let huge = format!("GET / HTTP/1.1\r\nHost: {addr}\r\nX: {}\r\n\r\n", "x".repeat(100_000));
        let mut stream = TcpStream::connect(addr).expect("connect");
        // The answer may come, and the connection go, before all of it is sent.
        let _ = stream.write_all(huge.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));

        // Twice as many silent connections as are served at once: they are thrown out, and then it is our turn.
        let silent: Vec<TcpStream> = (0..64)
            .map(|_| {
                let mut stream = TcpStream::connect(addr).expect("connect");
                stream.write_all(b"GET /healthz HT").expect("send");
                stream
            })
            .collect();
        assert_eq!(get(addr, "/healthz").0, 200);
        drop(silent);
        daemon.kill().expect("kill");
        daemon.wait().expect("wait");
    });
}
