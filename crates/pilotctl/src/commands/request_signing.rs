//! `sign-request` and `verify-request`: an agent proves to a third party, a web service say, that a request comes from its
//! node, and anybody with a daemon checks it (07 §12).

use std::io::Read;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use pilot_wire::envelope;
use serde_json::{Value, json};

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Outcome};
use crate::go;
use crate::table::{Arg, Command};

pub(crate) const SIGN: Command = Command {
    name: "sign-request",
    args: &[
        Arg::new("--audience <a>", "whom the request is meant for: 1 to 64 of a-z 0-9 . -"),
        Arg::new("[--body-file <f>]", "a file that holds the request; - reads standard input"),
        Arg::new("[--body-hash <64hex>]", "SHA-256 of the request"),
        Arg::new("[--body <string>]", "the request itself"),
    ],
    about: "sign a request for a third party, as proof that this node makes it",
    details: "The daemon puts its address, the time, a mark that is used once, the SHA-256 of the request and the audience \
              into one line and signs it with the node's key. Send envelope and signature along with the request.\n  \
              pilotctl sign-request --audience api.example.org --body-file order.json",
    returns: "envelope, signature, address",
    raw: false,
    run: |app, args| Box::pin(sign(app, args)),
};

pub(crate) const VERIFY: Command = Command {
    name: "verify-request",
    args: &[
        Arg::new("--envelope <line>", "the line that was signed"),
        Arg::new("--signature <base64>", "the signature"),
        Arg::new("[--standing]", "also ask for the signer's standing"),
        Arg::new("[--max-skew <secs>]", "how far the signer's clock may be off (default 300)"),
        Arg::extra("[--audience <a>]", "refuse what is meant for somebody else"),
        Arg::extra("[--body-file <f>]", "refuse what is not the signature of this file; - reads standard input"),
        Arg::extra("[--body-hash <64hex>]", "refuse what is not the signature of a request with this SHA-256"),
        Arg::extra("[--body <string>]", "refuse what is not the signature of this request"),
    ],
    about: "verify a request that some node has signed",
    details: "Exit code 1 and \"valid\": false with a reason when it does not hold. Without --audience and one of the --body \
              flags only the signature, the signer and the time are checked: compare the rest yourself. To accept a \
              request once only, remember its nonce for as long as --max-skew.",
    returns: "valid, reason, node_id, address, timestamp, nonce, body_hash, audience, standing",
    raw: false,
    run: |app, args| Box::pin(verify(app, args)),
};

const BODY_FLAGS: [&str; 3] = ["body-file", "body-hash", "body"];

/// The SHA-256 that the flags name, as 32 bytes; `None` when none of them is there.
async fn hash(command: &str, args: &Args) -> Result<Option<[u8; 32]>, CliError> {
    let given: Vec<&str> = BODY_FLAGS.into_iter().filter(|flag| args.flag(flag).is_some()).collect();
    let [flag] = given[..] else {
        return match given.is_empty() {
            true => Ok(None),
            false => Err(one_body(command)),
        };
    };
    let value = args.flag(flag).unwrap_or_default().to_owned();
    match flag {
        "body-hash" => {
            let bad = || CliError::argument(format!("{command}: body hash must be 64 hex chars (sha256)"));
            parse_hash(&value).ok_or_else(bad).map(Some)
        }
        "body-file" => {
            let read = tokio::task::spawn_blocking({
                let path = value.clone();
                move || match path.as_str() {
                    "-" => digest(std::io::stdin().lock()),
                    path => digest(std::fs::File::open(path)?),
                }
            });
            let read = read.await.map_err(|error| CliError::internal(format!("{command}: {error}")))?;
            let unreadable = |error: std::io::Error| CliError::argument(format!("{command}: read {value}: {error}"));
            read.map_err(unreadable).map(Some)
        }
        _ => digest(value.as_bytes()).map_err(|error| CliError::internal(format!("{command}: {error}"))).map(Some),
    }
}

fn one_body(command: &str) -> CliError {
    CliError::argument(format!("{command}: exactly one of --body-file, --body-hash, --body is required"))
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// Hashes piece by piece, whatever the size.
fn digest(mut from: impl Read) -> std::io::Result<[u8; 32]> {
    let mut context = Context::new(&SHA256);
    let mut piece = vec![0; 64 * 1024];
    loop {
        match from.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => context.update(piece.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    Ok(hash)
}

fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The audience, checked here so that a mistake is told apart from a failure of the daemon.
fn audience<'a>(command: &str, args: &'a Args) -> Result<Option<&'a str>, CliError> {
    let Some(audience) = args.flag("audience") else { return Ok(None) };
    match envelope::check(audience, &"0".repeat(64)) {
        Ok(()) => Ok(Some(audience)),
        Err(error) => Err(CliError::argument(format!("{command}: {error}, not {}", go::quote(audience)))),
    }
}

const TOO_OLD: &str = "this daemon cannot sign and verify requests: official ones can from 1.12.8 on, and ours";

async fn sign(app: &App, args: &Args) -> Outcome {
    let audience = audience(SIGN.name, args)?.ok_or_else(|| CliError::argument(SIGN.usage()))?;
    let hash = hash(SIGN.name, args).await?.ok_or_else(|| one_body(SIGN.name))?;
    let driver = app.driver().await?;
    let signed = app.ask(SIGN.name, driver.sign_request(audience, &hash)).await;
    let signed = signed.map_err(|error| super::too_old(error, TOO_OLD))?;
    app.out.result(&signed, || {
        let text = |key: &str| super::line(signed[key].as_str().unwrap_or_default());
        format!("address:   {}\nenvelope:  {}\nsignature: {}\n", text("address"), text("envelope"), text("signature"))
    });
    Ok(0)
}

async fn verify(app: &App, args: &Args) -> Outcome {
    let (Some(envelope), Some(signature)) = (args.flag("envelope"), args.flag("signature")) else {
        return Err(CliError::argument(VERIFY.usage()));
    };
    let skew = match args.flag("max-skew") {
        None => None,
        // No time at all means the default to every daemon: it would silently be 300 seconds.
        Some(_) => match u64::try_from(args.int("max-skew", 0)?) {
            Ok(skew @ 1..) => Some(Duration::from_secs(skew)),
            _ => return Err(CliError::argument("--max-skew must be at least 1 second")),
        },
    };
    let wanted = (audience(VERIFY.name, args)?, hash(VERIFY.name, args).await?);
    let driver = app.driver().await?;
    let asked = driver.verify_request(envelope, signature, skew, args.is_set("standing"));
    let verdict = app.ask(VERIFY.name, asked).await.map_err(|error| super::too_old(error, TOO_OLD))?;
    let verdict = compared(verdict, envelope, wanted);
    let valid = verdict["valid"] == true;
    app.out.result(&verdict, || human(&verdict, valid));
    Ok(u8::from(!valid))
}

/// The verdict of the daemon, and against it whatever does not fit the audience and the request that the caller expects.
fn compared(verdict: Value, envelope: &str, (audience, hash): (Option<&str>, Option<[u8; 32]>)) -> Value {
    if verdict["valid"] != true {
        return verdict;
    }
    // The signature is over the line itself, so that what stands in it is what was signed, whatever the daemon tells.
    let reason = match envelope.parse::<envelope::Envelope>() {
        Err(error) => Some(error.to_string()),
        Ok(signed) => match (audience, hash.as_ref().map(hex)) {
            (Some(audience), _) if signed.audience != audience => {
                Some(format!("it is meant for {}, not for {audience}", signed.audience))
            }
            (_, Some(hash)) if signed.body_hash != hash => Some(format!(
                "another request was signed: its SHA-256 is {}, and that of the one given is {hash}",
                signed.body_hash
            )),
            _ => None,
        },
    };
    match reason {
        None => verdict,
        Some(reason) => json!({ "valid": false, "reason": reason }),
    }
}

fn human(verdict: &Value, valid: bool) -> String {
    let text = |key: &str| super::line(verdict[key].as_str().unwrap_or_default());
    if !valid {
        return format!("not valid: {}\n", text("reason"));
    }
    let mut human = match verdict["address"].as_str() {
        Some(address) => format!("valid: signed by {}\n", super::line(address)),
        None => "valid\n".to_owned(),
    };
    if let Some(unix) = verdict["timestamp"].as_u64() {
        human.push_str(&format!("  at:       {}\n", pilot_wire::time::rfc3339(Duration::from_secs(unix))));
    }
    for (label, key) in
        [("audience", "audience"), ("sha256", "body_hash"), ("nonce", "nonce"), ("standing", "standing")]
    {
        if verdict[key].is_string() {
            human.push_str(&format!("  {:<9} {}\n", format!("{label}:"), text(key)));
        }
    }
    human
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_holds_only_for_the_request_and_the_audience_it_was_signed_for() {
        let hash = digest(&b"hello"[..]).unwrap();
        assert_eq!(hex(&hash), "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert_eq!(parse_hash(&hex(&hash).to_uppercase()), Some(hash));
        assert_eq!((parse_hash("00"), parse_hash(&"0g".repeat(32))), (None, None));
        let line = format!("pilot-req-v1|000000000001|1780000000|0123456789abcdef|{}|api.example", hex(&hash));
        let check = |line: &str, audience, hash| compared(json!({ "valid": true }), line, (audience, hash));
        assert_eq!(check(&line, None, None)["valid"], true);
        assert_eq!(check(&line, Some("api.example"), Some(hash))["valid"], true);
        for (line, audience, hash) in [
            (line.as_str(), Some("api.other"), Some(hash)),
            (&line, Some("api.example"), Some([0; 32])),
            (&line, None, Some([0; 32])),
            ("pilot-req-v1", None, None),
        ] {
            let verdict = check(line, audience, hash);
            assert_eq!(verdict["valid"], false);
            assert!(!verdict["reason"].as_str().unwrap().is_empty());
        }
        let refused = json!({ "valid": false, "reason": "stale" });
        assert_eq!(compared(refused.clone(), &line, (None, None)), refused);
    }
}
