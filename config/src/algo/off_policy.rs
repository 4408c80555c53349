//! `algo.off_policy`: what tokens are worth that the policy did not sample for this step, an expert's and its own of before.

use serde::{Deserialize, Serialize};

use super::{non_negative, positive};
use crate::Problems;

/// How an expert's tokens are learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TeacherLoss {
    /// By their advantage, as members of their group (LUFFY).
    #[default]
    Rl,
    /// Imitated, whatever they are worth: the mean negative log-prob over all of them is added to the loss of the others.
    Sft,
}

/// Which members of a group say what its mean and deviation are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// All of them.
    #[default]
    All,
    /// Those that the policy sampled (LUFFY's `grpo_split`).
    OnPolicy,
}

/// The section `algo.off_policy`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OffPolicy {
    /// How an expert's tokens are learnt.
    pub teacher_loss: TeacherLoss,
    /// Shapes the weight of an expert's token with probability `p`: `p / (p + teacher_gamma)`. None: `p` itself.
    pub teacher_gamma: Option<f64>,
    /// The loss of an expert's tokens is multiplied with this.
    pub teacher_weight: f64,
    /// What that becomes, evenly over `teacher_weight_steps`; none: it stays.
    pub teacher_weight_end: Option<f64>,
    /// Steps from the one weight to the other.
    pub teacher_weight_steps: u64,
    /// Shapes the weight of a token of experience, `w` times as likely now as then: `w / (w + experience_beta)`. None: `w` itself.
    pub experience_beta: Option<f64>,
    /// Which members make the mean and the deviation of a group.
    pub baseline: Baseline,
}

impl Default for OffPolicy {
    fn default() -> Self {
        Self {
            teacher_loss: TeacherLoss::Rl,
            teacher_gamma: Some(0.1),
            teacher_weight: 1.0,
            teacher_weight_end: None,
            teacher_weight_steps: 100,
            experience_beta: Some(0.1),
            baseline: Baseline::All,
        }
    }
}

impl OffPolicy {
    /// The weight of an expert's tokens in `step`, which counts from 1.
    pub fn teacher_weight_at(&self, step: u64) -> f64 {
        let Some(end) = self.teacher_weight_end else { return self.teacher_weight };
        let done = step.saturating_sub(1) as f64 / self.teacher_weight_steps.max(1) as f64;
        self.teacher_weight + (end - self.teacher_weight) * done.min(1.0)
    }

    /// Notes what is out of range.
    pub(super) fn check(&self, p: &mut Problems) {
        for (key, value) in [("teacher_gamma", self.teacher_gamma), ("experience_beta", self.experience_beta)] {
            value.into_iter().for_each(|value| positive(p, &format!("off_policy.{key}"), value));
        }
        non_negative(p, "off_policy.teacher_weight", self.teacher_weight);
        self.teacher_weight_end.into_iter().for_each(|end| non_negative(p, "off_policy.teacher_weight_end", end));
        let steps = self.teacher_weight_steps;
        p.expect(steps > 0, "off_policy.teacher_weight_steps", "at least 1", steps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_of_a_teacher_goes_evenly_to_its_end_and_stays_there() {
        let constant = OffPolicy::default();
        assert_eq!((constant.teacher_weight_at(1), constant.teacher_weight_at(900)), (1.0, 1.0));
        let fading = OffPolicy { teacher_weight_end: Some(0.0), teacher_weight_steps: 10, ..OffPolicy::default() };
        let weights = [1, 6, 11, 50].map(|step| fading.teacher_weight_at(step));
        assert_eq!(weights, [1.0, 0.5, 0.0, 0.0]);
    }
}
