//! Tests in a network of their own.
//!
//! A test that starts foreign programs, or needs links, runs its body in a child process inside fresh network, PID and
//! mount namespaces (`unshare`), with only loopback: nothing in it can reach the host's network, and everything it
//! started ends with it, panic and kill included. The child is the same test binary, told to run the same test.
//!
//! Where namespaces (or another requirement) cannot be had, the test reports itself as skipped, by name and reason, on
//! standard error. With `CI=true` a skip is a failure.
#![allow(clippy::disallowed_methods)] // this module starts real processes

use std::fmt;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// Set in the child to the name of the test that runs there.
const INSIDE: &str = "PILOT_TESTKIT_INSIDE";

/// Something a test needs and this machine does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable(pub String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// A requirement, checked outside the namespace, where the network is.
pub type Need = fn() -> Result<(), Unavailable>;

/// Runs `body` as the test `name` (as libtest prints it) in namespaces of its own, after every need is met.
///
/// # Panics
/// When the body fails there, or, with `CI=true`, when a need is not met.
pub fn isolated(name: &str, needs: &[Need], body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some_and(|v| v.to_str() == Some(name)) {
        loopback_up().expect("bring loopback up");
        body();
        return;
    }
    if !can_isolate(name, needs) {
        return;
    }
    let output = again(name).output().expect("run unshare");
    let text = String::from_utf8_lossy(&output.stdout);
    // Printed here, so that libtest shows it only when the test fails.
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} failed in its namespace ({})", output.status);
    assert!(text.contains("1 passed"), "no test is called {name}");
}

/// The command that runs the test `name` of this program once more, in namespaces of its own, where [`isolated`] runs
/// its body. For a test that needs several of them at a time.
pub fn again(name: &str) -> Command {
    let exe = std::env::current_exe().expect("path of the test binary");
    let mut command = unshare();
    command.arg(exe).args(["--exact", name, "--nocapture", "--test-threads=1"]).env(INSIDE, name);
    command.stdin(Stdio::null());
    command
}

/// Whether every need is met and namespaces can be had; if not, the test reports itself as skipped.
///
/// # Panics
/// With `CI=true`, when a need is not met.
pub fn can_isolate(name: &str, needs: &[Need]) -> bool {
    match needs.iter().try_for_each(|need| need()).and_then(|()| can_unshare()) {
        Ok(()) => true,
        Err(reason) => {
            skip(name, &reason);
            false
        }
    }
}

/// Reports a test as skipped.
///
/// # Panics
/// With `CI=true`.
pub fn skip(name: &str, reason: &Unavailable) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{name} would be skipped in CI: {reason}");
    // Straight to the descriptor: libtest captures the print macros.
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {reason}");
}

/// A command that runs its arguments in namespaces of its own, as root there.
pub fn unshare() -> Command {
    let mut command = Command::new("unshare");
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--"]);
    command
}

fn can_unshare() -> Result<(), Unavailable> {
    static ANSWER: OnceLock<Result<(), Unavailable>> = OnceLock::new();
    ANSWER
        .get_or_init(|| match unshare().arg("true").stdin(Stdio::null()).output() {
            Ok(o) if o.status.success() => Ok(()),
            Ok(o) => Err(Unavailable(format!(
                "needs root or user namespaces: unshare says {}",
                String::from_utf8_lossy(&o.stderr).trim()
            ))),
            Err(e) => Err(Unavailable(format!("needs unshare of util-linux: {e}"))),
        })
        .clone()
}

/// The need of a test for a program in the search path.
pub fn need_program(program: &str, argument: &str) -> Result<(), Unavailable> {
    match Command::new(program).arg(argument).stdin(Stdio::null()).output() {
        Ok(Output { .. }) => Ok(()),
        Err(e) => Err(Unavailable(format!("needs the program {program}: {e}"))),
    }
}

/// Sets the loopback interface up, without depending on `ip`.
pub fn loopback_up() -> std::io::Result<()> {
    // SAFETY: plain system calls on a socket owned here; `request` is a complete ifreq.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        let result = libc::ioctl(fd, libc::SIOCSIFFLAGS, &request);
        let error = std::io::Error::last_os_error();
        libc::close(fd);
        if result < 0 { Err(error) } else { Ok(()) }
    }
}
