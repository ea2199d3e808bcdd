//! SIGHUP: the settings are read again. What can change in a running node changes; what cannot is named.

use std::ffi::OsString;

use pilot_env::args::Flags;

use super::flags;
use super::log::Log;
use crate::node::Node;

/// The settings the daemon runs with.
pub(super) struct Reload {
    args: Vec<OsString>,
    current: Flags,
}

impl Reload {
    pub(super) fn new(args: Vec<OsString>, current: Flags) -> Self {
        Self { args, current }
    }

    /// Reads the settings again and carries out what is new.
    pub(super) async fn run(&mut self, node: &Node, log: &Log) {
        log.reopen();
        let new = match flags::PROGRAM.parse(self.args.iter().cloned()) {
            Ok(new) => new,
            Err(error) => return tracing::error!(%error, "reload: nothing was changed"),
        };
        if let Err(error) = flags::settings(&new) {
            return tracing::error!(%error, "reload: nothing was changed");
        }
        let mut changed = Vec::new();
        let mut waiting = Vec::new();
        for name in new.differing(&self.current) {
            match self.change(name, &new, node, log).await {
                Change::Done => {
                    self.current.adopt(name, &new);
                    changed.push(name);
                }
                Change::NeedsRestart => waiting.push(name),
                Change::Failed(error) => tracing::error!(setting = name, %error, "reload: not changed; try again"),
            }
        }
        tracing::info!(changed = changed.join(","), "reloaded");
        if !waiting.is_empty() {
            tracing::warn!(settings = waiting.join(","), "reload: these change only when the daemon is restarted");
        }
    }

    async fn change(&self, name: &'static str, new: &Flags, node: &Node, log: &Log) -> Change {
        match name {
            "log-level" => match log.set_level(new.text(name)) {
                Ok(true) => Change::Done,
                Ok(false) => Change::Failed("the environment variable PILOT_LOG decides what is logged".to_owned()),
                Err(error) => Change::Failed(error.to_string()),
            },
            "hostname" => Change::of(node.configure_hostname(new.text(name)).await),
            "public" => Change::of(node.configure_visibility(new.bool(name)).await),
            "public-ports" => match flags::numbers(new, name) {
                Ok(ports) => {
                    node.set_public_ports(&ports);
                    Change::Done
                }
                Err(error) => Change::Failed(error.to_string()),
            },
            _ => Change::NeedsRestart,
        }
    }
}

enum Change {
    Done,
    NeedsRestart,
    Failed(String),
}

impl Change {
    fn of<T, E: std::fmt::Display>(result: Result<T, E>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}
