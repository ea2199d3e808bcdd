//! `set-webhook` and what `clear-webhook` shares with it: where the daemon posts events, now and after a restart
//! (06 §6.4, 05 §10.1).

use serde_json::json;

use crate::app::{App, refused};
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "set-webhook",
    args: &[Arg::new("<url>", "http:// or https:// URL that every event is posted to")],
    about: "post events to a URL",
    details: "Takes effect at once in a running daemon, and at every start. Events are sent in order and tried again \
              while the receiver is away.\nThe daemon's -webhook-secret-file signs them (X-Pilot-Signature).",
    returns: "webhook, applied",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let url = args.word(0);
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(CliError::argument("webhook URL must start with http:// or https://"));
    }
    apply(app, "set-webhook", url).await
}

/// Writes the configuration and tells the daemon; an empty URL clears.
pub(super) async fn apply(app: &App, command: &str, url: &str) -> Outcome {
    let mut config = app.home.load()?;
    if url.is_empty() {
        config.0.remove("webhook");
    } else {
        config.0.insert("webhook".into(), url.into());
    }
    app.home.save(&config)?;
    let applied = match app.driver().await {
        Ok(driver) => {
            driver.set_webhook(url).await.map_err(|error| {
                refused(command, error).hint("the configuration was saved: it takes effect at the next start")
            })?;
            true
        }
        Err(error) if error.code == Code::NotRunning => false,
        Err(error) => return Err(error),
    };
    app.out.result(&json!({ "webhook": url, "applied": applied }), || {
        let what = if url.is_empty() { "webhook cleared".to_owned() } else { format!("webhook set: {url}") };
        let when = if applied { "applied to running daemon" } else { "will take effect on next daemon start" };
        format!("{what}\n{when}\n")
    });
    Ok(0)
}
