//! Answers: the JSON and the texts that the SDKs expect (06 §15.3, §15.4), the runtime, and the guard around each call.

use std::ffi::c_char;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parking_lot::Mutex;
use pilot_sdk::Error;
use pilot_wire::json;
use serde_json::{Number, Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::memory::give;

/// Threads that serve all calls; each call waits on the thread of its caller.
const WORKERS: usize = 2;

/// The runtime of this process. A forked child has none of its parent's threads and gets a runtime of its own.
fn runtime() -> Result<&'static Runtime, String> {
    static RUNTIME: Mutex<Option<(u32, &'static Runtime)>> = Mutex::new(None);
    let mut slot = RUNTIME.lock();
    let process = std::process::id();
    match *slot {
        Some((owner, runtime)) if owner == process => Ok(runtime),
        _ => {
            let built =
                Builder::new_multi_thread().worker_threads(WORKERS).thread_name("libpilot").enable_all().build();
            let runtime: &Runtime =
                Box::leak(Box::new(built.map_err(|error| format!("cannot start threads: {error}"))?));
            *slot = Some((process, runtime));
            Ok(runtime)
        }
    }
}

/// Runs a call to its end on the caller's thread.
pub(crate) fn run<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    runtime()?.block_on(work)
}

/// The result of a function's body. No panic leaves it.
fn guarded<T>(body: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| Err("internal error in libpilot; please report it".into()))
}

/// `{"error":text}`.
pub(crate) fn error(text: &str) -> *mut c_char {
    give(&json::to_string(&json!({ "error": text })))
}

/// The JSON of a result, or of its error.
pub(crate) fn value(body: impl FnOnce() -> Result<Value, String>) -> *mut c_char {
    match guarded(body) {
        Ok(value) => give(&json::to_string(&value)),
        Err(text) => error(&text),
    }
}

/// NULL, or the JSON of the error.
pub(crate) fn void(body: impl FnOnce() -> Result<(), String>) -> *mut c_char {
    match guarded(body) {
        Ok(()) => std::ptr::null_mut(),
        Err(text) => error(&text),
    }
}

/// What goes into a returned structure: the value, or its default and the JSON of the error.
pub(crate) fn pair<T: Default>(body: impl FnOnce() -> Result<T, String>) -> (T, *mut c_char) {
    match guarded(body) {
        Ok(value) => (value, std::ptr::null_mut()),
        Err(text) => (T::default(), error(&text)),
    }
}

/// Largest integer up to which every one has a 64-bit float of its own.
const EXACT: u64 = 1 << 53;

/// The answer of a daemon as SDKs know it: an object or `null`, its numbers through a 64-bit float (06 §15.3).
pub(crate) fn object(label: &str, mut answer: Value) -> Result<Value, String> {
    fn through_floats(value: &mut Value) {
        match value {
            Value::Number(number) if number.as_i64().is_none_or(|n| n.unsigned_abs() > EXACT) => {
                if let Some(float) = number.as_f64().and_then(Number::from_f64) {
                    *number = float;
                }
            }
            Value::Array(list) => list.iter_mut().for_each(through_floats),
            Value::Object(map) => map.values_mut().for_each(through_floats),
            _ => {}
        }
    }
    if !(answer.is_object() || answer.is_null()) {
        return Err(format!("{label} unmarshal: not a JSON object"));
    }
    through_floats(&mut answer);
    Ok(answer)
}

/// The text of an error under the label of a function, which is not always that of the SDK's operation.
pub(crate) fn labelled(label: &str, error: &Error) -> String {
    let with = |rest: &str| if label.is_empty() { rest.to_owned() } else { format!("{label}: {rest}") };
    match error {
        Error::Daemon { text, .. } => with(&format!("daemon: {text}")),
        Error::Refused { message, .. } => with(&format!("daemon: {message}")),
        Error::Unspecified { .. } => with("daemon error"),
        Error::Disconnected { .. } => with("daemon disconnected"),
        Error::Timeout { .. } if label == "dial" => "dial: dial timeout".to_owned(),
        Error::Unmarshal { why, .. } => format!("{label} unmarshal: {why}"),
        other => other.to_string(),
    }
}
