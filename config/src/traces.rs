//! `traces`: what experts said to the questions, as members of the groups of the policy's own samples (LUFFY).

use serde::{Deserialize, Serialize};

use crate::Problems;

/// The section `traces`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracesSection {
    /// Members of a group that are an expert's (`n_prefix`); 0: none. A question without a trace has none.
    pub per_group: u32,
    /// A file or folder of traces, or a name on the hub, matched to questions by their prompt. None: the rows of `data.dataset` hold them, as `target`,
    /// `completion` or `response`; procedural questions that have worked answers make them.
    pub path: Option<String>,
    /// A trace that is worth less by the run's own reward is not used, and the policy plays its seat. None: all are used, and
    /// the reward says what they are worth.
    pub min_reward: Option<f64>,
    /// Least share of a trace that is copied, by tokens; the policy goes on from there.
    pub min_prefix_ratio: f64,
    /// Largest share; each seat draws its own, evenly.
    pub max_prefix_ratio: f64,
    /// Most questions that have traces; none: all.
    pub max_questions: Option<u64>,
}

impl Default for TracesSection {
    fn default() -> Self {
        Self {
            per_group: 0,
            path: None,
            min_reward: None,
            min_prefix_ratio: 1.0,
            max_prefix_ratio: 1.0,
            max_questions: None,
        }
    }
}

impl TracesSection {
    /// True if groups have traces.
    pub fn is_on(&self) -> bool {
        self.per_group > 0
    }

    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        let (least, most) = (self.min_prefix_ratio, self.max_prefix_ratio);
        p.expect(most > 0.0 && most <= 1.0, "max_prefix_ratio", "above 0 and at most 1", most);
        p.expect(least > 0.0 && least <= most, "min_prefix_ratio", "above 0 and at most max_prefix_ratio", least);
        if let Some(reward) = self.min_reward {
            p.expect(reward.is_finite(), "min_reward", "a finite number", reward);
        }
    }
}
