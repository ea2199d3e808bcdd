//! The second door: SOCKS5 (RFC 1928) without authentication, the command CONNECT.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pilot_wire::gateway::socks::{self, Host, Reply, Request, SocksError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::dial::Refusal;
use crate::gateway::{Guest, Shared};
use crate::relay::{Client, relay};

/// A client must have said what it wants within this time.
pub(crate) const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// Serves one connection.
pub(crate) async fn serve(shared: Arc<Shared>, guest: Guest) {
    let Guest { mut client, permission, slot: _slot } = guest;
    let mut early = Vec::new();
    let asked = match timeout(HEAD_LIMIT, asked(&mut client, &mut early)).await {
        Ok(Ok(Some(request))) => request,
        // Gone, silent, or told already.
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a SOCKS client was not understood");
            return;
        }
    };
    let stream = match (permission, asked.command) {
        (Err(refusal), _) => Err(refusal),
        (Ok(()), socks::CONNECT) => open(&shared, &asked).await,
        (Ok(()), other) => {
            tracing::info!(command = other, "a SOCKS client asked for something else than CONNECT");
            return answer(&mut client, Reply::CommandNotSupported).await;
        }
    };
    match stream {
        Ok(stream) => {
            let Ok(()) = client.write_all(&Reply::Succeeded.emit(nowhere())).await else { return };
            if let Err(error) = relay(client, &early, stream).await {
                tracing::debug!(%error, "a SOCKS connection ended early");
            }
        }
        Err(refusal) => {
            shared.refused(&refusal);
            answer(&mut client, refusal.socks()).await;
        }
    }
}

async fn open(shared: &Shared, asked: &Request) -> Result<pilot::Stream, Refusal> {
    let to = match &asked.host {
        Host::Name(name) => shared.destination(name)?,
        Host::Ip(ip) => shared.destination_of(*ip)?,
    };
    shared.dialer.dial(&to, asked.port).await
}

/// The gateway's end has no address that could mean anything to a client.
fn nowhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
}

/// The last word to a client. Whether it still listens does not matter.
async fn answer(client: &mut Client, reply: Reply) {
    let told = async {
        client.write_all(&reply.emit(nowhere())).await?;
        client.shutdown().await
    };
    let _ = timeout(HEAD_LIMIT, told).await;
}

/// Greets and reads the request; `None` when the client left or cannot be served. `early` keeps what it sent too soon.
async fn asked(client: &mut Client, early: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let invalid = |error: SocksError| io::Error::new(io::ErrorKind::InvalidData, error);
    let suits = loop {
        match socks::parse_greeting(early) {
            Ok(Some((methods, used))) => {
                let suits = methods.contains(&socks::NO_AUTHENTICATION);
                early.drain(..used);
                break suits;
            }
            Ok(None) => {}
            Err(error) => {
                if early.first().is_some_and(u8::is_ascii_uppercase) {
                    // An HTTP client at the wrong door; it shows what it is told.
                    let text = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
                                this is a SOCKS5 proxy: use socks5h://, or the gateway's HTTP proxy\n";
                    client.write_all(text.as_bytes()).await?;
                    client.shutdown().await?;
                }
                return Err(invalid(error));
            }
        }
        if !more(client, early).await? {
            return Ok(None);
        }
    };
    if !suits {
        client.write_all(&socks::method(socks::NO_METHOD)).await?;
        client.shutdown().await?;
        return Ok(None);
    }
    client.write_all(&socks::method(socks::NO_AUTHENTICATION)).await?;
    loop {
        match Request::parse(early) {
            Ok(Some((request, used))) => {
                early.drain(..used);
                return Ok(Some(request));
            }
            Ok(None) => {}
            Err(error) => {
                let reply = match error {
                    SocksError::AddressType(_) => Reply::AddressTypeNotSupported,
                    _ => Reply::GeneralFailure,
                };
                client.write_all(&reply.emit(nowhere())).await?;
                client.shutdown().await?;
                return Err(invalid(error));
            }
        }
        if !more(client, early).await? {
            return Ok(None);
        }
    }
}

/// Reads on; false at the end. A message that is not whole is shorter than [`socks::MAX_MESSAGE`], so `early` is bounded.
async fn more(client: &mut Client, early: &mut Vec<u8>) -> io::Result<bool> {
    let mut piece = [0; socks::MAX_MESSAGE];
    let n = client.read(&mut piece).await?;
    early.extend_from_slice(piece.get(..n).unwrap_or_default());
    Ok(n > 0)
}
