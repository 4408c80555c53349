//! Brings the spellings of an answer together before it is read: Unicode look-alikes, LaTeX layout, synonyms of commands.
//!
//! What comes out uses `\frac`, `\sqrt` and Greek commands, and these marks: `⟅ ⟆` for the braces of a set, `‹ ›` around
//! LaTeX text, `π ∞ ∪ ∈ ∅ ±` for themselves, `,` for a LaTeX "or" and "and".

use super::{AnswerError, MAX_BYTES, MAX_DEPTH};
use crate::text::fold;

/// The text of `answer` in its common spelling.
pub(super) fn clean(answer: &str) -> Result<String, AnswerError> {
    let folded = fold(&spell_out(answer)).replace('\n', " ");
    // Normal forms may be longer than what they stand for.
    if folded.len() > 4 * MAX_BYTES {
        return Err(AnswerError::TooLarge { limit: MAX_BYTES, what: "bytes" });
    }
    let mut out = Latex { rest: &folded, out: String::new() }.run(0)?;
    for (from, to) in [("^{°}", ""), ("^ °", ""), ("^°", ""), ("°", ""), ("{,}", ""), ("**", "^")] {
        out = out.replace(from, to);
    }
    let trimmed = out.trim().trim_end_matches(['.', ',', ';', ' ']);
    if trimmed.is_empty() { Err(AnswerError::Empty) } else { Ok(trimmed.to_owned()) }
}

/// Characters whose compatibility form would change a value: `10²` must not become `102`, nor `3½` `31/2`.
fn spell_out(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut raised = "";
    for c in text.chars() {
        let (kind, plain) = match c {
            '⁰' => ("^", '0'),
            '¹' => ("^", '1'),
            '²' => ("^", '2'),
            '³' => ("^", '3'),
            '⁴'..='⁹' => ("^", char::from(b'4' + (c as u32 - '⁴' as u32) as u8)),
            '⁺' => ("^", '+'),
            '⁻' => ("^", '-'),
            '₀'..='₉' => ("_", char::from(b'0' + (c as u32 - '₀' as u32) as u8)),
            _ => ("", c),
        };
        if kind != raised {
            out.push_str(if raised.is_empty() { "" } else { "}" });
            out.push_str(kind);
            out.push_str(if kind.is_empty() { "" } else { "{" });
            raised = kind;
        }
        match vulgar_fraction(plain) {
            Some(fraction) => out.push_str(fraction),
            None => out.push(symbol(plain)),
        }
    }
    out + if raised.is_empty() { "" } else { "}" }
}

fn vulgar_fraction(c: char) -> Option<&'static str> {
    let fraction = match c {
        '½' => " 1/2",
        '⅓' => " 1/3",
        '⅔' => " 2/3",
        '¼' => " 1/4",
        '¾' => " 3/4",
        '⅕' => " 1/5",
        '⅖' => " 2/5",
        '⅗' => " 3/5",
        '⅘' => " 4/5",
        '⅙' => " 1/6",
        '⅚' => " 5/6",
        '⅛' => " 1/8",
        '⅜' => " 3/8",
        '⅝' => " 5/8",
        '⅞' => " 7/8",
        _ => return None,
    };
    Some(fraction)
}

fn symbol(c: char) -> char {
    match c {
        '−' | '–' | '—' | '‒' | '‐' | '‑' | '﹣' | '－' => '-',
        '×' | '·' | '∙' | '⋅' | '∗' | '•' => '*',
        '÷' | '∕' | '⁄' => '/',
        '’' | '‘' | '′' => '\'',
        // The marks are ours: in an answer they are just brackets.
        '‹' | '⟅' => '<',
        '›' | '⟆' => '>',
        c => c,
    }
}

/// Rewrites LaTeX commands.
struct Latex<'a> {
    rest: &'a str,
    out: String,
}

impl<'a> Latex<'a> {
    fn run(mut self, depth: usize) -> Result<String, AnswerError> {
        if depth > MAX_DEPTH {
            return Err(AnswerError::TooLarge { limit: MAX_DEPTH, what: "levels" });
        }
        while let Some(c) = self.rest.chars().next() {
            self.rest = &self.rest[c.len_utf8()..];
            match c {
                '\\' => self.command(depth)?,
                '$' | '€' | '£' | '¥' | '₹' => {}
                '~' => self.out.push(' '),
                c => self.out.push(c),
            }
        }
        Ok(self.out)
    }

    fn command(&mut self, depth: usize) -> Result<(), AnswerError> {
        let letters = self.rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(self.rest.len());
        let len = if letters > 0 { letters } else { self.rest.chars().next().map_or(0, char::len_utf8) };
        let (name, rest) = self.rest.split_at(len);
        self.rest = rest;
        match name {
            "!" | "left" | "right" | "big" | "Big" | "bigl" | "bigr" | "Bigl" | "Bigr" | "displaystyle"
            | "textstyle" | "limits" | "(" | ")" | "[" | "]" => {}
            "," if self.splits_digits() => {}
            "," | ";" | ":" | " " | "\\" | "" | "quad" | "qquad" | "enspace" | "thinspace" => self.out.push(' '),
            "frac" | "dfrac" | "tfrac" | "cfrac" => self.out.push_str("\\frac"),
            "cdot" | "times" | "ast" => self.out.push('*'),
            "div" => self.out.push('/'),
            "{" | "lbrace" => self.out.push('⟅'),
            "}" | "rbrace" => self.out.push('⟆'),
            "%" => self.out.push('%'),
            "$" => {}
            "infty" => self.out.push('∞'),
            "pi" => self.out.push('π'),
            "cup" => self.out.push('∪'),
            "in" => self.out.push('∈'),
            "emptyset" | "varnothing" => self.out.push('∅'),
            "pm" => self.out.push('±'),
            "circ" | "degree" => self.out.push('°'),
            "text" | "textrm" | "textbf" | "textit" | "textsf" | "texttt" | "mbox" | "hbox" | "mathrm"
            | "operatorname" => {
                self.text(depth)?;
            }
            "boxed" | "fbox" | "mathbf" | "mathit" | "mathsf" | "boldsymbol" | "bm" => {}
            other => {
                self.out.push('\\');
                self.out.push_str(other);
            }
        }
        Ok(())
    }

    /// True between a digit and three digits: a thin space there separates thousands.
    fn splits_digits(&self) -> bool {
        let after: Vec<bool> = self.rest.chars().take(4).map(|c| c.is_ascii_digit()).collect();
        self.out.ends_with(|c: char| c.is_ascii_digit())
            && after.len() >= 3
            && after[..3] == [true; 3]
            && after.get(3) != Some(&true)
    }

    /// `\text{...}`: nothing if empty, a comma for "or" and "and", else the text between marks.
    fn text(&mut self, depth: usize) -> Result<(), AnswerError> {
        let Some((body, rest)) = braced(self.rest) else { return Ok(()) };
        self.rest = rest;
        let body = Latex { rest: body, out: String::new() }.run(depth + 1)?;
        match body.trim() {
            "" => self.out.push(' '),
            "or" | "and" => self.out.push(','),
            body => {
                self.out.push('‹');
                // Texts inside texts are one text.
                self.out.extend(body.chars().filter(|c| !matches!(c, '‹' | '›')));
                self.out.push('›');
            }
        }
        Ok(())
    }
}

/// The text inside the braces that `text` begins with, and what follows them.
fn braced(text: &str) -> Option<(&str, &str)> {
    let inner = text.trim_start().strip_prefix('{')?;
    let mut depth = 1;
    for (i, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&inner[..i], &inner[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_come_together() {
        for (given, want) in [
            ("\u{ff11}\u{ff12}", "12"),
            ("10²", "10^{2}"),
            ("3½", "3 1/2"),
            ("−3×10⁻²", "-3*10^{-2}"),
            (r"$\dfrac{1}{2}$.", r"\frac{1}{2}"),
            (r"\left( 1, 2 \right]", "( 1, 2 ]"),
            (r"\{1,2\}", "⟅1,2⟆"),
            (r"5\text{ cm}^2", "5‹cm›^2"),
            (r"3 \text{ or } 4", "3 , 4"),
            (r"90^\circ", "90"),
            (r"90^{\circ}", "90"),
            (r"1{,}000\,000", "1000000"),
            (r"50\%", "50%"),
            (r"\$5", "5"),
            (r"\boxed{7}", "{7}"),
            ("x₁₂", "x_{12}"),
        ] {
            assert_eq!(clean(given).unwrap(), want, "{given}");
        }
    }

    #[test]
    fn nothing_and_too_much_are_refused() {
        assert_eq!(clean(" $ . $ "), Err(AnswerError::Empty));
        assert!(matches!(clean(&"\u{fdfa}".repeat(600)), Err(AnswerError::TooLarge { .. })));
        assert!(matches!(clean(&r"\text{".repeat(60)), Ok(_) | Err(_)));
    }
}
