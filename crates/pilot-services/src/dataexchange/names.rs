//! Names of received files: whatever a sender writes, the name stays inside the directory, can be typed, and is unique
//! (05 §5.4, §15.23).

use std::time::Duration;

use pilot_wire::{json, time};

/// Longest name, in bytes: file systems take 255, and the file that describes this one has a longer name.
const MAX: usize = 240;
/// Longest extension that is kept as such, in bytes, the dot included.
const MAX_EXTENSION: usize = 64;
/// What stands between stem and extension at most: `-20260227-101112.345-000001`.
const STAMP: usize = 1 + 19 + 7;

/// The last element of a path that a sender wrote, fit for a file name. Empty when there is none.
pub fn base(name: &[u8]) -> String {
    let text = json::text_lossy(name);
    let last = text.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    // Control characters confuse terminals, backslashes other systems; what changes the direction of text deceives.
    let bad = |c: char| {
        c.is_control()
            || matches!(c, '\\' | '/' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    last.chars().map(|c| if bad(c) { '_' } else { c }).collect()
}

fn cut(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The name to store under: `<stem>-<time stamp><extension>`, the extension from the last dot on; with a number before
/// the extension from the second try on. A stem never begins with a dash (an option) or a dot (hidden), and is never empty.
pub fn stored(base: &str, at: Duration, attempt: u32) -> String {
    let (stem, extension) = base.rfind('.').map_or((base, ""), |dot| base.split_at(dot));
    let (stem, extension) = if extension.len() > MAX_EXTENSION { (base, "") } else { (stem, extension) };
    let safe = match stem.chars().next() {
        None => "file".to_owned(),
        Some('-' | '.') => format!("_{}", stem.get(1..).unwrap_or_default()),
        Some(_) => stem.to_owned(),
    };
    let stem = cut(&safe, MAX - MAX_EXTENSION - STAMP);
    let stamp = time::stamp(at);
    if attempt == 0 { format!("{stem}-{stamp}{extension}") } else { format!("{stem}-{stamp}-{attempt:06}{extension}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(sent: &[u8]) -> String {
        stored(&base(sent), Duration::from_millis(1_772_187_072_345), 0).replace("20260227-101112.345", "<TS>")
    }

    #[test]
    fn names_are_those_of_february_where_those_were_safe() {
        let file: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/services-dataexchange.json")).unwrap();
        let rows = file["received_file_names"].as_array().unwrap();
        let mut same = 0;
        let mut different = Vec::new();
        for row in rows {
            let sent = row["received_filename"].as_str().unwrap();
            let ours = name(sent.as_bytes());
            let Some(theirs) = row["stored_as"].as_str() else { continue };
            let theirs = theirs.strip_prefix(".pilot/received/").unwrap();
            match sent {
                ".bashrc" => assert_eq!(ours, "file-<TS>.bashrc"),
                ".." => assert_eq!(ours, "_-<TS>."),
                "." => assert_eq!(ours, "file-<TS>."),
                "/" => assert_eq!(ours, "file-<TS>"),
                "back\\slash.txt" => assert_eq!(ours, "back_slash-<TS>.txt"),
                "new\nline.txt" => assert_eq!(ours, "new_line-<TS>.txt"),
                "-rf" => assert_eq!(ours, "_rf-<TS>"),
                _ => {
                    assert_eq!(ours, theirs);
                    same += 1;
                }
            }
            if ours != theirs {
                different.push(sent.escape_default().to_string());
            }
        }
        crate::compatibility::check("services-dataexchange names", different);
        assert!(same >= 7, "{same}");
    }

    #[test]
    fn no_name_is_too_long_or_leads_elsewhere() {
        let long = "n".repeat(400);
        for sent in [long.as_bytes(), "é".repeat(300).as_bytes(), b"a.\xff\xff/..", b"\0", "a.é".repeat(200).as_bytes()]
        {
            for attempt in [0, 1] {
                let name = stored(&base(sent), Duration::from_secs(1), attempt);
                assert!(name.len() <= MAX && !name.contains(['/', '\0']) && !name.starts_with(['.', '-']), "{name}");
            }
        }
        assert_eq!(base("invoice\u{202e}fdp.exe".as_bytes()), "invoice_fdp.exe");
    }
}
