//! Nameserver on port 53: requests and replies of the official server and client.

use pilot_wire::service::nameserver::{Reply, Request};

use super::{load, rows, text};

#[test]
fn requests_parse_or_fail_in_the_official_words() {
    let file = load("registry-nameserver");
    let mut failures = 0;
    for row in rows(&file, "exchanges") {
        match (Request::parse(text(row, "request").as_bytes()), text(row, "reply")) {
            (Ok(request), reply) => {
                assert!(!reply.starts_with("ERR invalid") && !reply.contains("requires"), "{row}");
                assert_eq!(Request::parse(request.emit().as_bytes()), Ok(request));
            }
            (Err(error), reply) => {
                assert_eq!(format!("ERR {error}"), reply, "{row}");
                failures += 1;
            }
        }
    }
    assert!(failures >= 15);
    assert!(Request::parse(b"QUERY A \xFF").is_err());
}

#[test]
fn replies_parse_as_the_official_client_reads_them() {
    let file = load("registry-nameserver");
    for row in rows(&file, "response_parsing") {
        let got = Reply::parse(text(row, "text"));
        let expected = text(row, "result");
        if let Some(error) = expected.strip_prefix("error: ") {
            assert_eq!(got.unwrap_err().to_string(), error, "{row}");
            continue;
        }
        let expected: serde_json::Value = serde_json::from_str(expected).unwrap();
        match got.unwrap() {
            Reply::Ok => assert_eq!(expected["Type"], "OK"),
            Reply::A { name, address } => {
                assert_eq!((&expected["Name"], &expected["Address"]), (&name.into(), &address.to_string().into()));
            }
            Reply::N { name, network } => {
                assert_eq!((&expected["Name"], &expected["NetID"]), (&name.into(), &network.into()));
            }
            Reply::Err(why) => assert_eq!(expected["Error"], why),
            Reply::S(providers) => {
                let all = expected["Services"].as_array().cloned().unwrap_or_default();
                assert_eq!(providers.len(), all.len(), "{row}");
                for (provider, expected) in providers.iter().zip(&all) {
                    assert_eq!(expected["name"], provider.name.as_str());
                    assert_eq!(expected["address"]["Node"], provider.address.node);
                    assert_eq!(expected["port"], provider.port);
                }
            }
        }
    }
}
