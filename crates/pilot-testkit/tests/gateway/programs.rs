//! The real curl and chromium reach a page of an agent through `pilotctl gateway start`, in a network of their own.

use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use pilot::Driver;
use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::{Unavailable, isolated, need_program, skip};
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours, program};
use serde_json::Value;

use crate::PATIENCE;
use crate::web::{self, BIG, Seen, pattern};

fn need_curl() -> Result<(), Unavailable> {
    need_program("curl", "--version")
}

fn need_chromium() -> Result<(), Unavailable> {
    need_program("chromium", "--version")
}

/// Two agents that trust each other, and a web server at bob.
struct World {
    _rendezvous: RendezvousProcess,
    alice: Agent,
    bob: Agent,
    _runtime: tokio::runtime::Runtime,
}

fn world() -> World {
    let rendezvous = RendezvousProcess::start().expect("rendezvous");
    let start = |name: &str| {
        Agent::start(&ours(), &AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name)).expect("daemon")
    };
    let (alice, bob) = (start("alice"), start("bob"));
    make_trust(&alice, &bob, PATIENCE).expect("trust");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let driver = Driver::connect(bob.socket()).await.expect("driver");
        web::serve(&driver, Arc::new(Seen::default())).await;
    });
    World { _rendezvous: rendezvous, alice, bob, _runtime: runtime }
}

/// A gateway in the foreground; what it printed first. Dropping it kills it.
struct Foreground(Child);

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn foreground(mut command: Command) -> (Foreground, String) {
    use std::io::BufRead as _;
    let mut child = command.stdout(Stdio::piped()).spawn().expect("gateway");
    let mut first = String::new();
    std::io::BufReader::new(child.stdout.take().expect("output")).read_line(&mut first).expect("a line");
    (Foreground(child), first)
}

fn curl(args: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.env_clear().args(["--silent", "--show-error", "--max-time", "90"]).args(args);
    command.stdin(Stdio::null()).output().expect("curl")
}

fn fetched(args: &[&str]) -> Vec<u8> {
    let output = curl(args);
    assert!(output.status.success(), "curl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The exit code of a curl that must fail, and everything it said.
fn refused(args: &[&str]) -> (i32, String) {
    let output = curl(args);
    assert!(!output.status.success(), "curl {args:?} succeeded");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

fn terminate(child: &Child) {
    let process = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).expect("a signal");
}

fn ip(args: &[&str]) -> String {
    String::from_utf8(Command::new("ip").args(args).output().expect("ip").stdout).expect("text")
}

#[test]
fn curl_reaches_agents_through_every_door() {
    let name = "programs::curl_reaches_agents_through_every_door";
    let needs = [need_programs, need_curl, || need_program("ip", "-V"), || need_program("setpriv", "--version")];
    isolated(name, &needs, || {
        let world = world();
        let (alice, bob) = (&world.alice, &world.bob);
        let not_running = alice.run(&["--json", "gateway", "list"]).expect("list");
        assert!(not_running.stderr.contains("\"code\":\"not_running\""), "{}", not_running.stderr);

        let start = ["--json", "gateway", "start", "--socks5", "1080", "--http-proxy", "127.0.0.1:3128", "bob"];
        let (mut gateway, first) = foreground(alice.command(&start));
        let started: Value = serde_json::from_str(&first).expect("JSON");
        let data = &started["data"];
        assert_eq!((&data["subnet"], &data["pid"]), (&"10.4.0.0/16".into(), &gateway.0.id().into()), "{first}");
        assert_eq!(data["mappings"][0]["local_ip"], "10.4.0.1");
        assert_eq!(data["mappings"][0]["pilot_addr"], bob.address());
        let pid_file = alice.home().join(".pilot/gateway.pid");
        assert_eq!(std::fs::read_to_string(&pid_file).expect("PID file"), gateway.0.id().to_string());
        let again = alice.run(&["--json", "gateway", "start"]).expect("start");
        assert!(again.stderr.contains("gateway is already running (pid "), "{}", again.stderr);

        // Every door, by every name; a page of some size arrives whole.
        let page = b"<html><body><p id=who>hello from bob</p></body></html>";
        let by_address = format!("http://0000.0000.{:04x}.pilot/", bob.node());
        let dashed = format!("http://0-0000-0000-{:04x}.pilot/", bob.node());
        let (socks, proxy) = ("socks5h://127.0.0.1:1080", "http://127.0.0.1:3128");
        for args in [
            &["--proxy", socks, "http://bob.pilot/"][..],
            &["--proxy", socks, &by_address],
            &["--socks5-hostname", "127.0.0.1:1080", &dashed],
            &["--proxy", proxy, "http://bob.pilot/"],
            &["--proxy", proxy, &by_address],
            &["--proxy", proxy, "--proxytunnel", "http://bob.pilot/"],
            &["--proxy", socks, "http://10.4.0.1/"],
            &["--proxy", proxy, "http://10.4.0.1/"],
            &["http://10.4.0.1/"],
        ] {
            assert_eq!(fetched(args), page, "{args:?}");
        }
        let file = alice.home().join("body");
        std::fs::write(&file, pattern(BIG)).expect("file");
        let upload = format!("@{}", file.display());
        for through in [&["--proxy", socks][..], &["--proxy", proxy], &[]] {
            let url =
                |path: &str| format!("http://{}{path}", if through.is_empty() { "10.4.0.1" } else { "bob.pilot" });
            assert!(fetched(&[through, &[&url("/big")]].concat()) == pattern(BIG), "{through:?}");
            let counted = fetched(&[through, &["--data-binary", &upload, &url("/count")]].concat());
            assert_eq!(String::from_utf8_lossy(&counted), format!("{BIG} true"), "{through:?}");
            // An answer that breaks off is an error of curl (partial file, or receive error), never a short page.
            let (code, said) = refused(&[through, &[&url("/cut")]].concat());
            assert!(matches!(code, 18 | 56), "{through:?}: {code} {said}");
        }

        // No way to anywhere else, with its reason: 97 is a SOCKS error, 56 a tunnel that was refused.
        let (code, said) = refused(&["--proxy", socks, "http://example.org/"]);
        assert!(code == 97 && said.contains("(2)"), "{code} {said}");
        let (code, said) = refused(&["--proxy", socks, "http://127.0.0.1:9000/"]);
        assert!(code == 97 && said.contains("(2)"), "{code} {said}");
        let (code, said) = refused(&["--proxy", proxy, "https://example.org/"]);
        assert!(code == 56 && said.contains("403"), "{code} {said}");
        let foreign = ["--proxy", proxy, "--write-out", "%{http_code}", "http://example.org/"];
        let foreign = String::from_utf8(fetched(&foreign)).expect("text");
        assert!(
            foreign.contains("\"example.org\" is not on the Pilot network") && foreign.ends_with("403"),
            "{foreign}"
        );
        let absent = ["--proxy", proxy, "--write-out", "%{http_code}", "http://bob.pilot:81/"];
        let absent = String::from_utf8(fetched(&absent)).expect("text");
        assert!(absent.contains("bob.pilot") && absent.contains("refused") && absent.ends_with("502"), "{absent}");
        // Another user of this host is not let in. (Where this test is no real root, there is no other user.)
        let nobody = |program: &[&str]| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--clear-groups"]).args(program).output().expect("setpriv")
        };
        if nobody(&["true"]).status.success() {
            let other = nobody(&["curl", "--silent", "--max-time", "90", "--proxy", proxy, "http://bob.pilot/"]);
            let said = String::from_utf8_lossy(&other.stdout).into_owned();
            assert!(said.contains("belongs to user 65534") && said.contains("--allow-users"), "{said} {other:?}");
        } else {
            skip(name, &Unavailable("needs root to act as another user".to_owned()));
        }

        // The commands act on the gateway that runs.
        let mapped = alice.ctl(&["gateway", "map", alice.address(), "10.4.0.77"]).expect("map");
        assert_eq!((&mapped["local_ip"], &mapped["pilot_addr"]), (&"10.4.0.77".into(), &alice.address().into()));
        let listed = alice.ctl(&["gateway", "list"]).expect("list");
        assert_eq!((&listed["total"], &listed["socks5"]), (&2.into(), &"127.0.0.1:1080".into()), "{listed}");
        let human = alice.run(&["gateway", "list"]).expect("list").stdout;
        assert!(human.contains(&format!("10.4.0.1 → {}\n", bob.address())) && human.contains("total: 2\n"), "{human}");
        assert!(ip(&["addr", "show", "dev", "lo"]).contains("10.4.0.77/32"));
        let unmapped = alice.ctl(&["gateway", "unmap", "10.4.0.77"]).expect("unmap");
        assert_eq!(unmapped["unmapped"], "10.4.0.77");
        assert!(!ip(&["addr", "show", "dev", "lo"]).contains("10.4.0.77"));
        for (args, message) in [
            (&["unmap", "10.4.0.77"][..], "no mapping for 10.4.0.77"),
            (&["unmap", "zz"], "no mapping for zz"),
            (&["map", "bob", "11.0.0.9"], "10.4.0.1"),
            (&["map", "0:0000.0000.0FFF", "11.0.0.9"], "map: IP 11.0.0.9 not in subnet 10.4.0.0/16"),
        ] {
            let outcome = alice.run(&[&["--json", "gateway"], args].concat()).expect("pilotctl");
            let said = outcome.stdout + &outcome.stderr;
            assert!(said.contains(message), "{args:?}: {said}");
        }

        // The end takes everything along.
        let stopped = alice.ctl(&["gateway", "stop"]).expect("stop");
        assert_eq!(stopped["pid"], gateway.0.id());
        assert!(gateway.0.wait().expect("the end").success());
        assert!(!ip(&["addr", "show", "dev", "lo"]).contains("10.4.0.1/32") && !pid_file.exists());
        assert_eq!(refused(&["--proxy", proxy, "http://bob.pilot/"]).0, 7);

        // A signal ends it as well, from the first line on; and another gateway of this host leaves its addresses alone.
        let (mut gateway, _) = foreground(alice.command(&["--json", "gateway", "start", "--ports", "80", "bob"]));
        let other_home = tempfile::tempdir().expect("directory");
        let mut other = Command::new(program("pilot-gateway"));
        other.env("HOME", other_home.path()).arg("-socket").arg(alice.socket()).args(["-socks5", "1081", "run"]);
        let (other, first) = foreground(other);
        assert_eq!(first, "socks5 127.0.0.1:1081\n");
        assert!(ip(&["addr", "show", "dev", "lo"]).contains("10.4.0.1/32"), "it belongs to a gateway that runs");
        drop(other);
        terminate(&gateway.0);
        assert_eq!(gateway.0.wait().expect("the end").code(), Some(0));
        assert!(!ip(&["addr", "show", "dev", "lo"]).contains("10.4.0.1/32") && !pid_file.exists());

        // One that is killed leaves its address behind; the next one takes it away. In the background this time, and
        // without root's addresses.
        let (gateway, _) = foreground(alice.command(&["--json", "gateway", "start", "--ports", "80", "bob"]));
        assert!(ip(&["addr", "show", "dev", "lo"]).contains("10.4.0.1/32"));
        drop(gateway);
        assert!(ip(&["addr", "show", "dev", "lo"]).contains("10.4.0.1/32"), "killed, it cannot clean up");
        let next = alice.ctl(&["gateway", "start", "--background", "--ports", "8080:80"]).expect("background");
        assert_eq!(next["mappings"], Value::Null);
        assert!(!ip(&["addr", "show", "dev", "lo"]).contains("10.4.0.1/32"), "what a crash left is taken away");
        alice.ctl(&["gateway", "stop"]).expect("stop");
        let next = ["gateway", "start", "--background", "--subnet", "127.9.0.0/24", "--ports", "8080:80", "bob"];
        let next = alice.ctl(&next).expect("background");
        assert_eq!(next["mappings"][0]["ports"][0]["remote"], 80);
        assert_eq!(fetched(&["http://127.9.0.1:8080/"]), page);
        let failed = alice.run(&["--json", "gateway", "start", "--background"]).expect("a second one");
        assert!(failed.stderr.contains("\"code\":\"already_exists\""), "{}", failed.stderr);
        alice.ctl(&["gateway", "stop"]).expect("stop");
        let failed = ["--json", "gateway", "start", "--background", "nobody-here"];
        let failed = alice.run(&failed).expect("an agent that does not exist");
        assert!(failed.stderr.contains("\"code\":\"not_found\"") && failed.stdout.is_empty(), "{}", failed.stderr);

        // The program of its own.
        let mut own = Command::new(program("pilot-gateway"));
        own.env("HOME", alice.home())
            .arg("-socket")
            .arg(alice.socket())
            .args(["-ports=8080:80", "-subnet=127.8.0.0/24"]);
        own.args(["run", bob.address(), "127.8.0.9"]);
        let (own, first) = foreground(own);
        assert_eq!(first, format!("mapped 127.8.0.9 → {}\n", bob.address()));
        assert_eq!(fetched(&["http://127.8.0.9:8080/"]), page);
        let list = |out: Stdio| {
            let mut list = Command::new(program("pilot-gateway"));
            list.env("HOME", alice.home()).arg("list").stdout(out).output().expect("list")
        };
        assert!(list(Stdio::piped()).status.success());
        let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
        let lost = list(full.into());
        let said = String::from_utf8_lossy(&lost.stderr);
        assert!(lost.status.code() == Some(1) && said.contains("write the output: "), "{said}");
        drop(own);
    });
}

#[test]
fn chromium_shows_a_page_of_an_agent_through_both_proxies() {
    let name = "programs::chromium_shows_a_page_of_an_agent_through_both_proxies";
    isolated(name, &[need_programs, need_chromium], || {
        let world = world();
        let start = ["--json", "gateway", "start", "--background", "--socks5", "1080", "--http-proxy", "3128"];
        let started = world.alice.run(&start).expect("gateway");
        assert!(started.status.success(), "{}", started.stderr);
        for proxy in ["http://127.0.0.1:3128", "socks5://127.0.0.1:1080"] {
            let profile = tempfile::tempdir().expect("directory");
            let mut chromium = Command::new("chromium");
            chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
            chromium.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
            chromium
                .arg(format!("--user-data-dir={}", profile.path().display()))
                .arg(format!("--proxy-server={proxy}"));
            chromium.env("HOME", profile.path()).args(["--dump-dom", "http://bob.pilot/"]);
            let output = chromium.stdin(Stdio::null()).output().expect("chromium");
            let page = String::from_utf8_lossy(&output.stdout);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(page.contains("<p id=\"who\">hello from bob</p>"), "{proxy}: {page} {said}");
        }
        world.alice.ctl(&["gateway", "stop"]).expect("stop");
    });
}
