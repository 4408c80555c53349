//! The generation engine: many sequences, one forward a step.
//!
//! [`Engine`] is schedule, run, post-process. [`scheduler`] and [`blocks`] decide without numbers, [`model`] computes without
//! decisions, [`sequence`] is what both know of one request, [`stop`] finds stop strings.
//!
//! What a request gives depends on nothing but the request and its policy: not on what else runs, on the order of arrival,
//! on the limits, on preemption or on what the cache holds. The model keeps its part of this promise row by row, the engine
//! by drawing from a stream of the request, never from one of its own.

pub mod blocks;
pub mod model;
pub mod scheduler;
pub mod sequence;
pub mod stop;

#[cfg(test)]
pub(crate) mod fake;

pub use model::{DecoderModel, KeptRows, Model};
pub use scheduler::{Counters, Limits};
pub use sequence::SequenceId;
pub use stop::TextPiece;

use std::sync::Arc;

use folgore_config::RolloutSection;
use folgore_model::{
    backend::{BLOCK, SampleSpec, Sampled},
    decoder::{Lineage, Ragged, Span},
};
use folgore_protocol::{Entropy, Generate, Generated, Measure, Measured, MeasuredRow, PolicyId, StopReason};
use serde::Serialize;

use scheduler::{Scheduler, Work};
use sequence::Sequence;

/// The last hidden state of a prompt, on the host.
type Kept = Arc<[f32]>;

/// Limits of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Most sequences in flight.
    pub max_concurrent_sequences: usize,
    /// Most tokens in one forward; long prompts are computed in chunks, between which others go on decoding.
    pub max_tokens_per_step: usize,
    /// Most sequences that wait to be admitted.
    pub max_waiting: usize,
    /// Most policies alive at once; a newer one waits until the oldest is not used any more.
    pub max_policies_in_flight: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { max_concurrent_sequences: 64, max_tokens_per_step: 512, max_waiting: 4096, max_policies_in_flight: 2 }
    }
}

impl From<&RolloutSection> for EngineConfig {
    fn from(section: &RolloutSection) -> Self {
        Self { max_concurrent_sequences: section.max_concurrent_sequences as usize, ..Self::default() }
    }
}

/// Cache blocks that `section` asks for with a model whose context holds `context` tokens: its `kv_tokens`, or enough for
/// all concurrent sequences at full length, each with a spare block for the copy of a shared one.
pub fn cache_blocks(section: &RolloutSection, context: usize) -> usize {
    if let Some(tokens) = section.kv_tokens {
        return (tokens as usize).div_ceil(BLOCK);
    }
    let longest = (u64::from(section.max_prompt_length) + section.most_after_prompt()).min(context as u64) as usize;
    section.max_concurrent_sequences as usize * (longest.div_ceil(BLOCK) + 1)
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// A sampling parameter is out of range.
    #[error("sampling: {0}")]
    Sampling(String),
    /// There is nothing to continue.
    #[error("the context is empty: expected at least one token id")]
    Empty,
    /// A token id is not one of the model's.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    Token {
        /// The id.
        id: u32,
        /// Number of ids.
        vocab: usize,
    },
    /// No room for a single new token.
    #[error("the prompt has {got} tokens, the model's context holds {limit}: expected at least one to spare")]
    Context {
        /// Tokens given.
        got: usize,
        /// The model's context.
        limit: usize,
    },
    /// There is nothing to measure at this place.
    #[error("place {place} of {got} tokens cannot be measured: expected one after the first")]
    Place {
        /// Place asked for.
        place: u32,
        /// Tokens given.
        got: usize,
    },
    /// The cache could not hold the sequence even alone.
    #[error("prompt and new tokens need {needed} tokens of cache, there are {capacity}: raise rollout.kv_tokens")]
    Capacity {
        /// Tokens needed.
        needed: usize,
        /// Tokens that the cache holds.
        capacity: usize,
    },
    /// The policy asked for is not alive here.
    #[error("policy {policy} is not served; the newest here is {newest}")]
    NotServed {
        /// Asked for.
        policy: PolicyId,
        /// The newest one served.
        newest: PolicyId,
    },
    /// No policy was given to the engine yet.
    #[error("no policy is served yet")]
    NoPolicy,
    /// Too many wait.
    #[error("{waiting} requests wait already, the most that may")]
    Full {
        /// How many wait.
        waiting: usize,
    },
}

/// What an engine did and holds; for people and metrics.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EngineStats {
    /// Sequences that wait.
    pub waiting: usize,
    /// Sequences in flight.
    pub running: usize,
    /// Cache blocks held by sequences.
    pub blocks_held: usize,
    /// Cache blocks in all.
    pub blocks: usize,
    /// Steps taken.
    pub steps: u64,
    /// Sequences that ended.
    pub finished: u64,
    /// Prompt tokens asked for.
    pub prompt_tokens: u64,
    /// Tokens that an admitted sequence found in the cache.
    pub cached_tokens: u64,
    /// Prompt tokens computed.
    pub prefill_tokens: u64,
    /// New tokens computed one by one.
    pub decode_tokens: u64,
    /// How often a sequence had to give its blocks back.
    pub preemptions: u64,
    /// Policies alive, oldest first.
    pub policies: Vec<String>,
}

struct Served<A> {
    policy: PolicyId,
    adapter: A,
}

/// The engine over a [`Model`].
pub struct Engine<M: Model> {
    model: M,
    text: Arc<dyn TextPiece>,
    config: EngineConfig,
    scheduler: Scheduler<Kept>,
    /// Alive policies, oldest first; new sequences begin with the last.
    policies: Vec<Served<M::Adapter>>,
    /// The newest policy, while there is no room for it.
    next_policy: Option<Served<M::Adapter>>,
    next_id: u64,
    steps: u64,
    finished: u64,
}

impl<M: Model> Engine<M> {
    /// An engine that serves nothing until [`Engine::publish`] gives it a policy. `text` is used for stop strings.
    pub fn new(model: M, text: Arc<dyn TextPiece>, config: EngineConfig) -> Self {
        let limits = Limits {
            max_concurrent_sequences: config.max_concurrent_sequences,
            max_tokens_per_step: config.max_tokens_per_step,
        };
        let scheduler = Scheduler::new(limits, model.blocks());
        Self {
            model,
            text,
            config,
            scheduler,
            policies: Vec::new(),
            next_policy: None,
            next_id: 0,
            steps: 0,
            finished: 0,
        }
    }

    /// Gives new sequences a new policy; running ones keep theirs. Where as many policies live as may, it waits until the
    /// oldest is not used any more; a still newer one takes its place in waiting.
    pub fn publish(&mut self, policy: PolicyId, adapter: M::Adapter) {
        self.next_policy = Some(Served { policy, adapter });
        self.adopt();
    }

    /// The policy that new sequences begin with.
    pub fn newest(&self) -> Option<PolicyId> {
        self.policies.last().map(|served| served.policy)
    }

    /// Takes a request in.
    pub fn submit(&mut self, request: Generate) -> Result<SequenceId, EngineError> {
        let policy = self.policy_for(request.policy)?;
        self.check(&request)?;
        let (waiting, _) = self.scheduler.depth();
        if waiting >= self.config.max_waiting {
            return Err(EngineError::Full { waiting });
        }
        let id = SequenceId(self.next_id);
        let root = self.scheduler.root(policy);
        let sequence = Sequence::new(id, policy, request, self.model.context(), root);
        let (needed, capacity) = (sequence.len_max, self.scheduler.capacity());
        if needed > capacity {
            return Err(EngineError::Capacity { needed, capacity });
        }
        self.next_id += 1;
        self.scheduler.add(sequence);
        Ok(id)
    }

    /// How sure the policy is of what was said before: one forward a row, beside the sequences that are under way.
    pub fn measure(&self, request: &Measure) -> Result<Measured, EngineError> {
        let policy = self.policy_for(request.policy)?;
        let (vocab, limit) = (self.model.vocab_size(), self.model.context());
        let adapter = self.place(policy).map(|place| &self.policies[place].adapter).ok_or(EngineError::NoPolicy)?;
        let entropy = |row: &MeasuredRow| {
            let got = row.ids.len();
            if got > limit {
                return Err(EngineError::Context { got, limit });
            }
            if let Some(id) = row.ids.iter().copied().find(|id| *id as usize >= vocab) {
                return Err(EngineError::Token { id, vocab });
            }
            let places: Vec<u32> = row.said.iter().cloned().flatten().collect();
            if let Some(place) = places.iter().copied().find(|place| *place == 0 || *place as usize >= got) {
                return Err(EngineError::Place { place, got });
            }
            let entropies = self.model.entropies(&row.ids, &places, adapter, request.temperature);
            let sum = entropies.iter().map(|entropy| f64::from(*entropy)).sum();
            Ok(Entropy { sum, tokens: entropies.len() as u32 })
        };
        Ok(Measured { rows: request.rows.iter().map(entropy).collect::<Result<_, _>>()? })
    }

    /// Gives a sequence up.
    pub fn abort(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        self.adopt();
    }

    /// True if there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.scheduler.depth() == (0, 0)
    }

    /// Takes one step: at most one forward. Returns the sequences that ended with it.
    pub fn step(&mut self) -> Vec<(SequenceId, Generated)> {
        let mut plan = self.scheduler.plan();
        if !plan.copies.is_empty() {
            self.model.copy_blocks(&plan.copies);
        }
        let mut sampled = self.run_ready(&plan.ready);
        sampled.extend(self.run_work(&mut plan.work));
        let ended: Vec<_> = sampled.into_iter().filter_map(|(id, token)| self.accept(id, token)).collect();
        self.steps += 1;
        self.finished += ended.len() as u64;
        self.adopt();
        ended
    }

    /// What the engine did and holds.
    pub fn stats(&self) -> EngineStats {
        let (waiting, running) = self.scheduler.depth();
        let (blocks_held, blocks) = self.scheduler.usage();
        let Counters { prompt_tokens, cached_tokens, prefill_tokens, decode_tokens, preemptions } =
            self.scheduler.counters();
        let policies = self.policies.iter().map(|served| served.policy.to_string()).collect();
        let (steps, finished) = (self.steps, self.finished);
        EngineStats {
            waiting,
            running,
            blocks_held,
            blocks,
            steps,
            finished,
            prompt_tokens,
            cached_tokens,
            prefill_tokens,
            decode_tokens,
            preemptions,
            policies,
        }
    }

    fn policy_for(&self, asked: Option<PolicyId>) -> Result<PolicyId, EngineError> {
        let newest = self.newest().ok_or(EngineError::NoPolicy)?;
        let policy = asked.unwrap_or(newest);
        if self.place(policy).is_none() {
            return Err(EngineError::NotServed { policy, newest });
        }
        Ok(policy)
    }

    fn place(&self, policy: PolicyId) -> Option<usize> {
        self.policies.iter().position(|served| served.policy == policy)
    }

    fn check(&self, request: &Generate) -> Result<(), EngineError> {
        request.sampling.validate().map_err(EngineError::Sampling)?;
        let (got, limit, vocab) = (request.ids.len(), self.model.context(), self.model.vocab_size());
        if got == 0 {
            return Err(EngineError::Empty);
        }
        if let Some(id) = request.ids.iter().copied().find(|id| *id as usize >= vocab) {
            return Err(EngineError::Token { id, vocab });
        }
        if got >= limit { Err(EngineError::Context { got, limit }) } else { Ok(()) }
    }

    /// Takes the waiting policy up if there is room, giving up the oldest ones that nobody uses.
    fn adopt(&mut self) {
        let Some(next) = self.next_policy.take() else { return };
        if let Some(same) = self.place(next.policy) {
            // Published again: the newest is what new sequences begin with.
            let served = self.policies.remove(same);
            self.policies.push(served);
            return;
        }
        let max = self.config.max_policies_in_flight.max(1);
        while self.policies.len() >= max {
            let Some(unused) = self.policies.iter().position(|served| !self.scheduler.uses(served.policy)) else {
                self.next_policy = Some(next);
                return;
            };
            let old = self.policies.remove(unused);
            self.scheduler.forget(old.policy);
        }
        self.policies.push(next);
    }

    /// Samples the first token of sequences whose whole prompt somebody else has computed.
    fn run_ready(&mut self, ready: &[(SequenceId, Kept)]) -> Vec<(SequenceId, Sampled)> {
        let specs: Vec<_> = ready.iter().filter_map(|(id, _)| self.spec(*id)).collect();
        if specs.is_empty() {
            return Vec::new();
        }
        let rows: Vec<f32> = ready.iter().flat_map(|(_, kept)| kept.iter().copied()).collect();
        let hidden = self.model.upload(&rows);
        let tokens = self.model.sample(&hidden, &specs);
        ready.iter().map(|(id, _)| *id).zip(tokens).collect()
    }

    /// Computes the planned tokens in one forward and samples where a sequence's last token was among them.
    fn run_work(&mut self, work: &mut [Work]) -> Vec<(SequenceId, Sampled)> {
        if work.is_empty() {
            return Vec::new();
        }
        let (input, adapters) = self.gather(work);
        let kept = self.kept_rows(work, input.len());
        let kept = kept.as_ref().map(|(policy, lineages)| KeptRows { policy: *policy, lineages });
        let hidden = self.model.forward(&input, &adapters, kept);
        let ends: Vec<SequenceId> = work.iter().filter(|w| w.samples).map(|w| w.id).collect();
        work.iter().for_each(|w| self.scheduler.advance(w.id, w.count));
        if ends.is_empty() {
            return Vec::new();
        }
        self.keep_prompt_ends(&ends, &hidden);
        let specs: Vec<_> = ends.iter().filter_map(|id| self.spec(*id)).collect();
        ends.into_iter().zip(self.model.sample(&hidden, &specs)).collect()
    }

    /// Lays the work out as one ragged batch, rows of one adapter together.
    fn gather(&self, work: &mut [Work]) -> (Ragged, Vec<M::Adapter>) {
        let place = |id| self.scheduler.get(id).and_then(|s| self.place(s.policy)).unwrap_or(0);
        work.sort_by_key(|w| place(w.id));
        let mut input = Ragged::default();
        for item in work.iter() {
            let Some(sequence) = self.scheduler.get(item.id) else { continue };
            let (begin, end) = (item.start, item.start + item.count);
            let row = input.tokens.len();
            input.tokens.extend_from_slice(&sequence.ids[begin..end]);
            input.positions.extend(begin as u32..end as u32);
            if item.samples {
                input.wanted.push(input.tokens.len() as u32 - 1);
            }
            input.spans.push(Span {
                rows: row..input.tokens.len(),
                start: begin,
                table: sequence.table.clone(),
                prefix: Vec::new(),
                adapter: place(item.id),
            });
        }
        (input, self.policies.iter().map(|served| served.adapter.clone()).collect())
    }

    /// What the rows of `work` depend on that a learner is going to ask for; none where nothing is kept.
    fn kept_rows(&mut self, work: &[Work], rows: usize) -> Option<(PolicyId, Vec<Option<Lineage>>)> {
        let policy = self.newest().filter(|policy| self.model.keeps(*policy))?;
        let mut lineages = Vec::with_capacity(rows);
        for item in work {
            let Some(sequence) = self.scheduler.get_mut(item.id) else { continue };
            if sequence.for_training && sequence.policy == policy {
                let own = sequence.lineages(item.start..item.start + item.count);
                lineages.extend(own.iter().copied().map(Some));
            } else {
                lineages.extend(std::iter::repeat_n(None, item.count));
            }
        }
        lineages.iter().any(Option::is_some).then_some((policy, lineages))
    }

    /// Keeps the hidden states at the ends of prompts, so that the same prompt need not be computed again.
    fn keep_prompt_ends(&mut self, ends: &[SequenceId], hidden: &M::Hidden) {
        let is_prompt = |id: &SequenceId| self.scheduler.get(*id).is_some_and(|s| s.new_len() == 0);
        let prompts: Vec<bool> = ends.iter().map(is_prompt).collect();
        if !prompts.contains(&true) {
            return;
        }
        let rows = self.model.download(hidden);
        let width = rows.len() / ends.len();
        for (i, id) in ends.iter().enumerate().filter(|(i, _)| prompts[*i]) {
            self.scheduler.note(*id, rows[i * width..(i + 1) * width].into());
        }
    }

    fn spec(&self, id: SequenceId) -> Option<SampleSpec> {
        let sequence = self.scheduler.get(id)?;
        let sampling = &sequence.sampling;
        let penalised = sampling.repetition_penalty != 1.0;
        Some(SampleSpec {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            seen: if penalised { sequence.ids.clone() } else { Vec::new() },
            uniform: sequence.uniform(),
        })
    }

    /// Appends a sampled token; gives the sequence's result if it ends with it.
    fn accept(&mut self, id: SequenceId, token: Sampled) -> Option<(SequenceId, Generated)> {
        let eos = self.model.eos_ids().contains(&token.id);
        let sequence = self.scheduler.get_mut(id)?;
        sequence.ids.push(token.id);
        sequence.logprobs.push(token.logprob);
        if sequence.for_training && self.model.keeps(sequence.policy) {
            let last = sequence.ids.len() - 1;
            let temperature = SampleSpec::logprob_temperature(sequence.sampling.temperature);
            let lineage = sequence.lineages(last..last + 1)[0];
            self.model.keep_score(sequence.policy, lineage, temperature, token);
        }
        let reason = stop_reason(sequence, token.id, eos, &*self.text)?;
        let sequence = self.scheduler.remove(id)?;
        Some((id, sequence.into_generated(reason)))
    }
}

/// Why `sequence` ends with its last token `id`, if it does.
fn stop_reason(sequence: &mut Sequence, id: u32, eos: bool, text: &dyn TextPiece) -> Option<StopReason> {
    let ends = (eos && !sequence.sampling.ignore_eos) || sequence.sampling.stop_ids.contains(&id);
    if ends {
        Some(StopReason::Eos)
    } else if sequence.stop.push(id, text) {
        Some(StopReason::StopString)
    } else if sequence.new_len() >= sequence.sampling.max_new_tokens as usize {
        Some(StopReason::Length)
    } else if sequence.ids.len() >= sequence.len_max {
        Some(StopReason::Context)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
