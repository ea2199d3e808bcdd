//! Lenient reading of JSON objects (04 §4): a field that is missing or of the wrong type is absent.

use serde_json::{Map, Value};

/// The fields of a message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields(pub Map<String, Value>);

/// A number as a `u32`: truncated toward zero, 0 when negative or too large (04 §4).
pub fn coerce_u32(number: f64) -> u32 {
    if (0.0..=f64::from(u32::MAX)).contains(&number) { number as u32 } else { 0 }
}

/// A number as a `u16`: truncated toward zero, 0 when negative or too large (04 §4).
pub fn coerce_u16(number: f64) -> u16 {
    if (0.0..=f64::from(u16::MAX)).contains(&number) { number as u16 } else { 0 }
}

/// A number as an `i64`: truncated toward zero, the smallest value when out of range (04 §4).
pub fn coerce_i64(number: f64) -> i64 {
    // 2^63 is exact as a float; `i64::MAX` is not.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if (-LIMIT..LIMIT).contains(&number) { number as i64 } else { i64::MIN }
}

impl Fields {
    /// The value of a field.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// A number field.
    pub fn number(&self, name: &str) -> Option<f64> {
        match self.get(name) {
            Some(Value::Number(number)) => number.as_f64(),
            _ => None,
        }
    }

    /// A `u32` field, 0 when absent.
    pub fn u32(&self, name: &str) -> u32 {
        self.number(name).map_or(0, coerce_u32)
    }

    /// A `u16` field, 0 when absent.
    pub fn u16(&self, name: &str) -> u16 {
        self.number(name).map_or(0, coerce_u16)
    }

    /// An `i64` field that must be a number.
    pub fn i64(&self, name: &str) -> Option<i64> {
        self.number(name).map(coerce_i64)
    }

    /// A string field, if it is one.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    /// A string field, empty when absent.
    pub fn string(&self, name: &str) -> String {
        self.text(name).unwrap_or_default().to_owned()
    }

    /// A string field, absent when empty.
    pub fn optional(&self, name: &str) -> Option<String> {
        self.text(name).filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// A boolean field, false when absent.
    pub fn bool(&self, name: &str) -> bool {
        self.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    /// The strings of an array field; other elements are dropped.
    pub fn strings(&self, name: &str) -> Vec<String> {
        self.list(name).iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    }

    /// The elements of an array field, none when absent.
    pub fn list(&self, name: &str) -> &[Value] {
        self.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The objects of an array field; other elements are dropped.
    pub fn objects(&self, name: &str) -> impl Iterator<Item = Fields> + '_ {
        self.list(name).iter().filter_map(|item| item.as_object().map(|map| Fields(map.clone())))
    }
}

/// Builds a message object.
pub(super) struct Builder(Map<String, Value>);

impl Builder {
    pub(super) fn new(kind: &str) -> Self {
        let mut map = Map::new();
        map.insert("type".to_owned(), Value::from(kind));
        Self(map)
    }

    /// An entry of a list, which has no type.
    pub(super) fn entry() -> Self {
        Self(Map::new())
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// Left out when empty.
    pub(super) fn text(self, name: &str, text: &str) -> Self {
        if text.is_empty() { self } else { self.with(name, text) }
    }

    /// Left out when absent.
    pub(super) fn maybe(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Left out when false.
    pub(super) fn flag(self, name: &str, on: bool) -> Self {
        if on { self.with(name, true) } else { self }
    }

    pub(super) fn done(self) -> Value {
        Value::Object(self.0)
    }
}
