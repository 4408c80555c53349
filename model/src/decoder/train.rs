//! The learning form of the forward, and the backward.
//!
//! A learning call keeps what the backward needs of every layer, or with [`Backprop::recompute`] of the last `k` layers alone: of
//! the others it keeps the input of every `k`-th, from which the backward computes `k` layers at a time again, with the same
//! bits. So there live the inputs of one layer in `k` and the states of `k` layers. The cache holds one layer at a time. No
//! gradient is computed for a frozen matrix.

use std::{num::NonZeroUsize, ops::Range};

use super::{
    Decoder, Linear, Ragged,
    forward::{Call, LayerState},
    layout::Layout,
    recall::Recalled,
};
use crate::{
    backend::{Backend, HeadOut, KvPrecision},
    lora::Adapter,
    params::Params,
};
use folgore_protocol::seed;

/// Adapter dropout of one learning call (PEFT's `lora_dropout`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Share of inputs to drop, in [0, 1).
    pub p: f32,
    /// Stream of the draws: another one for every call.
    pub seed: u64,
}

impl Dropout {
    pub(super) fn apply<B: Backend>(&self, backend: &B, layer: usize, linear: Linear, x: &B::Buf) -> B::Buf {
        let mut out = backend.alloc(backend.len(x));
        backend.dropout(x, self.p, seed::mix(&[self.seed, layer as u64, linear as u64]), &mut out);
        out
    }
}

/// How a learning call is to be run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backprop {
    /// Keeps the input of one layer in so many and computes the rest again in the backward; none: keeps everything.
    pub recompute: Option<NonZeroUsize>,
    /// Adapter dropout; none: off.
    pub dropout: Option<Dropout>,
}

/// What the layers left.
enum Layers<B: Backend> {
    Computed {
        /// What went into the first layer of each run of layers that is computed again.
        inputs: Vec<B::Buf>,
        /// States of the layers after those.
        states: Vec<LayerState<B>>,
    },
    /// A sampler computed them.
    Recalled(Recalled<B>),
}

/// What a learning call left for its backward.
pub struct Tape<B: Backend> {
    input: Ragged,
    layout: Layout,
    layers: Layers<B>,
    wanted: B::Buf,
    hidden: B::Buf,
    /// Gradients of the log-probs by `hidden`, where [`Decoder::score`] made them.
    gradients: Option<B::Buf>,
    how: Backprop,
}

impl<B: Backend> Tape<B> {
    /// Hidden states of the wanted rows after the last norm, [wanted, hidden].
    pub fn hidden(&self) -> &B::Buf {
        &self.hidden
    }
}

impl<B: Backend> Decoder<B> {
    /// Runs `input` for learning, all rows under `adapter` (none: the base). Row for row the same bits as
    /// [`Decoder::forward`], dropout aside.
    pub fn forward_train(&self, input: Ragged, adapter: Option<&Adapter<B>>, how: Backprop) -> Tape<B> {
        input.check(self.config(), 1);
        let layout = Layout::of(&input);
        let call = learning(&input, &layout, adapter, how.dropout);
        let mut kv = self.layer_kv(&layout);
        let layers = self.config().num_hidden_layers;
        let every = how.recompute.map_or(layers, NonZeroUsize::get);
        // the backward begins with the last run of layers: what it would recompute first is here already
        let last_run = layers.saturating_sub(1) / every * every;
        let (mut inputs, mut states) = (Vec::new(), Vec::new());
        let mut x = self.embed(&input);
        for index in 0..layers {
            let state;
            (x, state) = self.layer(index, x, &call, &mut kv);
            if index >= last_run {
                states.push(state);
            } else if index % every == 0 {
                inputs.push(state.x);
            }
        }
        let wanted = self.wanted_rows(&x, &input.wanted);
        let hidden = self.last_norm(&wanted);
        Tape { input, layout, layers: Layers::Computed { inputs, states }, wanted, hidden, gradients: None, how }
    }

    /// What [`Decoder::forward_train`] of `input` without dropout would give, from rows that a sampler computed.
    pub fn recalled(&self, input: Ragged, rows: Recalled<B>, recompute: Option<NonZeroUsize>) -> Tape<B> {
        let wanted = rows.wanted(self, &input.wanted);
        let (layout, hidden) = (Layout::of(&input), self.last_norm(&wanted));
        let how = Backprop { recompute, dropout: None };
        Tape { input, layout, layers: Layers::Recalled(rows), wanted, hidden, gradients: None, how }
    }

    /// Hidden states of the wanted rows without keeping anything: reference log-probs, evaluation.
    pub fn forward_only(&self, input: &Ragged, adapter: Option<&Adapter<B>>) -> B::Buf {
        input.check(self.config(), 1);
        let layout = Layout::of(input);
        let call = learning(input, &layout, adapter, None);
        let mut kv = self.layer_kv(&layout);
        let mut x = self.embed(input);
        for index in 0..self.config().num_hidden_layers {
            (x, _) = self.layer(index, x, &call, &mut kv);
        }
        self.last_norm(&self.wanted_rows(&x, &input.wanted))
    }

    /// [`Decoder::logprobs`] of the wanted rows. The gradients through a frozen head are made with them and kept for the backward, which
    /// gives the same bits without.
    pub fn score(&self, tape: &mut Tape<B>, targets: &[u32], temperature: f32) -> HeadOut {
        let (head, gradients) = self.backend().head_gradients(&tape.hidden, self.head(), targets, temperature);
        tape.gradients = Some(gradients);
        head
    }

    /// From dL/dlogprob of each wanted row to the gradients of `params`, which are added to.
    ///
    /// `targets`, `temperature` and `lse` are those of the log-probs ([`Backend::head_logprobs`] of [`Tape::hidden`]).
    pub fn backward(
        &self,
        mut tape: Tape<B>,
        adapter: Option<&Adapter<B>>,
        targets: &[u32],
        temperature: f32,
        lse: &[f32],
        dlogprobs: &[f32],
        params: &mut Params<B>,
    ) {
        let b = &**self.backend();
        let c = self.config();
        let full = params.full_slots();
        let through_head = |dlogprobs: &[f32], dhead: Option<&mut B::Buf>| {
            let mut dhidden = b.zeros(b.len(&tape.hidden));
            b.head_backward(&tape.hidden, self.head(), targets, temperature, lse, dlogprobs, &mut dhidden, dhead);
            dhidden
        };
        let dhidden = match full {
            Some(slots) => through_head(dlogprobs, Some(&mut params.list[slots.head].grad)),
            None => {
                let mut each = tape.gradients.take().unwrap_or_else(|| through_head(&vec![1.0; targets.len()], None));
                b.scale_rows(&mut each, dlogprobs);
                each
            }
        };

        let mut dwanted = b.zeros(b.len(&tape.wanted));
        let dnorm = full.map(|slots| &mut params.list[slots.norm].grad);
        b.rms_norm_backward(&tape.wanted, &self.weights().norm, c.rms_norm_eps, &dhidden, &mut dwanted, dnorm);
        let mut dx = b.zeros(tape.input.len() * c.hidden_size);
        b.scatter_add_rows(&dwanted, &tape.input.wanted, c.hidden_size, &mut dx);

        let Tape { input, layout, mut layers, how, .. } = tape;
        let call = learning(&input, &layout, adapter, how.dropout);
        let mut index = c.num_hidden_layers;
        while index > 0 {
            let mut last = match &mut layers {
                Layers::Computed { states, .. } if !states.is_empty() => std::mem::take(states),
                Layers::Computed { inputs, .. } => {
                    let x = inputs.pop().expect("the layers before the last are computed again");
                    let every = how.recompute.map_or(index, NonZeroUsize::get);
                    self.states_again(index - every..index, x, &call, &layout)
                }
                Layers::Recalled(rows) => rows.states(self, index, &call, &layout),
            };
            while let Some(state) = last.pop() {
                index -= 1;
                dx = self.layer_backward(index, state, dx, &input, &layout, adapter, how.dropout, params);
            }
        }
        if let Some(slots) = full {
            b.embed_backward(&dx, &input.tokens, c.hidden_size, &mut params.list[slots.embed].grad);
        }
    }

    /// Room for the keys and values of one layer, which come rounded already.
    fn layer_kv(&self, layout: &Layout) -> B::Kv {
        self.backend().kv(layout.blocks, self.heads(), KvPrecision::F32)
    }

    /// States of `layers`, computed again from the input of the first.
    pub(super) fn states_again(
        &self,
        layers: Range<usize>,
        mut x: B::Buf,
        call: &Call<'_, B>,
        layout: &Layout,
    ) -> Vec<LayerState<B>> {
        let mut kv = self.layer_kv(layout);
        let mut states = Vec::with_capacity(layers.len());
        for index in layers.clone() {
            let mut state = self.layer_state(index, x, call, &mut kv);
            let last = index + 1 == layers.end;
            // what comes out of the last one nobody needs, unless its norm does
            if last && self.weights().layers[index].feed_forward_output_norm.is_none() {
                states.push(state);
                break;
            }
            x = self.layer_output(index, &mut state, call);
            states.push(state);
        }
        states
    }

    fn layer_backward(
        &self,
        index: usize,
        state: LayerState<B>,
        dout: B::Buf,
        input: &Ragged,
        layout: &Layout,
        adapter: Option<&Adapter<B>>,
        dropout: Option<Dropout>,
        params: &mut Params<B>,
    ) -> B::Buf {
        let (b, c, w) = (&**self.backend(), self.config(), &self.weights().layers[index]);
        let n = input.len();
        let heads = self.heads();
        let full = params.full_slots();
        // below the first layer only an embedding that trains wants a gradient
        let reaches_below = index > 0 || full.is_some();
        let back = |l: Linear, dy: &B::Buf, x: &B::Buf, dx: &mut B::Buf, accumulate: bool, params: &mut Params<B>| {
            self.linear_backward(index, l, dy, x, dx, accumulate, n, adapter, dropout, params);
        };

        // feed-forward part
        let mut activated = b.alloc(n * c.intermediate_size);
        b.glu(c.variant.activation, &state.gate, &state.up, &mut activated);
        let mut dactivated = b.alloc(n * c.intermediate_size);
        let dfeed = self.through_norm(state.before.feed_forward, w.feed_forward_output_norm.as_ref(), &dout);
        back(Linear::DownProj, dfeed.as_ref().unwrap_or(&dout), &activated, &mut dactivated, false, params);
        drop(dfeed);
        drop(activated);
        let mut dgate = b.alloc(n * c.intermediate_size);
        let mut dup = b.alloc(n * c.intermediate_size);
        b.glu_backward(c.variant.activation, &state.gate, &state.up, &dactivated, &mut dgate, &mut dup);
        let mut dnormed = b.alloc(n * c.hidden_size);
        let normed = self.normed(&state.middle, &w.feed_forward_norm);
        back(Linear::GateProj, &dgate, &normed, &mut dnormed, false, params);
        back(Linear::UpProj, &dup, &normed, &mut dnormed, true, params);
        drop((normed, dactivated, dgate, dup));
        let mut dmiddle = dout;
        let dweight = full.map(|s| &mut params.list[s.layer(index).post_attention_layernorm].grad);
        b.rms_norm_backward(&state.middle, &w.feed_forward_norm, c.rms_norm_eps, &dnormed, &mut dmiddle, dweight);

        // attention part
        let mut dattended = b.alloc(n * heads.heads * heads.head_dim);
        let dprojected = self.through_norm(state.before.attention, w.attention_output_norm.as_ref(), &dmiddle);
        let projected = dprojected.as_ref().unwrap_or(&dmiddle);
        back(Linear::OProj, projected, &state.attended, &mut dattended, false, params);
        drop(dprojected);
        let mut dq = b.zeros(n * heads.heads * heads.head_dim);
        let mut dk = b.zeros(n * heads.kv_heads * heads.head_dim);
        let mut dv = b.zeros(n * heads.kv_heads * heads.head_dim);
        b.attention_backward(
            &state.q,
            &state.k,
            &state.v,
            &state.attended,
            &dattended,
            &layout.gradient,
            self.attention_shape(index),
            &mut dq,
            &mut dk,
            &mut dv,
        );
        self.turn(index, &mut dq, input, heads.heads, true);
        self.turn(index, &mut dk, input, heads.kv_heads, true);
        let dq = self.through_norm(state.before.q, w.q_norm.as_ref(), &dq).unwrap_or(dq);
        let dk = self.through_norm(state.before.k, w.k_norm.as_ref(), &dk).unwrap_or(dk);
        let normed = self.normed(&state.x, &w.attention_norm);
        back(Linear::QProj, &dq, &normed, &mut dnormed, false, params);
        back(Linear::KProj, &dk, &normed, &mut dnormed, true, params);
        back(Linear::VProj, &dv, &normed, &mut dnormed, true, params);
        let mut dx = dmiddle;
        if reaches_below {
            let dweight = full.map(|s| &mut params.list[s.layer(index).input_layernorm].grad);
            b.rms_norm_backward(&state.x, &w.attention_norm, c.rms_norm_eps, &dnormed, &mut dx, dweight);
        }
        dx
    }

    /// From the gradient of a norm's output to that of its input, where there is the norm; its weight is frozen.
    fn through_norm(&self, input: Option<B::Buf>, weight: Option<&B::Buf>, dy: &B::Buf) -> Option<B::Buf> {
        let (b, (input, weight)) = (&**self.backend(), input.zip(weight)?);
        let mut dx = b.zeros(b.len(dy));
        b.rms_norm_backward(&input, weight, self.config().rms_norm_eps, dy, &mut dx, None);
        Some(dx)
    }

    /// Backward of one linear map with its adapter: `dx (+)= dy·W + dropout(dy·sB·A)`, and the gradients of what trains.
    fn linear_backward(
        &self,
        layer: usize,
        linear: Linear,
        dy: &B::Buf,
        x: &B::Buf,
        dx: &mut B::Buf,
        accumulate: bool,
        n: usize,
        adapter: Option<&Adapter<B>>,
        dropout: Option<Dropout>,
        params: &mut Params<B>,
    ) {
        let b = &**self.backend();
        let (out, inner) = linear.shape(self.config());
        let matrix = self.weights().layers[layer].linear(linear);
        let pair = adapter.and_then(|a| a.pair(layer, linear));
        let dlow = pair.map(|pair| {
            let mut dlow = b.alloc(n * pair.r);
            b.linear_dx(dy, &pair.b, &mut dlow, 0..n, false);
            dlow
        });
        match (pair.zip(dlow.as_ref()), dropout) {
            (Some((pair, dlow)), None) => b.linear_dx_low(dy, matrix, (dlow, &pair.a), dx, 0..n, accumulate),
            _ => b.linear_dx(dy, matrix, dx, 0..n, accumulate),
        }
        if let Some(slots) = params.full_slots() {
            let slot = slots.layer(layer).linear(linear);
            b.linear_dw(dy, x, &mut params.list[slot].grad, out, inner, 0..n, 1.0);
        }
        let Some((pair, dlow)) = pair.zip(dlow) else { return };
        let dropped = dropout.map(|d| d.apply(b, layer, linear, x));
        let x = dropped.as_ref().unwrap_or(x);
        if let Some(slot) = params.lora_slot(layer, linear) {
            let mut low = b.alloc(n * pair.r);
            b.linear(x, &pair.a, &mut low, 0..n, false);
            b.linear_dw(dy, &low, &mut params.list[slot + 1].grad, out, pair.r, 0..n, pair.scale);
            b.linear_dw(&dlow, x, &mut params.list[slot].grad, pair.r, inner, 0..n, 1.0);
        }
        if let Some(d) = dropout {
            let mut through = b.alloc(n * inner);
            b.linear_dx(&dlow, &pair.a, &mut through, 0..n, false);
            b.add(dx, &d.apply(b, layer, linear, &through));
        }
    }
}

/// A call whose rows all run under `adapter`, with its keys where `layout` puts them.
fn learning<'a, B: Backend>(
    input: &'a Ragged,
    layout: &'a Layout,
    adapter: Option<&'a Adapter<B>>,
    dropout: Option<Dropout>,
) -> Call<'a, B> {
    Call { input, rows: vec![(0..input.len(), adapter)], writes: &layout.writes, spans: &layout.attention, dropout }
}
