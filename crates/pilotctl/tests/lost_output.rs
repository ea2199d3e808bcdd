//! A result that could not be written is no success.
#![allow(clippy::disallowed_methods)] // drives the real program

use std::fs::File;
use std::process::{Command, Stdio};

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").expect("/dev/full is there on Linux");
    let output = Command::new(env!("CARGO_BIN_EXE_pilotctl"))
        .args(["--json", "version"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .expect("run pilotctl");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("\"code\":\"internal\"") && error.contains("write the output"), "{error}");
}
