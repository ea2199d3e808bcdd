//! `pilotctl`: everything a person or an agent does by hand.
//!
//! One binary is enough: it contains the daemon and the rendezvous, and re-executes itself for them.

// A face: the outside is its business.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod app;
mod args;
mod commands;
mod completions;
mod demo;
mod errors;
mod exchange;
mod go;
mod help;
mod home;
mod identity;
mod log_file;
mod man;
mod printer;
mod process;
mod registry;
mod table;
#[cfg(test)]
mod walkthrough;

use std::ffi::OsString;
use std::process::ExitCode;

use app::App;
use args::{Args, Parsed};
use errors::CliError;
use home::Home;
use printer::Printer;

/// Exit code of usage text.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let hidden = arguments.first().and_then(|first| first.to_str()).filter(|first| first.starts_with('_'));
    match hidden {
        Some(process::DAEMON_RUN) => return child(pilot_node::daemon::main, arguments.split_off(1)),
        Some(process::RENDEZVOUS_RUN) => return child(pilot_rendezvous::main, arguments.split_off(1)),
        Some(process::GATEWAY_RUN) => {
            if !process::settle() {
                return ExitCode::FAILURE;
            }
            arguments.splice(..1, ["--json", "gateway", "start"].map(OsString::from));
        }
        _ => {}
    }
    let mut words = Vec::with_capacity(arguments.len());
    for argument in arguments {
        match argument.into_string() {
            Ok(word) => words.push(word),
            Err(bad) => {
                let error = CliError::argument(format!("argument {} is not valid UTF-8", bad.to_string_lossy()));
                Printer::new(false).error(&error);
                return ExitCode::from(1);
            }
        }
    }
    let out = Printer::new(args::take_json(&mut words));
    let code = dispatch(out, &words).unwrap_or_else(|error| {
        out.error(&error);
        1
    });
    match pilot_env::output::lost() {
        Some(why) if code == 0 => {
            out.error(&CliError::internal(format!("write the output: {why}")));
            ExitCode::from(1)
        }
        _ => ExitCode::from(code),
    }
}

/// This program as one of the others it contains.
fn child(main: impl FnOnce(Vec<OsString>) -> ExitCode, arguments: Vec<OsString>) -> ExitCode {
    if process::settle() { main(arguments) } else { ExitCode::FAILURE }
}

fn dispatch(out: Printer, words: &[String]) -> errors::Outcome {
    // The newest official tool keeps half of its commands behind this word (07 §12); here it makes no difference.
    let words = match words.split_first() {
        Some((first, rest)) if first == "extras" => rest,
        _ => words,
    };
    let Some((first, rest)) = words.split_first() else {
        printer::complain(&help::usage());
        return Ok(USAGE);
    };
    match first.as_str() {
        "--help" | "-help" | "-h" | "help" => return show_help(rest),
        "--version" | "-version" | "-V" => return run(out, "version", &[]),
        _ => {}
    }
    if table::find(first).is_some() {
        return run(out, first, rest);
    }
    let members = table::members(first);
    if members.is_empty() {
        if out.is_json() {
            return Err(CliError::argument(format!("unknown command: {first}"))
                .hint("run 'pilotctl context' for the full command list"));
        }
        // At the end, where the eye is after a long text.
        let meant = help::similar(first).map_or_else(String::new, |name| format!("\ndid you mean: pilotctl {name}\n"));
        printer::complain(&format!("unknown command: {first}\n\n{}{meant}", help::usage()));
        return Ok(USAGE);
    }
    match rest.split_first() {
        None => Err(CliError::argument("missing subcommand")
            .hint(format!("available: pilotctl {first} {}", members.join(" | ")))),
        Some((second, rest)) if members.contains(&second.as_str()) => run(out, &format!("{first} {second}"), rest),
        Some((second, _)) if matches!(second.as_str(), "--help" | "-help" | "-h") => show_help(&words[..1]),
        Some((second, _)) => Err(CliError::argument(format!("unknown {first} subcommand: {second}"))
            .hint(format!("available: {}", members.join(", ")))),
    }
}

/// `help`, `help ping`, `help daemon`, `help daemon start`.
fn show_help(words: &[String]) -> errors::Outcome {
    let name = words.join(" ");
    if name.is_empty() {
        printer::say(&help::usage());
        return Ok(0);
    }
    if let Some(command) = table::find(&name) {
        printer::say(&help::command(command));
        return Ok(0);
    }
    let members = table::members(&name);
    if members.is_empty() {
        return Err(CliError::argument(format!("unknown command: {name}")).hint("pilotctl help lists all of them"));
    }
    let texts = members.iter().filter_map(|member| table::find(&format!("{name} {member}"))).map(help::command);
    printer::say(&texts.collect::<Vec<_>>().join("\n"));
    Ok(0)
}

fn run(out: Printer, name: &str, words: &[String]) -> errors::Outcome {
    let Some(command) = table::find(name) else {
        return Err(CliError::internal(format!("command {name} is not in the table")));
    };
    let args = match Args::parse(command, words)? {
        Parsed::Run(args) => args,
        Parsed::Help => {
            printer::say(&help::command(command));
            return Ok(0);
        }
    };
    let app = App { out, home: Home::from_env()? };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| CliError::internal(format!("start the runtime: {error}")))?;
    runtime.block_on((command.run)(&app, &args))
}
