//! One file per command. Each declares itself once; the table in `table.rs` lists them.

pub(crate) mod approve;
pub(crate) mod bench;
pub(crate) mod config;
pub(crate) mod connect;
pub(crate) mod connections;
pub(crate) mod context;
pub(crate) mod daemon_start;
pub(crate) mod daemon_status;
pub(crate) mod daemon_stop;

pub(crate) mod demo;
pub(crate) mod find;
pub(crate) mod handshake;
pub(crate) mod info;
pub(crate) mod init;
pub(crate) mod peers;
pub(crate) mod pending;
pub(crate) mod ping;
pub(crate) mod recv;
pub(crate) mod reject;
pub(crate) mod rendezvous;
pub(crate) mod send;
pub(crate) mod set_hostname;
pub(crate) mod trust;
pub(crate) mod untrust;
pub(crate) mod version;

/// A text from elsewhere, made fit for one line of a terminal: control characters become `?`.
pub(crate) fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
