//! Standard output and standard error of a program.
//!
//! A reader that went away (`pilotctl info | head -1`) is no error of the program. Any other failure (a full disk) is kept, so
//! that the program can still clean up before it fails: a result that nobody can read is no success.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why output was lost, the first time it was.
static LOST: OnceLock<String> = OnceLock::new();
/// Set once nobody reads any more.
static READER_GONE: AtomicBool = AtomicBool::new(false);

/// Writes a text to standard output, at once.
pub fn print(text: &str) {
    emit(&mut std::io::stdout().lock(), text);
}

/// Writes a text to standard error.
pub fn eprint(text: &str) {
    emit(&mut std::io::stderr().lock(), text);
}

/// Whether whoever read the output went away: what goes on for ever ends then.
pub fn reader_gone() -> bool {
    READER_GONE.load(Ordering::Relaxed)
}

/// Why some output could not be written.
pub fn lost() -> Option<&'static str> {
    LOST.get().map(String::as_str)
}

/// The exit status of a program that has done what it should: 0, or 1 when its output was lost. `complain` gets the reason.
pub fn success(complain: impl FnOnce(&str)) -> ExitCode {
    match lost() {
        None => ExitCode::SUCCESS,
        Some(why) => {
            complain(&format!("write the output: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn emit(to: &mut impl Write, text: &str) {
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => READER_GONE.store(true, Ordering::Relaxed),
        Err(error) => {
            LOST.get_or_init(|| error.to_string());
        }
        Ok(()) => {}
    }
}
