//! Takes IP addresses out of a text. Whoever reads a log at the usual levels learns what happened, not where peers live:
//! errors of the operating system and of libraries name addresses too, so that it is not enough to log none.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What stands in an address's place.
const HIDDEN: &str = "<ip>";

/// The text without IP addresses. Pilot addresses (`0:0000.0000.0005`), times and versions stay.
pub(super) fn scrub(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b':' | b'_') || !byte.is_ascii();
    let mut out = String::new();
    let mut copied = 0;
    let mut at = 0;
    while at < bytes.len() {
        let len = bytes[at..].iter().take_while(|byte| is_word(byte)).count();
        let word = &text[at..at + len];
        for (start, end) in addresses(word) {
            out.push_str(&text[copied..at + start]);
            out.push_str(HIDDEN);
            copied = at + end;
        }
        at += len.max(1);
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// Where addresses stand in a word, in order. A word is at most one IPv6 address, or has IPv4 addresses between colons.
fn addresses(word: &str) -> Vec<(usize, usize)> {
    if word.len() < 3 || !word.contains(['.', ':']) {
        return Vec::new();
    }
    if let Some(range) = v6(word) {
        return vec![range];
    }
    let mut found = Vec::new();
    let mut start = 0;
    for part in word.split(':') {
        let left = part.len() - part.trim_start_matches('.').len();
        let inner = part.trim_matches('.');
        if inner.parse::<Ipv4Addr>().is_ok_and(|ip| !ip.is_unspecified()) {
            found.push((start + left, start + left + inner.len()));
        }
        start += part.len() + 1;
    }
    found
}

/// An IPv6 address that ends the word, up to punctuation, and begins it or follows a colon in it (`addr:2001:db8::1`).
fn v6(word: &str) -> Option<(usize, usize)> {
    let trimmed = word.trim_end_matches('.');
    let ends = [trimmed, trimmed.strip_suffix(':').unwrap_or(trimmed)];
    let starts = std::iter::once(0).chain(word.match_indices(':').map(|(i, _)| i + 1));
    for start in starts.take(16) {
        for end in ends {
            let candidate = end.get(start..).unwrap_or_default();
            // The unspecified address says nothing.
            if candidate.parse::<Ipv6Addr>().is_ok_and(|ip| !ip.is_unspecified()) {
                return Some((start, end.len()));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_go_in_every_spelling() {
        for (text, clean) in [
            ("cannot reach the registry at 10.1.2.3:9000: refused", "cannot reach the registry at <ip>:9000: refused"),
            ("to=192.0.2.7", "to=<ip>"),
            ("udp:192.0.2.7:4000, 192.0.2.8.", "udp:<ip>:4000, <ip>."),
            ("http://192.0.2.7/x 10.0.0.0/8", "http://<ip>/x <ip>/8"),
            ("[2001:db8::1]:4000", "[<ip>]:4000"),
            ("2001:db8::1: unreachable", "<ip>: unreachable"),
            ("fe80::1%eth0 ::ffff:192.0.2.7 ::1", "<ip>%eth0 <ip> <ip>"),
            ("addr:2001:db8:1:2:3:4:5:6", "addr:<ip>"),
            ("(\"127.0.0.1\")", "(\"<ip>\")"),
        ] {
            assert_eq!(scrub(text), clean);
        }
    }

    #[test]
    fn what_is_no_address_stays() {
        for text in [
            "registered node=5 address=0:0000.0000.0005",
            "0:0000.0000.0005:1001",
            "23:59:58.123 2026-11-26T23:12:30.123Z",
            "pilot_node::daemon::log",
            "version 0.1.0, 1.18.0",
            "0.0.0.0 [::]:0",
            "…über: 1.2.3",
            "",
        ] {
            assert_eq!(scrub(text), text);
        }
    }

    proptest! {
        #[test]
        fn no_address_survives_in_any_text(before in "\\PC{0,12}", v4: [u8; 4], v6: [u16; 8], after in "[ ,;)\\]\"']\\PC{0,12}") {
            for ip in [std::net::IpAddr::from(v4), std::net::IpAddr::from(v6)] {
                prop_assume!(!ip.is_unspecified());
                let separated = format!("{before} {ip}{after}");
                let found = scrub(&separated).contains(&format!(" {ip}"));
                prop_assert!(!found, "{}", separated);
            }
        }
    }
}
