//! Texts to values: booleans, integers, durations, addresses.

use std::time::Duration;

pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

pub(super) fn parse_uint(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.get(..2) {
        Some("0x") => (&lower[2..], 16),
        Some("0o") => (&lower[2..], 8),
        Some("0b") => (&lower[2..], 2),
        _ => (lower.as_str(), 10),
    };
    if digits.starts_with('+') {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// Reads a duration as the official programs write it: numbers with optional fraction, each with a unit out of `ns`,
/// `us`, `µs`, `ms`, `s`, `m`, `h`; `0` alone is allowed. Negative durations and overflow give `None`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = split_digits(rest);
        let (fraction, after_fraction) = match after.strip_prefix('.') {
            Some(after) => split_digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_len = after_fraction.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after_fraction.len());
        let (unit, next) = after_fraction.split_at(unit_len);
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        if !whole.is_empty() {
            total = total.checked_add(whole.parse::<u128>().ok()?.checked_mul(unit)?)?;
        }
        // Digits beyond the nanosecond cannot change the sum.
        let fraction = &fraction[..fraction.len().min(18)];
        if !fraction.is_empty() {
            total = total.checked_add(fraction.parse::<u128>().ok()? * unit / 10u128.pow(fraction.len() as u32))?;
        }
        rest = next;
    }
    // The largest duration of the official programs: 2^63 - 1 nanoseconds.
    let nanos = u64::try_from(total).ok().filter(|n| *n <= i64::MAX as u64)?;
    Some(Duration::from_nanos(nanos))
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Splits `host:port`. IPv6 hosts need brackets; the host may be empty; the port is a number from 0 to 65535.
pub fn split_host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(inner) => {
            let inner = inner.strip_suffix(']')?;
            inner.contains(':').then_some(inner)?
        }
        None if host.contains([':', '[', ']']) => return None,
        None => host,
    };
    if host.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return None;
    }
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((host, port.parse().ok()?))
}
