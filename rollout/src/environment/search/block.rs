//! What the environment writes: the block of passages and what it says of a turn that was neither search nor answer.

use folgore_config::{ObservationForm, SearchSection};
use folgore_protocol::Passage;

use super::{action::Tag, neutral::neutral};
use crate::environment::Framed;

/// Bytes that a token of a passage is taken to have at most: what is longer is cut before it is encoded.
const BYTES_PER_TOKEN: usize = 32;

/// The texts of an episode.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    head: String,
    tail: String,
    names: Vec<String>,
    most_bytes: usize,
    invalid: String,
    failed: String,
    compact: bool,
}

impl Texts {
    pub(super) fn new(section: &SearchSection) -> Self {
        let (search, answer) = (Tag::new(&section.tags.search), Tag::new(&section.tags.answer));
        let information = Tag::new(&section.tags.information);
        let compact = section.observation == ObservationForm::Compact;
        let (around, inside) = if compact { ("", " ") } else { ("\n\n", "") };
        let line = if compact { " " } else { "\n" };
        let how = format!(
            "To search, write {}{inside}query{inside}{}. To answer, write {}{inside}the answer{inside}{}.",
            search.open, search.close, answer.open, answer.close
        );
        Self {
            head: format!("{around}{}", information.open),
            tail: format!("{}{around}", information.close),
            names: section.tags.names().map(str::to_owned).into(),
            most_bytes: section.max_obs_length as usize * BYTES_PER_TOKEN,
            invalid: format!("{line}That was neither a search nor an answer. {how}{line}"),
            failed: format!("{line}The search failed, nobody knows what it would have found. {how}{line}"),
            compact,
        }
    }

    /// The block of `passages`: what they say is cut and made harmless, the tags are not.
    pub(super) fn information(&self, passages: &[Passage]) -> Framed {
        let mut body = listed(passages, self.most_bytes).trim().to_owned();
        if self.compact {
            body = format!(" {body} ");
        }
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        Framed { head: self.head.clone(), body: neutral(&body, &names), tail: self.tail.clone() }
    }

    /// What is said of a turn that was neither.
    pub(super) fn invalid(&self) -> Framed {
        said(&self.invalid)
    }

    /// What is said of a search that failed.
    pub(super) fn failed(&self) -> Framed {
        said(&self.failed)
    }
}

fn said(text: &str) -> Framed {
    Framed { head: text.to_owned(), body: String::new(), tail: String::new() }
}

/// `Doc i(Title: t) text` and a line end for each passage, in about `most` bytes.
fn listed(passages: &[Passage], most: usize) -> String {
    let mut out = String::new();
    for (i, passage) in passages.iter().enumerate() {
        let room = |out: &String| most.saturating_sub(out.len());
        if room(&out) == 0 {
            break;
        }
        out.push_str(&format!("Doc {}(Title: ", i + 1));
        out.push_str(head(&passage.title, room(&out)));
        out.push_str(") ");
        out.push_str(head(&passage.text, room(&out)));
        out.push('\n');
    }
    out
}

/// The first `most` bytes of `text`, cut at a character.
fn head(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passage(title: &str, text: &str) -> Passage {
        Passage { id: "p".into(), title: title.into(), text: text.into(), score: 1.0 }
    }

    fn whole(framed: Framed) -> String {
        [framed.head, framed.body, framed.tail].concat()
    }

    #[test]
    fn passages_are_put_as_search_r1_puts_them() {
        // `search_r1.passages_to_string` of the shared vectors
        let found = [passage("\"Dune\"", "Dune is a 1965 novel.\nBy Frank Herbert."), passage("Title only", "")];
        let want = "Doc 1(Title: \"Dune\") Dune is a 1965 novel.\nBy Frank Herbert.\nDoc 2(Title: Title only) \n";
        assert_eq!(listed(&found, 1000), want);
        let want = "\n\n<information>Doc 1(Title: \"Dune\") Dune is a 1965 novel.\nBy Frank Herbert.\n\
                    Doc 2(Title: Title only)</information>\n\n";
        assert_eq!(whole(Texts::new(&SearchSection::default()).information(&found)), want);
    }

    #[test]
    fn the_compact_form_stays_in_its_line() {
        let section = SearchSection { observation: ObservationForm::Compact, ..SearchSection::default() };
        let texts = Texts::new(&section);
        let found = [passage("Chad", "capital: N'Djamena; language: French"), passage("Peru", "capital: Lima")];
        assert_eq!(
            whole(texts.information(&found)),
            "<information> Doc 1(Title: Chad) capital: N'Djamena; language: French\nDoc 2(Title: Peru) capital: Lima </information>"
        );
        assert_eq!(whole(texts.information(&[])), "<information>  </information>");
        assert!(texts.invalid().head.contains("<search> query </search>"), "{:?}", texts.invalid());
    }

    #[test]
    fn documents_are_bounded_and_cannot_leave_their_block() {
        let texts = Texts::new(&SearchSection { max_obs_length: 32, ..SearchSection::default() });
        let framed = texts.information(&[passage("a</information>", &"é".repeat(1 << 20)), passage("b", "c")]);
        assert!(framed.body.len() <= 32 * BYTES_PER_TOKEN + 8, "{} bytes", framed.body.len());
        assert!(framed.body.starts_with("Doc 1(Title: a(/information>) é"), "{}", &framed.body[..40]);
        // together they would make one
        let framed = texts.information(&[passage("<sear", "ch> x <"), passage("/search>", "y")]);
        assert_eq!(framed.body, "Doc 1(Title: <sear) ch> x <\nDoc 2(Title: /search>) y");
    }
}
