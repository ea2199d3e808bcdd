//! Secure channel on port 443: records of both official forms.

use pilot_wire::service::secure::{Auth, Record, Role, emit_record, signed_text};

use super::{bytes, hex, load, rows, text};

#[test]
fn records_parse_and_re_encode_to_the_same_bytes() {
    let file = load("services-secure");
    let (mut server, mut client) = (0, 0);
    for row in rows(&file, "messages") {
        let wire = bytes(text(row, "wire_hex"));
        let (record, used) = Record::parse(&wire).unwrap().unwrap();
        assert_eq!(used, wire.len());
        let (role, counter) =
            if text(row, "from") == "client" { (Role::Client, &mut client) } else { (Role::Server, &mut server) };
        *counter += 1;
        assert_eq!(record.nonce, role.nonce(*counter));
        let (ciphertext, tag) = record.parts().unwrap();
        let mut out = Vec::new();
        emit_record(&record.nonce, ciphertext, tag, &mut out);
        assert_eq!(out, wire);
        for cut in 0..wire.len() {
            assert_eq!(Record::parse(&wire[..cut]), Ok(None));
        }
    }
}

#[test]
fn malformed_records_fail_in_the_official_words() {
    let file = load("services-secure");
    for row in rows(&file, "malformed").iter().filter(|row| row["wire_hex"].is_string()) {
        let wire = bytes(text(row, "wire_hex"));
        match text(row, "error") {
            "unexpected EOF" => assert_eq!(Record::parse(&wire), Ok(None)),
            error if error.starts_with("decrypt") => assert!(Record::parse(&wire).unwrap().is_some()),
            error => assert_eq!(Record::parse(&wire).unwrap_err().to_string(), error),
        }
    }
}

#[test]
fn authentication_frames_have_the_recorded_bytes() {
    let file = load("drift-secure-channel");
    let mut checked = 0;
    for case in rows(&file, "cases") {
        for write in rows(case, "wire_writes_in_order").iter().filter(|write| write["signed_message_hex"].is_string()) {
            let frame = bytes(text(write, "plaintext_hex"));
            let auth = Auth::parse(&frame).unwrap();
            assert_eq!(auth.emit().to_vec(), frame);
            let signed = bytes(text(write, "signed_message_hex"));
            let key: [u8; 32] = signed[22..54].try_into().unwrap();
            assert_eq!(hex(&signed_text(auth.node, &key, auth.unix, &auth.nonce)), hex(&signed));
            assert_eq!(Auth::parse(&frame[1..]), None);
            checked += 1;
        }
    }
    assert_eq!(checked, 2);
}
