//! What can go wrong with the gateway as a whole. What can go wrong with one connection is in `dial`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::ports::MAX_LISTENED;
use crate::table::TableError;

/// Why the gateway does not start, or does not do what it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// The table of mappings refuses.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Other machines could reach it, and nobody said that they may.
    #[error("{what} {addr} is not a loopback address: other machines could use it to reach your agents")]
    Remote {
        /// Which door.
        what: &'static str,
        /// Its address.
        addr: SocketAddr,
    },
    /// A proxy cannot listen.
    #[error("cannot listen on {addr} for {what}: {source}")]
    Listen {
        /// Which door.
        what: &'static str,
        /// Its address.
        addr: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// No port of a mapped address can be listened on.
    #[error("cannot listen on any port of {ip}: {why}")]
    NoPort {
        /// The address.
        ip: IpAddr,
        /// The reasons.
        why: String,
    },
    /// Too many ports are listened on.
    #[error(
        "with this one, more than {MAX_LISTENED} ports of mapped addresses would be listened on, which is the limit"
    )]
    Ports,
    /// The loopback interface does not take the address.
    #[error("cannot add {ip} to the loopback interface: {why}")]
    Alias {
        /// The address.
        ip: IpAddr,
        /// Why not.
        why: String,
    },
    /// A name that leads to no agent.
    #[error("{0}")]
    Target(String),
    /// The agent's name cannot be looked up now.
    #[error("{0}")]
    Unreachable(String),
    /// A gateway runs already.
    #[error("another gateway serves {0}")]
    Running(PathBuf),
    /// The control socket cannot be opened.
    #[error("cannot open the control socket {path}: {source}")]
    Control {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The gateway ends.
    #[error("the gateway is stopping")]
    Stopping,
}

impl GatewayError {
    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Table(error) => error.code(),
            Self::Remote { .. } => "invalid_argument",
            Self::Listen { .. } | Self::NoPort { .. } | Self::Ports | Self::Alias { .. } | Self::Control { .. } => {
                "internal"
            }
            Self::Target(_) => "not_found",
            Self::Unreachable(_) => "connection_failed",
            Self::Running(_) => "already_exists",
            Self::Stopping => "not_running",
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Table(TableError::Exhausted | TableError::Full) => {
                "take addresses back with: pilotctl gateway unmap <ip>; or start with a larger --subnet"
            }
            Self::Table(TableError::Outside(..)) => "leave the address out, or start with another --subnet",
            Self::Table(TableError::Taken(_)) => "pilotctl gateway list shows which addresses are taken",
            Self::Table(TableError::Unknown(_)) => "pilotctl gateway list shows what is mapped",
            Self::Table(TableError::Cidr(_)) => "write it as 127.4.0.0/16",
            Self::Remote { .. } => "use 127.0.0.1, or add --allow-remote if that is what you want",
            Self::Listen { source, .. } | Self::Control { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                "choose a port above 1023, which needs no root, or a directory of yours"
            }
            Self::Listen { .. } => "choose another port, or end the program that has it",
            Self::NoPort { .. } => "ports below 1024 need root: --ports 8080:80 leads from 8080 here to 80 there",
            Self::Ports => "map fewer ports (--ports), or take addresses back with: pilotctl gateway unmap <ip>",
            Self::Alias { .. } => "only root can add addresses: use --subnet 127.4.0.0/16, or --socks5 or --http-proxy",
            Self::Target(_) => "check the name: pilotctl find <hostname>",
            Self::Unreachable(_) => "check that the daemon runs and is registered: pilotctl info",
            Self::Running(_) => "stop it first with: pilotctl gateway stop",
            Self::Control { .. } => "check that the directory exists and belongs to this user",
            Self::Stopping => "start it again with: pilotctl gateway start",
        }
    }
}
