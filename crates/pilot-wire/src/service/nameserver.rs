//! Nameserver on port 53 (04 §22): one request and one reply of text on each stream.

use crate::Address;
use crate::addr::AddressError;

/// Longest request, in bytes.
pub const MAX_REQUEST: usize = 65_535;
/// Longest reply that is read, in bytes.
pub const MAX_REPLY: usize = 1 << 20;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The address of a name.
    QueryA(String),
    /// The id of a network.
    QueryN(String),
    /// Who offers a port in a network.
    QueryS {
        /// Network id.
        network: u16,
        /// Port.
        port: u16,
    },
    /// A name for an address.
    RegisterA {
        /// The name.
        name: String,
        /// The address.
        address: Address,
    },
    /// A name for a network.
    RegisterN {
        /// The name.
        name: String,
        /// Network id.
        network: u16,
    },
    /// A service.
    RegisterS {
        /// Its name.
        name: String,
        /// Who offers it.
        address: Address,
        /// Network id.
        network: u16,
        /// Port.
        port: u16,
    },
}

/// Why a text is no request. The words are those of the official server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Fewer than two words.
    #[error("too few fields")]
    TooFew,
    /// Neither `QUERY` nor `REGISTER`.
    #[error("unknown command: {0}")]
    Command(String),
    /// Neither `A`, `N` nor `S`.
    #[error("unknown record type: {0}")]
    Type(String),
    /// Words are missing.
    #[error("{0}")]
    Requires(&'static str),
    /// A number that is none.
    #[error("invalid {0}: strconv.ParseUint: parsing {1}: {2}")]
    Number(&'static str, String, &'static str),
    /// An address that is none.
    #[error("{}", official(.0))]
    Address(#[from] AddressError),
    /// Not text.
    #[error("request is not UTF-8 text")]
    NotText,
}

/// A bad address in the words of the official server.
fn official(error: &AddressError) -> String {
    match error {
        AddressError::Group(_, group) => format!("invalid hex group: {} (expected 4 digits)", quoted(group)),
        AddressError::NetworkMismatch(_, decimal, hex) => {
            format!("network mismatch: decimal {decimal} != hex 0x{hex}")
        }
        AddressError::MissingColon(text) => {
            format!("invalid address: {} (expected N:XXXX.YYYY.YYYY)", quoted(text))
        }
        other => other.to_string(),
    }
}

/// A word in quotes, as the official server shows it.
fn quoted(word: &str) -> String {
    format!("{word:?}")
}

fn number(what: &'static str, word: &str) -> Result<u16, RequestError> {
    let bad = |why| RequestError::Number(what, quoted(word), why);
    if word.is_empty() || !word.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad("invalid syntax"));
    }
    word.parse().map_err(|_| bad("value out of range"))
}

impl Request {
    /// Reads a request. White space separates words; command and type may be in any letter case.
    ///
    /// # Errors
    /// [`RequestError`], whose text goes back behind `ERR `.
    pub fn parse(text: &[u8]) -> Result<Self, RequestError> {
        let text = std::str::from_utf8(text).map_err(|_| RequestError::NotText)?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let (command, kind, rest) = match &words[..] {
            [command, kind, rest @ ..] => (command.to_uppercase(), kind.to_uppercase(), rest),
            _ => return Err(RequestError::TooFew),
        };
        match (command.as_str(), kind.as_str(), rest) {
            ("QUERY", "A", [name, ..]) => Ok(Self::QueryA((*name).to_owned())),
            ("QUERY", "A", _) => Err(RequestError::Requires("QUERY A requires <name>")),
            ("QUERY", "N", [name, ..]) => Ok(Self::QueryN((*name).to_owned())),
            ("QUERY", "N", _) => Err(RequestError::Requires("QUERY N requires <name>")),
            ("QUERY", "S", [network, port, ..]) => {
                Ok(Self::QueryS { network: number("net_id", network)?, port: number("port", port)? })
            }
            ("QUERY", "S", _) => Err(RequestError::Requires("QUERY S requires <net_id> <port>")),
            ("REGISTER", "A", [name, address, ..]) => {
                Ok(Self::RegisterA { name: (*name).to_owned(), address: address.parse()? })
            }
            ("REGISTER", "A", _) => Err(RequestError::Requires("REGISTER A requires <name> <address>")),
            ("REGISTER", "N", [name, network, ..]) => {
                Ok(Self::RegisterN { name: (*name).to_owned(), network: number("net_id", network)? })
            }
            ("REGISTER", "N", _) => Err(RequestError::Requires("REGISTER N requires <name> <net_id>")),
            ("REGISTER", "S", [name, address, network, port, ..]) => Ok(Self::RegisterS {
                name: (*name).to_owned(),
                address: address.parse()?,
                network: number("net_id", network)?,
                port: number("port", port)?,
            }),
            ("REGISTER", "S", _) => Err(RequestError::Requires("REGISTER S requires <name> <address> <net_id> <port>")),
            ("QUERY" | "REGISTER", _, _) => Err(RequestError::Type(kind)),
            _ => Err(RequestError::Command(command)),
        }
    }

    /// The text, without a newline, as the official client sends it.
    pub fn emit(&self) -> String {
        match self {
            Self::QueryA(name) => format!("QUERY A {name}"),
            Self::QueryN(name) => format!("QUERY N {name}"),
            Self::QueryS { network, port } => format!("QUERY S {network} {port}"),
            Self::RegisterA { name, address } => format!("REGISTER A {name} {address}"),
            Self::RegisterN { name, network } => format!("REGISTER N {name} {network}"),
            Self::RegisterS { name, address, network, port } => {
                format!("REGISTER S {name} {address} {network} {port}")
            }
        }
    }
}

/// A provider of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Name of the service.
    pub name: String,
    /// Who offers it.
    pub address: Address,
    /// Port.
    pub port: u16,
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Registered.
    Ok,
    /// The address of a name.
    A {
        /// The name.
        name: String,
        /// The address.
        address: Address,
    },
    /// The id of a network.
    N {
        /// The name.
        name: String,
        /// Network id.
        network: u16,
    },
    /// Providers.
    S(Vec<Provider>),
    /// Refused, or not found.
    Err(String),
}

/// Why a text is no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// Nothing in it.
    #[error("empty response line")]
    Empty,
    /// A first word nobody knows.
    #[error("unknown response type: {0}")]
    Unknown(String),
    /// Words are missing or wrong.
    #[error("invalid {0} response")]
    Invalid(&'static str),
    /// A number that is none.
    #[error("{0}")]
    Number(RequestError),
}

impl Reply {
    /// Reads a reply.
    ///
    /// # Errors
    /// [`ReplyError`].
    pub fn parse(text: &str) -> Result<Self, ReplyError> {
        let text = text.trim();
        let mut lines = text.split('\n');
        let first = lines.next().unwrap_or_default().trim();
        let words: Vec<&str> = first.split_whitespace().collect();
        match &words[..] {
            [] => Err(ReplyError::Empty),
            ["OK"] => Ok(Self::Ok),
            ["ERR", ..] => Ok(Self::Err(first.strip_prefix("ERR ").unwrap_or(first).to_owned())),
            ["A", name, address, ..] => match address.parse() {
                Ok(address) => Ok(Self::A { name: (*name).to_owned(), address }),
                Err(_) => Err(ReplyError::Invalid("A")),
            },
            ["A", ..] => Err(ReplyError::Invalid("A")),
            ["N", name, network, ..] => {
                let network = number("net_id", network).map_err(ReplyError::Number)?;
                Ok(Self::N { name: (*name).to_owned(), network })
            }
            ["N", ..] => Err(ReplyError::Invalid("N")),
            ["S", ..] => Ok(Self::S(text.split('\n').filter_map(provider).collect())),
            [other, ..] => Err(ReplyError::Unknown((*other).to_owned())),
        }
    }

    /// The text, without a newline, as the official server sends it.
    pub fn emit(&self) -> String {
        match self {
            Self::Ok => "OK".to_owned(),
            Self::A { name, address } => format!("A {name} {address}"),
            Self::N { name, network } => format!("N {name} {network}"),
            Self::S(providers) if providers.is_empty() => "S".to_owned(),
            Self::S(providers) => {
                let line = |p: &Provider| format!("S {} {} {}", p.name, p.address, p.port);
                providers.iter().map(line).collect::<Vec<_>>().join("\n")
            }
            Self::Err(text) => format!("ERR {text}"),
        }
    }
}

/// One line of providers; what is wrong in it becomes zero or the largest value, as the official client has it.
fn provider(line: &str) -> Option<Provider> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["S", name, address, port, ..] = words[..] else { return None };
    let port = port.parse::<u64>().map_or(0, |port| u16::try_from(port).unwrap_or(u16::MAX));
    Some(Provider { name: name.to_owned(), address: address.parse().unwrap_or(Address::backbone(0)), port })
}
