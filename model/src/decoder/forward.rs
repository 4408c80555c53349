//! The forward pass.

use std::{ops::Range, sync::Arc};

use super::{
    Decoder, LayerWeights, Linear, Ragged,
    parts::{self, Part, Rows, each},
};
use crate::{
    backend::{AttnShape, AttnSpan, BLOCK, Backend, Head, HeadOut, Heads, KvPrecision, Map, SampleSpec, Sampled},
    lora::Adapter,
};

/// Keys and values of all layers, in blocks that sequences hold through their tables.
pub struct KvCache<B: Backend> {
    layers: Vec<B::Kv>,
    blocks: usize,
}

impl<B: Backend> KvCache<B> {
    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }
}

/// Rows that run under one adapter; none: the base.
pub(super) type AdapterRows<'a, B> = (Range<usize>, Option<&'a Adapter<B>>);

/// What all layers of one call have in common.
pub(super) struct Call<'a, B: Backend> {
    pub(super) input: &'a Ragged,
    pub(super) rows: Vec<AdapterRows<'a, B>>,
    /// Where the keys and values of rows go, as in [`Backend::kv_write`].
    pub(super) writes: &'a [(u32, u32)],
    pub(super) spans: &'a [AttnSpan],
    pub(super) dropout: Option<super::Dropout>,
}

impl<'a, B: Backend> Call<'a, B> {
    /// A part of a sampling call.
    fn of(part: &'a Part, adapters: &'a [Option<Arc<Adapter<B>>>]) -> Self {
        let Part { input, writes, spans, .. } = part;
        Self { input, rows: adapter_rows(input, adapters), writes, spans, dropout: None }
    }
}

/// What attention needs of a layer's input.
struct Queries<B: Backend> {
    q: B::Buf,
    k: B::Buf,
    v: B::Buf,
    /// As in [`BeforeNorm`].
    before_q: Option<B::Buf>,
    before_k: Option<B::Buf>,
}

/// What a layer computed on its way, kept where a backward will need it. What went into the linear maps follows from it.
pub(super) struct LayerState<B: Backend> {
    pub(super) x: B::Buf,
    pub(super) q: B::Buf,
    pub(super) k: B::Buf,
    pub(super) v: B::Buf,
    pub(super) attended: B::Buf,
    pub(super) middle: B::Buf,
    pub(super) gate: B::Buf,
    pub(super) up: B::Buf,
    /// What went into the norms that not every family has.
    pub(super) before: BeforeNorm<B>,
}

/// Inputs of the norms of q and k and of the two outputs.
pub(super) struct BeforeNorm<B: Backend> {
    pub(super) q: Option<B::Buf>,
    pub(super) k: Option<B::Buf>,
    pub(super) attention: Option<B::Buf>,
    pub(super) feed_forward: Option<B::Buf>,
}

impl<B: Backend> LayerState<B> {
    /// All buffers, in the order of [`Self::of`].
    pub(super) fn bufs(&self) -> Vec<&B::Buf> {
        let Self { x, q, k, v, attended, middle, gate, up, before } = self;
        let before = [&before.q, &before.k, &before.attention, &before.feed_forward];
        [x, q, k, v, attended, middle, gate, up].into_iter().chain(before.into_iter().flatten()).collect()
    }

    /// The state of a layer with `weights` from its buffers.
    pub(super) fn of(bufs: impl IntoIterator<Item = B::Buf>, weights: &LayerWeights<B>) -> Self {
        let mut bufs = bufs.into_iter();
        let mut next = || bufs.next().expect("as many buffers as a state has");
        let [x, q, k, v, attended, middle, gate, up] = std::array::from_fn(|_| next());
        let mut before = |weight: &Option<B::Buf>| weight.as_ref().map(|_| next());
        let before = BeforeNorm {
            q: before(&weights.q_norm),
            k: before(&weights.k_norm),
            attention: before(&weights.attention_output_norm),
            feed_forward: before(&weights.feed_forward_output_norm),
        };
        Self { x, q, k, v, attended, middle, gate, up, before }
    }
}

impl<B: Backend> Decoder<B> {
    /// Room for `blocks` blocks of every layer.
    pub fn cache(&self, blocks: usize) -> KvCache<B> {
        let layers =
            (0..self.config().num_hidden_layers).map(|_| self.backend().kv(blocks, self.heads(), self.kv)).collect();
        KvCache { layers, blocks }
    }

    /// Bytes of one cache block over all layers.
    pub fn cache_block_bytes(&self) -> usize {
        let c = self.config();
        2 * self.kv.bytes() * BLOCK * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
    }

    /// Copies whole blocks (from, to) in every layer.
    pub fn copy_blocks(&self, cache: &mut KvCache<B>, copies: &[(u32, u32)]) {
        for layer in &mut cache.layers {
            self.backend().kv_copy(layer, copies);
        }
    }

    /// Runs `input`, whose spans hold cache tables: writes the keys and values of its rows to the cache and returns the
    /// hidden states of the `wanted` rows after the last norm, [wanted, hidden].
    ///
    /// # Panics
    /// If a span's table is too short for its keys, a token lies outside the vocabulary or a position outside the context.
    pub fn forward(&self, input: &Ragged, adapters: &[Option<Arc<Adapter<B>>>], cache: &mut KvCache<B>) -> B::Buf {
        let last = self.run(input, adapters, cache, |_, _, _| {});
        self.last_norm(&self.rows_of(&last, &input.wanted))
    }

    /// The residual stream after the last layer, for all rows; `keep` is given what each layer left, part by part, and the rows of
    /// the parts.
    pub(super) fn run(
        &self,
        input: &Ragged,
        adapters: &[Option<Arc<Adapter<B>>>],
        cache: &mut KvCache<B>,
        mut keep: impl FnMut(usize, &[LayerState<B>], &[Range<usize>]),
    ) -> Rows<B> {
        input.check(self.config(), adapters.len());
        let b = &**self.backend();
        let parts = parts::cut(input, b.parts(input.len(), self.weights().bytes(b)));
        let ranges: Vec<_> = parts.iter().map(|part| part.rows.clone()).collect();
        let calls: Vec<Call<'_, B>> = parts.iter().map(|part| Call::of(part, adapters)).collect();
        // of each part the input of a layer and what attention needs of it
        let mut ready = each(b, calls.iter().collect(), |_, call: &Call<'_, B>| {
            let x = self.embed(call.input);
            let queries = self.queries(0, &x, call);
            (x, Some(queries))
        });
        for (layer, kv) in cache.layers.iter_mut().enumerate() {
            for (call, (_, queries)) in calls.iter().zip(&ready) {
                queries.iter().for_each(|q| b.kv_write(kv, &q.k, &q.v, call.writes));
            }
            let (kv, next) = (&*kv, layer + 1);
            let done = each(b, ready, |part, (x, queries)| {
                let call = &calls[part];
                let queries = queries.expect("made with the layer's input");
                let mut state = self.attended(layer, x, queries, call, kv);
                let x = self.layer_output(layer, &mut state, call);
                let queries = (next < self.config().num_hidden_layers).then(|| self.queries(next, &x, call));
                (state, (x, queries))
            });
            let states: Vec<_>;
            (states, ready) = done.into_iter().unzip();
            keep(layer, &states, &ranges);
        }
        Rows { bufs: ready.into_iter().map(|(x, _)| x).collect(), ranges }
    }

    /// Samples a token for each row of `hidden` [n, hidden].
    pub fn sample(&self, hidden: &B::Buf, specs: &[SampleSpec]) -> Vec<Sampled> {
        self.backend().sample(hidden, self.head(), specs)
    }

    /// Log-prob of `targets[i]` after row `i` of `hidden` [n, hidden].
    pub fn logprobs(&self, hidden: &B::Buf, targets: &[u32], temperature: f32) -> HeadOut {
        self.backend().head_logprobs(hidden, self.head(), targets, temperature)
    }

    /// All logits of `hidden` [n, hidden]: [n, vocab].
    pub fn logits(&self, hidden: &B::Buf) -> Vec<f32> {
        self.backend().logits(hidden, self.head())
    }

    pub(super) fn heads(&self) -> Heads {
        let c = self.config();
        Heads { heads: c.num_attention_heads, kv_heads: c.num_key_value_heads, head_dim: c.head_dim }
    }

    pub(super) fn attention_shape(&self, layer: usize) -> AttnShape {
        let c = self.config();
        AttnShape { heads: self.heads(), scale: c.attention_scale(), window: c.window(layer) }
    }

    pub(super) fn head(&self) -> Head<'_, B::Matrix> {
        Head { matrix: self.weights().head(), softcap: self.config().variant.final_softcap }
    }

    /// Turns q or k, or with `inverse` their gradient, by the angles of a layer.
    pub(super) fn turn(&self, layer: usize, x: &mut B::Buf, input: &Ragged, heads: usize, inverse: bool) {
        let table = self.rope.of(self.config().window(layer).is_some());
        self.backend().rope(x, table, &input.positions, heads, self.config().head_dim, inverse);
    }

    pub(super) fn embed(&self, input: &Ragged) -> B::Buf {
        let mut x = self.backend().alloc(input.len() * self.config().hidden_size);
        self.backend().embed(&self.weights().embed_tokens, &input.tokens, &mut x);
        if let Some(scale) = self.config().variant.embedding_scale {
            self.backend().scale(&mut x, scale);
        }
        x
    }

    pub(super) fn wanted_rows(&self, x: &B::Buf, wanted: &[u32]) -> B::Buf {
        let places: Vec<_> = wanted.iter().map(|row| (0, *row)).collect();
        self.gathered(&[x], &places)
    }

    /// Some rows of all parts of a call.
    pub(super) fn rows_of(&self, rows: &Rows<B>, wanted: &[u32]) -> B::Buf {
        self.gathered(&rows.bufs.iter().collect::<Vec<_>>(), &parts::places(&rows.ranges, wanted))
    }

    fn gathered(&self, sources: &[&B::Buf], places: &[(u32, u32)]) -> B::Buf {
        let width = self.config().hidden_size;
        let mut rows = self.backend().alloc(places.len() * width);
        self.backend().gather_rows(sources, places, width, &mut rows, 0);
        rows
    }

    pub(super) fn last_norm(&self, rows: &B::Buf) -> B::Buf {
        self.normed(rows, &self.weights().norm)
    }

    /// `x` through a norm, in rows as long as its weight.
    pub(super) fn normed(&self, x: &B::Buf, weight: &B::Buf) -> B::Buf {
        let mut normed = self.backend().alloc(self.backend().len(x));
        self.backend().rms_norm(x, weight, self.config().rms_norm_eps, &mut normed);
        normed
    }

    /// One layer: from the residual stream `x` to the next, and what a backward needs.
    pub(super) fn layer(&self, index: usize, x: B::Buf, call: &Call<'_, B>, kv: &mut B::Kv) -> (B::Buf, LayerState<B>) {
        let mut state = self.layer_state(index, x, call, kv);
        (self.layer_output(index, &mut state, call), state)
    }

    /// All of a layer but the last map of its feed-forward part.
    pub(super) fn layer_state(&self, index: usize, x: B::Buf, call: &Call<'_, B>, kv: &mut B::Kv) -> LayerState<B> {
        let queries = self.queries(index, &x, call);
        self.backend().kv_write(kv, &queries.k, &queries.v, call.writes);
        self.attended(index, x, queries, call, kv)
    }

    /// What a layer does before its keys are written.
    fn queries(&self, index: usize, x: &B::Buf, call: &Call<'_, B>) -> Queries<B> {
        let (b, w, heads) = (&**self.backend(), &self.weights().layers[index], self.heads());
        let normed = self.normed(x, &w.attention_norm);
        let [mut q, mut k, mut v] = self.linears(index, [Linear::QProj, Linear::KProj, Linear::VProj], &normed, call);
        let before_q = self.normalise(&mut q, w.q_norm.as_ref());
        let before_k = self.normalise(&mut k, w.k_norm.as_ref());
        self.turn(index, &mut q, call.input, heads.heads, false);
        self.turn(index, &mut k, call.input, heads.kv_heads, false);
        if self.kv == KvPrecision::Bf16 {
            // here and not in the cache, because the backward wants them as attention saw them
            b.round_bf16(&mut k);
            b.round_bf16(&mut v);
        }
        Queries { q, k, v, before_q, before_k }
    }

    /// What follows once all keys that its rows see are written, but for the last map.
    fn attended(&self, index: usize, x: B::Buf, queries: Queries<B>, call: &Call<'_, B>, kv: &B::Kv) -> LayerState<B> {
        let (b, w, heads) = (&**self.backend(), &self.weights().layers[index], self.heads());
        let Queries { q, k, v, before_q, before_k } = queries;
        let mut attended = b.alloc(call.input.len() * heads.heads * heads.head_dim);
        b.attention(&q, kv, call.spans, self.attention_shape(index), &mut attended);
        let [mut middle] = self.linears(index, [Linear::OProj], &attended, call);
        let before_attention = self.normalise(&mut middle, w.attention_output_norm.as_ref());
        b.add(&mut middle, &x);

        let normed_middle = self.normed(&middle, &w.feed_forward_norm);
        let [gate, up] = self.linears(index, [Linear::GateProj, Linear::UpProj], &normed_middle, call);
        let before = BeforeNorm { q: before_q, k: before_k, attention: before_attention, feed_forward: None };
        LayerState { x, q, k, v, attended, middle, gate, up, before }
    }

    /// The last map of a layer's feed-forward part: the residual stream after the layer.
    pub(super) fn layer_output(&self, index: usize, state: &mut LayerState<B>, call: &Call<'_, B>) -> B::Buf {
        let (b, c, w) = (&**self.backend(), self.config(), &self.weights().layers[index]);
        let mut activated = b.alloc(call.input.len() * c.intermediate_size);
        b.glu(c.variant.activation, &state.gate, &state.up, &mut activated);
        let [mut out] = self.linears(index, [Linear::DownProj], &activated, call);
        state.before.feed_forward = self.normalise(&mut out, w.feed_forward_output_norm.as_ref());
        b.add(&mut out, &state.middle);
        out
    }

    /// Puts `x` through a norm, where there is one, and returns what went in. Rows are as long as the weight: those of q and k
    /// are heads.
    fn normalise(&self, x: &mut B::Buf, weight: Option<&B::Buf>) -> Option<B::Buf> {
        let normed = self.normed(x, weight?);
        Some(std::mem::replace(x, normed))
    }

    /// For each of `linears` `x · Wᵀ`, plus the bias, plus each adapter's share on its own rows.
    fn linears<const N: usize>(
        &self,
        layer: usize,
        linears: [Linear; N],
        x: &B::Buf,
        call: &Call<'_, B>,
    ) -> [B::Buf; N] {
        let (b, n) = (&**self.backend(), call.input.len());
        let weights = &self.weights().layers[layer];
        let mut ys = linears.map(|linear| {
            let mut y = b.alloc(n * linear.shape(self.config()).0);
            if let Some(bias) = weights.bias(linear) {
                b.fill_rows(bias, &mut y);
            }
            y
        });
        let lows = self.lows(layer, linears, x, call);
        let maps = linears.iter().zip(&mut ys).zip(&lows).map(|((linear, out), low)| Map {
            matrix: weights.linear(*linear),
            out,
            accumulate: weights.bias(*linear).is_some(),
            low: low.as_ref().map(|(low, matrix)| (low, *matrix)),
        });
        b.linears(x, &mut maps.collect::<Vec<_>>(), 0..n);
        if call.rows.len() < 2 {
            return ys;
        }
        for (linear, y) in linears.into_iter().zip(&mut ys) {
            for (range, adapter) in &call.rows {
                let Some(pair) = adapter.and_then(|a| a.pair(layer, linear)) else { continue };
                let dropped = call.dropout.map(|d| d.apply(b, layer, linear, x));
                let mut inner = b.alloc(n * pair.r);
                b.linear(dropped.as_ref().unwrap_or(x), &pair.a, &mut inner, range.clone(), false);
                b.linear(&inner, &pair.b, y, range.clone(), true);
            }
        }
        ys
    }

    /// Where one adapter serves all rows: what its first factors make of `x`, and the second ones, whose products are added while a map's
    /// own are in a cache.
    fn lows<'a, const N: usize>(
        &self,
        layer: usize,
        linears: [Linear; N],
        x: &B::Buf,
        call: &Call<'a, B>,
    ) -> [Option<(B::Buf, &'a B::Matrix)>; N] {
        let (b, n) = (&**self.backend(), call.input.len());
        let adapter = if let [(_, adapter)] = call.rows[..] { adapter } else { None };
        let pairs = linears.map(|linear| adapter.and_then(|adapter| adapter.pair(layer, linear)));
        let mut lows = pairs.map(|pair| pair.map(|pair| (b.alloc(n * pair.r), &pair.b)));
        let mut firsts = Vec::with_capacity(N);
        for ((low, pair), linear) in lows.iter_mut().zip(pairs).zip(linears) {
            let (Some((low, _)), Some(pair)) = (low, pair) else { continue };
            match call.dropout {
                None => firsts.push(Map { matrix: &pair.a, out: low, accumulate: false, low: None }),
                Some(dropout) => b.linear(&dropout.apply(b, layer, linear, x), &pair.a, low, 0..n, false),
            }
        }
        b.linears(x, &mut firsts, 0..n);
        lows
    }
}

/// Merges neighbouring spans of one adapter into ranges of rows.
pub(super) fn adapter_rows<'a, B: Backend>(
    input: &Ragged,
    adapters: &'a [Option<Arc<Adapter<B>>>],
) -> Vec<AdapterRows<'a, B>> {
    let mut ranges: Vec<(Range<usize>, usize)> = Vec::new();
    for span in &input.spans {
        match ranges.last_mut() {
            Some((range, adapter)) if *adapter == span.adapter => range.end = span.rows.end,
            _ => ranges.push((span.rows.clone(), span.adapter)),
        }
    }
    ranges.into_iter().map(|(range, i)| (range, adapters.get(i).and_then(|a| a.as_deref()))).collect()
}
