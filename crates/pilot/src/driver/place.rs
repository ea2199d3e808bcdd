//! Where the daemon's socket is, and whose daemon it is (`docs/spec/local-socket.md`, L41 to L43).

use std::path::{Path, PathBuf};

use pilot_env::{Env, UnixStream};
use pilot_wire::json;
use serde_json::Value;

/// The one place where every official daemon listens unless told otherwise (03 §1).
pub const DEFAULT_SOCKET: &str = "/tmp/pilot.sock";
/// The environment variable that names another socket.
pub const SOCKET_VARIABLE: &str = "PILOT_SOCKET";

/// Longest configuration that is read; longer ones count as none.
const MAX_CONFIG: u64 = 1 << 20;
/// Bits of a directory's mode that let others put a socket into it.
const OTHERS_WRITE: u32 = 0o022;

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
    let home = variable("HOME").map(|home| home.join(".pilot"));
    sockets(&Env::real(), variable(SOCKET_VARIABLE), variable("XDG_RUNTIME_DIR"), home)
}

fn sockets(env: &Env, named: Option<PathBuf>, runtime: Option<PathBuf>, home: Option<PathBuf>) -> Vec<PathBuf> {
    let configured = || configured(env, &home.as_ref()?.join("config.json"));
    if let Some(only) = named.or_else(configured) {
        return vec![only];
    }
    let runtime = runtime.map(|dir| dir.join("pilot").join("pilot.sock"));
    let home = home.map(|dir| dir.join("pilot.sock"));
    [runtime, home, Some(PathBuf::from(DEFAULT_SOCKET))].into_iter().flatten().collect()
}

/// The entry `socket` of a configuration. One that cannot be read names none; `pilotctl config` says what is wrong.
fn configured(env: &Env, config: &Path) -> Option<PathBuf> {
    let text = env.fs().read_limited(config, MAX_CONFIG).ok()?;
    let config = json::parse(&text).ok()?;
    let socket = config.get("socket").and_then(Value::as_str)?;
    Some(socket).filter(|socket| !socket.is_empty()).map(PathBuf::from)
}

/// Why the daemon behind a socket is not to be trusted: in a directory that others can write to, somebody else may have
/// put it there (03 §16.8).
pub(super) fn stranger(env: &Env, path: &Path, stream: &UnixStream) -> Option<String> {
    let (own, theirs) = (env.user_id(), stream.peer().uid);
    if theirs == own || theirs == 0 {
        return None;
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A directory that cannot be looked at protects nothing that we know of.
    let open = env.fs().metadata(dir).map_or(true, |dir| dir.mode & OTHERS_WRITE != 0);
    open.then(|| format!("it is served by user {theirs}, not by this one ({own}), in a directory open to others"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_goes_before_what_is_configured_before_what_is_usual() {
        let env = Env::real();
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join(".pilot");
        let (run, none) = (Some(PathBuf::from("/run/user/7")), None);
        let usual = ["/run/user/7/pilot/pilot.sock".into(), home.join("pilot.sock"), DEFAULT_SOCKET.into()];
        assert_eq!(sockets(&env, none.clone(), run.clone(), Some(home.clone())), usual);
        assert_eq!(sockets(&env, none.clone(), none.clone(), none.clone()), [PathBuf::from(DEFAULT_SOCKET)]);
        env.fs().create_dir_all(&home, 0o700).unwrap();
        for (config, wanted) in [
            (r#"{"socket":"/x.sock"}"#, vec![PathBuf::from("/x.sock")]),
            (r#"{"socket":""}"#, usual.to_vec()),
            (r#"{"socket":7}"#, usual.to_vec()),
            ("broken", usual.to_vec()),
        ] {
            env.fs().write_atomic(&home.join("config.json"), config.as_bytes(), 0o600).unwrap();
            assert_eq!(sockets(&env, none.clone(), run.clone(), Some(home.clone())), wanted, "{config}");
        }
        assert_eq!(sockets(&env, Some("/y.sock".into()), run, Some(home)), [PathBuf::from("/y.sock")]);
    }
}
