//! What a hostname, a tag and an endpoint must look like (specification 04 §10, 07 §9.4).

use std::net::{IpAddr, SocketAddr};

const RESERVED: [&str; 3] = ["localhost", "backbone", "broadcast"];

fn is_label(text: &str, max: usize) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            bytes.len() <= max
                && alphanumeric(first)
                && alphanumeric(last)
                && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
        }
        _ => false,
    }
}

/// Checks a hostname; empty is fine and means none (04 §10.1).
///
/// # Errors
/// The text for `hostname_error`.
pub fn check_hostname(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Ok(());
    }
    if name.len() > 63 {
        return Err("hostname too long (max 63 chars)".into());
    }
    if !is_label(name, 63) {
        return Err("hostname must be lowercase alphanumeric with hyphens, start/end with alphanumeric".into());
    }
    if RESERVED.contains(&name) {
        return Err(format!("hostname \"{name}\" is reserved"));
    }
    Ok(())
}

/// Checks the name of a network (04 §10.3).
///
/// # Errors
/// What is wrong.
pub fn check_network_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("network name required".into());
    }
    if name.len() > 63 {
        return Err("network name too long (max 63 chars)".into());
    }
    if !is_label(name, 63) {
        return Err("network name must be lowercase alphanumeric with hyphens, start/end with alphanumeric".into());
    }
    if name == "backbone" {
        return Err("network name \"backbone\" is reserved".into());
    }
    Ok(())
}

/// Whether a text may be a tag.
pub fn is_tag(tag: &str) -> bool {
    is_label(tag, 32)
}

/// Checks a tag list: one leading `#` is taken off each, repetitions are dropped (07 §9.4).
///
/// # Errors
/// What is wrong (04 §10.2).
pub fn check_tags<'a>(tags: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>, String> {
    let tags: Vec<&str> = tags.into_iter().map(|t| t.strip_prefix('#').unwrap_or(t)).collect();
    if tags.len() > 10 {
        return Err("too many tags (max 10)".into());
    }
    let mut out: Vec<String> = Vec::new();
    for tag in tags {
        if tag.is_empty() {
            return Err("invalid tags: empty tag not allowed".into());
        }
        if tag.len() > 32 {
            return Err(format!("tag {:?} too long (max 32 chars)", crate::limits::cut(tag, 64)));
        }
        if !is_tag(tag) {
            return Err(format!("invalid tags: tag {tag:?} must be lowercase alphanumeric with hyphens"));
        }
        if !out.iter().any(|t| t == tag) {
            out.push(tag.to_owned());
        }
    }
    Ok(out)
}

/// Splits at the last colon by the rule of the official server: IPv6 hosts must be in brackets.
fn split_host_port(text: &str) -> Option<(&str, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        let port = rest.strip_prefix(':')?;
        return (!port.contains([':', '[', ']']) && !host.contains('[')).then_some((host, port));
    }
    let (host, port) = text.rsplit_once(':')?;
    (!host.contains([':', '[', ']']) && !port.contains(['[', ']'])).then_some((host, port))
}

/// Whether peers out in the world could send to this address.
fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            !(ip.is_unspecified()
                || ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_broadcast()
                || ip.is_multicast()
                || ip.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b)))
        }
        IpAddr::V6(ip) => {
            let first = ip.segments()[0];
            !(ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_multicast()
                || first & 0xFE00 == 0xFC00
                || first & 0xFFC0 == 0xFE80)
        }
    }
}

/// Whether an address names one host of a local network.
fn is_lan(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xFE00 == 0xFC00,
    }
}

/// The endpoint of a node: from where its registration came and what it said (04 §10.4 with 07 §9.4).
///
/// The port is the client's and must be 1 to 65535; without a `host:port` it is that of the TCP connection. The host is
/// the TCP source. Only a signed registration may name another host: a public one, or, when it comes from this very
/// machine (loopback source), one of the local network. `None` when the port is unusable: the node is registered, but
/// has no endpoint.
pub fn endpoint(source: SocketAddr, listen_addr: &str, signed: bool) -> Option<SocketAddr> {
    let source = SocketAddr::new(source.ip().to_canonical(), source.port());
    let Some((host, port)) = split_host_port(listen_addr) else {
        return Some(source);
    };
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let port = port.parse::<u16>().ok().filter(|p| *p != 0)?;
    let named = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    let host = match named {
        Some(ip) if signed && is_public(ip) => ip,
        Some(ip) if signed && source.ip().is_loopback() && is_lan(ip) => ip,
        _ => {
            // Keeps the zone of a link-local source.
            let mut own = source;
            own.set_port(port);
            return Some(own);
        }
    };
    Some(SocketAddr::new(host, port))
}
