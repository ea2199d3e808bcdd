//! `received`: the files that were received (06 §6.9).

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use pilot_wire::json as pilot_json;
use serde_json::{Map, Value, json};

use super::{inbox, mail};
use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::go;
use crate::table::{Arg, Command};

/// Longest description of a file that is read.
const MAX_META: u64 = 64 * 1024;

pub(crate) const COMMAND: Command = Command {
    name: "received",
    args: &[
        Arg::new("[--clear]", "delete all of them"),
        Arg::new("[--limit <n>]", "only the newest n"),
        Arg::new("[--since <when>]", "only those since a time (RFC 3339) or a span ago (2h)"),
    ],
    about: "list the files that were received",
    details: "Names are made safe and unique; filename is what the sender called it.",
    returns: "files [{name, bytes, modified, path, from, filename, sha256, received_at, message_id}], total, dir",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

/// The same under the name of newer documentation.
pub(crate) const DATA_RECV: Command = Command { name: "data recv", about: "the same as received", ..COMMAND };

struct File {
    name: String,
    bytes: u64,
    modified: Duration,
    about: Map<String, Value>,
}

async fn run(app: &App, args: &Args) -> Outcome {
    let dir = mail::dir(app, "received")?;
    if args.is_set("clear") {
        return clear(app, &dir);
    }
    let Some(mut files) = list(&dir)? else {
        app.out.result(&json!({ "files": [], "total": 0 }), || EMPTY.into());
        return Ok(0);
    };
    if let Some(since) = mail::since(args)? {
        files.retain(|file| file.modified >= since);
    }
    if args.flag("limit").is_some() {
        files.sort_by(|a, b| (a.modified, &a.name).cmp(&(b.modified, &b.name)));
    }
    let (files, total) = mail::limit(args, files)?;
    let mut human = format!("Received files ({}):\n\n  {:<40}  {:<10}  RECEIVED\n", dir.display(), "NAME", "SIZE");
    let mut objects = Vec::new();
    for file in &files {
        // Times after the year 2^63 do not occur.
        let modified = go::local_time(file.modified.as_secs() as i64);
        human.push_str(&format!("  {:<40}  {:<10}  {modified}\n", super::line(&file.name), go::size(file.bytes)));
        let mut object = file.about.clone();
        object.insert("name".into(), file.name.clone().into());
        object.insert("bytes".into(), file.bytes.into());
        object.insert("modified".into(), pilot_wire::time::rfc3339(file.modified).into());
        object.insert("path".into(), dir.join(&file.name).to_string_lossy().into_owned().into());
        objects.push(Value::Object(object));
    }
    human.push_str(&format!("\ntotal: {total}\n"));
    if objects.is_empty() {
        human = EMPTY.into();
    }
    let shown = objects.len();
    // The official tool lists nothing as null (06 §6.9).
    let objects = if objects.is_empty() { Value::Null } else { objects.into() };
    let mut data = json!({ "dir": dir, "files": objects, "total": total });
    if shown != total {
        data["shown"] = shown.into();
    }
    app.out.result(&data, || human);
    Ok(0)
}

const EMPTY: &str =
    "no received files\n  files appear here when someone sends: pilotctl send-file <your-hostname> <file>\n";

fn list(dir: &Path) -> Result<Option<Vec<File>>, CliError> {
    let failed = |error: io::Error| CliError::internal(format!("read directory: {error}"));
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(metadata) = entry.metadata() else { continue };
        let mut about = about(dir, &name);
        let announced = about.remove("bytes").and_then(|bytes| bytes.as_u64());
        // Directories that a peer sent have a description; others are not ours to list.
        let bytes = match announced {
            _ if name.starts_with('.') => continue,
            _ if metadata.is_file() => metadata.len(),
            Some(bytes) if metadata.is_dir() => bytes,
            _ => continue,
        };
        let modified = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        files.push(File { name, bytes, modified, about });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Some(files))
}

/// What the daemon wrote down about a file: sender, original name, hash.
fn about(dir: &Path, name: &str) -> Map<String, Value> {
    let path = dir.join(".meta").join(format!("{name}.json"));
    let small = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= MAX_META);
    match small.then(|| fs::read(&path).ok()).flatten().map(|text| pilot_json::parse(&text)) {
        Some(Ok(Value::Object(map))) => map,
        _ => Map::new(),
    }
}

fn clear(app: &App, dir: &Path) -> Outcome {
    let files = inbox::remove_files(dir)?.ok_or_else(|| CliError::new(Code::NotFound, "no received files"))?;
    let failed = |error: io::Error| CliError::internal(format!("remove: {error}"));
    let mut directories = 0;
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !about(dir, &name).is_empty() {
            fs::remove_dir_all(entry.path()).map_err(failed)?;
            directories += 1;
        }
    }
    inbox::remove_files(&dir.join(".meta"))?;
    let cleared = files + directories;
    app.out.result(&json!({ "cleared": cleared }), || format!("cleared {cleared} received file(s)\n"));
    Ok(0)
}
