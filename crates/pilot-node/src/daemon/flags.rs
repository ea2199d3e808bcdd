//! The flags of the daemon (02 §3, 06 §11, 07), declared once, and what they mean for a [`NodeConfig`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use pilot_env::Env;
use pilot_env::args::{Flag, Flags, Program, split_host_port};
use pilot_env::places::SocketPlaces;
use pilot_proto::endpoint::Encryption;
use pilot_proto::trust::{Approval, NetworkApproval};
use pilot_services::dataexchange::DataExchange;
use pilot_wire::base64;
use pilot_wire::service::dataexchange::record::InboxFormat;

use crate::config::{DEFAULT_BEACON, DEFAULT_REGISTRY, NodeConfig};
use crate::error::NodeError;
use crate::webhook::WebhookTarget;

use super::http;
use super::log::{self, FileOptions, Format};

/// Large enough for any use, small enough that nothing overflows.
const MANY: u64 = 1 << 24;

pub(super) const PROGRAM: Program = Program {
    name: "pilot-daemon",
    about: "connects this host's agents to the Pilot network",
    flags: &[
        Flag::text("config", "", "JSON file with flags of this program as keys"),
        Flag::host_port("registry", DEFAULT_REGISTRY, "registry to register with"),
        Flag::switch("registry-tls", "speak TLS with the registry; needs -registry-fingerprint"),
        Flag::text("registry-fingerprint", "", "SHA-256 of the registry's certificate, 64 hex digits"),
        Flag::host_port("beacon", DEFAULT_BEACON, "beacon for discovery, punching and relay; empty for none"),
        Flag::host_port("listen", ":0", "UDP address of the tunnel socket"),
        Flag::text(
            "socket",
            "",
            "socket for programs on this host; empty: $XDG_RUNTIME_DIR/pilot/pilot.sock or ~/.pilot/pilot.sock, and \
             /tmp/pilot.sock besides if that is free",
        ),
        Flag::host_port("endpoint", "", "fixed public address to register instead of what the beacon sees"),
        Flag::text("identity", "", "identity file; empty: a new identity every start"),
        Flag::text("owner", "", "owner, told to the registry"),
        Flag::text("email", "", "the same, as newer daemons call it"),
        Flag::text("hostname", "", "name to claim at the registry"),
        Flag::switch("public", "let everybody learn the endpoint from the registry"),
        Flag::switch_on("encrypt", "encrypt all traffic between nodes"),
        Flag::switch("allow-plain", "also speak in clear with nodes that cannot encrypt"),
        Flag::switch_on("scheme-a", "also speak the encryption of daemons before April 2026"),
        Flag::text("public-ports", "", "ports open to everybody, trusted or not, such as 7,1000"),
        Flag::text(
            "trust-policy",
            "mutual",
            "who is trusted without asking: mutual, all, network, keys, hook, or several",
        ),
        Flag::switch("trust-auto-approve", "the same as -trust-policy all"),
        Flag::text("trust-networks", "", "networks whose members -trust-policy network trusts; empty: all of ours"),
        Flag::text("trust-keys", "", "public keys that -trust-policy keys trusts, base64, separated by commas"),
        Flag::text("trust-hook", "", "program that -trust-policy hook asks; exit status 0 approves"),
        Flag::duration("keepalive", "0", "time between heartbeats; 0 is 30s"),
        Flag::duration("idle-timeout", "0", "silence after which a stream is given up; 0 is 2m"),
        Flag::duration("time-wait", "0", "how long a closed stream is remembered; 0 is 10s"),
        Flag::uint("syn-rate-limit", "0", 0, MANY, "new streams accepted per second; 0 is the default"),
        Flag::uint("max-conns-per-port", "0", 0, MANY, "streams per port; 0 is 1024"),
        Flag::uint("max-conns-total", "0", 0, MANY, "streams in total; 0 is 65536"),
        Flag::switch("no-echo", "do not offer the echo service on port 7"),
        Flag::switch("no-dataexchange", "do not offer data exchange on port 1001"),
        Flag::one_of(
            "inbox-format",
            &["public", "february", "newest"],
            "public",
            "how messages are written: as documented, or as older tools expect them",
        ),
        Flag::text("inbox-hook", "", "program that is run for each message that arrives"),
        Flag::uint("inbox-max-messages", "0", 0, MANY, "messages kept in the inbox; 0 is 10000"),
        Flag::uint("inbox-max-mb", "0", 0, MANY, "MiB kept in the inbox; 0 is 256"),
        Flag::uint("received-max-mb", "0", 0, MANY, "MiB of received files kept; 0 is 16384"),
        Flag::uint("outbox-max-messages", "0", 0, MANY, "messages kept in the outbox; 0 is 10000"),
        Flag::uint("outbox-max-mb", "0", 0, MANY, "MiB kept in the outbox; 0 is 4096"),
        Flag::switch("no-eventstream", "do not offer events on port 1002"),
        Flag::switch("no-tasks", "do not take tasks on port 1003"),
        Flag::switch("nameserver", "offer the nameserver on port 53"),
        Flag::text("webhook", "", "URL to post events to"),
        Flag::text("webhook-secret-file", "", "file with the key that signs what is posted (X-Pilot-Signature)"),
        Flag::one_of("log-level", &["debug", "info", "warn", "warning", "error"], "info", "what is logged"),
        Flag::one_of("log-format", &["text", "json"], "text", "how it is logged"),
        Flag::text("log-file", "", "file to log to, rotated; empty: standard error"),
        Flag::uint("log-max-mb", "10", 1, 10_000, "megabytes after which a new log file is begun"),
        Flag::uint("log-keep", "5", 0, 100, "old log files kept"),
        Flag::host_port("http", "", "address for /healthz, /readyz and /metrics, such as 127.0.0.1:9464; empty: none"),
        Flag::switch("http-allow-remote", "let -http listen on an address that other machines reach"),
        Flag::text("http-hosts", "", "names that HTTP requests may call this host by, separated by commas"),
        Flag::text("pid-file", "", "file for the process number; empty: none"),
        Flag::switch("version", "print the version and end"),
    ],
};

/// Flags that switch a service off, and its name.
const SWITCHED: [(&str, &str); 3] = [("no-echo", "echo"), ("no-eventstream", "eventstream"), ("no-tasks", "tasks")];

fn bad(text: impl Into<String>) -> NodeError {
    NodeError::Config(text.into())
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// Numbers of a list, each named when it is none.
pub(super) fn numbers(flags: &Flags, name: &str) -> Result<Vec<u16>, NodeError> {
    list(flags.text(name))
        .map(|word| word.parse().map_err(|_| bad(format!("-{name}: {word:?} is not a number from 0 to 65535"))))
        .collect()
}

/// The address of a socket of this host: an empty host is every address, IPv6 and IPv4.
fn local_address(flags: &Flags, name: &str) -> Result<SocketAddr, NodeError> {
    let text = flags.text(name);
    let wrong = || bad(format!("-{name}: {text:?} is not an IP address and port of this host"));
    let (host, port) = split_host_port(text).ok_or_else(wrong)?;
    let ip: IpAddr = match host {
        "" => Ipv6Addr::UNSPECIFIED.into(),
        "localhost" => std::net::Ipv4Addr::LOCALHOST.into(),
        host => host.parse().map_err(|_| wrong())?,
    };
    Ok(SocketAddr::new(ip, port))
}

/// A fixed endpoint, unless its host says nothing to others (02 §3).
fn endpoint(flags: &Flags) -> Option<String> {
    let text = flags.non_empty("endpoint")?;
    let (host, _) = split_host_port(text)?;
    let useless = host.is_empty()
        || host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified());
    (!useless).then(|| text.to_owned())
}

fn approval(flags: &Flags) -> Result<Approval, NodeError> {
    let mut approval = Approval { all: flags.bool("trust-auto-approve"), ..Approval::default() };
    let networks: BTreeSet<u16> = numbers(flags, "trust-networks")?.into_iter().collect();
    for word in list(flags.text("trust-policy")) {
        match word {
            "mutual" => {}
            "all" => approval.all = true,
            "network" if networks.is_empty() => approval.networks = NetworkApproval::Any,
            "network" => approval.networks = NetworkApproval::Listed(networks.clone()),
            "keys" => {
                for key in list(flags.text("trust-keys")) {
                    let bytes = base64::decode_array(key)
                        .ok_or_else(|| bad(format!("-trust-keys: {key:?} is not a base64 public key of 32 bytes")))?;
                    approval.keys.insert(bytes);
                }
                if approval.keys.is_empty() {
                    return Err(bad("-trust-policy keys needs -trust-keys"));
                }
            }
            "hook" if flags.text("trust-hook").is_empty() => return Err(bad("-trust-policy hook needs -trust-hook")),
            "hook" => approval.hook = true,
            other => {
                let text = format!("-trust-policy: {other:?} is none of mutual, all, network, keys, hook");
                return Err(bad(text));
            }
        }
    }
    Ok(approval)
}

fn encryption(flags: &Flags) -> Encryption {
    match (flags.bool("encrypt"), flags.bool("allow-plain")) {
        (false, _) => Encryption::Off,
        (true, true) => Encryption::AllowPlain,
        (true, false) => Encryption::Required,
    }
}

/// How messages and files are kept.
fn dataexchange(flags: &Flags) -> DataExchange {
    let mut offer = DataExchange {
        inbox_format: InboxFormat::parse(flags.text("inbox-format")).unwrap_or_default(),
        inbox_hook: flags.non_empty("inbox-hook").map(PathBuf::from),
        ..DataExchange::default()
    };
    let limits = &mut offer.limits;
    for (name, unit, setting) in [
        ("inbox-max-messages", 1, &mut limits.inbox_messages),
        ("inbox-max-mb", 1 << 20, &mut limits.inbox_bytes),
        ("received-max-mb", 1 << 20, &mut limits.received_bytes),
        ("outbox-max-messages", 1, &mut limits.outbox_messages),
        ("outbox-max-mb", 1 << 20, &mut limits.outbox_bytes),
    ] {
        if let given @ 1.. = flags.uint(name) {
            *setting = given * unit;
        }
    }
    offer
}

/// Where local programs find a daemon that was not told where to listen (docs/spec/local-socket.md, L41).
fn place_sockets(config: &mut NodeConfig, places: &SocketPlaces, env: &Env) {
    let shared = places.shared().map(ToOwned::to_owned);
    match places.private(env) {
        Some(private) => {
            config.socket = Some(private);
            config.private_socket = true;
            config.shared_socket = shared;
        }
        None => config.socket = shared,
    }
}

/// Everything the program is told.
pub(super) struct Settings {
    pub(super) node: NodeConfig,
    pub(super) log: log::Options,
    pub(super) http: Option<http::Options>,
    pub(super) pid_file: Option<PathBuf>,
}

/// What the flags mean, all of them.
///
/// # Errors
/// [`NodeError::Config`] names the flag.
pub(super) fn settings(flags: &Flags) -> Result<Settings, NodeError> {
    let file = flags.non_empty("log-file").map(|path| FileOptions {
        path: path.into(),
        max_bytes: flags.uint("log-max-mb") * 1_000_000,
        keep: u32::try_from(flags.uint("log-keep")).unwrap_or(u32::MAX),
    });
    let format = if flags.text("log-format") == "json" { Format::Json } else { Format::Text };
    Ok(Settings {
        node: config(flags)?,
        log: log::Options { level: flags.text("log-level").to_owned(), format, file },
        http: http_options(flags)?,
        pid_file: flags.non_empty("pid-file").map(PathBuf::from),
    })
}

fn http_options(flags: &Flags) -> Result<Option<http::Options>, NodeError> {
    let Some(text) = flags.non_empty("http") else { return Ok(None) };
    let addr = local_address(flags, "http")?;
    if !addr.ip().is_loopback() && !flags.bool("http-allow-remote") {
        let port = addr.port();
        return Err(bad(format!(
            "-http {text}: other machines can reach this address; use 127.0.0.1:{port}, or add -http-allow-remote if \
             they may read the state and the metrics of this node"
        )));
    }
    Ok(Some(http::Options { addr, hosts: list(flags.text("http-hosts")).map(str::to_owned).collect() }))
}

/// What the flags mean for the node.
///
/// # Errors
/// [`NodeError::Config`] names the flag.
fn config(flags: &Flags) -> Result<NodeConfig, NodeError> {
    let registry = flags.non_empty("registry").unwrap_or(DEFAULT_REGISTRY).to_owned();
    let mut config = NodeConfig { registry, ..NodeConfig::default() };
    if flags.bool("registry-tls") {
        let pin = flags.non_empty("registry-fingerprint").ok_or_else(|| {
            bad("registry TLS requires RegistryFingerprint for certificate pinning (-registry-fingerprint)")
        })?;
        config.registry_fingerprint = Some(pin.parse().map_err(|e| bad(format!("-registry-fingerprint: {e}")))?);
    }
    config.beacon = flags.non_empty("beacon").map(str::to_owned);
    config.listen = local_address(flags, "listen")?;
    match flags.non_empty("socket") {
        Some(path) => config.socket = Some(PathBuf::from(path)),
        None => place_sockets(&mut config, &SocketPlaces::of_process(), &Env::real()),
    }
    config.endpoint = endpoint(flags);
    config.encrypt = encryption(flags);
    config.allow_scheme_a = flags.bool("scheme-a");
    config.identity = flags.non_empty("identity").map(PathBuf::from);
    config.owner = flags.non_empty("owner").or(flags.non_empty("email")).unwrap_or_default().to_owned();
    config.hostname = flags.text("hostname").to_owned();
    config.public = flags.bool("public");
    config.public_ports = numbers(flags, "public-ports")?;
    config.approval = approval(flags)?;
    config.approval_hook = flags.non_empty("trust-hook").map(PathBuf::from);
    config.webhook = flags.non_empty("webhook").map(WebhookTarget::new).transpose().map_err(bad)?;
    config.webhook_secret_file = flags.non_empty("webhook-secret-file").map(PathBuf::from);
    for (name, setting) in [
        ("keepalive", &mut config.keepalive),
        ("idle-timeout", &mut config.stream.idle_timeout),
        ("time-wait", &mut config.stream.time_wait),
    ] {
        let given = flags.duration(name);
        if !given.is_zero() {
            *setting = given;
        }
    }
    // A keepalive later than the time-out would never be sent.
    config.stream.keepalive = config.stream.keepalive.min(config.stream.idle_timeout / 2);
    for (name, setting) in [
        ("max-conns-per-port", &mut config.limits.connections_per_port),
        ("max-conns-total", &mut config.limits.connections),
    ] {
        if let Ok(given @ 1..) = usize::try_from(flags.uint(name)) {
            *setting = given;
        }
    }
    if let Ok(rate @ 1..) = u32::try_from(flags.uint("syn-rate-limit")) {
        config.limits.syn_rate = rate;
    }
    if flags.bool("nameserver") {
        config.services.push(Arc::new(pilot_services::nameserver::Nameserver));
    }
    for (flag, name) in SWITCHED {
        if flags.bool(flag) {
            config.services.retain(|service| service.name() != name);
        }
    }
    config.services.retain(|service| service.name() != "dataexchange");
    if !flags.bool("no-dataexchange") {
        config.services.push(Arc::new(dataexchange(flags)));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<NodeConfig, String> {
        let flags = PROGRAM.parse(words.iter().map(Into::into)).map_err(|e| e.to_string())?;
        settings(&flags).map(|settings| settings.node).map_err(|e| e.to_string())
    }

    #[test]
    fn the_declaration_is_sound() {
        PROGRAM.check();
    }

    #[test]
    fn without_flags_nothing_points_at_a_public_server() {
        let config = parse(&[]).unwrap();
        assert_eq!((config.registry.as_str(), config.beacon.as_deref()), ("127.0.0.1:9000", Some("127.0.0.1:9001")));
        assert_eq!(config.listen, "[::]:0".parse().unwrap());
        assert_eq!((config.encrypt, config.public), (Encryption::Required, false));
        assert_eq!(config.approval, Approval::default());
    }

    #[test]
    fn a_socket_that_is_given_is_the_only_one() {
        let config = parse(&["-socket", "/run/x.sock"]).unwrap();
        assert_eq!(config.socket.as_deref(), Some(std::path::Path::new("/run/x.sock")));
        assert!(config.shared_socket.is_none() && !config.private_socket);
        let (mut config, home) = (NodeConfig::default(), PathBuf::from("/home/nobody"));
        let shared = Some(PathBuf::from("/shared/pilot.sock"));
        place_sockets(&mut config, &SocketPlaces::new(None, Some(home), shared.clone()), &Env::real());
        assert_eq!(config.socket, Some(PathBuf::from("/home/nobody/.pilot/pilot.sock")));
        assert!(config.private_socket && config.shared_socket == shared);
        let mut config = NodeConfig::default();
        place_sockets(&mut config, &SocketPlaces::new(None, None, shared.clone()), &Env::real());
        assert_eq!((config.socket, config.shared_socket), (shared, None));
    }

    #[test]
    fn every_spelling_of_a_flag_means_the_same() {
        for words in [&["-hostname", "bob"][..], &["-hostname=bob"], &["--hostname", "bob"], &["--hostname=bob"]] {
            assert_eq!(parse(words).unwrap().hostname, "bob");
        }
        assert_eq!(parse(&["-encrypt=false"]).unwrap().encrypt, Encryption::Off);
    }

    #[test]
    fn a_flag_that_makes_no_sense_is_named() {
        for (words, part) in [
            (&["-public-ports", "7,x"][..], "-public-ports"),
            (&["-trust-policy", "friends"], "friends"),
            (&["-trust-policy", "keys"], "-trust-keys"),
            (&["-trust-policy", "keys", "-trust-keys", "AAAA"], "AAAA"),
            (&["-trust-policy", "hook"], "-trust-hook"),
            (&["-registry-tls"], "-registry-fingerprint"),
            (&["-registry-tls", "-registry-fingerprint", "12"], "64 hexadecimal digits"),
            (&["-listen", "example.com:1"], "example.com"),
            (&["-webhook", "ftp://x"], "webhook URL must start with http:// or https://"),
            (&["-http", ":9464"], "-http-allow-remote"),
            (&["-http", "192.0.2.7:9464"], "use 127.0.0.1:9464"),
            (&["-http", "example.com:1"], "example.com"),
            (&["-no-such"], "no-such"),
        ] {
            let text = parse(words).err().unwrap_or_default();
            assert!(text.contains(part), "{words:?}: {text}");
        }
    }

    #[test]
    fn http_listens_on_loopback_unless_told_otherwise_in_so_many_words() {
        let http = |words: &[&str]| {
            let flags = PROGRAM.parse(words.iter().map(Into::into)).unwrap();
            settings(&flags).unwrap().http
        };
        assert_eq!(http(&[]), None);
        assert_eq!(http(&["-http", "localhost:0"]).unwrap().addr, "127.0.0.1:0".parse().unwrap());
        assert_eq!(http(&["-http=[::1]:9464"]).unwrap().addr, "[::1]:9464".parse().unwrap());
        let open = http(&["-http", ":9464", "-http-allow-remote", "-http-hosts", "a.example, b.example"]).unwrap();
        assert_eq!(open.addr, "[::]:9464".parse().unwrap());
        assert_eq!(open.hosts, ["a.example", "b.example"]);
    }

    #[test]
    fn limits_are_taken_over() {
        let config = parse(&["-syn-rate-limit", "7", "-max-conns-per-port", "8", "-max-conns-total=9"]).unwrap();
        let limits = config.limits;
        assert_eq!((limits.syn_rate, limits.connections_per_port, limits.connections), (7, 8, 9));
    }

    #[test]
    fn messages_and_files_can_be_limited_and_switched_off() {
        let names = |words: &[&str]| parse(words).unwrap().services.iter().map(|s| s.name()).collect::<Vec<_>>();
        assert_eq!(names(&["-no-echo", "-no-tasks"]), ["eventstream", "dataexchange"]);
        assert_eq!(names(&["-no-dataexchange", "-no-eventstream"]), ["echo", "tasks"]);
        assert_eq!(names(&["-nameserver"]), ["echo", "eventstream", "tasks", "nameserver", "dataexchange"]);
        let words =
            ["-inbox-format", "february", "-inbox-max-mb", "3", "-received-max-mb=1", "-inbox-hook", "/bin/true"];
        let flags = PROGRAM.parse(words.iter().map(Into::into)).unwrap();
        let offer = dataexchange(&flags);
        assert_eq!((offer.inbox_format, offer.limits.inbox_bytes), (InboxFormat::February, 3 << 20));
        assert_eq!((offer.limits.received_bytes, offer.limits.inbox_messages), (1 << 20, 10_000));
        assert_eq!(offer.inbox_hook, Some("/bin/true".into()));
        assert!(parse(&["-inbox-format", "none"]).is_err());
    }

    #[test]
    fn policies_combine() {
        let config = parse(&["-trust-policy", "network, hook", "-trust-networks", "3,4", "-trust-hook", "/bin/true"]);
        let approval = config.unwrap().approval;
        assert_eq!(approval.networks, NetworkApproval::Listed([3, 4].into()));
        assert!(approval.hook && !approval.all);
        assert!(parse(&["-trust-auto-approve"]).unwrap().approval.all);
    }

    #[test]
    fn an_endpoint_that_says_nothing_to_others_is_not_registered() {
        for useless in [":4000", "127.0.0.1:4000", "[::1]:4000", "0.0.0.0:4000", "[::]:4000"] {
            assert_eq!(parse(&["-endpoint", useless]).unwrap().endpoint, None, "{useless}");
        }
        assert_eq!(parse(&["-endpoint", "a.example:4000"]).unwrap().endpoint.as_deref(), Some("a.example:4000"));
    }
}
