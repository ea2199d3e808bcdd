//! Addresses that cannot be read, in the words of the official library (06 §15.4): programs show them, and some compare.

use pilot_sdk::SocketAddress;
use pilot_wire::addr::AddressError;

/// `N:NNNN.HHHH.LLLL:PORT`.
pub(crate) fn parse(text: &str) -> Result<SocketAddress, String> {
    text.parse().map_err(|error| words(&error))
}

fn words(error: &AddressError) -> String {
    use AddressError as E;
    match error {
        E::MissingPort(text) => format!("invalid socket address: {text:?} (no port)"),
        E::MissingColon(text) => format!("invalid address: {text:?} (expected N:XXXX.YYYY.YYYY)"),
        E::Network(text) => number("network ID", text.split(':').next().unwrap_or_default()),
        E::Groups(text) => {
            let groups = text.split_once(':').map_or("", |(_, groups)| groups);
            format!("invalid address: {groups:?} (expected 3 dot-separated hex groups)")
        }
        E::Group(_, group) if group.len() == 4 => number("hex group", group),
        E::Group(_, group) => format!("invalid hex group: {group:?} (expected 4 digits)"),
        E::NetworkMismatch(_, network, hex) => {
            format!("network mismatch: decimal {network} != hex 0x{}", hex.to_uppercase())
        }
        E::Port(text) => number("port", text.rsplit(':').next().unwrap_or_default()),
        other => other.to_string(),
    }
}

/// A number that is none, or too large.
fn number(what: &str, text: &str) -> String {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let why = if digits { "value out of range" } else { "invalid syntax" };
    format!("invalid {what}: {text:?}: strconv.ParseUint: parsing {text:?}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_the_official_ones() {
        let file = include_str!("../../pilot-wire/tests/vectors/wire-addresses.json");
        let file: serde_json::Value = serde_json::from_str(file).expect("vectors");
        let mut shown = 0;
        for entry in file["socket_invalid"].as_array().expect("a list") {
            let text = entry["input"].as_str().expect("a text");
            assert_eq!(parse(text).expect_err(text), entry["reference_error"].as_str().expect("words"), "{text:?}");
            shown += 1;
        }
        // And of the addresses, with a port behind them.
        for entry in file["invalid"].as_array().expect("a list") {
            let text = entry["input"].as_str().expect("a text");
            let expected = entry["reference_error"].as_str().expect("words");
            if text.contains(':') && !text.contains('\n') {
                assert_eq!(parse(&format!("{text}:80")).expect_err(text), expected, "{text:?}");
                shown += 1;
            }
        }
        assert!(shown > 30, "{shown}");
    }
}
