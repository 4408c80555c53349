//! How well a policy predicts what is learnt of given sequences.

use std::{collections::BTreeMap, ops::Range};

use folgore_model::backend::{Backend, HeadOut};
use serde_json::{Map, Value, json};

use super::{encode::Sequence, pack::pack};
use crate::trainee::Trainee;

/// Sums over learnt tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// How many.
    pub tokens: u64,
    /// Sum of their negative log-probs.
    pub negative_logprob: f64,
    /// Those that were the likeliest of all.
    pub likeliest: u64,
    /// Sum of the entropies of their distributions.
    pub entropy: f64,
}

impl Score {
    pub(super) fn add(&mut self, head: &HeadOut, targets: Range<usize>) {
        self.tokens += targets.len() as u64;
        self.negative_logprob -= head.logprobs[targets.clone()].iter().map(|lp| f64::from(*lp)).sum::<f64>();
        self.entropy += head.entropy[targets.clone()].iter().map(|e| f64::from(*e)).sum::<f64>();
        self.likeliest += head.likeliest[targets].iter().filter(|on| **on).count() as u64;
    }

    fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.negative_logprob += other.negative_logprob;
        self.likeliest += other.likeliest;
        self.entropy += other.entropy;
    }

    /// Mean negative log-prob of a token, in nats.
    pub fn loss(&self) -> f64 {
        self.negative_logprob / self.tokens as f64
    }

    /// `exp` of the loss.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Share of tokens that were the likeliest of all.
    pub fn mean_token_accuracy(&self) -> f64 {
        self.likeliest as f64 / self.tokens as f64
    }

    /// Mean entropy of a token's distribution, in nats.
    pub fn mean_entropy(&self) -> f64 {
        self.entropy / self.tokens as f64
    }
}

/// Scores by the source of their sequences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation(pub BTreeMap<String, Score>);

impl Evaluation {
    pub(super) fn add(&mut self, source: &str, head: &HeadOut, targets: Range<usize>) {
        self.0.entry(source.to_owned()).or_default().add(head, targets);
    }

    /// All sources together, every token alike.
    pub fn all(&self) -> Score {
        let mut all = Score::default();
        self.0.values().for_each(|score| all.merge(score));
        all
    }

    /// As numbers of a line of `metrics.jsonl`, with `prefix` before their names, by source too where there are several.
    pub fn metrics(&self, prefix: &str, line: &mut Map<String, Value>) {
        let all = self.all();
        if all.tokens == 0 {
            return;
        }
        line.insert(format!("{prefix}loss"), json!(all.loss()));
        line.insert(format!("{prefix}perplexity"), json!(all.perplexity()));
        line.insert(format!("{prefix}mean_token_accuracy"), json!(all.mean_token_accuracy()));
        line.insert(format!("{prefix}entropy"), json!(all.mean_entropy()));
        for (source, score) in self.0.iter().filter(|_| self.0.len() > 1) {
            line.insert(format!("{prefix}loss/{source}"), json!(score.loss()));
            line.insert(format!("{prefix}mean_token_accuracy/{source}"), json!(score.mean_token_accuracy()));
        }
    }
}

/// Scores `sequences` under the weights of `trainee`, in calls of at most `max_tokens` rows. What is learnt from is not touched.
pub fn evaluate<B: Backend>(trainee: &Trainee<B>, sequences: &[Sequence], max_tokens: usize) -> Evaluation {
    let mut evaluation = Evaluation::default();
    let all: Vec<&Sequence> = sequences.iter().collect();
    for call in pack(&all, max_tokens) {
        let head = trainee.logprobs(&call.input, &call.targets, 1.0);
        for (place, targets) in call.parts {
            evaluation.add(&sequences[place].source, &head, targets);
        }
    }
    evaluation
}
