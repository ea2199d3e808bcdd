//! Names of result files: what a worker may send, and where it is kept.

/// Extensions of results that are taken (05 §7.4). Programs are not among them.
const ALLOWED: [&str; 24] = [
    ".md",
    ".txt",
    ".rtf",
    ".docx",
    ".pdf",
    ".pptx",
    ".pth",
    ".pt",
    ".onnx",
    ".h5",
    ".pb",
    ".ckpt",
    ".safetensors",
    ".bin",
    ".csv",
    ".parquet",
    ".xlsx",
    ".xls",
    ".jpg",
    ".jpeg",
    ".png",
    ".svg",
    ".gif",
    ".webp",
];
/// Longest name that is kept, in bytes.
const MAX_NAME: usize = 150;

/// The extension of a file from its last dot, in lower case; empty when there is none.
pub fn extension(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rfind('.').and_then(|dot| name.get(dot..)).unwrap_or_default().to_lowercase()
}

/// Whether results may have this extension.
pub fn is_allowed(extension: &str) -> bool {
    ALLOWED.contains(&extension)
}

/// A name that stays inside the directory whatever was sent: the last part of a path, control characters and what parts
/// paths replaced, and short. `None` when its extension is not allowed.
pub(super) fn safe(sent: &str) -> Option<String> {
    let base = sent.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean: String = base.chars().map(|c| if c.is_control() || c == ':' { '_' } else { c }).collect();
    let extension = extension(&clean);
    if !is_allowed(&extension) {
        return None;
    }
    let stem = clean.get(..clean.len() - extension.len())?;
    let mut end = stem.len().min(MAX_NAME);
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    Some(format!("{}{extension}", stem.get(..end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_inside_and_programs_are_refused() {
        for (sent, kept) in [
            ("out.csv", Some("out.csv")),
            ("/../../../../.ssh/x.TXT", Some("x.txt")),
            ("..\\..\\a.md", Some("a.md")),
            ("a\nb:c.md", Some("a_b_c.md")),
            (".txt", Some(".txt")),
            ("authorized_keys", None),
            ("run.sh", None),
            ("..", None),
            ("", None),
            ("a.txt/", None),
        ] {
            assert_eq!(safe(sent).as_deref(), kept, "{sent:?}");
        }
        assert!(safe(&format!("{}.md", "é".repeat(500))).is_some_and(|name| name.len() <= MAX_NAME + 3));
    }

    #[test]
    fn the_list_is_that_of_the_official_tool() {
        let text = include_str!("../../tests/vectors/services-task.json");
        let file: serde_json::Value = serde_json::from_str(text).unwrap();
        let official: Vec<&str> =
            file["allowed_result_extensions"].as_array().unwrap().iter().filter_map(|e| e.as_str()).collect();
        let mut ours = ALLOWED;
        ours.sort_unstable();
        assert_eq!(ours.to_vec(), official);
        for bad in file["forbidden_result_extensions"].as_array().unwrap() {
            assert!(!is_allowed(bad.as_str().unwrap()));
        }
    }
}
