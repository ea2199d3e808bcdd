//! Addresses of the loopback interface: added for mappings outside of 127.0.0.0/8, taken away with them.
//!
//! What is added carries the label `lo:pilot` (IPv4; IPv6 has no labels), by which the next start finds what a crash left.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::process::Command;

use crate::table::Subnet;

/// Marks addresses as ours.
const LABEL: &str = "lo:pilot";
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
        if address.is_ipv4() {
            args.extend(["label", LABEL]);
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

    /// Takes over what an earlier gateway has left behind in this subnet, so that it goes when this one ends.
    pub(crate) async fn adopt(&self, subnet: Subnet) {
        if subnet.is_loopback() {
            return;
        }
        let Ok(text) = ip(&["-o", "addr", "show", "dev", "lo", "label", LABEL]).await else { return };
        for left in labelled(&text).filter(|address| subnet.contains(*address)) {
            tracing::info!(%left, "an address that an earlier gateway left behind");
            self.0.lock().insert(left);
            self.remove(left).await;
        }
    }
}

/// The addresses in what `ip -o addr show` prints.
fn labelled(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| !matches!(*word, "inet" | "inet6"));
        words.nth(1)?.split('/').next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ip_prints_is_read() {
        let text = "1: lo    inet 10.4.0.1/32 scope host lo:pilot\\       valid_lft forever preferred_lft forever\n\
                    1: lo    inet 10.4.0.2/32 scope host lo:pilot\n1: lo\n";
        assert_eq!(labelled(text).collect::<Vec<_>>(), [IpAddr::from([10, 4, 0, 1]), IpAddr::from([10, 4, 0, 2])]);
    }

    #[tokio::test]
    async fn loopback_needs_nothing() {
        let aliases = Aliases::default();
        aliases.add([127, 4, 0, 1].into()).await.unwrap();
        assert!(aliases.0.lock().is_empty());
    }
}
