//! Hosts of the test's own: network namespaces joined by virtual Ethernet, for processes.
//!
//! [`Lab`] joins two hosts directly. [`Star`] puts a router between them, which also is the third host, and which
//! forwards between the two only when told: without that the direct path is dead.
//!
//! Everything lives inside the namespaces of [`crate::isolate::isolated`]. A namespace is held by a descriptor, so that
//! hosts, links and rules vanish with their owner or with the process, whatever ends it. Addresses are
//! `10.99.0.1` and `fd99::1` for the first host, `10.99.0.2` and `fd99::2` for the second in a [`Lab`]; `10.98.1.1` and `10.98.2.1` in a [`Star`].
#![allow(clippy::disallowed_methods)] // this module starts real processes

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::isolate::{Unavailable, need_program};

/// MTU of every link, as on ordinary Ethernet.
pub const MTU: u32 = 1500;

/// One host.
pub struct Host {
    name: &'static str,
    namespace: File,
    ip: Ipv4Addr,
    ipv6: Ipv6Addr,
}

/// Two hosts on one link that drops IP fragments and counts them.
pub struct Lab {
    /// `10.99.0.1`, `fd99::1`.
    pub left: Host,
    /// `10.99.0.2`, `fd99::2`.
    pub right: Host,
}

/// What a test with a [`Lab`] needs.
pub fn needed() -> Result<(), Unavailable> {
    need_program("ip", "-V")?;
    need_program("nft", "-v")
}

impl Lab {
    /// Builds both hosts and the link.
    pub fn new() -> Result<Self> {
        let left = Host::new("left", Ipv4Addr::new(10, 99, 0, 1), 1)?;
        let right = Host::new("right", Ipv4Addr::new(10, 99, 0, 2), 2)?;
        run(Command::new("ip").args(["link", "add", "left", "type", "veth", "peer", "name", "right"]))?;
        for host in [&left, &right] {
            let namespace = host.path();
            run(Command::new("ip").args(["link", "set", host.name, "netns", &namespace]))?;
            let address = format!("{}/24", host.ip);
            run(host.command("ip").args(["link", "set", "lo", "up"]))?;
            run(host.command("ip").args(["addr", "add", &address, "dev", host.name]))?;
            // Without duplicate address detection, the address serves at once.
            let ipv6 = format!("{}/64", host.ipv6);
            run(host.command("ip").args(["-6", "addr", "add", &ipv6, "dev", host.name, "nodad"]))?;
            run(host.command("ip").args(["link", "set", host.name, "mtu", &MTU.to_string(), "up"]))?;
            host.drop_fragments()?;
        }
        Ok(Self { left, right })
    }

    /// IP fragments that arrived on either side and were dropped.
    pub fn fragments_dropped(&self) -> Result<u64> {
        Ok(self.left.fragments_dropped()? + self.right.fragments_dropped()?)
    }
}

/// Two hosts that meet at a router, which is the host the test itself runs on.
pub struct Star {
    /// `10.98.1.1`.
    pub left: Host,
    /// `10.98.2.1`.
    pub right: Host,
}

impl Star {
    /// Address of the router, reached from both hosts.
    pub const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 254));

    /// Builds hosts, links and routes. The router forwards nothing yet.
    pub fn new() -> Result<Self> {
        let left = Host::new("left", Ipv4Addr::new(10, 98, 1, 1), 1)?;
        let right = Host::new("right", Ipv4Addr::new(10, 98, 2, 1), 2)?;
        run(Command::new("ip").args(["addr", "add", &format!("{}/32", Self::ROUTER), "dev", "lo"]))?;
        for host in [&left, &right] {
            let (near, far) = (format!("to-{}", host.name), host.name);
            run(Command::new("ip").args(["link", "add", &near, "type", "veth", "peer", "name", far]))?;
            run(Command::new("ip").args(["link", "set", far, "netns", &host.path()]))?;
            let [a, b, c, _] = host.ip.octets();
            let gateway = Ipv4Addr::new(a, b, c, 254);
            run(Command::new("ip").args(["addr", "add", &format!("{gateway}/24"), "dev", &near]))?;
            run(Command::new("ip").args(["link", "set", &near, "up"]))?;
            run(host.command("ip").args(["link", "set", "lo", "up"]))?;
            run(host.command("ip").args(["addr", "add", &format!("{}/24", host.ip), "dev", far]))?;
            run(host.command("ip").args(["link", "set", far, "up"]))?;
            run(host.command("ip").args(["route", "add", "default", "via", &gateway.to_string()]))?;
        }
        Ok(Self { left, right })
    }

    /// Gives a host another address in its network, as when it changes between access points: the old one is gone at once.
    pub fn readdress(&self, host: &Host, ip: Ipv4Addr) -> Result<()> {
        let [a, b, c, _] = ip.octets();
        run(host.command("ip").args(["addr", "flush", "dev", host.name]))?;
        run(host.command("ip").args(["addr", "add", &format!("{ip}/24"), "dev", host.name]))?;
        run(host.command("ip").args(["route", "replace", "default", "via", &Ipv4Addr::new(a, b, c, 254).to_string()]))
    }

    /// Lets the two hosts reach each other, or no longer.
    pub fn forward(&self, on: bool) -> Result<()> {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", if on { "1" } else { "0" }).context("switch forwarding")
    }
}

impl Host {
    fn new(name: &'static str, ip: Ipv4Addr, number: u8) -> Result<Self> {
        // A thread of its own leaves for a new namespace; the descriptor keeps that namespace when the thread ends.
        let namespace = std::thread::spawn(|| {
            // SAFETY: unshare affects the calling thread only.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
            File::open("/proc/thread-self/ns/net")
        })
        .join()
        .map_err(|_| anyhow!("namespace thread"))?
        .context("make a network namespace")?;
        let ipv6 = Ipv6Addr::new(0xFD99, 0, 0, 0, 0, 0, 0, number.into());
        Ok(Self { name, namespace, ip, ipv6 })
    }

    /// Address on the link.
    pub fn ip(&self) -> IpAddr {
        IpAddr::V4(self.ip)
    }

    /// IPv6 address on the link.
    pub fn ipv6(&self) -> IpAddr {
        IpAddr::V6(self.ipv6)
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }

    /// A command that will run on this host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        self.place(&mut command);
        command
    }

    /// Makes `command` run on this host.
    pub fn place(&self, command: &mut Command) {
        let fd = self.namespace.as_raw_fd();
        // SAFETY: setns is async-signal-safe; the descriptor outlives the spawn because `self` is borrowed by callers
        // until then, and a closed one makes the spawn fail.
        unsafe {
            command.pre_exec(move || match libc::setns(fd, libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
    }

    /// Runs `f` on a thread that lives on this host: sockets it makes are this host's.
    pub fn on<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R> {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                // SAFETY: setns with a network namespace affects the calling thread only.
                if unsafe { libc::setns(self.namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                    return Err(anyhow::Error::from(std::io::Error::last_os_error()));
                }
                Ok(f())
            });
            worker.join().map_err(|_| anyhow!("thread on host {} panicked", self.name))?
        })
    }

    fn drop_fragments(&self) -> Result<()> {
        // Before defragmentation. IPv4: more-fragments flag or a fragment offset; IPv6: a fragment header.
        let rules = "table ip lab {\n chain input_raw {\n  type filter hook prerouting priority -450;\n  \
                     ip frag-off & 0x3fff != 0 counter drop\n }\n}\n\
                     table ip6 lab {\n chain input_raw {\n  type filter hook prerouting priority -450;\n  \
                     exthdr frag exists counter drop\n }\n}\n";
        let mut nft = self.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("nft")?;
        nft.stdin.take().context("nft input")?.write_all(rules.as_bytes())?;
        if !nft.wait()?.success() {
            bail!("nft refused the fragment rule");
        }
        Ok(())
    }

    fn fragments_dropped(&self) -> Result<u64> {
        Ok(self.counter("ip")? + self.counter("ip6")?)
    }

    /// The counter of the rule for one address family, as nft calls it.
    fn counter(&self, family: &str) -> Result<u64> {
        let output = self.command("nft").args(["-j", "list", "table", family, "lab"]).output()?;
        let listing: serde_json::Value = serde_json::from_slice(&output.stdout).context("nft listing")?;
        let rules = listing["nftables"].as_array().context("nft listing")?;
        rules
            .iter()
            .filter_map(|r| r["rule"]["expr"].as_array())
            .flatten()
            .find_map(|e| e["counter"]["packets"].as_u64())
            .context("fragment counter")
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
