//! Decides what the engine computes next: which sequences take part, with which tokens, in which cache blocks.
//!
//! No numbers here: the scheduler can be tested without a model. Each step mixes all sequences that decode (one token each)
//! with chunks of prompts, up to a budget of tokens. Its rules:
//! - first come, first served; a sequence that was admitted keeps its place until it ends or is preempted;
//! - a prompt that somebody is computing already is waited for rather than computed twice;
//! - when blocks run out the youngest sequence gives all of its own back and waits again; what it had made so far is
//!   computed again later and gives the same, because draws depend on the request alone;
//! - the oldest sequence is never preempted for another, hence every sequence ends.

use std::collections::VecDeque;

use folgore_model::backend::BLOCK;
use folgore_protocol::PolicyId;

use super::{
    blocks::{Blocks, Content, Prefix},
    sequence::{Sequence, SequenceId},
};

/// Limits of one step.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most sequences in flight.
    pub max_concurrent_sequences: usize,
    /// Most tokens computed in one step.
    pub max_tokens_per_step: usize,
}

/// Tokens of one sequence to compute in this step.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// The sequence.
    pub id: SequenceId,
    /// Place of the first token; all earlier ones have their keys in the cache.
    pub start: usize,
    /// How many tokens.
    pub count: usize,
    /// True if the last of them gives a new token.
    pub samples: bool,
}

/// What to do in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan<N> {
    /// Blocks to copy, (from, to), before anything else.
    pub copies: Vec<(u32, u32)>,
    /// What to compute, in one forward.
    pub work: Vec<Work>,
    /// Sequences whose next token comes from what was noted at the end of their prompt.
    pub ready: Vec<(SequenceId, N)>,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Prompt tokens asked for.
    pub prompt_tokens: u64,
    /// Tokens that an admitted sequence found in the cache.
    pub cached_tokens: u64,
    /// Tokens computed as part of a prompt, or again after a preemption.
    pub prefill_tokens: u64,
    /// Tokens computed one by one.
    pub decode_tokens: u64,
    /// How often a sequence had to give its blocks back.
    pub preemptions: u64,
}

/// Waiting and running sequences, and the blocks that they share.
#[derive(Debug)]
pub struct Scheduler<N> {
    limits: Limits,
    blocks: Blocks<N>,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    counters: Counters,
}

impl<N: Clone> Scheduler<N> {
    /// A scheduler over `blocks` cache blocks. A limit too small to make progress is raised: at least one sequence, and
    /// room for a prompt beside the decoding ones.
    pub fn new(limits: Limits, blocks: usize) -> Self {
        let max_concurrent_sequences = limits.max_concurrent_sequences.max(1);
        let max_tokens_per_step = limits.max_tokens_per_step.max(max_concurrent_sequences + BLOCK);
        let limits = Limits { max_concurrent_sequences, max_tokens_per_step };
        Self {
            limits,
            blocks: Blocks::new(blocks),
            waiting: VecDeque::new(),
            running: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Tokens that the cache holds in all: no sequence may become longer.
    pub fn capacity(&self) -> usize {
        self.blocks.count() * BLOCK
    }

    /// Root of `policy` in the cache.
    pub fn root(&mut self, policy: PolicyId) -> Content {
        self.blocks.root(policy)
    }

    /// Appends a sequence to the waiting ones. Its `len_max` must not exceed [`Scheduler::capacity`].
    pub fn add(&mut self, sequence: Sequence) {
        debug_assert!(sequence.len_max <= self.capacity());
        self.counters.prompt_tokens += sequence.prompt_len as u64;
        self.waiting.push_back(sequence);
    }

    /// Waiting and running sequences.
    pub fn depth(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Blocks held and blocks in all.
    pub fn usage(&self) -> (usize, usize) {
        (self.blocks.held(), self.blocks.count())
    }

    /// Counters since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// True if a waiting or running sequence keeps `policy`.
    pub fn uses(&self, policy: PolicyId) -> bool {
        self.waiting.iter().chain(&self.running).any(|s| s.policy == policy)
    }

    /// Forgets what is cached for `policy`.
    pub fn forget(&mut self, policy: PolicyId) {
        self.blocks.forget(policy);
    }

    /// A running sequence.
    pub fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.running.iter().find(|s| s.id == id)
    }

    /// A running sequence, to append a token to.
    pub fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.running.iter_mut().find(|s| s.id == id)
    }

    /// Plans the next step; with nothing to do the plan is empty.
    pub fn plan(&mut self) -> Plan<N> {
        let mut plan = Plan { copies: Vec::new(), work: Vec::new(), ready: Vec::new() };
        let mut budget = self.limits.max_tokens_per_step;
        let copied_from = self.plan_decode(&mut plan, &mut budget);
        self.plan_prefill(&mut plan, &mut budget);
        self.admit(&mut plan, &mut budget);
        // Released only now: a block that this step copies from must not be given out again in the same step.
        copied_from.into_iter().for_each(|block| self.blocks.release(block));
        plan
    }

    /// Records that the keys of `count` more tokens of `id` are in the cache, and publishes the blocks that became full.
    pub fn advance(&mut self, id: SequenceId, count: usize) {
        let Some(sequence) = self.running.iter_mut().find(|s| s.id == id) else { return };
        sequence.computed += count;
        while (sequence.published + 1) * BLOCK <= sequence.computed {
            let at = sequence.published;
            let tokens = &sequence.ids[at * BLOCK..(at + 1) * BLOCK];
            let (block, content) = self.blocks.publish(sequence.policy, sequence.parent, tokens, sequence.table[at]);
            sequence.table[at] = block;
            sequence.parent = content;
            sequence.published += 1;
        }
    }

    /// Keeps `note` at the end of the prompt of `id`, whose keys are all in the cache, for others with the same prompt.
    pub fn note(&mut self, id: SequenceId, note: N) {
        let Some(sequence) = self.running.iter_mut().find(|s| s.id == id) else { return };
        debug_assert_eq!((sequence.computed, sequence.new_len()), (sequence.ids.len(), 0));
        let last = (sequence.ids.len() - 1) / BLOCK;
        if last == sequence.published {
            let tokens = &sequence.ids[last * BLOCK..];
            let (block, _) = self.blocks.publish(sequence.policy, sequence.parent, tokens, sequence.table[last]);
            sequence.table[last] = block;
        }
        self.blocks.note(sequence.table[last], note);
    }

    /// Takes a sequence out, running or waiting, and lets go of its blocks.
    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        if let Some(at) = self.running.iter().position(|s| s.id == id) {
            let mut sequence = self.running.remove(at);
            self.let_go(&mut sequence);
            return Some(sequence);
        }
        let at = self.waiting.iter().position(|s| s.id == id)?;
        self.waiting.remove(at)
    }

    /// All sequences that decode, oldest first. Returns blocks to release when the plan is complete.
    fn plan_decode(&mut self, plan: &mut Plan<N>, budget: &mut usize) -> Vec<u32> {
        let mut copied_from = Vec::new();
        let mut at = 0;
        while at < self.running.len() && *budget > 0 {
            if self.running[at].pending() != 1 {
                at += 1;
                continue;
            }
            while at < self.running.len() && !self.make_writable(at, plan, &mut copied_from) {
                self.preempt_youngest();
            }
            if let Some(sequence) = self.running.get(at) {
                plan.work.push(Work { id: sequence.id, start: sequence.computed, count: 1, samples: true });
                self.counters.decode_tokens += 1;
                *budget -= 1;
            }
            at += 1;
        }
        copied_from
    }

    /// Chunks of the prompts that were begun before, oldest first.
    fn plan_prefill(&mut self, plan: &mut Plan<N>, budget: &mut usize) {
        for sequence in &self.running {
            if sequence.pending() > 1 && *budget > 0 {
                plan.work.push(chunk(sequence, budget, &mut self.counters));
            }
        }
    }

    /// Admits waiting sequences while there is room.
    fn admit(&mut self, plan: &mut Plan<N>, budget: &mut usize) {
        let mut next = 0;
        while next < self.waiting.len() && self.running.len() < self.limits.max_concurrent_sequences && *budget > 0 {
            let candidate = &self.waiting[next];
            let mut found = self.blocks.lookup(candidate.policy, &candidate.ids);
            if self.being_computed(candidate, found.full()) {
                next += 1;
                continue;
            }
            let ready = found.note.take().filter(|_| candidate.new_len() == 0);
            if ready.is_none() {
                // At least one token must be computed, and into a block of the sequence's own.
                found.truncate((candidate.ids.len() - 1) / BLOCK);
            }
            let Some(sequence) = self.start(next, found) else { return };
            self.counters.cached_tokens += sequence.computed as u64;
            match ready {
                Some(note) => plan.ready.push((sequence.id, note)),
                None => plan.work.push(chunk(&sequence, budget, &mut self.counters)),
            }
            self.running.push(sequence);
        }
    }

    /// True if a running sequence is about to publish something of `candidate` that is not among its `full` known blocks.
    fn being_computed(&self, candidate: &Sequence, full: usize) -> bool {
        let computing = self.running.iter().filter(|s| s.policy == candidate.policy && s.pending() > 0);
        let mut shared = computing.map(|s| (s, s.ids.iter().zip(&candidate.ids).take_while(|(a, b)| a == b).count()));
        shared.any(|(s, common)| {
            let same_prompt = s.new_len() == 0 && common == s.ids.len() && common == candidate.ids.len();
            common / BLOCK > full.max(s.published) || same_prompt
        })
    }

    /// Takes the waiting sequence at `place` with the blocks found for it and new ones for the rest of its ids; none if
    /// there are not enough.
    fn start(&mut self, place: usize, found: Prefix<N>) -> Option<Sequence> {
        let need = self.waiting[place].ids.len().div_ceil(BLOCK) - found.blocks.len();
        // Each running sequence may need a block soon: without this reserve the newcomer would be the next to be preempted.
        let available = self.blocks.available() - self.blocks.cached_among(&found.blocks);
        if need + self.running.len() > available {
            return None;
        }
        let mut sequence = self.waiting.remove(place)?;
        found.blocks.iter().for_each(|block| self.blocks.hold(*block));
        sequence.computed = (found.blocks.len() * BLOCK).min(sequence.ids.len());
        sequence.published = found.full();
        sequence.parent = found.parent();
        sequence.table = found.blocks;
        for _ in 0..need {
            sequence.table.extend(self.blocks.allocate());
        }
        Some(sequence)
    }

    /// Sees to it that the next key of the running sequence at `place` has a lane that only it may write.
    fn make_writable(&mut self, place: usize, plan: &mut Plan<N>, copied_from: &mut Vec<u32>) -> bool {
        let sequence = &mut self.running[place];
        let at = sequence.computed / BLOCK;
        let Some(&block) = sequence.table.get(at) else {
            let new = self.blocks.allocate();
            sequence.table.extend(new);
            return new.is_some();
        };
        if !self.blocks.is_published(block) {
            return true;
        }
        if let Some(copy) = self.blocks.allocate() {
            plan.copies.push((block, copy));
            copied_from.push(block);
            sequence.table[at] = copy;
            return true;
        }
        let alone = self.blocks.holders(block) == 1;
        if alone {
            self.blocks.withdraw(block);
        }
        alone
    }

    fn preempt_youngest(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.let_go(&mut sequence);
            self.counters.preemptions += 1;
            let place = self.waiting.partition_point(|s| s.id < sequence.id);
            self.waiting.insert(place, sequence);
        }
    }

    /// Releases all blocks of `sequence`, the last first, so that cached tails go before what they continue.
    fn let_go(&mut self, sequence: &mut Sequence) {
        sequence.table.drain(..).rev().for_each(|block| self.blocks.release(block));
        sequence.computed = 0;
        sequence.published = 0;
        sequence.parent = self.blocks.root(sequence.policy);
    }
}

/// The next chunk of `sequence` that the budget allows.
fn chunk(sequence: &Sequence, budget: &mut usize, counters: &mut Counters) -> Work {
    let count = sequence.pending().min(*budget);
    *budget -= count;
    counters.prefill_tokens += count as u64;
    Work { id: sequence.id, start: sequence.computed, count, samples: count == sequence.pending() }
}

#[cfg(test)]
impl<N: Clone> Scheduler<N> {
    /// Panics unless the blocks are held exactly as the tables say. For tests.
    pub(crate) fn check(&self) {
        assert!(self.waiting.iter().all(|s| s.table.is_empty()), "a waiting sequence holds blocks");
        let tables: Vec<&[u32]> = self.running.iter().map(|s| s.table.as_slice()).collect();
        self.blocks.check(&tables);
    }
}
