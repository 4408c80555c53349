//! Environments: what a policy talks to during an episode.
//!
//! An environment is used for one episode and does no I/O: it is told what happened and answers with what should happen
//! next. Whatever has to be fetched is an [`Ask`], which the rollout worker performs. So an environment is a pure state
//! machine, which can be tested with a script and replayed from a log.

mod search;
mod single_turn;

use std::{collections::BTreeMap, sync::Arc};

use folgore_config::RolloutSection;
use folgore_protocol::{Passages, Prompt, Search, StopReason, Task};
use serde_json::{Map, Value};

pub use search::{SearchEpisode, SearchRules};
pub use single_turn::SingleTurn;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<'a> {
    /// The episode begins.
    Begin(&'a Task),
    /// The policy has spoken.
    Turn {
        /// What it said, special tokens left out.
        text: &'a str,
        /// Its ids.
        ids: &'a [u32],
        /// Why it stopped.
        stop_reason: StopReason,
    },
    /// What was asked for.
    Answer(Answer),
}

/// What an [`Ask`] brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Passages found.
    Passages(Passages),
    /// Result of a tool.
    Tool(String),
    /// It failed for good: the environment decides whether the episode can go on.
    Failed(String),
}

/// What should happen next.
#[derive(Clone, Debug, PartialEq)]
pub enum Reaction {
    /// Say this to the policy, then let it speak. The first one is the prompt.
    Observe(Observation),
    /// Fetch this, then call again with the answer.
    Ask(Ask),
    /// The episode is over and can be scored.
    Done,
    /// The episode cannot go on and must not be scored; nor could another try of it.
    Fail(String),
    /// The episode cannot go on and must not be scored; another try of it may go better.
    GiveUp(String),
}

/// What the policy is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// The question, with the chat template where it is a conversation. Only as the first observation.
    Prompt(Prompt),
    /// Untrusted text, appended as it stands; no part of it ever becomes a special token.
    Text(String),
    /// Untrusted text within text of the environment's own.
    Framed(Framed),
    /// Ids that the environment answers for.
    Ids(Vec<u32>),
}

/// Untrusted text between two texts that the environment wrote: in those, added tokens of the base count, and they are never
/// cut. Where all together is too long, the untrusted text is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framed {
    /// What comes first.
    pub head: String,
    /// What others wrote; no part of it ever becomes an added token.
    pub body: String,
    /// What comes last.
    pub tail: String,
}

/// What the worker fetches on behalf of an environment.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Passages from the retriever.
    Search(Search),
    /// A call of a tool.
    Tool {
        /// Name of the tool.
        name: String,
        /// Its arguments.
        arguments: Map<String, Value>,
    },
}

/// One episode's world.
pub trait Environment: Send {
    /// Says what should happen after `action`. The first action is [`Action::Begin`]; every reaction but `Done`, `Fail`
    /// and `GiveUp` is followed by the action that it asks for.
    fn step(&mut self, action: Action<'_>) -> Reaction;

    /// What the policy says in a `trace` of an expert, turn after turn. Whatever the expert was told in between is left out: the
    /// environment tells it anew.
    fn turns(&self, trace: &str) -> Vec<String> {
        vec![trace.to_owned()]
    }

    /// Texts that end a turn of the policy, besides those that its job names; they stay in it.
    fn stop(&self) -> &[String] {
        &[]
    }
}

type Factory = Arc<dyn Fn() -> Box<dyn Environment> + Send + Sync>;

/// Environments by name.
#[derive(Clone, Default)]
pub struct Environments {
    factories: BTreeMap<String, Factory>,
}

impl Environments {
    /// The built-in ones with their usual settings: `single_turn`, `search`.
    pub fn builtin() -> Self {
        Self::of(&RolloutSection::default())
    }

    /// The built-in ones as `section` sets them.
    pub fn of(section: &RolloutSection) -> Self {
        let mut environments = Self::default();
        environments.register("single_turn", || Box::new(SingleTurn));
        let rules = Arc::new(SearchRules::new(&section.search));
        environments.register("search", move || Box::new(SearchEpisode::new(rules.clone())));
        environments
    }

    /// Adds an environment, or replaces the one of the same name.
    pub fn register(&mut self, name: &str, make: impl Fn() -> Box<dyn Environment> + Send + Sync + 'static) {
        self.factories.insert(name.to_owned(), Arc::new(make));
    }

    /// A fresh environment; the error names those that there are.
    pub fn make(&self, name: &str) -> Result<Box<dyn Environment>, String> {
        let make = self.factories.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.factories.keys().map(String::as_str).collect();
            format!("environment {name:?} is not known; there are: {}", known.join(", "))
        })?;
        Ok(make())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_environment_is_refused_with_the_known_ones() {
        let error = Environments::builtin().make("serch").err().unwrap();
        assert!(error.contains("\"serch\"") && error.contains("single_turn"), "{error}");
    }
}
