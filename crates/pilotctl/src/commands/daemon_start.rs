//! `daemon start`: starts this program again as the daemon, and waits until it answers (06 §6.2).

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use pilot::Driver;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::go::Span;
use crate::home::{DEFAULT_BEACON, DEFAULT_REGISTRY};
use crate::process::{self, DAEMON_RUN, DETACH_VARIABLE};
use crate::table::{Arg, Command};

/// How long the daemon has to answer and to be registered, unless told otherwise.
const READY_WAIT: Span = Span::seconds(15);
/// How often it is asked.
const INTERVAL: Duration = Duration::from_millis(50);
/// Longest wait for one answer.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Lines of the log that are shown when it died.
const LOG_LINES: usize = 8;

pub(crate) const COMMAND: Command = Command {
    name: "daemon start",
    args: &[
        Arg::new("[--config <path>]", "JSON file with flags of pilot-daemon"),
        Arg::new("[--registry <addr>]", "registry (default: config, PILOT_REGISTRY, 127.0.0.1:9000)"),
        Arg::new("[--beacon <addr>]", "beacon (default: config, 127.0.0.1:9001)"),
        Arg::new("[--listen <addr>]", "UDP address of the tunnels (default :0)"),
        Arg::new("[--identity <path>]", "identity file (default: config, ~/.pilot/identity.key)"),
        Arg::new("[--owner <owner>]", "owner, an e-mail address for example"),
        Arg::new("[--hostname <name>]", "name to register (default: config)"),
        Arg::new("[--log-level <level>]", "debug, info, warn or error (default info)"),
        Arg::new("[--log-format <fmt>]", "text or json (default text)"),
        Arg::new("[--public]", "give the endpoint to everybody"),
        Arg::new("[--foreground]", "stay in the foreground, without PID file, logging to standard error"),
        Arg::new("[--no-encrypt]", "send in the clear"),
        Arg::new(
            "[--socket <path>]",
            "local socket (default: PILOT_SOCKET, config, a private one and /tmp/pilot.sock)",
        ),
        Arg::new("[--webhook <url>]", "where to post events (default: config)"),
        Arg::new("[--email <addr>]", "the owner, as newer releases call it"),
        Arg::new("[--endpoint <addr>]", "fixed public host:port to register instead of what the beacon sees"),
        Arg::new("[--trust-auto-approve]", "trust everybody who asks"),
        Arg::new("[--wait <dur>]", "longest wait until the daemon is registered (default 15s)"),
    ],
    about: "start the daemon in the background",
    details: "Everything else that pilot-daemon can do is set with --config.",
    returns: "node_id, address, pid, socket, hostname, log_file",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let named = match args.flag("socket").filter(|socket| !socket.is_empty()) {
        Some(socket) => Some(socket.to_owned()),
        None => app.home.named_socket()?,
    };
    let limit = args.span("wait", READY_WAIT)?;
    let socket = named.clone().unwrap_or_else(|| app.home.own_socket());
    let flags = flags(app, args, named)?;
    free(app, &socket).await?;
    app.home.create()?;
    if args.is_set("foreground") {
        let error = process::again(DAEMON_RUN, flags)?.exec();
        return Err(CliError::internal(format!("start the daemon: {error}")));
    }
    let log_path = app.home.log_path();
    let log = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path);
    let internal = |what: &str, error: std::io::Error| CliError::internal(format!("{what}: {error}"));
    let log = log.map_err(|error| internal(&format!("open {}", log_path.display()), error))?;
    let log_start = log.metadata().map_or(0, |metadata| metadata.len());
    let errors = log.try_clone().map_err(|error| internal("open the log twice", error))?;
    // The daemon rotates its log (06 §24.30). What it says outside of it, at a failed start for one, is appended too.
    let mut flags = flags;
    flags.push(log_flag(&log_path));
    let mut child = process::again(DAEMON_RUN, flags)?
        .env(DETACH_VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(|error| internal("start the daemon", error))?;
    let pid = child.id();
    write_pid(&app.home.pid_path(), pid).map_err(|error| internal("write the PID file", error))?;
    app.out.note_part(&format!("starting daemon (pid {pid})..."));
    let ready = wait_ready(app, &mut child, &socket, limit.wait()).await;
    app.out.note("");
    let info = ready.map_err(|failure| match failure {
        NotReady::Died(how) => {
            let _ = fs::remove_file(app.home.pid_path());
            let error = CliError::internal(format!("daemon (pid {pid}) ended at once: {how}"))
                .hint(format!("check logs: tail -f {}", log_path.display()));
            match process::log_tail(&log_path, log_start, LOG_LINES) {
                lines if lines.is_empty() => error,
                lines => error.cause(lines),
            }
        }
        NotReady::Slow(why) => {
            let message = format!("daemon started (pid {pid}) but did not become ready within {limit}");
            CliError::new(Code::Timeout, message).hint(format!("check logs: tail -f {}", log_path.display())).cause(why)
        }
    })?;
    let data = json!({
        "pid": pid,
        "node_id": info["node_id"],
        "address": info["address"],
        "hostname": info["hostname"],
        "socket": socket,
        "log_file": log_path,
    });
    app.out.result(&data, || {
        let word = |key: &str| super::line(info[key].as_str().unwrap_or_default());
        let mut text = format!("Daemon running (pid {pid})\n  Address:  {}\n", word("address"));
        if !word("hostname").is_empty() {
            text.push_str(&format!("  Hostname: {}\n", word("hostname")));
        }
        text.push_str(&format!("  Socket:   {socket}\n  Logs:     {}\n", log_path.display()));
        text
    });
    Ok(0)
}

/// The command line of the daemon. What neither flag, configuration nor environment names is left to it, so that a
/// file given with `--config` may say it.
fn flags(app: &App, args: &Args, socket: Option<String>) -> Result<Vec<OsString>, CliError> {
    let home = &app.home;
    let config = home.load()?;
    let given = |flag: &str, key: &str| -> Result<Option<String>, CliError> {
        match args.flag(flag).filter(|value| !value.is_empty()) {
            Some(value) => Ok(Some(value.to_owned())),
            None => config.text(home, key),
        }
    };
    let file = args.flag("config");
    let fallback = |value: &str| file.is_none().then(|| value.to_owned());
    // The configuration goes before the environment here, even when it says nothing (06 §3).
    let registry = match args.flag("registry").filter(|registry| !registry.is_empty()) {
        Some(registry) => Some(registry.to_owned()),
        None => config.text_or_empty(home, "registry")?.or_else(|| home.registry_variable().map(str::to_owned)),
    };
    let identity = given("identity", "identity")?;
    let settings = [
        ("config", file.map(str::to_owned)),
        ("registry", registry.or_else(|| fallback(DEFAULT_REGISTRY))),
        ("beacon", given("beacon", "beacon")?.or_else(|| fallback(DEFAULT_BEACON))),
        ("listen", args.flag("listen").map(str::to_owned)),
        ("socket", socket),
        ("identity", Some(identity.unwrap_or_else(|| home.identity_path().display().to_string()))),
        ("owner", args.flag("owner").or(args.flag("email")).map(str::to_owned)),
        ("endpoint", given("endpoint", "endpoint")?),
        ("hostname", given("hostname", "hostname")?),
        ("webhook", given("webhook", "webhook")?),
        ("log-level", args.flag("log-level").map(str::to_owned)),
        ("log-format", args.flag("log-format").map(str::to_owned)),
    ];
    let pin = config.registry_fingerprint(home)?;
    let mut flags: Vec<OsString> =
        settings.into_iter().filter_map(|(name, value)| Some(format!("-{name}={}", value?).into())).collect();
    if let Some(pin) = pin {
        flags.push("-registry-tls".into());
        flags.push(format!("-registry-fingerprint={pin}").into());
    }
    if args.is_set("public") {
        flags.push("-public".into());
    }
    if args.is_set("trust-auto-approve") {
        flags.push("-trust-auto-approve".into());
    }
    if args.is_set("no-encrypt") {
        flags.push("-encrypt=false".into());
    }
    Ok(flags)
}

/// Makes sure that no daemon runs, and removes what a dead one has left.
async fn free(app: &App, socket: &str) -> Result<(), CliError> {
    let running = |which: String| {
        CliError::new(Code::AlreadyExists, format!("daemon is already running ({which})"))
            .hint("stop it first with: pilotctl daemon stop")
    };
    let pid_file = app.home.pid_path();
    if let Some(pid) = process::read_pid(&pid_file) {
        if process::is_alive(pid) && process::is_daemon(pid, socket).await {
            return Err(running(format!("pid {pid}")));
        }
        let _ = fs::remove_file(&pid_file);
    }
    if process::serving(socket).await.is_some() {
        return Err(running(format!("socket {socket} is active")));
    }
    match fs::symlink_metadata(socket) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(socket)
            .map_err(|error| CliError::internal(format!("remove the stale socket {socket}: {error}"))),
        // A file that is no socket is somebody's, and not ours to delete (06 §24.6).
        Ok(_) => Err(CliError::argument(format!("{socket} exists and is not a socket"))
            .hint("choose another with --socket, or move the file away")),
        Err(error) => Err(CliError::internal(format!("look at {socket}: {error}"))),
    }
}

enum NotReady {
    Died(String),
    Slow(String),
}

/// Waits until the daemon answers and has an address.
async fn wait_ready(app: &App, child: &mut Child, socket: &str, limit: Duration) -> Result<Value, NotReady> {
    let began = Instant::now();
    let mut dots = 0;
    let mut why = "it does not answer on its socket yet".to_owned();
    while began.elapsed() < limit {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(NotReady::Died(status.to_string()));
        }
        let asked = timeout(ANSWER_WAIT, async { Driver::connect(socket).await?.info().await }).await;
        if let Ok(Ok(info)) = asked {
            if info["node_id"].as_u64().is_some_and(|node| node != 0) {
                return Ok(info);
            }
            let registry = info["registry"].as_str().map_or_else(String::new, |registry| format!(" at {registry}"));
            let error = info["registry_error"].as_str().map_or_else(String::new, |error| format!(" ({error})"));
            why = format!("it runs, but is not registered at its registry{registry} yet; it keeps trying{error}");
        }
        sleep(INTERVAL).await;
        if began.elapsed().as_secs() > dots {
            dots += 1;
            app.out.note_part(".");
        }
    }
    Err(NotReady::Slow(why))
}

fn log_flag(path: &Path) -> OsString {
    let mut flag = OsString::from("-log-file=");
    flag.push(path);
    flag
}

fn write_pid(path: &Path, pid: u32) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    write!(file, "{pid}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Parsed;
    use crate::home::Home;
    use crate::printer::Printer;

    /// The value the daemon is given for a flag; `None` when it is left to the daemon.
    fn given(config: &str, registry_variable: Option<&str>, line: &str, flag: &str) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let app = App { out: Printer::new(true), home: Home::at(dir.path(), None, registry_variable) };
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let Parsed::Run(args) = Args::parse(&COMMAND, &words).unwrap() else { panic!("help") };
        let flags = flags(&app, &args, Some("/socket".to_owned())).unwrap();
        let prefix = format!("-{flag}=");
        let own = dir.path().to_str().unwrap();
        flags.iter().find_map(|word| Some(word.to_str()?.strip_prefix(&prefix)?.replace(own, "HOME")))
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_the_rest() {
        for (config, variable, line, flag, expected) in [
            ("{}", None, "", "registry", Some(DEFAULT_REGISTRY)),
            ("{}", Some("v:1"), "", "registry", Some("v:1")),
            (r#"{"registry":"f:1"}"#, Some("v:1"), "", "registry", Some("f:1")),
            (r#"{"registry":""}"#, Some("v:1"), "", "registry", Some("")),
            (r#"{"registry":"f:1"}"#, Some("v:1"), "--registry g:1", "registry", Some("g:1")),
            ("{}", None, "", "beacon", Some(DEFAULT_BEACON)),
            (r#"{"beacon":"f:2"}"#, None, "", "beacon", Some("f:2")),
            (r#"{"beacon":"f:2"}"#, None, "--beacon g:2", "beacon", Some("g:2")),
            (r#"{"beacon":"f:2"}"#, None, "--beacon=", "beacon", Some("f:2")),
            (r#"{"hostname":"f"}"#, None, "", "hostname", Some("f")),
            (r#"{"hostname":"f"}"#, None, "--hostname g", "hostname", Some("g")),
            ("{}", None, "", "hostname", None),
            (r#"{"webhook":"http://f"}"#, None, "", "webhook", Some("http://f")),
            ("{}", None, "", "identity", Some("HOME/identity.key")),
            (r#"{"identity":"/f"}"#, None, "", "identity", Some("/f")),
            (r#"{"identity":"/f"}"#, None, "--identity /g", "identity", Some("/g")),
            ("{}", None, "--email me@example.com", "owner", Some("me@example.com")),
            // A file for the daemon may say what nobody else says.
            ("{}", None, "--config /c", "registry", None),
            (r#"{"registry":"f:1"}"#, None, "--config /c", "registry", Some("f:1")),
            (r#"{"registry_fingerprint":"ab"}"#, None, "", "registry-fingerprint", Some("ab")),
        ] {
            assert_eq!(
                given(config, variable, line, flag).as_deref(),
                expected,
                "{config} {variable:?} {line:?}: {flag}"
            );
        }
    }
}
