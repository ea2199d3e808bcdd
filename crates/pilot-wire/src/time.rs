//! RFC 3339 times and the time stamps of file names, in UTC.

use std::time::Duration;

/// The last second of the year 9999.
const LAST: u64 = 253_402_300_799;

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar.
fn days_from_date(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Year, month, day, second of the day.
fn date(unix: Duration) -> (i64, i64, i64, u64) {
    let seconds = unix.as_secs().min(LAST);
    // At most 9999 years of days.
    let days = (seconds / 86_400) as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1, seconds % 86_400)
}

/// `2026-02-27T10:11:12Z`. Times beyond the year 9999 are written as its last second.
pub fn rfc3339(unix: Duration) -> String {
    let (year, month, day, second) = date(unix);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// `2026-02-27T10:11:12.345678901Z`: with nanoseconds, trailing zeros cut, as newer official programs write it.
pub fn rfc3339_nanos(unix: Duration) -> String {
    let whole = rfc3339(unix);
    match unix.subsec_nanos() {
        0 => whole,
        nanos => {
            let digits = format!("{nanos:09}");
            format!("{}.{}Z", whole.trim_end_matches('Z'), digits.trim_end_matches('0'))
        }
    }
}

/// `20260227-101112.345`: the time stamp in the names of messages and received files (05 §1.1; here always in UTC).
pub fn stamp(unix: Duration) -> String {
    let (year, month, day, second) = date(unix);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}.{:03}", unix.subsec_millis())
}

fn number(text: &str, digits: usize) -> Option<i64> {
    Some(text).filter(|t| t.len() == digits && t.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

fn unix(date: (i64, i64, i64), clock: (i64, i64, i64), offset: i64) -> Option<u64> {
    let ((year, month, day), (hour, minute, second)) = (date, clock);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    u64::try_from(days_from_date(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset).ok()
}

/// Reads a [`stamp`]; `None` for anything else.
pub fn parse_stamp(text: &str) -> Option<Duration> {
    let (date, clock) = text.split_once('-')?;
    let (clock, millis) = clock.split_once('.')?;
    let part = |text: &str, from: usize, to: usize| number(text.get(from..to)?, to - from);
    if date.len() != 8 || clock.len() != 6 {
        return None;
    }
    let date = (part(date, 0, 4)?, part(date, 4, 6)?, part(date, 6, 8)?);
    let clock = (part(clock, 0, 2)?, part(clock, 2, 4)?, part(clock, 4, 6)?);
    let millis = u64::try_from(number(millis, 3)?).ok()?;
    Some(Duration::from_secs(unix(date, clock, 0)?) + Duration::from_millis(millis))
}

/// Reads an RFC 3339 time with any offset; digits behind the ninth of a fraction are cut. `None` for anything else, and
/// for times before 1970.
pub fn parse_rfc3339(text: &str) -> Option<Duration> {
    let (date, rest) = text.split_once(['T', 't'])?;
    let mut parts = date.split('-');
    let date = (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    if parts.next().is_some() {
        return None;
    }
    let (clock, offset) = rest.split_at(rest.find(['Z', 'z', '+', '-'])?);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos = format!("{fraction:0<9}").get(..9)?.parse::<u32>().ok()?;
    let mut parts = clock.split(':');
    let clock = (number(parts.next()?, 2)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    if parts.next().is_some() {
        return None;
    }
    let offset = match offset {
        "Z" | "z" => 0,
        zone => {
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let seconds = number(hours, 2)? * 3600 + number(minutes, 2)? * 60;
            if zone.starts_with('-') { -seconds } else { seconds }
        }
    };
    Some(Duration::new(unix(date, clock, offset)?, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_samples_show_and_read_back() {
        let at = Duration::new(1_772_187_072, 345_678_900);
        assert_eq!(rfc3339(at), "2026-02-27T10:11:12Z");
        assert_eq!(rfc3339_nanos(at), "2026-02-27T10:11:12.3456789Z");
        assert_eq!(rfc3339_nanos(Duration::from_secs(1_772_187_072)), "2026-02-27T10:11:12Z");
        assert_eq!(stamp(at), "20260227-101112.345");
        assert_eq!(parse_rfc3339("2026-02-27T10:11:12.3456789Z"), Some(at));
        assert_eq!(parse_rfc3339("2026-02-27T12:11:12+02:00"), Some(Duration::from_secs(at.as_secs())));
        assert_eq!(parse_stamp("20260227-101112.345"), Some(Duration::from_millis(1_772_187_072_345)));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        let texts = ["", "2026-02-27", "2026-13-01T00:00:00Z", "2026-02-27T10:11:12", "2026-02-27T10:11:12.Z", "é"];
        assert!(texts.iter().all(|text| parse_rfc3339(text).is_none()));
        let stamps = ["", "20260227-101112", "2026022é-101112.345", "20260227-101112.34", "20261327-101112.345"];
        assert!(stamps.iter().all(|text| parse_stamp(text).is_none()));
    }
}
