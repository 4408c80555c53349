//! One sequence on its way through the engine.

use std::ops::Range;

use folgore_model::decoder::Lineage;
use folgore_protocol::{Generate, Generated, PolicyId, RunLength, SamplingParams, StopReason, seed};

use super::{blocks::Content, stop::StopWatch};

/// Names a sequence; never used twice by one engine. Smaller came earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A sequence: what was asked, what was made, and where its keys lie.
#[derive(Debug)]
pub struct Sequence {
    /// Its name.
    pub id: SequenceId,
    /// The policy that it began with, and keeps.
    pub policy: PolicyId,
    /// Context and new ids.
    pub ids: Vec<u32>,
    /// How many of `ids` were given.
    pub prompt_len: usize,
    /// How to sample.
    pub sampling: SamplingParams,
    /// Stream of its draws.
    pub seed: u64,
    /// Log-probs of the new ids.
    pub logprobs: Vec<f32>,
    /// Most ids that it may have in all.
    pub len_max: usize,
    /// Watches for stop strings.
    pub stop: StopWatch,
    /// Cache blocks, in order.
    pub table: Vec<u32>,
    /// How many of `ids` have their keys in the cache.
    pub computed: usize,
    /// How many blocks of `table` are full and published.
    pub published: usize,
    /// Content of the last of them, or the policy's root.
    pub parent: Content,
    /// A learner is going to see it.
    pub for_training: bool,
    /// What the rows of its first ids depend on; as many as were asked for.
    lineages: Vec<Lineage>,
}

impl Sequence {
    /// A sequence for `request` under `policy`; `context` is the most ids that the model takes.
    pub fn new(id: SequenceId, policy: PolicyId, request: Generate, context: usize, root: Content) -> Self {
        let prompt_len = request.ids.len();
        let len_max = prompt_len.saturating_add(request.sampling.max_new_tokens as usize).min(context);
        Self {
            id,
            policy,
            ids: request.ids,
            prompt_len,
            stop: StopWatch::new(&request.sampling.stop),
            sampling: request.sampling,
            seed: request.seed,
            logprobs: Vec::new(),
            len_max,
            table: Vec::new(),
            computed: 0,
            published: 0,
            parent: root,
            for_training: request.for_training,
            lineages: Vec::new(),
        }
    }

    /// What the rows of `ids[range]` depend on.
    pub fn lineages(&mut self, range: Range<usize>) -> &[Lineage] {
        for at in self.lineages.len()..range.end {
            let before = at.checked_sub(1).map_or_else(|| Lineage::root(&self.policy), |at| self.lineages[at]);
            self.lineages.push(before.then(self.ids[at]));
        }
        &self.lineages[range]
    }

    /// Ids whose keys are not in the cache. 1 while decoding, 0 when a kept hidden state gives the next token.
    pub fn pending(&self) -> usize {
        self.ids.len() - self.computed
    }

    /// New ids made so far.
    pub fn new_len(&self) -> usize {
        self.ids.len() - self.prompt_len
    }

    /// The draw for the next id: a function of the request alone, so that a recomputed sequence goes on the same.
    pub fn uniform(&self) -> f32 {
        seed::uniform(self.seed, self.new_len() as u64)
    }

    /// What the sequence gave.
    pub fn into_generated(self, stop_reason: StopReason) -> Generated {
        let ids = self.ids[self.prompt_len..].to_vec();
        let policies = RunLength::of(self.policy, ids.len() as u32);
        Generated { ids, logprobs: self.logprobs, policies, stop_reason }
    }
}
