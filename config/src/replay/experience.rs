//! `replay.experience`: the policy's own earlier successes, learnt from again (ExGRPO).

use serde::{Deserialize, Serialize};

use crate::Problems;

/// How likely a question is to be replayed, by how many of its group succeeded when it was asked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BucketLaw {
    /// Gaussian around half of the group, one success wide.
    #[default]
    Normal,
    /// The share that succeeded.
    Linear,
    /// Its square root.
    Sqrt,
    /// The share that succeeded, but at most a half.
    LinearClip,
}

/// Which of several successes at a question is replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExperienceMetric {
    /// The one of which the policy is surest now: lowest mean entropy over the tokens that it said.
    #[default]
    Entropy,
    /// Any of them.
    Random,
}

/// The section `replay.experience`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Experience {
    /// Keeps successes and replays them.
    pub enabled: bool,
    /// Share of a step's questions that are replayed, while there are enough.
    pub ratio: f64,
    /// Nothing is kept or replayed before this share of a batch has succeeded once; 0: from the start.
    pub start_success_rate: f64,
    /// Reward from which on a sample has succeeded.
    pub correct: f64,
    /// Fewest successes of a group that are kept.
    pub min_successes: u32,
    /// Most successes of a group that are kept; none: all but one of its members.
    pub max_successes: Option<u32>,
    /// Which questions are replayed.
    pub bucket_law: BucketLaw,
    /// Which of a question's successes is.
    pub metric: ExperienceMetric,
    /// Successes kept of one question; the oldest go first.
    pub max_per_question: u32,
    /// Questions of which successes are kept.
    pub max_questions: u32,
    /// Successes older than so many steps are forgotten; none: never.
    pub max_age_steps: Option<u64>,
    /// A question that a whole group has solved is not asked again.
    pub retire: bool,
    /// As long as more questions than this are left to ask.
    pub min_live_questions: u64,
}

impl Default for Experience {
    fn default() -> Self {
        Self {
            enabled: false,
            ratio: 0.5,
            start_success_rate: 0.35,
            correct: 1.0,
            min_successes: 1,
            max_successes: None,
            bucket_law: BucketLaw::Normal,
            metric: ExperienceMetric::Entropy,
            max_per_question: 8,
            max_questions: 100_000,
            max_age_steps: None,
            retire: true,
            min_live_questions: 32,
        }
    }
}

impl Experience {
    /// Notes what is out of range.
    pub(super) fn check(&self, p: &mut Problems) {
        p.range("experience.ratio", 0.0, 1.0, self.ratio);
        p.range("experience.start_success_rate", 0.0, 1.0, self.start_success_rate);
        p.expect(self.correct.is_finite(), "experience.correct", "a finite number", self.correct);
        p.range("experience.min_successes", 1.0, 4096.0, self.min_successes.into());
        if let Some(most) = self.max_successes {
            let least = self.min_successes;
            p.expect(most >= least, "experience.max_successes", format!("at least min_successes = {least}"), most);
        }
        p.range("experience.max_per_question", 1.0, 256.0, self.max_per_question.into());
        p.range("experience.max_questions", 1.0, 10_000_000.0, self.max_questions.into());
        p.expect(self.min_live_questions > 0, "experience.min_live_questions", "at least 1", self.min_live_questions);
    }
}
