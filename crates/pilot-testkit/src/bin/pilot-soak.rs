//! The soak of the whole stack as a program: `pilot-soak -minutes 5`. See [`pilot_testkit::soak`].
#![allow(clippy::disallowed_methods)] // this program starts real processes

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result};
use pilot_env::args::{ArgsError, Flag, Program};
use pilot_testkit::isolate::{loopback_up, unshare};
use pilot_testkit::soak::{Options, client_process, raise_descriptor_limit, run, with_directory};

/// Set in the namespaces of the run.
const INSIDE: &str = "PILOT_SOAK_INSIDE";

const PROGRAM: Program = Program {
    name: "pilot-soak",
    about: "lets a network of real processes work while they are killed and restarted, and checks that nothing leaks",
    flags: &[
        Flag::uint("minutes", "5", 1, 100_000, "how long the clients work"),
        Flag::uint("check-seconds", "60", 10, 3600, "time between two checks of everything"),
        Flag::uint("seed", "0", 0, u64::MAX, "seed of every choice; 0 takes a new one"),
        Flag::uint("daemons", "6", 3, 100, "daemons that trust each other"),
        Flag::uint("clients", "50", 1, 1000, "clients"),
        Flag::uint("processes", "12", 0, 1000, "how many of the clients are processes"),
        Flag::uint("load-percent", "50", 1, 10_000, "processor load to aim at, in percent of one core"),
    ],
};

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let result = if words.first().is_some_and(|word| word == "client") {
        client_process().map(|()| true)
    } else {
        match PROGRAM.parse(words.clone()) {
            Ok(flags) => {
                let minutes = flags.uint("minutes");
                let seed = match flags.uint("seed") {
                    0 => u64::from(std::process::id()) << 32 | pilot_env::Env::real().unix().as_secs() & 0xFFFF_FFFF,
                    given => given,
                };
                let size = |name| usize::try_from(flags.uint(name)).unwrap_or(usize::MAX);
                conduct(Options {
                    duration: Duration::from_secs(60 * minutes),
                    check: Duration::from_secs(flags.uint("check-seconds")),
                    seed,
                    daemons: size("daemons"),
                    clients: size("clients"),
                    processes: size("processes").min(size("clients")),
                    cores: flags.uint("load-percent") as f64 / 100.0,
                })
            }
            Err(ArgsError::Help) => {
                print!("{}", PROGRAM.usage());
                return ExitCode::SUCCESS;
            }
            Err(error) => {
                eprintln!("pilot-soak: {error}");
                return ExitCode::from(2);
            }
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pilot-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the soak, in namespaces of its own: nothing it starts outlives it, and its ports are free.
fn conduct(options: Options) -> Result<bool> {
    if std::env::var_os(INSIDE).is_none() {
        let mut command: Command = unshare();
        command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
        // In our place, so that killing us ends the namespaces and with them everything.
        return Err(command.exec()).context("run unshare");
    }
    loopback_up().context("bring loopback up")?;
    raise_descriptor_limit()?;
    println!("seed {}", options.seed);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?;
    with_directory(|directory| {
        let outcome = runtime.block_on(run(options, directory))?;
        println!("{}", outcome.summary);
        println!("{} violations", outcome.violations.len());
        for violation in &outcome.violations {
            println!("  {violation}");
        }
        let good = outcome.violations.is_empty();
        Ok((good, good))
    })
}
