//! Sending files: in chunks, resumed and verified, to every peer that answers; in one frame to the others (07 §11.2).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use pilot_wire::json;
use pilot_wire::service::dataexchange::file::{self, FileHead, Piece, TransferId, What};
use pilot_wire::service::dataexchange::ours::Transfer;
use pilot_wire::service::dataexchange::reply::Reply;
use pilot_wire::service::dataexchange::{FILE, FILESTREAM, Header, LEGACY_MAX_BODY, TRANSFER, frame};
use tokio::io::{AsyncRead, AsyncWrite};

use super::client::{Client, Peer, SendError, refused};
use super::source::{self, Source};
use crate::Stream;

/// Longest wait for the answer to the first piece (07 §11.2).
const INIT_WAIT: Duration = Duration::from_secs(5);
/// The same toward a peer that is known to know chunked transfers: it may be counting its files.
const KNOWN_WAIT: Duration = Duration::from_secs(60);
/// Longest wait for each acknowledgement.
const ACK_WAIT: Duration = Duration::from_secs(60);
/// Slowest pace at which a receiver hashes and syncs, bytes per second: how long the end may take.
const FINISH_PACE: u64 = 20_000_000;
/// Chunks under way toward official receivers.
const WINDOW: u64 = 16;
/// Bytes of a chunk between our own.
const OUR_CHUNK: u32 = 256 * 1024;
/// Bytes hashed at once.
const PIECE: usize = 1 << 20;

/// A file to be sent.
#[derive(Clone)]
pub struct FileToSend {
    /// Its name, without directories.
    pub name: String,
    /// What is in it.
    pub source: Arc<dyn Source>,
    /// Its hash; see [`hash`].
    pub sha256: [u8; 32],
    /// Ids, and whether it is a directory. Only our own peers hear of it.
    pub transfer: Transfer,
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that the peer has.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A file that the peer has stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDelivery {
    /// In chunks, verified by the peer; otherwise in one frame.
    pub chunked: bool,
    /// Bytes that the peer had from an earlier attempt.
    pub resumed: u64,
    /// The peer had stored it before.
    pub duplicate: bool,
    /// The peer's acknowledgement of a file in one frame.
    pub ack: Option<String>,
    /// The id went along: sent again, it is not stored twice.
    pub tagged: bool,
}

/// The SHA-256 of a source.
///
/// # Errors
/// The file system's.
pub async fn hash(source: &Arc<dyn Source>) -> io::Result<[u8; 32]> {
    let source = source.clone();
    let hashing = move || {
        let (mut digest, mut at, mut buf) = (Context::new(&SHA256), 0, vec![0; PIECE]);
        while at < source.len() {
            let n = source.read_at(at, &mut buf)?;
            if n == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
            }
            digest.update(buf.get(..n).unwrap_or_default());
            at += n as u64;
        }
        digest.finish().as_ref().try_into().map_err(io::Error::other)
    };
    super::server::blocking(hashing).await?
}

/// Sends a file over streams that `dial` opens, with what is known of the peer; returns what is known then, too.
///
/// # Errors
/// [`SendError`].
pub async fn send_file<S, D, F>(
    mut dial: D,
    mut peer: Option<Peer>,
    file: &FileToSend,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> (Option<Peer>, Result<FileDelivery, SendError>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: FnMut() -> F,
    F: Future<Output = Result<S, SendError>>,
{
    let mut retried = false;
    loop {
        let mut client = match dial().await {
            Ok(stream) => Client::new(stream, peer),
            Err(error) => return (peer, Err(error)),
        };
        // A peer that hangs up on a greeting is spoken to like those of old.
        if client.peer().await.is_err() {
            peer = Some(Peer::Plain);
            match dial().await {
                Ok(stream) => client = Client::new(stream, peer),
                Err(error) => return (peer, Err(error)),
            }
        }
        peer = client.known();
        let chunked = client.send_chunked(file, progress).await;
        let fallback = match chunked {
            Ok(Some(delivery)) => return (peer, Ok(delivery)),
            Ok(None) => true,
            // What an earlier attempt had left there was bad, and is gone now.
            Err(SendError::Refused { reason, .. }) if reason.contains("sha256 mismatch") && !retried => {
                retried = true;
                false
            }
            Err(error) => return (peer, Err(error)),
        };
        drop(client);
        if fallback {
            if file.transfer.tree {
                let text = "this peer takes no directories: send the files one by one, or an archive";
                return (peer, Err(SendError::Unsupported(text.into())));
            }
            let sent = match dial().await {
                Ok(stream) => Client::new(stream, peer).send_frame(file, progress).await,
                Err(error) => Err(error),
            };
            return (peer, sent);
        }
    }
}

/// As [`send_file`], over boxed streams.
pub(super) type Boxed = Box<dyn Stream>;

fn complete(status: u8, text: String) -> Result<(), SendError> {
    if status == 0 {
        Ok(())
    } else {
        let reason = if text.is_empty() { format!("status {status}") } else { text };
        Err(SendError::Refused { ack: format!("COMPLETE {status} {reason}"), reason })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Sends a file in chunks; `None` when the peer does not know them, and nothing was stored.
    async fn send_chunked(
        &mut self,
        file: &FileToSend,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Option<FileDelivery>, SendError> {
        let total = file.source.len();
        let ours = match self.peer().await? {
            Peer::Ours(ours) if ours.transfers => Some(ours),
            _ => None,
        };
        if file.transfer.tree && !ours.is_some_and(|ours| ours.trees) {
            return Ok(None);
        }
        let id: TransferId = file.sha256.first_chunk().copied().unwrap_or_default();
        let (chunk, window) = match ours {
            Some(ours) => (OUR_CHUNK.min(ours.max_chunk).max(file::CHUNK), 2 * WINDOW),
            None => (file::CHUNK, WINDOW),
        };
        let name = file.name.as_bytes();
        let init = Piece { id, what: What::Init { size: total, sha256: file.sha256, chunk, name } }.emit();
        let framed = |kind, body: &[u8]| frame(kind, &[body]).map_err(|error| SendError::Write(error.to_string()));
        let mut opening = Vec::new();
        if ours.is_some() {
            opening = framed(TRANSFER, &file.transfer.emit())?;
        }
        opening.extend_from_slice(&framed(FILESTREAM, &init)?);
        self.write(&opening).await?;
        let tagged = ours.is_some() && file.transfer.message_id.is_some();
        let limit = if ours.is_some() { KNOWN_WAIT } else { INIT_WAIT };
        let resumed = match self.answer(limit).await {
            Ok((FILESTREAM, body)) => match Piece::parse(&body).map(|piece| piece.what) {
                Ok(What::InitAck { offset }) if offset <= total => offset,
                Ok(What::Complete { status, text }) => {
                    complete(status, text)?;
                    let (chunked, duplicate, ack) = (true, true, None);
                    return Ok(Some(FileDelivery { chunked, resumed: total, duplicate, ack, tagged }));
                }
                Ok(What::Abort { text }) => {
                    return Err(SendError::Refused { ack: format!("ABORT {text}"), reason: text });
                }
                _ => return Ok(None),
            },
            Err(error) if ours.is_some() => return Err(error),
            // Any other answer, and silence: a peer that does not know chunks.
            Ok(_) | Err(_) => return Ok(None),
        };
        progress(Progress { done: resumed, total });
        let (mut sent, mut acknowledged) = (resumed, resumed);
        let far = window * u64::from(chunk);
        while acknowledged < total {
            while sent < total && sent - acknowledged < far {
                let n = usize::try_from(total - sent).unwrap_or(chunk as usize).min(chunk as usize);
                let data = source::read(&file.source, sent, n).await.map_err(|e| SendError::Source(e.to_string()))?;
                let head = Piece::chunk_head(id, sent);
                // At most a mebibyte.
                let header = Header { kind: FILESTREAM, len: (head.len() + n) as u32 };
                self.write(&[&header.emit()[..], &head, &data].concat()).await?;
                sent += n as u64;
            }
            match self.piece(ACK_WAIT).await? {
                What::Ack { offset } if offset <= sent => {
                    acknowledged = acknowledged.max(offset);
                    progress(Progress { done: acknowledged, total });
                }
                What::Complete { status, text } => {
                    complete(status, text)?;
                    return Err(SendError::UnexpectedAck { ack: "COMPLETE before the end".into() });
                }
                What::Abort { text } => return Err(SendError::Refused { ack: format!("ABORT {text}"), reason: text }),
                _ => {}
            }
        }
        self.write(&framed(FILESTREAM, &Piece { id, what: What::Done }.emit())?).await?;
        let limit = ACK_WAIT + Duration::from_secs(total / FINISH_PACE);
        loop {
            match self.piece(limit).await? {
                What::Complete { status, text } => {
                    complete(status, text)?;
                    let (chunked, duplicate, ack) = (true, false, None);
                    return Ok(Some(FileDelivery { chunked, resumed, duplicate, ack, tagged }));
                }
                What::Abort { text } => return Err(SendError::Refused { ack: format!("ABORT {text}"), reason: text }),
                _ => {}
            }
        }
    }

    async fn piece(&mut self, limit: Duration) -> Result<What<'static>, SendError> {
        let (kind, body) = self.answer(limit).await?;
        if kind != FILESTREAM {
            return Err(refused(&body));
        }
        let piece = Piece::parse(&body).map_err(|_| SendError::UnexpectedAck { ack: "a malformed piece".into() })?;
        Ok(match piece.what {
            What::Ack { offset } => What::Ack { offset },
            What::Complete { status, text } => What::Complete { status, text },
            What::Abort { text } => What::Abort { text },
            // Nothing that a receiver says in the middle of a transfer.
            _ => What::Done,
        })
    }

    /// Sends a file in one frame.
    async fn send_frame(
        &mut self,
        file: &FileToSend,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<FileDelivery, SendError> {
        let total = file.source.len();
        let name = file.name.as_bytes();
        let head = FileHead::emit(name.get(..file::MAX_NAME).unwrap_or(name))
            .map_err(|error| SendError::Unsupported(error.to_string()))?;
        let limit = u64::from(LEGACY_MAX_BODY) - head.len() as u64;
        if total > limit {
            return Err(SendError::TooLarge { len: total, limit });
        }
        self.write_frame(FILE, &head, &file.source, &mut |done| progress(Progress { done, total })).await?;
        let (_, body) = self.answer(ACK_WAIT).await?;
        match Reply::parse(&body, FILE, total) {
            Reply::Stored { duplicate } => Ok(FileDelivery {
                chunked: false,
                resumed: 0,
                duplicate,
                ack: Some(json::text_lossy(&body)),
                tagged: false,
            }),
            Reply::Refused { .. } | Reply::UnknownType { .. } => Err(refused(&body)),
            Reply::Other => Err(SendError::UnexpectedAck { ack: json::text_lossy(&body) }),
        }
    }
}
