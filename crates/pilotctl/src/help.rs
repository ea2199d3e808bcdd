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

/// The command somebody may have meant: at most two letters away, and not more than half of the word.
pub(crate) fn similar(word: &str) -> Option<&'static str> {
    let most = 2.min(word.chars().count() / 2);
    let first = |name: &'static str| name.split(' ').next().unwrap_or(name);
    let names = table::all().map(|command| first(command.name)).chain(table::ALIASES.iter().map(|(alias, _)| *alias));
    names.map(|name| (distance(word, name), name)).filter(|(far, _)| *far <= most).min().map(|(_, name)| name)
}

/// Letters to add, to take away, to change, or neighbours to swap, to come from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut least = (rows[i][j] + usize::from(x != y)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows.last().and_then(|row| row.last()).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_understood() {
        for (typed, meant) in [
            ("pign", "ping"),
            ("conect", "connect"),
            ("deamon", "daemon"),
            ("handshke", "handshake"),
            ("resolv", "resolve"),
        ] {
            assert_eq!(similar(typed), Some(meant), "{typed}");
        }
        for typed in ["nosuch", "x", "", "frobnicate", "\u{1f980}"] {
            assert_eq!(similar(typed), None, "{typed}");
        }
    }
}
