//! `set-public` and, beside it, what `set-private` shares with it (06 §6.3).

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::table::Command;

pub(crate) const COMMAND: Command = Command {
    name: "set-public",
    args: &[],
    about: "let everybody learn the endpoint of this node",
    details: "Who may open streams is another matter: that takes trust, or a port opened with -public-ports.",
    returns: "status",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, _args: &Args) -> Outcome {
    set(app, "set-public", true).await
}

pub(super) async fn set(app: &App, command: &str, public: bool) -> Outcome {
    let driver = app.driver().await?;
    let answer = app.ask(command, driver.set_visibility(public)).await?;
    app.out.object(&answer);
    Ok(0)
}
