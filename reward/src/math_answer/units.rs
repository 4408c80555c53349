//! Units after a number, which are left out of an answer.

/// Words that end a number even when written right behind it, and that are too short to be told from letters of an
/// expression otherwise.
const SHORT: &[&str] = &[
    "cm", "mm", "km", "dm", "nm", "kg", "mg", "lb", "lbs", "oz", "ft", "yd", "mi", "in", "ml", "hr", "hrs", "min",
    "sec", "mph", "kph", "rad", "deg", "usd", "gal", "mol", "day", "ton", "hz", "am", "pm", "sq", "cu",
];

/// True if `word` is a short unit.
pub(super) fn is_short_unit(word: &str) -> bool {
    SHORT.iter().any(|unit| unit.eq_ignore_ascii_case(word))
}

/// True if `text` holds nothing but units: known short ones, words of four letters and more, or LaTeX text (between the
/// marks that [`super::clean`] sets), with powers and slashes.
pub(super) fn are_units(text: &str) -> bool {
    let mut rest = text.trim_start();
    let mut words = 0;
    // After a slash a unit may be short: km/h, m/s.
    let mut per = false;
    while let Some(first) = rest.chars().next() {
        let len = match first {
            ' ' | '.' | '/' | '*' | '-' => 1,
            '^' => match power_len(rest) {
                Some(len) => len,
                None => return false,
            },
            '‹' => {
                let Some(end) = rest.find('›').filter(|end| unit_text(&rest['‹'.len_utf8()..*end])) else {
                    return false;
                };
                words += 1;
                end + '›'.len_utf8()
            }
            c if c.is_ascii_alphabetic() => {
                let len = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
                if len < 4 && !per && !is_short_unit(&rest[..len]) {
                    return false;
                }
                words += 1;
                len
            }
            _ => return false,
        };
        per = first == '/' && words > 0;
        rest = &rest[len..];
    }
    words > 0
}

fn unit_text(text: &str) -> bool {
    text.chars().all(|c| c.is_alphabetic() || matches!(c, ' ' | '.' | '/' | '^' | '2' | '3' | '-' | '*' | '\''))
}

/// Length of `^2`, `^3`, `^{2}`, `^{-1}` at the start of `text`.
fn power_len(text: &str) -> Option<usize> {
    ["^2", "^3", "^{2}", "^{3}", "^{-1}", "^{-2}", "^{-3}", "^-1", "^-2"]
        .into_iter()
        .find(|p| text.starts_with(p))
        .map(str::len)
}
