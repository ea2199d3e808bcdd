//! `trust.json`.

use super::*;

fn loaded(text: &str) -> Result<Trust, TrustFileError> {
    let mut trust = Trust::new(identity(1), 1, TrustConfig::default());
    trust.load(Net::new(&[]).at, text.as_bytes()).map(|()| trust)
}

#[test]
fn official_files_are_read_and_written_to_the_same_bytes() {
    let file: Value = serde_json::from_str(include_str!("../../../tests/vectors/services-handshake.json")).unwrap();
    let samples = file["trust_json"].as_array().unwrap();
    assert_eq!(samples.len(), 3);
    for sample in samples {
        let text = sample["file_utf8"].as_str().unwrap();
        let trust = loaded(text).unwrap();
        assert_eq!(String::from_utf8(trust.to_bytes()).unwrap(), text, "{}", sample["name"]);
    }
}

#[test]
fn unknown_fields_are_kept_in_the_file_and_in_each_entry() {
    let text = json!({
        "trusted": [{"node_id": 2, "public_key": base64::encode(&key(2)), "approved_at": "2026-02-27T10:11:12Z",
                     "mutual": true, "badge": {"a": [1, 2]}}],
        "pending": [{"node_id": 3, "received_at": "2026-02-27T12:11:12+02:00", "source": "relay"}],
        "revoked": [{"node_id": 4, "until": "2099-01-01T00:00:00Z", "why": "x"}],
        "outgoing": [{"node_id": 5, "sent_at": "2026-01-01T00:00:00Z", "via": "cli"}],
        "version": 3,
    });
    let trust = loaded(&text.to_string()).unwrap();
    let written = parsed(&trust.to_bytes());
    assert_eq!(written["trusted"], text["trusted"]);
    assert_eq!(written["version"], 3);
    assert_eq!(written["pending"][0]["source"], "relay");
    assert_eq!(written["pending"][0]["received_at"], "2026-02-27T10:11:12Z");
    assert_eq!(written["revoked"], text["revoked"]);
    assert_eq!(written["outgoing"], text["outgoing"]);
}

#[test]
fn what_was_written_is_read_as_it_was() {
    let mut net = Net::new(&[1, 2, 3, 4]);
    net.request(1, 2);
    net.approve(2, 1);
    net.request(3, 1);
    net.request(1, 4);
    net.direct = false;
    net.revoke(1, 2);
    let (at, text) = (net.at, net.node(1).to_bytes());
    let mut again = Trust::new(identity(1), 1, TrustConfig::default());
    again.load(at, &text).unwrap();
    assert_eq!(again.to_bytes(), text);
    assert_eq!(again.pending().collect::<Vec<_>>(), net.nodes[&1].pending().collect::<Vec<_>>());
    assert!(again.outgoing.contains_key(&4));
    assert!(again.revoked[&2].hold && again.revoked[&2].untold_since != 0);
}

#[test]
fn a_file_that_cannot_be_understood_is_refused_whole() {
    let good = base64::encode(&key(2));
    for (text, code) in [
        ("", "trust_file_json"),
        ("{\"trusted\":", "trust_file_json"),
        ("[]", "trust_file_form"),
        ("{\"trusted\":{}}", "trust_file_form"),
        ("{\"trusted\":[1]}", "trust_file_form"),
        ("{\"trusted\":[{}]}", "trust_file_entry"),
        ("{\"trusted\":[{\"node_id\":0}]}", "trust_file_entry"),
        ("{\"trusted\":[{\"node_id\":4294967296}]}", "trust_file_entry"),
        ("{\"trusted\":[{\"node_id\":2,\"public_key\":\"AAAA\"}]}", "trust_file_entry"),
        ("{\"trusted\":[{\"node_id\":2,\"public_key\":5}]}", "trust_file_entry"),
    ] {
        assert_eq!(loaded(text).unwrap_err().code(), code, "{text}");
    }
    // A second bad entry leaves nothing of the first behind.
    let mut trust = Trust::new(identity(1), 1, TrustConfig::default());
    let text = format!("{{\"trusted\":[{{\"node_id\":2,\"public_key\":\"{good}\"}},{{}}]}}");
    assert!(trust.load(Net::new(&[]).at, text.as_bytes()).is_err());
    assert!(!trust.is_trusted(2));
    let error = loaded("{\"trusted\":[{\"node_id\":2},{}]}").unwrap_err();
    assert_eq!(error.to_string(), "trust file: entry 1 of trusted has no valid node_id");
}

#[test]
fn after_loading_the_gate_hears_whom_to_let_in_and_a_peer_what_it_has_not_heard() {
    let key_text = base64::encode(&key(2));
    let text = json!({
        "trusted": [{"node_id": 2, "public_key": key_text}, {"node_id": 3, "public_key": ""}],
        "revoked": [{"node_id": 4, "until": "2026-01-01T00:00:00Z", "hold": true, "untold_since": "2026-01-01T00:00:00Z"}],
    });
    let mut trust = loaded(&text.to_string()).unwrap();
    trust.announce();
    let events: Vec<TrustEvent> = std::iter::from_fn(|| trust.poll_event()).collect();
    assert_eq!(
        events,
        [TrustEvent::Trusted { node: 2, key: Some(key(2)) }, TrustEvent::Trusted { node: 3, key: None }]
    );
    assert!(trust.poll_timeout().is_some(), "the peer is told again");
}
