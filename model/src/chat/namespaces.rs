//! Namespaces are the only values of a template that change, so they alone could come to hold themselves; who prints such a value
//! never ends. A namespace is therefore made by `{% set NAME = namespace(...) %}` and used as `NAME.attribute`, which is all that
//! templates need, and nothing else.

use std::collections::HashSet;

/// A word, or a character of another kind; texts are left out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Text,
    Other(char),
}

/// Refuses a template whose namespaces could hold themselves; the reason names what is used in another way.
pub(super) fn check(source: &str) -> Result<(), String> {
    let tags = tags(source);
    let names: HashSet<&str> = tags.iter().filter_map(|tag| made(tag)).collect();
    for tag in &tags {
        // behind the name and the call
        let begin = if made(tag).is_some() { 4 } else { 0 };
        for (i, token) in tag.iter().enumerate().skip(begin) {
            let Token::Word(word) = token else { continue };
            let (before, after) = (i.checked_sub(1).map(|i| tag[i]), tag.get(i + 1));
            let attribute = before == Some(Token::Other('.'));
            if attribute || !(*word == "namespace" || names.contains(word)) {
                continue;
            }
            let allowed = match after {
                Some(Token::Other('.')) => *word != "namespace",
                // an argument or a variable of that name; a comparison would look at the value
                Some(Token::Other('=')) => tag.get(i + 2) != Some(&Token::Other('=')),
                Some(Token::Word("is")) => true,
                _ => false,
            };
            if !allowed {
                return Err(format!(
                    "{word} is used otherwise than by its attributes: a namespace may come of {{% set NAME = namespace(...) %}} only, and \
                     not be part of another value"
                ));
            }
        }
    }
    Ok(())
}

/// The name in `set NAME = namespace(`.
fn made<'a>(tag: &[Token<'a>]) -> Option<&'a str> {
    match tag {
        [Token::Word("set"), Token::Word(name), Token::Other('='), Token::Word("namespace"), Token::Other('('), ..] => {
            Some(name)
        }
        _ => None,
    }
}

/// The tokens of each tag, `{% ... %}` or `{{ ... }}`, as minijinja finds them: what it takes for a tag must not be text here.
fn tags(source: &str) -> Vec<Vec<Token<'_>>> {
    let mut tags = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        rest = &rest[at + 1..];
        let end = match rest.chars().next() {
            Some('#') => {
                rest = rest.find("#}").map_or("", |end| &rest[end + 2..]);
                continue;
            }
            Some('%') => "%}",
            Some('{') => "}}",
            _ => continue,
        };
        let (tag, after) = tokens(&rest[1..], end);
        rest = if end == "%}" && tag == [Token::Word("raw")] { behind_raw(after) } else { after };
        tags.push(tag);
    }
    tags
}

/// What follows the end of a raw block.
fn behind_raw(mut rest: &str) -> &str {
    while let Some(at) = rest.find("{%") {
        rest = &rest[at + 2..];
        let (tag, after) = tokens(rest, "%}");
        if tag == [Token::Word("endraw")] {
            return after;
        }
    }
    ""
}

/// The tokens up to `end`, which ends a tag outside of brackets alone, and what follows it.
fn tokens<'a>(mut rest: &'a str, end: &str) -> (Vec<Token<'a>>, &'a str) {
    let mut tag = Vec::new();
    let mut open = 0isize;
    // what trims white space around a tag is no part of it
    rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    while let Some(c) = rest.chars().next() {
        let trimmed = rest.strip_prefix(['-', '+']).unwrap_or(rest);
        if let (0, Some(after)) = (open, trimmed.strip_prefix(end)) {
            return (tag, after);
        }
        let len = match c {
            '"' | '\'' => {
                tag.push(Token::Text);
                text_len(rest, c)
            }
            c if is_word(c) => {
                let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                tag.push(Token::Word(&rest[..len]));
                len
            }
            c => {
                match c {
                    '(' | '[' | '{' => open += 1,
                    ')' | ']' | '}' => open -= 1,
                    _ => {}
                }
                if !c.is_whitespace() {
                    tag.push(Token::Other(c));
                }
                c.len_utf8()
            }
        };
        rest = &rest[len..];
    }
    (tag, "")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Bytes of the text in quotes that `rest` begins with.
fn text_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_used_by_their_attributes() {
        for taken in [
            "{%- set ns = namespace(a=1, b='ns') -%}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ x.ns }} ns {# ns #}{{ 'ns' }}",
            "{% set ns=namespace() %}{% if ns is defined and ns.a %}{{ f(ns=1) }}{{- {'a': {'b': ns.a}} -}}{% endif %}",
            "a { b } {{ '{{ namespace' }} {% set x = {'namespace': 1} %}{{ x.namespace }}",
            "{% raw %}{{ '{% set ns = namespace(a=namespace()) %}{%- endraw -%}{{ {'a': {'b': 1}} }}{{ (1, '}}') }}",
            "{{ \"a\\\"ns\" }}{% set ns = namespace(x=[]) %}{% set ns.x = ns.x + [1] %}",
        ] {
            assert_eq!(check(taken), Ok(()), "{taken}");
        }
        for refused in [
            "{% set ns = namespace(a='') %}{% set ns.a = ns,a ~ b %}{{ ns.a }}",
            "{% set ns = namespace() %}{% set ns.a = [ns] %}",
            "{% set ns = namespace() %}{% set b = ns %}",
            "{% set ns = namespace() %}{{ ns }}",
            "{% set ns = namespace() %}{{- f(ns) -}}",
            "{% set ns = namespace() %}{{ ns == 1 }}",
            "{% set ns = namespace(a=namespace()) %}",
            "{% for n in [namespace()] %}{% set n.a = [n] %}{% endfor %}",
            "{% set f = namespace %}{% set n = f() %}",
            "{% set a, b = namespace(), 1 %}",
            "{% raw %}{{ '{% endraw %}{% set a = [namespace()] %}{{ '}}",
            "{{ {'%}': '{#'} }}{% set a = [namespace()] %}",
            "{{ ['}}' }} {% set a = [namespace()] %}",
        ] {
            assert!(check(refused).is_err_and(|reason| reason.contains("namespace")), "{refused}");
        }
    }
}
