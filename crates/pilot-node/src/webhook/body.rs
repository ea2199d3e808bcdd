//! The body of one event, in the official form: `event`, `node_id`, `timestamp`, and `data` unless there is none
//! (05 §10.2).

use std::time::Duration;

use jiff::Timestamp;
use pilot_wire::json;
use serde_json::Value;

use crate::events::NodeEvent;

/// Compact JSON.
pub(super) fn json(event: &NodeEvent, node: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"{\"event\":");
    json::write_string(event.name, &mut out);
    out.extend_from_slice(format!(",\"node_id\":{node},\"timestamp\":").as_bytes());
    json::write_string(&timestamp(event.time), &mut out);
    if !event.data.is_empty() {
        out.extend_from_slice(b",\"data\":");
        json::write_value(&Value::Object(event.data.clone()), &mut out);
    }
    out.push(b'}');
    out
}

/// UTC with as many digits of the second as are not zero.
fn timestamp(unix: Duration) -> String {
    let seconds = i64::try_from(unix.as_secs()).unwrap_or_default();
    let nanos = i32::try_from(unix.subsec_nanos()).unwrap_or_default();
    Timestamp::new(seconds, nanos).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    fn event(name: &'static str, nanos: u64, data: Value) -> NodeEvent {
        let data = match data {
            Value::Object(data) => data,
            _ => Map::new(),
        };
        NodeEvent { number: 1, time: Duration::from_nanos(nanos), name, data }
    }

    /// Every body that the reference sent comes out of the same facts byte for byte.
    #[test]
    fn bodies_equal_the_official_ones() {
        let file: Value = serde_json::from_str(include_str!("../../tests/vectors/services-webhook.json")).unwrap();
        let samples = file["events"].as_array().unwrap();
        assert!(samples.len() > 20);
        for sample in samples {
            let text = sample["body_utf8"].as_str().unwrap();
            let body: Value = serde_json::from_str(text).unwrap();
            let time: Timestamp = body["timestamp"].as_str().unwrap().parse().unwrap();
            let nanos = u64::try_from(time.as_nanosecond()).unwrap();
            let name: &'static str = Box::leak(sample["event"].as_str().unwrap().to_owned().into_boxed_str());
            let node = u32::try_from(body["node_id"].as_u64().unwrap()).unwrap();
            let ours = String::from_utf8(json(&event(name, nanos, body["data"].clone()), node)).unwrap();
            assert_eq!(ours, text);
        }
    }

    /// Another recording, with the values that change from run to run left out.
    #[test]
    fn bodies_have_the_recorded_keys_in_the_recorded_order() {
        let file: Value = serde_json::from_str(include_str!("../../tests/vectors/cli-webhook-samples.json")).unwrap();
        let samples = file["samples"].as_object().unwrap();
        assert_eq!(samples.len(), 8);
        for (name, sample) in samples {
            let name: &'static str = Box::leak(name.clone().into_boxed_str());
            let node = u32::try_from(sample["node_id"].as_u64().unwrap()).unwrap();
            let ours =
                String::from_utf8(json(&event(name, 1_772_186_000_120_000_000, sample["data"].clone()), node)).unwrap();
            let data = pilot_wire::json::to_string(&sample["data"]);
            let expected = format!(
                "{{\"event\":\"{name}\",\"node_id\":{node},\"timestamp\":\"2026-02-27T09:53:20.12Z\",\"data\":{data}}}"
            );
            assert_eq!(ours, expected);
        }
    }

    #[test]
    fn a_whole_second_has_no_fraction() {
        assert_eq!(timestamp(Duration::from_secs(1_772_186_000)), "2026-02-27T09:53:20Z");
        assert_eq!(timestamp(Duration::new(1_772_186_000, 120_000_000)), "2026-02-27T09:53:20.12Z");
    }
}
