//! One stream of a peer: stores what comes, and answers each frame in turn.

use std::io;
use std::sync::Arc;

use pilot_wire::Address;
use pilot_wire::service::dataexchange::file::{CHUNK_HEAD, FileHead, MAX_CHUNK};
use pilot_wire::service::dataexchange::message::{Tag, Tagged, Traced};
use pilot_wire::service::dataexchange::ours::{self, Capabilities, Receipt, Transfer};
use pilot_wire::service::dataexchange::record::Record;
use pilot_wire::service::dataexchange::{
    BINARY, FILE, FILESTREAM, HELLO, Header, JSON, MAX_BODY, MessageType, RECEIPT, TAGGED, TEXT, TRACE, TRANSFER,
    frame, reply, type_name,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::frames::{self, Body, BodyError, IDLE, time_for};
use super::inbox::{StoreError, Stored};
use super::received::{Announced, FileError};
use super::transfer::Transfers;
use super::{Shared, capabilities};
use crate::Stream;

/// Bytes of a file frame written at once.
const PIECE: usize = 256 * 1024;

/// Serves a stream until its end.
pub(super) async fn serve(shared: Arc<Shared>, stream: Box<dyn Stream>, from: Address) -> io::Result<()> {
    if let Some(rooms) = &shared.rooms {
        // A peer that talks to us can be talked to.
        rooms.outbox.appeared(from.node);
    }
    let mut session = Session { transfers: Transfers::new(&shared, from), shared, stream, from };
    session.run().await
}

struct Session {
    shared: Arc<Shared>,
    stream: Box<dyn Stream>,
    from: Address,
    transfers: Transfers,
}

impl Session {
    async fn run(&mut self) -> io::Result<()> {
        while let Some(header) = frames::header(&mut self.stream, IDLE).await? {
            let header = header.check(MAX_BODY).map_err(io::Error::other)?;
            match header.kind {
                TEXT | BINARY | JSON | TRACE | TAGGED => self.message(header).await?,
                FILE => self.file(header).await?,
                FILESTREAM if header.len <= MAX_CHUNK + CHUNK_HEAD as u32 => self.piece(header).await?,
                HELLO | TRANSFER | RECEIPT if header.len as usize <= ours::MAX_LEN => self.ours(header).await?,
                kind => {
                    frames::skip(&mut self.stream, u64::from(header.len)).await?;
                    self.answer(&reply::unsupported(kind)).await?;
                }
            }
        }
        self.stream.shutdown().await
    }

    async fn answer(&mut self, text: &str) -> io::Result<()> {
        self.send(TEXT, text.as_bytes()).await
    }

    async fn send(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let frame = frame(kind, &[body]).map_err(io::Error::other)?;
        frames::write(&mut self.stream, &frame).await
    }

    /// The body of a frame. When there is no memory for it, the peer is told, and the stream ends.
    async fn body(&mut self, header: Header) -> io::Result<Body> {
        match frames::body(&mut self.stream, header.len, &self.shared.budget).await {
            Ok(body) => Ok(body),
            Err(BodyError::Io(error)) => Err(error),
            Err(BodyError::Busy) => {
                self.answer(&reply::err(header.kind, "receiver busy: too many long messages at once")).await?;
                let _ = self.stream.shutdown().await;
                Err(io::Error::other("no memory left for messages"))
            }
        }
    }

    async fn message(&mut self, header: Header) -> io::Result<()> {
        let env = self.shared.host.env.clone();
        let body = self.body(header).await?;
        let received_at = env.unix();
        let (tag, kind, inner) = match header.kind {
            TAGGED => match Tagged::parse(&body) {
                Ok(tagged) => (tagged.tag, tagged.kind, tagged.body),
                Err(error) => return self.answer(&reply::err(TAGGED, &error.to_string())).await,
            },
            kind => (Tag::default(), kind, &*body),
        };
        let (traced, kind, payload) = match kind {
            TRACE => match Traced::parse(inner) {
                Ok(traced) => (Some(traced.sent_ns), traced.kind, traced.body),
                Err(error) => return self.answer(&reply::err(TRACE, &error.to_string())).await,
            },
            kind => (None, kind, inner),
        };
        let Some(message) = MessageType::from_wire(kind) else {
            return self.answer(&reply::unsupported(kind)).await;
        };
        let stored = match &self.shared.rooms {
            None => Err(StoreError::NoDirectory),
            Some(rooms) => {
                let record = Record {
                    kind: message,
                    from: self.from.to_string(),
                    payload: payload.to_vec(),
                    received_at,
                    message_id: tag.message_id,
                    reply_to: tag.reply_to,
                    wants_receipt: tag.wants_receipt,
                };
                rooms.inbox.store(self.from, record).await
            }
        };
        let text = match stored {
            Ok(stored) => reply::ack(kind, payload.len() as u64, stored == Stored::Duplicate),
            Err(error) => reply::err(kind, &error.to_string()),
        };
        match traced {
            None => self.answer(&text).await,
            Some(sent_ns) => {
                let nanos = |at: std::time::Duration| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
                let stored_at = nanos(env.unix());
                let times = json!({
                    "sent_at_ns": sent_ns,
                    "received_at_ns": nanos(received_at),
                    "inbox_written_at_ns": stored_at,
                    "ack_sent_at_ns": nanos(env.unix()),
                    "inner_ack": text,
                });
                self.send(JSON, &pilot_wire::json::to_vec(&times)).await
            }
        }
    }

    /// A file in one frame: written as it arrives.
    async fn file(&mut self, header: Header) -> io::Result<()> {
        let (name, data) = self.file_head(header.len).await?;
        let announced = Announced {
            from: self.from,
            name,
            size: data.len,
            sha256: None,
            message_id: None,
            reply_to: None,
            tree: false,
        };
        let text = match self.file_data(announced, data).await? {
            Ok(()) => reply::ack(FILE, data.len, false),
            Err(error) => reply::err(FILE, &error.to_string()),
        };
        self.answer(&text).await
    }

    /// The name, and how much data follows; of data that begins with what looks like the length of a name, these bytes.
    async fn file_head(&mut self, len: u32) -> io::Result<(Vec<u8>, Data)> {
        let reading = async {
            if len < 2 {
                let mut start = [0; 2];
                let start_len = len as usize;
                self.stream.read_exact(start.get_mut(..start_len).unwrap_or_default()).await?;
                return Ok((Vec::new(), Data { start, start_len, len: u64::from(len) }));
            }
            let mut start = [0; 2];
            self.stream.read_exact(&mut start).await?;
            match FileHead::parse(start, len) {
                None => Ok((Vec::new(), Data { start, start_len: 2, len: u64::from(len) })),
                Some(head) => {
                    let mut name = vec![0; head.name_len];
                    self.stream.read_exact(&mut name).await?;
                    let len = u64::from(len) - 2 - head.name_len as u64;
                    Ok((name, Data { start, start_len: 0, len }))
                }
            }
        };
        tokio::time::timeout(time_for(0), reading).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn file_data(&mut self, announced: Announced, data: Data) -> io::Result<Result<(), FileError>> {
        let mut left = data.len - data.start_len as u64;
        let Some(rooms) = &self.shared.rooms else {
            frames::skip(&mut self.stream, left).await?;
            return Ok(Err(FileError::NoDirectory));
        };
        let received = rooms.received.clone();
        let begun = blocking(move || received.begin(announced)).await?;
        let start = data.start.get(..data.start_len).unwrap_or_default().to_vec();
        let mut outcome = match begun {
            Err(error) => Err(error),
            Ok(mut incoming) => blocking(move || incoming.write(&start).map(|()| incoming)).await?,
        };
        let reading = async {
            while left > 0 {
                let mut piece = vec![0; usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
                self.stream.read_exact(&mut piece).await?;
                left -= piece.len() as u64;
                // After a failure the rest is read and forgotten, so that the answer is heard.
                if let Ok(mut incoming) = outcome {
                    outcome = blocking(move || incoming.write(&piece).map(|()| incoming)).await?;
                }
            }
            Ok::<_, io::Error>(outcome)
        };
        let limit = time_for(data.len);
        let outcome =
            tokio::time::timeout(limit, reading).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        match outcome {
            Err(error) => Ok(Err(error)),
            Ok(incoming) => Ok(blocking(move || incoming.finish()).await?.map(drop)),
        }
    }

    async fn piece(&mut self, header: Header) -> io::Result<()> {
        let body = self.body(header).await?;
        let answer = self.transfers.handle(&body).await?;
        drop(body);
        match answer {
            Some(piece) => self.send(FILESTREAM, &piece).await,
            None => Ok(()),
        }
    }

    async fn ours(&mut self, header: Header) -> io::Result<()> {
        let body = self.body(header).await?;
        let kind = header.kind;
        let malformed = match kind {
            HELLO => match Capabilities::parse(&body) {
                Ok(theirs) => {
                    if let Some(rooms) = &self.shared.rooms {
                        rooms.outbox.learn(self.from.node, super::Peer::Ours(theirs));
                    }
                    return self.send(HELLO, &capabilities().emit()).await;
                }
                Err(error) => error,
            },
            TRANSFER => match Transfer::parse(&body) {
                // Belongs to the transfer that follows, and is answered with it.
                Ok(transfer) => {
                    self.transfers.announce(transfer);
                    return Ok(());
                }
                Err(error) => error,
            },
            _ => match Receipt::parse(&body) {
                Ok(receipt) => {
                    let text = match &self.shared.rooms {
                        Some(rooms) => match rooms.outbox.receipt(self.from.node, &receipt).await {
                            Ok(()) => reply::ack(RECEIPT, body.len() as u64, false),
                            Err(error) => reply::err(RECEIPT, &error),
                        },
                        None => reply::err(RECEIPT, "this node keeps no messages"),
                    };
                    return self.answer(&text).await;
                }
                Err(error) => error,
            },
        };
        self.answer(&format!("ERR {} save failed: {malformed}", type_name(kind))).await
    }
}

/// The data of a file frame: how much, and what of it has been read.
#[derive(Clone, Copy)]
struct Data {
    start: [u8; 2],
    start_len: usize,
    len: u64,
}

/// Runs what waits for the disk.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}
