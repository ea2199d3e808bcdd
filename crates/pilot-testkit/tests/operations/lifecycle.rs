//! Beginnings and ends: what was promised is kept over a restart, and what goes wrong at a start is said clearly.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pilot::Driver;
use pilot_testkit::agent::{Agent, make_trust};
use pilot_testkit::isolate::{isolated, unshare};
use pilot_testkit::programs::{RendezvousProcess, need_programs, program};
use pilot_wire::SocketAddress;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{PATIENCE, eventually, read, runtime, start};

fn echo(from: &Agent, to: &Agent, text: &str) {
    let answer = from.ctl(&["connect", to.address(), "7", "--message", text, "--timeout", "60s"]).expect("connect");
    assert_eq!(answer["response"], text);
}

#[test]
fn an_orderly_end_delivers_what_was_written_and_tells_the_registry() {
    let name = "lifecycle::an_orderly_end_delivers_what_was_written_and_tells_the_registry";
    isolated(name, &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let reader = start(&rendezvous, "reader", &[]);
        let mut writer = start(&rendezvous, "writer", &[]);
        make_trust(&reader, &writer, PATIENCE).expect("trust");
        writer.ctl(&["set-hostname", "written"]).expect("set-hostname");
        let data: Vec<u8> = (0..300_000_usize).map(|i| (i * 31 + i / 7919) as u8).collect();
        runtime().block_on(async {
            let (read_side, write_side) = (
                Driver::connect(reader.socket()).await.expect("driver"),
                Driver::connect(writer.socket()).await.expect("driver"),
            );
            let listener = write_side.listen(3000).await.expect("listen");
            let to = SocketAddress::new(writer.address().parse().expect("address"), 3000);
            let (dialled, accepted) = tokio::join!(read_side.dial(to), listener.accept());
            let (mut dialled, mut accepted) = (dialled.expect("dial"), accepted.expect("accept"));
            accepted.write_all(&data).await.expect("write");
            accepted.flush().await.expect("flush");
            let status = tokio::task::block_in_place(|| writer.terminate(PATIENCE)).expect("end");
            assert!(status.success(), "{status}");
            let mut got = Vec::new();
            tokio::time::timeout(PATIENCE, dialled.read_to_end(&mut got)).await.expect("an end").expect("a clean one");
            assert_eq!(got.len(), data.len());
            assert!(got == data, "what arrived differs");
        });
        // The registry does not hand out an endpoint where nobody is.
        let gone = reader.run(&["--json", "find", "written"]).expect("find");
        assert!(!gone.status.success(), "{}", gone.stdout);
        let (node, address) = (writer.node(), writer.address().to_owned());
        writer.start_again().expect("start again");
        assert_eq!((writer.node(), writer.address()), (node, address.as_str()));
        // What was set at run time is there again, and trust was never in question.
        eventually("the hostname", || reader.ctl(&["find", "written"]).ok());
        assert!(writer.trusts(reader.node()).expect("trust"));
        echo(&reader, &writer, "hello again");
    });
}

/// One side restarts while the other holds a tunnel with it; then the survivor speaks first, or the newcomer does.
fn restart_with_tunnel(crash: bool, survivor_first: bool) {
    let rendezvous = RendezvousProcess::start().expect("rendezvous");
    let survivor = start(&rendezvous, "survivor", &[]);
    let mut restarted = start(&rendezvous, "restarted", &[]);
    make_trust(&survivor, &restarted, PATIENCE).expect("trust");
    echo(&survivor, &restarted, "before");
    if crash {
        restarted.crash_and_restart().expect("restart");
    } else {
        assert!(restarted.terminate(PATIENCE).expect("end").success());
        restarted.start_again().expect("start again");
    }
    if survivor_first {
        echo(&survivor, &restarted, "survivor first");
        echo(&restarted, &survivor, "newcomer second");
    } else {
        echo(&restarted, &survivor, "newcomer first");
        echo(&survivor, &restarted, "survivor second");
    }
}

#[test]
fn after_a_restart_of_either_kind_the_survivor_may_speak_first() {
    let name = "lifecycle::after_a_restart_of_either_kind_the_survivor_may_speak_first";
    isolated(name, &[need_programs], || restart_with_tunnel(true, true));
}

#[test]
fn after_a_restart_of_either_kind_the_newcomer_may_speak_first() {
    let name = "lifecycle::after_a_restart_of_either_kind_the_newcomer_may_speak_first";
    isolated(name, &[need_programs], || restart_with_tunnel(false, false));
}

/// A daemon of a test's own, without registry, in a directory.
fn daemon(dir: &Path, flags: &[&str]) -> Command {
    let log = fs::File::options().create(true).append(true).open(dir.join("log")).expect("log");
    let mut command = Command::new(program("pilot-daemon"));
    command.env_clear().env("HOME", dir).env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    command.args(["-registry", "127.0.0.1:1", "-beacon", "", "-listen", "127.0.0.1:0"]).args(flags);
    command.arg("-identity").arg(dir.join("home/identity.key")).arg("-socket").arg(dir.join("pilot.sock"));
    command.stdout(log.try_clone().expect("log")).stderr(log);
    command
}

fn log(dir: &Path) -> String {
    read(&dir.join("log"))
}

fn end(mut child: Child) -> std::process::ExitStatus {
    // Gone already is as good.
    let _ = rustix::process::kill_process(Pid::from_child(&child), Signal::TERM);
    eventually("the end of the daemon", || child.try_wait().expect("wait"))
}

#[test]
fn the_pid_file_is_made_with_its_directory_and_one_that_cannot_be_is_named() {
    let name = "lifecycle::the_pid_file_is_made_with_its_directory_and_one_that_cannot_be_is_named";
    isolated(name, &[need_programs], || {
        let dir = tempfile::tempdir().expect("directory");
        let pid_file = dir.path().join("run/pilot/daemon.pid");
        let child = daemon(dir.path(), &["-pid-file", pid_file.to_str().expect("path")]).spawn().expect("daemon");
        let written = eventually("the PID file", || Some(read(&pid_file)).filter(|text| !text.is_empty()));
        assert_eq!(written, child.id().to_string());
        assert!(end(child).success());
        assert!(!pid_file.exists(), "it goes with the daemon");

        let impossible = dir.path().join("log/daemon.pid");
        let status = daemon(dir.path(), &["-pid-file", impossible.to_str().expect("path")]).status().expect("daemon");
        assert_eq!(status.code(), Some(1));
        let log = log(dir.path());
        assert!(log.contains(&format!("error: PID file {}", impossible.display())), "{log}");
        assert!(log.contains("hint:") && log.contains("-pid-file"), "{log}");
    });
}

#[test]
fn a_registry_that_does_not_answer_makes_the_socket_late_and_the_start_says_why() {
    let name = "lifecycle::a_registry_that_does_not_answer_makes_the_socket_late_and_the_start_says_why";
    isolated(name, &[need_programs], || {
        // It accepts, and never says a word.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let dir = tempfile::tempdir().expect("directory");
        let registry = mute.local_addr().expect("address").to_string();
        let ctl = |words: &[&str]| {
            let mut command = Command::new(program("pilotctl"));
            command.env_clear().env("HOME", dir.path()).env("PILOT_SOCKET", dir.path().join("pilot.sock"));
            command.args(words).output().expect("pilotctl")
        };
        let start = ["--json", "daemon", "start", "--registry", &registry, "--listen", "127.0.0.1:0"];
        let started = ctl(&start);
        let text = String::from_utf8_lossy(&started.stderr).into_owned();
        assert_eq!(started.status.code(), Some(1), "{text}");
        assert!(text.contains("did not become ready") && text.contains("is not registered at its registry"), "{text}");
        // It runs, keeps trying, and is stopped as any other.
        assert!(ctl(&["daemon", "status", "--check"]).status.success());
        let stopped = ctl(&["--json", "daemon", "stop"]);
        assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
        assert!(!String::from_utf8_lossy(&stopped.stdout).contains("forced"));
    });
}

#[test]
fn process_one_of_a_container_obeys_signals_and_collects_orphans() {
    let name = "lifecycle::process_one_of_a_container_obeys_signals_and_collects_orphans";
    isolated(name, &[need_programs], || {
        let dir = tempfile::tempdir().expect("directory");
        let inside = daemon(dir.path(), &["-log-level", "info"]);
        let mut container = unshare();
        // The program becomes process 1 of the new namespace.
        container.arg(inside.get_program()).args(inside.get_args()).env("HOME", dir.path());
        let log_file = fs::File::options().append(true).open(dir.path().join("log")).expect("log");
        container.stdout(log_file.try_clone().expect("log")).stderr(log_file);
        let container = container.spawn().expect("unshare");
        eventually("the socket", || std::os::unix::net::UnixStream::connect(dir.path().join("pilot.sock")).ok());
        let first = eventually("process 1", || {
            let found = children(container.id());
            found.first().copied().filter(|pid| namespace_pid(*pid) == Some(1))
        });
        let daemon = eventually("the daemon", || children(first).first().copied());
        assert_ne!(namespace_pid(daemon), Some(1));
        // An orphan of the container becomes a child of process 1 and is collected when it ends.
        let mut orphan = Command::new("nsenter");
        orphan.args(["-t", &first.to_string(), "-p", "-r", "-w", "--"]);
        let made = orphan.args(["/bin/sh", "-c", "/bin/sleep 0.2 & exit 0"]).status().expect("nsenter");
        assert!(made.success());
        eventually("no orphan is left", || {
            let left: Vec<u32> = children(first).into_iter().filter(|pid| *pid != daemon).collect();
            left.is_empty().then_some(())
        });
        // Process 1 handles SIGTERM only if it asks for it.
        let pid = Pid::from_raw(i32::try_from(first).expect("pid")).expect("pid");
        rustix::process::kill_process(pid, Signal::TERM).expect("signal");
        let mut container = container;
        let status = eventually("the end", || container.try_wait().expect("wait"));
        assert!(status.success(), "{status}: {}", log(dir.path()));
        assert!(log(dir.path()).contains("msg=stopped"), "{}", log(dir.path()));
        assert!(!dir.path().join("pilot.sock").exists(), "an orderly end removes the socket");
    });
}

fn children(pid: u32) -> Vec<u32> {
    let text = read(&PathBuf::from(format!("/proc/{pid}/task/{pid}/children")));
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The number of a process in its innermost namespace.
fn namespace_pid(pid: u32) -> Option<u32> {
    let status = read(&PathBuf::from(format!("/proc/{pid}/status")));
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().next_back()?.parse().ok()
}

#[test]
fn a_hook_and_what_it_started_end_with_the_daemon() {
    isolated("lifecycle::a_hook_and_what_it_started_end_with_the_daemon", &[need_programs], || {
        let dir = tempfile::tempdir().expect("directory");
        let (hook, mark) = (dir.path().join("hook"), dir.path().join("mark"));
        let script = format!("#!/bin/sh\nsleep 600 &\necho $! $$ > {0}.new\nmv {0}.new {0}\nwait\n", mark.display());
        fs::write(&hook, script).expect("write");
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("mode");
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let flags = ["-trust-policy", "hook", "-trust-hook", hook.to_str().expect("path")];
        let mut asked = start(&rendezvous, "asked", &flags);
        let asking = start(&rendezvous, "asking", &[]);
        asking.ctl(&["handshake", &asked.node_text(), "please"]).expect("handshake");
        let pids = eventually("the hook", || Some(read(&mark)).filter(|text| !text.is_empty()));
        let pids: Vec<u32> = pids.split_whitespace().map(|pid| pid.parse().expect("pid")).collect();
        let runs = |pid: &u32| {
            let stat = read(&PathBuf::from(format!("/proc/{pid}/stat")));
            // A process that has ended and was not collected yet does not run.
            stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
        };
        assert!(pids.len() == 2 && pids.iter().all(runs), "{pids:?}");
        assert!(asked.terminate(PATIENCE).expect("end").success());
        eventually("the end of both", || (!pids.iter().any(runs)).then_some(()));
    });
}

#[test]
fn a_daemon_whose_output_nobody_reads_goes_on() {
    isolated("lifecycle::a_daemon_whose_output_nobody_reads_goes_on", &[need_programs], || {
        let dir = tempfile::tempdir().expect("directory");
        let mut command = daemon(dir.path(), &[]);
        // Everything is said, and said into a pipe that holds some two dozen lines.
        let (unread, written) = std::io::pipe().expect("pipe");
        set_pipe_size(&unread, 4096);
        let child = command.env("PILOT_LOG", "trace").stderr(written).spawn().expect("daemon");
        drop(command);
        let socket = dir.path().join("pilot.sock");
        runtime().block_on(async {
            let mut answered = 0;
            let talk = async {
                while answered < 300 {
                    // A new connection each time, about which several lines are logged.
                    match Driver::connect(&socket).await {
                        Ok(driver) => answered += u32::from(driver.info().await.is_ok()),
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            };
            tokio::time::timeout(PATIENCE, talk).await.expect("a daemon that goes on");
        });
        assert!(waiting_in(&unread) > 3000, "the pipe is full, or this shows nothing");
        end(child);
    });
}

fn set_pipe_size(pipe: &std::io::PipeReader, bytes: libc::c_int) {
    use std::os::fd::AsRawFd as _;
    // SAFETY: a plain call on an open descriptor.
    let set = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
    assert!(set >= bytes, "{}", std::io::Error::last_os_error());
}

fn waiting_in(pipe: &std::io::PipeReader) -> libc::c_int {
    use std::os::fd::AsRawFd as _;
    let mut waiting = 0;
    // SAFETY: a plain call on an open descriptor; `waiting` is an int of ours.
    unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut waiting) };
    waiting
}
