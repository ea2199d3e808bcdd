//! Answers: the JSON and the texts that the SDKs expect (06 §15.3, §15.4), and the guard around each call.

use std::ffi::c_char;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pilot_sdk::Error;
use pilot_wire::json;
use serde_json::{Number, Value, json};

use crate::memory::give;
use crate::process::Process;

/// Runs a call to its end on the caller's thread.
pub(crate) fn run<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    Process::current().runtime()?.block_on(work)
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
