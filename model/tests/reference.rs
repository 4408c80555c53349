//! The reference backend against mathematics: definitions in f64, finite differences, hand-computed cases and counts.
#![allow(clippy::single_range_in_vec_init, reason = "a prefix is a list of ranges, often of one")]

use folgore_model::{
    Activation,
    backend::{
        AdamW, AttnShape, AttnSpan, BLOCK, Backend, GradSpan, Head, Heads, KvPrecision, MatrixData, Naive, SampleSpec,
    },
};
use folgore_protocol::seed;

const B: Naive = Naive;

fn random(stream: u64, len: usize) -> Vec<f32> {
    (0..len as u64).map(|i| seed::normal(stream, i)).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Compares `grad` with central differences of `loss` along every coordinate of `at`.
fn assert_gradient(what: &str, at: &[f32], grad: &[f32], loss: impl Fn(&[f32]) -> f64) {
    let size = grad.iter().fold(1e-2f32, |a, b| a.max(b.abs()));
    for i in 0..at.len() {
        let step = 4e-3f32;
        let (mut up, mut down) = (at.to_vec(), at.to_vec());
        up[i] += step;
        down[i] -= step;
        let slope = (loss(&up) - loss(&down)) / f64::from(up[i] - down[i]);
        let off = (slope - f64::from(grad[i])).abs();
        assert!(
            off < 4e-3 * f64::from(size),
            "{what} {i}: differences give {slope}, the backward {} (size {size})",
            grad[i]
        );
    }
}

#[test]
fn product_gradients_are_those_of_finite_differences() {
    let (rows, inner, out) = (3, 5, 4);
    let (x, w, c) = (random(1, rows * inner), random(2, out * inner), random(3, rows * out));
    let loss = |x: &[f32], w: &[f32]| {
        let mut y = vec![0.0; rows * out];
        B.linear(&x.to_vec(), &B.matrix(MatrixData::F32(w), out, inner), &mut y, 0..rows, false);
        dot(&y, &c)
    };
    let mut dx = vec![0.0; x.len()];
    B.linear_dx(&c, &B.matrix(MatrixData::F32(&w), out, inner), &mut dx, 0..rows, false);
    assert_gradient("dx", &x, &dx, |x| loss(x, &w));
    let mut dw = vec![0.0; w.len()];
    B.linear_dw(&c, &x, &mut dw, out, inner, 0..rows, 1.0);
    assert_gradient("dw", &w, &dw, |w| loss(&x, w));
}

#[test]
fn norm_and_gate_gradients_are_those_of_finite_differences() {
    let (rows, width) = (2, 19);
    let n = rows * width;
    let (x, weight, c) = (random(1, n), random(2, width), random(3, n));
    let norm = |x: &[f32], weight: &[f32]| {
        let mut out = vec![0.0; n];
        B.rms_norm(&x.to_vec(), &weight.to_vec(), 1e-3, &mut out);
        dot(&out, &c)
    };
    let (mut dx, mut dweight) = (vec![0.0; n], vec![0.0; width]);
    B.rms_norm_backward(&x, &weight, 1e-3, &c, &mut dx, Some(&mut dweight));
    assert_gradient("norm dx", &x, &dx, |x| norm(x, &weight));
    assert_gradient("norm dweight", &weight, &dweight, |w| norm(&x, w));

    let up = random(4, n);
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let gate = |x: &[f32], up: &[f32]| {
            let mut out = vec![0.0; n];
            B.glu(activation, &x.to_vec(), &up.to_vec(), &mut out);
            dot(&out, &c)
        };
        let (mut dgate, mut dup) = (vec![0.0; n], vec![0.0; n]);
        B.glu_backward(activation, &x, &up, &c, &mut dgate, &mut dup);
        assert_gradient("dgate", &x, &dgate, |x| gate(x, &up));
        assert_gradient("dup", &up, &dup, |up| gate(&x, up));
    }
}

#[test]
fn rotation_and_dropout_are_their_own_backwards() {
    let (heads, dim, rows) = (2, 6, 3);
    let n = heads * dim * rows;
    let table: Vec<f32> =
        (0..4).flat_map(|p| (0..dim).map(move |i| if i < 3 { (p as f32).cos() } else { (p as f32).sin() })).collect();
    let (x, y) = (random(1, n), random(2, n));
    let turn = |x: &[f32], inverse| {
        let mut x = x.to_vec();
        B.rope(&mut x, &table, &[3, 0, 1], heads, dim, inverse);
        x
    };
    // the backward of a linear map is its adjoint: <turn x, y> = <x, turn back y>
    assert!((dot(&turn(&x, false), &y) - dot(&x, &turn(&y, true))).abs() < 1e-5);

    let (mut a, mut b) = (vec![0.0; 20_000], vec![0.0; 20_000]);
    let (x, y) = (random(3, 20_000), random(4, 20_000));
    B.dropout(&x, 0.25, 9, &mut a);
    B.dropout(&y, 0.25, 9, &mut b);
    assert!((dot(&a, &y) - dot(&x, &b)).abs() < 1e-2);
    let kept = a.iter().filter(|a| **a != 0.0).count() as f64 / 20_000.0;
    assert!((kept - 0.75).abs() < 0.01, "{kept} kept");
    assert!(a.iter().zip(&x).all(|(a, x)| *a == 0.0 || (a * 0.75 - x).abs() < 1e-6 * x.abs().max(1.0)));
}

const HEADS: Heads = Heads { heads: 4, kv_heads: 2, head_dim: 3 };

/// Attention over the call's own keys, in f64.
fn attention_exactly(q: &[f32], k: &[f32], v: &[f32], spans: &[GradSpan], window: usize) -> Vec<f64> {
    let scale = 0.5;
    let (dim, group) = (HEADS.head_dim, HEADS.heads / HEADS.kv_heads);
    let mut out = vec![0.0; q.len()];
    for span in spans {
        for (i, row) in span.rows.clone().enumerate() {
            let prefix = span.prefix.iter().cloned().flatten();
            let keys: Vec<usize> = prefix.chain(span.rows.start..=span.rows.start + i).collect();
            let keys = &keys[keys.len().saturating_sub(window)..];
            for head in 0..HEADS.heads {
                let at = (row * HEADS.heads + head) * dim;
                let place = |j: usize| (keys[j] * HEADS.kv_heads + head / group) * dim;
                let weights: Vec<f64> =
                    (0..keys.len()).map(|j| (dot(&q[at..at + dim], &k[place(j)..][..dim]) * scale).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..dim {
                    out[at + d] = (0..keys.len()).map(|j| weights[j] * f64::from(v[place(j) + d])).sum::<f64>() / total;
                }
            }
        }
    }
    out
}

#[test]
fn attention_and_its_gradients_are_those_of_the_definition() {
    for window in [None, Some(1), Some(4)] {
        attention_and_its_gradients(window);
    }
}

fn attention_and_its_gradients(window: Option<usize>) {
    let shape = AttnShape { heads: HEADS, scale: 0.5, window };
    let reach = window.unwrap_or(usize::MAX);
    let rows = 9;
    let span = |rows, prefix| GradSpan { rows, prefix };
    let spans = [span(0..3, vec![]), span(3..6, vec![0..3]), span(6..9, vec![0..2, 4..5])];
    let (width, kv_width) = (HEADS.heads * HEADS.head_dim, HEADS.kv_heads * HEADS.head_dim);
    let (q, k, v) = (random(1, rows * width), random(2, rows * kv_width), random(3, rows * kv_width));
    let dout = random(4, rows * width);

    let mut kv = B.kv(6, HEADS, KvPrecision::F32);
    let mut forward = Vec::new();
    for (i, span) in spans.iter().enumerate() {
        let keys: Vec<usize> = span.prefix.iter().cloned().flatten().chain(span.rows.clone()).collect();
        let writes: Vec<(u32, u32)> =
            keys.iter().enumerate().map(|(j, row)| (*row as u32, ((2 * i + 1) * BLOCK + j) as u32)).collect();
        B.kv_write(&mut kv, &k, &v, &writes);
        forward.push(AttnSpan { rows: span.rows.clone(), start: keys.len() - 3, table: vec![2 * i as u32 + 1] });
    }
    let mut out = vec![0.0; rows * width];
    B.attention(&q, &kv, &forward, shape, &mut out);
    for (got, want) in out.iter().zip(attention_exactly(&q, &k, &v, &spans, reach)) {
        assert!((f64::from(*got) - want).abs() < 2e-6, "{got} {want}");
    }

    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    B.attention_backward(&q, &k, &v, &out, &dout, &spans, shape, &mut dq, &mut dk, &mut dv);
    let loss = |q: &[f32], k: &[f32], v: &[f32]| {
        attention_exactly(q, k, v, &spans, reach).iter().zip(&dout).map(|(o, d)| o * f64::from(*d)).sum::<f64>()
    };
    assert_gradient("dq", &q, &dq, |q| loss(q, &k, &v));
    assert_gradient("dk", &k, &dk, |k| loss(&q, k, &v));
    assert_gradient("dv", &v, &dv, |v| loss(&q, &k, v));
}

/// log soft-max of a row in f64.
fn log_soft_max(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    let lse = max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln();
    logits.iter().map(|l| l - lse).collect()
}

#[test]
fn log_probs_entropy_and_their_gradients_are_those_of_the_definition() {
    // more than two chunks of the vocabulary, so that merging takes part
    for (vocab, temperature, softcap) in [(11, 0.8, None), (4500, 1.0, None), (11, 0.8, Some(1.5))] {
        let (n, width) = (2, 6);
        let (hidden, head) = (random(1, n * width), random(2, vocab * width));
        let targets = [3, vocab as u32 - 1];
        let matrix = B.matrix(MatrixData::F32(&head), vocab, width);
        let exactly = |hidden: &[f32], head: &[f32], r: usize| {
            let h = &hidden[r * width..(r + 1) * width];
            let capped = |l: f64| softcap.map_or(l, |cap: f32| f64::from(cap) * (l / f64::from(cap)).tanh());
            let logits: Vec<f64> = head.chunks(width).map(|w| capped(dot(h, w)) / f64::from(temperature)).collect();
            log_soft_max(&logits)
        };
        let full = Head { matrix: &matrix, softcap };
        let scored = B.head_logprobs(&hidden, full, &targets, temperature);
        for r in 0..n {
            let want = exactly(&hidden, &head, r);
            let entropy: f64 = want.iter().map(|l| -l * l.exp()).sum();
            assert!((f64::from(scored.logprobs[r]) - want[targets[r] as usize]).abs() < 1e-5);
            assert!((f64::from(scored.entropy[r]) - entropy).abs() < 1e-5, "{} {entropy}", scored.entropy[r]);
        }
        let dlogprobs = [0.7, -1.3];
        let (mut dhidden, mut dhead) = (vec![0.0; hidden.len()], vec![0.0; head.len()]);
        B.head_backward(&hidden, full, &targets, temperature, &scored.lse, &dlogprobs, &mut dhidden, Some(&mut dhead));
        let loss = |hidden: &[f32], head: &[f32]| {
            (0..n).map(|r| exactly(hidden, head, r)[targets[r] as usize] * f64::from(dlogprobs[r])).sum::<f64>()
        };
        assert_gradient("dhidden", &hidden, &dhidden, |h| loss(h, &head));
        if vocab < 100 {
            assert_gradient("dhead", &head, &dhead, |w| loss(&hidden, w));
        }
    }
}

/// A row whose logits are exactly `logits`: the head is the identity.
fn draw(logits: &[f32], specs: &[SampleSpec]) -> Vec<(usize, f32)> {
    let n = logits.len();
    let identity: Vec<f32> = (0..n * n).map(|i| if i % (n + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let head = B.matrix(MatrixData::F32(&identity), n, n);
    let hidden: Vec<f32> = specs.iter().flat_map(|_| logits.to_vec()).collect();
    B.sample(&hidden, (&head).into(), specs).into_iter().map(|s| (s.id as usize, s.logprob)).collect()
}

fn spec() -> SampleSpec {
    SampleSpec {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        seen: vec![],
        uniform: 0.5,
    }
}

const LOGITS: [f32; 8] = [0.3, 2.1, -1.0, 1.4, 1.4, -3.0, 0.0, 2.0];

/// The probabilities that the cuts leave, in f64, computed another way than the code does.
fn expected(spec: &SampleSpec) -> Vec<f64> {
    let mut z: Vec<f64> = LOGITS.iter().map(|l| f64::from(*l)).collect();
    for (id, z) in z.iter_mut().enumerate() {
        if spec.seen.contains(&(id as u32)) {
            let penalty = f64::from(spec.repetition_penalty);
            *z = if *z > 0.0 { *z / penalty } else { *z * penalty };
        }
        *z /= f64::from(spec.temperature);
    }
    let mut p: Vec<f64> = log_soft_max(&z).iter().map(|l| l.exp()).collect();
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
    if spec.top_k > 0 {
        let kth = p[order[spec.top_k as usize - 1]];
        p.iter_mut().filter(|p| **p < kth).for_each(|p| *p = 0.0);
    }
    let normalise = |p: &mut Vec<f64>| {
        let total: f64 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= total);
    };
    normalise(&mut p);
    let mut before = 0.0;
    for id in order {
        let own = p[id];
        if before >= f64::from(spec.top_p) {
            p[id] = 0.0;
        }
        before += own;
    }
    let floor = p.iter().copied().fold(0.0, f64::max) * f64::from(spec.min_p);
    p.iter_mut().filter(|p| **p < floor).for_each(|p| *p = 0.0);
    normalise(&mut p);
    p
}

#[test]
fn draws_follow_the_distribution_that_the_cuts_leave() {
    let cases = [
        spec(),
        SampleSpec { temperature: 0.6, ..spec() },
        SampleSpec { top_k: 3, ..spec() },
        SampleSpec { top_k: 1, ..spec() },
        SampleSpec { top_p: 0.5, ..spec() },
        SampleSpec { top_p: 1e-6, ..spec() },
        SampleSpec { min_p: 0.4, ..spec() },
        SampleSpec { repetition_penalty: 1.8, seen: vec![1, 2, 1], ..spec() },
        SampleSpec {
            temperature: 1.4,
            top_k: 6,
            top_p: 0.85,
            min_p: 0.15,
            repetition_penalty: 0.7,
            seen: vec![0, 5],
            uniform: 0.0,
        },
    ];
    for case in cases {
        let want = expected(&case);
        // evenly spread draws: every count is right to within one
        let n = 4000;
        let even: Vec<SampleSpec> =
            (0..n).map(|i| SampleSpec { uniform: (i as f32 + 0.5) / n as f32, ..case.clone() }).collect();
        let mut counts = [0usize; 8];
        let draws = draw(&LOGITS, &even);
        draws.iter().for_each(|(id, _)| counts[*id] += 1);
        assert!(draws.windows(2).all(|w| w[0].0 <= w[1].0), "the inverse distribution function rises");
        for id in 0..8 {
            assert!((counts[id] as f64 - n as f64 * want[id]).abs() < 1.5, "{case:?}: {counts:?} for {want:?}");
        }
        // seeded draws: Pearson's statistic stays below the 99.9 % point of 7 degrees of freedom
        let seeded: Vec<SampleSpec> =
            (0..n).map(|i| SampleSpec { uniform: seed::uniform(3, i as u64), ..case.clone() }).collect();
        let mut counts = [0usize; 8];
        draw(&LOGITS, &seeded).iter().for_each(|(id, _)| counts[*id] += 1);
        let term = |id: usize| (counts[id] as f64 - n as f64 * want[id]).powi(2) / (n as f64 * want[id]);
        let pearson: f64 = (0..8).filter(|id| want[*id] > 0.0).map(term).sum();
        assert!(pearson < 24.3, "{case:?}: {pearson}");
    }
}

#[test]
fn greedy_takes_the_first_maximum_and_reports_the_uncut_log_prob() {
    let mut tied = LOGITS;
    tied[7] = 2.1;
    let greedy = SampleSpec { temperature: 0.0, ..spec() };
    assert_eq!(draw(&tied, std::slice::from_ref(&greedy))[0].0, 1);
    let penalised = SampleSpec { repetition_penalty: 2.0, seen: vec![1], ..greedy };
    let (id, logprob) = draw(&LOGITS, &[penalised])[0];
    assert_eq!(id, 7);
    let uncut = log_soft_max(&LOGITS.map(f64::from));
    assert!((f64::from(logprob) - uncut[7]).abs() < 1e-6);
    let cut = SampleSpec { top_k: 2, uniform: 0.999, temperature: 0.5, ..spec() };
    let (id, logprob) = draw(&LOGITS, &[cut])[0];
    let uncut = log_soft_max(&LOGITS.map(|l| f64::from(l) / 0.5));
    assert_eq!(id, 7);
    assert!((f64::from(logprob) - uncut[7]).abs() < 1e-6);
}

#[test]
fn two_steps_of_adamw_are_those_computed_by_hand() {
    let settings = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-3, weight_decay: 0.5, grad_scale: 0.5, step: 1 };
    let (mut param, mut m, mut v) = (vec![2.0, -1.0], vec![0.0; 2], vec![0.0; 2]);
    B.adamw(&mut param, &vec![4.0, -0.2], &mut m, &mut v, &settings);
    // gradients 2 and -0.1; m = 0.2, -0.01; v = 0.04, 0.0001; corrected 2, -0.1 and 4, 0.01
    let want = [2.0 * 0.95 - 0.1 * 2.0 / 2.001, -0.95 + 0.1 * 0.1 / 0.101];
    for i in 0..2 {
        assert!((f64::from(param[i]) - want[i]).abs() < 1e-6, "{param:?} {want:?}");
    }
    B.adamw(&mut param, &vec![0.0, 2.0], &mut m, &mut v, &AdamW { step: 2, ..settings });
    // gradients 0 and 1; m = 0.18, 0.091; v = 0.0396, 0.010099; corrections 0.19 and 0.0199
    let root = |v: f64| (v / 0.0199).sqrt() + 1e-3;
    let want =
        [want[0] * 0.95 - 0.1 * (0.18 / 0.19) / root(0.0396), want[1] * 0.95 - 0.1 * (0.091 / 0.19) / root(0.010099)];
    for i in 0..2 {
        assert!((f64::from(param[i]) - want[i]).abs() < 1e-6, "{param:?} {want:?}");
    }
}

#[test]
fn norm_and_sum_of_squares_are_those_of_the_definition() {
    let x = random(1, 37);
    let weight = random(2, 37);
    let mut out = vec![0.0; 37];
    B.rms_norm(&x, &weight, 1e-5, &mut out);
    let mean = dot(&x, &x) / 37.0;
    for i in 0..37 {
        let want = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
        assert!((f64::from(out[i]) - want).abs() < 1e-6);
    }
    let long = random(3, 100_000);
    assert!((B.sum_of_squares(&long) - dot(&long, &long)).abs() < 1e-8 * dot(&long, &long));
}
