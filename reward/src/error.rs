//! What can be wrong with the configuration of a reward.

/// A reward that cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RewardError {
    /// The list is empty.
    #[error("reward: expected at least one rule, got none (rules: {known})")]
    Empty {
        /// Names of all rules.
        known: String,
    },
    /// There is no rule of this name.
    #[error("reward: there is no rule {name:?}{hint} (rules: {known})")]
    Unknown {
        /// Name asked for.
        name: String,
        /// `, did you mean "..."?`, or nothing.
        hint: String,
        /// Names of all rules.
        known: String,
    },
    /// The arguments of a rule are not those that it takes.
    #[error("reward {name}: {reason}")]
    Args {
        /// Name of the rule.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A reward of this name is there already.
    #[error("reward {name:?}: expected a name that no other reward has")]
    Taken {
        /// The name.
        name: String,
    },
    /// A weight that is not a finite number.
    #[error("reward {name}: expected a finite weight, got {weight}")]
    Weight {
        /// Name of the rule.
        name: String,
        /// The weight.
        weight: f64,
    },
}
