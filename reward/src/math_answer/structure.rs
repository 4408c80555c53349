//! Reads the outer shape of an answer: lists, sets, tuples, intervals, unions, equations; leaves are words and expressions.

use std::sync::LazyLock;

use regex::Regex;

use super::{AnswerError, MAX_DEPTH, MAX_ITEMS, Scalar, Value, expression, number::Number, units};
use crate::text::collapse_whitespace;

/// Left side of an equation that only names what follows: `x =`, `f(x) =`, `x_1 ∈`, `(x, y) =`, LaTeX text.
static NAME: LazyLock<Regex> = LazyLock::new(|| {
    let variable = r"(?:\\?[A-Za-z]+|‹[^›]*›)(?:_(?:\{[A-Za-z0-9]+\}|[A-Za-z0-9]))?(?:\([A-Za-z]\))?";
    let tuple = r"\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])*\s*\)";
    Regex::new(&format!(r"^({variable}|{tuple})\s*[=∈]")).expect("a constant pattern")
});

/// Most words of an answer in words; more are prose.
const MAX_WORDS: usize = 6;

/// Reads a text that [`super::clean`] has prepared.
pub(super) fn parse(cleaned: &str) -> Result<Value, AnswerError> {
    value(&join_thousands(cleaned), 0)
}

fn value(text: &str, level: usize) -> Result<Value, AnswerError> {
    if level > MAX_DEPTH {
        return Err(AnswerError::TooLarge { limit: MAX_DEPTH, what: "levels" });
    }
    let text = text.trim();
    if text.is_empty() {
        return Err(AnswerError::Empty);
    }
    let parts = split(text, true)?;
    if parts.len() > 1 {
        let items = flat(values(&parts, level)?);
        let worded = items.iter().filter(|item| matches!(item, Value::Words(_))).count();
        // A sentence with a comma would pass for a list.
        return if worded == 0 || worded == items.len() {
            Ok(Value::List(items))
        } else {
            Err(AnswerError::unreadable(text, "words and values in one list"))
        };
    }
    if let Some((before, after)) = text.split_once('±') {
        if after.contains('±') {
            return Err(AnswerError::unreadable(text, "expected one ± at most"));
        }
        let both = [format!("{before}+{after}"), format!("{before}-{after}")];
        return Ok(Value::List(flat(values(&[&both[0], &both[1]], level)?)));
    }
    shape(text, level)
}

/// What is not a list without brackets.
fn shape(text: &str, level: usize) -> Result<Value, AnswerError> {
    let united: Vec<&str> = split_at(text, |rest| rest.starts_with('∪').then_some('∪'.len_utf8()))?;
    if united.len() > 1 {
        return Ok(Value::Union(values(&united, level)?));
    }
    if text == "∅" {
        return Ok(Value::Set(Vec::new()));
    }
    if let Some(negative) = infinity(text) {
        return Ok(Value::Infinity { negative });
    }
    if let Some((open, inner, close)) = wrapped(text) {
        return bracketed(open, inner, close, level);
    }
    if let Some(name) = NAME.captures(text) {
        let whole = name.get(0).map_or(0, |m| m.end());
        let name = name[1].chars().filter(|c| !c.is_whitespace()).collect();
        return Ok(Value::Named { name, value: Box::new(value(&text[whole..], level + 1)?) });
    }
    let ratio = split_at(text, |rest| rest.starts_with(':').then_some(1))?;
    if ratio.len() > 1 {
        return Ok(Value::Sequence { open: ':', close: ':', items: values(&ratio, level)? });
    }
    match words(text)? {
        Some(words) => Ok(Value::Words(words)),
        None => scalar(text).map(Value::Scalar),
    }
}

fn bracketed(open: char, inner: &str, close: char, level: usize) -> Result<Value, AnswerError> {
    if open == '⟅' && inner.trim().is_empty() {
        return Ok(Value::Set(Vec::new()));
    }
    let parts = split(inner, false)?;
    match (open, close) {
        // Bare braces are a TeX group, unless they hold several things.
        ('{', '}') | ('(', ')') | ('‹', '›') if parts.len() == 1 => value(inner, level + 1),
        ('⟅', '⟆') | ('{', '}') => Ok(Value::Set(values(&parts, level)?)),
        ('(' | '[', ')' | ']') => Ok(Value::Sequence { open, close, items: values(&parts, level)? }),
        ('‹', '›') => value(inner, level + 1),
        _ => Err(AnswerError::unreadable(inner, "brackets do not match")),
    }
}

fn values(parts: &[&str], level: usize) -> Result<Vec<Value>, AnswerError> {
    parts.iter().map(|part| value(part, level + 1)).collect()
}

/// Lists in a list (from ±) belong to it.
fn flat(items: Vec<Value>) -> Vec<Value> {
    let one = |item| match item {
        Value::List(inner) => inner,
        other => vec![other],
    };
    items.into_iter().flat_map(one).collect()
}

/// Splits at the commas and semicolons outside brackets; with `spoken`, at " or " and " and " too.
fn split(text: &str, spoken: bool) -> Result<Vec<&str>, AnswerError> {
    split_at(text, |rest| match rest.as_bytes().first() {
        Some(b',' | b';') => Some(1),
        Some(b' ') if spoken => [" or ", " and "].into_iter().find(|word| rest.starts_with(word)).map(str::len),
        _ => None,
    })
}

/// Splits outside brackets where `separator` gives the length of a separator at the start of the rest.
fn split_at(text: &str, separator: impl Fn(&str) -> Option<usize>) -> Result<Vec<&str>, AnswerError> {
    let (mut parts, mut start, mut depth, mut i) = (Vec::new(), 0, 0_usize, 0);
    while let Some(c) = text[i..].chars().next() {
        let mut len = c.len_utf8();
        match c {
            '(' | '[' | '{' | '⟅' | '‹' => depth += 1,
            ')' | ']' | '}' | '⟆' | '›' => {
                depth =
                    depth.checked_sub(1).ok_or_else(|| AnswerError::unreadable(text, "a bracket closes nothing"))?;
            }
            _ if depth == 0 => {
                if let Some(found) = separator(&text[i..]) {
                    parts.push(&text[start..i]);
                    (len, start) = (found, i + found);
                }
            }
            _ => {}
        }
        i += len;
    }
    parts.push(&text[start..]);
    match (depth, parts.len()) {
        (0, n) if n <= MAX_ITEMS => Ok(parts),
        (0, _) => Err(AnswerError::TooLarge { limit: MAX_ITEMS, what: "items" }),
        _ => Err(AnswerError::unreadable(text, "a bracket is not closed")),
    }
}

/// The brackets around the whole of `text`, and what is inside them.
fn wrapped(text: &str) -> Option<(char, &str, char)> {
    let open = text.chars().next().filter(|c| matches!(c, '(' | '[' | '{' | '⟅' | '‹'))?;
    let mut depth = 0_usize;
    for (i, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' | '⟅' | '‹' => depth += 1,
            ')' | ']' | '}' | '⟆' | '›' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return (i + c.len_utf8() == text.len()).then(|| (open, &text[open.len_utf8()..i], c));
        }
    }
    None
}

/// Takes the commas out of `1,234,567` where no bracket but a brace is open; `0,123` and `1,23` are lists.
fn join_thousands(text: &str) -> String {
    let (mut out, mut rest, mut lists) = (String::with_capacity(text.len()), text, 0_usize);
    let mut previous = ' ';
    while let Some(c) = rest.chars().next() {
        match c {
            '(' | '[' | '⟅' => lists += 1,
            ')' | ']' | '⟆' => lists = lists.saturating_sub(1),
            _ => {}
        }
        let starts = c.is_ascii_digit() && !previous.is_ascii_digit() && previous != '.';
        let number = if starts && lists == 0 { grouped(rest) } else { None };
        let len = number.map_or(c.len_utf8(), str::len);
        out.extend(rest[..len].chars().filter(|c| number.is_none() || *c != ','));
        previous = rest[..len].chars().next_back().unwrap_or(c);
        rest = &rest[len..];
    }
    out
}

/// The number with thousands separators that `text` begins with.
fn grouped(text: &str) -> Option<&str> {
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let mut len = digits(text);
    if len > 3 || text.starts_with('0') {
        return None;
    }
    let first = len;
    while text[len..].starts_with(',') && digits(&text[len + 1..]) == 3 {
        len += 4;
    }
    let list_goes_on = text[len..].strip_prefix(',').is_some_and(|rest| digits(rest) > 0);
    (len > first && !list_goes_on).then(|| &text[..len])
}

/// `Some(negative)` for plus or minus infinity.
fn infinity(text: &str) -> Option<bool> {
    match text.strip_suffix('∞')?.trim() {
        "" | "+" => Some(false),
        "-" => Some(true),
        _ => None,
    }
}

/// Words in lower case, if `text` is nothing else: letters, with at least two of them together.
fn words(text: &str) -> Result<Option<String>, AnswerError> {
    let plain: String = text.chars().filter(|c| !matches!(c, '‹' | '›' | '"')).collect();
    let allowed = |c: char| c.is_alphabetic() || matches!(c, ' ' | '\'' | '-' | '.');
    let together = plain.split(|c: char| !c.is_alphabetic()).any(|run| run.chars().nth(1).is_some());
    if !together || !plain.chars().all(allowed) || plain.contains('π') || plain == "pi" {
        return Ok(None);
    }
    let words = collapse_whitespace(&plain.to_lowercase());
    if matches!(words.trim_matches('-'), "nan" | "inf" | "infinity") {
        return Err(AnswerError::unreadable(text, "not a number"));
    }
    if words.matches(' ').count() >= MAX_WORDS {
        return Err(AnswerError::unreadable(text, "a sentence"));
    }
    Ok(Some(words))
}

fn scalar(text: &str) -> Result<Scalar, AnswerError> {
    let bare = ["%", " percent", "‹percent›"].into_iter().find_map(|sign| text.strip_suffix(sign));
    let percent = bare.is_some();
    let text = bare.unwrap_or(text).trim();
    let evaluate = |point| -> Result<expression::Evaluated, AnswerError> {
        let evaluated = expression::evaluate(text, point)?;
        let rest = evaluated.rest.trim();
        if rest.is_empty() || units::are_units(rest) {
            Ok(evaluated)
        } else {
            Err(AnswerError::unreadable(rest, "expected the end of the expression"))
        }
    };
    let first = evaluate(0)?;
    let points = if first.variables.is_empty() { 1 } else { expression::POINTS };
    let mut values = vec![first.value];
    for point in 1..points {
        values.push(evaluate(point)?.value);
    }
    if percent {
        let hundredth = |v: Number| v.over(&Number::integer(100));
        values = values
            .into_iter()
            .map(hundredth)
            .collect::<Option<_>>()
            .ok_or_else(|| AnswerError::unreadable(text, "too large"))?;
    }
    Ok(Scalar { variables: first.variables, values, percent })
}
