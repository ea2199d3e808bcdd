//! Files: in one frame (05 §5.1), and in chunks that can be resumed (07 §11.2).

use super::{Fields, FrameTooLarge, Malformed};

/// Longest file name senders write, in bytes.
pub const MAX_NAME: usize = 255;
/// Bytes of a chunk between official programs.
pub const CHUNK: u32 = 49_152;
/// Longest chunk we take, in bytes; a chunk is held in memory until it is written.
pub const MAX_CHUNK: u32 = 1 << 20;
/// Longest text of a completion or an abort, in bytes; what goes beyond is cut.
const MAX_TEXT: usize = 1024;

/// The head of a file frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHead {
    /// Bytes of the name; they follow the two bytes that say so.
    pub name_len: usize,
}

impl FileHead {
    /// Reads the two bytes before the name, for a body of `len` bytes. `None` when the name would not fit: the whole
    /// body is then the data of a file without a name.
    pub fn parse(prefix: [u8; 2], len: u32) -> Option<Self> {
        let name = u16::from_be_bytes(prefix);
        (2 + u32::from(name) <= len).then_some(Self { name_len: usize::from(name) })
    }

    /// What stands before the data.
    ///
    /// # Errors
    /// [`FrameTooLarge`] for a name above [`MAX_NAME`].
    pub fn emit(name: &[u8]) -> Result<Vec<u8>, FrameTooLarge> {
        match u16::try_from(name.len()) {
            Ok(len) if name.len() <= MAX_NAME => Ok([&len.to_be_bytes()[..], name].concat()),
            _ => Err(FrameTooLarge { len: name.len() as u64, limit: MAX_NAME as u32 }),
        }
    }

    /// Name and data of a whole body.
    pub fn split(body: &[u8]) -> (&[u8], &[u8]) {
        let mut fields = Fields(body);
        let read = (|| {
            let len = usize::from(fields.u16()?);
            Some((fields.take(len)?, fields.0))
        })();
        read.unwrap_or((&[], body))
    }
}

/// The first 16 bytes of the file's SHA-256.
pub type TransferId = [u8; 16];

/// A piece of a chunked transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Which transfer.
    pub id: TransferId,
    /// What is said.
    pub what: What<'a>,
}

/// What a piece says. Offsets are in bytes from the start of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What<'a> {
    /// The sender wants to send a file.
    Init {
        /// Bytes of the file.
        size: u64,
        /// Its SHA-256.
        sha256: [u8; 32],
        /// Longest chunk that will come.
        chunk: u32,
        /// Its name.
        name: &'a [u8],
    },
    /// Some of the file.
    Chunk {
        /// Where it begins.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// All before this offset has arrived.
    Ack {
        /// The offset.
        offset: u64,
    },
    /// All has been sent.
    Done,
    /// The receiver goes on from here.
    InitAck {
        /// Bytes that it has already.
        offset: u64,
    },
    /// The receiver is through with it.
    Complete {
        /// 0 when the file is stored.
        status: u8,
        /// Why not.
        text: String,
    },
    /// One side gives up.
    Abort {
        /// Why.
        text: String,
    },
}

fn text(bytes: &[u8]) -> String {
    crate::json::text_lossy(bytes.get(..MAX_TEXT).unwrap_or(bytes))
}

/// Bytes before the data of a chunk: kind, transfer id, offset.
pub const CHUNK_HEAD: usize = 1 + 16 + 8;

impl<'a> Piece<'a> {
    /// Reads the body of a frame.
    ///
    /// # Errors
    /// [`Malformed`] for an unknown kind and for a body that is too short for its kind.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(body);
        let [kind] = fields.array().ok_or(Malformed { what: "FILESTREAM frame" })?;
        let what = match kind {
            1 => "INIT",
            2 => "CHUNK",
            3 => "ACK",
            4 => "DONE",
            5 => "INIT-ACK",
            6 => "COMPLETE",
            7 => "ABORT",
            _ => return Err(Malformed { what: "FILESTREAM kind" }),
        };
        Self::read(kind, &mut fields).ok_or(Malformed { what })
    }

    fn read(kind: u8, fields: &mut Fields<'a>) -> Option<Self> {
        let id = fields.array()?;
        let what = match kind {
            1 => {
                let (size, sha256, chunk) = (fields.u64()?, fields.array()?, fields.u32()?);
                let len = usize::from(fields.u16()?);
                What::Init { size, sha256, chunk, name: fields.take(len)? }
            }
            2 => What::Chunk { offset: fields.u64()?, data: fields.0 },
            3 => What::Ack { offset: fields.u64()? },
            4 => What::Done,
            5 => What::InitAck { offset: fields.u64()? },
            6 => {
                let [status] = fields.array()?;
                What::Complete { status, text: text(fields.0) }
            }
            _ => What::Abort { text: text(fields.0) },
        };
        Some(Self { id, what })
    }

    /// The body of a frame.
    pub fn emit(&self) -> Vec<u8> {
        let (kind, rest): (u8, Vec<u8>) = match &self.what {
            What::Init { size, sha256, chunk, name } => {
                let name = name.get(..MAX_NAME).unwrap_or(name);
                let len = (name.len() as u16).to_be_bytes();
                (1, [&size.to_be_bytes()[..], sha256, &chunk.to_be_bytes(), &len, name].concat())
            }
            What::Chunk { offset, data } => (2, [&offset.to_be_bytes()[..], data].concat()),
            What::Ack { offset } => (3, offset.to_be_bytes().to_vec()),
            What::Done => (4, Vec::new()),
            What::InitAck { offset } => (5, offset.to_be_bytes().to_vec()),
            What::Complete { status, text } => (6, [&[*status][..], text.as_bytes()].concat()),
            What::Abort { text } => (7, text.as_bytes().to_vec()),
        };
        [&[kind][..], &self.id, &rest].concat()
    }

    /// What stands before the data of a chunk.
    pub fn chunk_head(id: TransferId, offset: u64) -> [u8; CHUNK_HEAD] {
        let mut out = [0; CHUNK_HEAD];
        out[0] = 2;
        out[1..17].copy_from_slice(&id);
        out[17..].copy_from_slice(&offset.to_be_bytes());
        out
    }
}
