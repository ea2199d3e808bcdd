//! The control socket of a running gateway: one line of JSON each way (docs/spec/gateway.md).

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::json;

/// Longest line of a client, in bytes, the newline included.
pub const MAX_REQUEST: usize = 4 * 1024;
/// Longest line of the gateway, in bytes.
pub const MAX_ANSWER: usize = 8 << 20;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Give an agent an address of this host: the one asked for, or the next free one.
    Map {
        /// An address or a hostname.
        target: String,
        /// The address asked for.
        ip: Option<IpAddr>,
    },
    /// Take an address back.
    Unmap {
        /// The address.
        ip: IpAddr,
    },
    /// Tell what there is.
    List,
    /// End.
    Stop,
}

/// What the gateway answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The result.
    Done(Value),
    /// Why not.
    Failed {
        /// Stable name.
        code: String,
        /// What, where and why.
        message: String,
        /// What to do about it, or empty.
        hint: String,
    },
}

/// Why a line is not one of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ControlError(String);

impl ControlError {
    /// Stable name of the error.
    pub const fn code(&self) -> &'static str {
        "bad_request"
    }
}

fn object(line: &[u8]) -> Result<Map<String, Value>, ControlError> {
    match json::parse(line) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ControlError("not a JSON object".to_owned())),
        Err(error) => Err(ControlError(format!("not JSON: {error}"))),
    }
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, ControlError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(ControlError(format!("{key:?} is not a text"))),
    }
}

fn ip(map: &Map<String, Value>) -> Result<Option<IpAddr>, ControlError> {
    let Some(text) = text(map, "ip")? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| ControlError(format!("invalid IP: {text}")))
}

fn line(value: &Value) -> Vec<u8> {
    let mut line = json::to_vec(value);
    line.push(b'\n');
    line
}

impl Request {
    /// Reads a line, with or without its newline. Keys that are not known are passed over.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, ControlError> {
        let map = object(line)?;
        let missing = |key: &str| ControlError(format!("{key:?} is missing"));
        match text(&map, "command")?.ok_or_else(|| missing("command"))? {
            "map" => {
                let target = text(&map, "target")?.filter(|target| !target.is_empty());
                Ok(Self::Map { target: target.ok_or_else(|| missing("target"))?.to_owned(), ip: ip(&map)? })
            }
            "unmap" => Ok(Self::Unmap { ip: ip(&map)?.ok_or_else(|| missing("ip"))? }),
            "list" => Ok(Self::List),
            "stop" => Ok(Self::Stop),
            other => Err(ControlError(format!("unknown command {other:?}: there are map, unmap, list and stop"))),
        }
    }

    /// The line.
    pub fn emit(&self) -> Vec<u8> {
        line(&match self {
            Self::Map { target, ip: Some(ip) } => json!({ "command": "map", "target": target, "ip": ip.to_string() }),
            Self::Map { target, ip: None } => json!({ "command": "map", "target": target }),
            Self::Unmap { ip } => json!({ "command": "unmap", "ip": ip.to_string() }),
            Self::List => json!({ "command": "list" }),
            Self::Stop => json!({ "command": "stop" }),
        })
    }
}

impl Answer {
    /// Reads a line, with or without its newline.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, ControlError> {
        let mut map = object(line)?;
        if let Some(data) = map.remove("data") {
            return Ok(Self::Done(data));
        }
        let Some(Value::Object(error)) = map.get("error") else {
            return Err(ControlError("neither \"data\" nor \"error\"".to_owned()));
        };
        let part = |key| Ok(text(error, key)?.unwrap_or_default().to_owned());
        Ok(Self::Failed { code: part("code")?, message: part("message")?, hint: part("hint")? })
    }

    /// The line.
    pub fn emit(&self) -> Vec<u8> {
        line(&match self {
            Self::Done(data) => json!({ "data": data }),
            Self::Failed { code, message, hint } => {
                json!({ "error": { "code": code, "message": message, "hint": hint } })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_read_back_as_written() {
        for request in [
            Request::Map { target: "bob".to_owned(), ip: None },
            Request::Map { target: "0:0000.0000.0005".to_owned(), ip: Some([127, 4, 0, 9].into()) },
            Request::Unmap { ip: "fd00::1".parse().unwrap() },
            Request::List,
            Request::Stop,
        ] {
            assert_eq!(Request::parse(&request.emit()), Ok(request));
        }
        for answer in [
            Answer::Done(json!({ "mappings": [] })),
            Answer::Failed { code: "not_found".to_owned(), message: "no\nmapping".to_owned(), hint: String::new() },
        ] {
            let line = answer.emit();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(Answer::parse(&line), Ok(answer));
        }
    }

    #[test]
    fn what_is_no_request_is_told_why() {
        for (line, why) in [
            ("", "not JSON"),
            ("[]", "not a JSON object"),
            ("{}", "\"command\" is missing"),
            (r#"{"command":1}"#, "\"command\" is not a text"),
            (r#"{"command":"format"}"#, "unknown command \"format\""),
            (r#"{"command":"map"}"#, "\"target\" is missing"),
            (r#"{"command":"map","target":""}"#, "\"target\" is missing"),
            (r#"{"command":"map","target":"bob","ip":"10.4"}"#, "invalid IP: 10.4"),
            (r#"{"command":"unmap"}"#, "\"ip\" is missing"),
        ] {
            let error = Request::parse(line.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with(why), "{line}: {error}");
        }
        assert!(Answer::parse(b"{}").is_err());
    }
}
