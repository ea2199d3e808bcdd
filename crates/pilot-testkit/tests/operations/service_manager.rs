//! Readiness, watchdog, reload and stop, as a service manager hears of them.

use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Instant;

use pilot_testkit::agent::Agent;
use pilot_testkit::isolate::isolated;
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours, program};
use rustix::process::Signal;

use super::{PATIENCE, options};

/// The service manager's end.
struct Manager(UnixDatagram);

impl Manager {
    fn bind(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("bind");
        socket.set_read_timeout(Some(PATIENCE)).expect("time-out");
        Self(socket)
    }

    /// Waits for a message with this line; the whole message.
    fn wait_for(&self, line: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {line}");
            let mut buffer = [0; 4096];
            let n = self.0.recv(&mut buffer).unwrap_or_else(|e| panic!("waited for {line}: {e}"));
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if text.lines().any(|word| word == line) {
                return text;
            }
        }
    }
}

#[test]
fn the_service_manager_hears_of_readiness_watchdog_reload_and_stop() {
    let name = "service_manager::the_service_manager_hears_of_readiness_watchdog_reload_and_stop";
    isolated(name, &[need_programs], || {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("notify");
        let manager = Manager::bind(&path);
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let mut agent = Agent::start_at(&ours(), &options(&rendezvous, "a"), |command| {
            command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
        })
        .expect("daemon");
        let ready = manager.wait_for("READY=1");
        assert!(ready.lines().any(|line| line.starts_with("STATUS=")), "{ready}");
        UnixStream::connect(agent.socket()).expect("ready means that local programs are served");
        for _ in 0..3 {
            manager.wait_for("WATCHDOG=1");
        }
        agent.signal(Signal::HUP).expect("signal");
        manager.wait_for("RELOADING=1");
        manager.wait_for("READY=1");
        agent.signal(Signal::TERM).expect("signal");
        manager.wait_for("STOPPING=1");
        assert!(agent.terminate(PATIENCE).expect("end").success());
    });
}

#[test]
fn a_stopped_daemon_feeds_no_watchdog() {
    isolated("service_manager::a_stopped_daemon_feeds_no_watchdog", &[need_programs], || {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("notify");
        let manager = Manager::bind(&path);
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let agent = Agent::start_at(&ours(), &options(&rendezvous, "a"), |command| {
            command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
        })
        .expect("daemon");
        manager.wait_for("WATCHDOG=1");
        agent.signal(Signal::STOP).expect("signal");
        // What was on its way may still come; then silence.
        manager.0.set_read_timeout(Some(std::time::Duration::from_secs(2))).expect("time-out");
        let mut late = 0;
        while manager.0.recv(&mut [0; 4096]).is_ok() {
            late += 1;
            assert!(late < 20, "a daemon that stands still feeds its watchdog");
        }
        agent.signal(Signal::CONT).expect("signal");
        manager.0.set_read_timeout(Some(PATIENCE)).expect("time-out");
        manager.wait_for("WATCHDOG=1");
    });
}

#[test]
fn the_rendezvous_says_when_it_serves() {
    isolated("service_manager::the_rendezvous_says_when_it_serves", &[need_programs], || {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("notify");
        let manager = Manager::bind(&path);
        let mut child = std::process::Command::new(program("pilot-rendezvous"))
            .args(["-registry-addr", "127.0.0.1:9000", "-beacon-addr", "127.0.0.1:9001"])
            .env("NOTIFY_SOCKET", &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("rendezvous");
        manager.wait_for("READY=1");
        std::net::TcpStream::connect("127.0.0.1:9000").expect("ready means that the registry accepts");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, Signal::TERM).expect("signal");
        manager.wait_for("STOPPING=1");
        assert!(child.wait().expect("wait").success());
    });
}
