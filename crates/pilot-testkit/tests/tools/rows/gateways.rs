//! The gateway: loopback addresses that lead to agents. Each row starts one of its own, in a subnet of its side.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// Virtual port, and port on the loopback address.
const PORT: u16 = 5100;

/// Second byte of the addresses of a side.
fn subnet(side: &Side<'_>) -> u32 {
    20 + side.me.node() % 200
}

/// A gateway in the foreground, with one address that leads to the peer.
struct Gateway {
    child: Child,
    address: IpAddr,
}

impl Gateway {
    fn start(side: &Side<'_>) -> Result<Self> {
        let (subnet, port) = (format!("10.{}.0.0/16", subnet(side)), PORT.to_string());
        let words = ["gateway", "start", "--subnet", &subnet, "--ports", &port, side.peer.address()];
        // What it logs is not read, and must not fill a pipe.
        let mut child = side.me.command(&[&["--json"], &side.extras(&words)[..]].concat());
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("run pilotctl")?;
        let (tell, told) = mpsc::channel();
        let lines = BufReader::new(child.stdout.take().context("output")?).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| tell.send(line).unwrap_or(())));
        let mut gateway = Self { child, address: IpAddr::from([0; 4]) };
        let mut said = String::new();
        while let Ok(line) = told.recv_timeout(SLOW) {
            let answer: Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(address) = answer["data"]["mappings"][0]["local_ip"].as_str() {
                gateway.address = address.parse()?;
                return Ok(gateway);
            }
            said.push_str(&line);
        }
        bail!("gateway start: {said:?} {:?}", gateway.child.try_wait()?)
    }

    fn wait(&mut self) -> Result<bool> {
        let deadline = Instant::now() + QUICK;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(true)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // So that it takes its addresses away. All of it fails only when it has ended already.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
        if !self.wait().unwrap_or(false) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn connect(address: IpAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::new(address, PORT), Duration::from_secs(5))
}

/// Whether what is written to an address arrives at the peer.
fn leads_to_peer(side: &Side<'_>, address: IpAddr) -> Result<()> {
    let port = PORT.to_string();
    let listen = ["--json", "recv", &port, "--count", "1", "--timeout", "50s"];
    let mut listening = with(side.peer, &ours().ctl, &listen).spawn().context("run our pilotctl")?;
    // Nobody may listen yet.
    while listening.try_wait()?.is_none() {
        if let Ok(mut stream) = connect(address) {
            let sent = stream.write_all(b"through the gateway").and_then(|()| stream.shutdown(Shutdown::Write));
            // Until the other end has it, or has refused it.
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let _ = sent.and_then(|()| stream.read_to_end(&mut Vec::new()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let heard = data(&listen, listening, QUICK)?;
    ensure!(heard["messages"][0]["data"] == "through the gateway", "{heard}");
    Ok(())
}

pub(super) fn start(side: &Side<'_>) -> Result<()> {
    let gateway = Gateway::start(side)?;
    leads_to_peer(side, gateway.address)
}

pub(super) fn list(side: &Side<'_>) -> Result<()> {
    let gateway = Gateway::start(side)?;
    let answer = side.extra(QUICK, &["gateway", "list"])?;
    let mapping = &answer["mappings"][0];
    ensure!(mapping["local_ip"] == gateway.address.to_string(), "{answer}");
    ensure!(mapping["pilot_addr"] == side.peer.address() && answer["total"] == 1, "{answer}");
    Ok(())
}

pub(super) fn map(side: &Side<'_>) -> Result<()> {
    let _gateway = Gateway::start(side)?;
    let wanted = format!("10.{}.0.7", subnet(side));
    let answer = side.extra(QUICK, &["gateway", "map", side.asked.address(), &wanted])?;
    ensure!(answer["local_ip"] == wanted && answer["pilot_addr"] == side.asked.address(), "{answer}");
    connect(wanted.parse()?).with_context(|| format!("nobody listens there after {answer}"))?;
    Ok(())
}

pub(super) fn unmap(side: &Side<'_>) -> Result<()> {
    let gateway = Gateway::start(side)?;
    let answer = side.extra(QUICK, &["gateway", "unmap", &gateway.address.to_string()])?;
    ensure!(connect(gateway.address).is_err(), "still there after {answer}");
    Ok(())
}

pub(super) fn stop(side: &Side<'_>) -> Result<()> {
    let mut gateway = Gateway::start(side)?;
    let answer = side.extra(QUICK, &["gateway", "stop"])?;
    ensure!(gateway.wait()?, "still runs after {answer}");
    Ok(())
}
