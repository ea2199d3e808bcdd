//! Chunked transfers, the receiving side (07 §11.2): bytes go into a partial file that outlives the stream, and get their
//! name once their hash is the one announced.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use pilot_wire::Address;
use pilot_wire::service::dataexchange::file::{Piece, TransferId, What};
use pilot_wire::service::dataexchange::ours::Transfer;

use super::Shared;
use super::received::{Announced, FileError, Incoming, StoredFile};
use super::server::blocking;

/// Bytes of chunks that came too early and are held until the gap closes.
const EARLY: usize = 1 << 20;

/// The transfers of one stream: at most one at a time.
pub(super) struct Transfers {
    shared: Arc<Shared>,
    from: Address,
    announced: Option<Transfer>,
    active: Option<(TransferId, Incoming)>,
    early: BTreeMap<u64, Vec<u8>>,
}

fn complete(id: TransferId, outcome: Result<StoredFile, FileError>) -> Vec<u8> {
    let what = match outcome {
        Ok(_) => What::Complete { status: 0, text: String::new() },
        Err(error) => What::Complete { status: 1, text: error.to_string() },
    };
    Piece { id, what }.emit()
}

fn refuse(id: TransferId, text: &str) -> Vec<u8> {
    Piece { id, what: What::Complete { status: 1, text: text.to_owned() } }.emit()
}

impl Transfers {
    pub(super) fn new(shared: &Arc<Shared>, from: Address) -> Self {
        Self { shared: shared.clone(), from, announced: None, active: None, early: BTreeMap::new() }
    }

    /// Notes what is said of the transfer that follows.
    pub(super) fn announce(&mut self, transfer: Transfer) {
        self.announced = Some(transfer);
    }

    /// Takes a piece and gives the answer, if there is one.
    pub(super) async fn handle(&mut self, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let piece = match Piece::parse(body) {
            Ok(piece) => piece,
            Err(error) => {
                let id = body.get(1..17).and_then(|id| id.try_into().ok()).unwrap_or_default();
                return Ok(Some(refuse(id, &error.to_string())));
            }
        };
        let id = piece.id;
        match piece.what {
            What::Init { size, sha256, name, .. } => self.init(id, size, sha256, name).await.map(Some),
            What::Chunk { offset, data } => self.chunk(id, offset, data).await.map(Some),
            What::Done => {
                let outcome = match self.active.take() {
                    Some((active, incoming)) if active == id => blocking(move || incoming.finish()).await?,
                    _ => return Ok(Some(refuse(id, "no active transfer"))),
                };
                self.early.clear();
                Ok(Some(complete(id, outcome)))
            }
            What::Abort { .. } => {
                self.active = None;
                self.early.clear();
                Ok(None)
            }
            // These are answers; nothing was asked.
            What::Ack { .. } | What::InitAck { .. } | What::Complete { .. } => Ok(None),
        }
    }

    async fn init(&mut self, id: TransferId, size: u64, sha256: [u8; 32], name: &[u8]) -> io::Result<Vec<u8>> {
        let transfer = self.announced.take().unwrap_or_default();
        self.early.clear();
        // Drops an older transfer of this stream.
        self.active = None;
        if sha256.first_chunk() != Some(&id) {
            return Ok(refuse(id, "malformed INIT"));
        }
        let Some(rooms) = &self.shared.rooms else {
            return Ok(complete(id, Err(FileError::NoDirectory)));
        };
        let announced = Announced {
            from: self.from,
            name: name.to_vec(),
            size,
            sha256: Some(sha256),
            message_id: transfer.message_id,
            reply_to: transfer.reply_to,
            tree: transfer.tree,
        };
        if rooms.received.is_duplicate(&announced) {
            let what = What::Complete { status: 0, text: "duplicate".into() };
            return Ok(Piece { id, what }.emit());
        }
        let received = rooms.received.clone();
        match blocking(move || received.begin(announced)).await? {
            Err(error) => Ok(complete(id, Err(error))),
            Ok(incoming) => {
                let offset = incoming.offset();
                self.active = Some((id, incoming));
                Ok(Piece { id, what: What::InitAck { offset } }.emit())
            }
        }
    }

    async fn chunk(&mut self, id: TransferId, offset: u64, data: &[u8]) -> io::Result<Vec<u8>> {
        let Some((_, mut incoming)) = self.active.take().filter(|(active, _)| *active == id) else {
            return Ok(refuse(id, "no active transfer"));
        };
        let at = incoming.offset();
        let held: usize = self.early.values().map(Vec::len).sum();
        if offset > at {
            if held + data.len() > EARLY {
                return Ok(refuse(id, &format!("chunks missing from offset {at} on")));
            }
            self.early.insert(offset, data.to_vec());
            self.active = Some((id, incoming));
            return Ok(Piece { id, what: What::Ack { offset: at } }.emit());
        }
        // What is there already is not written again.
        let known = usize::try_from(at - offset).unwrap_or(usize::MAX);
        let mut runs = vec![data.get(known..).unwrap_or_default().to_vec()];
        let mut end = at.max(offset.saturating_add(data.len() as u64));
        while let Some(early) = self.early.first_entry().filter(|early| *early.key() <= end) {
            let (start, bytes) = early.remove_entry();
            let known = usize::try_from(end - start).unwrap_or(usize::MAX);
            end = end.max(start + bytes.len() as u64);
            runs.push(bytes.get(known..).unwrap_or_default().to_vec());
        }
        let written = blocking(move || {
            let written = runs.iter().try_for_each(|run| incoming.write(run));
            (incoming, written)
        });
        let (incoming, written) = written.await?;
        match written {
            Err(error) => Ok(complete(id, Err(error))),
            Ok(()) => {
                let offset = incoming.offset();
                self.active = Some((id, incoming));
                Ok(Piece { id, what: What::Ack { offset } }.emit())
            }
        }
    }
}
