//! Patterns of topics, between our own peers only (docs/spec/events.md): levels are parted by `/`, `+` stands for exactly
//! one level, and a last `#` for the level before it and everything below.

/// A pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    levels: Vec<Vec<u8>>,
    deep: bool,
}

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`#` may stand only alone in the last level of a pattern, and `+` only alone in a level")]
pub struct BadPattern;

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`BadPattern`].
    pub fn new(text: &[u8]) -> Result<Self, BadPattern> {
        let mut levels: Vec<Vec<u8>> = text.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        let deep = levels.last().is_some_and(|last| last == b"#");
        if deep {
            levels.pop();
        }
        let stray = |level: &Vec<u8>| level.contains(&b'#') || level.len() > 1 && level.contains(&b'+');
        if levels.iter().any(stray) { Err(BadPattern) } else { Ok(Self { levels, deep }) }
    }

    /// Whether a topic has this form.
    pub fn matches(&self, topic: &[u8]) -> bool {
        let mut topic = topic.split(|b| *b == b'/');
        for level in &self.levels {
            match topic.next() {
                Some(part) if level == b"+" || level == part => {}
                _ => return false,
            }
        }
        self.deep || topic.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_match_one_by_one() {
        let matches = |pattern: &str, topic: &str| Pattern::new(pattern.as_bytes()).unwrap().matches(topic.as_bytes());
        for (pattern, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+", "a/b/c", false),
            ("+/b", "a/b", true),
            ("+", "", true),
            ("#", "", true),
            ("#", "a/b/c", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("a/+/c/#", "a/x/c/d/e", true),
            ("*", "a", false),
            ("*", "*", true),
        ] {
            assert_eq!(matches(pattern, topic), expected, "{pattern} {topic}");
        }
        for bad in ["#/a", "a#", "a/b+", "++", "a/##"] {
            assert_eq!(Pattern::new(bad.as_bytes()), Err(BadPattern), "{bad}");
        }
    }
}
