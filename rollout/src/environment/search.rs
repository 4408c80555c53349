//! Reasoning with search, as in Search-R1: the policy thinks, searches, reads what was found, and answers.
//!
//! # A turn
//! The policy speaks until it closes a search or an answer (`</search>`, `</answer>`; ids stay as they were sampled). The first
//! complete block of either in what it *sampled* is its action: an answer ends the episode, a search is asked of the
//! retriever, anything else is answered with how to do it right (`on_invalid`). After `max_turns` turns one more follows, in
//! which a search is not carried out: whoever does not answer in it has not answered.
//!
//! # What the policy is told
//! With `observation: search_r1` and two passages, exactly this, where `·` stands for a space at the end of a line:
//! ```text
//! (empty line)
//! (empty line)
//! <information>Doc 1(Title: Chad) capital: N'Djamena; language: French
//! Doc 2(Title: Peru) capital: Lima; language: Spanish</information>
//! (empty line)
//! (empty line)
//! ```
//! that is, two line ends, the tag, `Doc i(Title: title) text` in lines of their own with no white space at either end, the tag,
//! two line ends. With `observation: compact`, `<information> Doc 1(Title: Chad) capital: N'Djamena; language: French`, a line
//! end, `Doc 2(Title: Peru) capital: Lima; language: Spanish </information>`: one space inside each tag, nothing around them.
//!
//! All of it together has at most `max_obs_length` tokens: passages are cut, the closing tag is never. Tags that the environment
//! writes become the base's own tokens, where it has such tokens; what documents hold never does, and a document can neither
//! close its block nor open another one ([`neutral`]). A base whose tags are tokens must not flag them as special, or nobody
//! would see them in what it says.

mod action;
mod block;
mod neutral;

use std::sync::Arc;

use folgore_config::{OnFailure, OnInvalid, SearchSection};
use folgore_protocol::Search;

use self::{
    action::{Act, Tag},
    block::Texts,
};
use super::{Action, Answer, Ask, Environment, Framed, Observation, Reaction};

/// What all episodes of a run have in common.
#[derive(Clone, Debug)]
pub struct SearchRules {
    section: SearchSection,
    search: Tag,
    answer: Tag,
    stop: Vec<String>,
    texts: Texts,
}

impl SearchRules {
    /// As `section` says.
    pub fn new(section: &SearchSection) -> Self {
        let (search, answer) = (Tag::new(&section.tags.search), Tag::new(&section.tags.answer));
        let stop = vec![search.close.clone(), answer.close.clone()];
        Self { section: section.clone(), search, answer, stop, texts: Texts::new(section) }
    }

    /// What follows the block of passages at the beginning of `text`; all of it, if it begins otherwise.
    fn told<'a>(&self, text: &'a str) -> &'a str {
        let information = Tag::new(&self.section.tags.information);
        let Some(block) = text.trim_start().strip_prefix(information.open.as_str()) else { return text };
        let after = block.split_once(information.close.as_str()).map_or("", |(_, after)| after);
        // white space around the block is the environment's as well
        after.trim_start_matches(['\n', '\r'])
    }
}

/// An episode with searches.
pub struct SearchEpisode {
    rules: Arc<SearchRules>,
    /// Turns that are over.
    turns: u32,
}

impl SearchEpisode {
    /// A fresh one.
    pub fn new(rules: Arc<SearchRules>) -> Self {
        Self { rules, turns: 0 }
    }

    fn turn(&mut self, said: &str) -> Reaction {
        let rules = &self.rules;
        self.turns += 1;
        let last = self.turns > rules.section.max_turns;
        match action::first(said, &rules.search, &rules.answer) {
            Some(Act::Answer(_)) => Reaction::Done,
            _ if last => Reaction::Done,
            Some(Act::Search(query)) if !query.is_empty() => {
                Reaction::Ask(Ask::Search(Search { query: query.to_owned(), top_k: rules.section.topk }))
            }
            _ => match rules.section.on_invalid {
                OnInvalid::Feedback => observe(rules.texts.invalid()),
                OnInvalid::End => Reaction::Done,
            },
        }
    }

    fn answered(&self, answer: Answer) -> Reaction {
        let rules = &self.rules;
        match answer {
            Answer::Passages(found) => observe(rules.texts.information(&found.passages)),
            Answer::Failed(reason) => match rules.section.on_failure {
                OnFailure::Fail => Reaction::GiveUp(format!("search: {reason}")),
                OnFailure::Feedback => observe(rules.texts.failed()),
            },
            Answer::Tool(_) => Reaction::Fail("expected passages, got the result of a tool".into()),
        }
    }
}

fn observe(framed: Framed) -> Reaction {
    Reaction::Observe(Observation::Framed(framed))
}

impl Environment for SearchEpisode {
    fn step(&mut self, action: Action<'_>) -> Reaction {
        match action {
            Action::Begin(task) => Reaction::Observe(Observation::Prompt(task.prompt.clone())),
            Action::Turn { text, .. } => self.turn(text),
            Action::Answer(answer) => self.answered(answer),
        }
    }

    fn turns(&self, trace: &str) -> Vec<String> {
        let (rules, mut left, mut turns) = (&self.rules, trace, Vec::new());
        loop {
            let end = rules.stop.iter().filter_map(|stop| Some(left.find(stop.as_str())? + stop.len())).min();
            let (turn, rest) = left.split_at(end.unwrap_or(left.len()));
            if !turn.trim().is_empty() {
                turns.push(turn.to_owned());
            }
            if rest.trim().is_empty() || turn.ends_with(rules.answer.close.as_str()) {
                return turns;
            }
            left = rules.told(rest);
        }
    }

    fn stop(&self) -> &[String] {
        &self.rules.stop
    }
}

#[cfg(test)]
mod tests {
    use folgore_config::ObservationForm;
    use folgore_protocol::{Passage, Passages, StopReason};

    use super::*;

    fn episode(change: impl FnOnce(&mut SearchSection)) -> SearchEpisode {
        let mut section = SearchSection { observation: ObservationForm::Compact, ..SearchSection::default() };
        change(&mut section);
        SearchEpisode::new(Arc::new(SearchRules::new(&section)))
    }

    fn says(episode: &mut SearchEpisode, text: &str) -> Reaction {
        episode.step(Action::Turn { text, ids: &[1], stop_reason: StopReason::StopString })
    }

    fn found(text: &str) -> Action<'static> {
        let passage = Passage { id: "1".into(), title: "Chad".into(), text: text.into(), score: 1.0 };
        Action::Answer(Answer::Passages(Passages { passages: vec![passage] }))
    }

    fn told(reaction: Reaction) -> Framed {
        match reaction {
            Reaction::Observe(Observation::Framed(framed)) => framed,
            other => panic!("expected something to be told, got {other:?}"),
        }
    }

    #[test]
    fn a_trace_is_what_its_expert_said_without_what_it_was_told() {
        let trace = "<think> a </think><search> Chad </search>\n\n<information>Doc 1</search></information>\n\n<think> b </think>\
                     <answer> c </answer> rest";
        let turns = episode(|_| ()).turns(trace);
        assert_eq!(turns, ["<think> a </think><search> Chad </search>", "<think> b </think><answer> c </answer>"]);
        assert_eq!(episode(|_| ()).turns("only thoughts"), ["only thoughts"]);
        assert_eq!(episode(|_| ()).turns(" <search>a</search> <information>never closed"), [" <search>a</search>"]);
    }

    #[test]
    fn searches_are_carried_out_and_an_answer_ends_the_episode() {
        let mut episode = episode(|_| ());
        assert_eq!(episode.stop(), ["</search>", "</answer>"]);
        let asked = says(&mut episode, "<think> hm </think><search> Chad capital </search>");
        assert_eq!(asked, Reaction::Ask(Ask::Search(Search { query: "Chad capital".into(), top_k: 3 })));
        let Framed { head, body, tail } = told(episode.step(found("capital: <b>")));
        assert_eq!((head.as_str(), tail.as_str()), ("<information>", "</information>"));
        assert_eq!(body, " Doc 1(Title: Chad) capital: <b> ");
        assert_eq!(says(&mut episode, "<answer> x </answer>"), Reaction::Done);
    }

    #[test]
    fn after_the_last_search_only_an_answer_is_left() {
        let mut episode = episode(|s| s.max_turns = 2);
        assert!(matches!(says(&mut episode, "<search>a</search>"), Reaction::Ask(_)));
        told(episode.step(found("x")));
        let feedback = told(says(&mut episode, "I give up"));
        assert!(feedback.head.contains("neither a search nor an answer") && feedback.body.is_empty());
        assert_eq!(says(&mut episode, "<search>b</search>"), Reaction::Done, "the turns for searching are used up");
    }

    #[test]
    fn what_is_no_action_is_answered_or_ends_the_episode() {
        for nothing in ["", "<search>a", "<search> </search>", "<information>a</information>", "<SEARCH>a</SEARCH>"] {
            assert!(told(says(&mut episode(|_| ()), nothing)).head.contains("To search, write"), "{nothing}");
            assert_eq!(says(&mut episode(|s| s.on_invalid = OnInvalid::End), nothing), Reaction::Done, "{nothing}");
        }
    }

    #[test]
    fn a_failed_search_is_never_an_empty_one() {
        let failed = || Action::Answer(Answer::Failed("nobody serves search".into()));
        let mut first = episode(|_| ());
        says(&mut first, "<search>a</search>");
        assert_eq!(first.step(failed()), Reaction::GiveUp("search: nobody serves search".into()));
        let mut second = episode(|s| s.on_failure = OnFailure::Feedback);
        says(&mut second, "<search>a</search>");
        let framed = told(second.step(failed()));
        assert!(framed.head.contains("The search failed") && !framed.head.contains("<information>"), "{framed:?}");
    }
}
