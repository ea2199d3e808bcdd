//! `clear-webhook`: post events nowhere (06 §6.4).

use super::set_webhook::apply;
use crate::table::Command;

pub(crate) const COMMAND: Command = Command {
    name: "clear-webhook",
    args: &[],
    about: "stop posting events",
    details: "",
    returns: "webhook, applied",
    raw: true,
    run: |app, _| Box::pin(apply(app, "clear-webhook", "")),
};
