//! C programs, compiled with all warnings as errors, and run under valgrind and under AddressSanitizer.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pilot_testkit::isolate::{Unavailable, isolated, need_program};
use pilot_testkit::programs::{library, need_programs};

use crate::{Pair, file, succeeds};

fn need_gcc() -> Result<(), Unavailable> {
    need_program("gcc", "--version")
}

fn need_valgrind() -> Result<(), Unavailable> {
    need_program("valgrind", "--version")
}

fn compile(source: &Path, out: &Path, flags: &[&str]) {
    let place = library();
    let place = place.parent().expect("a directory");
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-O1"]).args(flags);
    gcc.arg("-o").arg(out).arg(source).arg("-I").arg(file("include"));
    gcc.arg("-L").arg(place).arg(format!("-Wl,-rpath,{}", place.display())).args(["-lpilot", "-lpthread"]);
    succeeds(&mut gcc);
}

/// The programs: the example and the misuse, built with some flags.
fn programs(place: &Path, flags: &[&str]) -> (PathBuf, PathBuf) {
    let (echo, misuse) = (place.join("echo"), place.join("misuse"));
    compile(&file("../../examples/c/echo.c"), &echo, flags);
    compile(&file("tests/scripts/misuse.c"), &misuse, flags);
    (echo, misuse)
}

/// Two processes of the example talk to each other; then the misuse. `under` puts a program under a checker, which ends
/// it with a status of its own when it finds something.
fn without_a_finding(flags: &[&str], under: impl Fn(&Path) -> Command) {
    let pair = Pair::start();
    let place = tempfile::tempdir().expect("directory");
    let (echo, misuse) = programs(place.path(), flags);

    let mut serving = under(&echo);
    serving.arg("serve").arg(pair.bob.socket()).arg("2100").stdout(Stdio::piped());
    let mut serving = serving.spawn().expect("echo serve");
    let mut said = String::new();
    let out = serving.stdout.take().expect("its output");
    BufReader::new(out).read_line(&mut said).expect("a line");
    assert_eq!(said, "listening on port 2100\n");
    let to = format!("{}:2100", pair.bob.address());
    let heard = succeeds(under(&echo).arg("call").arg(pair.alice.socket()).args([&to, "hello from C"]));
    assert!(heard.contains("hello from C\n"), "{heard}");
    let served = serving.wait().expect("echo serve");
    assert!(served.success(), "echo serve: {served}");

    succeeds(under(&misuse).arg(pair.alice.socket()).arg(pair.bob.address()));
}

#[test]
fn valgrind_finds_nothing() {
    isolated("c::valgrind_finds_nothing", &[need_gcc, need_valgrind, need_programs], || {
        without_a_finding(&[], |program| {
            let mut valgrind = Command::new("valgrind");
            valgrind.args(["--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite"]);
            valgrind.arg("--show-leak-kinds=definite").arg(program);
            valgrind
        });
    });
}

#[test]
fn the_address_sanitizer_finds_nothing() {
    isolated("c::the_address_sanitizer_finds_nothing", &[need_gcc, need_programs], || {
        without_a_finding(&["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], |program| {
            let mut command = Command::new(program);
            command.env("ASAN_OPTIONS", "exitcode=99:detect_leaks=1");
            command
        });
    });
}
