//! Questions that this program itself asks the registry, without a daemon (06 §6.3).

use std::time::Duration;

use pilot_env::tls::TlsConnector;
use pilot_env::{Env, NetStream};
use pilot_wire::frame::{self, FrameDecoder};
use pilot_wire::json;
use pilot_wire::registry::{ErrorAnswer, Request, parse_body};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::errors::{CliError, Code};
use crate::home::{Config, Home};

/// Longest wait for the connection, TLS included.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// Longest wait for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// A registry and how to speak with it.
pub(crate) struct Registry {
    address: String,
    tls: Option<TlsConnector>,
}

/// Why there is no good answer.
pub(crate) enum Failure {
    /// No connection came about, so nothing was asked.
    Unreachable(String),
    /// The connection ended, or the time did, before the answer: it may have been carried out.
    Lost(String),
    /// The registry refused.
    Refused(ErrorAnswer),
}

impl Registry {
    /// The registry of the configuration and the environment.
    ///
    /// # Errors
    /// When the configuration cannot be read, or its fingerprint is none.
    pub(crate) fn of(home: &Home, config: &Config) -> Result<Self, CliError> {
        let address = home.registry(config)?;
        let tls = match config.registry_fingerprint(home)? {
            None => None,
            Some(text) => {
                let pin = text.parse().map_err(|error| {
                    CliError::argument(format!("registry_fingerprint in {}: {error}", home.config_path().display()))
                        .hint("the rendezvous prints it when it starts with -tls")
                })?;
                Some(TlsConnector::pinned(pin).map_err(|error| CliError::internal(format!("prepare TLS: {error}")))?)
            }
        };
        Ok(Self { address, tls })
    }

    /// One request and its answer, as the registry gave it.
    ///
    /// # Errors
    /// [`Failure`]
    pub(crate) async fn ask(&self, request: &Request) -> Result<Value, Failure> {
        let connected = timeout(CONNECT_WAIT, self.connect()).await;
        let mut stream =
            connected.unwrap_or_else(|_| Err("no connection within 10s".into())).map_err(Failure::Unreachable)?;
        let exchanged = timeout(ANSWER_WAIT, exchange(&mut stream, request)).await;
        let answer = exchanged.unwrap_or_else(|_| Err("no answer within 20s".into())).map_err(Failure::Lost)?;
        let fields = parse_body(&answer).map_err(|error| Failure::Lost(error.to_string()))?;
        match ErrorAnswer::from_fields(&fields) {
            Some(error) => Err(Failure::Refused(error)),
            None => Ok(Value::Object(fields.0)),
        }
    }

    async fn connect(&self) -> Result<NetStream, String> {
        let env = Env::real();
        let text = |error: std::io::Error| error.to_string();
        let mut why = "the name has no address".to_owned();
        for addr in env.resolve(&self.address).await.map_err(text)? {
            match env.tcp_connect(addr).await {
                Ok(stream) => match &self.tls {
                    Some(tls) => return tls.connect(stream).await.map_err(text),
                    None => return Ok(stream),
                },
                Err(error) => why = format!("{addr}: {error}"),
            }
        }
        Err(why)
    }

    /// A failure in the official words, with the cause that they leave out.
    pub(crate) fn explain(&self, command: &str, failure: Failure) -> CliError {
        let address = &self.address;
        match failure {
            Failure::Unreachable(why) => CliError::connection(format!("cannot reach registry at {address}"))
                .hint(format!("check that the registry is running at {address}, or set PILOT_REGISTRY"))
                .cause(why),
            Failure::Lost(why) => CliError::new(Code::ConnectionFailed, format!("{command}: registry: {why}"))
                .hint(format!("check the registry at {address}; if it speaks TLS, set registry_fingerprint: pilotctl config --set registry_fingerprint=<hex>")),
            Failure::Refused(error) => {
                let refusal = CliError::connection(format!("{command}: registry: {}", error.text));
                match error.code {
                    Some(code) => refusal.cause(code),
                    None => refusal,
                }
            }
        }
    }
}

async fn exchange(stream: &mut NetStream, request: &Request) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    frame::emit(&json::to_vec(&request.to_value()), &mut out).map_err(|error| error.to_string())?;
    stream.write_all(&out).await.map_err(|error| error.to_string())?;
    stream.flush().await.map_err(|error| error.to_string())?;
    let mut decoder = FrameDecoder::default();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        if let Some(body) = decoder.next_frame().map_err(|error| error.to_string())? {
            return Ok(body.to_vec());
        }
        match stream.read(&mut chunk).await {
            Ok(0) => return Err("the connection ended before the answer".into()),
            Ok(n) => decoder.push(&chunk[..n]),
            Err(error) => return Err(error.to_string()),
        }
    }
}
