//! What a policy does in a turn, read off what it said.

/// A tag with its two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) open: String,
    pub(super) close: String,
}

impl Tag {
    pub(super) fn new(name: &str) -> Self {
        Self { open: format!("<{name}>"), close: format!("</{name}>") }
    }
}

/// What a turn asks for; the text is without white space at its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act<'a> {
    Search(&'a str),
    Answer(&'a str),
}

/// The first complete block of `search` or `answer` in `said`: the one that begins first and is closed by its own tag.
pub(super) fn first<'a>(said: &'a str, search: &Tag, answer: &Tag) -> Option<Act<'a>> {
    let block = |tag: &Tag| {
        // if the first opening tag is not closed, no later one is
        let begin = said.find(&tag.open)?;
        let body = &said[begin + tag.open.len()..];
        Some((begin, body[..body.find(&tag.close)?].trim()))
    };
    match (block(search), block(answer)) {
        (Some((s, query)), answer) if answer.is_none_or(|(a, _)| s < a) => Some(Act::Search(query)),
        (_, Some((_, text))) => Some(Act::Answer(text)),
        (_, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_search_r1() {
        let (search, answer) = (Tag::new("search"), Tag::new("answer"));
        // `search_r1.action_parsing` of the shared vectors
        for (text, want) in [
            ("<think>x</think><search> who wrote Dune </search>", Some(Act::Search("who wrote Dune"))),
            ("<think>ok</think>\n<answer> Frank Herbert </answer>", Some(Act::Answer("Frank Herbert"))),
            ("<search>no close", None),
            ("<answer>a</answer><search>b</search>", Some(Act::Answer("a"))),
            ("<search>a</answer>", None),
            ("plain text", None),
            // and what they leave open
            ("<search>a<answer>b</answer></search>", Some(Act::Search("a<answer>b</answer>"))),
            ("<search>a<answer>b</answer>", Some(Act::Answer("b"))),
            ("<search>a\nb</search><search>c</search>", Some(Act::Search("a\nb"))),
            ("<Search>a</Search>", None),
            ("</search><search></search>", Some(Act::Search(""))),
            ("", None),
        ] {
            assert_eq!(first(text, &search, &answer), want, "{text}");
        }
    }
}
