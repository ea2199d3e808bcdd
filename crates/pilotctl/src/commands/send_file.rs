//! `send-file`: a file or a directory to a peer (06 §6.5, 07 §11.2).

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use pilot_services::dataexchange::{self, FileToSend, Packed, Progress, SendError, Source, TreeNode};
use pilot_wire::service::dataexchange::message::is_id;
use pilot_wire::service::dataexchange::ours::Transfer;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::mail;
use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::go;
use crate::table::{Arg, Command};

/// Time between two lines of progress in JSON mode.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

pub(crate) const COMMAND: Command = Command {
    name: "send-file",
    args: &[
        Arg::new("<address|hostname>", "an address, a node id or a host name"),
        Arg::new("<filepath>", "a file, or a directory toward peers of our own kind"),
        mail::MESSAGE_ID,
        mail::REPLY_TO,
        Arg::extra("[--queue]", "keep a copy on disk and try until it is delivered, also when the peer is away"),
        Arg::extra("[--deadline <dur>]", "with --queue: how long to try (default 168h)"),
        Arg::extra("[--wait <what>]", "queue it and wait for delivery or reply"),
        Arg::extra("[--timeout <dur>]", "with --wait: longest wait (default: until the deadline)"),
    ],
    about: "send a file or directory to a peer",
    details: "Goes on where an earlier attempt ended, and is verified by its SHA-256 hash, where the peer can do that;\n\
              toward older peers a file has at most 16 MiB. Symbolic links in a directory are left out. With --json\n\
              progress is told on standard error, one object per line.",
    returns: "filename, bytes, destination, ack, transport, sha256, verified, bytes_sent, bytes_resumed, elapsed_ms, \
              throughput_mbps, tagged, message_id",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

/// The same under the name of newer documentation.
pub(crate) const DATA_SEND: Command = Command { name: "data send", about: "the same as send-file", ..COMMAND };

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let address = app.resolve(&driver, args.word(0)).await.map_err(|error| {
        // The one command whose target has this code (06 §9).
        if error.code == Code::NotFound { CliError { code: Code::InvalidArgument, ..error } } else { error }
    })?;
    let path = Path::new(args.word(1));
    let found = find(path)?;
    let id = |flag: &str| match args.flag(flag) {
        Some(id) if !is_id(id) => Err(CliError::argument(format!("invalid --{flag}: {}", go::quote(id)))
            .hint("ids have 1 to 128 characters of A-Z a-z 0-9 . _ : -")),
        other => Ok(other.map(str::to_owned)),
    };
    let message_id = id("message-id")?.unwrap_or_else(|| dataexchange::new_id(&pilot_env::Env::real()));
    let reply_to = id("reply-to")?;
    for skipped in &found.skipped {
        app.out.note(&format!("left out (not a file or directory): {}", skipped.display()));
    }
    if mail::wants_queue(app, args)? {
        let mut put = json!({
            "to": address.to_string(),
            "type": if found.tree { "directory" } else { "file" },
            "bytes": found.source.len(),
            "filename": found.name,
            "message_id": message_id,
        });
        if let Some(reply_to) = reply_to {
            put["reply_to"] = reply_to.into();
        }
        return mail::queue(app, &driver, args, put, found.source).await;
    }
    let total = found.source.len();
    let began = Instant::now();
    let unreadable = |error: io::Error| CliError::internal(format!("read file: {error}"));
    let sha256 = dataexchange::hash(&found.source).await.map_err(unreadable)?;
    let file = FileToSend {
        name: found.name.clone(),
        source: found.source,
        sha256,
        transfer: Transfer { message_id: Some(message_id.clone()), reply_to: reply_to.clone(), tree: found.tree },
    };
    let known = mail::known(&driver, address).await;
    let dial = || async {
        let dialled = app.dial(&driver, address, dataexchange::PORT).await;
        dialled.map_err(|error| mail::no_dial(&error))
    };
    let mut shown = Shown::new(app, total);
    let (peer, sent) = dataexchange::send_file(dial, known, &file, &mut |progress| shown.show(progress)).await;
    shown.end();
    if let Some(peer) = peer.filter(|peer| Some(*peer) != known) {
        mail::learn(&driver, address, peer).await;
    }
    let delivery = sent.map_err(|error| match &error {
        SendError::Unsupported(_) if found.tree => CliError::argument(error.to_string()),
        _ => mail::not_sent(&error, address, Some(&message_id)),
    })?;
    let elapsed = began.elapsed();
    let mut result = Map::new();
    let mut put = |key: &str, value: Value| result.insert(key.to_owned(), value);
    put("filename", found.name.into());
    put("bytes", total.into());
    put("destination", address.to_string().into());
    put("to", address.to_string().into());
    put("bytes_sent", (total - delivery.resumed).into());
    put("bytes_resumed", delivery.resumed.into());
    put("elapsed_ms", u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).into());
    put("throughput_mbps", (((total - delivery.resumed) * 8) as f64 / 1e6 / elapsed.as_secs_f64().max(1e-9)).into());
    put("sha256", sha256.iter().map(|b| format!("{b:02x}")).collect::<String>().into());
    put("verified", delivery.chunked.into());
    put("transport", if delivery.chunked { "filestream" } else { "frame" }.into());
    put("tagged", delivery.tagged.into());
    put("message_id", message_id.into());
    if let Some(ack) = delivery.ack {
        put("ack", ack.into());
    }
    if let Some(reply_to) = reply_to {
        put("reply_to", reply_to.into());
    }
    if delivery.duplicate {
        put("duplicate", true.into());
    }
    if found.tree {
        put("directory", true.into());
    }
    app.out.object(&Value::Object(result));
    Ok(0)
}

/// Progress for whoever looks: a bar on a terminal, lines for programs.
struct Shown<'a> {
    app: &'a App,
    bar: Option<ProgressBar>,
    last: Instant,
}

impl<'a> Shown<'a> {
    fn new(app: &'a App, total: u64) -> Self {
        let bar = app.out.shows_progress().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}");
            let bar = ProgressBar::new(total);
            style.map_or(bar.clone(), |style| bar.with_style(style))
        });
        Self { app, bar, last: Instant::now() }
    }

    fn show(&mut self, progress: Progress) {
        if let Some(bar) = &self.bar {
            bar.set_position(progress.done);
        } else if self.last.elapsed() >= PROGRESS_EVERY {
            self.last = Instant::now();
            self.app.out.progress(&json!({ "event": "progress", "bytes": progress.done, "total": progress.total }));
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What is at a path.
struct Found {
    name: String,
    source: Arc<dyn Source>,
    tree: bool,
    skipped: Vec<PathBuf>,
}

/// A file that is opened for each read: a directory may have more of them than a process may hold open.
struct FileSource {
    path: PathBuf,
    len: u64,
}

impl Source for FileSource {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        read_full(&fs::File::open(&self.path)?, offset, buf.get_mut(..most).unwrap_or_default())
    }
}

/// An open file.
struct OpenFile {
    file: fs::File,
    len: u64,
}

impl Source for OpenFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        read_full(&self.file, offset, buf.get_mut(..most).unwrap_or_default())
    }
}

fn read_full(file: &fs::File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read_at(buf.get_mut(filled..).unwrap_or_default(), offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn unreadable(path: &Path, error: &io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::NotFound => CliError::new(Code::NotFound, format!("file not found: {}", path.display())),
        io::ErrorKind::PermissionDenied => CliError::internal(format!("permission denied: {}", path.display())),
        _ => CliError::internal(format!("read file: {error}")),
    }
}

fn find(path: &Path) -> Result<Found, CliError> {
    let failed = |error: io::Error| unreadable(path, &error);
    let metadata = fs::metadata(path).map_err(failed)?;
    // `.` and `..` have a name, too.
    let full = if path.file_name().is_some() { path.to_owned() } else { fs::canonicalize(path).map_err(failed)? };
    let name = full.file_name().map_or("root".into(), |name| name.to_string_lossy().into_owned());
    if !metadata.is_dir() {
        let file = fs::File::open(path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(CliError::argument(format!("{} is neither a file nor a directory", path.display())));
        }
        let source = OpenFile { file, len: metadata.len() };
        return Ok(Found { name, source: Arc::new(source), tree: false, skipped: Vec::new() });
    }
    let (mut nodes, mut skipped) = (Vec::new(), Vec::new());
    walk(path, "", &mut nodes, &mut skipped)?;
    let packed = Packed::new(nodes).map_err(|error| {
        CliError::argument(format!("{}: {error}", path.display()))
            .hint("names must be UTF-8 without control characters and backslashes")
    })?;
    Ok(Found { name, source: Arc::new(packed), tree: true, skipped })
}

/// Everything below a directory, in the order of names; links are not followed.
fn walk(dir: &Path, below: &str, nodes: &mut Vec<TreeNode>, skipped: &mut Vec<PathBuf>) -> Result<(), CliError> {
    let failed = |error: io::Error| unreadable(dir, &error);
    let mut entries: Vec<fs::DirEntry> = fs::read_dir(dir).and_then(Iterator::collect).map_err(failed)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (full, kind) = (entry.path(), entry.file_type().map_err(failed)?);
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| {
            CliError::argument(format!("{} is not called in UTF-8", full.display()))
                .hint("rename it, or send an archive")
        })?;
        let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        if kind.is_dir() {
            nodes.push(TreeNode::Dir { path: path.clone() });
            walk(&full, &path, nodes, skipped)?;
        } else if kind.is_file() {
            let metadata = entry.metadata().map_err(|error| unreadable(&full, &error))?;
            let executable = metadata.permissions().mode() & 0o100 != 0;
            let source = Arc::new(FileSource { path: full, len: metadata.len() });
            nodes.push(TreeNode::File { path, executable, source });
        } else {
            skipped.push(full);
        }
    }
    Ok(())
}
