//! What a program of one's own needs to bring rewards along, and where they are kept.

use std::sync::{Arc, OnceLock};

use folgore_config::RewardSpec;
pub use folgore_protocol::{Outcome, Part, Prompt, ScoreItem, ScoreRequest, StopReason};
use folgore_reward::Rewards;
pub use folgore_reward::{PerItem, Reward, RewardError, Rule, Scope};

/// The `args` of a reward in a run's configuration, by name.
pub type Args = serde_json::Map<String, serde_json::Value>;

/// A process is one program, and a program's rewards are the same wherever a command builds them.
static REWARDS: OnceLock<Rewards> = OnceLock::new();

/// Makes `rewards` those of this process, unless it has some already.
pub(crate) fn install(rewards: Rewards) {
    REWARDS.get_or_init(|| rewards);
}

/// Why `reward` alone gives an evaluation no numbers, and what does.
pub(crate) fn cannot_evaluate(reward: &dyn Reward) -> String {
    format!(
        "reward {} compares the completions of a question with each other, which tells nothing of a policy; add a reward that \
         judges each completion by itself (with `weight: 0` it is shown, evaluated by, and not trained on)",
        reward.name()
    )
}

/// As [`build`], for who scores with it: what it needs of this machine is looked for.
pub(crate) fn build_here(specs: &[RewardSpec]) -> Result<Arc<dyn Reward>, RewardError> {
    let reward = build(specs)?;
    Rewards::look(specs)?;
    Ok(reward)
}

/// Builds the weighted sum of `specs` from the rewards of this process.
pub(crate) fn build(specs: &[RewardSpec]) -> Result<Arc<dyn Reward>, RewardError> {
    REWARDS.get_or_init(Rewards::default).build(specs)
}
