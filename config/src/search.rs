//! `rollout.search`: how a policy searches, for the environment `search`. Names are those of Search-R1 where it has one.

use serde::{Deserialize, Serialize};

use crate::Problems;

/// How found passages are put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObservationForm {
    /// As Search-R1 does: two line ends before and after the block, none inside it.
    #[default]
    SearchR1,
    /// In the same line as what the policy said, one space inside each tag.
    Compact,
}

/// What happens when a turn holds neither a search nor an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInvalid {
    /// The policy is told how to search and to answer, and speaks again. The turn counts.
    #[default]
    Feedback,
    /// The episode ends without an answer.
    End,
}

/// What happens when a search fails. It is never taken for a search that found nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The episode is given up and played again; it is not scored.
    #[default]
    Fail,
    /// The policy is told that the search failed, and speaks again. The turn counts.
    Feedback,
}

/// Names of the tags, without brackets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchTags {
    /// Around a thought.
    pub think: String,
    /// Around a query.
    pub search: String,
    /// Around passages; written by the environment.
    pub information: String,
    /// Around the answer.
    pub answer: String,
}

impl Default for SearchTags {
    fn default() -> Self {
        Self {
            think: "think".into(),
            search: "search".into(),
            information: "information".into(),
            answer: "answer".into(),
        }
    }
}

impl SearchTags {
    /// All of them.
    pub fn names(&self) -> [&str; 4] {
        [&self.think, &self.search, &self.information, &self.answer]
    }
}

/// The section `rollout.search`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchSection {
    /// Turns in which the policy may search. One more follows, in which it can only answer.
    pub max_turns: u32,
    /// Passages of a search.
    pub topk: u32,
    /// Most tokens of what a search brings, tags included; passages are cut, the closing tag is not.
    pub max_obs_length: u32,
    /// The tags.
    pub tags: SearchTags,
    /// How passages are put.
    pub observation: ObservationForm,
    /// What happens when a turn holds neither a search nor an answer.
    pub on_invalid: OnInvalid,
    /// What happens when a search fails.
    pub on_failure: OnFailure,
}

impl Default for SearchSection {
    fn default() -> Self {
        Self {
            max_turns: 2,
            topk: 3,
            max_obs_length: 500,
            tags: SearchTags::default(),
            observation: ObservationForm::default(),
            on_invalid: OnInvalid::default(),
            on_failure: OnFailure::default(),
        }
    }
}

impl SearchSection {
    /// Notes what is out of range.
    pub(crate) fn check(&self, p: &mut Problems) {
        p.range("search.max_turns", 1.0, 64.0, self.max_turns.into());
        p.range("search.topk", 1.0, 100.0, self.topk.into());
        p.range("search.max_obs_length", 32.0, 65_536.0, self.max_obs_length.into());
        let names = self.tags.names();
        let is_name =
            |n: &&str| !n.is_empty() && n.len() <= 32 && n.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if let Some(bad) = names.iter().find(|name| !is_name(name)) {
            p.expect(false, "search.tags", "names of 1 to 32 of a-z _", format_args!("{bad:?}"));
        }
        let twice = (1..names.len()).find(|i| names[..*i].contains(&names[*i]));
        if let Some(i) = twice {
            p.expect(false, "search.tags", "four names", format_args!("{:?} twice", names[i]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RolloutSection;

    #[test]
    fn an_episode_is_as_long_as_its_turns_and_what_they_bring() {
        let search = SearchSection { max_obs_length: 80, ..SearchSection::default() };
        let mut rollout = RolloutSection { max_completion_length: 40, search, ..RolloutSection::default() };
        assert_eq!((rollout.most_sampled(), rollout.most_after_prompt()), (40, 40));
        rollout.environment = "search".into();
        assert_eq!((rollout.most_sampled(), rollout.most_after_prompt()), (120, 280));
    }

    #[test]
    fn tags_are_four_names() {
        let wrong = |change: fn(&mut SearchTags)| {
            let mut section = SearchSection::default();
            change(&mut section.tags);
            let mut p = Problems::default();
            section.check(p.section("rollout"));
            p.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(wrong(|_| ()), "");
        assert!(wrong(|t| t.search = "<search>".into()).contains("rollout.search.tags: expected names"));
        assert!(wrong(|t| t.search = "answer".into()).contains("\"answer\" twice"));
    }
}
