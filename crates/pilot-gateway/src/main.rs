//! The program `pilot-gateway`; see [`pilot_gateway::program`].

use std::process::ExitCode;

fn main() -> ExitCode {
    pilot_gateway::program::main(std::env::args_os().skip(1).collect())
}
