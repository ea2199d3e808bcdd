//! Where the daemon's socket is, and whose daemon it is (`docs/spec/local-socket.md`, L41 to L43).

use std::path::{Path, PathBuf};

use pilot_env::Env;
use pilot_env::places::{SHARED_SOCKET, SocketPlaces};
use pilot_wire::json;
use serde_json::Value;

/// The one place where every official daemon listens unless told otherwise (03 §1).
///
/// ```
/// assert_eq!(pilot::DEFAULT_SOCKET, "/tmp/pilot.sock");
/// ```
pub const DEFAULT_SOCKET: &str = SHARED_SOCKET;
/// The environment variable that names another socket.
///
/// ```
/// assert_eq!(pilot::SOCKET_VARIABLE, "PILOT_SOCKET");
/// ```
pub const SOCKET_VARIABLE: &str = "PILOT_SOCKET";

/// Longest configuration that is read; longer ones count as none.
const MAX_CONFIG: u64 = 1 << 20;

/// The sockets where a daemon may be, in the order in which they are tried: the one that `PILOT_SOCKET`, or else the
/// entry `socket` of `~/.pilot/config.json`, names, and it alone; or `$XDG_RUNTIME_DIR/pilot/pilot.sock`,
/// `~/.pilot/pilot.sock` and `/tmp/pilot.sock`.
///
/// ```
/// let places = pilot::default_sockets();
/// assert!(!places.is_empty());
/// ```
pub fn default_sockets() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = variable("HOME").map(|home| home.join(".pilot/config.json"));
    sockets(&Env::real(), variable(SOCKET_VARIABLE), config.as_deref(), &SocketPlaces::of_process())
}

fn sockets(env: &Env, named: Option<PathBuf>, config: Option<&Path>, places: &SocketPlaces) -> Vec<PathBuf> {
    match named.or_else(|| configured(env, config?)) {
        Some(only) => vec![only],
        None => places.candidates(),
    }
}

/// The entry `socket` of a configuration, unless it is the usual place, which `init` writes. One that cannot be read names none; `pilotctl config` says what is wrong.
fn configured(env: &Env, config: &Path) -> Option<PathBuf> {
    let text = env.fs().read_limited(config, MAX_CONFIG).ok()?;
    let config = json::parse(&text).ok()?;
    let socket = config.get("socket").and_then(Value::as_str)?;
    Some(socket).filter(|socket| !socket.is_empty() && *socket != DEFAULT_SOCKET).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_goes_before_what_is_configured_before_what_is_usual() {
        let env = Env::real();
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        let places = SocketPlaces::new(Some("/run/user/7".into()), Some("/home/x".into()), Some(DEFAULT_SOCKET.into()));
        let usual = ["/run/user/7/pilot/pilot.sock", "/home/x/.pilot/pilot.sock", DEFAULT_SOCKET].map(PathBuf::from);
        assert_eq!(sockets(&env, None, Some(&config), &places), usual);
        assert_eq!(sockets(&env, None, None, &places), usual);
        for (text, wanted) in [
            (r#"{"socket":"/x.sock"}"#, vec![PathBuf::from("/x.sock")]),
            (r#"{"socket":""}"#, usual.to_vec()),
            (r#"{"socket":"/tmp/pilot.sock"}"#, usual.to_vec()),
            (r#"{"socket":7}"#, usual.to_vec()),
            ("broken", usual.to_vec()),
        ] {
            env.fs().write_atomic(&config, text.as_bytes(), 0o600).unwrap();
            assert_eq!(sockets(&env, None, Some(&config), &places), wanted, "{text}");
        }
        assert_eq!(sockets(&env, Some("/y.sock".into()), Some(&config), &places), [PathBuf::from("/y.sock")]);
    }
}
