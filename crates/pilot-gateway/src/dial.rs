//! From a name to a stream. Every failure has a reason that SOCKS, HTTP and people are told in their own words.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use parking_lot::Mutex;
use pilot::{Error, Pilot, Stream};
use pilot_env::Env;
use pilot_wire::gateway::name::{Destination, NameError};
use pilot_wire::gateway::socks::Reply;
use pilot_wire::{Address, SocketAddress};

/// How long a name keeps the address that was found for it.
const NAME_LIFE: Duration = Duration::from_secs(30);
/// Longest wait for the node at the end.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);
/// Names remembered. When there are more, all are forgotten.
const MAX_NAMES: usize = 1024;

/// Why there is no stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Not on the Pilot network.
    Foreign,
    /// Not for this user.
    Forbidden,
    /// Not a name.
    Malformed,
    /// Nobody goes by that name.
    NotFound,
    /// The agent does not let us in.
    Untrusted,
    /// Nothing listens there.
    Refused,
    /// No answer in time.
    TimedOut,
    /// No way to it.
    Unreachable,
    /// The daemon is away, or cannot.
    Daemon,
    /// Too much at once.
    Busy,
}

/// A refusal with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) cause: Cause,
    pub(crate) message: String,
    /// What to do about it, or empty.
    pub(crate) hint: String,
}

impl Refusal {
    pub(crate) fn new(cause: Cause, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { cause, message: message.into(), hint: hint.into() }
    }

    /// What a SOCKS client is told.
    pub(crate) fn socks(&self) -> Reply {
        match self.cause {
            Cause::Foreign | Cause::Forbidden | Cause::Untrusted => Reply::NotAllowed,
            Cause::Malformed | Cause::NotFound => Reply::HostUnreachable,
            Cause::Refused => Reply::ConnectionRefused,
            Cause::TimedOut => Reply::TtlExpired,
            Cause::Unreachable => Reply::NetworkUnreachable,
            Cause::Daemon | Cause::Busy => Reply::GeneralFailure,
        }
    }

    /// The status an HTTP client is told.
    pub(crate) fn status(&self) -> StatusCode {
        match self.cause {
            Cause::Foreign | Cause::Forbidden => StatusCode::FORBIDDEN,
            Cause::Malformed => StatusCode::BAD_REQUEST,
            Cause::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Cause::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Cause::NotFound | Cause::Untrusted | Cause::Refused | Cause::Unreachable | Cause::Daemon => {
                StatusCode::BAD_GATEWAY
            }
        }
    }

    /// The error type of the header `Proxy-Status` (RFC 9209 §2.3).
    pub(crate) fn proxy_error(&self) -> &'static str {
        match self.cause {
            Cause::Foreign => "destination_ip_prohibited",
            Cause::Forbidden => "http_request_denied",
            Cause::Malformed => "http_request_error",
            Cause::NotFound => "dns_error",
            Cause::Untrusted => "connection_terminated",
            Cause::Refused => "connection_refused",
            Cause::TimedOut => "connection_timeout",
            Cause::Unreachable => "destination_unavailable",
            Cause::Daemon => "proxy_internal_error",
            Cause::Busy => "connection_limit_reached",
        }
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        match error {
            NameError::Malformed(_) => Self::new(Cause::Malformed, error.to_string(), error.hint()),
            _ => Self::new(
                Cause::Foreign,
                format!("{error}, and this gateway leads nowhere else"),
                format!("{}; send everything else past this proxy", error.hint()),
            ),
        }
    }
}

/// The cause behind the code of an error of the node.
fn cause(error: &Error) -> Cause {
    if error.is_disconnected() {
        return Cause::Daemon;
    }
    match error.code() {
        "connection_refused" => Cause::Refused,
        "untrusted" | "resolve_denied" | "key_mismatch" => Cause::Untrusted,
        "node_not_found" => Cause::NotFound,
        "timeout" | "dial_timeout" | "no_answer" => Cause::TimedOut,
        "too_many_connections" | "too_many_peers" | "no_port" => Cause::Busy,
        _ => Cause::Unreachable,
    }
}

fn refusal(cause: Cause, what: &str, error: &Error) -> Refusal {
    Refusal::new(cause, format!("{what}: {error}"), error.hint().unwrap_or_default())
}

/// Finds agents and opens streams to them.
pub(crate) struct Dialer {
    env: Env,
    network: Arc<dyn Pilot>,
    limit: Duration,
    names: Mutex<BTreeMap<String, (Address, Instant)>>,
}

impl Dialer {
    pub(crate) fn new(env: Env, network: Arc<dyn Pilot>, limit: Duration) -> Self {
        Self { env, network, limit, names: Mutex::default() }
    }

    /// Waits, but not for long, until the node has heard everything that was said of streams. When the program ends first, the
    /// node takes the ends of its streams for orderly ones.
    pub(crate) async fn settle(&self) {
        // It answers in turn; what it says does not matter, nor does a node that is away.
        let _ = tokio::time::timeout(SETTLE_LIMIT, self.network.info()).await;
    }

    /// The address of a destination.
    pub(crate) async fn resolve(&self, to: &Destination) -> Result<Address, Refusal> {
        let name = match to {
            Destination::Address(address) => return Ok(*address),
            Destination::Hostname(name) => name,
        };
        let now = self.env.now();
        if let Some((address, until)) = self.names.lock().get(name)
            && *until > now
        {
            return Ok(*address);
        }
        let found = tokio::time::timeout(self.limit, self.network.resolve(name)).await;
        let address = match found {
            Ok(Ok(address)) => address,
            Ok(Err(error)) => {
                let cause = match cause(&error) {
                    cause @ (Cause::Daemon | Cause::TimedOut) => cause,
                    _ if is_away(&error) => Cause::Unreachable,
                    _ => Cause::NotFound,
                };
                let mut refusal = refusal(cause, &format!("cannot resolve {to}"), &error);
                if cause == Cause::NotFound && refusal.hint.is_empty() {
                    refusal.hint = format!("check the name, and that there is trust: pilotctl find {name}");
                }
                return Err(refusal);
            }
            Err(_) => return Err(self.late(&format!("cannot resolve {to}"))),
        };
        let mut names = self.names.lock();
        if names.len() >= MAX_NAMES {
            names.clear();
        }
        names.insert(name.clone(), (address, now + NAME_LIFE));
        Ok(address)
    }

    /// Opens a stream.
    pub(crate) async fn dial(&self, to: &Destination, port: u16) -> Result<Stream, Refusal> {
        let address = self.resolve(to).await?;
        let what = match to {
            Destination::Address(_) => format!("{address}, port {port}"),
            Destination::Hostname(_) => format!("{to} ({address}), port {port}"),
        };
        let dialled = tokio::time::timeout(self.limit, self.network.dial(SocketAddress::new(address, port))).await;
        let failed = match dialled {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => refusal(cause(&error), &what, &error),
            Err(_) => self.late(&what),
        };
        // The name may have moved to another node.
        if let Destination::Hostname(name) = to {
            self.names.lock().remove(name);
        }
        Err(failed)
    }

    fn late(&self, what: &str) -> Refusal {
        let limit = self.limit.as_secs();
        Refusal::new(Cause::TimedOut, format!("{what}: no answer within {limit} s"), "check it with: pilotctl ping")
    }
}

/// Whether the registry could not be asked, as far as codes and the words of official daemons tell.
fn is_away(error: &Error) -> bool {
    matches!(error.code(), "registry_unavailable" | "registry_lost" | "not_registered")
        || error.daemon_text().is_some_and(|text| text.contains("unavailable") || text.contains("not connected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_an_answer_in_each_protocol() {
        let told = |code: &str| {
            let error = Error::Refused { op: "dial", code: code.into(), message: "m".into(), hint: Some("h".into()) };
            let refusal = refusal(cause(&error), "bob.pilot", &error);
            assert_eq!((refusal.message.as_str(), refusal.hint.as_str()), ("bob.pilot: dial: m", "h"));
            (refusal.socks(), refusal.status().as_u16(), refusal.proxy_error())
        };
        assert_eq!(told("connection_refused"), (Reply::ConnectionRefused, 502, "connection_refused"));
        assert_eq!(told("no_answer"), (Reply::TtlExpired, 504, "connection_timeout"));
        assert_eq!(told("untrusted"), (Reply::NotAllowed, 502, "connection_terminated"));
        assert_eq!(told("node_not_found"), (Reply::HostUnreachable, 502, "dns_error"));
        assert_eq!(told("too_many_connections"), (Reply::GeneralFailure, 503, "connection_limit_reached"));
        assert_eq!(told("registry_unavailable"), (Reply::NetworkUnreachable, 502, "destination_unavailable"));
        let gone = Error::Disconnected { op: "dial" };
        assert_eq!(refusal(cause(&gone), "x", &gone).socks(), Reply::GeneralFailure);
        let foreign = Refusal::from("example.org".parse::<Destination>().unwrap_err());
        assert_eq!((foreign.socks(), foreign.status().as_u16()), (Reply::NotAllowed, 403));
        assert!(foreign.message.contains("\"example.org\" is not on the Pilot network"), "{}", foreign.message);
        let malformed = Refusal::from("a_b.pilot".parse::<Destination>().unwrap_err());
        assert_eq!((malformed.socks(), malformed.status().as_u16()), (Reply::HostUnreachable, 400));
    }
}
