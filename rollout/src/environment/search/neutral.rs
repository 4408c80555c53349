//! Makes text of documents harmless: no tag is left in it, however it is spelt.
//!
//! Ids alone do not help where tags are ordinary text to a base, and a policy may take `＜Search >` for a tag as well. So a text
//! is read as a careless reader would: without case, white space and what cannot be seen, with look-alikes for what they look
//! like. Where that reading shows a tag, the bracket that opens it becomes a parenthesis; nothing else is changed, and nothing
//! is taken out, so that no tag can come together from its pieces.

use unicode_normalization::{UnicodeNormalization, char::is_combining_mark};

/// What stands in place of a bracket that opens a tag.
const HARMLESS: char = '(';

/// `text` without tags of the names `names`, which are in lower case.
pub(super) fn neutral(text: &str, names: &[&str]) -> String {
    let read: Vec<(usize, char)> = reading(text).collect();
    let places = read.iter().enumerate().filter(|(_, (_, c))| *c == '<');
    let mut opens = places.filter(|(i, _)| is_tag(&read[i + 1..], names)).map(|(_, (at, _))| *at).peekable();
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        out.push(if opens.next_if_eq(&at).is_some() { HARMLESS } else { c });
    }
    out
}

/// True if `after` goes on as a tag does after its bracket: slashes, one of `names`, and then no further letter.
fn is_tag(after: &[(usize, char)], names: &[&str]) -> bool {
    let slashes = after.iter().take_while(|(_, c)| *c == '/').count();
    let after = &after[slashes..];
    names.iter().any(|name| {
        let n = name.chars().count();
        let same = after.len() >= n && after.iter().zip(name.chars()).all(|((_, a), b)| *a == b);
        same && after.get(n).is_none_or(|(_, c)| !c.is_alphanumeric())
    })
}

/// The characters of `text` that a careless reader sees, each with the place in bytes of what it was read from.
fn reading(text: &str) -> impl Iterator<Item = (usize, char)> + '_ {
    text.char_indices().flat_map(|(at, c)| {
        let parts = std::iter::once(c).nfkd().filter(|c| is_seen(*c));
        let plain = parts.flat_map(|c| looks_like(c).to_lowercase()).filter(|c| is_seen(*c)).map(looks_like);
        plain.map(|c| (at, c)).collect::<Vec<_>>()
    })
}

fn is_seen(c: char) -> bool {
    let invisible = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fe00}'..='\u{fe0f}' | '\u{fff9}'..='\u{fffd}' | '\u{e0000}'..='\u{e0fff}');
    !(invisible || c.is_whitespace() || c.is_control() || is_combining_mark(c))
}

/// The plain character that `c` is easily taken for.
fn looks_like(c: char) -> char {
    match c {
        '\u{2039}' | '\u{ab}' | '\u{3008}' | '\u{300a}' | '\u{27e8}' | '\u{27ea}' | '\u{276c}' | '\u{276e}'
        | '\u{2770}' | '\u{2991}' | '\u{29fc}' | '\u{226a}' | '\u{227a}' | '\u{22d6}' | '\u{2aa1}' | '\u{1438}'
        | '\u{2c2}' | '\u{1d236}' => '<',
        '\\' | '\u{2215}' | '\u{2044}' | '\u{29f8}' | '\u{27cb}' | '\u{2571}' | '\u{29f5}' | '\u{2216}'
        | '\u{3033}' => '/',
        'а' | 'ɑ' | 'α' => 'a',
        'Ь' | 'Ƅ' => 'b',
        'с' | 'ϲ' | 'ᴄ' | 'С' => 'c',
        'ԁ' => 'd',
        'е' | 'ҽ' | 'Е' | 'Ε' => 'e',
        'ƒ' => 'f',
        'ɡ' | 'ց' => 'g',
        'һ' | 'հ' | 'Н' | 'Η' => 'h',
        'і' | 'ı' | 'ι' | 'ӏ' | 'ɩ' => 'i',
        'ј' => 'j',
        'κ' | 'к' | 'ᴋ' | 'К' | 'Κ' => 'k',
        'м' | 'ᴍ' | 'М' | 'Μ' => 'm',
        'ո' | 'п' | 'ɴ' | 'Ν' | 'η' => 'n',
        'о' | 'ο' | 'օ' | 'σ' | 'ᴏ' => 'o',
        'р' | 'ρ' => 'p',
        'г' | 'ᴦ' | 'ʀ' => 'r',
        'ѕ' | 'ꜱ' | 'ſ' => 's',
        'т' | 'τ' | 'ᴛ' | 'Т' | 'Τ' => 't',
        'υ' | 'ս' => 'u',
        'ν' | 'ѵ' => 'v',
        'ԝ' | 'ѡ' | 'ω' | 'ᴡ' => 'w',
        'х' | 'χ' => 'x',
        'у' | 'γ' => 'y',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 4] = ["think", "search", "information", "answer"];

    fn holds_tag(text: &str) -> bool {
        let seen: Vec<(usize, char)> = reading(text).collect();
        (0..seen.len()).any(|i| seen[i].1 == '<' && is_tag(&seen[i + 1..], &NAMES))
    }

    #[test]
    fn tags_in_any_spelling_lose_their_bracket_and_nothing_else() {
        for text in [
            "<search>",
            "</information>",
            "</ INFORMATION >",
            "< / search >",
            "<\u{200b}s\u{200d}earch\u{feff}>",
            "\u{ff1c}\u{ff0f}\u{ff53}\u{ff45}\u{ff41}\u{ff52}\u{ff43}\u{ff48}\u{ff1e}",
            "\u{2039}answer\u{203a}",
            "\u{27e8}/answer\u{27e9}",
            "<\u{0455}\u{0435}\u{0430}r\u{0441}\u{04bb}>",
            "<\u{0421}\u{0435}> <s\u{0301}earch>",
            "<\u{338}search>",
            "\u{226e}search>",
            "<\\search>",
            "<//search",
            "<sea<search>rch>",
            "<<search>>",
            "<\n\tthink\r\n>",
            "<𝐬𝐞𝐚𝐫𝐜𝐡>",
            "<ⓢⓔⓐⓡⓒⓗ>",
            "<answer/>",
        ] {
            let got = neutral(text, &NAMES);
            assert!(!holds_tag(&got), "{text:?} became {got:?}");
            let same = text.chars().zip(got.chars()).all(|(a, b)| a == b || b == HARMLESS);
            assert!(same && text.chars().count() == got.chars().count(), "{text:?} became {got:?}");
        }
        assert_eq!(neutral("a</information> b <Search>c", &NAMES), "a(/information> b (Search>c");
    }

    #[test]
    fn what_is_no_tag_stays() {
        for text in ["", "a < b", "x<y>", "<html><searchlight>", "Vec<u8>", "1 << 2", "Doc 1(Title: a) été <|im_end|>"]
        {
            assert_eq!(neutral(text, &NAMES), text);
        }
    }

    /// Pieces that tags are made of, and others.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("<"),
            Just("</"),
            Just("\u{ff1c}"),
            Just("\u{27e8}"),
            Just("\u{226e}"),
            Just("\u{2039}"),
            Just("/"),
            Just("\\"),
            Just("search"),
            Just("SEARCH"),
            Just("sea"),
            Just("rch"),
            Just("ans"),
            Just("wer"),
            Just("Answer"),
            Just("information"),
            Just("inform"),
            Just("ation"),
            Just("thi"),
            Just("nk"),
            Just("\u{0455}earch"),
            Just("\u{200b}"),
            Just("\u{301}"),
            Just(" "),
            Just("\n"),
            Just(">"),
            Just("\u{ff1e}"),
            Just("x"),
            Just("\u{0}"),
            Just("\u{fb01}"),
            Just("\u{130}"),
        ];
        prop::collection::vec(prop_oneof![8 => piece.prop_map(str::to_owned), 1 => ".{0,3}"], 0..24)
            .prop_map(|p| p.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_tag_is_left_in_any_text(text in pieces()) {
            let once = neutral(&text, &NAMES);
            prop_assert!(!holds_tag(&once), "{:?} became {:?}", text, once);
            prop_assert_eq!(neutral(&once, &NAMES), once.clone(), "once is enough");
            prop_assert_eq!(once.chars().count(), text.chars().count(), "nothing is taken out");
            // read without any of our own code, too
            let plain: String = once.to_lowercase().split_whitespace().collect();
            for name in NAMES {
                prop_assert!(!plain.contains(&format!("<{name}>")) && !plain.contains(&format!("</{name}>")), "{}", once);
            }
        }
    }
}
