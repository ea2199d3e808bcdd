//! The program `pilot-rendezvous`. See [`pilot_rendezvous::main`].

use std::process::ExitCode;

fn main() -> ExitCode {
    pilot_rendezvous::main(std::env::args_os().skip(1))
}
