//! Why a node does not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use pilot_proto::endpoint::BindError;
use pilot_proto::identity::IdentityError;
use pilot_proto::stream::StreamConfigError;
use pilot_services::CallError;

/// Each names the thing and, in [`NodeError::hint`], the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Another node uses the same identity directory.
    #[error("{} is in use by another node{}", .dir.display(), .pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    DirectoryLocked {
        /// The directory.
        dir: PathBuf,
        /// Its process, when known.
        pid: Option<u32>,
    },
    /// The identity file does not hold an identity. It was left as it is.
    #[error("identity {}: {source}", .path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: IdentityError,
    },
    /// The trust file does not hold trust records. It was left as it is.
    #[error("trust file {}: {text}", .path.display())]
    Trust {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        text: String,
    },
    /// A file or directory cannot be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The tunnel socket cannot be bound.
    #[error("cannot listen on udp {addr}: {source}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The local socket cannot be served.
    #[error("local socket {}: {source}", .path.display())]
    LocalSocket {
        /// Where.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The address for health and metrics cannot be listened on.
    #[error("cannot serve HTTP on {addr}: {source}")]
    Http {
        /// Where.
        addr: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The PID file cannot be written.
    #[error("PID file {}: {source}", .path.display())]
    PidFile {
        /// Where.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A port is wanted by two services.
    #[error("service {service}: {source}")]
    Service {
        /// Which.
        service: &'static str,
        /// Why.
        source: BindError,
    },
    /// A service cannot be opened: what it keeps on disk is unusable, say.
    #[error("service {service}: {source}")]
    Offer {
        /// Which.
        service: &'static str,
        /// Why.
        source: CallError,
    },
    /// A setting of streams that cannot work.
    #[error(transparent)]
    Stream(#[from] StreamConfigError),
    /// Any other setting that cannot work.
    #[error("{0}")]
    Config(String),
}

impl NodeError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::DirectoryLocked { .. } => "directory_locked",
            Self::Identity { source, .. } => source.code(),
            Self::Trust { .. } => "trust_file_invalid",
            Self::File { .. } => "file",
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => "address_in_use",
            Self::Listen { .. } => "listen",
            Self::LocalSocket { source, .. } if source.kind() == io::ErrorKind::AddrInUse => "socket_in_use",
            Self::LocalSocket { .. } => "socket",
            Self::Http { .. } => "http_listen",
            Self::PidFile { .. } => "pid_file",
            Self::Service { source, .. } => source.code(),
            Self::Offer { .. } => "service_unusable",
            Self::Stream(source) => source.code(),
            Self::Config(_) => "bad_setting",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::DirectoryLocked { .. } => {
                "stop that node first, or give this one an -identity in another directory".to_owned()
            }
            Self::Identity { source, .. } => source.hint().to_owned(),
            Self::Trust { path, .. } => {
                format!("restore {} from a backup, or move it away to start without trusted nodes", path.display())
            }
            Self::File { .. } => "check that the path exists and belongs to this user".to_owned(),
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                "another program has this UDP port: choose another with -listen, or :0 for any".to_owned()
            }
            Self::Listen { .. } => "choose an address of this host with -listen, or :0 for any".to_owned(),
            Self::LocalSocket { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                "stop the other daemon with `pilotctl daemon stop`, or choose another path with -socket".to_owned()
            }
            Self::LocalSocket { .. } => "choose a path in a directory of this user with -socket".to_owned(),
            Self::Offer { source, .. } => source.hint.clone(),
            Self::Http { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                "another program has this port: choose another with -http, or :0 for any".to_owned()
            }
            Self::Http { .. } => "choose an address of this host with -http".to_owned(),
            Self::PidFile { .. } => "choose a path in a directory of this user with -pid-file".to_owned(),
            Self::Service { .. } => "serve one of the two on another port".to_owned(),
            Self::Stream(_) | Self::Config(_) => "correct the setting".to_owned(),
        }
    }
}
