//! What sampling computed, kept for the backward of a learner in the same process.
//!
//! A row's numbers depend on the weights and on the tokens up to it alone, not on what shared its call. So where a learner
//! trains the very policy that was sampled from, its forward would compute again, bit for bit, what the sampler's did. Rows are
//! found here by what they depend on ([`Lineage`]); what is not found is computed as ever.

use std::{
    borrow::Cow,
    collections::HashMap,
    num::NonZeroUsize,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use folgore_protocol::{Digest, PolicyId};

use super::{
    Decoder, KvCache, Ragged,
    forward::{Call, LayerState},
    layout::Layout,
    parts,
};
use crate::{
    backend::{Backend, HeadOut, Sampled},
    lora::Adapter,
};

/// What a row depends on: the policy and all tokens up to its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lineage([u8; 32]);

impl Lineage {
    /// Before the first token of every sequence of `policy`.
    pub fn root(policy: &PolicyId) -> Self {
        let mut bytes = policy.digest.0.to_vec();
        bytes.extend(policy.epoch.to_le_bytes());
        bytes.extend(policy.step.to_le_bytes());
        Self(Digest::of(&bytes).0)
    }

    /// The row of `token`, right after `self`.
    pub fn then(self, token: u32) -> Self {
        let mut bytes = [0; 36];
        bytes[..32].copy_from_slice(&self.0);
        bytes[32..].copy_from_slice(&token.to_le_bytes());
        Self(Digest::of(&bytes).0)
    }

    /// Those of all rows of a learning call.
    pub fn of_rows(policy: &PolicyId, input: &Ragged) -> Vec<Self> {
        let root = Self::root(policy);
        let mut rows: Vec<Self> = Vec::with_capacity(input.len());
        for span in &input.spans {
            let before = span.prefix.iter().rev().find_map(|range| range.clone().next_back());
            let mut at = before.map_or(root, |row| rows[row]);
            for row in span.rows.clone() {
                at = at.then(input.tokens[row]);
                rows.push(at);
            }
        }
        rows
    }
}

/// Bytes that are copied in a nanosecond: a guess.
const COPIED: usize = 8;
/// Rows of a slab: it is filled by several calls, and used again from step to step.
const SLAB: usize = 64;

/// What a backward needs of up to [`SLAB`] rows.
struct Slab<B: Backend> {
    /// Of each layer what [`LayerState::bufs`] gives, or its input, or nothing; then the residual stream after the last.
    layers: Vec<Vec<B::Buf>>,
}

/// What the head said of a token.
#[derive(Clone, Copy)]
struct Score {
    temperature: f32,
    sampled: Sampled,
}

struct State<B: Backend> {
    policy: Option<PolicyId>,
    slabs: Vec<Arc<Slab<B>>>,
    /// Rows of `slabs` that are taken.
    held: usize,
    /// By number of the row.
    rows: HashMap<Lineage, u32>,
    /// By the row of the token, which no forward need have computed.
    scores: HashMap<Lineage, Score>,
    /// More was asked to be kept than may be: nothing is, until the next policy.
    over: bool,
}

impl<B: Backend> State<B> {
    /// Forgets the rows. Slabs that nobody reads any more stay for the next ones.
    fn begin(&mut self, policy: Option<PolicyId>) {
        self.policy = policy;
        self.slabs.retain_mut(|slab| Arc::get_mut(slab).is_some());
        self.held = 0;
        self.rows.clear();
        self.scores.clear();
        self.over = false;
    }

    fn give_up(&mut self) {
        self.begin(self.policy);
        self.slabs.clear();
        self.over = true;
    }
}

/// Keeps the rows of the newest policy, up to a number of them.
pub struct Recall<B: Backend> {
    most_rows: usize,
    every: Option<NonZeroUsize>,
    state: Mutex<State<B>>,
}

impl<B: Backend> Recall<B> {
    /// Keeps at most `most_rows` rows: all that a backward needs of them, or with `every` the inputs of one layer in so many.
    pub fn new(most_rows: usize, every: Option<NonZeroUsize>) -> Self {
        let (slabs, rows, scores) = Default::default();
        let state = State { policy: None, slabs, held: 0, rows, scores, over: false };
        Self { most_rows, every, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layers whose input is kept; none: everything is.
    pub fn every(&self) -> Option<NonZeroUsize> {
        self.every
    }

    /// True if rows of `policy` would be kept. A policy newer than the one before takes its place.
    pub fn wants(&self, policy: PolicyId) -> bool {
        let mut state = self.lock();
        if state.policy.is_none_or(|kept| kept < policy) {
            state.begin(Some(policy));
        }
        state.policy == Some(policy) && !state.over
    }

    /// [`Decoder::forward`] that keeps the rows which have a lineage. If those were more than may be kept, everything is
    /// forgotten: a step that is not here whole is of no use.
    pub fn forward(
        &self,
        decoder: &Decoder<B>,
        input: &Ragged,
        adapters: &[Option<Arc<Adapter<B>>>],
        cache: &mut KvCache<B>,
        policy: PolicyId,
        lineages: &[Option<Lineage>],
    ) -> B::Buf {
        assert_eq!(lineages.len(), input.len(), "recall: lineages of {} rows", input.len());
        let wanted: Vec<u32> = (0..input.len() as u32).filter(|row| lineages[*row as usize].is_some()).collect();
        let Some(first) = self.reserve(policy, wanted.len()) else { return decoder.forward(input, adapters, cache) };
        let backend = &**decoder.backend();
        let pen = |ranges: &[Range<usize>]| {
            let places = parts::places(ranges, &wanted);
            Pen { backend, rows: ranges[0].len(), places: places.into(), first }
        };
        let last = decoder.run(input, adapters, cache, |layer, parts, ranges| {
            let bufs: Vec<Vec<&B::Buf>> = match self.every {
                None => parts.iter().map(LayerState::bufs).collect(),
                Some(every) if layer.is_multiple_of(every.get()) => parts.iter().map(|part| vec![&part.x]).collect(),
                Some(_) => parts.iter().map(|_| Vec::new()).collect(),
            };
            self.write(&pen(ranges), layer, &bufs);
        });
        let bufs: Vec<_> = last.bufs.iter().map(|buf| vec![buf]).collect();
        self.write(&pen(&last.ranges), decoder.config().num_hidden_layers, &bufs);
        let mut state = self.lock();
        if !state.over {
            let numbers = first as u32..;
            state.rows.extend(lineages.iter().flatten().copied().zip(numbers));
        }
        drop(state);
        decoder.last_norm(&decoder.rows_of(&last, &input.wanted))
    }

    /// The first of `rows` rows that nobody else has; none where nothing is kept.
    fn reserve(&self, policy: PolicyId, rows: usize) -> Option<usize> {
        if rows == 0 || !self.wants(policy) {
            return None;
        }
        let mut state = self.lock();
        let first = state.held;
        if first + rows > self.most_rows {
            state.give_up();
            return None;
        }
        state.held += rows;
        while state.slabs.len() * SLAB < state.held {
            state.slabs.push(Arc::new(Slab { layers: Vec::new() }));
        }
        Some(first)
    }

    /// Writes what `layer` left, the buffers of each part, to the slabs of the pen's rows.
    fn write(&self, pen: &Pen<'_, B>, layer: usize, bufs: &[Vec<&B::Buf>]) {
        let mut state = self.lock();
        let (mut rest, mut first) = (&pen.places[..], pen.first);
        while !rest.is_empty() && !state.over {
            let (now, later) = rest.split_at(rest.len().min(SLAB - first % SLAB));
            match Arc::get_mut(&mut state.slabs[first / SLAB]) {
                Some(slab) => Pen { places: now.into(), first: first % SLAB, ..*pen }.write(slab, layer, bufs),
                // a learner reads this slab: it asked before the step was complete
                None => state.give_up(),
            }
            (rest, first) = (later, first + now.len());
        }
    }

    /// Keeps what the head said when it sampled the token of the row `lineage` at `temperature`.
    pub fn keep_score(&self, policy: PolicyId, lineage: Lineage, temperature: f32, sampled: Sampled) {
        if self.wants(policy) {
            self.lock().scores.insert(lineage, Score { temperature, sampled });
        }
    }

    /// The rows of a learning call under `policy`, if every one of them is here.
    pub fn find(&self, policy: PolicyId, input: &Ragged) -> Option<Recalled<B>> {
        let state = self.lock();
        if state.policy != Some(policy) || state.rows.is_empty() {
            return None;
        }
        let lineages = Lineage::of_rows(&policy, input);
        let place = |row: &u32| (row / SLAB as u32, row % SLAB as u32);
        let places: Option<Vec<_>> = lineages.iter().map(|lineage| state.rows.get(lineage).map(place)).collect();
        Some(Recalled { slabs: state.slabs.clone(), places: places?, lineages, every: self.every })
    }

    /// What the head said of `targets[i]` after the wanted row `i` of `rows`, if all were sampled at `temperature`.
    pub fn scores(&self, rows: &Recalled<B>, wanted: &[u32], targets: &[u32], temperature: f32) -> Option<HeadOut> {
        let state = self.lock();
        let mut out = HeadOut::default();
        for (row, target) in wanted.iter().zip(targets) {
            let score = state.scores.get(&rows.lineages[*row as usize].then(*target))?;
            if score.temperature.to_bits() != temperature.to_bits() {
                return None;
            }
            out.logprobs.push(score.sampled.logprob);
            out.lse.push(score.sampled.lse);
            out.entropy.push(score.sampled.entropy);
        }
        Some(out)
    }

    /// Forgets all rows; those of the same policy may come again. Their memory stays for the next ones.
    pub fn clear(&self) {
        self.lock().begin(None);
    }

    /// Forgets all rows and gives their memory back: for a learner that is about to hold as much of its own.
    pub fn release(&self) {
        let mut state = self.lock();
        state.begin(None);
        state.slabs.clear();
    }
}

/// Copies rows of a call into a slab.
struct Pen<'a, B: Backend> {
    backend: &'a B,
    /// Rows of the first part of the call.
    rows: usize,
    /// Those to copy: part, and row of the part.
    places: Cow<'a, [(u32, u32)]>,
    /// Where the first goes.
    first: usize,
}

impl<B: Backend> Pen<'_, B> {
    fn write(&self, slab: &mut Slab<B>, layer: usize, bufs: &[Vec<&B::Buf>]) {
        let widths: Vec<usize> = bufs[0].iter().map(|buf| self.backend.len(buf) / self.rows).collect();
        if slab.layers.len() == layer {
            slab.layers.push(widths.iter().map(|width| self.backend.alloc(SLAB * width)).collect());
        }
        // all buffers at once: one by one they are too short to share
        let to: Vec<_> = slab.layers[layer].iter_mut().map(Mutex::new).collect();
        let bytes = self.places.len() * widths.iter().sum::<usize>() * size_of::<f32>();
        self.backend.together(to.len(), bytes / COPIED, &|number| {
            let sources: Vec<_> = bufs.iter().map(|part| part[number]).collect();
            let mut to = to[number].lock().unwrap_or_else(PoisonError::into_inner);
            self.backend.gather_rows(&sources, &self.places, widths[number], &mut to, self.first);
        });
    }
}

/// Rows of a learning call that need no forward.
pub struct Recalled<B: Backend> {
    slabs: Vec<Arc<Slab<B>>>,
    /// Slab and row in it, for each row.
    places: Vec<(u32, u32)>,
    lineages: Vec<Lineage>,
    every: Option<NonZeroUsize>,
}

impl<B: Backend> Recalled<B> {
    /// Buffer `number` of `layer`, for the rows at `places`.
    fn rows(&self, b: &B, places: &[(u32, u32)], layer: usize, number: usize) -> B::Buf {
        // slabs that no row lies in may be empty
        let used = places.iter().map(|(slab, _)| *slab as usize + 1).max().unwrap_or(0);
        let sources: Vec<&B::Buf> = self.slabs[..used].iter().map(|slab| &slab.layers[layer][number]).collect();
        let width = sources.first().map_or(0, |first| b.len(first) / SLAB);
        let mut out = b.alloc(places.len() * width);
        b.gather_rows(&sources, places, width, &mut out, 0);
        out
    }

    /// The residual stream after the last layer, for `wanted` rows.
    pub(super) fn wanted(&self, decoder: &Decoder<B>, wanted: &[u32]) -> B::Buf {
        let places: Vec<_> = wanted.iter().map(|row| self.places[*row as usize]).collect();
        self.rows(decoder.backend(), &places, decoder.config().num_hidden_layers, 0)
    }

    /// States of the last layers before layer `end`: of one, or of as many as are computed again at a time.
    pub(super) fn states(
        &self,
        decoder: &Decoder<B>,
        end: usize,
        call: &Call<'_, B>,
        layout: &Layout,
    ) -> Vec<LayerState<B>> {
        let layer = end - 1;
        let rows = |layer, number| self.rows(decoder.backend(), &self.places, layer, number);
        match self.every {
            None => {
                let bufs = (0..self.slabs[0].layers[layer].len()).map(|number| rows(layer, number));
                vec![LayerState::of(bufs, &decoder.weights().layers[layer])]
            }
            Some(every) => {
                let first = layer / every * every.get();
                decoder.states_again(first..end, rows(first, 0), call, layout)
            }
        }
    }
}
