//! `eval`: how often held-out questions are asked, and how.

use serde::{Deserialize, Serialize};

use crate::Problems;

/// The section `eval`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalSection {
    /// Evaluates after every so many optimiser steps; 0: not in between.
    pub eval_steps: u32,
    /// Held-out questions asked; fewer where the dataset holds fewer.
    pub eval_items: u32,
    /// Samples of each question, made as in training; 0: none.
    pub sampled: u32,
    /// The k of pass@k and maj@k, each at most `sampled`; none named: the powers of two below `sampled`, and `sampled`.
    pub k: Vec<u32>,
    /// Also one greedy answer to each question.
    pub greedy: bool,
    /// Evaluates before the first step.
    pub before: bool,
    /// Evaluates after the last step.
    pub after: bool,
}

impl Default for EvalSection {
    fn default() -> Self {
        Self { eval_steps: 0, eval_items: 300, sampled: 1, k: Vec::new(), greedy: true, before: true, after: true }
    }
}

impl EvalSection {
    /// True if anything is evaluated at all.
    pub fn is_on(&self) -> bool {
        self.before || self.after || self.eval_steps > 0
    }

    /// The k of pass@k and maj@k, ascending, each once.
    pub fn ks(&self) -> Vec<u32> {
        let mut ks = self.k.clone();
        if ks.is_empty() {
            ks.extend((1..32).map(|power| 1 << power).take_while(|k| *k < self.sampled));
            ks.extend((self.sampled > 0).then_some(self.sampled));
        }
        ks.sort_unstable();
        ks.dedup();
        ks
    }

    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.expect(
            !self.is_on() || self.eval_items > 0,
            "eval_items",
            "at least 1 while evaluation is on",
            self.eval_items,
        );
        let asks = self.greedy || self.sampled > 0;
        p.expect(!self.is_on() || asks, "sampled", "at least 1, or greedy: true", self.sampled);
        p.range("sampled", 0.0, 4096.0, self.sampled.into());
        for k in &self.k {
            p.expect((1..=self.sampled).contains(k), "k", format!("1 to eval.sampled={}", self.sampled), k);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_k_the_powers_of_two_are_told() {
        let ks = |sampled, k: &[u32]| EvalSection { sampled, k: k.to_vec(), ..EvalSection::default() }.ks();
        assert!(ks(0, &[]).is_empty());
        assert_eq!(ks(1, &[]), [1]);
        assert_eq!(ks(8, &[]), [2, 4, 8]);
        assert_eq!(ks(12, &[]), [2, 4, 8, 12]);
        assert_eq!(ks(8, &[5, 1, 5]), [1, 5]);
    }
}
