//! JSON text as the official programs read and write it (03 §8, 04 §4).
//!
//! Writing: compact, object keys sorted by byte value, `<`, `>`, `&`, U+2028 and U+2029 escaped, whole floats printed
//! as integers. Reading: strict JSON except that invalid UTF-8 and lone surrogates become U+FFFD and that the last of
//! repeated keys wins. Text after the value, a byte-order mark, numbers beyond a 64-bit float and nesting deeper than
//! [`MAX_DEPTH`] are refused.

use serde::Serialize;
use serde_json::{Map, Number, Value};

/// Deepest nesting that is accepted (04 §3).
pub const MAX_DEPTH: usize = 10_000;
/// Deepest nesting that is kept. Nothing the protocol knows is nested deeper; what lies below is checked, and read as
/// `null`, so that dropping a value never exhausts a stack.
pub const KEPT_DEPTH: usize = 64;

/// Why a text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The text ends inside a value, or holds none. The words are those of the official programs.
    #[error("unexpected end of JSON input")]
    UnexpectedEnd,
    /// Something else was expected at this byte.
    #[error("invalid JSON at byte {0}")]
    Syntax(usize),
    /// More text behind the value.
    #[error("text after the JSON value at byte {0}")]
    Trailing(usize),
    /// A number no 64-bit float can hold.
    #[error("number out of range at byte {0}")]
    Number(usize),
    /// Nesting deeper than [`MAX_DEPTH`].
    #[error("JSON nested deeper than 10000")]
    TooDeep,
}

impl JsonError {
    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnexpectedEnd => "json_unexpected_end",
            Self::Syntax(_) => "json_syntax",
            Self::Trailing(_) => "json_trailing",
            Self::Number(_) => "json_number",
            Self::TooDeep => "json_too_deep",
        }
    }
}

/// Reads one value and nothing but white space around it.
///
/// # Errors
/// [`JsonError`] says where the text stops being JSON.
pub fn parse(text: &[u8]) -> Result<Value, JsonError> {
    let (value, used) = parse_prefix(text)?;
    match text[used..].iter().position(|b| !is_space(*b)) {
        None => Ok(value),
        Some(more) => Err(JsonError::Trailing(used + more)),
    }
}

/// Reads the first value and says how many bytes it took, leading white space included.
/// [`JsonError::UnexpectedEnd`] means that more bytes may complete it.
///
/// # Errors
/// [`JsonError`] says where the text stops being JSON.
pub fn parse_prefix(text: &[u8]) -> Result<(Value, usize), JsonError> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    Ok((value, reader.at))
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\n' | b'\r')
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Result<u8, JsonError> {
        self.text.get(self.at).copied().ok_or(JsonError::UnexpectedEnd)
    }

    /// The next byte that is not white space, not consumed.
    fn token(&mut self) -> Result<u8, JsonError> {
        while self.text.get(self.at).copied().is_some_and(is_space) {
            self.at += 1;
        }
        self.peek()
    }

    fn value(&mut self, depth: usize) -> Result<Value, JsonError> {
        match self.token()? {
            b'{' | b'[' if depth >= KEPT_DEPTH => self.skip(depth).map(|()| Value::Null),
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            _ => self.scalar(),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, JsonError> {
        self.at += 1;
        let mut map = Map::new();
        if self.token()? == b'}' {
            self.at += 1;
            return Ok(Value::Object(map));
        }
        loop {
            let key = self.key()?;
            let value = self.value(depth + 1)?;
            map.insert(key, value);
            if self.more(b'}')? {
                return Ok(Value::Object(map));
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, JsonError> {
        self.at += 1;
        let mut list = Vec::new();
        if self.token()? == b']' {
            self.at += 1;
            return Ok(Value::Array(list));
        }
        loop {
            list.push(self.value(depth + 1)?);
            if self.more(b']')? {
                return Ok(Value::Array(list));
            }
        }
    }

    /// A key and its colon.
    fn key(&mut self) -> Result<String, JsonError> {
        if self.token()? != b'"' {
            return Err(JsonError::Syntax(self.at));
        }
        let key = self.string()?;
        if self.token()? != b':' {
            return Err(JsonError::Syntax(self.at));
        }
        self.at += 1;
        Ok(key)
    }

    /// Consumes `close` (true) or a comma (false).
    fn more(&mut self, close: u8) -> Result<bool, JsonError> {
        let b = self.token()?;
        if b != close && b != b',' {
            return Err(JsonError::Syntax(self.at));
        }
        self.at += 1;
        Ok(b == close)
    }

    /// Checks an object or array without keeping it and without recursion.
    fn skip(&mut self, depth: usize) -> Result<(), JsonError> {
        // The closing bytes that are still owed, innermost last.
        let mut open: Vec<u8> = Vec::new();
        loop {
            // A value begins here.
            let first = self.token()?;
            if matches!(first, b'{' | b'[') {
                self.at += 1;
                let close = if first == b'{' { b'}' } else { b']' };
                if depth + open.len() >= MAX_DEPTH {
                    return Err(JsonError::TooDeep);
                }
                open.push(close);
                if self.token()? != close {
                    if close == b'}' {
                        self.key()?;
                    }
                    continue;
                }
            } else {
                self.scalar()?;
            }
            // A value has ended, or its container is about to.
            loop {
                let Some(&close) = open.last() else {
                    return Ok(());
                };
                if !self.more(close)? {
                    if close == b'}' {
                        self.key()?;
                    }
                    break;
                }
                open.pop();
            }
        }
    }

    fn scalar(&mut self) -> Result<Value, JsonError> {
        match self.peek()? {
            b'"' => self.string().map(Value::String),
            b't' => self.literal(b"true", Value::Bool(true)),
            b'f' => self.literal(b"false", Value::Bool(false)),
            b'n' => self.literal(b"null", Value::Null),
            b'-' | b'0'..=b'9' => self.number(),
            _ => Err(JsonError::Syntax(self.at)),
        }
    }

    fn literal(&mut self, word: &[u8], value: Value) -> Result<Value, JsonError> {
        for expected in word {
            if self.peek()? != *expected {
                return Err(JsonError::Syntax(self.at));
            }
            self.at += 1;
        }
        Ok(value)
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        if !self.peek()?.is_ascii_digit() {
            return Err(JsonError::Syntax(self.at));
        }
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let start = self.at;
        let mut whole = true;
        if self.peek()? == b'-' {
            self.at += 1;
        }
        if self.peek()? == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.text.get(self.at) == Some(&b'.') {
            whole = false;
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            whole = false;
            self.at += 1;
            if matches!(self.text.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        // Only ASCII was consumed, so this cannot fail; the error keeps the path free of panics.
        let text = std::str::from_utf8(&self.text[start..self.at]).map_err(|_| JsonError::Syntax(start))?;
        if whole && text != "-0" {
            if let Ok(n) = text.parse::<i64>() {
                return Ok(Value::from(n));
            }
            if let Ok(n) = text.parse::<u64>() {
                return Ok(Value::from(n));
            }
        }
        let float: f64 = text.parse().map_err(|_| JsonError::Number(start))?;
        Number::from_f64(float).map(Value::Number).ok_or(JsonError::Number(start))
    }

    fn string(&mut self) -> Result<String, JsonError> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let run = self.at;
            while self.text.get(self.at).is_some_and(|b| !matches!(b, b'"' | b'\\' | 0..=0x1F)) {
                self.at += 1;
            }
            push_lossy(&mut out, &self.text[run..self.at]);
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Ok(out);
                }
                b'\\' => {
                    self.at += 1;
                    self.escape(&mut out)?;
                }
                _ => return Err(JsonError::Syntax(self.at)),
            }
        }
    }

    fn escape(&mut self, out: &mut String) -> Result<(), JsonError> {
        let c = match self.peek()? {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                self.at += 1;
                let unit = self.hex4()?;
                out.push(self.surrogate(unit)?);
                return Ok(());
            }
            _ => return Err(JsonError::Syntax(self.at)),
        };
        self.at += 1;
        out.push(c);
        Ok(())
    }

    /// The character of a UTF-16 unit; a high surrogate takes the low one that follows with it.
    fn surrogate(&mut self, unit: u32) -> Result<char, JsonError> {
        if let Some(c) = char::from_u32(unit) {
            return Ok(c);
        }
        if unit < 0xDC00 && self.text[self.at..].starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let low = self.hex4()?;
            if (0xDC00..0xE000).contains(&low) {
                let c = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
                return Ok(char::from_u32(c).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = back;
        }
        Ok(char::REPLACEMENT_CHARACTER)
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = char::from(self.peek()?).to_digit(16).ok_or(JsonError::Syntax(self.at))?;
            unit = unit << 4 | digit;
            self.at += 1;
        }
        Ok(unit)
    }
}

/// Appends bytes as text; every byte that is no part of valid UTF-8 becomes one U+FFFD.
fn push_lossy(out: &mut String, mut bytes: &[u8]) {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(text) => return out.push_str(text),
            Err(bad) => {
                let (valid, rest) = bytes.split_at(bad.valid_up_to());
                out.push_str(std::str::from_utf8(valid).unwrap_or_default());
                out.push(char::REPLACEMENT_CHARACTER);
                bytes = rest.get(1..).unwrap_or_default();
            }
        }
    }
}

/// Bytes as text; every byte that is no part of valid UTF-8 becomes one U+FFFD.
pub fn text_lossy(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    push_lossy(&mut out, bytes);
    out
}

/// The text of a value.
pub fn to_vec(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_value(value, &mut out);
    out
}

/// The text of a value, as a string.
pub fn to_string(value: &Value) -> String {
    // The writer emits strings and ASCII only.
    String::from_utf8(to_vec(value)).unwrap_or_default()
}

/// The text of anything that serializes, keys sorted.
///
/// # Errors
/// As `serde_json` says, for maps whose keys are not strings.
pub fn serialize<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_value(value).map(|value| to_vec(&value))
}

/// Appends the text of a value.
pub fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(n) => write_number(n, out),
        Value::String(s) => write_string(s, out),
        Value::Array(list) => {
            out.push(b'[');
            for (i, item) in list.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_value(item, out);
            }
            out.push(b']');
        }
        Value::Object(map) => {
            let mut keys: Vec<(&String, &Value)> = map.iter().collect();
            keys.sort_unstable_by_key(|(key, _)| *key);
            out.push(b'{');
            for (i, (key, item)) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_string(key, out);
                out.push(b':');
                write_value(item, out);
            }
            out.push(b'}');
        }
    }
}

fn write_number(n: &Number, out: &mut Vec<u8>) {
    let text = match n.as_f64() {
        Some(float) if n.is_f64() => float_text(float),
        _ => n.to_string(),
    };
    out.extend_from_slice(text.as_bytes());
}

/// A float as the official programs print it: plain decimal between 1e-6 and 1e21, else with an exponent.
pub fn float_text(float: f64) -> String {
    let size = float.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        // Rust writes `1e21` and `1.5e-7` where the official form is `1e+21` and `1.5e-7`.
        let text = format!("{float:e}");
        return match text.split_once('e') {
            Some((digits, exponent)) if !exponent.starts_with('-') => format!("{digits}e+{exponent}"),
            _ => text,
        };
    }
    format!("{float}")
}

/// Appends a quoted string with the official escapes.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
            }
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}
