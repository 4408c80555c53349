//! When something was, in one form that orders as text: `2026-01-31 12:00:00`, as far as it is known, in UTC where a number says it.

use rusqlite::types::ValueRef;

/// The form of a time as a database keeps it: text, or seconds since 1970, or thousandths, millionths or billionths of them.
pub(super) fn of(value: ValueRef) -> Option<String> {
    match value {
        ValueRef::Text(text) => std::str::from_utf8(text).ok().and_then(|text| match text.parse::<f64>() {
            Ok(number) => epoch(number),
            Err(_) => Some(plain(text)).filter(|text| !text.is_empty()),
        }),
        ValueRef::Integer(number) => epoch(number as f64),
        ValueRef::Real(number) => epoch(number),
        _ => None,
    }
}

/// A date in words, without what does not order: `T` between date and time, and what follows the seconds.
pub(super) fn plain(text: &str) -> String {
    let text = text.trim().replacen('T', " ", 1);
    let end = text.char_indices().nth(19).map_or(text.len(), |(at, _)| at);
    text[..end].trim_end_matches(['Z', ' ']).to_owned()
}

/// The form of a number; thousandths and less are told by their size.
fn epoch(number: f64) -> Option<String> {
    let mut seconds = number;
    while seconds.abs() > 1e11 {
        seconds /= 1000.0;
    }
    if !(seconds.is_finite() && seconds > 0.0) {
        return None;
    }
    let seconds = seconds as i64;
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // the civil calendar from days, eras of 400 years beginning in March
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    Some(format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_one_form() {
        for (value, want) in [
            (ValueRef::Integer(1_769_860_800), Some("2026-01-31 12:00:00")),
            (ValueRef::Integer(1_769_860_800_000), Some("2026-01-31 12:00:00")),
            (ValueRef::Real(1_769_860_800.25), Some("2026-01-31 12:00:00")),
            (ValueRef::Integer(1_769_860_800_000_000_000), Some("2026-01-31 12:00:00")),
            (ValueRef::Integer(951_782_400), Some("2000-02-29 00:00:00")),
            (ValueRef::Text(b"2026-01-31T12:00:00.123Z"), Some("2026-01-31 12:00:00")),
            (ValueRef::Text(b"2026-01-31 12:00:00+00:00"), Some("2026-01-31 12:00:00")),
            (ValueRef::Text(b"1769860800"), Some("2026-01-31 12:00:00")),
            (ValueRef::Text(b"2026-01-31"), Some("2026-01-31")),
            (ValueRef::Text(b""), None),
            (ValueRef::Integer(0), None),
            (ValueRef::Null, None),
        ] {
            assert_eq!(of(value).as_deref(), want, "{value:?}");
        }
    }
}
