//! The frames each call writes, and what it makes of the answers: golden vectors of the official driver.

use crate::fake::{hex, pair, unhex};
use pilot::{Driver, Error, SocketAddress};
use serde_json::Value;

fn vectors() -> Vec<Value> {
    let text = include_str!("../vectors/transport-ipc-driver.json");
    let file: Value = serde_json::from_str(text).unwrap();
    let list = file.as_object().unwrap().values().find_map(Value::as_array).unwrap();
    list.clone()
}

/// The call by its name in the vectors; `None` for the calls on streams, which `driver.rs` tests by behaviour.
async fn call(driver: &Driver, name: &str) -> Option<Result<Value, Error>> {
    let name = name.split(" answered by").next().unwrap_or(name);
    Some(match name {
        "Info()" | "Info() while the daemon goes away" => driver.info().await,
        "Handshake(0x01020304, \"why\")" => driver.handshake(0x0102_0304, "why").await,
        "ApproveHandshake(5)" => driver.approve(5).await,
        "RejectHandshake(5, \"no\")" => driver.reject(5, "no").await,
        "PendingHandshakes()" => driver.pending().await,
        "TrustedPeers()" => driver.trusted().await,
        "RevokeTrust(5)" => driver.revoke(5).await,
        "ResolveHostname(\"bob\")" => driver.resolve_hostname("bob").await,
        "SetHostname(\"alice\")" => driver.set_hostname("alice").await,
        "SetVisibility(true)" => driver.set_visibility(true).await,
        "SetVisibility(false)" => driver.set_visibility(false).await,
        "Deregister()" => driver.deregister().await,
        "SetTags([\"web\",\"api\"])" => driver.set_tags(&["web", "api"]).await,
        "SetTags([])" => driver.set_tags(&[]).await,
        "SetWebhook(\"http://h/\")" => driver.set_webhook("http://h/").await,
        "SetTaskExec(true)" => driver.set_task_exec(true).await,
        "DialAddr(0:0000.0000.0002, 1000)" => {
            let to: SocketAddress = "0:0000.0000.0002:1000".parse().unwrap();
            driver.dial(to).await.map(|stream| stream.remote().to_string().into())
        }
        "Dial(\"1:0001.00A3.0004:7\")" => driver.dial_text("1:0001.00A3.0004:7").await.map(|_| Value::Null),
        _ => return None,
    })
}

#[tokio::test]
async fn requests_and_answers_are_those_of_the_official_driver() {
    let mut checked = 0;
    for vector in vectors() {
        let name = vector["driver_call"].as_str().unwrap().to_owned();
        let (driver, mut fake) = pair(4096);
        let sent = vector["frames_sent_hex"][0].as_str().map(str::to_owned);
        let answer = vector["frames_from_daemon_hex"][0].as_str().map(str::to_owned);
        let daemon = tokio::spawn(async move {
            let body = fake.frame().await;
            if let Some(answer) = &answer {
                fake.raw(&unhex(answer)).await;
                // Stay until the driver has gone.
                while fake.frame().await.is_some() {}
            }
            body
        });
        let Some(result) = call(&driver, &name).await else {
            daemon.abort();
            continue;
        };
        drop(driver);
        let body = daemon.await.unwrap().unwrap();
        let mut frame = (body.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(&body);
        assert_eq!(Some(hex(&frame)), sent, "{name}");
        let expected = vector["result"].as_str().unwrap();
        match result {
            // The words about bad JSON are our own; everything before them is the official text.
            Err(Error::Unmarshal { op, .. }) => assert!(expected.contains(&format!("err={op} unmarshal: ")), "{name}"),
            Err(error) => assert!(expected.ends_with(&format!("err={error}")), "{name}: {error} is not {expected}"),
            Ok(Value::String(remote)) => assert!(expected.contains(&format!("remote={remote} ")), "{name}"),
            Ok(value) => assert_eq!(format!("{} err=<nil>", pilot_wire::json::to_string(&value)), expected, "{name}"),
        }
        checked += 1;
    }
    assert_eq!(checked, 22);
}

#[tokio::test]
async fn a_text_that_is_no_address_is_refused_before_anything_is_sent() {
    let (driver, _fake) = pair(64);
    let error = driver.dial_text("not-an-address").await.unwrap_err();
    assert!(error.to_string().starts_with("parse address: invalid socket address"), "{error}");
    assert_eq!(error.code(), "invalid_argument");
}
