//! `data.curriculum`: which questions are passed over for now, by how the policy did on them.

use serde::{Deserialize, Serialize};

use crate::Problems;

/// What decides which questions are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CurriculumMode {
    /// Nothing: each is asked once an epoch.
    #[default]
    Off,
    /// How many of its last group succeeded.
    Difficulty,
}

/// The section `data.curriculum`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Curriculum {
    /// What decides.
    pub mode: CurriculumMode,
    /// A question is asked while more than this share of its last group succeeded.
    pub min_success_rate: f64,
    /// And less than this share.
    pub max_success_rate: f64,
    /// Steps for which it is passed over otherwise, counted from the one that it was asked in.
    pub revisit_steps: u64,
    /// The share that counts for a question that was never asked, as if it had been before the first step.
    pub unseen_success_rate: f64,
    /// Column with that share, 0 to 1, where rows have one that was measured before; a row without it counts as the others.
    pub success_rate_column: Option<String>,
    /// Reward from which on a sample has succeeded.
    pub correct: f64,
}

impl Default for Curriculum {
    fn default() -> Self {
        Self {
            mode: CurriculumMode::Off,
            min_success_rate: 0.0,
            max_success_rate: 1.0,
            revisit_steps: 50,
            unseen_success_rate: 0.5,
            success_rate_column: None,
            correct: 1.0,
        }
    }
}

impl Curriculum {
    /// True if questions are passed over.
    pub fn is_on(&self) -> bool {
        self.mode != CurriculumMode::Off
    }

    /// Notes what is out of range.
    pub(super) fn check(&self, p: &mut Problems) {
        let (least, most) = (self.min_success_rate, self.max_success_rate);
        p.range("curriculum.min_success_rate", 0.0, 1.0, least);
        p.range("curriculum.max_success_rate", 0.0, 1.0, most);
        let unseen = self.unseen_success_rate;
        p.expect(
            least < unseen && unseen < most,
            "curriculum.unseen_success_rate",
            format!("above min_success_rate = {least} and below max_success_rate = {most}, or nothing would be asked at first"),
            unseen,
        );
        p.expect(self.correct.is_finite(), "curriculum.correct", "a finite number", self.correct);
    }
}
