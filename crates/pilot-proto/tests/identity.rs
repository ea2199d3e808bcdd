//! The identity file and its signatures against the vectors of the reference (specification 01 §21).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pilot_proto::identity::{Identity, IdentityError, verify};
use serde_json::Value;

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors/wire-identity.json")).unwrap()
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v[key].as_str().unwrap()
}

#[test]
fn a_seed_gives_exactly_the_bytes_the_reference_writes() {
    let v = vectors();
    let saves = v["save"].as_array().unwrap();
    assert_eq!(saves.len(), 3);
    for save in saves {
        let seed = STANDARD.decode(text(save, "private_key_base64")).unwrap();
        let identity = Identity::from_seed(seed[..32].try_into().unwrap());
        assert_eq!(identity.to_file_text().as_str(), text(save, "file_text"));
        assert_eq!(identity.to_file_text().len() as u64, save["file_len"].as_u64().unwrap());
        assert_eq!(identity.public_key_base64(), text(save, "public_key_base64"));
        let signature = identity.sign(b"heartbeat:1");
        assert_eq!(STANDARD.encode(signature), text(save, "signature_over_ascii_heartbeat:1_base64"));
        assert!(verify(&identity.public_key(), b"heartbeat:1", &signature));
        assert!(!verify(&identity.public_key(), b"heartbeat:2", &signature));
        let again = Identity::from_file_text(identity.to_file_text().as_bytes()).unwrap();
        assert_eq!(again.seed(), identity.seed());
    }
}

#[test]
fn files_load_as_the_reference_loads_them_except_a_seed_that_signs_wrongly() {
    let v = vectors();
    let loads = v["load"].as_array().unwrap();
    assert_eq!(loads.len(), 13);
    for load in loads {
        let name = text(load, "name");
        let got = Identity::from_file_text(text(load, "file_text").as_bytes());
        if name == "seed_half_does_not_match_but_public_halves_agree" {
            assert_eq!(got.unwrap_err(), IdentityError::SeedMismatch);
        } else if load["ok"].as_bool().unwrap() {
            assert_eq!(got.expect(name).public_key_base64(), text(load, "public_key_base64"), "{name}");
        } else {
            let error = got.expect_err(name);
            assert!(error.code().starts_with("identity_"), "{name}: {error}");
            assert!(!error.hint().is_empty());
        }
    }
}

#[test]
fn the_seed_is_not_shown_by_debug() {
    let identity = Identity::from_seed([0x5A; 32]);
    let shown = format!("{identity:?}");
    assert!(shown.contains(&identity.public_key_base64()));
    assert!(!shown.contains("90, 90"));
}
