//! The daemon as a program; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    pilot_node::daemon::main(std::env::args_os().skip(1).collect())
}
