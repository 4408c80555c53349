//! What a run on an embedded policy shows, and what it does not: its habits were planted.

use folgore_config::{
    Config, RewardSpec, RewardWay,
    model::{EMBEDDED, EMBEDDED_CARRIES, EMBEDDED_SEARCH},
};

/// What is said about a demonstration.
#[derive(Debug)]
pub struct Demonstration {
    /// In short, for the terminal.
    pub short: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// What it does not show.
    pub not: &'static str,
}

const ARITHMETIC: Demonstration = Demonstration {
    short: "What this shows: the loop works end to end, and a careful habit that was planted in the base now outweighs \
            two careless ones. What it does not show: a model discovering arithmetic.",
    shows: "This run starts from the policy inside the executable: a decoder of about a third of a million weights that \
            was taught three habits on purpose. It mostly guesses, often works in columns and forgets the carries, and seldom \
            works with care. The run shows that the loop works from end to end: answers are sampled, a rule scores them, and the \
            weights move so that the careful habit outweighs the others on questions that were in neither the training items \
            nor the policy's own recipe.",
    not: "It does not show a model discovering arithmetic. The habit that wins was planted in the base, and \
          reinforcement only raises its share; a base without it would have nothing to select. Nor does it say how large a \
          gain to expect from a language model on a real task.",
};

const SEARCH: Demonstration = Demonstration {
    short: "What this shows: the policy now searches before it answers, asks for what it is asked, and reads what it finds, about \
            countries that were never in training. What it does not show: a model discovering how to search; the base seldom \
            did it already.",
    shows: "This run starts from the policy inside the executable: a decoder of half a million weights that was taught on \
            countries that do not exist. It can ask, copy and read, but half of the time it answers out of nothing, and where it \
            searches it often asks badly or quotes something else. The run shows that the loop works from end to end: episodes with \
            searches are sampled, a rule scores the answers, what was retrieved is read and not trained on, and the weights move so \
            that searching well outweighs the other habits, on countries that were in neither the training questions nor the \
            policy's own recipe.",
    not: "It does not show a model discovering how to search, or learning facts. Searching well was planted in the base as one \
          habit among others, and reinforcement only raises its share. Given passages about other countries it knows nothing. Nor \
          does it say how large a gain to expect from a language model on a real task.",
};

const CARRIES: Demonstration = Demonstration {
    short: "What this shows: what the policy never samples by itself it can learn from an expert in its groups, as far as it knows the \
            pieces. What it does not show: a model discovering arithmetic.",
    shows: "This run starts from the policy inside the executable that adds single columns well and, by design, takes a carry along \
            one time in twenty-five. A sum of which every column carries it never gets right, so its own samples teach it nothing. \
            With an expert's worked sum in each group, judged by the same rule as its own answers, the weights move towards the rare \
            steps that the expert takes, on questions that were in neither the training items nor the policy's own recipe.",
    not: "It does not show a model discovering arithmetic, or an expert teaching what is unknown: each step of careful work was planted \
          as a rare one. Imitation of right traces (folgore sft) learns this as well and costs less; what the reward is good for \
          shows where traces are wrong.",
};

impl Demonstration {
    /// What is said about the run of `config`; none unless the base is an embedded policy on its own task, and rules that the
    /// executable holds are what rewards it.
    pub fn of(config: &Config) -> Option<&'static Self> {
        let held = |reward: &RewardSpec| reward.way() == RewardWay::Held;
        let (model, dataset) = (config.model.model_name_or_path.as_str(), config.data.dataset.as_str());
        match (model, dataset) {
            _ if !config.reward.iter().all(held) => None,
            (EMBEDDED, _) if config.reward.iter().all(|r| r.name == "exact_match") => Some(&ARITHMETIC),
            (EMBEDDED_SEARCH, "countries") => Some(&SEARCH),
            (EMBEDDED_CARRIES, "arithmetic") if config.traces.is_on() => Some(&CARRIES),
            _ => None,
        }
    }
}
