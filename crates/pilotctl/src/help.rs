//! The usage text and the help of each command, both from the table.

use crate::table::{self, Command};

/// The overview.
pub(crate) fn usage() -> String {
    let mut text = String::from(
        "Pilot Protocol: permanent addresses and encrypted peer-to-peer streams for agents\n\n\
         usage: pilotctl [--json] <command> [arguments]\n",
    );
    let width = table::all().map(|command| command.name.len()).max().unwrap_or(0);
    for section in table::SECTIONS {
        text.push_str(&format!("\n{}\n", section.title));
        for command in section.commands {
            text.push_str(&format!("  {:width$}  {}\n", command.name, command.about));
        }
    }
    text.push_str(
        "\npilotctl <command> --help explains a command. --json prints one line of JSON.\n\
         PILOT_SOCKET names the daemon's socket, PILOT_REGISTRY the registry; both may stand in ~/.pilot/config.json.\n",
    );
    text
}

/// The help of one command.
pub(crate) fn command(command: &Command) -> String {
    let mut text = format!("{}\n\n{}\n", command.about, command.usage());
    if !command.args.is_empty() {
        text.push('\n');
        let width = command.args.iter().map(|arg| arg.text().len()).max().unwrap_or(0);
        for arg in command.args {
            text.push_str(&format!("  {:width$}  {}\n", arg.text(), arg.help));
        }
    }
    if !command.details.is_empty() {
        text.push_str(&format!("\n{}\n", command.details));
    }
    let names: Vec<&str> = table::aliases(command.name).collect();
    if !names.is_empty() {
        text.push_str(&format!("\nOther names: {}\n", names.join(", ")));
    }
    if !command.returns.is_empty() {
        text.push_str(&format!("\nJSON: {}\n", command.returns));
    }
    text
}
