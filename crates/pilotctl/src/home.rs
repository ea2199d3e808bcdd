//! The directory `~/.pilot`: configuration, PID file, log, and the settings that follow from them (06 §3, §10).

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pilot_env::Env;
use pilot_env::places::SocketPlaces;
use pilot_wire::json;
use serde_json::{Map, Value};

use crate::errors::CliError;
use crate::printer::indented;

/// Registry of a fresh installation. Loopback: nothing here points at a public server unasked.
pub(crate) const DEFAULT_REGISTRY: &str = "127.0.0.1:9000";
/// Beacon of a fresh installation.
pub(crate) const DEFAULT_BEACON: &str = "127.0.0.1:9001";
/// Largest configuration file that is read, in bytes. Real ones have a few hundred.
const MAX_CONFIG: u64 = 1 << 20;

/// Where things are, and what the environment says.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    dir: PathBuf,
    socket_variable: Option<String>,
    registry_variable: Option<String>,
}

impl Home {
    /// The home directory and the variables `PILOT_SOCKET` and `PILOT_REGISTRY` of this process; empty is unset.
    ///
    /// # Errors
    /// `internal` without `HOME`.
    pub(crate) fn from_env() -> Result<Self, CliError> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = variable("HOME")
            .ok_or_else(|| CliError::internal("HOME is not set").hint("set HOME to the directory that holds .pilot"))?;
        Ok(Self {
            dir: Path::new(&home).join(".pilot"),
            socket_variable: variable("PILOT_SOCKET"),
            registry_variable: variable("PILOT_REGISTRY"),
        })
    }

    /// A home for tests.
    #[cfg(test)]
    pub(crate) fn at(dir: &Path, socket: Option<&str>, registry: Option<&str>) -> Self {
        let text = |value: Option<&str>| value.map(str::to_owned);
        Self { dir: dir.to_owned(), socket_variable: text(socket), registry_variable: text(registry) }
    }

    /// The configuration file.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    /// The PID file of the daemon.
    pub(crate) fn pid_path(&self) -> PathBuf {
        self.dir.join("pilot.pid")
    }

    /// The log of the background daemon.
    pub(crate) fn log_path(&self) -> PathBuf {
        self.dir.join("pilot.log")
    }

    /// The control socket of the gateway.
    pub(crate) fn gateway_socket(&self) -> PathBuf {
        self.dir.join("gateway.sock")
    }

    /// The PID file of the gateway, for tools that look for it.
    pub(crate) fn gateway_pid_path(&self) -> PathBuf {
        self.dir.join("gateway.pid")
    }

    /// The log of a gateway in the background.
    pub(crate) fn gateway_log_path(&self) -> PathBuf {
        self.dir.join("gateway.log")
    }

    /// The identity `daemon start` uses unless told otherwise.
    pub(crate) fn identity_path(&self) -> PathBuf {
        self.dir.join("identity.key")
    }

    /// The identity file: the configuration's, else [`Home::identity_path`].
    ///
    /// # Errors
    /// For a value that is no text.
    pub(crate) fn identity(&self, config: &Config) -> Result<PathBuf, CliError> {
        Ok(config.text(self, "identity")?.map_or_else(|| self.identity_path(), PathBuf::from))
    }

    /// Makes the directory, for this user only.
    ///
    /// # Errors
    /// `internal`, `create <dir>: …`.
    pub(crate) fn create(&self) -> Result<(), CliError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|error| CliError::internal(format!("create {}: {error}", self.dir.display())))
    }

    /// The configuration; empty when there is no file.
    ///
    /// # Errors
    /// `internal` when the file cannot be read or is no JSON object. It is never taken for an empty one: the next
    /// write would destroy it (06 §24.21).
    pub(crate) fn load(&self) -> Result<Config, CliError> {
        let path = self.config_path();
        let text = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Config(Map::new())),
            Ok(metadata) if metadata.len() > MAX_CONFIG => Err("it is larger than 1 MiB".to_owned()),
            Ok(_) | Err(_) => fs::read(&path).map_err(|error| error.to_string()),
        };
        let parsed = text.and_then(|text| match json::parse(&text) {
            Ok(Value::Object(map)) => Ok(Config(map)),
            Ok(_) => Err("it is not a JSON object".into()),
            Err(why) => Err(why.to_string()),
        });
        parsed.map_err(|why| {
            CliError::internal(format!("config file {}: {why}", path.display()))
                .hint("repair the file, or move it away and run: pilotctl init")
        })
    }

    /// Writes the configuration: into a new file that then takes the old one's place, readable by this user only,
    /// because a webhook URL may hold a secret (06 §24.8, §24.21).
    ///
    /// # Errors
    /// `internal`, `save config: …`.
    pub(crate) fn save(&self, config: &Config) -> Result<(), CliError> {
        self.create()?;
        let path = self.config_path();
        let text = format!("{}\n", indented(&Value::Object(config.0.clone())));
        replace(&path, text.as_bytes()).map_err(|error| CliError::internal(format!("save config: {error}")))
    }

    /// The socket that is named: `PILOT_SOCKET`, the configuration. `/tmp/pilot.sock` in the configuration names nothing:
    /// `init` of every release has always written it there.
    ///
    /// # Errors
    /// As [`Home::load`], and for a value that is no text.
    pub(crate) fn named_socket(&self) -> Result<Option<String>, CliError> {
        match &self.socket_variable {
            Some(socket) => Ok(Some(socket.clone())),
            None => Ok(self.load()?.text(self, "socket")?.filter(|socket| socket != pilot::DEFAULT_SOCKET)),
        }
    }

    /// Where a daemon listens that is not told where (docs/spec/local-socket.md, L41).
    pub(crate) fn own_socket(&self) -> String {
        let private = SocketPlaces::of_process().private(&Env::real());
        private.map_or_else(|| pilot::DEFAULT_SOCKET.into(), |path| path.display().to_string())
    }

    /// The daemon's socket: the one that is named, else the first of the usual places that a daemon serves, else where one
    /// would listen.
    ///
    /// # Errors
    /// As [`Home::named_socket`].
    pub(crate) fn socket(&self) -> Result<String, CliError> {
        Ok(self.reachable_socket()?.unwrap_or_else(|| self.own_socket()))
    }

    /// The socket as `config` shows it: without any that is named or served, the one that every program knows.
    ///
    /// # Errors
    /// As [`Home::named_socket`].
    pub(crate) fn shown_socket(&self) -> Result<String, CliError> {
        Ok(self.reachable_socket()?.unwrap_or_else(|| pilot::DEFAULT_SOCKET.into()))
    }

    fn reachable_socket(&self) -> Result<Option<String>, CliError> {
        if let Some(named) = self.named_socket()? {
            return Ok(Some(named));
        }
        Ok(SocketPlaces::of_process().find(&Env::real()).map(|path| path.display().to_string()))
    }

    /// The registry as `config` shows it: `PILOT_REGISTRY`, the configuration, the default.
    ///
    /// # Errors
    /// As [`Home::socket`].
    pub(crate) fn registry(&self, config: &Config) -> Result<String, CliError> {
        match &self.registry_variable {
            Some(registry) => Ok(registry.clone()),
            None => Ok(config.text(self, "registry")?.unwrap_or_else(|| DEFAULT_REGISTRY.into())),
        }
    }

    /// `PILOT_REGISTRY`.
    pub(crate) fn registry_variable(&self) -> Option<&str> {
        self.registry_variable.as_deref()
    }
}

/// The contents of `config.json`: known keys and others, which are kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Config(pub(crate) Map<String, Value>);

impl Config {
    /// A text of the configuration; the empty text counts as absent.
    ///
    /// # Errors
    /// `invalid_argument` when the value is something else.
    pub(crate) fn text(&self, home: &Home, key: &str) -> Result<Option<String>, CliError> {
        Ok(self.text_or_empty(home, key)?.filter(|text| !text.is_empty()))
    }

    /// The fingerprint of the registry's certificate, which says that the registry speaks TLS: `registry_fingerprint`, or
    /// the flag of the daemon as a key.
    ///
    /// # Errors
    /// `invalid_argument` when the value is no text.
    pub(crate) fn registry_fingerprint(&self, home: &Home) -> Result<Option<String>, CliError> {
        match self.text(home, "registry_fingerprint")? {
            Some(text) => Ok(Some(text)),
            None => self.text(home, "registry-fingerprint"),
        }
    }

    /// A text of the configuration, also when it is empty.
    ///
    /// # Errors
    /// `invalid_argument` when the value is something else.
    pub(crate) fn text_or_empty(&self, home: &Home, key: &str) -> Result<Option<String>, CliError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(CliError::argument(format!(
                "config key \"{key}\" in {} must be a text, not {}",
                home.config_path().display(),
                json::to_string(other)
            ))
            .hint(format!("set it with: pilotctl config --set {key}=<value>"))),
        }
    }
}

/// Writes a file as a whole: synced under another name, then renamed.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("json.{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_and_the_registry_come_from_the_variable_then_the_file_then_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let effective = |socket, registry| {
            let home = Home::at(dir.path(), socket, registry);
            // Where a daemon is that nobody names depends on the machine.
            (home.named_socket().unwrap().unwrap_or_default(), home.registry(&home.load().unwrap()).unwrap())
        };
        let pair = |socket: &str, registry: &str| (socket.to_owned(), registry.to_owned());
        assert_eq!(effective(None, None), pair("", DEFAULT_REGISTRY));
        std::fs::write(&path, r#"{"socket":"/file","registry":"file:1"}"#).unwrap();
        assert_eq!(effective(None, None), pair("/file", "file:1"));
        assert_eq!(effective(Some("/variable"), Some("variable:1")), pair("/variable", "variable:1"));
        // An empty text says nothing, nor does the place that every `init` has written there.
        for nothing in [r#"{"socket":"","registry":""}"#, r#"{"socket":"/tmp/pilot.sock","registry":""}"#] {
            std::fs::write(&path, nothing).unwrap();
            assert_eq!(effective(None, None), pair("", DEFAULT_REGISTRY));
        }
    }
}
