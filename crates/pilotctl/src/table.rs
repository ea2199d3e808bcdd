//! The declaration of every command: help, usage errors, argument parsing, man pages, completions and the
//! machine-readable manifest come from it.

use std::future::Future;
use std::pin::Pin;

use crate::app::App;
use crate::args::Args;
use crate::commands;
use crate::errors::Outcome;

/// A command at work.
pub(crate) type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

/// One command.
pub(crate) struct Command {
    /// One word, or two for the members of a group (`daemon start`).
    pub(crate) name: &'static str,
    /// What may follow, in the order of the usage line.
    pub(crate) args: &'static [Arg],
    /// One line on what it does.
    pub(crate) about: &'static str,
    /// More for `--help`; examples.
    pub(crate) details: &'static str,
    /// Keys of the JSON result.
    pub(crate) returns: &'static str,
    /// Positional arguments are taken as they are, dashes included (06 §5: commands not marked F).
    pub(crate) raw: bool,
    /// What it does.
    pub(crate) run: Run,
}

/// What a command does.
pub(crate) type Run = for<'a> fn(&'a App, &'a Args) -> Running<'a>;

/// One argument: its form on the usage line, and what it means.
pub(crate) struct Arg {
    form: &'static str,
    /// What it means.
    pub(crate) help: &'static str,
    /// Beyond the official tool: in the help, but not on the usage line, which scripts compare.
    extra: bool,
    /// Stands for the first positional argument, which then is not given.
    instead: bool,
}

/// An argument, read from its form.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `<name>` or `[name]`.
    Positional {
        /// Whether it must be there.
        required: bool,
    },
    /// `...`: the positional argument before it repeats. `[name...]`: there may be any number of these.
    Repeat,
    /// `--name <value>`, `[--name <value>]` or `[--name]`.
    Flag {
        /// Without dashes.
        name: &'static str,
        /// How the value is called, when there is one.
        value: Option<&'static str>,
    },
}

impl Arg {
    /// An argument in the form of the usage line: `<port>`, `[reason]`, `[--count <n>]`, `[--public]`.
    pub(crate) const fn new(form: &'static str, help: &'static str) -> Self {
        Self { form, help, extra: false, instead: false }
    }

    /// An optional argument that the official tool does not have. The usage line stays the official one.
    pub(crate) const fn extra(form: &'static str, help: &'static str) -> Self {
        Self { form, help, extra: true, instead: false }
    }

    /// As [`Arg::extra`], for a switch that stands for the first positional argument.
    pub(crate) const fn instead(form: &'static str, help: &'static str) -> Self {
        Self { form, help, extra: true, instead: true }
    }

    /// Whether it stands for the first positional argument.
    pub(crate) fn is_instead(&self) -> bool {
        self.instead
    }

    /// Whether it stands on the usage line.
    pub(crate) fn is_official(&self) -> bool {
        !self.extra
    }

    /// As on the usage line.
    pub(crate) fn text(&self) -> &'static str {
        self.form
    }

    /// The parts of the form.
    pub(crate) fn form(&self) -> Form {
        let inner = self.form.strip_prefix('[').and_then(|f| f.strip_suffix(']'));
        let bare = inner.unwrap_or(self.form);
        if bare.ends_with("...") {
            return Form::Repeat;
        }
        match bare.strip_prefix("--") {
            None => Form::Positional { required: inner.is_none() },
            Some(flag) => match flag.split_once(' ') {
                Some((name, value)) => Form::Flag { name, value: Some(value) },
                None => Form::Flag { name: flag, value: None },
            },
        }
    }
}

impl Command {
    /// `usage: pilotctl <name> <args>`, the official usage error.
    pub(crate) fn usage(&self) -> String {
        let mut text = format!("usage: pilotctl {}", self.name);
        for arg in self.args.iter().filter(|arg| arg.is_official()) {
            text.push(' ');
            text.push_str(arg.text());
        }
        text
    }
}

/// Commands under a headline of the usage text.
pub(crate) struct Section {
    /// The headline.
    pub(crate) title: &'static str,
    /// In the order of the usage text.
    pub(crate) commands: &'static [&'static Command],
}

/// Every command there is, one line each.
#[rustfmt::skip]
pub(crate) const SECTIONS: &[Section] = &[
    Section { title: "See it work", commands: &[
        &commands::demo::COMMAND,
    ] },
    Section { title: "Set up", commands: &[
        &commands::init::COMMAND,
        &commands::config::COMMAND,
        &commands::rendezvous::COMMAND,
    ] },
    Section { title: "Daemon", commands: &[
        &commands::daemon_start::COMMAND,
        &commands::daemon_stop::COMMAND,
        &commands::daemon_status::COMMAND,
        &commands::info::COMMAND,
        &commands::health::COMMAND,
        &commands::set_webhook::COMMAND,
        &commands::clear_webhook::COMMAND,
    ] },
    Section { title: "Discovery", commands: &[
        &commands::find::COMMAND,
        &commands::lookup::COMMAND,
        &commands::set_hostname::COMMAND,
        &commands::clear_hostname::COMMAND,
        &commands::set_tags::COMMAND,
        &commands::clear_tags::COMMAND,
        &commands::set_public::COMMAND,
        &commands::set_private::COMMAND,
        &commands::nameserver::LOOKUP,
        &commands::nameserver::REGISTER,
    ] },
    Section { title: "Registration", commands: &[
        &commands::register::COMMAND,
        &commands::deregister::COMMAND,
        &commands::rotate_key::COMMAND,
    ] },
    Section { title: "Request signing", commands: &[
        &commands::request_signing::SIGN,
        &commands::request_signing::VERIFY,
    ] },
    Section { title: "Trust", commands: &[
        &commands::handshake::COMMAND,
        &commands::pending::COMMAND,
        &commands::approve::COMMAND,
        &commands::reject::COMMAND,
        &commands::trust::COMMAND,
        &commands::untrust::COMMAND,
    ] },
    Section { title: "Networks", commands: &[
        &commands::network::list::LIST,
        &commands::network::manage::CREATE,
        &commands::network::join::JOIN,
        &commands::network::join::LEAVE,
        &commands::network::list::MEMBERS,
        &commands::network::join::INVITE,
        &commands::network::join::INVITES,
        &commands::network::join::ACCEPT,
        &commands::network::join::REJECT,
        &commands::network::manage::DELETE,
        &commands::network::manage::RENAME,
        &commands::network::manage::PROMOTE,
        &commands::network::manage::DEMOTE,
        &commands::network::manage::TRANSFER,
        &commands::network::manage::KICK,
        &commands::network::list::ROLE,
        &commands::network::manage::POLICY,
        &commands::broadcast::COMMAND,
    ] },
    Section { title: "Talk", commands: &[
        &commands::connect::COMMAND,
        &commands::send::COMMAND,
        &commands::recv::COMMAND,
        &commands::dgram::COMMAND,
        &commands::listen::COMMAND,
    ] },
    Section { title: "Events", commands: &[
        &commands::subscribe::COMMAND,
        &commands::publish::COMMAND,
    ] },
    Section { title: "Tasks", commands: &[
        &commands::task::submit::COMMAND,
        &commands::task::decide::ACCEPT,
        &commands::task::decide::DECLINE,
        &commands::task::execute::COMMAND,
        &commands::task::send_results::COMMAND,
        &commands::task::list::LIST,
        &commands::task::list::QUEUE,
        &commands::task_exec::ENABLE,
        &commands::task_exec::DISABLE,
    ] },
    Section { title: "Messages and files", commands: &[
        &commands::send_message::COMMAND,
        &commands::inbox::COMMAND,
        &commands::outbox::COMMAND,
        &commands::send_file::COMMAND,
        &commands::received::COMMAND,
        &commands::send_file::DATA_SEND,
        &commands::received::DATA_RECV,
    ] },
    Section { title: "Gateway", commands: &[
        &commands::gateway::START,
        &commands::gateway::STOP,
        &commands::gateway::MAP,
        &commands::gateway::UNMAP,
        &commands::gateway::LIST,
    ] },
    Section { title: "Diagnose", commands: &[
        &commands::ping::COMMAND,
        #[cfg(test)]
        &commands::ping1004::COMMAND,
        &commands::traceroute::COMMAND,
        &commands::bench::COMMAND,
        &commands::peers::COMMAND,
        &commands::prefer_direct::COMMAND,
        &commands::connections::COMMAND,
        &commands::disconnect::COMMAND,
    ] },
    Section { title: "About", commands: &[
        &commands::context::COMMAND,
        &commands::completions::COMMAND,
        &commands::man::COMMAND,
        &commands::version::COMMAND,
    ] },
];

/// Other names of commands: those of the official documentation and of other releases. One line each.
#[rustfmt::skip]
pub(crate) const ALIASES: &[(&str, &str)] = &[
    ("resolve", "find"),
    ("revoke", "untrust"),
    ("events subscribe", "subscribe"),
    ("events publish", "publish"),
];

/// Every command, in the order of the usage text.
pub(crate) fn all() -> impl Iterator<Item = &'static Command> {
    SECTIONS.iter().flat_map(|section| section.commands.iter().copied())
}

/// The command with this name, or with this other name.
pub(crate) fn find(name: &str) -> Option<&'static Command> {
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name);
    all().find(|command| command.name == name)
}

/// The other names of a command.
pub(crate) fn aliases(name: &str) -> impl Iterator<Item = &'static str> {
    ALIASES.iter().filter(move |(_, of)| *of == name).map(|(alias, _)| *alias)
}

/// The second words of a group (`daemon`: `start`, `stop`, `status`); empty when there is no such group.
pub(crate) fn members(group: &str) -> Vec<&'static str> {
    let names = all().map(|command| command.name).chain(ALIASES.iter().map(|(alias, _)| *alias));
    names.filter_map(|name| name.split_once(' ')).filter(|(g, _)| *g == group).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_say_what_an_argument_is() {
        let form = |text| Arg::new(text, "").form();
        assert_eq!(form("<port>"), Form::Positional { required: true });
        assert_eq!(form("[reason]"), Form::Positional { required: false });
        assert_eq!((form("..."), form("[<word>...]")), (Form::Repeat, Form::Repeat));
        assert_eq!(form("[--count <n>]"), Form::Flag { name: "count", value: Some("<n>") });
        assert_eq!(form("--data <msg>"), Form::Flag { name: "data", value: Some("<msg>") });
        assert_eq!(form("[--public]"), Form::Flag { name: "public", value: None });
    }

    #[test]
    fn aliases_name_commands_and_are_none_themselves() {
        for (alias, name) in ALIASES {
            assert!(all().any(|command| command.name == *name), "{alias} stands for {name}, which does not exist");
            assert!(all().all(|command| command.name != *alias), "{alias} is a command");
            assert!(members(alias).is_empty(), "{alias} is a group");
        }
    }

    #[test]
    fn names_are_unique_and_every_argument_is_explained() {
        let mut names: Vec<_> = all().map(|command| command.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for command in all() {
            assert!(
                !command.about.is_empty() && command.args.iter().all(|arg| !arg.help.is_empty()),
                "{}",
                command.name
            );
        }
    }
}
