//! Manual pages, from the table: one for the program, one for each command.

use std::fmt::Write as _;

use crate::errors::Code;
use crate::table::{self, Command, Form};

/// A page and the name of its file.
pub(crate) struct Page {
    /// `pilotctl-daemon-start.1`
    pub(crate) file: String,
    /// In the language of man pages.
    pub(crate) text: String,
}

/// Every page, the program's first.
pub(crate) fn pages() -> impl Iterator<Item = Page> {
    std::iter::once(program()).chain(table::all().map(command))
}

/// The page of the program.
pub(crate) fn program() -> Page {
    let mut text = head("pilotctl", "permanent addresses and encrypted peer\\-to\\-peer streams for agents");
    text.push_str(
        ".SH SYNOPSIS\n.B pilotctl\n[\\fB\\-\\-json\\fR] \\fIcommand\\fR [\\fIarguments\\fR]\n\
         .SH DESCRIPTION\n\
         Everything a person or an agent does by hand with Pilot: run the daemon of this host, find other nodes, grant\n\
         trust, talk to them, and see what is going on.\n.PP\n\
         .B pilotctl \\fIcommand\\fB \\-\\-help\\fR\nexplains a command; so does its own page.\n.SH COMMANDS\n",
    );
    for section in table::SECTIONS {
        let _ = writeln!(text, ".SS {}", escaped(section.title));
        for command in section.commands {
            let _ = writeln!(
                text,
                ".TP\n.BR {} (1)\n{}",
                page_name(command.name).replace('-', "\\-"),
                escaped(command.about)
            );
        }
    }
    text.push_str(
        ".SH OPTIONS\n.TP\n.B \\-\\-json\nPrint one line of JSON: {\"data\":...,\"status\":\"ok\"} on standard output, or an \
         object with code, message, hint and cause on standard error. May stand anywhere on the line.\n",
    );
    text.push_str(".SH \"EXIT STATUS\"\n.TP\n.B 0\nSuccess.\n.TP\n.B 1\nAn error; the code says which.\n.TP\n.B 2\nThe usage text was printed.\n");
    text.push_str(".SH \"ERROR CODES\"\n");
    for code in Code::ALL {
        let _ = writeln!(text, ".TP\n.B {}\n{}", escaped(code.as_str()), escaped(code.meaning()));
    }
    text.push_str(
        ".SH ENVIRONMENT\n.TP\n.B PILOT_SOCKET\nThe socket of the daemon.\n.TP\n.B PILOT_REGISTRY\nThe registry.\n\
         .SH FILES\n.TP\n.I ~/.pilot/config.json\nThe configuration.\n.TP\n.I ~/.pilot/identity.key\nThe key that owns the \
         address of this node.\n.TP\n.I ~/.pilot/pilot.log\nThe log of the daemon in the background.\n",
    );
    Page { file: "pilotctl.1".into(), text }
}

/// The page of a command.
pub(crate) fn command(command: &Command) -> Page {
    let name = page_name(command.name);
    let mut text = head(&name, &escaped(command.about));
    text.push_str(".SH SYNOPSIS\n");
    let _ = writeln!(text, ".B pilotctl {}", escaped(command.name));
    for arg in command.args {
        let _ = writeln!(text, "{}", escaped(arg.text()));
    }
    if !command.args.is_empty() {
        text.push_str(".SH ARGUMENTS\n");
        for arg in command.args {
            let shown = match arg.form() {
                Form::Flag { name, value: Some(value) } => {
                    format!("\\fB\\-\\-{}\\fR {}", escaped(name), escaped(value))
                }
                Form::Flag { name, value: None } => format!("\\fB\\-\\-{}\\fR", escaped(name)),
                _ => escaped(arg.text()),
            };
            let _ = writeln!(text, ".TP\n{shown}\n{}", escaped(arg.help));
        }
    }
    if !command.details.is_empty() {
        text.push_str(".SH DESCRIPTION\n");
        text.push_str(&paragraphs(command.details));
    }
    if !command.returns.is_empty() {
        let _ = writeln!(text, ".SH JSON\nWith \\-\\-json, data holds: {}.", escaped(command.returns));
    }
    let names: Vec<&str> = table::aliases(command.name).collect();
    if !names.is_empty() {
        let _ = writeln!(text, ".SH \"OTHER NAMES\"\n{}", escaped(&names.join(", ")));
    }
    text.push_str(".SH \"SEE ALSO\"\n.BR pilotctl (1)\n");
    Page { file: format!("{name}.1"), text }
}

fn page_name(command: &str) -> String {
    format!("pilotctl-{}", command.replace(' ', "-"))
}

fn head(name: &str, about: &str) -> String {
    format!(
        ".TH {} 1 \"\" \"pilot {}\" \"Pilot manual\"\n.SH NAME\n{} \\- {about}\n",
        escaped(&name.to_uppercase()),
        env!("CARGO_PKG_VERSION"),
        escaped(name)
    )
}

/// Lines that begin with spaces are examples, shown as they are; others flow.
fn paragraphs(details: &str) -> String {
    let mut text = String::new();
    let mut example = false;
    for line in details.lines() {
        let shown = line.starts_with(' ');
        if shown != example {
            text.push_str(match (shown, text.is_empty()) {
                (true, true) => ".nf\n",
                (true, false) => ".PP\n.nf\n",
                (false, _) => ".fi\n.PP\n",
            });
            example = shown;
        }
        text.push_str(&escaped(line.trim_start()));
        text.push('\n');
    }
    if example {
        text.push_str(".fi\n");
    }
    text
}

/// A text in which nothing is a command of the page language.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // A line that begins with a dot or an apostrophe would be one.
    if text.starts_with(['.', '\'']) {
        out.push_str("\\&");
    }
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '~' => out.push_str("\\(ti"),
            '^' => out.push_str("\\(ha"),
            '`' => out.push_str("\\(ga"),
            '…' => out.push_str("..."),
            '—' => out.push_str("\\(em"),
            '→' => out.push_str("\\->"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_a_command() {
        assert_eq!(escaped(".SH x"), "\\&.SH x");
        assert_eq!(escaped("a\\b -c"), "a\\eb \\-c");
        assert_eq!(paragraphs("one\n  two -x\nthree"), "one\n.PP\n.nf\ntwo \\-x\n.fi\n.PP\nthree\n");
    }

    #[test]
    fn there_is_a_page_for_every_command() {
        let pages: Vec<Page> = pages().collect();
        assert_eq!(pages.len(), table::all().count() + 1);
        assert!(pages.iter().any(|page| page.file == "pilotctl-daemon-start.1"));
        for page in &pages {
            assert!(page.text.starts_with(".TH PILOTCTL"), "{}", page.file);
            assert!(page.text.is_ascii(), "{}: {}", page.file, page.text);
        }
    }
}
