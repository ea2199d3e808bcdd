//! The binary registry protocol (07 §9.5). No official daemon uses it; a server tells it from JSON by its first bytes.
//!
//! After the five bytes of [`PREFACE`] both sides send frames: length (4, the type byte included), type, payload.

/// First bytes of a connection that speaks it: magic and version.
pub const PREFACE: [u8; 5] = *b"PILT\x01";
/// The magic alone; as a length it is far above every limit.
pub const MAGIC: [u8; 4] = *b"PILT";
/// Most elements of any list.
pub const MAX_LIST: usize = 1024;
/// Key age that is not known.
const UNKNOWN_AGE: u32 = u32::MAX;

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// Too few bytes to tell.
    More,
    /// JSON frames; nothing was consumed.
    Json,
    /// Binary frames follow [`PREFACE`].
    Binary,
    /// Binary, in a version nobody knows: answer `unsupported wire version <n>`.
    Unsupported(u8),
}

/// Tells JSON from binary by the first bytes of a connection.
pub fn detect(first: &[u8]) -> Detected {
    let seen = first.len().min(MAGIC.len());
    if first[..seen] != MAGIC[..seen] {
        return Detected::Json;
    }
    match first.get(4) {
        None => Detected::More,
        Some(&version) if version == PREFACE[4] => Detected::Binary,
        Some(&version) => Detected::Unsupported(version),
    }
}

/// The body of a frame: type and payload.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frame {
    /// 0x00: a JSON request or answer.
    Json(Vec<u8>),
    /// 0x01
    Heartbeat {
        /// Who lives.
        node: u32,
        /// Of [`crate::signed::heartbeat`].
        signature: [u8; 64],
    },
    /// 0x81
    HeartbeatOk {
        /// Server clock, Unix seconds.
        unix: u64,
        /// Whether the key soon expires.
        key_expiry_warning: bool,
    },
    /// 0x02
    Lookup {
        /// Whom.
        node: u32,
    },
    /// 0x82
    LookupOk(Box<Lookup>),
    /// 0x03
    Resolve {
        /// Whose endpoint.
        node: u32,
        /// Who asks.
        requester: u32,
        /// Of [`crate::signed::resolve`].
        signature: [u8; 64],
    },
    /// 0x83
    ResolveOk {
        /// Whose.
        node: u32,
        /// Its endpoint.
        addr: String,
        /// Its endpoints on the local network.
        lan: Vec<String>,
        /// Age of its key, when known.
        key_age_days: Option<u32>,
    },
    /// 0xFF
    Error(String),
}

/// The payload of a lookup answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    /// Whom.
    pub node: u32,
    /// Bit 0 of the flags.
    pub public: bool,
    /// Bit 1 of the flags.
    pub task: bool,
    /// Memberships.
    pub networks: Vec<u16>,
    /// 32 bytes.
    pub public_key: Vec<u8>,
    /// Its name, empty when none.
    pub hostname: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its endpoint, empty when not given out.
    pub addr: String,
    /// Id at an identity provider, empty when none.
    pub external_id: String,
}

/// Why a body is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BinaryError {
    /// A field ends behind the body.
    #[error("binary registry frame truncated")]
    Truncated,
    /// A type nobody knows.
    #[error("binary registry frame of unknown type 0x{0:02X}")]
    UnknownType(u8),
    /// More elements than [`MAX_LIST`].
    #[error("binary registry list of {0} elements (max 1024)")]
    ListTooLong(usize),
    /// A text that is not UTF-8.
    #[error("binary registry text is not UTF-8")]
    Text,
}

impl BinaryError {
    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Truncated => "binary_truncated",
            Self::UnknownType(_) => "binary_unknown_type",
            Self::ListTooLong(_) => "binary_list_too_long",
            Self::Text => "binary_text",
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], BinaryError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(BinaryError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BinaryError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(BinaryError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, BinaryError> {
        self.array::<1>().map(|b| b[0])
    }

    fn u16(&mut self) -> Result<u16, BinaryError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, BinaryError> {
        self.array().map(u32::from_be_bytes)
    }

    fn count(&mut self) -> Result<usize, BinaryError> {
        let count = usize::from(self.u16()?);
        if count > MAX_LIST { Err(BinaryError::ListTooLong(count)) } else { Ok(count) }
    }

    fn text(&mut self, len: usize) -> Result<String, BinaryError> {
        std::str::from_utf8(self.take(len)?).map(str::to_owned).map_err(|_| BinaryError::Text)
    }

    fn text8(&mut self) -> Result<String, BinaryError> {
        let len = usize::from(self.u8()?);
        self.text(len)
    }

    fn text16(&mut self) -> Result<String, BinaryError> {
        let len = usize::from(self.u16()?);
        self.text(len)
    }
}

fn put8(bytes: &[u8], out: &mut Vec<u8>) {
    let bytes = &bytes[..bytes.len().min(usize::from(u8::MAX))];
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}

fn put16(bytes: &[u8], out: &mut Vec<u8>) {
    let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

impl Frame {
    /// Reads the body of a frame (type and payload). Bytes behind the payload are ignored.
    ///
    /// # Errors
    /// [`BinaryError`] says what is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, BinaryError> {
        let (&kind, payload) = body.split_first().ok_or(BinaryError::Truncated)?;
        let mut r = Reader(payload);
        Ok(match kind {
            0x00 => Self::Json(payload.to_vec()),
            0x01 => Self::Heartbeat { node: r.u32()?, signature: r.array()? },
            0x81 => {
                Self::HeartbeatOk { unix: r.array().map(u64::from_be_bytes)?, key_expiry_warning: r.u8()? & 1 != 0 }
            }
            0x02 => Self::Lookup { node: r.u32()? },
            0x82 => Self::LookupOk(Box::new(Lookup::parse(&mut r)?)),
            0x03 => Self::Resolve { node: r.u32()?, requester: r.u32()?, signature: r.array()? },
            0x83 => {
                let (node, addr) = (r.u32()?, r.text16()?);
                let lan = (0..r.count()?).map(|_| r.text16()).collect::<Result<_, _>>()?;
                let age = r.u32()?;
                Self::ResolveOk { node, addr, lan, key_age_days: (age != UNKNOWN_AGE).then_some(age) }
            }
            0xFF => Self::Error(r.text16()?),
            other => return Err(BinaryError::UnknownType(other)),
        })
    }

    /// Appends the complete frame, prefix included. Texts and lists beyond what their length fields hold are cut.
    ///
    /// # Errors
    /// [`crate::frame::FrameError::TooLarge`] above the frame limit.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), crate::frame::FrameError> {
        crate::frame::emit_with(out, |out| match self {
            Self::Json(text) => {
                out.push(0x00);
                out.extend_from_slice(text);
            }
            Self::Heartbeat { node, signature } => {
                out.push(0x01);
                out.extend_from_slice(&node.to_be_bytes());
                out.extend_from_slice(signature);
            }
            Self::HeartbeatOk { unix, key_expiry_warning } => {
                out.push(0x81);
                out.extend_from_slice(&unix.to_be_bytes());
                out.push(u8::from(*key_expiry_warning));
            }
            Self::Lookup { node } => {
                out.push(0x02);
                out.extend_from_slice(&node.to_be_bytes());
            }
            Self::LookupOk(lookup) => {
                out.push(0x82);
                lookup.emit(out);
            }
            Self::Resolve { node, requester, signature } => {
                out.push(0x03);
                out.extend_from_slice(&node.to_be_bytes());
                out.extend_from_slice(&requester.to_be_bytes());
                out.extend_from_slice(signature);
            }
            Self::ResolveOk { node, addr, lan, key_age_days } => {
                out.push(0x83);
                out.extend_from_slice(&node.to_be_bytes());
                put16(addr.as_bytes(), out);
                let lan = &lan[..lan.len().min(MAX_LIST)];
                out.extend_from_slice(&(lan.len() as u16).to_be_bytes());
                for addr in lan {
                    put16(addr.as_bytes(), out);
                }
                out.extend_from_slice(&key_age_days.unwrap_or(UNKNOWN_AGE).to_be_bytes());
            }
            Self::Error(text) => {
                out.push(0xFF);
                put16(text.as_bytes(), out);
            }
        })
    }
}

impl Lookup {
    fn parse(r: &mut Reader<'_>) -> Result<Self, BinaryError> {
        let (node, flags, _reserved) = (r.u32()?, r.u8()?, r.u32()?);
        let networks = (0..r.count()?).map(|_| r.u16()).collect::<Result<_, _>>()?;
        let key_len = usize::from(r.u8()?);
        Ok(Self {
            node,
            public: flags & 1 != 0,
            task: flags & 2 != 0,
            networks,
            public_key: r.take(key_len)?.to_vec(),
            hostname: r.text8()?,
            tags: (0..r.u8()?).map(|_| r.text8()).collect::<Result<_, _>>()?,
            addr: r.text16()?,
            external_id: r.text8()?,
        })
    }

    fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.node.to_be_bytes());
        out.push(u8::from(self.public) | u8::from(self.task) << 1);
        out.extend_from_slice(&[0; 4]);
        let networks = &self.networks[..self.networks.len().min(MAX_LIST)];
        out.extend_from_slice(&(networks.len() as u16).to_be_bytes());
        for network in networks {
            out.extend_from_slice(&network.to_be_bytes());
        }
        put8(&self.public_key, out);
        put8(self.hostname.as_bytes(), out);
        let tags = &self.tags[..self.tags.len().min(usize::from(u8::MAX))];
        out.push(tags.len() as u8);
        for tag in tags {
            put8(tag.as_bytes(), out);
        }
        put16(self.addr.as_bytes(), out);
        put8(self.external_id.as_bytes(), out);
    }
}
