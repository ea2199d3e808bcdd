//! One file per command. Each declares itself once; the table in `table.rs` lists them.

pub(crate) mod approve;
pub(crate) mod bench;
pub(crate) mod broadcast;
pub(crate) mod clear_hostname;
pub(crate) mod clear_tags;
pub(crate) mod clear_webhook;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod connect;
pub(crate) mod connections;
pub(crate) mod context;
pub(crate) mod daemon_start;
pub(crate) mod daemon_status;
pub(crate) mod daemon_stop;
pub(crate) mod demo;
pub(crate) mod deregister;
pub(crate) mod dgram;
pub(crate) mod disconnect;
pub(crate) mod find;
pub(crate) mod gateway;
pub(crate) mod handshake;
pub(crate) mod health;
pub(crate) mod inbox;
pub(crate) mod info;
pub(crate) mod init;
pub(crate) mod listen;
pub(crate) mod lookup;
mod mail;
pub(crate) mod man;
pub(crate) mod nameserver;
pub(crate) mod network;
pub(crate) mod outbox;
pub(crate) mod peers;
pub(crate) mod pending;
pub(crate) mod ping;
// The walk-through of CONTRIBUTING.md, which is built where it would stand.
#[cfg(test)]
#[path = "../../../../examples/ping/pilotctl/ping1004.rs"]
pub(crate) mod ping1004;
pub(crate) mod prefer_direct;
pub(crate) mod publish;
pub(crate) mod received;
pub(crate) mod recv;
pub(crate) mod register;
pub(crate) mod reject;
pub(crate) mod rendezvous;
pub(crate) mod request_signing;
pub(crate) mod rotate_key;
pub(crate) mod send;
pub(crate) mod send_file;
pub(crate) mod send_message;
pub(crate) mod set_hostname;
pub(crate) mod set_private;
pub(crate) mod set_public;
pub(crate) mod set_tags;
pub(crate) mod set_webhook;
pub(crate) mod subscribe;
pub(crate) mod task;
pub(crate) mod task_exec;
pub(crate) mod traceroute;
pub(crate) mod trust;
pub(crate) mod untrust;
pub(crate) mod version;

use crate::errors::CliError;

/// A text from elsewhere, made fit for one line of a terminal: control characters become `?`.
pub(crate) fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Adds a hint to the refusal of a daemon that does not know the request.
fn too_old(error: CliError, hint: &str) -> CliError {
    if error.message.contains("unknown command: 0x") { error.hint(hint) } else { error }
}

/// A mark that nobody can guess.
pub(crate) fn nonce() -> [u8; 16] {
    let mut nonce = [0; 16];
    pilot_env::Env::real().fill_random(&mut nonce);
    nonce
}
