//! Texts and numbers in the form of the official tool, whose messages scripts compare: integers, durations, sizes,
//! times and quoted strings (06 §2.1, §8).

use std::fmt;
use std::time::Duration;

/// A text in double quotes with the escapes of the official tool.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c == '\x7f' => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// An unsigned decimal number up to `max`; the error is the official text.
///
/// # Errors
/// `strconv.ParseUint: parsing "x": invalid syntax` or `…: value out of range`.
pub(crate) fn parse_uint(text: &str, max: u64) -> Result<u64, String> {
    let fail = |why| Err(format!("strconv.ParseUint: parsing {}: {why}", quote(text)));
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return fail("invalid syntax");
    }
    match text.parse::<u64>() {
        Ok(n) if n <= max => Ok(n),
        _ => fail("value out of range"),
    }
}

/// A signed decimal number; the error is the official text.
///
/// # Errors
/// `strconv.Atoi: parsing "x": invalid syntax` or `…: value out of range`.
pub(crate) fn parse_int(text: &str) -> Result<i64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let fail = |why| Err(format!("strconv.Atoi: parsing {}: {why}", quote(text)));
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return fail("invalid syntax");
    }
    text.parse().or_else(|_| fail("value out of range"))
}

/// A decimal number with a fraction; the error is the official text. Not-a-number and infinity are refused.
///
/// # Errors
/// `strconv.ParseFloat: parsing "x": invalid syntax`.
pub(crate) fn parse_float(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n.is_finite() => Ok(n),
        _ => Err(format!("strconv.ParseFloat: parsing {}: invalid syntax", quote(text))),
    }
}

/// A signed span of time in nanoseconds, printed as `1m30s`, `1.5s`, `250ms` (06 §2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(i64);

impl Span {
    /// Whole seconds.
    pub(crate) const fn seconds(seconds: i64) -> Self {
        Self(seconds * 1_000_000_000)
    }

    /// Reads `300ms`, `1.5s`, `1h30m`, or a bare number of seconds.
    ///
    /// # Errors
    /// `time: invalid duration "x"`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Some(span) = parse_units(text) {
            return Ok(Self(span));
        }
        match text.parse::<f64>() {
            // A float to integer cast saturates, so that a huge number becomes the longest span.
            Ok(seconds) if seconds.is_finite() => Ok(Self((seconds * 1e9) as i64)),
            _ => Err(format!("time: invalid duration {}", quote(text))),
        }
    }

    /// The span as a waiting time; negative is zero.
    pub(crate) fn wait(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

/// Nanoseconds of one unit.
fn unit(name: &str) -> Option<f64> {
    Some(match name {
        "ns" => 1.0,
        "us" | "µs" | "μs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        "h" => 3600e9,
        _ => return None,
    })
}

/// `[+-](number unit)+`, or `0`.
fn parse_units(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(tail.len());
        let (name, tail) = tail.split_at(unit_end);
        total += number.parse::<f64>().ok()? * unit(name)?;
        rest = tail;
    }
    if total > i64::MAX as f64 {
        return None;
    }
    // Rounded, because a fraction such as 1.1 is not exact in binary.
    let total = total.round() as i64;
    Some(if negative { -total } else { total })
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if nanos == 0 {
            return f.write_str("0s");
        }
        if self.0 < 0 {
            f.write_str("-")?;
        }
        match nanos {
            0..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => write!(f, "{}µs", decimal(nanos, 1_000)),
            1_000_000..1_000_000_000 => write!(f, "{}ms", decimal(nanos, 1_000_000)),
            _ => {
                let (minutes, below) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
                let seconds = decimal(below, 1_000_000_000);
                match (minutes / 60, minutes % 60) {
                    (0, 0) => write!(f, "{seconds}s"),
                    (0, m) => write!(f, "{m}m{seconds}s"),
                    (h, m) => write!(f, "{h}h{m}m{seconds}s"),
                }
            }
        }
    }
}

/// `nanos / unit` with all the digits it needs and no more.
fn decimal(nanos: u64, unit: u64) -> String {
    let (whole, fraction) = (nanos / unit, nanos % unit);
    if fraction == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    let digits = format!("{fraction:0width$}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

/// A span short enough to read: three significant digits (`1.23ms`, `45.6s`).
pub(crate) fn short(duration: Duration) -> String {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let step = 10u64.pow(nanos.checked_ilog10().unwrap_or(0).saturating_sub(2));
    let rounded =
        if nanos < 60_000_000_000 { (nanos + step / 2) / step * step } else { nanos / 1_000_000_000 * 1_000_000_000 };
    Span::from(Duration::from_nanos(rounded)).to_string()
}

/// A size as `17 B`, `1.5 KB`, `2.0 MB`, in powers of 1024.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KB", "MB", "GB", "TB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// Whole seconds as `HH:MM:SS`.
pub(crate) fn clock(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Unix seconds as local `YYYY-MM-DD HH:MM:SS`.
pub(crate) fn local_time(unix: i64) -> String {
    match jiff::Timestamp::from_second(unix) {
        Ok(time) => time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => unix.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fail_in_the_official_words() {
        assert_eq!(parse_uint("65535", 65535), Ok(65535));
        assert_eq!(parse_uint("70000", 65535).unwrap_err(), "strconv.ParseUint: parsing \"70000\": value out of range");
        for bad in ["", "abc", "-1", "+1", "1 "] {
            assert!(parse_uint(bad, 9).unwrap_err().ends_with("invalid syntax"), "{bad:?}");
        }
        assert_eq!(parse_int("-3"), Ok(-3));
        assert_eq!(parse_int("abc").unwrap_err(), "strconv.Atoi: parsing \"abc\": invalid syntax");
        assert_eq!(
            parse_int("9223372036854775808").unwrap_err(),
            "strconv.Atoi: parsing \"9223372036854775808\": value out of range"
        );
        assert_eq!(parse_float("0.5"), Ok(0.5));
        assert!(parse_float("nan").is_err());
    }

    #[test]
    fn spans_print_as_they_are_written() {
        let cases = [
            ("1s", "1s"),
            ("1500ms", "1.5s"),
            ("1", "1s"),
            ("0.5", "500ms"),
            ("-1s", "-1s"),
            ("2m", "2m0s"),
            ("90", "1m30s"),
            ("1h30m", "1h30m0s"),
            ("0", "0s"),
            ("0s", "0s"),
            ("300us", "300µs"),
            ("1.5ms", "1.5ms"),
            ("12ns", "12ns"),
            ("+2s", "2s"),
        ];
        for (text, printed) in cases {
            assert_eq!(Span::parse(text).unwrap().to_string(), printed, "{text}");
        }
        for bad in ["abc", "", "1x", "s", "-", "1s2", "inf"] {
            assert_eq!(Span::parse(bad).unwrap_err(), format!("time: invalid duration \"{bad}\""));
        }
        assert_eq!(Span::parse("-1s").unwrap().wait(), Duration::ZERO);
    }

    #[test]
    fn sizes_and_times_are_readable() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(104_857), "102.4 KB");
        assert_eq!(size(50 << 20), "50.0 MB");
        assert_eq!(clock(3_725), "01:02:05");
        assert_eq!(short(Duration::from_nanos(1_234_567)), "1.23ms");
        assert_eq!(short(Duration::from_micros(999)), "999µs");
        assert_eq!(short(Duration::from_secs(75)), "1m15s");
    }

    #[test]
    fn quoting_keeps_text_on_one_line() {
        assert_eq!(quote("a\"b\\c\nd\x01é"), "\"a\\\"b\\\\c\\nd\\x01é\"");
    }
}
