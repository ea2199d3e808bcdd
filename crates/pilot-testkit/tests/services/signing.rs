//! Requests signed for third parties, through the command line: true ones hold for everybody, others for nobody.

use pilot_proto::identity::Identity;
use pilot_testkit::agent::{Agent, AgentOptions, Outcome};
use pilot_testkit::isolate::isolated;
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};
use pilot_wire::base64;
use pilot_wire::envelope::Envelope;
use serde_json::Value;

use crate::with_official::{Pair, need};

const AUDIENCE: &str = "api.example.org";
const ORDER: &str = r#"{"order":7,"from":"<me>"}"#;

fn verified(agent: &Agent, envelope: &str, signature: &str, more: &[&str]) -> (Outcome, Value) {
    let args = [&["--json", "verify-request", "--envelope", envelope, "--signature", signature], more].concat();
    let outcome = agent.run(&args).expect("pilotctl");
    assert_eq!(outcome.stderr, "", "{args:?}");
    let answer: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let verdict = answer["data"].clone();
    assert_eq!((&answer["status"], outcome.status.success()), (&"ok".into(), verdict["valid"] == true), "{answer}");
    (outcome, verdict)
}

#[test]
fn a_signed_request_is_verified_by_anybody_and_forged_old_and_altered_ones_by_nobody() {
    let name = "signing::a_signed_request_is_verified_by_anybody_and_forged_old_and_altered_ones_by_nobody";
    isolated(name, &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let start = |name: &str| {
            let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name);
            Agent::start(&ours(), &options).expect("daemon")
        };
        // No trust between them: a third party needs none.
        let (alice, bob) = (start("alice"), start("bob"));
        let file = alice.home().join("order.json");
        std::fs::write(&file, ORDER).expect("file");
        let file = file.to_str().expect("path");
        let sign = |body: &[&str]| {
            alice.ctl(&[&["sign-request", "--audience", AUDIENCE], body].concat()).expect("sign-request")
        };
        let signed = sign(&["--body-file", file]);
        let again = sign(&["--body", ORDER]);
        assert_ne!(signed["envelope"], again["envelope"], "each has a mark of its own");
        let text = |signed: &Value, key: &str| signed[key].as_str().expect("text").to_owned();
        let (envelope, signature) = (text(&signed, "envelope"), text(&signed, "signature"));
        assert_eq!(signed["address"], alice.address());

        let expected = ["--audience", AUDIENCE, "--body", ORDER, "--standing"];
        for verifier in [&alice, &bob] {
            let (_, verdict) = verified(verifier, &envelope, &signature, &expected);
            assert_eq!((&verdict["address"], &verdict["node_id"]), (&alice.address().into(), &alice.node().into()));
            assert_eq!((&verdict["audience"], &verdict["standing"]), (&AUDIENCE.into(), &"unknown".into()));
        }
        let human = bob.run(&["verify-request", "--envelope", &envelope, "--signature", &signature]).expect("human");
        assert!(human.stdout.starts_with(&format!("valid: signed by {}\n", alice.address())), "{}", human.stdout);
        let human = alice.run(&["sign-request", "--audience", AUDIENCE, "--body", ORDER]).expect("human");
        assert!(human.stdout.starts_with(&format!("address:   {}\nenvelope:  pilot-req-v1|", alice.address())));

        // Old, and from the future, though truly signed by alice; and by a key that is not hers.
        let key = std::fs::read(alice.home().join(".pilot/identity.key")).expect("identity");
        let key = Identity::from_file_text(&key).expect("identity");
        let parsed: Envelope = envelope.parse().expect("envelope");
        let at = |key: &Identity, unix: u64| {
            let line = Envelope { unix, ..parsed.clone() }.to_string();
            let signature = base64::encode(&key.sign(line.as_bytes()));
            (line, signature)
        };
        let (old, old_signature) = at(&key, parsed.unix - 3600);
        assert_eq!(
            verified(&bob, &old, &old_signature, &["--max-skew", "7200"]).1["valid"],
            true,
            "an hour is allowed"
        );
        let (future, future_signature) = at(&key, parsed.unix + 3600);
        let (forged, forged_signature) = at(&Identity::from_seed([7; 32]), parsed.unix);
        let altered = envelope.replace(AUDIENCE, "api.example.com");
        let of_bob = envelope.replace(&format!("{:012x}", alice.node()), &format!("{:012x}", bob.node()));
        let of_nobody = envelope.replace(&format!("{:012x}", alice.node()), &format!("{:012x}", 0xFFFF_0000u32));
        let other_signature = text(&again, "signature");
        for (line, signature, more, reason) in [
            (&old, &old_signature, &[][..], "more than 300 s"),
            (&future, &future_signature, &[], "more than 300 s"),
            (&forged, &forged_signature, &[], "not that of node"),
            (&altered, &signature, &[], "not that of node"),
            (&of_bob, &signature, &[], "not that of node"),
            (&envelope, &other_signature, &[], "not that of node"),
            (&envelope, &"AAAA".to_owned(), &[], "not 64 bytes"),
            (&"pilot-req-v1|x".to_owned(), &signature, &[], "not an envelope"),
            (&envelope, &signature, &["--audience", "api.example.com"], "meant for api.example.org"),
            (&envelope, &signature, &["--body", "another order"], "another request was signed"),
            (&envelope, &signature, &["--body-file", "/dev/null"], "another request was signed"),
        ] {
            let (outcome, verdict) = verified(&bob, line, signature, more);
            assert!(verdict["reason"].as_str().is_some_and(|why| why.contains(reason)), "{reason}: {verdict}");
            assert_eq!((outcome.status.code(), &verdict["valid"]), (Some(1), &false.into()));
        }
        // A node that the registry does not know is a failure to find out, with its reason.
        let unknown = bob.run(&["--json", "verify-request", "--envelope", &of_nobody, "--signature", &signature]);
        let unknown = unknown.expect("pilotctl");
        assert!(unknown.stdout.is_empty() && unknown.stderr.contains("lookup node"), "{unknown:?}");

        for (args, message) in [
            (&["--audience", AUDIENCE][..], "exactly one of --body-file, --body-hash, --body is required"),
            (&["--audience", AUDIENCE, "--body", "x", "--body-file", file], "exactly one of"),
            (&["--audience", AUDIENCE, "--body-hash", "00"], "body hash must be 64 hex chars"),
            (&["--audience", "API", "--body", "x"], "the audience must be"),
            (&["--audience", AUDIENCE, "--body-file", "/nonexistent"], "read /nonexistent: "),
            (&["--body", "x"], "usage: pilotctl sign-request"),
        ] {
            let outcome = alice.run(&[&["--json", "sign-request"], args].concat()).expect("pilotctl");
            let error: Value = serde_json::from_str(&outcome.stderr).expect("an error");
            assert_eq!((outcome.status.code(), &error["code"]), (Some(1), &"invalid_argument".into()), "{error}");
            assert!(error["message"].as_str().is_some_and(|text| text.contains(message)), "{error}");
        }
    });
}

#[test]
fn official_daemons_verify_our_requests_and_we_verify_theirs() {
    let name = "signing::official_daemons_verify_our_requests_and_we_verify_theirs";
    isolated(name, &[need_programs, || need(["1.18.0"])], || {
        let pair = Pair::start("1.18.0");
        for (signer, verifier) in pair.both() {
            let signed = signer.ctl(&["sign-request", "--audience", AUDIENCE, "--body", ORDER]).expect("sign-request");
            let text = |key: &str| signed[key].as_str().expect("text");
            let (envelope, signature) = (text("envelope"), text("signature"));
            let (_, verdict) = verified(verifier, envelope, signature, &[]);
            assert_eq!((&verdict["valid"], &verdict["node_id"]), (&true.into(), &signer.node().into()), "{verdict}");
            let altered = envelope.replace(AUDIENCE, "api.example.com");
            let (_, verdict) = verified(verifier, &altered, signature, &[]);
            assert_eq!(verdict["valid"], false, "{verdict}");
            assert!(verdict["reason"].as_str().is_some_and(|why| !why.is_empty()), "{verdict}");
        }
    });
}
