//! X25519, both key derivations and AES-256-GCM against the vectors of the reference (01 §8, 07 §5.1).

use pilot_proto::crypto::{AeadKey, CryptoError, ExchangeKey, Scheme};
use serde_json::Value;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn key(v: &Value, name: &str) -> [u8; 32] {
    hex(v[name].as_str().unwrap()).try_into().unwrap()
}

#[test]
fn both_sides_agree_on_the_key_of_scheme_a() {
    let v: Value = serde_json::from_str(include_str!("vectors/wire-tunnel-frames.json")).unwrap();
    let keys = &v["keys"];
    let (a, b) = (&keys["node_a"], &keys["node_b"]);
    let (ka, kb) = (
        ExchangeKey::from_private(&key(a, "x25519_private_hex")),
        ExchangeKey::from_private(&key(b, "x25519_private_hex")),
    );
    assert_eq!(*ka.public(), key(a, "x25519_public_hex"));
    let ab = ka.agree(kb.public()).unwrap();
    assert_eq!(ab.as_bytes(), kb.agree(ka.public()).unwrap().as_bytes());
    assert_eq!(*ab.as_bytes(), key(keys, "x25519_shared_hex"));
    assert_eq!(*ab.derive(Scheme::A), key(keys, "aes256_key_hex"));
}

#[test]
fn live_exchanges_give_the_keys_of_both_schemes() {
    let v: Value = serde_json::from_str(include_str!("vectors/drift-tunnel-live.json")).unwrap();
    let cases = v["cases"].as_array().unwrap();
    assert!(cases.len() >= 3);
    for case in cases {
        let own = ExchangeKey::from_private(&key(&case["test_peer"], "x25519_priv"));
        let shared = own.agree(&key(case, "daemon_x25519_pub_hex")).unwrap();
        assert_eq!(*shared.as_bytes(), key(case, "x25519_shared_hex"));
        assert_eq!(*shared.derive(Scheme::A), key(case, "key_scheme_A_hex"));
        assert_eq!(*shared.derive(Scheme::B), key(case, "key_scheme_B_hex"));
    }
}

#[test]
fn low_order_points_are_refused() {
    let v: Value = serde_json::from_str(include_str!("vectors/wire-tunnel-frames.json")).unwrap();
    let own = ExchangeKey::from_private(&[7; 32]);
    let points = v["low_order_points"].as_array().unwrap();
    assert_eq!(points.len(), 7);
    for point in points {
        assert_eq!(own.agree(&key(point, "peer_public_hex")).err(), Some(CryptoError::LowOrder));
    }
}

#[test]
fn a_frame_opens_only_under_its_key_nonce_and_associated_data_and_is_kept_when_it_does_not() {
    let aead = AeadKey::new(&[3; 32]);
    let mut data = *b"a packet";
    let tag = aead.seal([1; 12], b"node", &mut data).unwrap();
    let sealed = data;
    let mut out = [0xFF; 8];
    for (key, nonce, aad) in
        [([4; 32], [1; 12], &b"node"[..]), ([3; 32], [2; 12], b"node"), ([3; 32], [1; 12], b"edon")]
    {
        let got = AeadKey::new(&key).open(nonce, aad, &sealed, &tag, &mut out);
        assert_eq!(got, Err(CryptoError::Open));
        assert_eq!(out, [0; 8], "nothing of a refused frame is left behind");
    }
    assert_eq!(aead.open([1; 12], b"node", &sealed, &tag[..15], &mut out), Err(CryptoError::Open));
    aead.open([1; 12], b"node", &sealed, &tag, &mut out).unwrap();
    assert_eq!(&out, b"a packet");
}
