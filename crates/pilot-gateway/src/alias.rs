//! Addresses of the loopback interface: added for mappings outside of 127.0.0.0/8, taken away with them.
//!
//! What is added carries a label with the number of this process, `lo:p1234` (IPv4; IPv6 has no labels), by which the next start
//! finds what a crash left, and tells it from what another gateway uses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use parking_lot::Mutex;
use pilot_env::Env;
use tokio::process::Command;

use crate::table::Subnet;

/// Marks addresses of gateways. The kernel takes 15 characters, and wants the name of the interface in front.
const LABEL: &str = "lo:p";
/// What a command line that runs a gateway has somewhere in it: `pilotctl gateway start`, `pilot-gateway run`.
const GATEWAY: &str = "gateway";
/// Longest wait for the program `ip`, which answers at once.
const LIMIT: Duration = Duration::from_secs(10);

/// The addresses this gateway has added.
#[derive(Debug, Default)]
pub(crate) struct Aliases(Mutex<BTreeSet<IpAddr>>);

/// Runs the program `ip` of iproute2; what it printed.
async fn ip(args: &[&str]) -> Result<String, String> {
    let mut command = Command::new("ip");
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(LIMIT, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("run ip (of iproute2): {error}")),
        Err(_) => return Err("ip (of iproute2) does not end".to_owned()),
    };
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

fn with_prefix(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

impl Aliases {
    /// Adds an address, unless it is there without us. 127.0.0.0/8 and ::1 always are.
    pub(crate) async fn add(&self, address: IpAddr) -> Result<(), String> {
        if address.is_loopback() {
            return Ok(());
        }
        let with_prefix = with_prefix(address);
        // Scope host: the address is never used toward other machines.
        let mut args = vec!["addr", "add", with_prefix.as_str(), "dev", "lo", "scope", "host"];
        let label = format!("{LABEL}{}", std::process::id());
        if address.is_ipv4() {
            args.extend(["label", label.as_str()]);
        }
        match ip(&args).await {
            Ok(_) => {
                self.0.lock().insert(address);
                Ok(())
            }
            Err(why) if why.contains("File exists") || why.contains("already assigned") => Ok(()),
            Err(why) => Err(why),
        }
    }

    /// Takes an address away that we have added.
    pub(crate) async fn remove(&self, address: IpAddr) {
        if !self.0.lock().remove(&address) {
            return;
        }
        if let Err(why) = ip(&["addr", "del", &with_prefix(address), "dev", "lo"]).await {
            tracing::warn!(%address, why, "an address stays on the loopback interface");
        }
    }

    /// Takes away everything we have added.
    pub(crate) async fn clear(&self) {
        let all: Vec<IpAddr> = self.0.lock().iter().copied().collect();
        for address in all {
            self.remove(address).await;
        }
    }

    /// Takes away what an earlier gateway has left behind in this subnet. What belongs to one that runs stays.
    pub(crate) async fn adopt(&self, env: &Env, subnet: Subnet) {
        if subnet.is_loopback() {
            return;
        }
        let pattern = format!("{LABEL}*");
        let Ok(text) = ip(&["-o", "addr", "show", "dev", "lo", "label", &pattern]).await else { return };
        if labelled(&text).next().is_none() {
            return;
        }
        // A number can have gone to another process since.
        let runs = |args: &[String]| args.iter().any(|arg| arg.contains(GATEWAY));
        let running: BTreeSet<u32> =
            env.processes().into_iter().filter(|process| runs(&process.args)).map(|process| process.pid).collect();
        for left in left_behind(&text, &running).filter(|address| subnet.contains(*address)) {
            tracing::info!(%left, "an address that an earlier gateway left behind");
            self.0.lock().insert(left);
            self.remove(left).await;
        }
    }
}

/// The addresses in what `ip -o addr show` prints, and the processes of their labels.
fn labelled(text: &str) -> impl Iterator<Item = (IpAddr, Option<u32>)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| !matches!(*word, "inet" | "inet6"));
        let address = words.nth(1)?.split('/').next()?.parse().ok()?;
        let label = words.find_map(|word| word.strip_prefix(LABEL))?;
        Some((address, label.trim_end_matches('\\').parse().ok()))
    })
}

/// Those that none of these processes uses.
fn left_behind(text: &str, running: &BTreeSet<u32>) -> impl Iterator<Item = IpAddr> {
    labelled(text).filter(|(_, pid)| pid.is_none_or(|pid| !running.contains(&pid))).map(|(address, _)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ip_prints_is_read() {
        let text = "1: lo    inet 10.4.0.1/32 scope host lo:p17\\       valid_lft forever preferred_lft forever\n\
                    1: lo    inet 10.4.0.2/32 scope host lo:p4194304\n1: lo    inet 10.4.0.3/32 scope host lo:pilot\n1: lo\n\
                    1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever\n";
        let ip = |last| IpAddr::from([10, 4, 0, last]);
        let all = [(ip(1), Some(17)), (ip(2), Some(4_194_304)), (ip(3), None)];
        assert_eq!(labelled(text).collect::<Vec<_>>(), all);
        // Those of a gateway that runs are not for another one to take away.
        assert_eq!(left_behind(text, &BTreeSet::from([17])).collect::<Vec<_>>(), [ip(2), ip(3)]);
    }

    #[tokio::test]
    async fn loopback_needs_nothing() {
        let aliases = Aliases::default();
        aliases.add([127, 4, 0, 1].into()).await.unwrap();
        assert!(aliases.0.lock().is_empty());
    }
}
