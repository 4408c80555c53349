//! Takes out of texts what names a person or opens a door. The rules are stated one by one, and none of them knows everything: what is
//! shaped otherwise stays. What was found becomes the name of its rule in brackets, so that a text still reads.

use std::{borrow::Cow, sync::LazyLock};

use folgore_config::data::Redact;
use regex::Regex;
use serde_json::Value;

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant pattern")
}

/// `name@domain.tld`.
static EMAIL: LazyLock<Regex> =
    LazyLock::new(|| regex(r"(?i)\b[a-z0-9._%+-]{1,64}@[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63}){0,8}\.[a-z]{2,24}\b"));

/// With `+` and the country in front, or in groups as they are written: digits are counted after.
static PHONE: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"\+\d[\d ().\-/]{6,22}\d|\(\d{2,5}\)[ \-]?\d[\d \-/]{4,16}\d|\b\d{2,5}(?:[ \-/]\d{2,5}){2,5}\b")
});

/// Beginnings that services give to their keys, keys of SSH and TLS, and bearers.
static KEY: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r"(?s)-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\z)",
        r"|\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}",
        r"|\b(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}|\bglpat-[A-Za-z0-9_-]{16,}",
        r"|\bhf_[A-Za-z0-9]{20,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}",
        r"|\bxox[abprs]-[A-Za-z0-9-]{10,}|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}",
    ))
});

/// The value of what calls itself a secret.
static NAMED: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r#"(?i)\b((?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key|bearer|authorization)["']?\s*[:=]\s*(?:bearer\s+)?["']?)([^\s"',;<>\[\]]{6,})"#,
    )
});

/// Fewest and most digits of a number that somebody is called by, where no `+` says so.
const DIGITS: std::ops::RangeInclusive<usize> = 9..=15;

/// Applies rules to texts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Redactor {
    rules: Vec<Redact>,
}

impl Redactor {
    /// With these rules.
    pub fn of(rules: &[Redact]) -> Self {
        let mut rules = rules.to_vec();
        // keys may hold what looks like an address
        rules.sort_by_key(|rule| std::cmp::Reverse(*rule));
        rules.dedup();
        Self { rules }
    }

    /// What is taken out, for printing; empty if nothing is.
    pub fn note(&self) -> String {
        let names: Vec<&str> = self.rules.iter().map(|rule| name(*rule)).collect();
        if names.is_empty() { String::new() } else { format!("; {} taken out", names.join(", ")) }
    }

    /// `text` without what the rules find.
    pub fn clean<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.rules.iter().fold(Cow::Borrowed(text), |text, rule| {
            let cleaned = match rule {
                Redact::Email => EMAIL.replace_all(&text, "[email]").into_owned(),
                Redact::Phone => PHONE.replace_all(&text, |found: &regex::Captures| phone(&found[0])).into_owned(),
                Redact::Key => {
                    let keys = KEY.replace_all(&text, "[key]");
                    NAMED.replace_all(&keys, "${1}[key]").into_owned()
                }
            };
            if cleaned == *text { text } else { Cow::Owned(cleaned) }
        })
    }

    /// Cleans every text of `value`, at any depth.
    pub fn apply(&self, value: &mut Value) {
        if self.rules.is_empty() {
            return;
        }
        match value {
            Value::String(text) => {
                if let Cow::Owned(cleaned) = self.clean(text) {
                    *text = cleaned;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.apply(item)),
            Value::Object(map) => map.values_mut().for_each(|item| self.apply(item)),
            _ => {}
        }
    }
}

fn name(rule: Redact) -> &'static str {
    match rule {
        Redact::Email => "email addresses",
        Redact::Phone => "telephone numbers",
        Redact::Key => "keys",
    }
}

/// The mark, if what was found has as many digits as numbers have and is no date.
fn phone(found: &str) -> String {
    let digits = found.bytes().filter(u8::is_ascii_digit).count();
    let called = if found.starts_with('+') { (7..=15).contains(&digits) } else { DIGITS.contains(&digits) };
    let year = found.get(..4).and_then(|year| year.parse::<u32>().ok()).is_some_and(|y| (1900..2100).contains(&y));
    let date = year && found.as_bytes().get(4) == Some(&b'-') && digits <= 8;
    if called && !date { "[phone]".to_owned() } else { found.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(text: &str) -> String {
        Redactor::of(&[Redact::Email, Redact::Phone, Redact::Key]).clean(text).into_owned()
    }

    #[test]
    fn what_is_found_is_marked() {
        let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----";
        for (text, want) in [
            ("write to Ann.Lee+x@mail.example.co.uk, please", "write to [email], please"),
            ("call +49 (0)30 1234567.", "call [phone]."),
            ("call (030) 123 4567 or 0171-234-5678", "call [phone] or [phone]"),
            ("555-123-4567", "[phone]"),
            ("key sk-abcdefghijklmnopqrstuv1234 end", "key [key] end"),
            ("ghp_abcdefghijklmnopqrst1234567890", "[key]"),
            ("AKIAABCDEFGHIJKLMNOP", "[key]"),
            (private, "[key]"),
            ("password: hunter2!!", "password: [key]"),
            ("{\"api_key\": \"abc123def\"}", "{\"api_key\": \"[key]\"}"),
            ("Authorization: Bearer abcdef123456", "Authorization: Bearer [key]"),
        ] {
            assert_eq!(clean(text), want);
        }
    }

    #[test]
    fn what_only_looks_alike_stays() {
        for text in [
            "on 2026-01-31 at 12:00",
            "the sum is 1234567890123",
            "a @ b",
            "1 + 2 = 3",
            "rows 10-20-30",
            "x^2 + 3*x",
            "the password is forgotten",
            "192.168.0.1",
        ] {
            assert_eq!(clean(text), text);
        }
    }

    #[test]
    fn without_rules_nothing_changes() {
        let redactor = Redactor::of(&[]);
        assert_eq!(redactor.clean("ann@example.com"), "ann@example.com");
        assert_eq!(redactor.note(), "");
    }
}
