//! Hello: what our daemons tell each other about themselves once a session has opened one frame.
//!
//! A Hello is the payload of an encrypted control packet that every official version ignores; who sends it when is the
//! tunnel's business. The bytes:
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 4 | `PLH1` |
//! | 4 | n | fields: tag (1), length (2, big-endian), value |
//!
//! Numbers are unsigned and big-endian, 1, 2, 4 or 8 bytes long: a reader takes any of these widths. A field with an
//! unknown tag, or with a width its reader does not know, is skipped; of a repeated field the last one counts. An absent
//! field means the careful v1 rule. At most [`MAX_LEN`] bytes and [`MAX_FIELDS`] fields; more is no Hello.

/// The first four bytes. A change that an old reader would misunderstand changes the last of them.
pub const MAGIC: [u8; 4] = *b"PLH1";
/// Largest Hello, so that it always fits one packet of any path.
pub const MAX_LEN: usize = 1024;
/// Most fields in one Hello.
pub const MAX_FIELDS: usize = 64;
/// Longest software text, in bytes.
pub const MAX_SOFTWARE: usize = 64;

mod tag {
    pub(super) const GENERATION: u8 = 1;
    pub(super) const MAX_SEGMENT: u8 = 2;
    pub(super) const SEGMENTS_IN_FLIGHT: u8 = 3;
    pub(super) const WINDOW_UNIT: u8 = 4;
    pub(super) const SACK_RANGES: u8 = 5;
    pub(super) const MAX_DATAGRAM: u8 = 6;
    pub(super) const ACK_DELAY_MS: u8 = 7;
    pub(super) const IDLE_TIMEOUT_SECS: u8 = 8;
    pub(super) const FEATURES: u8 = 9;
    pub(super) const SOFTWARE: u8 = 10;
    pub(super) const REPLY: u8 = 11;
}

/// Yes-or-no abilities, one bit each. Unknown bits are kept as received and mean nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features(u64);

impl Features {
    /// Nothing beyond v1.
    pub const NONE: Self = Self(0);
    /// Segment boundaries may change on retransmission: data is a range of bytes.
    pub const REPACKETIZE: Self = Self(1 << 0);
    /// FIN is acted on only when all data before it has arrived (07 rule 23).
    pub const ORDERED_FIN: Self = Self(1 << 1);
    /// One direction of a stream may close while the other goes on.
    pub const HALF_CLOSE: Self = Self(1 << 2);
    /// Zero-window probes are answered.
    pub const WINDOW_PROBES: Self = Self(1 << 3);
    /// A window of zero means closed, not unknown.
    pub const ZERO_WINDOW: Self = Self(1 << 4);
    /// A received range that was reported stays received: no reneging.
    pub const STABLE_SACK: Self = Self(1 << 5);
    /// The receiver honours a push mark: short segments are acknowledged at once.
    pub const NODELAY: Self = Self(1 << 6);
    /// Streams carry message ids.
    pub const MESSAGE_IDS: Self = Self(1 << 7);
    /// Path probes larger than the segment limit are answered, so that the path MTU can be searched.
    pub const PATH_MTU_PROBES: Self = Self(1 << 8);
    /// A reset carries its reason.
    pub const RESET_REASON: Self = Self(1 << 9);

    /// From the bits of the wire.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits of the wire.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether every bit of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a peer says it can do. `None` (and an absent feature bit) means the careful v1 rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Highest wire generation spoken: 1 for the official wire, 2 for ours.
    pub generation: Option<u16>,
    /// Largest stream segment accepted, payload bytes.
    pub max_segment: Option<u32>,
    /// Most segments that may be unacknowledged, the size of the reorder buffer.
    pub segments_in_flight: Option<u32>,
    /// Bytes one unit of the window field stands for.
    pub window_unit: Option<u32>,
    /// Most ranges read from one SACK list.
    pub sack_ranges: Option<u16>,
    /// Largest datagram accepted, payload bytes.
    pub max_datagram: Option<u32>,
    /// Longest delay of an acknowledgement, milliseconds.
    pub ack_delay_ms: Option<u16>,
    /// A silent stream is dropped after this many seconds.
    pub idle_timeout_secs: Option<u32>,
    /// Abilities.
    pub features: Features,
    /// Name and version, shown to people and never acted on. At most [`MAX_SOFTWARE`] bytes.
    pub software: Option<String>,
    /// Whether this Hello answers one: an answer is not answered.
    pub reply: bool,
}

/// Why bytes are not a Hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// Does not begin with [`MAGIC`].
    #[error("not a Hello")]
    Magic,
    /// Longer than [`MAX_LEN`].
    #[error("Hello of {0} bytes (max 1024)")]
    TooLong(usize),
    /// A field ends behind the end of the Hello.
    #[error("Hello truncated at byte {0}")]
    Truncated(usize),
    /// More than [`MAX_FIELDS`] fields.
    #[error("Hello has more than 64 fields")]
    TooManyFields,
}

impl HelloError {
    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Magic => "hello_magic",
            Self::TooLong(_) => "hello_too_long",
            Self::Truncated(_) => "hello_truncated",
            Self::TooManyFields => "hello_too_many_fields",
        }
    }
}

/// An unsigned number of any width the format knows.
fn number(value: &[u8]) -> Option<u64> {
    match value.len() {
        1 | 2 | 4 | 8 => Some(value.iter().fold(0, |n, b| n << 8 | u64::from(*b))),
        _ => None,
    }
}

/// A number for a narrower field: a larger value is clamped, for it offers at least as much.
fn number_u32(value: &[u8]) -> Option<u32> {
    number(value).map(|n| u32::try_from(n).unwrap_or(u32::MAX))
}

fn number_u16(value: &[u8]) -> Option<u16> {
    number(value).map(|n| u16::try_from(n).unwrap_or(u16::MAX))
}

fn field(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag);
    // Every value written here is at most MAX_SOFTWARE bytes long.
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
}

impl Hello {
    /// Appends the bytes. A software text above [`MAX_SOFTWARE`] bytes is cut at a character boundary.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        let mut put16 = |tag, n: Option<u16>| {
            if let Some(n) = n {
                field(out, tag, &n.to_be_bytes());
            }
        };
        put16(tag::GENERATION, self.generation);
        put16(tag::SACK_RANGES, self.sack_ranges);
        put16(tag::ACK_DELAY_MS, self.ack_delay_ms);
        let mut put32 = |tag, n: Option<u32>| {
            if let Some(n) = n {
                field(out, tag, &n.to_be_bytes());
            }
        };
        put32(tag::MAX_SEGMENT, self.max_segment);
        put32(tag::SEGMENTS_IN_FLIGHT, self.segments_in_flight);
        put32(tag::WINDOW_UNIT, self.window_unit);
        put32(tag::MAX_DATAGRAM, self.max_datagram);
        put32(tag::IDLE_TIMEOUT_SECS, self.idle_timeout_secs);
        if self.features != Features::NONE {
            field(out, tag::FEATURES, &self.features.bits().to_be_bytes());
        }
        if let Some(software) = &self.software {
            let mut end = software.len().min(MAX_SOFTWARE);
            while !software.is_char_boundary(end) {
                end -= 1;
            }
            field(out, tag::SOFTWARE, &software.as_bytes()[..end]);
        }
        if self.reply {
            field(out, tag::REPLY, &[1]);
        }
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// [`HelloError`]; the caller ignores such a packet.
    pub fn parse(b: &[u8]) -> Result<Self, HelloError> {
        if b.len() > MAX_LEN {
            return Err(HelloError::TooLong(b.len()));
        }
        let mut rest = b.strip_prefix(&MAGIC).ok_or(HelloError::Magic)?;
        let mut hello = Self::default();
        let mut fields = 0;
        while !rest.is_empty() {
            let at = b.len() - rest.len();
            let Some((&[tag, high, low], tail)) = rest.split_first_chunk::<3>() else {
                return Err(HelloError::Truncated(at));
            };
            let Some((value, tail)) = tail.split_at_checked(usize::from(u16::from_be_bytes([high, low]))) else {
                return Err(HelloError::Truncated(at));
            };
            fields += 1;
            if fields > MAX_FIELDS {
                return Err(HelloError::TooManyFields);
            }
            hello.take(tag, value);
            rest = tail;
        }
        Ok(hello)
    }

    fn take(&mut self, tag: u8, value: &[u8]) {
        match tag {
            tag::GENERATION => self.generation = number_u16(value).or(self.generation),
            tag::MAX_SEGMENT => self.max_segment = number_u32(value).or(self.max_segment),
            tag::SEGMENTS_IN_FLIGHT => self.segments_in_flight = number_u32(value).or(self.segments_in_flight),
            tag::WINDOW_UNIT => self.window_unit = number_u32(value).or(self.window_unit),
            tag::SACK_RANGES => self.sack_ranges = number_u16(value).or(self.sack_ranges),
            tag::MAX_DATAGRAM => self.max_datagram = number_u32(value).or(self.max_datagram),
            tag::ACK_DELAY_MS => self.ack_delay_ms = number_u16(value).or(self.ack_delay_ms),
            tag::IDLE_TIMEOUT_SECS => self.idle_timeout_secs = number_u32(value).or(self.idle_timeout_secs),
            tag::FEATURES => self.features = number(value).map_or(self.features, Features::from_bits),
            tag::SOFTWARE if value.len() <= MAX_SOFTWARE => {
                self.software = std::str::from_utf8(value).ok().map(str::to_owned).or(self.software.take());
            }
            tag::REPLY => self.reply = number(value).map_or(self.reply, |n| n != 0),
            _ => {}
        }
    }
}
