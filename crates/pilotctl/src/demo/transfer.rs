//! The file: alice reads and hashes it while it goes out, bob hashes what comes in.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use indicatif::{ProgressBar, ProgressStyle};
use pilot::{Driver, SocketAddress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::network::Agent;
use super::report::Report;
use super::{Source, failed};
use crate::app::App;
use crate::errors::{CliError, Code};

/// Where bob waits for files. Any free port would do.
const FILE_PORT: u16 = 4242;
/// Bytes of the file that is made up.
const GENERATED: usize = 64_000_000;
/// Bytes of one chunk.
const CHUNK: usize = 256 * 1024;
/// Chunks that are read ahead.
const AHEAD: usize = 4;
/// Longest time without a byte before the transfer is given up.
const STALL: Duration = Duration::from_secs(30);

/// What alice sends.
pub(super) struct Input {
    pub(super) name: String,
    /// Unknown for pipes and devices.
    pub(super) size: Option<u64>,
    file: File,
}

/// What each side says about the transfer.
pub(super) struct Sides {
    pub(super) bytes: u64,
    pub(super) sender: String,
    pub(super) receiver: String,
    pub(super) taken: Duration,
}

/// Opens the file, or makes one up in the directory.
pub(super) fn open(source: &Source, directory: &Path) -> Result<Input, CliError> {
    match source {
        Source::Generated => {
            let path = directory.join("demo.bin");
            let file = generate(&path).map_err(|error| CliError::internal(format!("demo: make up a file: {error}")))?;
            Ok(Input { name: "demo.bin".into(), size: Some(GENERATED as u64), file })
        }
        Source::File(path) => {
            let shown = path.display();
            let unreadable = |error: std::io::Error| match error.kind() {
                std::io::ErrorKind::NotFound => CliError::new(Code::NotFound, format!("file not found: {shown}")),
                std::io::ErrorKind::PermissionDenied => CliError::internal(format!("permission denied: {shown}")),
                _ => CliError::internal(format!("read file {shown}: {error}")),
            };
            let file = File::open(path).map_err(unreadable)?;
            let metadata = file.metadata().map_err(unreadable)?;
            if metadata.is_dir() {
                return Err(CliError::argument(format!("{shown} is a directory")).hint("name a file"));
            }
            let size = metadata.is_file().then_some(metadata.len());
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            Ok(Input { name, size, file })
        }
    }
}

/// Bytes that look random and are the same every time.
fn generate(path: &Path) -> std::io::Result<File> {
    let mut file = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut block = vec![0u8; CHUNK];
    let mut left = GENERATED;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            // xorshift64: enough that nothing on the way could shrink it.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let n = left.min(CHUNK);
        file.write_all(&block[..n])?;
        left -= n;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

fn hex(context: Context) -> String {
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn broken(who: &'static str) -> impl Fn(std::io::Error) -> CliError {
    move |error| CliError::connection(format!("demo: file: {who}: {error}"))
}

async fn not_stalled<T>(who: &'static str, work: impl Future<Output = std::io::Result<T>>) -> Result<T, CliError> {
    match tokio::time::timeout(STALL, work).await {
        Ok(done) => done.map_err(broken(who)),
        Err(_) => Err(CliError::new(Code::Timeout, format!("demo: file: {who}: nothing moved for 30s"))),
    }
}

/// Streams the file from alice to bob.
pub(super) async fn file(
    app: &App,
    alice: &Agent,
    bob: &Agent,
    input: &mut Input,
    report: &mut Report<'_>,
) -> Result<(), CliError> {
    let listener = bob.driver.listen(FILE_PORT).await.map_err(failed("file"))?;
    let bar = progress(app, input.size);
    let receiver = tokio::spawn(async move {
        let mut stream = listener.accept().await.map_err(failed("file"))?;
        let answer = receive(&mut stream).await;
        let _ = stream.close().await;
        listener.close().await;
        answer
    });
    let to = SocketAddress::new(bob.address, FILE_PORT);
    let file = input.file.try_clone().map_err(broken("sender"))?;
    let sender = tokio::spawn(send(alice.driver.clone(), to, file, bar.clone()));
    let sent = joined(sender.await);
    bar.finish_and_clear();
    if sent.is_err() {
        // Bob would wait for ever for a stream that does not come.
        receiver.abort();
    }
    let sides = sent?;
    let (bytes, hash) = joined(receiver.await)?;
    if (bytes, &hash) != (sides.bytes, &sides.receiver) || sides.sender != sides.receiver {
        return Err(CliError::internal(format!(
            "demo: file: bob's bytes are not alice's: {} bytes {} sent, {bytes} bytes {hash} received",
            sides.bytes, sides.sender
        )));
    }
    report.file(input, &sides);
    Ok(())
}

/// The result of a task; a panic in it is passed on.
fn joined<T>(result: Result<Result<T, CliError>, tokio::task::JoinError>) -> Result<T, CliError> {
    result.unwrap_or_else(|error| Err(CliError::internal(format!("demo: file: {error}"))))
}

/// Chunks with their length before them, then a chunk of length zero; the receiver answers with count and hash.
async fn send(driver: Driver, to: SocketAddress, file: File, bar: ProgressBar) -> Result<Sides, CliError> {
    let mut stream = driver.dial(to).await.map_err(failed("file"))?;
    let (tx, mut chunks) = mpsc::channel::<std::io::Result<Vec<u8>>>(AHEAD);
    // Reading and hashing go on in a thread of their own while the chunk before is sent.
    let hasher = tokio::task::spawn_blocking(move || {
        let mut context = Context::new(&SHA256);
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = (&file).take(CHUNK as u64).read_to_end(&mut chunk);
            context.update(&chunk);
            let last = chunk.is_empty() || read.is_err();
            if tx.blocking_send(read.map(|_| chunk)).is_err() || last {
                return hex(context);
            }
        }
    });
    let began = Instant::now();
    let mut bytes = 0u64;
    while let Some(chunk) = chunks.recv().await {
        let chunk = chunk.map_err(broken("read"))?;
        not_stalled("sender", async {
            // A chunk is at most 256 KiB, so its length fits.
            stream.write_u32(chunk.len() as u32).await?;
            stream.write_all(&chunk).await
        })
        .await?;
        bytes += chunk.len() as u64;
        bar.set_position(bytes);
    }
    let mut answer = String::new();
    not_stalled("sender", stream.read_to_string(&mut answer)).await?;
    let taken = began.elapsed();
    let _ = stream.close().await;
    let sender = hasher.await.map_err(|error| CliError::internal(format!("demo: file: {error}")))?;
    let receiver = answer.trim().rsplit(' ').next().unwrap_or_default().to_owned();
    Ok(Sides { bytes, sender, receiver, taken })
}

async fn receive(stream: &mut pilot::Stream) -> Result<(u64, String), CliError> {
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0u64;
    loop {
        let len = not_stalled("receiver", stream.read_u32()).await? as usize;
        let Some(chunk) = chunk.get_mut(..len) else {
            return Err(CliError::connection(format!("demo: file: receiver: chunk of {len} bytes")));
        };
        if chunk.is_empty() {
            break;
        }
        not_stalled("receiver", stream.read_exact(chunk)).await?;
        context.update(chunk);
        bytes += len as u64;
    }
    let hash = hex(context);
    not_stalled("receiver", stream.write_all(format!("{bytes} {hash}\n").as_bytes())).await?;
    Ok((bytes, hash))
}

fn progress(app: &App, size: Option<u64>) -> ProgressBar {
    if !app.out.shows_progress() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(size) => (
            ProgressBar::new(size),
            "  sending     {bar:30} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left",
        ),
        None => (ProgressBar::new_spinner(), "  sending     {spinner} {decimal_bytes}  {decimal_bytes_per_sec}"),
    };
    // The templates above are constant and valid; without one the bar has its plain style.
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}
