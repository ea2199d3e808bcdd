//! `rotate-key`: replaces the identity key, signed for by the old one (06 §24.33).
//!
//! A running daemon does it itself. Without one, this program does: the new key is on disk, beside the old one, before
//! the registry hears of it, and takes the old one's place after the registry has accepted it. So a crash at any
//! instant leaves the key that the registry knows in one of the two files, and the next run finds out in which.

use pilot::Driver;
use pilot_env::Env;
use pilot_proto::identity::Identity;
use pilot_wire::registry::Request;
use pilot_wire::{base64, signed};
use serde_json::{Value, json};

use super::info::number;
use crate::app::App;
use crate::args::{self, Args};
use crate::errors::{CliError, Code, Outcome};
use crate::identity::{self, Missing};
use crate::registry::{Failure, Registry};
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "rotate-key",
    args: &[
        Arg::new("[node_id]", "this node; only needed without a running daemon"),
        Arg::new("[owner]", "taken and not used, for scripts written for older releases"),
    ],
    about: "replace the identity key of this node by a new one",
    details: "The old key signs for the new one; the address, the name and the tags stay. There is no way back: the old\n\
              key is worth nothing afterwards. Peers that trust this node learn the new key from the registry.\n\
              With a running daemon: pilotctl rotate-key. Without: pilotctl rotate-key <node_id> <owner>.",
    returns: "node_id, address, public_key",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    if args.words().len() == 1 {
        return Err(CliError::argument("usage: pilotctl rotate-key <node_id> <owner>"));
    }
    let node = args.get(0).map(args::node).transpose()?;
    let answer = match (app.driver().await, node) {
        (Ok(driver), node) => by_daemon(app, &driver, node).await?,
        (Err(_), Some(node)) => by_hand(app, node).await?,
        (Err(no_daemon), None) => {
            return Err(no_daemon.hint(
                "start the daemon with: pilotctl daemon start; or do it without one: pilotctl rotate-key <node_id> <owner>",
            ));
        }
    };
    app.out.object(&answer);
    Ok(0)
}

async fn by_daemon(app: &App, driver: &Driver, node: Option<u32>) -> Result<Value, CliError> {
    if let Some(node) = node {
        let info = app.ask("rotate-key", driver.info()).await?;
        let own = number(&info["node_id"]);
        if own != u64::from(node) {
            return Err(CliError::argument(format!(
                "node {node} is not the node of the running daemon, which is {own}"
            ))
            .hint("only a node itself can replace its key; run this where that node lives"));
        }
    }
    app.ask("rotate-key", driver.rotate_key()).await.map_err(|error| {
        super::too_old(
            error,
            "this daemon cannot; stop it, then run: pilotctl rotate-key <node_id> <owner>, then start it again",
        )
    })
}

async fn by_hand(app: &App, node: u32) -> Result<Value, CliError> {
    let config = app.home.load()?;
    let registry = Registry::of(&app.home, &config)?;
    let path = app.home.identity(&config)?;
    let (_lock, old) = identity::open(&path, Missing::Fail)?;
    let next = identity::next(&path);
    let explain = |failure| registry.explain("rotate-key", failure);
    let new = match identity::read(&next)? {
        None => {
            let new = Identity::from_seed(Env::real().seed());
            identity::write(&next, &new)?;
            new
        }
        // A run before this one did not get to its end. What did the registry get?
        Some(new) => {
            let known = registry.ask(&Request::Lookup { node }).await.map_err(explain)?;
            if known["public_key"] == new.public_key_base64() {
                return finish(&path, &next, &new, known);
            }
            new
        }
    };
    match rotate(&registry, node, &old, &new).await {
        Ok(answer) => finish(&path, &next, &new, answer),
        Err(Failure::Lost(why)) => {
            let known = registry.ask(&Request::Lookup { node }).await;
            match known {
                Ok(known) if known["public_key"] == new.public_key_base64() => finish(&path, &next, &new, known),
                Ok(_) => Err(explain(Failure::Lost(why))),
                Err(_) => Err(CliError::new(
                    Code::ConnectionFailed,
                    "rotate-key: the registry did not answer; whether it has the new key is not known",
                )
                .hint(format!("both keys are kept ({}); run the command again to find out", next.display()))
                .cause(why)),
            }
        }
        Err(failure) => {
            // Refused, or never asked: the new key is nobody's.
            let _ = Env::real().fs().remove_file(&next);
            Err(explain(failure))
        }
    }
}

/// Tells the registry. The text that names the new key comes first: February's, which does not, can be used by
/// whoever sees it for a key of his own.
async fn rotate(registry: &Registry, node: u32, old: &Identity, new: &Identity) -> Result<Value, Failure> {
    let new_public_key = new.public_key_base64();
    let request = |text: String| Request::RotateKey {
        node,
        new_public_key: new_public_key.clone(),
        signature: base64::encode(&old.sign(text.as_bytes())),
    };
    match registry.ask(&request(signed::rotate_to(node, &new_public_key))).await {
        Err(Failure::Refused(error)) if error.code.is_none() => registry.ask(&request(signed::rotate(node))).await,
        other => other,
    }
}

/// The registry has the new key: it takes the old one's place.
fn finish(path: &std::path::Path, next: &std::path::Path, new: &Identity, answer: Value) -> Result<Value, CliError> {
    identity::write(path, new)?;
    // It holds the same key as the identity file now; the next run copes with it.
    let _ = Env::real().fs().remove_file(next);
    Ok(json!({
        "type": "rotate_key_ok",
        "node_id": answer["node_id"],
        "address": answer["address"],
        "public_key": new.public_key_base64(),
    }))
}
