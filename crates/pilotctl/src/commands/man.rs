//! `man`: manual pages, to read or to install.

use std::path::Path;

use serde_json::json;

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Outcome};
use crate::go::quote;
use crate::man::{self, Page};
use crate::table::{self, Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "man",
    args: &[
        Arg::new("[command]", "the command; without it, the page of pilotctl"),
        Arg::new("[subcommand]", "the second word of a command such as daemon start"),
        Arg::new("[--dir <dir>]", "write all pages into this directory"),
    ],
    about: "print a manual page, or write all of them",
    details: "  pilotctl man ping | man -l -\n  pilotctl man --dir /usr/local/share/man/man1",
    returns: "file, page; with --dir: dir, files",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    if let Some(dir) = args.flag("dir") {
        if !args.words().is_empty() {
            return Err(CliError::argument("--dir writes all pages; leave the command out"));
        }
        return write_all(app, Path::new(dir));
    }
    let name = args.words().join(" ");
    let page = match table::find(&name) {
        Some(command) => man::command(command),
        None if name.is_empty() => man::program(),
        None => {
            let error = CliError::argument(format!("unknown command: {}", quote(&name)));
            let members = table::members(&name);
            return Err(if members.is_empty() {
                error.hint("pilotctl help lists all of them")
            } else {
                error.hint(format!("available: pilotctl man {name} {}", members.join(" | ")))
            });
        }
    };
    app.out.result(&json!({ "file": page.file, "page": page.text }), || page.text.clone());
    Ok(0)
}

fn write_all(app: &App, dir: &Path) -> Outcome {
    let failed = |what: &Path, error: std::io::Error| CliError::internal(format!("write {}: {error}", what.display()));
    std::fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    let mut files = Vec::new();
    for Page { file, text } in man::pages() {
        let path = dir.join(&file);
        std::fs::write(&path, text).map_err(|error| failed(&path, error))?;
        files.push(file);
    }
    app.out.result(&json!({ "dir": dir, "files": files }), || {
        format!("{} pages written to {}\n", files.len(), dir.display())
    });
    Ok(0)
}
