//! Text and numbers in a page.

/// Text as it may stand in an element or an attribute. Control characters are shown, not passed on.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\u{0}'..='\u{1f}' => out.push(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}')),
            '\u{7f}'..='\u{9f}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// A number with as many digits as say something.
pub fn number(value: f64) -> String {
    let size = value.abs();
    let text = match size {
        _ if value == 0.0 => return "0".into(),
        s if !(1e-3..1e6).contains(&s) => return scientific(value),
        s if s.fract() == 0.0 => return grouped(value),
        s if s < 0.1 => format!("{value:.4}"),
        s if s < 10.0 => format!("{value:.3}"),
        s if s < 100.0 => format!("{value:.1}"),
        _ => return grouped(value),
    };
    text.replace('-', "\u{2212}")
}

fn scientific(value: f64) -> String {
    let text = format!("{value:.1e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let mantissa = mantissa.strip_suffix(".0").unwrap_or(mantissa).replace('-', "\u{2212}");
    format!("{mantissa}e{}", exponent.replace('-', "\u{2212}"))
}

/// A whole number with thin spaces between thousands.
pub fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    if value < 0.0 && digits != "0" { format!("\u{2212}{out}") } else { out }
}

/// A share as percent: `83.7 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1}\u{202f}%", 100.0 * share)
}

/// Seconds for people.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A section with a heading; `id` is its anchor.
pub fn section(id: &str, heading: &str, body: &str) -> String {
    format!("<section id=\"{id}\" aria-labelledby=\"h-{id}\">\n<h2 id=\"h-{id}\">{heading}</h2>\n{body}</section>\n")
}

/// Rows of a table of facts; empty facts are left out. Both cells are text.
pub fn facts(rows: &[(&str, String)]) -> String {
    let row =
        |(name, fact): &(&str, String)| format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(fact));
    let rows: String = rows.iter().filter(|(_, fact)| !fact.is_empty()).map(row).collect();
    format!("<dl class=\"facts\">\n{rows}</dl>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_can_act() {
        assert_eq!(
            escape("<a href=\"x\" onload='y'>&\u{0}\u{1b}"),
            "&lt;a href=&quot;x&quot; onload=&#39;y&#39;&gt;&amp;␀␛"
        );
    }

    #[test]
    fn numbers_are_readable() {
        for (value, want) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.12345, "0.123"),
            (-0.01234, "\u{2212}0.0123"),
            (12.34, "12.3"),
            (12345.6, "12\u{202f}346"),
            (1e-7, "1e\u{2212}7"),
            (-2.5e9, "\u{2212}2.5e9"),
        ] {
            assert_eq!(number(value), want);
        }
        assert_eq!(
            (grouped(999.0), grouped(-1000.0), grouped(-0.2)),
            ("999".into(), "\u{2212}1\u{202f}000".into(), "0".into())
        );
        assert_eq!(
            (duration(5.04), duration(61.0), duration(7260.0)),
            ("5.0 s".into(), "1 min 1 s".into(), "2 h 1 min".into())
        );
        assert_eq!(percent(0.8367), "83.7\u{202f}%");
    }
}
