//! The decoder against candle's autograd on composed operations (its fused ones have no backward), and against finite
//! differences: loss and every gradient, for an adapter and for all weights, with shared prompts and without.

#[path = "common/candle.rs"]
mod candle;

use std::{num::NonZeroUsize, sync::Arc};

use candle::Oracle;
use candle_core::{Device, Tensor};
use folgore_model::{
    Activation, HostTensor, Local, ModelConfig, NormForm, RopeScaling, Tensors, Variant,
    backend::{Backend, Cpu, KvPrecision, Naive},
    decoder::{Backprop, Decoder, Dropout, Linear, Ragged, Span},
    lora::{Adapter, LoraShape},
    params::{Params, random_weights},
};
use folgore_protocol::seed;

fn config(tied: bool) -> ModelConfig {
    ModelConfig {
        model_type: "llama".into(),
        vocab_size: 50,
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: tied,
        max_position_embeddings: 96,
        eos_token_ids: vec![0],
        bos_token_id: None,
        variant: Default::default(),
    }
}

/// Shapes that between them have all that a family may have beyond Llama.
fn variants() -> Vec<ModelConfig> {
    let scaled = Variant {
        local: Some(Local { window: 5, layers: vec![true, true], rope_theta: None }),
        biases: Linear::ALL.to_vec(),
        rope_scaling: RopeScaling::Linear { factor: 2.0 },
        ..Variant::default()
    };
    let normed = Variant {
        // longer than a block and shorter than the sequences
        local: Some(Local { window: 18, layers: vec![true, false], rope_theta: Some(100.0) }),
        qk_norm: true,
        activation: Activation::GeluTanh,
        norm_form: NormForm::OnePlusWeight,
        output_norms: true,
        embedding_scale: Some(3.0),
        attention_scale: Some(0.3),
        final_softcap: Some(10.0),
        ..Variant::default()
    };
    [scaled, normed].map(|variant| ModelConfig { variant, ..config(true) }).to_vec()
}

/// Weights large enough that every path matters.
fn weights(config: &ModelConfig) -> Tensors {
    let widen = |(name, t): (String, HostTensor)| {
        let stream = seed::mix(&[11, name.len() as u64, name.bytes().map(u64::from).sum()]);
        let values = t.to_f32();
        let wide = (0..values.len() as u64).map(|i| {
            if t.shape.len() == 1 { 1.0 + 0.3 * seed::normal(stream, i) } else { 0.25 * seed::normal(stream, i) }
        });
        (name, HostTensor::f32(t.shape.clone(), wide.collect()))
    };
    random_weights(config, 5).into_iter().map(widen).collect()
}

fn shape() -> LoraShape {
    LoraShape {
        r: 3,
        alpha: 5.0,
        use_rslora: false,
        dropout: 0.0,
        targets: Linear::ALL.to_vec(),
        rules: Default::default(),
    }
}

fn adapter_tensors(config: &ModelConfig) -> Tensors {
    let tensor = |(i, (name, [rows, columns])): (usize, (String, [usize; 2]))| {
        let stream = seed::mix(&[21, i as u64]);
        (
            name,
            HostTensor::f32(
                [rows, columns],
                (0..(rows * columns) as u64).map(|j| 0.2 * seed::normal(stream, j)).collect(),
            ),
        )
    };
    shape().tensors(config).into_iter().enumerate().map(tensor).collect()
}

/// One prompt of 21 tokens and three members that go on from it: (ids of each whole sequence, length of the prompt).
fn group() -> (Vec<Vec<u32>>, usize) {
    let ids = |s: u64, n: u64| (0..n).map(move |i| seed::below(s, i, 50) as u32).collect::<Vec<_>>();
    let prompt = ids(1, 21);
    (
        vec![[prompt.clone(), ids(2, 9)].concat(), [prompt.clone(), ids(3, 30)].concat(), [prompt, ids(4, 1)].concat()],
        21,
    )
}

/// The group in one call with its prompt computed once; targets of the members' own tokens.
#[allow(clippy::single_range_in_vec_init, reason = "a prefix is a list of ranges, here of one")]
fn shared(sequences: &[Vec<u32>], prompt: usize) -> (Ragged, Vec<u32>) {
    let mut input = Ragged {
        tokens: sequences[0][..prompt].to_vec(),
        positions: (0..prompt as u32).collect(),
        ..Ragged::default()
    };
    input.spans.push(Span { rows: 0..prompt, ..Span::default() });
    let mut targets = Vec::new();
    for ids in sequences {
        let begin = input.tokens.len();
        // the last token of a sequence predicts nothing, but is computed when sampling: keep it, unwanted
        input.tokens.extend_from_slice(&ids[prompt..]);
        input.positions.extend(prompt as u32..ids.len() as u32);
        input.spans.push(Span {
            rows: begin..input.tokens.len(),
            start: prompt,
            prefix: vec![0..prompt],
            ..Span::default()
        });
        for place in prompt..ids.len() {
            input.wanted.push(if place == prompt { prompt - 1 } else { begin + place - prompt - 1 } as u32);
            targets.push(ids[place]);
        }
    }
    (input, targets)
}

/// dL/dlogprob of the test's loss: uneven, both signs.
fn slopes(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7 % 11) as f32 - 4.0) / 10.0).collect()
}

/// Log-probs of the members' own tokens and the gradients of `sum(slope * logprob)`.
fn expected(
    oracle: &Oracle,
    sequences: &[Vec<u32>],
    prompt: usize,
    temperature: f64,
) -> (Vec<f64>, std::collections::BTreeMap<String, Vec<f64>>) {
    let own: Vec<Tensor> = sequences
        .iter()
        .map(|ids| oracle.logprobs(ids, temperature).narrow(0, prompt - 1, ids.len() - prompt).unwrap())
        .collect();
    let all = Tensor::cat(&own, 0).unwrap();
    let slopes: Vec<f64> = slopes(all.elem_count()).into_iter().map(f64::from).collect();
    let loss = (&all * Tensor::new(slopes.as_slice(), &Device::Cpu).unwrap()).unwrap().sum_all().unwrap();
    (all.to_vec1().unwrap(), oracle.gradients(&loss))
}

const TEMPERATURE: f32 = 0.8;

fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let size = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*g) - w).abs();
        assert!(error <= tolerance * (size + 1e-3), "{what}[{i}]: got {g}, want {w} (largest {size})");
    }
}

/// Log-probs and gradients of ours, with the prompt shared in one call.
fn ours<B: Backend>(
    decoder: &Decoder<B>,
    adapter: Option<&Adapter<B>>,
    params: &mut Params<B>,
    how: Backprop,
    group: &(Vec<Vec<u32>>, usize),
) -> (Vec<f32>, Tensors) {
    of_input(decoder, adapter, params, how, shared(&group.0, group.1))
}

fn of_input<B: Backend>(
    decoder: &Decoder<B>,
    adapter: Option<&Adapter<B>>,
    params: &mut Params<B>,
    how: Backprop,
    (input, targets): (Ragged, Vec<u32>),
) -> (Vec<f32>, Tensors) {
    let tape = decoder.forward_train(input, adapter, how);
    let head = decoder.logprobs(tape.hidden(), &targets, TEMPERATURE);
    params.zero_grad(decoder.backend());
    decoder.backward(tape, adapter, &targets, TEMPERATURE, &head.lse, &slopes(targets.len()), params);
    (head.logprobs, params.grads(decoder.backend()))
}

/// The length of the difference, as a share of that of `want`.
fn distance(want: &[f32], got: &[f32]) -> f64 {
    let length = |each: &mut dyn Iterator<Item = f32>| each.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    length(&mut want.iter().zip(got).map(|(w, g)| w - g)) / length(&mut want.iter().copied())
}

fn adapter_gradients_match<B: Backend>(backend: Arc<B>, tied: bool) {
    let config = config(tied);
    let (base, low) = (weights(&config), adapter_tensors(&config));
    let oracle = Oracle::new(&config, &[&base, &low], f64::from(shape().scale()));
    let (logprobs, grads) = expected(&oracle, &group().0, group().1, f64::from(TEMPERATURE));
    let decoder = Decoder::load(backend.clone(), config.clone(), &base).unwrap();
    let adapter = Adapter::load(&*backend, &config, &shape(), &low).unwrap();
    let mut params = Params::lora_from(&*backend, &config, shape(), &low).unwrap();
    let plain = ours(&decoder, Some(&adapter), &mut params, Backprop::default(), &group());
    assert_close("logprobs", &plain.0, &logprobs, 1e-5);
    assert_eq!(plain.1.len(), 2 * 2 * 7);
    for (name, grad) in &plain.1 {
        let values = grad.to_f32();
        assert!(values.iter().any(|g| *g != 0.0), "{name} has no gradient");
        assert_close(name, &values, &grads[name], 2e-4);
    }
    let how = Backprop { recompute: NonZeroUsize::new(1), dropout: None };
    let again = ours(&decoder, Some(&adapter), &mut params, how, &group());
    assert_eq!(plain, again, "recomputing changes the result");
}

fn full_gradients_match<B: Backend>(backend: Arc<B>, tied: bool) {
    let config = config(tied);
    let base = weights(&config);
    let oracle = Oracle::new(&config, &[&base], 0.0);
    let (logprobs, grads) = expected(&oracle, &group().0, group().1, f64::from(TEMPERATURE));
    let decoder = Decoder::load(backend.clone(), config.clone(), &base).unwrap();
    let mut params = Params::full(&*backend, &config, &base).unwrap();
    let (got, got_grads) = ours(&decoder, None, &mut params, Backprop::default(), &group());
    assert_close("logprobs", &got, &logprobs, 1e-5);
    assert_eq!(got_grads.len(), base.len());
    for (name, grad) in &got_grads {
        assert_close(name, &grad.to_f32(), &grads[name], 2e-4);
    }
}

#[test]
fn adapter_gradients_equal_autograd() {
    for tied in [true, false] {
        adapter_gradients_match(Arc::new(Naive::new()), tied);
        adapter_gradients_match(Arc::new(Cpu::new()), tied);
    }
}

#[test]
fn gradients_of_all_weights_equal_autograd() {
    for tied in [true, false] {
        full_gradients_match(Arc::new(Naive::new()), tied);
        full_gradients_match(Arc::new(Cpu::new()), tied);
    }
}

/// The slope of the loss along a random direction equals the gradient's share of it: for every tensor by itself.
#[test]
fn adapter_gradients_equal_finite_differences() {
    let config = config(true);
    let backend = Arc::new(Naive::new());
    let decoder = Decoder::load(backend.clone(), config.clone(), &weights(&config)).unwrap();
    let low = adapter_tensors(&config);
    let mut params = Params::lora_from(&*backend, &config, shape(), &low).unwrap();
    let loss = |tensors: &Tensors| -> f64 {
        let adapter = Adapter::load(&*backend, &config, &shape(), tensors).unwrap();
        let (input, targets) = shared(&group().0, group().1);
        let logprobs = decoder.logprobs(&decoder.forward_only(&input, Some(&adapter)), &targets, TEMPERATURE).logprobs;
        logprobs.iter().zip(slopes(targets.len())).map(|(l, s)| f64::from(*l) * f64::from(s)).sum()
    };
    let adapter = Adapter::load(&*backend, &config, &shape(), &low).unwrap();
    let grads = ours(&decoder, Some(&adapter), &mut params, Backprop::default(), &group()).1;
    for (i, (name, tensor)) in low.iter().enumerate() {
        let values = tensor.to_f32();
        let direction: Vec<f32> =
            (0..values.len() as u64).map(|j| seed::normal(seed::mix(&[77, i as u64]), j)).collect();
        let step = 1e-3;
        let moved = |steps: f32| {
            let values = values.iter().zip(&direction).map(|(v, d)| v + steps * step * d).collect();
            let mut tensors = low.clone();
            tensors.insert(name.clone(), HostTensor::f32(tensor.shape.clone(), values));
            loss(&tensors)
        };
        // fourth order: the test's large weights bend the loss, and a much smaller step drowns in the rounding of f32
        let measured = (8.0 * (moved(1.0) - moved(-1.0)) - (moved(2.0) - moved(-2.0))) / (12.0 * f64::from(step));
        let predicted: f64 = grads[name].to_f32().iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
        assert!(
            (measured - predicted).abs() <= 0.01 * predicted.abs() + 4e-3,
            "{name}: measured {measured}, gradient says {predicted}"
        );
    }
}

/// The heart of the design: what sampling computes token by token through the cache has the bits of the learning call.
fn sampling_equals_learning<B: Backend>(backend: Arc<B>, config: &ModelConfig, precision: KvPrecision) -> Vec<f32> {
    let decoder = Decoder::load(backend.clone(), config.clone(), &weights(config)).unwrap().with_kv(precision);
    let adapter = Arc::new(Adapter::load(&*backend, config, &shape(), &adapter_tensors(config)).unwrap());
    let (sequences, prompt) = group();
    let (input, targets) = shared(&sequences, prompt);
    let tape = decoder.forward_train(input, Some(&adapter), Backprop::default());
    let learned = decoder.logprobs(tape.hidden(), &targets, TEMPERATURE).logprobs;

    let adapters = [None, Some(adapter.clone())];
    let mut sampled = Vec::new();
    for (member, ids) in sequences.iter().enumerate() {
        // each member alone in its own blocks, in another order, beside a stranger under the base; prompt in two pieces
        let mut cache = decoder.cache(12);
        let table: Vec<u32> = vec![7, 2, 9, 4];
        let mut call = |rows: std::ops::Range<usize>, stranger: usize| {
            let mut input = Ragged::default();
            for i in 0..stranger {
                input.tokens.push((i as u32 * 3 + member as u32) % 50);
                input.positions.push(i as u32);
            }
            input.spans.push(Span { rows: 0..stranger, table: vec![0, 1], ..Span::default() });
            let begin = stranger;
            input.tokens.extend(&ids[rows.clone()]);
            input.positions.extend(rows.clone().map(|p| p as u32));
            input.spans.push(Span {
                rows: begin..begin + rows.len(),
                start: rows.start,
                table: table.clone(),
                adapter: 1,
                prefix: vec![],
            });
            input.wanted = vec![(begin + rows.len() - 1) as u32];
            decoder.forward(&input, &adapters, &mut cache)
        };
        call(0..8, 3);
        let mut hidden = call(8..prompt, 0);
        for place in prompt..ids.len() {
            sampled.extend(decoder.logprobs(&hidden, &[ids[place]], TEMPERATURE).logprobs);
            hidden = call(place..place + 1, place % 5);
        }
    }
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&sampled), bits(&learned));
    learned
}

#[test]
fn sampling_has_the_bits_of_learning() {
    for config in variants().into_iter().chain([config(true)]) {
        let [exact, rounded] = [KvPrecision::F32, KvPrecision::Bf16].map(|precision| {
            let naive = sampling_equals_learning(Arc::new(Naive::new()), &config, precision);
            assert_eq!(naive, sampling_equals_learning(Arc::new(Cpu::new()), &config, precision));
            assert_eq!(naive, sampling_equals_learning(Arc::new(Cpu::with_threads(3)), &config, precision));
            naive
        });
        // these weights are large, and log-probs down to -20
        let apart = distance(&exact, &rounded);
        assert!(apart > 0.0 && apart < 0.01, "rounded keys and values move log-probs by {apart} of their size");
    }
}

/// Keys and values are rounded in the learning call too, and its gradient is that of what attention saw: as far from the exact one
/// as rounding makes it, and with the same bits when it is computed again.
#[test]
fn rounded_keys_and_values_have_gradients() {
    let backend = Arc::new(Cpu::new());
    for config in variants().into_iter().chain([config(true)]) {
        let low = adapter_tensors(&config);
        let exact = Decoder::load(backend.clone(), config.clone(), &weights(&config)).unwrap();
        let rounded = exact.clone().with_kv(KvPrecision::Bf16);
        assert_eq!(2 * rounded.cache_block_bytes(), exact.cache_block_bytes());
        let adapter = Adapter::load(&*backend, &config, &shape(), &low).unwrap();
        let mut params = Params::lora_from(&*backend, &config, shape(), &low).unwrap();
        let want = ours(&exact, Some(&adapter), &mut params, Backprop::default(), &group()).1;
        let got = ours(&rounded, Some(&adapter), &mut params, Backprop::default(), &group());
        let how = Backprop { recompute: NonZeroUsize::new(1), dropout: None };
        assert_eq!(got, ours(&rounded, Some(&adapter), &mut params, how, &group()));
        for (name, grad) in &want {
            let apart = distance(&grad.to_f32(), &got.1[name].to_f32());
            assert!(
                apart > 0.0 && apart < 0.1,
                "rounded keys and values move the gradient of {name} by {apart} of its size"
            );
        }
    }
}

/// The group with its prompt computed for each member anew.
fn apart(sequences: &[Vec<u32>], prompt: usize) -> (Ragged, Vec<u32>) {
    let mut input = Ragged::whole(&sequences.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let (mut targets, mut begin) = (Vec::new(), 0);
    input.wanted.clear();
    for ids in sequences {
        input.wanted.extend((begin + prompt - 1..begin + ids.len() - 1).map(|row| row as u32));
        targets.extend_from_slice(&ids[prompt..]);
        begin += ids.len();
    }
    (input, targets)
}

/// Whatever a family has: a shared prompt changes no log-prob by a bit and no gradient beyond rounding, recomputing nothing.
#[test]
fn shared_prompts_and_recomputing_change_nothing() {
    let backend = Arc::new(Cpu::new());
    for config in variants() {
        let low = adapter_tensors(&config);
        let decoder = Decoder::load(backend.clone(), config.clone(), &weights(&config)).unwrap();
        let adapter = Adapter::load(&*backend, &config, &shape(), &low).unwrap();
        let mut params = Params::lora_from(&*backend, &config, shape(), &low).unwrap();
        let once = ours(&decoder, Some(&adapter), &mut params, Backprop::default(), &group());
        let how = Backprop { recompute: NonZeroUsize::new(1), dropout: None };
        assert_eq!(once, ours(&decoder, Some(&adapter), &mut params, how, &group()), "recomputing");
        let (sequences, prompt) = group();
        let (logprobs, grads) =
            of_input(&decoder, Some(&adapter), &mut params, Backprop::default(), apart(&sequences, prompt));
        assert_eq!(once.0, logprobs);
        for (name, grad) in &grads {
            let want: Vec<f64> = grad.to_f32().into_iter().map(f64::from).collect();
            assert!(want.iter().any(|g| *g != 0.0), "{name} has no gradient");
            assert_close(name, &once.1[name].to_f32(), &want, 1e-5);
        }
    }
}

/// However many layers are recomputed together, and whether that number divides the layers or is more than there are: dropout
/// draws again what it drew, and every gradient has the bits that it has with all activations kept.
#[test]
fn recomputing_any_number_of_layers_changes_no_bit() {
    let backend = Arc::new(Cpu::new());
    let five = |config| ModelConfig { num_hidden_layers: 5, ..config };
    let mut normed = five(variants().remove(1));
    normed.variant.local = None;
    for config in [five(config(true)), normed] {
        let low = adapter_tensors(&config);
        let decoder = Decoder::load(backend.clone(), config.clone(), &weights(&config)).unwrap();
        let adapter = Adapter::load(&*backend, &config, &shape(), &low).unwrap();
        let mut params = Params::lora_from(&*backend, &config, shape(), &low).unwrap();
        for dropout in [None, Some(Dropout { p: 0.3, seed: 9 })] {
            let mut run = |every: usize| {
                let how = Backprop { recompute: NonZeroUsize::new(every), dropout };
                ours(&decoder, Some(&adapter), &mut params, how, &group())
            };
            let kept = run(0);
            for every in [1, 2, 3, 4, 5, 7] {
                assert_eq!(run(every), kept, "{every} layers together, dropout {dropout:?}");
            }
        }
    }
}

#[test]
fn all_weights_recompute_too() {
    let config = ModelConfig { num_hidden_layers: 3, ..config(false) };
    let backend = Arc::new(Cpu::new());
    let decoder = Decoder::load(backend.clone(), config.clone(), &weights(&config)).unwrap();
    let mut params = Params::full(&*backend, &config, &weights(&config)).unwrap();
    let mut run = |every: usize| {
        let how = Backprop { recompute: NonZeroUsize::new(every), dropout: None };
        ours(&decoder, None, &mut params, how, &group())
    };
    let kept = run(0);
    assert_eq!(run(1), kept);
    assert_eq!(run(2), kept);
}

#[test]
fn all_weights_train_for_llama_alone() {
    let config = &variants()[0];
    let error = Params::full(&Naive::new(), config, &weights(config)).err().unwrap().to_string();
    assert!(error.contains("training of all weights is not supported"), "{error}");
}
